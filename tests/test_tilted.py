"""The tilted model has the density it says, and the chains draw it: against closed forms, and with ArviZ's own measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from chosen_problems import CHOSEN
from flowjax.distributions import Normal, StandardNormal
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from problems import EXACT, SIMULATOR_COVARIANCE, SIMULATOR_MATRIX, SIMULATOR_NOISE, SIMULATOR_TARGET

import numpyro_epi as epi
from numpyro_epi import flows
from numpyro_epi._begin import build_flow
from numpyro_epi._datatree import as_datatree, read_arviz, write
from numpyro_epi._outcome import STATUS, Verdict
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi._result import Result

FULL = ("relative_entropy_mean", "ring", "gaussian_2", "dirichlet")


def result_of(problem, eta, flow=None):
    """What a fit would return, made by hand: by default a wide normal guide, shifted off the solution."""
    dim, eta = problem.dim, np.atleast_1d(np.asarray(eta, float))
    broad = flows.with_affine(StandardNormal((dim,)), jnp.full(dim, 0.3), 1.5 * jnp.eye(dim))
    nothing = np.zeros(len(eta))
    return Result(
        problem=problem,
        flow=broad if flow is None else flow,
        status=STATUS.satisfied,
        verdict=Verdict(nothing, nothing, nothing, 0.0, 0.0, 0.0, 1.0, 1),
        eta=eta,
        records={"step": np.array([0])},
        settings={"tolerance": 0.05},
        seconds=0.0,
        seed="0,0",
    )


def exact_result(name, flow=None):
    exact = EXACT[name]()
    return result_of(exact.problem, exact.multipliers, flow)


def sum_of(*names):
    """The mean 0.5 of the sum of these sites."""
    return EmergentProperty(Target(lambda sites: sum(jnp.sum(sites[name]) for name in names), mean=0.5, name="sum"))


def in_a_plate():
    with numpyro.plate("cells", 3):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def rate():
    numpyro.sample("z", dist.Gamma(2.0, 3.0))


def moving_support():
    a = numpyro.sample("a", dist.Uniform(1.0, 2.0))
    numpyro.sample("b", dist.Uniform(0.0, a))


def in_a_scan():
    scan(lambda c, _: (c, numpyro.sample("z", dist.Normal(0.0, 1.0))), 0.0, None, length=2)


def normal(z):
    return scipy.stats.norm.logpdf(z).sum()


BASES = {
    "plate": (in_a_plate, "prior", {"z": [0.3, -1.0, 2.0]}, normal([0.3, -1.0, 2.0])),
    "positive": (rate, "prior", {"z": 0.7}, scipy.stats.gamma.logpdf(0.7, 2, scale=1 / 3)),
    "positive, lebesgue": (rate, "lebesgue", {"z": 0.7}, 0.0),
    "moving": (moving_support, "prior", {"a": 1.6, "b": 0.4}, -np.log(1.6)),
    "moving, lebesgue": (moving_support, "lebesgue", {"a": 1.6, "b": 0.4}, 0.0),
    "scan": (in_a_scan, "prior", {"z": [0.3, -1.0]}, normal([0.3, -1.0])),
}
"""Model, base, a place, and the base's log density there."""


@pytest.mark.parametrize(("model", "base", "place", "log_base"), BASES.values(), ids=BASES.keys())
def test_density_is_the_base_tilted(model, base, place, log_base):
    problem = Problem(model, sum_of(*place), base=base)
    place = {name: jnp.asarray(value) for name, value in place.items()}
    found, _ = log_density(result_of(problem, 1.7).tilted_model(), (), {}, place)
    total = sum(float(jnp.sum(value)) for value in place.values())
    np.testing.assert_allclose(found, log_base - 1.7 * (total - 0.5), rtol=1e-5)


def test_model_shows_its_parameters_and_the_factor_only():
    model = exact_result("linear_gaussian_simulator").tilted_model()
    trace = handlers.trace(handlers.substitute(handlers.seed(model, 0), {"z": jnp.ones(2)})).get_trace()
    assert {name for name, site in trace.items() if site["type"] in ("sample", "deterministic")} == {"z", "epi"}


def test_model_binds_the_problem_s_arguments():
    def model(size, *, loc):
        numpyro.sample("z", dist.Normal(loc, 1.0).expand([size]).to_event(1))

    problem = Problem(model, sum_of("z"), model_args=(2,), model_kwargs={"loc": 3.0})
    found, _ = log_density(result_of(problem, 0.0).tilted_model(), (), {}, {"z": jnp.full(2, 3.0)})
    np.testing.assert_allclose(found, normal([0.0, 0.0]), rtol=1e-6)


