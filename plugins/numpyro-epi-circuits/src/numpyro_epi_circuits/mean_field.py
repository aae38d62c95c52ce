"""Which random connectivity gives an excitatory and an inhibitory population the mean inputs and spreads that were seen?

The stationary state of two populations of threshold-quadratic units under dynamic mean-field theory, an example problem of
the code of Bittner et al. 2021 (eLife 10:e56265). No units.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import check_positive

CONTRASTS = (0.0, 0.5, 1.0)
BASELINE, GAIN = 0.8, 0.8
"""Input at contrast c: baseline + gain c."""

FRACTION, INPUT_VARIANCE = 0.5, 0.25
"""Share of all units that each population is; variance of the input over units, added to ``delta``."""

NUM_ITERATIONS, DAMPING, LARGEST, NUM_NODES = 100, 0.5, 1000.0, 50
"""Of the fixed-point iteration; where it is cut off; of the Gauss-Hermite quadrature."""

WEIGHT_BOUND, SPREAD_BOUND = 2.0, 0.25

OBSERVED = (
    (0.6949108, 0.92284465, 1.0795053),
    (0.80292356, 1.1306603, 1.402117),
    (0.2737772, 0.32565317, 0.42739636),
    (0.27382335, 0.3258072, 0.42774484),
)
"""Mean input of E and of I, its spread over units of E and of I, at the three contrasts: what weights (1.3, -1.3, 1.3, -1)
and spreads of 0.2 give, to 1e-3."""


@epi.statistic(
    name="mean_field.state", dims=("quantity", "contrast"), coords={"quantity": ["mu_E", "mu_I", "delta_E", "delta_I"]}
)
def stationary_state(sites: Mapping[str, Array]) -> Float[Array, "4 contrasts"]:
    """Mean input of both populations, and the spread of the input over their units, at every contrast.

    Args:
        sites: Must hold ``mu`` and ``delta``, shape [contrasts, 2] each.

    Raises:
        KeyError: If the model has no such sites.
    """
    return jnp.concatenate([sites["mu"].T, sites["delta"].T])


def mean_field_ei(*, observed: tuple[tuple[float, ...], ...] = OBSERVED, largest_input: float = 10.0) -> epi.Problem:
    """Mean weights ``W`` and their spreads ``sigma`` over units, given the mean stationary state at three contrasts.

    Some of the box diverges. There the published iteration is cut off at 1000, and one such draw in a thousand would decide
    every mean; here a state is cut off at ``largest_input`` when it is measured, which no draw near the targets reaches.

    Args:
        observed: Wanted means of ``mean_field.state``, shape [4, 3].
        largest_input: Where measured states are cut off; 1000 for the published statistic.

    Raises:
        ValueError: If the targets are not 4 rows of 3 finite numbers, or the cut is not above all of them.

    References:
        Code of Bittner et al., eLife 10:e56265 (2021), "V1 mean field".
    """
    check_positive(largest_input=largest_input)
    wanted = np.asarray(observed, float)
    if wanted.shape != (4, len(CONTRASTS)) or not np.all(np.isfinite(wanted)):
        raise ValueError(f"Expected 4 rows of {len(CONTRASTS)} finite targets; got shape {wanted.shape}.")
    if not largest_input > wanted.max():
        raise ValueError(f"Expected largest_input above every target, {wanted.max()}; got {largest_input}.")
    return epi.Problem(
        _populations,
        epi.EmergentProperty(epi.Target(stationary_state, mean=wanted)),
        model_kwargs={"largest_input": float(largest_input)},
        name="circuits.mean_field_ei",
    )


def _populations(largest_input: float) -> None:
    sign = jnp.array([[1.0, -1.0], [1.0, -1.0]])
    strength = numpyro.sample("strength", dist.Uniform(0.0, WEIGHT_BOUND).expand([2, 2]).to_event(2))
    sigma = numpyro.sample("sigma", dist.Uniform(0.0, SPREAD_BOUND).expand([2, 2]).to_event(2))
    weights = numpyro.deterministic("W", sign * strength)
    inputs = BASELINE + GAIN * jnp.array(CONTRASTS)
    with jax.default_matmul_precision("highest"):
        mu, delta = jax.vmap(lambda h: _fixed_point(weights, sigma, h))(inputs)
    numpyro.deterministic("mu", jnp.minimum(mu, largest_input))
    numpyro.deterministic("delta", jnp.minimum(delta, largest_input))


def _fixed_point(
    weights: Float[Array, "2 2"], sigma: Float[Array, "2 2"], h: Float[Array, ""]
) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """Damped iteration of the mean input and of the spread over units, which the published code takes as a deviation."""
    roots, root_weights = np.polynomial.hermite.hermgauss(NUM_NODES)
    nodes, node_weights = jnp.asarray(roots, h.dtype), jnp.asarray(root_weights / math.sqrt(math.pi), h.dtype)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        mu, delta = state
        rates = jnp.square(jax.nn.relu(mu[:, None] + math.sqrt(2.0) * delta[:, None] * nodes))
        mean, square = rates @ node_weights, jnp.square(rates) @ node_weights
        new_mu = weights @ (FRACTION * mean) + h
        new_delta = jnp.square(sigma) @ (FRACTION * square) + INPUT_VARIANCE
        mixed = (DAMPING * new_mu + (1 - DAMPING) * mu, DAMPING * new_delta + (1 - DAMPING) * delta)
        mu, delta = (jnp.clip(value, 0.0, LARGEST) for value in mixed)
        return (mu, delta), None

    start = jnp.full(2, h), jnp.full(2, INPUT_VARIANCE, h.dtype)
    return jax.lax.scan(step, start, None, length=NUM_ITERATIONS)[0]
