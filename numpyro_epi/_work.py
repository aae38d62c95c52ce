"""How much one simulation computes and how noisy it is, and what that leaves for chains.

Work is counted and not timed, so that what follows from it is the same on every machine.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float

from ._chain_settings import ChainSettings
from ._chains import Solved, solve
from ._path import mirrored_pairs
from ._problem import Problem
from ._products import compiled
from ._reference import begins_at_base, draw_reference, reference_draws
from ._search import find_reference
from ._types import Draws, Key, MomentDraws, Moments, PerDraw, Scalar

LOOP_STEPS = 100
"""Assumed rounds of a loop whose number nobody knows before it runs."""

RANDOM_WORK = 20
"""Elementary operations behind one random number."""


TRIVIAL, EXPENSIVE = 1000, 200_000
"""Work of one simulation: up to the first, chains of full size take about as long as the loop's own flow; beyond the second
even light ones take longer than the loop."""

LIGHT = ChainSettings(num_chains=128, num_updates=80, num_transitions=4, num_simulations=2)
"""Chains of a sixteenth of the full number of transitions."""

MIRRORED = ChainSettings(num_chains=128, num_updates=80, num_transitions=4, num_simulations=4, mirrored=True)
"""Such light chains with pairs of opposite noise, two of which say how noisy their mean is."""

NOISY, FEW_DIMENSIONS = ChainSettings(num_chains=128, num_updates=80, num_transitions=4, num_simulations=16), 40
"""Light chains that average many simulations, and dimensions up to which so few chains do."""

MIRRORED_GAIN = 4.0
"""Least ratio of noise in the mean of two independent simulations to that of an opposite pair from which pairs are used."""

MOST_SIMULATIONS, MOST_RUNS = 64, 3
"""Of one evaluation by light chains, and of the chains, each with what the last one showed to be needed."""

LARGE_NOISE, NOISE_DRAWS = 0.005, 500
"""Share of a moment's variance over the base that may be noise where only two simulations are averaged: the property may narrow
that variance a hundredfold. Draws that show it, here and at the solution."""

MAX_EXPONENT_NOISE = 0.1
"""Variance of ``eta . T``'s noise, averaged over a chain's simulations, up to which two of them will do, and n of them up to
sqrt(n - 1) times this variance. The correction for it is right for normal noise; that of squares is skewed, and moved a
multiplier by 11, 4, 2 and 1 percent with 2, 3, 4 and 5 simulations of variance 1 each, before its skewness was corrected too."""


def work(problem: Problem) -> int:
    """Array elements that one evaluation of the model and its statistics computes, loops counted as often as they run."""
    return _count(jax.make_jaxpr(problem.evaluate)(jax.random.key(0), jnp.zeros(problem.dim)).jaxpr)


def expensive(problem: Problem) -> bool:
    """Whether even short chains would take most of a fit's time."""
    return work(problem) > EXPENSIVE


def is_trivial(problem: Problem) -> bool:
    """Whether a simulation costs less than a draw of the default flow."""
    return work(problem) <= TRIVIAL


def reference_moments(problem: Problem, key: Key, count: int) -> MomentDraws:
    """Moments of draws of what chains begin with."""
    draws_key, noise_key = jax.random.split(key)
    return moments_at(problem, noise_key, reference_draws(problem, draws_key, count))


@compiled
def moments_at(problem: Problem, key: Key, draws: Draws) -> MomentDraws:
    """Moments of one simulation of each draw."""
    pairs = jax.random.split(key, len(draws)), draws
    return jax.lax.map(lambda pair: problem.evaluate(*pair).moments, pairs, batch_size=min(len(draws), 250))


@compiled
def log_base_at(problem: Problem, draws: Draws) -> PerDraw:
    """Log density of the base at each draw, in unconstrained coordinates."""
    return jax.lax.map(
        lambda u: problem.evaluate(jax.random.key(0), u).log_base, draws, batch_size=min(len(draws), 250)
    )


def has_large_noise(problem: Problem) -> bool:
    """Whether averages of two simulations are too noisy for chains."""
    return bool(problem.simulator.noise) and _noise_share(problem) > LARGE_NOISE


def chain_settings(problem: Problem) -> ChainSettings:
    """Full chains where a simulation is trivial, or its noise so large that many are averaged; light ones elsewhere.

    With pairs of opposite noise where most of it cancels in them.
    """
    if problem.simulator.noise:
        if _cancels(problem):
            return MIRRORED
        if not has_large_noise(problem):
            return LIGHT
        return ChainSettings() if problem.dim > FEW_DIMENSIONS else NOISY
    return LIGHT if work(problem) > TRIVIAL else ChainSettings()


def solve_by_chains(problem: Problem, key: Key, settings: ChainSettings | None) -> tuple[Solved, ChainSettings]:
    """Run these chains, or those that the problem asks for.

    These are run again with more simulations where the solution's own multipliers make the noise too large for so few.
    """
    chosen = settings or chain_settings(problem)
    spent = 0
    if not begins_at_base(problem) and chosen.reference is None:
        reference, spent = find_reference(problem, jax.random.fold_in(key, 1))
        chosen = replace(chosen, reference=reference)
    solved = solve(problem, key, chosen)
    solved = solved._replace(num_simulations=solved.num_simulations + spent)
    if settings is not None or not problem.simulator.noise:
        return solved, chosen
    for _ in range(MOST_RUNS - 1):
        if not np.all(np.isfinite(solved.eta)) or (more := _enough(problem, solved, chosen)) == chosen:
            break
        if not solved.converged and more.num_simulations == MOST_SIMULATIONS:
            # Multipliers that ran off ask for any number of simulations.
            break
        chosen, spent = replace(more, within=solved.within), solved.num_simulations
        solved = solve(problem, key, chosen)
        solved = solved._replace(num_simulations=solved.num_simulations + spent)
    return solved, chosen


