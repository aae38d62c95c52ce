"""Weighed draws are draws of the solution, and their multipliers its own: against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from flowjax.distributions import Normal

import numpyro_epi as epi
from numpyro_epi import _plan, _weighed
from numpyro_epi._certificate import assess_by_draws
from numpyro_epi._fresh import measure
from numpyro_epi._pilot import Near, approach
from numpyro_epi._weighed import weigh_draws

NUM_DRAWS = 4000


def plane(location=0.0):
    def model():
        numpyro.sample("x", dist.Normal(location, 1.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0))

    return model


def problem_of(model, function, mean, std, **options):
    return epi.Problem(
        model, epi.EmergentProperty(epi.Target(function, mean=mean, std=std, name="statistic")), **options
    )


# Asked more than once, and compiled once.
NORMAL = problem_of(plane(), lambda s: s["x"], 3.0, 0.25)


def weighed(problem, *, max_simulations=200_000, num_draws=NUM_DRAWS):
    near = approach(problem, jax.random.key(0), num_draws=500, spreads=3.0, batch=2000, max_simulations=200_000)
    return weigh_draws(
        problem, jax.random.key(1), near, num_draws=num_draws, batch=2000, max_simulations=max_simulations
    )


def assert_mean(found, values, expected, std):
    """Within five standard errors, by the effective number of draws."""
    assert abs(np.exp(found.log_weight) @ values - expected) < 5 * std / np.sqrt(found.ess)


def assert_multipliers(found, expected, covariance):
    """Within five standard errors: the inverse of the moments' covariance, over the effective number."""
    error = np.sqrt(np.diagonal(np.linalg.inv(covariance)) / found.ess)
    assert np.all(np.abs(found.eta - expected) < 5 * error), (found.eta, expected, error)


def of_normal(variance):
    """Covariance of ``x`` and ``(x - mean)^2``."""
    return np.diag([variance, 2 * variance**2])


