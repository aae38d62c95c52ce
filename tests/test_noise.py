"""The correction for the noise of averaged simulations, against integrals over that noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from numpyro_epi._noise import Left, correction, correction_for, left


def exponents(variance_of_mean, count):
    """Any numbers with this estimate of the variance of their mean."""
    some = np.arange(count, dtype=float)
    return jnp.asarray(some / some.std(ddof=1) * np.sqrt(count * variance_of_mean))


def mean_factor(variance, count, remedy):
    """``E exp(noise of the mean - remedy)`` for normal noise, whose mean and spread are independent."""
    degrees = count - 1

    def integrand(x):
        return np.exp(-remedy(variance * x / degrees)) * scipy.stats.chi2.pdf(x, degrees)

    return np.exp(variance / 2) * scipy.integrate.quad(integrand, 0, np.inf, limit=200)[0]


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("count", "variance"), [(2, 0.1), (3, 0.15), (5, 0.2), (10, 0.3), (45, 0.67)])
def test_exponential_is_right_on_average(count, variance):
    ours = jax.jit(jax.vmap(lambda s: correction(jnp.sqrt(s) * exponents(1.0, count))))
    nodes = np.linspace(0.0, 40 * variance, 4001)
    table = np.asarray(ours(nodes))
    found = mean_factor(variance, count, lambda s: np.interp(s, nodes, table))
    plain = mean_factor(variance, count, lambda s: s / 2)
    assert abs(np.log(found)) < 2e-4
    assert abs(np.log(found)) < 0.1 * abs(np.log(plain))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [3, 8, 16])
def test_skewed_noise_is_right_on_average(count, sign):
    """Noise of squares: within .003 nats, and half as far off as by the variance alone."""
    variance, draws = 0.05, 200_000
    square = np.random.default_rng(count).chisquare(1, (draws, count))
    noise = sign * np.sqrt(count * variance / 2) * (square - 1)
    mean = noise.mean(axis=1)
    ours = np.asarray(jax.vmap(correction)(jnp.asarray(noise)))
    by_variance = correction_for(noise.var(axis=1, ddof=1) / count, count)
    # The mean of `mean` is zero: with it the average's error is a few times smaller.
    found, plain = (np.exp(-mean - remedy) - 1 + mean for remedy in (ours, by_variance))
    error = 4 * np.std(found) / np.sqrt(draws)
    assert abs(found.mean()) < min(0.003, 0.5 * abs(plain.mean())) + error
    assert abs(plain.mean()) > 2 * error


@pytest.mark.parametrize("count", [4, 8])
def test_what_the_variance_alone_leaves_is_known(count):
    """Of squares of normal noise, whose cumulants are 2 and 8 times powers of its scale."""
    scale, draws = 0.3, 400_000
    noise = scale * (np.random.default_rng(count).chisquare(1, (draws, count)) - 1)
    mean = noise.mean(axis=1)
    plain = np.exp(-mean - noise.var(axis=1, ddof=1) / (2 * count)) - 1 + mean
    expected = Left((2 * scale**2) ** 2, 8 * scale**3).bias(count)
    # Up to the next order.
    assert abs(plain.mean() - expected) < 0.35 * expected + 4 * np.std(plain) / np.sqrt(draws)
    many = noise.reshape(-1, 16)
    found = left(many, np.ones(many.shape, bool))
    assert found.third == pytest.approx(8 * scale**3, rel=0.05)
    # The mean of a squared estimate is that of its variance more.
    assert 1.0 < found.square / (2 * scale**2) ** 2 < 2.5
    # Simulations that fail are left out, and draws of which hardly any succeed.
    fails = np.random.default_rng(1).random(many.shape) < np.where(np.arange(len(many)) % 10, 0.2, 0.95)[:, None]
    again = left(np.where(fails, np.nan, many), ~fails)
    assert again.third == pytest.approx(8 * scale**3, rel=0.1)
    assert left(many[:3], np.zeros((3, 16), bool)) is None


def test_enough_simulations_are_the_fewest():
    found = Left(0.3, -0.5)
    count = found.enough(0.002, 250)
    assert found.bias(count) <= 0.002 < found.bias(count - 1)
    assert Left(0.0, 0.0).enough(0.002, 250) == 2
    assert [Left(1.0, third).enough(0.002, 250) for third in (1e20, np.inf, np.nan)] == [250, 250, 250]


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("variance", [0.02, 0.2])
def test_it_is_the_logarithm_of_the_unbiased_estimate(count, variance):
    """But for the fourth order."""
    b = (count - 1) / 2
    exact = -np.log(scipy.special.hyp0f1(b, -b * variance / 2))
    assert float(correction(exponents(variance, count))) == pytest.approx(exact, abs=(variance / 2) ** 4)


def test_variances_of_means_have_the_same():
    some = jnp.array([0.3, -0.3, 0.7, -0.7])  # Without a third cumulant.
    assert correction_for(np.var(some, ddof=1) / 4, 4) == pytest.approx(float(correction(some)), rel=1e-5)


@pytest.mark.parametrize("far", [-300.0, 300.0])
def test_one_simulation_that_is_far_off_adds_no_density(far: float):
    """The cube of one in 64 outweighs its square: no correction below zero, and none above twice the variance's."""
    some = np.zeros(64)
    some[0] = far
    by_variance = correction_for(some.var(ddof=1) / 64, 64)
    assert abs(np.sum((some - some.mean()) ** 3) / (3 * 64**2)) > 10 * by_variance
    assert correction(some) == pytest.approx(0.0 if far < 0 else 2 * by_variance)


def test_one_simulation_has_none():
    assert float(correction(jnp.ones(1))) == 0.0
    assert float(correction(jnp.ones(7))) == 0.0


def test_it_grows_with_the_noise_without_bound():
    """The unbiased estimate has zeros, where no chain could be."""
    found = [float(correction(exponents(variance, 2))) for variance in (1.0, 5.0, 50.0, 500.0)]
    assert np.all(np.isfinite(found)) and np.all(np.diff(found) > 0)
