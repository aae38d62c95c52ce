"""Chains' wrong shares of modes are noticed, and multipliers and draws put right: two narrow normals, in closed form."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi import _plan, flows, starts
from numpyro_epi._settled import settle

WIDTH, TARGET, COUNT = 0.1, 0.2, 8000
KEYS = jr.split(jr.key(5), 2)


def needles(right=0.5):
    """A prior of two needles at -1 and 1, the latter with this share, and a wanted mean between them."""

    def model():
        needle = dist.Normal(jnp.array([-1.0, 1.0]), WIDTH)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([1 - right, right])), needle))

    return epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], TARGET)))


def solution(prior_share):
    """Multiplier of the tilt with the wanted mean, and the share of the right needle, where the prior has this share of it."""
    eta = np.linspace(-3.0, 3.0, 200_001)
    left, right = -1.0 - WIDTH**2 * eta, 1.0 - WIDTH**2 * eta
    share = prior_share * np.exp(-eta) / (prior_share * np.exp(-eta) + (1 - prior_share) * np.exp(eta))
    at = np.argmin(np.abs(share * right + (1 - share) * left - TARGET))
    return eta[at], share[at]


def start_of_chains(key, prior_share):
    """What chains find that left the prior with this share in the right needle."""
    eta, share = solution(prior_share)
    side_key, noise_key = jr.split(key)
    side = jnp.where(jr.uniform(side_key, (COUNT,)) < share, 1.0, -1.0)
    draws = side - WIDTH**2 * eta + WIDTH * jr.normal(noise_key, (COUNT,))
    variance = jnp.atleast_2d(jnp.var(draws))
    found = starts.Start(draws[:, None], True, jnp.array([eta]), "By hand.", covariance=variance)
    return found._replace(independent=draws[:500, None], log_normalizer=0.0)


@pytest.mark.parametrize("prior_share", [0.8, 0.3])
def test_wrong_shares_are_put_right(prior_share):
    begin = start_of_chains(jr.key(1), prior_share)
    exact, share = solution(0.5)
    assert abs(begin.eta[0] - exact) > 0.3
    found = settle(KEYS, needles(), flows.default, begin).begin
    # Of 20,000 draws of the flow and as many of the prior; the sine of the share's change with eta is near one.
    error = 1 / np.sqrt(10_000)
    assert found.eta[0] == pytest.approx(exact, abs=4 * error)
    assert np.mean(found.draws > 0) == pytest.approx(share, abs=4 * error)
    assert np.mean(found.draws) == pytest.approx(TARGET, abs=4 * error)
    assert found.covariance[0, 0] == pytest.approx(np.var(np.asarray(found.draws)), rel=0.05)
    log_z = np.log(0.5 * np.exp(-exact) + 0.5 * np.exp(exact)) + 0.5 * (WIDTH * exact) ** 2 + exact * TARGET
    assert found.log_normalizer == pytest.approx(log_z, abs=4 * error)
    assert "solved again" in found.message


def test_right_shares_are_left_alone():
    begin = start_of_chains(jr.key(2), 0.5)
    found = settle(KEYS, needles(), flows.default, begin)
    assert found.begin is begin
    assert found.pool is not None


def test_nothing_is_concluded_from_a_few_weights():
    """The draws are at one needle, and of the prior's own hardly one is at the other."""
    begin = start_of_chains(jr.key(3), 0.5)
    one = -1.0 + WIDTH * jr.normal(jr.key(4), (COUNT, 1))
    begin = begin._replace(draws=one, independent=None)
    assert settle(KEYS, needles(right=2e-4), flows.default, begin).begin is begin


class Stranded(starts.AbstractStart):
    """Chains whose shares of the prior's modes are wrong."""

    def __call__(self, key, problem):
        return start_of_chains(key, 0.8)


def test_a_fit_from_wrong_shares_has_the_right_multipliers(tmp_path, monkeypatch):
    """And so has one that is killed before its first step, and resumed."""
    key, problem, path = jr.key(7), needles(), tmp_path / "run.ckpt"
    result = epi.fit(key, problem, start=Stranded(), progress=False)
    exact, share = solution(0.5)
    assert result.satisfied, str(result)
    assert result.eta[0] == pytest.approx(exact, abs=0.05)
    drawn = result.sample(jr.key(8), (20_000,))["x"]
    assert np.mean(drawn > 0) == pytest.approx(share, abs=0.03)
    assert result.certificate.upper <= 0.05
    assert "solved again" in result.settings["start_message"]

    with monkeypatch.context() as patch:
        patch.setattr(_plan, "run_chunks", killed)
        with pytest.raises(KeyboardInterrupt):
            epi.fit(key, problem, start=Stranded(), checkpoint=path, progress=False)
    resumed = epi.resume(path, problem, start=Stranded(), progress=False)
    assert resumed.settings["start_message"] == result.settings["start_message"]
    np.testing.assert_array_equal(resumed.eta, result.eta)
    assert resumed.certificate.gap == result.certificate.gap
    assert resumed.certificate.ess == result.certificate.ess


def killed(fleet, run, max_steps, judge, goal, keep, stop, recorder, **options):
    """What `run_chunks` does first, and no more."""
    keep(run, True)
    raise KeyboardInterrupt
