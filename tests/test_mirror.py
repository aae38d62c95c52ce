"""A mirror image of noise has the same distribution and the opposite odd part, or is drawn on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from numpyro_epi._mirror import sample_mirrored
from numpyro_epi._simulator import Simulator

KEYS = jax.random.split(jax.random.key(0), 4000)
# Each with what maps its draws to a number that the mirror turns into its negative.
SYMMETRIC = {
    "normal": (dist.Normal(1.0, 2.0), lambda x: x - 1.0, scipy.stats.norm(1.0, 2.0)),
    "cauchy": (dist.Cauchy(1.0, 2.0), lambda x: x - 1.0, scipy.stats.cauchy(1.0, 2.0)),
    "laplace": (dist.Laplace(-1.0, 0.5), lambda x: x + 1.0, scipy.stats.laplace(-1.0, 0.5)),
    "logistic": (dist.Logistic(0.5, 0.5), lambda x: x - 0.5, scipy.stats.logistic(0.5, 0.5)),
    "student": (dist.StudentT(5.0, 1.0, 2.0), lambda x: x - 1.0, scipy.stats.t(5.0, 1.0, 2.0)),
    "uniform": (dist.Uniform(1.0, 4.0), lambda x: x - 2.5, scipy.stats.uniform(1.0, 3.0)),
    "log-normal": (dist.LogNormal(0.3, 0.5), lambda x: jnp.log(x) - 0.3, scipy.stats.lognorm(0.5, scale=np.exp(0.3))),
    "masked": (dist.Normal(1.0, 2.0).mask(False), lambda x: x - 1.0, scipy.stats.norm(1.0, 2.0)),
}
ALONE = {
    "expanded and folded": (dist.FoldedDistribution(dist.Normal(1.0, 1.0)).expand([1]), scipy.stats.foldnorm(1.0)),
    "gamma": (dist.Gamma(3.0, 2.0), scipy.stats.gamma(3.0, scale=0.5)),
    "half-normal": (dist.HalfNormal(2.0), scipy.stats.halfnorm(scale=2.0)),
    "truncated": (dist.TruncatedNormal(0.0, 1.0, low=0.0), scipy.stats.truncnorm(0.0, np.inf)),
}


def both(fn):
    def one(key):
        return tuple(sample_mirrored(fn, key, (), jnp.asarray(mirrored)) for mirrored in (False, True))

    return jax.vmap(one)(KEYS)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_mirror_image_is_opposite_and_as_distributed(name):
    fn, odd, expected = SYMMETRIC[name]
    value, image = both(fn)
    np.testing.assert_allclose(odd(image), -odd(value), rtol=1e-3, atol=1e-4)
    assert scipy.stats.kstest(np.asarray(image), expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ALONE)
def test_what_has_no_symmetry_is_drawn_on_its_own(name):
    fn, expected = ALONE[name]
    value, image = (np.ravel(found) for found in both(fn))
    assert scipy.stats.kstest(image, expected.cdf).pvalue > 1e-3
    # Five standard errors of no correlation.
    assert abs(scipy.stats.spearmanr(value, image).statistic) < 5 / np.sqrt(len(KEYS))


def test_a_folded_normal_is_mirrored_before_it_is_folded():
    value, image = both(dist.FoldedDistribution(dist.Normal(1.0, 1.0)))
    assert scipy.stats.kstest(np.asarray(image), scipy.stats.foldnorm(1.0).cdf).pvalue > 1e-3
    np.testing.assert_allclose(np.minimum(np.abs(value + image - 2), np.abs(np.abs(value - image) - 2)), 0.0, atol=1e-5)


def test_a_normal_of_many_dimensions_is_mirrored_whole():
    fn = dist.MultivariateNormal(jnp.array([1.0, -2.0]), jnp.array([[1.0, 0.5], [0.5, 2.0]]))
    value, image = both(fn.expand([3]).to_event(1))
    assert value.shape == (len(KEYS), 3, 2)
    np.testing.assert_allclose(value + image, np.broadcast_to(2 * fn.loc, value.shape), atol=1e-5)


def noisy():
    """Noise in a plate, within a scan, as a discrete site, and a parameter of the same family."""
    z = numpyro.sample("z", dist.Normal())
    with numpyro.plate("units", 3):
        e = numpyro.sample("e", dist.Normal(z, 1.0))

    def step(carry, _):
        carry = carry + numpyro.sample("kick", dist.Normal(0.0, 0.1))
        return carry, carry

    end, _ = scan(step, jnp.zeros(()), None, length=4)
    numpyro.sample("spikes", dist.Poisson(3.0))
    numpyro.deterministic("odd", jnp.sum(e - z) + end)


def test_noise_that_the_model_sets_itself_stays():
    model = handlers.substitute(noisy, data={"e": jnp.array([0.1, 0.2, 0.3])})
    simulator = Simulator(model, parameters=("z",))
    for mirrored in (False, True):
        found = simulator(jax.random.key(1), jnp.array([0.7]), jnp.asarray(mirrored)).sites["e"]
        np.testing.assert_allclose(found, [0.1, 0.2, 0.3], rtol=1e-6)


def test_a_simulation_and_its_mirror_image_cancel_what_is_odd():
    simulator = Simulator(noisy, parameters=("z",))
    draws = [simulator(jax.random.key(1), jnp.array([0.7]), jnp.asarray(mirrored)) for mirrored in (False, True)]
    first, second = (draw.sites for draw in draws)
    assert abs(float(first["odd"])) > 0.1
    np.testing.assert_allclose(first["odd"], -second["odd"], rtol=1e-5)
    np.testing.assert_allclose(first["z"], second["z"])
    assert draws[0].log_prior == draws[1].log_prior
    plain = simulator(jax.random.key(1), jnp.array([0.7])).sites
    np.testing.assert_allclose(plain["odd"], first["odd"], rtol=1e-6)
