"""How far an answer can be from the maximum-entropy solution, in nats.

For every ``q`` that has the property and every ``eta``, ``H_b(q) <= D(eta)``, the dual: the logarithm of the integral of
``base exp(-eta . (T - target))``. So an estimate of that integral bounds what any answer can reach, and

    D(eta) - (H_b(q) - eta . R(q)) = KL(q || p_eta)

is the answer's own distance. The integral is estimated from draws of several proposals at once, since the guide's own draws
cannot see a mode that it lost: the guide, the base (or a wide normal, where the base is no distribution), other guides, and
where these are not enough, draws of ``p_eta`` by chains, whose unknown normaliser enters the balance (multistate bridge sampling:
Meng & Wong 1996; Shirts & Chodera 2008, equation 11) and whose shares of modes are then taken to be right. The same draws,
weighted, are tilted until they have the property exactly.
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

from ._arguments import check_count, check_instance
from ._keys import checked_key
from ._loop import masked_moments
from ._nested import NestedSampling, add_second_opinion
from ._outcome import Certificate, Verdict
from ._problem import Problem
from ._products import compiled
from ._reference import begins_at_base
from ._result import Result
from ._types import Draws, Key, PerDraw
from ._weights import Tilt, balance, effective, normalized, overlap_of, pareto_khat, tilt

NUM_DRAWS, NUM_NOISY_DRAWS, NUM_SIMULATIONS = 20_000, 4_000, 16
"""Draws of every proposal; with simulator noise fewer of them, each simulated so many times."""

MOST_TOGETHER = 1000
"""Simulations at once: one with its noise may take half a megabyte, and several times that while it runs."""

WIDE = 3.0
"""Width of the normal that stands in for an improper base, in the guide's standard deviations."""

MAX_KHAT, MIN_ESS, MIN_REACH, MIN_OVERLAP = 0.7, 100.0, 10.0, 25.0
"""Pareto shape above which weights say little (Vehtari et al. 2024), fewest effective draws of all proposals, of those that
look where the guide may not, and of those that bridge to a solution of unknown normaliser: 0.2 nats."""

FEW_DRAWS = 3.0
"""Effective number of draws that do not come from the guide, up to which they do not show that modes are missing."""

LOWEST = -1e30
"""Log density, nats, that stands for one that is not finite."""

MOST_NEGATIVE = 0.01
"""How far below zero, nats, beyond three standard errors, a gap may be estimated before the estimates contradict each other."""

UNSEEN_RATIO, MAX_UNSEEN = 10.0, 0.1
"""A place is unseen by the guide where its density is this factor below the solution's; share of the solution's mass in
such places above which modes are probably missing."""

ENOUGH_ALONE, MOST_UNSEEN_ALONE = 1000.0, 0.005
"""Effective draws, and share of the chains' draws in unseen places, from which and up to which the guide's weights need no
bridge to the chains' draws."""

OWN, OTHER, BASE, SOLUTION, INDEPENDENT = range(5)
"""Where a draw comes from: the guide, another guide, the base, draws of the solution that the guide was fitted to, and such
draws that it was not fitted to."""


class Known(NamedTuple):
    """What weighed draws of the solution tell of it.

    Attributes:
        log_density: Of the solution at the equally weighted draws, in unconstrained coordinates, shape [N].
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats.
        ess: Effective number of draws behind both.
        khat: Shape of a generalised Pareto distribution fitted to their largest weights.
        num_simulations: Model runs that it took.
    """

    log_density: Float[np.ndarray, " N"]
    log_normalizer: float
    ess: float
    khat: float
    num_simulations: int


