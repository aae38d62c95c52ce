"""Which connectivity of rank one makes a random network chaotic about a structured mean?

Dynamic mean-field theory of an infinite network: its solution is a fixed point of three equations, no network is simulated.
No units; times are in units of the neurons' time constant.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import check_finite, check_positive

NUM_NODES, NUM_DAMPED, NUM_NEWTON, NUM_DOUBLINGS = 24, 40, 10, 8
"""Gauss-Hermite nodes in each of two dimensions; damped steps, then Newton's; the slope counts 2^8 damped steps."""

LARGEST_G, LARGEST_MEAN, LARGEST_SPREAD = 3.0, 3.0, 3.0

START = (4.0, 4.0, 4.0)
"""Where the iteration begins, ``mu``, ``delta_inf`` and ``delta_t``: above the solutions, so that it ends at the one with
structure and chaos where there are several."""


class _State(NamedTuple):
    """Mean input, its variance over neurons, and its variance over time."""

    mu: Float[Array, ""]
    delta_inf: Float[Array, ""]
    delta_t: Float[Array, ""]


@epi.statistic(name="low_rank.activity")
def mean_activity(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Mean of the neurons' inputs over neurons and time, from ``mu``, shape [].

    Raises:
        KeyError: If the model has no such site.
    """
    return sites["mu"]


@epi.statistic(name="low_rank.static_variance")
def static_variance(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Variance over neurons of the inputs' means over time, from ``delta_inf``, shape [].

    Raises:
        KeyError: If the model has no such site.
    """
    return sites["delta_inf"]


@epi.statistic(name="low_rank.temporal_variance")
def temporal_variance(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Variance over time of a neuron's input, zero without chaos, from ``delta_t``, shape [].

    Raises:
        KeyError: If the model has no such site.
    """
    return sites["delta_t"]


def low_rank_rnn(
    *,
    activity: tuple[float, float] = (1.0, 0.25),
    static: tuple[float, float] = (3.0, 0.5),
    temporal: tuple[float, float] = (0.75, 0.25),
) -> epi.Problem:
    """Structured chaos in a network of rank one plus noise: a mean, a static and a temporal variance of its inputs.

    ``dx_i/dt = -x_i + sum_j J_ij tanh(x_j)`` with ``J = g chi + m n' / N``, ``chi`` of variance ``1/N``, the entries of ``m``
    with mean ``M_m`` and standard deviation ``Sigma_m``, those of ``n`` with mean ``M_n`` and independent of ``m``. The state
    depends on ``g``, ``M_m M_n`` and ``Sigma_m M_n`` alone, and so not on the common sign of both means: the answer has two
    mirrored modes, and is free along a curve in each. Its entropy is -0.52 nats (importance sampling, +- 0.05).

    The preprint's code asks for 1 +- 0.5 of all three, of an iteration that it stops after 25 steps. Solved to the end, the
    equations leave no chaos where mean and static variance are 1; the defaults here are within reach.

    Args:
        activity: Wanted mean and standard deviation of ``low_rank.activity``.
        static: The same of ``low_rank.static_variance``.
        temporal: The same of ``low_rank.temporal_variance``.

    Raises:
        ValueError: If a number is not finite, or a variance or standard deviation not positive.

    References:
        Mastrogiuseppe & Ostojic, Neuron 99:609 (2018), methods: chaotic solutions of a rank-one network without input.
        Question: Bittner et al., bioRxiv 837567 (2019) and its code; the box and the default targets are this package's.
    """
    check_finite(activity=activity[0])
    check_positive(static=static[0], temporal=temporal[0])
    check_positive(activity_std=activity[1], static_std=static[1], temporal_std=temporal[1])
    wanted = ((mean_activity, *activity), (static_variance, *static), (temporal_variance, *temporal))
    return epi.Problem(
        _network,
        epi.EmergentProperty(*(epi.Target(what, mean=mean, std=std) for what, mean, std in wanted)),
        name="circuits.low_rank_rnn",
    )


def _network() -> None:
    g = numpyro.sample("g", dist.Uniform(0.0, LARGEST_G))
    mean_m = numpyro.sample("M_m", dist.Uniform(-LARGEST_MEAN, LARGEST_MEAN))
    mean_n = numpyro.sample("M_n", dist.Uniform(-LARGEST_MEAN, LARGEST_MEAN))
    spread_m = numpyro.sample("Sigma_m", dist.Uniform(0.0, LARGEST_SPREAD))
    for name, value in solve(g, mean_m * mean_n, spread_m * mean_n)._asdict().items():
        numpyro.deterministic(name, value)


def solve(g: Float[Array, ""], mean: Float[Array, ""], spread: Float[Array, ""]) -> _State:
    """The mean-field state that damped iteration from above leads to.

    Args:
        g: Strength of the random part.
        mean: ``M_m M_n``.
        spread: ``Sigma_m M_n``.
    """
    # The state is as exact as the products of its iteration, which GPUs shorten unless told.
    with jax.default_matmul_precision("highest"):
        return _solve(g, mean, spread)


def _solve(g: Float[Array, ""], mean: Float[Array, ""], spread: Float[Array, ""]) -> _State:
    fixed = [jax.lax.stop_gradient(value) for value in (g, mean, spread)]
    # A negative feedback of the mean would overshoot at a pace of 1/2.
    pace = jnp.stack([1.0 / (2.0 + jax.nn.relu(-fixed[1])), jnp.full_like(g, 0.5), jnp.full_like(g, 0.5)])

    def rest(state: Float[Array, "3"]) -> Float[Array, "3"]:
        return _equations(state, *fixed) - state

    def damped(state: Float[Array, "3"], _: None) -> tuple[Float[Array, "3"], None]:
        return state + pace * rest(state), None

    def newton(state: Float[Array, "3"], _: None) -> tuple[Float[Array, "3"], None]:
        # Where a solution has just appeared or gone, damped steps creep. Newton's is taken where it brings the equations nearer.
        here = rest(state)
        new = state - jnp.linalg.solve(jax.jacfwd(rest)(state) - 1e-6 * jnp.eye(3, dtype=g.dtype), here)
        new = new.at[1:].set(jnp.maximum(new[1:], 0.0))
        better = jnp.linalg.norm(rest(new)) < jnp.linalg.norm(here)
        return jnp.where(better, new, state + pace * here), None

    found = jax.lax.scan(damped, jnp.asarray(START, g.dtype), None, length=NUM_DAMPED)[0]
    found = jax.lax.scan(newton, found, None, length=NUM_NEWTON)[0]
    # The slope is that of 2^k more damped steps of the linearised equations: with M = I + pace (J - I) they sum to
    # (I + M + M^2 + ...) pace dF, by doubling. At the onset of a solution, where (I - J)^-1 has none, this stays bounded.
    identity = jnp.eye(3, dtype=g.dtype)
    matrix = identity + pace[:, None] * jax.jacfwd(rest)(found)
    summed = identity
    for _ in range(NUM_DOUBLINGS):
        summed, matrix = summed + matrix @ summed, matrix @ matrix
    summed = jnp.where(jnp.all(jnp.isfinite(summed)), summed, identity)
    change = summed @ (pace * _equations(found, g, mean, spread))
    return _State(*(found + change - jax.lax.stop_gradient(change)))


def _equations(
    state: Float[Array, "3"], g: Float[Array, ""], mean: Float[Array, ""], spread: Float[Array, ""]
) -> Float[Array, "3"]:
    """The right-hand sides of the three equations, with the temporal variance in place of the total one."""
    mu, delta_inf, delta_t = state
    x, weight = (jnp.asarray(column, g.dtype) for column in _quadrature())
    inner = mu + (_root(delta_inf) * x)[:, None] + _root(delta_t) * x
    rate, primitive = jnp.tanh(inner), _log_cosh(inner)
    rate_inside = rate @ weight
    mean_rate, square_rate = weight @ rate_inside, weight @ jnp.square(rate_inside)
    new_static = g**2 * square_rate + jnp.square(spread * mean_rate)
    # The published condition, V(delta_0) = V(delta_inf), has a double root without chaos, at which iteration creeps. With the
    # equation of delta_inf, which is V'(delta_inf) = 0, it says delta_t^2 / 2 = g^2 E_z Var_x[Phi - its regression on x]:
    # a map of slope g <phi'^2>^(1/2), whose passing of one is the onset of chaos.
    rest = primitive - (primitive @ weight)[:, None] - (primitive @ (weight * x))[:, None] * x
    beyond = weight @ (jnp.square(rest) @ weight)
    return jnp.stack([mean * mean_rate, new_static, g * _root(2 * beyond)])


def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite.hermgauss(NUM_NODES)
    return math.sqrt(2.0) * nodes, weights / math.sqrt(math.pi)


def _root(variance: Float[Array, ""]) -> Float[Array, ""]:
    """Square root with slope zero at zero, where the quadrature is even and the true slope of what follows is finite."""
    inside = variance > 0
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, variance, 1.0)), 0.0)


def _log_cosh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.logaddexp(x, -x) - math.log(2.0)
