"""The answer as a density: gradient, Hessian, modes, conditional modes and draws, sensitive directions.

Derivatives are those on the constrained scale. Where a support has fewer dimensions than numbers (a simplex, a Cholesky
factor), they are taken within it: the gradient is the tangent one, the Hessian that of the surface in its space.
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flowjax.distributions import AbstractDistribution
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from numpyro.infer import MCMC, NUTS

from ._keys import checked_key
from ._problem import Problem
from ._types import Draws, Key, Numbers, PerDraw, Scalar, Sites, Unconstrained

if TYPE_CHECKING:
    import xarray as xr

NUM_STARTS, NUM_WALKED, NUM_POLISHED = 512, 150, 60
"""Draws from which modes are looked for; short steps uphill of each, which do not leave a basin, and L-BFGS steps."""

LONGEST_STEP = 0.05
"""First length of the short ones, in the draws' standard deviations; it falls to a tenth."""

MARGIN = 0.25
"""How far beyond the draws a mode is looked for, in units of their range in each unconstrained coordinate."""

EDGE_SLOPE = 0.1
"""Slope, nats over one standard deviation of the draws, above which a place is no summit."""

NEIGHBOURS, PLACES, NUM_RELAXED = 8, 17, 80
"""Nearest summits that a summit may be joined with, places on the way to one, and steps in which the way climbs."""

CANDIDATES = 4096
"""Draws among which a conditional mode or a conditional chain finds its start."""

NUM_GRADIENTS = 2000
"""Draws over which products of the gradient are averaged."""

NUM_SIMULATIONS = 64
"""Simulations whose mean is a statistic's response, where the model has noise."""

DIFFERENCE = 0.1
"""Step of a difference quotient, in standard deviations of the draws, where a statistic is not differentiable."""


class Mode(NamedTuple):
    """A place where the density is highest.

    Attributes:
        values: The place, site name to value on the constrained scale.
        log_density: Log density there, nats.
        share: Share of the draws in this mode's basin; one for a conditional mode.
        standard_error: Of the share.
        at_edge: The density still rises where the draws end, for example towards a bound: there is no summit.
    """

    values: dict[str, np.ndarray]
    log_density: float
    share: float
    standard_error: float
    at_edge: bool


class _Limits(NamedTuple):
    """Where modes are looked for and how far the draws spread, in unconstrained coordinates; their spread on the other scale."""

    low: Array
    high: Array
    deviation: Array
    spread: np.ndarray


class AbstractUnconstrained(eqx.Module):
    """A distribution over unconstrained vectors."""

    @abc.abstractmethod
    def log_prob(self, unconstrained: Unconstrained) -> Scalar:
        """Log density of one vector, nats."""

    @abc.abstractmethod
    def draw(self, key: Key, count: int) -> Draws:
        """This many draws, [count, D]."""


class OfFlow(AbstractUnconstrained):
    """A flow's own, with independent draws."""

    flow: AbstractDistribution

    def log_prob(self, unconstrained: Unconstrained) -> Scalar:
        return self.flow.log_prob(unconstrained)

    def draw(self, key: Key, count: int) -> Draws:
        return self.flow.sample(key, (count,))


class Tilted(AbstractUnconstrained):
    """``base exp(-eta . (T - target)) / Z`` of a model without noise; draws of it are resampled from those found."""

    problem: Problem
    eta: Float[np.ndarray, " M"]
    log_normalizer: float
    draws: Draws
    log_weight: Float[np.ndarray, " N"]

    def log_prob(self, unconstrained: Unconstrained) -> Scalar:
        found = self.problem.evaluate(jax.random.key(0), unconstrained)
        slack = jnp.asarray(self.eta, float) @ (found.moments - self.problem.target)
        return found.log_base - slack - self.log_normalizer

    def draw(self, key: Key, count: int) -> Draws:
        shares = jnp.exp(jnp.asarray(self.log_weight, float))
        return self.draws[jax.random.choice(key, len(shares), (count,), p=shares / jnp.sum(shares))]


