"""One step of a fit as a program of its own."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import numpyro_epi as epi
from numpyro_epi import flows, objectives
from numpyro_epi._loop import combine, partition
from numpyro_epi._products import compiled_for_long


def training_step(problem: epi.Problem, num_draws: int) -> tuple[Callable, Callable[[], object], str]:
    """The loss and its gradient for the default flow and objective, compiled.

    Returns:
        The compiled program, a call of it, and the objective's name.
    """
    flow = flows.with_affine(
        flows.default(jax.random.key(0), problem.dim), jnp.zeros(problem.dim), jnp.eye(problem.dim)
    )
    parameters, static = partition(flow)
    objective, count = objectives.default(problem), len(problem.constraints)
    lagrangian = objectives.Lagrangian(jnp.zeros(count), jnp.eye(count), jnp.asarray(problem.target, float))

    def loss(parameters, key):
        return objective(key, combine(parameters, static), problem.evaluate, lagrangian, num_draws)[0]

    key = jax.random.key(1)
    program = compiled_for_long(jax.value_and_grad(loss)).lower(parameters, key).compile()
    return program, lambda: jax.block_until_ready(program(parameters, key)), type(objective).__name__
