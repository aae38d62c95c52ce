"""Where a density is highest: summits above draws, and which of them are one mode."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from ._products import compiled
from ._types import Draws, PerDraw, Scalar, Unconstrained

Height: TypeAlias = Callable[[Unconstrained], Scalar]
"""Log density of one vector, nats; a pytree, so that programs are compiled once."""

NUM_WALKED, NUM_POLISHED = 150, 60
"""Short steps uphill of each climb, which do not leave a basin, and L-BFGS steps after them."""

LONGEST_STEP = 0.05
"""First length of the short ones, in the draws' standard deviations; it falls to a tenth."""

MARGIN = 0.25
"""How far beyond the draws a mode is looked for, in units of their range in each coordinate."""

NEIGHBOURS, PLACES, NUM_RELAXED = 8, 17, 80
"""Nearest summits that a summit may be joined with, places on the way to one, and steps in which the way climbs."""


class Limits(NamedTuple):
    """Where summits are looked for, and how far the draws spread; each of shape [D]."""

    low: Array
    high: Array
    deviation: Array

    @classmethod
    def of(cls, draws: Draws) -> "Limits":
        """Those of draws."""
        low, high = jnp.min(draws, axis=0), jnp.max(draws, axis=0)
        margin, deviation = MARGIN * (high - low), jnp.std(draws, axis=0)
        return cls(low - margin, high + margin, jnp.where(deviation > 0, deviation, 1.0))


@compiled
def climb(height: Height, draws: Draws, free: Bool[Array, " D"], limits: Limits) -> tuple[Draws, PerDraw]:
    """Summits above draws, over the free coordinates; a wall keeps them near the draws."""
    low, high = limits.low, limits.high
    # A unit of y is a short step, so that no line search begins with a leap into another basin.
    scale = jnp.where(free, LONGEST_STEP * limits.deviation, 0.0)

    def climb(start: Unconstrained) -> tuple[Unconstrained, Scalar]:
        def depth(y: Unconstrained) -> Scalar:
            u = start + y * scale
            beyond = (jnp.maximum(u - high, 0.0) + jnp.maximum(low - u, 0.0)) / (high - low + 1e-12)
            return -height(u) + 1e4 * jnp.sum(jnp.where(free, beyond, 0.0) ** 2)

        y = jnp.zeros_like(start)
        y = _polish(depth, _walk_uphill(depth, y))
        # A climb that got lost stays where it began.
        y = jnp.where(depth(y) <= depth(jnp.zeros_like(y)), y, 0.0)
        u = start + y * scale
        return u, height(u)

    return jax.vmap(climb)(draws)


def _walk_uphill(depth: Callable[[Array], Scalar], start: Array) -> Array:
    size = math.sqrt(len(start))

    def step(y: Array, longest: Scalar) -> tuple[Array, None]:
        slope = jnp.nan_to_num(jax.grad(depth)(y)) / LONGEST_STEP**2
        norm = jnp.linalg.norm(slope)
        return y - slope * jnp.minimum(1.0, longest * size / jnp.where(norm > 0, norm, 1.0)), None

    return jax.lax.scan(step, start, jnp.linspace(1.0, 0.1, NUM_WALKED))[0]


def _polish(depth: Callable[[Array], Scalar], start: Array) -> Array:
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(depth)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        y, state = carry
        value, slope = value_and_grad(y, state=state)
        updates, state = optimizer.update(slope, state, y, value=value, grad=slope, value_fn=depth)
        return (optax.apply_updates(y, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), None, length=NUM_POLISHED)[0][0]


def join(
    height: Height,
    places: Float[np.ndarray, "N D"],
    heights: Float[np.ndarray, " N"],
    limits: Limits,
    depth: float,
) -> Int[np.ndarray, " N"]:
    """Number of the mode that each summit belongs to, from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    whitened = places / np.asarray(limits.deviation)
    # Summits reached by many climbs crowd out neighbours farther off: one of each crowd looks for them.
    crowd = _crowds(whitened)
    leaders = np.array([np.flatnonzero(crowd == i)[0] for i in range(crowd.max() + 1)])
    if len(leaders) == 1:
        return np.zeros(len(places), int)
    _, near = KDTree(whitened[leaders]).query(whitened[leaders], k=min(NEIGHBOURS + 1, len(leaders)))
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row if i != j}
    left, right = (leaders[list(side)] for side in zip(*sorted(pairs), strict=True))
    first, last = (jnp.asarray(places[side], float) for side in (left, right))
    lowest = np.asarray(_lowest_on_the_way(height, first, last, limits.deviation))
    lowest = np.nan_to_num(lowest, nan=-np.inf)
    joined = lowest > np.minimum(heights[left], heights[right]) - depth
    graph = coo_array((np.ones(joined.sum()), (crowd[left[joined]], crowd[right[joined]])), shape=(len(leaders),) * 2)
    return connected_components(graph, directed=False)[1][crowd]


@compiled
def _lowest_on_the_way(height: Height, left: Draws, right: Draws, deviation: Unconstrained) -> PerDraw:
    """Least height on a way from summit to summit, which climbs sideways from the straight line (the string method).

    E, Ren & Vanden-Eijnden 2007, J. Chem. Phys. 126:164103: places on the way go uphill, and are spread evenly again.
    """
    share = jnp.linspace(0.0, 1.0, PLACES)
    size = math.sqrt(left.shape[-1])

    def along(way: Float[Array, "P D"]) -> Float[Array, " P"]:
        return jax.vmap(lambda y: height(y * deviation))(way)

    def relax(way: Float[Array, "P D"], longest: Scalar) -> tuple[Float[Array, "P D"], None]:
        slope = jnp.nan_to_num(jax.grad(lambda way: jnp.sum(along(way)))(way))
        norm = jnp.linalg.norm(slope, axis=1, keepdims=True)
        step = slope * jnp.minimum(1.0, longest * size / jnp.where(norm > 0, norm, 1.0))
        way = way.at[1:-1].add(step[1:-1])
        length = jnp.cumsum(jnp.linalg.norm(jnp.diff(way, axis=0, prepend=way[:1]), axis=1))
        even = jax.vmap(lambda column: jnp.interp(share * length[-1], length, column), 1, 1)(way)
        return even.at[0].set(way[0]).at[-1].set(way[-1]), None

    def one(ends: tuple[Unconstrained, Unconstrained]) -> Scalar:
        first, last = ends[0] / deviation, ends[1] / deviation
        way = first + share[:, None] * (last - first)
        straight = jnp.min(along(way))
        way, _ = jax.lax.scan(relax, way, jnp.linspace(1.0, 0.1, NUM_RELAXED) * LONGEST_STEP)
        return jnp.maximum(straight, jnp.min(along(way)))

    return jax.lax.map(one, (left, right), batch_size=64)


def _crowds(whitened: np.ndarray, distance: float = 0.02) -> np.ndarray:
    """Numbers of groups of summits that are practically one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    pairs = KDTree(whitened).query_pairs(distance * math.sqrt(whitened.shape[1]), output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(whitened),) * 2)
    return connected_components(graph, directed=False)[1]
