"""Growth and frequency of a two-dimensional trajectory, measured on its samples and without knowing its equation.

Equally spaced samples of a linear system follow ``x[k + 1] = M x[k]``. ``M`` is estimated by least squares, each pair divided
by the length of its first sample so that late ones of a growing trajectory do not outweigh the others (dynamic mode
decomposition: Schmid 2010, Journal of Fluid Mechanics 656:5, section 2.2). With ``mu`` the primary eigenvalue of ``M``,
``log(mu) / step`` is the system's. Frequencies above half the sampling rate are not seen as what they are.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

import numpyro_epi as epi

_RIDGE = 1e-6


@epi.statistic(unit="1/s", name="trajectory.growth_rate")
def growth_rate(sites: Mapping[str, Array], *, site: str = "x", step: float) -> Float[Array, ""]:
    """Rate at which the trajectory's envelope grows; the faster of two where nothing rotates.

    Args:
        sites: Must hold the trajectory, shape [T, 2], of a start that excites both directions.
        site: Its name.
        step: Time between two samples, in seconds.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If the site is no trajectory of two variables, or the step is not positive.
    """
    center, discriminant, determinant = _propagator(sites[site], site, step)
    rotates = discriminant < 0
    squared = jnp.where(rotates, determinant, 1.0)
    growing = center + jnp.sqrt(jnp.where(discriminant > 0, discriminant, 1.0)) * (discriminant > 0)
    # All branches are differentiated: the inner wheres keep the unused ones finite.
    positive = jnp.where(rotates | (growing <= 0), 1.0, growing)
    return jnp.where(rotates, 0.5 * jnp.log(squared), jnp.log(positive)) / step


@epi.statistic(unit="rad/s", name="trajectory.angular_frequency")
def angular_frequency(sites: Mapping[str, Array], *, site: str = "x", step: float) -> Float[Array, ""]:
    """Angular frequency of the trajectory, not negative; zero, with zero gradient, where nothing rotates.

    See `growth_rate` for the arguments and what is raised.
    """
    center, discriminant, _ = _propagator(sites[site], site, step)
    rotates = discriminant < 0
    rotation = jnp.sqrt(jnp.where(rotates, -discriminant, 1.0))
    return jnp.where(rotates, jnp.arctan2(rotation, jnp.where(rotates, center, 1.0)), 0.0) / step


def _propagator(
    trajectory: Array, site: str, step: float
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Half the trace, the discriminant and the determinant of ``M``."""
    shape = jnp.shape(trajectory)
    if len(shape) != 2 or shape[0] < 3 or shape[1] != 2:
        raise ValueError(f"Expected site {site!r} to be a trajectory of shape [T >= 3, 2]; got shape {shape}.")
    if not (step > 0 and math.isfinite(step)):
        raise ValueError(f"Expected a finite step > 0; got {step}.")
    squared = jnp.sum(jnp.square(trajectory[:-1]), axis=1, keepdims=True)
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 1.0)
    before, after = trajectory[:-1] / length, trajectory[1:] / length
    (a, b), (_, d) = before.T @ before / before.shape[0] + _RIDGE * jnp.eye(2, dtype=trajectory.dtype)
    inverse = jnp.array([[d, -b], [-b, a]]) / (a * d - b * b)
    (m11, m12), (m21, m22) = after.T @ before / before.shape[0] @ inverse
    return (m11 + m22) / 2, jnp.square((m11 - m22) / 2) + m12 * m21, m11 * m22 - m12 * m21
