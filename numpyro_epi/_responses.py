"""How the statistics' means change along directions of the parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ._problem import Problem
from ._products import compiled
from ._types import Key

NUM_SIMULATIONS, NUM_SIMULATIONS_EACH = 64, 4
"""Simulations whose mean is a statistic's response, where the model has noise: at one place, and at each of many."""

DIFFERENCE = 0.1
"""Step of a difference quotient where a statistic is not differentiable, in standard deviations of the draws."""


def responses(
    problem: Problem,
    key: Key,
    places: Mapping[str, Array],
    vectors: Float[np.ndarray, "K P"],
    *,
    spread: Float[np.ndarray, " P"],
) -> tuple[Float[np.ndarray, "K S"], list[str]]:
    """Change of every statistic's mean by a unit step along each vector, averaged over places, and the statistics' names.

    Args:
        problem: The question.
        key: For the simulations; those of a place share their noise.
        places: Parameters by site, ``(N, *site shape)``.
        vectors: Directions over the flattened sites.
        spread: Standard deviation of each flattened number, which sets the step of a difference quotient.
    """
    first = np.array([constraint.order == 1 for constraint in problem.constraints])
    labels = [constraint.name for constraint in problem.constraints if constraint.order == 1]
    number = len(next(iter(places.values())))
    count = (NUM_SIMULATIONS if number == 1 else NUM_SIMULATIONS_EACH) if problem.simulator.noise else 1
    scaled = np.linalg.norm(vectors / np.where(spread > 0, spread, np.inf), axis=1)
    steps = DIFFERENCE / np.where(scaled > 0, scaled, 1.0)
    found = _respond(problem, key, dict(places), jnp.asarray(vectors, float), jnp.asarray(steps, float), count)
    slopes = np.asarray(found, float)
    usable = np.isfinite(slopes).all(axis=(1, 2))
    return slopes[usable].mean(axis=0)[:, first] if usable.any() else np.full(
        (len(vectors), first.sum()), np.nan
    ), labels


@compiled
def _respond(
    problem: Problem, key: Key, places: dict[str, Array], vectors: Array, steps: Array, count: int
) -> Float[Array, "N K M"]:
    def at(pair: tuple[dict[str, Array], Key]) -> Array:
        place = ravel_pytree([pair[0][name] for name in problem.simulator.names])[0]
        keys = jax.random.split(pair[1], count)

        def mean(flat: Array) -> Array:
            return problem.mean_moments(keys, problem.simulator.split(flat))

        def slope(vector: Array, step: Array) -> Array:
            if problem.differentiable:
                return jax.jvp(mean, (place,), (vector,))[1]
            return (mean(place + step * vector) - mean(place - step * vector)) / (2 * step)

        return jax.vmap(slope)(vectors, steps)

    return jax.lax.map(at, (places, jax.random.split(key, len(next(iter(places.values()))))))
