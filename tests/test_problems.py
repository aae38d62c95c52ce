"""The exact problems are exact: quadrature, closed forms and plain Monte Carlo agree with every number."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy.polynomial.legendre import leggauss
from problems import (
    EXACT,
    OSCILLATOR_SCALES,
    SIMULATOR_COVARIANCE,
    SIMULATOR_MATRIX,
    SIMULATOR_NOISE,
    SIMULATOR_TARGET,
    ExactProblem,
    exact_kl,
)

FEASIBLE = [name for name in EXACT if name != "linear_gaussian_infeasible"]
OSCILLATORS = ["oscillator_tutorial", "oscillator_paper", "oscillator_rescaled"]


def panels(edges: tuple[float, ...], num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on each interval between the edges."""
    nodes, weights = leggauss(num_nodes)
    low, high = np.array(edges[:-1])[:, None], np.array(edges[1:])[:, None]
    half = (high - low) / 2
    return ((low + high) / 2 + half * nodes).ravel(), (half * weights).ravel()


def box(edges: tuple[float, ...], num_nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in ``dim`` dimensions: nodes [K, dim], weights [K]."""
    nodes, weights = panels(edges, num_nodes)
    axes = np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    products = np.prod(np.stack(np.meshgrid(*[weights] * dim, indexing="ij"), axis=-1), axis=-1).ravel()
    return axes, products


# The solution's mass outside each region is below e^-40.
QUADRATURES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "gaussian_2": lambda: box((-18.0, 18.0), 200, 2),
    "truncated_exponential_0.2": lambda: panels((0.0, 1.0), 40),
    "truncated_exponential_0.3": lambda: panels((0.0, 1.0), 40),
    "truncated_exponential_0.7": lambda: panels((0.0, 1.0), 40),
    "exponential_0.5": lambda: panels((0.0, 5.0, 25.0), 40),
    "exponential_20.0": lambda: panels((0.0, 200.0, 1000.0), 40),
    "ring": lambda: box((-6.0, 0.0, 6.0), 120, 2),
    "indicator": lambda: panels((-1.0, 0.0, 1.0), 10),
    "relative_entropy_mean": lambda: box((-9.0, 9.0), 40, 3),
    "relative_entropy_variance": lambda: panels((-9.0, 9.0), 100),
}
"""Region and nodes of ``z`` by problem."""


def measure(exact: ExactProblem, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model's log prior and the property's moments at given parameters."""

    def at(value):
        draw = exact.problem.simulator.simulate(jr.key(0), {"z": value})
        return draw.log_prior, exact.problem.property.moments(exact.problem.property.values(draw.sites))

    log_prior, moments = jax.jit(jax.vmap(at))(jnp.asarray(z, float))
    return np.asarray(log_prior, np.float64), np.asarray(moments, np.float64)


def tilt(exact: ExactProblem, log_base: np.ndarray, moments: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The tilted density at nodes: its dual value, entropy and moments."""
    exponent = log_base - moments @ exact.multipliers
    log_z = scipy.special.logsumexp(exponent, b=weights)
    mass = weights * np.exp(exponent - log_z)
    return {
        "objective": log_z + exact.multipliers @ exact.problem.target,
        "entropy": -np.sum(mass * (exponent - log_z)),
        "moments": mass @ moments,
    }


@pytest.mark.parametrize("name", EXACT)
def test_names_and_lengths_agree(name):
    exact = EXACT[name]()
    assert exact.name == name
    assert exact.multipliers.shape == exact.problem.target.shape == (len(exact.problem.constraints),)
    assert exact.feasible == (name in FEASIBLE)


@pytest.mark.parametrize("name", QUADRATURES)
def test_tilted_density_by_quadrature(name):
    """Single precision statistics and nine printed digits: five digits are left."""
    exact = EXACT[name]()
    nodes, weights = QUADRATURES[name]()
    tilted = tilt(exact, *measure(exact, nodes), weights)
    np.testing.assert_allclose(tilted["moments"], exact.problem.target, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(tilted["entropy"], exact.entropy, atol=2e-5)
    np.testing.assert_allclose(tilted["objective"], exact.objective, atol=2e-5)


@pytest.mark.parametrize("dim", [2, 5])
def test_gaussian_in_closed_form(dim):
    exact = EXACT[f"gaussian_{dim}"]()
    rows, columns = np.triu_indices(dim)
    mean, second = exact.problem.target[:dim], np.zeros((dim, dim))
    second[rows, columns] = second[columns, rows] = exact.problem.target[dim:]
    normal = scipy.stats.multivariate_normal(mean, second - np.outer(mean, mean))
    precision = np.linalg.inv(normal.cov)
    # exp(-z' P z / 2 + z' P m): an off-diagonal product stands once among the statistics, twice in z' P z.
    quadratic = np.where(rows == columns, 0.5, 1.0) * precision[rows, columns]
    np.testing.assert_allclose(exact.multipliers, np.concatenate([-precision @ mean, quadratic]), atol=2e-6)
    np.testing.assert_allclose(exact.entropy, normal.entropy(), atol=1e-7)


@pytest.mark.parametrize("dim", [2, 5])
def test_gaussian_moments_go_row_by_row(dim):
    exact = EXACT[f"gaussian_{dim}"]()
    z = np.linspace(-1.0, 2.0, dim)
    products = [z[i] * z[j] for i in range(dim) for j in range(i, dim)]
    np.testing.assert_allclose(measure(exact, z[None])[1][0], [*z, *products], rtol=1e-5)


def test_dirichlet_in_closed_form():
    exact = EXACT["dirichlet"]()
    concentration = 1.0 - exact.multipliers
    expected = scipy.special.digamma(concentration) - scipy.special.digamma(concentration.sum())
    np.testing.assert_allclose(exact.problem.target, expected, atol=1e-8)
    np.testing.assert_allclose(exact.entropy, scipy.stats.dirichlet(concentration).entropy(), atol=1e-8)
    z = scipy.stats.dirichlet(np.ones(3)).rvs(5, random_state=1)
    log_prior, moments = measure(exact, z)
    np.testing.assert_allclose(log_prior, exact.objective - exact.entropy, rtol=1e-5)
    np.testing.assert_allclose(moments, np.log(z), rtol=1e-4)


def test_linear_gaussian_in_closed_form():
    exact = EXACT["linear_gaussian_simulator"]()
    eta = exact.multipliers[2:]
    covariance = np.linalg.inv(2 * SIMULATOR_MATRIX.T @ np.diag(eta) @ SIMULATOR_MATRIX)
    np.testing.assert_allclose(covariance, SIMULATOR_COVARIANCE, atol=1e-12)
    spreads = np.diag(SIMULATOR_MATRIX @ covariance @ SIMULATOR_MATRIX.T) + SIMULATOR_NOISE
    np.testing.assert_allclose(exact.problem.target, [*SIMULATOR_TARGET, *spreads], atol=1e-12)
    np.testing.assert_allclose(exact.entropy, scipy.stats.multivariate_normal(cov=covariance).entropy(), atol=1e-8)


def test_linear_gaussian_simulator_reaches_its_targets():
    """Draws of the solution, pushed through the model itself."""
    exact = EXACT["linear_gaussian_simulator"]()
    mean = np.linalg.solve(SIMULATOR_MATRIX, SIMULATOR_TARGET)
    z = np.random.default_rng(2).multivariate_normal(mean, SIMULATOR_COVARIANCE, size=50_000)
    evaluation = jax.jit(jax.vmap(exact.problem.evaluate))(jr.split(jr.key(3), len(z)), jnp.asarray(z, float))
    moments = np.asarray(evaluation.moments)
    standard_error = moments.std(axis=0) / math.sqrt(len(z))
    assert np.all(np.abs(moments.mean(axis=0) - exact.problem.target) < 5 * standard_error)


def test_infeasible_spread_is_below_the_noise():
    """At the best z the spread is the noise's own, which is more than asked for."""
    problem = EXACT["linear_gaussian_infeasible"]().problem
    best = jnp.asarray(np.linalg.solve(SIMULATOR_MATRIX, SIMULATOR_TARGET), float)
    evaluation = jax.jit(jax.vmap(lambda key: problem.evaluate(key, best)))(jr.split(jr.key(4), 10_000))
    least = np.asarray(evaluation.moments)[:, 2]
    standard_error = least.std() / math.sqrt(len(least))
    assert abs(least.mean() - SIMULATOR_NOISE[0]) < 5 * standard_error
    assert problem.target[2] < least.mean() - 5 * standard_error


def oscillator_quadrature(exact: ExactProblem) -> dict[str, np.ndarray]:
    """Tilt the law of s, d half the diagonal's sum and difference and p = a12 a21, for complex eigenvalues.

    In these ``da11 da22 = 2 ds dd`` on ``|s| + |d| <= 10``, and the product of two uniforms on [-10, 10] has
    ``2 log(100 / |p|) dp``. The frequency is w with ``w^2 = -d^2 - p``, so ``dp = 2 w dw``. Real eigenvalues weigh
    about ``exp(-1.19 (2 pi)^2) = e^-47`` of the peak: left out.
    """
    d, d_weights = panels((0.0, 10.0), 60)
    unit, unit_weights = leggauss(150)
    s, s_weights = np.outer(10 - d, unit), np.outer(10 - d, unit_weights)
    top = np.sqrt(100 - d**2)[:, None] / 2
    w, w_weights = top * (1 + unit), top * unit_weights
    w_weights = w_weights * 2 * np.log(100 / (d[:, None] ** 2 + w**2)) * 2 * w
    weights = 2 * (2 * d_weights)[:, None, None] * s_weights[:, :, None] * w_weights[:, None, :]
    rate, frequency = np.broadcast_arrays(s[:, :, None], w[:, None, :])
    moments = np.stack([rate, frequency, np.square(rate), np.square(frequency - 2 * np.pi)], axis=-1)
    scales = OSCILLATOR_SCALES if exact.name == "oscillator_rescaled" else 1.0
    return tilt(exact, np.full(weights.size, -4 * math.log(20.0)), (moments * scales).reshape(-1, 4), weights.ravel())


@pytest.mark.parametrize("name", OSCILLATORS)
def test_oscillator_by_reduced_quadrature(name):
    exact = EXACT[name]()
    tilted = oscillator_quadrature(exact)
    scales = OSCILLATOR_SCALES if name == "oscillator_rescaled" else np.ones(4)
    np.testing.assert_allclose(tilted["moments"] / scales, exact.problem.target / scales, atol=1e-5)
    np.testing.assert_allclose(tilted["entropy"], exact.entropy, atol=1e-5)
    np.testing.assert_allclose(tilted["objective"], exact.objective, atol=1e-5)


def eigenvalue_moments(matrices: np.ndarray) -> np.ndarray:
    """The oscillator's four moments from LAPACK's eigenvalues."""
    eigenvalues = np.linalg.eigvals(matrices)
    rate, frequency = eigenvalues.real.max(axis=1), np.abs(eigenvalues.imag[:, 0])
    return np.stack([rate, frequency, rate**2, (frequency - 2 * np.pi) ** 2], axis=1)


@pytest.mark.parametrize("name", OSCILLATORS)
def test_oscillator_statistics_are_the_eigenvalues(name):
    """To half the digits of single precision, which is what the root keeps near a double eigenvalue."""
    matrices = np.random.default_rng(5).uniform(-10, 10, size=(1000, 2, 2))
    asked = EXACT[name]().problem.property
    found = jax.jit(jax.vmap(lambda a: asked.moments(asked.values({"A": a}))))(jnp.asarray(matrices, float))
    scales = OSCILLATOR_SCALES if name == "oscillator_rescaled" else np.ones(4)
    np.testing.assert_allclose(np.asarray(found) / scales, eigenvalue_moments(matrices), rtol=1e-4, atol=1e-3)


def test_oscillator_dual_and_modes_by_plain_monte_carlo():
    """Uniform matrices and LAPACK alone: no reduction, no code of ours."""
    exact = EXACT["oscillator_tutorial"]()
    matrices = np.random.default_rng(6).uniform(-10, 10, size=(200_000, 2, 2))
    weights = np.exp(-(eigenvalue_moments(matrices) - exact.problem.target) @ exact.multipliers)
    standard_error = weights.std() / math.sqrt(len(weights))
    assert abs(weights.mean() - math.exp(exact.objective)) < 5 * standard_error
    upper, lower = matrices[:, 0, 1], matrices[:, 1, 0]
    shares = [np.sum(weights[(sign * upper > 0) & (sign * lower < 0)]) / np.sum(weights) for sign in (1, -1)]
    assert len(shares) == exact.num_modes
    np.testing.assert_allclose(np.sum(shares), 1.0, atol=1e-12)
    # The shares of the two mirror images have standard error 1 / (2 sqrt(ESS)).
    ess = np.sum(weights) ** 2 / np.sum(weights**2)
    np.testing.assert_allclose(shares, 0.5, atol=5 / (2 * math.sqrt(ess)))


@pytest.mark.parametrize("name", EXACT)
def test_gradient_flows_where_pathwise_says_so(name):
    """Also at the origin, where norms and eigenvalues have kinks, it is finite."""
    exact = EXACT[name]()
    dim = exact.problem.dim
    points = jnp.concatenate([jnp.zeros((1, dim)), jr.normal(jr.key(7), (20, dim))])
    jacobian = jax.jacrev(lambda u: exact.problem.evaluate(jr.key(8), u).moments)
    gradients = np.asarray(jax.jit(jax.vmap(jacobian))(points))
    assert np.all(np.isfinite(gradients))
    flows = np.any(gradients != 0, axis=(0, 2))
    assert np.all(flows == exact.pathwise)


def test_exact_kl_is_zero_at_the_solution_and_reads_a_wrong_guide():
    """A normal of another mean and covariance: its divergence from the solution is known."""
    exact = EXACT["gaussian_2"]()
    target = exact.problem.target
    mean = target[:2]
    covariance = np.array([[target[2], target[3]], [target[3], target[4]]]) - np.outer(mean, mean)
    other_mean, other = np.array([0.5, -0.2]), np.array([[1.0, 0.4], [0.4, 2.0]])
    second = other + np.outer(other_mean, other_mean)
    moments = np.array([*other_mean, second[0, 0], second[0, 1], second[1, 1]])
    precision, shift = np.linalg.inv(covariance), other_mean - mean
    expected = 0.5 * (
        np.trace(precision @ other) + shift @ precision @ shift - 2 - np.linalg.slogdet(precision @ other)[1]
    )
    entropy = scipy.stats.multivariate_normal(other_mean, other).entropy()
    assert exact_kl(exact, base_entropy=exact.objective, moments=target) == 0.0
    np.testing.assert_allclose(exact_kl(exact, base_entropy=entropy, moments=moments), expected, atol=1e-4)


def test_exact_kl_of_the_prior_from_a_tilted_normal():
    """The prior has H_b = 0 and mean 0; its divergence is that of two normals m / |a| = 1.5 / sqrt(6) apart."""
    exact = EXACT["relative_entropy_mean"]()
    np.testing.assert_allclose(exact_kl(exact, base_entropy=0.0, moments=np.zeros(1)), 1.5**2 / 12)
