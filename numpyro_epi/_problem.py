"""The question: which distribution over a model's parameters produces an emergent property?"""

import builtins
import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._arguments import check_count
from ._html import escape, table
from ._keys import checked_key
from ._process import check_process
from ._products import with_full_products
from ._property import Constraint, EmergentProperty
from ._registry import Provider, Registry
from ._simulator import Simulator
from ._types import AbstractSites, Key, Moments, Scalar, Sites, Unconstrained

if TYPE_CHECKING:
    from ._check import CheckReport

LEAST_DRAWS = 4
"""Of one step: halves of two draws each."""


class Evaluation(NamedTuple):
    """What the loss needs of one draw.

    Attributes:
        log_base: Log density of the base measure in unconstrained coordinates, nats.
        log_det: ``log |dz/du|``, nats; ``log q(u) - log_det`` is the guide's density of the parameters.
        moments: The constrained moments ``T``, shape [M].
        finite: Whether all of these are finite.
        log_prior: Log density of the parameters' prior in unconstrained coordinates, nats, as the model has it.
    """

    log_base: Scalar
    log_det: Scalar
    moments: Moments
    finite: Bool[Array, ""]
    log_prior: Scalar | None = None


class Problem(eqx.Module):
    """A NumPyro model, an emergent property of it, and a base measure.

    The answer is the distribution ``q`` that maximises ``-KL(q || base)`` among all with ``E_q[T] = target``.

    Args:
        model: A NumPyro model that observes nothing.
        property: The statistics and their targets.
        parameters: The sites whose distribution is asked for; all unobserved ones by default. Every other random site
            is the simulator's own noise.
        base: ``"prior"``, the parameters' joint prior in the model, or ``"lebesgue"``, which asks for plain maximum
            entropy (Bittner et al. 2021). They are the same question where the prior is uniform.
        model_args: Positional arguments of the model.
        model_kwargs: Keyword arguments of the model.
        name: Printed and exported; the model's function name by default.
        num_draws: Draws a step that a fit takes unless it is told otherwise; fewer where one simulation is expensive.
        max_steps: Most steps of a fit unless it is told otherwise.
        nonfinite: What simulations that are not finite mean. ``"refuse"``: they are left out of every mean and counted, and
            an answer that has any is never called satisfied. ``"condition"``: the question is asked of the parameters whose
            simulation is finite, and the answer has no others; for models without noise of their own. To give such a
            simulation a value instead, see `Target`.

    Attributes:
        origin: Name and arguments, as JSON, of a problem that `get_problem` built: it can be asked for again.
        misled: Statistics that are declared differentiable and whose gradients `fit` found to mislead; see `differentiable`.

    Raises:
        ValueError: If the parameters, the base or a target do not fit the model, a number is not positive, or a model with
            noise is to be conditioned on finite simulations.
        TypeError: If ``model`` is not callable or ``property`` not an `EmergentProperty`.
    """

    simulator: Simulator
    property: EmergentProperty
    base: Literal["prior", "lebesgue"] = eqx.field(static=True)
    constraints: tuple[Constraint, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True)
    num_draws: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    nonfinite: Literal["refuse", "condition"] = eqx.field(static=True)
    origin: tuple[str, str] | None = eqx.field(static=True, default=None)
    misled: tuple[str, ...] = eqx.field(static=True, default=())

    def __init__(
        self,
        model: Callable[..., Any],
        property: EmergentProperty,
        *,
        parameters: Sequence[str] | None = None,
        base: Literal["prior", "lebesgue"] = "prior",
        model_args: tuple[Any, ...] = (),
        model_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        num_draws: int = 500,
        max_steps: int = 2500,
        nonfinite: Literal["refuse", "condition"] = "refuse",
    ):
        check_process()
        if not callable(model):
            raise TypeError(f"Expected a NumPyro model (a function); got {model!r}, a {type(model).__name__}.")
        if not isinstance(property, EmergentProperty):
            raise TypeError(f"Expected an EmergentProperty; got {property!r}. Write EmergentProperty(Target(...)).")
        if parameters is not None:
            _check_names(parameters)
        if base not in ("prior", "lebesgue"):
            raise ValueError(f"Expected base 'prior' or 'lebesgue'; got {base!r}.")
        if nonfinite not in ("refuse", "condition"):
            raise ValueError(
                f"Expected nonfinite 'refuse' or 'condition'; got {nonfinite!r}. A value instead is Target(if_nonfinite=...)."
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"Expected name to be a text; got {name!r}.")
        _check_model_arguments(model_args, model_kwargs)
        check_budget(num_draws=num_draws, max_steps=max_steps)
        self.num_draws, self.max_steps = num_draws, max_steps
        self.simulator = Simulator(model, parameters=parameters or (), args=model_args, kwargs=model_kwargs)
        if nonfinite == "condition" and self.simulator.noise:
            raise ValueError(
                "Expected a model without noise of its own for nonfinite='condition': which parameters simulate finitely is a "
                f"matter of chance with the noise sites {list(self.simulator.noise)}. Give failing simulations a value with "
                "Target(if_nonfinite=...)."
            )
        self.property = property
        self.base, self.nonfinite = base, nonfinite
        self.constraints = tuple(property.constraints(self._abstract_sites()))
        self.name = name or str(getattr(model, "__name__", type(model).__name__))
        self.origin = None
        self.misled = ()

    @builtins.property  # The field of that name hides the decorator from type checkers.
    def dim(self) -> int:
        """Number of unconstrained coordinates, D."""
        return self.simulator.dim

    @builtins.property  # The field of that name hides the decorator from type checkers.
    def target(self) -> np.ndarray:
        """Targets of the constrained moments, shape [M], each in its own unit."""
        return np.array([constraint.target for constraint in self.constraints])

    def scale(self, own: Float[np.ndarray, "*batch M"]) -> Float[np.ndarray, "*batch M"]:
        """The unit in which deviations of the moments from their targets are measured.

        Where a standard deviation ``s`` was requested, ``s`` for the mean and ``2 s^2`` for the variance, so that a
        deviation of the variance by .05 units is one of the achieved standard deviation by 5 %. Elsewhere the moments'
        own standard deviation.

        Args:
            own: Standard deviations of the moments, shape [..., M].
        """
        spreads = {c.statistic: math.sqrt(c.target) for c in self.constraints if c.order == 2}
        wanted = [spreads.get(c.statistic, np.nan) if c.order == 1 else 2 * c.target for c in self.constraints]
        return np.where(np.isfinite(wanted), np.asarray(wanted), own)

    @builtins.property  # The field of that name hides the decorator from type checkers.
    def differentiable(self) -> bool:
        """Whether every statistic has a useful gradient; see `statistic`.

        Where failing simulations have a value, or no mass, statistics or density jump at their border, which no gradient
        through the simulator sees.
        """
        if self.nonfinite == "condition" or self.misled:
            return False
        return all(t.statistic.differentiable and t.if_nonfinite is None for t in self.property.targets)

    @with_full_products
    def evaluate(self, key: Key, unconstrained: Unconstrained, mirrored: Bool[Array, ""] | None = None) -> Evaluation:
        """Run one draw and measure it, with the key's noise or its mirror image. Batch it with ``jax.vmap``."""
        draw = self.simulator(key, unconstrained, mirrored)
        moments = self.property.moments(self.property.values(draw.sites))
        log_base = draw.log_det + (draw.log_prior if self.base == "prior" else 0.0)
        finite = jnp.all(jnp.isfinite(moments)) & jnp.isfinite(log_base)
        return Evaluation(log_base, draw.log_det, moments, finite, draw.log_det + draw.log_prior)

    @with_full_products
    def mean_moments(self, keys: Array, values: Sites) -> Moments:
        """Mean of the moments over one simulation a key, all at these constrained parameters."""

        def moments(key: Key) -> Moments:
            return self.property.moments(self.property.values(self.simulator.simulate(key, values).sites))

        return jnp.mean(jax.vmap(moments)(keys), axis=0)

    def check(self, key: Key) -> "CheckReport":
        """Look for what can go wrong in a fit: see `numpyro_epi._check.check`. Print the report."""
        # Imported here since the doctor stands above the problem that it examines.
        from ._check import check

        return check(self, checked_key(key))

    def _repr_html_(self) -> str:
        parameters = [(p.name, "×".join(map(str, p.shape)) or "one number") for p in self.simulator.parameters]
        constraints = [(c.name, c.unit or "-", f"{c.target:.5g}") for c in self.constraints]
        noise = f"; its own noise: {', '.join(self.simulator.noise)}" if self.simulator.noise else ""
        return (
            f"<p><strong>{escape(self.name)}</strong>: {self.dim} unconstrained parameters, base {escape(self.base)}"
            f"{escape(noise)}</p>"
            + table(("parameter", "shape"), parameters)
            + table(("constraint", "unit", "target"), constraints)
        )

    def _abstract_sites(self) -> AbstractSites:
        zeros = jnp.zeros(self.simulator.dim)
        return jax.eval_shape(lambda: self.simulator(jax.random.key(0), zeros).sites)