def test_prior_draws_of_a_noisy_model_follow_the_outer_key():
    """The noise has a fixed key of its own; the parameters must not share it."""

    def model():
        z = numpyro.sample("z", dist.Normal(2.0, 0.5))
        numpyro.deterministic("x", z + numpyro.sample("e", dist.Normal(0.0, 1.0)))

    tilted = result_of(Problem(model, sum_of("x"), parameters=("z",)), 1.0).tilted_model()
    draws = Predictive(tilted, num_samples=2000)(jax.random.key(0))["z"]
    assert scipy.stats.kstest(np.asarray(draws), scipy.stats.norm(2.0, 0.5).cdf).pvalue > 1e-4


def newton_step_and_covariance(num_simulations):
    """The noisy linear simulator's density is normal, whatever its noise: mean and covariance by autodiff at zero."""
    model = exact_result("linear_gaussian_simulator").tilted_model(num_simulations=num_simulations)

    def density(z):
        return log_density(model, (), {}, {"z": z})[0]

    covariance = -np.linalg.inv(jax.jit(jax.hessian(density))(jnp.zeros(2)))
    return covariance @ jax.jit(jax.grad(density))(jnp.zeros(2)), covariance


@pytest.mark.parametrize("num_simulations", [1, 32, 3200])
def test_average_over_noise_is_fixed_and_off_by_its_standard_error(num_simulations):
    mean, covariance = newton_step_and_covariance(num_simulations)
    np.testing.assert_allclose(covariance, SIMULATOR_COVARIANCE, rtol=1e-4)
    shift = SIMULATOR_MATRIX @ mean - SIMULATOR_TARGET
    standard_error = np.sqrt(SIMULATOR_NOISE / num_simulations)
    assert np.all(np.abs(shift) < 4 * standard_error)
    assert np.any(np.abs(shift) > 0.05 * standard_error)


def moments_of(result, tree):
    """T of every posterior draw, noise left out, [chains, draws, M]."""
    prop = result.problem.property
    sites = {name: jnp.asarray(tree["posterior"][name].values) for name in result.problem.simulator.names}
    return np.asarray(jax.vmap(jax.vmap(lambda sites: prop.moments(prop.values(sites))))(sites), float)


def assert_means(values, expected, num_errors=5.0):
    """Within this many standard errors, by the effective sample size; values [chains, draws, ...]."""
    standard_error = values.std(axis=(0, 1)) / np.sqrt(effective_sample_size(values))
    deviation = (values.mean(axis=(0, 1)) - expected) / standard_error
    assert np.all(np.abs(deviation) < num_errors), deviation


def rhat(exported):
    import arviz

    table = arviz.summary(exported, round_to="none")
    assert np.all(np.asarray(table["ess_bulk"], float) > 400)
    return float(np.asarray(table["r_hat"], float).max())


@pytest.fixture(scope="module")
def plate():
    """A parameter with a batch shape, at eta -0.5: normal with mean 0.5 in each coordinate. The flow is not affine."""
    bent = flows.Coupling(num_stages=1, width=5, depth=1, initial_scale=1.0)(jax.random.key(3), 3)
    problem = Problem(in_a_plate, EmergentProperty(Target(lambda sites: jnp.sum(sites["z"]), mean=1.5, name="sum")))
    result = result_of(problem, -0.5, flows.with_affine(bent, jnp.full(3, -0.3), 0.5 * jnp.eye(3)))
    return result, result.sample_tilted(jax.random.key(0), num_warmup=300, num_samples=500, num_chains=4)


@pytest.mark.slow
def test_chains_draw_the_exact_solution(plate):
    draws = as_datatree(plate[1])["posterior"]["z"].values.astype(float)
    assert_means(draws, 0.5)
    assert_means(np.square(draws - 0.5), 1.0)
    assert not as_datatree(plate[1])["sample_stats"]["diverging"].values.any()


def test_chains_are_chains(plate):
    assert rhat(plate[1]) < 1.02  # Chains of 500: about twice as far from 1 as those of 1000 below.


def test_lp_is_the_tilted_density(plate):
    result, tree = plate[0], as_datatree(plate[1])
    draws = tree["posterior"]["z"].values.reshape(-1, 3)
    found = jax.vmap(lambda z: log_density(result.tilted_model(), (), {}, {"z": z})[0])(draws)
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values.ravel(), found, atol=1e-4)


