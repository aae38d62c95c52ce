"""Draws kept during a run: those of its guide at each step, and the run takes no notice."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flowjax.distributions import Normal

import numpyro_epi as epi

NUM_EPOCHS = 44
"""Chunks of three epochs: more snapshots than chunks are taken on the side."""


def pair():
    numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("step", dist.LogNormal(0, 1))


@epi.statistic(unit="mV")
def total(sites):
    return sites["z"].sum() + sites["step"]


def normal(key, dim):
    return Normal(jnp.zeros(dim), jnp.ones(dim))


def fit(num_snapshots, **options):
    problem = epi.Problem(pair, epi.EmergentProperty(epi.Target(total, mean=2.0)))
    options = {"max_steps": NUM_EPOCHS, "num_draws": 20, "certify": False, "progress": False, **options}
    rule = epi.multipliers.Natural(steps_per_epoch=1)
    start = epi.starts.Prior()
    return epi.fit(
        jax.random.key(0), problem, flow=normal, start=start, rule=rule, num_snapshots=num_snapshots, **options
    )


@pytest.fixture(scope="module")
def watched():
    return fit(40)


def assert_same(first, second):
    for one, other in zip(*(jax.tree.leaves(eqx.filter(r.flow, eqx.is_array)) for r in (first, second)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.eta, second.eta)
    for name, column in first.records.items():
        np.testing.assert_array_equal(column, second.records[name])


@pytest.mark.slow
def test_the_answer_is_the_same_with_and_without(watched):
    plain = fit(0)
    assert plain.snapshots is None
    assert_same(plain, watched)


def test_snapshots_are_taken_once_an_epoch_at_most(watched):
    np.testing.assert_array_equal(watched.snapshots.step, np.arange(0, 46))
    assert watched.snapshots.parameters["z"].shape == (46, 300, 2)


def test_the_last_snapshot_is_of_the_guide(watched):
    found = watched.snapshots
    expected = watched.log_prob({name: values[-1] for name, values in found.parameters.items()})
    np.testing.assert_allclose(found.log_density[-1], expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found.log_density[0] - expected).max() > 0.01


def test_statistics_are_those_of_the_draws(watched):
    found = watched.snapshots
    np.testing.assert_allclose(
        found.statistics["total"], found.parameters["z"].sum(axis=2) + found.parameters["step"], rtol=1e-5
    )


def test_a_draw_can_be_followed(watched):
    """The same noise each time: from one epoch to the next a draw moves far less than draws differ."""
    z = watched.snapshots.parameters["z"]
    assert np.abs(np.diff(z, axis=0)).max() < 0.1 * z[-1].std()


def test_the_export_survives_a_file(watched, tmp_path):
    """Also where a site has the name of what stands beside it."""
    watched.save(tmp_path / "run.nc")
    loaded = epi.load(tmp_path / "run.nc", watched.problem, flow=normal).snapshots
    for one, other in zip(jax.tree.leaves(watched.snapshots), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    group = epi.read_arviz(tmp_path / "run.nc")["optimization_draws"]
    assert group["z"].dims[:2] == ("snapshot", "draw")
    assert group["total"].attrs["unit"] == "mV"


@pytest.mark.slow
def test_restarts_are_the_same_with_and_without():
    plain, watched = fit(0, num_restarts=2), fit(40, num_restarts=2)
    assert_same(plain, watched)
    assert watched.snapshots.log_density.shape == (46, 300)


def test_a_negative_number_of_snapshots_is_an_error():
    with pytest.raises(ValueError, match="Expected num_snapshots to be an integer >= 0; got -1"):
        fit(-1)
