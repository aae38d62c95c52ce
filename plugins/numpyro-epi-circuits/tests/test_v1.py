"""The visual cortex network: steady state and fluctuations computed by another program with the printed constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro_epi_circuits.v1 import excitatory_fluctuation, v1_ssn

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


def simulate(sigma, contrast=0.5, num_trials=2000):
    model = v1_ssn().simulator.model
    given = handlers.substitute(handlers.seed(model, 0), {"sigma": jnp.asarray(sigma, jnp.float32)})
    trace = handlers.trace(given).get_trace(contrast=contrast, num_trials=num_trials, bound=0.005)
    return {name: site["value"] for name, site in trace.items()}


@pytest.mark.parametrize(("sigma", "fluctuation"), FLUCTUATIONS.items())
def test_reference_fluctuations(sigma, fluctuation):
    """Within 3 percent: both are averages over trials."""
    assert excitatory_fluctuation(simulate(sigma)) == pytest.approx(fluctuation, rel=0.03)


@pytest.mark.parametrize(("contrast", "rate"), [(0.0, 19.196), (0.5, 45.915), (1.0, 52.336)])
def test_reference_steady_state(contrast, rate):
    rates = simulate([0.0] * 4, contrast, num_trials=3)["excitatory_rate"]
    np.testing.assert_allclose(rates[:, -1], rate, atol=2e-2)


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
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        v1_ssn(**options)
