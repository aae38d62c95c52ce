"""Exact maximum-entropy problems: quadrature of tilted products, and what a `Stranger` knows of its answer.

The solution of a problem is ``p*(z)`` proportional to ``base(z) exp(-eta . E[T | z])``. Where the base is a product of factors
and the statistics are sums over the factors, all moments are sums over the factors too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float

import numpyro_epi as epi

Arrays = Mapping[str, np.ndarray]
"""Site name to values; the leading axis counts draws or quadrature nodes."""


LEAST_FRACTION = 0.045
"""Smallest probability of a mode."""


class Feature(NamedTuple):
    """One statistic of a problem, in JAX for the problem and in NumPy for its answer.

    Attributes:
        name: Printed name.
        measure: ``(xp, sites) -> value`` with ``xp`` either ``jax.numpy`` (the sites of one draw) or ``numpy`` (a batch).
        mean: ``E[measure | parameters]``, of a batch. Default: ``measure`` itself, for a statistic without noise.
        variance: ``Var[measure | parameters]``, of a batch. Default: zero.
        shape: Shape of the value of one draw.
        center: If given, the standard deviation is a target too; the column of the second moment is about this number.
        differentiable: What the statistic is declared as.
    """

    name: str
    measure: Callable[[Any, Any], Any]
    mean: Callable[[Arrays], np.ndarray] | None = None
    variance: Callable[[Arrays], np.ndarray] | None = None
    shape: tuple[int, ...] = ()
    center: float | np.ndarray | None = None
    differentiable: bool = True

    def expected(self, sites: Arrays) -> np.ndarray:
        """``E[T | z]``, [N, K]."""
        found = self.measure(np, sites) if self.mean is None else self.mean(sites)
        return np.reshape(np.asarray(found, float), (_count(sites), -1))

    def noise(self, sites: Arrays) -> np.ndarray:
        """``Var[T | z]``, [N, K]."""
        if self.variance is None:
            return np.zeros((_count(sites), math.prod(self.shape)))
        return np.broadcast_to(self.variance(sites), (_count(sites), *self.shape)).reshape(_count(sites), -1)

    def statistic(self) -> epi.Statistic:
        """What the problem measures."""
        return epi.Statistic(lambda sites: self.measure(jnp, sites), self.name, differentiable=self.differentiable)


class Factor(NamedTuple):
    """Quadrature nodes of some of the parameters.

    Attributes:
        sites: Values of the sites that vary, [N, *shape] each.
        log_weight: Log of the base density times the quadrature weight, [N].
    """

    sites: Arrays
    log_weight: Float[np.ndarray, " N"]


class Solution(NamedTuple):
    """Moments of the solution, in the order of `columns`.

    Attributes:
        eta: Lagrange multipliers, [M].
        mu: ``E[T]``, [M].
        covariance: Of ``E[T | z]``, [M, M].
        log_normalizer: Log of the integral of ``base exp(-eta . T)``.
        noise: ``E[Var[T | z]]`` of the statistics, [M]; zero in the columns of second moments.
        masses: Probability of each factor's nodes.
    """

    eta: np.ndarray
    mu: np.ndarray
    covariance: np.ndarray
    log_normalizer: float
    noise: np.ndarray
    masses: tuple[np.ndarray, ...] = ()


class Modes(NamedTuple):
    """Separate regions of the solution.

    Attributes:
        label: Number of each draw's region.
        fractions: Exact probability of each region.
    """

    label: Callable[[Arrays], np.ndarray]
    fractions: np.ndarray


class Stranger(NamedTuple):
    """A problem, and everything about its answer; M constraints in the order of ``problem.constraints``.

    Attributes:
        name: Short name.
        line: Description in one line.
        problem: What is asked.
        eta: Exact multipliers, [M]; one choice of them where they are not ``unique``.
        unique: Whether no other multipliers give the same answer.
        mu: Exact moments, [M].
        sd: Standard deviation of ``E[T | z]`` under the solution, [M].
        unit: What an error of each moment is measured in: the wanted standard deviation where there is one, else the
            standard deviation of the statistic under the solution, its noise included, [M].
        log_normalizer: Log of the integral of ``base exp(-eta . T)``, nats.
        moments: ``E[T | z]`` of a batch of parameters, [N, M].
        log_base: Log density of the base of a batch of parameters, [N].
        modes: Regions and their exact probabilities, if there are several.
        tolerance: Largest KL divergence of an answer that is right, nats.
        tags: What the problem has, for the coverage.
    """

    name: str
    line: str
    problem: epi.Problem
    eta: np.ndarray
    unique: bool
    mu: np.ndarray
    sd: np.ndarray
    unit: np.ndarray
    log_normalizer: float
    moments: Callable[[Arrays], np.ndarray]
    log_base: Callable[[Arrays], np.ndarray]
    modes: Modes | None
    tolerance: float
    tags: frozenset[str]

    def log_density(self, sites: Arrays) -> np.ndarray:
        """Log density of the solution at a batch of parameters on the constrained scale, [N] nats."""
        return self.log_base(sites) - self.moments(sites) @ self.eta - self.log_normalizer


def columns(features: Sequence[Feature], sites: Arrays) -> Float[np.ndarray, "N M"]:
    """``E[T | z]`` in the order of a problem's constraints, second moments about each feature's ``center``."""
    sites = {name: np.asarray(value, float) for name, value in sites.items()}
    means = [feature.expected(sites) for feature in features]
    squares = [
        (mean - np.ravel(feature.center)) ** 2 + feature.noise(sites)
        for feature, mean in zip(features, means, strict=True)
        if feature.center is not None
    ]
    return np.concatenate([*means, *squares], axis=1)


def solve(
    features: Sequence[Feature], factors: Sequence[Factor], eta: Sequence[float] | np.ndarray, reference: Arrays
) -> Solution:
    """The tilted product of factors.

    Args:
        features: Statistics, each a sum of functions of single factors.
        factors: Independent under the base.
        eta: Multipliers in the order of `columns`.
        reference: One value, [1, *shape], of every parameter, where the statistics are finite.
    """
    eta = np.asarray(eta, float)
    offset, offset_noise = columns(features, reference), _noises(features, reference, len(eta))
    mu, noise = offset[0].copy(), offset_noise[0].copy()
    covariance, log_normalizer, masses = np.zeros((len(eta), len(eta))), -float(offset[0] @ eta), []
    for factor in factors:
        count = len(factor.log_weight)
        rest = {name: np.broadcast_to(value, (count, *value.shape[1:])) for name, value in reference.items()}
        with np.errstate(all="ignore"):
            moments = columns(features, {**rest, **factor.sites}) - offset
            noises = _noises(features, {**rest, **factor.sites}, len(eta)) - offset_noise
            exponent = factor.log_weight - moments @ eta
        kept = np.isfinite(exponent) & np.all(np.isfinite(moments), axis=1)
        exponent, moments = np.where(kept, exponent, -np.inf), np.where(kept[:, None], moments, 0.0)
        log_z = scipy.special.logsumexp(exponent)
        mass = np.exp(exponent - log_z)
        mean = mass @ moments
        centred = moments - mean
        mu, log_normalizer = mu + mean, log_normalizer + log_z
        covariance += centred.T @ (centred * mass[:, None])
        noise += mass @ np.where(kept[:, None], noises, 0.0)
        masses.append(mass)
    return Solution(eta, mu, covariance, float(log_normalizer), noise, tuple(masses))


def gently(
    tilts: np.ndarray, answer: Callable[[np.ndarray], tuple[Solution, np.ndarray]]
) -> tuple[Solution, np.ndarray]:
    """The solution and its modes' fractions, with tilts made smaller until no mode has less than `LEAST_FRACTION`."""
    solution, fractions = answer(tilts)
    while np.min(fractions) < LEAST_FRACTION:
        tilts = 0.7 * tilts
        solution, fractions = answer(tilts)
    return solution, fractions


