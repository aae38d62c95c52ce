"""What is measured on one draw. Add a statistic here with ``@statistic`` and one entry-point line.

A statistic sees the sites of *one* draw (parameters, deterministics, simulated noise) and returns a scalar or an array;
objectives batch it with ``jax.vmap``.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ._arguments import check_bool
from ._products import with_full_products
from ._registry import Provider, Registry
from ._types import AbstractSites, Sites

__all__ = ["Statistic", "get_statistic", "list_statistics", "log", "norm", "square", "statistic", "value"]


class Statistic(eqx.Module):
    """A function of one draw's sites, with the name, unit and dimensions of what it returns.

    Attributes:
        function: Takes the sites of one draw, then keyword-only options; returns a scalar or an array.
        name: Printed beside every constraint.
        unit: Unit of the returned value; empty for a pure number.
        dims: A name for each axis of the returned array; empty for a scalar.
        coords: Labels along each dim; positions where a dim has none.
        differentiable: Whether gradients flow from the sites to the value.

    Raises:
        ValueError: If a label list belongs to no dim.
    """

    function: Callable[..., Array] = eqx.field(static=True)
    name: str = eqx.field(static=True)
    unit: str = eqx.field(static=True, default="")
    dims: tuple[str, ...] = eqx.field(static=True, default=())
    coords: Mapping[str, Sequence[Any]] = eqx.field(static=True, default_factory=dict)
    differentiable: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        if not callable(self.function):
            raise TypeError(
                f"Expected a function of one draw's sites; got {self.function!r}. Write @statistic() above one."
            )
        for what, text in (("name", self.name), ("unit", self.unit)):
            if not isinstance(text, str):
                raise TypeError(f"Expected the {what} of a statistic to be a text; got {text!r}.")
        check_bool(differentiable=self.differentiable)
        # One name may stand twice: a covariance has the same labels on both of its axes.
        if not all(isinstance(dim, str) for dim in self.dims):
            raise ValueError(f"Expected dims of {self.name!r} to be names; got {self.dims}.")
        if extra := sorted(set(self.coords) - set(self.dims)):
            raise ValueError(f"Expected coords of {self.name!r} for dims among {self.dims}; got {extra}.")

    @with_full_products
    def __call__(self, sites: AbstractSites) -> Array:
        """Measure one draw."""
        found = self.function(sites)
        if getattr(getattr(found, "dtype", None), "kind", "") == "c" or isinstance(found, complex):
            raise TypeError(f"{self.name!r} returned complex numbers; return their parts, or their modulus")
        return jnp.asarray(found, float)

    def bind(self, **options: Any) -> "Statistic":
        """Fix keyword options of the function, such as which site it reads.

        Raises:
            TypeError: If the function has no such option.
        """
        if not options:
            return self
        if unknown := sorted(set(options) - set(self.options)):
            raise TypeError(f"Expected options of {self.name!r} among {list(self.options)}; got {unknown}.")
        function = partial(self.function, **options)
        name = f"{self.name}({', '.join(str(option) for option in options.values())})"
        return Statistic(function, name, self.unit, self.dims, self.coords, self.differentiable)

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword-only options of the function and their defaults (``inspect.Parameter.empty`` where required)."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def missing_options(self) -> list[str]:
        """Options that must be bound before the statistic can be used."""
        return [name for name, default in self.options.items() if default is inspect.Parameter.empty]

    def labels(self, shape: tuple[int, ...]) -> list[str]:
        """One printable name for each component of a value of this shape, in row-major order.

        Raises:
            ValueError: If the dims or coords do not fit the shape.
        """
        if self.dims and len(self.dims) != len(shape):
            raise ValueError(f"Expected {self.name!r} to return an array over dims {self.dims}; got shape {shape}.")
        axes = [self._axis_labels(axis, size) for axis, size in enumerate(shape)]
        indices: list[list[str]] = [[]]
        for axis in axes:
            indices = [[*index, label] for index in indices for label in axis]
        assert len(indices) == math.prod(shape)
        return [f"{self.name}[{','.join(index)}]" if index else self.name for index in indices]

    def _axis_labels(self, axis: int, size: int) -> list[str]:
        coord = self.coords.get(self.dims[axis]) if self.dims else None
        if coord is None:
            return [str(i) for i in range(size)]
        if len(coord) != size:
            raise ValueError(
                f"Expected {size} labels for dim {self.dims[axis]!r} of {self.name!r}; got {len(coord)}: {list(coord)}."
            )
        return [str(label) for label in coord]


def statistic(
    *functions: Callable[..., Array],
    unit: str = "",
    dims: Sequence[str] = (),
    coords: Mapping[str, Sequence[Any]] | None = None,
    name: str = "",
    differentiable: bool = True,
) -> Callable[[Callable[..., Array]], Statistic]:
    """Turn a function of one draw's sites into a `Statistic`.

    Args:
        *functions: None: the decorator is called, ``@statistic()``.
        unit: Unit of the returned value; empty for a pure number.
        dims: A name for each axis of the returned array.
        coords: Labels along each dim.
        name: Printed name; the function's own name where empty, the registered one where found by a plugin.
        differentiable: Say False where no gradient flows (counts, indicators): a pathwise objective then learns nothing.

    Returns:
        A decorator. The decorated object is still called with one draw's sites.
    """
    if functions:
        raise TypeError(f"Expected the decorator to be called; got @statistic on {functions[0]!r}. Write @statistic().")
    if isinstance(dims, str):
        raise TypeError(f"Expected dims to be a sequence of names; got the string {dims!r}. Write ({dims!r},).")
    if not (coords is None or isinstance(coords, Mapping)):
        raise TypeError(f"Expected coords to map dims to labels; got {coords!r}.")

    def decorate(function: Callable[..., Array]) -> Statistic:
        label = name or getattr(function, "__name__", type(function).__name__)
        return Statistic(function, label, unit, tuple(dims), dict(coords or {}), differentiable)

    return decorate


@statistic()
def value(sites: Sites, *, site: str) -> Array:
    """A site's own value."""
    return sites[site]


@statistic()
def square(sites: Sites, *, site: str) -> Array:
    """A site's value, squared elementwise."""
    return jnp.square(sites[site])


@statistic()
def log(sites: Sites, *, site: str) -> Array:
    """Natural logarithm of a positive site, elementwise."""
    return jnp.log(sites[site])


@statistic()
def norm(sites: Sites, *, site: str) -> Array:
    """Euclidean norm of a site; its gradient at zero is zero, not NaN."""
    squared = jnp.sum(jnp.square(sites[site]))
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _validate(name: str, found: Any) -> Statistic:
    if not isinstance(found, Statistic):
        raise TypeError(f"Expected a numpyro_epi Statistic, made with @statistic; got {type(found).__name__}.")
    return Statistic(found.function, name, found.unit, found.dims, found.coords, found.differentiable)


_REGISTRY = Registry("numpyro_epi.statistics", kind="statistic", validate=_validate)


def get_statistic(name: str, **options: Any) -> Statistic:
    """Find a registered statistic by name, ``topic.name``, and bind its options.

    Raises:
        LookupError: If nobody registers the name, or several packages do.
        PluginError: If the plugin that registers it is broken.
        TypeError: If the statistic has no such option.
    """
    return _REGISTRY.get(name).bind(**options)


def list_statistics() -> list[Provider]:
    """Every registered statistic with its package and version; nothing is imported."""
    return _REGISTRY.providers()
