"""How the multipliers move. Add a rule here: a final subclass of `AbstractMultiplierRule`.

An *epoch* is all optimiser steps at fixed multipliers and penalty metric. At its end a rule sees what the epoch's batches
showed and gives the next multipliers and metric of the loss ``-H_b + eta . R + 1/2 R' P R``.
"""

import math
from abc import abstractmethod
from typing import Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._arguments import as_number, check_count, check_positive
from ._types import Key, Metric, Moments, Scalar

__all__ = ["AbstractMultiplierRule", "EpochSummary", "Fixed", "GrowingPenalty", "Natural", "Yielding"]


class EpochSummary(NamedTuple):
    """What the batches of one epoch showed.

    Attributes:
        violation: Mean of ``T - target`` over the epoch, shape [M], in the moments' units.
        standard_error: Standard error of ``violation``, shape [M].
        covariance: Pooled covariance of the moments within a batch, shape [M, M].
        batch_violations: Mean of ``T - target`` over each step's batch, shape [steps, M].
    """

    violation: Moments
    standard_error: Moments
    covariance: Metric
    batch_violations: Float[Array, "steps M"]


S = TypeVar("S")


class AbstractMultiplierRule(eqx.Module, Generic[S]):
    """Turns violations into multipliers. The state is a tuple of arrays with fields ``eta`` [M] and ``metric`` [M, M].

    Attributes:
        steps_per_epoch: Optimiser steps between two updates.
        anneals: Whether `fit` may move the targets from the guide's first moments to the wanted ones.
    """

    steps_per_epoch: eqx.AbstractVar[int]
    anneals: eqx.AbstractClassVar[bool]

    @abstractmethod
    def init(self, key: Key, covariance: Metric) -> S:
        """The state before the first epoch, given the moments' covariance under the starting guide."""

    @abstractmethod
    def update(self, state: S, epoch: EpochSummary) -> S:
        """The state of the next epoch; every array keeps its shape and dtype."""


class NaturalState(NamedTuple):
    """State of `Natural`: multipliers, metric, and the running covariance of the moments."""

    eta: Moments
    metric: Metric
    covariance: Metric


class Natural(AbstractMultiplierRule[NaturalState]):
    """Steps along the natural gradient of the dual: no unit and no schedule to tune.

    Where the start knows the solution's multipliers, `fit` takes `Yielding` in its place; pass `Fixed` for ones that never move.

    The dual's Hessian is the covariance ``C`` of the moments, so ``P = penalty C^-1`` makes it round, and

        eta <- eta + rate P R

    shrinks the violation at one rate whatever the moments' units.

    Attributes:
        penalty: Dimensionless factor of the metric, of order 1.
        rate: Share of the full step ``P R`` taken after each epoch.
        steps_per_epoch: Optimiser steps between two updates.
        forgetting: Weight of the newest epoch in the running covariance.
        shrinkage: Weight of the identity in the correlation matrix, so that duplicated moments stay invertible.
    """

    penalty: float = 2.0
    rate: float = 0.1
    steps_per_epoch: int = 25
    forgetting: float = 0.5
    shrinkage: float = 0.01
    anneals = True

    def __check_init__(self):
        check_positive(penalty=self.penalty, rate=self.rate)
        check_count("steps_per_epoch", self.steps_per_epoch)
        _check_shares(forgetting=self.forgetting, shrinkage=self.shrinkage)

    def init(self, key: Key, covariance: Metric) -> NaturalState:
        return NaturalState(jnp.zeros_like(covariance[0]), self._metric(covariance), covariance)

    def update(self, state: NaturalState, epoch: EpochSummary) -> NaturalState:
        eta = state.eta + self.rate * state.metric @ epoch.violation
        covariance = (1 - self.forgetting) * state.covariance + self.forgetting * epoch.covariance
        return NaturalState(eta, self._metric(covariance), covariance)

    def _metric(self, covariance: Metric) -> Metric:
        return self.penalty * shrunk_inverse(covariance, self.shrinkage)