class Density(eqx.Module):
    """A distribution over a problem's parameters that can be drawn from, evaluated and differentiated.

    `Result.density` is that of the guide, `DualSolution.density` the exact maximum-entropy one of a model without noise.

    Attributes:
        problem: The question.
        unconstrained: The distribution in unconstrained coordinates.
    """

    problem: Problem
    unconstrained: "AbstractUnconstrained"

    @property
    def names(self) -> tuple[str, ...]:
        """One name for each number on the constrained scale: ``sW``, ``A[0,1]``, in the order of flattened sites."""
        return tuple(
            f"{p.name}[{','.join(map(str, index))}]" if index else p.name
            for p in self.problem.simulator.parameters
            for index in np.ndindex(*p.shape)
        )

    def sample(self, key: Key, shape: int | tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw parameters on the constrained scale, site name to array of shape ``(*shape, *site shape)``."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        sites = _sample(self, checked_key(key), math.prod(shape))
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in sites.items()}

    def log_prob(self, values: Sites) -> Float[Array, "..."]:
        """Log density on the constrained scale, nats; leading axes in common are batch axes.

        Raises:
            ValueError: If a parameter is missing or its shape does not fit.
        """
        return self._batched(_height, values)

    def gradient(self, values: Sites) -> dict[str, Array]:
        """Gradient of the log density, nats per unit of the parameter: site name to array of the shape of ``values``.

        Raises:
            ValueError: If a parameter is missing or its shape does not fit.
        """
        return self._batched(_gradient, values)

    def hessian(self, values: Sites) -> dict[str, dict[str, Array]]:
        """Hessian of the log density, nats, by two sites' names: ``(..., *shape of the first, *shape of the second)``.

        Raises:
            ValueError: If a parameter is missing or its shape does not fit.
        """
        return self._batched(_hessian, values)

    def modes(self, key: Key, *, num_starts: int = NUM_STARTS, depth: float = 0.5) -> list[Mode]:
        """Find the density's modes by climbing from many draws; the largest share first.

        Summits are one mode if a way leads from one to the other, over summits near by, on which the density falls less
        than ``depth`` below the lower of both: a learnt density has small dents, and a ridge has many summits.

        Args:
            key: For the draws.
            num_starts: Draws to climb from: a mode of share s is missed with probability ``(1 - s) ** num_starts``.
            depth: Nats that the density has to fall between two modes.

        Raises:
            ValueError: If an argument is not positive.
        """
        if num_starts < 1 or not depth > 0:
            raise ValueError(f"Expected num_starts >= 1 and depth > 0; got {num_starts=}, {depth=}.")
        draws = self.unconstrained.draw(checked_key(key), num_starts)
        free = jnp.ones(self.problem.dim, bool)
        limits = _limits(self, draws)
        places, climbed = _climb(self, draws, free, limits)
        usable = np.flatnonzero(np.isfinite(climbed))
        if not len(usable):
            raise ValueError("Expected draws with a finite density; got none.")
        places, heights = places[usable], np.asarray(climbed, float)[usable]
        modes = []
        labels = _join(self, np.asarray(places, float), heights, limits, depth)
        for label in range(labels.max() + 1):
            (members,) = np.nonzero(labels == label)
            top = members[np.argmax(heights[members])]
            share = len(members) / len(labels)
            modes.append(self._mode(places[top], share, math.sqrt(share * (1 - share) / len(labels)), free, limits))
        return sorted(modes, key=lambda mode: -mode.share)

    def conditional_mode(
        self, key: Key, fixed: Mapping[str, Numbers], *, start: Mapping[str, Numbers] | None = None
    ) -> Mode:
        """The highest density where some parameters have given values.

        Args:
            key: For the draws to climb from.
            fixed: Values by site name, or by the name of one number as in `names`.
            start: Climb from these values alone, and so stay on one branch.

        Raises:
            ValueError: If a name is unknown, everything is fixed, or a number cannot be fixed alone because its support
                ties it to others.
        """
        draws = self.unconstrained.draw(checked_key(key), CANDIDATES)
        values, free = self._fix(fixed, draws)
        limits = _limits(self, draws)
        if start is None:
            candidates = jnp.where(free, draws, values)
            heights = np.nan_to_num(np.asarray(_heights(self, candidates)), nan=-np.inf)
            candidates = candidates[np.argsort(-heights)[:64]]
        else:
            place = self.problem.simulator.unconstrain({name: jnp.asarray(v, float) for name, v in start.items()})
            candidates = jnp.where(free, place, values)[None]
        places, heights = _climb(self, candidates, free, limits)
        best = int(np.nanargmax(np.asarray(heights)))
        return self._mode(places[best], 1.0, 0.0, free, limits)

    def conditional_modes(self, key: Key, name: str, values: Sequence[float] | Float[np.ndarray, " K"]) -> list[Mode]:
        """The path of conditional modes along one parameter, each climbed to from the one before.

        Args:
            key: For the draws that the first one is looked for from.
            name: A name as in `names`.
            values: Its values along the path.

        Raises:
            ValueError: As `conditional_mode`.
        """
        path: list[Mode] = []
        for value in values:
            path.append(self.conditional_mode(key, {name: value}, start=path[-1].values if path else None))
        return path

    def condition(
        self,
        key: Key,
        fixed: Mapping[str, Numbers],
        *,
        num_samples: int = 500,
        num_chains: int = 8,
        num_warmup: int = 300,
    ) -> dict[str, Array]:
        """Draw from the distribution where some parameters have given values, by NUTS over the others.

        Chains start at draws that are resampled by their conditional density, so they spread over the modes.

        Args:
            key: For starts and chains.
            fixed: As in `conditional_mode`.
            num_samples: Draws of each chain.
            num_chains: Chains, run side by side.
            num_warmup: Steps of each chain that adapt NUTS and are dropped.

        Returns:
            Site name to array of shape ``(num_chains, num_samples, *site shape)``.

        Raises:
            ValueError: As `conditional_mode`.
        """
        draw_key, choice_key, chain_key = jax.random.split(checked_key(key), 3)
        draws = self.unconstrained.draw(draw_key, CANDIDATES)
        values, free = self._fix(fixed, draws)
        index = jnp.flatnonzero(free)
        candidates = jnp.where(free, draws, values)
        # A draw stands for its own density, the candidate for the conditional one.
        log_weight = jax.vmap(self.unconstrained.log_prob)(candidates) - jax.vmap(self.unconstrained.log_prob)(draws)
        log_weight = jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)
        starts = candidates[jax.random.categorical(choice_key, log_weight, shape=(num_chains,))][:, index]

        def potential(part: Array) -> Scalar:
            return -self.unconstrained.log_prob(values.at[index].set(part))

        mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(chain_key, init_params=starts if num_chains > 1 else starts[0])
        parts = mcmc.get_samples(group_by_chain=True).reshape(-1, len(index))
        sites = constrain(self, jnp.broadcast_to(values, (len(parts), len(values))).at[:, index].set(parts))
        return {name: value.reshape(num_chains, num_samples, *value.shape[1:]) for name, value in sites.items()}

    def sensitivity(self, key: Key, values: Mapping[str, Numbers] | None = None) -> "xr.Dataset":
        """The directions in which the density, and with it the property, is lost fastest, and what the statistics do there.

        At given values, a mode for example, directions are eigenvectors of the log density's Hessian, the most negative
        curvature first. Without, they are those of ``E[g g']``, g the gradient of the log density, over the whole
        distribution, the largest first (active subspace; Constantine 2015, Active Subspaces, section 3.1).

        Args:
            key: For draws and simulations.
            values: Where to look; the whole distribution by default.

        Returns:
            Over ``direction``: ``curvature``, nats over the parameters' unit squared; ``vector``, of unit length over
            ``parameter``, its largest component positive; ``response``, the change of each ``statistic`` component's mean
            by a unit step. Where a statistic is not differentiable, a difference quotient.
        """
        import xarray as xr

        draw_key, noise_key = jax.random.split(checked_key(key))
        draws = self.unconstrained.draw(draw_key, NUM_GRADIENTS)
        if values is None:
            points = draws
            gradients = np.asarray(_flat_gradients(self, draws), float)
            gradients = gradients[np.isfinite(gradients).all(axis=1)]
            matrix = -gradients.T @ gradients / len(gradients)
        else:
            place = {name: jnp.asarray(v, float) for name, v in values.items()}
            points = self.problem.simulator.unconstrain(place)[None]
            matrix = np.asarray(eqx.filter_jit(_flat_hessian)(self, points[0]), float)
        curvature, vectors = np.linalg.eigh(matrix)
        largest = np.argmax(np.abs(vectors), axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(len(largest))])
        steps = DIFFERENCE * np.asarray(_flat(self, draws), float).std(axis=0)
        response, labels = _responses(self, noise_key, points, vectors.T, float(np.mean(steps)))
        return xr.Dataset(
            {
                "curvature": ("direction", curvature),
                "vector": (("direction", "parameter"), vectors.T),
                "response": (("direction", "statistic"), response),
            },
            coords={"parameter": list(self.names), "statistic": labels, "direction": np.arange(len(curvature))},
            attrs={"where": "the whole distribution" if values is None else "one place"},
        )

    def target_response(self, key: Key, *, num_draws: int = 20_000) -> "xr.Dataset":
        """What moves if the question moves, to first order, for a density that is the maximum-entropy one.

        ``d mu / d eta = -Cov(T)`` under the distribution, and so ``d E[z] / d mu = Cov(z, T) Cov(T)^-1``. With simulator
        noise, T stands for its mean at the parameters, whose covariance two independent simulations of a draw give.

        Args:
            key: For draws and simulations.
            num_draws: Draws, each simulated twice.

        Returns:
            ``moment`` over ``constraint`` and ``multiplier``: change of a mean by that multiplier; ``parameter_mean`` over
            ``parameter`` and ``constraint``: change of the parameters' mean by that constraint's target.
        """
        import xarray as xr

        draw_key, noise_key = jax.random.split(checked_key(key))
        draws = self.unconstrained.draw(draw_key, num_draws)
        first, second = (np.asarray(_moments(self, k, draws), float) for k in jax.random.split(noise_key))
        points = np.asarray(_flat(self, draws), float)
        usable = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        first, second, points = (x[usable] - x[usable].mean(axis=0) for x in (first, second, points))
        count = len(points)
        covariance = 0.5 * (first.T @ second + second.T @ first) / count
        beside = 0.5 * points.T @ (first + second) / count
        constraints = [constraint.name for constraint in self.problem.constraints]
        return xr.Dataset(
            {
                "moment": (("constraint", "multiplier"), -covariance),
                "parameter_mean": (("parameter", "constraint"), beside @ np.linalg.pinv(covariance, hermitian=True)),
            },
            coords={"constraint": constraints, "multiplier": constraints, "parameter": list(self.names)},
        )

    def _batched(self, function: Callable[["Density", Unconstrained], Any], values: Sites) -> Any:
        shape = self.problem.simulator.batch_shape(values)
        flat = {}
        for parameter in self.problem.simulator.parameters:
            flat[parameter.name] = jnp.asarray(values[parameter.name], float).reshape(-1, *parameter.shape)
        found = _map(self, function, flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)

    def _mode(self, place: Unconstrained, share: float, standard_error: float, free: Array, limits: _Limits) -> Mode:
        outside = free & ((place < limits.low) | (place > limits.high))
        # At a bound of the support the slope stays, however far away the bound is in unconstrained coordinates.
        slope = jax.grad(partial(_height, self))(place)
        slope = (
            np.linalg.pinv(np.asarray(jax.jacobian(partial(_flat_one, self))(place), float)[:, free]).T @ slope[free]
        )
        at_edge = bool(jnp.any(outside)) or bool(np.max(np.abs(slope * limits.spread)) > EDGE_SLOPE)
        values = {name: np.asarray(value[0]) for name, value in constrain(self, place[None]).items()}
        height = float(_heights(self, place[None])[0])
        return Mode(values, height, share, standard_error, at_edge)

    def _fix(self, fixed: Mapping[str, Numbers], draws: Draws) -> tuple[Unconstrained, Array]:
        """Unconstrained vector that holds the fixed values, and which coordinates are free."""
        simulator = self.problem.simulator
        reference = draws[0]
        values = {name: np.array(v[0], float) for name, v in constrain(self, reference[None]).items()}
        shapes = {parameter.name: parameter.shape for parameter in simulator.parameters}
        blocks = simulator.unpack(jnp.arange(simulator.dim))
        jacobian = np.asarray(jax.jacobian(partial(_flat_one, self))(reference))
        held = np.zeros(simulator.dim, bool)
        for name, given in fixed.items():
            value = np.asarray(given, float)
            if not np.all(np.isfinite(value)):
                raise ValueError(f"Expected finite values; got {name!r}: {given}.")
            if name in shapes:
                if value.shape != shapes[name]:
                    raise ValueError(f"Expected {name!r} of shape {shapes[name]}; got {value.shape}.")
                values[name] = value
                held[np.ravel(blocks[name])] = True
            elif name in self.names:
                row = self.names.index(name)
                (columns,) = np.nonzero(jacobian[row])
                if value.shape or len(columns) != 1 or np.count_nonzero(jacobian[:, columns[0]]) != 1:
                    raise ValueError(
                        f"Expected one number for a parameter whose support ties it to no other; got {name!r}: {given}. "
                        "Fix its whole site."
                    )
                site, _, index = name.partition("[")
                values[site][tuple(int(i) for i in index.rstrip("]").split(","))] = value
                held[columns[0]] = True
            else:
                raise ValueError(
                    f"Expected names among {[*shapes, *(n for n in self.names if '[' in n)]}; got {name!r}."
                )
        if np.all(held) or not np.any(held):
            raise ValueError(f"Expected some parameters fixed and some free; got {list(fixed)} of {list(shapes)}.")
        place = simulator.unconstrain({name: jnp.asarray(v, float) for name, v in values.items()})
        if not np.all(np.isfinite(np.asarray(place)[held])):
            raise ValueError(f"Expected values inside the parameters' support; got {dict(fixed)}.")
        return jnp.where(held, place, reference), jnp.asarray(~held)


