"""The run as a movie: parameters and statistics settling on the property, from draws kept during the run."""

import importlib.util
import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ._canvas import COLOURS, GUIDE, SMALL, TARGET, axis_limits, bad_draws, new_figure, shorten
from ._datatree import SNAPSHOT_GROUP, as_datatree
from ._exported import finite_part, optional_group, read_bounds, read_components, read_group, read_targets, select_names
from ._files import checked_output, written_aside
from ._pair import label_grid, most_changed

if TYPE_CHECKING:
    import matplotlib.figure

MAX_PARAMETERS, MAX_STATISTICS, MAX_FRAMES = 4, 4, 200
"""What fits into one picture, and into memory."""

RATES = (2, 4, 5, 10, 20, 25)
"""Frames a second: a GIF counts hundredths of a second."""

HOLD = 1.0
"""Seconds for which the last frame stays."""

DPI = 90
_NUM_BINS = 30


class _Run(NamedTuple):
    """Snapshots in their order: columns of shape [S, N] by name."""

    steps: np.ndarray
    parameters: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    density: np.ndarray


def movie(
    exported: Any,
    out: str | os.PathLike[str],
    *,
    parameters: Sequence[str] | None = None,
    seconds: float = 8.0,
    overwrite: bool = False,
) -> Path:
    """Write a movie of a run: its draws in every pair of parameters, its statistics' histograms, entropy and violations.

    Each draw is the same noise in every frame, so it can be followed. A frame is a snapshot; none is made up in between.

    Args:
        exported: A tree, an ArviZ 0.x ``InferenceData``, or the path of an exported file, of a fit that had
            ``num_snapshots``.
        out: Where to write: ``.gif``, or ``.mp4`` where the program ffmpeg or the package imageio-ffmpeg is installed.
        parameters: Sites (``"A"``) or components (``"A[0,1]"``) to show, four at most; by default those that differ most from
            the prior. Of more than four statistics, the first are shown.
        seconds: About how long the run takes, at 2 to 25 frames a second; the last frame stays for another second.
        overwrite: Replace what is there.

    Returns:
        The path.

    Raises:
        ValueError: If no draws were kept, the suffix is another, a name is unknown, or ``seconds`` is not positive.
        FileExistsError: If the file exists and ``overwrite`` is false.
        FileNotFoundError: If the folder, or ffmpeg for ``.mp4``, is missing.
        ImportError: If Matplotlib is missing.
    """
    path = checked_output(out, (".gif", ".mp4"), overwrite=overwrite)
    if not seconds > 0:
        raise ValueError(f"Expected seconds > 0; got {seconds}.")
    ffmpeg = _find_ffmpeg(path) if path.suffix.lower() == ".mp4" else None
    tree = as_datatree(exported)
    run = _read(tree)
    screen = _Screen(tree, run, _shown(tree, run, parameters))
    rate = next((rate for rate in RATES if rate >= len(run.steps) / seconds), RATES[-1])
    with written_aside(path) as aside:
        _write(aside, screen, rate, ffmpeg)
    return path


def _find_ffmpeg(path: Path) -> str:
    """The program on PATH, or the one that the package imageio-ffmpeg carries."""
    found = shutil.which("ffmpeg")
    if found is None and importlib.util.find_spec("imageio_ffmpeg") is not None:
        import imageio_ffmpeg

        try:
            found = imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError:  # The package has none for this system.
            found = None
    if found is None:
        raise FileNotFoundError(
            f"Expected the program ffmpeg for {path}; it is not on PATH, nor in a package imageio-ffmpeg. Install one of them "
            "(pip install imageio-ffmpeg), or write a .gif."
        )
    return found


