"""Which rates of birth, predation and death make hares and lynxes as many, and their cycles as long, as they were?

The equations of Lotka and Volterra, ``dx/dt = alpha x - beta x y`` for the prey and ``dy/dt = delta x y - gamma y`` for the
predator, with time in years and animals in thousands. Means over a period are ``gamma / delta`` and ``alpha / beta`` whatever
the amplitude, and small cycles take ``2 pi / sqrt(alpha gamma)`` (Murray 2002, Mathematical Biology I, section 3.1).
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

NUM_TURNS, SAMPLES_PER_TURN = 4, 16
"""Of a trajectory, in turns of a small cycle."""

RATES = {"alpha": 1.0, "beta": 0.05, "gamma": 1.0, "delta": 0.05}
"""Medians of the prior: prey's growth, 1/year; predation, 1/(year thousand); predator's death and growth, likewise."""

LOG_SPREAD = 0.5
"""Standard deviation of every rate's logarithm in the prior."""


@epi.statistic(name="predator_prey.log_population", dims=("species",), coords={"species": ("prey", "predator")})
def log_population(sites: Mapping[str, Array]) -> Float[Array, "2"]:
    """Natural logarithm of the two populations' means over time, under Hann's window.

    Args:
        sites: Must hold ``prey`` and ``predator``, equally spaced over some periods, shape [T] each.

    Returns:
        Logarithms of the means, in the sites' unit: prey, then predator.

    Raises:
        KeyError: If the model has no such sites.
    """
    populations = jnp.stack([sites["prey"], sites["predator"]])
    return jnp.log(populations @ hann(populations.shape[1], populations.dtype))


@epi.statistic(name="predator_prey.log_period")
def log_period(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Natural logarithm of the time in which the populations' logarithms turn once around those of their means.

    Each axis is divided by the standard deviation along it, so that small cycles turn at one speed.

    Args:
        sites: Must hold ``time``, equally spaced, and ``prey`` and ``predator``, shape [T] each.

    Returns:
        Logarithm of the period, in the unit of the time; it goes down the prey's and up the predator's side.

    Raises:
        KeyError: If the model has no such sites.
    """
    time = sites["time"]
    logs = jnp.log(jnp.stack([sites["prey"], sites["predator"]])) - log_population(sites)[:, None]
    weights = hann(time.shape[0], logs.dtype)
    x, y = logs / jnp.sqrt(jnp.square(logs) @ weights)[:, None]
    return jnp.log((time[-1] - time[0]) / (time.shape[0] - 1) / turns_per_sample(x, y))


def predator_prey(
    *,
    prey: float = 34.0,
    predator: float = 20.0,
    period: float = 10.0,
    population_spread: float = 0.2,
    period_spread: float = 0.1,
    displacement: float = 0.1,
) -> epi.Problem:
    """Rates whose simulated populations have means near 34 and 20 thousand and cycles of about 10 years.

    The targets are means and spreads of natural logarithms, so a spread of 0.1 is 10 %. For small cycles those logarithms
    are linear in the rates' logarithms, ``log gamma - log delta``, ``log alpha - log beta`` and ``log 2 pi - (log alpha + log
    gamma) / 2``, and the prior is normal in these: the answer is a normal distribution in closed form. Its entropy relative
    to the prior is -5.271 nats by default. Cycles of the default size are longer than small ones by 0.1 %,
    which is worth 0.01 nats.

    Args:
        prey: Wanted geometric mean of the prey's mean, thousands; hares of the Hudson's Bay Company, 1900 to 1920.
        predator: Wanted geometric mean of the predator's mean, thousands; its lynxes.
        period: Wanted geometric mean of the period, years.
        population_spread: Wanted standard deviation of both populations' logarithms.
        period_spread: Wanted standard deviation of the period's logarithm.
        displacement: Logarithm of the prey at the start over its equilibrium, where the predator starts: the cycle's size.

    Raises:
        ValueError: If an argument is not positive, or the displacement above 2, where a cycle is so slow that the four of a
            small one do not hold two of it.

    References:
        Carpenter, "Predator-Prey Population Dynamics: the Lotka-Volterra model in Stan" (2018), section "Data".
    """
    require_positive(prey=prey, predator=predator, period=period, displacement=displacement)
    require_positive(population_spread=population_spread, period_spread=period_spread)
    if displacement > 2:
        raise ValueError(f"Expected displacement <= 2; got {displacement}.")
    wanted = epi.EmergentProperty(
        epi.Target(log_population, mean=(math.log(prey), math.log(predator)), std=population_spread),
        epi.Target(log_period, mean=math.log(period), std=period_spread),
    )
    return epi.Problem(_cycle, wanted, model_kwargs={"displacement": float(displacement)}, name="biology.predator_prey")


def _cycle(displacement: float) -> None:
    alpha, beta, gamma, delta = (
        numpyro.sample(name, dist.LogNormal(math.log(median), LOG_SPREAD)) for name, median in RATES.items()
    )
    # Time in 1 / sqrt(alpha gamma) and populations in their equilibria leave one number, alpha / gamma.
    frequency, ratio = jnp.sqrt(alpha * gamma), jnp.sqrt(alpha / gamma)
    num_samples = NUM_TURNS * SAMPLES_PER_TURN + 1
    times = jnp.linspace(0.0, 2 * math.pi * NUM_TURNS, num_samples, dtype=alpha.dtype)
    logs = solve(_slope, jnp.array([displacement, 0.0], alpha.dtype), times, ratio)
    numpyro.deterministic("time", times / frequency)
    numpyro.deterministic("prey", gamma / delta * jnp.exp(logs[:, 0]))
    numpyro.deterministic("predator", alpha / beta * jnp.exp(logs[:, 1]))


def _slope(t: Array, logs: Float[Array, "2"], ratio: Float[Array, ""]) -> Float[Array, "2"]:
    prey, predator = jnp.exp(logs)
    return jnp.stack([ratio * (1 - predator), (prey - 1) / ratio])
