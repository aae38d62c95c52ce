"""How a run ended, as plain data: status with advice, verdict on fresh draws, certificate."""

import enum
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Bool, Float, Int

from ._html import escape, table
from ._problem import Problem

if TYPE_CHECKING:
    import xarray as xr


class STATUS(enum.Enum):
    """How a run ended; the value is advice."""

    satisfied = "The emergent property holds: every constraint's interval lies within the tolerance."
    unsatisfied = (
        "Some constraint is not within the tolerance yet. Give more steps (max_steps), more draws a step (num_draws), or a "
        "larger flow; problem.check(key) looks for a cause."
    )
    infeasible = (
        "The multipliers grow without end while the violation stays: no distribution over these parameters seems to have "
        "this property. Widen a spread, move a target, or widen the prior. With an optimiser of your own, lower its learning "
        "rate first."
    )
    nonfinite_draws = (
        "Some simulations are not finite, and the statistics' means leave them out. Narrow the prior, make the simulator "
        "finite there, give them a value (Target(if_nonfinite=...)), or ask of finite ones alone "
        "(Problem(nonfinite='condition'))."
    )
    diverged = (
        "The steps led away from every answer, however much they were shortened, so the run stopped early. Give a smaller "
        "learning rate (optimizer), or find where the gradients explode: problem.check(key)."
    )
    interrupted = "A signal stopped the run: the answer is as far as it came. epi.resume goes on from a checkpoint."
    nonfinite = (
        "Every simulation, or the loss itself, became non-finite. problem.check(key) shows where the model fails; else "
        "lower the learning rate."
    )


