"""Slices of a density: those of a normal are normal, with the conditional's mean and spread."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import MultivariateNormal

import numpyro_epi as epi
from numpyro_epi._density import Density, OfFlow
from numpyro_epi._slices import plot_conditional

COVARIANCE = np.array([[1.0, 0.8], [0.8, 2.0]])
PLACE = {"z": np.array([0.5, -1.0])}


def normal():
    numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))


def density(model=normal, dim=2) -> Density:
    prop = epi.EmergentProperty(epi.Target(epi.statistic(name="s")(lambda sites: sites["z"][..., 0]), 0.0))
    flow = MultivariateNormal(jnp.zeros(dim), jnp.asarray(COVARIANCE[:dim, :dim], float))
    return Density(epi.Problem(model, prop), OfFlow(flow))


@pytest.fixture(scope="module")
def figure():
    return plot_conditional(jax.random.key(0), density(), at=PLACE, num_points=30)


def test_slices_of_a_normal_are_its_conditionals(figure):
    for axis, i in ((figure.axes[0], 0), (figure.axes[3], 1)):
        j = 1 - i
        mean = COVARIANCE[i, j] / COVARIANCE[j, j] * PLACE["z"][j]
        variance = COVARIANCE[i, i] - COVARIANCE[i, j] ** 2 / COVARIANCE[j, j]
        x, heights = axis.lines[0].get_data()
        expected = -0.5 * np.square(x - mean) / variance
        np.testing.assert_allclose(heights, np.exp(expected - expected.max()), atol=1e-4)


def test_a_pair_is_the_log_density(figure):
    image = figure.axes[2].collections[0]
    x, y = (figure.axes[i].lines[0].get_xdata() for i in (0, 3))
    mesh = np.stack(np.meshgrid(x, y), axis=-1)
    expected = -0.5 * np.einsum("...i,ij,...j->...", mesh, np.linalg.inv(COVARIANCE), mesh)
    expected = np.maximum(expected - expected.max(), -16)
    np.testing.assert_allclose(image.get_array().reshape(30, 30), expected, atol=1e-3)
    np.testing.assert_allclose(np.ravel(figure.axes[2].lines[0].get_data()), PLACE["z"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": ("z[7]",)}, r"Expected a sequence of names among \['z\[0\]', 'z\[1\]'\]; got \['z\[7\]'\]"),
        ({"parameters": "z[0]"}, r"Expected a sequence of names among .*; got 'z\[0\]'"),
        ({"parameters": ()}, r"Expected a sequence of names among .*; got \(\)"),
        ({"num_points": 1}, "Expected num_points >= 2; got 1"),
        ({"at": {"z": np.array([np.inf, 0.0])}, "num_points": 30}, "Expected a place with a finite density"),
    ],
    ids=["unknown", "text", "empty", "points", "place"],
)
def test_a_wrong_argument_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        plot_conditional(jax.random.key(0), density(), **options)


def test_numbers_that_are_tied_cannot_vary_alone():
    def shares():
        numpyro.sample("z", dist.Dirichlet(jnp.ones(3)))

    with pytest.raises(ValueError, match="Expected one number for a parameter whose support ties it to no other"):
        plot_conditional(jax.random.key(0), density(shares), num_points=2)


def test_exported_data_has_no_density():
    with pytest.raises(TypeError, match=r"Expected a Result, a DualSolution or a Density; got str\. .*epi\.load"):
        plot_conditional(jax.random.key(0), "run.nc")
