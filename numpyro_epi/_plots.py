"""Figures of a result, drawn from the exported data alone. Add a picture here: one function of the exported data."""

import itertools
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.stats import ks_2samp

from ._arguments import check_count
from ._arviz import SAMPLE_DIMS, as_datatree

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Okabe and Ito, Color Universal Design (2008): told apart with every kind of colour vision; their yellow is too pale.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
_GUIDE, _PRIOR, _TARGET = "#56B4E9", "#404040", "#D55E00"
_SMALL = 8
_NUM_BINS = 40
_MAX_PANELS = 24


def plot_pair(
    exported: Any, *, parameters: Sequence[str] | None = None, num_draws: int = 1000, max_parameters: int = 12
) -> "matplotlib.figure.Figure":
    """Each pair of parameters, draws coloured by log density; on the diagonal the marginals, the prior's as outlines.

    An axis spans the parameter's bounds; without two of them it ends before the few farthest draws would stretch it.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.
        parameters: Sites (``"A"``) or components (``"A[0,1]"``) to show; all by default.
        num_draws: Draws in each scatter plot, taken evenly; marginals count every draw.
        max_parameters: Of more components, those whose marginals differ most from the prior's (Kolmogorov-Smirnov
            distance) are shown, and the title names them; the first ones where there is no prior.

    Raises:
        ValueError: If a name is unknown, a count not positive, or a group missing.
        TypeError: If ``exported`` or ``parameters`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    check_count("num_draws", num_draws)
    check_count("max_parameters", max_parameters)
    draws, prior = _components(_group(tree, "posterior")), _components(_optional(tree, "prior"))
    names = _select(list(draws), parameters)
    shown = _most_changed(names, draws, prior, max_parameters)
    density, bounds = _group(tree, "sample_stats")["lp"].values.ravel(), _bounds(tree)
    limits = {name: _limits(draws[name], *bounds.get(name, (-np.inf, np.inf))) for name in shown}
    cell = 1.7 if len(shown) <= 5 else 1.3
    figure = _figure(max(4.0, 1.2 + cell * len(shown)), 1.4 + cell * len(shown))
    axes = figure.subplots(len(shown), len(shown), squeeze=False)
    for i, name in enumerate(shown):
        _histogram(axes[i, i], draws[name], prior.get(name, np.empty(0)), limits[name])
    _scatter(axes, np.stack([draws[name] for name in shown], axis=1), density, num_draws)
    _label_grid(axes, limits)
    _shared_legend(figure, axes.diagonal())
    reason = "those that differ most from the prior" if set(names) <= set(prior) else "the first ones"
    note = f"{len(shown)} of {len(names)} parameters, {reason}: {', '.join(shown)}"
    left_out = [note] if len(shown) < len(names) else []
    _title(figure, tree, *left_out, *_bad_draws(density, *(draws[name] for name in shown)))
    return figure


def plot_fit(exported: Any) -> "matplotlib.figure.Figure":
    """How the run went, over optimiser steps: entropy, violation of each constraint, and Lagrange multipliers.

    The shaded band is the tolerance within which a constraint counts as satisfied. A multiplier is shown times the
    standard deviation of its statistic, so that statistics of all units share an axis.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.

    Raises:
        ValueError: If a group is missing.
        TypeError: If ``exported`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    history, constraints = _group(tree, "optimization"), _group(tree, "constant_data")
    tolerance = _tolerance(tree.attrs.get("settings") or "{}")
    multiplier = (history["multiplier"] * constraints["scale"]).transpose("epoch", "constraint").values
    violation = history["violation"].transpose("epoch", "constraint").values
    figure = _figure(9.0, 8.0)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    _entropy_lines(top, history, _optional(tree, "sample_stats_prior"), tree.attrs)
    middle.axhspan(-tolerance, tolerance, color=_PRIOR, alpha=0.2, linewidth=0, label=f"tolerance, {tolerance:g} sd")
    styles = _styles(list(history["constraint"].values), violation)
    _constraint_lines(middle, history["step"].values, violation, styles)
    _constraint_lines(bottom, history["step"].values, multiplier, styles)
    _violation_scale(middle, tolerance, violation)
    bottom.set_ylabel("multiplier × sd\nof the statistic (nats)")
    bottom.set_xlabel("step")
    figure.align_ylabels()
    handles = [handle for axis in (top, middle) for handle in axis.get_legend_handles_labels()[0]]
    unnamed = sum("label" not in style for style in styles)
    title = f"grey: {unnamed} constraints\nthat ended nearer to target" if unnamed else None
    figure.legend(handles=handles, loc="outside right center", fontsize=_SMALL, title=title, title_fontsize=_SMALL)
    _title(figure, tree)
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
    draws = _components(_group(tree, "posterior_predictive"), "statistic")
    prior = _components(_optional(tree, "prior_predictive"), "statistic")
    targets = _targets(_group(tree, "constant_data"))
    shown = _farthest(targets)
    num_columns = min(6, math.ceil(math.sqrt(len(shown))))
    num_rows = math.ceil(len(shown) / num_columns)
    figure = _figure(max(5.0, 2.5 * num_columns), 1.4 + 2.1 * num_rows)
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis, name in zip(axes, shown, strict=False):
        _statistic_panel(axis, name, draws[name], prior.get(name, np.empty(0)), targets[name])
    for axis in axes[len(shown) :]:
        axis.remove()
    _shared_legend(figure, axes[: len(shown)])
    hidden = len(targets) - len(shown)
    note = f"{len(shown)} of {len(targets)} statistics; left out: the {hidden} nearest to their targets"
    _title(figure, tree, *([note] if hidden else []))
    return figure


def _group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        raise ValueError(f"Expected a group {name!r}; got the groups {sorted(tree.children)}.")
    return tree[name].to_dataset()


def _optional(tree: xr.DataTree, name: str) -> xr.Dataset:
    return _group(tree, name) if name in tree.children else xr.Dataset()


def _labels(array: xr.DataArray) -> list[str]:
    """One name for each component, as constraints are named; a component is what is left of a draw's array."""
    axes = [map(str, array[dim].values) for dim in array.dims if dim not in SAMPLE_DIMS]
    name = array.attrs.get("original_name", str(array.name))
    return [f"{name}[{','.join(index)}]" if index else name for index in itertools.product(*axes)]


def _components(dataset: xr.Dataset, kind: str = "parameter") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for array in dataset.data_vars.values():
        if array.attrs.get("kind") == kind:
            labels = _labels(array)
            columns = array.transpose(*SAMPLE_DIMS, ...).values.reshape(-1, len(labels)).T
            found |= dict(zip(labels, columns, strict=True))
    return found


def _bounds(tree: xr.DataTree) -> dict[str, tuple[float, float]]:
    arrays = _optional(tree, "constant_data").data_vars.values()
    ends = {(a.attrs["parameter"], a.attrs["kind"]): a.values.ravel() for a in arrays if "parameter" in a.attrs}
    found: dict[str, tuple[float, float]] = {}
    for name, array in _group(tree, "posterior").data_vars.items():
        site = array.attrs.get("original_name", name)
        if (site, "lower bound") in ends:
            pairs = zip(ends[site, "lower bound"].tolist(), ends[site, "upper bound"].tolist(), strict=True)
            found |= dict(zip(_labels(array), pairs, strict=True))
    return found


def _select(names: list[str], wanted: Sequence[str] | None) -> list[str]:
    if isinstance(wanted, str):
        raise TypeError(f"Expected a sequence of names; got the string {wanted!r}. Write ({wanted!r},).")
    if wanted is None:
        return names
    sites = {name.partition("[")[0] for name in names}
    if unknown := [name for name in wanted if name not in {*names, *sites}]:
        raise ValueError(f"Expected parameters among {sorted(sites)} and their components {names}; got {unknown}.")
    if not wanted:
        raise ValueError("Expected at least one parameter; got an empty sequence. Leave it out for all.")
    return [name for name in names if name in wanted or name.partition("[")[0] in wanted]


def _most_changed(
    names: list[str], draws: dict[str, np.ndarray], prior: dict[str, np.ndarray], count: int
) -> list[str]:
    if len(names) <= count or not set(names) <= set(prior):
        return names[:count]
    distance = np.array([_distance(draws[name], prior[name]) for name in names])
    chosen = np.argsort(-distance, kind="stable")[:count]
    return [names[i] for i in sorted(chosen)]


def _distance(draws: np.ndarray, prior: np.ndarray) -> float:
    draws, prior = _finite(draws), _finite(prior)
    return float(np.asarray(ks_2samp(draws, prior, method="asymp")[0])) if draws.size and prior.size else 1.0


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _limits(values: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """The bounds of an interval; elsewhere a range that a few far draws cannot stretch."""
    low, high = lower, upper
    if not (math.isfinite(lower) and math.isfinite(upper)):
        (smallest, largest), (low, high) = _central(values, 0.0), _central(values, 0.01)
        spread = 0.3 * (high - low)
        low, high = max(low - spread, smallest), min(high + spread, largest)
    return _padded(low, high)


def _central(values: np.ndarray, tail: float) -> tuple[float, float]:
    finite = _finite(values)
    low, high = np.quantile(finite, (tail, 1 - tail)) if finite.size else (0.0, 0.0)
    return float(low), float(high)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.03 * (high - low) if high > low else 0.5 * max(abs(low), 1.0)
    return low - margin, high + margin


def _histogram(
    axis: "matplotlib.axes.Axes", values: np.ndarray, prior: np.ndarray, limits: tuple[float, float]
) -> None:
    """Densities over all draws, so that what lies outside the limits is missed, not spread over what lies inside."""
    edges = np.linspace(*limits, _NUM_BINS + 1)
    heights, outline = _heights(values, edges), _heights(prior, edges)
    axis.stairs(heights, edges, fill=True, color=_GUIDE, label="guide")
    if prior.size:
        axis.stairs(outline, edges, color=_PRIOR, linewidth=1.2, label="prior")
    axis.set_xlim(*limits)
    axis.set_ylim(0, 1.15 * (heights.max() or outline.max() or 1.0))
    axis.set_yticks([])
    axis.tick_params(labelsize=_SMALL)


def _heights(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    finite = _finite(values)
    return np.histogram(finite, edges)[0] / (max(finite.size, 1) * np.diff(edges))


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
    bar.set_label("log density (nats)", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)


def _label_grid(axes: np.ndarray, limits: dict[str, tuple[float, float]]) -> None:
    """Names and numbers at the left and bottom edges only."""
    last, names = len(axes) - 1, list(limits)
    for (row, column), axis in np.ndenumerate(axes):
        if column > row:
            axis.set_axis_off()
            continue
        axis.set_xlim(*limits[names[column]])
        axis.locator_params(axis="x", nbins=3)
        axis.tick_params(labelsize=_SMALL, labelbottom=row == last, labelleft=column == 0 and row > 0)
        if row > column:
            axis.set_ylim(*limits[names[row]])
            axis.locator_params(axis="y", nbins=3)
        if row == last:
            axis.set_xlabel(_wrapped(names[column]), fontsize=_SMALL)
        if column == 0 and row > 0:
            axis.set_ylabel(_wrapped(names[row]), fontsize=_SMALL)
    for name, axis in zip(names, axes.diagonal(), strict=True):
        axis.set_title(_wrapped(name), fontsize=_SMALL)


def _tolerance(settings: Any) -> float:
    try:
        return float(json.loads(settings).get("tolerance", 0.05))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"Expected the attribute settings to be JSON of a dictionary; got {settings!r:.100}."
        ) from None


def _number(attrs: Mapping[Any, Any], name: str) -> float:
    """A root attribute that is a number; NaN where there is none."""
    try:
        return float(attrs.get(name, np.nan))
    except (TypeError, ValueError):
        raise ValueError(f"Expected the attribute {name} to be a number; got {attrs[name]!r:.100}.") from None


def _gap(tree: xr.DataTree) -> float:
    return _number(tree.attrs, "gap")


def _entropy_lines(
    axis: "matplotlib.axes.Axes", history: xr.Dataset, prior: xr.Dataset, attrs: Mapping[Any, Any]
) -> None:
    entropy = history["entropy"].values
    axis.plot(history["step"].values, entropy, color=_COLOURS[0], label="entropy of the guide")
    shown = [*_finite(entropy)]
    if "log_prior" in prior:
        # H(p) = -E_p[log p], over the prior's own draws.
        of_prior = -float(prior["log_prior"].mean())
        uniform = float(prior["log_prior"].std()) < 1e-4 * max(1.0, abs(of_prior))
        # The dual bounds -KL(q || base), which differs from the entropy by a constant only for a uniform base.
        bound = float(attrs.get("upper_bound", np.nan)) + (of_prior if attrs.get("base") == "prior" else 0.0)
        if math.isfinite(bound) and (uniform or attrs.get("base") == "lebesgue"):
            axis.axhline(bound, color=_TARGET, linestyle=":", label=f"bound of the dual, {bound:.4g}")
            shown.append(bound)
        axis.axhline(of_prior, color=_PRIOR, linestyle="--", label=f"entropy of the prior, {of_prior:.3g}")
        # Far above, the prior would flatten the run: it is in the legend then.
        reach = 4 * (max(shown) - min(shown)) + 0.2 if shown else math.inf
        if shown and of_prior > max(shown) + reach:
            margin = 0.1 * (max(shown) - min(shown)) + 0.01
            axis.set_ylim(min(shown) - margin, max(shown) + margin)
    axis.set_ylabel("entropy (nats)")


def _styles(names: list[str], violation: np.ndarray) -> list[dict[str, Any]]:
    """A colour and dashes for each constraint; beyond 24, only for those farthest from their targets at the end."""
    final = np.abs(violation[-1]) if len(violation) else np.zeros(len(names))
    order = np.argsort(-np.nan_to_num(final, nan=np.inf), kind="stable")[:_MAX_PANELS]
    styles: list[dict[str, Any]] = [{"color": "#C8C8C8", "linewidth": 0.6, "zorder": 1} for _ in names]
    for rank, i in enumerate(sorted(order)):
        dashes, colour = divmod(rank, len(_COLOURS))
        styles[i] = {
            "color": _COLOURS[colour],
            "linestyle": _DASHES[dashes],
            "label": _short(names[i]),
            "linewidth": 1.2,
        }
    return styles


def _constraint_lines(
    axis: "matplotlib.axes.Axes", steps: np.ndarray, columns: np.ndarray, styles: list[dict[str, Any]]
) -> None:
    for values, style in zip(columns.T, styles, strict=True):
        axis.plot(steps, values, **style)
    axis.axhline(0, color="black", linewidth=0.5, zorder=0)


def _violation_scale(axis: "matplotlib.axes.Axes", tolerance: float, violation: np.ndarray) -> None:
    """Linear inside the tolerance, logarithmic outside, with at most five decades labelled on a side."""
    axis.set_yscale("symlog", linthresh=tolerance)
    largest = max(np.abs(_finite(violation)).max(initial=0.0), tolerance)
    decades = np.arange(math.ceil(math.log10(5 * tolerance)), math.floor(math.log10(largest)) + 1)
    powers = 10.0 ** decades[:: math.ceil(len(decades) / 5) or 1]
    ticks = [*-powers[::-1], -tolerance, 0.0, tolerance, *powers]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)
    axis.set_ylabel("violation\n(sd of the statistic)")


def _targets(constraints: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Mean, spread, unit and distance of each statistic component, by its name."""
    rows = [constraints.isel(constraint=i) for i in range(constraints.sizes["constraint"])]
    spreads = {str(row["statistic"].item()): math.sqrt(row["target"].item()) for row in rows if row["order"] == 2}
    found = {}
    for row in (row for row in rows if row["order"] == 1):
        name, distance = str(row["statistic"].item()), abs(row["violation"].item())
        unit = str(row["unit"].item())
        found[name] = {"mean": row["target"].item(), "std": spreads.get(name), "unit": unit, "distance": distance}
    return found


def _farthest(targets: dict[str, dict[str, Any]]) -> list[str]:
    chosen = sorted(targets, key=lambda name: -np.nan_to_num(targets[name]["distance"], nan=np.inf))[:_MAX_PANELS]
    return [name for name in targets if name in chosen]


def _statistic_panel(
    axis: "matplotlib.axes.Axes", name: str, draws: np.ndarray, prior: np.ndarray, target: dict[str, Any]
) -> None:
    mean, std = target["mean"], target["std"]
    _histogram(axis, draws, prior, _statistic_limits(draws, prior, mean, std or 0.0))
    if std is not None:
        axis.axvspan(
            mean - std, mean + std, color=_TARGET, alpha=0.15, linewidth=0, zorder=0, label="target mean ± std"
        )
    axis.axvline(mean, color=_TARGET, linestyle="--", linewidth=1.5, label="target mean")
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(_short(name), fontsize=_SMALL + 1)
    low, high = axis.get_xlim()
    hidden = draws.size - np.count_nonzero((draws >= low) & (draws <= high))
    unit = target["unit"] or "no unit"
    axis.set_xlabel(f"{unit}; {hidden} of {draws.size} not shown" if hidden else unit, fontsize=_SMALL)


def _statistic_limits(draws: np.ndarray, prior: np.ndarray, mean: float, std: float) -> tuple[float, float]:
    """The guide's draws and the target; of the prior's only what adds at most as much again on each side."""
    low, high = _limits(draws, -math.inf, math.inf)
    low, high = min(low, mean - 1.5 * std), max(high, mean + 1.5 * std)
    if prior.size:
        width, (prior_low, prior_high) = high - low, _central(prior, 0.05)
        low, high = min(low, max(prior_low, low - width)), max(high, min(prior_high, high + width))
    return _padded(low, high)


def _shared_legend(figure: "matplotlib.figure.Figure", axes: np.ndarray) -> None:
    """Each entry once, though not every panel has all of them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=_SMALL)


def _short(name: str, length: int = 36) -> str:
    """Cut in the middle, because names of components differ at their ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


def _wrapped(name: str) -> str:
    return textwrap.fill(_short(name, 28), 14)


def _bad_draws(*columns: np.ndarray) -> list[str]:
    bad = int(np.sum(~np.isfinite(columns).all(axis=0)))
    return [f"{bad} of {len(columns[0])} draws are not finite and not shown"] if bad else []


def _title(figure: "matplotlib.figure.Figure", tree: xr.DataTree, *notes: str) -> None:
    attrs = tree.attrs
    head = f"{attrs.get('problem', 'model')}: {attrs.get('status', 'unknown status')}"
    if "entropy" in attrs:
        head += f", entropy {_number(attrs, 'entropy'):.4g} nats"
    if math.isfinite(_gap(tree)):
        head += f", {_gap(tree):.2g} nats from the optimum"
    width = int(12 * figure.get_figwidth())
    lines = [line for text in (head, *notes) for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), fontsize=10)
    # Names are no formulas, whatever dollar signs they have.
    texts: list[Any] = figure.findobj(lambda artist: hasattr(artist, "set_parse_math"))
    for text in texts:
        text.set_parse_math(False)


def _figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """A figure of this size in inches that pyplot does not know of, so that dropping it frees it."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("Expected Matplotlib; it is missing. Install it: pip install 'matplotlib>=3.9'.") from error
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06))
