"""The default optimiser's clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numpyro_epi import _optimizer


def clipped_norms(norms, *, factor=4.0, memory=50):
    """Norms that a sequence of gradients of given norms has after clipping."""
    clip = _optimizer.clip_by_typical_norm(factor, memory)
    direction = {"a": jnp.array([0.6, 0.0]), "b": jnp.array(0.8)}
    state = clip.init(direction)
    found = []
    for norm in norms:
        gradient, state = clip.update(jax.tree.map(lambda leaf, norm=norm: leaf * norm, direction), state)
        found.append(np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])))
    return np.array(found)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_usual_gradients_pass_whatever_their_unit(unit):
    norms = unit * np.exp(np.random.default_rng(0).normal(0, 0.3, 200))
    np.testing.assert_allclose(clipped_norms(norms), norms, rtol=1e-5)


def test_an_outlier_is_cut_to_the_factor_times_the_geometric_mean():
    norms = np.array([2.0, 8.0, 2.0, 8.0, 1e4])
    np.testing.assert_allclose(clipped_norms(norms, factor=3.0)[-1], 3.0 * 4.0, rtol=1e-5)


def test_the_typical_norm_follows_a_lasting_change():
    norms = np.concatenate([np.ones(200), np.full(400, 100.0)])
    found = clipped_norms(norms)
    assert found[200] < 5.0
    np.testing.assert_allclose(found[-1], 100.0, rtol=1e-3)


def test_a_zero_gradient_stays_zero_and_finite():
    np.testing.assert_array_equal(clipped_norms([0.0, 0.0, 0.0]), 0.0)
    assert np.all(np.isfinite(clipped_norms([0.0, 1.0, 1.0])))


def test_the_default_reaches_the_minimum_of_a_quadratic():
    scales = jnp.array([1.0, 30.0, 1000.0])
    optimizer = _optimizer.default(3000)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(lambda x: 0.5 * x @ (scales * x))(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    start = jnp.array([1.0, -1.0, 0.5])
    (x, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=3000)
    np.testing.assert_allclose(x, 0.0, atol=1e-3)