def _read(tree: xr.DataTree) -> _Run:
    if SNAPSHOT_GROUP not in tree.children:
        raise ValueError(
            f"Expected draws kept during the run, in a group {SNAPSHOT_GROUP!r}; got the groups {sorted(tree.children)}. Fit "
            "with num_snapshots=20."
        )
    group = read_group(tree, SNAPSHOT_GROUP)
    (steps,) = (array.values for array in group.data_vars.values() if array.attrs.get("kind") == "step")
    taken = np.unique(np.linspace(0, len(steps) - 1, min(MAX_FRAMES, len(steps))).astype(int))
    group = group.isel(snapshot=taken).rename(snapshot="chain")
    (density,) = (array.values for array in group.data_vars.values() if array.attrs.get("kind") == "quality")
    found = (read_components(group, kind) for kind in ("parameter", "statistic"))
    columns = [{name: values.reshape(density.shape) for name, values in each.items()} for each in found]
    return _Run(steps[taken], columns[0], columns[1], density)


def _shown(tree: xr.DataTree, run: _Run, parameters: Sequence[str] | None) -> list[str]:
    names = select_names(list(run.parameters), parameters)
    prior, posterior = (read_components(optional_group(tree, name)) for name in ("prior", "posterior"))
    return most_changed(names, posterior, prior, MAX_PARAMETERS) if posterior else names[:MAX_PARAMETERS]


class _Screen:
    """The figure, and how it shows one snapshot."""

    def __init__(self, tree: xr.DataTree, run: _Run, names: list[str]):
        self.run, self.names = run, names
        self.problem = str(tree.attrs.get("problem", "model"))
        self.figure = new_figure(10.6, 6.2)
        left, right = self.figure.subfigures(1, 2, squeeze=False, width_ratios=(1.35, 1))[0]
        self.figure.suptitle(" ", fontsize=11)
        self._begin_parameters(left, read_bounds(tree))
        shown = list(run.statistics)[:MAX_STATISTICS]
        axes = right.subplots(2 + len(shown), 1)
        self._begin_history(axes[:2], read_group(tree, "optimization"))
        self._begin_statistics(axes[2:], shown, read_targets(read_group(tree, "constant_data")))

    def _begin_parameters(self, part: "matplotlib.figure.SubFigure", bounds: dict[str, tuple[float, float]]) -> None:
        limits = {
            name: axis_limits(self.run.parameters[name].ravel(), *bounds.get(name, (-np.inf, np.inf)))
            for name in self.names
        }
        axes = part.subplots(len(self.names), len(self.names), squeeze=False)
        self.marginals = [
            _Histogram(axes[i, i], self.run.parameters[name], limits[name]) for i, name in enumerate(self.names)
        ]
        last = finite_part(self.run.density[-1])
        low, high = np.quantile(last, (0.02, 1)) if last.size else (-1.0, 0.0)
        look: dict[str, Any] = {"c": [], "vmin": low, "vmax": high, "s": 5, "linewidths": 0}
        pairs = itertools.combinations(range(len(self.names)), 2)
        self.clouds = {(i, j): axes[j, i].scatter([], [], **look) for i, j in pairs}
        label_grid(axes, limits)

    def _begin_history(self, axes: np.ndarray, history: xr.Dataset) -> None:
        self.steps = history["step"].values
        entropy = history["entropy"].values
        violation = np.abs(history["violation"].transpose("epoch", "constraint").values)
        self.lines = []
        for axis, columns, label in zip(
            axes, (entropy[:, None], violation), ("entropy\n(nats)", "|violation|\n(sd)"), strict=True
        ):
            for i in range(columns.shape[1]):
                axis.plot(self.steps, columns[:, i], color="#D0D0D0", linewidth=0.8)
                (line,) = axis.plot([], [], color=COLOURS[i % len(COLOURS)], linewidth=1.2)
                self.lines.append((line, columns[:, i]))
            axis.set_xlim(0, max(self.run.steps.max(), 1))
            axis.set_ylabel(label, fontsize=SMALL)
            axis.tick_params(labelsize=SMALL)
        axes[0].tick_params(labelbottom=False)
        axes[1].set_yscale("symlog", linthresh=0.1)
        axes[1].set_ylim(bottom=0)
        axes[1].set_xlabel("step", fontsize=SMALL)

    def _begin_statistics(self, axes: np.ndarray, names: list[str], targets: dict[str, dict[str, Any]]) -> None:
        self.statistics = []
        for axis, name in zip(axes, names, strict=True):
            columns, target = self.run.statistics[name], targets[name]
            mean, std = target["mean"], target["std"] or 0.0
            low, high = axis_limits(columns.ravel(), -np.inf, np.inf)
            self.statistics.append(_Histogram(axis, columns, (min(low, mean - 2 * std), max(high, mean + 2 * std))))
            axis.axvspan(mean - std, mean + std, color=TARGET, alpha=0.15, linewidth=0, zorder=0)
            axis.axvline(mean, color=TARGET, linestyle="--", linewidth=1.3)
            unit = f" ({target['unit']})" if target["unit"] else ""
            axis.set_xlabel(shorten(name) + unit, fontsize=SMALL)

    def show(self, frame: int) -> None:
        """Put one snapshot on the screen."""
        step, density = self.run.steps[frame], self.run.density[frame]
        columns = np.stack([self.run.parameters[name][frame] for name in self.names], axis=1)
        usable = np.flatnonzero(np.isfinite(density) & np.isfinite(columns).all(axis=1))
        usable = usable[np.argsort(density[usable])]
        for (i, j), cloud in self.clouds.items():
            cloud.set_offsets(columns[usable][:, (i, j)])
            cloud.set_array(density[usable])
        for histogram in (*self.marginals, *self.statistics):
            histogram.show(frame)
        past = self.steps <= step
        for line, values in self.lines:
            line.set_data(self.steps[past], values[past])
        left_out = "".join(f"; {note}" for note in bad_draws(density, *columns.T))
        self.figure.suptitle(f"{self.problem}: step {step:,} of {self.run.steps[-1]:,}{left_out}", fontsize=11)


