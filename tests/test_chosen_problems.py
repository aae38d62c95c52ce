"""The chosen problems are exact: importance sampling through the models, and closed forms, agree with every number."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from chosen_problems import (
    CHAIN_DIM,
    CHOSEN,
    CURRENT_STD,
    GAMMA_RATE,
    GAMMA_SHAPE,
    NOISY_PRIOR,
    RATE_PRIOR,
    THRESHOLD_SCALES,
    TIME_CONSTANT_PRIOR,
)
from numpy.polynomial.hermite_e import hermegauss
from problems import ExactProblem

NUM_DRAWS = 100_000


class Proposal(NamedTuple):
    """Draws of the parameters, by site, and their log densities [N]; from SciPy alone."""

    sites: dict[str, np.ndarray]
    log_density: np.ndarray


def normals(rng: np.random.Generator, means: np.ndarray, scales: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Draws [N, D] of an equal mixture of normals at means [K, D], with independent coordinates, and log densities."""
    means = np.atleast_2d(means)
    law = scipy.stats.norm(means[rng.integers(len(means), size=NUM_DRAWS)], scales)
    z = law.rvs(random_state=rng)
    parts = scipy.stats.norm.logpdf(z[:, None], means, scales).sum(axis=-1)
    return z, scipy.special.logsumexp(parts, axis=1) - math.log(len(means))


def propose_double_well(rng: np.random.Generator) -> Proposal:
    z, log_density = normals(rng, np.array([[-1.0], [1.0]]), 0.25)
    return Proposal({"z": z[:, 0]}, log_density)


def propose_generalized_inverse_gaussian(rng: np.random.Generator) -> Proposal:
    law = scipy.stats.lognorm(0.4, scale=1.4)
    z = law.rvs(NUM_DRAWS, random_state=rng)
    return Proposal({"z": z}, law.logpdf(z))


def propose_four_corners(rng: np.random.Generator) -> Proposal:
    """Coordinates from the sum of two beta densities on the square's sides, peaked at the wells."""
    law = scipy.stats.beta(16.5, 5.5, loc=-3.0, scale=6.0)
    z = law.rvs((NUM_DRAWS, 2), random_state=rng) * rng.choice([-1, 1], size=(NUM_DRAWS, 2))
    return Proposal({"z": z}, np.log((law.pdf(z) + law.pdf(-z)) / 2).sum(axis=1))


def propose_banana(rng: np.random.Generator) -> Proposal:
    """A wide normal, and around its square a wider one than the solution's."""
    first, bend = scipy.stats.norm(0.4, 1.2), scipy.stats.t(10, scale=0.4)
    a, b = first.rvs(NUM_DRAWS, random_state=rng), bend.rvs(NUM_DRAWS, random_state=rng)
    return Proposal({"z": np.stack([a, a**2 + b], axis=1)}, first.logpdf(a) + bend.logpdf(b))


def propose_winner_takes_all(rng: np.random.Generator) -> Proposal:
    laws = [scipy.stats.dirichlet(np.roll([14.0, 1.6, 1.6], shift)) for shift in range(3)]
    draws = np.stack([law.rvs(NUM_DRAWS, random_state=rng) for law in laws])
    z = draws[rng.integers(3, size=NUM_DRAWS), np.arange(NUM_DRAWS)]
    log_density = scipy.special.logsumexp([law.logpdf(z.T) for law in laws], axis=0) - math.log(3)
    return Proposal({"z": z}, log_density)


def propose_noisy_spread(rng: np.random.Generator) -> Proposal:
    z, log_density = normals(rng, np.array([0.4, -0.7]), np.array([0.8, 0.5]))
    return Proposal({"z": z}, log_density)


def propose_units(rng: np.random.Generator) -> Proposal:
    laws = {
        "rate": scipy.stats.gamma(RATE_PRIOR["shape"], scale=1 / 0.3),
        "tau": scipy.stats.lognorm(TIME_CONSTANT_PRIOR["log_std"], scale=0.5 * TIME_CONSTANT_PRIOR["median"]),
        "current": scipy.stats.halfnorm(scale=0.6 * CURRENT_STD),
    }
    sites = {name: law.rvs(NUM_DRAWS, random_state=rng) for name, law in laws.items()}
    return Proposal(sites, sum(law.logpdf(sites[name]) for name, law in laws.items()))


def propose_ordered_thresholds(rng: np.random.Generator) -> Proposal:
    """A normal lowest, and two independent gamma gaps: unit Jacobian."""
    low, gap = scipy.stats.norm(0.3, 0.9), scipy.stats.gamma(4.0, scale=0.23)
    parts = [law.rvs(NUM_DRAWS, random_state=rng) for law in (low, gap, gap)]
    log_density = sum(law.logpdf(part) for law, part in zip((low, gap, gap), parts, strict=True))
    return Proposal({"z": np.cumsum(np.stack(parts, axis=1), axis=1)}, log_density)


