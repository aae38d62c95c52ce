"""Problems made exact by choosing eta first; ``test_chosen_problems.py`` proves every number here.

The solution is ``p*(z)`` proportional to ``base(z) exp(-eta · T(z))``. Its targets ``E[T]``, entropy and objective come
from Gauss-Legendre quadrature in double precision, one coordinate or factor at a time wherever the density allows it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats
from jaxtyping import Array, Float
from numpy.polynomial.legendre import leggauss
from numpyro.distributions import constraints
from problems import ExactProblem

from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi._types import Scalar, Sites
from numpyro_epi.statistics import square, statistic, value

MULTIPLIERS = {
    "double_well": np.array([-0.25, 6.0]),
    "generalized_inverse_gaussian": np.array([2.0, 6.0]),
    "four_corners": np.array([-0.1, 0.05, 1.0, 1.5, -0.12]),
    "banana": np.array([-0.5, 4.0, 0.5]),
    "winner_takes_all": np.array([-0.5, 0.4, -18.0]),
    "noisy_spread": np.array([-0.8, 0.4, -1.5]),
    "units": np.array([-0.25, 40.0, 15.0, 4e-5]),
    "ordered_thresholds": np.array([-2.0, 0.4, 0.5]),
    "double_well_chain": np.array([-0.05, 2.0, 5.0]),
    "pushed_rates": np.array([-32.0, 4.0]),
}
"""The eta that were chosen, in the order of ``problem.constraints``, each in one over its constraint's unit."""

GAMMA_SHAPE, GAMMA_RATE = 3.0, 1.5
CORNER = 1.5
NOISY_PRIOR = {"loc": np.array([0.0, -0.5]), "scale": np.array([2.0, 0.5])}
THRESHOLD_SCALES = np.array([1.0, 0.5, 0.5])
CHAIN_DIM = 5
RATE_OFFSETS = np.linspace(-1.0, 1.0, 10)
RATE_PRIOR = {"shape": 4.0, "rate": 0.4}
TIME_CONSTANT_PRIOR = {"median": 0.02, "log_std": 0.5}
CURRENT_STD = 200.0
"""Hz, seconds and pA: the priors of the problem with three units."""


class Solution(NamedTuple):
    """What a choice of eta implies.

    Attributes:
        target: ``E[T]``, shape [M].
        entropy: In nats, with respect to Lebesgue measure of the constrained parameters.
        objective: ``-KL(p* || base)``, nats.
    """

    target: Float[np.ndarray, " M"]
    entropy: float
    objective: float


def solve(
    eta: Float[np.ndarray, " M"],
    *,
    statistics: list[np.ndarray | float],
    log_base: Float[np.ndarray, "..."],
    weights: Float[np.ndarray, "..."],
) -> Solution:
    """The tilted density on quadrature nodes; all but ``eta`` are arrays over them, or broadcast to that.

    Args:
        eta: The multipliers.
        statistics: One array for each constraint; zero where a factor has no part in it.
        log_base: Log density of the base measure.
        weights: Of the nodes, in the constrained parameters' measure.
    """
    moments = np.stack([np.broadcast_to(t, weights.shape) for t in statistics])
    exponent = log_base - np.tensordot(eta, moments, axes=1)
    peak = exponent.max()
    log_z = peak + math.log(np.sum(weights * np.exp(exponent - peak)))
    mass = weights * np.exp(exponent - log_z)
    target = np.array([np.sum(mass * t) for t in moments])
    return Solution(target, float(-np.sum(mass * (exponent - log_z))), float(log_z + eta @ target))


def independent(*factors: Solution) -> Solution:
    """Put together factors that share eta and whose statistics add up."""
    targets, entropies, objectives = zip(*factors, strict=True)
    return Solution(np.sum(targets, axis=0), math.fsum(entropies), math.fsum(objectives))


