"""Moves of all members of a plate at once.

A statistic of a large plate often depends on sums over its members, such as a network's Gram matrix. Members that move on their
own change such a sum like a random walk, the more slowly the more they are. Here a Hamiltonian trajectory goes along shared
affine maps instead: the velocity is a matrix, and while it drifts for a time ``s`` every member's coordinates ``x`` go to
``x expm(s velocity)``, whose volume factor is known. So a Metropolis step leaves the density as it is, as for any group of maps
(Liu & Sabatti 2000, Biometrika 87:353, draw the map instead). Centre and scale of the coordinates are those of all chains, as in
other moves.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._simulator import Simulator
from ._types import Draws, Key, PerDraw, Scalar

FIRST_STEP = 0.05
"""Of the leapfrog, until it is adapted."""

MOST_COLUMNS = 32
"""Coordinates of one member, beyond which a map's exponential costs more than what it moves."""

MAX_SQUARINGS = 4
"""Of that exponential: trajectories with a longer step are refused."""

Slope = Callable[[Draws], tuple[PerDraw, Draws]]


def members(simulator: Simulator) -> list[Int[np.ndarray, "members coordinates"]]:
    """Where each plate's members have their coordinates in a draw, of plates with many more members than coordinates of each.

    Sites in several plates belong to each of them; plates of one name but different sizes are different ones.
    """
    columns: dict[tuple[str, int], list[np.ndarray]] = {}
    start = 0
    for parameter in simulator.parameters:
        index = start + np.arange(parameter.size).reshape(parameter.unconstrained_shape)
        start += parameter.size
        for plate, axis in parameter.plates:
            columns.setdefault((plate, index.shape[axis]), []).append(
                np.moveaxis(index, axis, 0).reshape(index.shape[axis], -1)
            )
    found = [np.concatenate(parts, axis=1) for parts in columns.values()]
    return [index for index in found if index.shape[1] <= MOST_COLUMNS and len(index) >= 2 * (index.shape[1] + 1)]


def move_together(
    slope: Slope,
    index: Int[np.ndarray, "members coordinates"],
    position: Draws,
    weight: PerDraw,
    key: Key,
    *,
    step_size: Scalar,
    num_leapfrog: int,
) -> tuple[Draws, Scalar]:
    """One trajectory of every chain along shared affine maps of a plate's members.

    Args:
        slope: Log density of many positions and its gradient.
        index: Of the members' coordinates.
        position: Shape [chains, D].
        weight: Of each chain, for the centre and the scale of the coordinates; they sum to one.
        key: Random key.
        step_size: Of the leapfrog.
        num_leapfrog: Steps.

    Returns:
        The new positions and the mean acceptance probability.
    """
    momentum_key, accept_key, jitter_key = jax.random.split(key, 3)
    num_chains, (num_members, num_columns) = len(position), index.shape
    rows = position[:, index]
    centre = jnp.einsum("n,nij->j", weight, rows) / num_members
    scale = jnp.sqrt(jnp.einsum("n,nij->j", weight, jnp.square(rows - centre)) / num_members) + 1e-6
    # An affine map is a linear one of coordinates with a one behind them.
    volume = num_members * jnp.eye(num_columns + 1, num_columns, dtype=position.dtype)

    def force(position: Draws) -> tuple[PerDraw, Float[Array, "N k+1 k"]]:
        log_density, gradient = slope(position)
        x = (position[:, index] - centre) / scale
        along = gradient[:, index] * scale
        return log_density, jnp.einsum("nij,nik->njk", _with_one(x), along) + volume

    def drift(position: Draws, velocity: Float[Array, "N k+1 k"]) -> Draws:
        generator = jnp.concatenate([velocity, jnp.zeros((num_chains, num_columns + 1, 1), velocity.dtype)], axis=2)
        x = _with_one((position[:, index] - centre) / scale)
        moved = (x @ jax.scipy.linalg.expm(generator, max_squarings=MAX_SQUARINGS))[..., :-1]
        return position.at[:, index].set(centre + scale * moved)

    before, pull = force(position)
    velocity = jax.random.normal(momentum_key, pull.shape, position.dtype)
    jitter = jax.random.normal(jitter_key, (num_chains, 1, 1), position.dtype)
    length = step_size * jnp.exp(0.4 * jitter)

    def leapfrog(carry, _):
        q, v, pull, _, log_volume = carry
        v = v + 0.5 * length * pull
        q = drift(q, length * v)
        log_volume = log_volume + num_members * jnp.trace(length * v[:, :-1], axis1=1, axis2=2)
        log_density, pull = force(q)
        return (q, v + 0.5 * length * pull, pull, log_density, log_volume), None

    start = (position, velocity, pull, before, jnp.zeros_like(before))
    (q, v, _, after, log_volume), _ = jax.lax.scan(leapfrog, start, None, length=num_leapfrog)
    kinetic = 0.5 * jnp.sum(velocity**2, axis=(1, 2)) - 0.5 * jnp.sum(v**2, axis=(1, 2))
    log_ratio = after - before + log_volume + kinetic
    probability = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
    accepted = (jax.random.uniform(accept_key, probability.shape) < probability)[:, None]
    return jnp.where(accepted, q, position), jnp.mean(probability)


def _with_one(x: Float[Array, "*batch k"]) -> Float[Array, "*batch k+1"]:
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
