"""What is laid over a plot of pairs: places, directions, paths, and contours of the draws."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from ._canvas import COLOURS
from ._density import Mode
from ._types import Numbers

if TYPE_CHECKING:
    import matplotlib.axes

Place: TypeAlias = Mode | Mapping[str, Numbers]
"""Site names, or names of single numbers such as ``"A[0,1]"``, to values on the constrained scale."""
Direction: TypeAlias = xr.Dataset | Mapping[str, Numbers]
"""What `Density.sensitivity` returns, or a vector by site name, in the parameters' units."""
Path: TypeAlias = Sequence[Place] | Mapping[str, Numbers]
"""Places in their order, or site names to values with the path's axis first."""

LEVELS = (0.9, 0.5)
"""Shares of the draws inside a contour."""

_NUM_CELLS = 64
_LONGEST = 0.3  # Of an axis: the length at which an arrow is cut.
_OUTLINE = "#202020"


class Overlays(NamedTuple):
    """Everything by label, and in it by the name of each number.

    Attributes:
        points: A value for each number.
        arrows: Label, and the numbers of the start and of the step; a step as long as its axis may show it.
        paths: Values in their order, for each number.
    """

    points: dict[str, dict[str, float]]
    arrows: list[tuple[str, dict[str, float], dict[str, float]]]
    paths: dict[str, dict[str, np.ndarray]]

    def reach(self, name: str) -> np.ndarray:
        """Values of one number that have to be in sight."""
        points = [values[name] for values in self.points.values() if name in values]
        return np.concatenate([points, *(values[name] for values in self.paths.values() if name in values)])


def read_overlays(
    names: Sequence[str],
    points: Mapping[str, Place],
    arrows: Mapping[str, Direction],
    paths: Mapping[str, Path],
) -> Overlays:
    """Check what the user wants to see, and name its numbers.

    Raises:
        ValueError: If a site or number is unknown, its shape does not fit, or an arrow starts at no point.
    """
    places = {label: _numbers(place, names, f"points[{label!r}]") for label, place in points.items()}
    if unknown := [label for label in arrows if label not in places]:
        raise ValueError(f"Expected arrows at points among {list(places)}; got {unknown}. Name the place in points.")
    steps = [
        (text, places[label], step)
        for label, direction in arrows.items()
        for text, step in _steps(direction, names, f"arrows[{label!r}]")
    ]
    return Overlays(places, steps, {label: _path(path, names, f"paths[{label!r}]") for label, path in paths.items()})


def draw_overlays(axis: "matplotlib.axes.Axes", overlays: Overlays, first: str, second: str, scale: np.ndarray) -> None:
    """Draw on one pair of parameters.

    Args:
        axis: Where.
        overlays: What.
        first: Along x.
        second: Along y.
        scale: Factor of each arrow, the same in all panels, that keeps it in sight.
    """
    colours = itertools.cycle(COLOURS[1:])
    for label, path in overlays.paths.items():
        colour = next(colours)
        if first in path and second in path:
            axis.plot(path[first], path[second], ".-", color=colour, markersize=3, linewidth=1.2, label=label)
    for (label, start, step), factor in zip(overlays.arrows, scale, strict=True):
        if first in start and second in start:
            end = [start[name] + factor * step.get(name, 0.0) for name in (first, second)]
            _arrow(axis, (start[first], start[second]), (end[0], end[1]), label)
    look: dict[str, Any] = {"markersize": 11, "markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": "none"}
    for label, values in overlays.points.items():
        colour = next(colours)
        if first in values and second in values:
            axis.plot(values[first], values[second], "*", color=colour, zorder=5, label=label, **look)


def arrow_scale(overlays: Overlays, spans: Mapping[str, float]) -> np.ndarray:
    """Factors up to one that cut each arrow to a part of the axes it is drawn on."""
    longest = [
        max((abs(step.get(name, 0.0)) / span for name, span in spans.items()), default=0.0)
        for _, _, step in overlays.arrows
    ]
    return np.array([min(1.0, _LONGEST / length) if length > 0 else 1.0 for length in longest])