def test_groups_are_laid_out_as_an_export_s(plate):
    tree = as_datatree(plate[1])
    assert set(tree.children) == {"posterior", "posterior_predictive", "sample_stats"}
    assert tree["posterior"]["z"].dims == ("chain", "draw", "cells")
    np.testing.assert_allclose(tree["posterior_predictive"]["sum"], tree["posterior"]["z"].sum("cells"), atol=1e-5)
    assert {"diverging", "acceptance_rate", "n_steps", "energy", "lp"} <= set(tree["sample_stats"].data_vars)
    assert "independent draws" not in tree["posterior"].attrs["draws"]
    assert "entropy" not in tree.attrs


def test_chains_survive_a_file(plate, tmp_path):
    write(plate[1], tmp_path / "chains.nc")
    np.testing.assert_array_equal(
        read_arviz(tmp_path / "chains.nc")["posterior"]["z"], as_datatree(plate[1])["posterior"]["z"]
    )


@pytest.mark.slow
def test_one_key_gives_one_answer_and_one_chain_will_do():
    result = exact_result("relative_entropy_mean")
    first, second = (
        as_datatree(result.sample_tilted(jax.random.key(2), num_warmup=50, num_samples=20, num_chains=1))
        for _ in range(2)
    )
    assert first["posterior"]["z"].shape == (1, 20, 3)
    np.testing.assert_array_equal(first["posterior"]["z"], second["posterior"]["z"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_chains_have_the_property(name):
    """The flow is untrained: a poor guide costs effective draws, not correctness."""
    result = exact_result(name)
    found = result.sample_tilted(jax.random.key(1))
    assert_means(moments_of(result, as_datatree(found)), result.problem.target)
    assert rhat(found) < 1.01


@pytest.mark.slow
def test_chains_draw_through_a_flow_that_bends():
    exact = EXACT["ring"]()
    flow = flows.MaskedAutoregressive(num_stages=2, width=20, initial_scale=1.0)(jax.random.key(2), 2)
    result = result_of(exact.problem, exact.multipliers, flows.with_affine(flow, jnp.zeros(2), 0.5 * jnp.eye(2)))
    found = result.sample_tilted(jax.random.key(1))
    assert_means(moments_of(result, as_datatree(found)), result.problem.target)
    assert rhat(found) < 1.01


@pytest.mark.slow
def test_chains_of_a_noisy_simulator_draw_the_exact_density():
    """Four simulations' average is half a spread off: the noise must move with the chains."""
    result = exact_result("linear_gaussian_simulator")
    found = result.sample_tilted(jax.random.key(1), num_simulations=4, num_samples=4000)
    tree = as_datatree(found)
    z = tree["posterior"]["z"].values.astype(float)
    centred = z - np.linalg.solve(SIMULATOR_MATRIX, SIMULATOR_TARGET)
    assert_means(centred, 0.0)
    assert_means(centred[..., :, None] * centred[..., None, :], SIMULATOR_COVARIANCE)
    # The noise that is exported is fresh: it has the spread of the simulator's.
    noise = tree["posterior_predictive"]["value(x)"].values - z @ SIMULATOR_MATRIX.T
    assert_means(noise, 0.0)
    assert_means(np.square(noise), SIMULATOR_NOISE)
    assert rhat(found) < 1.01


@pytest.mark.slow
def test_chains_draw_the_exact_density_where_parameters_set_the_noise():
    """The correction for an average's noise then differs from place to place."""
    exact = CHOSEN["noisy_spread"]()
    found = result_of(exact.problem, exact.multipliers).sample_tilted(jax.random.key(1), num_samples=4000)
    center, log_std = np.moveaxis(as_datatree(found)["posterior"]["z"].values.astype(float), -1, 0)
    variance = np.exp(2 * log_std)
    moments = center, center**2 + variance, np.cos(center) * np.exp(-variance / 2)
    assert_means(np.stack(moments, axis=-1), exact.problem.target)
    assert rhat(found) < 1.01


def wells(dim):
    """Two wells in every coordinate, 20 of their widths apart."""

    def model():
        numpyro.sample("z", dist.Uniform(-2.0, 2.0).expand([dim]).to_event(1))

    def depth(sites):
        return jnp.sum(jnp.square(jnp.abs(sites["z"]) - 1))

    return result_of(Problem(model, EmergentProperty(Target(depth, 0.0025 * dim, name="wells"))), 200.0)


@pytest.mark.slow
def test_chains_jump_between_the_modes_that_the_guide_has():
    found = wells(1).sample_tilted(jax.random.key(0), num_samples=6000)
    draws = as_datatree(found)["posterior"]["z"].values
    assert_means((draws > 0).astype(float), 0.5)
    assert_means(np.square(np.abs(draws) - 1), 0.0025)
    assert rhat(found) < 1.01


@pytest.mark.slow
def test_rhat_shows_chains_in_separate_modes():
    """A draw of the wide guide hardly ever lies in one of 256 small wells: chains stay where they started."""
    found = wells(8).sample_tilted(jax.random.key(0), num_samples=300, num_chains=8)
    import arviz

    assert float(np.asarray(arviz.summary(found, round_to="none")["r_hat"], float).max()) > 1.5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"num_samples": 0}, "Expected num_samples to be an integer >= 1; got 0"),
        ({"num_chains": 0}, "Expected num_chains to be an integer >= 1; got 0"),
        ({"num_warmup": -1}, "Expected num_warmup to be an integer >= 0; got -1"),
        ({"num_simulations": 0}, "Expected num_simulations to be an integer >= 1; got 0"),
    ],
)
def test_counts_are_checked(counts, message):
    with pytest.raises(ValueError, match=message):
        exact_result("relative_entropy_mean").sample_tilted(jax.random.key(0), **counts)


