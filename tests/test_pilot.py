"""Pilot draws are the prior, restricted to where the statistics are near: against truncated distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import numpyro_epi as epi
from numpyro_epi._pilot import Proposal, approach, log_density, resample
from numpyro_epi.starts import Pilot


def plane():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0))


def box():
    numpyro.sample("z", dist.Uniform(-1.0, 1.0).expand([3]).to_event(1))


def problem_of(model, function, mean, std):
    return epi.Problem(model, epi.EmergentProperty(epi.Target(function, mean=mean, std=std, name="statistic")))


def near(problem, *, num_draws=1000, spreads=2.0, max_simulations=100_000):
    return approach(
        problem,
        jax.random.key(0),
        num_draws=num_draws,
        spreads=spreads,
        batch=5000,
        max_simulations=max_simulations,
    )


def assert_mean(found, values, expected, std):
    """Within five standard errors, by the effective number of draws."""
    assert abs(np.exp(found.log_weight) @ values - expected) < 5 * std / np.sqrt(found.ess)


def test_far_draws_are_the_truncated_prior():
    """About 2e-4 of the prior is near enough."""
    found = near(problem_of(plane, lambda s: s["x"], 3.6, 0.1))
    x, y = found.draws.T
    exact = scipy.stats.truncnorm(3.4, 3.8)
    assert np.all((x > 3.4) & (x < 3.8))
    assert found.ess >= 1000
    assert found.num_simulations < 60_000
    assert_mean(found, x, exact.mean(), exact.std())
    assert_mean(found, (x - exact.mean()) ** 2, exact.var(), exact.var())
    assert_mean(found, y, 0.0, 1.0)
    assert_mean(found, y**2, 1.0, np.sqrt(2))


def test_a_bounded_prior_is_uniform_where_it_is_near():
    """A thin shell inside a cube, 7e-3 of it: proposals must follow a bent region."""
    found = near(problem_of(box, lambda s: jnp.sum(jnp.square(s["z"])), 0.05, 0.01))
    z = np.tanh(found.draws / 2)
    radius = np.linalg.norm(z, axis=1)
    # Uniform by volume between the radii: radius cubed is uniform.
    low, high = 0.03**1.5, 0.07**1.5
    share = (radius**3 - low) / (high - low)
    assert_mean(found, share, 0.5, np.sqrt(1 / 12))
    assert_mean(found, share**2, 1 / 3, np.sqrt(4 / 45))
    for axis in range(3):
        assert_mean(found, (z[:, axis] / radius) ** 2, 1 / 3, np.sqrt(4 / 45))
        assert_mean(found, (z[:, axis] > 0).astype(float), 0.5, 0.5)


def test_separate_regions_keep_their_shares():
    """Both tails of the prior; the right one is nearer to the middle."""
    found = near(problem_of(plane, lambda s: jnp.square(s["x"] + 0.2), 9.0, 0.5), num_draws=2000)
    x = found.draws[:, 0]
    exact = [scipy.stats.norm.cdf(b) - scipy.stats.norm.cdf(a) for a, b in sides(8.0, 10.0, 0.2)]
    assert_mean(found, (x > 0).astype(float), exact[0] / sum(exact), 0.5)


def sides(low, high, shift):
    return (
        (np.sqrt(low) - shift, np.sqrt(high) - shift),
        (-np.sqrt(high) - shift, -np.sqrt(low) - shift),
    )


def test_near_priors_are_kept_as_they_are():
    found = near(problem_of(plane, lambda s: s["x"], 0.0, 0.5), num_draws=300)
    assert found.num_simulations == 5000
    np.testing.assert_array_equal(found.log_weight, found.log_weight[0])
    assert scipy.stats.kstest(found.draws[:, 0], scipy.stats.truncnorm(-1, 1).cdf).pvalue > 1e-3


def test_spread_of_a_statistic_without_one_is_the_prior_s():
    prop = epi.EmergentProperty(epi.Target(lambda s: 10.0 * s["x"], mean=0.0, name="statistic"))
    found = near(epi.Problem(plane, prop), spreads=0.5, num_draws=300)
    assert np.max(np.abs(found.draws[:, 0])) == pytest.approx(0.5, abs=0.02)


def test_failing_simulations_are_left_out():
    def half(sites):
        return jnp.where(sites["y"] > 0, sites["x"], jnp.nan)

    found = near(problem_of(plane, half, 2.5, 0.1))
    x, y = found.draws.T
    assert np.all(y > 0)
    assert_mean(found, y, np.sqrt(2 / np.pi), np.sqrt(1 - 2 / np.pi))
    assert_mean(found, x, scipy.stats.truncnorm(2.3, 2.7).mean(), 0.12)


def test_noise_of_the_simulator_counts():
    """x near given its own noise: the parameter's posterior under a window of the noisy statistic."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.deterministic("x", mu + numpyro.sample("e", dist.Normal(0.0, 1.0)))

    prop = epi.EmergentProperty(epi.Target(lambda s: s["x"], mean=4.0, std=0.1, name="x"))
    found = near(epi.Problem(model, prop, parameters=("mu",)))
    # mu given x is normal with half of x as mean and half the variance.
    assert_mean(found, found.draws[:, 0], scipy.stats.truncnorm(3.8 / 2**0.5, 4.2 / 2**0.5, 0, 2**0.5).mean() / 2, 0.71)


def test_resampled_draws_are_the_weighted_ones():
    found = near(problem_of(plane, lambda s: s["x"], 3.6, 0.1))
    same = resample(found.draws, found.log_weight, 4000)
    assert same.mean(axis=0) == pytest.approx(np.exp(found.log_weight) @ found.draws, abs=2e-2)


def unreachable():
    return problem_of(box, lambda s: jnp.sum(s["z"]), 9.0, 0.1)


def test_start_says_how_near_it_came():
    with pytest.raises(
        ValueError, match=r"Expected at least 4 pilot draws within 3.0 spreads .* within \d+.* of 10000"
    ):
        Pilot(max_simulations=10_000)(jax.random.key(0), unreachable())


def test_start_may_fall_back_to_the_prior():
    found = Pilot(max_simulations=4000, or_prior=True)(jax.random.key(0), unreachable())
    assert "Expected at least 4 pilot draws" in found.message
    assert "Started from the prior" in found.message
    assert not found.fit_draws


def test_one_key_gives_one_answer():
    problem = problem_of(plane, lambda s: s["x"], 3.0, 0.1)
    first, again = (Pilot(num_draws=100)(jax.random.key(1), problem).draws for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("wrong", [{"num_draws": 1}, {"spreads": 0.0}, {"batch": 0}, {"max_simulations": 0}])
def test_settings_are_checked(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"Expected {name} .*; got {wrong[name]}"):
        Pilot(**wrong)


def test_a_proposal_s_own_centres_count_for_nothing():
    """Three normals in the plane, by SciPy: a draw that is a centre sees the other two."""
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    root = np.array([[0.5, 0.0], [0.2, 0.4]])
    proposal = Proposal(jnp.asarray(centres), jnp.broadcast_to(jnp.asarray(root), (3, 2, 2)))
    place = np.array([0.3, 0.2])
    each = [scipy.stats.multivariate_normal(c, root @ root.T) for c in centres]
    assert log_density(proposal, jnp.asarray(place)) == pytest.approx(
        np.log(np.mean([e.pdf(place) for e in each])), 1e-4
    )
    others = np.log(np.mean([e.pdf(centres[0]) for e in each[1:]]))
    assert log_density(proposal, jnp.asarray(centres[0])) == pytest.approx(others, rel=1e-4)
