"""Period of a signal that turns around the origin of a plane, by its phase.

A phase has a derivative wherever the signal does; a count of crossings or a spectrum's largest line jumps. Averages over time
are taken under Hann's window ``sin^2``, whose error for a signal of k periods falls as ``1 / k^3`` also where k is no integer
(Harris 1978, Proceedings of the IEEE 66:51, section V.C).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

QUIET = 1e-3
"""Radius below which a signal has next to no say, in the unit of the signal: there its phase is rounding."""


def hann(num_samples: int, dtype: jnp.dtype) -> Float[Array, " T"]:
    """Weights of equally spaced samples, zero at both ends; their sum is one."""
    phase = jnp.pi * jnp.arange(num_samples, dtype=dtype) / (num_samples - 1)
    return jnp.square(jnp.sin(phase)) * (2 / (num_samples - 1))


def turns_per_sample(x: Float[Array, " T"], y: Float[Array, " T"]) -> Float[Array, ""]:
    """Mean number of turns from one sample to the next, from the first axis to the second; below a half.

    Samples of a radius ``r`` have the weight ``r^2 / (r^2 + QUIET^2)``, so that the tail of a signal that has died is left
    out, and one that turns for ever has the mean of its phase. Zero, with zero gradient, for a signal that is zero.
    """
    along, across = x[:-1] * x[1:] + y[:-1] * y[1:], x[:-1] * y[1:] - y[:-1] * x[1:]
    squared = jnp.square(along) + jnp.square(across)
    moves = squared > 0
    # The inner where keeps the slope of an angle between zeros finite.
    angle = jnp.where(moves, jnp.arctan2(across, jnp.where(moves, along, 1.0)), 0.0)
    radius_squared = jnp.where(moves, jnp.sqrt(jnp.where(moves, squared, 1.0)), 0.0)
    num_steps = angle.shape[0]
    middle = jnp.pi * (jnp.arange(num_steps, dtype=x.dtype) + 0.5) / num_steps
    weights = jnp.square(jnp.sin(middle)) * radius_squared / (radius_squared + QUIET**2)
    total = jnp.sum(weights)
    return jnp.where(total > 0, weights @ angle / jnp.where(total > 0, total, 1.0), 0.0) / (2 * jnp.pi)