class _Histogram:
    """One column's histogram, on a scale that is the same in all frames."""

    def __init__(self, axis: Any, columns: np.ndarray, limits: tuple[float, float]):
        edges = np.linspace(*limits, _NUM_BINS + 1)
        self.counts = np.stack([np.histogram(finite_part(column), edges)[0] for column in columns])
        self.stairs = axis.stairs(self.counts[0], edges, fill=True, color=GUIDE)
        axis.set_xlim(*limits)
        # A guide may begin as a spike, which would flatten all that follows.
        axis.set_ylim(0, 1.1 * min(self.counts.max(), 2.5 * self.counts[-1].max()) or 1.0)
        axis.set_yticks([])
        axis.tick_params(labelsize=SMALL)

    def show(self, frame: int) -> None:
        self.stairs.set_data(self.counts[frame])


def _write(path: Path, screen: _Screen, rate: int, ffmpeg: str | None) -> None:
    import matplotlib
    from matplotlib.animation import FFMpegWriter, PillowWriter

    # Players want this pixel format, and by it even sizes, which the figure has.
    options = ["-pix_fmt", "yuv420p"]
    writer = PillowWriter(fps=rate) if ffmpeg is None else FFMpegWriter(fps=rate, extra_args=options)
    # Laid out once, on the last frame: nothing may move but what is drawn.
    screen.show(len(screen.run.steps) - 1)
    screen.figure.draw_without_rendering()
    screen.figure.set_layout_engine("none")
    settings: dict[Any, Any] = {"savefig.bbox": None} | ({} if ffmpeg is None else {"animation.ffmpeg_path": ffmpeg})
    with matplotlib.rc_context(settings), writer.saving(screen.figure, str(path), DPI):
        for frame in range(len(screen.run.steps)):
            screen.show(frame)
            writer.grab_frame()
        for _ in range(round(HOLD * rate)):
            writer.grab_frame()
