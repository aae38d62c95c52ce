"""The answer as a density: gradient, Hessian, modes, conditional modes and draws, sensitive directions.

Derivatives are those on the constrained scale. Where a support has fewer dimensions than numbers (a simplex, a Cholesky
factor), they are taken within it: the gradient is the tangent one, the Hessian that of the surface in its space.
"""

import abc
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Bool, Float
from numpyro.infer import MCMC, NUTS

from . import _derivatives
from ._arguments import check_count, check_positive
from ._keys import checked_key
from ._problem import Problem
from ._process import check_process
from ._products import with_full_products
from ._responses import responses
from ._summits import Limits, climb, foremost, join
from ._types import Draws, Key, Numbers, Scalar, Sites, Unconstrained

if TYPE_CHECKING:
    import xarray as xr

NUM_STARTS = 512
"""Draws from which modes are looked for."""

DEPTH = 0.5
"""Nats that the density has to fall between two modes."""

EDGE_SLOPE, EDGE_STRETCH, NUM_STRETCHED = 0.1, 0.02, 128
"""Slope, nats over one standard deviation of the draws, above which a place is no summit; and part of the draws' median of
``|dz/du|``, over so many of them, below which a place lies at the bound: near one that is the distance to it."""

CANDIDATES, NUM_CLIMBED = 4096, 64
"""Draws among which a conditional mode or a conditional chain finds its start, and those of highest density to climb from."""

NUM_GRADIENTS = 2000
"""Draws over which products of the gradient are averaged."""


class Mode(NamedTuple):
    """A place where the density is highest, as far as draws know it.

    Attributes:
        values: The place, site name to value on the constrained scale.
        log_density: Log density there, nats.
        share: Share of the draws in this mode's basin; one for a conditional mode.
        standard_error: Of the share.
        at_edge: The density still rises where the draws end, or the place is at a bound of the support, far nearer than the
            draws: there is no summit, and slope and curvature of a learnt density say nothing there.
    """

    values: dict[str, np.ndarray]
    log_density: float
    share: float
    standard_error: float
    at_edge: bool


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

    @with_full_products
    def log_prob(self, unconstrained: Unconstrained) -> Scalar:
        return self.flow.log_prob(unconstrained)

    @with_full_products
    def draw(self, key: Key, count: int) -> Draws:
        return self.flow.sample(key, (count,))


class Tilted(AbstractUnconstrained):
    """``base exp(-eta . (T - target)) / Z`` of a model without noise; draws of it are resampled from those found."""

    problem: Problem
    eta: Float[np.ndarray, " M"]
    log_normalizer: float
    draws: Draws
    log_weight: Float[np.ndarray, " N"]

    @with_full_products
    def log_prob(self, unconstrained: Unconstrained) -> Scalar:
        found = self.problem.evaluate(jax.random.key(0), unconstrained)
        slack = jnp.asarray(self.eta, float) @ (found.moments - self.problem.target)
        return jnp.where(found.finite, found.log_base - slack - self.log_normalizer, -jnp.inf)

    def draw(self, key: Key, count: int) -> Draws:
        shares = jnp.exp(jnp.asarray(self.log_weight, float))
        return self.draws[jax.random.choice(key, len(shares), (count,), p=shares / jnp.sum(shares))]


