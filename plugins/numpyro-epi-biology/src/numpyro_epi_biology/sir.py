"""How contagious, and for how long, must an infection be so that its epidemic peaks and ends as wanted?

Susceptible, infected and removed people of a finite population, day by day: the chemical Langevin approximation (Gillespie
2000, Journal of Chemical Physics 113:297, equation 23) of Kermack and McKendrick's epidemic.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import require_count, require_positive

TRANSMISSION, RECOVERY = (0.05, 1.0), (0.05, 0.5)
"""The prior's supports, 1/day."""


@epi.statistic(unit="days", name="sir.peak_day")
def peak_day(sites: Mapping[str, Array], *, sharpness: float = 50.0) -> Float[Array, ""]:
    """Day of the largest prevalence, with a gradient: mean of the days under ``softmax(sharpness * prevalence / largest)``.

    Args:
        sites: Must hold ``infected``, one number a day, shape [T].
        sharpness: The larger, the nearer to the one day of the largest prevalence, and the more its noise matters.

    Returns:
        Days since the start; zero where the infected only become fewer.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If the sharpness is not positive.
    """
    require_positive(sharpness=sharpness)
    infected = sites["infected"]
    return jax.nn.softmax(sharpness * infected / jnp.max(infected)) @ jnp.arange(
        infected.shape[0], dtype=infected.dtype
    )


@epi.statistic(name="sir.attack_rate")
def attack_rate(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Share of those susceptible at the start who are infected by the last day.

    Args:
        sites: Must hold ``susceptible``, one number a day, shape [T].

    Raises:
        KeyError: If the model has no such site.
    """
    return 1 - sites["susceptible"][-1] / sites["susceptible"][0]


def sir(
    *,
    peak_mean: float = 45.0,
    peak_std: float = 5.0,
    attack_mean: float = 0.6,
    attack_std: float = 0.05,
    population: int = 100_000,
    infected: int = 500,
    num_days: int = 150,
) -> epi.Problem:
    """Rates of ``transmission`` and ``recovery`` of epidemics that peak on day 45 ± 5 and infect 60 ± 5 % in all.

    Both rates are uniform, in [0.05, 1] and [0.05, 0.5] a day. In expectation the attack rate ``a`` of a long epidemic solves
    ``a = 1 - exp(-R0 a)`` with ``R0 = transmission / recovery``, and it begins to grow at ``transmission - recovery``; the
    daily step keeps both exactly. Of the peak's spread, chance alone makes 1.3 days; among ten times fewer people it makes 4.5,
    so that a spread of 5 leaves the rates next to no freedom.

    Args:
        peak_mean: Wanted mean of ``sir.peak_day``, days.
        peak_std: Its wanted spread, of rates and of chance together.
        attack_mean: Wanted mean of ``sir.attack_rate``.
        attack_std: Its wanted spread.
        population: Number of people.
        infected: Those of them who are infected on day 0; the others are susceptible.
        num_days: Days that are simulated.

    Raises:
        ValueError: If a number is not positive, a count no integer, or the infected not fewer than the population, the
            peak not within the days, or the attack rate not below 1.

    References:
        Kermack and McKendrick, Proceedings of the Royal Society A 115:700 (1927).
    """
    require_positive(peak_mean=peak_mean, peak_std=peak_std, attack_mean=attack_mean, attack_std=attack_std)
    require_count(1, population=population, infected=infected, num_days=num_days)
    if not infected < population:
        raise ValueError(f"Expected infected below the population of {population}; got {infected}.")
    if not peak_mean < num_days:
        raise ValueError(f"Expected peak_mean below the {num_days} days that are simulated; got {peak_mean}.")
    if not attack_mean < 1:
        raise ValueError(f"Expected attack_mean below 1; got {attack_mean}.")
    wanted = epi.EmergentProperty(
        epi.Target(peak_day, mean=peak_mean, std=peak_std),
        epi.Target(attack_rate, mean=attack_mean, std=attack_std),
    )
    options = {"population": population, "infected": infected, "num_days": num_days}
    return epi.Problem(
        _epidemic,
        wanted,
        parameters=("transmission", "recovery"),
        model_kwargs=options,
        name="biology.sir",
        # Where an epidemic hardly grows, its peak is all chance, so fits begin at the prior, far from the targets.
        max_steps=4000,
    )


def _epidemic(population: int, infected: int, num_days: int) -> None:
    transmission = numpyro.sample("transmission", dist.Uniform(*TRANSMISSION))
    recovery = numpyro.sample("recovery", dist.Uniform(*RECOVERY))
    chance = numpyro.sample("chance", dist.Normal().expand([num_days, 2]).to_event(2))
    start = jnp.array([population - infected, infected], transmission.dtype)

    def day(state: Float[Array, "2"], chance: Float[Array, "2"]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        susceptible, ill = state
        force = transmission / population
        # Time spent ill that day, over all people: exact while the susceptible stay as many.
        ill_days = ill * _mean_growth(force * susceptible - recovery)
        means = jnp.stack([-susceptible * jnp.expm1(-force * ill_days), recovery * ill_days])
        events = means + _root(means) * chance
        infections = jnp.clip(events[0], 0.0, susceptible)
        recoveries = jnp.clip(events[1], 0.0, ill + infections)
        state = jnp.stack([susceptible - infections, ill + infections - recoveries])
        return state, state

    _, states = jax.lax.scan(day, start, chance)
    susceptible, ill = jnp.concatenate([start[None], states]).T
    numpyro.deterministic("susceptible", susceptible)
    numpyro.deterministic("infected", ill)


def _mean_growth(rate: Float[Array, ""]) -> Float[Array, ""]:
    """``(exp(r) - 1) / r``, the mean of ``exp(r t)`` over a day; one where r is zero."""
    small = jnp.abs(rate) < 1e-3
    # The inner where keeps the unused branch's slope finite.
    away = jnp.where(small, 1.0, rate)
    return jnp.where(small, 1 + rate / 2 + rate**2 / 6, jnp.expm1(away) / away)


def _root(counts: Float[Array, "2"]) -> Float[Array, "2"]:
    """Standard deviation of as many independent events; zero, with zero gradient, where there are none."""
    return jnp.where(counts > 0, jnp.sqrt(jnp.where(counts > 0, counts, 1.0)), 0.0)
