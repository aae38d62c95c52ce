"""Problems whose maximum-entropy solution is known exactly; ``test_problems.py`` proves every number here.

The density is ``p*(z)`` proportional to ``base(z) exp(-eta · T(z))``; eta is in the order of ``problem.constraints``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi._types import Scalar, Sites
from numpyro_epi.statistics import norm, statistic, value


@dataclass(frozen=True)
class ExactProblem:
    """A problem with its exact answer.

    Attributes:
        name: Its key in `EXACT`.
        problem: The question.
        entropy: Of the solution, in nats, with respect to Lebesgue measure of the constrained parameters (on a
            simplex: of all coordinates but the last); NaN where no distribution has the property.
        objective: The most that ``H_b = -KL(q || base)`` can be, nats; equals ``entropy`` where the base is Lebesgue.
        multipliers: eta, shape [M], each in one over its constraint's unit.
        num_modes: Separate regions that hold the solution's mass.
        pathwise: Whether gradients flow from the parameters to every statistic.
        tolerance_kl: ``KL(q || p*)`` in nats below which a default fit is good: the closer a flow can come, the lower.
        units: Factors of the statistics over those of a problem with the same solution, in whose units multipliers are compared.
    """

    name: str
    problem: Problem
    entropy: float
    objective: float
    multipliers: Float[np.ndarray, " M"]
    num_modes: int = 1
    pathwise: bool = True
    tolerance_kl: float = 0.02
    units: Float[np.ndarray, " M"] | float = 1.0

    @property
    def feasible(self) -> bool:
        """Whether any distribution has the property."""
        return math.isfinite(self.entropy)


def exact_kl(exact: ExactProblem, *, base_entropy: float, moments: Float[np.ndarray, " M"]) -> float:
    """``KL(q || p*) = max H_b - H_b(q) + eta · (E_q[T] - target)``, nats, for any q whether or not it has the property.

    Args:
        exact: The problem; its base, prior or Lebesgue, is that of ``base_entropy``.
        base_entropy: ``H_b(q) = -E_q[log q - log base]``, nats.
        moments: ``E_q[T]``, in the order of ``problem.constraints``.
    """
    return float(exact.objective - base_entropy + exact.multipliers @ (np.asarray(moments) - exact.problem.target))


def multiplier_error(
    exact: ExactProblem, eta: Float[np.ndarray, " M"], *, slack: Float[np.ndarray, " M"] | float = 0.0
) -> float:
    """The worst of the multipliers' errors, each relative to its exact value; to the largest one where that is zero.

    Of each error, ``slack`` is taken off first.

    The largest of numbers in different units depends on the units: all are taken to those of ``exact.units`` first.
    """
    truth = exact.multipliers * exact.units
    sizes = np.abs(truth)
    sizes = np.where(sizes > 1e-9 * np.max(sizes), sizes, np.max(sizes))
    errors = np.maximum(np.abs(eta * exact.units - truth) - slack * exact.units, 0.0)
    return float(np.max(errors / sizes))


GAUSSIANS = {
    2: {
        "target": [-1.0, 1.0, 3.136003235, 0.311627302, 4.489765186],
        "multipliers": [0.837386, -0.601284, 0.304316, -0.228754, 0.186265],
        "entropy": 3.711064875,
    },
    5: {
        "target": [
            *(-1.0, -0.5, 0.0, 0.5, 1.0),
            *(4.047861938, 0.308718087, 0.5364992, -0.481566547, -1.16404302),
            *(1.161978864, 0.259083939, -0.101707611, 0.29874011),
            *(1.085331556, 0.34474418, 0.431564936),
            *(1.392638333, 0.055281765),
            4.178963836,
        ],
        "multipliers": [
            *(0.363433, 1.470167, 0.107294, -0.984806, -0.817539),
            *(0.190228, 0.10788, -0.250291, 0.069476, 0.036225),
            *(0.789916, -0.16509, -0.317873, -0.413435),
            *(0.656722, -0.453803, -0.213228),
            *(0.586257, 0.309088),
            0.246251,
        ],
        "entropy": 7.909099803,
    },
}
"""By dimension: targets of ``z`` and of the upper triangle of ``z z'``, row by row, diagonal included."""

