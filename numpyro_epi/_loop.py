"""The compiled part of a fit: optimiser steps scanned into epochs, a multiplier update after each, epochs into chunks."""

import types
from collections.abc import Hashable
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._problem import Evaluation, Problem
from ._products import compiled_for_long
from ._types import Key, Metric, Moments, Scalar, Unconstrained
from .multipliers import AbstractMultiplierRule, EpochSummary, shrunk_inverse
from .objectives import AbstractObjective, Batch, Lagrangian

F = TypeVar("F", bound=AbstractDistribution)

MOST_SKIPPED, LEAST_FINITE = 0.5, 0.5
"""An epoch diverges where this share of its steps has no finite gradient, or where the share of finite simulations falls to
this part of what it was."""

LEAP, RELATIVE_LEAP = 100.0, 10.0
"""And where the median step's loss is so many nats, or times its earlier size, above the epoch before, or its last steps' are
above or below it: multipliers that move change it by a few."""

SETBACKS, YOUNG, LAST_SETBACKS = 3, 20, 6
"""Epochs in a row that diverge, after which what they went back to is no good either: a run of no more than so many good epochs
begins anew; after still more of them any run does."""

SMALLEST_STEP = 2.0**-12
"""Share of the optimiser's step below which backing off is given up."""


class LoopState(NamedTuple):
    """Everything that a run needs to go on, as arrays.

    Attributes:
        parameters: The flow's trainable arrays.
        averaged: Their running average: the optimiser's noise moves them about the optimum, and a guide is judged and returned
            by its average (Polyak & Juditsky 1992).
        optimizer: Optimiser state.
        rule: State of the multiplier rule.
        start_moments: The guide's moments before the first step, where the annealing of the targets begins.
        remaining: Share of the way from there to the wanted targets that is still to go, 1 to 0.
        key: Key of the next step.
        step: Steps done.
        step_scale: Share of the optimiser's step that is taken: halved whenever an epoch diverges.
        loss: Median loss of the last epoch that did not diverge, nats; infinite before the first one.
        finite_share: Its share of finite simulations.
        setbacks: Epochs in a row that diverged.
        held: Epochs that did not diverge, since the run began or began anew.
        origin: Where it began: parameters, their average, optimiser and rule.
    """

    parameters: PyTree
    averaged: PyTree
    optimizer: PyTree
    rule: Any
    start_moments: Moments
    remaining: Scalar
    key: Key
    step: Int[Array, ""]
    step_scale: Scalar
    loss: Scalar
    finite_share: Scalar
    setbacks: Int[Array, ""]
    held: Int[Array, ""]
    origin: tuple[PyTree, PyTree, PyTree, Any]


class EpochRecord(NamedTuple):
    """One row of a run's history; means over the epoch's steps.

    Attributes:
        step: Steps done at the end of the epoch.
        loss: Augmented Lagrangian, nats, of the steps where it is a number.
        entropy: Of the guide over the constrained parameters, nats.
        base_entropy: ``-KL(q || base)``, nats.
        moment: ``E[T]``, in the moments' units.
        scale: Standard deviation of ``T`` within a batch.
        eta: Multipliers during the epoch.
        penalty: Mean of ``diag(P) var(T)``: the penalty's dimensionless strength.
        finite_share: Share of draws with finite moments.
        skipped: Steps left out because their gradient was not finite.
        without_gradient: Draws, at least, that gave finite moments but no finite gradient, and were left out of their batch's.
        slack_variance: Variance of ``log q - log base + eta . T``, nats^2; zero at the optimum of a noiseless problem.
        remaining: Share of the way of the annealed targets still to go, 1 to 0.
        step_scale: Share of the optimiser's step that was taken.
        diverged: 1 where the epoch diverged, so that the run went back to where it began, with half the step; else 0.
    """

    step: Int[Array, ""]
    loss: Scalar
    entropy: Scalar
    base_entropy: Scalar
    moment: Moments
    scale: Moments
    eta: Moments
    penalty: Scalar
    finite_share: Scalar
    skipped: Int[Array, ""]
    without_gradient: Int[Array, ""]
    slack_variance: Scalar
    remaining: Scalar
    step_scale: Scalar
    diverged: Int[Array, ""]


