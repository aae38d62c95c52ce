"""A new flow, moved to where a start says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import AbstractDistribution, Transformed
from jaxtyping import Array, PyTree
from scipy.cluster.vq import kmeans2

from . import _optimizer, flows, starts
from ._loop import combine, partition, share_programs
from ._products import compiled
from ._types import Draws, Key
from .objectives import mean_log_density

MAX_COMPONENTS, MIN_DRAWS_PER_COMPONENT = 16, 100
"""Most components of a mixture base, and the fewest draws that one must stand on."""

LIKELIHOOD_STEPS, WEIGHED_STEPS, LIKELIHOOD_DRAWS = 1000, 3000, 500
"""Steps that fit a flow to a start's draws, more where these were weighed: simulations are expensive then, and these steps need
none. Held-out draws of SC were at their likeliest at the second (1,000: -.09 nats; 10,000: -.02). Draws in each step."""


def num_components(begin: starts.Start) -> int:
    """Components of the flow's base: a mixture where the start's draws are fitted, one normal elsewhere."""
    return min(MAX_COMPONENTS, len(begin.draws) // MIN_DRAWS_PER_COMPONENT) if begin.fit_draws else 1


def build_flow(key: Key, builder: flows.FlowBuilder, dim: int, components: int) -> Transformed:
    """A flow of the shape that `fit` trains, before it is moved anywhere.

    Raises:
        ValueError: If the builder returns something else than a flowjax distribution of shape ``(dim,)``.
    """
    built = builder(key, dim)
    if not isinstance(built, AbstractDistribution):
        raise TypeError(f"Expected flow(key, dim) to return a flowjax distribution; got {type(built).__name__}.")
    if built.shape != (dim,) or built.cond_shape is not None:
        raise ValueError(
            f"Expected an unconditional flow of shape {(dim,)}; got shape {built.shape}, condition {built.cond_shape}. "
            f"Build it with dim={dim}."
        )
    if components > 1 and isinstance(built, Transformed):
        ones = jnp.ones((components, dim))
        built = flows.with_mixture_base(built, 0 * ones, ones, jnp.ones(components))
    return share_programs(flows.with_affine(built, jnp.zeros(dim), jnp.eye(dim)))


def begin_flow(
    key: Key,
    builder: flows.FlowBuilder,
    begin: starts.Start,
    dim: int,
    *,
    is_fitted: bool = False,
    static: PyTree = None,
) -> AbstractDistribution:
    """Move a new flow to the start's draws; where it ``is_fitted`` elsewhere, its fixed arrays alone will be used.

    With ``static``, the fixed arrays of an earlier flow by the same builder, it differs from that in its trainable ones.
    """
    build_key, fit_key = jax.random.split(key)
    components = num_components(begin)
    built = build_flow(build_key, builder, dim, components)
    draws = np.asarray(begin.draws, float)
    loc = draws.mean(axis=0)
    cholesky = np.linalg.cholesky(np.atleast_2d(np.cov(draws.T)) + 1e-9 * np.eye(dim))
    inner = built.base_dist
    if components > 1 and isinstance(inner, Transformed):
        whitened = np.linalg.solve(cholesky, (draws - loc).T).T
        inner = flows.with_mixture_base(inner, *_clusters(whitened, components))
    moved: AbstractDistribution = share_programs(
        flows.with_affine(inner, jnp.asarray(loc, float), jnp.asarray(cholesky, float))
    )
    if static is not None:
        moved = combine(partition(moved)[0], static)
    if not begin.fit_draws or is_fitted:
        return moved
    return _fit_draws(fit_key, moved, begin.draws, LIKELIHOOD_STEPS if begin.known is None else WEIGHED_STEPS)


def _clusters(draws: np.ndarray, count: int) -> tuple[Array, Array, Array]:
    """Centres, spreads and shares of clusters of the draws: each separate mode gets some of its own."""
    centres, labels = kmeans2(draws, count, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=count)
    # A cluster of one draw has no spread: the largest stands in, so that the number is known before the draws are.
    index = np.where(sizes > 1, np.arange(count), np.argmax(sizes))
    spreads = np.array([draws[labels == i].std(axis=0) + 1e-3 for i in index])
    return jnp.asarray(centres[index], float), jnp.asarray(spreads, float), jnp.asarray(sizes[index], float)


@compiled
def _fit_draws(key: Key, flow: AbstractDistribution, draws: Draws, num_steps: int) -> AbstractDistribution:
    """Maximum likelihood: minimise the forward KL of the draws."""
    parameters, static = partition(flow)
    optimizer = _optimizer.default(num_steps, final_rate=0.3)

    def step(carry: tuple[PyTree, PyTree], key: Key) -> tuple[tuple[PyTree, PyTree], None]:
        parameters, state = carry
        gradient = jax.grad(lambda p: -mean_log_density(key, combine(p, static), draws, LIKELIHOOD_DRAWS))(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(key, num_steps)
    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)
    return combine(parameters, static)
