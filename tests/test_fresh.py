"""Moments and multipliers of fresh draws, against closed forms of normal guides."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax.distributions import MultivariateNormal, Normal
from problems import EXACT, SIMULATOR_COVARIANCE, SIMULATOR_MATRIX, SIMULATOR_NOISE, SIMULATOR_TARGET

import numpyro_epi as epi
from numpyro_epi._fresh import measure


def noisy_guide(covariance):
    """A normal guide of the linear simulator, with the solution's mean."""
    return MultivariateNormal(jnp.asarray(np.linalg.solve(SIMULATOR_MATRIX, SIMULATOR_TARGET)), jnp.asarray(covariance))


@pytest.fixture(scope="module")
def measured():
    exact = EXACT["linear_gaussian_simulator"]()
    return exact, measure(exact.problem, noisy_guide(SIMULATOR_COVARIANCE), jax.random.key(0), 100, 1000)


def test_moments_and_entropy_are_those_of_the_normal(measured):
    exact, found = measured
    verdict = found.verdict()
    assert np.all(np.abs(verdict.mean - exact.problem.target) < 5 * verdict.standard_error)
    assert abs(verdict.entropy - exact.entropy) < 5 * verdict.entropy_standard_error
    # x is normal: means vary by the spread, squared deviations by twice its fourth power.
    spread = np.array([0.5, 0.6])
    variance = np.square(verdict.standard_error) * verdict.num_draws
    np.testing.assert_allclose(variance, [*spread, *(2 * spread**2)], rtol=0.05)
    # Deviations are measured in the requested standard deviations, and of variances so that 1 % is 1 % of these.
    np.testing.assert_allclose(verdict.scale, [*np.sqrt(spread), *(2 * spread)])


def test_shared_covariance_leaves_the_noise_out(measured):
    _, found = measured
    without_noise = np.array([0.5, 0.6]) - SIMULATOR_NOISE
    np.testing.assert_allclose(np.diagonal(found.shared_covariance)[:2], without_noise, rtol=0.03)


def test_errors_are_those_of_repeated_measurements():
    """Of means over two simulations of each draw, and of their covariance with the entropy's."""
    problem = EXACT["linear_gaussian_simulator"]().problem
    guide = noisy_guide(0.5 * SIMULATOR_COVARIANCE)
    found = [measure(problem, guide, key, 1, 500) for key in jax.random.split(jax.random.key(5), 400)]
    estimates = np.array([[*each.mean, each.base_entropy] for each in found])
    stated = np.mean([each.error_covariance for each in found], axis=0)
    size = np.sqrt(np.diagonal(stated))
    # Standard errors of 400 values' covariances are 1 / 20 of their size, or 1 / 14 of a variance.
    np.testing.assert_allclose(np.cov(estimates.T) / np.outer(size, size), stated / np.outer(size, size), atol=0.3)
    eta = np.array([0.3, -0.2, 0.8, 0.5])
    direction = np.append(eta, -1.0)
    ratio = np.var(estimates @ direction) / (direction @ stated @ direction)
    assert abs(ratio - 1) < 4 / math.sqrt(200)


def test_errors_of_entropy_and_means_cancel_at_the_solution():
    """There ``log q - log base + eta . T`` is the same for every draw."""
    exact = EXACT["gaussian_2"]()
    mean, second = exact.problem.target[:2], exact.problem.target[[2, 3, 3, 4]].reshape(2, 2)
    guide = MultivariateNormal(jnp.asarray(mean), jnp.asarray(second - np.outer(mean, mean)))
    verdict = measure(exact.problem, guide, jax.random.key(2), 20, 1000).verdict()
    direction = np.append(exact.multipliers, -1.0)
    assert direction @ verdict.covariance @ direction < 1e-3 * verdict.entropy_standard_error**2