def grid(*axes: tuple[float, float, int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Gauss-Legendre nodes, one array for each coordinate, and weights on a box of (low, high, number of nodes)."""
    rules = [leggauss(number) for *_, number in axes]
    nodes = [(low + high + (high - low) * x) / 2 for (low, high, _), (x, _) in zip(axes, rules, strict=True)]
    weights = [(high - low) / 2 * w for (low, high, _), (_, w) in zip(axes, rules, strict=True)]
    return list(np.meshgrid(*nodes, indexing="ij")), functools.reduce(np.multiply.outer, weights)


def exact(name: str, problem: Callable[[Solution], Problem], solution: Solution, **features: float) -> ExactProblem:
    """Ask for the solution's own moments."""
    return ExactProblem(name, problem(solution), solution.entropy, solution.objective, MULTIPLIERS[name], **features)


def well(z: Array | np.ndarray, minimum: float = 1.0) -> Array | np.ndarray:
    """A quartic of two wells, at plus and minus ``minimum``, elementwise."""
    return (z**2 - minimum**2) ** 2


@functools.cache
def double_well() -> ExactProblem:
    """A normal prior split into two modes, whose shares the mean fixes."""

    @statistic()
    def depth(sites: Sites) -> Scalar:
        return well(sites["z"])

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    def ask(solution: Solution) -> Problem:
        mean, mean_depth = solution.target
        return Problem(model, EmergentProperty(Target(value.bind(site="z"), mean), Target(depth, mean_depth)))

    (z,), weights = grid((-4.0, 4.0, 200))
    solution = solve(
        MULTIPLIERS["double_well"],
        statistics=[z, well(z)],
        log_base=scipy.stats.norm.logpdf(z),
        weights=weights,
    )
    return exact("double_well", ask, solution, num_modes=2, tolerance_kl=0.08)


@functools.cache
def generalized_inverse_gaussian() -> ExactProblem:
    """The means of z > 0 and of 1/z under a gamma prior."""

    @statistic()
    def reciprocal(sites: Sites) -> Scalar:
        return 1 / sites["z"]

    def model():
        numpyro.sample("z", dist.Gamma(GAMMA_SHAPE, GAMMA_RATE))

    def ask(solution: Solution) -> Problem:
        mean, mean_reciprocal = solution.target
        return Problem(model, EmergentProperty(Target(value.bind(site="z"), mean), Target(reciprocal, mean_reciprocal)))

    (log_z,), weights = grid((-5.0, 4.0, 300))
    z = np.exp(log_z)
    solution = solve(
        MULTIPLIERS["generalized_inverse_gaussian"],
        statistics=[z, 1 / z],
        log_base=scipy.stats.gamma.logpdf(z, GAMMA_SHAPE, scale=1 / GAMMA_RATE),
        weights=weights * z,
    )
    return exact("generalized_inverse_gaussian", ask, solution)


@functools.cache
def four_corners() -> ExactProblem:
    """Four modes in a square, of four different shares: means and a product tell them apart."""

    @statistic(dims=("coordinate",))
    def depth(sites: Sites) -> Array:
        return well(sites["z"], CORNER)

    @statistic()
    def product(sites: Sites) -> Scalar:
        return sites["z"][0] * sites["z"][1]

    def model():
        numpyro.sample("z", dist.Uniform(-3.0, 3.0).expand([2]).to_event(1))

    def ask(solution: Solution) -> Problem:
        means, depths, mean_product = solution.target[:2], solution.target[2:4], solution.target[4]
        return Problem(
            model,
            EmergentProperty(Target(value.bind(site="z"), means), Target(depth, depths), Target(product, mean_product)),
        )

    (x, y), weights = grid((-3.0, 3.0, 100), (-3.0, 3.0, 100))
    solution = solve(
        MULTIPLIERS["four_corners"],
        statistics=[x, y, well(x, CORNER), well(y, CORNER), x * y],
        log_base=np.full_like(x, -2 * math.log(6.0)),
        weights=weights,
    )
    return exact("four_corners", ask, solution, num_modes=4, tolerance_kl=0.08)


@functools.cache
def banana() -> ExactProblem:
    """A bent normal under an improper uniform prior: ``z_0`` is normal; so is ``z_1`` given it, around its square."""

    @statistic()
    def first(sites: Sites) -> Scalar:
        return sites["z"][0]

    @statistic()
    def squared_bend(sites: Sites) -> Scalar:
        return jnp.square(sites["z"][1] - jnp.square(sites["z"][0]))

    @statistic()
    def squared_first(sites: Sites) -> Scalar:
        return jnp.square(sites["z"][0])

    def model():
        numpyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), event_shape=(2,)))

    def ask(solution: Solution) -> Problem:
        return Problem(model, EmergentProperty(*map(Target, (first, squared_bend, squared_first), solution.target)))

    # The map (z_0, z_1) -> (z_0, z_1 - z_0^2) keeps volume and makes two independent factors.
    eta = MULTIPLIERS["banana"]
    (z,), weights = grid((-12.0, 12.0, 200))
    lebesgue = np.zeros_like(z)
    solution = independent(
        solve(eta, statistics=[z, 0.0, z**2], log_base=lebesgue, weights=weights),
        solve(eta, statistics=[0.0, z**2, 0.0], log_base=lebesgue, weights=weights),
    )
    return exact("banana", ask, solution, tolerance_kl=0.05)


