"""Predator and prey beside their constants of motion, SciPy's solver and the answer in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from numpyro_epi_biology.predator_prey import log_period, log_population, predator_prey

import numpyro_epi as epi

RATES = ("alpha", "beta", "gamma", "delta")
LINEAR = np.array([[0, 0, 1, -1], [1, -1, 0, 0], [-0.5, 0, -0.5, 0]])
"""Of the statistics in the rates' logarithms, in the order of `RATES`."""

PRIOR_MEAN, PRIOR_VARIANCE = np.log([1.0, 0.05, 1.0, 0.05]), 0.5**2


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def simulate(rates, **options):
    values = {name: jnp.asarray(rate, float) for name, rate in zip(RATES, rates, strict=True)}
    return predator_prey(**options).simulator.simulate(jax.random.key(0), values).sites


def exact_cycle(rates, start):
    """Period and means over it, by SciPy: the prey comes back down through the predator's equilibrium."""
    alpha, beta, gamma, delta = rates

    def slope(t, y):
        return [alpha * y[0] - beta * y[0] * y[1], delta * y[0] * y[1] - gamma * y[1], y[0], y[1]]

    def returns(t, y):
        return y[1] - start[1]

    returns.direction = 1
    longest = 4 * 2 * np.pi / np.sqrt(alpha * gamma)
    options = {"rtol": 1e-10, "atol": 1e-10, "events": returns}
    found = scipy.integrate.solve_ivp(slope, (0, longest), [*start, 0, 0], **options)
    after = found.t_events[0] > 1e-3 * longest
    period = found.t_events[0][after][0]
    return period, found.y_events[0][after][0][2:] / period


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("rates", [(0.55, 0.028, 0.8, 0.024), (1.5, 0.02, 0.4, 0.1)])
@pytest.mark.parametrize("displacement", [0.1, 1.0, 2.0])
def test_cycles_of_any_size_agree_with_scipy(rates, displacement):
    """Means and period of whole periods; a window of Hann's sees them to a few thousandths where cycles are large."""
    alpha, beta, gamma, delta = rates
    period, means = exact_cycle(rates, [gamma / delta * np.exp(displacement), alpha / beta])
    np.testing.assert_allclose(means, [gamma / delta, alpha / beta], rtol=1e-6)
    sites = simulate(rates, displacement=displacement)
    tolerance = 1e-4 if displacement < 1 else 0.02
    np.testing.assert_allclose(log_population(sites), np.log(means), atol=tolerance)
    assert log_period(sites) == pytest.approx(np.log(period), abs=tolerance)


@pytest.mark.usefixtures("double_precision")
def test_trajectory_agrees_with_scipy():
    rates = alpha, beta, gamma, delta = (0.55, 0.028, 0.8, 0.024)
    sites = simulate(rates, displacement=1.0)

    def slope(t, y):
        return [alpha * y[0] - beta * y[0] * y[1], delta * y[0] * y[1] - gamma * y[1]]

    times = np.asarray(sites["time"])
    start = [float(sites["prey"][0]), float(sites["predator"][0])]
    exact = scipy.integrate.solve_ivp(slope, (0, times[-1]), start, t_eval=times, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.stack([sites["prey"], sites["predator"]]), exact.y, rtol=2e-3)


@pytest.mark.parametrize("rates", [(0.55, 0.028, 0.8, 0.024), (3.0, 0.2, 0.3, 0.01)])
def test_small_cycles_have_the_closed_forms(rates):
    alpha, beta, gamma, delta = rates
    sites = simulate(rates, displacement=0.02)
    np.testing.assert_allclose(log_population(sites), np.log([gamma / delta, alpha / beta]), atol=1e-4)
    assert log_period(sites) == pytest.approx(math.log(2 * math.pi / math.sqrt(alpha * gamma)), abs=1e-3)


def closed_form():
    """Mean and covariance of the rates' logarithms in the answer, and its divergence from the prior, nats."""
    mean, variance = np.log([34.0, 20.0, 10.0]) - [0, 0, math.log(2 * math.pi)], np.array([0.2, 0.2, 0.1]) ** 2

    def covariance(weights):
        return np.linalg.inv(np.eye(4) / PRIOR_VARIANCE + LINEAR.T @ np.diag(weights) @ LINEAR)

    def excess(weights):
        return np.diag(LINEAR @ covariance(weights) @ LINEAR.T) / variance - 1

    weights = scipy.optimize.root(excess, 1 / variance, tol=1e-12)
    assert weights.success
    spread = covariance(weights.x)
    shift = np.linalg.solve(LINEAR @ spread @ LINEAR.T, mean - LINEAR @ PRIOR_MEAN)
    center = PRIOR_MEAN + spread @ LINEAR.T @ shift
    # The tilt's linear part moves the mean only along the columns of spread @ LINEAR.T.
    squares = np.trace(spread) / PRIOR_VARIANCE + np.sum((center - PRIOR_MEAN) ** 2) / PRIOR_VARIANCE
    return center, spread, 0.5 * (squares - 4 + 4 * np.log(PRIOR_VARIANCE) - np.linalg.slogdet(spread)[1])


def test_answer_in_closed_form_has_the_property():
    """Its draws, simulated, have every target within five standard errors and the shift of the period, below 0.001."""
    problem = predator_prey()
    center, spread, _ = closed_form()
    logs = np.random.default_rng(0).multivariate_normal(center, spread, 4000)
    values = {name: jnp.asarray(np.exp(column), float) for name, column in zip(RATES, logs.T, strict=True)}
    unconstrained = jax.vmap(problem.simulator.unconstrain)(values)
    keys = jax.random.split(jax.random.key(0), 4000)
    moments = np.asarray(jax.jit(jax.vmap(problem.evaluate))(keys, unconstrained).moments, float)
    allowed = 5 * moments.std(axis=0) / np.sqrt(4000) + 1e-3
    assert np.all(np.abs(moments.mean(axis=0) - problem.target) < allowed)


def test_stated_divergence_from_the_prior():
    assert closed_form()[2] == pytest.approx(5.2714, abs=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_gradients_are_those_of_the_closed_forms_and_of_difference_quotients():
    problem = predator_prey()
    center, direction = jnp.asarray(closed_form()[0]), jnp.array([0.5, -0.3, 0.7, 0.4])
    logs = center + 0.2 * jnp.array([1.0, -1.0, 2.0, 0.5])

    @jax.jit
    def values(u):
        return problem.evaluate(jax.random.key(0), u).moments[:3]

    u = problem.simulator.unconstrain(dict(zip(RATES, jnp.exp(logs), strict=True)))
    slopes = jax.jit(jax.jacrev(values))(u)
    np.testing.assert_allclose(slopes, LINEAR, atol=2e-3)
    quotient = (values(u + 1e-3 * direction) - values(u - 1e-3 * direction)) / 2e-3
    np.testing.assert_allclose(slopes @ direction, quotient, atol=1e-3)


def test_registered_problem_has_its_targets():
    problem = epi.get_problem("biology.predator_prey")
    means = np.log([34.0, 20.0, 10.0])
    np.testing.assert_allclose(problem.target, [*means, 0.2**2, 0.2**2, 0.1**2], rtol=1e-6)
    assert problem.dim == 4
    assert "prey" in problem.constraints[0].name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prey": 0.0}, r"Expected a finite prey > 0; got 0\.0"),
        ({"period_spread": math.inf}, "Expected a finite period_spread > 0; got inf"),
        ({"displacement": 2.5}, r"Expected displacement <= 2; got 2\.5"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        predator_prey(**options)