def quadrature(statistic, mean, std, location, log_base):
    """Multipliers and density of the solution in one dimension, by the dual on a grid."""
    x = np.linspace(-9, 9, 40_001)
    moments = np.stack([statistic(x), np.square(statistic(x) - mean)], axis=1)
    target = np.array([mean, std**2])

    def dual(eta):
        exponent = log_base(x, location) - (moments - target) @ eta
        top = exponent.max()
        return top + np.log(scipy.integrate.simpson(np.exp(exponent - top), x=x))

    eta = scipy.optimize.minimize(dual, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    weight = np.exp(log_base(x, location) - (moments - target) @ eta)
    weight /= weight.sum()
    centred = moments - weight @ moments
    return eta, x, weight, (centred * weight[:, None]).T @ centred


def test_normal_solution_is_exact():
    """A normal of mean 3 and sd 1/4: far out in the prior."""
    found = weighed(NORMAL)
    x, y = found.draws.T
    assert found.ess >= NUM_DRAWS
    assert_multipliers(found, [-3.0, 7.5], of_normal(1 / 16))
    kl = 0.5 * (1 / 16 + 9.0 - 1.0 - np.log(1 / 16))
    # The normaliser's log is a mean of weights over proposals: its error is theirs.
    assert abs(found.log_normalizer + kl) < 5 / np.sqrt(found.ess)
    # The draws' density is of the same normaliser, its optimism of about M / 2 ess included; x alone has moments.
    slack = (found.moments - NORMAL.target) @ found.eta
    log_base = scipy.stats.norm.logpdf(found.draws).sum(axis=1)
    np.testing.assert_allclose(found.log_density, log_base - slack - found.log_normalizer, atol=0.05 / found.ess + 1e-5)
    # The weighted means of x and of its square are the targets; the third and fourth moments need the right shape.
    assert_mean(found, (x - 3.0) ** 3, 0.0, np.sqrt(15) / 64)
    assert_mean(found, (x - 3.0) ** 4, 3 / 256, np.sqrt(96) / 256)
    assert_mean(found, y, 0.0, 1.0)
    assert_mean(found, y**2, 1.0, np.sqrt(2))


@pytest.mark.slow
def test_noise_is_corrected_for():
    """The spread that is asked for holds the noise, so that the parameter has the rest of it."""

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("seen", x + numpyro.sample("e", dist.Normal(0.0, 0.15)))

    found = weighed(problem_of(model, lambda s: s["seen"], 1.0, 0.25, parameters=("x",)))
    variance = 0.25**2 - 0.15**2
    expected = 0.5 * (1 / variance - 1)
    # The moments' covariance over draws and noise; the multipliers answer to that over draws.
    error = np.sqrt(2 * 0.25**4 / found.ess) / (2 * variance**2)
    assert abs(found.eta[1] - expected) < 5 * error
    assert_mean(found, (found.draws[:, 0] - 1.0) ** 2, variance, np.sqrt(2) * variance)
    assert abs(found.log_normalizer + 0.5 * (variance + 1.0 - 1.0 - np.log(variance))) < 0.05


def test_noise_that_grows_is_averaged_until_fresh_simulations_agree(monkeypatch):
    """E x and E x^4 of ``x = z + exp(z / 2) e``: with four simulations of each draw the multipliers are (-.45, .034)."""
    z = np.linspace(-3.0, 3.0, 20_001)
    columns = np.stack([z, z**4 + 6 * z**2 * np.exp(z) + 3 * np.exp(2 * z)], axis=1)
    eta = np.array([-0.8, 0.05])
    weight = np.exp(-columns @ eta)
    weight /= weight.sum()
    mean = weight @ columns
    covariance = (columns - mean).T @ ((columns - mean) * weight[:, None])

    def model():
        z = numpyro.sample("z", dist.Uniform(-3.0, 3.0))
        numpyro.deterministic("x", z + jnp.exp(z / 2) * numpyro.sample("e", dist.Normal(0.0, 1.0)))

    targets = [epi.Target(lambda s, n=n: s["x"] ** n, mean=m, name=f"x{n}") for n, m in zip((1, 4), mean, strict=True)]
    problem = epi.Problem(model, epi.EmergentProperty(*targets), parameters=["z"])
    found = weighed(problem, max_simulations=8_000_000)
    assert found.reached
    assert_multipliers(found, eta, covariance)
    # Either check is enough; without both, the fresh simulations that they ask for count all the same.
    with monkeypatch.context() as patched:
        patched.setattr(_weighed, "MOST_LEFT", np.inf)
        assert_multipliers(weighed(problem, max_simulations=8_000_000), eta, covariance)
    spent = []
    simulate = _weighed._simulate

    def counted(problem, key, draws, simulations, proposals):
        spent.append(len(draws) * simulations)
        return simulate(problem, key, draws, simulations, proposals)

    monkeypatch.setattr(_weighed, "_simulate", counted)
    monkeypatch.setattr(_weighed, "_is_biased", lambda *_: False)
    assert_multipliers(weighed(problem, max_simulations=8_000_000), eta, covariance)
    spent.clear()
    monkeypatch.setattr(_weighed, "MOST_LEFT", np.inf)
    found = weighed(problem, max_simulations=8_000_000)
    assert abs(found.eta[0] / eta[0] - 1) > 0.25
    assert found.num_simulations == sum(spent)


def noisy_normal():
    """A normal parameter of mean 1 and variance .39, by a statistic with noise of variance 1/4, its mean and its square."""

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("seen", x + 0.5 * numpyro.sample("e", dist.Normal(0.0, 1.0)))

    return problem_of(model, lambda s: s["seen"], 1.0, 0.8, parameters=("x",))


@pytest.mark.parametrize("problem", [NORMAL, noisy_normal()], ids=["without noise", "with noise"])
def test_normalizer_and_multipliers_are_right_on_average(problem):
    """Noise of squares is skewed: by four simulations of a draw the second multiplier is .67 for .78, the normaliser .01 off."""
    mean, variance = (3.0, 1 / 16) if problem is NORMAL else (1.0, 0.39)
    near = approach(problem, jax.random.key(0), num_draws=500, spreads=3.0, batch=2000, max_simulations=200_000)
    options = {"num_draws": 1000, "batch": 2000, "max_simulations": 200_000}
    found = [weigh_draws(problem, key, near, **options) for key in jax.random.split(jax.random.key(1), 16)]
    log_normalizer = -0.5 * (variance + mean**2 - 1.0 - np.log(variance))
    off = np.array([each.log_normalizer - log_normalizer for each in found])
    stated = np.sqrt([each.relative_variance for each in found])
    assert abs(np.mean(off / stated)) < 4 / np.sqrt(len(found))
    # The spread of 16 numbers is known to a sixth; one over the effective number would be thrice as much.
    assert 0.5 < np.std(off / stated) < 1.6
    eta = np.array([each.eta for each in found])
    expected = np.array([-mean, 0.5 / variance - 0.5])
    assert np.all(np.abs(eta.mean(axis=0) - expected) < 4 * eta.std(axis=0, ddof=1) / np.sqrt(len(found)))


def test_simulations_that_fail_by_chance_cost_no_mass():
    """One simulation in five fails, so that of sixteen of a draw at least one mostly does."""

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        e, fails = numpyro.sample("e", dist.Normal(0.0, 1.0)), numpyro.sample("fails", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("seen", jnp.where(fails < 0.2, jnp.nan, x + 0.5 * e))

    found = weighed(problem_of(model, lambda s: s["seen"], 1.0, 0.8, parameters=("x",)), num_draws=1500)
    assert found.reached and found.ess >= 1500
    assert_mean(found, found.draws[:, 0], 1.0, np.sqrt(0.39))
    kl = 0.5 * (0.39 + 1.0 - 1.0 - np.log(0.39))
    assert abs(found.log_normalizer + kl) < 4 * np.sqrt(found.relative_variance)


def test_what_a_small_budget_leaves_of_a_bias_is_said():
    """One round, of four simulations of each draw: .013 nats are left in the exponent, by the cumulants of the noise."""
    found = weighed(noisy_normal(), max_simulations=20_000, num_draws=500)
    assert found.num_simulations <= 20_000
    weights = 1.0 / found.ess - 1.0 / 2000
    assert 0.006 < np.sqrt(found.relative_variance - weights) < 0.03


def test_optimism_of_even_draws_is_half_a_multiplier_s_share():
    """Of N draws with M uncorrelated statistics M / 2N, at any scale of these."""
    slopes = np.random.default_rng(0).normal(size=(4000, 14)) * np.logspace(-6, 6, 14)
    found = _weighed._optimism(np.full(4000, 1 / 4000), slopes - slopes.mean(axis=0), np.zeros((4000, 14, 14)))
    assert found == pytest.approx(14 / 8000, rel=1e-3)
    # The first statistic is nothing but noise, and the second does not vary.
    noise = np.zeros((4000, 14, 14))
    noise[:, 0, 0] = 1.01 * np.mean(np.square(slopes[:, 0]))
    fewer = slopes - slopes.mean(axis=0)
    fewer[:, 1] = 0.0
    assert _weighed._optimism(np.full(4000, 1 / 4000), fewer, noise) == pytest.approx(12 / 8000, rel=0.01)


def test_many_multipliers_fit_what_chance_left():
    """Means and covariances of four parameters: the least dual of these draws lies below the true one, by .005 on average."""

    def model():
        numpyro.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))

    rows, columns = np.triu_indices(4)
    mean, deviation = 0.5 * np.ones(4), 0.6
    second = np.outer(mean, mean) + deviation**2 * np.eye(4)

    def moments(sites):
        return jnp.concatenate([sites["z"], sites["z"][rows] * sites["z"][columns]])

    wanted = epi.EmergentProperty(
        epi.Target(moments, mean=np.concatenate([mean, second[rows, columns]]), name="moments")
    )
    problem = epi.Problem(model, wanted)
    near = approach(problem, jax.random.key(0), num_draws=500, spreads=3.0, batch=2000, max_simulations=200_000)
    options = {"num_draws": 500, "batch": 2000, "max_simulations": 100_000}
    found = [weigh_draws(problem, key, near, **options) for key in jax.random.split(jax.random.key(1), 24)]
    kl = 4 * 0.5 * (deviation**2 + 0.25 - 1.0 - 2 * np.log(deviation))
    off = np.array([(each.log_normalizer + kl) / np.sqrt(each.relative_variance) for each in found])
    assert abs(off.mean()) < 3 / np.sqrt(len(off))
    assert 0.5 < off.std() < 1.5