# One unconstrained vector.


def _flat_one(density: Density, unconstrained: Unconstrained) -> Float[Array, " P"]:
    sites = density.problem.simulator(jax.random.key(0), unconstrained).sites
    return ravel_pytree([sites[name] for name in density.problem.simulator.names])[0]


def _height(density: Density, unconstrained: Unconstrained) -> Scalar:
    log_det = density.problem.simulator(jax.random.key(0), unconstrained).log_det
    return density.unconstrained.log_prob(unconstrained) - log_det


def _flat_gradient(density: Density, unconstrained: Unconstrained) -> Float[Array, " P"]:
    # The tangent vector whose products with the columns of J are the slopes along the unconstrained coordinates.
    jacobian = jax.jacobian(partial(_flat_one, density))(unconstrained)
    return jnp.linalg.pinv(jacobian).T @ jax.grad(partial(_height, density))(unconstrained)


def _flat_hessian(density: Density, unconstrained: Unconstrained) -> Float[Array, "P P"]:
    place = partial(_flat_one, density)
    inverse = jnp.linalg.pinv(jax.jacobian(place)(unconstrained))
    slope = inverse.T @ jax.grad(partial(_height, density))(unconstrained)
    # The coordinates' own curvature along the slope is not the density's.
    bent = jax.hessian(lambda u: place(u) @ slope)(unconstrained)
    return inverse.T @ (jax.hessian(partial(_height, density))(unconstrained) - bent) @ inverse


