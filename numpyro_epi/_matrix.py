"""Parameters that are matrices, laid out as such, drawn from the exported data alone."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ._canvas import PRIOR, SMALL, add_title, axis_limits, bad_draws, draw_histogram, new_figure, shorten
from ._datatree import SAMPLE_DIMS, as_datatree
from ._exported import labels_of, optional_group, read_bounds, read_components, read_group

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

MAX_WRITTEN, MAX_SITES = 25, 4
"""Entries up to which numbers are written and marginals are drawn; matrices in one figure."""

_LONGEST = 9.0  # Inches of a matrix's longer side.


class _Matrix(NamedTuple):
    """Draws of a matrix, [N, rows, columns], with a name for every entry and labels for both axes."""

    site: str
    draws: np.ndarray
    names: list[str]
    labels: tuple[list[str], list[str]]

    @property
    def written(self) -> bool:
        return len(self.names) <= MAX_WRITTEN

    @property
    def tall(self) -> bool:
        return self.draws.shape[1] > 2 * self.draws.shape[2] and not self.written

    def size(self) -> tuple[float, float]:
        """Width and height of its picture in inches: mean, spread, and marginals where they are drawn."""
        rows, columns = self.draws.shape[1:]
        cell = min(0.7 if self.written else 0.25, _LONGEST / max(rows, columns))
        width = 2 * (max(1.0, cell * columns) + 1.5)
        if self.written:
            return width + 1.1 * columns, max(2.0, 1.0 * rows) + 0.6
        return width, max(1.6, cell * rows) + 0.8


def plot_matrix(exported: Any, *, sites: Sequence[str] | None = None) -> "matplotlib.figure.Figure":
    """Each matrix-shaped parameter as a matrix: means, standard deviations, and marginals where they fit.

    Draws that are not finite are left out, and the title says how many. Colours of the means are centred on zero. With up
    to 25 entries the numbers are written, and the marginals are drawn in a grid like the matrix, on one scale, the prior's
    as outlines.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.
        sites: Names of parameters with two axes; all of them by default, the first four.

    Raises:
        ValueError: If a site is unknown or no matrix, there is none, or a group is missing.
        TypeError: If ``exported`` is of another type, or ``sites`` is a text.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    found = _matrices(read_group(tree, "posterior"))
    chosen = _chosen(found, sites)[:MAX_SITES]
    columns = np.concatenate([matrix.draws.reshape(len(matrix.draws), -1) for matrix in chosen], axis=1)
    finite = np.isfinite(columns).all(axis=1)
    shown = [matrix._replace(draws=matrix.draws[finite]) for matrix in chosen]
    sizes = [matrix.size() for matrix in shown]
    tall = all(matrix.tall for matrix in shown)
    widths, heights = zip(*sizes, strict=True)
    figure = new_figure(max(5.0, sum(widths) if tall else max(widths)), 0.7 + (max(heights) if tall else sum(heights)))
    if tall:
        parts = figure.subfigures(1, len(shown), squeeze=False, width_ratios=widths)
    else:
        parts = figure.subfigures(len(shown), 1, squeeze=False, height_ratios=heights)
    prior, bounds = read_components(optional_group(tree, "prior")), read_bounds(tree)
    for part, matrix in zip(parts.ravel(), shown, strict=True):
        _draw_matrix(part, matrix, prior, bounds)
    left_out = len(found if sites is None else sites) - len(shown)
    add_title(figure, tree, *([f"left out: {left_out} more matrices"] if left_out else []), *bad_draws(*columns.T))
    return figure


def has_matrices(tree: xr.DataTree) -> bool:
    """Whether a parameter has two axes."""
    return bool(_matrices(read_group(tree, "posterior")))


def _matrices(posterior: xr.Dataset) -> dict[str, _Matrix]:
    found = {}
    for array in posterior.data_vars.values():
        axes = [dim for dim in array.dims if dim not in SAMPLE_DIMS]
        if array.attrs.get("kind") == "parameter" and len(axes) == 2:
            site = str(array.attrs.get("original_name", array.name))
            values = array.transpose(*SAMPLE_DIMS, ...).values
            labels = tuple([str(label) for label in array[dim].values] for dim in axes)
            found[site] = _Matrix(site, values.reshape(-1, *values.shape[2:]), labels_of(array), (labels[0], labels[1]))
    return found


