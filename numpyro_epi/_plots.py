"""Figures of a run and its statistics, drawn from the exported data alone. Add a picture: one function of that data."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._canvas import (
    COLOURS,
    MAX_PANELS,
    PRIOR,
    SMALL,
    TARGET,
    add_legend,
    add_title,
    axis_limits,
    central,
    draw_histogram,
    new_figure,
    padded,
    shorten,
)
from ._datatree import as_datatree
from ._exported import finite_part, optional_group, read_components, read_group, read_targets, read_tolerance

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_DASHES = ("-", "--", ":", "-.")


def plot_fit(exported: Any) -> "matplotlib.figure.Figure":
    """How the run went, over optimiser steps: entropy, violation of each constraint, and Lagrange multipliers.

    The shaded band is the tolerance within which a constraint counts as satisfied. A multiplier is shown times the
    standard deviation of its statistic, so that statistics of all units share an axis. Its line is the run's. The diamond at
    the end is the result's multiplier, the one in the result's table, and the legend says where it comes from: after the run
    better multipliers may be taken than the run's last ones.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.

    Raises:
        ValueError: If a group is missing.
        TypeError: If ``exported`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    history, constraints = read_group(tree, "optimization"), read_group(tree, "constant_data")
    tolerance = read_tolerance(tree.attrs)
    multiplier = (history["multiplier"] * constraints["scale"]).transpose("epoch", "constraint").values
    violation = history["violation"].transpose("epoch", "constraint").values
    figure = new_figure(9.0, 8.0)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _entropy_lines(top, history, optional_group(tree, "sample_stats_prior"), tree.attrs)
    middle.axhspan(-tolerance, tolerance, color=PRIOR, alpha=0.2, linewidth=0, label=f"tolerance, {tolerance:g} sd")
    styles = _styles(list(history["constraint"].values), violation)
    _constraint_lines(middle, history["step"].values, violation, styles)
    _constraint_lines(bottom, history["step"].values, multiplier, styles)
    of_run_and_result = _final_multipliers(bottom, history["step"].values, constraints, styles)
    _violation_scale(middle, tolerance, violation)
    bottom.set_ylabel("multiplier × sd\nof the statistic (nats)")
    bottom.set_xlabel("step")
    figure.align_ylabels()
    handles = [handle for axis in (top, middle) for handle in axis.get_legend_handles_labels()[0]] + of_run_and_result
    unnamed = sum("label" not in style for style in styles)
    title = f"grey: {unnamed} constraints\nthat ended nearer to target" if unnamed else None
    figure.legend(handles=handles, loc="outside right center", fontsize=SMALL, title=title, title_fontsize=SMALL)
    add_title(figure, tree)
    return figure


def plot_statistics(exported: Any) -> "matplotlib.figure.Figure":
    """Each statistic's draws, the prior's draws as outlines, the target mean dashed, and one target spread as a band.

    Of more than 24 components, the 24 farthest from their targets (in sd) are shown, and the title says so.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.

    Raises:
        ValueError: If a group is missing.
        TypeError: If ``exported`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    draws = read_components(read_group(tree, "posterior_predictive"), "statistic")
    prior = read_components(optional_group(tree, "prior_predictive"), "statistic")
    targets = read_targets(read_group(tree, "constant_data"))
    shown = _farthest(targets)
    num_columns = min(6, math.ceil(math.sqrt(len(shown))))
    num_rows = math.ceil(len(shown) / num_columns)
    figure = new_figure(max(5.0, 2.5 * num_columns), 1.4 + 2.1 * num_rows)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis, name in zip(axes, shown, strict=False):
        _statistic_panel(axis, name, draws[name], prior.get(name, np.empty(0)), targets[name])
    for axis in axes[len(shown) :]:
        axis.remove()
    add_legend(figure, axes[: len(shown)])
    hidden = len(targets) - len(shown)
    note = f"{len(shown)} of {len(targets)} statistics; left out: the {hidden} nearest to their targets"
    add_title(figure, tree, *([note] if hidden else []))
    return figure


def _entropy_lines(
    axis: "matplotlib.axes.Axes", history: xr.Dataset, prior: xr.Dataset, attrs: Mapping[Any, Any]
) -> None:
    entropy = history["entropy"].values
    axis.plot(history["step"].values, entropy, color=COLOURS[0], label="entropy of the guide")
    shown = [*finite_part(entropy)]
    if "log_prior" in prior:
        # H(p) = -E_p[log p], over the prior's own draws.
        log_prior = finite_part(np.asarray(prior["log_prior"].values, float))
        left_out = prior["log_prior"].size - log_prior.size
        of_prior = -float(log_prior.mean()) if log_prior.size else math.nan
        uniform = log_prior.size > 0 and float(log_prior.std()) < 1e-4 * max(1.0, abs(of_prior))
        # The dual bounds -KL(q || base), which differs from the entropy by a constant only for a uniform base.
        bound = float(attrs.get("upper_bound", np.nan)) + (of_prior if attrs.get("base") == "prior" else 0.0)
        if math.isfinite(bound) and (uniform or attrs.get("base") == "lebesgue"):
            axis.axhline(bound, color=TARGET, linestyle=":", label=f"bound of the dual, {bound:.4g}")
            shown.append(bound)
        note = f",\nwithout {left_out} draws that are not finite" if left_out else ""
        axis.axhline(of_prior, color=PRIOR, linestyle="--", label=f"entropy of the prior, {of_prior:.3g}{note}")
        # Far above, the prior would flatten the run: it is in the legend then.
        reach = 4 * (max(shown) - min(shown)) + 0.2 if shown else math.inf
        if shown and of_prior > max(shown) + reach:
            margin = 0.1 * (max(shown) - min(shown)) + 0.01
            axis.set_ylim(min(shown) - margin, max(shown) + margin)
    axis.set_ylabel("entropy (nats)")


