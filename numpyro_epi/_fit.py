"""The run around the compiled loop: start, chunks with progress and early stop, and a verdict on fresh draws."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import AbstractDistribution
from tqdm.auto import tqdm

from . import _optimizer, flows, objectives, starts
from ._arguments import as_number, check_instance, check_optional
from ._begin import begin_flow, num_components
from ._certificate import assess, cost
from ._fresh import measure
from ._keys import checked_key, key_text
from ._loop import EpochRecord, Loop, LoopState, partition
from ._outcome import STATUS, Verdict
from ._problem import Problem, check_budget
from ._restarts import Candidates, Fleet, rank
from ._result import Result
from ._types import Key, Metric, Moments
from .multipliers import AbstractMultiplierRule, Natural
from .objectives import AbstractObjective, Anchored

NUM_CHUNKS = 20
"""Times a run may report, stop early or be interrupted."""

FRESH_BATCHES = 80
"""Batches of the verdict: with 500 draws each, a mean's 95 % interval is 0.01 standard deviations wide on either side."""

AVERAGED_PART = 30
"""The guide is averaged over the last steps, about one in so many."""

STEPS_PER_BATCH = 4
"""A run ends with one batch for so many steps to read its multipliers from: a tenth of its time, since they need no
gradients, and the mean's error is theirs."""

MIN_WEIGHTED, BIASED_PART = 1000.0, 0.01
"""Effective draws, and the part of the guide's residual variance that is taken to lie along the statistics and so to bias its
own multipliers, from which on the certificate's are better: their relative variance is one over its effective draws."""

MAX_DISTANCE = 0.5
"""Variance of ``log q - log base + eta . T``, nats^2, up to which a guide shows its multipliers better than its history."""

START_BATCHES = 8
"""Batches that measure the guide before the first step."""

MAX_PROPOSALS = 4
"""Most guides whose draws a certificate weighs: the chosen one and the best other restarts."""

MAX_CERTIFICATE_SHARE = 0.2
"""Most model runs of a certificate that nobody asked for, as a share of the loop's own."""

CLOSE_SLACK = 0.004
"""Variance of ``log q - log base + eta . T``, nats^2, at which a guide within tolerance is as good as it needs be: for a
nearly exact guide KL is half of it."""


