"""A flowjax flow as a NumPyro guide: what a fit found, usable wherever NumPyro takes an `AutoContinuous`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import paramax
from flowjax.bijections import AbstractBijection
from flowjax.distributions import AbstractDistribution, AbstractTransformed
from jaxtyping import Array, Float, PyTree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.infer import init_to_uniform
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.util import constrain_fn

from . import flows
from ._products import with_full_products
from ._types import Key, Unconstrained

QUANTILE_DRAWS = 4096
"""Draws behind `AutoFlow.quantiles` and `AutoFlow.median`."""


class FlowDistribution(dist.Distribution):
    """A flowjax distribution with a density on all of R^D, as NumPyro sees one.

    Args:
        flow: An unconditional flowjax distribution of shape ``(D,)``.
        validate_args: NumPyro's switch.
    """

    pytree_data_fields = ("flow",)
    support = constraints.real_vector

    def __init__(self, flow: AbstractDistribution, *, validate_args: bool | None = None):
        self.flow = flow
        super().__init__((), flow.shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return True

    @with_full_products
    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Float[Array, "... D"]:
        return self.flow.sample(_typed(key), sample_shape)

    @with_full_products
    def sample_with_intermediates(self, key: Key, sample_shape: tuple[int, ...] = ()) -> tuple[Array, list[Array]]:
        # The density comes with the draw: a flow whose inverse is slow is never inverted.
        draws, log_q = self.flow.sample_and_log_prob(_typed(key), sample_shape)
        return draws, [log_q]

    @with_full_products
    def log_prob(
        self, value: Float[Array, "... D"], intermediates: Sequence[Array] | None = None
    ) -> Float[Array, "..."]:
        return intermediates[0] if intermediates else self.flow.log_prob(value)


class FlowTransform(Transform):
    """A flowjax bijection of R^D as a NumPyro transform."""

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, bijection: AbstractBijection):
        self.bijection = bijection

    @with_full_products
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return jnp.vectorize(self.bijection.transform, signature="(d)->(d)")(x)

    @with_full_products
    def _inverse(self, y: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return jnp.vectorize(self.bijection.inverse, signature="(d)->(d)")(y)

    @with_full_products
    def call_with_intermediates(self, x: Float[Array, "... D"]) -> tuple[Float[Array, "... D"], Float[Array, "..."]]:
        return jnp.vectorize(self.bijection.transform_and_log_det, signature="(d)->(d),()")(x)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Array | None = None) -> Float[Array, "..."]:
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates

    def tree_flatten(self):
        return (self.bijection,), (("bijection",), {})


class AutoFlow(AutoContinuous):
    """A guide whose distribution over the packed unconstrained parameters is a flow.

    The coordinates are packed in the model's order, each site raveled in C order, as `Simulator` packs them. A support
    that depends on another parameter is read again for every draw. The model is inspected and the flow built at the
    first call, which must not be under ``jax.jit``, or by `from_flow`.

    Args:
        model: A NumPyro model whose latent sites are continuous.
        flow: Builder ``(key, dim) -> flowjax distribution``, or such a distribution already built or fitted, of shape
            ``(dim,)``. Its density must be positive on all of R^dim.
        flow_key: Key, or integer seed, given to the builder.
        prefix: Before the names of the guide's own sites, ``{prefix}_flow`` and ``_{prefix}_latent``.
        init_loc_fn: Finds the point at which the model is inspected. The flow's start does not depend on it.

    Raises:
        TypeError: If ``flow`` is no builder or distribution, or, at set-up, if the builder returns something else.
        ValueError: At set-up, if the flow has another shape than the model's parameters, or is conditional.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: flows.FlowBuilder | AbstractDistribution = flows.default,
        *,
        flow_key: Key | int = 0,
        prefix: str = "auto",
        init_loc_fn: Callable[..., Any] = init_to_uniform,
    ):
        if not (isinstance(flow, AbstractDistribution) or callable(flow)):
            raise TypeError(f"Expected a flow builder or a flowjax distribution; got {type(flow).__name__}.")
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)
        self._flow_or_builder = flow
        self._flow_key = flow_key

    @classmethod
    def from_flow(
        cls, model: Callable[..., Any], flow: flows.FlowBuilder | AbstractDistribution, /, *args: Any, **kwargs: Any
    ) -> "AutoFlow":
        """A guide that is set up, so that its ``params`` can be used before any call.

        Args:
            model: As for the class.
            flow: As for the class; mostly a fitted one.
            *args: Positional arguments of the model.
            **kwargs: Keyword arguments of the model.
        """
        guide = cls(model, flow)
        with handlers.block(), handlers.seed(rng_seed=0):
            guide._setup_prototype(*args, **kwargs)
        return guide

    @property
    def flow(self) -> AbstractDistribution:
        """The flow the guide was given or built, before any training by ``SVI``.

        Raises:
            RuntimeError: If the guide is not set up.
        """
        if self.prototype_trace is None:
            raise RuntimeError("Expected a guide that is set up; got a new one. Call it, or use AutoFlow.from_flow.")
        return self._flow

    @property
    def params(self) -> dict[str, dict[str, Array]]:
        """The flow's arrays, as ``SVI.get_params`` returns them: the ``params`` of a guide that is already fitted.

        Raises:
            RuntimeError: If the guide is not set up.
        """
        return {self._site: _by_path(_partition(self.flow)[0])}

    @with_full_products
    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Draw the parameters, given the model's arguments.

        Returns:
            Values by site name.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        pieces = self._unpack_latent(self._sample_latent())
        supports = self._supports_at(pieces) if self._supports_move else self._prototype_supports
        return {name: self._sample_site(name, supports[name], piece) for name, piece in pieces.items()}

    def get_posterior(self, params: Mapping[str, PyTree]) -> FlowDistribution:
        """The distribution of the packed unconstrained parameters."""
        return handlers.substitute(self._get_posterior, params)()

    def get_base_dist(self) -> FlowDistribution:
        """The flow's base: what the unconstrained parameters are a bijection of.

        Raises:
            ValueError: If the flow is not a flowjax ``Transformed``.
        """
        return FlowDistribution(_merged(self.flow).base_dist)

    def get_transform(self, params: Mapping[str, PyTree]) -> FlowTransform:
        """The bijection from the base to the unconstrained parameters.

        Raises:
            ValueError: If the flow is not a flowjax ``Transformed``.
        """
        return FlowTransform(_merged(self.get_posterior(params).flow).bijection)

    def quantiles(self, params: Mapping[str, PyTree], quantiles: Iterable[float]) -> dict[str, Array]:
        """Quantiles of every coordinate of every parameter, from `QUANTILE_DRAWS` draws of one fixed key.

        Args:
            params: The guide's parameters, from ``SVI.get_params`` or `params`.
            quantiles: Numbers between 0 and 1; the leading axis of each result.
        """
        draws = self.sample_posterior(jr.key(0), params, sample_shape=(QUANTILE_DRAWS,))
        levels = jnp.asarray(quantiles, float)
        return {name: jnp.quantile(draws[name], levels, axis=0) for name in self._prototype_supports}

    def median(self, params: Mapping[str, PyTree]) -> dict[str, Array]:
        """Median of every coordinate of every parameter; see `quantiles`."""
        return {name: value[0] for name, value in self.quantiles(params, [0.5]).items()}

    @property
    def _site(self) -> str:
        return f"{self.prefix}_flow"

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._flow = _build(self._flow_or_builder, _seed(self._flow_key), self.latent_dim)
        self._replayed = partial(_replay, self.model, args, kwargs)
        supports = [self._supports_at(self._unpack_latent(u)) for u in _two_points(self.latent_dim)]
        self._prototype_supports = supports[0]
        self._supports_move = supports[0] != supports[1]
        if self._supports_move:
            # NumPyro's own guess, by the type of the bounds, misses bounds inside an event.
            seeded = handlers.seed(self.model, rng_seed=0)
            self._postprocess_fn = partial(constrain_fn, seeded, args, kwargs, return_deterministic=True)

    def _supports_at(self, pieces: Mapping[str, Array]) -> dict[str, constraints.Constraint]:
        trace = self._replayed(pieces)
        return {name: trace[name]["fn"].support for name in pieces}

    def _get_posterior(self) -> FlowDistribution:
        arrays, static = _partition(self._flow)
        found = numpyro.param(self._site, _by_path(arrays))
        return FlowDistribution(eqx.combine(_from_path(found, arrays), static, is_leaf=_is_frozen))

    def _sample_site(self, name: str, support: constraints.Constraint, piece: Array) -> Array:
        transform = biject_to(support)
        value = transform(piece)
        event_dim = self.prototype_trace[name]["fn"].event_dim
        log_det = transform.log_abs_det_jacobian(piece, value)
        # One number for each element of the site's batch, whatever the transform's own event dimensions are.
        extra = jnp.ndim(log_det) - (jnp.ndim(value) - event_dim)
        log_density = -jnp.sum(log_det, axis=tuple(range(-extra, 0)))
        return numpyro.sample(name, dist.Delta(value, log_density=log_density, event_dim=event_dim))


