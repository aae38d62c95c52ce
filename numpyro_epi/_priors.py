"""Constant parameters of a model's distributions, checked before a run; NumPyro checks none inside traced code."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to
from numpyro.distributions.distribution import validation_enabled
from numpyro.primitives import Messenger

_PARTS = ("base_dist", "component_distribution", "mixing_distribution")
"""Attributes in which NumPyro's distributions keep those that they are made of."""

_SHOWN = 5
"""Maximal number of values in an error."""


class AllSeen(Exception):
    """Every parameter is drawn."""


class Leave(Messenger):
    """Leaves a model at its last parameter."""

    def __init__(self, fn: Callable[..., Any], names: Collection[str]):
        super().__init__(fn)
        self._missing = set(names)

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        self._missing.discard(msg.get("name"))
        if not self._missing:
            raise AllSeen


def check_priors(
    model: Callable[..., Any], names: Collection[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Check the distributions up to the last parameter, as far as they do not depend on what the model draws.

    Args:
        model: A NumPyro model that runs.
        names: The parameters.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If a parameter of a distribution is outside its domain, or bounds leave no interval; it names the site.
    """

    def run(key: Array, zero: Float[Array, ""]) -> None:
        def start(site: dict[str, Any]) -> Array | None:
            # A traced value, since what depends on it is no constant; improper priors cannot be drawn from.
            if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
                return None
            transform = biject_to(site["fn"].support)
            shape = tuple(site["kwargs"].get("sample_shape", ())) + site["fn"].shape()
            return transform(jnp.broadcast_to(zero, transform.inverse_shape(shape)))

        traced = handlers.trace(Leave(handlers.substitute(handlers.seed(model, key), substitute_fn=start), names))
        with jax.ensure_compile_time_eval():
            try:
                traced(*args, **kwargs)
            except AllSeen:
                pass
            for name, site in traced.trace.items():
                if site["type"] == "sample" and not site["is_observed"]:
                    _check(name, site["fn"])

    # What NumPyro would refuse when it is made has no site's name yet.
    with validation_enabled(False):
        jax.eval_shape(run, jax.random.key(0), jnp.zeros(()))


def _check(name: str, distribution: Distribution) -> None:
    for part in _parts(distribution):
        try:
            part.validate_args(strict=False)
        except ValueError as error:
            values = ", ".join(f"{key}={_shown(value)}" for key, value in part.get_args().items())
            raise ValueError(
                f"Expected parameters that the distribution of site {name!r} is defined for; got "
                f"{type(part).__name__}({values}): {error} Correct the model."
            ) from error
    support = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None or high is None or isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer):
        return
    # Bounds of an empty or a single number leave no interval to map.
    if not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(
            f"Expected bounds low < high of the parameter {name!r}; got low={_shown(low)} and high={_shown(high)}. "
            "Correct them in the model, or leave out what is constant."
        )


def _parts(distribution: Distribution) -> Iterator[Distribution]:
    yield distribution
    for attribute in _PARTS:
        if isinstance(part := getattr(distribution, attribute, None), Distribution):
            yield from _parts(part)


def _shown(value: Any) -> str:
    if isinstance(value, jax.core.Tracer):
        return "..."
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        return type(value).__name__
    shown = ", ".join(f"{number:g}" for number in array.ravel()[:_SHOWN])
    return shown if array.ndim == 0 else f"[{shown}{', ...' if array.size > _SHOWN else ''}]"
