"""The simulator agrees with NumPyro's own densities, transforms and order, over many kinds of models."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import init_to_feasible
from numpyro.infer.autoguide import AutoDiagonalNormal
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density, potential_energy

from numpyro_epi._simulator import Draw, Simulator

KEY = jr.key(0)


def supports(**distributions):
    """A model that draws each distribution once."""

    def model():
        for name, distribution in distributions.items():
            numpyro.sample(name, distribution)

    return model


def several():
    """Plates, and sites whose alphabetical order is not the model's."""
    width = numpyro.sample("width", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("units", 3):
        rate = numpyro.sample("rate", dist.HalfNormal(2.0))
        with numpyro.plate("trials", 2):
            numpyro.sample("effect", dist.Normal(rate, width))
    bias = numpyro.sample("bias", dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 2.0]])))
    numpyro.deterministic("total", bias.sum() + width)


def dependent_support():
    """The upper end of one site is the exponential of another."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Uniform(0.0, jnp.exp(a)))


def with_arguments(dim, *, scale):
    """A shape and a scale come from outside."""
    numpyro.sample("z", dist.Normal(0.0, scale).expand([dim]).to_event(1))


def with_noise():
    """Continuous and discrete noise, drawn between and after the parameters, and a key of its own."""
    rate = numpyro.sample("rate", dist.HalfNormal(3.0))
    count = numpyro.sample("count", dist.Bernoulli(probs=rate / (1 + rate)))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("current", dist.Normal(slope * count, 0.1))
    numpyro.deterministic("jitter", slope * jr.normal(numpyro.prng_key()))


def scoped():
    """One sub-model twice, each under its own prefix; a deterministic inside."""

    def part():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.deterministic("twice", 2 * numpyro.sample("weight", dist.Normal(0.0, scale)))

    handlers.scope(part, prefix="right")()
    handlers.scope(part, prefix="left")()


def reparameterised():
    """NumPyro turns ``z`` into a deterministic and samples ``z_decentered``."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with handlers.reparam(config={"z": LocScaleReparam(0.0)}):
        numpyro.sample("z", dist.Normal(1.0, scale))


def masked():
    """One of three entries does not count in the density."""
    with numpyro.plate("units", 3), handlers.mask(mask=jnp.array([True, False, True])):
        numpyro.sample("z", dist.Normal(1.0, 2.0))


def lower_triangle(offset):
    """Coordinates of a triangular or symmetric matrix: its entries on and below a diagonal."""
    return lambda matrix: matrix[jnp.tril_indices(3, offset)]


def improper_site(support, *event_shape):
    return dist.ImproperUniform(support, (), event_shape)


@dataclass(frozen=True)
class Case:
    """A model and what to know about it.

    Attributes:
        model: A NumPyro model.
        parameters: Sites the guide owns; empty for all.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        charts: For a site whose entries depend on each other: as many independent ones as unconstrained coordinates.
        proper: Whether the prior can be drawn from.
    """

    model: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    charts: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)
    proper: bool = True


