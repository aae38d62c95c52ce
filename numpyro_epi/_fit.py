"""The run around the compiled loop: start, chunks with progress and early stop, and a verdict on fresh draws."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import AbstractDistribution, Transformed
from jaxtyping import Array, PyTree
from scipy.cluster.vq import kmeans2
from tqdm.auto import tqdm

from . import _optimizer, flows, starts
from ._certificate import assess, cost
from ._fresh import measure
from ._keys import checked_key, key_text
from ._loop import EpochRecord, Loop, LoopState, combine, partition, share_programs
from ._outcome import STATUS, Verdict
from ._problem import Problem
from ._result import Result
from ._types import Draws, Key, Metric, Moments
from .multipliers import AbstractMultiplierRule, Natural
from .objectives import AbstractObjective, Anchored, Pathwise, mean_log_density

NUM_CHUNKS = 20
"""Times a run may report, stop early or be interrupted."""

FRESH_BATCHES = 80
"""Batches of the verdict: with 500 draws each, a mean's 95 % interval is 0.01 standard deviations wide on either side."""

STEPS_PER_BATCH = 4
"""A run ends with one batch for so many steps to read its multipliers from: a tenth of its time, since they need no
gradients, and the mean's error is theirs."""

MAX_DISTANCE = 0.5
"""Variance of ``log q - log base + eta . T``, nats^2, up to which a guide shows its multipliers better than its history."""

START_BATCHES = 8
"""Batches that measure the guide before the first step."""

MAX_COMPONENTS, MIN_DRAWS_PER_COMPONENT = 16, 100
"""Most components of a mixture base, and the fewest draws that one must stand on."""