class Fixed(AbstractMultiplierRule[NaturalState]):
    """Multipliers and metric stay what they are at the start: for starts that solved the dual.

    Updates from the guide's own draws would follow the guide's errors: a few draws far from the property inflate the moments'
    covariance and with it the steps of the multipliers.

    Attributes:
        penalty: Dimensionless factor of the metric ``P = penalty C^-1``, of order 1.
        steps_per_epoch: Optimiser steps between two records.
        shrinkage: Weight of the identity in the correlation matrix.
    """

    penalty: float = 2.0
    steps_per_epoch: int = 25
    shrinkage: float = 0.01
    anneals = False

    def __check_init__(self):
        check_positive(penalty=self.penalty)
        check_count("steps_per_epoch", self.steps_per_epoch)
        _check_shares(shrinkage=self.shrinkage)

    def init(self, key: Key, covariance: Metric) -> NaturalState:
        metric = self.penalty * shrunk_inverse(covariance, self.shrinkage)
        return NaturalState(jnp.zeros_like(covariance[0]), metric, covariance)

    def update(self, state: NaturalState, epoch: EpochSummary) -> NaturalState:
        return state


LONGEST_STEP = 0.2
"""Of `Yielding`, in the inverse of a moment's scale: that of a violation of one standard deviation, at the default rate and
penalty and without momentum."""


class YieldingState(NamedTuple):
    """State of `Yielding`: multipliers, metric, the moments' scales, last step, and epochs that have passed."""

    eta: Moments
    metric: Metric
    scale: Moments
    step: Moments
    epochs: Int[Array, ""]


class Yielding(AbstractMultiplierRule[YieldingState]):
    """Multipliers stay for a while, as `Fixed`; then they move while a moment is off its target.

    `fit` takes it in place of `Natural` where the start knows the solution's multipliers. A flow that cannot follow the solution
    does not have the property at these; at others it has, with less entropy. The steps are those of `Natural`,
    by the covariance of the solution's moments, with momentum (Polyak 1964): such a flow gives way less than the solution would.

    Attributes:
        held_epochs: Epochs in which the multipliers stay, at least one.
        slack: Distance of a moment from its target up to which they stay too, in units of its scale (`Problem.scale`) in a fit,
            of its standard deviation at the start else.
        penalty: Dimensionless factor of the metric ``P = penalty C^-1``, of order 1.
        rate: Share of the full step ``P R`` taken after each epoch.
        momentum: Share of the last step that is added to it.
        steps_per_epoch: Optimiser steps between two updates.
        shrinkage: Weight of the identity in the correlation matrix.
    """

    held_epochs: int = 50
    slack: float = 0.025
    penalty: float = 2.0
    rate: float = 0.1
    momentum: float = 0.8
    steps_per_epoch: int = 25
    shrinkage: float = 0.01
    anneals = False

    def __check_init__(self):
        check_positive(slack=self.slack, penalty=self.penalty, rate=self.rate)
        check_count("steps_per_epoch", self.steps_per_epoch)
        check_count("held_epochs", self.held_epochs, 0)
        if not 0 <= as_number(self.momentum) < 1:
            raise ValueError(f"Expected 0 <= momentum < 1; got {self.momentum!r}.")
        _check_shares(shrinkage=self.shrinkage)

    def init(self, key: Key, covariance: Metric) -> YieldingState:
        metric = self.penalty * shrunk_inverse(covariance, self.shrinkage)
        scale = jnp.sqrt(jnp.diagonal(covariance))
        return YieldingState(jnp.zeros_like(scale), metric, scale, jnp.zeros_like(scale), jnp.zeros((), int))

    def update(self, state: YieldingState, epoch: EpochSummary) -> YieldingState:
        epochs = state.epochs + 1
        # Rounding is all that a moment without a scale can be off by.
        is_off = (state.scale > 0) & (jnp.abs(epoch.violation) > self.slack * state.scale)
        step = self.momentum * state.step + self.rate * state.metric @ epoch.violation
        # A few draws far from the property would else decide where the multipliers go.
        step = step / jnp.maximum(1.0, jnp.max(jnp.abs(step) * state.scale) / LONGEST_STEP)
        step = jnp.where((epochs >= self.held_epochs) & jnp.any(is_off), step, 0.0)
        return state._replace(eta=state.eta + step, step=step, epochs=epochs)


class GrowingPenaltyState(NamedTuple):
    """State of `GrowingPenalty`: multipliers, metric ``c I``, penalty ``c``, last epoch's norms, key."""

    eta: Moments
    metric: Metric
    penalty: Scalar
    norms: Float[Array, " num_norms"]
    key: Key