TRUNCATED_EXPONENTIALS = {
    0.2: {"multiplier": 4.80100755, "entropy": -0.616879734},
    0.3: {"multiplier": 2.672103855, "entropy": -0.252845563},
    0.7: {"multiplier": -2.672103855, "entropy": -0.252845563},
}
"""By target mean."""

OSCILLATORS = {
    "tutorial": {
        "stds": (0.5, 0.2 * math.pi),
        "multipliers": [0.0, -0.261003243, 1.99999127, 1.19395101],
        "entropy": 7.734882,
    },
    "paper": {
        "stds": (0.25, 0.2 * math.pi),
        "multipliers": [0.0, -0.261004686, 8.0, 1.19395345],
        "entropy": 7.041736,
    },
}
"""Two-dimensional linear oscillators of Bittner et al. 2021, eLife 10:e56265, by the publication's part."""

OSCILLATOR_SCALES = np.array([1e-3, 1.0, 1e3, 1e-2])
"""The rescaled oscillator's units: one over these, for its four statistics in order."""

SIMULATOR_MATRIX = np.array([[2.0, 1.0], [0.5, 1.5]])
SIMULATOR_NOISE = np.array([0.1, 0.2])
SIMULATOR_TARGET = np.array([1.0, -1.0])
SIMULATOR_COVARIANCE = np.array([[0.208, -0.176], [-0.176, 0.272]])
"""``x = A z + e`` with noise variances S; the mean of x; the covariance of the solution's z."""

TILT_DIRECTION = np.array([1.0, 2.0, -1.0])
"""``a`` of the statistic ``a · z``."""


def gaussian(dim: int) -> ExactProblem:
    """All first and second moments of z in R^d: a normal distribution."""
    rows, columns = np.triu_indices(dim)

    @statistic(dims=("moment",))
    def raw_moments(sites: Sites) -> Array:
        """``z``, then the upper triangle of ``z z'``, row by row."""
        z = sites["z"]
        return jnp.concatenate([z, z[rows] * z[columns]])

    def model():
        numpyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), event_shape=(dim,)))

    case = GAUSSIANS[dim]
    problem = Problem(model, EmergentProperty(Target(raw_moments, mean=np.array(case["target"]))))
    entropy = case["entropy"]
    return ExactProblem(f"gaussian_{dim}", problem, entropy, entropy, np.array(case["multipliers"]))


def truncated_exponential(mean: float) -> ExactProblem:
    """The mean of z in [0, 1]."""

    def model():
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    case = TRUNCATED_EXPONENTIALS[mean]
    problem = Problem(model, EmergentProperty(Target(value.bind(site="z"), mean=mean)))
    entropy = case["entropy"]
    return ExactProblem(f"truncated_exponential_{mean}", problem, entropy, entropy, np.array([case["multiplier"]]))


def exponential(mean: float) -> ExactProblem:
    """The mean of z > 0 under an improper uniform prior: an exponential distribution."""

    def model():
        numpyro.sample("z", dist.ImproperUniform(constraints.positive, (), event_shape=()))

    problem = Problem(model, EmergentProperty(Target(value.bind(site="z"), mean=mean)))
    entropy = 1.0 + math.log(mean)
    return ExactProblem(f"exponential_{mean}", problem, entropy, entropy, np.array([1.0 / mean]))


def dirichlet() -> ExactProblem:
    """The mean of ``log z`` on the simplex: Dirichlet(1, 2, 3). The flat prior's density is Gamma(3) = 2."""

    @statistic(dims=("component",))
    def log_z(sites: Sites) -> Array:
        return jnp.log(sites["z"])

    def model():
        numpyro.sample("z", dist.Dirichlet(jnp.ones(3)))

    mean = np.array([-2.283333333, -1.283333333, -0.783333333])
    problem = Problem(model, EmergentProperty(Target(log_z, mean=mean)))
    entropy = -1.244344562
    return ExactProblem(
        "dirichlet", problem, entropy, entropy + math.log(2.0), np.array([0.0, -1.0, -2.0]), tolerance_kl=0.05
    )


