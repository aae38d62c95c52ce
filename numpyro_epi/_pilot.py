"""Draws of the prior that roughly have a property, found by simulating ever nearer to it.

Population Monte Carlo with a falling tolerance (Beaumont, Cornuet, Marin & Robert 2009, Biometrika 96:983): each round
proposes from normals around the last round's nearest draws, and from the prior, and weighs by prior over proposal. What
comes out is the prior, restricted to where every mean statistic lies within a few spreads of its target. Each normal has
the covariance of its neighbours, so that proposals follow a bent region (Filippi, Barnes, Cornebise & Stumpf 2013,
Statistical Applications in Genetics and Molecular Biology 12:87). A round's tolerance is a quantile of its distances (Del
Moral, Doucet & Jasra 2012, Statistics and Computing 22:1009).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float
from scipy.spatial import KDTree

from ._journal import remembered
from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, MomentDraws, PerDraw, Scalar, Unconstrained
from ._weights import tilt

QUANTILE, LEAST_FALL = 0.25, 0.8
"""A round's tolerance takes in this share of its draws, but is at most this share of the last one: the simulator's noise may
keep most draws away, however good the proposal."""

ENOUGH_PER_DIM = 20
"""Effective draws, for each parameter, that a tolerance must have had before it falls; till then rounds add up."""

PRIOR_SHARE = 0.05
"""Of the proposals: it bounds the weights, and finds what the first rounds missed."""

NUM_CENTRES = 500
"""Draws around which normals stand."""

WIDTH = 2.0
"""Covariance of those normals over that of their neighbours, Beaumont et al.'s choice for all draws."""

MIN_NEIGHBOURS, NEIGHBOURS_PER_DIM = 20, 5
"""Draws of which a normal takes the covariance."""


FEW_PER_DIM = 3.0
"""Effective draws, for each parameter, of a tilt of prior draws that later rounds may begin around."""


class Near(NamedTuple):
    """Draws within a tolerance.

    Attributes:
        draws: In unconstrained coordinates, shape [N, D].
        log_weight: Of each towards the prior within the tolerance, normalised, shape [N].
        tolerance: Largest distance from the targets, in spreads.
        num_simulations: Draws simulated to find them.
    """

    draws: Float[np.ndarray, "N D"]
    log_weight: Float[np.ndarray, " N"]
    tolerance: float
    num_simulations: int

    @property
    def ess(self) -> float:
        """Effective number of draws."""
        return effective(self.log_weight)


def resample(
    draws: Float[np.ndarray, "N D"], log_weight: Float[np.ndarray, " N"], num_draws: int
) -> Float[np.ndarray, "M D"]:
    """Equally weighted draws, by systematic resampling."""
    points = (np.arange(num_draws) + 0.5) / num_draws
    index = np.searchsorted(np.cumsum(np.exp(log_weight)), points)
    return draws[np.minimum(index, len(draws) - 1)]


def effective(log_weight: Float[np.ndarray, " N"]) -> float:
    """Effective number of draws, by their normalised weights."""
    return float(np.exp(-scipy.special.logsumexp(2 * log_weight))) if len(log_weight) else 0.0


def approach(problem: Problem, key: Key, *, num_draws: int, spreads: float, batch: int, max_simulations: int) -> Near:
    """Simulate batches until the draws within ``spreads`` are worth ``num_draws``, or the simulations are spent.

    A draw's distance is that of its furthest statistic from its target mean, in standard deviations: the target's where it
    has one, the prior's otherwise.
    """
    proposal, near, distance_of = None, None, None
    rounds: list[_Round] = []
    tolerance = np.inf
    for number in range(math.ceil(max_simulations / batch)):
        key_now = jax.random.fold_in(key, number)
        draws, log_weight, moments = remembered(_simulate, problem, key_now, proposal, batch)
        distance_of = distance_of or _distance(problem, np.asarray(moments, float))
        found = _Round(np.asarray(draws, float), np.asarray(log_weight, float), distance_of(np.asarray(moments, float)))
        rounds.append(found)
        if tolerance > spreads and _within(rounds, tolerance, 0).ess >= ENOUGH_PER_DIM * problem.dim:
            tolerance = max(spreads, min(found.quantile(), LEAST_FALL * tolerance))
            rounds = [found]
        near = _within(rounds, tolerance, (number + 1) * batch)
        if tolerance <= spreads and near.ess >= num_draws:
            break
        prior_will_do = proposal is None and tolerance <= spreads
        if not prior_will_do and near.ess > problem.dim + 1:
            proposal = around(near.draws, near.log_weight)
    assert near is not None
    return near


