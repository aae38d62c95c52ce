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
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Float

from ._arguments import check_count, check_instance
from ._keys import checked_key
from ._nested import NestedSampling, add_second_opinion
from ._outcome import Certificate, Verdict
from ._pool import (
    BASE,
    INDEPENDENT,
    NUM_DRAWS,
    NUM_NOISY_DRAWS,
    NUM_SIMULATIONS,
    OWN,
    UNSEEN_RATIO,
    Pool,
    PoolWeights,
    correction,
    pooled,
    sees_all,
)
from ._problem import Problem
from ._products import compiled
from ._result import Result
from ._types import Draws, Key, PerDraw
from ._weights import effective

MAX_KHAT, MIN_ESS, MIN_REACH, MIN_OVERLAP = 0.7, 100.0, 10.0, 25.0
"""Pareto shape above which weights say little (Vehtari et al. 2024), fewest effective draws of all proposals, of those that
look where the guide may not, and of those that bridge to a solution of unknown normaliser: 0.2 nats."""

FEW_DRAWS = 3.0
"""Effective number of draws that do not come from the guide, up to which they do not show that modes are missing."""

MAX_UNSEEN = 0.1
"""Share of the solution's mass in unseen places above which modes are probably missing."""

MOST_NEGATIVE = 0.01
"""How far below zero, nats, beyond three standard errors, a gap may be estimated before the estimates contradict each other."""


class Known(NamedTuple):
    """What weighed draws of the solution tell of it.

    Attributes:
        log_density: Of the solution at the equally weighted draws, in unconstrained coordinates, shape [N].
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats.
        relative_variance: Of ``Z``.
        ess: Effective number of draws behind both.
        khat: Shape of a generalised Pareto distribution fitted to their largest weights.
        num_simulations: Model runs that it took.
    """

    log_density: Float[np.ndarray, " N"]
    log_normalizer: float
    relative_variance: float
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
    ahead = known.log_density - np.asarray(_log_density(flow, draws), float)
    direction = np.append(eta, -1.0)
    own = direction @ verdict.covariance @ direction
    found = Certificate(
        upper_bound=known.log_normalizer,
        gap=known.log_normalizer - verdict.base_entropy + float(eta @ (verdict.mean - problem.target)),
        standard_error=math.sqrt(max(own, 0.0) + known.relative_variance),
        eta=eta,
        ess=known.ess,
        khat=known.khat,
        unseen=float(np.mean(ahead > math.log(UNSEEN_RATIO))),
        reach=known.ess,
        tilted=True,
        num_simulations=known.num_simulations,
        verdict="",
    )
    return found._replace(verdict=_sentence(found), conclusive=_is_conclusive(found))


def _certificate(pool: Pool, found: PoolWeights) -> Certificate:
    """Numbers, without a verdict."""
    eta, weight = found.eta, np.exp(found.log_weight)
    own = (pool.kind == OWN) & pool.usable
    # The guide's own distance is linear in T: nothing to correct for.
    distance = (pool.columns.log_guides[0] - pool.log_p(eta) - correction(pool.columns.noise, eta))[own]
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


@compiled
def _log_density(flow: AbstractDistribution, draws: Draws) -> PerDraw:
    return flow.log_prob(draws)