class Verdict(NamedTuple):
    """Moments measured on fresh draws of the finished guide.

    Attributes:
        mean: ``E[T]``, shape [M], in the moments' units.
        scale: Unit in which deviations from the targets are measured, shape [M]: the requested standard deviation where
            there is one, else the moment's own, see `Problem.scale`.
        standard_error: Of ``mean``, shape [M].
        entropy: Differential entropy of the parameters' distribution, nats.
        entropy_standard_error: Of ``entropy``, nats.
        base_entropy: ``-KL(q || base)``, nats.
        finite_share: Share of draws with finite moments.
        num_draws: Fresh draws used.
        heavy_tailed: Which moments have a standard deviation that few draws make, shape [M]; their scale is that of the
            other draws. ``None`` where it was not looked at.
        covariance: Of the errors of ``mean`` and ``base_entropy`` together, shape [M + 1, M + 1]: those of one guide's draws
            mostly cancel in ``eta . mean - base_entropy``. ``None`` where it was not looked at.
    """

    mean: Float[np.ndarray, " M"]
    scale: Float[np.ndarray, " M"]
    standard_error: Float[np.ndarray, " M"]
    entropy: float
    entropy_standard_error: float
    base_entropy: float
    finite_share: float
    num_draws: int
    heavy_tailed: Bool[np.ndarray, " M"] | None = None
    covariance: Float[np.ndarray, "M+1 M+1"] | None = None

    def violation(self, target: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """``(E[T] - target) / scale``; infinite where a moment off its target does not vary."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.mean == target, 0.0, (self.mean - target) / self.scale)

    def satisfies(self, target: Float[np.ndarray, " M"], tolerance: float) -> Float[np.ndarray, " M"]:
        """Which constraints pass the equivalence test: a 95 % interval within ``tolerance`` of the scale."""
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
        reach: Effective number of the draws that had no part in finding the guide: those of the base, and of independent
            searches for the solution.
        tilted: Whether any weighting of the draws has the property.
        num_simulations: Model runs used.
        verdict: All of it in a sentence.
        overlap: Effective number of draws that could be the guide's or the solution's own, where draws of the solution whose
            normaliser is unknown take part: one over the variance of its logarithm. Infinite where none do.
        conclusive: Whether ``lower`` and ``upper`` may be cited: the estimates agree and are precise, and draws that had no part
            in finding the guide could have shown that modes are missing.
        second_log_normalizer: ``D(eta)`` by nested sampling, nats, where `certify` was given a ``second_opinion``; else NaN.
        second_standard_error: Its standard error, nats.
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
    overlap: float = math.inf
    conclusive: bool = False
    second_log_normalizer: float = math.nan
    second_standard_error: float = math.nan

    @property
    def lower(self) -> float:
        """Lower end of the gap's 95 % interval, nats; not below zero."""
        return max(self.gap - 1.96 * self.standard_error, 0.0)

    @property
    def upper(self) -> float:
        """Upper end of the gap's 95 % interval, nats."""
        return max(self.gap, 0.0) + 1.96 * self.standard_error


class Restarts(NamedTuple):
    """All restarts of a fit, in the order of their keys.

    Attributes:
        chosen: Number of the one that was returned, or that the mixture was compared with.
        corrected: ``H_b - eta . R``, nats: the optimum's is the dual's value, and what is missing is ``KL(q || p_eta)``.
        standard_error: Of these, nats.
        statuses: How each ended, by name.
        flows: Their flows over the unconstrained parameters.
        shares: Of the returned mixture; one for the chosen restart where none is mixed.
        mixed: Whether the returned guide is a mixture.
    """

    chosen: int
    corrected: Float[np.ndarray, " K"]
    standard_error: Float[np.ndarray, " K"]
    statuses: tuple[str, ...]
    flows: tuple[AbstractDistribution, ...]
    shares: Float[np.ndarray, " K"]
    mixed: bool

    @property
    def num_mixed(self) -> int:
        """Members of the returned guide."""
        return int(np.count_nonzero(self.shares))

    @property
    def lost_modes(self) -> list[str]:
        """Restarts that are as far below the best as if they had one of two, three, ... equal modes, in words."""
        found = []
        for i, behind in enumerate(np.max(self.corrected) - self.corrected):
            near = [n for n in (2, 3, 4) if abs(behind - math.log(n)) < 0.1]
            if near and self.standard_error[i] < 0.05:
                found.append(
                    f"restart {i} is {behind:.2f} nats lower, as if it had lost {near[0] - 1} of {near[0]} equal modes"
                )
        return found

    def __str__(self) -> str:
        best = np.max(self.corrected)
        spread = ", ".join(f"{best - value:.3f}" for value in self.corrected)
        returned = f"a mixture of {self.num_mixed}" if self.mixed else f"restart {self.chosen}"
        lines = [f"returned {returned}; nats below the best, by restart: {spread}", *self.lost_modes]
        return "; ".join(lines)


class Snapshots(NamedTuple):
    """Draws of the guide during a run, each simulated once; the same noise goes into every snapshot.

    Attributes:
        step: Optimiser steps done, shape [S].
        parameters: Site name to array of shape ``(S, N, *site shape)``, on the constrained scale.
        statistics: Statistic name to array of shape ``(S, N, *its shape)``, each in its unit.
        log_density: Of the parameters under the guide, on the constrained scale, nats, shape [S, N].
    """

    step: Int[np.ndarray, " S"]
    parameters: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    log_density: Float[np.ndarray, "S N"]


def constraint_table(problem: Problem, verdict: Verdict, eta: Float[np.ndarray, " M"]) -> "xr.Dataset":
    """Everything about every constraint, over the dim ``constraint``."""
    import xarray as xr

    found = problem.constraints
    columns = {
        "target": problem.target,
        "achieved": verdict.mean,
        "standard_error": verdict.standard_error,
        "scale": verdict.scale,
        "violation": verdict.violation(problem.target),
        "multiplier": eta,
        "order": np.array([constraint.order for constraint in found]),
        "unit": np.array([constraint.unit for constraint in found]),
    }
    names = [constraint.name for constraint in found]
    return xr.Dataset({n: ("constraint", c) for n, c in columns.items()}, coords={"constraint": names})


class Summary(NamedTuple):
    """What is said about an answer: a title, labelled lines, and the constraints' table under a header.

    Attributes:
        title: What it is.
        lines: Label and text; a line that goes on has no label.
        header: Of the table.
        rows: Of the table.
    """

    title: str
    lines: list[tuple[str, str]]
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def text(self) -> str:
        """For a terminal."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        cells = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in (self.header, *self.rows)
        ]
        lines = [f"{label:<8}  {text}" for label, text in self.lines]
        return "\n".join(line.rstrip() for line in (self.title, *lines, *cells))

    def html(self) -> str:
        """For a notebook."""
        title = f"<p><strong>{escape(self.title)}</strong></p>"
        return title + table(("", ""), self.lines) + table(self.header, self.rows)


def summary(
    title: str, lines: list[tuple[str, str]], problem: Problem, verdict: Verdict, eta: Float[np.ndarray, " M"]
) -> Summary:
    """Put an answer's own lines over the table of its constraints."""
    header = ("constraint", "unit", "target", "achieved", "95 % interval", "violation (sd)", "multiplier")
    return Summary(title, lines, header, _rows(problem, verdict, eta))


def _rows(problem: Problem, verdict: Verdict, eta: Float[np.ndarray, " M"]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    violation = verdict.violation(problem.target)
    for i, constraint in enumerate(problem.constraints):
        margin = 1.96 * verdict.standard_error[i]
        interval = f"[{verdict.mean[i] - margin:.5g}, {verdict.mean[i] + margin:.5g}]"
        cells = (f"{constraint.target:.5g}", f"{verdict.mean[i]:.5g}", interval)
        rows.append((constraint.name, constraint.unit or "-", *cells, f"{violation[i]:+.3f}", f"{eta[i]:.5g}"))
    return rows


def message(status: STATUS, problem: Problem, verdict: Verdict, tolerance: float, advice: str = "") -> str:
    """A status in a sentence, with the constraints that are furthest off where there are any.

    Args:
        status: How it ended.
        problem: The question.
        verdict: The constraints as measured.
        tolerance: Of the verdict, in standard deviations.
        advice: In place of the status's own.
    """
    if status not in (STATUS.unsatisfied, STATUS.infeasible):
        return advice or status.value
    violation, passes = verdict.violation(problem.target), verdict.satisfies(problem.target, tolerance)
    parts = [
        f"{problem.constraints[i].name} is {verdict.mean[i]:.4g}, {abs(violation[i]):.2g} sd "
        f"{'above' if violation[i] > 0 else 'below'} its target {problem.target[i]:.4g}"
        for i in [i for i in np.argsort(-np.abs(violation)) if not passes[i]][:4]
    ]
    return f"{advice or status.value} Off: {'; '.join(parts)}." if parts else advice or status.value
