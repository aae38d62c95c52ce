"""The dual solved by chains: a run at the final multipliers judges the means, and a bridge gives the normaliser."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution, MultivariateNormal, VmapMixture
from jaxtyping import Array, Float
from scipy.cluster.vq import kmeans2

from ._certificate import MAX_KHAT, MIN_ESS, MIN_OVERLAP, assess
from ._chain_settings import ChainSettings
from ._chains import Solved, cost, covariance_of_mean, move_to, sample
from ._dual_weights import log_base_density
from ._ladder import descend, has_mass_elsewhere
from ._outcome import STATUS, Verdict
from ._path import Record
from ._problem import Problem
from ._reference import begins_at_base
from ._types import Draws, Key
from ._weights import tilt

MAX_RHAT, MIN_CHAINS_ESS = 1.4, 400.0
"""Largest rank-normalised split R-hat and least effective sample size (ESS) of a moment over chains that are called mixed.

Vehtari et al. 2021 (Bayesian Analysis 16:667) ask for R-hat < 1.01 of four chains and ESS > 400, which is one condition:
``R-hat^2 - 1`` is the number of half chains over the ESS (Vats & Knudson 2021, Statistical Science 36:518), 8 / 400 there. Of
hundreds of short chains the same R-hat would ask for an ESS of tens of thousands (Margossian et al. 2024, Bayesian Analysis).
What is asked for here: the same ESS; standard errors of the means within the tolerance, from the spread between groups of
chains; and R-hat up to the square root of two, where half a chain has one effective draw. Beyond it chains stay where the path
left them, so that groups can share errors that their spread does not show."""

MOST_RUNS = 4
"""Runs at the final multipliers, which are pooled, until the means and R-hat are decided."""

BRIDGE_COMPONENTS = 12
"""Normal distributions, fitted to the draws, that bridge to the normaliser."""

MOST_BRIDGED = 60
"""Parameters beyond which normal distributions do not meet a solution that chains can walk back from."""


class _Judged(NamedTuple):
    """Draws at the final multipliers, before any tilt; means over all of their transitions, and standard errors.

    Attributes:
        draws: Shape [chains, draws, D].
        moments: Shape [chains, draws, M].
        mean: ``E[T]``, shape [M].
        standard_error: Of ``mean``, from the spread between groups of chains, shape [M].
        scale: Standard deviations of the moments, shape [M].
        ess: Least of a moment's mean.
        rhat: Largest of a moment.
        num_runs: How many times the chains were run.
    """

    draws: Float[Array, "chains draws D"]
    moments: Float[np.ndarray, "chains draws M"]
    mean: Float[np.ndarray, " M"]
    standard_error: Float[np.ndarray, " M"]
    scale: Float[np.ndarray, " M"]
    ess: float
    rhat: float
    num_runs: int

    def is_within(self, target: Float[np.ndarray, " M"], tolerance: float) -> bool:
        return bool(np.all(np.abs(self.mean - target) + 1.96 * self.standard_error <= tolerance * self.scale))


def judge_chains(
    problem: Problem, solved: Solved, settings: ChainSettings, key: Key, tolerance: float
) -> dict[str, Any]:
    """Fields of a `DualSolution` from what the chains found.

    Args:
        problem: The question.
        solved: What the chains found.
        settings: How they move.
        key: Random key.
        tolerance: How near every mean must be to its target, in standard deviations of its statistic.
    """
    run_key, bridge_key = jax.random.split(key)
    judged = _as_found(solved)
    finite = bool(np.all(np.isfinite(judged.moments)) and np.all(np.isfinite(solved.eta)))
    if finite and solved.converged:
        judged = _run_on(problem, solved, settings, run_key, tolerance)
        finite = bool(np.all(np.isfinite(judged.moments)))
    shape, flat = judged.moments.shape, judged.moments.reshape(-1, len(problem.target))
    log_weight, status = np.full(len(flat), -np.log(len(flat))), STATUS.nonfinite
    known = _Normalizer(solved.log_normalizer, np.nan, np.nan, False)
    if finite:
        status = STATUS.unsatisfied if solved.converged else STATUS.infeasible
    if status is STATUS.unsatisfied:
        # Only for what is exported: the verdict is on the draws before the tilt.
        tilted = tilt(np.zeros(len(flat)), flat, problem.target)
        if tilted.reached:
            log_weight = tilted.log_weight
            known = _normalizer(problem, solved, settings, judged, bridge_key)
            status = STATUS.satisfied if is_mixed(judged.rhat, judged.ess) else STATUS.unsatisfied
    weights_by_chain = log_weight.reshape(shape[:2])
    num_simulations = solved.num_simulations + cost(problem, settings, judged.num_runs * settings.num_draws)
    return {
        "status": status,
        "verdict": _verdict(problem, judged, weights_by_chain, known, solved.eta),
        "eta": solved.eta,
        "standard_error": np.sqrt(np.diagonal(solved.error)),
        "precise": solved.precise,
        "unconstrained": judged.draws,
        "moments": judged.moments,
        "log_weight": weights_by_chain,
        "log_normalizer": known.log_value,
        "log_normalizer_error": known.error,
        "local": known.local,
        "ess": judged.ess,
        "rhat": judged.rhat,
        "khat": known.khat,
        "num_simulations": num_simulations,
    }


def is_mixed(rhat: float, ess: float) -> bool:
    """Whether chains with this R-hat and ESS are called mixed."""
    return rhat <= MAX_RHAT and ess >= MIN_CHAINS_ESS


def _as_found(solved: Solved) -> _Judged:
    """The last round's draws, where there is nothing to run on."""
    moments = np.asarray(solved.moments, float)
    by_chain = moments.mean(axis=1)
    error = np.sqrt(np.diagonal(covariance_of_mean(by_chain)))
    flat = moments.reshape(-1, moments.shape[-1])
    return _Judged(solved.draws, moments, by_chain.mean(axis=0), error, flat.std(axis=0), *_mixing(moments), 0)


