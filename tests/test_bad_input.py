"""Whatever is wrong with the input, one clear error says what was expected, what came, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import StandardNormal

import numpyro_epi as epi


def model():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def discrete():
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("k", dist.Poisson(2.0))


def empty():
    numpyro.deterministic("x", jnp.ones(()))


def observed():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=1.0)


def first(sites):
    return sites["z"][0]


def prop(mean=0.0, std=None, statistic=first):
    return epi.EmergentProperty(epi.Target(statistic, mean=mean, std=std))


def fit(**options):
    key = options.pop("key", jax.random.key(0))
    return epi.fit(key, options.pop("problem", epi.Problem(model, prop())), progress=False, **options)


CASES = {
    "unknown statistic": (
        lambda: epi.Target("linear2d.growth", mean=0.0),
        LookupError,
        "Expected a registered statistic",
    ),
    "statistic of a wrong type": (
        lambda: epi.Target(3, mean=0.0),
        TypeError,
        "a registered name or a function; got int",
    ),
    "statistic without its option": (
        lambda: epi.Target(epi.statistics.value, mean=0.0),
        TypeError,
        r"option\(s\) \['site'\]",
    ),
    "unknown option": (lambda: epi.statistics.value.bind(where="z"), TypeError, r"among \['site'\]; got \['where'\]"),
    "mean is nan": (lambda: prop(mean=np.nan), ValueError, "Expected a finite mean"),
    "mean is infinite": (lambda: prop(mean=np.inf), ValueError, "Expected a finite mean"),
    "mean is no number": (lambda: prop(mean="high"), ValueError, "Expected mean of 'first' to be numbers"),
    "spread is zero": (lambda: prop(std=0.0), ValueError, "Expected std > 0"),
    "spread is negative": (lambda: prop(std=-1.0), ValueError, "Expected std > 0"),
    "spread is nan": (lambda: prop(std=np.nan), ValueError, "Expected a finite std"),
    "empty property": (epi.EmergentProperty, ValueError, "Expected at least one Target"),
    "property of no targets": (lambda: epi.EmergentProperty(first), TypeError, "Expected Target objects"),
    "statistic twice": (
        lambda: epi.EmergentProperty(epi.Target(first, mean=0.0), epi.Target(first, mean=1.0)),
        ValueError,
        "Expected each statistic once",
    ),
    "target of a wrong shape": (
        lambda: epi.Problem(model, prop(mean=[0.0, 1.0])),
        ValueError,
        "to be a scalar or of shape",
    ),
    "statistic fails on the model": (
        lambda: epi.Problem(model, prop(statistic=lambda sites: sites["x"])),
        ValueError,
        "failed on one draw: KeyError",
    ),
    "model is no function": (lambda: epi.Problem("model", prop()), TypeError, "Expected a NumPyro model"),
    "property is no property": (lambda: epi.Problem(model, first), TypeError, "Expected an EmergentProperty"),
    "unknown parameter": (
        lambda: epi.Problem(model, prop(), parameters=("w",)),
        ValueError,
        r"among the sample sites \['z'\]; got \['w'\]",
    ),
    "parameters as a string": (lambda: epi.Problem(model, prop(), parameters="z"), TypeError, r"Write \('z',\)"),
    "no parameters named": (lambda: epi.Problem(model, prop(), parameters=()), ValueError, "got an empty sequence"),
    "discrete parameter": (
        lambda: epi.Problem(discrete, prop(), parameters=("k",)),
        ValueError,
        "Expected continuous parameters; got the discrete",
    ),
    "discrete site unnamed": (lambda: epi.Problem(discrete, prop()), ValueError, r"say which sites are parameters"),
    "no random site": (lambda: epi.Problem(empty, prop()), ValueError, "Expected at least one continuous parameter"),
    "observed data": (lambda: epi.Problem(observed, prop()), ValueError, "Expected a model that observes nothing"),
    "unknown base": (
        lambda: epi.Problem(model, prop(), base="flat"),
        ValueError,
        "Expected base 'prior' or 'lebesgue'",
    ),
    "no key": (lambda: fit(key=0), TypeError, "Expected one random key"),
    "several keys": (lambda: fit(key=jax.random.split(jax.random.key(0))), TypeError, "Expected one random key"),
    "no problem": (lambda: fit(problem=model), TypeError, "Expected a Problem; got function"),
    "no draws": (lambda: fit(num_draws=0), ValueError, "Expected num_draws to be an integer >= 4; got 0"),
    "fractional steps": (lambda: fit(max_steps=1.5), ValueError, "Expected max_steps to be an integer >= 1; got 1.5"),
    "tolerance of zero": (lambda: fit(tolerance=0.0), ValueError, "Expected a finite tolerance > 0"),
    "flow of a wrong size": (
        lambda: fit(flow=lambda key, dim: StandardNormal((dim + 1,)), start=epi.starts.Prior()),
        ValueError,
        r"Expected an unconditional flow of shape \(2,\)",
    ),
    "flow of a wrong kind": (
        lambda: fit(flow=lambda key, dim: dist.Normal(0.0, 1.0), start=epi.starts.Prior()),
        TypeError,
        "to return a flowjax distribution; got Normal",
    ),
    "start of a wrong shape": (
        lambda: fit(start=epi.starts.Gaussian(mean=[0.0, 1.0, 2.0])),
        ValueError,
        r"Expected a mean of shape \(2,\)",
    ),
    "start that is not a covariance": (
        lambda: fit(start=epi.starts.Gaussian(covariance=[[1.0, 2.0], [2.0, 1.0]])),
        ValueError,
        "Expected a positive definite covariance",
    ),
    "pilot draws that never come": (
        lambda: fit(
            problem=epi.Problem(model, prop(mean=50.0, std=0.1)), start=epi.starts.Pilot(max_simulations=20_000)
        ),
        ValueError,
        "Expected at least 3 pilot draws",
    ),
    "negative penalty": (lambda: epi.multipliers.Natural(penalty=-1.0), ValueError, "Expected penalty > 0; got -1.0"),
    "coupling without stages": (
        lambda: epi.flows.Coupling(num_stages=0),
        ValueError,
        "Expected num_stages to be an integer",
    ),
    "coupling of one parameter": (
        lambda: epi.flows.Coupling()(jax.random.key(0), 1),
        ValueError,
        "Expected dim >= 2 for a coupling flow; got 1",
    ),
    "unknown problem": (lambda: epi.get_problem("dynamics.pendulum"), LookupError, "Expected a registered problem"),
    "no such file": (lambda: epi.read_arviz("nowhere.nc"), FileNotFoundError, "there is no such file"),
    "unknown suffix": (lambda: epi.read_arviz("result.csv"), ValueError, "Expected a path that ends in .nc"),
}


@pytest.mark.parametrize(("call", "error", "match"), CASES.values(), ids=CASES.keys())
def test_one_clear_error(call, error, match):
    with pytest.raises(error, match=match):
        call()
