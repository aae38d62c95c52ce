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

NUM_WALKED, NUM_POLISHED, NUM_TRIED = 150, 40, 5
"""Short steps uphill of each climb, which do not leave a basin, L-BFGS steps after them, and lengths that each of these tries:
side by side, all climbs wait for the one that tries the most."""

LONGEST_STEP = 0.05
"""First length of the short ones, in the draws' standard deviations; it falls to a tenth."""

MARGIN = 0.25
"""How far beyond the draws a mode is looked for, in units of their range in each coordinate."""

NEARBY, SUPPORTED = 0.25, 0.2
"""Distance within which summits back each other, in the draws' standard deviations times the root of their dimension, and how
many a place must have behind it, relative to the place that has the most."""

NEIGHBOURS, PLACES, NUM_RELAXED = 8, 17, 80
"""Nearest summits that a summit may be joined with, places on the way to one, and steps in which the way climbs."""

BATCH = 16
"""Pairs of summits looked at side by side."""


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
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=NUM_TRIED, initial_guess_strategy="one")
    optimizer = optax.lbfgs(linesearch=search)
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
    from scipy.spatial import KDTree

    whitened = places / np.asarray(limits.deviation)
    # Summits reached by many climbs crowd out neighbours farther off: one of each crowd looks for them.
    crowd = _crowds(whitened)
    leaders = np.array([np.flatnonzero(crowd == i)[0] for i in range(crowd.max() + 1)])
    if len(leaders) == 1:
        return np.zeros(len(places), int)
    _, near = KDTree(whitened[leaders]).query(whitened[leaders], k=min(NEIGHBOURS + 1, len(leaders)))
    pairs = np.array(sorted({(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row if i != j}))
    tops, ends = heights[leaders], jnp.asarray(places[leaders], float)
    lowest = _lowest(_lowest_straight_on, height, ends, pairs, limits)
    is_bent = np.zeros(len(pairs), bool)
    while True:
        label = _merged(pairs, lowest, tops, depth)
        # A way that bends takes long to find: only for what is not joined yet, or not any more.
        apart = np.flatnonzero((label[pairs[:, 0]] != label[pairs[:, 1]]) & ~is_bent)
        if not len(apart):
            return label[crowd]
        bent = _lowest(_lowest_on_the_way, height, ends, pairs[apart], limits)
        lowest[apart] = np.maximum(lowest[apart], bent)
        is_bent[apart] = True


def _merged(
    pairs: Int[np.ndarray, "K 2"], lowest: Float[np.ndarray, " K"], tops: Float[np.ndarray, " N"], depth: float
) -> Int[np.ndarray, " N"]:
    """Number of each summit's mode, from 0, where a dip of ``depth`` below the lower of two modes' tops parts them.

    Pairs with the highest passes come first (Chazal et al. 2013, J. ACM 60:41): a climb that ended on the way up would else join
    the modes on either side of it, since the dips on both its sides are small.
    """
    top = np.arange(len(tops))
    for pair in np.argsort(-lowest, kind="stable"):
        lower, higher = sorted(top[pairs[pair]], key=tops.__getitem__)
        if tops[lower] - lowest[pair] < depth:
            top[top == lower] = higher
    return np.unique(top, return_inverse=True)[1]


def foremost(places: Float[np.ndarray, "N D"], heights: Float[np.ndarray, " N"], limits: Limits, depth: float) -> int:
    """Which of one mode's summits stands for it: the highest of those near by where most climbs end.

    Of the places that have enough climbs behind them it is taken among those within ``depth`` of the highest. A ridge has many
    summits, and the highest ones of a learnt density are its errors at places that it has hardly ever seen, such as the corners
    of a box: few draws lead there.
    """
    from scipy.spatial import KDTree

    whitened = places / np.asarray(limits.deviation)
    near = KDTree(whitened).query_ball_point(whitened, NEARBY * math.sqrt(whitened.shape[1]))
    backing = np.array([len(others) for others in near])
    supported = backing >= SUPPORTED * backing.max()
    high = supported & (heights >= heights[supported].max() - depth)
    centre = int(np.argmax(np.where(high, backing, 0)))
    others = np.array([i for i in near[centre] if high[i]])
    return int(others[np.argmax(heights[others])])


def _lowest(
    along: Callable[..., PerDraw], height: Height, places: Draws, pairs: Int[np.ndarray, "K 2"], limits: Limits
) -> Float[np.ndarray, " K"]:
    """Least height between the places of each pair; of some pairs twice, so that few sizes are compiled."""
    filled = np.resize(pairs, (-(-len(pairs) // BATCH) * BATCH, 2))
    found = np.asarray(along(height, places[filled[:, 0]], places[filled[:, 1]], limits.deviation), float)
    return np.nan_to_num(found[: len(pairs)], nan=-np.inf)


def _components(pairs: Int[np.ndarray, "K 2"], count: int) -> Int[np.ndarray, " N"]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]


@compiled
def _lowest_straight_on(height: Height, left: Draws, right: Draws, deviation: Unconstrained) -> PerDraw:
    share = jnp.linspace(0.0, 1.0, PLACES)[:, None]

    def one(ends: tuple[Unconstrained, Unconstrained]) -> Scalar:
        return jnp.min(jax.vmap(height)(ends[0] + share * (ends[1] - ends[0])))

    return jax.lax.map(one, (left, right), batch_size=BATCH)


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
        way, _ = jax.lax.scan(relax, way, jnp.linspace(1.0, 0.1, NUM_RELAXED) * LONGEST_STEP)
        return jnp.min(along(way))

    return jax.lax.map(one, (left, right), batch_size=BATCH)


def _crowds(whitened: np.ndarray, distance: float = 0.02) -> np.ndarray:
    """Numbers of groups of summits that are practically one."""
    from scipy.spatial import KDTree

    pairs = KDTree(whitened).query_pairs(distance * math.sqrt(whitened.shape[1]), output_type="ndarray")
    return _components(pairs, len(whitened))
