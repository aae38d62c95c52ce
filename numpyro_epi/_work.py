"""How much one simulation computes, counted and not timed, so that what follows from it is the same on every machine."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from ._problem import Problem

LOOP_STEPS = 100
"""Assumed rounds of a loop whose number nobody knows before it runs."""

RANDOM_WORK = 20
"""Elementary operations behind one random number."""


def work(problem: Problem) -> int:
    """Array elements that one evaluation of the model and its statistics computes, loops counted as often as they run."""
    return _count(jax.make_jaxpr(problem.evaluate)(jax.random.key(0), jnp.zeros(problem.dim)).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [_count(found) for found in _inside(equation.params)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "while":
            total += LOOP_STEPS * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif inner:
            total += sum(inner)
        else:
            size = sum(math.prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
            total += size * (RANDOM_WORK if equation.primitive.name.startswith("random_") else 1)
    return total


def _inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The programs that an operation holds."""
    for value in params.values():
        for found in value if isinstance(value, tuple | list) else (value,):
            if isinstance(found, ClosedJaxpr):
                yield found.jaxpr
            elif isinstance(found, Jaxpr):
                yield found
