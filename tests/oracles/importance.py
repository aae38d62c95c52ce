"""Adaptive importance sampling of an exact problem: a route to its answer that shares no quadrature with it.

Draws are taken in unconstrained coordinates from a mixture of the model's prior, or of something very broad where the prior is
improper, and of a Student t distribution that is fitted to earlier draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from oracles.exact import Stranger

DEGREES = 5
BATCH = 20_000
CHUNKS = 30
"""Most batches of the last round."""


class Weighted(NamedTuple):
    """Self-normalised importance samples.

    Attributes:
        moments: ``E[T | z]`` of each, [N, M].
        labels: Number of each sample's mode, [N]; zeros where there is one.
        weight: Sums to one, [N].
        log_normalizer: Estimate of ``log Z``.
        log_normalizer_error: Its standard error.
        ess: Effective sample size.
    """

    moments: np.ndarray
    labels: np.ndarray
    weight: np.ndarray
    log_normalizer: float
    log_normalizer_error: float
    ess: float

    def mean(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean over the first axis, and its standard error (delta method)."""
        mean = self.weight @ values
        return mean, np.sqrt(self.weight**2 @ (values - mean) ** 2)


def sample(stranger: Stranger, seed: int, wanted: float = 1000.0) -> Weighted:
    """Importance samples of the solution at the problem's ``eta``, of about this effective sample size if it can be had."""
    rng, target = np.random.default_rng(seed), _Target(stranger)
    students: list = []
    for _ in range(25):
        u = target.propose(rng, students)
        log_ratio = target.log_density(u)[0] - target.log_proposal(u, students)
        share = _share(log_ratio, 400.0)
        weight = np.exp(share * log_ratio - scipy.special.logsumexp(share * log_ratio))
        mean = weight @ u
        covariance = (u - mean).T @ ((u - mean) * weight[:, None])
        covariance += 1e-12 * np.diag(np.diag(covariance) + 1e-30)
        students = [scipy.stats.multivariate_t(mean, covariance * (DEGREES - 2) / DEGREES * 1.2, df=DEGREES)]
        if share == 1.0:
            break
    return _last_round(target, students, rng, wanted)


def _last_round(target: "_Target", students: list, rng: np.random.Generator, wanted: float) -> Weighted:
    ratios, moments, labels = [], [], []
    for _ in range(CHUNKS):
        u = target.propose(rng, students)
        log_target, found, label = target.log_density(u)
        ratios.append(log_target - target.log_proposal(u, students))
        kept = np.isfinite(ratios[-1])
        moments.append(np.where(kept[:, None], found, 0.0))
        labels.append(label)
        log_ratio = np.concatenate(ratios)
        weight = np.exp(log_ratio - scipy.special.logsumexp(log_ratio))
        ess = float(1 / np.sum(weight**2))
        if ess > wanted:
            break
    count = len(log_ratio)
    log_z = float(scipy.special.logsumexp(log_ratio) - np.log(count))
    error = float(np.sqrt(max(1 / ess - 1 / count, 0.0)))
    return Weighted(np.concatenate(moments), np.concatenate(labels), weight, log_z, error, ess)


def _share(log_ratio: np.ndarray, least: float) -> float:
    """Power of the weights, at most one, at which their effective sample size is at least this."""

    def missing(share: float) -> float:
        scaled = share * log_ratio
        return 2 * scipy.special.logsumexp(scaled) - scipy.special.logsumexp(2 * scaled) - np.log(least)

    return 1.0 if missing(1.0) >= 0 else float(scipy.optimize.brentq(missing, 0.0, 1.0, xtol=1e-6))


class _Target:
    """The solution's density in unconstrained coordinates, without its normaliser, and the proposals."""

    def __init__(self, stranger: Stranger):
        self.stranger, simulator = stranger, stranger.problem.simulator
        self.proper = simulator.has_proper_prior
        self.dim = stranger.problem.dim
        self._constrain = jax.jit(jax.vmap(simulator.constrain))
        self._prior = jax.jit(jax.vmap(simulator.sample_prior))

    def log_density(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log density, moments and labels."""
        draw = self._constrain(jnp.asarray(u))
        sites = {name: np.asarray(value, float) for name, value in draw.sites.items()}
        with np.errstate(all="ignore"):
            moments = self.stranger.moments(sites)
            log_density = self.stranger.log_base(sites) + np.asarray(draw.log_det) - moments @ self.stranger.eta
            modes = self.stranger.modes
            labels = np.zeros(len(u), int) if modes is None else np.asarray(modes.label(sites))
        return np.where(np.isfinite(log_density), log_density, -np.inf), moments, labels

    def propose(self, rng: np.random.Generator, students: list) -> np.ndarray:
        """A batch: half from the first proposal, half from the fitted one."""
        first = BATCH // 2 if students else BATCH
        if self.proper:
            u = np.asarray(self._prior(jax.random.split(jax.random.key(int(rng.integers(2**31))), BATCH)))[:first]
        else:
            normal = 3 * rng.standard_t(3, (first, self.dim))
            wide = 1e-7 * np.sinh(rng.uniform(-35.0, 35.0, (first, self.dim)))
            u = np.where(rng.random((first, self.dim)) < 0.5, normal, wide)
        drawn = [np.reshape(s.rvs(BATCH - first, random_state=rng), (-1, self.dim)) for s in students]
        return np.concatenate([u, *drawn])

    def log_proposal(self, u: np.ndarray, students: list) -> np.ndarray:
        """Log density of `propose`."""
        if self.proper:
            draw = self._constrain(jnp.asarray(u))
            first = np.asarray(draw.log_prior + draw.log_det)
        else:
            wide = -np.log(70.0) - np.log(np.sqrt(u**2 + 1e-14))
            wide = np.where(np.abs(u) < 1e-7 * np.sinh(35.0), wide, -np.inf)
            first = np.sum(np.logaddexp(scipy.stats.t.logpdf(u / 3, 3) - np.log(3.0), wide) - np.log(2), axis=1)
        first = np.where(np.isfinite(first), first, -np.inf)
        if not students:
            return first
        return np.logaddexp(first, np.reshape(students[0].logpdf(u), -1)) - np.log(2)