def _gradient(density: Density, unconstrained: Unconstrained) -> dict[str, Array]:
    return _split(density, _flat_gradient(density, unconstrained))


def _hessian(density: Density, unconstrained: Unconstrained) -> dict[str, dict[str, Array]]:
    rows = _split(density, _flat_hessian(density, unconstrained))
    found = {}
    for parameter in density.problem.simulator.parameters:
        columns = jax.vmap(partial(_split, density))(rows[parameter.name].reshape(-1, rows[parameter.name].shape[-1]))
        found[parameter.name] = {n: c.reshape(*parameter.shape, *c.shape[1:]) for n, c in columns.items()}
    return found


def _split(density: Density, flat: Float[Array, "P ..."]) -> dict[str, Array]:
    found, start = {}, 0
    for parameter in density.problem.simulator.parameters:
        size = math.prod(parameter.shape)
        found[parameter.name] = flat[start : start + size].reshape(*parameter.shape, *flat.shape[1:])
        start += size
    return found


# Many of them.


@eqx.filter_jit
def _map(density: Density, function: Callable, values: Sites) -> Any:
    return jax.vmap(lambda one: function(density, density.problem.simulator.unconstrain(one)))(values)


@eqx.filter_jit
def _sample(density: Density, key: Key, count: int) -> dict[str, Array]:
    return constrain(density, density.unconstrained.draw(key, count))