class Loop(eqx.Module):
    """The fixed ingredients of a run.

    Attributes:
        problem: The question.
        static: The flow without its trainable arrays.
        objective: Estimator of the augmented Lagrangian.
        rule: How the multipliers move.
        optimizer: An optax optimiser.
        num_draws: Draws a step.
        anneal_steps: Steps during which the targets move from the guide's first moments to the wanted ones.
        memory: Steps, about, over which parameters are averaged.
    """

    problem: Problem
    static: PyTree
    objective: AbstractObjective
    rule: AbstractMultiplierRule
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    num_draws: int
    anneal_steps: int
    memory: int = 100
    pace: float = 0.04

    @compiled_for_long
    def run_epochs(self, state: LoopState, num_epochs: int) -> tuple[LoopState, EpochRecord]:
        """Run a fixed number of epochs; the records' leading axis is the epoch."""
        return jax.lax.scan(lambda state, _: self.epoch(state), state, None, length=num_epochs)

    def target(self, state: LoopState) -> Moments:
        """The targets at this step of the annealing."""
        final = jnp.asarray(self.problem.target, state.start_moments.dtype)
        return final + state.remaining * (state.start_moments - final)

    def _anneal(self, state: LoopState, covariance: Metric) -> Scalar:
        way = state.start_moments - jnp.asarray(self.problem.target, state.start_moments.dtype)
        # The way's length in standard deviations, as the statistics vary now: one pace for all units and all stages.
        length = jnp.sqrt(way @ shrunk_inverse(covariance, 0.01) @ way)
        pace = self.pace / jnp.maximum(length, 1e-30)
        epochs_left = jnp.maximum((self.anneal_steps - state.step) / self.rule.steps_per_epoch, 1.0)
        pace = jnp.maximum(pace, state.remaining / epochs_left)
        return jnp.maximum(state.remaining - pace, 0.0).astype(state.remaining.dtype)

    def epoch(self, state: LoopState) -> tuple[LoopState, EpochRecord]:
        """Optimiser steps at fixed multipliers, then the rule's update; nothing but half the step size if they diverge."""
        target, before = self.target(state), state
        lagrangian = Lagrangian(state.rule.eta, state.rule.metric, target)
        state, steps = jax.lax.scan(
            lambda carry, _: self._step(carry, lagrangian), state, None, length=self.rule.steps_per_epoch
        )
        summary = _summarise(steps, self.num_draws)
        diverged = _diverged(before, steps)
        record = EpochRecord(
            step=state.step,
            loss=jnp.nanmean(steps.loss),
            entropy=jnp.mean(steps.entropy),
            base_entropy=jnp.mean(steps.base_entropy),
            moment=summary.violation + target,
            scale=jnp.sqrt(jnp.diagonal(summary.covariance)),
            eta=lagrangian.eta,
            penalty=jnp.mean(jnp.diagonal(lagrangian.metric) * jnp.diagonal(summary.covariance)),
            finite_share=jnp.mean(steps.finite_share),
            skipped=jnp.sum(steps.skipped),
            without_gradient=jnp.sum(steps.without_gradient),
            slack_variance=jnp.mean(steps.slack_variance),
            remaining=state.remaining,
            step_scale=before.step_scale,
            diverged=diverged.astype(int),
        )
        after = state._replace(
            rule=self.rule.update(state.rule, summary),
            remaining=self._anneal(state, summary.covariance),
            loss=jnp.median(steps.loss),
            finite_share=jnp.mean(steps.finite_share),
            setbacks=jnp.zeros_like(before.setbacks),
            held=before.held + 1,
        )
        return _choose(diverged, _set_back(before, state), after), record

    def _step(self, state: LoopState, lagrangian: Lagrangian) -> tuple[LoopState, "StepRecord"]:
        key, batch_key = jax.random.split(state.key)

        def loss_of(parameters: PyTree, tally: Scalar) -> tuple[Scalar, Batch]:
            flow = combine(parameters, self.static)

            def evaluate(key: Key, unconstrained: Unconstrained) -> Evaluation:
                return self.problem.evaluate(key, _counted(unconstrained, tally))

            return self.objective(batch_key, flow, evaluate, lagrangian, self.num_draws)

        found = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)(state.parameters, jnp.zeros((), float))
        (loss, batch), (gradient, tally) = found
        # A step whose gradient is not finite counts as one without slope.
        usable = jnp.isfinite(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda leaf: jnp.where(usable, leaf, 0.0), gradient)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.parameters)
        updates = jax.tree.map(lambda leaf: leaf * state.step_scale.astype(leaf.dtype), updates)
        parameters = optax.apply_updates(state.parameters, updates)
        # An average over all steps so far at first.
        share = 1.0 / jnp.minimum(state.step + 1, self.memory)
        averaged = jax.tree.map(lambda a, p: (a + share * (p - a)).astype(a.dtype), state.averaged, parameters)
        state = state._replace(
            parameters=parameters, averaged=averaged, optimizer=optimizer, key=key, step=state.step + 1
        )
        return state, _record_step(loss, batch, lagrangian, usable, tally)