def certify(
    key: Key,
    result: Result,
    *,
    others: Sequence[Result] = (),
    num_draws: int | None = None,
    second_opinion: NestedSampling | None = None,
) -> Certificate:
    """Estimate how far a result is from the maximum-entropy solution; `fit` does so at its end.

    The estimate is as good as the draws it is made from: those of the result's guide, of the base measure, and of the other
    results' guides. In high dimension the base hardly ever has the property; then modes that no guide has stay unseen, and
    the sentence says so.

    Args:
        key: Random key.
        result: The answer to judge.
        others: Further results for the same problem, which look for modes that this one lost.
        num_draws: Draws of every guide and of the base; 20,000 by default, or 4,000 of 16 simulations each where the model
            has noise of its own.
        second_opinion: Nested sampling of the solution, which shows modes that no draw of the certificate has seen. Needs
            BlackJAX (``pip install 'blackjax>=1.7'``), a proper prior and a model without noise of its own.

    Raises:
        ImportError: If a second opinion is asked for and BlackJAX is not installed.
        ValueError: If the multipliers are not finite, ``num_draws`` is below 100, or another result is for other constraints.

    References:
        Owen & Zhou 2000, JASA 95 (defensive mixtures); Vehtari et al. 2024, JMLR 25 (k-hat).
    """
    key = checked_key(key)
    for one in (result, *others):
        check_instance("a result", one, Result, "what fit returned")
    if not np.all(np.isfinite(result.eta)):
        raise ValueError(f"Expected finite multipliers; got {result.eta}. The run ended {result.status_name}.")
    if num_draws is not None:
        check_count("num_draws", num_draws, 100)
    for other in others:
        if other.problem.constraints != result.problem.constraints:
            raise ValueError(
                f"Expected results for one problem; got {result.problem.name!r} and {other.problem.name!r}."
            )
    flows = [other.flow for other in others]
    found = assess(key, result.problem, result.flow, result.eta, others=flows, num_draws=num_draws)
    if second_opinion is None:
        return found
    check_instance("second_opinion", second_opinion, NestedSampling, "NestedSampling(...)")
    return add_second_opinion(jax.random.fold_in(key, 1), result.problem, found, second_opinion)


def cost(problem: Problem, num_proposals: int, num_draws: int | None = None) -> int:
    """Model runs of a certificate."""
    if problem.simulator.noise:
        return (num_draws or NUM_NOISY_DRAWS) * NUM_SIMULATIONS * num_proposals
    return (num_draws or NUM_DRAWS) * num_proposals


def assess(
    key: Key,
    problem: Problem,
    flow: AbstractDistribution,
    eta: Float[np.ndarray, " M"],
    *,
    solution: Draws | None = None,
    independent: Draws | None = None,
    others: Sequence[AbstractDistribution] = (),
    num_draws: int | None = None,
    may_bridge: bool = True,
) -> Certificate:
    """Estimate how far a guide is from the maximum-entropy solution.

    Args:
        key: Random key.
        problem: The question.
        flow: The guide's flow over the unconstrained parameters.
        eta: Multipliers, shape [M].
        solution: Draws of ``p_eta`` found by other means, such as chains, in unconstrained coordinates.
        independent: Such draws that had no part in finding the guide, in place of the others: only they, and draws of the
            base, are evidence that no mode is missing.
        others: Flows of other guides.
        num_draws: Draws of every proposal.
        may_bridge: Whether draws of the solution may be among the proposals, where the others do not reach it; else they only
            show what the guide does not see.
    """
    pool = pooled(
        key,
        problem,
        flow,
        solution=solution,
        independent=independent,
        others=others,
        num_draws=num_draws,
        may_bridge=may_bridge,
    )
    return judged(pool, np.asarray(eta, float))


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
    columns = _Columns(*(np.asarray(column, float) for column in found))
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


def judged(pool: "Pool", eta: Float[np.ndarray, " M"]) -> Certificate:
    """The certificate that a pool of draws gives."""
    if not np.any(pool.usable[pool.kind == OWN]):
        nothing = Certificate(np.nan, np.nan, np.nan, eta, 0.0, np.inf, np.nan, 0.0, False, pool.num_simulations, "")
        return nothing._replace(verdict=_sentence(nothing))
    found = pool.weigh(eta, bridged=False)
    certificate = _certificate(pool, found)
    if pool.has_bridge and not (sees_all(pool, found) and found.khat <= MAX_KHAT):
        # A bridge takes the chains' shares of modes to be right.
        certificate = _certificate(pool, pool.weigh(eta, bridged=True))
    return certificate._replace(verdict=_sentence(certificate), conclusive=_is_conclusive(certificate))