def check_budget(*, num_draws: int, max_steps: int, num_restarts: int = 1) -> None:
    """Refuse what a fit cannot work with.

    Raises:
        ValueError: If a number is no integer, or out of range.
    """
    check_count("num_draws", num_draws, LEAST_DRAWS)
    check_count("max_steps", max_steps)
    check_count("num_restarts", num_restarts)


def _check_names(parameters: Any) -> None:
    if isinstance(parameters, str):
        raise TypeError(f"Expected a sequence of site names; got the string {parameters!r}. Write ({parameters!r},).")
    if not isinstance(parameters, Sequence) or not all(isinstance(name, str) for name in parameters):
        raise TypeError(f"Expected parameters to be a sequence of site names; got {parameters!r}. Write ('z',).")
    if not parameters:
        raise ValueError("Expected at least one parameter; got an empty sequence. Leave it out for all sites.")


def _check_model_arguments(args: Any, kwargs: Any) -> None:
    if not isinstance(args, tuple | list):
        raise TypeError(f"Expected model_args to be a tuple of positional arguments; got {args!r}. Write ({args!r},).")
    if not (kwargs is None or (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs))):
        raise TypeError(f"Expected model_kwargs to map names to arguments; got {kwargs!r}.")


def _validate(name: str, found: Any) -> Callable[..., Problem]:
    if not callable(found):
        raise TypeError(f"Expected a function that returns a numpyro_epi Problem; got {type(found).__name__}.")
    return found


