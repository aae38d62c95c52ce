"""The primary eigenvalue of a two-dimensional linear system ``dx/dt = A x``, time in seconds.

With ``center = (a11 + a22) / 2`` and ``discriminant = ((a11 - a22) / 2)^2 + a12 a21`` the eigenvalues are
``center ± sqrt(discriminant)``. The primary one has the greatest real part and, of a complex pair, the imaginary part
that is not negative (Bittner et al. 2021, eLife 10:e56265, Figure 1-figure supplement 1).
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

import numpyro_epi as epi


@epi.statistic(unit="1/s", name="linear2d.growth_rate")
def growth_rate(sites: Mapping[str, Array], *, site: str = "A") -> Float[Array, ""]:
    """Real part of the primary eigenvalue.

    Its slope grows without bound towards the border between real and complex eigenvalues; on the border itself the
    gradient given is that of ``center``, which is finite.

    Args:
        sites: Must hold the system matrix, shape [2, 2], in 1/s.
        site: Name of the matrix's site.

    Returns:
        Growth rate in 1/s; positive where the origin is unstable.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If the site is not a 2 x 2 matrix.
    """
    center, discriminant = _center_and_discriminant(sites[site], site)
    return center + _sqrt_of_positive_part(discriminant)


@epi.statistic(unit="rad/s", name="linear2d.angular_frequency")
def angular_frequency(sites: Mapping[str, Array], *, site: str = "A") -> Float[Array, ""]:
    """Imaginary part of the primary eigenvalue, not negative; ``2 pi`` rad/s is one cycle a second.

    It is flat, with zero gradient, where both eigenvalues are real. Its slope grows without bound towards that border
    from the complex side; on the border itself the gradient given is zero.

    Args:
        sites: Must hold the system matrix, shape [2, 2], in 1/s.
        site: Name of the matrix's site.

    Returns:
        Angular frequency in rad/s; zero where nothing rotates.

    Raises:
        KeyError: If the model has no such site.
        ValueError: If the site is not a 2 x 2 matrix.
    """
    _, discriminant = _center_and_discriminant(sites[site], site)
    return _sqrt_of_positive_part(-discriminant)


def _center_and_discriminant(matrix: Array, site: str) -> tuple[Float[Array, ""], Float[Array, ""]]:
    if jnp.shape(matrix) != (2, 2):
        raise ValueError(f"Expected site {site!r} to be a 2 x 2 matrix; got shape {jnp.shape(matrix)}.")
    (a11, a12), (a21, a22) = matrix
    # Not trace^2 - 4 det: that difference cancels where the diagonal is large.
    return (a11 + a22) / 2, jnp.square((a11 - a22) / 2) + a12 * a21


def _sqrt_of_positive_part(x: Float[Array, ""]) -> Float[Array, ""]:
    positive = x > 0
    # Both branches are differentiated, so the unused one must be finite too: the inner where keeps it off zero.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
