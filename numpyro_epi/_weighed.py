"""Draws of the solution itself, without gradients: proposals that draw near it, and weights that make up for the rest.

Adaptive importance sampling. Each round proposes around the draws of all earlier ones, weighed and tilted to the targets as
well as they can be, and simulates; all rounds count as draws of one mixture of their proposals (Cornuet, Marin, Mira & Robert
2012, Scandinavian Journal of Statistics 39:798), so that a lucky draw far out loses its weight once others follow it. While
the weights rest on few draws, they are flattened (Koblents & Miguez 2015, Statistics and Computing 25:407).
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from ._journal import remembered
from ._noise import Left, left
from ._pilot import (
    ENOUGH_PER_DIM,
    PRIOR_SHARE,
    Near,
    Proposal,
    around,
    effective,
    log_density,
    propose,
    resample,
    simulate_prior,
)
from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, PerDraw
from ._weights import Tilt, tilt

NUM_SIMULATIONS, MOST_LEFT, MARGIN = 4, 0.002, 1.2
"""Simulations of each draw at first, and what their noise may leave in the exponent, nats, after its correction: of a normal
parameter and its square with noise, .013 moved a multiplier by a seventh and the normaliser by .012. More are taken where more
is left: the third times as many as seem enough, since they begin anew."""

MOST_TOGETHER = 250
"""Simulations at once, since one may hold much, and most of one draw."""

MORE_WHERE_BIASED, LEAST_OFF, STANDARD_ERRORS = 16, 0.025, 4.0
"""Times as many simulations of each draw where means of fresh ones are off by so much, in units of their scale and in standard
errors. The second is half of the default tolerance."""

LEAST_OF_WANTED = 0.25
"""Share of the wanted number that draws with more simulations each have to be worth, to be preferred to those with fewer."""

FRESH_SHARE, MOST_FRESH, FRESH_OF_EACH = 0.02, 20_000, 16
"""Fresh simulations that the draws are checked by: as a share of all that may be run, and at most; of each draw, where these tell
what is left."""

FEW_PER_DIM = 3.0
"""Effective draws, for each parameter, of a tilt of prior draws that later rounds may begin around."""

MAX_ROUNDS, ROUNDS_AGAIN = 20, 4
"""Most rounds, since every draw is compared with every round's proposal, so that work grows with their square; and rounds that
must still be affordable with more simulations of each draw."""


class Weighed(NamedTuple):
    """Weighed draws of the solution.

    Attributes:
        draws: In unconstrained coordinates, shape [N, D].
        log_weight: Of each towards the solution, normalised, shape [N].
        moments: Means of ``T`` over each draw's simulations, shape [N, M].
        noise: Covariance of these means, shape [N, M, M].
        log_before: Log of base over proposal, before the tilt to the targets, shape [N].
        eta: Multipliers, shape [M].
        log_density: Of the solution at the draws, normalised, in unconstrained coordinates, shape [N].
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats: ``-KL(p || base)`` of the solution.
        relative_variance: Of ``Z``, a mean of weights: many even ones leave less than one over their effective number. What noise
            leaves of a bias is in it, squared.
        reached: Whether the weighted means are the targets.
        num_simulations: Model runs that it took.
    """

    draws: Float[np.ndarray, "N D"]
    log_weight: Float[np.ndarray, " N"]
    moments: Float[np.ndarray, "N M"]
    noise: Float[np.ndarray, "N M M"]
    log_before: Float[np.ndarray, " N"]
    eta: Float[np.ndarray, " M"]
    log_density: Float[np.ndarray, " N"]
    log_normalizer: float
    relative_variance: float
    reached: bool
    num_simulations: int

    @property
    def ess(self) -> float:
        """Effective number of draws; none where the targets are not reached."""
        return effective(self.log_weight) if self.reached else 0.0


class _Round(NamedTuple):
    """Draws: densities of prior and base, means of the moments over simulations, their covariance, densities proposed from.

    Of a draw with a failed simulation the base has no mass, and the moments are the targets.
    """

    draws: Float[np.ndarray, "N D"]
    log_prior: Float[np.ndarray, " N"]
    log_base: Float[np.ndarray, " N"]
    moments: Float[np.ndarray, "N M"]
    noise: Float[np.ndarray, "N M M"]
    log_proposals: Float[np.ndarray, "N R"]

    def log_weight(self) -> Float[np.ndarray, " N"]:
        """Of the base over the mixture of all rounds' normals, each of which has its share of the prior."""
        normals = scipy.special.logsumexp(self.log_proposals, axis=1) - math.log(self.log_proposals.shape[1])
        mixture = np.logaddexp(math.log(PRIOR_SHARE) + self.log_prior, math.log1p(-PRIOR_SHARE) + normals)
        return self.log_base - mixture

    def tilted(self, log_weight: Float[np.ndarray, " N"], problem: Problem) -> Tilt:
        return tilt(log_weight, self.moments, problem.target, noise=self.noise if problem.simulator.noise else None)


