"""A normal near the solution, for chains to begin at where the base is not a proper prior.

Adaptive importance sampling with one normal (Cappé, Douc, Guillin, Marin & Robert 2008, Statistics and Computing 18:447): draws
of the last normal are tilted until their weighted means are the targets, and weighed towards the base, as far as enough of them
keep a weight; their weighted mean and covariance are the next normal's. It ends at the normal with the solution's own moments.
No draw need be near every target by itself: with many statistics none is.
"""

import math
from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float

from ._journal import remembered
from ._path import on_the_way
from ._pilot import effective
from ._problem import Problem
from ._products import compiled
from ._reference import REFERENCE_SCALE, Reference, reference_draws
from ._types import Draws, Key, MomentDraws, PerDraw
from ._weighed import flattened
from ._weights import normalized, tilt

NUM_DRAWS, MOST_ROUNDS, LEAST_WORTH, ENOUGH_WORTH = 8000, 100, 0.025, 0.5
"""Draws of a round, most rounds, the least share of draws that must keep a weight, and the share at which it ends."""

WIDTHS, MOST_TILTS = (1.0, 1.0, 1.0, 2.0, 4.0), 8
"""Of the normals, a round's draws each, that give the multipliers, in units of the one that was found, and most tilts in turn."""

MOST_HALVINGS = 44
"""Of the power of the weights towards the base: a coordinate whose own prior has the scale 1e-6 begins at a tiny one. The share
of the way to the targets is halved as often where they are out of reach."""

SIZES, USUAL = tuple(10.0**power for power in range(-8, 9)), 8
"""Of a coordinate, in units of `REFERENCE_SCALE`, one of which the first normal has."""

ENOUGH_PER_DIM = 4
"""Effective draws, for each parameter, of which a covariance is taken."""

MUCH = 1.0
"""What sizes of a coordinate may differ by, in the sum of logarithms, for the usual one of them to be taken."""

MOST_UNCHANGED, LONGEST, WIDE = 5, 3.0, 2.0
"""Rounds at the targets in turn, without a higher power than before, after which it ends as well; how much longer than its draws
ask for, in variance, a normal on its way is at most; and how much wider the one is that chains begin at: from a narrower one than
the solution they would need negative multipliers, under which they run off."""


OFF = 0.3
"""Most that weighted means may be off their targets, in weighted standard deviations. With .1 and with 1 the search ends at the
same normals (seven problems of three new seeds), with .1 after up to fourteen times as long."""

LONG, OFTEN, LEAST_LEFT = 100.0, 0.01, 0.1
"""How many times the width of its bulk a statistic may be away from its target, where more than this share of the draws is
further, and the least share of draws that is left."""

GROWTH, MOST_GROWING = 0.2, 40
"""Nats of entropy that a round at the targets may add while the search ends, and rounds in turn that add more, after which the
entropy has no maximum: it is 8 nats higher by then at least. Searches for solutions that exist took some ten rounds in all."""


class UnboundedError(ValueError):
    """No distribution with the property has the greatest entropy: there is always one with more."""


class _Normal(NamedTuple):
    loc: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]


def find_reference(problem: Problem, key: Key) -> tuple[Reference | None, int]:
    """Look for the normal.

    Returns:
        The normal, ``None`` where the targets were not reached or the prior's draws are a better beginning, and the number of
        simulations that it took.

    Raises:
        UnboundedError: If its entropy grows and grows while it has the property.
    """
    normal = _first_normal(problem, jax.random.fold_in(key, MOST_ROUNDS))
    lowest, unchanged, last = 2 * MOST_HALVINGS, 0, 1
    growing, reached = 0, -np.inf
    found, arrived = None, False
    for number in range(MOST_ROUNDS):
        sample = _simulate(problem, jax.random.fold_in(key, number), normal)
        sample = _without_tails(problem, sample) if len(sample.draws) else sample
        nearer = _nearer(problem, sample, last) if len(sample.draws) >= LEAST_WORTH * NUM_DRAWS else None
        if nearer is None:
            break
        halvings, log_weight = nearer
        new = _weighed(sample.draws, np.exp(log_weight))
        is_there, arrived = halvings < MOST_HALVINGS, halvings == 0
        found = new if is_there else None
        normal = new if is_there else _widened(new, normal)
        entropy = _entropy(new, sample, log_weight)
        is_growing, reached = is_there and entropy > reached + GROWTH, entropy if is_there else -np.inf
        growing = growing + 1 if is_growing else 0
        if growing == MOST_GROWING:
            raise UnboundedError(_unbounded(problem))
        unchanged = 0 if halvings < lowest or not is_there or is_growing else unchanged + 1
        lowest, last = min(lowest, halvings), halvings
        is_enough = arrived and effective(log_weight) >= ENOUGH_WORTH * NUM_DRAWS
        if is_enough or unchanged == MOST_UNCHANGED:
            break
    rounds = problem.dim + number + 1
    if found is None or (problem.simulator.has_proper_prior and not arrived):
        return None, rounds * NUM_DRAWS
    eta: tuple[float, ...] = ()
    if arrived:
        rounds += len(WIDTHS)
        eta = _multipliers(problem, jax.random.fold_in(key, MOST_ROUNDS + 1), found)
    wide = WIDE * np.linalg.cholesky(found.covariance)
    return Reference(tuple(found.loc.tolist()), tuple(map(tuple, wide.tolist())), eta), rounds * NUM_DRAWS