LIKELIHOOD_STEPS, LIKELIHOOD_DRAWS = 1000, 500
"""Steps that fit a flow to a start's draws, and draws in each."""

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
    objective: AbstractObjective = Pathwise(),
    rule: AbstractMultiplierRule = Natural(),
    optimizer: optax.GradientTransformation | None = None,
    num_draws: int = 500,
    max_steps: int = 3000,
    tolerance: float = 0.05,
    certify: bool | None = None,
    progress: bool | None = None,
) -> Result:
    """Find the maximum-entropy distribution of a problem's parameters that has its emergent property.

    Args:
        key: Random key, ``jax.random.key(seed)``; the same key gives the same result.
        problem: The question.
        flow: Builder of the flow, ``(key, dim) -> flowjax distribution``.
        start: Where to begin; by default chains that solve the dual where they can be used, the prior elsewhere.
        objective: Estimator of the augmented Lagrangian.
        rule: How the multipliers move.
        optimizer: Any optax optimiser; by default Adam with a cosine learning rate and global-norm clipping.
        num_draws: Draws a step, each of them simulated once.
        max_steps: Most optimiser steps; a run whose guide is nearly exact stops earlier.
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
    _check_arguments(problem, num_draws=num_draws, max_steps=max_steps, tolerance=tolerance)
    keys = jax.random.split(key, 5)
    begin = (starts.default(problem) if start is None else start)(keys[0], problem)
    fitted = _begin_flow(keys[1], flow, begin, problem.dim)
    parameters, static = partition(fitted)
    if begin.eta is not None:
        objective = Anchored(objective, begin.draws)
    optimizer = optimizer or _optimizer.default(max_steps)
    annealed = rule.anneals and begin.eta is None
    loop = Loop(problem, static, objective, rule, optimizer, num_draws, int(0.6 * max_steps) if annealed else 0)
    first = measure(problem, fitted, keys[2], START_BATCHES, num_draws)
    state = LoopState(
        parameters=parameters,
        optimizer=optimizer.init(parameters),
        rule=_begin_rule(rule, keys[3], jnp.asarray(first.covariance, float), begin.eta),
        start_moments=jnp.asarray(first.mean, float),
        remaining=jnp.asarray(1.0 if annealed else 0.0, float),
        key=keys[4],
        step=jnp.zeros((), int),
    )
    budget = max_steps if first.finite_share > 0 else 0
    verdict_key = jax.random.fold_in(keys[2], 1)

    def judge(state: LoopState, epochs: int) -> Verdict:
        # Every look at the run takes draws of its own.
        flow, key = combine(state.parameters, static), jax.random.fold_in(verdict_key, epochs)
        return measure(problem, flow, key, FRESH_BATCHES, num_draws).verdict()

    state, records, verdict = _run(loop, state, budget, judge, tolerance=tolerance, progress=_shows(progress))
    fitted = combine(state.parameters, static)
    status = _status(problem, verdict, records, tolerance)
    eta = begin.eta if begin.eta is not None else _late_multipliers(state, records)
    if begin.eta is None and status is STATUS.satisfied:
        num_batches = max(FRESH_BATCHES, int(state.step) // STEPS_PER_BATCH)
        found = measure(problem, fitted, jax.random.fold_in(keys[2], 2), num_batches, num_draws)
        read, distance = found.multipliers(problem.target)
        eta = read if distance < MAX_DISTANCE else eta
    eta = np.asarray(eta, float)
    certificate = None
    if _certifies(certify, problem, begin, simulations=int(state.step) * num_draws) and np.all(np.isfinite(eta)):
        solution = begin.draws if begin.eta is not None else None
        certificate = assess(jax.random.fold_in(keys[2], 3), problem, fitted, eta, solution=solution)
    return Result(
        problem=problem,
        flow=fitted,
        status=status,
        verdict=verdict,
        eta=eta,
        records=_history(records, problem),
        settings={
            "num_draws": num_draws,
            "max_steps": max_steps,
            "steps": int(state.step),
            "tolerance": tolerance,
            "start_message": begin.message,
            "flow": repr(flow) if isinstance(flow, eqx.Module) else getattr(flow, "__qualname__", repr(flow)),
            "rule": repr(rule),
            "num_components": num_components(begin),
        },
        seconds=time.perf_counter() - began,
        seed=key_text(key),
        certificate=certificate,
    )


def _certifies(asked: bool | None, problem: Problem, begin: starts.Start, *, simulations: int) -> bool:
    if asked is not None:
        return asked
    return cost(problem, 2 if begin.eta is None else 3) <= MAX_CERTIFICATE_SHARE * simulations


def num_components(begin: starts.Start) -> int:
    """Components of the flow's base: a mixture where the start's draws are fitted, one normal elsewhere."""
    return min(MAX_COMPONENTS, len(begin.draws) // MIN_DRAWS_PER_COMPONENT) if begin.fit_draws else 1


def build_flow(key: Key, builder: flows.FlowBuilder, dim: int, components: int) -> Transformed:
    """A flow of the shape that `fit` trains, before it is moved anywhere.

    Raises:
        ValueError: If the builder returns something else than a flowjax distribution of shape ``(dim,)``.
    """
    built = builder(key, dim)
    if not isinstance(built, AbstractDistribution):
        raise TypeError(f"Expected flow(key, dim) to return a flowjax distribution; got {type(built).__name__}.")
    if built.shape != (dim,) or built.cond_shape is not None:
        raise ValueError(
            f"Expected an unconditional flow of shape {(dim,)}; got shape {built.shape}, condition {built.cond_shape}. "
            f"Build it with dim={dim}."
        )
    if components > 1 and isinstance(built, Transformed):
        ones = jnp.ones((components, dim))
        built = flows.with_mixture_base(built, 0 * ones, ones, jnp.ones(components))
    return share_programs(flows.with_affine(built, jnp.zeros(dim), jnp.eye(dim)))


def _begin_flow(key: Key, builder: flows.FlowBuilder, begin: starts.Start, dim: int) -> AbstractDistribution:
    """Move a new flow to the start's draws."""
    build_key, fit_key = jax.random.split(key)
    components = num_components(begin)
    built = build_flow(build_key, builder, dim, components)
    draws = np.asarray(begin.draws, float)
    loc = draws.mean(axis=0)
    cholesky = np.linalg.cholesky(np.atleast_2d(np.cov(draws.T)) + 1e-9 * np.eye(dim))
    inner = built.base_dist
    if components > 1 and isinstance(inner, Transformed):
        whitened = np.linalg.solve(cholesky, (draws - loc).T).T
        inner = flows.with_mixture_base(inner, *_clusters(whitened, components))
    moved = share_programs(flows.with_affine(inner, jnp.asarray(loc, float), jnp.asarray(cholesky, float)))
    return _fit_draws(fit_key, moved, begin.draws) if begin.fit_draws else moved


