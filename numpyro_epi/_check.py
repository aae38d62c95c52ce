"""The doctor: what can go wrong with a problem, looked for before a fit."""

import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Bool, Float

from ._arguments import check_count
from ._problem import Evaluation, Problem
from ._products import compiled
from ._property import Constraint
from ._types import Draws, Key, PerDraw, Unconstrained

_SEARCH_ROUNDS = 4
_MAX_HULL_DRAWS = 4000
_NUM_STANDARD_ERRORS = 6.0  # 20 moments by 50 parameters are compared at once.
_MARKS = {True: "ok", None: "warn", False: "FAIL"}
_WIDTH = 110


@dataclass(frozen=True)
class CheckItem:
    """One finding.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it should be; None for a warning, or where it could not be looked at.
        message: What was seen, and what to do about it.
    """

    name: str
    passed: bool | None
    message: str


@dataclass(frozen=True)
class CheckReport:
    """What the doctor found; print it.

    Attributes:
        problem: Name of the problem.
        items: The findings, in the order in which to read them.
    """

    problem: str
    items: tuple[CheckItem, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; warnings do not count."""
        return not any(item.passed is False for item in self.items)

    def __str__(self) -> str:
        width = max((len(item.name) for item in self.items), default=0)
        counts = (f"{sum(item.passed is passed for item in self.items)} {mark}" for passed, mark in _MARKS.items())
        lines = [f"{self.problem}: {', '.join(counts)}"]
        for item in self.items:
            head = f"  {_MARKS[item.passed]:4}  {item.name:{width}}  "
            room = max(_WIDTH - len(head), _WIDTH // 2)
            first, *rest = textwrap.wrap(item.message, room, break_on_hyphens=False)
            lines += [head + first, *(" " * len(head) + line for line in rest)]
        return "\n".join(lines)


def check(problem: Problem, key: Key, *, num_draws: int = 500) -> CheckReport:
    """Run a problem a little and say what is wrong with it, before a fit finds out the slow way.

    It draws parameters from the prior (standard normal unconstrained coordinates where the prior is improper),
    simulates each three times, looks for draws nearer to the targets, and compares two estimates of each
    moment's gradient. Cost: ``8 num_draws`` simulations, and ``num_draws`` gradients of every moment.

    Args:
        problem: The question.
        key: All draws come from it.
        num_draws: N, at least 10.

    Returns:
        The findings. A model that fails while it runs is one of them, not an exception.

    Raises:
        ValueError: If ``num_draws`` is less than 10.
    """
    check_count("num_draws", num_draws, 10)
    return CheckReport(problem.name, tuple(_examine(problem, key, num_draws)))


def _examine(problem: Problem, key: Key, num_draws: int) -> Iterator[CheckItem]:
    simulation_key, gradient_key = jax.random.split(key)
    yield _parameters(problem)
    yield _noise(problem)
    proper = _is_proper(problem)
    yield _draws(num_draws, proper=proper)
    seen = _attempt(problem, compiled(lambda k: _simulate(problem, k, num_draws, proper=proper)), simulation_key)
    if isinstance(seen, str):
        yield CheckItem("finite", False, seen)
        return
    yield _finite(problem, seen.first)
    yield _repeatable(seen)
    if np.sum(seen.first.finite) < 2:
        return
    yield _prior_without_noise(problem, seen)
    scales = [_scale(problem, seen, column) for column in range(len(problem.constraints))]
    yield from scales
    yield _independent(problem, seen)
    yield from _noise_floor(problem, seen)
    yield _together(problem, seen, reachable=all(item.passed is not False for item in scales))
    estimate = compiled(lambda k, u: _slopes(problem, k, u, proper=proper))
    slopes = _attempt(problem, estimate, gradient_key, seen.unconstrained)
    if isinstance(slopes, str):
        yield _no_gradient(problem, slopes)
        return
    yield from _gradients(problem, seen, slopes)


# What is run.


class _Seen(NamedTuple):
    """Draws, their simulations, the same again at the same noise and at other noise, and the search's simulations."""

    unconstrained: Draws
    first: Evaluation
    again: Evaluation
    other: Evaluation
    searched: Evaluation

    def moments(self) -> Float[np.ndarray, "K M"]:
        """Moments of all finite simulations."""
        runs = (self.first, self.other, self.searched)
        return np.concatenate([np.asarray(run.moments, float)[np.asarray(run.finite)] for run in runs])


def _simulate(problem: Problem, key: Key, num_draws: int, *, proper: bool) -> _Seen:
    keys = jax.random.split(key, 4)
    if proper:
        u = jax.vmap(problem.simulator.sample_prior)(jax.random.split(keys[0], num_draws))
    else:
        u = jax.random.normal(keys[0], (num_draws, problem.dim))
    # The model is traced anew each time, so that randomness from outside JAX shows as a difference.
    first = _evaluate(problem, keys[1], u)
    again = _evaluate(problem, keys[1], u)
    other = _evaluate(problem, keys[2], u)
    return _Seen(u, first, again, other, _search(problem, keys[3], u, first))


def _evaluate(problem: Problem, key: Key, u: Draws) -> Evaluation:
    return jax.vmap(problem.evaluate)(jax.random.split(key, u.shape[0]), u)


def _search(problem: Problem, key: Key, u: Draws, start: Evaluation) -> Evaluation:
    """Mutate the tenth of the draws whose statistics are nearest to their targets, at scales from small to far."""
    num_draws = u.shape[0]
    means = jnp.array([constraint.order == 1 for constraint in problem.constraints])
    spread = jnp.nanstd(jnp.where(start.finite[:, None], start.moments, jnp.nan), axis=0)
    scale = jnp.nanstd(jnp.where(jnp.isfinite(u), u, jnp.nan), axis=0)

    def distance(found: Evaluation) -> PerDraw:
        deviation = jnp.where(means & (spread > 0), (found.moments - problem.target) / spread, 0.0)
        return jnp.where(found.finite, jnp.sum(jnp.square(deviation), axis=1), jnp.inf)

    def step(carry: tuple[Draws, PerDraw], key: Key) -> tuple[tuple[Draws, PerDraw], Evaluation]:
        parents, far = carry
        pick_key, size_key, move_key, noise_key = jax.random.split(key, 4)
        best = jnp.argsort(far)[: math.ceil(num_draws / 10)]
        chosen = parents[jax.random.choice(pick_key, best, (num_draws,))]
        size = 10.0 ** jax.random.uniform(size_key, (num_draws, 1), minval=-2.0, maxval=0.5)
        children = chosen + (size * scale * jax.random.normal(move_key, u.shape)).astype(u.dtype)
        found = _evaluate(problem, noise_key, children)
        return (children, distance(found)), found

    _, found = jax.lax.scan(step, (u, distance(start)), jax.random.split(key, _SEARCH_ROUNDS))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)