def assess_by_draws(
    problem: Problem,
    flow: AbstractDistribution,
    verdict: Verdict,
    draws: Draws,
    eta: Float[np.ndarray, " M"],
    known: Known,
) -> Certificate:
    """Certify a guide without another simulation, from draws of the solution and its normaliser.

    The guide's fresh draws give ``KL(q || p_eta) = log Z + KL(q || base) + eta . R``, ``R`` being their mean violation; the
    solution's draws say what of it the guide does not see.

    Args:
        problem: The question.
        flow: The guide's flow over the unconstrained parameters.
        verdict: What its fresh draws showed.
        draws: Equally weighted draws of the solution, in unconstrained coordinates.
        eta: Its multipliers, shape [M].
        known: What is known of it.
    """
    log_guide = np.asarray(_log_density(flow, draws), float)
    # As if the errors of entropy and means were independent: they mostly cancel.
    own = verdict.entropy_standard_error**2 + np.sum(np.square(eta * verdict.standard_error))
    found = Certificate(
        upper_bound=known.log_normalizer,
        gap=known.log_normalizer - verdict.base_entropy + float(eta @ (verdict.mean - problem.target)),
        standard_error=math.sqrt(own + 1.0 / known.ess),
        eta=eta,
        ess=known.ess,
        khat=known.khat,
        unseen=float(np.mean(known.log_density - log_guide > math.log(UNSEEN_RATIO))),
        reach=known.ess,
        tilted=True,
        num_simulations=known.num_simulations,
        verdict="",
    )
    return found._replace(verdict=_sentence(found), conclusive=_is_conclusive(found))


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
    found = _Columns(*(np.asarray(c, float) for c in _evaluate(problem, (flow,), None, draws, key, simulations)))
    correction = _correction(found.noise, eta)
    log_weight = found.log_base - (found.moments - problem.target) @ eta - correction - found.log_guides[0]
    usable = np.isfinite(log_weight) & np.isfinite(moments).all(axis=1)
    log_weight = normalized(np.where(usable, log_weight, -np.inf))
    return log_weight, tilt(log_weight, np.where(usable[:, None], moments, problem.target), problem.target)


class _Columns(NamedTuple):
    """By draw: log densities of the guides [K, N] and of the defensive proposal, moments, their noise's covariance, log base."""

    log_guides: np.ndarray
    log_defence: np.ndarray
    moments: np.ndarray
    noise: np.ndarray
    log_base: np.ndarray

    def usable(self, target: np.ndarray) -> "_Columns":
        """With no mass where a simulation failed."""
        usable = np.isfinite(self.log_base) & np.isfinite(self.moments).all(axis=1)
        # A draw at the edge of the support may be infinite in unconstrained coordinates: it has no density there.
        usable = usable & np.isfinite(self.log_guides).all(axis=0) & np.isfinite(self.log_defence)
        return _Columns(
            log_guides=np.where(usable, self.log_guides, LOWEST),
            log_defence=np.where(usable, self.log_defence, LOWEST),
            moments=np.where(usable[:, None], self.moments, target),
            noise=np.where(usable[:, None, None], self.noise, 0.0),
            log_base=np.where(usable, self.log_base, -np.inf),
        )


def _correction(noise: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """``eta' S eta / 2``, nats, which is taken off the exponent: see `_noise`."""
    return 0.5 * (noise @ eta) @ eta if noise.shape[-1] == len(eta) else np.zeros(len(noise))


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
    columns: _Columns
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
        return columns.log_base - (columns.moments - self.target) @ eta - _correction(columns.noise, eta)

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
            khat=pareto_khat(weight),
            relative_variance=relative_variance,
            overlap=overlap,
        )

    def ahead(self, found: PoolWeights) -> Float[np.ndarray, " N"]:
        """Log ratio of the solution's density to the guide's."""
        log_p = self.log_p(found.eta) - found.log_normalizer
        return np.subtract(log_p, self.columns.log_guides[0], out=np.zeros_like(log_p), where=self.usable)


def sees_all(pool: Pool, found: PoolWeights) -> bool:
    """Whether the tilt has enough weights of its own, and the guide some density wherever the chains' draws are."""
    is_unseen = pool.ahead(found)[pool.kind >= SOLUTION] > math.log(UNSEEN_RATIO)
    return bool(found.reached and found.ess >= ENOUGH_ALONE and np.mean(is_unseen) <= MOST_UNSEEN_ALONE)


