"""Draws of several proposals, which together see more of a solution than a guide does, and their weights towards it.

A pool holds draws of the guide, of other guides, of the base or a wide normal in its place, and of the solution by chains; a
draw's weight is the solution's density over that of the proposals' mixture (Owen & Zhou 2000, JASA 95:135).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Bool, Float, Int

from ._loop import masked_moments
from ._problem import Problem
from ._products import compiled
from ._reference import begins_at_base
from ._types import Draws, Key
from ._weights import Tilt, balance, effective, normalized, overlap_of, pareto_khat, tilt

NUM_DRAWS, NUM_NOISY_DRAWS, NUM_SIMULATIONS = 20_000, 4_000, 16
"""Draws of every proposal; with simulator noise fewer of them, each simulated so many times."""

MOST_TOGETHER = 1000
"""Simulations at once: one with its noise may take half a megabyte, and several times that while it runs."""

WIDE = 3.0
"""Width of the normal that stands in for an improper base, in the guide's standard deviations."""

LOWEST = -1e30
"""Log density, nats, that stands for one that is not finite."""

UNSEEN_RATIO = 10.0
"""A place is unseen by the guide where its density is this factor below the solution's."""

ENOUGH_ALONE, MOST_UNSEEN_ALONE = 1000.0, 0.005
"""Effective draws, and share of the chains' draws in unseen places, from which and up to which the guide's weights need no
bridge to the chains' draws."""

MANY = 1000.0
"""Effective draws of the base that show where the solution is: of a hundredth of its mass ten."""

OWN, OTHER, BASE, SOLUTION, INDEPENDENT = range(5)
"""Where a draw comes from: the guide, another guide, the base, draws of the solution that the guide was fitted to, and such
draws that it was not fitted to."""


class Columns(NamedTuple):
    """By draw: log densities of the guides [K, N] and of the defensive proposal, moments, their noise's covariance, log base."""

    log_guides: np.ndarray
    log_defence: np.ndarray
    moments: np.ndarray
    noise: np.ndarray
    log_base: np.ndarray

    def usable(self, target: np.ndarray) -> "Columns":
        """With no mass where a simulation failed."""
        usable = np.isfinite(self.log_base) & np.isfinite(self.moments).all(axis=1)
        # A draw at the edge of the support may be infinite in unconstrained coordinates: it has no density there.
        usable = usable & np.isfinite(self.log_guides).all(axis=0) & np.isfinite(self.log_defence)
        return Columns(
            log_guides=np.where(usable, self.log_guides, LOWEST),
            log_defence=np.where(usable, self.log_defence, LOWEST),
            moments=np.where(usable[:, None], self.moments, target),
            noise=np.where(usable[:, None, None], self.noise, 0.0),
            log_base=np.where(usable, self.log_base, -np.inf),
        )


class PoolWeights(NamedTuple):
    """Weights of a pool's draws towards the solution.

    Attributes:
        eta: Multipliers of the tilt that has the property; those given where no weighting has.
        rows: Which of the pool's draws have weights, shape [N].
        first: Normalised log weights towards the multipliers given, shape [K].
        log_weight: The same after the tilt, shape [K].
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats.
        reached: Whether the tilt has the property.
        ess: Effective draws.
        khat: Shape of a generalised Pareto distribution of the largest weights.
        relative_variance: Of ``Z``.
        overlap: Of the bridge to draws of the solution; infinite without one.
    """

    eta: Float[np.ndarray, " M"]
    rows: Bool[np.ndarray, " N"]
    first: Float[np.ndarray, " K"]
    log_weight: Float[np.ndarray, " K"]
    log_normalizer: float
    reached: bool
    ess: float
    khat: float
    relative_variance: float
    overlap: float


