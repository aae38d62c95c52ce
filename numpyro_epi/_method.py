"""How a run goes about it: what a user may choose, and what a checkpoint says of it in words."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from . import flows, starts
from ._checkpoint import fingerprint, without_addresses
from .multipliers import AbstractMultiplierRule
from .objectives import AbstractObjective


class Method(NamedTuple):
    """How a run was asked to go about it, as given."""

    flow: flows.FlowBuilder
    start: starts.AbstractStart | None
    objective: AbstractObjective | None
    rule: AbstractMultiplierRule
    optimizer: optax.GradientTransformation | None

    def flow_name(self) -> str:
        return repr(self.flow) if isinstance(self.flow, eqx.Module) else getattr(self.flow, "__qualname__", "a flow")

    def described(self) -> dict[str, str]:
        """In words that are the same in another process, with fingerprints of what words leave out."""
        return {
            "flow": _described(self.flow) if isinstance(self.flow, eqx.Module) else self.flow_name(),
            "start": _described(self.start),
            "objective": _described(self.objective),
            "rule": _described(self.rule),
            "optimizer": "the default" if self.optimizer is None else _described_update(self.optimizer),
        }


def _described(choice: Any) -> str:
    """Its ``repr``, which leaves out the values of arrays and of what it does not know, and a fingerprint of them."""
    numbers = [leaf for leaf in jax.tree.leaves(choice) if eqx.is_array_like(leaf)]
    return f"{without_addresses(repr(choice))} {fingerprint(numbers)}" if numbers else without_addresses(repr(choice))


def _described_update(optimizer: optax.GradientTransformation) -> str:
    """An optimiser is functions: a fingerprint of what they compute."""
    trial = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    try:
        traced = jax.make_jaxpr(optimizer.update)(trial, optimizer.init(trial), trial)
    # One that asks for more than gradients and parameters is known to be one's own, and no more.
    except Exception:
        return "one that was given"
    return f"one that was given {fingerprint(traced.consts, str(traced.jaxpr))}"
