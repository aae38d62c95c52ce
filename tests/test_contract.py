"""The contract of an objective, for every trainable number of several flows: unbiased gradients.

The exact augmented Lagrangian is an integral over a grid, and JAX differentiates it through the flow's density.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from numpyro_epi import flows
from numpyro_epi._loop import combine, partition
from numpyro_epi._problem import Evaluation
from numpyro_epi.objectives import Anchored, Lagrangian, Pathwise, Score, split_half

LAGRANGIAN = Lagrangian(jnp.array([0.5, -0.3]), jnp.array([[0.6, 0.2], [0.2, 0.3]]), jnp.array([0.2, 0.4]))
EDGE, SIDE = 7.0, 300
DRAWS, NUM_KEYS = 6, 10_000
CENTRES, SPREADS, WEIGHTS = (
    jnp.array([[-1.0, 0.3], [1.2, -0.4]]),
    jnp.array([[0.5, 0.7], [0.6, 0.4]]),
    jnp.array([0.3, 0.7]),
)
SMALL = {"num_stages": 2, "width": 3, "depth": 1, "initial_scale": 0.5}


def evaluate(key, u):
    moments = jnp.stack([u[0] + 0.5 * u[1], jnp.tanh(u[0]) * u[1]]) + 0.3 * jr.normal(key, (2,))
    return Evaluation(-0.5 * jnp.sum(jnp.square(u)), jnp.zeros(()), moments, jnp.asarray(True))


def where_it_is_finite(key, u):
    """A problem that is conditioned on finite simulations: the plane beyond an edge of the grid's cells fails."""
    found = evaluate(key, u)
    finite = u[0] < 0.84
    return found._replace(moments=jnp.where(finite, found.moments, jnp.nan), finite=finite)


def mixture_base(builder):
    return flows.with_mixture_base(builder(jr.key(1), 2), CENTRES, SPREADS, WEIGHTS)


def two_flows():
    return flows.mixture([mixture_base(flows.Coupling(**SMALL)), mixture_base(flows.Coupling(**SMALL))], [0.4, 0.6])


FLOWS = {
    "coupling": lambda: flows.Coupling(**SMALL)(jr.key(1), 2),
    "coupling on a mixture": lambda: mixture_base(flows.Coupling(**SMALL)),
    "autoregressive": lambda: flows.MaskedAutoregressive(**SMALL)(jr.key(1), 2),
    "autoregressive on a mixture": lambda: mixture_base(flows.MaskedAutoregressive(**SMALL)),
    "mixture of flows": two_flows,
}
OTHERS = [
    ("coupling on a mixture", Pathwise(penalty=split_half)),
    ("coupling on a mixture", Pathwise(path_derivative=True)),
]
CASES = [
    pytest.param(name, objective, marks=[] if name == "coupling on a mixture" else pytest.mark.slow)
    for name, objective in [*((name, kind) for name in FLOWS for kind in (Pathwise(), Score())), *OTHERS]
]


def started(name):
    flow = FLOWS[name]()
    return flows.with_affine(flow, jnp.array([0.1, -0.2]), jnp.array([[0.9, 0.0], [0.3, 0.8]]))


def grid():
    nodes = EDGE * (2 * (jnp.arange(SIDE) + 0.5) / SIDE - 1)
    points = jnp.stack([axis.ravel() for axis in jnp.meshgrid(nodes, nodes, indexing="ij")], axis=1)
    return points, (2 * EDGE / SIDE) ** 2


def exact_gradient(flow, has_mass):
    """Of ``-H_b + eta . R + R' P R / 2`` of the flow restricted to where it has mass."""
    parameters, static = partition(flow)
    points, area = grid()
    found = jax.vmap(lambda u: evaluate(jr.key(0), u))(points)
    noiseless = jnp.stack([points[:, 0] + 0.5 * points[:, 1], jnp.tanh(points[:, 0]) * points[:, 1]], axis=1)

    def loss(parameters):
        log_q = combine(parameters, static).log_prob(points)
        log_q = log_q - jnp.log(jnp.sum(jnp.where(has_mass, jnp.exp(log_q), 0.0)) * area)
        q = jnp.where(has_mass, jnp.exp(log_q), 0.0) * area
        violation = q @ noiseless - LAGRANGIAN.target
        penalty = 0.5 * violation @ LAGRANGIAN.metric @ violation
        return q @ (log_q - found.log_base) + LAGRANGIAN.eta @ violation + penalty

    return ravel_pytree(eqx.filter_jit(jax.grad(loss))(parameters))[0]


def gradients(flow, objective, run, num_draws=DRAWS):
    """Of every trainable number, one row a key."""
    parameters, static = partition(flow)

    def gradient(key):
        loss = lambda p: objective(key, combine(p, static), run, LAGRANGIAN, num_draws)[0]  # noqa: E731
        return ravel_pytree(jax.grad(loss)(parameters))[0]

    found = eqx.filter_jit(lambda keys: jax.lax.map(gradient, keys, batch_size=1000))(jr.split(jr.key(3), NUM_KEYS))
    return np.asarray(found, float)


@pytest.mark.parametrize(("name", "objective"), CASES, ids=str)
def test_gradients_of_all_trainable_numbers_are_unbiased(name, objective):
    flow = started(name)
    exact = np.asarray(exact_gradient(flow, jnp.ones(SIDE**2, bool)), float)
    samples = gradients(flow, objective, evaluate)
    error = samples.std(axis=0) / np.sqrt(NUM_KEYS)
    off = np.abs(samples.mean(axis=0) - exact)
    assert np.all(off <= 5 * error + 2e-4), np.max(off / (error + 1e-9))
    # The test has power: most gradients are many standard errors from zero.
    assert np.mean(np.abs(exact) > 5 * error) > 0.2


def test_gradients_of_a_truncated_guide_are_unbiased():
    flow = started("coupling on a mixture")
    points, _ = grid()
    exact = np.asarray(exact_gradient(flow, points[:, 0] < 0.84), float)
    # Batches with fewer than two finite draws have no baseline: there are none among so many.
    samples = gradients(flow, Score(), where_it_is_finite, 30)
    error = samples.std(axis=0) / np.sqrt(NUM_KEYS)
    assert np.all(np.abs(samples.mean(axis=0) - exact) <= 5 * error + 2e-3)


def test_the_forward_kl_reaches_the_mixture_weights():
    """By a difference quotient: the mean log density of given draws depends on the weights of the mixture."""
    flow = started("coupling on a mixture")
    parameters, static = partition(flow)
    draws = jr.normal(jr.key(0), (200, 2))
    objective = Anchored(Pathwise(), draws, 1.0)
    with_it = jax.grad(lambda p: objective(jr.key(1), combine(p, static), evaluate, LAGRANGIAN, 500)[0])(parameters)
    bare = jax.grad(lambda p: Pathwise()(jr.split(jr.key(1))[0], combine(p, static), evaluate, LAGRANGIAN, 500)[0])(
        parameters
    )
    weights = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))  # noqa: E731
    assert any(not np.allclose(a, b) for a, b in zip(weights(with_it), weights(bare), strict=True))
