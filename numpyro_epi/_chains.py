"""Weighted chains on ``p_eta``: multipliers and draws of the solution, without a flow.

The solution is ``p_eta(u)``, proportional to ``base(u) exp(-eta . T(u))``. Many Hamiltonian Monte Carlo chains follow it
while ``eta`` moves by the natural rule towards targets that are annealed from the chains' first moments. Every move of
``eta`` changes the weights of the chains' positions (annealed importance sampling, Neal 2001; sequential Monte Carlo
samplers, Del Moral et al. 2006), so a chain that is stranded far from the mass dies, and separate modes keep their shares.
A first population finds the path; a second one, which had no part in choosing it, walks it again, so that its weights
estimate the normaliser without bias. Then rounds at fixed ``eta`` give Newton steps of the dual, whose ends are averaged.

Chains begin at a *reference*: the prior where it is proper, a wide normal of the unconstrained parameters elsewhere. Where it
is not the base itself, it fades out while the targets are annealed. How they move, and what noise does to them, is in `_path`.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from ._chain_settings import ChainSettings
from ._journal import remembered
from ._path import Chains, Newton, Path, Record, group_means, resample, wanted_spreads
from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, Moments

FAR = 0.03
"""Length of a Newton step beyond its noise, in standard deviations, up to which its end may enter the average."""

LOST, MOST_LOST = 5.0, 3
"""A Newton step of so many standard deviations, and so many of them in turn that get no shorter, after which chains do not find
back: they have left for where the property is not."""

NUM_ATTEMPTS = 3
"""Most walks of the path."""

WITHIN = 4.0
"""Standard deviations of a target's, around its mean, within which chains stay that once left: six in a hundred thousand of a
normal are beyond. What widens a statistic that many parameters hold closely also draws mass to the bounds, with a gap between if
they are far: two of a hundred chains at six, for 250 units of a network."""

SMALL = 0.3
"""Largest multiplier, times its statistic's standard deviation, below which precision is not relative any more."""

NUM_POPULATIONS, SCOUT_MOVES = 3, 2
"""Populations that walk the path: one finds it, one estimates the normaliser, and one only looks for modes that these lost."""

PER_CHAIN = ("position", "log_weight", "noise")
"""Fields of `Chains` with an entry for every chain."""

VIOLATION_ERROR = 0.02
"""Standard error of a mean moment, in standard deviations, up to which rounds go on: its 95 % interval then lies within the
default tolerance of a verdict."""


class Solved(NamedTuple):
    """What the chains found.

    Attributes:
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        error: Covariance of ``eta``'s Monte Carlo error, from the spread between groups of chains, shape [M, M].
        violation_error: What that error makes of the violations: standard errors of ``E[T]`` under ``p_eta``, shape [M].
        converged: Whether the last step of the multipliers was within its noise.
        precise: Whether the errors of ``eta`` and of the means are as small as the settings ask for.
        draws: Equally weighted draws of ``p_eta`` in unconstrained coordinates, shape [chains, draws, D].
        moments: ``T`` of those draws, measured with fresh noise, shape [chains, draws, M].
        log_normalizer: ``D(eta) = log of the integral of base exp(-eta . (T - target))``, nats: the dual's value.
        acceptance: Mean Metropolis acceptance of the last round.
        within: See `ChainSettings`.
        num_rounds: Rounds at fixed multipliers.
        num_simulations: Model runs used, gradients included.
        independent: Draws of ``p_eta`` by a population that walked the path on its own and had no part in the rest, shape
            [chains, D].
        chains: As the last round left them.
    """

    eta: Float[np.ndarray, " M"]
    error: Float[np.ndarray, "M M"]
    violation_error: Float[np.ndarray, " M"]
    converged: bool
    precise: bool
    draws: Float[Array, "chains draws D"]
    moments: Float[Array, "chains draws M"]
    log_normalizer: float
    acceptance: float
    within: float | None
    num_rounds: int
    num_simulations: int
    independent: Float[Array, "chains D"]
    chains: Chains

    def settled(self, target: Float[np.ndarray, " M"], tolerance: float) -> bool:
        """Whether every mean of the draws' moments is within ``tolerance`` standard deviations of its target."""
        moments = np.asarray(self.moments, float).reshape(-1, len(target))
        spread = np.maximum(moments.std(axis=0), np.finfo(np.float32).tiny)
        finite = np.all(np.isfinite(moments)) and np.all(np.isfinite(self.eta))
        return bool(finite and np.all(np.abs(moments.mean(axis=0) - target) <= tolerance * spread))