ORDERED = dist.TransformedDistribution(dist.Normal().expand([3]).to_event(1), dist.transforms.OrderedTransform())
CASES = {
    "half lines": Case(
        supports(
            real=dist.Cauchy(1.0, 2.0),
            positive=dist.LogNormal(0.5, 1.0),
            above=dist.Pareto(2.0, 5.0),
            below=dist.RightTruncatedDistribution(dist.Normal(), high=1.0),
        )
    ),
    "intervals": Case(
        supports(
            interval=dist.Uniform(-10.0, 10.0).expand([2, 2]).to_event(2),
            unit=dist.Uniform(0.0, 1.0),
            circular=dist.VonMises(0.5, 2.0),
        )
    ),
    "simplex": Case(supports(z=dist.Dirichlet(jnp.array([1.0, 2.0, 3.0]))), charts={"z": lambda z: z[:-1]}),
    "ordered vector": Case(supports(z=ORDERED)),
    "positive ordered vector": Case(supports(z=improper_site(constraints.positive_ordered_vector, 3)), proper=False),
    "lower cholesky": Case(
        supports(z=improper_site(constraints.lower_cholesky, 3, 3)), charts={"z": lower_triangle(0)}, proper=False
    ),
    "correlation cholesky": Case(supports(z=dist.LKJCholesky(3, 2.0)), charts={"z": lower_triangle(-1)}),
    "correlation matrix": Case(supports(z=dist.LKJ(3, 2.0)), charts={"z": lower_triangle(-1)}),
    "positive definite": Case(supports(z=dist.Wishart(5.0, jnp.eye(3))), charts={"z": lower_triangle(0)}),
    "several sites": Case(several),
    "subset of sites": Case(several, parameters=("rate", "width")),
    "dependent support": Case(dependent_support),
    "arguments": Case(with_arguments, args=(3,), kwargs={"scale": 2.0}),
    "own noise": Case(with_noise, parameters=("rate", "slope")),
    "scope": Case(scoped),
    "reparam": Case(reparameterised),
    "mask": Case(masked),
    "improper": Case(
        supports(z=improper_site(constraints.real_vector, 2), r=improper_site(constraints.positive)), proper=False
    ),
}
SEVERAL_SITES = ["subset of sites", "own noise", "scope"]
# NumPyro draws simplices and matrices by rejection, which takes seconds to compile and says nothing more.
REJECTED = ("simplex", "correlation cholesky", "correlation matrix", "positive definite")
DRAWN = [name for name, case in CASES.items() if case.proper and name not in REJECTED]


class Run(NamedTuple):
    """One run of a case at a random unconstrained point."""

    case: Case
    simulator: Simulator
    u: Array
    draw: Draw

    @property
    def values(self) -> dict[str, Array]:
        """The parameters' values."""
        return {name: self.draw.sites[name] for name in self.simulator.names}

    def given_noise(self) -> Callable[..., Any]:
        """The model with its own noise fixed and hidden: NumPyro's density is then that of the parameters alone."""
        noise = self.simulator.noise
        values = {name: self.draw.sites[name] for name in noise}
        fixed = handlers.substitute(handlers.seed(self.case.model, KEY), values)
        return handlers.block(fixed, hide=list(noise))


@cache
def run_of(name):
    case = CASES[name]
    simulator = Simulator(case.model, parameters=case.parameters, args=case.args, kwargs=case.kwargs)
    u = jr.normal(jr.key(1), (simulator.dim,))
    return Run(case, simulator, u, eqx.filter_jit(simulator)(KEY, u))


@pytest.fixture(params=CASES)
def run(request):
    return run_of(request.param)


def test_log_prior_is_numpyros_log_density(run):
    model, case = run.given_noise(), run.case
    expected = jax.jit(lambda values: log_density(model, case.args, case.kwargs, values)[0])(run.values)
    np.testing.assert_allclose(run.draw.log_prior, expected, rtol=1e-4, atol=1e-5)


def test_log_prior_and_log_det_are_numpyros_potential_energy(run):
    model, case = run.given_noise(), run.case
    expected = jax.jit(lambda pieces: -potential_energy(model, case.args, case.kwargs, pieces))
    found = run.draw.log_prior + run.draw.log_det
    np.testing.assert_allclose(found, expected(run.simulator.unpack(run.u)), rtol=1e-4, atol=1e-5)


def test_log_det_is_that_of_the_autodiff_jacobian(run):
    def coordinates(u):
        sites = run.simulator(KEY, u).sites
        return jnp.concatenate([jnp.ravel(run.case.charts.get(n, jnp.ravel)(sites[n])) for n in run.simulator.names])

    sign, expected = np.linalg.slogdet(jax.jit(jax.jacfwd(coordinates))(run.u))
    assert sign != 0
    np.testing.assert_allclose(run.draw.log_det, expected, rtol=1e-4, atol=1e-5)