_REGISTRY = Registry("numpyro_epi.problems", kind="problem", validate=_validate)


def get_problem(name: str, **arguments: Any) -> Problem:
    """Build a registered problem by name, ``topic.name``, passing its function the arguments given.

    Raises:
        LookupError: If nobody registers the name, or several packages do.
        PluginError: If the plugin that registers it is broken.
        TypeError: If the registered function does not take the arguments, or returns something else.
    """
    problem = _REGISTRY.get(name)(**arguments)
    if not isinstance(problem, Problem):
        raise TypeError(f"Expected registered problem {name!r} to return a Problem; got {type(problem).__name__}.")
    return with_origin(problem, name, arguments)


def with_origin(problem: Problem, name: str, arguments: Mapping[str, Any]) -> Problem:
    """The problem, knowing how it was asked for, where that can be written down as JSON."""
    try:
        text = json.dumps(arguments)
    except (TypeError, ValueError):
        return problem
    known = copy.copy(problem)
    object.__setattr__(known, "origin", (name, text))  # The copy is nobody else's yet.
    return known


def origin_arguments(text: str) -> dict[str, Any]:
    """Arguments as they were given, from `Problem.origin`; JSON knows no tuples, so that every sequence is one."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in json.loads(text).items()}


def list_problems() -> list[Provider]:
    """Every registered problem with its package and version; nothing is imported."""
    return _REGISTRY.providers()
