"""A run in chunks of epochs: between two of them it may report, stop early, be kept on disk, or be interrupted."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from ._checkpoint import flatten, unflatten
from ._loop import SMALLEST_STEP, EpochRecord, LoopState
from ._outcome import Verdict
from ._problem import Problem
from ._restarts import Fleet
from ._snapshots import Recorder
from ._stop import StopRequest

NUM_CHUNKS = 20
"""Times a run may report, stop early, be kept or be interrupted."""

CLOSE_SLACK = 0.004
"""Variance of ``log q - log base + eta . T``, nats^2, at which a guide within tolerance is as good as it needs be: for a
nearly exact guide KL is half of it."""


STUCK_PART, STUCK_CHUNKS, STUCK_GAPS = 0.4, 3, 5.0
"""Part of a run after which it may be found stuck, the chunks that say so, and the distance, in units of ``max_gap``, that they
have to exceed."""


WRONG = 0.2
"""How far below zero, nats, a distance from the solution may be estimated before its normaliser is not believed."""


class Chunks(NamedTuple):
    """How far a run has come.

    Attributes:
        state: Of all restarts.
        found: The chunks' records, each with one entry a restart.
        attempt: Times that it began anew with other initial values of the flow.
    """

    state: LoopState
    found: list[list[EpochRecord]]
    attempt: int = 0

    def records(self, num_restarts: int) -> list[EpochRecord | None]:
        """All epochs of each restart."""
        if not self.found:
            return [None] * num_restarts
        return [_joined(each) for each in zip(*self.found, strict=True)]

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it for a checkpoint."""
        arrays = flatten(self.state, "state")
        for chunk, records in enumerate(self.found):
            for restart, record in enumerate(records):
                arrays |= {f"record.{chunk}.{restart}.{n}": np.asarray(v) for n, v in record._asdict().items()}
        return arrays

    @classmethod
    def read(
        cls, arrays: Mapping[str, np.ndarray], template: LoopState, num_chunks: int, num_restarts: int, attempt: int
    ) -> "Chunks":
        """The inverse of `arrays`.

        Raises:
            ValueError: If the arrays are those of another flow, rule or optimiser.
        """

        def record(chunk: int, restart: int) -> EpochRecord:
            return EpochRecord(**{n: arrays[f"record.{chunk}.{restart}.{n}"] for n in EpochRecord._fields})  # type: ignore[arg-type]

        found = [[record(chunk, restart) for restart in range(num_restarts)] for chunk in range(num_chunks)]
        return cls(unflatten(template, arrays, "state"), found, attempt)


class Goal(NamedTuple):
    """When a run may end before its steps are spent.

    Attributes:
        may_be_reached: Whether independent draws are worth their simulations now; without them, from the records.
        seems_reached: Whether fewer draws say that a verdict is worth its simulations, by the chunk's number.
        is_reached: Whether guides whose verdicts are satisfied are near enough to the optimum, by the chunk's number.
        anew: Another beginning for a run that got stuck, or ``None``.
    """

    may_be_reached: Callable[["Chunks"], bool]
    seems_reached: Callable[[list[LoopState], int], bool]
    is_reached: Callable[[list[LoopState], list[Verdict], int], bool]
    anew: Callable[["Chunks"], "Chunks | None"]


def run_chunks(
    fleet: Fleet,
    run: Chunks,
    max_steps: int,
    judge: Callable[[list[LoopState], int], list[Verdict]],
    goal: "Goal",
    keep: Callable[[Chunks, bool], None],
    stop: StopRequest,
    recorder: Recorder,
    *,
    tolerance: float,
    progress: bool,
) -> tuple[Chunks, list[Verdict]]:
    """Go on until the steps are done, or every guide is nearly exact and fresh draws say so too, or a stop is asked for.

    Args:
        fleet: The compiled loop.
        run: Where it stands.
        max_steps: Steps in all.
        judge: Verdicts on the restarts after a chunk, by the chunk's number.
        goal: When a run whose verdicts are satisfied is good enough.
        keep: Takes what a checkpoint holds, and whether it must be written at once.
        stop: Whether to stop.
        recorder: Takes snapshots.
        tolerance: How near every mean must be, in standard deviations.
        progress: Whether to show a bar.

    Returns:
        Where it stands now, and the last verdicts.
    """
    problem, steps_per_epoch = fleet.loop.problem, fleet.loop.rule.steps_per_epoch
    num_epochs = math.ceil(max_steps / steps_per_epoch)
    per_chunk = max(1, math.ceil(num_epochs / NUM_CHUNKS))
    num_chunks = math.ceil(num_epochs / per_chunk)
    size = per_chunk * steps_per_epoch
    verdicts: list[Verdict] = []
    is_reached = False

    def satisfied() -> bool:
        return all(np.all(v.satisfies(problem.target, tolerance)) for v in verdicts)

    with tqdm(total=num_chunks * size, initial=len(run.found) * size, disable=not progress, unit="step") as bar:
        run_epochs = recorder.compile(fleet, run.state, per_chunk, num_chunks=NUM_CHUNKS)
        if num_chunks and not run.found:
            keep(run, True)
        while True:
            if not stop and goal.may_be_reached(run):
                states = fleet.split(run.state)
                if goal.seems_reached(states, len(run.found)):
                    verdicts = judge(states, len(run.found))
                    is_reached = satisfied() and goal.is_reached(states, verdicts, len(run.found))
                    if is_reached:
                        break
            if run.found and all(map(given_up, run.found[-1])):
                break
            if stop or len(run.found) >= num_chunks:
                break
            state, records = run_epochs(run.state)
            run = run._replace(state=state, found=[*run.found, fleet.split(jax.device_get(records))])
            bar.update(size)
            bar.set_postfix_str(_progress(run.found[-1][0], problem), refresh=False)
            if not stop and (other := goal.anew(run)) is not None:
                run = other
                recorder.begin_anew(fleet, run.state)
                bar.reset()
            keep(run, bool(stop) or len(run.found) == num_chunks)
    if not is_reached:
        verdicts = judge(fleet.split(run.state), num_chunks + 1)
    if stop:
        keep(run, True)
    return run, verdicts


