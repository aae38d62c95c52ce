"""Normals of a flow's base: where draws put them, and the units in which each of them is trained."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flowjax.bijections import AbstractBijection
from flowjax.distributions import Normal, Transformed
from jaxtyping import Array, ArrayLike, Float
from scipy.cluster.vq import kmeans2

from ._types import Scalar

EM_STEPS, MOST_DRAWS = 30, 8000
"""Of expectation maximisation, and the draws that it sees. From clusters alone, the base of four needles in four dimensions was
.05 nats less likely."""

NUM_CLUSTERINGS, FIRST_STEPS, FEWER, FEWEST_DRAWS = 16, 10, 4, 100
"""Beginnings that are tried, steps after which the likeliest goes on, the part of the draws that these steps see, one in so many,
and the fewest for each normal. From a single beginning, two of eight modes on a ring may share a normal while another has two: a
guide began .5 nats away, and ended .11."""

LEAST_SPREAD = 1e-6
"""Of a normal, in standard deviations of all draws, near what single precision tells apart. Added in quadrature: seven needles as
thin as 1e-5 lost .14 nats where that much was added to each spread."""


class OwnUnits(AbstractBijection):
    """``y = loc + scale x``, whose arrays get no gradient: what comes before is trained in units of its own spread.

    They are in a flow's trainable part nevertheless: each attempt at a fit has its own, and a checkpoint holds them.

    Attributes:
        loc: Shape [D]; [K, D] for K of them in a mixture, as the other.
        scale: Positive, shape [D].
        shape: ``(D,)``.
    """

    loc: Float[Array, "*K D"]
    scale: Float[Array, "*K D"]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape = None

    def transform_and_log_det(
        self, x: ArrayLike, condition: ArrayLike | None = None
    ) -> tuple[Float[Array, " D"], Scalar]:
        """Forwards, and ``log |dy/dx|``."""
        loc, scale = jax.lax.stop_gradient((self.loc, self.scale))
        return loc + scale * jnp.asarray(x), jnp.sum(jnp.log(scale))

    def inverse_and_log_det(
        self, y: ArrayLike, condition: ArrayLike | None = None
    ) -> tuple[Float[Array, " D"], Scalar]:
        """Backwards, and ``log |dx/dy|``."""
        loc, scale = jax.lax.stop_gradient((self.loc, self.scale))
        return (jnp.asarray(y) - loc) / scale, -jnp.sum(jnp.log(scale))


def normal_in_own_units(centre: Float[Array, " D"], spread: Float[Array, " D"]) -> Transformed:
    """A standard normal, which is trained, moved to where it begins."""
    # Fields of Equinox's modules hide their constructors.
    units = OwnUnits(loc=centre, scale=spread, shape=centre.shape)  # type: ignore[call-arg]
    return Transformed(Normal(jnp.zeros_like(centre), jnp.ones_like(spread)), units)


class Normals(NamedTuple):
    """A mixture of normals without correlations.

    Attributes:
        centres: Means, shape [K, D].
        spreads: Standard deviations, shape [K, D].
        shares: Weights, positive, shape [K].
    """

    centres: Float[np.ndarray, "K D"]
    spreads: Float[np.ndarray, "K D"]
    shares: Float[np.ndarray, " K"]

    def log_density(self, draws: Float[np.ndarray, "N D"]) -> Float[np.ndarray, " N"]:
        """Nats, less what all mixtures have in common."""
        return scipy.special.logsumexp(self._joint(draws), axis=1)

    def likelier(self, draws: Float[np.ndarray, "N D"]) -> "Normals":
        """A step of expectation maximisation."""
        joint = self._joint(draws)
        return _moments(draws, np.exp(joint - scipy.special.logsumexp(joint, axis=1, keepdims=True)))

    def _joint(self, draws: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """Log density of each normal at each draw, with its share."""
        joint = np.empty((len(draws), len(self.shares)))
        heights = np.log(self.shares / self.shares.sum()) - np.log(self.spreads).sum(axis=1)
        # One at a time: the differences of all would take memory, squares without differences digits.
        for i, (centre, spread) in enumerate(zip(self.centres, self.spreads, strict=True)):
            away = (draws - centre) / spread
            joint[:, i] = heights[i] - 0.5 * np.einsum("nd,nd->n", away, away)
        return joint


def fitted(draws: Float[np.ndarray, "N D"], count: int) -> Normals:
    """A mixture that is likely near clusters of standardised draws: each separate mode gets some normals of its own."""
    draws = draws[:: -(-len(draws) // MOST_DRAWS)]
    some = draws[:: max(1, len(draws) // max(len(draws) // FEWER, FEWEST_DRAWS * count))]
    tried = (_after(FIRST_STEPS, _clustered(some, count, seed), some) for seed in range(NUM_CLUSTERINGS))
    found = max(tried, key=lambda each: np.nan_to_num(each.log_density(draws).mean(), nan=-np.inf))
    return _after(EM_STEPS - FIRST_STEPS, found, draws)


def _clustered(draws: Float[np.ndarray, "N D"], count: int, seed: int) -> Normals:
    _, labels = kmeans2(draws, count, minit="++", rng=np.random.default_rng(seed))
    return _separated(_moments(draws, np.eye(count)[labels]), np.bincount(labels, minlength=count))


def _after(steps: int, found: Normals, draws: Float[np.ndarray, "N D"]) -> Normals:
    for _ in range(steps):
        found = found.likelier(draws)
    return found


def _moments(draws: Float[np.ndarray, "N D"], responsibilities: Float[np.ndarray, "N K"]) -> Normals:
    sizes = np.maximum(responsibilities.sum(axis=0), 1e-6)
    centres = responsibilities.T @ draws / sizes[:, None]
    spreads = np.empty_like(centres)
    for i, centre in enumerate(centres):
        spreads[i] = np.sqrt(responsibilities[:, i] @ np.square(draws - centre) / sizes[i])
    return Normals(centres, np.hypot(spreads, LEAST_SPREAD), sizes)


def _separated(found: Normals, sizes: np.ndarray) -> Normals:
    """Clusters of one draw, which has no spread, become parts of the largest: the number is known before the draws are."""
    single = np.flatnonzero(sizes < 2)
    if not len(single):
        return found
    largest = int(np.argmax(sizes))
    members = np.append(single, largest)
    centres, spreads, shares = (np.array(part, float) for part in found)
    # Equal normals would stay equal.
    along = np.linspace(-0.5, 0.5, len(members))[:, None] * spreads[largest]
    centres[members] = centres[largest] + along
    spreads[members] = spreads[largest]
    shares[members] = shares[largest] / len(members)
    return Normals(centres, spreads, shares)
