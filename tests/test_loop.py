"""Parts of the compiled loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi import flows
from numpyro_epi._loop import combine, masked_moments, partition, share_programs


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("builder", [flows.default, flows.MaskedAutoregressive(num_stages=1)])
def test_flows_of_one_builder_share_everything_static(builder, dim):
    first, second = (share_programs(builder(jax.random.key(seed), dim)) for seed in (0, 1))
    (_, static), (_, other) = partition(first), partition(second)
    assert jax.tree.structure(static) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(static), jax.tree.leaves(other), strict=True):
        assert isinstance(one, jax.Array) or one == two


def test_flows_of_different_builders_keep_their_functions():
    """The transformers' smallest scale is closed over: functions that differ in it must stay apart."""
    built = [
        share_programs(flows.Coupling(1, width=4, transformer=flows.affine(scale))(jax.random.key(0), 2))
        for scale in (1e-2, 1e-3)
    ]
    functions = [[leaf for leaf in jax.tree.leaves(flow) if callable(leaf)] for flow in built]
    assert any(one != two for one, two in zip(*functions, strict=True))


def test_sharing_changes_no_number():
    flow = flows.default(jax.random.key(0), 3)
    shared = share_programs(flow)
    u = jax.random.normal(jax.random.key(1), (10, 3))
    np.testing.assert_array_equal(shared.log_prob(u), flow.log_prob(u))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(shared) if isinstance(leaf, jax.Array))


def test_partition_and_combine_are_inverse():
    flow = flows.default(jax.random.key(0), 2)
    u = jnp.ones((4, 2))
    np.testing.assert_array_equal(combine(*partition(flow)).log_prob(u), flow.log_prob(u))


def test_masked_moments_are_those_of_the_kept_rows():
    moments = jax.random.normal(jax.random.key(0), (50, 3))
    keep = np.arange(50) % 3 > 0
    mean, covariance = masked_moments(jnp.where(keep[:, None], moments, 0.0), jnp.asarray(keep, float))
    np.testing.assert_allclose(mean, np.mean(np.asarray(moments)[keep], axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(np.asarray(moments)[keep].T), rtol=1e-4, atol=1e-6)