def parameters_only(model: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """The model as a guide of some of its sites sees it: every other sample and deterministic site is hidden.

    The hidden noise is drawn with one fixed key: sample the full model, not this one.

    Args:
        model: A NumPyro model.
        names: The sites to show.
    """
    shown = frozenset(names)

    def hidden(site: Mapping[str, Any]) -> bool:
        return site["type"] in ("sample", "deterministic") and site["name"] not in shown

    return handlers.block(handlers.seed(model, rng_seed=0), hide_fn=hidden)


def _replay(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], pieces: Mapping[str, Array]) -> dict:
    """Trace the model with its latent sites at unconstrained values, unseen by the handlers outside."""

    def place(site: Mapping[str, Any]) -> Array | None:
        found = site["type"] == "sample" and site["name"] in pieces
        return biject_to(site["fn"].support)(pieces[site["name"]]) if found else None

    placed = handlers.trace(handlers.substitute(handlers.seed(model, rng_seed=0), substitute_fn=place))
    # The model's own numpyro.param sites are let through: a support may depend on their trained values.
    with handlers.block(hide_fn=lambda site: site["type"] != "param"):
        return placed.get_trace(*args, **kwargs)


def _two_points(dim: int) -> tuple[Unconstrained, Unconstrained]:
    return jnp.zeros(dim), jr.normal(jr.key(0), (dim,))


