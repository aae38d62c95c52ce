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
from jax.extend.core import ClosedJaxpr, Jaxpr

from ._chains import ChainSettings, draw_reference
from ._problem import Problem
from ._types import Scalar

LOOP_STEPS = 100
"""Assumed rounds of a loop whose number nobody knows before it runs."""

RANDOM_WORK = 20
"""Elementary operations behind one random number."""


TRIVIAL, EXPENSIVE = 1000, 200_000
"""Work of one simulation: up to the first, chains of full size take about as long as the loop's own flow; beyond the second
even light ones take longer than the loop."""

LIGHT = ChainSettings(num_chains=128, num_updates=80, num_transitions=4, num_simulations=2)
"""Chains of a sixteenth of the full number of transitions."""

LARGE_NOISE, NOISE_DRAWS = 0.1, 500
"""Share of a moment's variance over the base that may be noise where only two simulations are averaged; draws that show it."""


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


@eqx.filter_jit
def _noise_share(problem: Problem) -> Scalar:
    """Largest share of a moment's variance over the base that is the simulator's noise; failed draws are left out.

    The base is the prior where it is proper, a wide normal of the unconstrained parameters elsewhere, as for chains.
    """
    draws_key, noise_key = jax.random.split(jax.random.key(0))
    draws = jax.vmap(partial(draw_reference, problem))(jax.random.split(draws_key, NOISE_DRAWS))
    keys = jax.random.split(noise_key, (NOISE_DRAWS, 2))
    moments = jax.vmap(jax.vmap(problem.evaluate, (0, None)))(keys, draws).moments
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