def _enough(problem: Problem, solved: Solved, settings: ChainSettings) -> ChainSettings:
    """The chains' settings, with more simulations or opposite pairs if the noise of ``eta . T`` asks for them."""
    alone, paired = exponent_noise(problem, solved)
    if not np.isfinite(alone + paired):
        return settings
    now = settings.num_simulations // 2 if settings.mirrored else settings.num_simulations
    if now >= _fewest(paired if settings.mirrored else alone):
        return settings
    needed, needed_paired = _fewest(alone), 2 * _fewest(paired)
    mirrored = needed_paired < needed
    count = min(needed_paired if mirrored else needed, MOST_SIMULATIONS)
    more = mirrored != settings.mirrored or count > settings.num_simulations
    return replace(settings, num_simulations=count, mirrored=mirrored) if more else settings


def _fewest(variance: float) -> int:
    """Simulations, or pairs of them, whose mean estimates its own noise well enough, where one of them has this variance.

    An estimate of ``variance / n`` from n of them has the relative variance ``2 / (n - 1)``: the more there are, the more noise
    their mean may have.
    """
    ratio = variance / MAX_EXPONENT_NOISE
    count = max(2, math.floor(ratio ** (2 / 3)))
    while count * math.sqrt(count - 1) < ratio:
        count += 1
    return count


def exponent_noise(problem: Problem, solved: Solved) -> tuple[float, float]:
    """Variance of ``eta . T`` that is noise, averaged over the solution's draws, nats^2.

    Returns:
        That of one simulation and that of the mean of an opposite pair.
    """
    alone, paired = _exponent_noise(problem, solved.draws.reshape(-1, problem.dim), jnp.asarray(solved.eta, float))
    return float(alone), float(paired)


@compiled
def _exponent_noise(problem: Problem, draws: Draws, eta: Moments) -> tuple[Scalar, Scalar]:
    index_key, noise_key = jax.random.split(jax.random.key(0))
    some = draws[jax.random.randint(index_key, (NOISE_DRAWS,), 0, len(draws))]
    exponent = _pairs(problem, noise_key, some) @ eta
    return _variance_between(exponent[:, :, 0]), _variance_between(jnp.mean(exponent, axis=2))


def _variance_between(two: Float[Array, "N 2 *M"]) -> Float[Array, "*M"]:
    """Mean variance of one of two independent numbers with the same mean, with or without trailing axes.

    Pairs of which one is not finite are left out.
    """
    variance = 0.5 * jnp.square(two[:, 0] - two[:, 1])
    return jnp.nanmean(jnp.where(jnp.isfinite(variance), variance, jnp.nan), axis=0)


def _pairs(problem: Problem, key: Key, draws: Draws) -> Float[Array, "N 2 2 M"]:
    """Moments of two independent simulations of each draw, and of each one's mirror image."""
    keys = jax.random.split(key, (len(draws), 2))
    return jax.vmap(partial(mirrored_pairs, problem))(keys, draws).moments


class _Noise(NamedTuple):
    """Shares of the moments' variance over the base: of the noise of one simulation and of an opposite pair's mean, [M]."""

    alone: Moments
    paired: Moments


def _cancels(problem: Problem) -> bool:
    """Whether opposite pairs are worth it for every moment with noise, and leave little of it in any."""
    alone, paired = (np.asarray(part, float) for part in _noise_shares(problem))
    noisy = alone > 0
    worth = np.all(paired[noisy] * MIRRORED_GAIN < alone[noisy] / 2)
    return bool(np.any(noisy) and worth and np.max(paired) <= LARGE_NOISE)


def _noise_share(problem: Problem) -> float:
    """Largest share of a moment's variance over the base that is the simulator's noise."""
    return float(np.max(_noise_shares(problem).alone))


@compiled
def _noise_shares(problem: Problem) -> _Noise:
    """Failed draws are left out. The base is the prior where it is proper, a wide normal elsewhere, as for chains."""
    draws_key, noise_key = jax.random.split(jax.random.key(0))
    draws = jax.vmap(partial(draw_reference, problem))(jax.random.split(draws_key, NOISE_DRAWS))
    moments = _pairs(problem, noise_key, draws)
    moments = jnp.where(jnp.all(jnp.isfinite(moments), axis=(1, 2, 3), keepdims=True), moments, jnp.nan)
    spread = jnp.maximum(jnp.nanvar(moments[:, 0, 0], axis=0), jnp.finfo(moments.dtype).tiny)
    return _Noise(_variance_between(moments[:, :, 0]) / spread, _variance_between(jnp.mean(moments, axis=2)) / spread)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_count(found) for found in _inside(equation.params)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "while":
            total += LOOP_STEPS * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif inner:
            total += sum(inner)
        else:
            size = sum(math.prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
            total += size * (RANDOM_WORK if equation.primitive.name.startswith("random_") else 1)
    return total


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an operation holds."""
    for value in params.values():
        for found in value if isinstance(value, tuple | list) else (value,):
            if isinstance(found, ClosedJaxpr):
                yield found.jaxpr
            elif isinstance(found, Jaxpr):
                yield found