@pytest.mark.parametrize("base", ["prior", "lebesgue"])
def test_separate_modes_have_their_shares(base):
    """Two sides of a bent statistic, under a prior that prefers one."""

    def log_base(x, location):
        return -0.5 * np.square(x - location) * (base == "prior")

    def model():
        numpyro.sample("x", dist.Normal(0.4, 1.0))

    found = weighed(problem_of(model, lambda s: jnp.abs(s["x"]), 2.0, 0.3, base=base))
    eta, x, weight, covariance = quadrature(np.abs, 2.0, 0.3, 0.4, log_base)
    assert_multipliers(found, eta, covariance)
    assert_mean(found, (found.draws[:, 0] > 0).astype(float), weight @ (x > 0), 0.5)


def test_few_good_draws_are_enough_to_begin():
    """Most of what is near lies where the statistic saturates, and the tilt leaves next to nothing of it."""

    def saturating(sites):
        return jax.nn.sigmoid(12 * sites["x"])

    near = approach(
        problem := problem_of(plane(1.0), saturating, 0.75, 0.075),
        jax.random.key(0),
        num_draws=500,
        spreads=3.4,
        batch=2000,
        max_simulations=200_000,
    )
    found = weigh_draws(problem, jax.random.key(1), near, num_draws=NUM_DRAWS, batch=2000, max_simulations=200_000)
    eta, x, weight, covariance = quadrature(
        lambda x: 1 / (1 + np.exp(-12 * x)), 0.75, 0.075, 1.0, lambda x, location: -0.5 * np.square(x - location)
    )
    assert found.ess >= NUM_DRAWS
    assert_multipliers(found, eta, covariance)
    assert_mean(found, found.draws[:, 0], weight @ x, np.sqrt(weight @ x**2 - (weight @ x) ** 2))


