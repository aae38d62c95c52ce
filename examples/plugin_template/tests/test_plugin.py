"""The statistic agrees with the closed form, and a fit of the problem with its known answer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpyro_epi as epi


@pytest.mark.parametrize("time_constant", [0.1, 1.0, 10.0])
def test_half_life_is_that_of_an_exponential(time_constant):
    signal = 3 * jnp.exp(-0.05 * jnp.arange(8) / time_constant)
    found = epi.get_statistic("my.half_life", step=0.05)({"x": signal})
    np.testing.assert_allclose(found, time_constant * math.log(2), rtol=1e-4)


def test_a_growing_signal_has_a_negative_half_life():
    found = epi.get_statistic("my.half_life", step=1.0, site="v")({"v": jnp.array([1.0, 2.0, 4.0])})
    np.testing.assert_allclose(found, -1.0, rtol=1e-5)


def test_spread_must_be_positive():
    with pytest.raises(ValueError, match=r"Expected std > 0 for 'my\.half_life.*got 0"):
        epi.get_problem("my.decay", std=0.0)


def test_fit_finds_the_known_answer():
    """A normal one: T has mean 2, sd 0.2 and density exp(-0 T - (T - 2)^2 / (2 0.2^2)); tau is T / log(2)."""
    result = epi.fit(jax.random.key(0), epi.get_problem("my.decay"), max_steps=500, progress=False)
    assert bool(result.satisfied)
    entropy = math.log(0.2 / math.log(2)) + math.log(2 * math.pi * math.e) / 2
    assert abs(result.entropy - entropy) < 0.03
    # In units of the statistic's spread: eta times 0.2 for the mean, times 0.2^2 for the square.
    np.testing.assert_allclose(result.eta * [0.2, 0.2**2], [0.0, 0.5], atol=0.05)
