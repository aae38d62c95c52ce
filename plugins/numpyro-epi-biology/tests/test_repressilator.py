"""The repressilator beside its Jacobian's eigenvalues (NumPy), another solver (SciPy) and signals of known period."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from numpyro_epi_biology.repressilator import amplitude, period, repressilator

import numpyro_epi as epi

LEAK = 1e-3


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def problem():
    return repressilator()


def simulate(problem, log10_alpha, log10_beta, n):
    given = {"log10_alpha": log10_alpha, "log10_beta": log10_beta, "n": n}
    values = {name: jnp.asarray(value, float) for name, value in given.items()}
    return problem.simulator.simulate(jax.random.key(0), values).sites


def slope(t, state, alpha, beta, n):
    """Of the six variables, gene by gene as printed: each is repressed by the one before it."""
    m, p = state[:3], state[3:]
    transcription = np.array([alpha / (1 + p[j] ** n) + LEAK * alpha for j in (2, 0, 1)])
    return np.concatenate([transcription - m, beta * (m - p)])


def leading_eigenvalue(alpha, beta, n):
    """Of the Jacobian at the symmetric fixed point, by NumPy: largest real part among those that turn."""
    p = scipy.optimize.brentq(lambda p: alpha / (1 + p**n) + LEAK * alpha - p, 1e-6, 2 * alpha)
    repression = -alpha * n * p ** (n - 1) / (1 + p**n) ** 2
    ring = repression * np.roll(np.eye(3), 1, axis=0)
    jacobian = np.block([[-np.eye(3), ring], [beta * np.eye(3), -beta * np.eye(3)]])
    eigenvalues = np.linalg.eigvals(jacobian)
    return max(eigenvalues[eigenvalues.imag > 1e-6], key=lambda value: value.real)


def onset(beta, n):
    """``alpha`` at the Hopf bifurcation."""
    return scipy.optimize.brentq(lambda alpha: leading_eigenvalue(alpha, beta, n).real, 1.0, 40.0)


@pytest.mark.parametrize(("log10_beta", "n"), [(0.0, 2.0), (-0.7, 2.0), (-1.0, 3.0), (0.7, 3.0)])
def test_period_near_the_onset_is_the_eigenvalue_s(problem, log10_beta, n):
    """In single precision. Larger turns are slower, so the tolerance grows with what is left of the start's amplitude."""
    beta = 10**log10_beta
    critical = onset(beta, n)
    for share, tolerance in ((0.5, 3e-3), (0.8, 0.015), (1.0, 0.04)):
        sites = simulate(problem, np.log10(share * critical), log10_beta, n)
        expected = 2 * np.pi / leading_eigenvalue(share * critical, beta, n).imag
        assert period(sites) == pytest.approx(expected, rel=tolerance)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("parameters", [(2.3, -0.7, 2.0), (1.0, 0.3, 3.0), (3.0, -1.0, 4.0)])
def test_trajectory_and_period_agree_with_scipy(problem, parameters):
    """The period is the time between two returns of a protein on the limit cycle."""
    log10_alpha, log10_beta, n = parameters
    sites = simulate(problem, *parameters)
    times, constants = np.asarray(sites["time"]), (10**log10_alpha, 10**log10_beta, n)
    start = np.exp(np.tile(np.asarray(sites["log_protein"][0]), 2))
    options = {"method": "LSODA", "args": constants, "rtol": 1e-9, "atol": 1e-9}
    exact = scipy.integrate.solve_ivp(slope, (0, times[-1]), start, t_eval=times, **options)
    np.testing.assert_allclose(sites["log_protein"], np.log(exact.y[3:]).T, atol=2e-3)

    def rises(t, state, *constants):
        return state[3] - state[0]

    rises.direction = -1
    long = scipy.integrate.solve_ivp(slope, (0, 10 * times[-1]), start, events=rises, **options)
    returns = np.diff(long.t_events[0])[-5:]
    np.testing.assert_allclose(returns, returns.mean(), rtol=1e-4)
    assert period(sites) == pytest.approx(returns.mean(), rel=0.02)


def test_statistics_of_waves_have_their_closed_forms():
    """A third of a turn lies between neighbours; a drift that all share is not a turn."""
    time = jnp.linspace(0.0, 20.0, 129)
    for length in (4.3, 6.0):
        phase = 2 * jnp.pi * (time[:, None] / length + jnp.arange(3) / 3)
        waves = 1.5 * jnp.sin(phase)
        assert period({"time": time, "log_protein": waves + 0.1 * time[:, None]}) == pytest.approx(length, rel=1e-3)
        assert amplitude({"log_protein": waves + 5.0}) == pytest.approx(1.5 / np.sqrt(2), rel=0.01)
    assert amplitude({"log_protein": jnp.ones((129, 3))}) == 0


def test_period_of_a_decaying_wave_is_not_that_of_its_rounding():
    time = jnp.linspace(0.0, 20.0, 129)
    phase = 2 * jnp.pi * (time[:, None] / 5.0 + jnp.arange(3) / 3)
    noise = 1e-6 * jax.random.normal(jax.random.key(0), phase.shape)
    waves = jnp.exp(-1.0 * time)[:, None] * jnp.sin(phase) + noise
    assert period({"time": time, "log_protein": waves}) == pytest.approx(5.0, rel=0.01)


def test_gradient_of_a_signal_that_never_moves_is_zero():
    gradient = jax.grad(lambda x: amplitude({"log_protein": x}))(jnp.ones((16, 3)))
    assert jnp.all(gradient == 0)


def test_amplitude_says_whether_oscillations_last(problem):
    critical = np.log10(onset(1.0, 2.0))
    assert amplitude(simulate(problem, critical - 0.3, 0.0, 2.0)) < 0.05
    assert amplitude(simulate(problem, critical + 0.5, 0.0, 2.0)) > 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_gradients_are_difference_quotients():
    """The solver's choice of steps has no gradient: quotients see it to its tolerance."""
    problem, direction = repressilator(), jnp.array([0.5, -0.6, 0.7])
    moments = jax.jit(lambda u: problem.evaluate(jax.random.key(0), u).moments[:2])
    slopes = jax.jit(jax.jacrev(moments))
    for u in ([0.5, -0.5, 0.0], [-1.0, 1.0, 1.0], [1.0, 0.0, 0.5]):
        u = jnp.array(u)
        found = slopes(u) @ direction
        quotient = (moments(u + 1e-2 * direction) - moments(u - 1e-2 * direction)) / 2e-2
        np.testing.assert_allclose(found, quotient, rtol=0.02, atol=2e-3)


@pytest.mark.slow
def test_prior_draws_are_finite_and_turn_forwards(problem):
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.vmap(problem.simulator.sample_prior)(keys)
    moments = jax.jit(jax.vmap(problem.evaluate))(keys, draws).moments
    assert jnp.all(jnp.isfinite(moments))
    assert jnp.all((moments[:, 0] > 4) & (moments[:, 0] < 200))


def test_registered_problem_has_its_targets():
    problem = epi.get_problem("biology.repressilator")
    np.testing.assert_allclose(problem.target, [55.0, 1.5, 14.0**2, 0.3**2])
    assert problem.dim == 3
    assert problem.simulator.noise == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period_std": 0.0}, r"Expected a finite period_std > 0; got 0\.0"),
        ({"amplitude_mean": np.nan}, "Expected a finite amplitude_mean > 0; got nan"),
        ({"leak": 1.0}, r"Expected a leak of at least 0 and below 1; got 1\.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        repressilator(**options)
