"""Signals that decay: a statistic and a problem for numpyro_epi, found by entry point once installed."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

__all__ = ["decay", "half_life"]

STEP, NUM_SAMPLES = 0.1, 11
"""Time between two samples of the simulated signal, in seconds, and their number."""


@epi.statistic(unit="s", name="my.half_life")
def half_life(sites: Mapping[str, Array], *, step: float, site: str = "x") -> Float[Array, ""]:
    """Time in which a decaying signal halves: ``-log(2)`` over the least-squares slope of its logarithm.

    Args:
        sites: Must hold the signal, shape [T], positive samples at equal distances.
        step: Time between two samples, in seconds.
        site: Name of the signal's site.

    Returns:
        Half-life in seconds; negative where the signal grows, infinite where it is constant.

    Raises:
        KeyError: If the model has no such site.
    """
    signal = sites[site]
    times = step * (jnp.arange(signal.shape[0]) - (signal.shape[0] - 1) / 2)
    slope = times @ jnp.log(signal) / (times @ times)
    return -math.log(2) / slope


def decay(*, mean: float = 2.0, std: float = 0.2) -> epi.Problem:
    """Time constants of ``x(t) = exp(-t / tau)``, uniform from 0.1 to 10 s, whose signal has the wanted half-life.

    The half-life is ``tau log(2)``, so the answer is known: far from the bounds, ``tau`` is normal with mean
    ``mean / log(2)`` and standard deviation ``std / log(2)``. By default its entropy is 0.1760 nats.

    Args:
        mean: Wanted mean of the half-life, in seconds.
        std: Wanted spread of the half-life, in seconds.

    Raises:
        ValueError: If the spread is not positive.
    """
    wanted = epi.EmergentProperty(epi.Target(half_life.bind(step=STEP), mean=mean, std=std))
    return epi.Problem(_decaying_signal, wanted, name="my.decay")


def _decaying_signal() -> None:
    time_constant = numpyro.sample("tau", dist.Uniform(0.1, 10.0))
    numpyro.deterministic("x", jnp.exp(-STEP * jnp.arange(NUM_SAMPLES) / time_constant))