def _build(flow: flows.FlowBuilder | AbstractDistribution, key: Key, dim: int) -> AbstractDistribution:
    built = flow if isinstance(flow, AbstractDistribution) else flow(key, dim)
    if not isinstance(built, AbstractDistribution):
        raise TypeError(f"Expected the flow builder to return a flowjax distribution; got {type(built).__name__}.")
    if built.shape != (dim,):
        raise ValueError(f"Expected a flow of shape {(dim,)}, the model's parameters; got {built.shape}.")
    if built.cond_shape is not None:
        raise ValueError(f"Expected an unconditional flow; got one with a condition of shape {built.cond_shape}.")
    return built


def _merged(flow: AbstractDistribution) -> AbstractTransformed:
    if not isinstance(flow, AbstractTransformed):
        raise ValueError(
            f"Expected a flowjax Transformed, whose bijection is the reparameterisation; got {type(flow).__name__}. "
            "Append a bijection to it, for instance with flows.with_affine."
        )
    # Bijections nested in a paramax wrapper are only seen once it is resolved.
    return paramax.unwrap(flow).merge_transforms()


def _is_frozen(leaf: Any) -> bool:
    return isinstance(leaf, paramax.NonTrainable)


def _partition(flow: AbstractDistribution) -> tuple[PyTree, PyTree]:
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=_is_frozen)


def _by_path(arrays: PyTree) -> dict[str, Array]:
    # A plain dictionary can be pickled and stored, where the flow's own tree holds functions.
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)}


def _from_path(found: Mapping[str, Array], like: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: found[jax.tree_util.keystr(path)], like)


def _seed(key: Key | int) -> Key:
    return jr.key(key) if isinstance(key, int) else _typed(key)


def _typed(key: Key) -> Key:
    # NumPyro's Predictive hands out raw uint32 keys, flowjax insists on typed ones.
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jr.wrap_key_data(key)
