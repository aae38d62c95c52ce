"""One way to solve an ordinary differential equation, which all models here share."""

from collections.abc import Callable
from typing import Any

import diffrax
from jaxtyping import Array, Float

TOLERANCE = 1e-5
"""Of one step, relative, and absolute in the state's unit."""

MAX_STEPS = 512


def _state(t: Array, state: Float[Array, " K"], parameters: Any) -> Float[Array, " K"]:
    return state


def solve(
    slope: Callable[..., Float[Array, " K"]],
    start: Float[Array, " K"],
    times: Float[Array, " T"],
    parameters: Any,
    *,
    measure: Callable[..., Float[Array, " S"]] = _state,
) -> Float[Array, "T S"]:
    """Samples of ``measure(t, state, parameters)`` at the times, of a state that follows ``slope(t, state, parameters)``.

    Both are functions of a module: diffrax compiles anew for each new function.

    Tsitouras' method of order 5 with steps of its own choice; a backward pass recomputes what it needs from checkpoints,
    whose number does not grow with the steps. Where `MAX_STEPS` are not enough the samples are infinite: a failed draw,
    which is counted and left out.
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=start,
        args=parameters,
        saveat=diffrax.SaveAt(ts=times, fn=measure),
        stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
        max_steps=MAX_STEPS,
        throw=False,
    )
    assert solution.ys is not None
    return solution.ys
