"""The normaliser of ``p_eta`` from chains that walk from the solution back to the base, where no one step bridges them.

Neighbours on the way are so near that their draws overlap; each ratio of normalisers is that of two means over half of the
step (simple overlap sampling: Lu, Kofke & Woolf 2004, J. Comput. Chem. 25:28). The density widens on the way, so chains that
were spread over the solution stay spread. Negative multipliers of second moments go to zero first: they draw the far
ends of a statistic up, and with the others already small the chains would fall from where the property is to there.
"""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Bool, Float

from ._chain_settings import ChainSettings
from ._chains import WITHIN
from ._noise import correction
from ._path import Chains, Path, first_collective_steps
from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, Moments
from ._work import MAX_EXPONENT_NOISE

STRIDE = 0.7
"""Of one rung, in standard deviations of its log density ratio."""

MOST_RUNGS, SETTLE = 400, 8
"""Rungs, and rounds of transitions on each before it is measured."""


NUM_PRIOR_DRAWS, ELSEWHERE = 1024, 0.1
"""Draws that look for mass elsewhere, and the share of the known mass that they have to find."""


class _Rung(NamedTuple):
    """Each chain's ``T - target``, a mean of simulations, what their noise leaves in its variance, and each one's own noise."""

    slack: Float[np.ndarray, "N M"]
    noise: Float[np.ndarray, "N M M"]
    deviations: Float[np.ndarray, "N S M"]

    def exponent(self, eta: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
        """Of ``p_eta`` over the base, as the chains see it."""
        return -self.slack @ eta - correction(self.deviations @ eta)

    def slope(self, eta: Float[np.ndarray, " M"], along: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
        """How fast the exponent falls if ``eta`` moves along, to the first order in the noise's variance."""
        return self.slack @ along + (self.noise @ eta) @ along

    def exponent_noise(self, eta: Float[np.ndarray, " M"]) -> float:
        """Variance of ``eta . T`` that is noise of the simulations, averaged over the chains, nats^2."""
        return float(np.nanmean((self.noise @ eta) @ eta))


def descend(
    problem: Problem, settings: ChainSettings, draws: Draws, eta: Float[np.ndarray, " M"], key: Key
) -> tuple[float, float]:
    """``log Z`` of ``base exp(-eta . (T - target))``, a proper prior, and its standard error, nats.

    The error is that of the measured means; what chains lag behind a rung is not in it. Where ``p_eta`` has mass elsewhere, to
    which chains do not get, ``log Z`` is that of the region that they are in.

    Args:
        problem: The question.
        settings: How chains move.
        draws: One of ``p_eta`` by every chain, in unconstrained coordinates.
        eta: Multipliers.
        key: Random key.
    """
    rung_key, prior_key, noise_key = jax.random.split(key, 3)
    corners = _corners(problem, np.asarray(eta, float))
    chains = _begin(problem, draws, jax.random.split(noise_key, len(draws)), corners[0])
    if len(corners) > 2:
        # One chain that left for the far ends would outweigh all others there.
        settings = replace(settings, within=settings.within or WITHIN)
        chains = _kept(chains, np.flatnonzero(_are_within(problem, settings, chains)))
    chains, here = _rung(problem, settings, chains, jax.random.fold_in(rung_key, 0), corners[0])
    log_ratio, variance, number = 0.0, 0.0, 0
    used, most = settings, min(here.exponent_noise(corners[0]), MAX_EXPONENT_NOISE)
    for first, last in itertools.pairwise(corners):
        along, t = first - last, 1.0
        if not np.any(last):
            # Now the density falls towards the far ends: what was out of bounds there has no mass.
            settings = replace(settings, within=None)
        while t > 0.0:
            number += 1
            if number > MOST_RUNGS:
                return math.nan, math.inf
            now = last + t * along
            t = max(t - STRIDE / max(float(np.std(here.slope(now, along))), 1e-12), 0.0)
            below = last + t * along
            if problem.simulator.noise:
                with_all = here.exponent_noise(below) * used.num_simulations / settings.num_simulations
                used = _lighter(settings, most / max(with_all, 1e-12))
            else:
                used = settings
            if np.any(below):
                chains, there = _rung(problem, used, chains, jax.random.fold_in(rung_key, number), below)
            else:
                there = _measured(problem, used, _at_base(problem, prior_key, chains))
            step, error = _half_way(here, there, now, below)
            log_ratio, variance, here = log_ratio + step, variance + error, there
    return float(-log_ratio), math.sqrt(variance)


def _lighter(settings: ChainSettings, spare: float) -> ChainSettings:
    """Half as many simulations, as often as their noise may double: ``eta . T`` has the less of it, the smaller ``eta``.

    Args:
        settings: With all simulations.
        spare: How much more noise ``eta . T`` may have than with these.
    """
    each, count = (2 if settings.mirrored else 1), settings.num_simulations
    while (fewer := each * math.ceil(count / (2 * each))) >= 2 * each and fewer < count:
        if settings.num_simulations > spare * fewer:
            break
        count = fewer
    return replace(settings, num_simulations=count)


def has_mass_elsewhere(
    problem: Problem,
    settings: ChainSettings,
    eta: Float[np.ndarray, " M"],
    moments: Float[np.ndarray, "N M"],
    log_normalizer: float,
    key: Key,
) -> bool:
    """Whether draws of the base, a proper prior, show mass of ``p_eta`` that is far from where its chains are.

    Far is where some moment is beyond the range of the chains' by as much again. Where chains hold all but a thousandth of the
    mass, chance shows a tenth elsewhere once in a hundred times at most, by Markov's inequality.

    Args:
        problem: The question.
        settings: How many simulations are averaged.
        eta: Multipliers.
        moments: Of the chains' draws.
        log_normalizer: Of ``p_eta``, with or without what is elsewhere, nats.
        key: Random key.
    """
    nowhere = jnp.zeros((NUM_PRIOR_DRAWS, problem.dim))
    chains = _at_base(problem, key, _begin(problem, nowhere, jax.random.split(key, NUM_PRIOR_DRAWS), eta))
    measured = _measured(problem, replace(settings, within=None), chains)
    exponent = measured.exponent(np.asarray(eta, float))
    low, high = moments.min(axis=0), moments.max(axis=0)
    found = measured.slack + problem.target
    far = np.any((found < 2 * low - high) | (found > 2 * high - low), axis=1) & np.isfinite(exponent)
    if not np.any(far):
        return False
    log_mass = scipy.special.logsumexp(exponent[far]) - math.log(NUM_PRIOR_DRAWS)
    return bool(log_mass > log_normalizer + math.log(ELSEWHERE))


def _kept(chains: Chains, index: np.ndarray) -> Chains:
    each = {name: getattr(chains, name)[index] for name in ("position", "log_weight", "noise")}
    return chains._replace(**each)


def _corners(problem: Problem, eta: Float[np.ndarray, " M"]) -> list[Float[np.ndarray, " M"]]:
    """Where the way turns."""
    second = np.array([constraint.order == 2 for constraint in problem.constraints])
    without = np.where(second & (eta < 0), 0.0, eta)
    corners = [eta, without, np.zeros_like(eta)]
    return [corner for i, corner in enumerate(corners) if i == 0 or np.any(corner != corners[i - 1])]


def _half_way(
    here: _Rung, there: _Rung, own: Float[np.ndarray, " M"], below: Float[np.ndarray, " M"]
) -> tuple[float, float]:
    """``log Z(below) - log Z(own)`` and its variance."""
    middle = (own + below) / 2
    value, variance = 0.0, 0.0
    for sign, measured, eta in ((1.0, here, own), (-1.0, there, below)):
        change = measured.exponent(middle) - measured.exponent(eta)
        usable = np.isfinite(change)
        weight = np.exp(change[usable] - change[usable].max())
        # Where the model fails there is no mass: such draws count, with no weight.
        value += sign * (scipy.special.logsumexp(change[usable]) - math.log(len(change)))
        variance += np.var(weight) / np.mean(weight) ** 2 / len(weight)
    return value, variance


def _begin(problem: Problem, draws: Draws, noise: Key, eta: Float[np.ndarray, " M"]) -> Chains:
    return Chains(
        position=draws,
        log_weight=jnp.zeros(len(draws), draws.dtype),
        noise=noise,
        step_size=jnp.full((), 0.2, draws.dtype),
        collective_steps=first_collective_steps(problem).astype(draws.dtype),
        eta=jnp.asarray(eta, draws.dtype),
        reference=jnp.zeros((), draws.dtype),
        covariance=jnp.eye(len(eta), dtype=draws.dtype),
        log_normalizer=jnp.zeros((), draws.dtype),
    )


def _rung(
    problem: Problem, settings: ChainSettings, chains: Chains, key: Key, eta: Float[np.ndarray, " M"]
) -> tuple[Chains, _Rung]:
    chains = _settle(problem, settings, chains, key, jnp.asarray(eta, chains.position.dtype))
    return chains, _measured(problem, settings, chains)


@compiled
def _settle(problem: Problem, settings: ChainSettings, chains: Chains, key: Key, eta: Moments) -> Chains:
    path = Path(problem, settings)

    def again(chains: Chains, key: Key) -> tuple[Chains, None]:
        return path.move(chains, key)[0], None

    return jax.lax.scan(again, chains._replace(eta=eta), jax.random.split(key, SETTLE))[0]


def _measured(problem: Problem, settings: ChainSettings, chains: Chains) -> _Rung:
    simulations = np.asarray(_simulations(problem, settings, chains), float)
    count = simulations.shape[1]
    mean = simulations.mean(axis=1)
    deviations = simulations - mean[:, None]
    noise = np.einsum("nsi,nsj->nij", deviations, deviations) / (count * max(count - 1, 1))
    return _Rung(mean - problem.target, noise, deviations)


@compiled
def _simulations(problem: Problem, settings: ChainSettings, chains: Chains) -> Float[Array, "N S M"]:
    return Path(problem, settings).measure(chains).simulations


@compiled
def _are_within(problem: Problem, settings: ChainSettings, chains: Chains) -> Bool[Array, " N"]:
    path = Path(problem, settings)
    return jax.vmap(path.is_within)(path.measure(chains))


@compiled
def _at_base(problem: Problem, key: Key, chains: Chains) -> Chains:
    """Draws of the prior in the chains' place, with noise of their own: the chains' leans towards what they follow."""
    draw_keys, noise_keys = (jax.random.split(part, len(chains.log_weight)) for part in jax.random.split(key))
    return chains._replace(position=jax.vmap(problem.simulator.sample_prior)(draw_keys), noise=noise_keys)