@functools.cache
def winner_takes_all() -> ExactProblem:
    """Three parts of a whole of which one is nearly all: a mode at each corner of the simplex, of unequal shares."""

    @statistic(dims=("part",))
    def parts(sites: Sites) -> Array:
        return sites["z"][:2]

    @statistic()
    def concentration(sites: Sites) -> Scalar:
        return jnp.sum(jnp.square(sites["z"]))

    def model():
        numpyro.sample("z", dist.Dirichlet(jnp.full(3, 2.0)))

    def ask(solution: Solution) -> Problem:
        means, mean_concentration = solution.target[:2], solution.target[2]
        return Problem(model, EmergentProperty(Target(parts, means), Target(concentration, mean_concentration)))

    # Stick breaking: z_1 = (1 - z_0) b, so the area is (1 - z_0) dz_0 db.
    (first, b), weights = grid((0.0, 1.0, 200), (0.0, 1.0, 200))
    z = np.stack([first, (1 - first) * b, (1 - first) * (1 - b)])
    solution = solve(
        MULTIPLIERS["winner_takes_all"],
        statistics=[z[0], z[1], np.sum(z**2, axis=0)],
        log_base=math.log(120.0) + np.sum(np.log(z), axis=0),  # Gamma(6) = 120.
        weights=weights * (1 - first),
    )
    return exact("winner_takes_all", ask, solution, num_modes=3, tolerance_kl=0.08)


@functools.cache
def noisy_spread() -> ExactProblem:
    """A simulator ``x = z_0 + exp(z_1) e`` whose noise the parameters scale."""

    @statistic()
    def cosine(sites: Sites) -> Scalar:
        return jnp.cos(sites["x"])

    def model():
        z = numpyro.sample("z", dist.Normal(**NOISY_PRIOR).to_event(1))
        e = numpyro.sample("e", dist.Normal(0.0, 1.0))
        numpyro.deterministic("x", z[0] + jnp.exp(z[1]) * e)

    def ask(solution: Solution) -> Problem:
        functions = (value.bind(site="x"), square.bind(site="x"), cosine)
        return Problem(
            model, EmergentProperty(*map(Target, functions, solution.target)), parameters=("z",), name="noisy_spread"
        )

    # E[x^2 | z] = z_0^2 + s^2 and E[cos x | z] = cos(z_0) exp(-s^2 / 2) with s = exp(z_1).
    loc, scale = NOISY_PRIOR["loc"], NOISY_PRIOR["scale"]
    (center, log_std), weights = grid((-12.0, 12.0, 120), (-6.0, 3.0, 100))
    variance = np.exp(2 * log_std)
    solution = solve(
        MULTIPLIERS["noisy_spread"],
        statistics=[center, center**2 + variance, np.cos(center) * np.exp(-variance / 2)],
        log_base=scipy.stats.norm.logpdf(center, loc[0], scale[0]) + scipy.stats.norm.logpdf(log_std, loc[1], scale[1]),
        weights=weights,
    )
    return exact("noisy_spread", ask, solution, tolerance_kl=0.05)