def _certificate(pool: Pool, found: PoolWeights) -> Certificate:
    """Numbers, without a verdict."""
    eta, weight = found.eta, np.exp(found.log_weight)
    own = (pool.kind == OWN) & pool.usable
    # The guide's own distance is linear in T: nothing to correct for.
    distance = (pool.columns.log_guides[0] - pool.log_p(eta) - _correction(pool.columns.noise, eta))[own]
    unseen, reach = _coverage(pool.ahead(found) > math.log(UNSEEN_RATIO), weight, pool.kind, found.rows)
    return Certificate(
        upper_bound=found.log_normalizer,
        gap=float(np.mean(distance) + found.log_normalizer),
        standard_error=math.sqrt(np.var(distance) / own.sum() + found.relative_variance),
        eta=eta,
        ess=found.ess,
        khat=found.khat,
        unseen=unseen,
        reach=reach,
        tilted=found.reached,
        num_simulations=pool.num_simulations,
        verdict="",
        overlap=found.overlap,
    )


def _coverage(is_unseen: np.ndarray, weight: np.ndarray, kind: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """Fraction of the solution's mass that the guide does not see, and the effective number of draws that could tell.

    Only draws that had no part in finding the guide can tell: those of the base, and independent ones of the solution.
    """
    reach = effective(weight[kind[rows] == BASE])
    # Any draws may show that modes are missing, but two or three with large weights do not.
    shown = effective(weight[kind[rows] != OWN]) > FEW_DRAWS
    unseen = float(weight[is_unseen[rows]].sum()) if shown else 0.0
    solution = kind == INDEPENDENT
    if not np.any(solution):
        return unseen, reach
    return max(unseen, float(np.mean(is_unseen[solution]))), reach + float(solution.sum())


def _is_conclusive(found: Certificate) -> bool:
    """Whether the interval of the gap may be cited: the estimates agree, are precise, and could have seen what is missing."""
    agrees = np.isfinite(found.gap) and found.gap > -(MOST_NEGATIVE + 3 * found.standard_error)
    precise = found.khat <= MAX_KHAT and found.ess >= MIN_ESS and found.overlap >= MIN_OVERLAP
    return bool(agrees and found.tilted and precise and found.reach >= MIN_REACH and found.unseen <= MAX_UNSEEN)


def _sentence(found: Certificate) -> str:
    """The outcome in plain words."""
    if not np.isfinite(found.gap):
        return "Cannot tell: the densities of the draws are not finite."
    if not found.tilted:
        return "Cannot tell: no weighting of the draws has the property, so the optimum is out of their sight."
    if found.unseen > MAX_UNSEEN:
        return (
            f"Modes are probably missing: {100 * found.unseen:.0f} % of the solution's mass lies where the guide has less "
            f"than a tenth of its density; {found.gap:.2f} nats from the optimum."
        )
    if found.overlap < MIN_OVERLAP:
        return (
            f"Cannot tell: the guide's draws and the solution's hardly overlap ({found.overlap:.1f} effective draws), so that "
            "the optimum's value is not known."
        )
    if found.khat > MAX_KHAT or found.ess < MIN_ESS:
        return (
            f"Cannot tell: the importance weights are too uneven (Pareto k-hat {found.khat:.2f}, {found.ess:.0f} effective "
            "draws)."
        )
    if found.gap < -(MOST_NEGATIVE + 3 * found.standard_error):
        return (
            f"Cannot tell: the estimates contradict each other, since the distance to the optimum cannot be negative "
            f"({found.gap:.3f} ± {found.standard_error:.3f} nats)."
        )
    sentence = f"Optimal within {found.upper:.2g} nats."
    if found.reach < MIN_REACH:
        return (
            f"{sentence} Cannot tell whether modes are missing: draws that had no part in finding the guide hardly ever have "
            f"the property ({found.reach:.0f} effective ones)."
        )
    return sentence


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
def _log_density(flow: AbstractDistribution, draws: Draws) -> PerDraw:
    return flow.log_prob(draws)


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