def ring() -> ExactProblem:
    """A ring of radius 3 in the plane: one mode that a flow has to bend around a hole."""
    radius = norm.bind(site="z")

    @statistic()
    def squared_deviation(sites: Sites) -> Scalar:
        return jnp.square(radius(sites) - 3.0)

    def model():
        numpyro.sample("z", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))

    problem = Problem(model, EmergentProperty(Target(radius, mean=3.03), Target(squared_deviation, mean=0.09)))
    entropy = 3.151455084
    objective = entropy - 2 * math.log(20.0)
    return ExactProblem("ring", problem, entropy, objective, np.array([0.0, 5.555555556]), tolerance_kl=0.05)


def oscillator(part: str) -> ExactProblem:
    """Growth rate and angular frequency of ``dx/dt = A x``; the modes are ``a12 > 0 > a21`` and its mirror image."""
    case = OSCILLATORS[part]
    problem = Problem(
        oscillator_model,
        EmergentProperty(
            Target(growth_rate, mean=0.0, std=case["stds"][0]),
            Target(angular_frequency, mean=2 * math.pi, std=case["stds"][1]),
        ),
    )
    return _oscillator_case(f"oscillator_{part}", problem, case["entropy"], np.array(case["multipliers"]))


def oscillator_rescaled() -> ExactProblem:
    """The paper's oscillator in units that differ by six decades: the same solution, multipliers over the scales."""
    case = OSCILLATORS["paper"]

    def scaled(index: int, function: Callable[[Sites], Scalar], mean: float) -> Target:
        scale = float(OSCILLATOR_SCALES[index])
        return Target(lambda sites: scale * function(sites), mean=scale * mean, name=f"scaled {index}")

    growth_variance, frequency_variance = np.square(case["stds"])
    targets = (
        scaled(0, growth_rate, 0.0),
        scaled(1, angular_frequency, 2 * math.pi),
        scaled(2, lambda sites: jnp.square(growth_rate(sites)), growth_variance),
        scaled(3, lambda sites: jnp.square(angular_frequency(sites) - 2 * math.pi), frequency_variance),
    )
    problem = Problem(oscillator_model, EmergentProperty(*targets))
    multipliers = np.array(case["multipliers"]) / OSCILLATOR_SCALES
    found = _oscillator_case("oscillator_rescaled", problem, case["entropy"], multipliers)
    return replace(found, units=OSCILLATOR_SCALES)


def _oscillator_case(name: str, problem: Problem, entropy: float, multipliers: np.ndarray) -> ExactProblem:
    objective = entropy - 4 * math.log(20.0)
    return ExactProblem(name, problem, entropy, objective, multipliers, num_modes=2, tolerance_kl=0.15)


def oscillator_model() -> None:
    """A 2x2 matrix A, uniform on [-10, 10]^4."""
    numpyro.sample("A", dist.Uniform(-10.0, 10.0).expand([2, 2]).to_event(2))


def _half_trace_and_discriminant(sites: Sites) -> tuple[Scalar, Scalar]:
    # Eigenvalues are s ± sqrt(d^2 + a12 a21) with s, d half the sum and difference of the diagonal.
    (a11, a12), (a21, a22) = sites["A"]
    return (a11 + a22) / 2, jnp.square((a11 - a22) / 2) + a12 * a21


def _guarded_sqrt(number: Scalar) -> Scalar:
    # Two wheres: the branch not taken must not send an infinite slope back.
    positive = number > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, number, 1.0)), 0.0)


@statistic(unit="1/s")
def growth_rate(sites: Sites) -> Scalar:
    """Real part of the eigenvalue of ``A`` whose real part is largest."""
    half_trace, discriminant = _half_trace_and_discriminant(sites)
    return half_trace + _guarded_sqrt(discriminant)


@statistic(unit="rad/s")
def angular_frequency(sites: Sites) -> Scalar:
    """Imaginary part of that eigenvalue, not negative."""
    return _guarded_sqrt(-_half_trace_and_discriminant(sites)[1])


def linear_gaussian_simulator() -> ExactProblem:
    """A noisy linear simulator; z is normal with mean ``A^-1 m``."""
    # E[(x_k - m_k)^2 | z] = (A z - m)_k^2 + S_k, so the precision is 2 A' diag(eta) A.
    inverse = np.linalg.inv(SIMULATOR_MATRIX)
    eta = np.diag(inverse.T @ np.linalg.inv(SIMULATOR_COVARIANCE) @ inverse) / 2
    problem = _linear_gaussian(variances=(0.5, 0.6))
    entropy = 1.005295603
    multipliers = np.concatenate([np.zeros(2), eta])
    return ExactProblem("linear_gaussian_simulator", problem, entropy, entropy, multipliers)


