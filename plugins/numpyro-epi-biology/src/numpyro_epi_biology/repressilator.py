"""Which promoters, lifetimes and cooperativity give a ring of three repressors the period that was seen in cells?

The symmetric dimensionless model of Elowitz and Leibler 2000 (Nature 403:335, Box 1), in its symbols: protein ``p_i`` of each
gene in units of the repressor concentration that halves transcription, time in units of the mRNA's lifetime.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import require_positive
from ._rotation import hann, turns_per_sample
from ._solve import solve

DURATION, NUM_SAMPLES = 24.0, 65
"""Of a trajectory, in units of the two lifetimes' sum ``1 + 1 / beta``, of which one period takes 4 to 14; its samples."""

LOG10_ALPHA, BETA, HILL = (0.0, 3.0), (0.1, 10.0), (1.5, 4.0)
"""The prior's supports."""


@epi.statistic(unit="mRNA lifetimes", name="repressilator.period")
def period(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Time in which the three proteins' logarithms turn once around their mean, without the first quarter of the samples.

    The turn is that of ``x_1 + w x_2 + w^2 x_3`` with ``w = exp(2 pi i / 3)``: in a linear system it turns at the imaginary
    part of an eigenvalue, whether it grows or decays. So the period goes smoothly through the onset of oscillations.

    Args:
        sites: Must hold ``time``, equally spaced and in mRNA lifetimes, shape [T], and ``log_protein``, shape [T, 3].

    Returns:
        The period; infinite where nothing turns.

    Raises:
        KeyError: If the model has no such sites.
    """
    time, (x1, x2, x3) = sites["time"], sites["log_protein"].T
    first = time.shape[0] // 4
    # Repression and the delay of a sixth of a turn put each gene a third of a turn ahead of the one that represses it.
    turns = turns_per_sample((x1 - (x2 + x3) / 2)[first:], ((x3 - x2) * (math.sqrt(3) / 2))[first:])
    return (time[-1] - time[0]) / (time.shape[0] - 1) / turns


@epi.statistic(name="repressilator.amplitude")
def amplitude(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Standard deviation over time of the proteins' natural logarithms in the second half; zero where they die out.

    Variances are averaged over the three proteins and over time under Hann's window, so that an unfinished period matters little.

    Args:
        sites: Must hold ``log_protein``, equally spaced, shape [T, 3].

    Raises:
        KeyError: If the model has no such site.
    """
    late = sites["log_protein"][sites["log_protein"].shape[0] // 2 :]
    weights = hann(late.shape[0], late.dtype)
    variance = jnp.mean(weights @ jnp.square(late - weights @ late))
    # The square root's slope at zero must not become infinite where nothing moves.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def repressilator(
    *,
    period_mean: float = 55.0,
    period_std: float = 14.0,
    amplitude_mean: float = 1.5,
    amplitude_std: float = 0.3,
    leak: float = 1e-3,
) -> epi.Problem:
    """Promoter strength, protein decay and Hill coefficient of oscillations that last, with a period of 55 ± 14.

    Parameters are ``log10_alpha`` in [0, 3], ``log10_beta`` in [-1, 1] and ``n`` in [1.5, 4], all uniform. The period is
    the one seen in cells, 160 ± 40 minutes, at the model's mRNA half-life of 2 minutes, a lifetime of 2.9.

    Args:
        period_mean: Wanted mean of ``repressilator.period``, in mRNA lifetimes.
        period_std: Its wanted spread.
        amplitude_mean: Wanted mean of ``repressilator.amplitude``; without a unit.
        amplitude_std: Its wanted spread.
        leak: ``alpha0 / alpha``, transcription that no repressor stops.

    Raises:
        ValueError: If a target or spread is not positive, or the leak is not between 0 and 1.

    References:
        Elowitz and Leibler, Nature 403:335 (2000), Box 1 and Figure 2.
    """
    require_positive(
        period_mean=period_mean, period_std=period_std, amplitude_mean=amplitude_mean, amplitude_std=amplitude_std
    )
    if not 0 <= leak < 1:
        raise ValueError(f"Expected a leak of at least 0 and below 1; got {leak}.")
    wanted = epi.EmergentProperty(
        epi.Target(period, mean=period_mean, std=period_std),
        epi.Target(amplitude, mean=amplitude_mean, std=amplitude_std),
    )
    return epi.Problem(_ring, wanted, model_kwargs={"leak": float(leak)}, name="biology.repressilator", num_draws=200)


def _ring(leak: float) -> None:
    alpha = 10 ** numpyro.sample("log10_alpha", dist.Uniform(*LOG10_ALPHA))
    beta = 10 ** numpyro.sample("log10_beta", dist.Uniform(math.log10(BETA[0]), math.log10(BETA[1])))
    n = numpyro.sample("n", dist.Uniform(*HILL))
    unit = 1 + 1 / beta
    # Near the state without oscillations, but not symmetric: from there they would not start.
    first = alpha ** (1 / (n + 1)) * (jnp.e * alpha ** (1 / 3)) ** jnp.array([0.5, 0.0, -0.5], alpha.dtype)
    times = jnp.linspace(0.0, DURATION, NUM_SAMPLES, dtype=alpha.dtype)
    constants = (alpha, beta, n, unit, leak * alpha)
    log_protein = solve(_slope, jnp.concatenate([first, first]), times, constants, measure=_log_protein)
    numpyro.deterministic("time", unit * times)
    numpyro.deterministic("log_protein", log_protein)


def _slope(t: Array, state: Float[Array, "6"], constants: tuple[Array, ...]) -> Float[Array, "6"]:
    """Change of three mRNAs and three proteins over one unit, the sum of the two lifetimes."""
    alpha, beta, n, unit, alpha0 = constants
    m, p = state[:3], state[3:]
    # p^n, at half the cost of a power's gradient.
    repressor = jnp.exp(n * jnp.log(jnp.roll(p, 1)))
    return unit * jnp.concatenate([alpha / (1 + repressor) + alpha0 - m, beta * (m - p)])


def _log_protein(t: Array, state: Float[Array, "6"], constants: tuple[Array, ...]) -> Float[Array, "3"]:
    return jnp.log(state[3:])
