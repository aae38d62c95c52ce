"""Flow builders: ``(key, dim) -> flowjax distribution`` over the unconstrained parameters. Add one here.

A guide draws at every step, so the fast direction of every flow here is sampling. Each stage is a conditional elementwise
map, an optional normalisation and a mixing map; a closing affine map gives location and scale. All of them start near
the identity, so that the start (`starts`) alone decides where the guide begins.
"""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import paramax
from flowjax.bijections import (
    AbstractBijection,
    Affine,
    Chain,
    Flip,
    Permute,
    RationalQuadraticSpline,
    Scan,
    TriangularAffine,
    Vmap,
)
from flowjax.bijections import Coupling as CouplingBijection
from flowjax.bijections import MaskedAutoregressive as MaskedAutoregressiveBijection
from flowjax.distributions import AbstractDistribution, StandardNormal, Transformed, VmapMixture
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._arguments import as_number, check_bool, check_count, check_instance, check_positive
from ._marginals import SinhArcsinh
from ._normals import normal_in_own_units
from ._types import Key

__all__ = [
    "Coupling",
    "Elementwise",
    "FlowBuilder",
    "MaskedAutoregressive",
    "affine",
    "bent",
    "default",
    "fixed_permutation",
    "flip",
    "learnt_linear",
    "mixture",
    "spline",
    "with_affine",
    "with_mixture_base",
]

FlowBuilder = Callable[[Key, int], AbstractDistribution]
"""Anything that builds a flowjax distribution of shape ``(dim,)`` from a key and ``dim``."""

SLOWNESS = 0.3
"""Factor on a network's output for a bend's location, log width and size: without it, a product of eleven densities ended with
.10 nats of forward KL after the likelihood fit instead of .05, and a ball in a box with .39 instead of .12."""

Mixing = Callable[[Key, int], AbstractBijection]
"""Builds the map that stands between two stages."""


def affine(min_scale: float = 1e-2) -> AbstractBijection:
    """Elementwise ``y = a x + b`` with ``a > min_scale``, as a coupling's transformer."""
    if not 0 <= as_number(min_scale) < 1:
        raise ValueError(f"Expected 0 <= min_scale < 1; got {min_scale!r}.")
    scale: paramax.Parameterize = paramax.Parameterize(
        lambda x: jax.nn.softplus(x) + min_scale, _inverse_softplus(1 - min_scale)
    )
    return eqx.tree_at(lambda bijection: bijection.scale, Affine(), scale)


def bent(count: int = 2) -> AbstractBijection:
    """`affine` and then smooth bends, as a coupling's transformer (Jones & Pewsey 2009, Biometrika 96:761).

    Conditional distributions are then skewed, or have gaps, where needed, as at a region's edges: after the likelihood fit a
    shell in four dimensions was .07 nats from its draws instead of .10, a ball in a box of two or three .04 and .12 instead of
    .12 and .25, in a quarter more time.
    """
    check_count("count", count, 2)
    return Chain([affine(), *(_bend(loc) for loc in np.linspace(-1.0, 1.0, count))])


def spline(knots: int = 8, interval: float = 4.0) -> AbstractBijection:
    """Monotone rational-quadratic spline (Durkan et al. 2019, arXiv 1906.04032); the identity outside the interval."""
    check_count("knots", knots, 2)
    check_positive(interval=interval)
    return RationalQuadraticSpline(knots=knots, interval=interval)


def flip(key: Key, dim: int) -> AbstractBijection:
    """Reverse the coordinates: a coupling's two halves take turns."""
    return Flip((dim,))  # type: ignore[call-arg]  # Fields of flowjax's modules hide their constructors.


def fixed_permutation(key: Key, dim: int) -> AbstractBijection:
    """A random permutation that swaps the halves: what one coupling stage left alone, the next one transforms."""
    first, second = jr.split(key)
    half = dim // 2
    kept = jr.permutation(first, jnp.arange(half))
    moved = jr.permutation(second, jnp.arange(half, dim))
    return Permute(jnp.concatenate([moved, kept]))


