"""Normals of a flow's base, beside SciPy's densities and the mixtures that draws are from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flowjax.bijections import Chain

from numpyro_epi import _normals

CENTRES, SPREADS, SHARES = (
    np.array([[-1.0, 0.3], [0.8, -0.6], [1.1, 1.2]]),
    np.array([[0.3], [1e-2], [1e-3]]),
    [0.5, 0.3, 0.2],
)


def draws_of(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    label = rng.choice(3, size=count, p=SHARES)
    return CENTRES[label] + SPREADS[label] * rng.normal(size=(count, 2))


def exact_log_density(draws: np.ndarray) -> np.ndarray:
    densities = [
        share * scipy.stats.norm.pdf(draws, centre, spread).prod(axis=1)
        for share, centre, spread in zip(SHARES, CENTRES, SPREADS, strict=True)
    ]
    return np.log(np.sum(densities, axis=0))


def test_density_is_that_of_the_mixture():
    draws = draws_of(0, 100)
    found = _normals.Normals(CENTRES, np.broadcast_to(SPREADS, (3, 2)), 7 * np.array(SHARES)).log_density(draws)
    np.testing.assert_allclose(found - np.log(2 * np.pi), exact_log_density(draws), rtol=1e-9)


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_step_never_makes_the_draws_less_likely(seed: int):
    draws = draws_of(seed, 2000)
    found = _normals.Normals(np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones((2, 2)), np.ones(2))
    likelihoods = []
    for _ in range(20):
        found = found.likelier(draws)
        likelihoods.append(found.log_density(draws).mean())
    # Every step adds the least spread, in quadrature.
    assert np.all(np.diff(likelihoods) > -1e-6)


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_needles_of_any_width_are_found(seed: int):
    """Up to what 15 free numbers cost, 15 / 2N, a few times, and the least spread, a thousandth of the thinnest."""
    draws, others = draws_of(seed, 8000), draws_of(seed + 100, 8000)
    scale = draws.std(axis=0)
    found = _normals.fitted(draws / scale, 4).log_density(others / scale) - np.log(2 * np.pi) - np.log(scale).sum()
    short = exact_log_density(others) - found
    assert short.mean() < 0.02 + 4 * short.std() / np.sqrt(len(short))


@pytest.mark.parametrize("width", [1e-4, 1e-5])
def test_needles_far_thinner_than_all_draws_keep_their_widths(width: float):
    centres, label = np.array([-1.3, -0.2, 0.5, 1.4]), np.random.default_rng(31).integers(0, 4, size=8000)
    draws = centres[label] + width * np.random.default_rng(32).normal(size=8000)
    found = _normals.fitted(draws[:, None], 4)
    # Four standard errors of the spread of 2000 draws.
    np.testing.assert_allclose(found.spreads, width, rtol=4 / np.sqrt(2 * 2000))


def test_clusters_of_one_draw_become_parts_of_the_largest_that_differ():
    draws = np.concatenate([draws_of(3, 300)[:, :1], [[50.0], [-40.0]]])
    found = _normals.fitted(draws, 4)
    assert np.all(np.isfinite(np.concatenate([found.centres, found.spreads]))) and np.all(found.spreads > 0)
    assert len(np.unique(found.centres.round(6), axis=0)) == 4


@pytest.mark.usefixtures("double_precision")
def test_own_units_are_a_fixed_map():
    units = _normals.OwnUnits(loc=jnp.array([1.0, -2.0]), scale=jnp.array([0.5, 1e-3]), shape=(2,))
    x = jnp.array([0.3, -0.7])
    y, log_det = units.transform_and_log_det(x)
    np.testing.assert_allclose(y, [1.15, -2.0007])
    assert log_det == pytest.approx(np.log(0.5e-3))
    back, log_det_back = Chain([units]).inverse_and_log_det(y)
    np.testing.assert_allclose(back, x)
    assert log_det_back == pytest.approx(-np.log(0.5e-3))
    for leaf in jax.tree.leaves(jax.grad(lambda u: jnp.sum(u.inverse_and_log_det(y)[0]))(units)):
        assert np.all(leaf == 0)


@pytest.mark.parametrize("seed", [6, 9, 11, 25, 26])
def test_each_separate_mode_gets_a_normal_of_its_own(seed: int):
    """Eight on a ring, with unequal shares: from one clustering two of them share a normal with these seeds."""
    count = 8
    rng = np.random.default_rng(seed)
    angles, shares = 2 * np.pi * np.arange(count) / count, rng.dirichlet(np.full(count, 5.0))
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    draws = centres[rng.choice(count, size=6000, p=shares)] + 0.05 * rng.normal(size=(6000, 2))
    found = _normals.fitted(draws, count)
    nearest = np.argmin(np.linalg.norm(found.centres[:, None] - centres, axis=2), axis=1)
    assert len(set(nearest)) == count
    np.testing.assert_allclose(found.spreads, 0.05, rtol=0.15)
    np.testing.assert_allclose((found.shares / found.shares.sum())[np.argsort(nearest)], shares, atol=0.02)
