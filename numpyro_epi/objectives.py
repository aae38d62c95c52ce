"""Monte Carlo estimators of the augmented Lagrangian. Add one here: a final subclass of `AbstractObjective`.

The loss of a guide ``q`` at multipliers ``eta`` and penalty metric ``P`` is

    -H_b(q) + eta . R + 1/2 R' P R,    R = E[T] - target,    H_b(q) = -KL(q || base),

an expectation that is not linear in ``q``: the square of a batch mean is biased (it rewards a small spread), so every
penalty here is built from products of independent draws.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax.distributions import AbstractDistribution, VmapMixture
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._arguments import check_bool, check_instance, check_positive
from ._problem import Evaluation, Problem
from ._products import with_full_products
from ._types import Draws, Finite, Metric, MomentDraws, Moments, PerDraw, Scalar

__all__ = [
    "AbstractObjective",
    "Anchored",
    "Batch",
    "Lagrangian",
    "Pathwise",
    "Score",
    "default",
    "split_half",
    "squared_mean",
    "u_statistic",
]

Evaluate = Callable[[PRNGKeyArray, Float[Array, " D"]], Evaluation]
"""Runs and measures one draw, as `Problem.evaluate` does; a fit gives one that is differentiated in reverse mode alone."""

Penalty = Callable[[MomentDraws, PerDraw, Metric], Scalar]
"""Estimates ``1/2 R' P R`` from centred moments [N, M], weights [N] of 0 or 1, and ``P``."""


class Lagrangian(NamedTuple):
    """The dual state that an objective sees.

    Attributes:
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        metric: Penalty metric ``P``, symmetric positive semidefinite, shape [M, M].
        target: Targets of the moments, shape [M]; they move while they are annealed.
    """

    eta: Moments
    metric: Metric
    target: Moments


class Batch(NamedTuple):
    """What one batch of draws showed.

    Attributes:
        moments: ``T`` of each draw, shape [N, M]; the target where it is not finite.
        log_q: Log density of the guide in unconstrained coordinates, nats.
        log_base: Log density of the base measure in the same coordinates, nats.
        log_det: ``log |dz/du|``, nats.
        finite: Which draws gave finite moments.
    """

    moments: MomentDraws
    log_q: PerDraw
    log_base: PerDraw
    log_det: PerDraw
    finite: Finite


class AbstractObjective(eqx.Module):
    """An estimator of the augmented Lagrangian whose *gradient* with respect to the flow is unbiased."""

    @abstractmethod
    def __call__(
        self, key: PRNGKeyArray, flow: AbstractDistribution, evaluate: Evaluate, lagrangian: Lagrangian, num_draws: int
    ) -> tuple[Scalar, Batch]:
        """Draw one batch and estimate the loss.

        Args:
            key: Split between the flow's draws and the simulator's noise.
            flow: Distribution of the unconstrained parameters; the loss is differentiated with respect to it.
            evaluate: Runs and measures one draw.
            lagrangian: Multipliers, metric and targets.
            num_draws: N, at least 2.

        Returns:
            The loss in nats, and the batch it was computed from.
        """


def u_statistic(violations: MomentDraws, weights: PerDraw, metric: Metric) -> Scalar:
    """``1/2 (R'PR - tr(PS)/N)``: all pairs of different draws (Hoeffding 1948)."""
    count = jnp.maximum(jnp.sum(weights), 2.0)
    mean = weights @ violations / count
    centred = (violations - mean) * weights[:, None]
    spread = jnp.sum((centred @ metric) * centred) / (count - 1)
    return 0.5 * (mean @ metric @ mean - spread / count)


def split_half(violations: MomentDraws, weights: PerDraw, metric: Metric) -> Scalar:
    """``1/2 R_1' P R_2`` of two independent halves, with gradients through both.

    The symmetrised form of Bittner et al. 2021, eLife 10:e56265, Methods ("augmented Lagrangian optimization").
    """
    half = violations.shape[0] // 2
    first = _weighted_mean(violations[:half], weights[:half])
    second = _weighted_mean(violations[half:], weights[half:])
    return 0.5 * (first @ metric @ second)


def squared_mean(violations: MomentDraws, weights: PerDraw, metric: Metric) -> Scalar:
    """``1/2 R' P R`` of the batch mean: biased by ``tr(PS)/2N``, kept to show what that costs."""
    mean = _weighted_mean(violations, weights)
    return 0.5 * (mean @ metric @ mean)


