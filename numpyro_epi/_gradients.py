"""Whether gradients through the simulator are those of the statistics' means: no count or step may pass for differentiable."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._problem import Problem
from ._products import compiled
from ._reference import normal_of, reference_draws
from ._search import UnboundedError, find_reference
from ._types import Draws, Key, MomentDraws, Unconstrained
from ._work import EXPENSIVE, work

NUM_LINES, NUM_PIECES, FEW_LINES, FEW_PIECES = 2048, 4, 64, 4
"""Lines along which statistics are compared with the integrals of their gradients, and pieces of each; fewer where simulations
are expensive."""

VAST, TOGETHER = 20_000_000, 10_000_000
"""Work of one simulation beyond which nothing is compared, and of all lines whose simulations are in memory at once."""

REACH = 1.0
"""Largest length of a line, as a fraction of the way from one draw to another."""

MISSED, SURE = 0.25, 5.0
"""Fraction of a statistic's change along the lines that its gradient must miss, and in how many standard errors."""


def misleading(problem: Problem, draws: Draws | None = None) -> tuple[str, ...]:
    """Names of the statistics that are declared differentiable and whose gradients miss their changes.

    Along a line, the change of a statistic is the integral of its derivative, which a random point in each piece of the line
    estimates without bias. The product of what is missed with the change under other noise of the simulator has mean zero
    if gradients are right on average over the noise, however narrow the statistic's features are. Simulations beyond `VAST`
    are not compared.

    Args:
        problem: The question.
        draws: Between which the lines lead, shape [N, D]; by default those of the prior, or of a normal near the property.
    """
    declared = [t.statistic.name for t in problem.property.targets if t.statistic.differentiable]
    if not declared or not problem.differentiable:
        return ()
    if (cost := work(problem)) > VAST:
        return ()
    lines, pieces = (FEW_LINES, FEW_PIECES) if cost > EXPENSIVE else (NUM_LINES, NUM_PIECES)
    together = min(64, max(1, TOGETHER // max(1, cost)))
    if draws is None:
        ends = _ends(problem, 2 * lines, is_cheap=cost <= EXPENSIVE)
    else:
        ends = draws[jax.random.randint(jax.random.key(4), (2 * lines,), 0, len(draws))]
    found_lines = _changes(problem, jax.random.key(0), ends, pieces, together)
    changes, again, integrals = (np.asarray(part, float) for part in found_lines)
    found = []
    for i, constraint in enumerate(problem.constraints):
        usable = np.isfinite(changes[:, i]) & np.isfinite(again[:, i]) & np.isfinite(integrals[:, i])
        missed = ((changes - integrals)[:, i] * again[:, i])[usable]
        size = np.mean((changes[:, i] * again[:, i])[usable]) if np.any(usable) else 0.0
        if len(missed) < 2 or not size > 0:
            continue
        error = missed.std() / np.sqrt(len(missed))
        if missed.mean() > MISSED * size and missed.mean() > SURE * error:
            found.append(constraint.statistic)
    owners = {name: statistic for statistic in declared for name in found if name.split("[")[0] == statistic}
    return tuple(sorted(set(owners.values()) or set(found)))


def without_misleading_gradients(problem: Problem, draws: Draws | None = None) -> Problem:
    """The problem, knowing whose gradients mislead, so that nothing follows them; see `misleading`."""
    names = misleading(problem, draws)
    if not names:
        return problem
    known = copy.copy(problem)
    object.__setattr__(known, "misled", names)  # The copy is nobody else's yet.
    return known


def _ends(problem: Problem, count: int, *, is_cheap: bool) -> Draws:
    """Draws of the prior; where there is none, of the normal near the property, whose scale may be a millionth of the usual one.

    That takes some 100,000 simulations: where they are not cheap, of the usual wide normal.
    """
    draws = reference_draws(problem, jax.random.key(1), count)
    if problem.simulator.has_proper_prior or not is_cheap:
        return draws
    try:
        reference, _ = find_reference(problem, jax.random.key(2))
    except UnboundedError:
        return draws
    if reference is None:
        return draws
    normal = normal_of(problem, reference)
    return normal.loc + jax.random.normal(jax.random.key(3), draws.shape) @ normal.cholesky.T


@compiled
def _changes(
    problem: Problem, key: Key, ends: Draws, pieces: int, together: int
) -> tuple[MomentDraws, MomentDraws, MomentDraws]:
    """Changes of the moments along lines, the same under other noise, and integrals of the derivatives along them.

    Each line begins at one of the first half of ``ends`` and leads towards one of the second.
    """
    begins, ends = jnp.split(ends, 2)

    def one(given: tuple[Key, Array, Array]) -> tuple[Array, Array, Array]:
        key, begin, end = given
        length_key, first_key, second_key, where_key = jax.random.split(key, 4)
        way = REACH * jax.random.uniform(length_key) * (end - begin)

        def moments(u: Unconstrained, noise: Key) -> Float[Array, " M"]:
            return problem.evaluate(noise, u).moments

        def change(noise: Key) -> Float[Array, " M"]:
            return moments(begin + way, noise) - moments(begin, noise)

        def derivative(part: Array) -> Float[Array, " M"]:
            # In reverse mode, which every simulator of a fit has.
            _, pull = jax.vjp(lambda u: moments(u, first_key), begin + part * way)
            rows = jax.vmap(lambda row: pull(row)[0])(jnp.eye(len(problem.constraints), dtype=way.dtype))
            return rows @ way

        parts = (jnp.arange(pieces) + jax.random.uniform(where_key, (pieces,))) / pieces
        return change(first_key), change(second_key), jnp.mean(jax.lax.map(derivative, parts), axis=0)

    return jax.lax.map(one, (jax.random.split(key, len(begins)), begins, ends), batch_size=together)
