"""Growth and frequency measured on trajectories, beside the eigenvalues of the matrix that made them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from numpyro_epi_dynamics import linear2d, trajectory
from numpyro_epi_dynamics.problems import START, oscillator_simulated

import numpyro_epi as epi

STEP = 0.05
TIMES = STEP * np.arange(21)
MATRICES = np.random.default_rng(0).uniform(-10, 10, (200, 2, 2))
ROTATES = np.abs(np.linalg.eigvals(MATRICES).imag).max(axis=1) > 0.5


def exact_trajectory(matrix):
    return np.stack([scipy.linalg.expm(matrix * t) @ START for t in TIMES])


@pytest.mark.parametrize("measure", ["growth_rate", "angular_frequency"])
def test_rotating_trajectories_have_their_eigenvalues(measure):
    measured = getattr(trajectory, measure).bind(step=STEP)
    direct = getattr(linear2d, measure)
    for matrix in MATRICES[ROTATES]:
        found = measured({"x": jnp.asarray(exact_trajectory(matrix), jnp.float32)})
        assert abs(found - direct({"A": jnp.asarray(matrix)})) < 2e-2


def test_trajectories_that_do_not_rotate_grow_at_the_faster_rate():
    for rates in ([1.0, -2.0], [-1.0, -3.0], [0.5, 0.1]):
        samples = np.exp(np.outer(TIMES, rates)) * [1.0, -0.5]
        sites = {"x": jnp.asarray(samples, jnp.float32)}
        assert abs(trajectory.growth_rate.bind(step=STEP)(sites) - max(rates)) < 5e-3
        assert trajectory.angular_frequency.bind(step=STEP)(sites) == 0


def test_simulated_oscillator_agrees_with_the_eigenvalues():
    """At matrices near the property, where the answer lies."""
    problem = oscillator_simulated()
    offsets = np.random.default_rng(1).normal(0.0, 0.3, (100, 2, 2))
    matrices = jnp.asarray(np.array([[0.0, 2 * np.pi], [-2 * np.pi, 0.0]]) + offsets, jnp.float32)

    def both(matrix):
        u = problem.simulator.unconstrain({"A": matrix})
        found = problem.evaluate(jax.random.key(0), u).moments[:2]
        sites = {"A": matrix}
        return found, jnp.stack([linear2d.growth_rate(sites), linear2d.angular_frequency(sites)])

    found, expected = jax.jit(jax.vmap(both))(matrices)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_simulated_gradient_is_that_of_the_eigenvalues():
    problem = oscillator_simulated()
    matrix = jnp.array([[0.5, 7.0], [-5.5, -0.3]])

    def simulated(matrix):
        return problem.evaluate(jax.random.key(0), problem.simulator.unconstrain({"A": matrix})).moments[1]

    found = jax.jit(jax.grad(simulated))(matrix)
    expected = jax.grad(lambda a: linear2d.angular_frequency({"A": a}))(matrix)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.slow
def test_prior_simulations_are_finite_and_so_are_their_gradients():
    problem = oscillator_simulated()
    draws = jax.vmap(problem.simulator.sample_prior)(jax.random.split(jax.random.key(0), 500))
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda u: problem.evaluate(jax.random.key(0), u).moments)))(draws)
    assert jnp.all(jnp.isfinite(slopes))


@pytest.mark.parametrize("measure", [trajectory.growth_rate, trajectory.angular_frequency])
def test_bad_trajectories_are_named(measure):
    with pytest.raises(ValueError, match=r"Expected site 'x' to be a trajectory of shape .*; got shape \(5, 3\)"):
        measure.bind(step=STEP)({"x": jnp.zeros((5, 3))})
    with pytest.raises(ValueError, match=r"Expected a finite step > 0; got 0\.0"):
        measure.bind(step=0.0)({"x": jnp.zeros((5, 2))})


def test_registered_problem_has_the_published_targets():
    problem = epi.get_problem("dynamics.oscillator_simulated")
    np.testing.assert_allclose(problem.target, [0, 2 * np.pi, 0.25**2, (0.2 * np.pi) ** 2])


def test_samples_too_far_apart_are_refused():
    with pytest.raises(ValueError, match=r"Expected num_samples >= 5 for 1\.0 s of up to 10\.0 rad/s; got 4"):
        oscillator_simulated(num_samples=4)
