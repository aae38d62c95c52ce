"""What a fit makes of a start's draws before its first step."""

import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
import scipy.stats
from flowjax.distributions import AbstractDistribution, Normal

import numpyro_epi as epi
from numpyro_epi import _begin, _plan
from numpyro_epi._loop import partition
from numpyro_epi.starts import Proposed, Start


def _start(draws: np.ndarray, fit_draws: bool = True) -> Start:
    return Start(jnp.asarray(draws, float), fit_draws, None, "")


def _blobs(count: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(size=(4000, dim)) + 30.0 * rng.integers(0, count, size=4000)[:, None]


def _begun(seed: int, builder: epi.flows.FlowBuilder, start: Start) -> AbstractDistribution:
    return _begin.begin_flow(jax.random.key(seed), builder, start, _begin.outline(builder, start))


@pytest.mark.parametrize("dim", [1, 3, 14])
def test_one_blob_gets_one_normal(dim: int):
    assert _begin.outline(epi.flows.default, _start(_blobs(1, dim))).components == 1


def test_separate_blobs_get_normals_each():
    assert _begin.outline(epi.flows.default, _start(_blobs(4, 2))).components >= 4


def test_draws_that_are_not_fitted_and_few_ones_get_one_normal():
    assert _begin.outline(epi.flows.default, _start(_blobs(4, 2), fit_draws=False)).components == 1
    assert _begin.outline(epi.flows.default, _start(_blobs(4, 2)[:90])).components == 1
    assert _begin.outline(epi.flows.default, _start(np.repeat(_blobs(4, 2)[:90], 40, axis=0))).components == 1
    assert _begin.outline(epi.flows.default, _start(np.zeros((400, 2)))).components == 1
    assert _begin.outline(epi.flows.default, _start(_blobs(4, 2)[:3])).components == 1


def test_a_rare_mode_that_few_chains_have_gets_a_normal():
    """One in a hundred draws, in rows of forty: hardly any of the held-out rows has it."""
    rng = np.random.default_rng(3)
    is_wide = np.repeat(rng.random(512) < 0.01, 40)
    draws = np.where(is_wide, 1.0, 0.1)[:, None] * rng.normal(size=(len(is_wide), 10))
    assert 3 <= np.sum(is_wide) / 40 <= 8
    assert _begin.outline(epi.flows.default, _start(draws)).components > 1


@pytest.mark.parametrize(("count", "share"), [(20, 1 / 3), (400, 1 / 4), (8000, 1 / 10), (20_480, 1 / 10)])
def test_a_share_of_the_draws_is_held_out_in_rows(count: int, share: float):
    held = _begin._held_out(count)
    assert abs(held.mean() - share) < 0.06
    if count == 20_480:
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], held.astype(int), [0]]))))[::2]
        assert np.max(runs) == _begin.MOST_ADJACENT


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_new_flow_takes_the_scale_of_its_draws(scale: float):
    draws = scale * (_blobs(1, 2) @ np.array([[1.0, 0.9], [0.0, 0.1]]))
    light = epi.flows.Coupling(num_stages=1, width=4, depth=1, initial_scale=0.0)
    flow = _begun(0, light, _start(draws, fit_draws=False))
    drawn = np.asarray(flow.sample(jax.random.key(1), (20_000,)), float)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(draws.T), rtol=0.1, atol=0.0)


def test_likelihood_fit_ends_where_the_draws_are_followed():
    """A banana's draws, without their density and with it, of another normaliser."""
    draws, log_p = _banana(0, 20_480)
    start = _start(draws)
    others, truth = _banana(1, 40_000)
    found = []
    for begin in (start, start._replace(log_density=jnp.asarray(log_p + 3.0, float))):
        log_q = np.asarray(_begun(1, epi.flows.default, begin).log_prob(jnp.asarray(others, float)), float)
        found.append(float(np.mean(truth - log_q)))
    longest, shorter = found
    assert 0.0 < longest < shorter < 0.01