class GrowingPenalty(AbstractMultiplierRule[GrowingPenaltyState]):
    """The published rule (Bittner et al. 2021, eLife 10:e56265, Methods), kept for comparison and reproduction.

        eta <- eta + c R,    c <- beta c  with probability 1 - p/2  if the norms |R|^2 did not shrink by gamma,

    where ``p`` is the two-sided p-value of a Welch t-test of the norms against ``gamma`` times the last epoch's. The norms
    are those of the epoch's last batches, where the original simulates as many fresh ones.

    Attributes:
        initial_penalty: ``c`` of the first epoch, in the inverse of the squared moments' units.
        shrinkage_factor: gamma, the ratio by which the norms should fall in one epoch.
        growth: beta, the factor by which the penalty grows otherwise.
        steps_per_epoch: Optimiser steps between two updates.
        num_norms: Batches whose norms enter the test.
    """

    initial_penalty: float = 1.0
    shrinkage_factor: float = 0.25
    growth: float = 4.0
    steps_per_epoch: int = 1000
    num_norms: int = 200
    anneals = False

    def __check_init__(self):
        check_positive(initial_penalty=self.initial_penalty)
        check_count("steps_per_epoch", self.steps_per_epoch)
        check_count("num_norms", self.num_norms, 0)
        if not 0 <= as_number(self.shrinkage_factor) <= 1:
            raise ValueError(f"Expected 0 <= shrinkage_factor <= 1; got {self.shrinkage_factor!r}.")
        if not 1 <= as_number(self.growth) < math.inf:
            raise ValueError(f"Expected growth >= 1; got {self.growth!r}.")
        if not 2 <= self.num_norms <= self.steps_per_epoch:
            raise ValueError(
                f"Expected 2 <= num_norms <= steps_per_epoch; got {self.num_norms}, {self.steps_per_epoch}."
            )

    def init(self, key: Key, covariance: Metric) -> GrowingPenaltyState:
        eta = jnp.zeros_like(covariance[0])
        penalty = jnp.full_like(eta[0], self.initial_penalty)
        norms = jnp.full((self.num_norms,), jnp.inf, eta.dtype)
        return GrowingPenaltyState(eta, penalty * jnp.eye(eta.size, dtype=eta.dtype), penalty, norms, key)

    def update(self, state: GrowingPenaltyState, epoch: EpochSummary) -> GrowingPenaltyState:
        key, coin = jax.random.split(state.key)
        norms = jnp.sum(jnp.square(epoch.batch_violations[-self.num_norms :]), axis=1)
        t, p = welch_t_test(norms, self.shrinkage_factor * state.norms)
        # The first epoch has nothing to compare with: its infinite norms give t = nan, so the penalty stays.
        grows = (t > 0) & jax.random.bernoulli(coin, jnp.nan_to_num(1 - p / 2))
        penalty = jnp.where(grows, state.penalty * self.growth, state.penalty)
        eta = state.eta + state.penalty * epoch.batch_violations[-1]
        return GrowingPenaltyState(eta, penalty * jnp.eye(eta.size, dtype=eta.dtype), penalty, norms, key)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < as_number(share) <= 1:
            raise ValueError(f"Expected 0 < {name} <= 1; got {share!r}.")


def shrunk_inverse(covariance: Metric, shrinkage: float) -> Metric:
    """Inverse of a covariance whose correlation matrix is shrunk towards the identity.

    A moment that does not vary at all gets no weight: nothing the guide does can move it.
    """
    variance = jnp.diagonal(covariance)
    varies = variance > 0
    inverse_sd = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variance, 1.0)), 0.0)
    correlation = covariance * inverse_sd[:, None] * inverse_sd[None, :]
    size = covariance.shape[0]
    shrunk = (1 - shrinkage) * correlation + shrinkage * jnp.eye(size, dtype=covariance.dtype)
    # A constant moment's row of the correlation is zero; its diagonal must not be.
    shrunk = shrunk + jnp.diag(jnp.where(varies, 0.0, 1.0).astype(covariance.dtype))
    inverse = jnp.linalg.inv(shrunk)
    inverse = 0.5 * (inverse + inverse.T)
    return inverse * inverse_sd[:, None] * inverse_sd[None, :]


def welch_t_test(first: Float[Array, " n"], second: Float[Array, " m"]) -> tuple[Scalar, Scalar]:
    """Welch's t statistic of two samples' means, positive where the first is larger, and its two-sided p-value."""
    variance = jnp.array([jnp.var(first, ddof=1) / first.size, jnp.var(second, ddof=1) / second.size])
    total = jnp.sum(variance)
    t = (jnp.mean(first) - jnp.mean(second)) / jnp.sqrt(total)
    freedom = total**2 / (variance[0] ** 2 / (first.size - 1) + variance[1] ** 2 / (second.size - 1))
    # P(|t_v| > t) is the regularised incomplete beta function at v / (v + t^2) (Abramowitz & Stegun 26.7.1).
    p = jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + t**2))
    return t, p
