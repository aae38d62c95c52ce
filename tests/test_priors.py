"""Distributions that exist for no parameters, refused when the problem is made; all others are accepted."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax

from numpyro_epi._simulator import Simulator


def of(build):
    """A model of one good site, one that is built, and one that depends on the good one."""

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", build())
        numpyro.sample("c", dist.Normal(a, jnp.exp(a)))

    return model


INTERVAL, DOMAIN = (
    "Expected bounds low < high of the parameter 'b'",
    "Expected parameters that the distribution of site 'b'",
)
INVALID = {
    "reversed": (lambda: dist.Uniform(2.0, 1.0), f"{INTERVAL}; got low=2 and high=1. Correct"),
    "empty": (lambda: dist.Uniform(1.0, 1.0), f"{INTERVAL}; got low=1 and high=1. Correct"),
    "one of an array": (
        lambda: dist.Uniform(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.5])).to_event(1),
        rf"{INTERVAL}; got low=\[0, 2\] and high=\[1, 1.5\]",
    ),
    "expanded": (lambda: dist.Uniform(1, 0).expand([3]).to_event(1), INTERVAL),
    "not a number": (lambda: dist.Uniform(jnp.nan, 1.0), INTERVAL),
    "truncated": (lambda: dist.TruncatedNormal(0.0, 1.0, low=2.0, high=1.0), INTERVAL),
    "scale": (
        lambda: dist.Normal(0.0, -1.0),
        rf"{DOMAIN} is defined for; got Normal\(loc=0, scale=-1\): .* invalid scale parameter",
    ),
    "scale of zero": (lambda: dist.Normal(0.0, 0.0), DOMAIN),
    "scale in an array": (lambda: dist.Normal(jnp.zeros(2), jnp.array([1.0, 0.0])).to_event(1), rf"{DOMAIN}.*\[1, 0\]"),
    "scale that is computed": (lambda: dist.HalfNormal(jnp.sin(jnp.array(4.0))).expand([2]), DOMAIN),
    "transformed": (lambda: dist.LogNormal(0.0, -1.0), DOMAIN),
    "transformed array": (lambda: dist.LogNormal(0.0, -jnp.ones(7)).to_event(1), rf"{DOMAIN}.*-1, \.\.\.\]"),
    "concentration": (lambda: dist.Dirichlet(jnp.array([1.0, -1.0])), DOMAIN),
    "matrix": (lambda: dist.MultivariateNormal(jnp.zeros(2), -jnp.eye(2)), DOMAIN),
    "mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), jnp.array([1.0, -1.0]))
        ),
        DOMAIN,
    ),
}


@pytest.mark.parametrize(("build", "match"), INVALID.values(), ids=INVALID.keys())
def test_an_invalid_distribution_is_named_with_its_site(build, match):
    with pytest.raises(ValueError, match=match):
        Simulator(of(build))


def test_sites_in_plates_are_checked():
    def model():
        with numpyro.plate("units", 3):
            numpyro.sample("b", dist.Uniform(jnp.array([0.0, 0.0, 1.0]), 1.0))

    with pytest.raises(ValueError, match=INTERVAL):
        Simulator(model)


def test_arguments_of_the_model_are_constants():
    def model(low):
        numpyro.sample("b", dist.Uniform(low, 1.0))

    with pytest.raises(ValueError, match=INTERVAL):
        Simulator(model, args=(jnp.array(3.0),))
    assert Simulator(model, args=(np.float64(0.5),)).dim == 1


VALID = {
    "infinite bounds": lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0),
    "circle": lambda: dist.VonMises(0.0, 1.0),
    "improper": lambda: dist.ImproperUniform(dist.constraints.interval(0.0, 1.0), (), ()),
    "simplex": lambda: dist.Dirichlet(jnp.ones(3)),
    "beta": lambda: dist.Beta(jnp.ones(2), 2.0).to_event(1),
    "matrix": lambda: dist.LKJCholesky(3, 1.0),
    "masked": lambda: dist.Normal(0.0, 1.0).mask(False),
}


@pytest.mark.parametrize("build", VALID.values(), ids=VALID.keys())
def test_a_valid_distribution_is_accepted(build):
    assert Simulator(of(build)).names == ("a", "b", "c")


def test_what_depends_on_another_site_is_not_judged():
    """At some values of the first site they are invalid: only a run can tell."""

    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("b", dist.Uniform(a, 1.0))
        numpyro.sample("c", dist.Normal(0.0, a - 7.0))
        numpyro.sample("d", dist.Uniform(lax.cond(a > 0, lambda: 2.0, lambda: 0.0), 1.0))

    assert Simulator(model).dim == 4


def test_a_simulation_after_the_parameters_is_not_run():
    def model():
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        seen.append(a)
        numpyro.deterministic("y", a)

    seen = []
    Simulator(model)
    # The model is traced once for its sites and left at its last parameter the second time.
    assert len(seen) == 1
