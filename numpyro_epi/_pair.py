"""Pairs of parameters, drawn from the exported data alone."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import ks_2samp

from ._arguments import check_count
from ._canvas import SMALL, add_legend, add_title, axis_limits, bad_draws, draw_histogram, new_figure, padded, wrap
from ._datatree import as_datatree
from ._exported import finite_part, optional_group, read_bounds, read_components, read_group, select_names
from ._overlays import Direction, Overlays, Path, Place, arrow_scale, draw_contours, draw_overlays, read_overlays

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure


def plot_pair(
    exported: Any,
    *,
    parameters: Sequence[str] | None = None,
    num_draws: int = 1000,
    max_parameters: int = 12,
    contours: bool = False,
    points: Mapping[str, Place] = MappingProxyType({}),
    arrows: Mapping[str, Direction] = MappingProxyType({}),
    paths: Mapping[str, Path] = MappingProxyType({}),
) -> "matplotlib.figure.Figure":
    """Each pair of parameters, draws coloured by log density; on the diagonal the marginals, the prior's as outlines.

    An axis spans the parameter's bounds, which are dotted; without two of them it ends before the few farthest draws would
    stretch it.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.
        parameters: Sites (``"A"``) or components (``"A[0,1]"``) to show; all by default.
        num_draws: Draws in each scatter plot, taken evenly; marginals count every draw.
        max_parameters: Of more components, those whose marginals differ most from the prior's (Kolmogorov-Smirnov
            distance) are shown, and the title names them; the first ones where there is no prior.
        contours: Outline the smallest regions that hold 50 and 90 % of the draws.
        points: Places to star, by label: a `Mode`, or values by site, ``{"mode": {"A": array}}``; sites may be missing.
        arrows: Directions at these points, by the point's label: what `Density.sensitivity` returned there, of which the most
            and the least sensitive direction are drawn, ``1 / sqrt(-curvature)`` long; or a vector by site, drawn as it is.
            Longer ones are cut to three tenths of an axis.
        paths: Lines, by label: a sequence of places, such as `Density.conditional_modes` returns, or values by site with the
            path's axis first.

    Raises:
        ValueError: If a name is unknown, a shape does not fit, a count is not positive, or a group missing.
        TypeError: If ``exported``, ``parameters`` or a place is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    check_count("num_draws", num_draws)
    check_count("max_parameters", max_parameters)
    draws, prior = read_components(read_group(tree, "posterior")), read_components(optional_group(tree, "prior"))
    names = select_names(list(draws), parameters)
    shown = most_changed(names, draws, prior, max_parameters)
    density, bounds = read_group(tree, "sample_stats")["lp"].values.ravel(), read_bounds(tree)
    overlays = read_overlays(list(draws), points, arrows, paths)
    ends = {name: bounds.get(name, (-np.inf, np.inf)) for name in shown}
    limits = {name: _in_sight(axis_limits(draws[name], *ends[name]), overlays.reach(name)) for name in shown}
    cell = 1.7 if len(shown) <= 5 else 1.3
    figure = new_figure(max(4.0, 1.2 + cell * len(shown)), 1.4 + cell * len(shown))
    axes = figure.subplots(len(shown), len(shown), squeeze=False)
    for i, name in enumerate(shown):
        draw_histogram(axes[i, i], draws[name], prior.get(name, np.empty(0)), limits[name])
    columns = np.stack([draws[name] for name in shown], axis=1)
    _scatter(axes, columns, density, num_draws)
    if contours:
        _outline(axes, columns, [np.clip(limits[name], *ends[name]) for name in shown])
    _lay_over(axes, overlays, limits)
    _draw_bounds(axes, list(ends.values()))
    label_grid(axes, limits)
    add_legend(figure, axes[np.tril_indices(len(shown))])
    reason = "those that differ most from the prior" if set(names) <= set(prior) else "the first ones"
    note = f"{len(shown)} of {len(names)} parameters, {reason}: {', '.join(shown)}"
    left_out = [note] if len(shown) < len(names) else []
    add_title(figure, tree, *left_out, *bad_draws(density, *(draws[name] for name in shown)))
    return figure


def most_changed(names: list[str], draws: dict[str, np.ndarray], prior: dict[str, np.ndarray], count: int) -> list[str]:
    if len(names) <= count or not set(names) <= set(prior):
        return names[:count]
    distance = np.array([_distance(draws[name], prior[name]) for name in names])
    chosen = np.argsort(-distance, kind="stable")[:count]
    return [names[i] for i in sorted(chosen)]