def _banana(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws and their log density."""
    x = np.random.default_rng(seed).normal(size=(count, 2))
    bent = np.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], axis=1)
    return bent, -0.5 * np.square(x).sum(axis=1) - np.log(2 * np.pi)


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("seed", [2, 3])
def test_likelihood_fit_does_not_learn_few_draws_by_heart(dim: int, seed: int):
    """Of 200 draws of a normal; 0.1 nats are what its own moments' errors cost in five dimensions, 20 / 2N, twice."""
    rng = np.random.default_rng(seed)
    draws, others = rng.normal(size=(200, dim)), jnp.asarray(rng.normal(size=(20_000, dim)), float)
    start = _start(draws)
    plain = _begun(seed, epi.flows.default, start._replace(fit_draws=False))
    fitted = _begun(seed, epi.flows.default, start)
    assert jnp.mean(fitted.log_prob(others) - plain.log_prob(others)) > -0.1


@pytest.mark.parametrize("seed", [91, 92])
def test_likelihood_fit_bends_a_flow_to_few_draws(seed: int):
    """A banana of 200 draws: seen thousands of times they are learnt by heart before the flow has bent, and nothing is gained."""
    rng = np.random.default_rng(seed)
    draws, others = rng.normal(size=(200, 3)), rng.normal(size=(20_000, 3))
    for z in (draws, others):
        z[:, 1] += np.square(z[:, 0]) - 1.0
    plain = _begun(seed, epi.flows.default, _start(draws, fit_draws=False))
    fitted = _begun(seed, epi.flows.default, _start(draws))
    # The normal of the moments is log(3) / 2 = .55 nats from a banana, whose second coordinate has the variance 3.
    z = jnp.asarray(others, float)
    assert jnp.mean(fitted.log_prob(z) - plain.log_prob(z)) > 0.2


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-6, 1e6)])
def test_likelihood_fit_bends_a_flow_to_many_draws(scales: tuple[float, float]):
    """A banana's entropy is that of the normal it was bent from, in units of any size."""
    rng = np.random.default_rng(4)
    draws, others = (rng.normal(size=(count, 2)) for count in (8000, 20_000))
    for z in (draws, others):
        z[:, 1] += np.square(z[:, 0]) - 1.0
        z *= scales
    fitted = _begun(4, epi.flows.default, _start(draws))
    forward = (
        -np.log(2 * np.pi)
        - 1.0
        - np.log(scales).sum()
        - np.mean(np.asarray(fitted.log_prob(jnp.asarray(others, float)), float))
    )
    # The mean over 20,000 draws has a standard error of 0.007 nats.
    assert -0.03 < forward < 0.05


@pytest.mark.parametrize(("seed", "again"), [(5, False), (6, False), (6, True)])
def test_separate_needles_are_found_before_any_training(seed: int, again: bool):
    """Four in five dimensions, each with a normal of its own wherever the new flow takes its coordinates."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1.0, 1.0, (4, 5))
    draws, others = (centres[rng.integers(0, 4, n)] + 0.02 * rng.normal(size=(n, 5)) for n in (8000, 20_000))
    start = _start(draws)
    shape = _begin.outline(epi.flows.default, start)
    flow = _begin.begin_flow(jax.random.key(seed), epi.flows.default, start, shape, is_fitted=True)
    if again:
        # Another attempt has initial values of its own between the fixed arrays of the first one.
        fixed = partition(flow)[1]
        flow = _begin.begin_flow(jax.random.key(99), epi.flows.default, start, shape, is_fitted=True, static=fixed)
    # Each normal is trained in units of its own.
    normals = flow.base_dist.base_dist.base_dist.dist.base_dist
    assert np.all(np.asarray(normals.loc) == 0) and np.allclose(paramax.unwrap(normals).scale, 1.0)
    entropy = np.log(4) + 2.5 * np.log(2 * np.pi * np.e * 0.02**2)
    # Normals in the wrong places lose hundreds of nats; several along a needle, which the new flow bends a little, about two.
    assert -0.1 < -entropy - float(jnp.mean(flow.log_prob(jnp.asarray(others, float)))) < 5.0


@pytest.mark.parametrize("seed", [7, 8])
def test_skewed_marginals_are_bent_before_any_training(seed: int):
    rng = np.random.default_rng(seed)
    draws = rng.gumbel(size=(8000, 12))
    shape = _begin.outline(epi.flows.default, _start(draws))
    assert shape.components == 1
    flow = _begin.begin_flow(jax.random.key(seed), epi.flows.default, _start(draws), shape, is_fitted=True)
    others = rng.gumbel(size=(20_000, 12))
    divergence = -12 * (1 + np.euler_gamma) - float(jnp.mean(flow.log_prob(jnp.asarray(others, float))))
    # Twelve normals of the same means and variances lose 1.09 nats; 24 numbers each, from 4000 draws, cost .04.
    assert divergence < 0.3


def test_violations_that_fall_to_zero_are_told_from_those_that_stay():
    falls = _plan._still_falls
    assert falls(1.0, 0.1, 0.01)
    assert falls(1 / 2, 1 / 3, 1 / 4)
    assert falls(1.0, 1.1, 0.9)
    assert not falls(1.0, 1.0, 0.95)
    assert not falls(7.7, 1.2, 0.75)


def test_draws_weigh_less_where_a_flow_learns_them():
    many, few = _start(np.zeros((20_480, 4))), _start(np.zeros((2000, 4)))
    assert _plan.anchor_weight(many, 4) == 1.0
    assert _plan.anchor_weight(few, 4) == pytest.approx(0.1)
    assert _plan.anchor_weight(many, 12) == pytest.approx(0.25)


def test_an_outline_that_misses_a_rare_mode_is_not_taken_for_as_good():
    """The mode's draws are in two rows of twenty, where the simpler outline is three nats short; elsewhere they are alike."""
    rng = np.random.default_rng(91)
    simple = rng.normal(size=2000)
    better = simple + 0.01 * rng.normal(size=2000)
    better[400:600] += 3.0
    assert _begin._simplest(np.stack([simple, better])) == 1
    noisy = simple + 0.3 * np.repeat(rng.normal(size=20), 100)
    assert _begin._simplest(np.stack([simple, noisy])) == 0


