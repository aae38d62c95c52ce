"""The two ways into a run: `fit` begins one, `resume` goes on with one."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from . import flows, objectives, starts
from ._arguments import as_number, check_instance, check_optional
from ._certificate import Known
from ._checkpoint import Keeper, Saved, compare, read
from ._gradients import without_misleading_gradients
from ._keys import checked_key, key_from_text
from ._memory import MEMORY_SHARE, bytes_per_draw, free_memory
from ._method import Method
from ._plan import Plan
from ._problem import LEAST_DRAWS, Problem, check_budget, get_problem, origin_arguments
from ._result import MAX_GAP, Result
from ._types import Key
from .multipliers import AbstractMultiplierRule, Natural
from .objectives import AbstractObjective


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
    max_gap: float = MAX_GAP,
    num_snapshots: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 30.0,
) -> Result:
    """Find the maximum-entropy distribution of a problem's parameters that has its emergent property.

    On the first SIGINT (Control-C) or SIGTERM, `fit` says so on stderr, finishes the current chunk of steps and returns the
    partial result with status ``interrupted``. A second signal acts at once, as Python's own: SIGINT raises
    ``KeyboardInterrupt``. A signal during a fit that begins within 10 seconds of an interrupted one counts as the second, so
    that it ends a script that fits in a loop; such a script can also leave its loop when a status is ``interrupted``. Before
    the first step there is no result: with a checkpoint, the first signal raises ``KeyboardInterrupt`` once the start's
    simulations are written there; without one it acts at once.

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
        tolerance: How near every mean must be to its target, in units of the requested standard deviation, or of its statistic's
            own where none was requested; and what part of it an achieved standard deviation may be off.
        certify: Estimate at the end how far the answer can be from the optimum; by default where that takes at most a fifth
            of the simulations that the run has taken. With ``False`` the multipliers of chains are not checked either: they
            may have wrong shares of modes.
        max_gap: Distance from the maximum-entropy solution, nats, at which the fit is done: where the start solved the dual, the
            guide is certified on its way, and no step is taken beyond. See `Result.certified`.
        num_snapshots: About how many times draws of the guide are kept in a run of full length, for `movie`, besides the one
            before the first step; at most once an epoch. The answer is bit for bit the same with and without. Up to 20 cost
            next to nothing; more double the time of the steps, which are run again for them.
        progress: Show a progress bar; by default only on a terminal.
        checkpoint: File that the run can be resumed from, see `resume`. It must not exist yet, and stays when the run is done.
        every: Seconds between two checkpoints, at least; a twentieth of the steps where those take longer.

    Returns:
        What was found, whatever the outcome; see `Result.status`.

    Raises:
        TypeError: If ``problem`` is not a `Problem` or ``key`` not a random key.
        ValueError: If a number is out of range, the flow does not fit the problem, or the checkpoint is being written by
            another run.
        FileExistsError: If the checkpoint exists.
        MemoryError: If a step's draws do not fit, with the number of them that would.
        RuntimeError: If the device fails while it runs.
        KeyboardInterrupt: If a run with a checkpoint is asked to stop before its first step; the message names it.
    """
    began = time.perf_counter()
    key = checked_key(key)
    _check_problem(problem, "fit(key, Problem(model, property))")
    _check_numbers(tolerance, num_snapshots, max_gap)
    _check_choices(flow, start=start, objective=objective, rule=rule, optimizer=optimizer)
    check_optional(certify=certify, progress=progress)
    budget = {
        "num_draws": problem.num_draws if num_draws is None else num_draws,
        "max_steps": problem.max_steps if max_steps is None else max_steps,
        "num_restarts": num_restarts,
    }
    check_budget(**budget)
    problem = problem if objective is not None else without_misleading_gradients(problem)
    method = Method(flow, start, objective, rule, optimizer)
    plan = Plan(
        key,
        problem,
        method,
        **budget,
        tolerance=tolerance,
        certify=certify,
        max_gap=max_gap,
        num_snapshots=num_snapshots,
    )
    with _keeper(checkpoint, every, new=True) as keeper, _explained(plan, checkpoint):
        return plan.run(plan.begin(None, keeper, began=began), None, keeper, began=began, progress=_shows(progress))


def resume(
    checkpoint: str | os.PathLike[str],
    problem: Problem | None = None,
    *,
    flow: flows.FlowBuilder = flows.default,
    start: starts.AbstractStart | None = None,
    objective: AbstractObjective | None = None,
    rule: AbstractMultiplierRule = Natural(),
    optimizer: optax.GradientTransformation | None = None,
    progress: bool | None = None,
    every: float = 30.0,
) -> Result:
    """Go on with a run from its last checkpoint: on the same machine, with the same versions, to the very same result.

    A file that was cut off or damaged is refused, and the checkpoint before it is taken.

    Args:
        checkpoint: The file that `fit` was given.
        problem: The question; may be left out where it came from `get_problem`.
        flow: What `fit` was given, as are the next four; numbers are in the file.
        start: See ``flow``.
        objective: See ``flow``.
        rule: See ``flow``.
        optimizer: See ``flow``.
        progress: Show a progress bar; by default only on a terminal.
        every: Seconds between two checkpoints, at least.

    Returns:
        The result that the run would have had.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        TypeError: If an argument is of another kind.
        ValueError: If it is damaged, of another problem, method, version of the format or width of numbers, or belongs to
            a run that is still going on.
        PermissionError: If its folder cannot be written.
        MemoryError: See `fit`, as for `RuntimeError`.
        RuntimeError: If the device fails while it runs.
        KeyboardInterrupt: See `fit`.
    """
    began = time.perf_counter()
    saved = read(checkpoint)
    about = saved.about
    if problem is None:
        problem = _asked_for_again(about["origin"], checkpoint)
    _check_problem(problem, "resume(checkpoint, Problem(model, property))")
    _check_choices(flow, start=start, objective=objective, rule=rule, optimizer=optimizer)
    check_optional(progress=progress)
    method = Method(flow, start, objective, rule, optimizer)
    problem = problem if objective is not None else without_misleading_gradients(problem)
    with _readable(saved):
        plan = Plan(key_from_text(about["key"]), problem, method, **about["numbers"])
        check_budget(num_draws=plan.num_draws, max_steps=plan.max_steps, num_restarts=plan.num_restarts)
        _check_numbers(plan.tolerance, plan.num_snapshots, plan.max_gap)
        began -= float(about["seconds"])
        begin = _begun(saved)
    with _readable(saved, but=ValueError):
        compare(saved, plan.about())
    with _keeper(checkpoint, every, new=False) as keeper, _explained(plan, checkpoint):
        if begin is None:
            # It was killed before its first step.
            begin = plan.begin(saved, keeper, began=began)
            return plan.run(begin, None, keeper, began=began, progress=_shows(progress))
        return plan.run(begin, saved, keeper, began=began, progress=_shows(progress))


@contextmanager
def _readable(saved: Saved, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """A stranger's checkpoint may say anything under a right checksum."""
    try:
        yield
    except but:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"Expected a checkpoint in {saved.path}; it cannot be read: {error!r}.") from error