class Density(eqx.Module):
    """A distribution over a problem's parameters that can be drawn from, evaluated and differentiated.

    `Result.density` is that of the guide, `DualSolution.density` the exact maximum-entropy one of a model without noise.

    Attributes:
        problem: The question.
        unconstrained: The distribution in unconstrained coordinates.
        eta: Multipliers of the maximum-entropy distribution that a learnt one is near, shape [M], if known.
    """

    problem: Problem
    unconstrained: AbstractUnconstrained
    eta: Float[np.ndarray, " M"] | None = None

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
        shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
        for count in shape:
            check_count("every number of a shape", count, 0)
        sites = _derivatives.sample(self, checked_key(key), math.prod(shape))
        return {name: sites[name].reshape(*shape, *sites[name].shape[1:]) for name in self.problem.simulator.names}

    def log_prob(self, values: Sites) -> Float[Array, "..."]:
        """Log density on the constrained scale, nats; leading axes in common are batch axes.

        Outside the parameters' support it is minus infinity.

        Raises:
            ValueError: If a parameter is missing, its shape does not fit, or a name is no site's.
        """
        return self._batched(_derivatives.height, values)[0]

    def gradient(self, values: Sites) -> dict[str, Array]:
        """Gradient of the log density, nats per unit of the parameter: site name to array of the shape of ``values``.

        Raises:
            ValueError: If a parameter is missing, its shape does not fit, or it lies outside its support.
        """
        return self._inside(_derivatives.gradient_by_site, values)

    def hessian(self, values: Sites) -> dict[str, dict[str, Array]]:
        """Hessian of the log density, nats, by two sites' names: ``(..., *shape of the first, *shape of the second)``.

        Raises:
            ValueError: If a parameter is missing, its shape does not fit, or it lies outside its support.
        """
        return self._inside(_derivatives.hessian_by_site, values)

    def modes(self, key: Key, *, num_starts: int = NUM_STARTS, depth: float = DEPTH) -> list[Mode]:
        """Find the density's modes by climbing from many draws; the largest share first.

        Summits are one mode if a way leads from one to the other, over summits near by, on which the density falls less
        than ``depth`` below the lower of both: a learnt density has small dents, and a ridge has many summits. The summit that
        stands for a mode is the highest of those near by where most climbs end, of the places within ``depth`` of the highest
        that many climbs lead to: along a direction that the property leaves free it lies in the midst of the draws. A summit
        that hardly any draw leads to is an error of a learnt density, as in the corners of a box, however high it is.

        Args:
            key: For the draws.
            num_starts: Draws to climb from: a mode of share s is missed with probability ``(1 - s) ** num_starts``.
            depth: Nats that the density has to fall between two modes.

        Raises:
            ValueError: If an argument is not positive.
        """
        check_count("num_starts", num_starts)
        check_positive(depth=depth)
        draws = self.unconstrained.draw(checked_key(key), num_starts)
        free = jnp.ones(self.problem.dim, bool)
        limits, height = Limits.of(draws), eqx.Partial(_derivatives.height, self)
        places, climbed = climb(height, draws, free, limits)
        usable = np.flatnonzero(np.isfinite(climbed))
        if not len(usable):
            raise ValueError("Expected draws with a finite density; got none.")
        places, heights = places[usable], np.asarray(climbed, float)[usable]
        modes: list[Mode] = []
        places = np.asarray(places, float)
        labels = join(height, places, heights, limits, depth)
        for label in range(labels.max() + 1):
            (members,) = np.nonzero(labels == label)
            top = members[foremost(places[members], heights[members], limits, depth)]
            share = len(members) / len(labels)
            error = math.sqrt(share * (1 - share) / len(labels))
            mode = _mode(self, jnp.asarray(places[top], float), free, limits, draws)
            modes.append(mode._replace(share=share, standard_error=error))
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
        self._check_fixed(fixed)
        return self._conditional_mode(self.unconstrained.draw(checked_key(key), CANDIDATES), fixed, start)

    def conditional_modes(self, key: Key, name: str, values: Sequence[float] | Float[np.ndarray, " K"]) -> list[Mode]:
        """The path of conditional modes along one parameter, each climbed to from the one before.

        Args:
            key: For the draws that the first one is looked for from.
            name: A name as in `names`.
            values: Its values along the path.

        Raises:
            ValueError: As `conditional_mode`.
        """
        for value in values:
            self._check_fixed({name: value})
        draws = self.unconstrained.draw(checked_key(key), CANDIDATES)
        path: list[Mode] = []
        for value in values:
            path.append(self._conditional_mode(draws, {name: value}, path[-1].values if path else None))
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
        for name, count, least in (
            ("num_samples", num_samples, 1),
            ("num_chains", num_chains, 1),
            ("num_warmup", num_warmup, 0),
        ):
            check_count(name, count, least)
        self._check_fixed(fixed)
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
        with_full_products(mcmc.run)(chain_key, init_params=starts if num_chains > 1 else starts[0])
        parts = mcmc.get_samples(group_by_chain=True).reshape(-1, len(index))
        sites = _derivatives.constrain(
            self.problem, jnp.broadcast_to(values, (len(parts), len(values))).at[:, index].set(parts)
        )
        return {name: value.reshape(num_chains, num_samples, *value.shape[1:]) for name, value in sites.items()}

    def sensitivity(
        self, key: Key, values: Mapping[str, Numbers] | None = None, *, num_draws: int = NUM_GRADIENTS
    ) -> "xr.Dataset":
        """The directions in which the density, and with it the property, is lost fastest, and what the statistics do there.

        At given values, a mode for example, directions are eigenvectors of the log density's Hessian, the most negative
        curvature first. At a bound of the support, far nearer than the draws are, the curvature of a learnt density is its own
        and not the property's: a warning and the attribute ``where`` say so.

        Without values, they are those of ``E[g g']``, g the gradient of the log density, over the whole distribution, the
        largest first (active subspace; Constantine 2015, Active Subspaces, section 3.1). Of a fit that has the property and took
        gradients through the simulator, g is that of the maximum-entropy density, ``log base - eta . E[T]``, at the guide's
        draws: a flow's own slope grows without end towards a bound of the support, however small its error there.

        Args:
            key: For draws and simulations.
            values: Where to look; the whole distribution by default.
            num_draws: Draws over which products of gradients are averaged; 2,000 give directions to some degrees.

        Returns:
            Over ``direction``: ``curvature``, nats over the parameters' unit squared; ``vector``, of unit length over
            ``parameter``, its largest component positive; ``response``, the change of each ``statistic`` component's mean
            by a unit step. Where a statistic is not differentiable, a difference quotient.

        Raises:
            ValueError: If ``num_draws`` is below two, a value is missing, or the place lies outside the support.
        """
        import xarray as xr

        draw_key, noise_key = jax.random.split(checked_key(key))
        point = None if values is None else self._point(values)
        check_count("num_draws", num_draws, 2)
        draws = self.unconstrained.draw(draw_key, num_draws)
        if point is None:
            points = draws
            gradient_key, noise_key = jax.random.split(noise_key)
            matrix = -self._gradient_products(gradient_key, draws)
        else:
            points = point[None]
            matrix = np.asarray(_derivatives.hessian_at(self, points[0]), float)
        where = "the whole distribution" if point is None else "one place"
        if point is not None and isinstance(self.unconstrained, OfFlow) and np.any(_at_bound(self, point, draws)):
            where = f"{where}, at a bound of the support, where a learnt density's curvature is not the property's"
            warnings.warn(
                f"These directions are those of {where}. Look at a place inside, or at no place.", stacklevel=2
            )
        curvature, vectors = np.linalg.eigh(matrix)
        largest = np.argmax(np.abs(vectors), axis=0)
        vectors = vectors * np.sign(vectors[largest, np.arange(len(largest))])
        response, labels = responses(
            self.problem,
            noise_key,
            _derivatives.constrain(self.problem, points),
            vectors.T,
            spread=_derivatives.spread(self, draws),
        )
        return xr.Dataset(
            {
                "curvature": ("direction", curvature),
                "vector": (("direction", "parameter"), vectors.T),
                "response": (("direction", "statistic"), response),
            },
            coords={"parameter": list(self.names), "statistic": labels, "direction": np.arange(len(curvature))},
            attrs={"where": where},
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

        check_count("num_draws", num_draws, 2)
        draw_key, noise_key = jax.random.split(checked_key(key))
        draws = self.unconstrained.draw(draw_key, num_draws)
        first, second = (
            np.asarray(_derivatives.moments_of(self, k, draws), float) for k in jax.random.split(noise_key)
        )
        points = np.asarray(_derivatives.flatten_all(self, draws), float)
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

    def _gradient_products(self, key: Key, draws: Draws) -> Float[np.ndarray, "P P"]:
        """``E[g g']`` over draws; with simulator noise the products of two independent estimates of ``g``."""
        if self.eta is None:
            first = second = np.asarray(_derivatives.gradients(self, draws), float)
        else:
            keys = jax.random.split(key, 2 if self.problem.simulator.noise else 1)
            found = [np.asarray(_derivatives.exact_gradients(self, key, draws), float) for key in keys]
            first, second = found[0], found[-1]
        usable = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        products = first[usable].T @ second[usable] / np.sum(usable)
        return (products + products.T) / 2

    def _batched(
        self, function: Callable[["Density", Unconstrained], Any], values: Mapping[str, Any]
    ) -> tuple[Any, Bool[Array, "..."]]:
        """The function at every place, and which places are inside the support; minus infinity outside."""
        check_process()
        numbers = {name: _numbers(name, given) for name, given in values.items()}
        shape = self.problem.simulator.batch_shape(numbers)
        flat = {}
        for parameter in self.problem.simulator.parameters:
            flat[parameter.name] = numbers[parameter.name].reshape(-1, *parameter.shape)
        found = _derivatives.map_inside(self, function, flat)
        return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), found)

    def _inside(self, function: Callable[["Density", Unconstrained], Any], values: Mapping[str, Any]) -> Any:
        found, inside = self._batched(function, values)
        # Under jit nothing is known yet: there it stays minus infinity.
        if not isinstance(inside, jax.core.Tracer) and not np.all(inside):
            raise ValueError(f"Expected values inside the parameters' support; got {dict(values)}.")
        return found

    def _point(self, values: Mapping[str, Any]) -> Unconstrained:
        """The unconstrained vector of one place."""
        numbers = {name: _numbers(name, given) for name, given in values.items()}
        if shape := self.problem.simulator.batch_shape(numbers):
            raise ValueError(f"Expected one place; got a batch of shape {shape}.")
        point = self.problem.simulator.unconstrain(numbers)
        if not np.all(np.isfinite(point)):
            raise ValueError(f"Expected values inside the parameters' support; got {dict(values)}.")
        return point

    def _conditional_mode(
        self, draws: Draws, fixed: Mapping[str, Numbers], start: Mapping[str, Numbers] | None
    ) -> Mode:
        values, free = self._fix(fixed, draws)
        if start is None:
            candidates = jnp.where(free, draws, values)
            heights = np.nan_to_num(np.asarray(_derivatives.heights(self, candidates)), nan=-np.inf)
            candidates = candidates[np.argsort(-heights)[:NUM_CLIMBED]]
        else:
            candidates = jnp.where(free, self._point(start), values)[None]
        limits = Limits.of(draws)
        places, climbed = climb(eqx.Partial(_derivatives.height, self), candidates, free, limits)
        heights = np.nan_to_num(np.asarray(climbed, float), nan=-np.inf)
        top = foremost(np.asarray(places, float), heights, limits, DEPTH)
        return _mode(self, places[top], free, limits, draws)

    def _check_fixed(self, fixed: Mapping[str, Any]) -> None:
        """What can be said before anything is drawn."""
        shapes = {parameter.name: parameter.shape for parameter in self.problem.simulator.parameters}
        for name, given in fixed.items():
            value = np.asarray(_numbers(name, given))
            if name not in shapes and name not in self.names:
                raise ValueError(
                    f"Expected names among {[*shapes, *(n for n in self.names if '[' in n)]}; got {name!r}."
                )
            if not np.all(np.isfinite(value)):
                raise ValueError(f"Expected finite values; got {name!r}: {given}.")
            if name in shapes and value.shape != shapes[name]:
                raise ValueError(f"Expected {name!r} of shape {shapes[name]}; got {value.shape}.")
        if not fixed or set(shapes) <= set(fixed):
            raise ValueError(f"Expected some parameters fixed and some free; got {list(fixed)} of {list(shapes)}.")

    def _fix(self, fixed: Mapping[str, Numbers], draws: Draws) -> tuple[Unconstrained, Array]:
        """Unconstrained vector that holds the fixed values, and which coordinates are free."""
        simulator = self.problem.simulator
        reference = draws[0]
        values = {
            name: np.array(v[0], float) for name, v in _derivatives.constrain(self.problem, reference[None]).items()
        }
        shapes = {parameter.name: parameter.shape for parameter in simulator.parameters}
        blocks = simulator.unpack(jnp.arange(simulator.dim))
        jacobian = np.asarray(_derivatives.slope_and_jacobian(self, reference)[1])
        held = np.zeros(simulator.dim, bool)
        for name, given in fixed.items():
            value = np.asarray(_numbers(name, given))
            if name in shapes:
                values[name] = value
                held[np.ravel(blocks[name])] = True
            else:
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
        if np.all(held) or not np.any(held):
            raise ValueError(f"Expected some parameters fixed and some free; got {list(fixed)} of {list(shapes)}.")
        place = simulator.unconstrain({name: jnp.asarray(v, float) for name, v in values.items()})
        if not np.all(np.isfinite(np.asarray(place)[held])):
            raise ValueError(f"Expected values inside the parameters' support; got {dict(fixed)}.")
        return jnp.where(held, place, reference), jnp.asarray(~held)


