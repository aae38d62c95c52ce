"""A problem joins model, property and base measure, and says what one draw weighs."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from jaxtyping import TypeCheckError

from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi.statistics import statistic, value

KEY = jr.key(0)
MEAN_OF_A = EmergentProperty(Target(value.bind(site="a"), mean=0.5))


def model():
    """A gamma parameter, a bounded vector, and noise on top."""
    a = numpyro.sample("a", dist.Gamma(2.0, 3.0))
    b = numpyro.sample("b", dist.Uniform(-1.0, 3.0).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(a * b, 0.1).to_event(1))


def only_parameters(shift=0.0, *, scale=1.0):
    """One real parameter whose prior takes arguments."""
    numpyro.sample("a", dist.Normal(shift, scale))


def choosing():
    """A discrete parameter beside a continuous one."""
    numpyro.sample("a", dist.Normal(0.0, jnp.exp(numpyro.sample("k", dist.Poisson(1.0)))))


def observing():
    """A site that is data."""
    numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal()), 1.0), obs=0.5)


@statistic(unit="mV", dims=("channel",))
def signal(sites):
    """What is measured: the noise site."""
    return sites["x"]


PROPERTY = EmergentProperty(
    Target(signal, mean=np.array([0.5, -0.25]), std=2.0), Target(value.bind(site="a"), mean=1.0)
)


@pytest.fixture(scope="module")
def evaluations():
    """One draw under each base, at the same key and point."""
    u = jnp.array([0.3, -0.8, 1.2])
    problems = {base: Problem(model, PROPERTY, parameters=("a", "b"), base=base) for base in ("prior", "lebesgue")}
    return {base: eqx.filter_jit(problem.evaluate)(KEY, u) for base, problem in problems.items()}, u


def test_base_densities_are_scipys(evaluations):
    """In unconstrained coordinates: the density of z times |dz/du|; Lebesgue measure is the Jacobian alone."""
    found, u = evaluations
    sigmoid = scipy.stats.logistic(0.0, 1.0)
    # a = exp(u0); b = -1 + 4 sigmoid(u).
    log_det = u[0] + np.sum(np.log(4.0) + sigmoid.logpdf(u[1:]))
    log_prior = scipy.stats.gamma(2.0, scale=1 / 3.0).logpdf(math.exp(u[0])) - 2 * math.log(4.0)
    np.testing.assert_allclose(found["prior"].log_det, log_det, rtol=1e-5)
    np.testing.assert_allclose(found["lebesgue"].log_base, log_det, rtol=1e-5)
    np.testing.assert_allclose(found["prior"].log_base, log_prior + log_det, rtol=1e-5)


def test_base_changes_nothing_that_is_measured(evaluations):
    found, _ = evaluations
    np.testing.assert_array_equal(found["prior"].moments, found["lebesgue"].moments)
    assert found["prior"].finite and found["lebesgue"].finite


def test_moments_are_those_of_the_simulated_draw(evaluations):
    found, u = evaluations
    problem = Problem(model, PROPERTY, parameters=("a", "b"))
    sites = problem.simulator(KEY, u).sites
    x = np.asarray(sites["x"])
    expected = [*x, sites["a"], *np.square(x - np.array([0.5, -0.25]))]
    np.testing.assert_allclose(found["prior"].moments, expected, rtol=1e-5)


def test_noise_is_fresh_for_every_key():
    """Its share of the moments is that of Normal(a b, .1)."""
    problem = Problem(model, PROPERTY, parameters=("a", "b"))
    u = jnp.zeros(3)
    moments = np.asarray(jax.jit(jax.vmap(lambda key: problem.evaluate(key, u).moments))(jr.split(KEY, 10_000)))
    # At u = 0, a = 1 and b = (1, 1).
    assert np.all(np.abs(moments[:, :2].mean(axis=0) - 1.0) < 5 * 0.1 / math.sqrt(10_000))
    np.testing.assert_allclose(moments[:, :2].std(axis=0), 0.1, rtol=5 / math.sqrt(2 * 10_000))
    assert np.all(moments[:, 2] == 1.0)


def test_constraints_targets_and_dim_come_from_model_and_property():
    problem = Problem(model, PROPERTY, parameters=("a", "b"))
    assert problem.dim == 3
    names = ["signal[0]", "signal[1]", "value(a)", "var signal[0]", "var signal[1]"]
    assert [constraint.name for constraint in problem.constraints] == names
    assert [constraint.unit for constraint in problem.constraints] == ["mV", "mV", "", "(mV)^2", "(mV)^2"]
    np.testing.assert_array_equal(problem.target, [0.5, -0.25, 1.0, 4.0, 4.0])


def test_all_unobserved_sites_are_parameters_by_default():
    assert Problem(model, PROPERTY).simulator.names == ("a", "b", "x")


def test_parameters_keep_the_models_order():
    assert Problem(model, PROPERTY, parameters=["b", "a"]).simulator.names == ("a", "b")


def test_model_arguments_reach_the_model():
    problem = Problem(only_parameters, MEAN_OF_A, model_args=(2.0,), model_kwargs={"scale": 3.0})
    expected = scipy.stats.norm(2.0, 3.0).logpdf(1.5)
    np.testing.assert_allclose(problem.evaluate(KEY, jnp.array([1.5])).log_base, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (only_parameters, None, "only_parameters"),
        (only_parameters, "cell", "cell"),
        (functools.partial(only_parameters, 1.0), None, "partial"),
    ],
)
def test_name_is_the_models_unless_given(function, name, expected):
    assert Problem(function, MEAN_OF_A, name=name).name == expected


@pytest.mark.parametrize(
    ("measure", "u"),
    [
        (lambda sites: jnp.log(sites["a"]), -1.0),
        (lambda sites: jnp.stack([sites["a"], 1 / sites["a"]]), 0.0),
        (lambda sites: sites["a"], jnp.inf),
        # The log density of a standard normal is below the least float here.
        (lambda sites: jnp.tanh(sites["a"]), 1e30),
    ],
    ids=["NaN statistic", "one infinite component", "infinite parameter", "no prior mass"],
)
def test_a_draw_that_is_not_finite_says_so(measure, u):
    problem = Problem(only_parameters, EmergentProperty(Target(measure, mean=0.0)))
    finite = jax.jit(jax.vmap(lambda u: problem.evaluate(KEY, u).finite))(jnp.array([[u], [1.0]]))
    np.testing.assert_array_equal(finite, [False, True])


def or_hook(match):
    """Where the test run checks types, the checker speaks first: our own message is for everyone else."""
    return rf"{match}|Type-check error"


BAD_PROBLEMS = {
    "no model": ("cell", MEAN_OF_A, {}, TypeError, or_hook(r"Expected a NumPyro model \(a function\); got .*str")),
    "no property": (model, [1.0], {}, TypeError, or_hook(r"Expected an EmergentProperty; got")),
    "bare target": (model, MEAN_OF_A.targets[0], {}, TypeError, or_hook(r"Expected an EmergentProperty; got Target")),
    "one string": (
        model,
        MEAN_OF_A,
        {"parameters": "a"},
        TypeError,
        r"Expected a sequence of site names; got the string 'a'\. Write \('a',\)",
    ),
    "no parameters": (
        model,
        MEAN_OF_A,
        {"parameters": ()},
        ValueError,
        r"Expected at least one parameter; got an empty sequence\. Leave it out for all sites",
    ),
    "unknown base": (
        model,
        MEAN_OF_A,
        {"base": "flat"},
        (ValueError, TypeCheckError),
        or_hook(r"Expected base 'prior' or .*; got 'flat'"),
    ),
    "unknown parameter": (
        model,
        MEAN_OF_A,
        {"parameters": ("c",)},
        ValueError,
        r"Expected parameters among the sample sites \['a', 'b', 'x'\]; got \['c'\]",
    ),
    "discrete parameter": (choosing, MEAN_OF_A, {}, ValueError, r"the discrete site\(s\) \['k'\].*parameters=\('a',\)"),
    "observed": (observing, MEAN_OF_A, {}, ValueError, r"Expected a model that observes nothing; .*\['y'\]"),
    "missing argument": (
        lambda size: only_parameters(),
        MEAN_OF_A,
        {},
        ValueError,
        r"Expected a model that runs; '<lambda>' failed: TypeError: .*missing 1 required positional argument: 'size'",
    ),
    "missing site": (
        only_parameters,
        EmergentProperty(Target(signal, mean=0.0)),
        {},
        ValueError,
        r"Statistic 'signal' failed on one draw: KeyError: 'x'\. The model's sites and their shapes are \{'a': \(\)\}",
    ),
    "target of another shape": (
        model,
        EmergentProperty(Target(signal, mean=np.zeros(3))),
        {},
        ValueError,
        r"Expected mean of 'signal' to be a scalar or of shape \(2,\); got shape \(3,\)",
    ),
    "spread of another shape": (
        only_parameters,
        EmergentProperty(Target(value.bind(site="a"), mean=0.0, std=np.ones(2))),
        {},
        ValueError,
        r"Expected std of 'value\(a\)' to be a scalar or of shape \(\); got shape \(2,\)",
    ),
}


@pytest.mark.parametrize(("given", "property", "options", "error", "match"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS)
def test_bad_problems_are_explained(given, property, options, error, match):
    with pytest.raises(error, match=match):
        Problem(given, property, **options)


def test_making_a_problem_runs_no_simulation():
    """The model and the statistics see abstract values only."""
    seen = []

    def watch(sites):
        seen.append(sites["a"])
        return sites["a"]

    Problem(only_parameters, EmergentProperty(Target(watch, mean=0.0)))
    assert seen and all(isinstance(a, jax.core.Tracer) for a in seen)


def test_notebooks_show_the_question_and_escape_its_names():
    def model():
        numpyro.sample("z<b>", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
        numpyro.sample("own", dist.Normal(0.0, 1.0))

    total = statistic(name="sum & more", unit="mV")(lambda sites: jnp.sum(sites["z<b>"]))
    problem = Problem(model, EmergentProperty(Target(total, mean=1.5)), parameters=("z<b>",), name="<i>")
    text = problem._repr_html_()
    for part in ("&lt;i&gt;", "z&lt;b&gt;", "2×3", "sum &amp; more", "mV", "1.5", "6 unconstrained", "own"):
        assert part in text
    assert "<b>" not in text
    assert "<i>" not in text
