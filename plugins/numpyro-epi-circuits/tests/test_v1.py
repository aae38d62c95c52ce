"""The visual cortex network: steady state and fluctuations computed by another program with the printed constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro_epi_circuits.v1 import WEIGHTS, _Given, _simulated, excitatory_fluctuation, v1_ssn

import numpyro_epi as epi

FLUCTUATIONS = {
    (0.001, 0.001, 0.001, 0.001): 2.32,
    (0.0025, 0.0025, 0.0025, 0.0025): 6.49,
    (0.005, 0.005, 0.005, 0.005): 17.4,
    (0.005, 0, 0, 0): 11.06,
    (0, 0.005, 0, 0): 9.44,
    (0, 0, 0.005, 0): 0.65,
    (0, 0, 0, 0.005): 0.45,
    (0.0025, 0, 0, 0): 4.50,
    (0, 0.0025, 0, 0): 4.01,
}
"""``s_E`` in Hz at ``(sigma_E, sigma_P, sigma_S, sigma_V)``."""


RATES = {
    0.0: (19.196, 19.393, 11.605, 42.195),
    0.5: (45.915, 54.017, 27.481, 49.258),
    1.0: (52.336, 67.541, 54.387, 28.690),
}
"""Hz, of E, P, S and V in the steady state without noise, by contrast."""

BY_RECURRENT_WEIGHT, BY_STEP = {2.175: 4.73, 2.18: 6.49, 2.185: 10.46}, {0.5: 6.5, 0.25: 5.7, 0.1: 5.25, 0.05: 5.04}
"""``s_E`` in Hz where every noise is 0.0025, by the weight of E onto itself and by the Euler step in ms."""


def simulate(sigma, num_trials=2000, **options):
    problem = v1_ssn(num_trials=num_trials, **options)
    given = handlers.substitute(handlers.seed(problem.simulator.model, 0), {"sigma": jnp.asarray(sigma, jnp.float32)})
    trace = handlers.trace(given).get_trace(**problem.simulator.kwargs)
    return {name: site["value"] for name, site in trace.items()}


@pytest.mark.parametrize(("sigma", "fluctuation"), FLUCTUATIONS.items())
def test_reference_fluctuations(sigma, fluctuation):
    """Within 3 percent: both are averages over trials."""
    assert excitatory_fluctuation(simulate(sigma)) == pytest.approx(fluctuation, rel=0.03)


@pytest.mark.parametrize(("contrast", "rates"), RATES.items())
def test_reference_steady_state(contrast, rates):
    start = jax.random.uniform(jax.random.key(0), (3, 4), minval=0.1, maxval=0.25)
    given = _Given(contrast, 0.5, WEIGHTS)
    found = _simulated(jnp.zeros(4), start, jnp.zeros((200, 3, 4)), given, measure=lambda t, state, noise: state[0])
    np.testing.assert_allclose(100 * found[-1], np.tile(rates, (3, 1)), atol=2e-2)
    measured = simulate([0.0] * 4, num_trials=3, contrast=contrast)["excitatory_rate"]
    np.testing.assert_allclose(measured[:, -1], rates[0], atol=2e-2)


@pytest.mark.parametrize(("weight", "fluctuation"), BY_RECURRENT_WEIGHT.items())
def test_reference_fluctuations_by_recurrent_weight(weight, fluctuation):
    weights = ((weight, *WEIGHTS[0][1:]), *WEIGHTS[1:])
    found = excitatory_fluctuation(simulate([0.0025] * 4, weights=weights))
    # Both are averages over trials, and the larger the fluctuations, the more these differ between trials.
    assert found == pytest.approx(fluctuation, rel=0.03)


@pytest.mark.parametrize(("step", "fluctuation"), BY_STEP.items())
def test_reference_fluctuations_by_step(step, fluctuation):
    assert excitatory_fluctuation(simulate([0.0025] * 4, step=step)) == pytest.approx(fluctuation, rel=0.03)


def test_the_last_25_ms_are_measured():
    assert simulate([0.0025] * 4, num_trials=2)["excitatory_rate"].shape == (2, 50)
    shorter = simulate([0.0025] * 4, num_trials=2, duration=75.0, step=0.25)
    assert shorter["excitatory_rate"].shape == (2, 100)
    assert shorter["noise"].shape == (300, 2, 4)


def test_gradient_without_noise_is_finite():
    problem = v1_ssn(num_trials=2)
    gradient = jax.grad(lambda u: problem.evaluate(jax.random.key(0), u).moments[0])(jnp.full(4, -20.0))
    assert jnp.all(jnp.isfinite(gradient))


def test_registered_problem_has_the_published_targets():
    np.testing.assert_allclose(epi.get_problem("circuits.v1_ssn").target, [5.0, 1.0])
    np.testing.assert_allclose(epi.get_problem("circuits.v1_ssn", fluctuation_hz=10.0).target, [10.0, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fluctuation_hz": 0.0}, r"Expected a finite fluctuation_hz > 0; got 0\.0"),
        ({"num_trials": 0}, "Expected num_trials to be an integer >= 1; got 0"),
        ({"contrast": 1.5}, r"Expected a contrast from 0 to 1; got 1\.5"),
        ({"step": 0.0}, r"Expected a finite step > 0; got 0\.0"),
        ({"step": 0.3}, r"Expected a whole number of steps in the duration; got step=0\.3, duration=100\.0"),
        ({"step": 2.0, "duration": 50.0}, "Expected a whole number of steps in its last 25 ms"),
        ({"duration": 20.0}, r"Expected a duration of 25 ms or more, which are measured; got 20\.0"),
        ({"weights": [[1.0, 2.0], [3.0]]}, "Expected weights of 4 rows of 4 finite numbers; got"),
        ({"weights": [[np.nan] * 4] * 4}, "Expected weights of 4 rows of 4 finite numbers; got"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        v1_ssn(**options)
