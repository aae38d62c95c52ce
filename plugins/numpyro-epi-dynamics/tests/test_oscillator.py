"""The oscillator problems: found by name, with the published targets, on matrices in the box."""

import jax
import numpy as np
import pytest

import numpyro_epi as epi

ANGULAR = 2 * np.pi
TARGETS = {
    "dynamics.oscillator": [0, ANGULAR, 0.25**2, (0.2 * np.pi) ** 2],
    "dynamics.oscillator_tutorial": [0, ANGULAR, 0.5**2, (0.2 * np.pi) ** 2],
}
BAD = {
    "spread of the growth rate": ({"growth_std": 0.0}, r"Expected a finite growth_std > 0; got 0\.0"),
    "spread of the frequency": ({"frequency_std_hz": -0.1}, r"Expected a finite frequency_std_hz > 0; got -0\.1"),
    "negative frequency": ({"frequency_hz": -1.0}, r"Expected a finite frequency_hz > 0; got -1\.0"),
    "endless box": ({"bound": np.inf}, "Expected a finite bound > 0; got inf"),
    "too fast for the box": ({"frequency_hz": 1.6}, r"Expected frequency_hz below 1\.592, .*; got 1\.6\. Raise"),
    "growth outside the box": ({"growth_mean": -10.0}, r"Expected growth_mean between -10\.0 and 10\.0.*; got -10\.0"),
    "growth is no number": ({"growth_mean": np.nan}, "Expected growth_mean between .*; got nan"),
}


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_registered_problem_has_the_published_targets(name, target):
    problem = epi.get_problem(name)
    np.testing.assert_allclose(problem.target, target)
    assert problem.name == name


def test_constraints_are_named_with_units():
    constraints = epi.get_problem("dynamics.oscillator").constraints
    assert [(c.name, c.unit, c.order) for c in constraints] == [
        ("linear2d.growth_rate", "1/s", 1),
        ("linear2d.angular_frequency", "rad/s", 1),
        ("var linear2d.growth_rate", "(1/s)^2", 2),
        ("var linear2d.angular_frequency", "(rad/s)^2", 2),
    ]


def test_targets_can_be_passed():
    problem = epi.get_problem(
        "dynamics.oscillator", growth_mean=-1.0, growth_std=0.1, frequency_hz=2.0, frequency_std_hz=0.5, bound=20.0
    )
    np.testing.assert_allclose(problem.target, [-1, 2 * ANGULAR, 0.1**2, np.pi**2])


def test_prior_is_uniform_in_the_box():
    problem = epi.get_problem("dynamics.oscillator", bound=8.0)
    assert problem.dim == 4
    draws = jax.vmap(problem.simulator.sample_prior)(jax.random.split(jax.random.key(0), 4000))
    entries = np.asarray(jax.vmap(lambda u: problem.simulator(jax.random.key(0), u).sites["A"])(draws)).ravel()
    assert np.abs(entries).max() <= 8
    # Five standard errors of the mean and of the mean square of a uniform variable on [-8, 8].
    assert abs(entries.mean()) < 5 * (8 / np.sqrt(3)) / np.sqrt(entries.size)
    assert abs((entries**2).mean() - 64 / 3) < 5 * 64 * np.sqrt(4 / 45) / np.sqrt(entries.size)


def test_moments_are_at_their_targets_where_the_property_holds():
    """Half of each spread's two ends: a hand-made pair of matrices whose moments are the targets exactly."""
    problem = epi.get_problem("dynamics.oscillator")
    growth, angular = np.array([-0.25, 0.25]), ANGULAR * np.array([0.9, 1.1])
    matrices = np.array([[[g, w], [-w, g]] for g, w in zip(growth, angular, strict=True)], dtype=np.float32)
    unconstrained = jax.vmap(lambda a: problem.simulator.unconstrain({"A": a}))(matrices)
    keys = jax.random.split(jax.random.key(0), 2)
    moments = jax.vmap(problem.evaluate)(keys, unconstrained).moments.mean(axis=0)
    # Through the box's sigmoid and back in single precision.
    np.testing.assert_allclose(moments, problem.target, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        epi.get_problem("dynamics.oscillator", **arguments)


def test_answer_has_the_known_spreads():
    """About 3.3 and 7.4 for the diagonal's entries and the others, by six million weighed draws of another program."""
    found = epi.solve_dual(jax.random.key(0), epi.get_problem("dynamics.oscillator"), method="reweight")
    weight = np.exp(np.ravel(found.log_weight))
    draws = np.asarray(found.draws()["A"], float).reshape(-1, 2, 2)
    mean = np.einsum("n,nij->ij", weight, draws)
    spread = np.sqrt(np.einsum("n,nij->ij", weight, np.square(draws - mean)))
    np.testing.assert_allclose(spread, [[3.3, 7.4], [7.4, 3.3]], rtol=0.06)
    # Half of the mass in each of two modes.
    assert weight[draws[:, 0, 1] > 0].sum() == pytest.approx(0.5, abs=0.05)