def fit(
    key: Key,
    problem: Problem,
    *,
    flow: flows.FlowBuilder = flows.default,
    start: starts.AbstractStart | None = None,
    objective: AbstractObjective | None = None,
    rule: AbstractMultiplierRule = Natural(),
    optimizer: optax.GradientTransformation | None = None,
    num_draws: int | None = None,
    max_steps: int | None = None,
    num_restarts: int = 1,
    tolerance: float = 0.05,
    certify: bool | None = None,
    progress: bool | None = None,
) -> Result:
    """Find the maximum-entropy distribution of a problem's parameters that has its emergent property.

    Args:
        key: Random key, ``jax.random.key(seed)``; the same key gives the same result.
        problem: The question.
        flow: Builder of the flow, ``(key, dim) -> flowjax distribution``.
        start: Where to begin; by default chains that solve the dual where simulations are cheap and smooth, see
            `starts.default`.
        objective: Estimator of the augmented Lagrangian; by default gradients through the simulator, or through the density
            only where a statistic is declared not differentiable.
        rule: How the multipliers move.
        optimizer: Any optax optimiser; by default Adam with a cosine learning rate and global-norm clipping.
        num_draws: Draws a step, each of them simulated once; by default the problem's own, 500 if it says nothing.
        max_steps: Most optimiser steps; a run whose guide is nearly exact stops earlier. By default the problem's own, 2500
            if it says nothing.
        num_restarts: Flows that are fitted from one start, each with noise of its own, in one compiled program; the one nearest
            to the optimum is returned, or a mixture of them where that is nearer. See `Result.restarts`.
        tolerance: How near every mean must be to its target, in standard deviations of its statistic.
        certify: Estimate at the end how far the answer can be from the optimum; by default where that takes at most a fifth
            of the simulations that the run has taken.
        progress: Show a progress bar; by default only on a terminal.

    Returns:
        What was found, whatever the outcome; see `Result.status`.

    Raises:
        TypeError: If ``problem`` is not a `Problem` or ``key`` not a random key.
        ValueError: If a number is out of range, or the flow does not fit the problem.
    """
    began = time.perf_counter()
    key = checked_key(key)
    _check_arguments(problem, tolerance)
    _check_choices(flow, start=start, objective=objective, rule=rule, optimizer=optimizer)
    check_optional(certify=certify, progress=progress)
    num_draws = problem.num_draws if num_draws is None else num_draws
    max_steps = problem.max_steps if max_steps is None else max_steps
    check_budget(num_draws=num_draws, max_steps=max_steps, num_restarts=num_restarts)
    keys = jax.random.split(key, 5)
    begin = (starts.default(problem) if start is None else start)(keys[0], problem)
    objective = objectives.default(problem) if objective is None else objective
    if begin.eta is not None:
        objective = Anchored(objective, begin.draws)
    optimizer = optimizer or _optimizer.default(max_steps)
    annealed = rule.anneals and begin.eta is None
    anneal_steps = int(0.6 * max_steps) if annealed else 0
    memory = max(1, max_steps // AVERAGED_PART)
    settings = _Settings(problem, objective, rule, optimizer, num_draws, anneal_steps, memory)
    begun = [
        settings.begin(begin_flow(one[1], flow, begin, problem.dim), begin, one)
        for one in _restart_keys(keys, num_restarts)
    ]
    fleet = Fleet.of([loop for loop, _, _ in begun])
    budget = max_steps if all(finite_share > 0 for *_, finite_share in begun) else 0
    verdict_key = jax.random.fold_in(keys[2], 1)

    def judge(states: list[LoopState], epochs: int) -> list[Verdict]:
        # Every look at the run takes draws of its own.
        key = jax.random.fold_in(verdict_key, epochs)
        return [measure(problem, f, key, FRESH_BATCHES, num_draws).verdict() for f in fleet.flows(states)]

    states, records, verdicts = _run(
        fleet, [state for _, state, _ in begun], budget, judge, tolerance=tolerance, progress=_shows(progress)
    )
    statuses = [_status(problem, v, r, tolerance) for v, r in zip(verdicts, records, strict=True)]
    late = [_late_multipliers(state, record) for state, record in zip(states, records, strict=True)]
    eta = np.asarray(begin.eta if begin.eta is not None else np.median(late, axis=0), float)
    found = Candidates(fleet.flows(states), verdicts, statuses)
    restarts = None
    if num_restarts > 1:
        found, restarts = rank(
            jax.random.fold_in(keys[2], 4), problem, found, eta, measure_with=(FRESH_BATCHES, num_draws)
        )
    fitted, verdict, status = found.flows[0], found.verdicts[0], found.statuses[0]
    if restarts is not None and restarts.mixed:
        status = _status(problem, verdict, records[restarts.chosen], tolerance)
    steps = int(states[0].step)
    residual = None
    if begin.eta is None and status is STATUS.satisfied:
        num_batches = max(FRESH_BATCHES, steps // STEPS_PER_BATCH)
        shown = measure(problem, fitted, jax.random.fold_in(keys[2], 2), num_batches, num_draws)
        read, residual = shown.multipliers(problem.target)
        eta = read if residual < MAX_DISTANCE else eta
    certificate = None
    proposals = 1 + min(len(found.flows), MAX_PROPOSALS) + (begin.eta is not None)
    simulations = num_restarts * steps * num_draws
    if _certifies(certify, problem, proposals, simulations=simulations) and np.all(np.isfinite(eta)):
        certificate = assess(
            jax.random.fold_in(keys[2], 3),
            problem,
            fitted,
            eta,
            solution=begin.draws if begin.eta is not None else None,
            others=found.flows[1:MAX_PROPOSALS],
        )
        # Weights correct for what the guide misses of the solution, which its regression on the statistics does not; but
        # they are fewer draws.
        enough = max(MIN_WEIGHTED, 1.0 / (BIASED_PART * max(residual or 0.0, 1e-9)))
        if residual is not None and certificate.tilted and certificate.ess > enough:
            eta = certificate.eta
    return Result(
        problem=problem,
        flow=fitted,
        status=status,
        verdict=verdict,
        eta=np.asarray(eta, float),
        records=_history(records[restarts.chosen if restarts else 0], problem),
        settings={
            "num_draws": num_draws,
            "max_steps": max_steps,
            "steps": steps,
            "tolerance": tolerance,
            "num_restarts": num_restarts,
            "start_message": begin.message,
            "flow": repr(flow) if isinstance(flow, eqx.Module) else getattr(flow, "__qualname__", repr(flow)),
            "rule": repr(rule),
            "num_components": num_components(begin),
            "num_mixed": restarts.num_mixed if restarts else 1,
        },
        seconds=time.perf_counter() - began,
        seed=key_text(key),
        certificate=certificate,
        restarts=restarts,
    )


class _Settings(NamedTuple):
    """What all restarts of a run have in common."""

    problem: Problem
    objective: AbstractObjective
    rule: AbstractMultiplierRule
    optimizer: optax.GradientTransformation
    num_draws: int
    anneal_steps: int
    memory: int

    def begin(self, flow: AbstractDistribution, begin: starts.Start, keys: Key) -> tuple[Loop, LoopState, float]:
        """The loop and first state of one restart, and the share of its first draws that are finite."""
        parameters, static = partition(flow)
        first = measure(self.problem, flow, keys[2], START_BATCHES, self.num_draws)
        state = LoopState(
            parameters=parameters,
            averaged=parameters,
            optimizer=self.optimizer.init(parameters),
            rule=_begin_rule(self.rule, keys[3], jnp.asarray(first.covariance, float), begin.eta),
            start_moments=jnp.asarray(first.mean, float),
            remaining=jnp.asarray(1.0 if self.anneal_steps else 0.0, float),
            key=keys[4],
            step=jnp.zeros((), int),
        )
        loop = Loop(
            self.problem,
            static,
            self.objective,
            self.rule,
            self.optimizer,
            self.num_draws,
            self.anneal_steps,
            self.memory,
        )
        return loop, state, first.finite_share


def _restart_keys(keys: Key, num_restarts: int) -> list[Key]:
    """Keys of each restart; the first one's are those of a run without restarts."""
    more = [jax.vmap(lambda key, i=i: jax.random.fold_in(key, 1000 + i))(keys) for i in range(1, num_restarts)]
    return [keys, *more]


def _certifies(asked: bool | None, problem: Problem, num_proposals: int, *, simulations: int) -> bool:
    return cost(problem, num_proposals) <= MAX_CERTIFICATE_SHARE * simulations if asked is None else asked


def _begin_rule(rule: AbstractMultiplierRule, key: Key, covariance: Metric, eta: Moments | None) -> Any:
    state = rule.init(key, covariance)
    return state if eta is None else state._replace(eta=eta.astype(state.eta.dtype))


def _run(
    fleet: Fleet,
    states: list[LoopState],
    max_steps: int,
    judge: Callable[[list[LoopState], int], list[Verdict]],
    *,
    tolerance: float,
    progress: bool,
) -> tuple[list[LoopState], list[EpochRecord | None], list[Verdict]]:
    """Run chunks of epochs until the budget is spent, or every guide is nearly exact and fresh draws say so too."""
    loop = fleet.loop
    steps_per_epoch = loop.rule.steps_per_epoch
    num_epochs = math.ceil(max_steps / steps_per_epoch)
    per_chunk = max(1, math.ceil(num_epochs / NUM_CHUNKS))
    num_chunks = math.ceil(num_epochs / per_chunk)
    found: list[list[EpochRecord]] = []
    verdicts: list[Verdict] = []

    def satisfied() -> bool:
        return bool(verdicts) and all(np.all(v.satisfies(loop.problem.target, tolerance)) for v in verdicts)

    with tqdm(total=num_chunks * per_chunk * steps_per_epoch, disable=not progress, unit="step") as bar:
        state = fleet.stack(states)
        run_epochs = fleet.compile(state, per_chunk)
        for chunk in range(num_chunks):
            state, records = run_epochs(state)
            found.append(fleet.split(jax.device_get(records)))
            bar.update(per_chunk * steps_per_epoch)
            bar.set_postfix_str(_progress(found[-1][0], loop.problem), refresh=False)
            arrived = np.all(np.asarray(state.remaining) == 0.0)
            if arrived and all(_close(each, loop.problem, tolerance) for each in found[-1]):
                verdicts = judge(fleet.split(state), chunk)
                if satisfied():
                    break
    states = fleet.split(state)
    if not satisfied() or len(found) == num_chunks:
        verdicts = judge(states, num_chunks)
    if not found:
        return states, [None] * len(states), verdicts
    joined = [jax.tree.map(lambda *chunks: np.concatenate(chunks), *each) for each in zip(*found, strict=True)]
    return states, joined, verdicts


def _progress(records: EpochRecord, problem: Problem) -> str:
    return f"entropy {records.entropy[-1]:.3f}, violation {np.max(np.abs(_violations(records, problem)[-1])):.3f} sd"


def _violations(records: EpochRecord, problem: Problem) -> np.ndarray:
    scale = np.maximum(np.asarray(records.scale), np.finfo(np.float32).tiny)
    return (np.asarray(records.moment) - problem.target) / scale


def _close(records: EpochRecord, problem: Problem, tolerance: float) -> bool:
    """Whether nothing is left to gain: the property holds and the guide is the tilted base of its multipliers."""
    near = np.all(np.abs(_violations(records, problem).mean(axis=0)) < 0.2 * tolerance)
    return bool(near and np.mean(records.slack_variance) < CLOSE_SLACK)


def _status(problem: Problem, verdict: Verdict, records: EpochRecord | None, tolerance: float) -> STATUS:
    if records is None or not (np.isfinite(verdict.entropy) and np.all(np.isfinite(verdict.mean))):
        return STATUS.nonfinite
    if np.all(verdict.satisfies(problem.target, tolerance)):
        return STATUS.satisfied if verdict.finite_share == 1.0 else STATUS.nonfinite_draws
    return STATUS.infeasible if _out_of_reach(problem, verdict, records, tolerance) else STATUS.unsatisfied


def _out_of_reach(problem: Problem, verdict: Verdict, records: EpochRecord, tolerance: float) -> bool:
    """Whether the dual seems unbounded: eta moved far in the last quarter, against a violation that did not give way.

    The dual has no minimum exactly where no distribution has the property; then eta runs along a direction in which
    every moment that the model can produce lies on one side of the targets.
    """
    quarter = max(1, len(records.step) // 4)
    if len(records.step) < 8:
        return False
    moved = (records.eta[-1] - records.eta[-quarter]) * verdict.scale
    violation = verdict.violation(problem.target)
    worst = int(np.argmax(np.abs(violation)))
    late = _violations(records, problem)[-quarter:, worst]
    return bool(
        abs(violation[worst]) > tolerance
        and moved[worst] * violation[worst] > 0.1
        and np.all(np.sign(late) == np.sign(late[0]))
    )


def _late_multipliers(state: LoopState, records: EpochRecord | None) -> np.ndarray:
    if records is None:
        return np.asarray(state.rule.eta, float)
    return np.asarray(records.eta, float)[-max(1, len(records.eta) // 10) :].mean(axis=0)


def _history(records: EpochRecord | None, problem: Problem) -> dict[str, np.ndarray]:
    if records is None:
        size = len(problem.constraints)
        vectors = ("moment", "scale", "eta")
        records = EpochRecord(**{n: jnp.zeros((0, size) if n in vectors else 0) for n in EpochRecord._fields})
    columns = {name: np.asarray(column) for name, column in records._asdict().items()}
    columns["multiplier"] = columns.pop("eta")
    columns["violation"] = _violations(records, problem)
    return columns


def _shows(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _check_arguments(problem: Problem, tolerance: float) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(f"Expected a Problem; got {type(problem).__name__}. Write fit(key, Problem(model, property)).")
    if not 0 < as_number(tolerance) < math.inf:
        raise ValueError(f"Expected a finite tolerance > 0, in standard deviations; got {tolerance!r}.")


def _check_choices(flow: Any, *, start: Any, objective: Any, rule: Any, optimizer: Any) -> None:
    if not callable(flow) or isinstance(flow, type):
        raise TypeError(
            f"Expected flow to be a builder (key, dim) -> distribution, such as flows.Coupling(); got {flow!r}."
        )
    check_instance("rule", rule, AbstractMultiplierRule, "a rule, such as multipliers.Natural()")
    if start is not None:
        check_instance("start", start, starts.AbstractStart, "a start, such as starts.Prior()")
    if objective is not None:
        check_instance("objective", objective, AbstractObjective, "an objective, such as objectives.Pathwise()")
    if optimizer is not None:
        check_instance(
            "optimizer", optimizer, optax.GradientTransformation, "an optax optimiser, such as optax.adam(1e-3)"
        )