def solve(problem: Problem, key: Key, settings: ChainSettings) -> Solved:
    """Follow the path from the reference to the solution, then measure there until the multipliers are precise.

    A path that ends in numbers that are not finite, or in multipliers that are the same by every chain, led through densities
    without a normaliser: it is walked again with steps half as long. If chains got lost, which can mean that ``p_eta`` has
    more mass far away, they are held near the property.
    """
    spent = 0
    for attempt in range(NUM_ATTEMPTS):
        found, is_lost = _solve(problem, jax.random.fold_in(key, attempt) if attempt else key, settings)
        spent += found.num_simulations
        is_finite = bool(np.isfinite(found.log_normalizer) and _differ(found))
        if is_finite and (not is_lost or settings.within is not None or not any(wanted_spreads(problem))):
            break
        settings = replace(settings, within=WITHIN) if is_finite else _slower(settings)
    return found._replace(num_simulations=spent, converged=found.converged and is_finite)


def _differ(found: Solved) -> bool:
    """Whether the multipliers are finite and differ between the chains by more than rounding."""
    rounding = np.finfo(found.draws.dtype).eps * np.abs(found.eta)
    return bool(np.all(np.isfinite(found.eta)) and np.any(np.sqrt(np.diagonal(found.error)) > rounding))


def _slower(settings: ChainSettings) -> ChainSettings:
    """With shorter steps of multipliers that the rule finds by itself."""
    reference = settings.reference
    if reference is not None:
        reference = reference._replace(eta=())
    return replace(settings, rate=settings.rate / 2, reference=reference)


def _solve(problem: Problem, key: Key, settings: ChainSettings) -> tuple[Solved, bool]:
    """What was found, and whether the chains got lost."""
    walk_key, round_key = jax.random.split(key)
    *populations, scout = _walk(problem, settings, walk_key)
    last = populations[-1]
    pooled = {n: jnp.concatenate([getattr(each, n) for each in populations]) for n in PER_CHAIN}
    chains = last._replace(**pooled)
    kept: list[Newton] = []
    num_lost, last_length = 0, math.inf
    scale = np.ones(len(problem.target))
    for number in range(settings.max_rounds):
        key_now = jax.random.fold_in(round_key, number)
        chains, record, newton = remembered(_round, problem, settings, chains, key_now)
        newton = jax.tree.map(lambda x: np.asarray(x, float), newton)
        # The dual's Newton model of a far step is poor: start the average again.
        far = newton.length > FAR + 2 * newton.noise
        kept = [newton] if far else [*kept, newton]
        ends, error = _averaged(kept)
        scale = np.asarray(newton.scale)
        size = np.max(np.abs(ends.mean(axis=0) * scale))
        # Where no statistic pushes, a share of the largest multiplier would be no measure at all.
        precise = np.max(np.sqrt(np.diagonal(error)) * scale) <= settings.precision * max(size, SMALL)
        moments = np.asarray(record.moments, float).reshape(-1, len(scale))
        covariance = np.atleast_2d(np.cov(moments.T))
        # Rounding can leave a zero below zero.
        violation_error = np.sqrt(np.maximum(np.diagonal(covariance @ error @ covariance), 0.0))
        precise = precise and np.all(violation_error <= VIOLATION_ERROR * scale)
        # A step is one standard deviation long at most: chains that come nearer by it are on their way.
        num_lost = num_lost + 1 if LOST < newton.length and last_length - 0.5 < newton.length else 0
        last_length = float(newton.length)
        if not np.all(np.isfinite(ends)) or (precise and not far) or num_lost == MOST_LOST:
            break
    eta = ends.mean(axis=0)
    independent = remembered(_arrive, problem, settings, scout, jnp.asarray(eta, scout.eta.dtype), round_key)
    found = Solved(
        eta=eta,
        error=error,
        violation_error=violation_error,
        converged=bool(np.all(np.isfinite(ends)) and not far),
        precise=bool(precise),
        draws=jnp.swapaxes(record.draws, 0, 1),
        moments=jnp.swapaxes(record.moments, 0, 1),
        log_normalizer=_log_normalizer(problem, chains, record, eta),
        acceptance=float(jnp.mean(record.acceptance)),
        within=settings.within,
        num_rounds=number + 1,
        independent=independent,
        num_simulations=cost(problem, settings, settings.num_updates + (number + 1) * settings.num_draws)
        + cost(problem, settings, settings.num_updates + SCOUT_MOVES) // 2,
        chains=chains,
    )
    return found, num_lost == MOST_LOST


