"""The normaliser of ``p_eta`` from chains that walk from the solution back to the base, where no one step bridges them.

At ``base exp(-t eta . (T - target))``, t from one to zero, neighbours are so near that their draws overlap; each ratio of
normalisers is that of two means over half of the way (simple overlap sampling: Lu, Kofke & Woolf 2004, J. Comput. Chem. 25:28).
The density widens on the way, so chains that were spread over the solution stay spread.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from ._chains import ChainSettings, _Chains, _Path
from ._problem import Problem
from ._types import Draws, Key, Moments

STRIDE = 0.7
"""Of one rung, in standard deviations of its log density ratio."""

MOST_RUNGS, SETTLE = 400, 8
"""Rungs, and rounds of transitions on each before it is measured."""


class _Slack(NamedTuple):
    """Each chain's exponent is ``-t mean - t^2 correction``; see `_chains` for the correction, zero without noise."""

    mean: Float[np.ndarray, " N"]
    correction: Float[np.ndarray, " N"]

    def exponent(self, t: float) -> Float[np.ndarray, " N"]:
        return -t * self.mean - t**2 * self.correction


def descend(
    problem: Problem, settings: ChainSettings, draws: Draws, eta: Float[np.ndarray, " M"], key: Key
) -> tuple[float, float]:
    """``log Z`` of ``base exp(-eta . (T - target))``, a proper prior, and its standard error, nats.

    The error is that of the measured means; what chains lag behind a rung is not in it.

    Args:
        problem: The question.
        settings: How chains move.
        draws: One of ``p_eta`` by every chain, in unconstrained coordinates.
        eta: Multipliers.
        key: Random key.
    """
    full = jnp.asarray(eta, float)
    keys = jax.random.split(key, len(draws))
    zeros = jnp.zeros(len(draws), draws.dtype)
    size = len(eta)
    chains = _Chains(
        position=draws,
        log_weight=zeros,
        noise=keys,
        step_size=jnp.full((), 0.2, draws.dtype),
        eta=full,
        reference=jnp.zeros((), draws.dtype),
        covariance=jnp.eye(size, dtype=full.dtype),
        log_normalizer=jnp.zeros((), draws.dtype),
    )
    t, log_ratio, variance = 1.0, 0.0, 0.0
    chains, here = _rung(problem, settings, chains, jax.random.fold_in(key, 1), full, 1.0)
    for number in range(MOST_RUNGS):
        spread = float(np.std(here.mean + 2 * t * here.correction))
        below = max(t - STRIDE / max(spread, 1e-12), 0.0)
        if below == 0.0:
            there = _slack(problem, settings, _prior(problem, jax.random.fold_in(key, 0), len(draws)), keys, full)
        else:
            chains, there = _rung(problem, settings, chains, jax.random.fold_in(key, 2 + number), full, below)
        step, error = _half_way(here, there, t, below)
        log_ratio, variance = log_ratio + step, variance + error
        if below == 0.0:
            return float(-log_ratio), math.sqrt(variance)
        t, here = below, there
    return math.nan, math.inf


def _half_way(here: _Slack, there: _Slack, t: float, below: float) -> tuple[float, float]:
    """``log Z(below) - log Z(t)`` and its variance."""
    middle = (t + below) / 2
    value, variance = 0.0, 0.0
    for sign, slack, own in ((1.0, here, t), (-1.0, there, below)):
        change = slack.exponent(middle) - slack.exponent(own)
        usable = np.isfinite(change)
        weight = np.exp(change[usable] - change[usable].max())
        # Where the model fails there is no mass: such draws count, with no weight.
        value += sign * (scipy.special.logsumexp(change[usable]) - math.log(len(change)))
        variance += np.var(weight) / np.mean(weight) ** 2 / len(weight)
    return value, variance


def _rung(
    problem: Problem, settings: ChainSettings, chains: _Chains, key: Key, eta: Moments, t: float
) -> tuple[_Chains, _Slack]:
    chains, mean, correction = _settle(problem, settings, chains, key, eta, jnp.asarray(t, eta.dtype))
    return chains, _Slack(np.asarray(mean, float), np.asarray(correction, float))


@eqx.filter_jit
def _settle(
    problem: Problem, settings: ChainSettings, chains: _Chains, key: Key, eta: Moments, t: Array
) -> tuple[_Chains, Array, Array]:
    path = _Path(problem, settings)
    chains = chains._replace(eta=t * eta)

    def again(chains: _Chains, key: Key) -> tuple[_Chains, None]:
        return path.move(chains, key)[0], None

    chains, _ = jax.lax.scan(again, chains, jax.random.split(key, SETTLE))
    return chains, *_measured(path, chains, eta)


@eqx.filter_jit
def _slack_of(problem: Problem, settings: ChainSettings, chains: _Chains, eta: Moments) -> tuple[Array, Array]:
    return _measured(_Path(problem, settings), chains, eta)


def _slack(problem: Problem, settings: ChainSettings, draws: Draws, noise: Key, eta: Moments) -> _Slack:
    zeros, nothing = jnp.zeros(len(draws), draws.dtype), jnp.zeros((), draws.dtype)
    chains = _Chains(draws, zeros, noise, nothing, eta, nothing, jnp.eye(len(eta), dtype=eta.dtype), nothing)
    return _Slack(*(np.asarray(part, float) for part in _slack_of(problem, settings, chains, eta)))


def _measured(path: _Path, chains: _Chains, eta: Moments) -> tuple[Array, Array]:
    simulations = path.measure(chains).simulations
    slack = (simulations - jnp.asarray(path.problem.target, simulations.dtype)) @ eta
    count = slack.shape[1]
    correction = 0.5 * jnp.var(slack, axis=1, ddof=1) / count if count > 1 else jnp.zeros(len(slack), slack.dtype)
    return jnp.mean(slack, axis=1), correction


@eqx.filter_jit
def _prior(problem: Problem, key: Key, count: int) -> Draws:
    return jax.vmap(problem.simulator.sample_prior)(jax.random.split(key, count))