class _Slopes(NamedTuple):
    """Two estimates of each moment's slope along the means and spreads of a normal reference, shape [M, 2 D].

    Attributes:
        pathwise: Mean through the simulator.
        score: Mean through the density.
        score_error: Standard error of ``score``.
        difference_error: Standard error of their difference, draw by draw.
        nonfinite: Share of finite draws whose gradient is not finite, shape [M].
        zero: Whether the pathwise gradient of every draw is exactly zero, shape [M].
    """

    pathwise: Float[Array, "M K"]
    score: Float[Array, "M K"]
    score_error: Float[Array, "M K"]
    difference_error: Float[Array, "M K"]
    nonfinite: Float[Array, " M"]
    zero: Bool[Array, " M"]


def _slopes(problem: Problem, key: Key, u: Draws, *, proper: bool) -> _Slopes:
    draw_key, noise_key = jax.random.split(key)
    bounded = jnp.where(jnp.isfinite(u), u, jnp.nan)
    location = jnp.nanmean(bounded, axis=0) if proper else jnp.zeros(problem.dim)
    scale = jnp.nanstd(bounded, axis=0) if proper else jnp.ones(problem.dim)
    step = jax.random.normal(draw_key, u.shape)

    def moments(key: Key, u: Unconstrained) -> tuple[Array, Evaluation]:
        found = problem.evaluate(key, u)
        return found.moments, found

    keys = jax.random.split(noise_key, u.shape[0])
    # Reverse mode, as in a fit.
    slope, found = jax.vmap(jax.jacrev(moments, argnums=1, has_aux=True))(keys, location + scale * step)
    broken = ~jnp.all(jnp.isfinite(slope), axis=-1)
    usable = found.finite[:, None] & ~broken
    # For u = m + s e: s dE[T]/dm is E[s T'] = E[T e], and s dE[T]/ds is E[s T' e] = E[T (e^2 - 1)].
    pathwise = jnp.concatenate([slope * scale, slope * scale * step[:, None]], axis=-1)
    factor = jnp.concatenate([step, jnp.square(step) - 1], axis=-1)[:, None]
    score = _centre(found.moments, usable)[..., None] * factor
    pathwise_mean, _ = _mean_and_error(pathwise, usable)
    score_mean, score_error = _mean_and_error(score, usable)
    _, difference_error = _mean_and_error(pathwise - score, usable)
    nonfinite = jnp.sum(broken & found.finite[:, None], axis=0) / jnp.maximum(jnp.sum(found.finite), 1)
    zero = jnp.all(jnp.where(usable[..., None], slope, 0.0) == 0, axis=(0, 2))
    return _Slopes(pathwise_mean, score_mean, score_error, difference_error, nonfinite, zero)


