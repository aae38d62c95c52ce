"""The stomatogastric subcircuit: reference frequencies and voltages, computed in double precision by another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro_epi_circuits.stg import hub_frequency, stg

import numpyro_epi as epi

FREQUENCIES = {
    (4.5, 3.0): (0.3475, 0.3474, 0.3478),
    (6.1071167, 1.3093035): (0.5502, 0.5503, 0.5501),
    (4.0, 0.01): (0.6793, 0.6799, 0.6801),
    (8.0, 0.01): (0.6285, 0.6286, 0.6296),
    (4.0, 4.0): (0.3497, 0.3497, 0.3497),
    (8.0, 4.0): (0.3787, 0.3784, 0.3784),
    (6.0, 2.0): (0.6482, 0.6597, 0.6602),
    (5.0, 1.0): (0.6021, 0.6021, 0.6011),
    (7.0, 1.0): (0.5691, 0.5691, 0.5697),
    (6.0, 1.0): (0.5582, 0.5583, 0.5593),
}
"""Hub frequency, Hz, at ``(g_el, g_synA)`` in nS, without noise, by sharpness."""

SHARPNESSES = (50.0, 100.0, 500.0)


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def simulate(g_el, g_syn_a, **options):
    model = stg(**options).simulator.model
    kwargs = {"current_noise": options.get("current_noise", 1.0)}
    given = handlers.substitute(handlers.seed(model, 0), {"g_el": jnp.asarray(g_el), "g_synA": jnp.asarray(g_syn_a)})
    return {name: site["value"] for name, site in handlers.trace(given).get_trace(**kwargs).items()}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("conductances", "frequencies"), FREQUENCIES.items())
def test_reference_frequencies(conductances, frequencies):
    sites = simulate(*conductances, current_noise=0.0)
    found = [hub_frequency.bind(sharpness=sharpness)(sites) for sharpness in SHARPNESSES]
    np.testing.assert_allclose(found, frequencies, atol=1e-4)
    assert hub_frequency(sites) == found[-1]


@pytest.mark.usefixtures("double_precision")
def test_reference_frequencies_of_the_other_rhythms():
    """Of the first fast and the first slow cell, between which the hub's lies."""
    voltage = simulate(4.5, 3.0, current_noise=0.0)["voltage"]
    for cell, frequency in ((0, 0.680), (3, 0.3315)):
        assert abs(hub_frequency({"hub_voltage": voltage[:, cell]}) - frequency) < 1e-3


def test_noise_near_a_border_spreads_the_frequency():
    """The reference with noise at (4.5, 3) nS: mean 0.360 Hz, spread 0.028."""
    problem = stg()
    place = problem.simulator.unconstrain({"g_el": jnp.float32(4.5), "g_synA": jnp.float32(3.0)})
    keys = jax.random.split(jax.random.key(0), 1000)
    found = np.asarray(jax.jit(jax.vmap(problem.evaluate, (0, None)))(keys, place).moments[:, 0], float)
    # Both are of a thousand simulations at least; the last digit's half is their rounding.
    assert abs(found.mean() - 0.360) < 5 * np.sqrt(2) * 0.028 / np.sqrt(1000) + 5e-4
    assert found.std() == pytest.approx(0.028, rel=0.15)


@pytest.mark.usefixtures("double_precision")
def test_reference_voltages():
    voltage = simulate(4.5, 3.0, current_noise=0.0)["voltage"]
    np.testing.assert_allclose(voltage[1], [-0.039664, -0.042960, 0.008329, -0.069123, 0.026620], atol=1e-6)
    assert abs(voltage[300, 2] + 0.010736) < 2e-6


def test_single_precision_and_noise_leave_the_mode_s_frequency():
    """The reference with noise has a spread of 0.0003 Hz there."""
    assert abs(hub_frequency(simulate(6.1071167, 1.3093035)) - 0.5501) < 0.01


def test_prior_has_the_known_share_near_the_target():
    """26.7 % of the box within 0.05 Hz; mean 0.508, spread 0.110."""
    problem = stg()
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.vmap(problem.simulator.sample_prior)(keys)
    found = np.asarray(jax.jit(jax.vmap(problem.evaluate))(keys, draws).moments[:, 0], float)
    assert abs(found.mean() - 0.508) < 5 * 0.110 / np.sqrt(2000)
    assert abs(np.mean(np.abs(found - 0.55) < 0.05) - 0.267) < 5 * np.sqrt(0.267 * 0.733 / 2000)


def test_registered_problem_has_the_published_targets():
    problem = epi.get_problem("circuits.stg")
    np.testing.assert_allclose(problem.target, [0.55, 0.025**2])
    assert problem.dim == 2
    assert problem.constraints[0].name == "stg.hub_frequency"
    assert stg(sharpness=100.0).constraints[0].name == "stg.hub_frequency(100.0)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency_hz": -1.0}, r"Expected a finite frequency_hz > 0; got -1\.0"),
        ({"frequency_std_hz": 0.0}, r"Expected a finite frequency_std_hz > 0; got 0\.0"),
        ({"sharpness": 0.0}, r"Expected a finite sharpness > 0; got 0\.0"),
        ({"current_noise": -1.0}, r"Expected current_noise >= 0; got -1\.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stg(**options)
