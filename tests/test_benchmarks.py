"""What the benchmarks' tables are computed by, beside closed forms."""

import sys
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi._outcome import Verdict

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import solvers
import strangers as judged
from _table import achieved


def verdict_of(moments):
    count = len(moments)
    scale = moments.std(axis=0)
    return Verdict(moments.mean(axis=0), scale, scale / np.sqrt(count), 0.0, 0.0, 0.0, 1.0, count)


@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_interval_of_a_spread_is_that_of_repeated_samples(law):
    """Also off the target; it may be wider, by less than a third here."""
    problem = epi.Problem(
        lambda: numpyro.sample("x", dist.Normal(0, 1)),
        epi.EmergentProperty(epi.Target(epi.statistics.value.bind(site="x"), mean=0.0, std=2.0)),
    )
    rng = np.random.default_rng(0)
    samples = rng.normal(0.05, 2.0, (500, 4000)) if law == "normal" else rng.uniform(-3.4, 3.5, (500, 4000))
    found = achieved(problem, verdict_of(np.stack([samples[0], samples[0] ** 2], axis=1)))
    mean, spread = found.split(", sd ")
    assert float(mean.split(" +- ")[0]) == pytest.approx(samples[0].mean(), rel=1e-3)
    value, half = map(float, spread.split(" +- "))
    assert value == pytest.approx(samples[0].std(), rel=0.005)
    assert 0.75 < half / (1.96 * samples.std(axis=1).std()) < 1.33


def step(state, given):
    """A map with noise, and what it gives out: the state after it."""
    state = state + 0.1 * (jnp.sin(state) - state) + 0.3 * given
    return state, state


def test_diffrax_takes_the_same_steps_as_the_scan():
    start, noise = jnp.array([1.0, -2.0]), jax.random.normal(jax.random.key(0), (30, 2))
    expected = jax.lax.scan(step, start, noise)[1]
    _, found = solvers._by_diffrax(lambda state: state, keep_all=False)(step, start, noise)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    last, nothing = solvers._by_diffrax(lambda state: None, keep_all=True)(step, start, noise)
    assert nothing is None
    np.testing.assert_allclose(last, expected[-1], atol=1e-5)


@pytest.mark.parametrize(("substeps", "tolerance"), [(1, 1e-2), (4, 4e-5), (8, 3e-6)])
def test_fixed_steps_are_of_order_four(substeps, tolerance):
    """A rotation of one radian a sample; the error of a step is its fifth power over 120."""
    times = jnp.arange(5.0)
    found = solvers._runge_kutta(substeps)(
        diffrax.ODETerm(lambda t, y, speed: speed * jnp.array([-y[1], y[0]])),
        None,
        *(times[0], times[-1], None, jnp.array([1.0, 0.0]), 1.0, diffrax.SaveAt(ts=times)),
    ).ys
    error = np.abs(found - np.stack([np.cos(times), np.sin(times)], axis=1)).max()
    assert tolerance / 10 < error < 5 * tolerance


@pytest.mark.parametrize(
    ("said", "kl", "off", "expected"),
    [
        ((True, True, 0.0, 0.02), 0.03, (0.01, 0.01), "RIGHT"),
        ((True, False, np.nan, np.inf), 0.03, (0.01, np.nan), "RIGHT"),
        ((True, True, 0.0, 0.02), 0.03, (0.2, np.nan), "WRONG"),
        ((True, True, 0.0, 0.02), 0.03, (0.01, 0.2), "WRONG"),
        ((True, True, 0.0, 0.02), 0.5, (0.01, 0.01), "WRONG"),
        ((False, True, 0.0, 0.02), 0.5, (0.01, 0.01), "WRONG"),
        ((True, False, 0.3, 0.45), 0.5, (0.01, 0.01), "HONEST MISS"),
        ((True, False, np.nan, np.inf), 0.5, (0.01, 0.01), "HONEST MISS"),
        ((False, False, np.nan, np.inf), 0.01, (0.2, 0.2), "HONEST MISS"),
        ((True, True, 0.0, 0.02), np.inf, (0.01, np.nan), "WRONG"),
        ((False, False, 0.0, 0.02), np.inf, (np.inf, np.nan), "HONEST MISS"),
    ],
)
def test_verdicts_on_strangers(said, kl, off, expected):
    """(satisfied, certified, lower, upper) beside the exact KL and the largest errors of a mean and a standard deviation."""
    found = judged.verdict_of(judged.Claim(*said), kl=kl, off=judged.Deviations(*off), tolerance=0.05)
    assert found == expected


def test_deviations_of_strangers_are_in_their_units():
    """Draws of a normal distribution, for a problem that wants one of another mean and standard deviation."""
    stranger = next(s for s in judged.strangers(0, 28) if "linear_outputs" in s.name)
    wanted = stranger.problem.property.targets[0]
    gains = stranger.moments({"z": np.eye(stranger.problem.dim)})[:, : len(wanted.mean)].T
    z = np.linalg.lstsq(gains, wanted.mean + 0.5 * wanted.std, rcond=None)[0]
    off, relative = judged.deviations(stranger, {"z": z[None]})
    assert off == pytest.approx(0.5, rel=1e-6)
    noise = stranger.moments({"z": np.zeros((1, stranger.problem.dim))})[0, len(wanted.mean) :] - wanted.mean**2
    expected = np.abs(np.sqrt(0.25 + noise / wanted.std**2) - 1)
    assert relative == pytest.approx(expected.max(), rel=1e-6)