class _Round(NamedTuple):
    """Draws of one round, their weights towards the prior, and their distances from the targets."""

    draws: Float[np.ndarray, "N D"]
    log_weight: Float[np.ndarray, " N"]
    distance: Float[np.ndarray, " N"]

    def quantile(self) -> float:
        """The distance within which the nearest share of the draws lies."""
        nearest = np.sort(self.distance[np.isfinite(self.distance)])
        return float(nearest[math.ceil(QUANTILE * len(nearest)) - 1]) if len(nearest) else np.inf


class Proposal(NamedTuple):
    """Equally weighted normals, K centres and roots of covariances; beside them, the prior."""

    centres: Float[Array, "K D"]
    cholesky: Float[Array, "K D D"]


def _distance(
    problem: Problem, first: Float[np.ndarray, "N M"]
) -> Callable[[Float[np.ndarray, "N M"]], Float[np.ndarray, " N"]]:
    """How far moments are from the targets; ``first`` are those of prior draws, for statistics without a wanted spread."""
    wanted = {c.statistic: math.sqrt(c.target) for c in problem.constraints if c.order == 2}
    found = np.nanstd(np.where(np.isfinite(first), first, np.nan), axis=0)
    spread = np.array([wanted.get(c.statistic, s) for c, s in zip(problem.constraints, found, strict=True)])
    spread = np.maximum(spread, np.finfo(np.float32).tiny)
    means = np.array([c.order == 1 for c in problem.constraints])

    def distance(moments: Float[np.ndarray, "N M"]) -> Float[np.ndarray, " N"]:
        off = np.max((np.abs(moments - problem.target) / spread)[:, means], axis=1)
        return np.where(np.all(np.isfinite(moments), axis=1), off, np.inf)

    return distance


def _within(rounds: list[_Round], tolerance: float, num_simulations: int) -> Near:
    draws, log_weight, distance = (np.concatenate(part) for part in zip(*rounds, strict=True))
    near = (distance <= tolerance) & np.isfinite(distance) & np.isfinite(log_weight)
    log_weight = log_weight[near] - scipy.special.logsumexp(log_weight[near]) if np.any(near) else log_weight[near]
    return Near(draws[near], log_weight, tolerance, num_simulations)


def around(draws: Float[np.ndarray, "N D"], log_weight: Float[np.ndarray, " N"]) -> Proposal:
    """Normals around the draws, as many of each as its weight asks for."""
    centres = resample(draws, log_weight, NUM_CENTRES)
    dim = centres.shape[1]
    scale = np.std(centres, axis=0) + 1e-12
    # Different draws only: copies of one would have no spread.
    others = np.unique(centres, axis=0)
    count = min(len(others), MIN_NEIGHBOURS + NEIGHBOURS_PER_DIM * dim)
    _, index = KDTree(others / scale).query(centres / scale, k=count)
    neighbours = others[index.reshape(len(centres), count)]
    centred = neighbours - neighbours.mean(axis=1, keepdims=True)
    covariance = WIDTH * np.einsum("kni,knj->kij", centred, centred) / max(count - 1, 1)
    floor = 1e-6 * np.diag(scale**2)
    return Proposal(jnp.asarray(centres, float), jnp.asarray(np.linalg.cholesky(covariance + floor), float))


@compiled
def propose(problem: Problem, key: Key, proposal: Proposal | None, batch: int) -> Draws:
    """Draws of the proposal and, for a share of them, of the prior; all of the prior where there is no proposal."""
    prior_key, centre_key, step_key, choice_key = jax.random.split(key, 4)
    draws = jax.vmap(problem.simulator.sample_prior)(jax.random.split(prior_key, batch))
    if proposal is None:
        return draws
    index = jax.random.randint(centre_key, (batch,), 0, len(proposal.centres))
    steps = jax.random.normal(step_key, draws.shape)
    moved = proposal.centres[index] + jnp.einsum("nij,nj->ni", proposal.cholesky[index], steps)
    return jnp.where(jax.random.bernoulli(choice_key, PRIOR_SHARE, (batch, 1)), draws, moved)


