"""What the noise of averaged simulations adds to a tilted density, and what has to be taken away for it.

Normal noise of variance ``w`` of a mean makes its exponential ``exp(w / 2)`` times too large. From an estimate ``S`` of ``w``
with n - 1 degrees of freedom, ``exp(-S / 2)`` undoes that but for its own error: it is convex. The unbiased estimate of
``exp(-w / 2)`` is ``0F1(; b; -b S / 2)`` with ``b = (n - 1) / 2`` (Finney 1941, JRSS Supplement 7:155), a Bessel function that
has zeros. The correction here is its negative logarithm's series to the third order, which has none.

Noise is seldom normal: that of squares has a third cumulant ``k``, which changes the mean exponential twice. It is
``exp(w / 2 - k / (6 n^2))`` without a correction; and the mean of n simulations is correlated with the estimate ``S``, which adds
half of their covariance, ``k / (2 n^2)``. The sum, ``k / (3 n^2)``, is taken away, with the unbiased estimate of ``k`` (Fisher's
k-statistic).

Where draws are weighed and not moved (`_weighed`, `_certificate`, `_dual`) half of ``S`` is taken alone, which leaves
``w^2 / (4 (n - 1)) + k / (3 n^2)`` nats up to the third cumulant (`Left`).
"""

from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Bool, Float

Numbers = TypeVar("Numbers", Array, np.ndarray)


class Left(NamedTuple):
    """What is left where half of the estimated variance alone is taken from the exponent, by the number of simulations.

    Attributes:
        square: Squared variance of one simulation's ``eta . T``, nats^4, in the mean over draws.
        third: Its third cumulant, nats^3, in the mean over draws.
    """

    square: float
    third: float

    def bias(self, count: int) -> float:
        """Of the exponent at most, nats, by means of so many simulations; noise of higher cumulants may leave more."""
        return self.square / (4 * count**2 * (count - 1)) + abs(self.third) / (3 * count**2)

    def enough(self, most_left: float, most: int) -> int:
        """Fewest simulations that leave at most so many nats, up to so many."""
        return next((count for count in range(2, most) if self.bias(count) <= most_left), most)


def left(exponents: Float[np.ndarray, "N S"], succeeds: Bool[np.ndarray, "N S"]) -> Left | None:
    """Estimates from ``eta . T`` of fresh simulations of each draw, where three or more succeed; ``None`` where none do."""
    usable = succeeds.sum(axis=1) >= 3
    if not np.any(usable):
        return None
    exponents, succeeds = exponents[usable], succeeds[usable]
    count = succeeds.sum(axis=1)
    mean = np.where(succeeds, exponents, 0.0).sum(axis=1) / count
    away = np.where(succeeds, exponents - mean[:, None], 0.0)
    variance = np.square(away).sum(axis=1) / (count - 1)
    third = (away**3).sum(axis=1) * count / ((count - 1) * (count - 2))
    return Left(float(np.mean(np.square(variance))), float(np.mean(third)))


def correction(exponents: Numbers) -> Numbers:
    """What to take from ``-mean(exponents)`` so that its exponential is right on average over their noise, nats.

    Args:
        exponents: ``eta . T`` of independent simulations with the same parameters, along the last axis, in JAX or NumPy; a single
            one has no correction.
    """
    count = exponents.shape[-1]
    if count < 2:
        return np.zeros(exponents.shape[:-1], exponents.dtype)  # type: ignore[return-value]  # JAX takes it as its own.
    found = correction_for(exponents.var(axis=-1, ddof=1) / count, count)
    if count == 2:
        return found
    away = exponents - exponents.mean(axis=-1, keepdims=True)
    third = (away**3).sum(axis=-1) * (count / ((count - 1) * (count - 2)))
    # Where one simulation of many is far off, its cube would outweigh its square, and draw chains to it.
    return found + (third / (3 * count**2)).clip(-found, found)


def correction_for(variance: Numbers, count: int) -> Numbers:
    """The part of it that the variance makes, from estimated variances of means of so many simulations, nats^2."""
    half, b = 0.5 * variance, (count - 1) / 2
    return half * (1 + half / (2 * (b + 1)) * (1 + 4 * half / (3 * (b + 2))))
