"""Steps that lead away, memory that is too small, a device that fails: told, and nothing lost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_epi as epi
from numpyro_epi import _loop

LIGHT = epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())
OPTIONS = {"start": epi.starts.Gaussian(), "flow": LIGHT, "progress": False, "num_draws": 50, "certify": False}


def steep():
    """Twice the exponent: it overflows in single precision soon after a step that was too long."""
    z = numpyro.sample("z", dist.Normal().expand([2]).to_event(1))
    numpyro.deterministic("x", jnp.exp(2 * z[0]) + z[1] ** 2)


def x(sites):
    return sites["x"]


def problem(model=steep):
    return epi.Problem(model, epi.EmergentProperty(epi.Target(x, mean=1.0, std=0.5)))


@pytest.mark.slow
def test_steps_shrink_until_they_hold():
    """Which of the keys lead to a step that is too long differs from machine to machine."""
    fits = [
        epi.fit(jax.random.key(k), problem(), optimizer=optax.adam(0.3), max_steps=1500, **OPTIONS) for k in range(6)
    ]
    for found in fits:
        history = found.records
        halved = np.where(history["diverged"][:-1], 0.5, 1.0)
        np.testing.assert_array_equal(history["step_scale"][1:], history["step_scale"][:-1] * halved)
        assert np.all(np.isfinite(history["loss"][-20:]))
        assert found.verdict.finite_share == 1.0
        if count := history["diverged"].sum():
            assert f"halved {count} times" in str(found)
    assert any(found.records["diverged"].sum() > 0 for found in fits)
    assert np.median([np.abs(found.records["violation"][-1, 0]) for found in fits]) < 0.5


def test_run_that_cannot_be_held_ends_early_with_advice():
    found = epi.fit(jax.random.key(0), problem(), optimizer=optax.sgd(1e30), max_steps=5000, **OPTIONS)
    assert found.status is epi.STATUS.diverged
    assert found.settings["steps"] < 1000
    assert "learning rate" in found.status_message


def test_gradients_that_are_not_finite_are_left_out_and_counted():
    """The root has an infinite slope at zero, where the ramp puts most draws, and the maximum none there; values are finite."""

    def ramp():
        z = numpyro.sample("z", dist.Normal().expand([1]).to_event(1))
        numpyro.deterministic("x", z[0] + jnp.sqrt(jnp.maximum(z[0] - 3.0, 0.0)))

    found = epi.fit(jax.random.key(0), problem(ramp), max_steps=100, **OPTIONS)
    # The draws whose own gradient is not finite leave the batch's: no whole step is lost to them.
    assert found.records["skipped"].sum() == 0
    # Below 3 the product of an infinite slope and zero is no number: nearly every draw.
    lost = found.records["without_gradient"].sum()
    draws = found.settings["steps"] * found.settings["num_draws"]
    assert 0.9 * draws < lost <= draws
    assert f"gradients of {lost} draws in {draws} were not finite" in " ".join(str(found).split())
    assert np.all(np.isfinite(found.records["loss"]))
    assert np.all(np.isfinite(found.eta))


class Sometimes(epi.objectives.AbstractObjective):
    """The default, but for one batch in five, whose loss is no number."""

    def __call__(self, key, flow, evaluate, lagrangian, num_draws):
        loss, batch = epi.objectives.Pathwise()(key, flow, evaluate, lagrangian, num_draws)
        return loss * jnp.where(jax.random.uniform(jax.random.fold_in(key, 1)) < 0.2, jnp.nan, 1.0), batch


def test_steps_without_a_finite_gradient_are_skipped_and_counted():
    def straight():
        numpyro.deterministic("x", numpyro.sample("z", dist.Normal().expand([1]).to_event(1))[0])

    found = epi.fit(jax.random.key(0), problem(straight), objective=Sometimes(), max_steps=1500, **OPTIONS)
    steps, skipped = found.settings["steps"], int(found.records["skipped"].sum())
    assert abs(skipped - 0.2 * steps) < 4.5 * np.sqrt(0.2 * 0.8 * steps)
    assert f"{skipped} of {steps} steps, whose gradient was not finite" in " ".join(str(found).split())
    # Of a normal of mean one and deviation one half.
    np.testing.assert_allclose(found.verdict.mean, [1.0, 0.25], atol=0.1)
    np.testing.assert_allclose(found.entropy, 0.5 * np.log(2 * np.pi * np.e * 0.25), atol=0.1)


def test_restored_epoch_is_the_one_before():
    """By hand: a loop whose first epoch diverges stands where it began, but for its noise and its step."""
    kept = {}
    epoch = _loop.Loop.epoch

    def watched(self, state):
        after, record = epoch(self, state)
        jax.debug.callback(lambda *seen: kept.setdefault("first", seen), state, after, record)
        return after, record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_loop.Loop, "epoch", watched)
        epi.fit(jax.random.key(0), problem(), optimizer=optax.sgd(1e30), max_steps=100, **OPTIONS)
    before, after, record = kept["first"]
    assert record.diverged == 1
    for name in ("parameters", "averaged", "optimizer", "rule", "remaining"):
        for one, other in zip(
            jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name)), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert after.step_scale == 0.5 * before.step_scale
    assert after.step > before.step


def test_batch_that_does_not_fit_is_told_with_one_that_does():
    def vast():
        z = numpyro.sample("z", dist.Normal().expand([1]).to_event(1))
        steps = z[0] * jnp.ones(50_000_000)
        numpyro.deterministic("x", jnp.sqrt(jnp.sum(jnp.sort(jnp.sin(steps)) ** 2)))

    vast_problem = problem(vast)
    with pytest.raises(
        MemoryError, match=r"Expected memory for 1000000 draws a step of about .* GB, .* GB are free"
    ) as told:
        epi.fit(jax.random.key(0), vast_problem, **OPTIONS | {"num_draws": 1_000_000, "max_steps": 1})
    # Nothing else is known to fit, where not even the least number would.
    assert re.search(r"Pass num_draws=\d+ or fewer|Pass a smaller num_draws, or store less", str(told.value))


@pytest.mark.slow
def test_advised_number_of_draws_fits():
    """A megabyte or so a draw: a million do not fit into any machine here, and what is advised does."""

    def large():
        z = numpyro.sample("z", dist.Normal().expand([1]).to_event(1))
        steps = z[0] * jnp.ones(20_000)
        numpyro.deterministic("x", jnp.sqrt(jnp.sum(jnp.sort(jnp.sin(steps)) ** 2)))

    options = OPTIONS | {"max_steps": 1}
    with pytest.raises(MemoryError, match=r"Pass num_draws=\d+ or fewer") as told:
        epi.fit(jax.random.key(0), problem(large), **options | {"num_draws": 1_000_000})
    advised = int(re.search(r"num_draws=(\d+)", str(told.value))[1])
    assert advised >= 4
    epi.fit(jax.random.key(0), problem(large), **options | {"num_draws": min(advised, 8)})


def test_device_that_fails_leaves_the_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    options = OPTIONS | {"max_steps": 100}
    whole = epi.fit(jax.random.key(0), problem(), **options)
    run, calls = _loop.Loop.run_epochs, []

    def failing(self, state, num_epochs):
        calls.append(num_epochs)
        if len(calls) == 3:
            raise jax.errors.JaxRuntimeError("INTERNAL: device lost\n  at some address")
        return run(self, state, num_epochs)

    with monkeypatch.context() as patch:
        patch.setattr(_loop.Loop, "run_epochs", failing)
        with pytest.raises(RuntimeError, match=r"it failed: INTERNAL: device lost. epi.resume\('.*run.ckpt'\) goes on"):
            epi.fit(jax.random.key(0), problem(), checkpoint=path, every=0.0, **options)
    resumed = epi.resume(path, problem(), start=OPTIONS["start"], flow=LIGHT, progress=False)
    np.testing.assert_array_equal(resumed.eta, whole.eta)
    assert resumed.entropy == whole.entropy
