"""What all figures have in common: their frame, colours, axes' limits, and histograms."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._exported import finite_part, read_gap, read_number

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

# Okabe and Ito, Color Universal Design (2008): told apart with every kind of colour vision; their yellow is too pale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GUIDE, PRIOR, TARGET = "#56B4E9", "#404040", "#D55E00"
SMALL, LEGEND_COLUMNS = 8, 4
MAX_PANELS = 24
_NUM_BINS = 40


def new_figure(width: float, height: float) -> "matplotlib.figure.Figure":
    """A figure of this size in inches that pyplot does not know of, so that dropping it frees it."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError("Expected Matplotlib; it is missing. Install it: pip install 'matplotlib>=3.9'.") from error
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06))


def add_title(figure: "matplotlib.figure.Figure", tree: xr.DataTree, *notes: str) -> None:
    attrs = tree.attrs
    head = f"{attrs.get('problem', 'model')}: {attrs.get('status', 'unknown status')}"
    if "entropy" in attrs:
        head += f", entropy {read_number(attrs, 'entropy'):.4g} nats"
    if math.isfinite(read_gap(tree)):
        head += f", {read_gap(tree):.2g} nats from the optimum"
    width = int(12 * figure.get_figwidth())
    lines = [line for text in (head, *notes) for line in textwrap.wrap(text, width)]
    figure.suptitle("\n".join(lines), fontsize=10)
    # Names are no formulas, whatever dollar signs they have.
    texts: list[Any] = figure.findobj(lambda artist: hasattr(artist, "set_parse_math"))
    for text in texts:
        text.set_parse_math(False)


def bad_draws(*columns: np.ndarray) -> list[str]:
    bad = int(np.sum(~np.isfinite(columns).all(axis=0)))
    return [f"{bad} of {len(columns[0])} draws are not finite and not shown"] if bad else []


def add_legend(figure: "matplotlib.figure.Figure", axes: np.ndarray) -> None:
    """Each entry once, though not every panel has all of them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for ncols in range(LEGEND_COLUMNS, 0, -1):
        legend = figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=ncols, fontsize=SMALL
        )
        # Small figures hold fewer columns.
        if ncols == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def shorten(name: str, length: int = 36) -> str:
    """Cut in the middle, because names of components differ at their ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


def wrap(name: str) -> str:
    return textwrap.fill(shorten(name, 28), 14)


def axis_limits(values: np.ndarray, lower: float, upper: float) -> tuple[float, float]:
    """The bounds of an interval; elsewhere a range that a few far draws cannot stretch."""
    low, high = lower, upper
    if not (math.isfinite(lower) and math.isfinite(upper)):
        (smallest, largest), (low, high) = central(values, 0.0), central(values, 0.01)
        spread = 0.3 * (high - low)
        low, high = max(low - spread, smallest), min(high + spread, largest)
    return padded(low, high)


def central(values: np.ndarray, tail: float) -> tuple[float, float]:
    finite = finite_part(values)
    low, high = np.quantile(finite, (tail, 1 - tail)) if finite.size else (0.0, 0.0)
    return float(low), float(high)


def padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.03 * (high - low) if high > low else 0.5 * max(abs(low), 1.0)
    return low - margin, high + margin


def draw_histogram(
    axis: "matplotlib.axes.Axes", values: np.ndarray, prior: np.ndarray, limits: tuple[float, float]
) -> None:
    """Densities over all draws, so that what lies outside the limits is missed, not spread over what lies inside."""
    edges = np.linspace(*limits, _NUM_BINS + 1)
    heights, outline = _heights(values, edges), _heights(prior, edges)
    axis.stairs(heights, edges, fill=True, color=GUIDE, label="guide")
    if prior.size:
        axis.stairs(outline, edges, color=PRIOR, linewidth=1.2, label="prior")
    axis.set_xlim(*limits)
    axis.set_ylim(0, 1.15 * (heights.max() or outline.max() or 1.0))
    axis.set_yticks([])
    axis.tick_params(labelsize=SMALL)


def _heights(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    finite = finite_part(values)
    return np.histogram(finite, edges)[0] / (max(finite.size, 1) * np.diff(edges))
