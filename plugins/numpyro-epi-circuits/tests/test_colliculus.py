"""The superior colliculus: accuracies and end states computed by another program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro_epi_circuits.colliculus import (
    WEIGHT_NAMES,
    anti_accuracy,
    pro_accuracy,
    sc_task_switching,
    task_inputs,
)

import numpyro_epi as epi

ACCURACIES = {
    (0.378, -2.581, -1.094, -1.312): (0.724, 0.735),
    (0.5, -2.5, -1.0, -1.5): (0.862, 0.581),
    (-0.75, -2.0, -1.0, -2.0): (0.651, 0.498),
    (0.0, 0.0, 0.0, 0.0): (0.503, 0.497),
    (0.249, -2.96, -0.881, -1.214): (0.705, 0.696),
    (-0.439, -2.869, -0.881, -1.165): (0.804, 0.681),
    (-0.877, -2.733, -1.788, -1.35): (0.742, 0.738),
    (-0.027, -4.228, -0.86, -1.135): (0.752, 0.690),
}
"""In Pro and Anti trials, 20,000 of each, at ``(sW, vW, dW, hW)``."""

END_STATES = {
    (0.0, 0.0, 0.0, 0.0): ([0.9971, 0.9791, 0.9781, 0.9970], [0.9971, 0.9791, 0.9781, 0.9970]),
    (0.378, -2.581, -1.094, -1.312): ([0.9300, 0.0001, 0.0001, 0.9007], [0.0006, 0.9154, 0.0006, 0.8778]),
    (-0.75, -2.0, -1.0, -2.0): ([0.8574, 0.0043, 0.2991, 0.0301], [0.8559, 0.0045, 0.2972, 0.0317]),
}
"""Without noise, by task; units in the order left Pro, left Anti, right Anti, right Pro."""

NUM_TRIALS = 20_000


def simulate(weights, num_trials=NUM_TRIALS, noisy=True, **silencing):
    given = {name: jnp.float32(weight) for name, weight in zip(WEIGHT_NAMES, weights, strict=True)}
    if not noisy:
        given |= {"start": jnp.zeros((2, num_trials, 4)), "noise": jnp.zeros((74, 2, num_trials, 4))}
    model = handlers.substitute(handlers.seed(sc_task_switching().simulator.model, 0), given)
    trace = handlers.trace(model).get_trace(num_trials=num_trials, bound=5.0, **silencing)
    return {name: site["value"] for name, site in trace.items()}


@pytest.mark.parametrize(("weights", "accuracies"), ACCURACIES.items())
def test_reference_accuracies(weights, accuracies):
    """Five standard errors of the difference of two averages."""
    sites = simulate(weights)
    error = 5 * 0.0035 * np.sqrt(2)
    assert abs(pro_accuracy(sites) - accuracies[0]) < error
    assert abs(anti_accuracy(sites) - accuracies[1]) < error


@pytest.mark.parametrize(("weights", "states"), END_STATES.items())
def test_reference_end_states(weights, states):
    np.testing.assert_allclose(simulate(weights, 1, noisy=False)["activity"][:, 0], states, atol=1e-4)


def test_inputs_are_shown_when_the_task_shows_them():
    """0.75 to all, 0.5 to Pro, then the rule 0.6 for 49 steps, the choice 0.25 for 24 and the light 0.5 for 12."""
    pro, anti = task_inputs().swapaxes(0, 1).sum(axis=1)
    rule, choice, light = 49 * 0.6, 24 * 0.25, 12 * 0.5
    to_pro, to_anti = 74 * 1.25 + choice, 74 * 0.75 + choice
    np.testing.assert_allclose(pro, [to_pro + rule + light, to_anti + light, to_anti, to_pro + rule])
    np.testing.assert_allclose(anti - pro, [-rule, rule, rule, -rule])


@pytest.mark.parametrize(
    ("period", "first", "last"), [("delay", 0.8, 1.2), ("choice", 1.2, 2.0), ("all", 0.0, 2.0)], ids=str
)
def test_silenced_units_are_those_of_a_plain_loop(period, first, last):
    """Another program's loop, without noise; output is weaker from the step at 0.8 s (0.816) to that before 1.2 s."""
    weights = (0.249, -2.96, -0.881, -1.214)
    s, v, d, h = weights
    matrix = np.array([[s, v, d, h], [v, s, h, d], [d, h, s, v], [h, d, v, s]])
    u = np.full((2, 4), 0.5 * np.arctanh(2 * 0.1 - 1) - 0.05)
    for i in range(74):
        output = np.tanh((u - 0.05) / 0.5) / 2 + 0.5
        if first <= 0.024 * i < last:
            output = output * 0.325
        u = u + 0.024 / 0.09 * (output @ matrix.T - u + task_inputs()[i])
    end = (np.tanh((u - 0.05) / 0.5) / 2 + 0.5) * (0.325 if period != "delay" else 1.0)
    found = simulate(weights, 1, noisy=False, inactivation=0.675, period=period)
    np.testing.assert_allclose(found["activity"][:, 0], end, atol=2e-5)


def test_silencing_in_the_delay_costs_anti_trials_more():
    """At weights of the published answer's low-self regime; with all of it gone, Anti trials are at chance or below."""
    weights = (-0.877, -2.733, -1.788, -1.35)
    before, after = simulate(weights), simulate(weights, inactivation=0.85, period="delay")
    assert pro_accuracy(after) > pro_accuracy(before) - 0.02
    assert anti_accuracy(after) < anti_accuracy(before) - 0.1


@pytest.mark.slow
def test_known_share_of_the_prior_has_the_property():
    """4.0e-4 of the box has both accuracies within 60 to 90 %."""
    problem, number = sc_task_switching(num_trials=100), 20_000

    @jax.jit
    def accuracies(keys):
        return jax.lax.map(
            lambda key: problem.evaluate(key, problem.simulator.sample_prior(key)).moments[:2], keys, batch_size=200
        )

    found = np.asarray(accuracies(jax.random.split(jax.random.key(0), number)), float)
    count = np.sum(np.all(np.abs(found - 0.75) < 0.15, axis=1))
    # A Poisson count of mean 8.
    assert 1 <= count <= 19


def test_registered_problem_has_the_published_targets():
    problem = epi.get_problem("circuits.sc_task_switching")
    np.testing.assert_allclose(problem.target, [0.75, 0.75, 0.075**2, 0.075**2])
    assert problem.dim == 4
    assert jax.eval_shape(problem.evaluate, jax.random.key(0), jnp.zeros(4)).moments.shape == (4,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 1.5}, r"Expected an accuracy between 0 and 1; got 1\.5"),
        ({"accuracy_std": 0.0}, r"Expected a finite accuracy_std > 0; got 0\.0"),
        ({"inactivation": 1.5}, r"Expected an inactivation from 0 to 1; got 1\.5"),
        ({"period": "rule"}, r"Expected a period among \['delay', 'choice', 'all'\]; got 'rule'"),
        ({"num_trials": 0}, "Expected num_trials to be an integer >= 1; got 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sc_task_switching(**options)
