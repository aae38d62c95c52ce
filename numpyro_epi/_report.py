"""One page about a saved result, from the exported data alone: no model, no network, no script."""

import base64
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ._canvas import bad_draws
from ._datatree import SENSITIVITY_GROUP, as_datatree
from ._exported import finite_part, optional_group, read_components, read_group, read_number
from ._files import checked_output, written_aside
from ._gallery import gallery
from ._html import escape, page, paragraphs, table
from ._pair import plot_pair
from ._plots import plot_fit, plot_statistics

if TYPE_CHECKING:
    import matplotlib.figure

NUM_DIRECTIONS, NUM_NAMED = 4, 5
"""Directions in the table, at each end of it, and parameters named in each."""

DPI = 130

DESCRIPTIONS = {
    "matrix": "Means, standard deviations and marginals of the parameters that are matrices, laid out as such",
    "predictive": "Trajectories that the model records at draws of the parameters, coloured by log density",
    "certificate": "Estimated distance to the maximum-entropy solution, and log weights that lead there",
}
"""Of pictures that not every result has."""


def report(exported: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a self-contained HTML page about a result: question, verdict, constraints, pictures, directions, settings.

    Every text that comes from the file is escaped, and the page asks for nothing from elsewhere.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file.
        path: Where to write; it ends in ``.html``.
        overwrite: Replace what is there.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another, or a group is missing.
        FileExistsError: If the file exists and ``overwrite`` is false.
        OSError: If the path cannot be written.
        ImportError: If Matplotlib is missing.
    """
    path = checked_output(path, (".html", ".htm"), overwrite=overwrite)
    text = _page(as_datatree(exported))
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def _page(tree: xr.DataTree) -> str:
    problem = str(tree.attrs.get("problem", "a result"))
    sections = [
        f"<h1>Emergent property inference: {escape(problem)}</h1>",
        _verdict(tree.attrs),
        "<h2>Property</h2>",
        _constraints(read_group(tree, "constant_data")),
        "<h2>Parameters</h2>",
        _picture(
            plot_pair(tree), f"Draws of the parameters of {problem}: each pair coloured by log density, marginals"
        ),
        *_pictures(tree, "matrix"),
        _parameters(tree),
        "<h2>Statistics</h2>",
        _picture(
            plot_statistics(tree), "Draws of each statistic beside its target mean and spread, and those of the prior"
        ),
        *_pictures(tree, "predictive"),
        "<h2>Directions</h2>",
        _directions(tree),
        *_sensitivity(optional_group(tree, SENSITIVITY_GROUP)),
        "<h2>Run</h2>",
        *_pictures(tree, "certificate"),
    ]
    if "optimization" in tree.children and tree["optimization"].to_dataset().sizes.get("epoch"):
        sections.append(_picture(plot_fit(tree), "Entropy, violations and multipliers over the steps of the run"))
    sections.append(_settings(tree.attrs))
    return page(f"{problem}: emergent property inference", "\n".join(sections))


def _pictures(tree: xr.DataTree, kind: str) -> list[str]:
    """One of those that not every result has."""
    draw = gallery(tree).get(kind)
    return [_picture(draw(tree), DESCRIPTIONS[kind])] if draw else []


def _verdict(attrs: Mapping[Any, Any]) -> str:
    good = bool(attrs.get("satisfied", 0))
    found = [f'<p class="{"good" if good else "bad"}"><strong>{escape(attrs.get("status", "unknown"))}</strong>: ']
    found.append(f"{escape(attrs.get('status_message', ''))}</p>")
    lines = [f"Entropy {read_number(attrs, 'entropy'):.4f} nats." if "entropy" in attrs else ""]
    if np.isfinite(gap := read_number(attrs, "gap")):
        error = read_number(attrs, "gap_standard_error")
        lines.append(
            f"Estimated distance from the maximum-entropy solution: {gap:.4f} ± {error:.4f} nats. {attrs.get('certificate', '')}"
        )
    else:
        lines.append("How far this is from the maximum-entropy solution was not estimated.")
    return "".join(found) + paragraphs(line for line in lines if line)


def _constraints(found: xr.Dataset) -> str:
    rows = []
    for i, name in enumerate(found["constraint"].values):
        one = {key: found[key].values[i] for key in ("unit", "target", "achieved", "standard_error")}
        half = 1.96 * float(one["standard_error"])
        interval = f"{one['achieved'] - half:.5g} to {one['achieved'] + half:.5g}"
        violation, multiplier = (float(found[key].values[i]) for key in ("violation", "multiplier"))
        cells = (name, one["unit"] or "-", f"{one['target']:.5g}", f"{one['achieved']:.5g}", interval)
        rows.append((*cells, f"{violation:+.3f}", f"{multiplier:.5g}"))
    source = found["multiplier"].attrs.get("source", "")
    multiplier_header = "Lagrange multiplier" + (f" (from {source})" if source else "")
    header = ("constraint", "unit", "target", "achieved", "95 % interval", "violation (sd)", multiplier_header)
    return table(header, rows)


def _parameters(tree: xr.DataTree) -> str:
    draws, prior = read_components(read_group(tree, "posterior")), read_components(optional_group(tree, "prior"))
    rows = []
    for name, found in list(draws.items())[:50]:
        values = finite_part(found) if np.isfinite(found).any() else np.full(1, np.nan)
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        of_prior = _spread(prior.get(name, np.empty(0)))
        numbers = (values.mean(), values.std(), low, middle, high)
        share = f"{values.std() / of_prior:.2f}" if of_prior > 0 else "-"
        rows.append((name, *(f"{number:.4g}" for number in numbers), share))
    note = [f"The first 50 of {len(draws)} numbers."] if len(draws) > 50 else []
    note += [f"{text}." for text in bad_draws(*draws.values())]
    header = ("parameter", "mean", "standard deviation", "5 %", "median", "95 %", "spread over the prior's")
    return table(header, rows) + paragraphs(note)


def _spread(values: np.ndarray) -> float:
    """Standard deviation of what is finite; zero where nothing is."""
    finite = finite_part(values)
    return float(finite.std()) if finite.size else 0.0


def _directions(tree: xr.DataTree) -> str:
    draws, prior = read_components(read_group(tree, "posterior")), read_components(optional_group(tree, "prior"))
    names = list(draws)
    if len(names) < 2:
        return paragraphs(["There is one parameter."])
    columns = np.stack([draws[name] for name in names], axis=1)
    columns = columns[np.isfinite(columns).all(axis=1)]
    spread = np.array([_spread(prior.get(name, np.empty(0))) for name in names])
    own = columns.std(axis=0)
    scale = np.where(spread > 0, spread, np.where(own > 0, own, 1.0))
    variances, vectors = np.linalg.eigh(np.cov(columns.T / scale[:, None]))
    rows = [(f"{np.sqrt(max(variances[i], 0.0)):.3g}", _combination(vectors[:, i], names)) for i in _ends(len(names))]
    unit = (
        "the prior's standard deviations"
        if np.all(spread > 0)
        else "standard deviations (the draws' own where there is no prior)"
    )
    return table((f"spread, in {unit}", "direction"), rows) + paragraphs(
        [
            "The property holds the parameters tightest in the first direction and leaves them free in the last. These are the "
            "principal axes of all draws; with several modes they also show how the modes lie. Those of the density itself, and "
            "what each statistic does there, are below if the result was exported with sensitivity=..."
        ]
    )


def _sensitivity(found: xr.Dataset) -> list[str]:
    """What `Density.sensitivity` gave, where it was exported."""
    if "vector" not in found:
        return []
    names = [str(name) for name in found["parameter"].values]
    vectors = found["vector"].transpose("direction", "parameter").values
    response = found["response"].transpose("direction", "statistic").values
    ends = _ends(len(vectors))
    rows = [
        (f"{float(found['curvature'][i]):.3g}", _combination(vectors[i], names), *(f"{r:+.3g}" for r in response[i]))
        for i in ends
    ]
    header = ("curvature of the log density", "direction", *(f"{s} by a unit step" for s in found["statistic"].values))
    note = f"Directions in which the density is lost fastest first; at {found.attrs.get('where', 'a place')}."
    return [table(header, rows), paragraphs([note])]


def _ends(size: int) -> list[int]:
    """The first few and the last few of a list."""
    count = min(size, NUM_DIRECTIONS)
    return [*range(count), *range(max(count, size - NUM_DIRECTIONS), size)]


def _combination(vector: np.ndarray, names: list[str]) -> str:
    order = np.argsort(-np.abs(vector))[:NUM_NAMED]
    vector = vector * np.sign(vector[order[0]])
    terms = [f"{vector[i]:+.2f} {names[i]}" for i in order if abs(vector[i]) > 0.05]
    return " ".join(terms) + (" ..." if np.sum(np.abs(vector) > 0.05) > NUM_NAMED else "")


def _settings(attrs: Mapping[Any, Any]) -> str:
    shown = {"status", "status_message", "satisfied", "entropy", "gap", "gap_standard_error", "certificate", "problem"}
    rows = []
    for key, value in attrs.items():
        if key in ("settings", "plugins"):
            try:
                rows += [(name, text) for name, text in json.loads(value).items()]
            except (ValueError, AttributeError, TypeError, RecursionError):
                rows.append((key, value))
        elif key not in shown:
            rows.append((key, np.array2string(value, precision=5) if isinstance(value, np.ndarray) else value))
    return table(("setting", "value"), rows)


def _picture(figure: "matplotlib.figure.Figure", description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    encoded = base64.b64encode(buffer.getvalue()).decode()
    text = re.sub(r"\s+", " ", description)
    return f'<p><img alt="{escape(text)}" width="{width}" height="{height}" src="data:image/png;base64,{encoded}"></p>'
