"""One NumPyro model as pure functions of one unconstrained draw and a key."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.distribution import validation_enabled

from ._mirror import sample_mirrored
from ._priors import AllSeen, Leave, check_priors
from ._products import with_full_products
from ._types import Key, Scalar, Sites, Unconstrained


class Parameter(NamedTuple):
    """A site that the guide owns.

    Attributes:
        name: The site's name in the model.
        shape: Shape of its value, batch and event dimensions together.
        unconstrained_shape: Shape of its image under the inverse of ``biject_to(support)``.
        plates: Name of each plate around the site, and the plate's axis of that image.
    """

    name: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    plates: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """Number of unconstrained coordinates."""
        return math.prod(self.unconstrained_shape)


class Draw(NamedTuple):
    """One run of the model at given parameters.

    Attributes:
        sites: Every parameter, deterministic and noise value, by site name.
        log_prior: Sum of the parameter sites' log densities, nats.
        log_det: ``log |dz/du|`` of the parameters' constraining transforms, nats.
    """

    sites: Sites
    log_prior: Scalar
    log_det: Scalar


class Simulator(eqx.Module):
    """A NumPyro model, traced once, as pure functions.

    Supports are read again in every run, so a support that depends on another parameter is right.

    Args:
        model: A NumPyro model.
        parameters: Names of the sites the guide owns; empty means every unobserved sample site.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.

    Raises:
        ValueError: If a named parameter is unknown, observed, discrete or repeated, if there is none, or if the
            model observes data or holds a ``numpyro.param``; or if a constant parameter of a distribution is invalid.
    """

    model: Callable[..., Any] = eqx.field(static=True)
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    parameters: tuple[Parameter, ...] = eqx.field(static=True)
    noise: tuple[str, ...] = eqx.field(static=True)
    deterministics: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        parameters: Sequence[str] = (),
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ):
        self.model = model
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        sites = _inspect(model, self.args, self.kwargs)
        latent = [site for site in sites if site.kind == "latent"]
        _check_names(tuple(parameters), sites)
        names = tuple(parameters) or tuple(site.name for site in latent)
        self.parameters = tuple(
            Parameter(site.name, site.shape, site.unconstrained_shape, site.plates)
            for site in latent
            if site.name in names
        )
        random = [site.name for site in sites if site.kind in ("latent", "discrete", "unmapped")]
        self.noise = tuple(name for name in random if name not in names)
        self.deterministics = tuple(site.name for site in sites if site.kind == "deterministic")
        check_priors(model, self.names, self.args, self.kwargs)

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates, D."""
        return sum(parameter.size for parameter in self.parameters)

    def unpack(self, unconstrained: Unconstrained) -> dict[str, Array]:
        """Split a vector into the parameters' unconstrained values, in the model's order."""
        values, start = {}, 0
        for parameter in self.parameters:
            flat = unconstrained[start : start + parameter.size]
            values[parameter.name] = flat.reshape(parameter.unconstrained_shape)
            start += parameter.size
        return values

    @with_full_products
    def __call__(self, key: Key, unconstrained: Unconstrained, mirrored: Bool[Array, ""] | None = None) -> Draw:
        """Run the model once at one unconstrained draw.

        Args:
            key: Random key of the noise.
            unconstrained: Shape [D].
            mirrored: Whether the noise is the mirror image of the key's own (see ``_mirror``); without it, never.

        Raises:
            ValueError: If the vector is not of length ``dim``.
        """
        return self._run(key, unconstrained, mirrored=mirrored)

    @with_full_products
    def constrain(self, unconstrained: Unconstrained) -> Draw:
        """The parameters alone at one unconstrained draw: the model is left once it has drawn them.

        What it computes from them may have no second derivative, or none in forward mode; the parameters' own are not its.

        Raises:
            ValueError: If the vector is not of length ``dim``.
        """
        return self._run(jax.random.key(0), unconstrained, leave=True)

    @with_full_products
    def simulate(self, key: Key, values: Sites) -> Draw:
        """Run the model once at constrained parameter values; ``log_det`` belongs to their unconstrained image.

        Raises:
            ValueError: If a parameter's value is missing.
        """
        self._require(values)
        trace = self._trace(key, lambda site: values[site["name"]] if site["name"] in self.names else None)
        return self._draw(trace, lambda name, transform, value: transform.inv(value))

    @with_full_products
    def unconstrain(self, values: Sites) -> Unconstrained:
        """Map constrained parameter values of one draw to the unconstrained vector.

        Raises:
            ValueError: If a parameter's value is missing.
        """
        self._require(values)
        place = {name: jnp.asarray(values[name]) for name in self.names}
        return self._unconstrain(self._trace(jax.random.key(0), lambda site: place.get(site["name"]), leave=True))

    def split(self, flat: Float[Array, "P ..."]) -> dict[str, Array]:
        """Undo the flattening of constrained values: by site, with the trailing axes that the numbers have."""
        values, start = {}, 0
        for parameter in self.parameters:
            size = math.prod(parameter.shape)
            values[parameter.name] = flat[start : start + size].reshape(*parameter.shape, *flat.shape[1:])
            start += size
        return values

    def batch_shape(self, values: Sites) -> tuple[int, ...]:
        """Leading shape that the parameters' constrained values have in common.

        Raises:
            ValueError: If a parameter is missing, or its shape does not fit its own or the others' batch.
        """
        self._require(values)
        shapes = {}
        for parameter in self.parameters:
            found, own = jnp.shape(values[parameter.name]), parameter.shape
            if found[len(found) - len(own) :] != own:
                raise ValueError(
                    f"Expected {parameter.name!r} of shape (..., {', '.join(map(str, own))}); got {found}."
                )
            shapes[parameter.name] = found[: len(found) - len(own)]
        if len(set(shapes.values())) > 1:
            raise ValueError(f"Expected one batch shape for all parameters; got {shapes}.")
        return next(iter(shapes.values()))

    @with_full_products
    def sample_prior(self, key: Key) -> Unconstrained:
        """Draw from the model's own prior, in unconstrained coordinates.

        Raises:
            NotImplementedError: By NumPyro, if a parameter's prior is improper.
        """
        return self._unconstrain(self._trace(key, lambda site: None, leave=True))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the model's order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def has_proper_prior(self) -> bool:
        """Whether the parameters' prior can be drawn from, and is a probability distribution."""
        try:
            jax.eval_shape(self.sample_prior, jax.random.key(0))
        except NotImplementedError:
            return False
        return True

    def _run(
        self,
        key: Key,
        unconstrained: Unconstrained,
        *,
        leave: bool = False,
        mirrored: Bool[Array, ""] | None = None,
    ) -> Draw:
        if unconstrained.shape != (self.dim,):
            raise ValueError(f"Expected an unconstrained vector of shape {(self.dim,)}; got {unconstrained.shape}.")
        pieces = self.unpack(unconstrained)

        def place(site: dict) -> Array | None:
            if site["name"] in pieces:
                return biject_to(site["fn"].support)(pieces[site["name"]])
            if mirrored is None or site["name"] not in self.noise or site["value"] is not None:
                return None
            return sample_mirrored(site["fn"], site["kwargs"]["rng_key"], site["kwargs"]["sample_shape"], mirrored)

        return self._draw(self._trace(key, place, leave=leave), lambda name, transform, value: pieces[name])

    def _trace(self, key: Key, place: Callable[[dict], Array | None], *, leave: bool = False) -> dict[str, dict]:
        def substitute(site):
            return place(site) if site["type"] == "sample" else None

        seeded = handlers.substitute(handlers.seed(self.model, key), substitute_fn=substitute)
        traced = handlers.trace(Leave(seeded, self.names) if leave else seeded)
        try:
            traced(*self.args, **self.kwargs)
        except AllSeen:
            pass
        return traced.trace

    def _require(self, values: Sites) -> None:
        if missing := [name for name in self.names if name not in values]:
            raise ValueError(f"Expected values of the parameters {list(self.names)}; {missing} are missing.")
        known = {*self.names, *self.noise, *self.deterministics}
        if unknown := [name for name in values if name not in known]:
            raise ValueError(
                f"Expected values of the parameters {list(self.names)} only; got {unknown}, which are no sites of the model."
            )

    def _unconstrain(self, trace: dict[str, dict]) -> Unconstrained:
        sites = [trace[name] for name in self.names]
        return ravel_pytree([biject_to(site["fn"].support).inv(site["value"]) for site in sites])[0]

    def _draw(self, trace: dict[str, dict], unconstrained_of: Callable[[str, Any, Array], Array]) -> Draw:
        # Read from the finished trace: a site inside NumPyro's scan is seen there stacked, as it is in the result.
        log_prior = log_det = jnp.zeros(())
        for name in self.names:
            site = trace[name]
            transform = biject_to(site["fn"].support)
            log_density = jnp.sum(site["fn"].log_prob(site["value"]))
            log_prior += log_density if site["scale"] is None else site["scale"] * log_density
            u = unconstrained_of(name, transform, site["value"])
            log_det += jnp.sum(transform.log_abs_det_jacobian(u, site["value"]))
        return Draw(_values(trace), log_prior, log_det)