def _styles(names: list[str], violation: np.ndarray) -> list[dict[str, Any]]:
    """A colour and dashes for each constraint; beyond 24, only for those farthest from their targets at the end."""
    final = np.abs(violation[-1]) if len(violation) else np.zeros(len(names))
    order = np.argsort(-np.nan_to_num(final, nan=np.inf), kind="stable")[:MAX_PANELS]
    styles: list[dict[str, Any]] = [{"color": "#C8C8C8", "linewidth": 0.6, "zorder": 1} for _ in names]
    for rank, i in enumerate(sorted(order)):
        dashes, colour = divmod(rank, len(COLOURS))
        styles[i] = {
            "color": COLOURS[colour],
            "linestyle": _DASHES[dashes],
            "label": shorten(names[i]),
            "linewidth": 1.2,
        }
    return styles


def _constraint_lines(
    axis: "matplotlib.axes.Axes", steps: np.ndarray, columns: np.ndarray, styles: list[dict[str, Any]]
) -> None:
    for values, style in zip(columns.T, styles, strict=True):
        axis.plot(steps, values, **style)
    axis.axhline(0, color="black", linewidth=0.5, zorder=0)


def _final_multipliers(
    axis: "matplotlib.axes.Axes", steps: np.ndarray, constraints: xr.Dataset, styles: list[dict[str, Any]]
) -> list[Any]:
    """Mark the result's multipliers, which need not be the run's last ones; entries of the legend for both."""
    from matplotlib.lines import Line2D

    if "multiplier" not in constraints:
        return []
    final = (constraints["multiplier"] * constraints["scale"]).values
    look: dict[str, Any] = {"marker": "D", "s": 28, "facecolors": "white", "linewidths": 1.4}
    for value, style in zip(final, styles, strict=True):
        axis.scatter(max(steps, default=0), value, edgecolors=style["color"], zorder=5, clip_on=False, **look)
    source = str(constraints["multiplier"].attrs.get("source", ""))
    label = "multiplier of the result" + (f",\nfrom {shorten(source, 28)}" if source else "")
    marker: dict[str, Any] = {"marker": "D", "markerfacecolor": "white", "markersize": 5, "linestyle": "none"}
    return [
        Line2D([], [], color="black", label="multiplier during the run"),
        Line2D([], [], color="black", label=label, **marker),
    ]


def _violation_scale(axis: "matplotlib.axes.Axes", tolerance: float, violation: np.ndarray) -> None:
    """Linear inside the tolerance, logarithmic outside, with at most five decades labelled on a side."""
    axis.set_yscale("symlog", linthresh=tolerance)
    largest = max(np.abs(finite_part(violation)).max(initial=0.0), tolerance)
    decades = np.arange(math.ceil(math.log10(5 * tolerance)), math.floor(math.log10(largest)) + 1)
    powers = 10.0 ** decades[:: math.ceil(len(decades) / 5) or 1]
    ticks = [*-powers[::-1], -tolerance, 0.0, tolerance, *powers]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylabel("violation\n(sd of the statistic)")


def _farthest(targets: dict[str, dict[str, Any]]) -> list[str]:
    chosen = sorted(targets, key=lambda name: -np.nan_to_num(targets[name]["distance"], nan=np.inf))[:MAX_PANELS]
    return [name for name in targets if name in chosen]


def _statistic_panel(
    axis: "matplotlib.axes.Axes", name: str, draws: np.ndarray, prior: np.ndarray, target: dict[str, Any]
) -> None:
    mean, std = target["mean"], target["std"]
    draw_histogram(axis, draws, prior, _statistic_limits(draws, prior, mean, std or 0.0))
    if std is not None:
        axis.axvspan(mean - std, mean + std, color=TARGET, alpha=0.15, linewidth=0, zorder=0, label="target mean ± std")
    axis.axvline(mean, color=TARGET, linestyle="--", linewidth=1.5, label="target mean")
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(shorten(name), fontsize=SMALL + 1)
    low, high = axis.get_xlim()
    hidden = draws.size - np.count_nonzero((draws >= low) & (draws <= high))
    unit = target["unit"] or "no unit"
    axis.set_xlabel(f"{unit}; {hidden} of {draws.size} not shown" if hidden else unit, fontsize=SMALL)


def _statistic_limits(draws: np.ndarray, prior: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    """The guide's draws and the target; of the prior's only what adds at most as much again on each side."""
    low, high = axis_limits(draws, -math.inf, math.inf)
    low, high = min(low, mean - 1.5 * std), max(high, mean + 1.5 * std)
    if prior.size:
        width, (prior_low, prior_high) = high - low, central(prior, 0.05)
        low, high = min(low, max(prior_low, low - width)), max(high, min(prior_high, high + width))
    return padded(low, high)
