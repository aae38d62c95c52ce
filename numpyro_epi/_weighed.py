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
from jaxtyping import Array, Bool, Float

from ._journal import remembered
from ._noise import Left, left
from ._pilot import ENOUGH_PER_DIM, PRIOR_SHARE, Near, Proposal, around, effective, log_density, propose
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

FRESH_SHARE, FEWEST_FRESH, MOST_FRESH, FRESH_OF_EACH = 0.02, 160, 20_000, 16
"""Fresh simulations that the draws are checked by: as a share of all that may be run, at least and at most; of each draw, where
these tell what is left."""

MOST_SUCCEED = 0.99
"""Share of fresh simulations that has to succeed for their means to be compared with the targets."""

LEAST_GROWTH = 1.5
"""Times as many simulations of each draw as those before, at least, where it begins anew."""

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
            leaves of a bias is in it, squared, where it is known.
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

    Means are over the simulations that succeed. Where fewer than two do, the base has no mass, and the moments are the targets.
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
        return self.over(mixture)

    def over(self, log_proposal: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Log of the base over such densities; minus infinity where there is no base, as on a bound."""
        log_weight = np.full(len(self.log_base), -np.inf)
        return np.subtract(self.log_base, log_proposal, out=log_weight, where=np.isfinite(self.log_base))

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
    checks = _Checks(problem, num_draws, batch, max_simulations)
    simulations = NUM_SIMULATIONS if checks.is_noisy else 1
    keys = (jax.random.fold_in(key, number) for number in itertools.count())
    count = min(len(near.draws), max_simulations // simulations)
    first = _simulate(problem, next(keys), jnp.asarray(near.draws[:count], float), simulations, [])
    spent = count * simulations
    now = _Pooled.of(first, first.over(first.log_prior) + near.log_weight[:count], problem, simulations)
    proposals: list[Proposal] = []
    rounds: list[_Round] = []
    enough = ENOUGH_PER_DIM * problem.dim
    fewer: _Pooled | None = None
    is_asked = False
    while len(rounds) < MAX_ROUNDS and spent + batch * simulations + checks.fresh <= max_simulations:
        usable = np.isfinite(now.before) & np.isfinite(now.found.log_weight)
        if np.sum(usable) <= problem.dim + 1:
            break
        flat = flattened(now.before[usable], now.found.log_weight[usable], enough)
        proposals.append(around(now.draws.draws[usable], flat))
        rounds = [r._replace(log_proposals=_extended(r, proposals[-1:])) for r in rounds]
        draws = propose(problem, next(keys), proposals[-1], batch)
        rounds.append(_simulate(problem, next(keys), draws, simulations, proposals))
        spent += batch * simulations
        pooled = _Round(*(np.concatenate(column) for column in zip(*rounds, strict=True)))
        now = _Pooled.of(pooled, pooled.log_weight(), problem, simulations)
        more = simulations
        if checks.is_noisy and (now.ess >= num_draws or (now.ess > enough and not is_asked)):
            is_asked = True
            now, more, used = checks.ask(next(keys), now, spent)
            spent += used
        if more == simulations and now.ess >= num_draws:
            break
        if more > simulations:
            # Anew from here: what was simulated too seldom would bias the rest.
            fewer = now if fewer is None or now.ess >= min(LEAST_OF_WANTED * num_draws, fewer.ess) else fewer
            simulations, proposals, rounds, is_asked = more, [], [], False
    is_reached = now.found.reached and len(rounds) > 0
    now = now._replace(found=now.found._replace(reached=is_reached))
    if fewer is not None and not (is_reached and now.ess >= min(LEAST_OF_WANTED * num_draws, fewer.ess)):
        now = fewer
    if checks.is_noisy and now.bias is None:
        remains, used = checks.left(next(keys), now, spent)
        spent, now = spent + used, now._replace(bias=None if remains is None else remains.bias(now.simulations))
    return now.weighed(problem.target, spent)


class _Pooled(NamedTuple):
    """Draws of all rounds with their weights.

    Attributes:
        draws: The draws and what they were proposed from.
        before: Log of base over proposal, shape [N].
        found: The tilt to the targets.
        simulations: Of each draw.
        bias: What their noise leaves in the exponent, nats; ``None`` where it was not measured, and NaN where fresh simulations
            contradicted it.
    """

    draws: _Round
    before: Float[np.ndarray, " N"]
    found: Tilt
    simulations: int
    bias: float | None

    @classmethod
    def of(cls, draws: _Round, before: Float[np.ndarray, " N"], problem: Problem, simulations: int) -> "_Pooled":
        is_noisy = bool(problem.simulator.noise)
        return cls(draws, before, draws.tilted(before, problem), simulations, None if is_noisy else 0.0)

    @property
    def ess(self) -> float:
        """Effective number of draws."""
        return effective(self.found.log_weight) if np.any(np.isfinite(self.found.log_weight)) else 0.0

    def weighed(self, target: Float[np.ndarray, " M"], spent: int) -> Weighed:
        """The draws that have any mass, with the solution's density at them."""
        found, draws, before = self.found, self.draws, self.before
        kept = np.isfinite(found.log_weight)
        log_mean = scipy.special.logsumexp(before) - math.log(len(before))
        optimism, variance = 0.0, math.inf
        if np.any(kept):
            slopes = draws.moments[kept] - target + draws.noise[kept] @ found.eta
            optimism = _optimism(np.exp(found.log_weight[kept]), slopes, draws.noise[kept])
            least = max(1.0 / self.ess - 1.0 / len(before), 0.0)
            variance = 1.0 / self.ess if self.bias is None or math.isnan(self.bias) else least + self.bias**2
        return Weighed(
            draws=draws.draws[kept],
            log_weight=found.log_weight[kept],
            moments=draws.moments[kept],
            noise=draws.noise[kept],
            log_before=before[kept],
            eta=found.eta,
            log_density=draws.log_base[kept] + found.log_weight[kept] - before[kept] + math.log(len(before)) - optimism,
            log_normalizer=found.log_normalizer + log_mean + optimism,
            relative_variance=variance,
            reached=found.reached,
            num_simulations=spent,
        )


def _optimism(
    weight: Float[np.ndarray, " N"], slopes: Float[np.ndarray, "N M"], noise: Float[np.ndarray, "N M M"]
) -> float:
    """How far the minimum of these draws' dual lies below that of the true dual on average, nats, by the fit of the multipliers.

    It is half of ``g' H^-1 g``, ``H`` the dual's curvature and ``g`` its gradient's error. Directions of noise alone have none.
    """
    centred = slopes * weight[:, None]
    spread = centred.T @ slopes
    size = np.sqrt(np.diagonal(spread))
    size = np.where(size > 0, size, 1.0)
    curvature = (spread - np.einsum("n,nij->ij", weight, noise)) / np.outer(size, size)
    values, vectors = np.linalg.eigh(curvature)
    kept = values > 1e-3
    return 0.5 * float(np.sum(np.square((centred / size) @ vectors[:, kept]) / values[kept]))


class _Checks(NamedTuple):
    """What fresh simulations of weighed draws tell of their noise; those that the weights chose would tell of too little.

    Attributes:
        problem: The question.
        num_draws: Effective draws wanted.
        batch: Draws of a round.
        max_simulations: Model runs that may be made in all.
    """

    problem: Problem
    num_draws: int
    batch: int
    max_simulations: int

    @property
    def is_noisy(self) -> bool:
        return bool(self.problem.simulator.noise)

    @property
    def fresh(self) -> int:
        """Simulations of a check; none where they would be too few to tell, or there is no noise."""
        count = min(int(FRESH_SHARE * self.max_simulations), MOST_FRESH) // FRESH_OF_EACH * FRESH_OF_EACH
        return count if self.is_noisy and count >= FEWEST_FRESH else 0

    def ask(self, key: Key, now: _Pooled, spent: int) -> tuple[_Pooled, int, int]:
        """The draws with their bias, how many simulations of each they should have, and how many this took."""
        left_key, mean_key = jax.random.split(key)
        remains, used = self.left(left_key, now, spent)
        if remains is None:
            return now, now.simulations, used
        now = now._replace(bias=remains.bias(now.simulations))
        affordable = (self.max_simulations - spent - used) // self.batch
        if remains.bias(now.simulations) > MOST_LEFT:
            wanted = math.ceil(MARGIN * remains.enough(MOST_LEFT, MOST_TOGETHER))
            more = min(wanted, MOST_TOGETHER, affordable // 2)
            if more >= LEAST_GROWTH * now.simulations:
                return now, more, used
        more = min(MORE_WHERE_BIASED * now.simulations, MOST_TOGETHER, affordable // ROUNDS_AGAIN)
        is_affordable = spent + used + self.fresh <= self.max_simulations
        if now.ess < self.num_draws or more < LEAST_GROWTH * now.simulations or not is_affordable:
            return now, now.simulations, used
        if _is_biased(now, *self._fresh(mean_key, now, self.fresh, 1), self.problem):
            return now._replace(bias=math.nan), more, used + self.fresh
        return now, now.simulations, used + self.fresh

    def left(self, key: Key, now: _Pooled, spent: int) -> tuple[Left | None, int]:
        """What noise leaves in the exponent, and how many simulations this took; ``None`` where they cannot be afforded."""
        if not self.fresh or not np.any(np.isfinite(now.found.log_weight)) or spent + self.fresh > self.max_simulations:
            return None, 0
        moments, succeeds = self._fresh(key, now, self.fresh // FRESH_OF_EACH, FRESH_OF_EACH)
        return left((moments - self.problem.target) @ now.found.eta, succeeds), self.fresh

    def _fresh(
        self, key: Key, now: _Pooled, count: int, each: int
    ) -> tuple[Float[np.ndarray, "N S M"], Bool[np.ndarray, "N S"]]:
        """Moments of fresh simulations of so many draws, and which of them succeeded."""
        pick_key, noise_key = jax.random.split(key)
        usable = np.isfinite(now.found.log_weight)
        weight = jnp.asarray(np.exp(now.found.log_weight[usable]))
        rows = np.asarray(jax.random.choice(pick_key, len(weight), (count,), p=weight))
        draws = jnp.asarray(np.repeat(now.draws.draws[usable][rows], each, axis=0), float)
        found = _simulate(self.problem, noise_key, draws, 1, [])
        return found.moments.reshape(count, each, -1), np.isfinite(found.log_base).reshape(count, each)


def _is_biased(
    now: _Pooled, moments: Float[np.ndarray, "N 1 M"], succeeds: Bool[np.ndarray, "N 1"], problem: Problem
) -> bool:
    """Whether fresh simulations of the draws have other means than the targets.

    Noise that is far from normal, and grows with a parameter, favours the wrong draws: those whose few simulations happened to be
    small have a small mean and a small variance at once, and gain more weight than the correction takes away.
    """
    if np.mean(succeeds) < MOST_SUCCEED:
        # Fresh draws count by how often they succeed, and weighed ones do not.
        return False
    moments = moments[succeeds]
    usable = np.isfinite(now.found.log_weight)
    weight = np.exp(now.found.log_weight[usable])
    spread = moments.std(axis=0)
    of_weights = np.square(weight) @ np.diagonal(now.draws.noise[usable], axis1=1, axis2=2)
    error = np.sqrt(np.square(spread) / len(moments) + of_weights)
    allowed = np.maximum(LEAST_OFF * problem.scale(spread), STANDARD_ERRORS * error)
    return bool(np.any(np.abs(moments.mean(axis=0) - problem.target) > allowed))


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
        succeeds = jnp.isfinite(found.moments).all(axis=1, keepdims=True)
        count = jnp.sum(succeeds)
        mean = jnp.sum(jnp.where(succeeds, found.moments, 0.0), axis=0) / count
        centred = jnp.where(succeeds, found.moments - mean, 0.0)
        noise = centred.T @ centred / (count * jnp.maximum(count - 1, 1))
        is_enough = count >= min(2, simulations)
        return draw.log_prior + draw.log_det, found.log_base[0], jnp.where(is_enough, mean, jnp.nan), noise

    size = max(1, MOST_TOGETHER // simulations)
    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=min(size, len(draws)))