@functools.cache
def units() -> ExactProblem:
    """Three positive sites of three priors; statistics in Hz, s, no unit and pA², six decades apart, two correlated."""

    @statistic()
    def spikes(sites: Sites) -> Scalar:
        return sites["rate"] * sites["tau"]

    def model():
        numpyro.sample("rate", dist.Gamma(RATE_PRIOR["shape"], RATE_PRIOR["rate"]))
        log_median, log_std = math.log(TIME_CONSTANT_PRIOR["median"]), TIME_CONSTANT_PRIOR["log_std"]
        numpyro.sample("tau", dist.LogNormal(log_median, log_std))
        numpyro.sample("current", dist.HalfNormal(CURRENT_STD))

    def ask(solution: Solution) -> Problem:
        functions = (value.bind(site="rate"), value.bind(site="tau"), spikes, square.bind(site="current"))
        return Problem(model, EmergentProperty(*map(Target, functions, solution.target)))

    return exact("units", ask, independent(_rate_and_time_constant(), _current()), tolerance_kl=0.05)


def _rate_and_time_constant() -> Solution:
    (rate, log_tau), weights = grid((0.0, 300.0, 200), (-8.0, 0.0, 100))
    tau = np.exp(log_tau)
    prior = scipy.stats.lognorm(TIME_CONSTANT_PRIOR["log_std"], scale=TIME_CONSTANT_PRIOR["median"])
    log_rate_prior = scipy.stats.gamma.logpdf(rate, RATE_PRIOR["shape"], scale=1 / RATE_PRIOR["rate"])
    return solve(
        MULTIPLIERS["units"],
        statistics=[rate, tau, rate * tau, 0.0],
        log_base=log_rate_prior + prior.logpdf(tau),
        weights=weights * tau,
    )


def _current() -> Solution:
    (current,), weights = grid((0.0, 1500.0, 100))
    return solve(
        MULTIPLIERS["units"],
        statistics=[0.0, 0.0, 0.0, current**2],
        log_base=scipy.stats.halfnorm.logpdf(current, scale=CURRENT_STD),
        weights=weights,
    )


@functools.cache
def ordered_thresholds() -> ExactProblem:
    """Three increasing numbers: their mean, squared span and squared middle."""

    @statistic()
    def mean_threshold(sites: Sites) -> Scalar:
        return jnp.mean(sites["z"])

    @statistic()
    def squared_span(sites: Sites) -> Scalar:
        return jnp.square(sites["z"][2] - sites["z"][0])

    @statistic()
    def squared_middle(sites: Sites) -> Scalar:
        return jnp.square(sites["z"][1])

    def model():
        base = dist.Normal(0.0, THRESHOLD_SCALES).to_event(1)
        numpyro.sample("z", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))

    def ask(solution: Solution) -> Problem:
        functions = (mean_threshold, squared_span, squared_middle)
        return Problem(model, EmergentProperty(*map(Target, functions, solution.target)))

    # z = (u_0, u_0 + exp(u_1), u_0 + exp(u_1) + exp(u_2)), so the volume is exp(u_1 + u_2) du.
    u, weights = grid((-7.0, 7.0, 60), (-5.0, 3.0, 50), (-5.0, 3.0, 50))
    low, middle, high = np.cumsum([u[0], np.exp(u[1]), np.exp(u[2])], axis=0)
    log_det = u[1] + u[2]
    log_normal = sum(scipy.stats.norm.logpdf(v, scale=s) for v, s in zip(u, THRESHOLD_SCALES, strict=True))
    solution = solve(
        MULTIPLIERS["ordered_thresholds"],
        statistics=[(low + middle + high) / 3, (high - low) ** 2, middle**2],
        log_base=log_normal - log_det,
        weights=weights * np.exp(log_det),
    )
    return exact("ordered_thresholds", ask, solution, tolerance_kl=0.05)


