"""What the certificate of a result shows, drawn from the exported data alone."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._canvas import COLOURS, GUIDE, PRIOR, SMALL, TARGET, add_title, new_figure, padded, shorten
from ._datatree import as_datatree
from ._exported import finite_part, optional_group, read_gap, read_group, read_number

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

_NUM_BINS = 50
_LOST_MODE = math.log(2)


def plot_certificate(exported: Any) -> "matplotlib.figure.Figure":
    """How far the answer is from the maximum-entropy solution, and how even the weights are that lead from one to the other.

    On the left the estimated distance to the optimum, nats, with its 95 % interval; after several restarts also theirs. On
    the right the log weights of the exported draws, relative to the mean weight, nats: all zero where the guide is the
    solution. Filled, the weights towards the solution at the multipliers; outlined, those with which the draws meet the
    targets exactly.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.

    Raises:
        ValueError: If the fit had no certificate, or a group is missing.
        TypeError: If ``exported`` is of another type.
        ImportError: If Matplotlib is missing.
    """
    tree = as_datatree(exported)
    if not has_certificate(tree):
        raise ValueError("Expected a result with a certificate; got one without. Fit with certify=True.")
    rows = _distances(tree)
    figure = new_figure(10.0, max(3.9, 2.6 + 0.3 * len(rows)))
    left, right = figure.subplots(1, 2)
    _distance_panel(left, rows, tree.attrs)
    _weight_panel(right, read_group(tree, "sample_stats"))
    add_title(figure, tree, str(tree.attrs.get("certificate", "")))
    return figure


def has_certificate(tree: xr.DataTree) -> bool:
    """Whether the fit estimated how far it is from the optimum."""
    return math.isfinite(read_gap(tree))


def _distances(tree: xr.DataTree) -> list[tuple[str, float, float]]:
    """Name, nats below the optimum, and standard error: of the result, then of each restart."""
    rows = [("this result", read_gap(tree), read_number(tree.attrs, "gap_standard_error"))]
    restarts = optional_group(tree, "restarts")
    if "corrected" in restarts:
        below = read_number(tree.attrs, "upper_bound") - restarts["corrected"].values
        errors = np.hypot(restarts["standard_error"].values, rows[0][2])
        names = [f"restart {i}: {status}" for i, status in enumerate(restarts["status"].values)]
        rows += list(zip(names, below.tolist(), errors.tolist(), strict=True))
    return rows


def _distance_panel(axis: "matplotlib.axes.Axes", rows: list[tuple[str, float, float]], attrs: Any) -> None:
    names, gaps, errors = (list(column) for column in zip(*rows, strict=True))
    places, colours = np.arange(len(rows)), [COLOURS[0], *[GUIDE] * (len(rows) - 1)]
    axis.barh(places, gaps, color=colours, height=0.5)
    axis.errorbar(gaps, places, xerr=1.96 * np.array(errors), fmt="none", color=PRIOR, capsize=4)
    axis.axvline(
        0,
        color=TARGET,
        linestyle="--",
        label=f"optimum, by the dual's bound: {read_number(attrs, 'upper_bound'):.4g} nats",
    )
    reach = finite_part(np.array(gaps) + 1.96 * np.nan_to_num(errors))
    if reach.size and reach.max() > _LOST_MODE / 3:
        axis.axvline(_LOST_MODE, color=PRIOR, linestyle=":", label="one of two equal modes lost, 0.69 nats")
    if reach.size:
        low = min(0.0, float(np.min(np.array(gaps) - 1.96 * np.nan_to_num(errors))))
        axis.set_xlim(padded(low, float(reach.max())))
    axis.set_title(f"{gaps[0]:.3g} ± {errors[0]:.2g} nats", fontsize=SMALL + 1)
    axis.set_yticks(places, [shorten(name, 30) for name in names], fontsize=SMALL)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    what = "entropy" if attrs.get("base") == "lebesgue" else "-KL(guide || prior)"
    axis.set_xlabel(f"{what} below the optimum (nats), 95 % interval", fontsize=SMALL + 1)
    axis.tick_params(axis="x", labelsize=SMALL)
    axis.locator_params(axis="x", nbins=5)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=SMALL, frameon=False)


def _weight_panel(axis: "matplotlib.axes.Axes", stats: xr.Dataset) -> None:
    if not {"log_importance_weight", "log_weight"} <= set(stats.data_vars):
        axis.text(0.5, 0.5, "no weights: nothing is finite", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    found = [stats[name].values.ravel() for name in ("log_importance_weight", "log_weight")]
    towards, exact = (values + math.log(values.size) for values in found)
    shown = finite_part(np.concatenate([towards, exact]))
    low, high = np.quantile(shown, (0.002, 1)) if shown.size else (-1.0, 1.0)
    edges = np.linspace(min(low, -0.01), max(high, 0.01), _NUM_BINS + 1)
    axis.stairs(np.histogram(towards, edges)[0], edges, fill=True, color=GUIDE, label="towards the solution")
    axis.stairs(np.histogram(exact, edges)[0], edges, color=PRIOR, label="meeting the targets exactly")
    axis.axvline(0, color=TARGET, linestyle="--", label="mean weight")
    attrs = stats["log_weight"].attrs
    missed = towards.size - int(np.sum((towards >= edges[0]) & (towards <= edges[-1])))
    note = f"{attrs['ess']:.0f} of {towards.size} draws effective, Pareto k {attrs['khat']:.2f}"
    axis.set_title(note + (f"; {missed} below" if missed else ""), fontsize=SMALL + 1)
    axis.set_xlabel("log weight of a draw (nats)", fontsize=SMALL + 1)
    axis.set_ylabel("draws", fontsize=SMALL + 1)
    axis.tick_params(labelsize=SMALL)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=SMALL, frameon=False)
