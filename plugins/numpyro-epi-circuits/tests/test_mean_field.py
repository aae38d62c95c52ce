"""The mean-field populations beside their published numbers and SciPy's quadrature of the same equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from numpyro_epi_circuits import mean_field_ei

import numpyro_epi as epi


def state(strength, sigma, **options):
    problem = mean_field_ei(**options)
    values = {
        "strength": jnp.reshape(jnp.array(strength, float), (2, 2)),
        "sigma": jnp.broadcast_to(jnp.array(sigma, float), (2, 2)),
    }
    sites = problem.simulator.simulate(jax.random.key(0), values).sites
    return np.asarray(problem.property.values(sites)["mean_field.state"])


def test_the_truth_behind_the_targets_is_found_again():
    """By SciPy's least squares: weights (1.3, -1.3, 1.3, -1), spreads 0.2, to the published digits' precision."""
    problem = mean_field_ei()

    @jax.jit
    def moments(x):
        values = {"strength": x[:4].reshape(2, 2), "sigma": x[4:].reshape(2, 2)}
        draw = problem.simulator.simulate(jax.random.key(0), values)
        return problem.property.moments(problem.property.values(draw.sites))

    slope = jax.jit(jax.jacobian(moments))
    found = scipy.optimize.least_squares(
        lambda x: np.asarray(moments(jnp.asarray(x, float)), float) - problem.target,
        x0=[1.2, 1.2, 1.2, 1.1, 0.18, 0.18, 0.18, 0.18],
        jac=lambda x: np.asarray(slope(jnp.asarray(x, float)), float),
    )
    assert np.max(np.abs(found.fun)) < 1e-4
    np.testing.assert_allclose(found.x, [1.301, 1.300, 1.300, 0.9995, 0.198, 0.201, 0.198, 0.201], atol=2e-3)


def test_published_forward_values():
    expected = (
        (0.65034, 0.81222, 0.88773),
        (0.84979, 1.19797, 1.48718),
        (0.27509, 0.32840, 0.43140),
        (0.27509, 0.32840, 0.43140),
    )
    np.testing.assert_allclose(state((1.0, 1.0, 1.0, 0.5), 0.2), expected, atol=2e-5)


def test_the_state_solves_the_equations_by_adaptive_quadrature():
    """Another integrator of the normal distribution, at contrast 1."""
    found = state((0.9, 1.2, 1.4, 0.8), 0.15)
    mu, delta = found[:2, 2], found[2:, 2]
    weights = np.array([[0.9, -1.2], [1.4, -0.8]])

    def moment(population, power):
        def integrand(x):
            return max(mu[population] + delta[population] * x, 0.0) ** power * scipy.stats.norm.pdf(x)

        return scipy.integrate.quad(integrand, -10, 10, points=[-mu[population] / delta[population]])[0]

    mean, square = (np.array([moment(i, power) for i in (0, 1)]) for power in (2, 4))
    np.testing.assert_allclose(weights @ (0.5 * mean) + 1.6, mu, atol=2e-3)
    np.testing.assert_allclose(0.15**2 * np.full((2, 2), 0.5) @ square + 0.25, delta, atol=2e-3)


def test_a_diverging_network_is_cut_off():
    assert state((0.8, 0.7, 0.9, 0.6), 0.2)[0, 2] == 10.0
    assert state((0.8, 0.7, 0.9, 0.6), 0.2, largest_input=1000.0)[0, 2] > 100.0


def test_components_are_named():
    names = [constraint.name for constraint in mean_field_ei().constraints]
    assert len(names) == 12
    assert "mu_E" in names[0] and "delta_I" in names[-1]


def test_registered():
    assert epi.get_problem("circuits.mean_field_ei").dim == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": ((1.0, 2.0),)}, r"Expected 4 rows of 3 finite targets; got shape \(1, 2\)"),
        ({"largest_input": 1.0}, "Expected largest_input above every target"),
        ({"largest_input": -1.0}, "Expected a finite largest_input > 0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        mean_field_ei(**arguments)