def simulate_prior(problem: Problem, key: Key, batch: int) -> tuple[Draws, MomentDraws]:
    """Draws of the prior and their moments, one simulation each."""
    draws, _, moments = _simulate(problem, key, None, batch)
    return draws, moments


@compiled
def _simulate(problem: Problem, key: Key, proposal: Proposal | None, batch: int) -> tuple[Draws, PerDraw, MomentDraws]:
    """Propose and simulate: draws, log of prior over proposal, moments."""
    draws_key, noise_key = jax.random.split(key)
    draws = propose(problem, draws_key, proposal, batch)

    def measure(given: tuple[Key, Array]) -> tuple[Array, Array]:
        key, u = given
        draw = problem.simulator(key, u)
        return draw.log_prior + draw.log_det, problem.property.moments(problem.property.values(draw.sites))

    # A few at a time: a simulation may hold much.
    log_prior, moments = jax.lax.map(measure, (jax.random.split(noise_key, batch), draws), batch_size=min(batch, 250))
    if proposal is None:
        return draws, jnp.zeros(batch), moments
    log_proposal = jax.lax.map(lambda u: log_density(proposal, u), draws, batch_size=min(batch, 250))
    log_mixture = jnp.logaddexp(jnp.log(PRIOR_SHARE) + log_prior, jnp.log1p(-PRIOR_SHARE) + log_proposal)
    return draws, log_prior - log_mixture, moments


def log_density(proposal: Proposal, u: Unconstrained) -> Scalar:
    """Log density of the normals, without the prior's share and without those that stand on this very draw.

    A draw of an earlier round that became a centre would else seem likelier than its place is.
    """
    steps = u - proposal.centres
    white = jax.vmap(partial(solve_triangular, lower=True))(proposal.cholesky, steps)
    log_det = jnp.sum(jnp.log(jnp.diagonal(proposal.cholesky, axis1=1, axis2=2)), axis=1)
    normals = -0.5 * jnp.sum(jnp.square(white), axis=1) - log_det
    others = jnp.any(steps != 0, axis=1)
    count = jnp.maximum(jnp.sum(others), 1)
    return jax.nn.logsumexp(normals, where=others) - jnp.log(count) - 0.5 * u.size * math.log(2 * math.pi)


def tilt_prior(problem: Problem, key: Key, num_draws: int, *, batch: int, max_simulations: int) -> Near | None:
    """Draws that weighing may begin around, by one tilt of prior draws: for statistics that no distance leads to.

    An indicator is at one of two values, both of them far from its mean in its standard deviations. Prior draws that
    have it now and then span the targets all the same.

    Args:
        problem: The question, under a proper prior.
        key: Random key.
        num_draws: Draws to keep.
        batch: Draws simulated at once.
        max_simulations: Model runs.

    Returns:
        Draws with weights towards the prior; ``None`` where the prior's draws do not span the targets.
    """
    keys = jax.random.split(key, max(1, max_simulations // batch))
    found = [remembered(simulate_prior, problem, one, batch) for one in keys]
    draws, moments = (
        np.concatenate([np.asarray(part, float) for part in column]) for column in zip(*found, strict=True)
    )
    usable = np.isfinite(moments).all(axis=1)
    draws, moments = draws[usable], moments[usable]
    if not len(draws):
        return None
    # Means over several simulations have less noise, and another solution; this one is a beginning only.
    tilted = tilt(np.zeros(len(draws)), moments, problem.target)
    if not tilted.reached or effective(tilted.log_weight) < FEW_PER_DIM * (problem.dim + 1):
        return None
    columns = resample(np.column_stack([draws, tilted.log_weight]), tilted.log_weight, num_draws)
    log_weight = -columns[:, -1]
    log_weight = log_weight - scipy.special.logsumexp(log_weight)
    return Near(columns[:, :-1], log_weight, np.inf, len(keys) * batch)
