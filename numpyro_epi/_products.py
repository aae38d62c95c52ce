"""Compiled programs whose matrix products have the precision of their numbers.

Accelerators multiply float32 matrices with shorter numbers unless told: of 23 stored bits NVIDIA's since Ampere take 10, TPUs 7.
Statistics that are sums over many units, their gradients and a flow's density and its inverse are then off by a part in a
thousand, which multipliers and sensitive dynamics enlarge.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax

P = ParamSpec("P")
R = TypeVar("R")


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


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``equinox.filter_jit`` of the function `with_full_products`: once for a function, each call of this compiles anew."""
    traced = with_full_products(function)
    # Equinox copies the attribute, and warns where it is a transformed function.
    vars(traced).pop("__wrapped__")
    return eqx.filter_jit(traced)
