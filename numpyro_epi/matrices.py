"""What is measured on a square matrix. Add a statistic here with ``@statistic`` and one entry-point line.

A Jacobian or a connectivity says how a system at rest answers a small push. Eigenvalues of general matrices are computed where
`jax.numpy.linalg.eigvals` is: on CPUs and GPUs. Their gradient is not finite where two of them coincide.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ._types import Sites
from .statistics import statistic

__all__ = ["angular_frequency", "numerical_abscissa", "spectral_abscissa", "spectral_radius"]


@statistic(unit="1 per time")
def spectral_abscissa(sites: Sites, *, site: str) -> Array:
    """Largest real part of the eigenvalues of ``x' = A x``: how fast the slowest mode grows; below zero, all decay.

    Raises:
        ValueError: If the site's last two axes are not those of a square matrix.
    """
    return jnp.max(_eigenvalues(sites, site).real, axis=-1)


@statistic(unit="rad per time")
def angular_frequency(sites: Sites, *, site: str) -> Array:
    """Imaginary part, zero or more, of the eigenvalue with the largest real part: how fast the slowest mode turns.

    Raises:
        ValueError: If the site's last two axes are not those of a square matrix.
    """
    eigenvalues = _eigenvalues(sites, site)
    index = jnp.argmax(eigenvalues.real, axis=-1, keepdims=True)
    return jnp.abs(jnp.take_along_axis(eigenvalues.imag, index, axis=-1))[..., 0]


@statistic()
def spectral_radius(sites: Sites, *, site: str) -> Array:
    """Largest modulus of the eigenvalues of ``x <- A x``: below one, all modes decay; no unit.

    Raises:
        ValueError: If the site's last two axes are not those of a square matrix.
    """
    eigenvalues = _eigenvalues(sites, site)
    squares = jnp.max(jnp.square(eigenvalues.real) + jnp.square(eigenvalues.imag), axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


@statistic(unit="1 per time")
def numerical_abscissa(sites: Sites, *, site: str) -> Array:
    """Largest eigenvalue of ``(A + A') / 2``: how fast some states grow at first, also where all decay in the end.

    Raises:
        ValueError: If the site's last two axes are not those of a square matrix.
    """
    matrix = _square(sites, site)
    return jnp.linalg.eigvalsh((matrix + jnp.swapaxes(matrix, -1, -2)) / 2)[..., -1]


def _eigenvalues(sites: Sites, site: str) -> Array:
    return jnp.linalg.eigvals(_square(sites, site))


def _square(sites: Sites, site: str) -> Array:
    matrix = jnp.asarray(sites[site])
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(
            f"Expected site {site!r} to hold square matrices in its last two axes; got shape {matrix.shape}."
        )
    return matrix