def pose(
    name: str,
    line: str,
    model: Callable[[], None],
    features: Sequence[Feature],
    solution: Solution,
    *,
    log_base: Callable[[Arrays], np.ndarray],
    parameters: Sequence[str] | None = None,
    base: str = "prior",
    modes: Modes | None = None,
    unique: bool = True,
    tags: Sequence[str] = (),
) -> Stranger:
    """Ask for the solution's own moments; second moments move from each ``center`` to the wanted mean."""
    move, constant = _about_means(features, solution.mu)
    mu = move @ solution.mu + constant
    eta = np.linalg.solve(move.T, solution.eta)
    covariance = move @ solution.covariance @ move.T
    unit = np.sqrt(np.diag(covariance) + solution.noise)
    targets, start, second = [], 0, sum(math.prod(feature.shape) for feature in features)
    for feature in features:
        block, std = slice(start, start + math.prod(feature.shape)), None
        if feature.center is not None:
            wanted = mu[second : second + math.prod(feature.shape)]
            second += len(wanted)
            unit[block] = np.sqrt(wanted)
            std = np.sqrt(wanted).reshape(feature.shape)
        targets.append(epi.Target(feature.statistic(), mu[block].reshape(feature.shape), std))
        start = block.stop
    kind = cast(Literal["prior", "lebesgue"], base)
    problem = epi.Problem(model, epi.EmergentProperty(*targets), parameters=parameters, base=kind, name=name)
    return Stranger(
        name,
        line,
        problem,
        eta,
        unique,
        mu,
        np.sqrt(np.diag(covariance)),
        unit,
        solution.log_normalizer - float(eta @ constant),
        lambda sites: columns(features, sites) @ move.T + constant,
        log_base,
        modes,
        0.1 if problem.dim > 10 else 0.05,
        frozenset(tags) | _tags(features, problem),
    )


def _about_means(features: Sequence[Feature], mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and constant that move each column of a second moment from the feature's center to its mean."""
    move, constant = np.eye(len(mu)), np.zeros(len(mu))
    first, second = 0, sum(math.prod(feature.shape) for feature in features)
    for feature in features:
        size = math.prod(feature.shape)
        if feature.center is not None:
            center, mean = np.broadcast_to(np.ravel(feature.center), size), mu[first : first + size]
            # (T - m)^2 = (T - c)^2 + 2 (c - m) T + m^2 - c^2, where the last is (m - c) (m + c).
            rows = np.arange(second, second + size)
            move[rows, np.arange(first, first + size)] = 2 * (center - mean)
            constant[rows] = (mean - center) * (mean + center)
            second += size
        first += size
    return move, constant


def _tags(features: Sequence[Feature], problem: epi.Problem) -> set[str]:
    tags = {"std" if any(feature.center is not None for feature in features) else "mean only", problem.base}
    if problem.simulator.noise:
        tags.add("noise")
    if not problem.simulator.has_proper_prior:
        tags.add("improper")
    return tags


def _noises(features: Sequence[Feature], sites: Arrays, width: int) -> np.ndarray:
    found = np.concatenate([feature.noise(sites) for feature in features], axis=1)
    return np.pad(found, ((0, 0), (0, width - found.shape[1])))


def _count(sites: Arrays) -> int:
    return len(next(iter(sites.values())))
