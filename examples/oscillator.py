"""Which two-dimensional linear systems oscillate at 1 Hz, and what do their parameters have in common?

The flagship problem of emergent property inference (Bittner et al. 2021, eLife 10:e56265, Figure 1-figure supplement
1), from the model to the figures. Run it with ``--quick`` for a rough answer in less than a minute.
"""

import argparse
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import numpyro_epi as epi


# 1. The model. Time is in seconds, so the four entries of A are in 1/s. The prior says where to look: nothing else
#    about the parameters is decided beforehand.
def linear_system():
    """The system matrix A of dx/dt = A x."""
    numpyro.sample("A", dist.Uniform(-10.0, 10.0).expand([2, 2]).to_event(2))


# 2. What is measured on one draw. With half the trace, and the determinant of what is left, the eigenvalues of A are
#    half_trace +- sqrt(discriminant): complex, so that x oscillates, where the discriminant is negative.
@epi.statistic(unit="1/s")
def growth_rate(sites):
    """Real part of the leading eigenvalue: positive where oscillations grow."""
    half_trace, discriminant = half_trace_and_discriminant(sites["A"])
    return half_trace + sqrt_of_positive_part(discriminant)


@epi.statistic(unit="rad/s")
def angular_frequency(sites):
    """Imaginary part of the leading eigenvalue: 2 pi is one cycle a second."""
    _, discriminant = half_trace_and_discriminant(sites["A"])
    return sqrt_of_positive_part(-discriminant)


def half_trace_and_discriminant(matrix):
    """What the eigenvalues are made of."""
    (a11, a12), (a21, a22) = matrix
    return (a11 + a22) / 2, jnp.square((a11 - a22) / 2) + a12 * a21


def sqrt_of_positive_part(x):
    """The square root, zero below zero; the inner where keeps the slope of the unused branch finite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def main():
    """Ask, check, fit, look."""
    parser = argparse.ArgumentParser(description="Linear systems that oscillate at 1 Hz.")
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for figures and data (default: out)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # 3. The property: neither growing nor decaying on average, at 1 +- 0.1 Hz.
    one_hertz = 2 * jnp.pi
    steady = epi.Target(growth_rate, mean=0.0, std=0.25)
    prop = epi.EmergentProperty(steady, epi.Target(angular_frequency, mean=one_hertz, std=0.1 * one_hertz))
    problem = epi.Problem(linear_system, prop)

    # 4. A minute with the doctor may save an hour of fitting.
    print(problem.check(jax.random.key(0)), "\n")

    # 5. The fit. What comes back says how it ended, and how well each constraint holds on fresh draws.
    quick = {"start": epi.starts.Prior(), "max_steps": 100, "num_draws": 100}
    result = epi.fit(jax.random.key(1), problem, **(quick if arguments.quick else {}))
    print(result, "\n")

    # 6. The answer. The diagonal nearly cancels (no growth), and the off-diagonal entries have opposite signs
    #    (rotation): there are two modes, a12 > 0 > a21 and its mirror image.
    idata = result.to_arviz()
    print(az.summary(idata, var_names=["A"], kind="stats"))
    a = result.sample(jax.random.key(2), (2000,))["A"]
    print(f"\nA rotates clockwise in {jnp.mean(a[:, 0, 1] > 0):.0%} of the draws.")

    # 7. Keep it: figures, and one file that ArviZ, xarray and epi.load can read.
    for name, plot in (("pair", epi.plot_pair), ("fit", epi.plot_fit), ("statistics", epi.plot_statistics)):
        plot(idata).savefig(arguments.out / f"oscillator-{name}.png")
    result.save(arguments.out / "oscillator.nc", overwrite=True)
    print(f"Figures and data are in {arguments.out}.")


if __name__ == "__main__":
    main()