@functools.cache
def double_well_chain() -> ExactProblem:
    """Five neighbours in double wells that pull at each other: all up or all down, and the sum says how often."""

    @statistic()
    def total(sites: Sites) -> Scalar:
        return jnp.sum(sites["z"])

    @statistic()
    def total_depth(sites: Sites) -> Scalar:
        return jnp.sum(well(sites["z"]))

    @statistic()
    def total_squared_step(sites: Sites) -> Scalar:
        return jnp.sum(jnp.square(jnp.diff(sites["z"])))

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([CHAIN_DIM]).to_event(1))

    def ask(solution: Solution) -> Problem:
        functions = (total, total_depth, total_squared_step)
        return Problem(model, EmergentProperty(*map(Target, functions, solution.target)))

    return exact("double_well_chain", ask, _solve_chain(), num_modes=2, tolerance_kl=0.08)


def _solve_chain() -> Solution:
    """Sum-product over the chain: messages from either end give every site's and every pair's marginal."""
    eta = MULTIPLIERS["double_well_chain"]
    (z,), weights = grid((-4.0, 4.0, 150))
    log_base = scipy.stats.norm.logpdf(z)
    site = weights * np.exp(log_base - eta[0] * z - eta[1] * well(z))
    squared_step = np.subtract.outer(z, z) ** 2
    pair = np.exp(-eta[2] * squared_step)
    left, right = [site], [np.ones_like(z)]
    for _ in range(CHAIN_DIM - 1):
        left.append(site * (pair @ left[-1]))
        right.append(pair @ (site * right[-1]))
    right.reverse()
    normalizer = left[-1].sum()
    sites = sum(a * b for a, b in zip(left, right, strict=True)) / normalizer
    pairs = sum(np.outer(a, site * b) for a, b in zip(left[:-1], right[1:], strict=True)) * pair / normalizer
    target = np.array([sites @ z, sites @ well(z), np.sum(pairs * squared_step)])
    objective = float(math.log(normalizer) + eta @ target)
    return Solution(target, objective - float(sites @ log_base), objective)


@functools.cache
def pushed_rates() -> ExactProblem:
    """Ten units driven far above their prior: mean and mean square of their rates, ``softplus(z + offset)``."""

    @statistic()
    def mean_rate(sites: Sites) -> Scalar:
        return jnp.mean(jax.nn.softplus(sites["z"] + RATE_OFFSETS))

    @statistic()
    def mean_squared_rate(sites: Sites) -> Scalar:
        return jnp.mean(jnp.square(jax.nn.softplus(sites["z"] + RATE_OFFSETS)))

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([len(RATE_OFFSETS)]).to_event(1))

    def ask(solution: Solution) -> Problem:
        return Problem(model, EmergentProperty(*map(Target, (mean_rate, mean_squared_rate), solution.target)))

    (z,), weights = grid((-9.0, 9.0, 120))
    rates = [np.logaddexp(0.0, z + offset) for offset in RATE_OFFSETS]
    factors = [
        solve(
            MULTIPLIERS["pushed_rates"],
            statistics=[rate / len(rates), rate**2 / len(rates)],
            log_base=scipy.stats.norm.logpdf(z),
            weights=weights,
        )
        for rate in rates
    ]
    return exact("pushed_rates", ask, independent(*factors), tolerance_kl=0.05)


CHOSEN: dict[str, Callable[[], ExactProblem]] = {
    "double_well": double_well,
    "generalized_inverse_gaussian": generalized_inverse_gaussian,
    "four_corners": four_corners,
    "banana": banana,
    "winner_takes_all": winner_takes_all,
    "noisy_spread": noisy_spread,
    "units": units,
    "ordered_thresholds": ordered_thresholds,
    "double_well_chain": double_well_chain,
    "pushed_rates": pushed_rates,
}