def _distance(draws: np.ndarray, prior: np.ndarray) -> float:
    draws, prior = finite_part(draws), finite_part(prior)
    return float(np.asarray(ks_2samp(draws, prior, method="asymp")[0])) if draws.size and prior.size else 1.0


def _scatter(axes: np.ndarray, draws: np.ndarray, density: np.ndarray, num_draws: int) -> None:
    """Fill the lower triangle, likely draws on top, and put the colour bar into the free corner."""
    taken = np.linspace(0, len(density) - 1, min(num_draws, len(density))).astype(int)
    taken = taken[np.isfinite(density[taken]) & np.isfinite(draws[taken]).all(axis=1)]
    taken = taken[np.argsort(density[taken])]
    if len(axes) == 1 or not taken.size:
        return
    # The colour of the unlikeliest few would use up the map.
    low, high = np.quantile(density[taken], 0.02), density[taken].max()
    look = {"c": density[taken], "vmin": low, "vmax": high, "s": 4, "linewidths": 0, "rasterized": True}
    pairs = itertools.combinations(range(len(axes)), 2)
    points = [axes[j, i].scatter(draws[taken, i], draws[taken, j], **look) for i, j in pairs]
    height = min(3.0, len(axes) - 1.0)
    corner = axes[0, -1].inset_axes((0.25, 1 - height, 0.1, height))
    corner.set_in_layout(False)  # The free corner has room; the layout would make the top row taller for it.
    bar = axes[0, 0].figure.colorbar(points[0], cax=corner, extend="min")
    bar.set_label("log density (nats)", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)


def _in_sight(limits: tuple[float, float], values: np.ndarray) -> tuple[float, float]:
    """Wide enough for these values too."""
    values = finite_part(values)
    if not values.size or (limits[0] <= values.min() and values.max() <= limits[1]):
        return limits
    return padded(min(limits[0], float(values.min())), max(limits[1], float(values.max())))


def _outline(axes: np.ndarray, columns: np.ndarray, ranges: list[np.ndarray]) -> None:
    columns = columns[np.isfinite(columns).all(axis=1)]
    for i, j in itertools.combinations(range(len(axes)), 2):
        x_range, y_range = ((float(low), float(high)) for low, high in (ranges[i], ranges[j]))
        draw_contours(axes[j, i], columns[:, i], columns[:, j], x_range, y_range)


def _lay_over(axes: np.ndarray, overlays: Overlays, limits: dict[str, tuple[float, float]]) -> None:
    names = list(limits)
    scale = arrow_scale(overlays, {name: high - low for name, (low, high) in limits.items()})
    for i, j in itertools.combinations(range(len(names)), 2):
        draw_overlays(axes[j, i], overlays, names[i], names[j], scale)


def _draw_bounds(axes: np.ndarray, ends: list[tuple[float, float]]) -> None:
    look = {"color": "#909090", "linestyle": ":", "linewidth": 0.8, "zorder": 0}
    for row, column in zip(*np.tril_indices(len(axes)), strict=True):
        for bound in ends[column]:
            if np.isfinite(bound):
                axes[row, column].axvline(bound, **look)
        for bound in ends[row] if row > column else ():
            if np.isfinite(bound):
                axes[row, column].axhline(bound, **look)


def label_grid(axes: np.ndarray, limits: dict[str, tuple[float, float]]) -> None:
    """Names and numbers at the left and bottom edges only."""
    last, names = len(axes) - 1, list(limits)
    for (row, column), axis in np.ndenumerate(axes):
        if column > row:
            axis.set_axis_off()
            continue
        axis.set_xlim(*limits[names[column]])
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(labelsize=SMALL, labelbottom=row == last, labelleft=column == 0 and row > 0)
        if row > column:
            axis.set_ylim(*limits[names[row]])
            axis.locator_params(axis="y", nbins=3)
        if row == last:
            axis.set_xlabel(wrap(names[column]), fontsize=SMALL)
        if column == 0 and row > 0:
            axis.set_ylabel(wrap(names[row]), fontsize=SMALL)
    for name, axis in zip(names, axes.diagonal(), strict=True):
        axis.set_title(wrap(name), fontsize=SMALL)