def test_values_lie_in_their_supports(run):
    fixed = handlers.substitute(handlers.seed(run.case.model, KEY), run.draw.sites)
    trace = handlers.trace(fixed).get_trace(*run.case.args, **run.case.kwargs)
    for parameter in run.simulator.parameters:
        assert np.all(trace[parameter.name]["fn"].support(run.values[parameter.name]))
        assert run.values[parameter.name].shape == parameter.shape


def test_unconstrain_inverts(run):
    np.testing.assert_allclose(eqx.filter_jit(run.simulator.unconstrain)(run.values), run.u, rtol=1e-3, atol=1e-4)


def test_simulate_is_the_call_at_the_unconstrained_image(run):
    """With the same key it draws the same noise."""
    simulated = eqx.filter_jit(run.simulator.simulate)(KEY, run.values)
    assert simulated.sites.keys() == run.draw.sites.keys()
    for found, expected in zip(jax.tree.leaves(simulated), jax.tree.leaves(run.draw), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DRAWN)
def test_prior_draw_is_numpyros_with_the_same_key(name):
    case, simulator = CASES[name], run_of(name).simulator

    @jax.jit
    def theirs(key):
        trace = handlers.trace(handlers.seed(case.model, key)).get_trace(*case.args, **case.kwargs)
        return [jnp.ravel(biject_to(trace[n]["fn"].support).inv(trace[n]["value"])) for n in simulator.names]

    found = eqx.filter_jit(simulator.sample_prior)(KEY)
    np.testing.assert_allclose(found, np.concatenate(theirs(KEY)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEVERAL_SITES)
def test_packing_is_that_of_autocontinuous(name):
    """NumPyro packs in the model's order, not the alphabet's nor that of ``parameters``: its guides and ours agree."""
    run = run_of(name)
    guide = AutoDiagonalNormal(run.given_noise(), init_loc_fn=init_to_feasible)
    handlers.seed(guide, KEY)(*run.case.args, **run.case.kwargs)
    theirs, ours = guide._unpack_latent(run.u), run.simulator.unpack(run.u)
    assert list(ours) == list(theirs) == list(run.simulator.names)
    for site in ours:
        np.testing.assert_array_equal(ours[site], theirs[site])


@pytest.mark.parametrize(
    ("distribution", "mean", "std"),
    [
        (dist.Normal(3.0, 2.0), 3.0, 2.0),
        (dist.LogNormal(1.0, 0.5), 1.0, 0.5),
        # The logit of a uniform variable is logistic.
        (dist.Uniform(-10.0, 10.0), 0.0, math.pi / math.sqrt(3)),
        (dist.HalfNormal(2.0), math.log(2.0) - (math.log(2) + np.euler_gamma) / 2, math.pi / math.sqrt(8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, dist.Distribution) else "",
)
def test_prior_draws_have_the_priors_moments(distribution, mean, std):
    """In unconstrained coordinates, in closed form."""
    simulator, num_draws = Simulator(supports(z=distribution)), 20_000
    draws = np.asarray(jax.jit(jax.vmap(lambda key: simulator.sample_prior(key)))(jr.split(jr.key(2), num_draws)))
    squares = np.square(draws - mean)
    assert abs(draws.mean() - mean) < 5 * draws.std() / math.sqrt(num_draws)
    assert abs(squares.mean() - std**2) < 5 * squares.std() / math.sqrt(num_draws)


def test_improper_prior_runs_but_is_not_drawn_from():
    simulator = run_of("improper").simulator
    draw = simulator(KEY, jnp.array([1.0, 2.0, -1.0]))
    assert draw.log_prior == 0.0
    np.testing.assert_allclose(draw.log_det, -1.0)
    np.testing.assert_allclose(draw.sites["r"], math.exp(-1.0), rtol=1e-6)
    with pytest.raises(NotImplementedError):
        simulator.sample_prior(KEY)


def test_improper_noise_beside_improper_parameters_is_numpyros_error():
    """Nothing can simulate it: better to hear so than to get a made-up number."""
    model = supports(z=dist.Normal(), e=improper_site(constraints.real))
    with pytest.raises(NotImplementedError):
        Simulator(model, parameters=("z",))(KEY, jnp.zeros(1))


def test_noise_follows_the_key_and_not_the_parameters():
    simulator = run_of("own noise").simulator
    u = run_of("own noise").u
    same, other = simulator(KEY, u), simulator(jr.key(9), u)
    assert same.sites["rate"] == other.sites["rate"]
    assert same.sites["current"] != other.sites["current"]
    assert same.sites["jitter"] != other.sites["jitter"]
    moved = simulator(KEY, u + 1.0)
    residuals = [draw.sites["current"] - draw.sites["slope"] * draw.sites["count"] for draw in (same, moved)]
    np.testing.assert_allclose(*residuals, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "noise", "deterministics"),
    [
        ("several sites", (), ("total",)),
        ("subset of sites", ("effect", "bias"), ("total",)),
        ("own noise", ("count", "current"), ("jitter",)),
        ("scope", (), ("right/twice", "left/twice")),
        ("reparam", (), ("z",)),
    ],
)
def test_sites_are_sorted_by_kind(name, noise, deterministics):
    simulator = run_of(name).simulator
    assert simulator.noise == noise
    assert simulator.deterministics == deterministics
    assert set(run_of(name).draw.sites) == {*simulator.names, *noise, *deterministics}


def test_making_a_simulator_computes_nothing():
    """The model is traced with abstract values only."""
    seen = []

    def model():
        seen.append(numpyro.sample("z", dist.Normal()))

    Simulator(model)
    assert [isinstance(value, jax.core.Tracer) for value in seen] == [True]


def observing():
    z = numpyro.sample("z", dist.Normal())
    numpyro.sample("y", dist.Normal(z, 1.0), obs=0.5)


def weighing():
    numpyro.factor("weight", numpyro.sample("z", dist.Normal()))


def learning():
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def counting():
    z = numpyro.sample("z", dist.Normal())
    numpyro.sample("k", dist.Poisson(jnp.exp(z)))


def certain():
    numpyro.deterministic("x", jnp.zeros(2))


BAD_NAMES = {
    "observed": (observing, (), r"Expected a model that observes nothing; .* site\(s\) \['y'\].*handlers\.block"),
    "factor": (weighing, (), r"Expected a model that observes nothing; .* site\(s\) \['weight'\]"),
    "observed by name": (observing, ("y",), r"Expected a model that observes nothing; .* site\(s\) \['y'\]"),
    "param": (learning, (), r"Expected random sites only; got numpyro\.param site\(s\) \['loc'\]"),
    "discrete by default": (counting, (), r"also draws the discrete site\(s\) \['k'\].*parameters=\('z',\)"),
    "discrete by name": (counting, ("z", "k"), r"Expected continuous parameters; got the discrete site\(s\) \['k'\]"),
    "none": (certain, (), r"Expected at least one continuous parameter; .* only \{'x': 'deterministic'\}"),
    "unknown": (several, ("widht",), r"among the sample sites \['width', .*'bias'\]; got \['widht'\]"),
    "deterministic": (several, ("width", "total"), r"among the sample sites .*; \['total'\] are not random"),
    "plate": (several, ("units",), r"among the sample sites .*; \['units'\] are not random"),
    "repeated": (several, ("width", "bias", "width"), r"Expected each parameter once; got \('width', "),
}


@pytest.mark.parametrize(("model", "parameters", "match"), BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_wrong_parameters_are_explained(model, parameters, match):
    with pytest.raises(ValueError, match=match):
        Simulator(model, parameters=parameters)