def _multipliers(problem: Problem, key: Key, normal: _Normal) -> tuple[float, ...]:
    """By more draws, some of them wider, all weighed by the mixture's density.

    A small error may take the normaliser away from a density that the normal no longer holds together, and where statistics are
    nearly collinear errors are large: a square's multiplier comes out as negative. Draws far out show that it is not.
    """
    keys = [jax.random.fold_in(key, number) for number in range(len(WIDTHS))]
    samples = [_simulate(problem, *each) for each in zip(keys, repeat(normal), WIDTHS)]
    sample = _Sample(*(np.concatenate(column) for column in zip(*samples, strict=True)))
    widths, half_squares = np.array(WIDTHS), 0.5 * np.square(sample.white).sum(axis=1)
    log_q = scipy.special.logsumexp(-half_squares[:, None] / widths**2 - problem.dim * np.log(widths), axis=1)
    eta, log_weight = np.zeros(len(problem.target)), sample.log_base - log_q
    # Each in the spread that the last one left: before the first a few draws far out have all of it.
    for _ in range(MOST_TILTS):
        tilted = tilt(log_weight, sample.moments, problem.target)
        is_same = tilted.reached and np.allclose(tilted.log_weight, normalized(log_weight), atol=1e-3)
        eta, log_weight = eta + tilted.eta, tilted.log_weight
        if is_same:
            return tuple(eta.tolist())
    return ()


class _Sample(NamedTuple):
    """Draws of a normal, the standard normal ones they are made of, log base and moments; without those where the model fails."""

    draws: Float[np.ndarray, "N D"]
    white: Float[np.ndarray, "N D"]
    log_base: Float[np.ndarray, " N"]
    moments: Float[np.ndarray, "N M"]

    @property
    def log_weight(self) -> Float[np.ndarray, " N"]:
        """Of the base over the normal, less a constant."""
        return self.log_base + 0.5 * np.square(self.white).sum(axis=1)


def _entropy(normal: _Normal, sample: _Sample, log_weight: Float[np.ndarray, " N"]) -> float:
    """By the base, nats, but for a constant."""
    return float(0.5 * np.linalg.slogdet(normal.covariance)[1] + np.exp(log_weight) @ sample.log_base)


def _unbounded(problem: Problem) -> str:
    return (
        f"Expected targets under which the entropy of {problem.name!r} has a maximum; it grew without end while the targets "
        "were met, since nothing holds some of the parameters. Give a proper prior, a std beside the mean, or a statistic of "
        "what is free."
    )


def _simulate(problem: Problem, key: Key, normal: _Normal, width: float = 1.0) -> _Sample:
    draw_key, noise_key = jax.random.split(key)
    white = width * np.asarray(jax.random.normal(draw_key, (NUM_DRAWS, problem.dim)), float)
    draws = normal.loc + white @ np.linalg.cholesky(normal.covariance).T
    log_base, moments = _measured(problem, noise_key, draws)
    usable = np.isfinite(moments).all(axis=1) & np.isfinite(log_base)
    return _Sample(*(each[usable] for each in (draws, white, log_base, moments)))