def test_multipliers_under_noise_are_the_exact_ones(measured):
    exact, found = measured
    eta, distance = found.multipliers(exact.problem.target)
    # The error is that of the moments' means, seen through the inverse of what the parameters share.
    error = np.linalg.pinv(found.shared_covariance) @ found.covariance @ np.linalg.pinv(found.shared_covariance)
    assert np.all(np.abs(eta - exact.multipliers) < 5 * np.sqrt(np.diagonal(error) / found.num_draws))
    assert distance < 0.01


def test_one_newton_step_leads_from_a_guide_beside_the_solution(measured):
    """A guide of another member of the family: its own multipliers are read, then moved towards the targets."""
    exact, _ = measured
    inverse = np.linalg.inv(SIMULATOR_MATRIX)
    variance = 1 / (2 * 0.95 * exact.multipliers[2:])
    guide = noisy_guide(inverse @ np.diag(variance) @ inverse.T)
    found = measure(exact.problem, guide, jax.random.key(1), 400, 1000)
    eta, distance = found.multipliers(exact.problem.target)
    np.testing.assert_allclose(eta[2:], exact.multipliers[2:], rtol=0.03)
    assert distance < 0.01


def test_a_normal_guide_is_in_the_family_of_second_moments():
    """However far it is from the targets, nothing is left that multipliers do not explain."""
    exact = EXACT["gaussian_2"]()
    found = measure(exact.problem, MultivariateNormal(jnp.zeros(2), jnp.eye(2)), jax.random.key(2), 20, 1000)
    assert found.multipliers(exact.problem.target)[1] < 1e-3


def test_distance_is_the_variance_that_no_multiplier_explains():
    """A logit-normal guide of z in [0, 1] against the family of exp(-eta z): the rest of a regression by quadrature."""
    exact = EXACT["truncated_exponential_0.3"]()
    found = measure(exact.problem, MultivariateNormal(jnp.zeros(1), jnp.eye(1)), jax.random.key(2), 100, 1000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    z = 1 / (1 + np.exp(-nodes))
    relative = -0.5 * nodes**2 - np.log(z * (1 - z))
    relative, centred = relative - weights @ relative, z - weights @ z
    rest = weights @ relative**2 - (weights @ (relative * centred)) ** 2 / (weights @ centred**2)
    np.testing.assert_allclose(found.multipliers(exact.problem.target)[1], rest, rtol=0.05)


def test_a_guide_that_fails_everywhere_gives_no_numbers():
    exact = EXACT["truncated_exponential_0.3"]()
    guide = MultivariateNormal(jnp.full(1, jnp.nan), jnp.eye(1))
    verdict = measure(exact.problem, guide, jax.random.key(3), 2, 100).verdict()
    assert verdict.finite_share == 0.0
    assert np.all(np.isnan(verdict.mean))
    assert np.isnan(verdict.entropy)


def narrow_guide(scale):
    """A result whose guide is ``N(0, scale^2)``, for the second moment 0.25."""
    exact = EXACT["relative_entropy_variance"]()
    flow = Normal(jnp.zeros(1), jnp.full(1, scale))
    verdict = measure(exact.problem, flow, jax.random.key(0), 10, 500).verdict()
    return epi.Result(
        problem=exact.problem,
        flow=flow,
        status=epi.STATUS.satisfied,
        verdict=verdict,
        eta=exact.multipliers,
        records={"step": np.array([0])},
        settings={"tolerance": 0.05},
        seconds=0.0,
        seed="0,0",
    )


def test_published_test_accepts_a_guide_that_has_the_property():
    passed, p = epi.bittner2021_test(jax.random.key(1), narrow_guide(0.5))
    assert passed
    assert p.shape == (1,)
    assert p[0] > 0.5


def test_published_test_passes_more_easily_with_fewer_draws():
    """A second moment 12 % too large: 0.08 standard deviations, against a tolerance of 0.05."""
    result = narrow_guide(0.53)
    assert epi.bittner2021_test(jax.random.key(1), result, num_draws=50)[0]
    assert not epi.bittner2021_test(jax.random.key(1), result, num_draws=5000)[0]
    assert not np.all(result.verdict.satisfies(result.problem.target, 0.05))