class _Site(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    unconstrained_shape: tuple[int, ...]
    plates: tuple[tuple[str, int], ...] = ()


def _inspect(model: Callable[..., Any], args: tuple, kwargs: dict) -> list[_Site]:
    """List the model's sites without computing anything."""
    found: list[_Site] = []

    def start(site):
        # Improper priors cannot be drawn from, so every continuous site starts at the image of zero.
        if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
            return None
        try:
            transform = biject_to(site["fn"].support)
        except NotImplementedError:
            return None
        shape = tuple(site["kwargs"].get("sample_shape", ())) + site["fn"].shape()
        return transform(jnp.zeros(transform.inverse_shape(shape)))

    def run():
        seeded = handlers.substitute(handlers.seed(model, jax.random.key(0)), substitute_fn=start)
        for site in handlers.trace(seeded).get_trace(*args, **kwargs).values():
            found.append(_describe(site))

    try:
        # `check_priors` says which site has invalid parameters.
        with validation_enabled(False):
            jax.eval_shape(run)
    # A model is the user's code: say that it failed, and how.
    except Exception as error:
        name = getattr(model, "__name__", type(model).__name__)
        raise ValueError(
            f"Expected a model that runs; {name!r} failed: {type(error).__name__}: {_first_line(error)} Its arguments are given "
            "by model_args and model_kwargs; its values are traced by JAX: write jnp for np, and jax.lax.cond or jnp.where "
            "for if."
        ) from error
    return found


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _describe(site: dict) -> _Site:
    name, shape = site["name"], jnp.shape(site["value"]) if site["value"] is not None else ()
    if site["type"] == "plate":
        size, subsample_size = site["args"]
        return _Site(name, "plate" if subsample_size in (None, size) else "subsample", shape, ())
    if site["type"] != "sample":
        return _Site(name, site["type"], shape, ())
    if site["is_observed"]:
        return _Site(name, "observed", shape, ())
    if site["fn"].support.is_discrete:
        return _Site(name, "discrete", shape, ())
    try:
        transform = biject_to(site["fn"].support)
    except NotImplementedError:
        return _Site(name, "unmapped", shape, ())
    # Batch axes stand before those of the event, and a plate counts them from the right.
    num_batch_axes = len(shape) - site["fn"].event_dim
    plates = tuple((frame.name, num_batch_axes + frame.dim) for frame in site["cond_indep_stack"])
    return _Site(name, "latent", shape, transform.inverse_shape(shape), plates)


def _values(trace: dict[str, dict]) -> dict[str, Array]:
    return {name: site["value"] for name, site in trace.items() if site["type"] in ("sample", "deterministic")}


def _check_names(names: tuple[str, ...], sites: list[_Site]) -> None:
    if plates := [site.name for site in sites if site.kind == "subsample"]:
        raise ValueError(
            f"Expected plates without subsampling; got {plates}. Every run would leave out others: simulate all of a plate, and "
            "leave out subsample_size."
        )
    kinds = {site.name: site.kind for site in sites}
    latent = [site.name for site in sites if site.kind == "latent"]
    if data := [site.name for site in sites if site.kind == "observed"]:
        raise ValueError(
            f"Expected a model that observes nothing; got the observed or factor site(s) {data}. An emergent property "
            "replaces data: call the model without them, or hide them with numpyro.handlers.block."
        )
    if params := [site.name for site in sites if site.kind == "param"]:
        raise ValueError(f"Expected random sites only; got numpyro.param site(s) {params}. Make them sample sites.")
    if not latent:
        raise ValueError(
            f"Expected at least one continuous parameter; the model has no such unobserved sample site, only {kinds}."
        )
    discrete = [site.name for site in sites if site.kind == "discrete"]
    if bad := [name for name in names if kinds.get(name) == "discrete"]:
        raise ValueError(f"Expected continuous parameters; got the discrete site(s) {bad}. A flow has no such draws.")
    if bad := [name for name in names if kinds.get(name) == "unmapped"]:
        raise ValueError(f"Expected parameters with a support that biject_to can map; got {bad}, which have none.")
    if discrete and not names:
        raise ValueError(
            f"Expected continuous parameters; the model also draws the discrete site(s) {discrete}. If they are the "
            f"simulator's own noise, say which sites are parameters: parameters={tuple(latent)}."
        )
    if unknown := [name for name in names if name not in kinds]:
        raise ValueError(f"Expected parameters among the sample sites {latent}; got {unknown}.")
    if wrong := [name for name in names if kinds[name] != "latent"]:
        raise ValueError(f"Expected parameters among the sample sites {latent}; {wrong} are not random.")
    if len(set(names)) < len(names):
        raise ValueError(f"Expected each parameter once; got {names}.")
    chosen = [site for site in sites if site.kind == "latent" and site.name in (names or latent)]
    if empty := [site.name for site in chosen if 0 in site.unconstrained_shape]:
        raise ValueError(f"Expected parameters of at least one number; got {empty}, which have none.")
