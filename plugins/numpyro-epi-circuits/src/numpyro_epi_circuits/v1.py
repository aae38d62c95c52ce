"""Which input noise makes the excitatory cells of visual cortex fluctuate by a wanted amount?

The stochastic stabilised supralinear network of four populations, excitatory and three inhibitory (parvalbumin,
somatostatin, VIP), of Bittner et al. 2021 (eLife 10:e56265, Methods, "Primary visual cortex"), in the units of its code:
rates in 100 Hz, time in ms.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import check_counts, check_positive
from ._euler import euler

WEIGHTS = (
    (2.18, -1.19, -0.594, -0.229),
    (1.66, -0.651, -0.680, -0.242),
    (0.895, -5.22e-3, -1.51e-4, -0.761),
    (3.34, -2.31, -0.254, -2.52e-4),
)
"""Rows receive, columns send, in the order E, P, S, V."""

BASELINE, CONTRAST_INPUT = (0.416, 0.429, 0.491, 0.486), (0.359, 0.403, 0.0, 0.0)
STEP, TIME_CONSTANT, NOISE_TIME = 0.5, 1.0, 5.0
"""ms."""

NUM_STEPS, NUM_MEASURED, LARGEST_RATE = 200, 50, 1000.0
"""Euler steps; the last of them that are measured; where rates are cut off, 100 Hz."""


@epi.statistic(unit="Hz", name="v1.excitatory_fluctuation")
def excitatory_fluctuation(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Standard deviation over time of the excitatory rate, averaged over trials.

    Args:
        sites: Must hold ``excitatory_rate``, in Hz, shape [trials, T].

    Raises:
        KeyError: If the model has no such site.
    """
    variance = jnp.var(sites["excitatory_rate"], axis=-1)
    # The square root's slope at zero must not become infinite where a trial does not move.
    return jnp.mean(jnp.sqrt(jnp.where(variance > 0, variance, 1e-12)))


def v1_ssn(
    *,
    fluctuation_hz: float = 5.0,
    fluctuation_std_hz: float = 1.0,
    contrast: float = 0.5,
    num_trials: int = 100,
    bound: float = 0.005,
) -> epi.Problem:
    """Noise of the four populations' inputs in [0, 0.005], such that ``v1.excitatory_fluctuation`` is 5 ± 1 Hz.

    The answer's entropy is about -22.23 nats (-22.46 for 10 Hz, where the noise of a simulation
    matters); the box has -21.19.

    Args:
        fluctuation_hz: Wanted mean.
        fluctuation_std_hz: Wanted spread over parameters, of the average over trials.
        contrast: Of the stimulus, from 0 to 1.
        num_trials: Trials that are averaged.
        bound: Largest noise, in the code's units; the paper's text says 0.5, which neither of its unit systems allows.

    Raises:
        ValueError: If a number is not positive, or the contrast is not between 0 and 1.

    References:
        Bittner et al., eLife 10:e56265 (2021), Figure 3.
    """
    check_positive(fluctuation_hz=fluctuation_hz, fluctuation_std_hz=fluctuation_std_hz, bound=bound)
    check_counts(num_trials=num_trials)
    if not 0 <= contrast <= 1:
        raise ValueError(f"Expected a contrast from 0 to 1; got {contrast}.")
    wanted = epi.EmergentProperty(
        epi.Target(excitatory_fluctuation, mean=fluctuation_hz, std=fluctuation_std_hz),
    )
    return epi.Problem(
        _network,
        wanted,
        parameters=("sigma",),
        model_kwargs={"contrast": float(contrast), "num_trials": num_trials, "bound": float(bound)},
        name="circuits.v1_ssn",
        # A simulation is expensive, and averages trials already.
        num_draws=100,
        max_steps=2000,
    )


def _network(contrast: float, num_trials: int, bound: float) -> None:
    sigma = numpyro.sample("sigma", dist.Uniform(0.0, bound).expand([4]).to_event(1))
    start = numpyro.sample("start", dist.Uniform(0.1, 0.25).expand([num_trials, 4]).to_event(2))
    steps = numpyro.sample("noise", dist.Normal().expand([NUM_STEPS, num_trials, 4]).to_event(3))
    weights = jnp.array(WEIGHTS, sigma.dtype)
    inputs = jnp.array(BASELINE, sigma.dtype) + contrast * jnp.array(CONTRAST_INPUT, sigma.dtype)
    # dB has variance dt.
    scale = math.sqrt(2 * NOISE_TIME * STEP) * math.sqrt(1 + TIME_CONSTANT / NOISE_TIME) / NOISE_TIME * sigma

    def change(t: Any, state: tuple[Array, Array], noise: Array) -> tuple[Array, Array]:
        """Of rates and inputs' noise in one step."""
        rates, epsilon = state
        drive = jnp.square(jax.nn.relu(rates @ weights.T + inputs + epsilon))
        rates_change = jnp.minimum(STEP / TIME_CONSTANT * (drive - rates), LARGEST_RATE - rates)
        return rates_change, scale * noise[jnp.asarray(t, int)] - STEP / NOISE_TIME * epsilon

    excitatory = euler(
        change, (start, jnp.zeros_like(start)), steps, NUM_STEPS, num_kept=NUM_MEASURED, measure=_excitatory
    )
    numpyro.deterministic("excitatory_rate", 100.0 * excitatory.T)


def _excitatory(t: Array, state: tuple[Array, Array], noise: Array) -> Array:
    return state[0][:, 0]
