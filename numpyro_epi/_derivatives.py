"""Derivatives of a density, of one unconstrained vector and of many.

Those on the constrained scale go by the Jacobian of the constraining transform; where a support has fewer dimensions than
numbers they are taken within it.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, PerDraw, Scalar, Sites, Unconstrained

if TYPE_CHECKING:
    from ._density import Density


# One unconstrained vector.


def flatten(density: "Density", unconstrained: Unconstrained) -> Float[Array, " P"]:
    sites = density.problem.simulator.constrain(unconstrained).sites
    return ravel_pytree([sites[name] for name in density.problem.simulator.names])[0]


def height(density: "Density", unconstrained: Unconstrained) -> Scalar:
    log_det = density.problem.simulator.constrain(unconstrained).log_det
    return density.unconstrained.log_prob(unconstrained) - log_det


def gradient(density: "Density", unconstrained: Unconstrained) -> Float[Array, " P"]:
    # The tangent vector whose products with the columns of J are the slopes along the unconstrained coordinates.
    jacobian = jax.jacobian(partial(flatten, density))(unconstrained)
    return jnp.linalg.pinv(jacobian).T @ jax.grad(partial(height, density))(unconstrained)


def hessian(density: "Density", unconstrained: Unconstrained) -> Float[Array, "P P"]:
    place = partial(flatten, density)
    inverse = jnp.linalg.pinv(jax.jacobian(place)(unconstrained))
    slope = inverse.T @ jax.grad(partial(height, density))(unconstrained)
    # The coordinates' own curvature along the slope is not the density's.
    bent = jax.hessian(lambda u: place(u) @ slope)(unconstrained)
    return inverse.T @ (jax.hessian(partial(height, density))(unconstrained) - bent) @ inverse


def gradient_by_site(density: "Density", unconstrained: Unconstrained) -> dict[str, Array]:
    return density.problem.simulator.split(gradient(density, unconstrained))


def hessian_by_site(density: "Density", unconstrained: Unconstrained) -> dict[str, dict[str, Array]]:
    rows = density.problem.simulator.split(hessian(density, unconstrained))
    found = {}
    for parameter in density.problem.simulator.parameters:
        columns = jax.vmap(density.problem.simulator.split)(
            rows[parameter.name].reshape(-1, rows[parameter.name].shape[-1])
        )
        found[parameter.name] = {n: c.reshape(*parameter.shape, *c.shape[1:]) for n, c in columns.items()}
    return found


# Many of them.


@compiled
def map_inside(density: "Density", function: Callable, values: Sites) -> tuple[Any, Bool[Array, " N"]]:
    def one(place: Sites) -> tuple[Any, Bool[Array, ""]]:
        u = density.problem.simulator.unconstrain(place)
        numbers = jnp.concatenate([jnp.ravel(place[name]) for name in density.problem.simulator.names])
        # Outside, or at the very edge, numbers have no finite image; where they are NaN themselves, so is the density.
        inside = jnp.all(jnp.isfinite(u))
        instead = jnp.where(jnp.any(jnp.isnan(numbers)), jnp.nan, -jnp.inf)
        return jax.tree.map(lambda leaf: jnp.where(inside, leaf, instead), function(density, u)), inside

    return jax.vmap(one)(values)


@compiled
def sample(density: "Density", key: Key, count: int) -> dict[str, Array]:
    return constrain(density.problem, density.unconstrained.draw(key, count))


@compiled
def heights(density: "Density", draws: Draws) -> PerDraw:
    return jax.vmap(partial(height, density))(draws)


@compiled
def flatten_all(density: "Density", draws: Draws) -> Float[Array, "N P"]:
    return jax.vmap(partial(flatten, density))(draws)


@compiled
def gradients(density: "Density", draws: Draws) -> Float[Array, "N P"]:
    return jax.lax.map(partial(gradient, density), draws, batch_size=128)


@compiled
def exact_gradients(density: "Density", key: Key, draws: Draws) -> Float[Array, "N P"]:
    """Gradients of ``log base - eta . T`` on the constrained scale, one simulation each."""

    def log_density(unconstrained: Unconstrained, key: Key) -> Scalar:
        found = density.problem.evaluate(key, unconstrained)
        return found.log_base - found.log_det - found.moments @ jnp.asarray(density.eta, found.moments.dtype)

    def one(pair: tuple[Key, Unconstrained]) -> Array:
        jacobian = jax.jacobian(partial(flatten, density))(pair[1])
        return jnp.linalg.pinv(jacobian).T @ jax.grad(log_density)(pair[1], pair[0])

    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=128)


def constrain(problem: Problem, draws: Draws) -> dict[str, Array]:
    """Parameters of unconstrained draws by site, ``(N, *site shape)``, in the model's order."""
    sites = _constrain(problem, draws)
    return {name: sites[name] for name in problem.simulator.names}


@compiled
def _constrain(problem: Problem, draws: Draws) -> Sites:
    return jax.vmap(lambda u: problem.simulator.constrain(u).sites)(draws)


@compiled
def slope_and_jacobian(density: "Density", place: Unconstrained) -> tuple[Unconstrained, Float[Array, "P D"]]:
    return jax.grad(partial(height, density))(place), jax.jacobian(partial(flatten, density))(place)


@compiled
def stretches(density: "Density", draws: Draws) -> Float[Array, "N D"]:
    """``|dz/du|`` of every unconstrained coordinate: near a bound of its support the distance to it."""

    def one(unconstrained: Unconstrained) -> Float[Array, " D"]:
        return jnp.linalg.norm(jax.jacobian(partial(flatten, density))(unconstrained), axis=0)

    return jax.lax.map(one, draws, batch_size=16)


@compiled
def hessian_at(density: "Density", place: Unconstrained) -> Float[Array, "P P"]:
    return hessian(density, place)


@compiled
def moments_of(density: "Density", key: Key, draws: Draws) -> Float[Array, "N M"]:
    def one(pair: tuple[Key, Unconstrained]) -> Array:
        return density.problem.evaluate(*pair).moments

    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=1000)


def spread(density: "Density", draws: Draws) -> Float[np.ndarray, " P"]:
    """Standard deviations of draws on the constrained scale."""
    return np.asarray(flatten_all(density, draws), float).std(axis=0)
