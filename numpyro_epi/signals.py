"""What is measured on a sampled signal. Add a statistic here with ``@statistic`` and one entry-point line.

Time series are equally spaced; the options say by how much.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._arguments import check_positive
from ._products import with_full_products
from ._types import Scalar, Sites
from .statistics import statistic

__all__ = [
    "accuracy",
    "correlation",
    "crossing_rate",
    "dominant_frequency",
    "fano_factor",
    "mean",
    "moving_average",
    "phase_difference",
    "power",
    "spectral_amplitude",
    "spectral_mean_frequency",
    "standard_deviation",
]


def moving_average(signal: Float[Array, " T"], window: int) -> Float[Array, " S"]:
    """Means of every ``window`` successive samples, ``T - window + 1`` of them.

    Raises:
        ValueError: If the window is shorter than one sample or longer than the signal.
    """
    if not 1 <= window <= len(signal):
        raise ValueError(f"Expected a window of 1 to {len(signal)} samples; got {window}.")
    # Not jnp.convolve: jaxlib 0.10.2 crashes on the gradient of a batched convolution inside a loop on the CPU.
    count = len(signal) - window + 1
    return jnp.mean(jnp.stack([signal[i : i + count] for i in range(window)]), axis=0)


@with_full_products
def spectral_amplitude(
    signal: Float[Array, " T"], *, step: float, highest: float, resolution: float
) -> tuple[Float[Array, " F"], Float[Array, " F"]]:
    """Amplitudes ``|sum_n y_n exp(-2 pi i f n step)|`` of a signal less its mean, at 0, resolution, ..., highest.

    Args:
        signal: Equally spaced samples.
        step: Time between two samples, in the inverse of the frequencies' unit.
        highest: Highest frequency looked at; the sampling can show none above ``1 / (2 step)``.
        resolution: Difference between two frequencies; any, since the sum is not a fast transform.

    Returns:
        The frequencies, and the amplitudes in the signal's unit; the gradient where one is zero is zero.

    Raises:
        ValueError: If a number is not positive, or the highest frequency is above what the sampling can show.
    """
    check_positive(step=step, highest=highest, resolution=resolution)
    _check_sampling(step, highest=highest)
    frequencies = resolution * jnp.arange(math.floor(highest / resolution + 1e-6) + 1, dtype=signal.dtype)
    phase = 2 * jnp.pi * step * frequencies[:, None] * jnp.arange(signal.shape[0], dtype=signal.dtype)
    centred = signal - jnp.mean(signal)
    power = jnp.square(jnp.cos(phase) @ centred) + jnp.square(jnp.sin(phase) @ centred)
    return frequencies, jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1.0)), 0.0)


@with_full_products
def spectral_mean_frequency(
    signal: Float[Array, " T"], *, step: float, highest: float, resolution: float, sharpness: float
) -> Scalar:
    """Mean of the frequencies under ``softmax(sharpness * amplitude)``: the peak of the spectrum, with a gradient.

    See `spectral_amplitude` for the arguments. The sharper, the nearer to the peak, and the shorter the distance over which
    the gradient knows of another one; it is in the inverse of the signal's unit.

    References:
        Bittner et al. 2021, eLife 10:e56265, Methods, "STG model".
    """
    frequencies, amplitude = spectral_amplitude(signal, step=step, highest=highest, resolution=resolution)
    return jax.nn.softmax(sharpness * amplitude) @ frequencies


@statistic(unit="cycles per time")
def dominant_frequency(
    sites: Sites, *, site: str, step: float, highest: float, resolution: float, sharpness: float = 10.0
) -> Scalar:
    """The frequency at which a signal of any amplitude swings most; see `spectral_mean_frequency`.

    Before the softmax the spectrum is divided by its largest amplitude, so ``sharpness`` has no unit. A signal that never
    moves has the mean of all frequencies.
    """
    frequencies, amplitude = spectral_amplitude(sites[site], step=step, highest=highest, resolution=resolution)
    largest = jnp.max(amplitude)
    relative = amplitude / jnp.where(largest > 0, largest, 1.0)
    # Squared, distances to the peak count twice near it.
    return jax.nn.softmax(sharpness * jnp.square(relative)) @ frequencies


@statistic()
def power(sites: Sites, *, site: str, step: float, lowest: float, highest: float) -> Array:
    """Share of a signal's variance that swings at frequencies from lowest to highest, in its unit squared.

    The sum of the one-sided periodogram over the frequencies of the signal's own Fourier transform in that band, along its
    last axis; all frequencies give the variance.

    Raises:
        ValueError: If ``step`` is not positive, or no frequency of the transform lies in the band.
    """
    signal = sites[site]
    transformed, frequencies = _transformed(signal, step)
    chosen = (frequencies >= lowest * (1 - 1e-6)) & (frequencies <= highest * (1 + 1e-6))
    if not chosen.any():
        # A single sample has no frequency at all.
        known = f"the multiples of {frequencies[0]:.6g} up to {frequencies[-1]:.6g}" if len(frequencies) else "none"
        raise ValueError(
            f"Expected a band that holds a frequency of {signal.shape[-1]} samples, {known}; got {lowest} to {highest}."
        )
    # Every frequency but the sampling's own half stands for its negative too.
    twice = np.where(np.isclose(frequencies * step, 0.5), 1.0, 2.0) * chosen
    squares = jnp.square(transformed.real) + jnp.square(transformed.imag)
    return squares @ jnp.asarray(twice, squares.dtype) / signal.shape[-1] ** 2


@statistic(unit="rad")
def phase_difference(sites: Sites, *, first: str, second: str, step: float, frequency: float) -> Array:
    """By how much the first signal is ahead of the second one at a frequency, from -pi to pi, along their last axis.

    It jumps between its ends: a target near one of them wants the difference of the first from the second's negative. The
    gradient where one of the signals has nothing at this frequency is zero.

    Raises:
        ValueError: If ``step`` or ``frequency`` is not positive, or the frequency above half the sampling rate.
    """
    check_positive(step=step, frequency=frequency)
    _check_sampling(step, frequency=frequency)
    x, y = (sites[name] - jnp.mean(sites[name], axis=-1, keepdims=True) for name in (first, second))
    angle = 2 * jnp.pi * step * frequency * jnp.arange(x.shape[-1], dtype=x.dtype)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    (a, b), (c, d) = ((signal @ cos, -(signal @ sin)) for signal in (x, y))
    real, imaginary = a * c + b * d, b * c - a * d
    moves = jnp.square(real) + jnp.square(imaginary) > 0
    return jnp.where(moves, jnp.arctan2(imaginary, jnp.where(moves, real, 1.0)), 0.0)


@statistic(unit="1 per time", differentiable=False)
def crossing_rate(sites: Sites, *, site: str, step: float, threshold: float) -> Array:
    """How often per time a signal rises through a threshold, along its last axis: the rate of spikes or of bursts.

    A count, which has no gradient.

    Raises:
        ValueError: If ``step`` is not positive.
    """
    check_positive(step=step)
    above = sites[site] > threshold
    count = jnp.sum(above[..., 1:] & ~above[..., :-1], axis=-1)
    return count / (step * (above.shape[-1] - 1))


@statistic()
def accuracy(sites: Sites, *, right: str, wrong: str, sharpness: float = 100.0) -> Array:
    """Share of trials, along the last axis, whose right choice has more evidence than the wrong one; one site each.

    A trial counts by the logistic function of ``sharpness`` times the difference, which has a gradient: the sharper, the nearer
    to a count, and the fewer trials give a gradient. It is in the inverse of the sites' unit.
    """
    return jnp.mean(jax.nn.sigmoid(sharpness * (sites[right] - sites[wrong])), axis=-1)


@statistic()
def mean(sites: Sites, *, site: str) -> Array:
    """Mean along a site's last axis, in its unit: of a rate over time, or over trials."""
    return jnp.mean(sites[site], axis=-1)


