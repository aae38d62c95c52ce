"""Antithetic noise (Hammersley & Morton 1956): a draw's mirror image has the same distribution and the opposite odd part.

Where a statistic is nearly linear in small noise, the mean of a simulation and its mirror image has next to none of it.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool

from ._types import Key

SYMMETRIC = (dist.Cauchy, dist.Laplace, dist.Logistic, dist.MultivariateNormal, dist.Normal, dist.StudentT)
"""Distributions that their ``loc`` mirrors."""


def sample_mirrored(fn: dist.Distribution, key: Key, shape: tuple[int, ...], mirrored: Bool[Array, ""]) -> Array:
    """What the distribution gives for this key, or its mirror image: an independent draw where it has no symmetry."""
    if isinstance(fn, dist.Independent | dist.MaskedDistribution):
        return sample_mirrored(fn.base_dist, key, shape, mirrored)
    if isinstance(fn, dist.TransformedDistribution):
        value = sample_mirrored(fn.base_dist, key, shape, mirrored)
        for transform in fn.transforms:
            value = transform(value)
        return value
    value = fn.sample(key, shape)
    image = _image(fn, value)
    if image is None:
        image = fn.sample(jax.random.fold_in(key, 1), shape)
    return jnp.where(mirrored, image, value)


def _image(fn: dist.Distribution, value: Array) -> Array | None:
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent | dist.MaskedDistribution):
        return _image(fn.base_dist, value)
    if type(fn) is dist.LogNormal:
        return jnp.exp(2 * fn.loc) / value
    # Exactly these: a subclass may bound, fold or shift what it inherits.
    if type(fn) in SYMMETRIC:
        return 2 * fn.loc - value
    if type(fn) is dist.Uniform:
        return fn.low + fn.high - value
    return None