class Triangular(TriangularAffine):
    """flowjax's ``TriangularAffine`` with a fast inverse.

    The matrix is inverted once for a whole batch. flowjax solves a triangular system for every draw, which made the
    density of a default flow and its gradient ten times slower on a CPU.

    Args:
        loc: Shape [D].
        arr: Triangular matrix with a positive diagonal, shape [D, D].
        lower: Whether it is a lower one.
    """

    def __init__(self, loc: Array, arr: Array, *, lower: bool = True):
        super().__init__(loc, arr, lower=lower)

    def inverse_and_log_det(self, y, condition=None):
        matrix = paramax.unwrap(self.triangular)
        inverse = solve_triangular(matrix, jnp.eye(len(y), dtype=matrix.dtype), lower=self.lower)
        return inverse @ (y - self.loc), -jnp.sum(jnp.log(jnp.abs(jnp.diag(matrix))))


def learnt_linear(key: Key, dim: int) -> AbstractBijection:
    """A permutation followed by a trainable lower and upper triangular map (Kingma & Dhariwal 2018, section 3.2)."""
    identity = jnp.eye(dim)
    zeros = jnp.zeros(dim)
    return Chain(
        [
            fixed_permutation(key, dim),
            Triangular(zeros, identity, lower=False),
            Triangular(zeros, identity, lower=True),
        ]
    )


class Coupling(eqx.Module):
    """A stack of coupling stages (real NVP, Dinh et al. 2017, arXiv 1605.08803). Both directions are fast.

    Attributes:
        num_stages: Coupling stages; two let every coordinate move.
        width: Units of a conditioner's hidden layer.
        depth: Hidden layers of a conditioner.
        transformer: Scalar bijection that the conditioner parameterises: `affine()`, `bent()` or `spline()`.
        mixing: Builds the map after each stage: `learnt_linear`, `fixed_permutation` or `flip`.
        normalise: Add a trainable elementwise affine map after each stage; unlike batch normalisation, it is one and
            the same map in both directions, so the density is exact.
        closing_affine: End with a trainable triangular affine map.
        activation: Nonlinearity of the conditioner.
        initial_scale: Factor on a conditioner's last layer at the start; 0 starts at the identity exactly.
    """

    num_stages: int = 6
    width: int = 50
    depth: int = 2
    transformer: AbstractBijection = eqx.field(default_factory=affine)
    mixing: Mixing = eqx.field(static=True, default=learnt_linear)
    normalise: bool = False
    closing_affine: bool = False
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jax.nn.tanh)
    initial_scale: float = 0.1

    def __check_init__(self):
        _check_stack(self)

    def __call__(self, key: Key, dim: int) -> AbstractDistribution:
        """Build the flow.

        Raises:
            ValueError: If ``dim < 2``: a coupling needs one coordinate to condition on another.
        """
        if dim < 2:
            raise ValueError(
                f"Expected dim >= 2 for a coupling flow; got {dim}. Use flows.Elementwise or flows.default."
            )

        def conditional(key: Key) -> AbstractBijection:
            bijection = CouplingBijection(
                key,
                transformer=self.transformer,
                untransformed_dim=dim // 2,
                dim=dim,
                nn_width=self.width,
                nn_depth=self.depth,
                nn_activation=self.activation,
            )
            return _shrink(bijection, lambda b: b.conditioner.layers[-1], self.initial_scale)

        return _stack(key, dim, self.num_stages, conditional, self.mixing, self.normalise, self.closing_affine)


