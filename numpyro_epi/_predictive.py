"""What the model does at the exported draws: its simulated trajectories."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ._canvas import MAX_PANELS, SMALL, add_title, bad_draws, new_figure, shorten
from ._datatree import SAMPLE_DIMS, as_datatree
from ._exported import optional_group, read_group
from ._types import Numbers

if TYPE_CHECKING:
    import matplotlib.figure

TIME = "time"
"""Site that is taken for the horizontal axis unless the user says otherwise."""


TRAJECTORY = 20
"""Length from which a recorded site is taken for a trajectory that nobody asked for by name."""


class _Site(NamedTuple):
    """A simulated site, its draws first, with labels along every other axis."""

    values: np.ndarray
    labels: tuple[np.ndarray, ...]
    kind: str


class _Curve(NamedTuple):
    """One panel: draws along an axis."""

    name: str
    x: np.ndarray
    y: np.ndarray
    of_time: bool


def plot_predictive(
    exported: Any,
    *,
    sites: Sequence[str] | None = None,
    simulated: Mapping[str, Numbers] = MappingProxyType({}),
    time: str | Numbers | None = None,
    num_draws: int = 100,
) -> "matplotlib.figure.Figure":
    """Simulations of draws as curves, coloured by the draws' log density, the likely ones on top.

    A site runs along its longest axis, or along the one that is as long as ``time``; there is a panel for each entry of the
    others.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.
        sites: Sites of the group ``posterior_predictive`` or of ``simulated``; by default all that the model records by
            ``numpyro.deterministic`` and that have an axis, or all of ``simulated``.
        simulated: Sites that the export lacks, such as NumPyro's ``Predictive`` makes at the exported parameters: an array
            for each, its first axis the exported draws in their order, or its first two chain and draw.
        time: Values along the curves, or the name of a site that holds them for each draw; by default the site ``time``
            where there is one, else the axis' own labels.
        num_draws: Curves in each panel, taken evenly.

    Raises:
        ValueError: If there is no site with an axis, a name is unknown, a shape does not fit, or a count is not positive.
        TypeError: If ``exported`` or ``sites`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    if num_draws < 1:
        raise ValueError(f"Expected num_draws >= 1; got {num_draws}.")
    density = read_group(tree, "sample_stats")["lp"].values.ravel()
    found = _recorded(optional_group(tree, "posterior_predictive")) | _given(simulated, tree["sample_stats"].sizes)
    taken = np.linspace(0, len(density) - 1, min(num_draws, len(density))).astype(int)
    taken = taken[np.argsort(density[taken])]
    curves = _curves(found, _chosen(found, sites, list(simulated)), time, taken)
    return _draw(tree, curves, density[taken])


def has_curves(tree: xr.DataTree) -> bool:
    """Whether the model records a site that is long enough to be a trajectory."""
    found = _recorded(optional_group(tree, "posterior_predictive")).items()
    own = [site.values.shape[1:] for name, site in found if site.kind == "deterministic" and name != TIME]
    return any(max(shape, default=0) >= TRAJECTORY for shape in own)


def _recorded(group: xr.Dataset) -> dict[str, _Site]:
    found = {}
    for array in group.data_vars.values():
        array = array.transpose(*SAMPLE_DIMS, ...)
        labels = tuple(np.asarray(array[dim].values) for dim in array.dims[2:])
        values = array.values.reshape(-1, *array.shape[2:])
        name = str(array.attrs.get("original_name", array.name))
        found[name] = _Site(values, labels, str(array.attrs.get("kind", "")))
    return found


def _given(simulated: Mapping[str, Numbers], sizes: Mapping[Any, int]) -> dict[str, _Site]:
    found, shape = {}, tuple(sizes[dim] for dim in SAMPLE_DIMS)
    for name, given in simulated.items():
        values = np.asarray(given)
        leading = 2 if values.shape[:2] == shape else 1
        if leading == 1 and values.shape[:1] != (shape[0] * shape[1],):
            raise ValueError(
                f"Expected simulated[{name!r}] with leading axes {shape} or ({shape[0] * shape[1]},), one simulation for each "
                f"exported draw; got the shape {values.shape}."
            )
        values = values.reshape(-1, *values.shape[leading:])
        found[name] = _Site(values, tuple(np.arange(size) for size in values.shape[1:]), "simulated")
    return found


def _chosen(found: dict[str, _Site], sites: Sequence[str] | None, simulated: list[str]) -> list[str]:
    if isinstance(sites, str):
        raise TypeError(f"Expected a sequence of names; got the string {sites!r}. Write ({sites!r},).")
    usable = [name for name, site in found.items() if max(site.values.shape[1:], default=1) > 1]
    own = [name for name in usable if found[name].kind == "deterministic" and name != TIME]
    wanted = list(sites) if sites is not None else simulated or own
    if unknown := [name for name in wanted if name not in usable]:
        raise ValueError(f"Expected sites with an axis, among {usable}; got {unknown}.")
    if not wanted:
        raise ValueError(
            f"Expected a recorded site with an axis, such as a trajectory; got the sites {list(found)}. Record one in the model "
            "by numpyro.deterministic, or pass simulated={'x': array} with one simulation for each exported draw."
        )
    return wanted


def _curves(found: dict[str, _Site], names: list[str], time: str | Numbers | None, taken: np.ndarray) -> list[_Curve]:
    if isinstance(time, str) and time not in found:
        raise ValueError(f"Expected time to be values or one of {list(found)}; got {time!r}.")
    key = time if isinstance(time, str) else TIME if time is None and TIME in found else None
    # Times of each draw, or the same for all; none leaves the axis its labels.
    times = found[key].values[taken] if key is not None else None if time is None else np.asarray(time)[None]
    curves = []
    for name in names:
        site, shape = found[name], found[name].values.shape[1:]
        fits = [i for i, size in enumerate(shape) if times is not None and times.shape[1:] == (size,)]
        if times is not None and time is not None and not fits:
            raise ValueError(f"Expected an axis of {name!r} as long as time, {times.shape[1:]}; got the shape {shape}.")
        axis = fits[0] if fits else int(np.argmax(shape))
        x = times if fits and times is not None else _numeric(site.labels[axis])[None]
        values = np.moveaxis(site.values[taken], axis + 1, -1)
        labels = [label for i, label in enumerate(site.labels) if i != axis]
        for index in np.ndindex(*values.shape[1:-1]):
            entry = ",".join(str(label[i]) for label, i in zip(labels, index, strict=True))
            curve = _Curve(f"{name}[{entry}]" if entry else name, x, values[(slice(None), *index)], bool(fits))
            curves.append(curve)
    return curves


def _numeric(labels: np.ndarray) -> np.ndarray:
    return labels if labels.dtype.kind in "iuf" else np.arange(len(labels))


def _draw(tree: xr.DataTree, curves: list[_Curve], density: np.ndarray) -> "matplotlib.figure.Figure":
    shown = curves[:MAX_PANELS]
    num_columns = 1 if len(shown) == 1 else 2 if len(shown) <= 6 else 4
    num_rows = -(-len(shown) // num_columns)
    figure = new_figure(max(6.0, 3.2 * num_columns + 1), 1.2 + (3.0 if num_rows == 1 else 2.0 * num_rows))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis, curve in zip(axes.ravel(), shown, strict=False):
        lines = _lines(curve, density)
        axis.add_collection(lines)
        axis.autoscale()
        axis.margins(x=0)
        axis.set_title(shorten(curve.name), fontsize=SMALL + 1)
        axis.set_xlabel(TIME if curve.of_time else "index", fontsize=SMALL)
        axis.tick_params(labelsize=SMALL)
    bar = figure.colorbar(lines, ax=list(axes.ravel()), extend="min", aspect=30)
    bar.set_label("log density (nats)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    for axis in axes.ravel()[len(shown) :]:
        axis.set_axis_off()
    left_out = [f"{len(shown)} of {len(curves)} entries"] if len(shown) < len(curves) else []
    usable = [np.where(np.isfinite(curve.y).all(axis=1), 0.0, np.nan) for curve in shown]
    add_title(figure, tree, *left_out, *bad_draws(density, *usable))
    return figure


def _lines(curve: _Curve, density: np.ndarray) -> Any:
    from matplotlib.collections import LineCollection

    usable = np.isfinite(density) & np.isfinite(curve.y).all(axis=1)
    x = np.broadcast_to(curve.x, curve.y.shape)
    lines = LineCollection(np.stack([x, curve.y], axis=-1)[usable], linewidths=0.6, array=density[usable])
    if usable.any():
        lines.set_clim(np.quantile(density[usable], 0.02), density[usable].max())
    return lines