def _run_on(problem: Problem, solved: Solved, settings: ChainSettings, key: Key, tolerance: float) -> _Judged:
    """Run the chains at the final multipliers, which these draws had no part in finding, until the outcome is clear."""
    move_key, run_key = jax.random.split(key)
    eta = jnp.asarray(solved.eta, solved.chains.position.dtype)
    chains = move_to(problem, settings, solved.chains, move_key, eta)
    records: list[Record] = []
    while True:
        chains, record = sample(problem, settings, chains, jax.random.fold_in(run_key, len(records)))
        records.append(record)
        judged = _pooled(records)
        if len(records) == MOST_RUNS or (
            is_mixed(judged.rhat, judged.ess) and judged.is_within(problem.target, tolerance)
        ):
            return judged


def _pooled(records: list[Record]) -> _Judged:
    by_chain = np.mean([np.asarray(record.piece_means, float).mean(axis=0) for record in records], axis=0)
    moments = np.concatenate([np.swapaxes(np.asarray(record.moments, float), 0, 1) for record in records], axis=1)
    draws = jnp.concatenate([jnp.swapaxes(record.draws, 0, 1) for record in records], axis=1)
    return _Judged(
        draws=draws,
        moments=moments,
        mean=by_chain.mean(axis=0),
        standard_error=np.sqrt(np.diagonal(covariance_of_mean(by_chain))),
        scale=moments.reshape(-1, moments.shape[-1]).std(axis=0),
        **dict(zip(("ess", "rhat"), _mixing(moments), strict=True)),
        num_runs=len(records),
    )


def _mixing(moments: Float[np.ndarray, "chains draws M"]) -> tuple[float, float]:
    """Least ESS of a mean, and largest rank-normalised split R-hat, over the moments that vary."""
    import arviz as az

    columns = [moments[..., i] for i in range(moments.shape[-1])]
    if not np.all(np.isfinite(moments)):
        return 0.0, np.inf
    varying = [column for column in columns if np.ptp(column) > 0]
    if not varying:
        return float(moments[..., 0].size), 1.0
    ess = np.min([az.ess(column, method="mean") for column in varying])
    rhat = np.max([az.rhat(column, method="rank") for column in varying])
    return float(ess), float(rhat)


class _Normalizer(NamedTuple):
    """``log Z``, nats, its standard error, k-hat of the bridge to it, and whether it is that of a region; see `DualSolution`."""

    log_value: float
    error: float
    khat: float
    local: bool


