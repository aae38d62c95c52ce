"""Adaptive importance sampling of an exact problem: a route to its answer that shares no quadrature with it.

Draws are taken in unconstrained coordinates from a mixture of the model's prior, or of something very broad where the prior is
improper, and of Student t distributions that are fitted to earlier draws of each mode.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

from oracles.exact import Stranger

DEGREES = 5
BATCH = 20_000
FIRST = 10
"""Batches of the first round, which has to find every mode."""
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
    for turn in range(25):
        u = target.propose(rng, students, 1 if turn else FIRST)
        log_density, _, labels = target.log_density(u)
        log_ratio = log_density - target.log_proposal(u, students)
        kept = np.isfinite(log_ratio)
        u, labels, log_ratio = u[kept], labels[kept], log_ratio[kept]
        share = _share(log_ratio, 400.0)
        weight = np.exp(share * log_ratio - scipy.special.logsumexp(share * log_ratio))
        students = [_student(u[labels == label], weight[labels == label]) for label in np.unique(labels)]
        students = [student for student in students if student is not None]
        if turn > 1 and share == 1.0:
            break
    return _last_round(target, students, rng, wanted)


def _last_round(target: "_Target", students: list, rng: np.random.Generator, wanted: float) -> Weighted:
    ratios, moments, labels = [], [], []
    for _ in range(CHUNKS):
        u = target.propose(rng, students)
        log_target, found, label = target.log_density(u)
        ratios.append(log_target - target.log_proposal(u, students))
        kept = ratios[-1] > np.max(ratios[-1]) - 600
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


def _student(u: np.ndarray, weight: np.ndarray):
    """A Student t distribution with the weighted draws' mean and covariance; nothing where they are too few."""
    weight = weight / np.sum(weight)
    if 1 / np.sum(weight**2) < 4 * u.shape[1]:
        return None
    mean = weight @ u
    covariance = (u - mean).T @ ((u - mean) * weight[:, None])
    covariance += 1e-12 * np.diag(np.diag(covariance) + 1e-30)
    return scipy.stats.multivariate_t(mean, covariance * (DEGREES - 2) / DEGREES * 1.3, df=DEGREES)


def _share(log_ratio: np.ndarray, least: float) -> float:
    """Power of the weights, at most one, at which their effective sample size is at least this."""

    log_ratio = log_ratio[log_ratio > -1e30]

    def missing(share: float) -> float:
        scaled = share * log_ratio
        return 2 * scipy.special.logsumexp(scaled) - scipy.special.logsumexp(2 * scaled) - np.log(least)

    return 1.0 if missing(1.0) >= 0 else float(scipy.optimize.brentq(missing, 0.0, 1.0, xtol=1e-6))


def _by_batches(function: Callable, values: jax.Array) -> Any:
    """A compiled function of `BATCH` rows, of any number of them, so that it is compiled once."""
    padding = -len(values) % BATCH
    padded = jnp.concatenate([values, values[np.zeros(padding, int)]])
    found = [function(padded[start : start + BATCH]) for start in range(0, len(padded), BATCH)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(values)], *found)


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
        draw = _by_batches(self._constrain, jnp.asarray(u))
        sites = {name: np.asarray(value, float) for name, value in draw.sites.items()}
        with np.errstate(all="ignore"):
            moments = self.stranger.moments(sites)
            log_density = self.stranger.log_base(sites) + np.asarray(draw.log_det) - moments @ self.stranger.eta
            modes = self.stranger.modes
            labels = np.zeros(len(u), int) if modes is None else np.asarray(modes.label(sites))
        return np.where(np.isfinite(log_density), log_density, -np.inf), moments, labels

    def propose(self, rng: np.random.Generator, students: list, batches: int = 1) -> np.ndarray:
        """Batches: half from the first proposal, half from the fitted ones."""
        count = batches * BATCH
        first = count // 2 if students else count
        if self.proper:
            u = _by_batches(self._prior, jax.random.split(jax.random.key(int(rng.integers(2**31))), first))
        else:
            normal = 3 * rng.standard_t(3, (first, self.dim))
            wide = 1e-7 * np.sinh(rng.uniform(-35.0, 35.0, (first, self.dim)))
            u = np.where(rng.random((first, self.dim)) < 0.5, normal, wide)
        counts = np.diff(np.linspace(first, count, len(students) + 1).astype(int))
        drawn = [
            np.reshape(student.rvs(each, random_state=rng), (-1, self.dim))
            for student, each in zip(students, counts, strict=False)
        ]
        return np.concatenate([u, *drawn])

    def log_proposal(self, u: np.ndarray, students: list) -> np.ndarray:
        """Log density of `propose`."""
        if self.proper:
            draw = _by_batches(self._constrain, jnp.asarray(u))
            first = np.asarray(draw.log_prior + draw.log_det)
        else:
            wide = -np.log(70.0) - np.log(np.sqrt(u**2 + 1e-14))
            wide = np.where(np.abs(u) < 1e-7 * np.sinh(35.0), wide, -np.inf)
            first = np.sum(np.logaddexp(scipy.stats.t.logpdf(u / 3, 3) - np.log(3.0), wide) - np.log(2), axis=1)
        first = np.where(np.isfinite(first), first, -np.inf)
        if not students:
            return first
        fitted = scipy.special.logsumexp([np.reshape(s.logpdf(u), -1) for s in students], axis=0) - np.log(
            len(students)
        )
        return np.logaddexp(first, fitted) - np.log(2)
