"""Which pictures a result has something for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from ._certificate_plot import has_certificate, plot_certificate
from ._datatree import as_datatree
from ._matrix import has_matrices, plot_matrix
from ._pair import plot_pair
from ._plots import plot_fit, plot_statistics
from ._predictive import has_curves, plot_predictive

if TYPE_CHECKING:
    import matplotlib.figure

Picture: TypeAlias = Callable[[Any], "matplotlib.figure.Figure"]


def gallery(exported: Any) -> dict[str, Picture]:
    """Functions of the exported data, by a short name: those whose picture would not be empty.

    Raises:
        TypeError: If ``exported`` is no exported data.
    """
    tree = as_datatree(exported)
    pictures: dict[str, tuple[Picture, bool]] = {
        "pair": (plot_pair, True),
        "matrix": (plot_matrix, has_matrices(tree)),
        "statistics": (plot_statistics, True),
        "predictive": (plot_predictive, has_curves(tree)),
        "fit": (plot_fit, True),
        "certificate": (plot_certificate, has_certificate(tree)),
    }
    return {name: draw for name, (draw, applies) in pictures.items() if applies}
