"""Chains' wrong shares of modes are noticed, and multipliers and draws put right: two narrow normals, in closed form."""

from collections import Counter

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from flowjax.distributions import StandardNormal

import numpyro_epi as epi
from numpyro_epi import _begin, _plan, _settled, flows, starts
from numpyro_epi._conditioned import conditioner

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


def settled(keys, problem, builder, begin):
    return _settled.settle(keys, problem, builder, begin, conditioner(problem), measure_with=(8, 500))


@pytest.mark.parametrize("prior_share", [0.8, 0.3])
def test_wrong_shares_are_put_right(prior_share):
    begin = start_of_chains(jr.key(1), prior_share)
    exact, share = solution(0.5)
    assert abs(begin.eta[0] - exact) > 0.3
    found = settled(KEYS, needles(), flows.default, begin).begin
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
    found = settled(KEYS, needles(), flows.default, begin)
    assert found.begin is begin
    assert found.pool is not None


def test_a_statistic_that_does_not_vary_is_not_off():
    """Its mean is off by rounding, which is many times its spread."""
    problem, begin = needles(), start_of_chains(jr.key(2), 0.5)
    constant = epi.Target(lambda sites: 0.3 + 0.0 * sites["x"], 0.3, name="constant")
    problem = epi.Problem(problem.simulator.model, epi.EmergentProperty(*problem.property.targets, constant))
    begin = begin._replace(eta=jnp.append(begin.eta, 0.0), covariance=jnp.diag(jnp.array([1.0, 0.0])))
    assert settled(KEYS, problem, flows.default, begin).begin is begin


def test_nothing_is_concluded_from_a_few_weights():
    """The draws are at one needle, and of the prior's own hardly one is at the other."""
    begin = start_of_chains(jr.key(3), 0.5)
    one = -1.0 + WIDTH * jr.normal(jr.key(4), (COUNT, 1))
    begin = begin._replace(draws=one, independent=None)
    assert settled(KEYS, needles(right=2e-4), flows.default, begin).begin is begin


@pytest.mark.parametrize("has_independent", [True, False])
def test_a_flow_that_misses_a_mode_does_not_overrule_chains(has_independent):
    """The weights of one normal on a wide mode are smooth, and give other multipliers: it has no density at the needle."""
    dim, width, far, rare, eta = 5, 0.01, 8.0, 1e-9, -3.0
    needle, wide = rare * np.exp(-eta * far + (width * eta) ** 2 / 2), (1 - rare) * np.exp(eta**2 / 2)
    share = needle / (needle + wide)
    assert 0.1 < share < 0.5
    target = share * (far - width**2 * eta) - (1 - share) * eta

    def model():
        place, spread = jnp.zeros((2, dim)).at[1, 0].set(far), jnp.array([[1.0], [width]]) * jnp.ones((2, dim))
        sides = dist.Categorical(jnp.array([1 - rare, rare]))
        numpyro.sample("x", dist.MixtureSameFamily(sides, dist.Normal(place, spread).to_event(1)))

    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"][0], target)))
    random = np.random.default_rng(0)
    is_needle = random.random((COUNT, 1)) < share
    draws = np.where(is_needle, width, 1.0) * random.normal(size=(COUNT, dim))
    draws[:, :1] += np.where(is_needle, far - width**2 * eta, -eta)
    begin = starts.Start(jnp.asarray(draws, float), True, jnp.array([eta]), "By hand.", covariance=jnp.eye(1))
    begin = begin._replace(independent=begin.draws[::8] if has_independent else None)
    found = settled(KEYS, problem, lambda _, dim: StandardNormal((dim,)), begin)
    assert found.pool.weigh(np.array([eta]), bridged=False).eta[0] < eta - 0.5
    assert found.begin is begin


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