def _centre(moments: Float[Array, "N M"], usable: Bool[Array, "N M"]) -> Float[Array, "N M"]:
    # Less the mean of the *other* draws, which is independent of this one's.
    count = jnp.maximum(jnp.sum(usable, axis=0), 2)
    kept = jnp.where(usable, moments, 0.0)
    return jnp.where(usable, (kept - jnp.sum(kept, axis=0) / count) * count / (count - 1), 0.0)


def _mean_and_error(
    values: Float[Array, "N M K"], usable: Bool[Array, "N M"]
) -> tuple[Float[Array, "M K"], Float[Array, "M K"]]:
    count = jnp.maximum(jnp.sum(usable, axis=0), 2)[:, None]
    mean = jnp.sum(jnp.where(usable[..., None], values, 0.0), axis=0) / count
    squares = jnp.where(usable[..., None], jnp.square(values - mean), 0.0)
    return mean, jnp.sqrt(jnp.sum(squares, axis=0) / (count - 1) / count)


def _is_proper(problem: Problem) -> bool:
    try:
        jax.eval_shape(problem.simulator.sample_prior, jax.random.key(0))
    except NotImplementedError:  # NumPyro's word for an improper prior.
        return False
    # Any other failure is the model's, and shows when it is run.
    except Exception:
        return True
    return True


def _attempt(problem: Problem, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run the user's code; a failure comes back as a sentence that names the model."""
    try:
        return jax.block_until_ready(function(*arguments))
    # A model is the user's code: whatever it raises is a finding.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        return f"model {problem.name!r} failed: {type(error).__name__}: {reason}"


# What is said about it.


def _parameters(problem: Problem) -> CheckItem:
    shapes = ", ".join(f"{p.name} {p.shape if p.shape else 'scalar'}" for p in problem.simulator.parameters)
    return CheckItem("parameters", True, f"{shapes}; D = {problem.dim} unconstrained coordinates")


def _noise(problem: Problem) -> CheckItem:
    return CheckItem("noise", True, ", ".join(problem.simulator.noise) or "none: the parameters decide every statistic")


def _draws(num_draws: int, *, proper: bool) -> CheckItem:
    if proper:
        return CheckItem("draws", True, f"{num_draws} from the prior")
    message = (
        f"the prior is improper: {num_draws} standard normal draws of the unconstrained coordinates stand in for it"
    )
    return CheckItem("draws", None, message)


def _finite(problem: Problem, found: Evaluation) -> CheckItem:
    finite = np.asarray(found.finite)
    share = float(np.mean(finite))
    if share == 1:
        return CheckItem("finite", True, "every simulation")
    bad = ~np.all(np.isfinite(np.where(finite[:, None], 0.0, np.asarray(found.moments))), axis=0)
    names = [c.name for c, is_bad in zip(problem.constraints, bad, strict=True) if is_bad] or ["the prior's density"]
    message = f"{share:.1%} of the simulations; not finite elsewhere: {_join(names)}."
    if share < 0.5 and not (problem.nonfinite == "condition" and share > 0):
        return CheckItem(
            "finite", False, f"{message} Look for overflow, log or sqrt of a negative number, unstable steps."
        )
    if problem.nonfinite == "condition":
        return CheckItem("finite", None, f"{message} The answer will have no such parameters.")
    return CheckItem(
        "finite",
        None,
        f"{message} A fit leaves such draws out of every mean, and is not satisfied. Target(if_nonfinite=...) gives them a "
        "value, Problem(nonfinite='condition') asks of the finite ones alone.",
    )


def _repeatable(seen: _Seen) -> CheckItem:
    same = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True), seen.first, seen.again)
    if all(jax.tree.leaves(same)):
        return CheckItem("repeatable", True, "the same key and parameters give the same simulation")
    message = "the same key and parameters gave two results. Draw all noise from sample sites or numpyro.prng_key()."
    return CheckItem("repeatable", False, message)


