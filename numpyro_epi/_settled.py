"""The dual solved again from a new flow's weights, where the chains that began it had wrong shares of modes.

Chains that do not cross between modes keep the shares that the path gave them. Their multipliers make up for wrong shares, so
they are wrong too, and the spread between chains does not show it. A flow fitted to the chains' draws has the same shares, but
a known density: its importance weights have the right ones, and the one tilt of them that has the property has the multipliers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution

from . import flows
from ._begin import Outline, begin_flow, outline
from ._fresh import measure
from ._pilot import resample
from ._pool import OWN, Pool, pooled, sees_all
from ._problem import Problem
from ._types import Key
from ._weights import SINGLE
from .starts import Start

LEAST_OFF, STANDARD_ERRORS = 0.025, 4.0
"""Of a mean at the chains' multipliers, by the flow's weights: how far from its target it has to be, in units of its scale and in
standard errors, for the dual to be solved again. The first is half of the default tolerance, more than the error of as many draws
as the weights are worth."""

MOST_TIMES = 2
"""That the dual is solved again. A flow that is fitted to better draws has better weights."""

NEAR = 0.02
"""Distance, nats, of a flow from the solution, by fresh draws, at which no other fit is tried, with the standard error of the
start's normaliser: less than half the default ``max_gap``."""

SOLVED_AGAIN = "By the weights of a flow fitted to them the means were off, and the dual was solved again from these."


class Settled(NamedTuple):
    """A start, and the flow that it begins.

    Attributes:
        begin: The start, with other draws and multipliers where it was solved again, without proposals where these misled.
        shape: What flows are made of.
        flow: The first one.
        pool: Its draws and others', from which a certificate is made; ``None`` where none were made.
        num_measured: Fits that fresh draws measured.
    """

    begin: Start
    shape: Outline
    flow: AbstractDistribution
    pool: Pool | None
    num_measured: int = 0


def settle(
    keys: Key,
    problem: Problem,
    builder: flows.FlowBuilder,
    begin: Start,
    conditioned: Callable[[AbstractDistribution], AbstractDistribution],
    *,
    measure_with: tuple[int, int],
    may_solve: bool = True,
) -> Settled:
    """Begin a flow, by the better of two fits, and solve the dual again until its weights agree with the start.

    Args:
        keys: Of the flow and of the draws, shape [2].
        problem: The question. With noise weights are no better than chains, and nothing is solved again.
        builder: Of the flow.
        begin: The start. Where its draws were weighed to the solution, or it has no multipliers, the dual is not solved again.
        conditioned: Makes a guide of a flow.
        measure_with: Batches and draws in each, for the choice of a fit.
        may_solve: Make draws for a certificate, by whose weights the dual may be solved again.
    """
    while True:
        shape = outline(builder, begin)
        flow = begin_flow(keys[0], builder, begin, shape)
        count = 0
        if begin.proposed is not None:
            begin, flow, count = _by_likelihood_if_nearer(keys, problem, builder, begin, shape, flow, measure_with)
        if (
            not may_solve
            or begin.eta is None
            or begin.known is not None
            or not begin.fit_draws
            or problem.simulator.noise
        ):
            return Settled(begin, shape, flow, None, count)
        pool = pool_of(keys[1], problem, conditioned(flow), begin)
        better = solved_again(pool, problem, begin) if begin.times_solved < MOST_TIMES else None
        if better is None:
            return Settled(begin, shape, flow, pool, count)
        begin = better


def _by_likelihood_if_nearer(
    keys: Key,
    problem: Problem,
    builder: flows.FlowBuilder,
    begin: Start,
    shape: Outline,
    flow: AbstractDistribution,
    measure_with: tuple[int, int],
) -> tuple[Start, AbstractDistribution, int]:
    """The start and its flow, or those by the likelihood alone where fresh draws show them nearer; and how many were measured.

    The divergence knows of no mass where nothing was proposed.
    """

    def value(flow: AbstractDistribution) -> float:
        """``log Z`` less the divergence from the solution, nats."""
        found = measure(problem, flow, jax.random.fold_in(keys[1], MOST_TIMES), *measure_with)
        with np.errstate(divide="ignore"):
            slack = np.asarray(begin.eta, float) @ (found.mean - problem.target)
            return float(np.nan_to_num(found.base_entropy - slack + np.log(found.finite_share), nan=-np.inf))

    reached = value(flow)
    error = 0.0 if begin.known is None else begin.known.relative_variance**0.5
    if begin.log_normalizer is not None and abs(begin.log_normalizer - reached) + error <= NEAR:
        return begin, flow, 1
    other = begin._replace(proposed=None)
    likeliest = begin_flow(keys[0], builder, other, shape)
    return (other, likeliest, 2) if value(likeliest) > reached else (begin, flow, 2)


def pool_of(key: Key, problem: Problem, guide: AbstractDistribution, begin: Start) -> Pool:
    """Draws of a guide that a start began, by a key of that solution of the dual; chains that were off are no bridge."""
    key = jax.random.fold_in(key, begin.times_solved)
    may_bridge = begin.times_solved == 0
    return pooled(key, problem, guide, solution=begin.draws, independent=begin.independent, may_bridge=may_bridge)


def solved_again(pool: Pool, problem: Problem, begin: Start) -> Start | None:
    """The start with the multipliers and draws of a pool's weights; ``None`` where they agree with it or say too little."""
    if not np.any(pool.usable & (pool.kind == OWN)):
        return None
    found = pool.weigh(np.asarray(begin.eta, float), bridged=False)
    # Weights of a flow that misses a mode are as smooth as those of one that does not.
    if not sees_all(pool, found):
        return None
    moments = pool.columns.moments[found.rows]
    weight = np.exp(found.first)
    mean = weight @ moments
    centred = moments - mean
    error = np.sqrt(np.square(weight) @ np.square(centred))
    scale = problem.scale(np.sqrt(np.exp(found.log_weight) @ np.square(moments - problem.target)))
    off, size = np.abs(mean - problem.target), np.maximum(np.abs(mean), np.abs(problem.target))
    if not np.any(off > np.maximum(LEAST_OFF * scale, STANDARD_ERRORS * error) + SINGLE * size):
        return None
    columns = np.column_stack([pool.draws, pool.log_p(found.eta)])[found.rows]
    columns = resample(columns, found.log_weight, len(begin.draws))
    tilted = moments - problem.target
    covariance = (tilted * np.exp(found.log_weight)[:, None]).T @ tilted
    return begin._replace(
        draws=jnp.asarray(columns[:, :-1], begin.draws.dtype),
        eta=jnp.asarray(found.eta, begin.draws.dtype),
        covariance=jnp.asarray(covariance, begin.draws.dtype),
        log_normalizer=found.log_normalizer,
        log_density=jnp.asarray(columns[:, -1], begin.draws.dtype),
        ess=found.ess,
        times_solved=begin.times_solved + 1,
        num_simulations=begin.num_simulations + pool.num_simulations,
        message=begin.message if begin.times_solved else f"{begin.message} {SOLVED_AGAIN}",
    )