def _measured(
    problem: Problem, key: Key, draws: Float[np.ndarray, "N D"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N M"]]:
    log_base, moments = (
        np.asarray(each, float) for each in remembered(_measure, problem, key, jnp.asarray(draws, float))
    )
    return log_base, moments


def _without_tails(problem: Problem, sample: _Sample) -> _Sample:
    """Without draws in the far tails of a statistic, such as exponentials of draws of far too wide a normal.

    A few of them have all of its mean and spread, and say nothing of where the others have to go. A statistic that has one value
    at most draws, as an event's, has no tails.
    """
    target = problem.target
    low, middle, high = np.quantile(sample.moments, (1 / 6, 0.5, 5 / 6), axis=0)
    widths = (0.5 * (high - low), np.abs(middle - target), problem.scale(np.zeros(len(target))))
    furthest = np.where(high > low, LONG * np.maximum.reduce(widths), np.inf)
    is_far = np.abs(sample.moments - target) > furthest
    is_left = ~np.any(is_far[:, np.mean(is_far, axis=0) > OFTEN], axis=1)
    least = max(LEAST_LEFT * len(is_left), LEAST_WORTH * NUM_DRAWS)
    return _Sample(*(each[is_left] for each in sample)) if np.sum(is_left) > least else sample


def _first_normal(problem: Problem, key: Key) -> _Normal:
    """Of the prior's mean and covariance where there is one, else with each coordinate's size."""
    if problem.simulator.has_proper_prior:
        draws = np.asarray(reference_draws(problem, key, NUM_DRAWS), float)
        # One that is rounded onto a bound is infinite.
        draws = draws[np.isfinite(draws).all(axis=1)]
        return _weighed(draws, np.full(len(draws), 1 / len(draws)))
    return _Normal(np.zeros(problem.dim), np.diag(np.square(REFERENCE_SCALE * _sizes(problem, key))))


def _sizes(problem: Problem, key: Key) -> Float[np.ndarray, " D"]:
    """The size of each coordinate, by turns, with which the targets are the least surprising; 1 where another gains little."""
    found = np.ones(problem.dim)
    per_size = NUM_DRAWS // len(SIZES)
    white = np.asarray(jax.random.normal(key, (per_size, problem.dim)), float)
    for i in range(problem.dim):
        draws = np.broadcast_to(REFERENCE_SCALE * found * white, (len(SIZES), *white.shape)).copy()
        draws[:, :, i] = REFERENCE_SCALE * np.multiply.outer(SIZES, white[:, i])
        log_base, moments = _measured(problem, key, draws.reshape(-1, problem.dim))
        moments = np.where(np.isfinite(log_base)[:, None], moments, np.nan)
        surprises = np.array([_surprise(problem, each) for each in np.split(moments, len(SIZES))])
        good = np.flatnonzero(surprises <= surprises.min() + MUCH)
        found[i] = SIZES[good[np.argmin(np.abs(good - USUAL))]]
    return found


def _surprise(problem: Problem, moments: Float[np.ndarray, "N M"]) -> float:
    """How seldom draws are where the targets ask for, nats; draws for which the model fails are nowhere.

    By the shares on either side of each mean and, where a spread is wanted, within two of it and beyond one.
    """
    wanted = {c.statistic: math.sqrt(c.target) for c in problem.constraints if c.order == 2}
    total = 0.0
    for column, constraint in zip(moments.T, problem.constraints, strict=True):
        if constraint.order == 1:
            away = column - constraint.target
            shares = [min(np.mean(away <= 0), np.mean(away >= 0))]
            if constraint.statistic in wanted:
                spread = wanted[constraint.statistic]
                shares += [np.mean(np.abs(away) <= 2 * spread), np.mean(np.abs(away) >= spread)]
            total -= sum(math.log(share + 1 / len(column)) for share in shares)
    return total


def _nearer(problem: Problem, sample: _Sample, last: int) -> tuple[int, Float[np.ndarray, " N"]] | None:
    """Weights as near to the solution's as enough draws keep one.

    At the targets with as high a power of the weights towards the base as that allows; without those, where even the targets
    alone do not; and part of the way where no weights of the draws have the targets as their means.

    ``last`` is what the last round returned first, near which this round's is looked for.

    Returns:
        How often the power was halved, `MOST_HALVINGS` and more without any, and the log weights; ``None`` where there are none.
    """
    moments = sample.moments
    least, first = LEAST_WORTH * len(moments), moments.mean(axis=0)
    lowest, highest = moments.min(axis=0), moments.max(axis=0)
    eta = np.zeros(len(first))

    def weights(power: float, share: float) -> Float[np.ndarray, " N"] | None:
        nonlocal eta
        target = on_the_way(problem, first, 1 - share)
        # Not of the range, against which a target may be nothing at all.
        below, above = (1e-5 * np.maximum(np.abs(target), np.abs(edge)) for edge in (lowest, highest))
        if np.any((target < lowest - below) | (target > highest + above)):
            return None
        # Weights towards the base alone may be few draws', and many again at the targets.
        enough = 0.0 if power else 0.25 * least
        # From where the last weights at these targets were: those towards the base alone may be one draw's, far away.
        known = eta if power else np.zeros(len(first))
        begin = power * sample.log_weight - (moments - target) @ known
        found = tilt(begin, moments, target, least=enough)
        if not (found.reached and _has(moments, found.log_weight, target)):
            return None
        eta = known + found.eta
        return found.log_weight

    def first_enough(
        at: Callable[[int], Float[np.ndarray, " N"] | None], hint: int
    ) -> tuple[int, Float[np.ndarray, " N"]] | None:
        """By bisection; where the round before had one, it and the one before come first."""
        found = None
        low, high = 0, MOST_HALVINGS - 1
        guesses = [hint - 1, hint]
        while low <= high:
            guess = next((each for each in guesses if low <= each <= high), (low + high) // 2)
            log_weight = at(guess)
            if log_weight is not None and effective(log_weight) >= least:
                found, high = (guess, log_weight), guess - 1
            else:
                low = guess + 1
        return found

    without = weights(0.0, 1.0)
    if without is not None:
        found = first_enough(lambda halvings: weights(0.5**halvings, 1.0), min(last, 1))
        flat = flattened(np.full(len(without), -math.log(len(without))), without, least)
        return (MOST_HALVINGS, flat) if found is None else found
    nearly = MOST_HALVINGS // 2
    shares = [1 - 0.5**halvings for halvings in range(nearly, 1, -1)] + [0.5**halvings for halvings in range(1, nearly)]

    def at_share(number: int) -> Float[np.ndarray, " N"] | None:
        return weights(0.0, shares[number]) if number < len(shares) else None

    found = first_enough(at_share, last - MOST_HALVINGS - 1)
    return None if found is None else (MOST_HALVINGS + 1 + found[0], found[1])


def _has(
    moments: Float[np.ndarray, "N M"], log_weight: Float[np.ndarray, " N"], target: Float[np.ndarray, " M"]
) -> bool:
    """Whether the weighted means are the targets in units of what the weights leave of the spread.

    In units of all draws' spread they always are where that is far too large.
    """
    weight = np.exp(log_weight)
    mean = weight @ moments
    spread = np.sqrt(weight @ np.square(moments - mean))
    rounding = 1e-5 * np.maximum(np.abs(target), np.abs(mean))
    return bool(np.all(np.abs(mean - target) <= OFF * spread + rounding))


def _weighed(draws: Float[np.ndarray, "N D"], weight: Float[np.ndarray, " N"]) -> _Normal:
    """Of the draws' weighted mean and covariance; without correlations where few draws for so many parameters keep a weight."""
    loc = weight @ draws
    centred = draws - loc
    covariance = (centred * weight[:, None]).T @ centred
    variance = np.diag(covariance)
    if 1 / np.sum(np.square(weight)) < ENOUGH_PER_DIM * len(variance):
        covariance = np.diag(variance)
    return _Normal(loc, covariance + 1e-9 * np.diag(np.where(variance > 0, variance, 1.0)))


def _widened(new: _Normal, old: _Normal) -> _Normal:
    """As much further as the last round has come: far targets are reached by steps that grow."""
    moved = new.loc - old.loc
    root = np.linalg.cholesky(old.covariance)
    inner = scipy.linalg.solve_triangular(root, new.covariance, lower=True)
    inner = scipy.linalg.solve_triangular(root, inner.T, lower=True)
    values, vectors = np.linalg.eigh(0.5 * (inner + inner.T))
    grown = np.where(values > 1, np.minimum(values, LONGEST), 1.0)
    factor = root @ (vectors * np.sqrt(values * grown))
    return _Normal(new.loc, factor @ factor.T + np.outer(moved, moved))


@compiled
def _measure(problem: Problem, key: Key, draws: Draws) -> tuple[PerDraw, MomentDraws]:
    def one(pair: tuple[Key, Array]) -> tuple[Array, Array]:
        found = problem.evaluate(*pair)
        return found.log_base, found.moments

    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=250)
