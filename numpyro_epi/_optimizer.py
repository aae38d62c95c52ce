"""The default optimiser: Adam, a cosine learning rate, and gradients clipped relative to their own typical size."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ._types import Scalar

LEARNING_RATE, FINAL_RATE = 2e-3, 0.03
"""Adam's first learning rate, and the share of it that is left at the end."""

CLIP_FACTOR, CLIP_MEMORY = 4.0, 50
"""How many typical norms a gradient may have, and over about how many steps the typical one is taken."""


class TypicalNormState(NamedTuple):
    """Running mean of the logarithm of the gradient's norm, and the number of steps it has seen."""

    log_norm: Scalar
    steps: Int[Array, ""]


@functools.cache
def default(max_steps: int, learning_rate: float = LEARNING_RATE, warm_up: int = 0) -> optax.GradientTransformation:
    """The optimiser that `fit` uses: one object for equal settings, so that compiled programs are used again.

    The rate rises from a twentieth in the first ``warm_up`` steps.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, max_steps - warm_up, FINAL_RATE)
    if warm_up:
        rising = optax.linear_schedule(learning_rate / 20, learning_rate, warm_up)
        schedule = optax.join_schedules([rising, schedule], [warm_up])
    return optax.chain(clip_by_typical_norm(CLIP_FACTOR, CLIP_MEMORY), optax.adam(schedule))


def clip_by_typical_norm(factor: float, memory: int) -> optax.GradientTransformation:
    """Cut a gradient to ``factor`` times the geometric mean of the last norms, about ``memory`` of them.

    A fixed norm knows nothing of the problem's size: where it lies below the usual gradient, every step is cut, the rare
    draws that lie far outside the property lose their say against the many that are almost right, and the guide drifts.
    """

    def init(parameters: optax.Params) -> TypicalNormState:
        return TypicalNormState(jnp.zeros((), float), jnp.zeros((), int))

    def update(gradient, state: TypicalNormState, parameters=None):
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
        log_norm = jnp.log(jnp.where(norm > 0, norm, 1.0))
        allowed = jnp.where(state.steps == 0, log_norm, state.log_norm) + jnp.log(factor)
        scale = jnp.minimum(1.0, jnp.exp(allowed - log_norm))
        # An average over all steps so far at first, over the last ones later; a zero gradient says nothing.
        share = jnp.where(norm > 0, 1.0 / jnp.minimum(state.steps + 1, memory), 0.0)
        typical = state.log_norm + share * (log_norm - state.log_norm)
        clipped = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), gradient)
        return clipped, TypicalNormState(typical.astype(state.log_norm.dtype), state.steps + (norm > 0))

    return optax.GradientTransformation(init, update)