def _begun(saved: Saved) -> starts.Start | None:
    """The start that a checkpoint holds, if it was found."""
    if (about := saved.about.get("begin")) is None:
        return None
    known = about.get("known")

    def optional(name: str) -> Array | None:
        array = saved.arrays.get(f"begin.{name}")
        return None if array is None else jnp.asarray(array)

    found = (optional(f"proposed.{name}") for name in starts.Proposed._fields)
    proposed = [part for part in found if part is not None]
    return starts.Start(
        draws=jnp.asarray(saved.arrays["begin.draws"]),
        fit_draws=about["fit_draws"],
        message=about["message"],
        log_normalizer=about["log_normalizer"],
        infeasible=about["infeasible"],
        log_density=optional("log_density"),
        ess=about["ess"],
        times_solved=about["times_solved"],
        num_simulations=about["num_simulations"],
        eta=optional("eta"),
        covariance=optional("covariance"),
        independent=optional("independent"),
        proposed=starts.Proposed(*proposed) if proposed else None,
        known=Known(saved.arrays["begin.known.log_density"], **known) if known else None,
    )


def _keeper(path: str | os.PathLike[str] | None, every: float, *, new: bool) -> AbstractContextManager[Keeper | None]:
    return nullcontext() if path is None else Keeper(path, every, new=new)


@contextmanager
def _explained(plan: Plan, checkpoint: str | os.PathLike[str] | None) -> Iterator[None]:
    """What the device refuses or breaks off, in words, with what is left to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        has_saved = checkpoint is not None and Path(checkpoint).exists()
        saved = f" epi.resume({str(checkpoint)!r}) goes on from the last checkpoint." if has_saved else ""
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryError(_out_of_memory(plan)) from error
        first = str(error).strip().splitlines()[0]
        raise RuntimeError(
            f"Expected the {jax.default_backend()} to run the model to the end; it failed: {first}.{saved}"
        ) from error


def _out_of_memory(plan: Plan) -> str:
    objective = objectives.default(plan.problem) if plan.method.objective is None else plan.method.objective
    each, free = bytes_per_draw(plan.problem, plan.method.flow, objective), free_memory()
    size = "" if each is None else f" of about {each * plan.num_draws / 1e9:.3g} GB, {each / 1e6:.3g} MB a draw"
    left = "" if math.isinf(free) else f"; {free / 1e9:.3g} GB are free"
    message = f"Expected memory for {plan.num_draws} draws a step{size}{left}. "
    fits = 0 if each is None or math.isinf(free) else int(MEMORY_SHARE * free / each)
    if fits >= plan.num_draws:
        return message + "The start or the certificate took it: pass another start, or certify=False."
    if fits >= LEAST_DRAWS:
        return message + f"Pass num_draws={fits} or fewer."
    return message + (
        "Pass a smaller num_draws, or store less of a simulation: recompute it for the gradient (jax.checkpoint), or do "
        "without one (objective=objectives.Score())."
    )


def _asked_for_again(origin: list[str] | None, path: str | os.PathLike[str]) -> Problem:
    if origin is None:
        raise ValueError(
            f"Expected the problem that {path} was made for; it was not built by get_problem, so pass it: "
            "resume(path, problem)."
        )
    return get_problem(origin[0], **origin_arguments(origin[1]))


def _shows(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _check_problem(problem: Problem, how: str) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(f"Expected a Problem; got {type(problem).__name__}. Write {how}.")


def _check_numbers(tolerance: float, num_snapshots: int, max_gap: float) -> None:
    if not 0 < as_number(tolerance) < math.inf:
        raise ValueError(f"Expected a finite tolerance > 0, in standard deviations; got {tolerance!r}.")
    if not 0 < as_number(max_gap) < math.inf:
        raise ValueError(f"Expected a finite max_gap > 0, in nats; got {max_gap!r}.")
    if isinstance(num_snapshots, bool) or not isinstance(num_snapshots, int) or num_snapshots < 0:
        raise ValueError(f"Expected num_snapshots to be an integer >= 0; got {num_snapshots!r}.")


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
