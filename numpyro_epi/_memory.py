"""How much memory there is, and how many draws a step fit into it."""

import math
import os

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._begin import build_flow
from ._loop import combine, partition
from ._problem import Problem
from ._products import with_full_products
from ._types import Scalar
from .flows import FlowBuilder
from .objectives import AbstractObjective, Lagrangian

MEMORY_SHARE = 0.5
"""Share of the memory that is free which one program may take for its temporaries."""

FEW, MORE = 16, 32
"""Draws a step of the two programs whose difference shows what a draw takes."""


def free_memory() -> float:
    """Bytes: of the accelerator where it says, else of the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Not on this system: no limit is known.
        return math.inf


def bytes_per_draw(problem: Problem, builder: FlowBuilder, objective: AbstractObjective) -> float | None:
    """What one more draw a step adds to the temporaries of its gradient, from compiled programs that are not run.

    None where the compiler does not say.
    """
    parameters, static = partition(build_flow(jax.random.key(0), builder, problem.dim, 1))
    target = jnp.asarray(problem.target, float)
    lagrangian = Lagrangian(jnp.zeros_like(target), jnp.eye(len(target)), target)

    def used(num_draws: int) -> int | None:
        def loss(parameters: PyTree) -> Scalar:
            flow = combine(parameters, static)
            return objective(jax.random.key(0), flow, problem.evaluate, lagrangian, num_draws)[0]

        found = jax.jit(with_full_products(jax.grad(loss))).lower(parameters).compile().memory_analysis()
        return None if found is None else found.temp_size_in_bytes

    few, more = used(FEW), used(MORE)
    return None if few is None or more is None or more <= few else (more - few) / (MORE - FEW)
