"""Monotone maps of each parameter: against SciPy and autodiff, and fitted to marginals of known entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numpyro_epi import _marginals

LOC, LOG_WIDTH, BEND = (np.array(v) for v in ([0.3, -1.0], [-0.5, 0.4], [0.8, -1.7]))


def _one() -> _marginals.SinhArcsinh:
    return _marginals.SinhArcsinh(
        loc=jnp.asarray(LOC), log_width=jnp.asarray(LOG_WIDTH), bend=jnp.asarray(BEND), shape=(2,)
    )


@pytest.mark.parametrize("x", [[0.0, 0.0], [2.0, -3.0], [-50.0, 40.0]])
def test_bends_are_the_hyperbolic_functions_of_their_definition(x: list[float]):
    width = np.exp(LOG_WIDTH)
    found, log_det = _one().transform_and_log_det(jnp.array(x))
    np.testing.assert_allclose(found, LOC + width * np.sinh(np.arcsinh((np.array(x) - LOC) / width) + BEND), rtol=1e-4)
    jacobian = jax.jacobian(_one().transform)(jnp.array(x))
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x", [[0.0, 0.0], [2.0, -3.0], [-50.0, 40.0]])
def test_inverse_goes_back(x: list[float]):
    found, log_det = _one().transform_and_log_det(jnp.array(x))
    back, minus = _one().inverse_and_log_det(found)
    np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(minus, -log_det, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x", [-5000.0, 5000.0])
def test_strong_bends_keep_their_digits_in_the_tails(x: float):
    bend = _marginals.SinhArcsinh(loc=jnp.zeros(1), log_width=jnp.zeros(1), bend=jnp.full(1, 8.0), shape=(1,))
    found, log_det = bend.transform_and_log_det(jnp.array([x]))
    exact = np.sinh(np.arcsinh(x) + 8.0)
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    np.testing.assert_allclose(log_det, np.log(np.hypot(1.0, exact) / np.hypot(1.0, x)), rtol=1e-4)


def test_new_maps_are_the_identity():
    x = jnp.array([-7.0, 0.1, 30.0])
    found, log_det = _marginals.straight(3).transform_and_log_det(x)
    np.testing.assert_allclose(found, x, rtol=1e-6)
    np.testing.assert_allclose(log_det, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    "marginals",
    [
        (scipy.stats.gamma(1.5), scipy.stats.norm(), scipy.stats.gumbel_l()),
        (scipy.stats.beta(2.0, 3.0), scipy.stats.t(5), scipy.stats.logistic()),
    ],
    ids=["skewed", "heavy"],
)
@pytest.mark.parametrize("seed", [11, 12])
def test_fitted_maps_have_the_entropy_of_the_marginals(marginals: tuple, seed: int):
    """The mean log density of other draws is minus the entropy, less the divergence: of normals .35 and .11 nats."""
    rng = np.random.default_rng(seed)
    draws, others = (np.stack([m.rvs(size=n, random_state=rng) for m in marginals], axis=1) for n in (20_000, 40_000))
    loc, scale = draws.mean(axis=0), draws.std(axis=0)
    maps = _marginals.fitted(_marginals.straight(3), jnp.asarray((draws - loc) / scale, float))
    normal, log_det = jax.vmap(maps.inverse_and_log_det)(jnp.asarray((others - loc) / scale, float))
    log_prob = scipy.stats.norm.logpdf(normal).sum(axis=1) + np.asarray(log_det) - np.log(scale).sum()
    exact = sum(m.logpdf(others[:, i]) for i, m in enumerate(marginals))
    assert np.mean(exact - log_prob) < 0.03
    assert np.mean(exact - log_prob) > -5 * np.std(exact - log_prob) / np.sqrt(len(others))


def test_fitted_maps_open_a_gap_between_two_modes():
    rng = np.random.default_rng(13)
    draws = (rng.normal(size=(20_000, 1)) + 3.0 * rng.choice([-1, 1], size=(20_000, 1))) / np.sqrt(10)
    maps = _marginals.fitted(_marginals.straight(1), jnp.asarray(draws, float))
    x = np.linspace(-2.0, 2.0, 4001)
    normal, log_det = jax.vmap(maps.inverse_and_log_det)(jnp.asarray(x[:, None], float))
    density = np.exp(scipy.stats.norm.logpdf(normal[:, 0]) + np.asarray(log_det))
    exact = 0.5 * sum(scipy.stats.norm.pdf(x, s * 3 / np.sqrt(10), 1 / np.sqrt(10)) for s in (-1, 1))
    assert 0.5 * np.sum(np.abs(density - exact)) * (x[1] - x[0]) < 0.05