def _chosen(found: dict[str, _Matrix], sites: Sequence[str] | None) -> list[_Matrix]:
    if isinstance(sites, str):
        raise TypeError(f"Expected a sequence of names; got the string {sites!r}. Write ({sites!r},).")
    if not found:
        raise ValueError("Expected a parameter with two axes; got none. plot_pair shows parameters of any shape.")
    wanted = list(found) if sites is None else list(sites)
    if not wanted or (unknown := [name for name in wanted if name not in found]):
        raise ValueError(f"Expected parameters with two axes, among {list(found)}; got {unknown if wanted else []}.")
    return [found[name] for name in wanted]


def _draw_matrix(
    part: "matplotlib.figure.SubFigure",
    matrix: _Matrix,
    prior: dict[str, np.ndarray],
    bounds: dict[str, tuple[float, float]],
) -> None:
    maps, marginals = part, None
    if matrix.written:
        width, beside = matrix.size()[0], 1.1 * matrix.draws.shape[2]
        maps, marginals = part.subfigures(1, 2, squeeze=False, width_ratios=(width - beside, beside))[0]
    left, right = maps.subplots(1, 2)
    # Without a single finite draw there is nothing to show but the note.
    draws = matrix.draws if len(matrix.draws) else np.zeros((1, *matrix.draws.shape[1:]))
    mean, spread = draws.mean(axis=0), draws.std(axis=0)
    largest = float(np.abs(mean).max()) or 1.0
    name = shorten(matrix.site, 20)
    _heat_map(left, matrix, mean, f"{name}: mean", {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest})
    _heat_map(right, matrix, spread, f"{name}: sd", {"cmap": "Greys", "vmin": 0.0, "vmax": 1.2 * spread.max() or 1.0})
    if marginals is not None:
        _marginals(marginals, matrix, prior, bounds)


def _heat_map(
    axis: "matplotlib.axes.Axes", matrix: _Matrix, values: np.ndarray, title: str, look: dict[str, Any]
) -> None:
    image = axis.imshow(values, aspect="equal" if matrix.written else "auto", interpolation="nearest", **look)
    axis.set_title(title, fontsize=SMALL + 1)
    for side, labels in zip((axis.yaxis, axis.xaxis), matrix.labels, strict=True):
        places = np.arange(0, len(labels), max(1, -(-len(labels) // 13)))
        side.set_ticks(places, [shorten(labels[i], 10) for i in places], fontsize=SMALL)
    bar = axis.figure.colorbar(image, ax=axis, shrink=0.8, aspect=15)
    bar.ax.tick_params(labelsize=SMALL)
    if matrix.written:
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            look = {"ha": "center", "va": "center", "fontsize": SMALL, "color": "white" if dark else "black"}
            axis.text(column, row, f"{value:.2g}", **look)


def _marginals(
    part: "matplotlib.figure.SubFigure",
    matrix: _Matrix,
    prior: dict[str, np.ndarray],
    bounds: dict[str, tuple[float, float]],
) -> None:
    rows, columns = matrix.draws.shape[1:]
    draws = dict(zip(matrix.names, matrix.draws.reshape(-1, len(matrix.names)).T, strict=True))
    ends = [axis_limits(values, *bounds.get(name, (-np.inf, np.inf))) for name, values in draws.items()]
    limits = (min(low for low, _ in ends), max(high for _, high in ends))
    axes = part.subplots(rows, columns, squeeze=False, sharex=True)
    for (row, column), (name, values) in zip(
        itertools.product(range(rows), range(columns)), draws.items(), strict=True
    ):
        axis = axes[row, column]
        draw_histogram(axis, values, prior.get(name, np.empty(0)), limits)
        axis.axvline(0, color=PRIOR, linewidth=0.5, linestyle=":")
        axis.locator_params(axis="x", nbins=3)
        axis.set_title(shorten(name, 16), fontsize=SMALL - 1, pad=2)