@statistic()
def standard_deviation(sites: Sites, *, site: str) -> Array:
    """Standard deviation along a site's last axis, in its unit; the gradient of a signal that never moves is zero."""
    variance = jnp.var(sites[site], axis=-1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


@statistic()
def fano_factor(sites: Sites, *, site: str) -> Array:
    """Variance over mean along a site's last axis, of a signal whose mean is positive: one for Poisson counts."""
    return jnp.var(sites[site], axis=-1) / jnp.mean(sites[site], axis=-1)


@statistic()
def correlation(sites: Sites, *, first: str, second: str) -> Array:
    """Pearson's correlation of two sites along their last axis; NaN where one of them never moves."""
    x, y = (sites[name] - jnp.mean(sites[name], axis=-1, keepdims=True) for name in (first, second))
    return jnp.sum(x * y, axis=-1) / jnp.sqrt(jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1))


def _check_sampling(step: float, **frequencies: float) -> None:
    for name, number in frequencies.items():
        if number * step > 0.5:
            raise ValueError(f"Expected {name} <= {0.5 / step:.6g}, half the sampling rate; got {number}.")


def _transformed(signal: Array, step: float) -> tuple[Array, np.ndarray]:
    """Fourier transform along the last axis without its mean, and the frequencies, which are known before it."""
    check_positive(step=step)
    return jnp.fft.rfft(signal)[..., 1:], np.fft.rfftfreq(signal.shape[-1], step)[1:]