def _numbers(name: str, given: Any) -> Array:
    try:
        return jnp.asarray(given, float)
    except (TypeError, ValueError):
        raise ValueError(f"Expected numbers for {name!r}; got {given!r}.") from None


def _mode(density: Density, place: Unconstrained, free: Array, limits: Limits, draws: Draws) -> Mode:
    outside = free & ((place < limits.low) | (place > limits.high))
    # At a bound of the support the slope stays, however far away the bound is in unconstrained coordinates.
    slope, jacobian = (
        np.asarray(found, float)[..., np.asarray(free)] for found in _derivatives.slope_and_jacobian(density, place)
    )
    steepest = np.max(np.abs(np.linalg.pinv(jacobian).T @ slope * _derivatives.spread(density, draws)))
    at_bound = np.any(_at_bound(density, place, draws)[np.asarray(free)])
    values = {
        name: np.asarray(value[0]) for name, value in _derivatives.constrain(density.problem, place[None]).items()
    }
    height = float(_derivatives.heights(density, place[None])[0])
    at_edge = bool(jnp.any(outside)) or bool(steepest > EDGE_SLOPE) or bool(at_bound)
    return Mode(values, height, 1.0, 0.0, at_edge)


def _at_bound(density: Density, place: Unconstrained, draws: Draws) -> Bool[np.ndarray, " D"]:
    """Along which unconstrained coordinates a place is at a bound of the support, far nearer than draws are."""
    every = max(1, len(draws) // NUM_STRETCHED)
    usual = np.median(np.asarray(_derivatives.stretches(density, draws[::every][:NUM_STRETCHED])), axis=0)
    return np.asarray(_derivatives.stretches(density, place[None]))[0] < EDGE_STRETCH * usual