def _prior_without_noise(problem: Problem, seen: _Seen) -> CheckItem:
    both = np.asarray(seen.first.finite & seen.other.finite)

    def differs(first: Array, other: Array) -> bool:
        return not np.allclose(np.asarray(first)[both], np.asarray(other)[both], rtol=1e-4, atol=1e-4)

    wrong = [
        what
        for what, name in (("support", "log_det"), ("density", "log_base"))
        if differs(getattr(seen.first, name), getattr(seen.other, name))
    ]
    if not wrong:
        return CheckItem("prior", True, "does not depend on the noise")
    message = (
        f"the parameters' {' and '.join(wrong)} changed with the noise, {list(problem.simulator.noise)}. Parameters "
        "must not depend on noise sites: name those they depend on in parameters= too, or fix them."
    )
    return CheckItem("prior", False, message)


def _scale(problem: Problem, seen: _Seen, column: int) -> CheckItem:
    constraint = problem.constraints[column]
    prior = np.asarray(seen.first.moments, float)[np.asarray(seen.first.finite), column]
    every = seen.moments()[:, column]
    low, high = float(every.min()), float(every.max())
    target = _with_unit(constraint.target, constraint)
    if _is_constant(every):
        seen_value = _with_unit(low, constraint)
        message = f"constant: {seen_value} in every draw, target {target}. Nothing can move it: leave it out."
        return CheckItem(constraint.name, False, message)
    if not low <= constraint.target <= high:
        message = (
            f"the target {target} was out of reach: all {len(every)} draws, a search towards it included, are between "
            f"{low:.4g} and {high:.4g}. Change the target, the supports or the model."
        )
        return CheckItem(constraint.name, False, message)
    seen_range = f"range {prior.min():.4g} to {prior.max():.4g}"
    return CheckItem(
        constraint.name, True, f"mean {prior.mean():.4g}, sd {prior.std():.4g}, {seen_range}; target {target}"
    )


def _independent(problem: Problem, seen: _Seen) -> CheckItem:
    prior = np.asarray(seen.first.moments, float)[np.asarray(seen.first.finite)]
    varies = np.array([not _is_constant(column) for column in prior.T])
    names = [c.name for c, varied in zip(problem.constraints, varies, strict=True) if varied]
    if len(prior) < 2 * len(names) + 2:
        return CheckItem("independent", None, f"not looked at: {len(prior)} finite draws for {len(names)} moments")
    if len(names) < 2:
        return CheckItem("independent", True, "fewer than two moments vary")
    eigenvalues, directions = np.linalg.eigh(np.corrcoef(prior[:, varies], rowvar=False))
    # Moments are single precision: an eigenvalue of 1e-6 is a combination that varies by a thousandth.
    involved = np.any(np.abs(directions[:, eigenvalues < 1e-6]) > 0.05, axis=1)
    if not involved.any():
        return CheckItem("independent", True, "no moment is a linear combination of the others")
    repeated = _join([name for name, is_involved in zip(names, involved, strict=True) if is_involved])
    message = f"linearly dependent moments: {repeated}. Their multipliers are not unique; leave one of them out."
    return CheckItem("independent", None, message)


def _noise_floor(problem: Problem, seen: _Seen) -> Iterator[CheckItem]:
    # E[(T - m)^2] is at least E[Var(T | u)], which half the squared difference of two noise draws estimates.
    both = np.asarray(seen.first.finite & seen.other.finite)
    halves = 0.5 * np.square(np.asarray(seen.first.moments, float) - np.asarray(seen.other.moments, float))[both]
    columns = {c.name: column for column, c in enumerate(problem.constraints) if c.order == 1}
    for constraint in problem.constraints:
        if constraint.order != 2 or len(halves) < 2:
            continue
        floors = halves[:, columns[constraint.statistic]]
        floor, error = floors.mean(), floors.std(ddof=1) / math.sqrt(len(floors))
        if constraint.target < floor - 5 * error:
            message = (
                f"noise alone gives a variance of {_with_unit(floor, constraint)} on average, more than the wanted "
                f"{constraint.target:.4g}. Only parameters with less noise, if there are any, have this property."
            )
            yield CheckItem(f"noise of {constraint.statistic}", None, message)


def _together(problem: Problem, seen: _Seen, *, reachable: bool) -> CheckItem:
    if not reachable:
        return CheckItem("together", None, "not looked at: a target alone is out of reach")
    moments = seen.moments()
    # Every second row and so on, so that all kinds of draws stay.
    moments = moments[:: math.ceil(len(moments) / _MAX_HULL_DRAWS)]
    misses = _misses((moments - problem.target) / moments.std(axis=0))
    if misses is None:
        return CheckItem("together", None, "not looked at: the linear program found no answer")
    worst = int(np.argmax(np.abs(misses)))
    if abs(misses[worst]) < 1e-6:
        return CheckItem("together", True, f"a mixture of {len(moments)} draws has all targets at once")
    message = (
        f"no mixture of {len(moments)} draws has all targets at once; the closest misses "
        f"{problem.constraints[worst].name!r} by {abs(misses[worst]):.2g} of its sd. Draws are finite in number: "
        "the property may exist all the same."
    )
    return CheckItem("together", None, message)


