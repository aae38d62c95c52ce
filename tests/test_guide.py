"""AutoFlow in NumPyro's own machinery: SVI, Predictive, NeuTraReparam and handlers, against exact densities."""

import pickle
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from flowjax.bijections import TriangularAffine
from flowjax.distributions import Normal, StandardNormal, Transformed
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.reparam import NeuTraReparam
from scipy import stats

from numpyro_epi import flows
from numpyro_epi._guide import AutoFlow, FlowTransform, parameters_only
from numpyro_epi._simulator import Simulator

KEY = jr.key(0)
SMALL = flows.Coupling(num_stages=2, width=8, depth=1, mixing=flows.fixed_permutation)
LOC = jnp.array([1.0, -2.0])
CHOLESKY = jnp.array([[3.0, 0.0], [2.0, 0.6]])


def skewed(key, dim):
    """A flow that is cheap to build: any triangular affine map."""
    return flows.with_affine(StandardNormal((dim,)), jr.normal(key, (dim,)), jnp.eye(dim) + jnp.tri(dim) / 3)


def one():
    """A single coordinate."""
    numpyro.sample("scale", dist.Gamma(2.0, 1.0))


def several():
    """Four unconstrained coordinates; the alphabetical order of the sites is not the model's."""
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
    share = numpyro.sample("share", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    bias = numpyro.sample("bias", dist.Normal(0.0, width))
    numpyro.deterministic("total", bias + share[0])


def moving():
    """The upper ends of one site are the exponential of another."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Uniform(0.0, jnp.exp(a)).expand([2]).to_event(1))


def plates():
    """Batch dimensions, and a support whose transform has an event dimension."""
    with numpyro.plate("units", 2):
        numpyro.sample("rate", dist.HalfNormal(2.0))
        numpyro.sample("split", dist.Dirichlet(jnp.ones(2)))


def improper():
    """No prior to draw from."""
    numpyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), event_shape=(2,)))


def noisy():
    """The simulator draws noise of its own, part of it discrete."""
    z = numpyro.sample("z", dist.HalfNormal(1.0))
    count = numpyro.sample("count", dist.Poisson(z))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.deterministic("x", a + count + 10 * numpyro.sample("e", dist.Normal(0.0, 1.0)))


def correlated():
    """A normal with the correlation 0.96."""
    numpyro.sample("z", dist.MultivariateNormal(LOC, scale_tril=CHOLESKY))


class Case(NamedTuple):
    """A model and the sites that the guide owns."""

    model: Callable
    names: tuple[str, ...]


CASES = {
    "one": Case(one, ("scale",)),
    "several": Case(several, ("width", "share", "bias")),
    "moving": Case(moving, ("a", "b")),
    "plates": Case(plates, ("rate", "split")),
    "improper": Case(improper, ("z",)),
    "noisy": Case(noisy, ("z", "a")),
}


@cache
def fitted_guide(name: str) -> AutoFlow:
    """What a fit returns: a flow that was built before, with the model's noise hidden."""
    case = CASES[name]
    dim = Simulator(case.model, parameters=case.names).dim
    return AutoFlow.from_flow(parameters_only(case.model, case.names), skewed(jr.key(3), dim))


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


def test_density_of_a_draw_is_the_flows_less_the_log_det(name):
    """The trace's sites, auxiliary vector and all, against the simulator's own Jacobian."""
    case, guide = CASES[name], fitted_guide(name)
    trace = handlers.trace(handlers.seed(guide, KEY)).get_trace()
    draw = eqx.filter_jit(Simulator(case.model, parameters=case.names))(KEY, trace["_auto_latent"]["value"])
    for site in case.names:
        np.testing.assert_allclose(trace[site]["value"], draw.sites[site], rtol=1e-5)
        assert trace[site]["fn"].batch_shape == guide.prototype_trace[site]["fn"].batch_shape
    densities = [jnp.sum(trace[site]["fn"].log_prob(trace[site]["value"])) for site in case.names]
    np.testing.assert_allclose(sum(densities), -draw.log_det, rtol=1e-4, atol=1e-5)


def test_log_prob_of_own_draws_is_that_of_the_inverse(name):
    posterior = (guide := fitted_guide(name)).get_posterior(guide.params)
    draws, (log_q,) = posterior.sample_with_intermediates(KEY, (5,))
    np.testing.assert_array_equal(posterior.log_prob(draws, [log_q]), log_q)
    np.testing.assert_allclose(posterior.log_prob(draws), log_q, rtol=1e-4, atol=1e-4)


def test_packing_is_the_simulators(name):
    guide, simulator = fitted_guide(name), Simulator(CASES[name].model, parameters=CASES[name].names)
    u = jr.normal(KEY, (simulator.dim,))
    theirs, ours = guide._unpack_latent(u), simulator.unpack(u)
    assert list(theirs) == list(ours)
    for site in ours:
        np.testing.assert_array_equal(theirs[site], ours[site])


def test_posterior_draws_lie_where_the_flow_puts_them():
    """sample_posterior, with the moving support inside an event, which NumPyro's own guess misses."""
    guide, simulator = fitted_guide("moving"), Simulator(moving)
    draws = guide.sample_posterior(KEY, guide.params, sample_shape=(50,))
    unconstrained = jax.jit(jax.vmap(simulator.unconstrain))(draws)
    expected = handlers.seed(guide._sample_latent, KEY)(sample_shape=(50,))
    np.testing.assert_allclose(unconstrained, expected, rtol=1e-3, atol=1e-3)


def test_moving_support_costs_no_replay_elsewhere():
    assert fitted_guide("moving")._supports_move
    assert not fitted_guide("several")._supports_move


@pytest.mark.parametrize("key", [jr.key(2), jr.PRNGKey(2)], ids=["typed", "legacy"])
@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_of_the_guide_draws_from_the_flow(key, parallel):
    guide = gaussian_guide()
    found = Predictive(guide, params=guide.params, num_samples=2000, parallel=parallel)(key)["z"]
    assert_moments(found, len(found))


@pytest.mark.parametrize("key", [jr.key(2), jr.PRNGKey(2)], ids=["typed", "legacy"])
def test_predictive_of_the_model_draws_fresh_noise(key):
    """x = a + count + 10 e has the variance of its noise, which parameters_only alone would freeze."""
    guide = fitted_guide("noisy")
    found = Predictive(noisy, guide=guide, params=guide.params, num_samples=1000, parallel=True)(key)
    assert set(found) == {"count", "e", "x"}
    assert abs(found["e"].std() - 1) < 5 / np.sqrt(2 * 1000)
    assert abs(np.corrcoef(found["e"], found["x"])[0, 1]) > 0.95


@pytest.mark.parametrize("key", [0, jr.key(0), jr.PRNGKey(0)], ids=["integer", "typed", "legacy"])
def test_seed_takes_any_key(key):
    guide = fitted_guide("several")
    np.testing.assert_array_equal(handlers.seed(guide, key)()["bias"], handlers.seed(guide, KEY)()["bias"])


@cache
def gaussian_guide() -> AutoFlow:
    """A flow that is exactly the target of `correlated`."""
    return AutoFlow.from_flow(correlated, flows.with_affine(StandardNormal((2,)), LOC, CHOLESKY))


def assert_moments(draws, effective):
    """Mean and covariance of `correlated` within 5 standard errors of that many independent draws."""
    covariance = CHOLESKY @ CHOLESKY.T
    variance = np.diag(covariance)
    assert np.all(np.abs(draws.mean(axis=0) - LOC) < 5 * np.sqrt(variance / effective))
    spread = np.sqrt((np.outer(variance, variance) + covariance**2) / effective)
    assert np.all(np.abs(np.cov(draws.T) - covariance) < 5 * spread)


def test_median_and_quantiles_are_the_normals():
    guide, levels = gaussian_guide(), [0.1, 0.5, 0.9]
    sd = np.sqrt(np.diag(CHOLESKY @ CHOLESKY.T))
    expected = stats.norm.ppf(np.array(levels)[:, None], LOC, sd)
    density = stats.norm.pdf(expected, LOC, sd)
    standard_error = np.sqrt(np.array([[0.09], [0.25], [0.09]]) / 4096) / density
    found = guide.quantiles(guide.params, levels)["z"]
    assert np.all(np.abs(found - expected) < 5 * standard_error)
    np.testing.assert_array_equal(guide.median(guide.params)["z"], found[1])


OBSERVED = jnp.array([1.2, 0.4, 2.0])


def conjugate(y):
    """Normal mean with a normal prior, both variances one."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


OPTIMIZERS = {"numpyro": (numpyro.optim.Adam(0.03), False), "optax": (optax.adam(0.03), True)}


@pytest.mark.parametrize(("optimizer", "stable"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_svi_reaches_the_exact_evidence(optimizer, stable):
    """The gap to the log evidence is KL(q || posterior), here below 0.002 nats."""
    guide = AutoFlow(conjugate, skewed, flow_key=jr.key(1))
    svi = SVI(conjugate, guide, optimizer, Trace_ELBO(num_particles=64))
    result = svi.run(jr.key(0), 400, OBSERVED, progress_bar=False, stable_update=stable)
    size = len(OBSERVED)
    evidence = stats.multivariate_normal(np.zeros(size), np.eye(size) + 1).logpdf(OBSERVED)
    loss = float(result.losses[-100:].mean())
    assert -0.0005 < loss + evidence < 0.002
    median = guide.median(result.params)["mean"]
    assert abs(median - OBSERVED.sum() / (size + 1)) < 0.1


def test_parameters_round_trip_through_svi():
    guide = AutoFlow(several, skewed)
    svi = SVI(several, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    state = svi.init(jr.key(0))
    theirs, ours = svi.get_params(state), guide.params
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    trained = svi.get_params(svi.update(state)[0])
    stored = pickle.loads(pickle.dumps(trained))
    draws = [handlers.substitute(handlers.seed(guide, KEY), params)()["bias"] for params in (ours, trained, stored)]
    assert draws[0] != draws[1] == draws[2]


def test_frozen_arrays_are_no_parameters():
    frozen = Transformed(StandardNormal((2,)), flows.paramax.non_trainable(TriangularAffine(LOC, CHOLESKY)))
    guide = AutoFlow.from_flow(correlated, flows.with_affine(frozen, jnp.zeros(2), jnp.eye(2)))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(guide.params))
    trainable = AutoFlow.from_flow(correlated, flows.with_affine(StandardNormal((2,)), LOC, CHOLESKY))
    assert sizes == sorted(leaf.size for leaf in jax.tree.leaves(trainable.params))


def test_neutra_with_the_exact_flow_is_a_standard_normal():
    guide = gaussian_guide()
    transform = guide.get_transform(guide.params)
    z = jr.normal(KEY, (5, 2))
    np.testing.assert_allclose(transform(z), LOC + z @ CHOLESKY.T, rtol=1e-5)
    np.testing.assert_allclose(transform.inv(transform(z)), z, rtol=1e-4, atol=1e-5)
    log_det = transform.log_abs_det_jacobian(z, transform(z))
    np.testing.assert_allclose(log_det, np.full(5, np.linalg.slogdet(CHOLESKY)[1]), rtol=1e-4)
    np.testing.assert_allclose(guide.get_base_dist().log_prob(z), stats.norm.logpdf(z).sum(axis=1), rtol=1e-5)
    assert jax.tree.structure(transform) == jax.tree.structure(FlowTransform(transform.bijection))


@pytest.mark.slow
def test_neutra_and_nuts_find_a_correlated_normal():
    """From a nested flow that is not the target: the transport changes the path, not the answer."""
    nested = flows.with_affine(SMALL(jr.key(1), 2), jnp.zeros(2), jnp.eye(2))
    guide = AutoFlow.from_flow(correlated, nested)
    neutra = NeuTraReparam(guide, guide.params)
    mcmc = MCMC(NUTS(neutra.reparam(correlated)), num_warmup=300, num_samples=1500, progress_bar=False)
    mcmc.run(jr.key(4))
    draws = np.asarray(mcmc.get_samples()["z"])
    transformed = neutra.transform_sample(mcmc.get_samples()["auto_shared_latent"])["z"]
    np.testing.assert_allclose(transformed, draws, rtol=1e-3, atol=1e-3)
    effective = numpyro.diagnostics.effective_sample_size(draws[None]).min()
    effective_squares = numpyro.diagnostics.effective_sample_size(np.square(draws - LOC)[None]).min()
    assert_moments(draws, min(effective, effective_squares))


def test_parameters_only_hides_what_depends_on_noise():
    trace = handlers.trace(parameters_only(noisy, ("z", "a"))).get_trace()
    assert set(trace) == {"z", "a"}


def test_model_arguments_and_builder_reach_the_guide():
    def sized(dim, *, scale):
        numpyro.sample("z", dist.Normal(0.0, scale).expand([dim]).to_event(1))

    guide = AutoFlow.from_flow(sized, SMALL, 3, scale=2.0)
    assert guide.flow.shape == (3,)
    assert handlers.seed(guide, 0)()["z"].shape == (3,)


def test_double_precision():
    jax.config.update("jax_enable_x64", True)
    try:
        guide = AutoFlow.from_flow(one, skewed)
        draws = Predictive(guide, params=guide.params, num_samples=3, parallel=True)(jr.key(0))
        posterior = guide.get_posterior(guide.params)
        u, (log_q,) = posterior.sample_with_intermediates(jr.key(0), (3,))
        assert all(value.dtype == jnp.float64 for value in [*draws.values(), u, log_q])
        np.testing.assert_allclose(posterior.log_prob(u), log_q, rtol=1e-12)
    finally:
        jax.config.update("jax_enable_x64", False)


def test_rejects_a_flow_of_another_shape():
    with pytest.raises(ValueError, match=r"Expected a flow of shape \(4,\), the model's parameters; got \(2,\)"):
        AutoFlow.from_flow(several, Normal(jnp.zeros(2)))


def test_rejects_a_conditional_flow():
    def conditional(key, dim):
        return flows.Transformed(
            StandardNormal((dim,)),
            flows.CouplingBijection(
                key, transformer=flows.affine(), untransformed_dim=1, dim=dim, cond_dim=3, nn_width=4, nn_depth=1
            ),
        )

    with pytest.raises(ValueError, match=r"Expected an unconditional flow; got one with a condition of shape \(3,\)"):
        AutoFlow.from_flow(correlated, conditional)


def test_rejects_what_is_no_flow():
    with pytest.raises(TypeError, match="Expected a flow builder or a flowjax distribution; got str"):
        AutoFlow(one, "coupling")
    with pytest.raises(TypeError, match="Expected the flow builder to return a flowjax distribution; got Array"):
        AutoFlow.from_flow(one, lambda key, dim: jnp.zeros(dim))


def test_params_need_a_prototype():
    with pytest.raises(RuntimeError, match="Expected a guide that is set up; got a new one"):
        AutoFlow(one).params  # noqa: B018


def test_neutra_needs_a_bijection():
    guide = AutoFlow.from_flow(correlated, StandardNormal((2,)))
    with pytest.raises(ValueError, match="Expected a flowjax Transformed.*got StandardNormal"):
        NeuTraReparam(guide, guide.params)
    with pytest.raises(ValueError, match="Expected a flowjax Transformed.*got StandardNormal"):
        guide.get_base_dist()