class MaskedAutoregressive(eqx.Module):
    """A stack of inverse autoregressive stages (Kingma et al. 2016, arXiv 1606.04934).

    Drawing is one pass, but the density of given values takes ``dim`` passes.

    Attributes:
        num_stages: Autoregressive stages.
        width: Units of a hidden layer; at least ``dim`` are used, since fewer leave coordinates unconditioned.
        depth: Hidden layers.
        transformer: Scalar bijection that the network parameterises: `affine()`, `bent()` or `spline()`.
        mixing: Builds the map after each stage: `learnt_linear`, `fixed_permutation` or `flip`.
        normalise: Add a trainable elementwise affine map after each stage.
        closing_affine: End with a trainable triangular affine map.
        activation: Nonlinearity of the network.
        initial_scale: Factor on the network's last layer at the start; 0 starts at the identity exactly.
    """

    num_stages: int = 3
    width: int = 50
    depth: int = 2
    transformer: AbstractBijection = eqx.field(default_factory=affine)
    mixing: Mixing = eqx.field(static=True, default=learnt_linear)
    normalise: bool = False
    closing_affine: bool = False
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jax.nn.tanh)
    initial_scale: float = 0.1

    def __check_init__(self):
        _check_stack(self)

    def __call__(self, key: Key, dim: int) -> AbstractDistribution:
        """Build the flow; ``dim = 1`` gives unconditional elementwise maps."""
        if dim < 2:
            return Elementwise(self.num_stages, self.transformer, self.closing_affine)(key, dim)

        def conditional(key: Key) -> AbstractBijection:
            bijection = MaskedAutoregressiveBijection(
                key,
                transformer=self.transformer,
                dim=dim,
                nn_width=max(self.width, dim),
                nn_depth=self.depth,
                nn_activation=self.activation,
            )
            return _shrink(bijection, _last_masked_layer, self.initial_scale)

        return _stack(key, dim, self.num_stages, conditional, self.mixing, self.normalise, self.closing_affine)


class Elementwise(eqx.Module):
    """Independent monotone maps of the coordinates between trainable affine maps: the flow for one parameter.

    Attributes:
        num_stages: Elementwise stages.
        transformer: Scalar bijection of each coordinate and stage.
        closing_affine: End with a trainable triangular affine map.
    """

    num_stages: int = 2
    transformer: AbstractBijection = eqx.field(default_factory=spline)
    closing_affine: bool = False

    def __check_init__(self):
        check_count("num_stages", self.num_stages)
        check_bool(closing_affine=self.closing_affine)
        _check_transformer(self.transformer)

    def __call__(self, key: Key, dim: int) -> AbstractDistribution:
        """Build the flow for any ``dim >= 1``."""
        arrays, static = eqx.partition(self.transformer, eqx.is_inexact_array)
        copies = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (dim, *leaf.shape)), arrays)

        def conditional(key: Key) -> AbstractBijection:
            return Vmap(eqx.combine(copies, static), in_axes=eqx.if_array(0))

        return _stack(key, dim, self.num_stages, conditional, _no_mixing, True, self.closing_affine)


def default(key: Key, dim: int) -> AbstractDistribution:
    """The flow `fit` uses, which it follows by a monotone map of each parameter; measured by ``benchmarks/strangers.py``."""
    return Elementwise()(key, dim) if dim == 1 else Coupling(transformer=bent())(key, dim)


def with_mixture_base(
    flow: AbstractDistribution, centres: Float[Array, "K D"], spreads: Float[Array, "K D"], shares: Float[Array, " K"]
) -> AbstractDistribution:
    """Replace a flow's base by a trainable mixture of normals, so that separate modes need no bridge between them.

    Each normal is trained in units of the spread that it begins with, around where it begins.

    Args:
        flow: A flowjax ``Transformed``.
        centres: Means of the components.
        spreads: Standard deviations of the components, positive.
        shares: Weights of the components, positive.

    Raises:
        ValueError: If the flow is not ``Transformed``.
    """
    if not isinstance(flow, Transformed):
        raise ValueError(f"Expected a Transformed flow, whose base can be replaced; got {type(flow).__name__}.")
    components = eqx.filter_vmap(normal_in_own_units)(centres, spreads)
    return Transformed(VmapMixture(components, shares), flow.merge_transforms().bijection)


def with_affine(flow: AbstractDistribution, loc: Float[Array, " D"], cholesky: Float[Array, "D D"]) -> Transformed:
    """Follow a flow by the trainable map ``x -> loc + cholesky x``: it then starts at this mean and covariance."""
    return Transformed(flow, Triangular(loc, cholesky, lower=True))