class StepRecord(NamedTuple):
    """What one step's batch showed; see `EpochRecord`."""

    loss: Scalar
    entropy: Scalar
    base_entropy: Scalar
    violation: Moments
    covariance: Metric
    finite_share: Scalar
    skipped: Int[Array, ""]
    without_gradient: Int[Array, ""]
    slack_variance: Scalar


@jax.custom_vjp
def _counted(unconstrained: Unconstrained, tally: Scalar) -> Unconstrained:
    """The identity; a gradient of it that is not finite is dropped, and adds one to the tally's."""
    return unconstrained


def _forward(unconstrained, tally):
    return unconstrained, tally


def _backward(tally, cotangent):
    usable = jnp.all(jnp.isfinite(cotangent))
    return jnp.where(usable, cotangent, 0.0), 1.0 - usable.astype(tally.dtype)


_counted.defvjp(_forward, _backward)


def partition(flow: AbstractDistribution) -> tuple[PyTree, PyTree]:
    """Split a flow into its trainable arrays and the rest."""
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))


def combine(parameters: PyTree, static: PyTree) -> AbstractDistribution:
    """Put a flow together again."""
    return eqx.combine(parameters, static, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable))


def share_programs(flow: F) -> F:
    """Make a new flow as equal to an earlier one as it can be, so that compiled programs are used again.

    A program is found again only if everything static in it is equal; but every flow that is built holds new closures, which
    are equal to nothing. Two functions with the same code and the same closed-over values compute the same. Weak dtypes,
    which would be gone after the first step, are made strong.
    """

    def shared(leaf: Any) -> Any:
        if isinstance(leaf, types.FunctionType):
            return _known(leaf)
        return jnp.asarray(leaf, leaf.dtype) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(shared, flow)


def _known(function: types.FunctionType) -> types.FunctionType:
    try:
        return _KNOWN.setdefault(_fingerprint(function), function)
    except TypeError:  # Something closed over cannot be hashed.
        return function


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, types.FunctionType):
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        inner = (value.__defaults__, value.__kwdefaults__, cells)
        return value.__code__, id(value.__globals__), _fingerprint(inner)
    if eqx.is_array(value) and not isinstance(value, jax.core.Tracer):
        return str(value.dtype), value.shape, np.asarray(value).tobytes()
    leaves, structure = jax.tree.flatten(value)
    if jax.tree_util.treedef_is_leaf(structure):
        hash(value)
        return type(value), value
    return structure, tuple(map(_fingerprint, leaves))


_KNOWN: dict[Hashable, types.FunctionType] = {}


