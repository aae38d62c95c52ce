"""Compiled programs whose matrix products have the precision of their numbers.

Accelerators multiply float32 matrices with shorter numbers unless told: of 23 stored bits NVIDIA's since Ampere take 10, TPUs 7.
Statistics that are sums over many units, their gradients and a flow's density and its inverse are then off by a part in a
thousand, which multipliers and sensitive dynamics enlarge.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

P = ParamSpec("P")
R = TypeVar("R")

QUICK = {"xla_cpu_use_fusion_emitters": False}
"""Options with which XLA compiles for a CPU in about two thirds of the time; other devices do not read them. A fit of a cheap
model spends two thirds of its CPU time in the compiler, and a fifth to a third less in all with these. The circuits'
simulations run as fast; a flow's steps take 1.1 to 1.7 times as long, so the loop's own program goes without."""


def with_full_products(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its products at the precision of their numbers, unless the user's configuration names one.

    A product that names its own precision keeps it, and ``jax_default_matmul_precision`` counts for all others where it is set.
    """

    @wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        # The configuration's entries are not declared.
        chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        with jax.default_matmul_precision(chosen or "highest"):
            return function(*args, **kwargs)

    return traced


def compiled_for_long(function: Callable[..., Any]) -> Callable[..., Any]:
    """``equinox.filter_jit`` of the function `with_full_products`: once for a function, each call of this compiles anew."""
    return eqx.filter_jit(_traced(function))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for programs that run for about as long as XLA compiles them, or less, on a CPU: see `QUICK`.

    Within another program, and where its arguments are traced, it has no options: those are a whole program's.
    """
    traced = _traced(function)
    well = eqx.filter_jit(traced)
    # Equinox hands the options on to `jax.jit`, and does not declare them.
    quickly = eqx.filter_jit(traced, compiler_options=QUICK)  # type: ignore[call-overload]

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # A new array is traced within a program; within a vectorised function it is not, but the arguments may be.
        leaves = jax.tree.leaves((args, kwargs, jnp.zeros(())))
        is_inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        return (well if is_inside or not _is_quick_known() else quickly)(*args, **kwargs)

    return run


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    traced = with_full_products(function)
    # Equinox copies the attribute, and warns where it is a transformed function.
    vars(traced).pop("__wrapped__")
    return traced


@cache
def _is_quick_known() -> bool:
    """Whether this version of XLA has the options."""
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=QUICK)()
    except jax.errors.JaxRuntimeError:
        return False
    return True