class Pool(NamedTuple):
    """Draws of all proposals.

    Attributes:
        target: Wanted means, shape [M].
        draws: In unconstrained coordinates, shape [N, D].
        columns: What their weights are made of.
        source: The proposal that each is of, shape [N].
        kind: The kind of that, shape [N].
        simulations: Of each draw.
        may_bridge: Whether draws of the solution may be among the proposals.
    """

    target: Float[np.ndarray, " M"]
    draws: Float[np.ndarray, "N D"]
    columns: Columns
    source: Int[np.ndarray, " N"]
    kind: Int[np.ndarray, " N"]
    simulations: int
    may_bridge: bool

    @property
    def usable(self) -> Bool[np.ndarray, " N"]:
        return np.isfinite(self.columns.log_base)

    @property
    def num_simulations(self) -> int:
        return len(self.kind) * self.simulations

    @property
    def has_bridge(self) -> bool:
        return self.may_bridge and bool(np.any(self.kind >= SOLUTION))

    def log_p(self, eta: Float[np.ndarray, " M"]) -> Float[np.ndarray, " N"]:
        """``log base - eta . (T - target)``, nats."""
        columns = self.columns
        return columns.log_base - (columns.moments - self.target) @ eta - correction(columns.noise, eta)

    def weigh(self, eta: Float[np.ndarray, " M"], *, bridged: bool) -> PoolWeights:
        """Weigh the draws towards ``p_eta`` and on to the property; where ``bridged``, with the solution among the proposals."""
        rows = np.ones(len(self.kind), bool) if bridged else self.kind < SOLUTION
        columns = self.columns
        densities = np.vstack([columns.log_guides, columns.log_defence[None]])[:, rows]
        log_p = self.log_p(eta)[rows]
        counts = np.bincount(self.source[rows], minlength=len(densities) + bridged).astype(float)
        log_mixture, log_z = balance(densities, log_p, counts, bridged)
        own_share = log_p - log_z + math.log(counts[-1] / counts.sum()) - log_mixture
        overlap = overlap_of(own_share) if bridged else math.inf
        first = log_w = normalized(log_p - log_mixture)
        # Multipliers far off leave next to no weights to start from; without any, all draws have some.
        for start in (eta, np.zeros_like(eta)):
            log_weight = self.log_p(start)[rows] - log_mixture
            spread = columns.noise[rows] if self.simulations > 1 else None
            tilted = tilt(log_weight, columns.moments[rows], self.target, noise=spread, eta=start)
            if tilted.reached:
                eta, log_w = start + tilted.eta, tilted.log_weight
                log_z = scipy.special.logsumexp(log_weight) - math.log(len(log_weight)) + tilted.log_normalizer
                break
        weight = np.exp(log_w)
        ess = 1.0 / np.sum(weight**2)
        relative_variance = max(1.0 / ess - 1.0 / len(weight), 0.0)
        if bridged:
            # Bennett 1976, J. Comput. Phys. 22:245, equation 10b: perfect overlap leaves no error.
            bridge = 1.0 / max(overlap, 1e-9) - 1.0 / counts[-1] - 1.0 / counts[:-1].sum()
            relative_variance = max(relative_variance, bridge)
        return PoolWeights(
            eta=eta,
            rows=rows,
            first=first,
            log_weight=log_w,
            # The logarithm of a mean is too small by half of its relative variance.
            log_normalizer=float(log_z + 0.5 * min(relative_variance, 1.0)),
            reached=tilted.reached,
            ess=float(ess),
            khat=pareto_khat(weight, is_covered=effective(weight[self.kind[rows] == BASE]) >= MANY),
            relative_variance=relative_variance,
            overlap=overlap,
        )

    def ahead(self, found: PoolWeights) -> Float[np.ndarray, " N"]:
        """Log ratio of the solution's density to the guide's."""
        log_p = self.log_p(found.eta) - found.log_normalizer
        return np.subtract(log_p, self.columns.log_guides[0], out=np.zeros_like(log_p), where=self.usable)