def test_failing_simulations_are_left_out():
    found = weighed(problem_of(plane(), lambda s: jnp.where(s["y"] > 0, s["x"], jnp.nan), 2.0, 0.2))
    assert np.all(found.draws[:, 1] > 0)
    assert_multipliers(found, [-2.0, 12.0], of_normal(0.04))
    assert_mean(found, found.draws[:, 1], np.sqrt(2 / np.pi), np.sqrt(1 - 2 / np.pi))


def test_model_runs_are_counted_and_bounded():
    found = weighed(NORMAL, max_simulations=5000)
    assert 2000 < found.num_simulations <= 5000
    assert len(found.draws) <= 5000


def test_unreachable_targets_are_worth_nothing():
    """A mean of 1/2 within a spread of 1/100, of a statistic that is 0 or 1."""
    problem = problem_of(plane(), lambda s: (s["x"] > 0).astype(float), 0.5, 0.01)
    near = approach(problem, jax.random.key(0), num_draws=500, spreads=100.0, batch=2000, max_simulations=2000)
    found = weigh_draws(problem, jax.random.key(1), near, num_draws=500, batch=2000, max_simulations=20_000)
    assert found.ess == 0.0


def test_simulations_that_all_fail_are_worth_nothing():
    problem = problem_of(plane(), lambda s: s["x"] * jnp.nan, 0.5, 0.1)
    near = Near(np.zeros((10, 2)), np.full(10, -np.log(10)), 0.0, 10)
    found = weigh_draws(problem, jax.random.key(1), near, num_draws=500, batch=2000, max_simulations=20_000)
    assert found.ess == 0.0
    assert len(found.draws) == 0


def test_a_draw_on_a_bound_has_no_weight():
    """Rounded onto it, it has neither a base nor a prior, and is worth nothing; the rest goes on."""

    def model():
        numpyro.sample("x", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))

    problem = problem_of(model, lambda s: s["x"][0], 0.6, 0.1)
    draws = np.random.default_rng(5).normal(size=(500, 2))
    draws[3] = np.inf
    near = Near(draws, np.full(500, -np.log(500)), 0.0, 500)
    found = weigh_draws(problem, jax.random.key(2), near, num_draws=500, batch=2000, max_simulations=20_000)
    assert found.ess >= 500
    assert np.all(np.isfinite(found.draws))


def test_start_has_the_solution_and_says_so():
    start = epi.starts.Pilot()(jax.random.key(0), NORMAL)
    np.testing.assert_allclose(start.eta, [-3.0, 7.5], rtol=0.1)
    assert start.fit_draws
    assert NUM_DRAWS <= start.known.ess <= len(start.draws)
    assert "draws weighed to the targets, worth" in start.message


