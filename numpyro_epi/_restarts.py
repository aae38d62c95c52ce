"""Several fits at once: one compiled program, a ranking that no lost mode can win, and a mixture of what was found."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Float, PyTree

from . import flows
from ._fresh import measure
from ._loop import EpochRecord, Loop, LoopState, combine
from ._memory import MEMORY_SHARE, free_memory
from ._outcome import STATUS, Restarts, Verdict
from ._problem import Problem
from ._products import compiled, compiled_for_long
from ._types import Draws, Key

CLOSE_ENOUGH = 0.05
"""How far below the best restart one may be, nats, and be chosen for having the property where the best has not."""

MIXTURE_DRAWS, MIXTURE_ITERATIONS, MIN_GAIN, MIN_SHARE = 4000, 300, 0.01, 0.01
"""Draws of each guide that weigh a mixture, steps that find its shares, nats that it must gain, and the least share."""


class Fleet(eqx.Module):
    """The loops of all restarts. They differ in their flows' fixed arrays alone, which are stacked in ``loop.static``.

    Attributes:
        loop: The loop of all of them; one restart's own where there is one.
        size: Restarts.
        at_once: Restarts that run side by side; the others wait for them.
    """

    loop: Loop
    size: int = eqx.field(static=True)
    at_once: int = eqx.field(static=True)

    @classmethod
    def of(cls, loops: list[Loop]) -> "Fleet":
        """Stack the loops of restarts that begin alike."""
        first = loops[0]
        if len(loops) == 1:
            return cls(first, 1, 1)
        return cls(dataclasses.replace(first, static=_stack([loop.static for loop in loops])), len(loops), len(loops))

    def stack(self, states: list[LoopState]) -> LoopState:
        return states[0] if self.size == 1 else _stack(states)

    def split(self, tree: PyTree) -> list:
        """One tree for each restart."""
        if self.size == 1:
            return [tree]
        return [jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, tree) for i in range(self.size)]

    def flows(self, states: list[LoopState]) -> list[AbstractDistribution]:
        statics = self.split(self.loop.static)
        return [combine(state.averaged, static) for state, static in zip(states, statics, strict=True)]

    def compile(self, states: LoopState, num_epochs: int) -> Callable[[LoopState], tuple[LoopState, EpochRecord]]:
        """A program that runs epochs of all restarts; every leading axis of its records is the restart.

        As many of them run side by side as the memory that is free allows.
        """
        if self.size == 1:
            return lambda states: self.loop.run_epochs(states, num_epochs)
        fleet = self
        while True:
            # Equinox hides the method behind the function's own type.
            program = _run_many.lower(fleet, states, num_epochs).compile()  # type: ignore[attr-defined]
            used = program.compiled.memory_analysis()
            if fleet.at_once == 1 or used is None or used.temp_size_in_bytes <= MEMORY_SHARE * free_memory():
                return lambda states: program(fleet, states, num_epochs)
            fleet = dataclasses.replace(fleet, at_once=(fleet.at_once + 1) // 2)


@compiled_for_long
def _run_many(fleet: Fleet, states: LoopState, num_epochs: int) -> tuple[LoopState, EpochRecord]:
    arrays, rest = eqx.partition(fleet.loop.static, eqx.is_array)

    def run(restart: tuple[PyTree, LoopState]) -> tuple[LoopState, EpochRecord]:
        arrays, state = restart
        loop = dataclasses.replace(fleet.loop, static=eqx.combine(arrays, rest))
        return jax.lax.scan(lambda state, _: loop.epoch(state), state, None, length=num_epochs)

    return jax.lax.map(run, (arrays, states), batch_size=fleet.at_once)


class Candidates(NamedTuple):
    """Guides of one problem with what fresh draws showed of each."""

    flows: list[AbstractDistribution]
    verdicts: list[Verdict]
    statuses: list[STATUS]


def rank(
    key: Key, problem: Problem, found: Candidates, eta: Float[np.ndarray, " M"], *, measure_with: tuple[int, int]
) -> tuple[Candidates, Restarts]:
    """Put the chosen guide first, the others after it by their distance from the optimum.

    The distance ``KL(q || p_eta) = D(eta) - (H_b - eta . R)`` is compared, not the entropy: a guide that misses its targets
    has too much of that.

    Args:
        key: Random key.
        problem: The question.
        found: The restarts' guides.
        eta: Multipliers, the same for all.
        measure_with: Batches and draws in each, for the verdict on a mixture.
    """
    corrected = np.array([v.base_entropy - eta @ (v.mean - problem.target) for v in found.verdicts])
    errors = np.array([v.entropy_standard_error for v in found.verdicts])
    order = [int(i) for i in np.argsort(-np.nan_to_num(corrected, nan=-np.inf), kind="stable")]
    near = [i for i in order if corrected[i] >= corrected[order[0]] - CLOSE_ENOUGH]
    chosen = next((i for i in near if found.statuses[i] is STATUS.satisfied), order[0])
    order.remove(chosen)
    places = [chosen, *order]
    ranked = Candidates(
        [found.flows[i] for i in places], [found.verdicts[i] for i in places], [found.statuses[i] for i in places]
    )
    usable = [i for i in places if np.isfinite(corrected[i])]
    shares, gain = _mixture_shares(key, [found.flows[i] for i in usable], corrected[usable])
    restarts = Restarts(
        chosen=chosen,
        corrected=corrected,
        standard_error=errors,
        statuses=tuple(status.name for status in found.statuses),
        flows=tuple(found.flows),
        shares=np.zeros(len(corrected)),
        mixed=False,
    )
    if gain <= MIN_GAIN:
        restarts.shares[chosen] = 1.0
        return ranked, restarts
    restarts.shares[usable] = shares
    members = [i for i in range(len(corrected)) if restarts.shares[i] > 0]
    mixture = flows.mixture([found.flows[i] for i in members], restarts.shares[members])
    verdict = measure(problem, mixture, key, *measure_with).verdict()
    best = ranked.verdicts[0]
    held = np.abs(verdict.violation(problem.target)).max() <= max(np.abs(best.violation(problem.target)).max(), 0.03)
    if not held:
        restarts.shares[:] = 0.0
        restarts.shares[chosen] = 1.0
        return ranked, restarts
    joined = Candidates([mixture, *ranked.flows], [verdict, *ranked.verdicts], [ranked.statuses[0], *ranked.statuses])
    return joined, restarts._replace(mixed=True)


def _mixture_shares(
    key: Key, members: list[AbstractDistribution], corrected: Float[np.ndarray, " K"]
) -> tuple[Float[np.ndarray, " K"], float]:
    """Shares of the mixture that is nearest to the optimum, and the nats that it gains over its best member.

    ``H_b - eta . R`` of a mixture needs no simulation: ``R`` and ``E[log base]`` are linear in the shares, so only the entropy
    is new. Half of the draws find the shares, the other half judge them.
    """
    keys = jax.random.split(key, len(members))
    draws = [_draw(flow, k, MIXTURE_DRAWS) for flow, k in zip(members, keys, strict=True)]
    # [member that drew, member that is evaluated, draw]
    density = np.array([[np.asarray(_log_prob(flow, u), float) for flow in members] for u in draws])
    density = np.where(np.isfinite(density), density, -1e30)
    find, judge = density[:, :, ::2], density[:, :, 1::2]
    shares = np.full(len(members), 1.0 / len(members))
    for _ in range(MIXTURE_ITERATIONS):
        slope = _slope(shares, find, corrected)
        shares = shares * np.exp(0.5 * (slope - slope.max()))
        shares /= shares.sum()
    shares = np.where(shares < MIN_SHARE, 0.0, shares)
    shares /= shares.sum()
    gain = shares @ _slope(shares, judge, corrected) - corrected.max()
    return shares, float(gain) if np.count_nonzero(shares) > 1 else 0.0


def _slope(shares: np.ndarray, density: np.ndarray, corrected: np.ndarray) -> np.ndarray:
    """By member: its own value, less what its draws' density gains or loses by being the mixture's."""
    with np.errstate(divide="ignore"):
        log_mixture = scipy.special.logsumexp(density + np.log(shares)[None, :, None], axis=1)
    own = np.einsum("iin->in", density)
    return corrected + np.mean(own - log_mixture, axis=1)


@compiled
def _draw(flow: AbstractDistribution, key: Key, count: int) -> Draws:
    return flow.sample(key, (count,))


@compiled
def _log_prob(flow: AbstractDistribution, draws: Draws) -> Float[Array, " N"]:
    return flow.log_prob(draws)


def _stack(trees: list) -> Any:
    """Stack the arrays; everything else is the first tree's."""
    arrays, rest = zip(*(eqx.partition(tree, eqx.is_array) for tree in trees), strict=True)
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), rest[0])