def _normalizer(problem: Problem, solved: Solved, settings: ChainSettings, judged: _Judged, key: Key) -> _Normalizer:
    """By a bridge of normals where they meet the solution, else by the way back to a proper prior, if there is one."""
    bridge_key, back_key, look_key = jax.random.split(key, 3)
    moments = judged.moments.reshape(-1, len(problem.target))
    held = solved.within is not None
    known = _Normalizer(np.nan, np.inf, np.nan, held)
    has_prior = begins_at_base(problem)
    if problem.dim <= MOST_BRIDGED or not has_prior:
        log_value, error, khat = _bridge(problem, judged.draws.reshape(-1, problem.dim), solved.eta, bridge_key)
        known = known._replace(log_value=log_value, error=error, khat=khat)
    if not has_prior:
        return known
    is_bridged = np.isfinite(known.log_value)
    if not is_bridged:
        log_value, error = descend(problem, settings, judged.draws[:, -1], solved.eta, back_key)
        known = known._replace(log_value=log_value, error=error)
    if held or has_mass_elsewhere(problem, settings, solved.eta, moments, known.log_value, look_key):
        known = known._replace(local=True)
        if is_bridged:
            # The bridge sees mass elsewhere, which is not the chains'; the way back does not.
            log_value, error = descend(problem, settings, judged.draws[:, -1], solved.eta, back_key)
            known = known._replace(log_value=log_value, error=error)
    return known


def _bridge(problem: Problem, draws: Draws, eta: Float[np.ndarray, " M"], key: Key) -> tuple[float, float, float]:
    """``log Z``, its error and k-hat by normals that were fitted to draws of the solution; NaN where they do not meet it.

    The draws themselves take part only where the density is known exactly. With noise the density is an estimate; a bridge's
    weights, estimate over estimate plus a constant, are concave in it, and lowered ``log Z`` by half of the exponent's noise.
    """
    noisy = bool(problem.simulator.noise)
    bridged = assess(key, problem, mixture_of_normals(draws), eta, solution=None if noisy else draws)
    # Where draws of the solution are among the proposals no weight is large, and the overlap says whether they meet.
    if bridged.khat < MAX_KHAT and bridged.ess > MIN_ESS and bridged.overlap > MIN_OVERLAP:
        return bridged.upper_bound, min(bridged.overlap, bridged.ess) ** -0.5, bridged.khat
    return np.nan, np.inf, bridged.khat


def _verdict(
    problem: Problem,
    judged: _Judged,
    log_weight: Float[np.ndarray, "chains draws"],
    known: _Normalizer,
    eta: Float[np.ndarray, " M"],
) -> Verdict:
    """Means before the tilt; the entropy, and its error by the delta method, after it."""
    shape, weight = log_weight.shape, np.exp(log_weight).ravel()
    moments = judged.moments.reshape(weight.size, -1)
    log_base = np.asarray(log_base_density(problem, judged.draws.reshape(-1, problem.dim)), float)
    mean = weight @ moments
    centred = moments - mean
    base_mean = float(weight @ log_base)
    slope = np.linalg.pinv((centred * weight[:, None]).T @ centred, hermitian=True) @ ((weight * log_base) @ centred)
    residual = (log_base - base_mean - centred @ slope) * weight * weight.size
    error = covariance_of_mean(residual.reshape(shape).mean(axis=1)[:, None])[0, 0]
    base_entropy = known.log_value + float(eta @ (mean - problem.target))
    return Verdict(
        mean=judged.mean,
        scale=judged.scale,
        standard_error=judged.standard_error,
        # H = H_b - E[log b], both in the constrained parameters' measure.
        entropy=base_entropy - base_mean,
        entropy_standard_error=float(np.sqrt(error + known.error**2)),
        base_entropy=base_entropy,
        finite_share=1.0,
        num_draws=weight.size,
    )


def mixture_of_normals(draws: Draws, count: int = BRIDGE_COMPONENTS) -> AbstractDistribution:
    """Normal distributions of clusters of the draws, twice as wide in variance so that their tails cover the draws'."""
    points = np.asarray(draws, float)
    dim = points.shape[1]
    scale = points.std(axis=0) + 1e-12
    _, labels = kmeans2(points / scale, count, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=count)
    index = np.where(sizes > 2 * dim, np.arange(count), np.argmax(sizes))
    loc = np.array([points[labels == i].mean(axis=0) for i in index])
    floor = 1e-6 * np.diag(scale**2)
    covariance = np.array([2.0 * np.atleast_2d(np.cov(points[labels == i].T)) + floor for i in index])
    normals = eqx.filter_vmap(MultivariateNormal)(jnp.asarray(loc, float), jnp.asarray(covariance, float))
    return VmapMixture(normals, jnp.asarray(sizes[index], float))