def propose_double_well_chain(rng: np.random.Generator) -> Proposal:
    """Correlated normals, a little wider than the solution's curvature, around all up, all down and in between."""
    steps = np.diff(np.eye(CHAIN_DIM), axis=0)
    covariance = np.linalg.inv(10 * np.eye(CHAIN_DIM) + 10 * steps.T @ steps)
    up = 0.9 * np.ones(CHAIN_DIM)
    laws = [scipy.stats.multivariate_normal(side * up, covariance) for side in (1, -1)]
    laws.append(scipy.stats.multivariate_normal(0 * up, 0.3 + 2 * covariance))
    draws = np.stack([law.rvs(NUM_DRAWS, random_state=rng) for law in laws])
    z = draws[rng.integers(len(laws), size=NUM_DRAWS), np.arange(NUM_DRAWS)]
    return Proposal({"z": z}, scipy.special.logsumexp([law.logpdf(z) for law in laws], axis=0) - math.log(len(laws)))


def propose_pushed_rates(rng: np.random.Generator) -> Proposal:
    z, log_density = normals(rng, np.full(10, 1.25), np.linspace(1.2, 0.85, 10))
    return Proposal({"z": z}, log_density)


PROPOSALS: dict[str, Callable[[np.random.Generator], Proposal]] = {
    "double_well": propose_double_well,
    "generalized_inverse_gaussian": propose_generalized_inverse_gaussian,
    "four_corners": propose_four_corners,
    "banana": propose_banana,
    "winner_takes_all": propose_winner_takes_all,
    "noisy_spread": propose_noisy_spread,
    "units": propose_units,
    "ordered_thresholds": propose_ordered_thresholds,
    "double_well_chain": propose_double_well_chain,
    "pushed_rates": propose_pushed_rates,
}