def draw_contours(
    axis: "matplotlib.axes.Axes",
    x: Float[np.ndarray, " N"],
    y: Float[np.ndarray, " N"],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> None:
    """Smallest regions that hold given shares of the draws, of a histogram smoothed as Scott (1992) does.

    Smoothing is reflected at the ends of the ranges, so that draws close to a bound stay inside.
    """
    counts, x_edges, y_edges = np.histogram2d(x, y, _NUM_CELLS, (x_range, y_range))
    # Less: several modes make the spread of all draws too wide a measure.
    cells = [np.std(v) / np.diff(edges)[0] for v, edges in ((x, x_edges), (y, y_edges))]
    smooth = gaussian_filter(counts, [max(1.0, 0.7 * c * len(x) ** (-1 / 6)) for c in cells], mode="reflect")
    ordered = np.sort(smooth, axis=None)[::-1]
    inside = np.cumsum(ordered) / max(len(x), 1)
    levels = [float(ordered[min(int(np.searchsorted(inside, share)), ordered.size - 1)]) for share in LEVELS]
    if 0 < levels[0] < levels[1]:
        middles = [(edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges)]
        axis.contour(*middles, smooth.T, levels=levels, colors=_OUTLINE, linewidths=(0.7, 1.3))
    axis.plot([], [], color=_OUTLINE, linewidth=1.0, label="50 % (bold) and 90 % of the draws")


def _numbers(place: Place, names: Sequence[str], where: str) -> dict[str, float]:
    return {name: float(value) for name, value in _columns(place, names, where, leading=0).items()}


def _path(path: Path, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    if isinstance(path, Mapping):
        return _columns(path, names, where, leading=1)
    rows = [_numbers(place, names, where) for place in path]
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError(f"Expected in {where} one or more places with the same sites; got {len(rows)} places.")
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _columns(place: Place, names: Sequence[str], where: str, *, leading: int) -> dict[str, np.ndarray]:
    """Values of every single number, with this many leading axes."""
    values = place.values if isinstance(place, Mode) else place
    if not isinstance(values, Mapping):
        raise TypeError(f"Expected in {where} a Mode or a mapping of site names to values; got {type(place).__name__}.")
    found: dict[str, np.ndarray] = {}
    for site, value in values.items():
        array = np.asarray(value, float)
        if array.ndim < leading:
            raise ValueError(f"Expected in {where} values of {site!r} with the path's axis first; got one number.")
        for index in np.ndindex(*array.shape[leading:]):
            found[f"{site}[{','.join(map(str, index))}]" if index else site] = array[(..., *index)]
    if unknown := [name for name in found if name not in names]:
        raise ValueError(f"Expected in {where} sites that make up {list(names)}; got {unknown}.")
    return found


def _steps(direction: Direction, names: Sequence[str], where: str) -> list[tuple[str, dict[str, float]]]:
    """Labelled steps: a vector as it is; of many directions the most and the least sensitive, one deviation long."""
    if not isinstance(direction, xr.Dataset):
        return [("direction", _numbers(direction, names, where))]
    if missing := {"vector", "curvature"} - {str(name) for name in direction.data_vars}:
        raise ValueError(f"Expected in {where} what Density.sensitivity returns; it lacks {sorted(missing)}.")
    order = np.argsort(direction["curvature"].values)
    chosen = {"most sensitive direction": order[0]}
    if len(order) > 1:
        chosen["least sensitive direction"] = order[-1]
    steps = []
    for label, i in chosen.items():
        # Where the density falls as a normal's would; a direction in which it does not fall is as long as can be.
        length = 1.0 / np.sqrt(max(-float(direction["curvature"][i]), 1e-12))
        vector = length * direction["vector"].transpose("direction", "parameter").values[i]
        named = dict(zip(map(str, direction["parameter"].values), vector, strict=True))
        steps.append((label, _numbers(named, names, where)))
    return steps


def _arrow(axis: "matplotlib.axes.Axes", start: tuple[float, float], end: tuple[float, float], label: str) -> None:
    colour = {"most sensitive direction": "#D00000", "least sensitive direction": "#000000"}.get(label, "#7030A0")
    axis.plot([start[0], end[0]], [start[1], end[1]], color=colour, linewidth=1.4, zorder=4, label=label)
    if start != end:
        head = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
        axis.annotate("", xy=end, xytext=start, arrowprops=head, zorder=4)
