"""Which linear systems oscillate at a wanted frequency? The flagship problem of emergent property inference."""

import math

import diffrax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi

from . import trajectory
from .linear2d import angular_frequency, growth_rate

START = (math.sqrt(0.5), -math.sqrt(0.5))
"""Of the simulated oscillator, as in the publication's Figure 1-figure supplement 3."""

SOLVER_TOLERANCE = 1e-6
"""Relative, of one step of the solver; there is no absolute one below it, since trajectories may shrink far."""


def oscillator(
    *,
    growth_mean: float = 0.0,
    growth_std: float = 0.25,
    frequency_hz: float = 1.0,
    frequency_std_hz: float = 0.1,
    bound: float = 10.0,
    name: str = "dynamics.oscillator",
) -> epi.Problem:
    """Matrices ``A`` of ``dx/dt = A x``, uniform in a box, whose primary eigenvalue oscillates steadily.

    By default the paper's targets: growth rate 0 ± 0.25 per second, angular frequency 2 pi ± 0.2 pi rad/s. The answer
    has two equal modes, ``a12 > 0 > a21`` and its mirror image, and an entropy of 7.0417 nats.

    Args:
        growth_mean: Wanted mean of the real part, in 1/s.
        growth_std: Wanted spread of the real part, in 1/s.
        frequency_hz: Wanted mean of the frequency, in cycles a second.
        frequency_std_hz: Wanted spread of the frequency, in cycles a second.
        bound: Every entry of ``A`` lies in ``[-bound, bound]``, in 1/s.
        name: Printed and exported.

    Raises:
        ValueError: If a spread, the frequency or the bound is not positive, or no matrix in the box is fast enough or
            has the wanted growth rate.

    References:
        Bittner et al., eLife 10:e56265 (2021), Figure 1-figure supplement 1. The frequency's "variance 0.1 Hz^2" in
        its text is, by its own numbers, a standard deviation of 0.1 Hz.
    """
    _check_positive(bound=bound, growth_std=growth_std, frequency_hz=frequency_hz, frequency_std_hz=frequency_std_hz)
    _check_reachable(growth_mean, frequency_hz, bound)
    wanted = epi.EmergentProperty(
        epi.Target(growth_rate, mean=growth_mean, std=growth_std),
        epi.Target(angular_frequency, mean=2 * math.pi * frequency_hz, std=2 * math.pi * frequency_std_hz),
    )
    return epi.Problem(_linear_system, wanted, model_kwargs={"bound": float(bound)}, name=name)


def oscillator_tutorial() -> epi.Problem:
    """The `oscillator` with the wider growth rate, 0 ± 0.5 per second, of the original software's tutorials.

    Its answer has an entropy of 7.7349 nats.
    """
    return oscillator(growth_std=0.5, name="dynamics.oscillator_tutorial")


def oscillator_simulated(
    *,
    growth_mean: float = 0.0,
    growth_std: float = 0.25,
    frequency_hz: float = 1.0,
    frequency_std_hz: float = 0.1,
    bound: float = 10.0,
    duration: float = 1.0,
    num_samples: int = 21,
) -> epi.Problem:
    """The `oscillator` asked of simulations: growth and frequency are measured on a trajectory ``x(t)``.

    The answer is that of the `oscillator`, 7.0417 nats by default: the solver and the measurement err by less than 1e-3.

    Args:
        growth_mean: See `oscillator`, as for the four that follow.
        growth_std: Wanted spread of the growth rate, in 1/s.
        frequency_hz: Wanted mean of the frequency, in cycles a second.
        frequency_std_hz: Wanted spread of the frequency, in cycles a second.
        bound: Every entry of ``A`` lies in ``[-bound, bound]``, in 1/s.
        duration: Of the trajectory, in seconds.
        num_samples: Its samples, the start included.

    Raises:
        ValueError: As `oscillator` does, or if the samples are too few or too far apart for the fastest frequency of the box.
    """
    _check_positive(bound=bound, growth_std=growth_std, frequency_hz=frequency_hz, frequency_std_hz=frequency_std_hz)
    _check_positive(duration=duration)
    _check_reachable(growth_mean, frequency_hz, bound)
    step = duration / max(num_samples - 1, 1)
    # The fastest rotation, of the bound in rad/s, must stay below half a turn a sample.
    if num_samples < 3 or not step * bound < math.pi:
        raise ValueError(
            f"Expected num_samples >= {max(3, math.floor(duration * bound / math.pi) + 2)} for {duration} s of up to "
            f"{bound} rad/s; got {num_samples}."
        )
    wanted = epi.EmergentProperty(
        epi.Target(trajectory.growth_rate.bind(step=step), mean=growth_mean, std=growth_std),
        epi.Target(
            trajectory.angular_frequency.bind(step=step),
            mean=2 * math.pi * frequency_hz,
            std=2 * math.pi * frequency_std_hz,
        ),
    )
    options = {"bound": float(bound), "duration": float(duration), "num_samples": num_samples}
    return epi.Problem(_simulated_system, wanted, model_kwargs=options, name="dynamics.oscillator_simulated")


def _linear_system(bound: float) -> None:
    numpyro.sample("A", dist.Uniform(-bound, bound).expand([2, 2]).to_event(2))


def _simulated_system(bound: float, duration: float, num_samples: int) -> None:
    matrix = numpyro.sample("A", dist.Uniform(-bound, bound).expand([2, 2]).to_event(2))
    times = jnp.linspace(0.0, duration, num_samples, dtype=matrix.dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, matrix: jnp.matmul(matrix, x, precision="highest")),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=jnp.array(START, matrix.dtype),
        args=matrix,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=SOLVER_TOLERANCE, atol=1e-3 * SOLVER_TOLERANCE),
        max_steps=1024,
        # Where the solver gives up, samples are infinite: a failed draw, which is counted and left out.
        throw=False,
    )
    numpyro.deterministic("x", solution.ys)


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"Expected a finite {name} > 0; got {number}.")


def _check_reachable(growth_mean: float, frequency_hz: float, bound: float) -> None:
    # Greatest for a12 = -a21 = bound and a11 = a22, where the imaginary part is the bound itself.
    fastest = bound / (2 * math.pi)
    if not frequency_hz < fastest:
        raise ValueError(
            f"Expected frequency_hz below {fastest:.4g}, the greatest with entries up to {bound}; got {frequency_hz}. "
            "Raise the bound."
        )
    # A complex pair's real part is half the trace.
    if not -bound < growth_mean < bound:
        raise ValueError(f"Expected growth_mean between -{bound} and {bound}, the bound; got {growth_mean}.")
