"""A fit finds the exact maximum-entropy solution: its entropy *and* its multipliers."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import NeuTraReparam
from problems import EXACT, angular_frequency, exact_kl, growth_rate, multiplier_error

import numpyro_epi as epi
from numpyro_epi import _checkpoint, _fit, _plan, _settled
from numpyro_epi._certificate import Known
from numpyro_epi._fresh import measure
from numpyro_epi._pool import pooled
from numpyro_epi._work import moments_at

QUICK = ("gaussian_2",)
"""One of each start: chains from a proper prior, and the loop alone under an improper one."""

SLOW = tuple(
    name
    for name, build in EXACT.items()
    if build().pathwise and build().feasible and name not in (*QUICK, "oscillator_paper")
)


LIGHT = epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())


@pytest.fixture(scope="module")
def oscillator():
    """The paper's oscillator, fitted and held against the exact solution."""
    return assert_solves("oscillator_paper")


def assert_solves(name, seed=0):
    exact = EXACT[name]()
    result = epi.fit(jax.random.key(seed), exact.problem, progress=False)
    assert result.status is epi.STATUS.satisfied, str(result)
    kl = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
    # The KL itself is measured with the standard error of a mean of 40,000 draws.
    assert kl <= exact.tolerance_kl + 2 * result.verdict.entropy_standard_error
    # A small multiplier's Monte Carlo error may be a tenth of it.
    slack = 4 * monte_carlo_error(result)
    assert multiplier_error(exact, result.eta, slack=slack) <= 0.1
    return result


def monte_carlo_error(result, num_draws=20_000):
    """Standard errors of multipliers that are read from so many independent draws of the solution, shape [M]."""
    draws = result.flow.sample(jax.random.key(3), (num_draws,))
    moments = np.asarray(moments_at(result.problem, jax.random.key(4), draws), float)
    return np.sqrt(np.diag(np.linalg.inv(np.atleast_2d(np.cov(moments.T)))) / num_draws)