@eqx.filter_jit
def _heights(density: Density, draws: Draws) -> PerDraw:
    return jax.vmap(partial(_height, density))(draws)


@eqx.filter_jit
def _flat(density: Density, draws: Draws) -> Float[Array, "N P"]:
    return jax.vmap(partial(_flat_one, density))(draws)


@eqx.filter_jit
def _flat_gradients(density: Density, draws: Draws) -> Float[Array, "N P"]:
    return jax.lax.map(partial(_flat_gradient, density), draws, batch_size=128)


@eqx.filter_jit
def constrain(density: Density, draws: Draws) -> dict[str, Array]:
    sites = jax.vmap(lambda u: density.problem.simulator(jax.random.key(0), u).sites)(draws)
    return {name: sites[name] for name in density.problem.simulator.names}


@eqx.filter_jit
def _moments(density: Density, key: Key, draws: Draws) -> Float[Array, "N M"]:
    def one(pair: tuple[Key, Unconstrained]) -> Array:
        return density.problem.evaluate(*pair).moments

    return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=1000)


# Summits.


def _limits(density: Density, draws: Draws) -> _Limits:
    low, high = jnp.min(draws, axis=0), jnp.max(draws, axis=0)
    spread = np.asarray(_flat(density, draws), float).std(axis=0)
    margin = MARGIN * (high - low)
    return _Limits(low - margin, high + margin, jnp.std(draws, axis=0), spread)