def pooled(
    key: Key,
    problem: Problem,
    flow: AbstractDistribution,
    *,
    solution: Draws | None = None,
    independent: Draws | None = None,
    others: Sequence[AbstractDistribution] = (),
    num_draws: int | None = None,
    may_bridge: bool = True,
) -> "Pool":
    """Draws of all proposals, and what their weights are made of; arguments as of `assess`."""
    noisy = bool(problem.simulator.noise)
    count = num_draws or (NUM_NOISY_DRAWS if noisy else NUM_DRAWS)
    simulations = NUM_SIMULATIONS if noisy else 1
    propose_key, evaluate_key = jax.random.split(key)
    parts, wide = _propose(propose_key, problem, flow, others, count)
    solution = solution if independent is None else independent
    if solution is not None:
        every = max(1, len(solution) // count)
        parts.append(solution[::every][:count])
    draws = jnp.concatenate(parts)
    found = _evaluate(problem, (flow, *others), wide, draws, evaluate_key, simulations)
    kinds = [OWN, *(OTHER for _ in others), BASE]
    if solution is not None:
        kinds.append(SOLUTION if independent is None else INDEPENDENT)
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    columns = Columns(*(np.asarray(column, float) for column in found))
    # With noise the density is an estimate: in a bridge, where it stands above and below, its noise lowers log Z.
    return Pool(
        problem.target,
        np.asarray(draws),
        columns.usable(problem.target),
        source,
        np.array(kinds)[source],
        simulations,
        may_bridge and not noisy,
    )


def sees_all(pool: Pool, found: PoolWeights) -> bool:
    """Whether the tilt has enough weights of its own, and the guide some density wherever the chains' draws are."""
    is_unseen = pool.ahead(found)[pool.kind >= SOLUTION] > math.log(UNSEEN_RATIO)
    return bool(found.reached and found.ess >= ENOUGH_ALONE and np.mean(is_unseen) <= MOST_UNSEEN_ALONE)


def weigh(
    key: Key,
    problem: Problem,
    flow: AbstractDistribution,
    draws: Draws,
    moments: Float[np.ndarray, "N M"],
    eta: Float[np.ndarray, " M"],
) -> tuple[Float[np.ndarray, " N"], Tilt]:
    """Weigh draws of a guide towards ``p_eta``, and tilt them on until they have the property exactly.

    Args:
        key: For the simulations that average the noise of ``E[T | u]``.
        problem: The question.
        flow: The guide's flow.
        draws: Its draws, in unconstrained coordinates.
        moments: ``T`` of one simulation of each, whose weighted means shall be the targets.
        eta: Multipliers.

    Returns:
        Normalised log importance weights ``exp(-eta . T) base / q``, and the tilt from there.
    """
    simulations = NUM_SIMULATIONS if problem.simulator.noise else 1
    found = Columns(*(np.asarray(c, float) for c in _evaluate(problem, (flow,), None, draws, key, simulations)))
    log_p = found.log_base - (found.moments - problem.target) @ eta - correction(found.noise, eta)
    log_weight = log_p - found.log_guides[0]
    usable = np.isfinite(log_weight) & np.isfinite(moments).all(axis=1)
    log_weight = normalized(np.where(usable, log_weight, -np.inf))
    return log_weight, tilt(log_weight, np.where(usable[:, None], moments, problem.target), problem.target)


def correction(noise: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """``eta' S eta / 2``, nats, which is taken off the exponent: see `_noise`."""
    return 0.5 * (noise @ eta) @ eta if noise.shape[-1] == len(eta) else np.zeros(len(noise))


def _propose(
    key: Key, problem: Problem, flow: AbstractDistribution, others: Sequence[AbstractDistribution], count: int
) -> tuple[list[Draws], tuple[Array, Array] | None]:
    """Draws of the guides and of a defensive proposal, and the latter's location and scale where it is a wide normal."""
    keys = jax.random.split(key, len(others) + 2)
    guides = [_sample(each, k, count) for each, k in zip((flow, *others), keys[1:], strict=True)]
    if begins_at_base(problem):
        return [*guides, _sample_base(problem, keys[0], count)], None
    loc, scale = jnp.mean(guides[0], axis=0), WIDE * jnp.std(guides[0], axis=0)
    return [*guides, loc + scale * jax.random.normal(keys[0], (count, problem.dim))], (loc, scale)


@compiled
def _sample(flow: AbstractDistribution, key: Key, count: int) -> Draws:
    return flow.sample(key, (count,))


@compiled
def _sample_base(problem: Problem, key: Key, count: int) -> Draws:
    return jax.vmap(problem.simulator.sample_prior)(jax.random.split(key, count))


@compiled
def _evaluate(
    problem: Problem,
    flows: tuple[AbstractDistribution, ...],
    wide: tuple[Array, Array] | None,
    u: Draws,
    key: Key,
    simulations: int,
) -> tuple[Array, ...]:
    log_guides = jnp.stack([flow.log_prob(u) for flow in flows])

    def one(key: Key, u: Float[Array, " D"]) -> tuple[Array, Array, Array]:
        found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(key, simulations), u)
        if simulations == 1:
            # Without noise, one zero stands for the matrix.
            return found.moments[0], jnp.zeros((1, 1), u.dtype), found.log_base[0]
        mean, covariance = masked_moments(found.moments, jnp.ones(simulations, u.dtype))
        return mean, covariance / simulations, found.log_base[0]

    # In pieces, so that memory does not grow with the number of draws.
    moments, noise, log_base = jax.lax.map(
        lambda pair: one(*pair), (jax.random.split(key, u.shape[0]), u), batch_size=max(1, MOST_TOGETHER // simulations)
    )
    log_defence = log_base if wide is None else jax.scipy.stats.norm.logpdf(u, *wide).sum(axis=1)
    return log_guides, log_defence, moments, noise, log_base