@pytest.mark.parametrize("name", QUICK)
def test_solution_is_the_exact_one(name):
    assert_solves(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_solution_is_the_exact_one_everywhere(name):
    result = assert_solves(name)
    if name.startswith("exponential"):
        # Read from the guide alone, the multiplier is up to 9 % off: its far tail is not quite exponential.
        assert multiplier_error(EXACT[name](), result.eta) <= 0.02
    if EXACT[name]().num_modes == 2:
        share = np.mean(result.sample(jax.random.key(1), (20_000,))["A"][:, 0, 1] > 0)
        assert 0.4 <= share <= 0.6


@pytest.mark.slow
def test_predictive_with_the_guide_has_the_property(oscillator):
    """Through NumPyro's own machinery, in both modes."""

    def measured():
        sites = {"A": numpyro.sample("A", dist.Uniform(-10.0, 10.0).expand([2, 2]).to_event(2))}
        numpyro.deterministic("growth", growth_rate(sites))
        numpyro.deterministic("frequency", angular_frequency(sites))

    guide = oscillator.guide
    sites = ["A", "growth", "frequency"]
    predictive = Predictive(
        measured, guide=guide, params=guide.params, num_samples=20_000, return_sites=sites, parallel=True
    )
    found = predictive(jax.random.key(3))
    for name, mean, std in (("growth", 0.0, 0.25), ("frequency", 2 * math.pi, 0.2 * math.pi)):
        draws = np.asarray(found[name])
        # Within the tolerance of the fit plus five standard errors.
        np.testing.assert_allclose(draws.mean(), mean, atol=(0.05 + 5 / math.sqrt(draws.size)) * std)
        np.testing.assert_allclose(draws.std(), std, rtol=0.05)
    np.testing.assert_allclose(np.mean(found["A"][:, 0, 1] > 0), 0.5, atol=0.1)


@pytest.mark.slow
def test_nuts_in_the_guide_s_coordinates_draws_the_exact_solution(oscillator):
    """Exact multipliers in a factor make the solution itself a posterior; the flow is only the way to walk through it."""
    exact = EXACT["oscillator_paper"]()
    prop = exact.problem.property

    def solution():
        sites = {"A": numpyro.sample("A", dist.Uniform(-10.0, 10.0).expand([2, 2]).to_event(2))}
        numpyro.factor("property", -jnp.asarray(exact.multipliers) @ prop.moments(prop.values(sites)))

    neutra = NeuTraReparam(oscillator.guide, oscillator.guide.params)
    kernel = NUTS(neutra.reparam(solution))
    mcmc = MCMC(kernel, num_warmup=300, num_samples=500, num_chains=4, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(5))
    draws = mcmc.get_samples(group_by_chain=True)["A"]
    moments = np.asarray(jax.vmap(jax.vmap(lambda a: prop.moments(prop.values({"A": a}))))(draws))
    effective = effective_sample_size(moments)
    assert np.all(effective > 100)
    standard_error = moments.reshape(-1, 4).std(axis=0) / np.sqrt(effective)
    deviation = (moments.reshape(-1, 4).mean(axis=0) - exact.problem.target) / standard_error
    assert np.all(np.abs(deviation) < 5), deviation


@pytest.mark.slow
def test_infeasible_property_is_reported_with_its_direction():
    """The noise alone spreads x_0 by more than is asked: no guide can help."""
    result = epi.fit(jax.random.key(0), EXACT["linear_gaussian_infeasible"]().problem, progress=False)
    assert result.status is epi.STATUS.infeasible, str(result)
    assert "var value(x)[0] is" in result.status_message
    assert "above its target 0.05" in result.status_message
    assert not result.satisfied


def small_problem(statistic=lambda sites: sites["z"], *, mean=0.3, std=None, model=None):
    def uniform():
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    return epi.Problem(model or uniform, epi.EmergentProperty(epi.Target(statistic, mean=mean, std=std, name="t")))


def short_fit(problem, **options):
    """A run with a flow that compiles quickly."""
    given = {"max_steps": 50, "start": epi.starts.Prior(), "flow": LIGHT, "progress": False, **options}
    return epi.fit(jax.random.key(0), problem, **given)


class Solved(epi.starts.AbstractStart):
    """Says that it knows the solution's multipliers, with draws from which a short run does not get there."""

    def __call__(self, key, problem):
        draws = jax.random.normal(key, (200, 1)) - 3.0
        return epi.starts.Start(draws, False, jnp.ones(1), "Started from what was known.")


def test_flow_that_cannot_follow_its_start_is_not_called_an_infeasible_property(monkeypatch):
    monkeypatch.setattr(_plan, "_out_of_reach", lambda *_: True)
    result = short_fit(small_problem(), start=Solved(), max_steps=5)
    assert result.status is epi.STATUS.unsatisfied, str(result)
    assert "The property can be had" in result.status_message
    assert "Off: t is " in result.status_message
    from_prior = short_fit(small_problem(mean=0.9), max_steps=5)
    assert from_prior.status is epi.STATUS.infeasible
    assert "can be had" not in from_prior.status_message


def test_a_flow_that_cannot_follow_the_solution_has_the_property_nevertheless():
    """One normal, however its coordinates are mixed, on a ring: at the ring's multipliers its squared radius is too spread."""

    def plane():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    squared = epi.statistic()(lambda sites: jnp.sum(sites["z"] ** 2))
    problem = epi.Problem(plane, epi.EmergentProperty(epi.Target(squared, mean=9.0, std=1.0)))
    result = epi.fit(jax.random.key(1), problem, flow=LIGHT, num_draws=300, max_steps=1500, progress=False)
    assert result.satisfied, str(result)
    assert not result.certified and result.certificate.gap > 0.05
    # Those of the solution are reported: a chi-square tilted by w and (w - 9)^2.
    radius = np.linspace(0.0, 30.0, 20_001)
    off = radius - 9.0
    density = np.exp(-0.5 * radius - result.eta @ [off, off**2 - 1.0])
    found = [np.average(moment, weights=density) for moment in (radius, off**2)]
    np.testing.assert_allclose(found, [9.0, 1.0], rtol=0.02)
    first, last = result.records["multiplier"][[0, -1]]
    np.testing.assert_array_equal(first, result.records["multiplier"][len(result.records["step"]) // 2 - 1])
    assert last[1] > 1.5 * first[1]
    # The guide has the property by these, so its density is not that of the reported ones where it is far from the solution.
    far = result.certificate._replace(gap=0.21)
    assert result.density.eta is not None
    assert (
        eqx.tree_at(lambda r: r.certificate, result, far, is_leaf=lambda leaf: leaf is result.certificate).density.eta
        is None
    )


class Spent(epi.starts.AbstractStart):
    """One that took so many simulations, and knows, where it knows the multipliers, what its draws were chosen from."""

    count: int
    is_known: bool

    def __call__(self, key, problem):
        draws = jax.random.normal(key, (200, 1))
        start = epi.starts.Start(draws, False, None, "Begun.", num_simulations=self.count)
        if not self.is_known:
            return start
        log_density = -jnp.square(draws[:, 0])
        proposed = epi.starts.Proposed(draws, log_density, log_density + 1.0)
        return start._replace(eta=jnp.ones(1), proposed=proposed)


@pytest.mark.parametrize("certify", [True, False])
def test_simulations_of_all_parts_are_counted(certify, tmp_path, monkeypatch):
    """Of every start that was tried, of the steps, looks and certificates; also after it was written to a file."""
    looked = []

    def measured(problem, flow, key, num_batches, num_draws):
        looked.append(num_batches * num_draws)
        return measure(problem, flow, key, num_batches, num_draws)

    def pooled_and_counted(*given, **options):
        pool = pooled(*given, **options)
        looked.append(pool.num_simulations)
        return pool

    for module in (_plan, _settled):
        monkeypatch.setattr(module, "measure", measured)
    monkeypatch.setattr(_settled, "pooled", pooled_and_counted)
    start = epi.starts.FirstOf((Spent(500, False), Spent(1000, True)))
    result = short_fit(small_problem(), start=start, max_steps=25, num_draws=30, certify=certify)
    assert (max(looked) >= 20_000) == certify
    assert result.num_simulations == 1500 + result.settings["steps"] * 30 + sum(looked)
    assert f"{result.num_simulations:.1e} simulations" in str(result)
    result.save(tmp_path / "fit.nc")
    assert epi.load(tmp_path / "fit.nc", small_problem(), flow=LIGHT).num_simulations == result.num_simulations


def test_a_checkpoint_holds_what_the_draws_were_chosen_from(tmp_path, monkeypatch):
    """As the start gives it: further attempts are fitted to it, also after a stop."""
    saved = []

    def save(self, about, arrays, *, now=False):
        if "begin" in about:
            saved.append(_checkpoint.Saved(about, arrays, self.path))

    monkeypatch.setattr(_checkpoint.Keeper, "save", save)
    # A fit that is measured first and is no further from the solution is kept.
    short_fit(small_problem(), start=Spent(10, True), max_steps=25, checkpoint=tmp_path / "run.ckpt", every=0.0)
    found = _fit._begun(saved[0]).proposed
    assert found is not None
    np.testing.assert_array_equal(found.log_proposal, found.log_density + 1.0)
    assert found.draws.shape == (200, 1)


class Weighed(epi.starts.AbstractStart):
    """Draws that were weighed to the solution, with as many simulations as anybody could want."""

    def __call__(self, key, problem):
        draws = jax.random.normal(key, (500, 1))
        known = Known(np.zeros(500), 0.0, 0.002, 500.0, 0.1, 10**9)
        return epi.starts.Start(draws, False, jnp.ones(1), "Weighed.", known=known, num_simulations=10**9)


@pytest.mark.parametrize("is_noisy", [True, False])
def test_under_noise_the_start_s_own_draws_certify(is_noisy):
    """Those of a certificate are simulated sixteen times each, too seldom for noise that is far from normal."""

    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("y", z * jnp.exp(numpyro.sample("e", dist.Normal(0.0, 0.5))) if is_noisy else z)

    problem = epi.Problem(
        model, epi.EmergentProperty(epi.Target(lambda s: s["y"], mean=0.5, name="y")), parameters=["z"]
    )
    result = short_fit(problem, start=Weighed(), max_steps=25)
    assert (result.certificate.num_simulations == 10**9) == is_noisy


class Unsure(epi.starts.AbstractStart):
    """Draws of the solution whose normaliser is known to this relative variance."""

    variance: float

    def __call__(self, key, problem):
        draws = jax.random.logistic(key, (500, 1))
        log_density = np.asarray(-draws[:, 0] - 2 * jnp.logaddexp(0.0, -draws[:, 0]), float)
        known = Known(log_density, 0.0, self.variance, 500.0, 0.1, 1000)
        return epi.starts.Start(draws, False, jnp.zeros(1), "Begun.", known=known)


def test_a_run_ends_where_its_start_s_error_is_more_than_may_be_left():
    """More steps would leave it as it is."""

    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("y", z + 0.1 * numpyro.sample("e", dist.Normal(0.0, 1.0)))

    problem = epi.Problem(
        model, epi.EmergentProperty(epi.Target(lambda s: s["y"], mean=0.5, name="y")), parameters=["z"]
    )
    result = short_fit(problem, start=Unsure(0.01), max_steps=500, num_draws=100)
    assert result.satisfied and not result.certified
    assert result.settings["steps"] < 200


def test_model_that_is_never_finite_is_reported():
    result = short_fit(small_problem(lambda sites: sites["z"] * jnp.nan))
    assert result.status is epi.STATUS.nonfinite
    assert "nonfinite" in str(result)


def test_model_that_sometimes_fails_is_never_called_satisfied():
    """One draw in ten fails; the others could meet the target."""
    problem = small_problem(lambda sites: jnp.where(sites["z"] > 0.9, jnp.nan, sites["z"]), mean=0.45)
    result = short_fit(problem, max_steps=200)
    assert not result.satisfied, str(result)
    # Draws that fail leave the loss, so nothing keeps the guide from them: the share falls below the prior's 0.9.
    assert 0.5 < result.verdict.finite_share < 1.0
    assert np.all(np.isfinite(result.records["loss"]))


def test_constant_statistic_off_its_target_is_not_satisfied():
    result = short_fit(small_problem(lambda sites: 0 * sites["z"] + 1.0, mean=2.0))
    assert result.status in (epi.STATUS.unsatisfied, epi.STATUS.infeasible)
    assert np.all(np.isfinite(result.eta))


@pytest.mark.slow
def test_duplicated_statistics_stay_finite():
    """Their covariance is singular; only the sum of the two multipliers is determined."""

    def uniform():
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    targets = [epi.Target(epi.statistics.value.bind(site="z"), mean=0.3, name=name) for name in ("first", "second")]
    result = short_fit(epi.Problem(uniform, epi.EmergentProperty(*targets)), max_steps=2000)
    assert result.satisfied, str(result)
    np.testing.assert_allclose(result.eta.sum(), 2.672103855, rtol=0.1)


@pytest.mark.slow
def test_growing_penalty_moves_towards_the_target():
    rule = epi.multipliers.GrowingPenalty(initial_penalty=10.0, steps_per_epoch=100, num_norms=50)
    objective = epi.objectives.Pathwise(penalty=epi.objectives.split_half)
    result = short_fit(small_problem(), rule=rule, objective=objective, max_steps=600)
    assert abs(result.verdict.mean[0] - 0.3) < 0.05
    assert result.eta[0] > 1.0


@pytest.mark.slow
def test_score_objective_solves_what_has_no_gradient():
    exact = EXACT["indicator"]()
    result = epi.fit(jax.random.key(0), exact.problem, objective=epi.objectives.Score(), progress=False)
    assert result.satisfied, str(result)
    np.testing.assert_allclose(result.eta, exact.multipliers, rtol=0.1)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(epi.starts.Gaussian(mean=-1.0, covariance=0.25), marks=pytest.mark.slow),
        pytest.param(epi.starts.Pilot(num_draws=300, spreads=0.5), marks=pytest.mark.slow),
        epi.starts.Prior(),
    ],
    ids=["gaussian", "pilot", "prior"],
)
def test_every_start_begins_where_it_says(start):
    problem = small_problem()
    result = short_fit(problem, start=start, max_steps=1, optimizer=frozen())
    draws = start(jax.random.split(jax.random.key(0), 5)[0], problem).draws
    u = np.asarray(result.flow.sample(jax.random.key(1), (4000,)))
    standard_error = draws.std() * np.sqrt(1 / 4000 + 1 / len(draws))
    # 0.1: the flow's own initial conditioners, and at most the error of a short maximum-likelihood fit.
    assert abs(u.mean() - draws.mean()) < 5 * standard_error + 0.1 * draws.std()


def frozen():
    import optax

    return optax.set_to_zero()
