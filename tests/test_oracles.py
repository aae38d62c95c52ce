"""The random exact problems: the same from the same seed, fair, varied, and their answers right by independent routes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from oracles.exact import Factor, Feature, solve
from oracles.strangers import FAMILIES, exact_kl, strangers

SEEDS = (0, 1, 2)
COUNT = len(FAMILIES)
NEEDED = {
    *("real", "positive", "interval", "circular", "simplex", "ordered", "correlation matrix", "cholesky", "mixed"),
    *("heavy", "scaled", "lebesgue", "improper", "prior", "modes", "needle", "hole", "tube", "shell", "hard"),
    *("redundant", "inactive", "noise", "discrete", "indicator", "declared", "mistaken", "mean only", "std"),
}


@pytest.fixture(scope="module")
def made():
    """All families of every seed."""
    return {seed: strangers(seed, COUNT) for seed in SEEDS}


def everyone(made):
    return [stranger for each in made.values() for stranger in each]


def family(seed, index):
    """One problem of one family, the same on every machine."""
    return FAMILIES[index](np.random.default_rng([seed, 2, index]))


def test_same_seed_makes_the_same_problems_and_others_differ(made):
    again, other = strangers(0, 5), strangers(3, 5)
    for first, second in zip(made[0][:5], again, strict=True):
        assert first.name == second.name
        np.testing.assert_array_equal(first.eta, second.eta)
        np.testing.assert_array_equal(first.problem.target, second.problem.target)
    assert [s.line for s in again] != [s.line for s in other]


def test_every_property_occurs(made):
    found = everyone(made)
    missing = NEEDED - set().union(*(s.tags for s in found))
    assert not missing
    dims = [s.problem.dim for s in found]
    assert min(dims) == 1 and max(dims) >= 15
    modes = [len(s.modes.fractions) for s in found if "modes" in s.tags]
    assert min(modes) == 2 and max(modes) == 8
    smallest = min(float(np.min(s.modes.fractions)) for s in found if "modes" in s.tags)
    assert 0.01 < smallest < 0.08
    scales = np.concatenate([s.unit[s.unit > 0] for s in found])
    assert scales.min() < 1e-6 and scales.max() > 1e5


def test_at_most_a_quarter_are_hard(made):
    for each in made.values():
        assert sum("hard" in s.tags for s in each) <= COUNT / 4


def test_targets_are_the_exact_moments(made):
    """In the order of ``problem.constraints``: means, then second moments about them."""
    for stranger in everyone(made):
        np.testing.assert_allclose(stranger.problem.target, stranger.mu, rtol=1e-12, atol=0)
        assert stranger.eta.shape == stranger.sd.shape == stranger.unit.shape == stranger.mu.shape
        assert np.all(np.isfinite(stranger.mu)) and np.all(stranger.unit > 0)
        if stranger.modes is not None:
            assert np.sum(stranger.modes.fractions) == pytest.approx(1, abs=1e-9)


def proposals(problem, rng, count):
    """Unconstrained vectors all over: from the prior where there is one, else of all scales."""
    if problem.simulator.has_proper_prior:
        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), count)
        return np.asarray(jax.vmap(problem.simulator.sample_prior)(keys), float)
    return rng.normal(size=(count, problem.dim)) * 2.0


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("index", range(COUNT), ids=lambda index: FAMILIES[index].__name__)
def test_numpy_agrees_with_the_model(index):
    """Moments, over the noise of many simulations where there is noise, and the log density of the base."""
    stranger, rng = family(0, index), np.random.default_rng(0)
    problem, noisy = stranger.problem, bool(stranger.problem.simulator.noise)
    u = jnp.asarray(proposals(problem, rng, 6))
    repeats = 4000 if noisy else 1
    keys = jax.random.split(jax.random.key(1), (len(u), repeats))
    found = jax.jit(jax.vmap(jax.vmap(problem.evaluate, in_axes=(0, None))))(keys, u)
    sites = {name: np.asarray(value) for name, value in jax.vmap(problem.simulator.constrain)(u).sites.items()}
    moments, expected = np.asarray(found.moments), stranger.moments(sites)
    # Second moments are differences of larger numbers.
    rounding = 1e-9 * (np.abs(expected) + stranger.unit**2 + np.abs(stranger.mu))
    error = 5 * moments.std(axis=1) / np.sqrt(repeats) if noisy else 0.0
    np.testing.assert_array_less(np.abs(moments.mean(axis=1) - expected), error + rounding)
    log_base = np.asarray(found.log_base - found.log_det)[:, 0]
    np.testing.assert_allclose(stranger.log_base(sites), log_base, rtol=1e-8, atol=1e-8)
