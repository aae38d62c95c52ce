"""An emergent property: statistics whose means, and where asked spreads, are at their targets."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._types import AbstractSites, Moments, Numbers, Sites
from .statistics import Statistic, get_statistic

LARGEST = 1e18
"""Of targets: the squares of what is about a thousand times larger are infinite in single precision."""

SMALLEST = 1e-18
"""Of spreads: the squares of what is about a thousand times smaller are zero in single precision."""


class Target(eqx.Module):
    """What one statistic should be on average, and how far it may spread around that.

    A spread adds the constraint ``E[(T - mean)^2] = std^2``: the second moment about the *target*, not about the mean
    of the draws (Bittner et al. 2021, eLife 10:e56265, Methods).

    Args:
        statistic: A `Statistic`, a registered name, or a function of one draw's sites.
        mean: Wanted mean, in the statistic's unit; a scalar, or an array of the statistic's shape.
        std: Wanted spread around ``mean``, same unit; ``None`` leaves the spread free.
        name: Printed name; the statistic's own by default.
        if_nonfinite: What stands for the statistic where a simulation gives none that is finite, same unit and shape as
            ``mean``: the peak of an epidemic that never was, say. By default such a simulation fails, see `Problem`.

    Raises:
        ValueError: If a mean or ``if_nonfinite`` is not finite, or a spread not finite and positive.
        LookupError: If no plugin registers the named statistic.
        TypeError: If the statistic is none of the three kinds, or lacks a required option.
    """

    statistic: Statistic
    mean: np.ndarray
    std: np.ndarray | None
    if_nonfinite: np.ndarray | None

    def __init__(
        self,
        statistic: Statistic | str | Callable[[Sites], Array],
        mean: Numbers,
        std: Numbers | None = None,
        *,
        name: str | None = None,
        if_nonfinite: Numbers | None = None,
    ):
        self.statistic = _as_statistic(statistic, name)
        self.mean = _numbers("mean", self.statistic, mean)
        self.std = None if std is None else _numbers("std", self.statistic, std)
        self.if_nonfinite = None if if_nonfinite is None else _numbers("if_nonfinite", self.statistic, if_nonfinite)
        if self.std is not None and np.any((self.std > 0) & (self.std < SMALLEST)):
            raise ValueError(
                f"Expected std of {self.statistic.name!r} of at least {SMALLEST:g}, whose square single precision holds; got "
                f"{std}. Measure the statistic in a smaller unit."
            )
        if self.std is not None and not np.all(self.std > 0):
            raise ValueError(
                f"Expected std > 0 for {self.statistic.name!r}; got {std}. For a fixed mean and a free spread leave "
                "std out; a spread of zero would be conditioning, which has no density."
            )

    def value(self, sites: Sites) -> Array:
        """The statistic of one draw, or what stands for it."""
        found = self.statistic(sites)
        return found if self.if_nonfinite is None else jnp.where(jnp.isfinite(found), found, self.if_nonfinite)


class Constraint(NamedTuple):
    """One equation of an emergent property.

    Attributes:
        name: Printed name.
        unit: Unit of the constrained moment.
        target: What the moment should be, in that unit.
        statistic: Name of the statistic's component it constrains.
        order: 1 for a mean, 2 for a second moment about the target mean.
    """

    name: str
    unit: str
    target: float
    statistic: str
    order: int


class EmergentProperty(eqx.Module):
    """Statistics and the moments they should have.

    Args:
        targets: At least one `Target`.

    Raises:
        ValueError: If there is no target, or two constrain statistics of one name.
        TypeError: If an argument is not a `Target`.
    """

    targets: tuple[Target, ...]

    def __init__(self, *targets: Target):
        if not targets:
            raise ValueError("Expected at least one Target; got none. Without one the answer is the base measure.")
        if wrong := [type(target).__name__ for target in targets if not isinstance(target, Target)]:
            raise TypeError(f"Expected Target objects; got {wrong}. Write EmergentProperty(Target(...), Target(...)).")
        names = [target.statistic.name for target in targets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"Expected each statistic once; got {repeated} more than once. One Target holds both its mean and std; "
                "for another statistic of the same name pass name=."
            )
        self.targets = targets

    def values(self, sites: Sites) -> dict[str, Array]:
        """Measure every statistic on one draw."""
        return {target.statistic.name: target.value(sites) for target in self.targets}

    def moments(self, values: Mapping[str, Array]) -> Moments:
        """The constrained moments of one draw: every statistic, then every squared deviation from a target mean."""
        means = [jnp.ravel(values[target.statistic.name]) for target in self.targets]
        squares = [
            jnp.ravel(jnp.square(values[target.statistic.name] - target.mean))
            for target in self.targets
            if target.std is not None
        ]
        return jnp.concatenate([*means, *squares])

    def constraints(self, sites: AbstractSites) -> list[Constraint]:
        """Name every constrained moment, given the (abstract) sites of one draw.

        Raises:
            ValueError: If a statistic fails on the sites, or a target or label does not fit what it returns.
        """
        shapes = {target.statistic.name: _shape(target.statistic, sites) for target in self.targets}
        for target in self.targets:
            if target.if_nonfinite is not None:
                _fit("if_nonfinite", target, target.if_nonfinite, shapes[target.statistic.name])
        means = [c for target in self.targets for c in _means(target, shapes[target.statistic.name])]
        squares = [
            c
            for target in self.targets
            if target.std is not None
            for c in _squares(target, shapes[target.statistic.name])
        ]
        names = [constraint.name for constraint in means + squares]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"Expected every constraint's name once; got {repeated} more than once. Pass Target(name=)."
            )
        return means + squares


def _means(target: Target, shape: tuple[int, ...]) -> list[Constraint]:
    labels = target.statistic.labels(shape)
    wanted = _fit("mean", target, target.mean, shape)
    return [Constraint(n, target.statistic.unit, float(m), n, 1) for n, m in zip(labels, wanted.flat, strict=True)]


def _squares(target: Target, shape: tuple[int, ...]) -> list[Constraint]:
    labels = target.statistic.labels(shape)
    unit = f"({target.statistic.unit})^2" if target.statistic.unit else ""
    wanted = np.square(_fit("std", target, target.std, shape))
    return [Constraint(f"var {n}", unit, float(v), n, 2) for n, v in zip(labels, wanted.flat, strict=True)]


def _shape(statistic: Statistic, sites: AbstractSites) -> tuple[int, ...]:
    try:
        shape = jax.eval_shape(statistic, sites).shape
    # A statistic is the user's code: say which one failed, and on what.
    except Exception as error:
        available = {name: tuple(value.shape) for name, value in sites.items()}
        raise ValueError(
            f"Statistic {statistic.name!r} failed on one draw: {type(error).__name__}: {error}. The model's sites and "
            f"their shapes are {available}."
        ) from error
    if math.prod(shape) == 0:
        raise ValueError(f"Expected {statistic.name!r} to return at least one number; got shape {shape}.")
    return shape


def _fit(what: str, target: Target, wanted: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(wanted, shape)
    except ValueError:
        raise ValueError(
            f"Expected {what} of {target.statistic.name!r} to be a scalar or of shape {shape}; got shape "
            f"{np.shape(wanted)}."
        ) from None


def _as_statistic(given: Any, name: str | None) -> Statistic:
    if not (name is None or (isinstance(name, str) and name)):
        raise TypeError(f"Expected name to be a text of at least one letter; got {name!r}.")
    found = get_statistic(given) if isinstance(given, str) else given
    if not isinstance(found, Statistic):
        if not callable(found):
            raise TypeError(
                f"Expected a statistic, a registered name or a function; got {type(found).__name__} {found!r}."
            )
        found = Statistic(found, getattr(found, "__name__", type(found).__name__))
    if missing := found.missing_options():
        raise TypeError(f"Expected the option(s) {missing} of {found.name!r}; bind them: .bind({missing[0]}=...).")
    if name is None:
        return found
    return Statistic(found.function, name, found.unit, found.dims, found.coords, found.differentiable)


def _numbers(what: str, statistic: Statistic, given: Numbers) -> np.ndarray:
    try:
        if np.iscomplexobj(given):
            raise TypeError
        numbers = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"Expected {what} of {statistic.name!r} to be numbers; got {given!r}.") from None
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"Expected a finite {what} for {statistic.name!r}; got {given}.")
    if np.any(np.abs(numbers) > LARGEST):
        raise ValueError(
            f"Expected {what} of {statistic.name!r} of at most {LARGEST:g}, whose square single precision holds; got {given}. "
            "Measure the statistic in a larger unit."
        )
    return numbers
