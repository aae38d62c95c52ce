"""Models that are steps by definition: the published step length is part of the problem."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def _state(t: Array, state: PyTree, args: PyTree) -> PyTree:
    return state


def euler(
    change: Callable[[Any, PyTree, PyTree], PyTree],
    start: PyTree,
    args: PyTree,
    num_steps: int,
    *,
    num_kept: int,
    measure: Callable[[Array, PyTree, PyTree], PyTree] = _state,
) -> PyTree:
    """The last states of so many steps, the start counting as the first one; nothing is kept of the others.

    Time is counted in steps, so that it, and with it each step's own noise, is an exact number.

    Args:
        change: What one step adds to the state, of the number of steps before it, the state and ``args``.
        start: The state before the first step.
        args: Given to ``change`` and ``measure``.
        num_steps: Steps in all.
        num_kept: States that are returned, ``num_steps + 1`` at most.
        measure: What is returned of a state; all of it by default.
    """
    times = jnp.arange(num_steps + 1.0)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(change),
        diffrax.Euler(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=start,
        args=args,
        saveat=diffrax.SaveAt(ts=times[-num_kept:], fn=measure),
        stepsize_controller=diffrax.StepTo(ts=times),
        max_steps=num_steps,
    )
    return solution.ys
