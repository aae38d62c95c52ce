"""A monotone map of each parameter, which can be fitted to the marginals of draws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flowjax.bijections import AbstractBijection, Scan
from jaxtyping import Array, ArrayLike, Float

from ._products import compiled
from ._types import Draws, Scalar

NUM_BENDS, REACH = 8, 2.0
"""Bends of each map, evenly spaced over so many standard deviations on both sides."""

STEPS, RATE = 400, 5e-2
"""Adam's steps, and the first of its learning rates, which fall as a cosine: the likelihood was within .01 nats of its end after
200 steps."""

MOST_DRAWS = 4000
"""Draws that the maps are fitted to: all of these in each step."""


class SinhArcsinh(AbstractBijection):
    """A smooth bend of each coordinate: ``y = loc + width sinh(arcsinh((x - loc) / width) + bend)``.

    The transformation of Jones & Pewsey (2009, Biometrika 96:761) with straight tails: slopes go from ``exp(-bend)`` far to the
    left of ``loc`` to ``exp(bend)`` far to the right. Its inverse is the same map with the bend's sign changed. Several in a row
    turn a normal into a skewed density, or into one with several modes.

    Attributes:
        loc: Where the bends are, shape [D]; [K, D] for K maps in a row in a `Scan`, as the others.
        log_width: Logarithm of the distance over which the slope changes, shape [D].
        bend: Logarithm of the slope far to the right, shape [D]; zero is the identity.
        shape: ``(D,)``.
    """

    loc: Float[Array, "*K D"]
    log_width: Float[Array, "*K D"]
    bend: Float[Array, "*K D"]
    shape: tuple[int, ...] = eqx.field(static=True)
    cond_shape = None

    def transform_and_log_det(
        self, x: ArrayLike, condition: ArrayLike | None = None
    ) -> tuple[Float[Array, " D"], Scalar]:
        """Forwards, and ``log |dy/dx|``."""
        return self._bent(jnp.asarray(x), self.bend)

    def inverse_and_log_det(
        self, y: ArrayLike, condition: ArrayLike | None = None
    ) -> tuple[Float[Array, " D"], Scalar]:
        """Backwards, and ``log |dx/dy|``."""
        return self._bent(jnp.asarray(y), -self.bend)

    def _bent(self, x: Float[Array, " D"], bend: Float[Array, " D"]) -> tuple[Float[Array, " D"], Scalar]:
        width = jnp.exp(self.log_width)
        t = (x - self.loc) / width
        # The hyperbolic sine of the sum, and below the slope, without the differences that lose all digits in a tail.
        size, side = jnp.where(t < 0, -t, t), jnp.where(t < 0, -bend, bend)
        bent = t * jnp.exp(side) + jnp.sinh(bend) / (size + jnp.sqrt(1.0 + t**2))
        return self.loc + width * bent, 0.5 * jnp.sum(jnp.log1p(bent**2) - jnp.log1p(t**2))


def straight(dim: int) -> Scan:
    """Maps of standardised coordinates that are the identity, and trainable."""
    loc = jnp.broadcast_to(jnp.linspace(-REACH, REACH, NUM_BENDS)[:, None], (NUM_BENDS, dim))
    log_width = jnp.full((NUM_BENDS, dim), jnp.log(2 * REACH / NUM_BENDS))
    # As in `flows.flip`.
    one = SinhArcsinh(loc=loc, log_width=log_width, bend=jnp.zeros_like(loc), shape=(dim,))  # type: ignore[call-arg]
    return Scan(one)


@compiled
def fitted(maps: Scan, draws: Draws) -> Scan:
    """By maximum likelihood: the maps that take normal coordinates to standardised draws' marginals."""
    draws = draws[:: -(-len(draws) // MOST_DRAWS)]
    parameters, static = eqx.partition(maps, eqx.is_inexact_array)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    def loss(parameters: Scan) -> Scalar:
        normal, log_det = jax.vmap(eqx.combine(parameters, static).inverse_and_log_det)(draws)
        return jnp.mean(0.5 * jnp.sum(jnp.square(normal), axis=1) - log_det)

    def step(carry: tuple[Scan, optax.OptState], _: None) -> tuple[tuple[Scan, optax.OptState], None]:
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters), state)
        return (optax.apply_updates(parameters, updates), state), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), None, length=STEPS)
    return eqx.combine(parameters, static)