def mixture(members: Sequence[AbstractDistribution], shares: Float[ArrayLike, " K"]) -> VmapMixture:
    """A mixture of flows that one builder built.

    Args:
        members: Flows of equal structure, such as ``result.restarts.flows``.
        shares: Positive, one for each member; normalised here.

    Raises:
        ValueError: If there is no member, or their numbers or structures differ.
    """
    if wrong := [flow for flow in members if not isinstance(flow, AbstractDistribution)]:
        raise TypeError(f"Expected flowjax distributions, such as result.flow; got {wrong[0]!r}.")
    parts = [eqx.partition(flow, eqx.is_array) for flow in members]
    weights = np.asarray(shares, float)
    if weights.ndim == 1 and not (np.all(weights > 0) and np.all(np.isfinite(weights))):
        raise ValueError(f"Expected positive finite shares; got {shares}. Leave out the flows that have none.")
    if not parts or weights.shape != (len(parts),):
        raise ValueError(
            f"Expected one share for each flow, and at least one; got {len(parts)} flows, shares {shares}."
        )
    if len({jax.tree.structure(arrays) for arrays, _ in parts}) > 1:
        raise ValueError("Expected flows of one builder; got flows of different structures.")
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))
    return VmapMixture(eqx.combine(stacked, parts[0][1]), jnp.asarray(shares, float))


def _stack(
    key: Key,
    dim: int,
    num_stages: int,
    conditional: Callable[[Key], AbstractBijection],
    mixing: Mixing,
    normalise: bool,
    closing_affine: bool,
) -> AbstractDistribution:
    def stage(key: Key) -> AbstractBijection:
        conditional_key, mixing_key = jr.split(key)
        norm = [Affine(jnp.zeros(dim), jnp.ones(dim))] if normalise else []
        return Chain([conditional(conditional_key), *norm, mixing(mixing_key, dim)])

    stages = Scan(eqx.filter_vmap(stage)(jr.split(key, num_stages)))
    closing = [Triangular(jnp.zeros(dim), jnp.eye(dim), lower=True)] if closing_affine else []
    base = StandardNormal((dim,))  # type: ignore[call-arg]  # As in flip.
    return Transformed(base, Chain([stages, *closing]))


def _no_mixing(key: Key, dim: int) -> AbstractBijection:
    return Affine(jnp.zeros(dim), jnp.ones(dim))


def _shrink(bijection: AbstractBijection, layer: Callable, factor: float) -> AbstractBijection:
    return eqx.tree_at(
        layer,
        bijection,
        replace_fn=lambda found: jax.tree.map(lambda x: x * factor if eqx.is_inexact_array(x) else x, found),
    )


def _last_masked_layer(bijection: MaskedAutoregressiveBijection) -> PyTree:
    return bijection.masked_autoregressive_mlp.layers[-1]


def _bend(loc: float) -> SinhArcsinh:
    zero = jnp.zeros(())
    bend = SinhArcsinh(loc=jnp.asarray(loc / SLOWNESS), log_width=zero, bend=zero, shape=())  # type: ignore[call-arg]
    return jax.tree.map(lambda leaf: paramax.Parameterize(_slowly, leaf), bend)


def _slowly(x: Array) -> Array:
    return SLOWNESS * x


def _inverse_softplus(x: float) -> Array:
    return jnp.log(jnp.expm1(jnp.asarray(x, float)))


def _check_stack(flow: "Coupling | MaskedAutoregressive") -> None:
    for name in ("num_stages", "width", "depth"):
        check_count(name, getattr(flow, name))
    check_bool(normalise=flow.normalise, closing_affine=flow.closing_affine)
    for name in ("mixing", "activation"):
        if not callable(getattr(flow, name)):
            raise TypeError(
                f"Expected {name} to be a function, such as flows.flip or jnp.tanh; got {getattr(flow, name)!r}."
            )
    if not 0 <= as_number(flow.initial_scale) < math.inf:
        raise ValueError(f"Expected initial_scale >= 0 and finite; got {flow.initial_scale!r}.")
    _check_transformer(flow.transformer)


def _check_transformer(transformer: AbstractBijection) -> None:
    check_instance(
        "transformer", transformer, AbstractBijection, "a bijection, such as flows.affine() or flows.spline()"
    )