def _clusters(draws: np.ndarray, count: int) -> tuple[Array, Array, Array]:
    """Centres, spreads and shares of clusters of the draws: each separate mode gets some of its own."""
    centres, labels = kmeans2(draws, count, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=count)
    # A cluster of one draw has no spread: the largest stands in, so that the number is known before the draws are.
    index = np.where(sizes > 1, np.arange(count), np.argmax(sizes))
    spreads = np.array([draws[labels == i].std(axis=0) + 1e-3 for i in index])
    return jnp.asarray(centres[index], float), jnp.asarray(spreads, float), jnp.asarray(sizes[index], float)


@eqx.filter_jit
def _fit_draws(key: Key, flow: AbstractDistribution, draws: Draws) -> AbstractDistribution:
    """Maximum likelihood: minimise the forward KL of the draws."""
    parameters, static = partition(flow)
    optimizer = _optimizer.default(LIKELIHOOD_STEPS, final_rate=0.3)

    def step(carry: tuple[PyTree, PyTree], key: Key) -> tuple[tuple[PyTree, PyTree], None]:
        parameters, state = carry
        gradient = jax.grad(lambda p: -mean_log_density(key, combine(p, static), draws, LIKELIHOOD_DRAWS))(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jax.random.split(key, LIKELIHOOD_STEPS)
    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)
    return combine(parameters, static)


def _begin_rule(rule: AbstractMultiplierRule, key: Key, covariance: Metric, eta: Moments | None) -> Any:
    state = rule.init(key, covariance)
    return state if eta is None else state._replace(eta=eta.astype(state.eta.dtype))


def _run(
    loop: Loop,
    state: LoopState,
    max_steps: int,
    judge: Callable[[LoopState, int], Verdict],
    *,
    tolerance: float,
    progress: bool,
) -> tuple[LoopState, EpochRecord | None, Verdict]:
    """Run chunks of epochs until the budget is spent, or the guide is nearly exact and fresh draws say so too."""
    steps_per_epoch = loop.rule.steps_per_epoch
    num_epochs = math.ceil(max_steps / steps_per_epoch)
    per_chunk = max(1, math.ceil(num_epochs / NUM_CHUNKS))
    num_chunks = math.ceil(num_epochs / per_chunk)
    found: list[EpochRecord] = []
    verdict: Verdict | None = None
    with tqdm(total=num_chunks * per_chunk * steps_per_epoch, disable=not progress, unit="step") as bar:
        for chunk in range(num_chunks):
            state, chunk_records = loop.run_epochs(state, per_chunk)
            found.append(jax.device_get(chunk_records))
            bar.update(per_chunk * steps_per_epoch)
            bar.set_postfix_str(_progress(found[-1], loop.problem), refresh=False)
            if float(state.remaining) == 0.0 and _close(found[-1], loop.problem, tolerance):
                verdict = judge(state, chunk)
                if np.all(verdict.satisfies(loop.problem.target, tolerance)):
                    break
    records = jax.tree.map(lambda *chunks: np.concatenate(chunks), *found) if found else None
    if verdict is None or not np.all(verdict.satisfies(loop.problem.target, tolerance)) or len(found) == num_chunks:
        verdict = judge(state, num_chunks)
    return state, records, verdict


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


def _check_arguments(problem: Problem, *, num_draws: int, max_steps: int, tolerance: float) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(f"Expected a Problem; got {type(problem).__name__}. Write fit(key, Problem(model, property)).")
    for name, count, least in (("num_draws", num_draws, 4), ("max_steps", max_steps, 1)):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"Expected {name} to be an integer >= {least}; got {count!r}.")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"Expected a finite tolerance > 0, in standard deviations; got {tolerance}.")