@pytest.mark.parametrize(("location", "width"), [(3.0, 0.25), (3.1, 0.25), (3.0, 0.2)])
def test_certificate_of_the_draws_is_the_kl(location, width):
    """A normal guide beside the normal solution, without another simulation."""
    start = epi.starts.Pilot()(jax.random.key(0), NORMAL)
    flow = Normal(jnp.array([location, 0.0]), jnp.array([width, 1.0]))
    verdict = measure(NORMAL, flow, jax.random.key(1), 20, 500).verdict()
    found = assess_by_draws(NORMAL, flow, verdict, start.draws, np.asarray(start.eta, float), start.known)
    kl = np.log(0.25 / width) + (width**2 + (location - 3.0) ** 2) / (2 * 0.25**2) - 0.5
    assert abs(found.gap - kl) < 4 * found.standard_error
    assert found.standard_error < 0.02
    if kl == 0:
        # Nothing of the guide's own: errors of its entropy and of its means cancel.
        assert found.standard_error == pytest.approx(np.sqrt(start.known.relative_variance), rel=0.01)
    assert found.unseen < 0.01
    assert found.verdict.startswith("Optimal within")


def test_certificate_of_the_draws_sees_a_lost_mode():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    problem = problem_of(model, lambda s: jnp.abs(s["x"]), 2.0, 0.3)
    start = epi.starts.Pilot()(jax.random.key(0), problem)
    flow = Normal(jnp.array([2.0]), jnp.array([0.3]))
    verdict = measure(problem, flow, jax.random.key(1), 20, 500).verdict()
    found = assess_by_draws(problem, flow, verdict, start.draws, np.asarray(start.eta, float), start.known)
    assert found.gap == pytest.approx(np.log(2), abs=4 * found.standard_error)
    assert found.unseen == pytest.approx(0.5, abs=0.05)
    assert found.verdict.startswith("Modes are probably missing: ")


@pytest.mark.slow
@pytest.mark.parametrize("certify", [None, False])
def test_an_expensive_fit_is_certified_by_its_start(certify, tmp_path, monkeypatch):
    """And so is what a checkpoint goes on with."""
    asked = {"start": epi.starts.Pilot(), "flow": affine, "certify": certify, "progress": False}
    asked |= {"max_steps": 20, "num_draws": 20}
    path = tmp_path / "run.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(_plan.Plan, "_finish", lambda *_: None)
        epi.fit(jax.random.key(0), NORMAL, checkpoint=path, every=0.0, **asked)
    result = epi.resume(path, NORMAL, start=asked["start"], flow=affine, progress=False)
    if certify is False:
        assert result.certificate is None
    else:
        assert result.certificate.num_simulations == epi.starts.Pilot()(split(0), NORMAL).known.num_simulations
        np.testing.assert_array_equal(result.eta, result.certificate.eta)


def split(seed):
    return jax.random.split(jax.random.key(seed), 5)[0]


def affine(key, dim):
    return epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())(key, dim)


def test_start_without_weighing_is_the_pilot_s():
    start = epi.starts.Pilot(num_weighed=0)(jax.random.key(0), NORMAL)
    assert start.eta is None
    assert "pilot draws" in start.message
    assert np.max(np.abs(np.asarray(start.draws)[:, 0] - 3.0)) < 0.75


@pytest.mark.slow
def test_fit_of_what_has_no_gradient_begins_at_the_solution():
    """A statistic that jumps by hundredths: entropy and multipliers of the normal that it nearly is."""

    @epi.statistic(differentiable=False)
    def rounded(sites):
        return jnp.round(100 * sites["x"]) / 100

    problem = epi.Problem(plane(), epi.EmergentProperty(epi.Target(rounded, mean=2.0, std=0.25)))
    result = epi.fit(jax.random.key(0), problem, max_steps=300, progress=False, certify=False)
    assert result.satisfied, str(result)
    assert "draws weighed" in result.settings["start_message"]
    np.testing.assert_allclose(result.eta, [-2.0, 7.5], rtol=0.1)
    exact = np.log(2 * np.pi * np.e) + np.log(0.25)
    assert exact - 0.05 < result.entropy < exact + 4 * result.verdict.entropy_standard_error
