"""Draws of the guide kept during a run, for pictures of how it settled."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array

from ._checkpoint import flatten, unflatten
from ._loop import EpochRecord, LoopState
from ._outcome import Snapshots
from ._problem import Problem
from ._products import compiled
from ._restarts import Fleet
from ._types import Key, PerDraw, Unconstrained

NUM_DRAWS = 300
"""Draws in each snapshot: enough for a scatter plot and a histogram."""


class Recorder:
    """Takes snapshots of every restart's guide while a run goes on.

    The run itself is left as it is. Programs of other lengths round differently, so where more snapshots are wanted than a
    run may have chunks, the steps between are run a second time, on the side, from the beginning of each chunk.

    Args:
        problem: The question.
        key: The same noise goes into every snapshot, so that a draw can be followed from one to the next.
        num_snapshots: About how many to take in a run of full length; none where it is zero.
    """

    def __init__(self, problem: Problem, key: Key, num_snapshots: int):
        self._problem, self._key, self._wanted = problem, key, num_snapshots
        self._taken: list[list[tuple]] = []

    def compile(
        self, fleet: Fleet, state: LoopState, num_epochs: int, *, num_chunks: int
    ) -> Callable[[LoopState], tuple[LoopState, EpochRecord]]:
        """As `Fleet.compile`, with the snapshots taken in between; the first one is of ``state``.

        Args:
            fleet: All restarts.
            state: Where they begin.
            num_epochs: Epochs in one chunk.
            num_chunks: Most chunks that a run has.
        """
        run = fleet.compile(state, num_epochs)
        if not self._wanted:
            return run
        pieces = _pieces(num_epochs, self._wanted / num_chunks)
        aside = fleet.compile(state, num_epochs // pieces) if pieces > 1 else run
        if not self._taken:
            self._take(fleet, state)

        def run_chunk(state: LoopState) -> tuple[LoopState, EpochRecord]:
            after, records = run(state)
            for _ in range(pieces - 1):
                state, _ = aside(state)
                self._take(fleet, state)
            self._take(fleet, after)
            return after, records

        return run_chunk

    def begin_anew(self, fleet: Fleet, state: LoopState) -> None:
        """Forget what was taken, since the run begins anew at ``state``."""
        if self._wanted:
            self._taken = []
            self._take(fleet, state)

    def of(self, restart: int) -> Snapshots | None:
        """What was taken of one restart, in the order of the steps."""
        if not self._taken:
            return None
        return Snapshots(*jax.tree.map(lambda *each: np.stack(each), *(one[restart] for one in self._taken)))

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it for a checkpoint."""
        return flatten(self._taken, "snapshots")

    def restore(self, fleet: Fleet, state: LoopState, arrays: Mapping[str, np.ndarray]) -> None:
        """The inverse of `arrays`, for a run that stands at ``state``."""
        if count := len({name.partition("]")[0] for name in arrays if name.startswith("snapshots")}):
            self._take(fleet, state)  # For its structure alone.
            self._taken = unflatten(self._taken * count, arrays, "snapshots")

    def _take(self, fleet: Fleet, state: LoopState) -> None:
        states = fleet.split(state)
        looks = [_look(self._problem, flow, self._key) for flow in fleet.flows(states)]
        steps = [np.asarray(each.step) for each in states]
        self._taken.append([(step, *jax.device_get(look)) for step, look in zip(steps, looks, strict=True)])


def _pieces(num_epochs: int, wanted: float) -> int:
    """The smallest number of equal parts of a chunk that gives as many snapshots as wanted; at most its epochs."""
    return next(n for n in range(1, num_epochs + 1) if num_epochs % n == 0 and n >= min(math.ceil(wanted), num_epochs))


@compiled
def _look(problem: Problem, flow: AbstractDistribution, key: Key) -> tuple[dict[str, Array], dict[str, Array], PerDraw]:
    flow_key, noise_key = jax.random.split(key)
    unconstrained, log_q = flow.sample_and_log_prob(flow_key, (NUM_DRAWS,))

    def simulate(key: Key, unconstrained: Unconstrained) -> tuple[Any, ...]:
        draw = problem.simulator(key, unconstrained)
        parameters = {name: draw.sites[name] for name in problem.simulator.names}
        return parameters, problem.property.values(draw.sites), draw.log_det

    parameters, statistics, log_det = jax.vmap(simulate)(jax.random.split(noise_key, NUM_DRAWS), unconstrained)
    return parameters, statistics, jnp.asarray(log_q - log_det, float)
