"""Weighted draws: tilting them to targets, pooling those of several proposals, and how far their weights can be trusted."""

import math
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

LITTLE, LITTLE_IN_ALL = 1e-3, 1e-2
"""Of all mass, up to which no draw's weight matters by itself, and what weights have beyond a threshold does not in all."""

ROUNDING, SINGLE = 1e-12, 1e-6
"""Of a moment's largest size, up to which its spread is rounding, and up to which one that does not vary is at its target: in
single precision values differ by 1e-7 or not at all."""


class Tilt(NamedTuple):
    """An exponential tilt of weighted draws.

    Attributes:
        eta: Change of the multipliers, shape [M].
        log_weight: Normalised log weights after it, shape [N].
        log_normalizer: ``log sum w exp(-eta . (T - target))`` of the normalised weights before it, nats.
        reached: Whether the weighted means are the targets.
    """

    eta: Float[np.ndarray, " M"]
    log_weight: Float[np.ndarray, " N"]
    log_normalizer: float
    reached: bool


def tilt(
    log_weight: Float[np.ndarray, " N"],
    moments: Float[np.ndarray, "N M"],
    target: Float[np.ndarray, " M"],
    *,
    noise: Float[np.ndarray, "N M M"] | None = None,
    eta: Float[np.ndarray, " M"] | None = None,
    least: float = 0.0,
) -> Tilt:
    """Minimise the weighted dual: the one exponential tilt of the draws whose weighted means are the targets.

    Where ``moments`` are means over simulations whose noise is in the weights too, a weighted mean of them is biased:
    ``E exp(-eta . m) m = exp(-eta . T + eta' S eta / 2) (T - S eta)`` for normal noise of covariance ``S``, so ``S eta`` is
    added to each.

    Args:
        log_weight: Log weights, any constant added.
        moments: ``T`` of the draws.
        target: Wanted means.
        noise: ``S`` of every draw; none where the moments' noise is not in the weights.
        eta: Multipliers that are in the weights already, with ``noise`` only.
        least: Effective draws below which it ends, with the targets not reached: near the edge of what the draws span, steps
            are many.

    Returns:
        The tilt; ``reached`` is false where the targets lie outside what the draws span.
    """
    # It takes longer to import than most of the package.
    import scipy.optimize

    if not np.any(np.isfinite(log_weight)):
        return Tilt(np.full(len(target), np.nan), log_weight, np.nan, False)
    log_weight = normalized(log_weight)
    weight = np.exp(log_weight)
    mean = weight @ moments
    # Weights of hardly one draw have no spread; that of all draws keeps the numbers finite then.
    scale = np.maximum(np.sqrt(weight @ np.square(moments - mean)), 1e-6 * moments.std(axis=0))
    # The spread of one that does not vary is rounding, and no multiplier moves it.
    size = np.max(np.abs(moments), axis=0)
    varies = scale > ROUNDING * size
    scale = np.where(varies, scale, 1.0)
    columns = np.where(varies, (moments - target) / scale, 0.0)
    is_there = varies | (np.abs(mean - target) <= SINGLE * size)
    spread = None if noise is None else noise / scale[:, None] / scale
    begin = np.zeros(len(target)) if eta is None else eta * scale

    def dual(step: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        exponent, slope = log_weight - columns @ step, columns
        if spread is not None:
            pushed = spread @ (begin + step)
            exponent = exponent - 0.5 * (pushed @ (begin + step) - (spread @ begin) @ begin)
            slope = columns + pushed
        value = scipy.special.logsumexp(exponent)
        tilted = np.exp(exponent - value)
        mean = tilted @ slope
        curvature = (slope * tilted[:, None]).T @ slope - np.outer(mean, mean)
        if spread is not None:
            curvature = curvature - np.einsum("n,nij->ij", tilted, spread)
        return value, -mean, curvature, exponent - value

    def stop(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        left = dual(intermediate_result.x)[3]
        if np.exp(-scipy.special.logsumexp(2 * left)) < least:
            raise StopIteration

    found = scipy.optimize.minimize(
        lambda step: dual(step)[:2],
        np.zeros(len(target)),
        jac=True,
        hess=lambda step: dual(step)[2],
        method="trust-exact",
        callback=stop if least else None,
        options={"gtol": 1e-6, "maxiter": 200},
    )
    value, gradient, _, log_weight = dual(found.x)
    reached = bool(np.all(is_there) and np.all(np.isfinite(found.x)) and np.max(np.abs(gradient)) < 1e-4)
    return Tilt(np.where(varies, found.x / scale, 0.0), log_weight, value, reached)


def normalized(log_weight: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Log weights whose exponentials sum to one."""
    return log_weight - scipy.special.logsumexp(log_weight)


def effective(weight: np.ndarray) -> float:
    """Effective number of these draws (Kish 1965)."""
    return float(weight.sum() ** 2 / max(np.sum(weight**2), np.finfo(float).tiny))


def balance(
    densities: np.ndarray, log_p: np.ndarray, counts: np.ndarray, has_solution: bool
) -> tuple[np.ndarray, float]:
    """Log density of the proposals' mixture at every draw, and ``log Z`` of ``p``."""
    shares = counts / counts.sum()
    known = densities.shape[0]
    terms = densities + np.log(np.maximum(shares[:known], np.finfo(float).tiny))[:, None]
    log_mixture = scipy.special.logsumexp(terms, axis=0)
    log_z = scipy.special.logsumexp(log_p - log_mixture) - math.log(len(log_p))
    if not has_solution:
        return log_mixture, float(log_z)
    for _ in range(200):
        with_solution = np.logaddexp(log_mixture, log_p - log_z + math.log(shares[known]))
        new = scipy.special.logsumexp(log_p - with_solution) - math.log(len(log_p))
        if abs(new - log_z) < 1e-7:
            break
        log_z = new
    return np.logaddexp(log_mixture, log_p - log_z + math.log(shares[known])), float(log_z)


def overlap_of(log_share: np.ndarray) -> float:
    """One over the variance of ``log Z`` that the balance leaves (Shirts & Chodera 2008, equation 8, for one unknown).

    Args:
        log_share: Log of each draw's probability of being one of the solution's.
    """
    share = np.exp(np.minimum(np.where(np.isnan(log_share), -np.inf, log_share), 0.0))
    return float(np.sum(share * (1.0 - share)))


def pareto_khat(weight: Float[np.ndarray, " N"], *, is_covered: bool = False) -> float:
    """Shape of a generalised Pareto distribution of the largest weights (Vehtari et al. 2024, JMLR 25:72).

    It is the limit for higher thresholds. Where the threshold lies in a heap of nearly equal weights, as of draws that the base
    alone proposes, the fit to all weights beyond it says 1 to 3 of weights that are at most seven times their mean. So where no
    weight is large, the shape of a quarter of them counts if it is smaller by more than its standard error.

    Where the largest weights are in all hardly larger than the threshold, their shape moves no mean, and counts as none (0): if
    the draws' places are covered, since many effective ones among them are of a proposal that looks everywhere (``is_covered``).
    """
    weight = np.sort(weight[weight > 0])
    size = int(min(0.2 * len(weight), 3 * math.sqrt(len(weight))))
    if size < 5:
        return math.inf
    shape = _shape(weight, size)
    if weight[-1] > LITTLE * weight.sum():
        return shape
    if is_covered and np.sum(weight[-size:] - weight[-size - 1]) <= LITTLE_IN_ALL * weight.sum():
        return min(shape, 0.0)
    higher = _shape(weight, size // 4)
    # The error of the maximum likelihood estimate (Smith 1987, Ann. Stat. 15:1174).
    return min(shape, higher + (1.0 + max(higher, 0.0)) / math.sqrt(size // 4))


def _shape(weight: Float[np.ndarray, " N"], size: int) -> float:
    """Of so many of the largest weights, which are in order."""
    from scipy.stats import genpareto

    excess = weight[-size:] - weight[-size - 1]
    if not excess[-1] > 0:
        # Weights that are cut off at a common largest value have no tail at all.
        return -math.inf
    return float(genpareto.fit(excess / excess.mean(), floc=0.0)[0])