def test_multipliers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"Expected finite multipliers; got \[nan\]. The run ended satisfied"):
        result_of(EXACT["relative_entropy_mean"]().problem, np.nan).tilted_model()


def test_flow_without_a_bijection_is_refused():
    result = exact_result("relative_entropy_mean", Normal(jnp.zeros(3), jnp.ones(3)).base_dist)
    with pytest.raises(ValueError, match="Expected a flowjax Transformed"):
        result.sample_tilted(jax.random.key(0))


def test_guide_with_nothing_finite_to_start_from_is_named():
    nowhere = EmergentProperty(Target(lambda sites: jnp.sum(sites["z"]) * jnp.nan, mean=0.0, name="nowhere"))
    with pytest.raises(ValueError, match="Expected 4 draws of the guide with a finite density .* got 0 of 128"):
        result_of(Problem(rate, nowhere), 1.0).sample_tilted(jax.random.key(0))


def test_starts_skip_draws_whose_simulation_fails():
    """Half of the guide's draws have no statistic; every chain stays where there is one."""
    half = EmergentProperty(Target(lambda s: jnp.sum(jnp.where(s["z"] > 0, s["z"], jnp.nan)), mean=1.0, name="half"))

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    found = result_of(Problem(model, half), 0.0).sample_tilted(jax.random.key(0), num_warmup=20, num_samples=20)
    tree = as_datatree(found)
    assert np.all(tree["posterior"]["z"].values > 0)
    assert np.all(tree["sample_stats"]["finite"].values)


def test_exported_weights_meet_the_targets_and_are_importance_weights():
    """A wide guide of a normal prior: the weights are known, and the tilted ones make the mean exact."""
    result = exact_result("relative_entropy_mean")
    tree = as_datatree(result.to_arviz(num_chains=2, num_draws=1000))
    group = {name: tree[name].to_dataset() for name in ("posterior", "posterior_predictive", "sample_stats")}
    stats, z = group["sample_stats"], group["posterior"]["z"].values
    weight = np.exp(stats["log_weight"].values)
    assert weight.sum() == pytest.approx(1.0)
    statistic = group["posterior_predictive"]["projection"].values
    assert abs(np.sum(weight * statistic) - 1.5) < 1e-4 * statistic.std()
    exact = -0.5 * np.sum((z - 1.5 * np.array([1.0, 2.0, -1.0]) / 6) ** 2, axis=-1)
    guide = -0.5 * np.sum(((z - 0.3) / 1.5) ** 2, axis=-1)
    found = stats["log_importance_weight"].values
    difference = found - (exact - guide)
    np.testing.assert_allclose(difference - difference.mean(), 0.0, atol=2e-3)
    assert stats["log_weight"].attrs["ess"] == pytest.approx(1 / np.sum(weight**2), rel=1e-4)
    assert stats["log_weight"].attrs["meets_targets"] == 1


@pytest.mark.slow
def test_certificate_survives_a_file(tmp_path):
    # The flow as `fit` builds it around a builder's.
    flow = build_flow(jax.random.key(0), flows.default, 3, 1)
    result = exact_result("relative_entropy_mean", flow=flow)
    found = epi.certify(jax.random.key(0), result, num_draws=500)
    settings = result.settings | {"start_message": "", "num_components": 1}
    result = dataclasses.replace(result, certificate=found, settings=settings)
    result.save(tmp_path / "result.nc")
    again = epi.load(tmp_path / "result.nc", result.problem).certificate
    assert again.verdict == found.verdict
    assert again.gap == pytest.approx(found.gap)
    np.testing.assert_allclose(again.eta, found.eta)