def masked_moments(moments: Float[Array, "N M"], finite: Float[Array, " N"]) -> tuple[Moments, Metric]:
    """Mean and unbiased covariance of the moments of the finite draws."""
    count = jnp.maximum(jnp.sum(finite), 2.0)
    mean = finite @ moments / count
    centred = (moments - mean) * finite[:, None]
    return mean, centred.T @ centred / (count - 1)


def _record_step(loss: Scalar, batch: Batch, lagrangian: Lagrangian, usable: Array, tally: Scalar) -> StepRecord:
    weights = batch.finite.astype(batch.log_q.dtype)
    violations = batch.moments - lagrangian.target
    relative = batch.log_q - batch.log_base
    slack = relative + violations @ lagrangian.eta
    columns = jnp.stack([relative, batch.log_q - batch.log_det, slack], axis=1)
    means, covariance = masked_moments(jnp.concatenate([violations, columns], axis=1), weights)
    size = violations.shape[1]
    return StepRecord(
        loss=loss,
        entropy=-means[size + 1],
        base_entropy=-means[size],
        violation=means[:size],
        covariance=covariance[:size, :size],
        finite_share=jnp.mean(weights),
        skipped=1 - usable.astype(int),
        # A simulation that failed may have no gradient either, and is counted as such.
        without_gradient=jnp.maximum(tally - jnp.sum(1.0 - weights), 0.0).astype(int),
        slack_variance=covariance[-1, -1],
    )


def _set_back(before: LoopState, state: LoopState) -> LoopState:
    """Where an epoch began, or the run, with half the step. The noise goes on, or the same draws would do the same again."""
    back = before._replace(
        key=state.key, step=state.step, step_scale=0.5 * before.step_scale, setbacks=before.setbacks + 1
    )
    parameters, averaged, optimizer, rule = before.origin
    anew = back._replace(
        parameters=parameters,
        averaged=averaged,
        optimizer=optimizer,
        rule=rule,
        loss=jnp.full_like(back.loss, jnp.inf),
        remaining=jnp.ceil(back.remaining),
        held=jnp.zeros_like(back.held),
        setbacks=jnp.zeros_like(back.setbacks),
    )
    hopeless = (back.setbacks >= SETBACKS) & (back.held <= YOUNG) | (back.setbacks >= LAST_SETBACKS)
    return _choose(hopeless, anew, back)


def _choose(condition: Bool[Array, ""], one: LoopState, other: LoopState) -> LoopState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _diverged(before: LoopState, steps: StepRecord) -> Bool[Array, ""]:
    """Whether an epoch left what it began with for good: numbers that are no numbers, or a loss out of all proportion."""
    is_first = jnp.isinf(before.loss)
    share = jnp.where(is_first, steps.finite_share[0], before.finite_share)
    loss = jnp.where(is_first, steps.loss[0], before.loss)
    loss = jnp.where(jnp.isfinite(loss), loss, jnp.inf)
    skipped = jnp.mean((steps.skipped > 0) | ~jnp.isfinite(steps.loss)) > MOST_SKIPPED
    lost = jnp.mean(steps.finite_share) < LEAST_FINITE * share
    # Of the last steps too: an explosion at the end must not be where the next epoch begins.
    late = jnp.median(steps.loss[-(1 + len(steps.loss) // 5) :])
    far = jnp.maximum(jnp.median(steps.loss) - loss, jnp.abs(late - loss) - jnp.maximum(loss - LEAP, 0.0))
    leapt = far > LEAP + RELATIVE_LEAP * jnp.abs(loss)
    return skipped | lost | leapt


def _summarise(steps: StepRecord, num_draws: int) -> EpochSummary:
    covariance = jnp.mean(steps.covariance, axis=0)
    count = steps.loss.shape[0] * num_draws
    standard_error = jnp.sqrt(jnp.diagonal(covariance) / count)
    return EpochSummary(jnp.mean(steps.violation, axis=0), standard_error, covariance, steps.violation)
