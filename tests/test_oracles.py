"""The random exact problems: the same from the same seed, fair, varied, and their answers right by independent routes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from oracles import hard
from oracles.importance import sample
from oracles.strangers import FAMILIES, exact_kl, strangers

SEEDS = (0, 1, 2)
COUNT = len(FAMILIES)
NEEDED = {
    *("real", "positive", "interval", "circular", "simplex", "ordered", "correlation matrix", "cholesky", "mixed"),
    *("heavy", "scaled", "lebesgue", "improper", "prior", "modes", "needle", "hole", "tube", "shell", "hard"),
    *("redundant", "inactive", "noise", "discrete", "indicator", "declared", "mistaken", "mean only", "std"),
}
OFTEN = ("mixed_sites", "gated", "wells", "all_moments", "simplex", "ordered", "counts", "needles", "bump", "shell")
"""Families that show most of what all do."""
MORE = {"correlation": (1, 4, 8)}
"""Seeds of the other kinds of a family: a matrix of two, a Cholesky factor and a matrix of three variables."""


def cases(seeds, often):
    """Every family by these seeds, and by more where it needs them; slow but for the first seed of those named."""
    return [
        pytest.param(
            *(seed, index),
            id=f"{made_by.__name__}-{seed}",
            marks=[] if seed == 0 and made_by.__name__ in often else [pytest.mark.slow],
        )
        for index, made_by in enumerate(FAMILIES)
        for seed in sorted({*seeds, *MORE.get(made_by.__name__, ())})
    ]


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
@pytest.mark.parametrize(("seed", "index"), cases((0,), [made_by.__name__ for made_by in FAMILIES]))
def test_numpy_agrees_with_the_model(seed, index):
    """Moments, over the noise of many simulations where there is noise, and the log density of the base."""
    stranger, rng = family(seed, index), np.random.default_rng(0)
    problem, noisy = stranger.problem, bool(stranger.problem.simulator.noise)
    u = jnp.asarray(proposals(problem, rng, 6))
    repeats = 4000 if noisy else 1
    keys = jax.random.split(jax.random.key(1), (len(u), repeats))

    @jax.jit
    @jax.vmap
    def evaluate(keys, u):
        return jax.vmap(problem.evaluate, in_axes=(0, None))(keys, u), problem.simulator.constrain(u).sites

    found, sites = evaluate(keys, u)
    sites = {name: np.asarray(value) for name, value in sites.items()}
    moments, expected = np.asarray(found.moments), stranger.moments(sites)
    # Second moments are differences of larger numbers.
    rounding = 1e-9 * (np.abs(expected) + stranger.unit**2 + np.abs(stranger.mu))
    error = 5 * moments.std(axis=1) / np.sqrt(repeats) if noisy else 0.0
    assert np.all(np.abs(moments.mean(axis=1) - expected) < error + rounding)
    log_base = np.asarray(found.log_base - found.log_det)[:, 0]
    np.testing.assert_allclose(stranger.log_base(sites), log_base, rtol=1e-8, atol=1e-8)


def off(stranger, samples):
    """Differences of an answer and importance samples, in standard errors."""
    moments, sd = samples.mean(samples.moments), samples.mean((samples.moments - stranger.mu) ** 2)
    pairs = [(moments, stranger.mu), (sd, stranger.sd**2)]
    pairs.append(((samples.log_normalizer, samples.log_normalizer_error), stranger.log_normalizer))
    if stranger.modes is not None:
        modes = np.arange(len(stranger.modes.fractions))
        pairs.append((samples.mean(1.0 * (samples.labels[:, None] == modes)), stranger.modes.fractions))
    return np.concatenate([np.ravel(np.abs(found - exact) / (error + 1e-300)) for (found, error), exact in pairs])


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("seed", "index"), cases(SEEDS, OFTEN))
def test_answer_is_that_of_importance_sampling(seed, index):
    """Moments, their spreads, the normaliser and the modes at the exact multipliers, by draws and no quadrature."""
    stranger = family(seed, index)
    samples = sample(stranger, seed=0)
    assert samples.ess > 200
    assert np.max(off(stranger, samples)) < 5


def test_exact_kl_is_that_of_a_closed_form():
    """Between two gamma distributions of the same scale, for a problem whose answer is one."""
    index = [f.__name__ for f in FAMILIES].index("gamma_logs")
    stranger = family(0, index)
    dim = stranger.problem.dim
    rate, shape = stranger.eta[:dim], 1 - stranger.eta[dim:]
    other = shape * 1.3
    draws = np.random.default_rng(1).gamma(other, 1 / rate, (40_000, dim))
    log_q = np.sum(scipy.stats.gamma.logpdf(draws, other, scale=1 / rate), axis=1)
    digamma, gammaln = scipy.special.digamma, scipy.special.gammaln
    expected = np.sum((other - shape) * digamma(other) - gammaln(other) + gammaln(shape))
    kl, error = exact_kl(stranger, {"z": draws}, log_q)
    assert kl == pytest.approx(expected, abs=4 * error)
    assert error < 0.02 * expected
    itself = np.sum(scipy.stats.gamma.logpdf(draws, shape, scale=1 / rate), axis=1)
    np.testing.assert_allclose(stranger.log_density({"z": draws}), itself, rtol=1e-9, atol=1e-9)
    draws[:100] = -1.0
    assert exact_kl(stranger, {"z": draws}, log_q)[0] == np.inf


@pytest.mark.parametrize("seed", range(12))
def test_the_normaliser_of_a_bump_is_that_of_the_whole_box(seed: int):
    """By quadrature of the box: a ball as wide as the box once had a score in its corners that nobody counted."""
    stranger = hard.bump(np.random.default_rng(seed))
    dim = stranger.problem.dim
    bound = 0.5 * math.exp(-stranger.log_base({"z": np.zeros((1, dim))})[0] / dim)
    nodes, weights = np.polynomial.legendre.leggauss({2: 600, 3: 120}[dim])
    z = bound * np.stack(np.meshgrid(*[nodes] * dim, indexing="ij"), axis=-1).reshape(-1, dim)
    mass = np.prod(np.stack(np.meshgrid(*[weights / 2] * dim, indexing="ij"), axis=-1).reshape(-1, dim), axis=1)
    log_normalizer = math.log(mass @ np.exp(-stranger.moments({"z": z}) @ stranger.eta))
    assert abs(log_normalizer - stranger.log_normalizer) < 1e-4