def _step(draws: np.ndarray) -> np.ndarray:
    """Log density of a normal in two dimensions that ends at a bent line, with a width of a twentieth; of any normaliser."""
    beyond = 20 * (draws[..., 0] - np.square(draws[..., 1]) / 2)
    return -0.5 * np.square(draws).sum(axis=-1) - np.logaddexp(0.0, -beyond)


def _weighed_step(seed: int, count: int) -> Start:
    """Draws of it by draws of a standard normal, and these with their weights; its normaliser by a sum over a grid."""
    axis = np.linspace(-7.0, 7.0, 1401)
    log_z = np.log(np.exp(_step(np.stack(np.meshgrid(axis, axis), axis=-1))).sum() * (axis[1] - axis[0]) ** 2)
    rng = np.random.default_rng(seed)
    proposed = rng.normal(size=(count, 2))
    log_p = _step(proposed) - log_z
    log_g = -0.5 * np.square(proposed).sum(axis=1) - np.log(2 * np.pi)
    weight = np.exp(log_p - log_g)
    draws = proposed[rng.choice(count, size=count, p=weight / weight.sum())]
    return _start(draws)._replace(proposed=Proposed(*(jnp.asarray(x, float) for x in (proposed, log_p, log_g))))


@pytest.mark.parametrize("seed", [51, 52])
def test_draws_beyond_an_edge_bring_a_flow_nearer(seed: int):
    """Of the same proposals; both are measured by the reverse KL, whose standard error is a few thousandths."""
    light = epi.flows.Coupling(num_stages=3, width=16, depth=1, transformer=epi.flows.bent())
    start = _weighed_step(seed, 4000)
    found = []
    for begin in (start, start._replace(proposed=None)):
        flow = _begun(seed, light, begin)
        z = flow.sample(jax.random.key(seed), (20_000,))
        found.append(float(np.mean(np.asarray(flow.log_prob(z), float) - _step(np.asarray(z, float)))))
    with_them, without = found
    assert with_them < without - 0.02


def test_divergence_is_that_of_two_normals():
    """KL(q || p) + KL(p || q) of normals of unit variance is the squared distance of their means."""
    rng = np.random.default_rng(53)
    draws = 1.5 * rng.normal(size=(100_000, 1))
    log_g = scipy.stats.norm.logpdf(draws, 0, 1.5).sum(axis=1)
    log_p = scipy.stats.norm.logpdf(draws, 0.2, 1).sum(axis=1)
    rows = _begin._Rows(*(jnp.asarray(x, float) for x in (draws, log_p, log_g)))
    loss, divergence = _begin._loss(Normal(jnp.array([-0.1]), jnp.ones(1)), rows)
    assert divergence == pytest.approx(0.09, abs=0.002)
    # The cross-entropy; four standard errors of a weighed mean of 100,000 draws, whose spread is below 1.5, are .02.
    assert loss - divergence == pytest.approx(0.5 * np.log(2 * np.pi) + 0.5 * (1 + 0.09), abs=0.02)
    _, none = _begin._loss(Normal(jnp.array([0.2]), jnp.ones(1)), rows)
    assert none == pytest.approx(0.0, abs=1e-6)


def test_no_draw_makes_the_divergence_no_number_or_flat():
    """Draws where the solution, the flow or both have next to no density, and one that few proposals are near."""
    flow = Normal(jnp.zeros(1), jnp.ones(1))
    draws = jnp.array([[0.0], [1e4], [1e30], [0.5]])
    rows = _begin._Rows(draws, jnp.array([-1.0, -1e6, -1e6, -100.0]), jnp.array([-1.0, -5.0, -300.0, -5.0]))
    loss, slopes = jax.value_and_grad(lambda loc: _begin._loss(Normal(loc, jnp.ones(1)), rows)[0])(jnp.zeros(1))
    assert jnp.isfinite(loss) and jnp.all(jnp.isfinite(slopes))
    last = rows.at(np.array([3]))
    # Mass where the property is not counts more the more of it there is.
    assert jax.grad(lambda loc: _begin._loss(Normal(loc, jnp.ones(1)), last)[0])(jnp.zeros(1)) > 0
    assert _begin._loss(flow, last)[1] > 0
