"""One key gives one answer: again, with a progress bar, in a thread, in another process, and while JAX looks for NaN."""

import multiprocessing
import threading

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi

OPTIONS = {
    "flow": epi.flows.Elementwise(1),
    "start": epi.starts.Gaussian(num_draws=100),
    "rule": epi.multipliers.Natural(steps_per_epoch=2),
    "num_draws": 8,
    "max_steps": 6,
    "certify": False,
}


def model():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def site(sites):
    return sites["z"]


PROBLEM = epi.Problem(model, epi.EmergentProperty(epi.Target(site, 0.5, 0.5)))


def answer(progress=False, seed=0):
    """All numbers of a short run, exactly."""
    result = epi.fit(jax.random.key(seed), PROBLEM, progress=progress, **OPTIONS)
    draws = result.sample(jax.random.key(1), 5)["z"]
    numbers = (result.eta, result.verdict.mean, [result.entropy], draws, *result.records.values())
    return np.concatenate([np.ravel(np.asarray(part, float)) for part in numbers])


@pytest.fixture(scope="module")
def first():
    return answer()


def test_another_key_gives_another_answer(first):
    assert not np.array_equal(answer(seed=1), first)


@pytest.mark.parametrize("progress", [False, True])
def test_again(first, progress, capsys):
    np.testing.assert_array_equal(answer(progress), first)
    assert ("entropy" in capsys.readouterr().err) == progress


def test_in_a_thread(first):
    found = []
    thread = threading.Thread(target=lambda: found.append(answer()))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], first)


def test_while_jax_looks_for_nan(first):
    """No step of the run makes one, not even in a branch that is thrown away."""
    with jax.debug_nans(True):
        np.testing.assert_array_equal(answer(), first)


@pytest.mark.slow
def test_in_another_process(first):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(answer), first)


def in_double_precision():
    with jax.enable_x64(True):
        return answer()


@pytest.mark.slow
def test_double_precision_repeats_too(first):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, again = pool.apply(in_double_precision), pool.apply(in_double_precision)
    np.testing.assert_array_equal(found, again)
    assert not np.array_equal(found, first)
