"""How much one simulation computes and how noisy it is, and what that leaves for chains.

Work is counted and not timed, so that what follows from it is the same on every machine.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array, Float

from ._chains import ChainSettings, Solved, draw_reference, solve
from ._problem import Problem
from ._types import Draws, Key, Moments, Scalar

LOOP_STEPS = 100
"""Assumed rounds of a loop whose number nobody knows before it runs."""

RANDOM_WORK = 20
"""Elementary operations behind one random number."""


TRIVIAL, EXPENSIVE = 1000, 200_000
"""Work of one simulation: up to the first, chains of full size take about as long as the loop's own flow; beyond the second
even light ones take longer than the loop."""

LIGHT = ChainSettings(num_chains=128, num_updates=80, num_transitions=4, num_simulations=2)
"""Chains of a sixteenth of the full number of transitions."""

LARGE_NOISE, NOISE_DRAWS = 0.005, 500
"""Share of a moment's variance over the base that may be noise where only two simulations are averaged: the property may narrow
that variance a hundredfold. Draws that show it, here and at the solution."""

MAX_EXPONENT_NOISE = 0.2
"""Variance of ``eta . T``'s noise, averaged over a chain's simulations, up to which its estimate from two of them will do: the
correction's own error is then below 0.01 nats."""


def work(problem: Problem) -> int:
    """Array elements that one evaluation of the model and its statistics computes, loops counted as often as they run."""
    return _count(jax.make_jaxpr(problem.evaluate)(jax.random.key(0), jnp.zeros(problem.dim)).jaxpr)


def expensive(problem: Problem) -> bool:
    """Whether even short chains would take most of a fit's time."""
    return work(problem) > EXPENSIVE


def has_large_noise(problem: Problem) -> bool:
    """Whether averages of two simulations are too noisy for chains."""
    return bool(problem.simulator.noise) and float(_noise_share(problem)) > LARGE_NOISE


def chain_settings(problem: Problem) -> ChainSettings:
    """Full chains where a simulation is trivial, or its noise so large that many are averaged; light ones elsewhere."""
    if problem.simulator.noise:
        return ChainSettings() if has_large_noise(problem) else LIGHT
    return LIGHT if work(problem) > TRIVIAL else ChainSettings()


def solve_by_chains(problem: Problem, key: Key, settings: ChainSettings | None) -> tuple[Solved, ChainSettings]:
    """Run these chains, or those that the problem asks for.

    These are run again at full size where the solution's own multipliers make the noise too large for light ones.
    """
    chosen = settings or chain_settings(problem)
    solved = solve(problem, key, chosen)
    if settings is None and chosen == LIGHT and problem.simulator.noise and np.all(np.isfinite(solved.eta)):
        if not exponent_noise(problem, solved) / chosen.num_simulations <= MAX_EXPONENT_NOISE:
            chosen = ChainSettings()
            solved = solve(problem, key, chosen)
    return solved, chosen


def exponent_noise(problem: Problem, solved: Solved) -> float:
    """Variance of ``eta . T`` that is one simulation's noise, averaged over the solution's draws, nats^2."""
    return float(_exponent_noise(problem, solved.draws.reshape(-1, problem.dim), jnp.asarray(solved.eta, float)))


@eqx.filter_jit
def _exponent_noise(problem: Problem, draws: Draws, eta: Moments) -> Scalar:
    index_key, noise_key = jax.random.split(jax.random.key(0))
    some = draws[jax.random.randint(index_key, (NOISE_DRAWS,), 0, len(draws))]
    return jnp.mean(0.5 * jnp.square((_pairs(problem, noise_key, some) @ eta) @ jnp.array([1.0, -1.0])))


def _pairs(problem: Problem, key: Key, draws: Draws) -> Float[Array, "N 2 M"]:
    """Moments of two simulations of each draw."""
    keys = jax.random.split(key, (len(draws), 2))
    return jax.vmap(jax.vmap(problem.evaluate, (0, None)))(keys, draws).moments


@eqx.filter_jit
def _noise_share(problem: Problem) -> Scalar:
    """Largest share of a moment's variance over the base that is the simulator's noise; failed draws are left out.

    The base is the prior where it is proper, a wide normal of the unconstrained parameters elsewhere, as for chains.
    """
    draws_key, noise_key = jax.random.split(jax.random.key(0))
    draws = jax.vmap(partial(draw_reference, problem))(jax.random.split(draws_key, NOISE_DRAWS))
    moments = _pairs(problem, noise_key, draws)
    moments = jnp.where(jnp.all(jnp.isfinite(moments), axis=(1, 2), keepdims=True), moments, jnp.nan)
    within = jnp.nanmean(0.5 * jnp.square(moments[:, 0] - moments[:, 1]), axis=0)
    return jnp.max(within / jnp.maximum(jnp.nanvar(moments[:, 0], axis=0), jnp.finfo(within.dtype).tiny))


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
