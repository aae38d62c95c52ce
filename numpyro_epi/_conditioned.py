"""A flow restricted to the parameters whose simulation is finite: the policy ``nonfinite="condition"`` of a problem."""

import math
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Bool, Float

from ._problem import Problem
from ._products import compiled
from ._types import Key, Scalar, Unconstrained

MOST_TRIES = 1000
"""Proposals for one draw, after which it is given up and NaN."""

SHARE_BATCHES, SHARE_DRAWS = 40, 1000
"""Simulations that measure the share of the flow's draws that is finite: of a tenth, to 1.5 %."""

IsFinite = Callable[[Unconstrained], Bool[Array, ""]]


class Conditioned(AbstractDistribution):
    """``q(u | finite)``: a flow's density over its share of finite simulations where they are finite, zero elsewhere.

    Draws are by rejection; a draw that `MOST_TRIES` proposals did not give is NaN.

    Attributes:
        flow: Over all parameters.
        log_share: Log of the share of the flow's draws that is finite, nats.
        log_share_error: Standard error of that, nats.
        is_finite: Whether one simulation is.
    """

    flow: AbstractDistribution
    log_share: Float[Array, ""]
    log_share_error: Float[Array, ""]
    is_finite: IsFinite = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, flow: AbstractDistribution, is_finite: IsFinite, *, log_share: float, log_share_error: float):
        self.flow, self.is_finite = flow, is_finite
        self.log_share, self.log_share_error = jnp.asarray(log_share, float), jnp.asarray(log_share_error, float)
        self.shape, self.cond_shape = flow.shape, None

    def _log_prob(self, x: Unconstrained, condition: Array | None = None) -> Scalar:
        # A measured number, not one to be learnt.
        log_share = jax.lax.stop_gradient(self.log_share)
        return jnp.where(self.is_finite(x), self.flow.log_prob(x) - log_share, -jnp.inf)

    def _sample(self, key: Key, condition: Array | None = None) -> Unconstrained:
        return self._sample_and_log_prob(key)[0]

    def _sample_and_log_prob(self, key: Key, condition: Array | None = None) -> tuple[Unconstrained, Scalar]:
        def propose(number: Array) -> tuple[Unconstrained, Scalar, Bool[Array, ""]]:
            u, log_q = self.flow.sample_and_log_prob(jax.random.fold_in(key, number))
            return u, log_q, self.is_finite(u)

        def again(carry):
            number = carry[0] + 1
            return number, *propose(number)

        # Where no simulation is finite there is nothing to wait for.
        most = jnp.where(jnp.isfinite(self.log_share), MOST_TRIES, 1)
        first = jnp.zeros((), int)
        _, u, log_q, found = jax.lax.while_loop(
            lambda carry: ~carry[-1] & (carry[0] < most - 1), again, (first, *propose(first))
        )
        return jnp.where(found, u, jnp.nan), jnp.where(found, log_q - self.log_share, jnp.nan)


def finite_test(problem: Problem) -> IsFinite:
    """Whether the simulation at unconstrained parameters is finite; make it once, since programs are compiled for each."""

    def is_finite(unconstrained: Unconstrained) -> Bool[Array, ""]:
        return problem.evaluate(jax.random.key(0), unconstrained).finite

    return is_finite


def conditioner(problem: Problem) -> Callable[[AbstractDistribution], AbstractDistribution]:
    """What a flow becomes by the problem's policy for simulations that are not finite."""
    if problem.nonfinite != "condition":
        return lambda flow: flow
    return partial(_condition, is_finite=finite_test(problem))


def unconditioned(flow: AbstractDistribution) -> AbstractDistribution:
    """The flow over all parameters."""
    return flow.flow if isinstance(flow, Conditioned) else flow


def wrap(flow: AbstractDistribution, is_finite: IsFinite, share: float, num_draws: int) -> Conditioned:
    """A flow and the share, of this many draws, that was finite."""
    if share == 0:
        return Conditioned(flow, is_finite, log_share=-math.inf, log_share_error=math.inf)
    error = math.sqrt((1 - share) / (share * num_draws))
    return Conditioned(flow, is_finite, log_share=math.log(share), log_share_error=error)


def _condition(flow: AbstractDistribution, *, is_finite: IsFinite) -> Conditioned:
    keys = jax.random.split(jax.random.key(0), SHARE_BATCHES)
    share = float(np.mean([_share(flow, is_finite, key) for key in keys]))
    return wrap(flow, is_finite, share, SHARE_BATCHES * SHARE_DRAWS)


@compiled
def _share(flow: AbstractDistribution, is_finite: IsFinite, key: Key) -> Scalar:
    return jnp.mean(jax.vmap(is_finite)(flow.sample(key, (SHARE_DRAWS,))).astype(float))
