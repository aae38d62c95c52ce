"""The dual solved by importance weights: draws of the prior, or of adaptive proposals, tilted to the targets."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._certificate import MIN_ESS
from ._outcome import STATUS, Verdict
from ._pilot import approach
from ._problem import Problem
from ._products import compiled
from ._reference import begins_at_base
from ._types import Draws, Key, PerDraw
from ._weighed import weigh_draws
from ._weights import Tilt, pareto_khat, tilt

REWEIGHT_DRAWS, NOISY_REWEIGHT_DRAWS, REWEIGHT_SIMULATIONS = 200_000, 20_000, 16
"""Number of prior draws of ``method="reweight"``; the same for a model with noise, and the number of simulations of each."""

ADAPTIVE_DRAWS, NUM_NEAR, NEAR = 4000, 500, 3.0
ADAPTIVE = {"batch": 2000, "max_simulations": 500_000}
"""Effective sample size of ``method="adaptive"``; number of its pilot draws, and their tolerance in standard deviations."""


class Weights(NamedTuple):
    """Independent draws with importance weights towards the solution.

    Attributes:
        draws: In unconstrained coordinates, shape [N, D].
        moments: ``T`` at the draws, shape [N, M].
        noise: Covariance of each draw's moments as means of simulations, shape [N, M, M]; none for a model without noise.
        tilt: Multipliers and log weights.
        log_normalizer: ``log Z``, nats.
        num_drawn: Number of draws with those of weight zero, which are left out above; none if that is not known.
        num_simulations: Model runs used.
    """

    draws: Draws
    moments: Float[np.ndarray, "N M"]
    noise: Float[np.ndarray, "N M M"] | None
    tilt: Tilt
    log_normalizer: float
    num_drawn: int | None
    num_simulations: int


def by_prior(problem: Problem, key: Key) -> Weights:
    """Weight draws of the prior.

    Raises:
        ValueError: If the base is no proper prior, or no simulation is finite.
    """
    if not begins_at_base(problem):
        raise ValueError(
            "Expected a proper prior as the base, whose draws can be weighed; this problem has none. Use method='chains'."
        )
    noisy = bool(problem.simulator.noise)
    count = NOISY_REWEIGHT_DRAWS if noisy else REWEIGHT_DRAWS
    draws, found, log_base = _prior_simulations(problem, key, count, REWEIGHT_SIMULATIONS if noisy else 1)
    simulations = np.asarray(found, float)
    # A draw that single precision rounds to the edge of its support has no unconstrained coordinates: it is no draw at all.
    inside = np.isfinite(draws).all(axis=1)
    usable = inside & np.isfinite(log_base) & np.isfinite(simulations).all(axis=(1, 2))
    draws, simulations = draws[np.flatnonzero(usable)], simulations[usable]
    if not len(draws):
        raise ValueError("Expected finite simulations; got none among the prior's draws. See problem.check(key).")
    flat: np.ndarray = simulations.mean(axis=1)
    noise = None
    if noisy:
        deviations = simulations - flat[:, None]
        noise = np.einsum("nsi,nsj->nij", deviations, deviations) / (simulations.shape[1] * (simulations.shape[1] - 1))
    tilted = tilt(np.zeros(len(flat)), flat, problem.target, noise=noise)
    num_drawn = int(inside.sum())
    log_normalizer = tilted.log_normalizer + float(np.log(len(flat) / num_drawn))
    return Weights(draws, flat, noise, tilted, log_normalizer, num_drawn, count * simulations.shape[1])


def by_proposals(problem: Problem, key: Key) -> Weights:
    """Weight draws of proposals that adapt to the solution.

    Raises:
        ValueError: If the prior is improper, or hardly any draw comes near the property.
    """
    if not problem.simulator.has_proper_prior:
        raise ValueError("Expected a proper prior, to draw from; this one is improper. Use method='chains'.")
    near_key, weigh_key = jax.random.split(key)
    near = approach(problem, near_key, num_draws=NUM_NEAR, spreads=NEAR, **ADAPTIVE)
    weighed = weigh_draws(problem, weigh_key, near, num_draws=ADAPTIVE_DRAWS, **ADAPTIVE)
    num_simulations = near.num_simulations + weighed.num_simulations
    if len(weighed.draws) <= problem.dim:
        raise ValueError(
            f"Expected draws near the property; got {len(weighed.draws)} of {num_simulations} simulations. "
            "See problem.check(key)."
        )
    found = Tilt(weighed.eta, weighed.log_weight, weighed.log_normalizer, weighed.reached)
    noise = weighed.noise if problem.simulator.noise else None
    draws = jnp.asarray(weighed.draws, float)
    return Weights(draws, weighed.moments, noise, found, weighed.log_normalizer, None, num_simulations)


def judge_weights(problem: Problem, found: Weights) -> dict[str, Any]:
    """Fields of a `DualSolution` from independent weighted draws; errors follow by the delta method."""
    eta, log_weight = found.tilt.eta, found.tilt.log_weight
    weight = np.exp(log_weight)
    ess = float(1.0 / np.sum(weight**2))
    slopes = found.moments - problem.target
    if found.noise is not None:
        slopes = slopes + found.noise @ eta
    centred = slopes * weight[:, None]
    covariance = centred.T @ slopes
    if found.noise is not None:
        covariance = covariance - np.einsum("n,nij->ij", weight, found.noise)
    inverse = np.linalg.pinv(covariance, hermitian=True)
    log_base = np.asarray(log_base_density(problem, found.draws), float)
    base_mean = float(weight @ log_base)
    # At the minimum of the dual eta's own error does not move log Z; it moves the mean of log_base along the moments.
    residual = log_base - base_mean - slopes @ (inverse @ (centred.T @ log_base))
    unweighted = 0.0 if found.num_drawn is None else 1.0 / found.num_drawn
    mean = weight @ slopes + problem.target
    base_entropy = found.log_normalizer + float(eta @ (mean - problem.target))
    verdict = Verdict(
        mean=mean,
        scale=np.sqrt(np.maximum(weight @ np.square(slopes + problem.target - mean), 0.0)),
        standard_error=np.sqrt(np.sum(np.square(centred), axis=0)),
        # H = H_b - E[log b], both in the constrained parameters' measure.
        entropy=base_entropy - base_mean,
        entropy_standard_error=float(np.sqrt(max(np.sum(np.square(weight * (1 - residual))) - unweighted, 0.0))),
        base_entropy=base_entropy,
        finite_share=1.0,
        num_draws=len(weight),
    )
    return {
        "verdict": verdict,
        "status": STATUS.satisfied if found.tilt.reached and ess >= MIN_ESS else STATUS.unsatisfied,
        "eta": eta,
        "standard_error": np.sqrt(np.diagonal(inverse @ (centred.T @ centred) @ inverse)),
        "precise": True,
        "unconstrained": found.draws[None],
        "moments": (slopes + problem.target)[None],
        "log_weight": log_weight[None],
        "log_normalizer": float(found.log_normalizer),
        "log_normalizer_error": float(np.sqrt(max(1.0 / ess - unweighted, 0.0))),
        "local": False,
        "ess": ess,
        "rhat": np.nan,
        "khat": pareto_khat(weight),
        "num_simulations": found.num_simulations,
    }


@compiled
def _prior_simulations(problem: Problem, key: Key, count: int, simulations: int) -> tuple[Draws, Array, PerDraw]:
    def one(key: Key) -> tuple[Array, Array, Array]:
        prior_key, noise_key = jax.random.split(key)
        u = problem.simulator.sample_prior(prior_key)
        found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(noise_key, simulations), u)
        return u, found.moments, found.log_base[0]

    return jax.lax.map(one, jax.random.split(key, count), batch_size=1000)


@compiled
def log_base_density(problem: Problem, draws: Draws) -> PerDraw:
    """Log density of the base in the constrained parameters' measure."""

    def one(u: Array) -> Array:
        found = problem.evaluate(jax.random.key(0), u)
        return found.log_base - found.log_det

    return jax.vmap(one)(draws)
