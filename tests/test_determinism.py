"""One key gives one answer: again, with a progress bar, in a thread, in another process, and while JAX looks for NaN."""

import multiprocessing
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi
from numpyro_epi import _chunks

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_without_compilation():
    """The same program operation by operation: equal up to rounding, which compiled code does in another order."""
    few = {**OPTIONS, "max_steps": 2, "num_draws": 4, "start": epi.starts.Gaussian(num_draws=8)}
    compiled = epi.fit(jax.random.key(0), PROBLEM, progress=False, **few)
    with jax.disable_jit():
        eager = epi.fit(jax.random.key(0), PROBLEM, progress=False, **few)
    np.testing.assert_allclose(eager.eta, compiled.eta, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(eager.records["loss"], compiled.records["loss"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_size_of_a_chunk_changes_nothing(monkeypatch, optimised):
    """Only where a run looks at itself: the flow, the multipliers and the history go on as they would."""

    def run(chunks):
        monkeypatch.setattr(_chunks, "NUM_CHUNKS", chunks)
        return epi.fit(jax.random.key(0), PROBLEM, progress=False, **OPTIONS)

    one, three = run(1), run(3)
    for name in one.records:
        np.testing.assert_array_equal(one.records[name], three.records[name])
    for first, second in zip(jax.tree.leaves(one.flow), jax.tree.leaves(three.flow), strict=True):
        np.testing.assert_array_equal(first, second)


FORKED_EARLY = """
import multiprocessing
import jax
import numpyro_epi as epi

print(jax.random.key(0))  # JAX runs, and nothing of ours yet.

def work(_):
    import numpyro, numpyro.distributions as dist
    model = lambda: numpyro.sample("z", dist.Normal())
    return epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["z"], mean=0.5, name="z"))).dim

with multiprocessing.get_context("fork").Pool(1) as pool:
    try:
        pool.apply(work, (0,))
    except RuntimeError as error:
        print("after", error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_from_where_jax_runs_already():
    program = [sys.executable, "-W", "ignore", "-c", FORKED_EARLY]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "after Expected a process of its own; this one was forked from process " in done.stdout


FORKING = """
import multiprocessing
import jax, numpyro, numpyro.distributions as dist
import numpyro_epi as epi

def model():
    numpyro.sample("z", dist.Normal())

def problem():
    return epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["z"], mean=0.5, name="z")))

def work(_):
    return float(epi.solve_dual(jax.random.key(0), problem(), method="reweight").eta[0])

context = multiprocessing.get_context("fork")
with context.Pool(1) as pool:
    print("before", pool.apply(work, (0,)))
print("here", work(0))
with context.Pool(1) as pool:
    try:
        pool.apply(work, (0,))
    except RuntimeError as error:
        print("after", error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_in_a_forked_worker():
    """A parent that has run nothing yet may fork; afterwards a fork, which would wait for JAX for good, is refused."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, here, after = (line.partition(" ")[2] for line in done.stdout.splitlines())
    assert before == here
    assert after.startswith("Expected a process of its own; this one was forked from process ")


def in_double_precision():
    with jax.enable_x64(True):
        return answer()


@pytest.mark.slow
def test_double_precision_repeats_too(first):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found, again = pool.apply(in_double_precision), pool.apply(in_double_precision)
    np.testing.assert_array_equal(found, again)
    assert not np.array_equal(found, first)