@eqx.filter_jit
def _climb(density: Density, draws: Draws, free: Array, limits: _Limits) -> tuple[Draws, PerDraw]:
    """Summits above draws, over the free coordinates; a wall keeps them near the draws."""
    low, high = limits.low, limits.high
    # A unit of y is a short step, so that no line search begins with a leap into another basin.
    scale = jnp.where(free, LONGEST_STEP * jnp.where(limits.deviation > 0, limits.deviation, 1.0), 0.0)

    def climb(start: Unconstrained) -> tuple[Unconstrained, Scalar]:
        def depth(y: Unconstrained) -> Scalar:
            u = start + y * scale
            beyond = (jnp.maximum(u - high, 0.0) + jnp.maximum(low - u, 0.0)) / (high - low + 1e-12)
            return -_height(density, u) + 1e4 * jnp.sum(jnp.where(free, beyond, 0.0) ** 2)

        y = jnp.zeros_like(start)
        y = _polish(depth, _walk_uphill(depth, y))
        # A climb that got lost stays where it began.
        y = jnp.where(depth(y) <= depth(jnp.zeros_like(y)), y, 0.0)
        u = start + y * scale
        return u, _height(density, u)

    return jax.vmap(climb)(draws)


def _walk_uphill(depth: Callable[[Array], Scalar], start: Array) -> Array:
    size = math.sqrt(len(start))

    def step(y: Array, longest: Scalar) -> tuple[Array, None]:
        slope = jnp.nan_to_num(jax.grad(depth)(y)) / LONGEST_STEP**2
        norm = jnp.linalg.norm(slope)
        return y - slope * jnp.minimum(1.0, longest * size / jnp.where(norm > 0, norm, 1.0)), None

    return jax.lax.scan(step, start, jnp.linspace(1.0, 0.1, NUM_WALKED))[0]


def _polish(depth: Callable[[Array], Scalar], start: Array) -> Array:
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(depth)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        y, state = carry
        value, slope = value_and_grad(y, state=state)
        updates, state = optimizer.update(slope, state, y, value=value, grad=slope, value_fn=depth)
        return (optax.apply_updates(y, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), None, length=NUM_POLISHED)[0][0]