def test_another_attempt_is_judged_by_draws_of_its_own(monkeypatch):
    """Every attempt is looked at before its first step, and the first look's draws are those of the first flow."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    class Known(starts.AbstractStart):
        def __call__(self, key, problem):
            draws = 0.5 + jr.normal(key, (2000, 1))
            found = starts.Start(draws, True, jnp.array([-0.5]), "By hand.", covariance=jnp.ones((1, 1)))
            return found._replace(log_normalizer=-0.125)

    calls = Counter()
    for name in ("pool_of", "judged"):
        function = getattr(_plan, name)
        monkeypatch.setattr(_plan, name, lambda *args, f=function, n=name: (calls.update([n]), f(*args))[1])
    monkeypatch.setattr(_plan, "is_stuck", lambda run, *_: len(run.found) == 1)
    monkeypatch.setattr(_plan, "seems_near", lambda run, *_: not run.found)
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], 0.5)))
    flow = flows.Elementwise(num_stages=1)
    epi.fit(jr.key(0), problem, flow=flow, start=Known(), max_gap=1e-9, max_steps=40, progress=False)
    assert calls["judged"] >= _plan.MOST_ATTEMPTS
    assert calls["pool_of"] == calls["judged"] - 1


@pytest.mark.parametrize("times_solved", [0, 1])
def test_chains_that_were_off_are_no_bridge(times_solved, monkeypatch):
    """Once the dual was solved again their shares are known to be wrong; the draws are others than before too."""
    asked = []
    monkeypatch.setattr(_settled, "pooled", lambda key, *_, **given: asked.append((key, given["may_bridge"])))
    begin = starts.Start(jnp.zeros((4, 1)), True, jnp.zeros(1), "", times_solved=times_solved)
    _settled.pool_of(jr.key(3), None, None, begin)
    ((key, may_bridge),) = asked
    assert may_bridge == (times_solved == 0)
    assert key == jr.fold_in(jr.key(3), times_solved)


@pytest.mark.parametrize("are_draws_right", [True, False])
def test_the_fit_that_fresh_draws_show_to_be_nearer_is_kept(are_draws_right):
    """A normal with another mean, of which either the draws or what they were proposed from are of a wrong distribution."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], 1.0)))
    right, wrong = scipy.stats.norm(1.0, 1.0), scipy.stats.norm(-1.0, 0.5)
    of_draws, of_proposals = (right, wrong) if are_draws_right else (wrong, right)
    rng = np.random.default_rng(7)
    proposals = 2.0 * rng.normal(size=(4000, 1))
    log_p = of_proposals.logpdf(proposals[:, 0])
    columns = proposals, log_p, scipy.stats.norm(0.0, 2.0).logpdf(proposals[:, 0])
    draws = of_draws.rvs(size=(4000, 1), random_state=rng)
    begin = starts.Start(jnp.asarray(draws, float), True, jnp.array([-1.0]), "By hand.", covariance=jnp.eye(1))
    begin = begin._replace(proposed=starts.Proposed(*(jnp.asarray(column, float) for column in columns)))
    keys, light = jr.split(jr.key(8)), flows.Elementwise(num_stages=1)
    found = _settled.settle(keys, problem, light, begin, conditioner(problem), measure_with=(8, 500), may_solve=False)
    assert found.begin.proposed is (None if are_draws_right else begin.proposed)
    z = found.flow.sample(jr.key(9), (4000,))
    # Four standard errors of the draws' mean, and as many of the mean that the flow was fitted to.
    assert jnp.mean(z) == pytest.approx(1.0, abs=8 / np.sqrt(4000))


@pytest.mark.parametrize("log_normalizer", [-0.5, None])
def test_no_other_fit_is_made_where_the_first_is_near(log_normalizer, monkeypatch):
    """The normaliser of a normal's mean moved by one; fits are counted."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], 1.0)))
    draws = 1.0 + np.random.default_rng(7).normal(size=(4000, 1))
    log_p = scipy.stats.norm(1.0, 1.0).logpdf(draws[:, 0])
    proposed = starts.Proposed(*(jnp.asarray(column, float) for column in (draws, log_p, log_p)))
    begin = starts.Start(jnp.asarray(draws, float), True, jnp.array([-1.0]), "By hand.", covariance=jnp.eye(1))
    begin = begin._replace(proposed=proposed, log_normalizer=log_normalizer)
    fits = []
    monkeypatch.setattr(_settled, "begin_flow", lambda *given: fits.append(given[2]) or _begin.begin_flow(*given))
    keys, light = jr.split(jr.key(8)), flows.Elementwise(num_stages=1)
    found = _settled.settle(keys, problem, light, begin, conditioner(problem), measure_with=(8, 500), may_solve=False)
    assert found.num_measured == len(fits)
    assert [fit.proposed is None for fit in fits] == ([False] if log_normalizer else [False, True])