def linear_gaussian_infeasible() -> ExactProblem:
    """The same with a spread of ``x_0`` below that of its noise: nothing has this property."""
    nan = math.nan
    problem = _linear_gaussian(variances=(0.05, 0.6))
    multipliers = np.full(4, nan)
    return ExactProblem("linear_gaussian_infeasible", problem, nan, nan, multipliers, num_modes=0, tolerance_kl=nan)


def _linear_gaussian(*, variances: tuple[float, float]) -> Problem:
    def model():
        z = numpyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), event_shape=(2,)))
        e = numpyro.sample("e", dist.Normal(0.0, np.sqrt(SIMULATOR_NOISE)).to_event(1))
        numpyro.deterministic("x", SIMULATOR_MATRIX @ z + e)

    target = Target(value.bind(site="x"), mean=SIMULATOR_TARGET, std=np.sqrt(variances))
    return Problem(model, EmergentProperty(target), parameters=("z",), name="linear_gaussian")


def indicator() -> ExactProblem:
    """How often z in [-1, 1] is positive; its pathwise gradient is zero everywhere."""

    @statistic(differentiable=False)
    def is_positive(sites: Sites) -> Scalar:
        return jnp.where(sites["z"] > 0, 1.0, 0.0)

    def model():
        numpyro.sample("z", dist.Uniform(-1.0, 1.0))

    problem = Problem(model, EmergentProperty(Target(is_positive, mean=0.8)))
    entropy = 0.500402424
    # Density .8 right of zero and .2 left of it: exp(-eta) = 4.
    multipliers = np.array([-math.log(4.0)])
    return ExactProblem(
        "indicator", problem, entropy, entropy - math.log(2.0), multipliers, pathwise=False, tolerance_kl=0.05
    )


def relative_entropy_mean() -> ExactProblem:
    """Normal prior, mean 1.5 of ``a · z``: the prior moved along a."""

    @statistic()
    def projection(sites: Sites) -> Scalar:
        return TILT_DIRECTION @ sites["z"]

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    mean, squared_length = 1.5, float(TILT_DIRECTION @ TILT_DIRECTION)
    problem = Problem(model, EmergentProperty(Target(projection, mean=mean)))
    entropy = 1.5 * math.log(2 * math.pi * math.e)
    objective = -(mean**2) / (2 * squared_length)
    return ExactProblem("relative_entropy_mean", problem, entropy, objective, np.array([-mean / squared_length]))


def relative_entropy_variance() -> ExactProblem:
    """Normal prior, second moment .25: a narrower normal."""

    @statistic()
    def squared(sites: Sites) -> Scalar:
        return jnp.square(sites["z"])

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    problem = Problem(model, EmergentProperty(Target(squared, mean=0.25)))
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    # The precision 1 + 2 eta is 4.
    return ExactProblem("relative_entropy_variance", problem, entropy, -0.318147181, np.array([1.5]))


EXACT: dict[str, Callable[[], ExactProblem]] = {
    "gaussian_2": partial(gaussian, 2),
    "gaussian_5": partial(gaussian, 5),
    "truncated_exponential_0.2": partial(truncated_exponential, 0.2),
    "truncated_exponential_0.3": partial(truncated_exponential, 0.3),
    "truncated_exponential_0.7": partial(truncated_exponential, 0.7),
    "exponential_0.5": partial(exponential, 0.5),
    "exponential_20.0": partial(exponential, 20.0),
    "dirichlet": dirichlet,
    "ring": ring,
    "oscillator_tutorial": partial(oscillator, "tutorial"),
    "oscillator_paper": partial(oscillator, "paper"),
    "oscillator_rescaled": oscillator_rescaled,
    "linear_gaussian_simulator": linear_gaussian_simulator,
    "linear_gaussian_infeasible": linear_gaussian_infeasible,
    "indicator": indicator,
    "relative_entropy_mean": relative_entropy_mean,
    "relative_entropy_variance": relative_entropy_variance,
}
