"""Slices through the answer's density: one or two parameters vary, all others stay at a place."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ._canvas import COLOURS, SMALL, new_figure, wrap
from ._density import Density, Mode
from ._exported import finite_part
from ._keys import checked_key
from ._types import Key, Numbers

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

MAX_PARAMETERS = 6
"""Parameters in one figure unless they are named."""

_FLOOR = -8.0  # Nats below the top: the darkest colour.


class HasDensity(Protocol):
    """A `Result` or a `DualSolution`."""

    @property
    def density(self) -> Density: ...


def plot_conditional(
    key: Key,
    answer: Density | HasDensity,
    *,
    parameters: Sequence[str] | None = None,
    at: Mode | Mapping[str, Numbers] | None = None,
    num_points: int = 50,
) -> "matplotlib.figure.Figure":
    """The density along single parameters and pairs of them where all others are held at a place.

    On the diagonal the density along one parameter, relative to its top; below it the log density over two, nats below its
    top. A star marks the place. Unlike the other pictures it needs the density itself, since no exported draw lies on a
    slice; `load` gives a saved result's back.

    Args:
        key: For the draws from which ranges, and the likeliest place, are taken.
        answer: A `Result`, a `DualSolution` or a `Density`.
        parameters: Names of single numbers (``"A[0,1]"``) as in `Density.names`; the first six by default.
        at: Where the others are held: a `Mode`, or a value for every site; by default the likeliest draw. That of a learnt
            density may lie at its edge, where `Density.modes` finds summits.
        num_points: Points along each parameter; a pair costs its square in evaluations of the density, and so do the draws.

    Raises:
        ValueError: If a name is unknown, a number cannot vary alone, a place is no value of the parameters, or there are too
            few points.
        TypeError: If ``answer`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    density = _density(answer)
    if num_points < 2:
        raise ValueError(f"Expected num_points >= 2; got {num_points}.")
    key = checked_key(key)
    names = _names(density, parameters)
    place, columns = _place_and_draws(density, key, at, num_points**2)
    _check_free(density, key, place, names)
    grids = {name: _grid(columns[name], num_points) for name in names}
    figure = new_figure(max(4.0, 1.5 + 1.8 * len(names)), 1.2 + 1.8 * len(names))
    axes = figure.subplots(len(names), len(names), squeeze=False)
    image = _draw(axes, density, place, grids)
    _label(axes, names)
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes.ravel()), extend="min", aspect=30, shrink=0.8)
        bar.set_label("log density below the slice's top (nats)", fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL)
    what = "the likeliest draw" if at is None else "the given place"
    left_out = f"; {len(names)} of {len(density.names)} parameters" if len(names) < len(density.names) else ""
    figure.suptitle(f"{density.problem.name}: slices of the density at {what}{left_out}", fontsize=10)
    return figure


def _names(density: Density, parameters: Sequence[str] | None) -> list[str]:
    if parameters is None:
        return list(density.names)[:MAX_PARAMETERS]
    unknown = [parameters] if isinstance(parameters, str) else [n for n in parameters if n not in density.names]
    if unknown or not parameters:
        got = repr(parameters) if isinstance(parameters, str) or not parameters else unknown
        raise ValueError(f"Expected a sequence of names among {list(density.names)}; got {got}.")
    return list(parameters)


def _draw(axes: np.ndarray, density: Density, place: Mapping[str, float], grids: dict[str, np.ndarray]) -> Any:
    """Fill the diagonal and what is below it; the last image, for the colour bar."""
    image, lines = None, _lines(density, place, grids)
    for (row, second), (column, first) in itertools.product(enumerate(grids), enumerate(grids)):
        axis = axes[row, column]
        if row == column:
            _line(axis, grids[first], lines[first], place[first])
        elif row > column:
            heights = _slice(density, place, (first, grids[first]), (second, grids[second]))
            image = _image(axis, grids[first], grids[second], heights, (place[first], place[second]))
        else:
            axis.set_axis_off()
    return image


def _density(answer: Any) -> Density:
    found = answer if isinstance(answer, Density) else getattr(answer, "density", None)
    if not isinstance(found, Density):
        raise TypeError(
            f"Expected a Result, a DualSolution or a Density; got {type(answer).__name__}. Exported data holds draws and no "
            "density: epi.load gives a saved result back."
        )
    return found


def _place_and_draws(
    density: Density, key: Key, at: Mode | Mapping[str, Numbers] | None, num_draws: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The place, and draws, by the name of each number."""
    draws = density.sample(key, num_draws)
    heights = np.asarray(density.log_prob(draws), float)
    if not np.isfinite(heights).any():
        raise ValueError("Expected draws with a finite density; got none.")
    best = int(np.nanargmax(np.where(np.isfinite(heights), heights, np.nan)))
    columns = _columns(density, draws)
    if at is None:
        return {name: float(values[best]) for name, values in columns.items()}, columns
    values = at.values if isinstance(at, Mode) else at
    sites = {name: jnp.asarray(value, float)[None] for name, value in values.items()}
    if not np.isfinite(np.asarray(density.log_prob({n: jnp.repeat(v, num_draws, 0) for n, v in sites.items()}))).all():
        raise ValueError(f"Expected a place with a finite density; got {dict(values)}.")
    return {name: float(values[0]) for name, values in _columns(density, sites).items()}, columns


def _columns(density: Density, sites: Mapping[str, Any]) -> dict[str, np.ndarray]:
    parts = [np.asarray(sites[p.name], float) for p in density.problem.simulator.parameters]
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return dict(zip(density.names, flat.T, strict=True))


def _check_free(density: Density, key: Key, place: Mapping[str, float], names: list[str]) -> None:
    """A number of a simplex, for example, cannot vary alone."""
    if len(density.names) > 1:
        draws = density.unconstrained.draw(key, 1)
        for name in names:
            density._fix({name: place[name]}, draws)


def _grid(values: np.ndarray, num_points: int) -> Float[np.ndarray, " K"]:
    """Evenly over what the draws cover."""
    finite = finite_part(values)
    return np.linspace(finite.min(), finite.max(), num_points)


def _lines(
    density: Density, place: Mapping[str, float], grids: Mapping[str, Float[np.ndarray, " K"]]
) -> dict[str, Float[np.ndarray, " K"]]:
    """Log density below its top along every number."""
    found = {}
    for name, grid in grids.items():
        # As many points as a pair has, so that one program does for all.
        heights = _heights(density, place, {name: np.repeat(grid, len(grid))})
        found[name] = _below_top(heights[:: len(grid)])
    return found


def _slice(
    density: Density, place: Mapping[str, float], x: tuple[str, np.ndarray], y: tuple[str, np.ndarray]
) -> Float[np.ndarray, "K K"]:
    """Log density below its top over two numbers."""
    first, second = np.meshgrid(x[1], y[1], indexing="ij")
    heights = _heights(density, place, {x[0]: first.ravel(), y[0]: second.ravel()})
    return _below_top(heights).reshape(first.shape)


def _heights(
    density: Density, place: Mapping[str, float], varied: Mapping[str, Float[np.ndarray, " N"]]
) -> Float[np.ndarray, " N"]:
    count = len(next(iter(varied.values())))
    flat = np.stack([np.broadcast_to(varied.get(n, place[n]), count) for n in density.names], axis=1)
    sites, begin = {}, 0
    for parameter in density.problem.simulator.parameters:
        size = math.prod(parameter.shape)
        sites[parameter.name] = jnp.asarray(flat[:, begin : begin + size].reshape(-1, *parameter.shape), float)
        begin += size
    return np.asarray(density.log_prob(sites), float)


def _below_top(heights: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    heights = np.where(np.isfinite(heights), heights, -np.inf)
    return heights - (heights.max() if np.isfinite(heights).any() else 0.0)


def _line(axis: "matplotlib.axes.Axes", grid: np.ndarray, heights: np.ndarray, place: float) -> None:
    axis.plot(grid, np.exp(heights), color=COLOURS[0])
    axis.axvline(place, color=COLOURS[1], linewidth=0.8, linestyle="--")
    axis.set_xlim(grid[0], grid[-1])
    axis.set_ylim(0, 1.15)
    axis.set_yticks([])


def _image(
    axis: "matplotlib.axes.Axes", x: np.ndarray, y: np.ndarray, heights: np.ndarray, place: tuple[float, float]
) -> Any:
    shown = np.maximum(heights, 2 * _FLOOR).T
    image = axis.pcolormesh(x, y, shown, vmin=_FLOOR, vmax=0.0, shading="nearest", rasterized=True)
    axis.plot(*place, "*", color=COLOURS[1], markersize=9, markeredgecolor="white", markeredgewidth=0.6)
    return image


def _label(axes: np.ndarray, names: list[str]) -> None:
    last = len(names) - 1
    for row, column in zip(*np.tril_indices(len(names)), strict=True):
        axis = axes[row, column]
        axis.tick_params(labelsize=SMALL, labelbottom=row == last, labelleft=column == 0 and row > 0)
        axis.locator_params(axis="x", nbins=3)
        if row > column:
            axis.locator_params(axis="y", nbins=3)
        if row == last:
            axis.set_xlabel(wrap(names[column]), fontsize=SMALL)
        if column == 0 and row > 0:
            axis.set_ylabel(wrap(names[row]), fontsize=SMALL)
        if row == column:
            axis.set_title(wrap(names[row]), fontsize=SMALL)