def weigh_draws(problem: Problem, key: Key, near: Near, *, num_draws: int, batch: int, max_simulations: int) -> Weighed:
    """Come from draws that roughly have the property to draws of the solution.

    Args:
        problem: The question, under a proper prior.
        key: Random key.
        near: Draws to begin around.
        num_draws: Effective draws wanted.
        batch: Draws of a round.
        max_simulations: Model runs after which it ends.
    """
    is_noisy = bool(problem.simulator.noise)
    fresh = min(int(FRESH_SHARE * max_simulations), MOST_FRESH)
    simulations = NUM_SIMULATIONS if is_noisy else 1
    keys = (jax.random.fold_in(key, number) for number in itertools.count())
    count = min(len(near.draws), max_simulations // simulations)
    pooled = _simulate(problem, next(keys), jnp.asarray(near.draws[:count], float), simulations, [])
    spent = count * simulations
    before = pooled.log_base - pooled.log_prior + near.log_weight[:count]
    found = pooled.tilted(before, problem)
    proposals: list[Proposal] = []
    rounds: list[_Round] = []
    enough = ENOUGH_PER_DIM * problem.dim
    fewer: tuple[_Round, Float[np.ndarray, " N"], Tilt, float] | None = None
    remains: Left | None = None
    while len(rounds) < MAX_ROUNDS and spent + batch * simulations <= max_simulations:
        usable = np.isfinite(before) & np.isfinite(found.log_weight)
        if np.sum(usable) <= problem.dim + 1:
            break
        flat = flattened(before[usable], found.log_weight[usable], enough)
        proposals.append(around(pooled.draws[usable], flat))
        rounds = [r._replace(log_proposals=_extended(r, proposals[-1:])) for r in rounds]
        draws = propose(problem, next(keys), proposals[-1], batch)
        rounds.append(_simulate(problem, next(keys), draws, simulations, proposals))
        spent += batch * simulations
        pooled = _Round(*(np.concatenate(column) for column in zip(*rounds, strict=True)))
        before = pooled.log_weight()
        found = pooled.tilted(before, problem)
        worth = effective(found.log_weight) if np.any(np.isfinite(found.log_weight)) else 0.0
        affordable = (max_simulations - spent) // batch
        more, count = simulations, 0
        if is_noisy and (worth >= num_draws or (worth > enough and remains is None)):
            remains = _left(problem, next(keys), pooled, found, fresh)
            spent += fresh
            if abs(remains.bias(simulations)) > MOST_LEFT:
                more = math.ceil(MARGIN * remains.enough(MOST_LEFT))
                more = max(simulations, min(more, MOST_TOGETHER, affordable // 2))
        if more == simulations and worth >= num_draws:
            most = min(MORE_WHERE_BIASED * simulations, MOST_TOGETHER, affordable // ROUNDS_AGAIN) if is_noisy else 1
            count = fresh if most >= 2 * simulations else 0
            spent += count
            if not (count and _is_biased(problem, next(keys), pooled, found.log_weight, count)):
                break
            more = most
        if more > simulations:
            # Anew from here: what was simulated too seldom would bias the rest.
            fewer = pooled, before, found, _bias(remains, simulations)
            simulations, proposals, rounds, remains = more, [], [], None
    found = found._replace(reached=found.reached and len(rounds) > 0)
    bias = _bias(remains, simulations)
    if fewer is not None:
        least = min(LEAST_OF_WANTED * num_draws, effective(fewer[2].log_weight))
        if not (found.reached and effective(found.log_weight) >= least):
            # Where simulations fail now and then, many of one draw hardly ever all succeed.
            pooled, before, found, bias = fewer
    return _weighed(pooled, before, found, bias, spent)


def _bias(remains: Left | None, simulations: int) -> float:
    """Of the exponent, nats, as far as it is known."""
    return 0.0 if remains is None else remains.bias(simulations)


def _weighed(pooled: _Round, before: Float[np.ndarray, " N"], found: Tilt, bias: float, spent: int) -> Weighed:
    """The draws that have any mass, with their weights and the solution's density at them."""
    kept = np.isfinite(found.log_weight)
    log_mean = scipy.special.logsumexp(before) - math.log(len(before))
    return Weighed(
        draws=pooled.draws[kept],
        log_weight=found.log_weight[kept],
        moments=pooled.moments[kept],
        noise=pooled.noise[kept],
        log_before=before[kept],
        eta=found.eta,
        log_density=pooled.log_base[kept] + found.log_weight[kept] - before[kept] + math.log(len(before)),
        log_normalizer=found.log_normalizer + log_mean,
        # Without draws nothing is known.
        relative_variance=max(1.0 / effective(found.log_weight[kept]) - 1.0 / len(before), 0.0) + bias**2
        if np.any(kept)
        else math.inf,
        reached=found.reached,
        num_simulations=spent,
    )


def _left(problem: Problem, key: Key, pooled: _Round, found: Tilt, count: int) -> Left:
    """What noise leaves in the exponent, by so many fresh simulations; those that the weights chose would tell of too little."""
    pick_key, noise_key = jax.random.split(key)
    usable = np.isfinite(found.log_weight)
    rows = jax.random.choice(
        pick_key, int(usable.sum()), (max(1, count // FRESH_OF_EACH),), p=jnp.asarray(np.exp(found.log_weight[usable]))
    )
    draws = np.repeat(pooled.draws[usable][np.asarray(rows)], FRESH_OF_EACH, axis=0)
    fresh = _simulate(problem, noise_key, jnp.asarray(draws, float), 1, [])
    exponents = ((fresh.moments - problem.target) @ found.eta).reshape(-1, FRESH_OF_EACH)
    succeeds = np.isfinite(fresh.log_base).reshape(exponents.shape).all(axis=1)
    return left(exponents[succeeds]) if np.any(succeeds) else Left(0.0, 0.0)


def _is_biased(problem: Problem, key: Key, pooled: _Round, log_weight: Float[np.ndarray, " N"], count: int) -> bool:
    """Whether so many fresh simulations of the draws have other means than the targets.

    Noise that is far from normal, and grows with a parameter, favours the wrong draws: those whose few simulations happened to be
    small have a small mean and a small variance at once, and gain more weight than the correction takes away.
    """
    pick_key, noise_key = jax.random.split(key)
    usable = np.isfinite(log_weight)
    weight = np.exp(log_weight[usable])
    rows = np.asarray(jax.random.choice(pick_key, len(weight), (count,), p=jnp.asarray(weight)))
    moments = _simulate(problem, noise_key, jnp.asarray(pooled.draws[usable][rows], float), 1, []).moments
    spread = moments.std(axis=0)
    of_weights = np.square(weight) @ np.diagonal(pooled.noise[usable], axis1=1, axis2=2)
    error = np.sqrt(np.square(spread) / count + of_weights)
    allowed = np.maximum(LEAST_OFF * problem.scale(spread), STANDARD_ERRORS * error)
    return bool(np.any(np.abs(moments.mean(axis=0) - problem.target) > allowed))


def tilt_prior(problem: Problem, key: Key, num_draws: int, *, batch: int, max_simulations: int) -> Near | None:
    """Draws that `weigh_draws` may begin around, by one tilt of prior draws: for statistics that no distance leads to.

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


def flattened(
    before: Float[np.ndarray, " N"], after: Float[np.ndarray, " N"], enough: float
) -> Float[np.ndarray, " N"]:
    """As much of the way from weights before the tilt to those after it as leaves ``enough`` effective draws."""
    before = before - scipy.special.logsumexp(before)

    def part(power: float) -> Float[np.ndarray, " N"]:
        mixed = before + power * (after - before)
        return mixed - scipy.special.logsumexp(mixed)

    low, high = 0.0, 1.0
    if effective(after) >= enough:
        return after
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(part(middle)) >= enough else (low, middle)
    return part(low)


def _extended(found: _Round, proposals: list[Proposal]) -> Float[np.ndarray, "N R"]:
    draws = jnp.asarray(found.draws, float)
    new = [np.asarray(_log_densities(each, draws), float)[:, None] for each in proposals]
    return np.concatenate([found.log_proposals, *new], axis=1)


@compiled
def _log_densities(proposal: Proposal, draws: Draws) -> PerDraw:
    return jax.lax.map(lambda u: log_density(proposal, u), draws, batch_size=MOST_TOGETHER)


def _simulate(problem: Problem, key: Key, draws: Draws, simulations: int, proposals: list[Proposal]) -> _Round:
    measured = (np.asarray(each, float) for each in remembered(_measure, problem, key, draws, simulations))
    log_prior, log_base, moments, noise = measured
    finite = np.isfinite(moments).all(axis=1) & np.isfinite(log_base)
    found = _Round(
        draws=np.asarray(draws, float),
        log_prior=log_prior,
        log_base=np.where(finite, log_base, -np.inf),
        moments=np.where(finite[:, None], moments, problem.target),
        noise=np.where(finite[:, None, None], noise, 0.0),
        log_proposals=np.zeros((len(draws), 0)),
    )
    return found._replace(log_proposals=_extended(found, proposals))


@compiled
def _measure(problem: Problem, key: Key, draws: Draws, simulations: int) -> tuple[PerDraw, PerDraw, Array, Array]:
    def one(given: tuple[Key, Array]) -> tuple[Array, Array, Array, Array]:
        key, u = given
        found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(key, simulations), u)
        # Of its simulation nothing is used, so it is not run.
        draw = problem.simulator(key, u)
        centred = found.moments - jnp.mean(found.moments, axis=0)
        noise = centred.T @ centred / (simulations * max(simulations - 1, 1))
        return draw.log_prior + draw.log_det, found.log_base[0], jnp.mean(found.moments, axis=0), noise

    size = max(1, MOST_TOGETHER // simulations)
    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=min(size, len(draws)))
