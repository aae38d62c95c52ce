"""How a run ended, as plain data: status with advice, verdict on fresh draws, certificate."""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class STATUS(enum.Enum):
    """How a run ended; the value is advice."""

    satisfied = "The emergent property holds: every constraint's interval lies within the tolerance."
    unsatisfied = (
        "Some constraint is not within the tolerance yet. Give more steps (max_steps), more draws a step (num_draws), or a "
        "larger flow; problem.check(key) looks for a cause."
    )
    infeasible = (
        "The multipliers grow without end while the violation stays: no distribution over these parameters seems to have "
        "this property. Widen a spread, move a target, or widen the prior."
    )
    nonfinite_draws = (
        "Some simulations are not finite, and the statistics' means leave them out: the answer is conditioned on finite "
        "simulations. Narrow the prior, or make the simulator finite there."
    )
    nonfinite = (
        "Every simulation, or the loss itself, became non-finite. problem.check(key) shows where the model fails; else "
        "lower the learning rate."
    )


class Verdict(NamedTuple):
    """Moments measured on fresh draws of the finished guide.

    Attributes:
        mean: ``E[T]``, shape [M], in the moments' units.
        scale: Standard deviation of ``T`` under the guide, shape [M].
        standard_error: Of ``mean``, shape [M].
        entropy: Differential entropy of the parameters' distribution, nats.
        entropy_standard_error: Of ``entropy``, nats.
        base_entropy: ``-KL(q || base)``, nats.
        finite_share: Share of draws with finite moments.
        num_draws: Fresh draws used.
    """

    mean: Float[np.ndarray, " M"]
    scale: Float[np.ndarray, " M"]
    standard_error: Float[np.ndarray, " M"]
    entropy: float
    entropy_standard_error: float
    base_entropy: float
    finite_share: float
    num_draws: int

    def violation(self, target: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """``(E[T] - target) / scale``; infinite where a moment off its target does not vary."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.mean == target, 0.0, (self.mean - target) / self.scale)

    def satisfies(self, target: Float[np.ndarray, " M"], tolerance: float) -> Float[np.ndarray, " M"]:
        """Which constraints pass the equivalence test: a 95 % interval within ``tolerance`` standard deviations."""
        margin = 1.96 * self.standard_error
        return np.abs(self.mean - target) + margin <= tolerance * self.scale


class Certificate(NamedTuple):
    """What is known about the distance of an answer from the optimum.

    Attributes:
        upper_bound: Estimate of ``D(eta)``, the most that ``-KL(q || base)`` can be, nats.
        gap: Estimate of ``KL(q || p_eta)``, nats.
        standard_error: Of the gap, nats.
        eta: Multipliers at which the weighted draws have the property exactly, shape [M].
        ess: Effective number of weighted draws.
        khat: Shape of a generalised Pareto distribution fitted to the largest weights.
        unseen: Share of the solution's mass where the guide has less than a tenth of the density.
        reach: Effective number of the draws that do not come from the guide.
        tilted: Whether any weighting of the draws has the property.
        num_simulations: Model runs used.
        verdict: All of it in a sentence.
    """

    upper_bound: float
    gap: float
    standard_error: float
    eta: Float[np.ndarray, " M"]
    ess: float
    khat: float
    unseen: float
    reach: float
    tilted: bool
    num_simulations: int
    verdict: str
