"""Whether targets are out of reach: of every weighting of draws that chains pushed towards them, and of others."""

import numpy as np
from jaxtyping import Float

from ._chains import Solved
from ._problem import Problem
from ._types import Key
from ._work import moments_at, reference_moments

NUM_HULL, LEAST_DISTANCE = 2000, 0.1
"""Draws of each kind that say whether targets are out of reach, and least distance at which they are, in standard deviations."""


def why_infeasible(problem: Problem, solution: Solved, key: Key) -> str | None:
    """Why no distribution seems to have the property, by draws of the chains that were pushed there and of the reference."""
    if not problem.simulator.has_proper_prior:
        # A wide normal may be nowhere near the property.
        return None
    draws = solution.draws.reshape(-1, problem.dim)
    # Measured anew: where multipliers ran off to no number, chains stand the targets in for the moments.
    pushed = np.asarray(moments_at(problem, key, draws[:: max(1, len(draws) // NUM_HULL)]), float)
    others = np.asarray(reference_moments(problem, key, NUM_HULL), float)
    if np.sum(np.isfinite(pushed).all(axis=1)) < NUM_HULL // 10:
        return None
    distance = out_of_reach(np.concatenate([pushed, others]), problem)
    if distance <= LEAST_DISTANCE:
        return None
    return (
        f"No mixture of {len(pushed) + len(others)} draws, half of them pushed to the targets by chains, comes nearer to them "
        f"than {distance:.2g} standard deviations. Widen a spread, move a target, or widen the prior."
    )


def out_of_reach(moments: Float[np.ndarray, "N M"], problem: Problem) -> float:
    """How far the targets are from every mean that a weighting of these draws can have, in units of their scale.

    Args:
        moments: ``T`` of draws that were pushed towards the targets, and of others.
        problem: The question.

    Returns:
        The least largest deviation; zero where the targets are a weighted mean.
    """
    # It takes longer to import than most of the package.
    import scipy.optimize

    moments = moments[np.isfinite(moments).all(axis=1)]
    if len(moments) == 0:
        return np.inf
    scale = np.maximum(problem.scale(moments.std(axis=0)), np.finfo(np.float32).tiny)
    away = ((moments - problem.target) / scale).T
    count, size = away.shape[1], away.shape[0]
    # Weights and the deviation t: |sum of weights away| <= t.
    bound = np.block([[away, -np.ones((size, 1))], [-away, -np.ones((size, 1))]])
    total = np.append(np.ones(count), 0.0)[None]
    found = scipy.optimize.linprog(
        np.append(np.zeros(count), 1.0), A_ub=bound, b_ub=np.zeros(2 * size), A_eq=total, b_eq=[1.0], method="highs"
    )
    return float(found.x[-1]) if found.success else 0.0
