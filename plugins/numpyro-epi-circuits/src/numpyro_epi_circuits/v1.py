"""Which input noise makes the excitatory cells of visual cortex fluctuate by a wanted amount?

The stochastic stabilised supralinear network of four populations, excitatory and three inhibitory (parvalbumin,
somatostatin, VIP), of Bittner et al. 2021 (eLife 10:e56265, Methods, "Primary visual cortex"), in the units of its code:
rates in 100 Hz, time in ms.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
TIME_CONSTANT, NOISE_TIME, MEASURED = 1.0, 5.0, 25.0
"""ms; the last is how much of a simulation's end is measured."""

LARGEST_RATE = 1000.0
"""Where rates are cut off, in 100 Hz."""


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
    step: float = 0.5,
    duration: float = 100.0,
    weights: Sequence[Sequence[float]] = WEIGHTS,
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
        step: Euler step, ms. The published one is long: by a tenth of it a fluctuation of 6.5 Hz is one of 5.0 Hz.
        duration: Of a simulation, ms, the last 25 of which are measured; one of the published scripts has 75.
        weights: Of the connections, rows receive, in the order E, P, S, V. The printed ones are rounded, and half a unit of
            their last digit can double the fluctuation.

    Raises:
        ValueError: If a number is not positive, the contrast is not between 0 and 1, the weights are not 4 x 4 finite numbers,
            or steps do not fill the duration and its measured end.

    References:
        Bittner et al., eLife 10:e56265 (2021), Figure 3.
    """
    check_positive(fluctuation_hz=fluctuation_hz, fluctuation_std_hz=fluctuation_std_hz, bound=bound)
    check_positive(step=step, duration=duration)
    check_counts(num_trials=num_trials)
    if not 0 <= contrast <= 1:
        raise ValueError(f"Expected a contrast from 0 to 1; got {contrast}.")
    steps = {"the duration": duration / step, "its last 25 ms": MEASURED / step}
    for name, number in steps.items():
        if not math.isclose(number, round(number)):
            raise ValueError(f"Expected a whole number of steps in {name}; got step={step}, duration={duration}.")
    if duration < MEASURED:
        raise ValueError(f"Expected a duration of 25 ms or more, which are measured; got {duration}.")
    try:
        matrix = np.array(weights, float)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.all(np.isfinite(matrix)):
        raise ValueError(f"Expected weights of 4 rows of 4 finite numbers; got {weights!r}.")
    wanted = epi.EmergentProperty(
        epi.Target(excitatory_fluctuation, mean=fluctuation_hz, std=fluctuation_std_hz),
    )
    return epi.Problem(
        _network,
        wanted,
        parameters=("sigma",),
        model_kwargs={
            "contrast": float(contrast),
            "num_trials": num_trials,
            "bound": float(bound),
            "step": float(step),
            "num_steps": round(duration / step),
            "weights": tuple(map(tuple, matrix.tolist())),
        },
        name="circuits.v1_ssn",
        # A simulation is expensive, and averages trials already.
        num_draws=100,
        max_steps=2000,
    )


def _network(
    contrast: float,
    num_trials: int,
    bound: float,
    step: float,
    num_steps: int,
    weights: tuple[tuple[float, ...], ...],
) -> None:
    sigma = numpyro.sample("sigma", dist.Uniform(0.0, bound).expand([4]).to_event(1))
    start = numpyro.sample("start", dist.Uniform(0.1, 0.25).expand([num_trials, 4]).to_event(2))
    noise = numpyro.sample("noise", dist.Normal().expand([num_steps, num_trials, 4]).to_event(3))
    given = _Given(contrast, step, weights)
    excitatory = _simulated(sigma, start, noise, given, measure=_excitatory)
    numpyro.deterministic("excitatory_rate", 100.0 * excitatory.T)


class _Given(NamedTuple):
    contrast: float
    step: float
    weights: tuple[tuple[float, ...], ...]


def _simulated(
    sigma: Float[Array, "4"],
    start: Float[Array, "trials 4"],
    noise: Float[Array, "steps trials 4"],
    given: _Given,
    *,
    measure: Callable[..., Array],
) -> Array:
    """What is measured of rates and inputs' noise, over the last 25 ms."""
    weights = jnp.array(given.weights, sigma.dtype)
    inputs = jnp.array(BASELINE, sigma.dtype) + given.contrast * jnp.array(CONTRAST_INPUT, sigma.dtype)
    # dB has variance dt.
    scale = math.sqrt(2 * NOISE_TIME * given.step) * math.sqrt(1 + TIME_CONSTANT / NOISE_TIME) / NOISE_TIME * sigma

    def change(t: Any, state: tuple[Array, Array], noise: Array) -> tuple[Array, Array]:
        """Of rates and inputs' noise in one step."""
        rates, epsilon = state
        # A GPU's shorter products would make the fluctuations 4 to 9 % smaller.
        recurrent = jnp.matmul(rates, weights.T, precision="highest")
        drive = jnp.square(jax.nn.relu(recurrent + inputs + epsilon))
        rates_change = jnp.minimum(given.step / TIME_CONSTANT * (drive - rates), LARGEST_RATE - rates)
        return rates_change, scale * noise[jnp.asarray(t, int)] - given.step / NOISE_TIME * epsilon

    state = (start, jnp.zeros_like(start))
    return euler(change, state, noise, len(noise), num_kept=round(MEASURED / given.step), measure=measure)


def _excitatory(t: Array, state: tuple[Array, Array], noise: Array) -> Float[Array, " trials"]:
    return state[0][:, 0]