def _misses(deviations: Float[np.ndarray, "K M"]) -> Float[np.ndarray, " M"] | None:
    """Mean deviations of the mixture whose greatest one is least: is zero inside the convex hull of the draws?"""
    num_draws, num_moments = deviations.shape
    # Variables: one weight a draw, then the greatest miss t; -t <= weights @ deviations <= t.
    bound = np.ones((num_moments, 1))
    upper = np.block([[deviations.T, -bound], [-deviations.T, -bound]])
    found = scipy.optimize.linprog(
        c=np.append(np.zeros(num_draws), 1.0),
        A_ub=upper,
        b_ub=np.zeros(2 * num_moments),
        A_eq=np.append(np.ones(num_draws), 0.0)[None],
        b_eq=[1.0],
    )
    return found.x[:-1] @ deviations if found.success else None


def _no_gradient(problem: Problem, reason: str) -> CheckItem:
    if any(_declared_differentiable(problem)):
        return CheckItem("gradient", False, f"{reason}. Fit with objective=objectives.Score().")
    return CheckItem("gradient", None, "every statistic is declared not differentiable; fit uses objectives.Score()")


def _gradients(problem: Problem, seen: _Seen, slopes: _Slopes) -> Iterator[CheckItem]:
    moments = seen.moments()
    found = [
        _gradient(constraint, _Slopes(*(np.asarray(field)[column] for field in slopes)), declared)
        for column, (constraint, declared) in enumerate(
            zip(problem.constraints, _declared_differentiable(problem), strict=True)
        )
        if not _is_constant(moments[:, column])
    ]
    faults = [item for item in found if item is not None]
    yield from faults
    if not faults:
        yield CheckItem("gradient", True, "finite, not zero, and in agreement with a score-function estimate")


def _gradient(constraint: Constraint, slopes: _Slopes, declared: bool) -> CheckItem | None:
    """One moment's; the fields' leading axis is gone."""
    name = f"gradient of {constraint.name}"
    if not declared:
        message = "declared not differentiable, so a pathwise fit learns nothing; fit uses objectives.Score()"
        return CheckItem(name, None, message)
    if slopes.nonfinite > 0:
        message = (
            f"not finite in {float(slopes.nonfinite):.1%} of the draws. Look for where, sqrt or norm at their edges."
        )
        return CheckItem(name, False if slopes.nonfinite > 0.01 else None, message)
    seen_by_score = _largest_z(slopes.score, slopes.score_error) > _NUM_STANDARD_ERRORS
    if slopes.zero and seen_by_score:
        message = "zero in every draw, though its mean depends on the parameters: fit with objective=objectives.Score()"
        return CheckItem(name, False, message)
    if slopes.zero:
        return CheckItem(name, None, "zero in every draw: it may not depend on the parameters at all")
    z = _largest_z(slopes.pathwise - slopes.score, slopes.difference_error)
    if z > _NUM_STANDARD_ERRORS:
        message = (
            f"wrong: it is {z:.0f} standard errors from a score-function estimate. Look for jumps, rounding, "
            "stop_gradient or a custom derivative, or fit with objective=objectives.Score()."
        )
        return CheckItem(name, False, message)
    return None


def _largest_z(means: Any, errors: Any) -> float:
    # 0 / 0 is agreement.
    return float(np.max(np.abs(means) / np.maximum(errors, np.finfo(np.float32).tiny)))


def _declared_differentiable(problem: Problem) -> list[bool]:
    """Whether each constraint's statistic is declared differentiable."""
    zeros = jnp.zeros(problem.dim)
    values = jax.eval_shape(lambda: problem.property.values(problem.simulator(jax.random.key(0), zeros).sites))
    sizes = [(target, math.prod(values[target.statistic.name].shape)) for target in problem.property.targets]
    means = [target.statistic.differentiable for target, size in sizes for _ in range(size)]
    squares = [t.statistic.differentiable for t, size in sizes if t.std is not None for _ in range(size)]
    return means + squares


def _is_constant(column: Float[np.ndarray, " K"]) -> bool:
    return bool(np.ptp(column) <= 1e-6 * np.max(np.abs(column)))


def _with_unit(number: float, constraint: Constraint) -> str:
    return f"{number:.4g} {constraint.unit}".rstrip()


def _join(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