class Pathwise(AbstractObjective):
    """Gradients through the simulator (the reparameterisation trick).

    Attributes:
        penalty: Estimator of the quadratic penalty: `u_statistic` or `split_half`.
        path_derivative: Differentiate ``log q`` along the draw's path only (Roeder, Wu & Duvenaud 2017, equation 8):
            the term left out has mean zero, and at the optimum the gradient's variance vanishes. Costs one inverse pass
            of the flow a step, which a masked autoregressive flow has not to give.
    """

    penalty: Penalty = eqx.field(static=True, default=u_statistic)
    path_derivative: bool = False

    def __check_init__(self):
        if not callable(self.penalty):
            raise TypeError(f"Expected penalty to be a function, such as objectives.u_statistic; got {self.penalty!r}.")
        check_bool(path_derivative=self.path_derivative)

    @with_full_products
    def __call__(self, key, flow, evaluate, lagrangian, num_draws):
        flow_key, noise_key = jax.random.split(key)
        if self.path_derivative:
            u = flow.sample(flow_key, (num_draws,))
            log_q = _frozen(flow).log_prob(u)
        else:
            u, log_q = flow.sample_and_log_prob(flow_key, (num_draws,))
        batch = _run(noise_key, u, log_q, evaluate, lagrangian.target)
        weights = batch.finite.astype(log_q.dtype)
        violations = batch.moments - lagrangian.target
        loss = _weighted_mean(_relative(batch), weights) + lagrangian.eta @ _weighted_mean(violations, weights)
        loss = loss + self.penalty(violations, weights, lagrangian.metric)
        if _has_mixture(flow):
            # A draw's component is discrete: no path leads from it to the mixture's weights.
            loss = loss + _score_term(_only_mixture_weights(flow), u, batch, lagrangian)
        return loss, batch


class Score(AbstractObjective):
    """Gradients through the density only (the score-function trick): for simulators without a useful derivative.

    Each draw's coefficient is its part of the loss less the leave-one-out mean of the others' (Kool et al. 2019).
    """

    @with_full_products
    def __call__(self, key, flow, evaluate, lagrangian, num_draws):
        flow_key, noise_key = jax.random.split(key)
        u, _ = flow.sample_and_log_prob(flow_key, (num_draws,))
        u = jax.lax.stop_gradient(u)
        log_q = flow.log_prob(u)
        batch = jax.lax.stop_gradient(_run(noise_key, u, log_q, evaluate, lagrangian.target))
        weights = batch.finite.astype(log_q.dtype)
        violations = batch.moments - lagrangian.target
        value = _weighted_mean(_relative(batch) + violations @ lagrangian.eta, weights)
        value = value + u_statistic(violations, weights, lagrangian.metric)
        return value + _score_surrogate(log_q, batch, lagrangian), batch


def _score_term(flow: AbstractDistribution, u: Draws, batch: Batch, lagrangian: Lagrangian) -> Scalar:
    """Zero, with the score-function gradient of the loss with respect to what is trainable in this flow."""
    return _score_surrogate(flow.log_prob(jax.lax.stop_gradient(u)), jax.lax.stop_gradient(batch), lagrangian)


def _score_surrogate(log_q: PerDraw, batch: Batch, lagrangian: Lagrangian) -> Scalar:
    """Zero, with the gradient ``mean((own - baseline) grad log q)`` of the augmented Lagrangian."""
    weights = batch.finite.astype(log_q.dtype)
    violations = batch.moments - lagrangian.target
    # Gradient of 1/2 R'PR is (PR).grad R: for draw n, R is replaced by the others' mean, which is independent of n.
    others = _leave_one_out(violations, weights)
    linear = _relative(batch) + violations @ lagrangian.eta
    own = linear + jnp.sum((violations @ lagrangian.metric) * others, axis=1)
    baseline = _leave_one_out(linear[:, None], weights)[:, 0] + _unbiased_square(
        violations, others, weights, lagrangian.metric
    )
    coefficient = jax.lax.stop_gradient(jnp.where(batch.finite, own - baseline, 0.0))
    surrogate = _weighted_mean(coefficient * jnp.where(batch.finite, log_q, 0.0), weights)
    return surrogate - jax.lax.stop_gradient(surrogate)


LEAST_ANCHORS = 500
"""Fewest given draws in a step: unlike the guide's own, they need no simulation."""


