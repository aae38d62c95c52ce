"""What the noise of averaged simulations adds to a tilted density, and what has to be taken away for it."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._types import Scalar


def correction(exponents: Float[Array, " n"]) -> Scalar:
    """What to take from ``-mean(exponents)`` so that its exponential is right on average over their noise, nats.

    Normal noise of variance ``w`` of their mean makes the exponential ``exp(w / 2)`` times too large. From the estimate ``S`` of
    ``w`` with n - 1 degrees of freedom, ``exp(-S / 2)`` undoes that but for its own error: it is convex. The unbiased
    estimate of ``exp(-w / 2)`` is ``0F1(; b; -b S / 2)`` with ``b = (n - 1) / 2`` (Finney 1941), a Bessel function that has
    zeros; this is the logarithm's series to the third order, which has none.

    Args:
        exponents: ``eta . T`` of independent simulations with the same parameters; a single one has no correction.
    """
    count = exponents.size
    if count < 2:
        return jnp.zeros((), exponents.dtype)
    half = 0.5 * jnp.var(exponents, ddof=1) / count
    b = (count - 1) / 2
    return half * (1 + half / (2 * (b + 1)) * (1 + 4 * half / (3 * (b + 2))))