def _join(density: Density, places: np.ndarray, heights: np.ndarray, limits: _Limits, depth: float) -> np.ndarray:
    """Number of the mode that each summit belongs to, from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    deviation = np.where(np.asarray(limits.deviation) > 0, limits.deviation, 1.0)
    whitened = places / deviation
    # Summits reached by many climbs crowd out neighbours farther off: one of each crowd looks for them.
    crowd = _crowds(whitened)
    leaders = np.array([np.flatnonzero(crowd == i)[0] for i in range(crowd.max() + 1)])
    if len(leaders) == 1:
        return np.zeros(len(places), int)
    _, near = KDTree(whitened[leaders]).query(whitened[leaders], k=min(NEIGHBOURS + 1, len(leaders)))
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(near) for j in row if i != j}
    left, right = (leaders[list(side)] for side in zip(*sorted(pairs), strict=True))
    first, last = (jnp.asarray(places[side], float) for side in (left, right))
    lowest = np.asarray(_lowest_on_the_way(density, first, last, jnp.asarray(deviation, float)))
    lowest = np.nan_to_num(lowest, nan=-np.inf)
    joined = lowest > np.minimum(heights[left], heights[right]) - depth
    graph = coo_array((np.ones(joined.sum()), (crowd[left[joined]], crowd[right[joined]])), shape=(len(leaders),) * 2)
    return connected_components(graph, directed=False)[1][crowd]


@eqx.filter_jit
def _lowest_on_the_way(density: Density, left: Draws, right: Draws, deviation: Unconstrained) -> PerDraw:
    """Least height on a way from summit to summit, which climbs sideways from the straight line (the string method).

    E, Ren & Vanden-Eijnden 2007, J. Chem. Phys. 126:164103: places on the way go uphill, and are spread evenly again.
    """
    share = jnp.linspace(0.0, 1.0, PLACES)
    size = math.sqrt(left.shape[-1])

    def heights(way: Float[Array, "P D"]) -> Float[Array, " P"]:
        return jax.vmap(lambda y: _height(density, y * deviation))(way)

    def relax(way: Float[Array, "P D"], longest: Scalar) -> tuple[Float[Array, "P D"], None]:
        slope = jnp.nan_to_num(jax.grad(lambda way: jnp.sum(heights(way)))(way))
        norm = jnp.linalg.norm(slope, axis=1, keepdims=True)
        step = slope * jnp.minimum(1.0, longest * size / jnp.where(norm > 0, norm, 1.0))
        way = way.at[1:-1].add(step[1:-1])
        length = jnp.cumsum(jnp.linalg.norm(jnp.diff(way, axis=0, prepend=way[:1]), axis=1))
        even = jax.vmap(lambda column: jnp.interp(share * length[-1], length, column), 1, 1)(way)
        return even.at[0].set(way[0]).at[-1].set(way[-1]), None

    def one(ends: tuple[Unconstrained, Unconstrained]) -> Scalar:
        first, last = ends[0] / deviation, ends[1] / deviation
        way = first + share[:, None] * (last - first)
        straight = jnp.min(heights(way))
        way, _ = jax.lax.scan(relax, way, jnp.linspace(1.0, 0.1, NUM_RELAXED) * LONGEST_STEP)
        return jnp.maximum(straight, jnp.min(heights(way)))

    return jax.lax.map(one, (left, right), batch_size=64)


def _crowds(whitened: np.ndarray, distance: float = 0.02) -> np.ndarray:
    """Numbers of groups of summits that are practically one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    pairs = KDTree(whitened).query_pairs(distance * math.sqrt(whitened.shape[1]), output_type="ndarray")
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(whitened),) * 2)
    return connected_components(graph, directed=False)[1]


# Responses.


def _responses(
    density: Density, key: Key, points: Draws, vectors: np.ndarray, step: float
) -> tuple[np.ndarray, list[str]]:
    """Mean change of every statistic's mean along unit vectors of the constrained scale, and their names."""
    problem = density.problem
    orders = np.array([constraint.order for constraint in problem.constraints])
    labels = [constraint.name for constraint in problem.constraints if constraint.order == 1]
    count = NUM_SIMULATIONS if problem.simulator.noise else 1
    if len(points) > 1:
        count = max(1, count // 16)

    def mean(point: Float[Array, " P"], keys: Array) -> Array:
        values = _split(density, point)

        def one(key: Key) -> Array:
            return problem.property.moments(problem.property.values(problem.simulator.simulate(key, values).sites))

        return jnp.mean(jax.vmap(one)(keys), axis=0)

    @eqx.filter_jit
    def respond(points: Array, directions: Array, key: Key) -> Array:
        def at(pair: tuple[Array, Key]) -> Array:
            point, key = pair
            keys = jax.random.split(key, count)
            if problem.differentiable:
                return jax.vmap(lambda v: jax.jvp(lambda p: mean(p, keys), (point,), (v,))[1])(directions)
            return jax.vmap(lambda v: (mean(point + step * v, keys) - mean(point - step * v, keys)) / (2 * step))(
                directions
            )

        return jax.lax.map(at, (points, jax.random.split(key, len(points))))

    found = np.asarray(respond(_flat(density, points), jnp.asarray(vectors, float), key), float)
    with np.errstate(invalid="ignore"):
        return np.nanmean(found, axis=0)[:, orders == 1], labels