def cost(problem: Problem, settings: ChainSettings, num_moves: int) -> int:
    """Model runs of so many moves of both populations."""
    per_evaluation = settings.num_simulations if problem.simulator.noise else 1
    return 2 * settings.num_chains * num_moves * settings.num_evaluations(problem) * per_evaluation


def _averaged(rounds: list[Newton]) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "M M"]]:
    """Ends of the rounds' steps by chain, and the covariance of their mean: groups are independent, rounds are not."""
    ends = np.mean([found.ends for found in rounds], axis=0)
    return ends, covariance_of_mean(ends)


def covariance_of_mean(by_chain: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "M M"]:
    """Covariance of the mean over all chains, from the spread between their groups."""
    means = group_means(by_chain)
    return np.atleast_2d(np.cov(means.T)) / len(means)


def _log_normalizer(problem: Problem, chains: Chains, record: Record, eta: Float[np.ndarray, " M"]) -> float:
    """From the chains' multipliers to the average of the rounds, a small step."""
    violations = np.asarray(record.moments, float).reshape(-1, len(eta)) - problem.target
    step = eta - np.asarray(chains.eta, float)
    change = scipy.special.logsumexp(-violations @ step) - np.log(len(violations))
    return float(chains.log_normalizer + change)


def _walk(problem: Problem, settings: ChainSettings, key: Key) -> list[Chains]:
    """Populations at the end of the path: the first one finds it, the others walk it again with chains of their own."""
    keys = jax.random.split(key, NUM_POPULATIONS)
    plan = jnp.asarray(Path(problem, settings).plan(), float)
    etas, first = remembered(_population, problem, settings, keys[0], plan)
    again = [remembered(_population, problem, settings, k, etas)[1] for k in keys[1:]]
    return [first, *again]


@compiled
def _population(
    problem: Problem, settings: ChainSettings, key: Key, plan: Float[Array, "updates M"]
) -> tuple[Float[Array, "updates M"], Chains]:
    """One population from the reference to the solution, along planned multipliers or, where these are not numbers, its own."""
    path = Path(problem, settings)
    start_key, path_key, late_key = jax.random.split(key, 3)
    chains, first = path.start(start_key)

    def update(chains: Chains, step: tuple[Array, Moments, Key]) -> tuple[Chains, Moments]:
        number, eta, key = step
        chains = path.update(chains, number, key, first, eta)
        return chains, chains.eta

    keys = jax.random.split(path_key, settings.num_updates)
    chains, found = jax.lax.scan(update, chains, (jnp.arange(settings.num_updates), plan, keys))
    late = jnp.mean(found[-(settings.num_updates // 5) :], axis=0)
    chains = path.reweigh(chains, path.measure(chains), late, jnp.zeros_like(chains.reference))
    return found, resample(chains, late_key)


@compiled
def _arrive(problem: Problem, settings: ChainSettings, chains: Chains, eta: Moments, key: Key) -> Draws:
    """Draws at the solution's multipliers, by chains that stand a little before them."""
    path = Path(problem, settings)
    resample_key, *move_keys = jax.random.split(key, 1 + SCOUT_MOVES)
    chains = path.reweigh(chains, path.measure(chains), eta, chains.reference)
    chains = resample(chains, resample_key)
    return jax.lax.scan(lambda c, k: (path.move(c, k)[0], None), chains, jnp.stack(move_keys))[0].position


def _round(problem: Problem, settings: ChainSettings, chains: Chains, key: Key) -> tuple[Chains, Record, Newton]:
    """Run at fixed multipliers, then step to where the dual's Newton model has its minimum."""
    move_key, resample_key = jax.random.split(key)
    chains, record = sample(problem, settings, chains, move_key)
    chains, newton = _step(problem, settings, chains, record, resample_key)
    return chains, record, newton


@compiled
def sample(problem: Problem, settings: ChainSettings, chains: Chains, key: Key) -> tuple[Chains, Record]:
    """Run at fixed multipliers."""
    return Path(problem, settings).sample(chains, key)


@compiled
def _step(problem: Problem, settings: ChainSettings, chains: Chains, record: Record, key: Key) -> tuple[Chains, Newton]:
    path = Path(problem, settings)
    newton, step = path.newton(chains, record)
    chains = path.adapt(chains, jnp.mean(record.acceptance))
    chains = path.reweigh(chains, path.measure(chains), chains.eta + step, chains.reference)
    return resample(chains, key), newton


@compiled
def move_to(problem: Problem, settings: ChainSettings, chains: Chains, key: Key, eta: Moments) -> Chains:
    """Weigh the chains for these multipliers and resample them."""
    path = Path(problem, settings)
    return resample(path.reweigh(chains, path.measure(chains), eta, chains.reference), key)