class Anchored(AbstractObjective):
    """Another objective plus ``weight KL(p || q)`` for given draws of ``p``, the solution found by other means.

    Reverse KL sharpens the guide but lets the shares of separate modes drift; forward KL holds them. Both have the
    solution as their minimum.

    Attributes:
        objective: The estimator of the augmented Lagrangian.
        draws: Draws of the solution in unconstrained coordinates, shape [K, D].
        weight: Weight of the forward KL, dimensionless.
    """

    objective: AbstractObjective
    draws: Float[Array, "K D"]
    weight: float = 1.0

    def __check_init__(self):
        check_instance("objective", self.objective, AbstractObjective, "an objective, such as objectives.Pathwise()")
        if len(jnp.shape(self.draws)) != 2:
            raise ValueError(f"Expected draws of shape [K, D]; got shape {list(jnp.shape(self.draws))}.")
        check_positive(weight=self.weight)

    @with_full_products
    def __call__(self, key, flow, evaluate, lagrangian, num_draws):
        key, pick_key = jax.random.split(key)
        loss, batch = self.objective(key, flow, evaluate, lagrangian, num_draws)
        forward = mean_log_density(pick_key, flow, self.draws, max(num_draws, LEAST_ANCHORS))
        return loss - self.weight * forward, batch


def default(problem: Problem) -> AbstractObjective:
    """Gradients through the simulator where every statistic has one, through the density only elsewhere."""
    return Pathwise() if problem.differentiable else Score()


def mean_log_density(key: PRNGKeyArray, flow: AbstractDistribution, draws: Draws, num_draws: int) -> Scalar:
    """Mean log density, nats, of ``num_draws`` of the draws, picked with replacement."""
    picked = jax.random.randint(key, (num_draws,), 0, draws.shape[0])
    return jnp.mean(flow.log_prob(draws[picked]))


def _unbiased_square(violations: MomentDraws, others: MomentDraws, weights: PerDraw, metric: Metric) -> PerDraw:
    """``R' P R`` by all draws but one, without the bias of a squared mean.

    A biased baseline has a mean other than the coefficient's, which is no harm only where ``E grad log q`` is zero: not for
    a guide that is truncated to finite simulations.
    """
    square = jnp.sum((others @ metric) * others, axis=1)
    own = jnp.sum((violations @ metric) * violations, axis=1)
    mean_square = _leave_one_out(own[:, None], weights)[:, 0]
    return square - (mean_square - square) / jnp.maximum(jnp.sum(weights) - weights - 1.0, 1.0)


def _is_mixture(node: PyTree) -> bool:
    return isinstance(node, VmapMixture)


def _has_mixture(flow: AbstractDistribution) -> bool:
    return any(map(_is_mixture, jax.tree.leaves(flow, is_leaf=_is_mixture)))


def _only_mixture_weights(flow: PyTree) -> PyTree:
    """The flow with every mixture's weights trainable and nothing else."""

    def freeze(node: PyTree) -> PyTree:
        if not _is_mixture(node):
            return _frozen(node)
        return eqx.tree_at(lambda mixture: mixture.dist, node, _only_mixture_weights(node.dist))

    return jax.tree.map(freeze, flow, is_leaf=_is_mixture)


def _frozen(flow: AbstractDistribution) -> AbstractDistribution:
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, flow)


def _run(key: PRNGKeyArray, u: Draws, log_q: PerDraw, evaluate: Evaluate, target: Moments) -> Batch:
    keys = jax.random.split(key, u.shape[0])
    found = jax.vmap(evaluate)(keys, _stop_nonfinite(u))
    finite = found.finite & jnp.isfinite(log_q)
    # The values of a failed draw are replaced here, its gradients in _stop_nonfinite: either alone leaves a NaN.
    moments = jnp.where(finite[:, None], found.moments, target)
    log_base = jnp.where(finite, found.log_base, 0.0)
    return Batch(moments, jnp.where(finite, log_q, 0.0), log_base, found.log_det, finite)


@jax.custom_vjp
def _stop_nonfinite(u: Draws) -> Draws:
    """The identity, whose backward pass drops the draws whose gradient is not finite."""
    return u


def _stop_forward(u):
    return u, None


def _stop_backward(_, cotangent):
    usable = jnp.all(jnp.isfinite(cotangent), axis=-1, keepdims=True)
    return (jnp.where(usable, cotangent, 0.0),)


_stop_nonfinite.defvjp(_stop_forward, _stop_backward)


def _relative(batch: Batch) -> PerDraw:
    return batch.log_q - batch.log_base


def _weighted_mean(values: Float[Array, "N ..."], weights: PerDraw) -> Float[Array, "..."]:
    return jnp.tensordot(weights, values, 1) / jnp.maximum(jnp.sum(weights), 1.0)


def _leave_one_out(values: MomentDraws, weights: PerDraw) -> MomentDraws:
    total = weights @ values
    count = jnp.maximum(jnp.sum(weights) - weights, 1.0)
    return (total - weights[:, None] * values) / count[:, None]