def measure(exact: ExactProblem, sites: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The model's own log prior [N] and the property's moments [N, M], by one simulation for each draw."""

    def at(key, values):
        draw = exact.problem.simulator.simulate(key, values)
        return draw.log_prior, exact.problem.property.moments(exact.problem.property.values(draw.sites))

    values = {name: jnp.asarray(value, float) for name, value in sites.items()}
    log_prior, moments = jax.jit(jax.vmap(at))(jr.split(jr.key(1), NUM_DRAWS), values)
    return np.asarray(log_prior, np.float64), np.asarray(moments, np.float64)


def without_noise(exact: ExactProblem, sites: dict[str, np.ndarray]) -> np.ndarray:
    """``E[T | z]`` of the noisy problem, [N, M]: Gauss-Hermite over the simulator's noise."""
    nodes, weights = hermegauss(30)
    weights = weights / weights.sum()
    x = sites["z"][:, :1] + np.exp(sites["z"][:, 1:]) * nodes
    asked = exact.problem.property
    moments = jax.jit(jax.vmap(jax.vmap(lambda x: asked.moments(asked.values({"x": x})))))(jnp.asarray(x, float))
    return np.einsum("h,nhm->nm", weights, np.asarray(moments, np.float64))


def tilt(exact: ExactProblem, sites: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Log of the tilted density, short of its normalizer [N], and the simulated moments [N, M]."""
    log_prior, moments = measure(exact, sites)
    expected = without_noise(exact, sites) if exact.problem.simulator.noise else moments
    return log_prior - expected @ exact.multipliers, moments


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: np.ndarray
    standard_error: np.ndarray


def from_influence(estimate: np.ndarray | float, influence: np.ndarray) -> Estimate:
    """The standard error of an estimate whose first-order dependence on every draw is given, [N, ...]."""
    return Estimate(np.asarray(estimate), influence.std(axis=0) / math.sqrt(len(influence)))


def estimate(exact: ExactProblem) -> dict[str, Estimate]:
    """Self-normalised importance sampling of the tilted density; the standard errors are those of ratios."""
    sites, log_density = PROPOSALS[exact.name](np.random.default_rng(0))
    log_tilted, moments = tilt(exact, sites)
    ratio = np.exp(log_tilted - log_density)
    log_z, weights = math.log(ratio.mean()), ratio / ratio.mean()
    target, energy = np.mean(weights[:, None] * moments, axis=0), -np.mean(weights * log_tilted)
    return {
        "moments": from_influence(target, weights[:, None] * (moments - target)),
        "objective": from_influence(log_z + exact.multipliers @ exact.problem.target, weights - 1),
        "entropy": from_influence(energy + log_z, weights * (-log_tilted - energy) + weights - 1),
        "moment_std": Estimate(np.sqrt(np.mean(weights[:, None] * (moments - target) ** 2, axis=0)), np.zeros(())),
    }


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: pytest.FixtureRequest) -> tuple[ExactProblem, dict[str, Estimate]]:
    """Every problem with its importance sampling estimates."""
    exact = CHOSEN[request.param]()
    return exact, estimate(exact)


def close(found: Estimate, expected: np.ndarray | float) -> bool:
    return bool(np.all(np.abs(found.value - expected) < 4.5 * found.standard_error))


def test_targets_by_importance_sampling(case):
    """At a standard error of at most a hundredth of the statistic's spread."""
    exact, found = case
    assert np.all(found["moments"].standard_error < 0.01 * found["moment_std"].value)
    assert close(found["moments"], exact.problem.target)


def test_entropy_and_objective_by_importance_sampling(case):
    """At a standard error of at most a hundredth of a nat."""
    exact, found = case
    for name in ("entropy", "objective"):
        assert found[name].standard_error < 0.01
        assert close(found[name], getattr(exact, name))


@pytest.mark.parametrize("name", CHOSEN)
def test_names_and_lengths_agree(name):
    exact = CHOSEN[name]()
    assert exact.name == name
    assert exact.multipliers.shape == exact.problem.target.shape == (len(exact.problem.constraints),)
    assert exact.feasible


def test_problems_differ_as_they_should():
    """In dimension, modes, support, base, noise, units and distance from the prior."""
    cases = [build() for build in CHOSEN.values()]
    assert {exact.problem.dim for exact in cases} == {1, 2, 3, 5, 10}
    assert sorted(exact.num_modes for exact in cases if exact.num_modes > 1) == [2, 2, 3, 4]
    assert [exact.name for exact in cases if not exact.problem.simulator.has_proper_prior] == ["banana"]
    assert [exact.name for exact in cases if exact.problem.simulator.noise] == ["noisy_spread"]
    assert -CHOSEN["pushed_rates"]().objective > 5.0
    scales = CHOSEN["units"]().problem.target
    assert scales.max() / scales.min() > 1e5


def test_double_well_by_adaptive_quadrature():
    exact = CHOSEN["double_well"]()
    tilt, depth = exact.multipliers

    def integral(function):
        def integrand(z):
            return function(z) * math.exp(-(z**2) / 2 - tilt * z - depth * (z**2 - 1) ** 2)

        return scipy.integrate.quad(integrand, -6.0, 6.0, points=[-1.0, 0.0, 1.0], epsabs=1e-12)[0]

    normalizer = integral(lambda z: 1.0)
    target = [integral(lambda z: z) / normalizer, integral(lambda z: (z**2 - 1) ** 2) / normalizer]
    np.testing.assert_allclose(exact.problem.target, target, atol=1e-9)
    log_z = math.log(normalizer / math.sqrt(2 * math.pi))
    np.testing.assert_allclose(exact.objective, log_z + exact.multipliers @ target, atol=1e-9)


def test_generalized_inverse_gaussian_in_closed_form():
    """A gamma prior ``z^(p-1) exp(-b z)`` tilted by z and 1/z: Bessel functions of ``2 sqrt((b + eta_0) eta_1)``."""
    exact = CHOSEN["generalized_inverse_gaussian"]()
    linear, reciprocal = GAMMA_RATE + exact.multipliers[0], exact.multipliers[1]
    argument, scale = 2 * math.sqrt(linear * reciprocal), math.sqrt(reciprocal / linear)
    below, here, above = scipy.special.kv([GAMMA_SHAPE - 1, GAMMA_SHAPE, GAMMA_SHAPE + 1], argument)
    np.testing.assert_allclose(exact.problem.target, [scale * above / here, below / here / scale], rtol=1e-10)
    log_z = math.log(2 * here * scale**GAMMA_SHAPE * GAMMA_RATE**GAMMA_SHAPE / math.gamma(GAMMA_SHAPE))
    np.testing.assert_allclose(exact.objective, log_z + exact.multipliers @ exact.problem.target, atol=1e-10)
    law = scipy.stats.geninvgauss(GAMMA_SHAPE, argument, scale=scale)
    np.testing.assert_allclose(exact.entropy, law.entropy(), atol=1e-6)


def test_banana_in_closed_form():
    """Two normals: precision ``2 eta_2`` and mean ``-eta_0 / (2 eta_2)``, then precision ``2 eta_1``."""
    exact = CHOSEN["banana"]()
    linear, bend, quadratic = exact.multipliers
    first = scipy.stats.norm(-linear / (2 * quadratic), 1 / math.sqrt(2 * quadratic))
    second = scipy.stats.norm(0.0, 1 / math.sqrt(2 * bend))
    target = [first.mean(), second.var(), first.moment(2)]
    np.testing.assert_allclose(exact.problem.target, target, atol=1e-10)
    np.testing.assert_allclose(exact.entropy, first.entropy() + second.entropy(), atol=1e-10)
    assert exact.objective == exact.entropy


def test_current_is_half_normal():
    """The factor of ``units`` that stands alone: its precision is the prior's plus twice eta."""
    exact = CHOSEN["units"]()
    np.testing.assert_allclose(exact.problem.target[3], 1 / (CURRENT_STD**-2 + 2 * exact.multipliers[3]), rtol=1e-10)


def test_noise_is_averaged_exactly():
    """Single precision statistics: the conditional moments that were integrated are Gauss-Hermite's."""
    exact = CHOSEN["noisy_spread"]()
    z = np.random.default_rng(2).normal(NOISY_PRIOR["loc"], NOISY_PRIOR["scale"], size=(50, 2))
    variance = np.exp(2 * z[:, 1])
    expected = [z[:, 0], z[:, 0] ** 2 + variance, np.cos(z[:, 0]) * np.exp(-variance / 2)]
    np.testing.assert_allclose(without_noise(exact, {"z": z}), np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_units_has_correlated_statistics():
    """The product of rate and time constant goes with both, and under the solution these oppose each other."""
    exact = CHOSEN["units"]()
    mean_rate, mean_tau, mean_product, _ = exact.problem.target
    assert mean_product < 0.95 * mean_rate * mean_tau


def test_ordered_prior_is_that_of_its_gaps():
    """A normal lowest threshold and two log-normal gaps."""
    exact = CHOSEN["ordered_thresholds"]()
    z = np.array([-0.5, 0.4, 2.0])
    low, gaps = THRESHOLD_SCALES[0], THRESHOLD_SCALES[1:]
    expected = scipy.stats.norm.logpdf(z[0], scale=low) + scipy.stats.lognorm.logpdf(np.diff(z), gaps).sum()
    draw = exact.problem.simulator.simulate(jr.key(0), {"z": jnp.asarray(z, float)})
    np.testing.assert_allclose(draw.log_prior, expected, rtol=1e-5)


def summits(exact: ExactProblem) -> tuple[np.ndarray, np.ndarray]:
    """Climb the solution's log density in unconstrained coordinates from draws of it: the distinct tops, and shares."""
    keys = jr.split(jr.key(3), 64)

    def depth(u):
        evaluation = jax.vmap(exact.problem.evaluate, in_axes=(0, None))(keys, u)
        return jnp.mean(evaluation.moments @ exact.multipliers - evaluation.log_base)

    sites, log_density = PROPOSALS[exact.name](np.random.default_rng(4))
    chosen = _resample(tilt(exact, sites)[0] - log_density, number=40)
    slope = jax.jit(jax.value_and_grad(depth))
    tops: list[np.ndarray] = []
    counts: list[int] = []
    for index in chosen:
        start = exact.problem.simulator.unconstrain({name: value[index] for name, value in sites.items()})
        top = _climb(slope, np.asarray(start, np.float64))
        near = [np.max(np.abs(top - known)) < 0.1 for known in tops]
        if any(near):
            counts[near.index(True)] += 1
        else:
            tops.append(top)
            counts.append(1)
    return np.array(tops), np.array(counts) / len(chosen)


def _resample(log_weights: np.ndarray, *, number: int) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return np.random.default_rng(5).choice(len(weights), size=number, p=weights / weights.sum())


def _climb(slope: Callable, start: np.ndarray) -> np.ndarray:
    """Small steps, so that none jumps into another mode, then a polish."""

    def down(u):
        depth, gradient = slope(jnp.asarray(u, float))
        return float(depth), np.asarray(gradient, np.float64)

    u = start
    for _ in range(60):
        gradient = down(u)[1]
        u = u - 0.02 * gradient / max(1.0, np.linalg.norm(gradient) / 5)
    return scipy.optimize.minimize(down, u, jac=True, method="L-BFGS-B").x


@pytest.mark.parametrize("name", CHOSEN)
def test_number_of_modes_by_climbing(name):
    """From 40 draws of the solution, every mode's share is large enough to be found."""
    exact = CHOSEN[name]()
    tops, shares = summits(exact)
    assert len(tops) == exact.num_modes
    assert np.all(shares > 0.02)


@pytest.mark.parametrize("name", CHOSEN)
def test_gradient_flows_to_every_statistic(name):
    exact = CHOSEN[name]()
    points = jr.normal(jr.key(6), (20, exact.problem.dim))
    jacobian = jax.jacrev(lambda u: exact.problem.evaluate(jr.key(7), u).moments)
    gradients = np.asarray(jax.jit(jax.vmap(jacobian))(points))
    assert np.all(np.isfinite(gradients))
    assert np.all(np.any(gradients != 0, axis=(0, 2)))
