"""What chains begin at: a proper prior, or a normal where the base is none."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._problem import Evaluation, Problem
from ._products import compiled
from ._types import Draws, Key, Scalar, Unconstrained

REFERENCE_SCALE = 3.0
"""Standard deviation of the reference where there is no proper prior: wide, so that the property narrows it."""


class Reference(NamedTuple):
    """A normal of the unconstrained parameters near the solution, in whose coordinates chains move.

    Attributes:
        loc: Its mean, a number a coordinate.
        cholesky: Rows of the Cholesky factor of its covariance.
        eta: The solution's multipliers as far as draws of the normal tell; empty where these are too far from it.
    """

    loc: tuple[float, ...]
    cholesky: tuple[tuple[float, ...], ...]
    eta: tuple[float, ...] = ()


class Normal(NamedTuple):
    """Location, Cholesky factor of the covariance and its inverse."""

    loc: Float[Array, " D"]
    cholesky: Float[Array, "D D"]
    whiten: Float[Array, "D D"]


def begins_at_base(problem: Problem) -> bool:
    """Whether the base is a proper prior, from which chains can begin."""
    return problem.base == "prior" and problem.simulator.has_proper_prior


def normal_of(problem: Problem, reference: Reference | None) -> Normal:
    """The normal of a reference, and a wide one without."""
    if reference is None:
        reference = Reference((0.0,) * problem.dim, tuple(map(tuple, REFERENCE_SCALE * np.eye(problem.dim))))
    # A solve for every chain and step would take ten times as long as the products.
    cholesky = np.asarray(reference.cholesky)
    return Normal(*(jnp.asarray(part, float) for part in (reference.loc, cholesky, np.linalg.inv(cholesky))))


def draw_reference(problem: Problem, key: Key, reference: Reference | None = None) -> Unconstrained:
    """One draw of what chains begin with."""
    if reference is None and problem.simulator.has_proper_prior:
        return problem.simulator.sample_prior(key)
    found = normal_of(problem, reference)
    return found.loc + found.cholesky @ jax.random.normal(key, (problem.dim,))


def log_reference(problem: Problem, u: Unconstrained, found: Evaluation, reference: Reference | None = None) -> Scalar:
    """Log density of what chains begin with at one position, nats: a normal that was found, else the prior or a wide one."""
    if reference is None and problem.simulator.has_proper_prior:
        return found.log_base if found.log_prior is None else found.log_prior
    normal = normal_of(problem, reference)
    white = normal.whiten @ (u - normal.loc)
    return jax.scipy.stats.norm.logpdf(white).sum() + jnp.sum(jnp.log(jnp.diagonal(normal.whiten)))


@compiled
def reference_draws(problem: Problem, key: Key, count: int) -> Draws:
    """Of what chains begin with where no normal was looked for."""
    return jax.vmap(partial(draw_reference, problem))(jax.random.split(key, count))