def given_up(records: EpochRecord) -> bool:
    """Whether the steps diverged until hardly any of them was left."""
    return bool(np.asarray(records.step_scale)[-1] < SMALLEST_STEP)


def violations(records: EpochRecord, problem: Problem) -> np.ndarray:
    """Distance from the targets in units of their scale (`Problem.scale`), epochs by constraints."""
    scale = np.maximum(problem.scale(np.asarray(records.scale)), np.finfo(np.float32).tiny)
    return (np.asarray(records.moment) - problem.target) / scale


def seems_near(run: Chunks, problem: Problem, tolerance: float, max_gap: float, log_normalizer: float | None) -> bool:
    """Whether the last chunk of a single run at the solution's multipliers lies within the tolerance and ``max_gap``.

    A run without steps may be near. The guide's average is nearer than the steps that it averages.
    """
    if not run.found:
        return True
    off = violations(run.found[-1][0], problem)
    near = np.max(np.abs(off[len(off) // 2 :].mean(axis=0))) <= tolerance
    return bool(near and _distance(run, run.found[-1][0], problem, log_normalizer) <= max_gap)


def is_stuck(run: Chunks, problem: Problem, max_gap: float, log_normalizer: float | None) -> bool:
    """Whether a single run at the solution's multipliers has no prospect of coming near: some initial values of a flow never do.

    Runs that come near have come within a few times ``max_gap`` when two fifths of their steps are done.
    """
    if len(run.found) != math.ceil(STUCK_PART * NUM_CHUNKS):
        return False
    late = [_distance(run, each[0], problem, log_normalizer) for each in run.found[-STUCK_CHUNKS:]]
    return bool(np.median(late) > STUCK_GAPS * max_gap)


def _distance(run: Chunks, records: EpochRecord, problem: Problem, log_normalizer: float | None) -> float:
    """Estimate of ``KL(q || p_eta)`` in the second half of a chunk, nats; without ``log Z`` half of the log ratio's variance.

    The multipliers are the first ones, which are the solution's: those of a guide that does not follow it may have moved on.
    """
    late = slice(len(records.step) // 2, None)
    by_variance = float(0.5 * np.median(np.asarray(records.slack_variance)[late]))
    if log_normalizer is None or not math.isfinite(log_normalizer):
        return by_variance
    slack = (np.asarray(records.moment) - problem.target) @ np.asarray(run.found[0][0].eta)[0]
    found = float(np.mean((log_normalizer - np.asarray(records.base_entropy) + slack)[late]))
    # No distance is negative: the normaliser is wrong.
    return found if found > -WRONG else by_variance


def _joined(records: tuple[EpochRecord, ...]) -> EpochRecord:
    return jax.tree.map(lambda *chunks: np.concatenate(chunks), *records)


def arrived(run: Chunks, problem: Problem, tolerance: float) -> bool:
    """Whether nothing is left to gain for any restart, by its last chunk."""
    if not run.found:
        return False
    there = np.all(np.asarray(run.state.remaining) == 0.0)
    return bool(there) and all(_close(each, problem, tolerance) for each in run.found[-1])


def _close(records: EpochRecord, problem: Problem, tolerance: float) -> bool:
    """Whether nothing is left to gain: the property holds and the guide is the tilted base of its multipliers."""
    near = np.all(np.abs(violations(records, problem).mean(axis=0)) < 0.2 * tolerance)
    return bool(near and np.mean(records.slack_variance) < CLOSE_SLACK)


def _progress(records: EpochRecord, problem: Problem) -> str:
    return f"entropy {records.entropy[-1]:.3f}, violation {np.max(np.abs(violations(records, problem)[-1])):.3f} sd"
