"""A new flow, moved to where a start says."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
import scipy.special
from flowjax.bijections import AbstractBijection, Chain, Scan
from flowjax.distributions import AbstractDistribution, Normal, Transformed
from jaxtyping import Array, Bool, Float, PyTree
from scipy.cluster.vq import kmeans2

from . import _optimizer, flows, starts
from ._loop import combine, partition, share_programs
from ._marginals import fitted, straight
from ._products import compiled
from ._types import Draws, Key, PerDraw, Scalar
from .objectives import mean_log_density

COMPONENTS, MIN_DRAWS_PER_COMPONENT = (1, 2, 4, 8, 16), 100
"""Components that a base may have, and the fewest draws that one must stand on."""

SURELY = 2.0
"""Standard errors by which an outline's held-out draws must be likelier than a simpler one's."""

EXPECTATIONS, LEAST_SPREAD = 30, 1e-5
"""Steps that make a base's normals the likeliest ones, from clusters: on four needles in four dimensions, .05 nats. And the least
spread of one, in standard deviations of all draws: at 1e-3, seven needles as thin and thinner in one dimension lost .35 nats."""

MOST_STEPS, MOST_PASSES, LIKELIHOOD_DRAWS, LIKELIHOOD_RATE, RISING_PART = 4000, 110, 500, 1e-2, 5
"""Most steps that fit a flow to a start's draws, which chains' 20,000 get, most times that each draw is seen, draws in each step,
the largest learning rate, and the part of the steps, one in so many, in which it rises: no simulation is needed. With a thousand
steps at 2e-3, guides of two tubes in four dimensions ended with .08 to .09 nats of forward KL, and the loop could not bring them
nearer than .03 to .3; with these, at .02, and the loop at .02 too. Without the rise a base of normals that was right from the
beginning was lost. Few draws are learnt by heart within as many steps: 200 of a normal, seen 11,000 times, lost .2 to 30 nats on
others, which twenty held-out ones did not show. Seen 110 times, none of 60 sets of 200 to 8000 draws from normals, bananas and
blobs lost more than .02."""

LIKELIHOOD_MEMORY_PART = 40
"""Parameters are averaged over one in so many of the fit's steps: at the largest rate their likelihood varies by nats where the
draws are in a thin tube. With it, and twice as many looks, the forward KL of a shell in four dimensions fell from .095 to .067
nats, of a product of eleven densities from .058 to .027, of two tubes from .42 and .16 to .37 and .13."""

LOOKS, HELD_OUT, ENOUGH_HELD, MOST_ADJACENT = 20, (3, 10), 100, 50
"""Times that the fit is judged by draws that are held out; of how many one is, at most and at least, so that they are enough; and
most of them in a row: neighbours are draws of one chain, or one draw many times."""


class Outline(NamedTuple):
    """What a new flow is made of, from a start's draws.

    Attributes:
        loc: Means of the draws, shape [D].
        scale: Their standard deviations, shape [D]. These two are the last map of every flow and are not trained: all before it
            is in standardised coordinates, so that the optimiser's steps suit every scale.
        marginals: Map of each standardised coordinate; ``None`` where the user chose the flow.
        components: Number of normals in the flow's base: the one with which the draws are likeliest, one where they are not
            fitted.
    """

    loc: Float[np.ndarray, " D"]
    scale: Float[np.ndarray, " D"]
    marginals: Scan | None
    components: int

    def whitened(self, draws: Float[np.ndarray, "N D"]) -> "_Whitened":
        """The draws standardised, taken back through the maps of the marginals, and whitened."""
        draws = (draws - self.loc) / self.scale
        log_det = np.zeros(len(draws))
        if self.marginals is not None:
            draws, log_det = _inverse(self.marginals, draws)
        loc, cholesky = _moments(draws)
        white = np.linalg.solve(cholesky, (draws - loc).T).T
        return _Whitened(white, loc, cholesky, log_det - np.log(np.diag(cholesky)).sum())


class _Whitened(NamedTuple):
    """Draws of zero mean and unit covariance, the map to the ones before, and the log determinant of all maps to them."""

    draws: Float[np.ndarray, "N D"]
    loc: Float[np.ndarray, " D"]
    cholesky: Float[np.ndarray, "D D"]
    log_det: Float[np.ndarray, " N"]


def outline(builder: flows.FlowBuilder, begin: starts.Start) -> Outline:
    """The simplest outline with which the draws that are held out are about as likely as with any.

    Either the marginals are fitted, with one normal, or several normals are, with straight marginals: fitted maps stretch the
    gaps between modes, and then k-means no longer tells the modes apart. More normals than the draws need do harm: in many
    dimensions, one blob that 16 normals share is further from a normal than a flow bends back.
    """
    draws = np.asarray(begin.draws, float)
    spread = draws.std(axis=0)
    dim = draws.shape[1]
    plain = Outline(
        loc=draws.mean(axis=0),
        # Draws that are all the same have none.
        scale=np.where(spread > 0, spread, 1.0),
        marginals=straight(dim) if builder is flows.default else None,
        components=1,
    )
    if not begin.fit_draws:
        return plain
    is_held = _held_out(len(draws))
    counts = [n for n in COMPONENTS if n == 1 or n * MIN_DRAWS_PER_COMPONENT <= len(draws)]
    found, white = [plain._replace(components=n) for n in counts], plain.whitened(draws)
    log_densities = [_log_density_of_held_out(white, n, is_held) for n in counts]
    if plain.marginals is not None:
        standardised = jnp.asarray((draws - plain.loc) / plain.scale, float)
        bent = plain._replace(marginals=fitted(plain.marginals, standardised[~is_held]))
        found.append(bent)
        log_densities.append(_log_density_of_held_out(bent.whitened(draws), 1, is_held))
    return found[_simplest(np.nan_to_num(log_densities, nan=-np.inf))]


def build_flow(key: Key, builder: flows.FlowBuilder, dim: int, components: int) -> Transformed:
    """A flow of the shape that `fit` trains, before it is moved anywhere.

    Raises:
        TypeError: If the builder returns something else than a flowjax distribution.
        ValueError: If that is not of shape ``(dim,)``.
    """
    built = _built(key, builder, dim)
    marginals = straight(dim) if builder is flows.default else None
    if components > 1 and isinstance(built, Transformed):
        ones = jnp.ones((components, dim))
        built = flows.with_mixture_base(built, 0 * ones, ones, jnp.ones(components))
    return _outermost(built, Outline(np.zeros(dim), np.ones(dim), marginals, components), np.zeros(dim), np.eye(dim))


def _built(key: Key, builder: flows.FlowBuilder, dim: int) -> AbstractDistribution:
    built = builder(key, dim)
    if not isinstance(built, AbstractDistribution):
        raise TypeError(f"Expected flow(key, dim) to return a flowjax distribution; got {type(built).__name__}.")
    if built.shape != (dim,) or built.cond_shape is not None:
        raise ValueError(
            f"Expected an unconditional flow of shape {(dim,)}; got shape {built.shape}, condition {built.cond_shape}. "
            f"Build it with dim={dim}."
        )
    return built


def begin_flow(
    key: Key,
    builder: flows.FlowBuilder,
    begin: starts.Start,
    found: Outline,
    *,
    is_fitted: bool = False,
    static: PyTree = None,
) -> AbstractDistribution:
    """Move a new flow to the start's draws; where it ``is_fitted`` elsewhere, its fixed arrays alone will be used.

    With ``static``, the fixed arrays of an earlier flow by the same builder, it differs from that in its trainable ones.
    """
    build_key, fit_key = jax.random.split(key)
    whole: Any = build_flow(build_key, builder, len(found.loc), found.components)
    if static is not None:
        whole = combine(partition(whole)[0], static)
    inner = whole.base_dist.base_dist
    white = found.whitened(np.asarray(begin.draws, float))
    if found.components > 1 and isinstance(inner, Transformed):
        # Where the flow has them before it is trained: it permutes coordinates, by fixed arrays, and is only near the identity.
        draws, _ = _inverse(inner.bijection, white.draws)
        clusters = _clusters(draws[np.all(np.isfinite(draws), axis=1)], found.components)
        inner = _with_clusters(inner, *(jnp.asarray(part, float) for part in clusters), keep_units=static is not None)
    moved: AbstractDistribution = _outermost(inner, found, white.loc, white.cholesky)
    if not begin.fit_draws or is_fitted:
        return moved
    return _fit_draws(fit_key, moved, begin.draws)


def _with_clusters(
    inner: Transformed,
    centres: Float[Array, "K D"],
    spreads: Float[Array, "K D"],
    shares: Float[Array, " K"],
    *,
    keep_units: bool,
) -> AbstractDistribution:
    """Base normals at the clusters; with ``keep_units``, in those of the flow's own, which are fixed arrays of all attempts."""
    placed = flows.with_mixture_base(inner, centres, spreads, shares)
    if not keep_units:
        return placed
    mixture: Any = inner.base_dist
    fixed = mixture.dist.bijection
    units = paramax.unwrap(fixed)
    normals = eqx.filter_vmap(Normal)((centres - units.loc) / units.scale, spreads / units.scale)
    return eqx.tree_at(
        lambda flow: (flow.base_dist.dist.base_dist, flow.base_dist.dist.bijection), placed, (normals, fixed)
    )


def _outermost(
    inner: AbstractDistribution, found: Outline, loc: Float[np.ndarray, " D"], cholesky: Float[np.ndarray, "D D"]
) -> Transformed:
    """Mean and covariance, the map of each marginal, and the scales, which are not trained."""
    white = flows.with_affine(inner, jnp.asarray(loc, float), jnp.asarray(cholesky, float))
    scales = flows.fixed_affine(jnp.asarray(found.loc, float), jnp.asarray(found.scale, float))
    return share_programs(Transformed(white, Chain([*([found.marginals] if found.marginals else []), scales])))


@compiled
def _inverse_of_all(bijection: AbstractBijection, draws: Draws) -> tuple[Draws, PerDraw]:
    return jax.vmap(bijection.inverse_and_log_det)(draws)


def _inverse(bijection: AbstractBijection, draws: Float[np.ndarray, "N D"]) -> tuple[np.ndarray, np.ndarray]:
    before, log_det = _inverse_of_all(bijection, jnp.asarray(draws, float))
    return np.asarray(before, float), np.asarray(log_det, float)


def _moments(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and Cholesky factor of the covariance."""
    covariance = np.atleast_2d(np.cov(draws.T))
    # Relative: scales may be a millionth. Draws that are all the same have none.
    ridge = 1e-9 * np.where(np.diag(covariance) > 0, np.diag(covariance), 1.0)
    return draws.mean(axis=0), np.linalg.cholesky(covariance + np.diag(ridge))


def _clusters(draws: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, spreads and shares of clusters of the draws: each separate mode gets some of its own."""
    centres, labels = kmeans2(draws, count, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=count)
    # A cluster of one draw has no spread: the largest stands in, so that the number is known before the draws are.
    index = np.where(sizes > 1, np.arange(count), np.argmax(sizes))
    spreads = np.array([draws[labels == i].std(axis=0) + LEAST_SPREAD for i in index])
    return _refined(draws, centres[index], spreads, sizes[index])


def _refined(
    draws: np.ndarray, centres: np.ndarray, spreads: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The likeliest mixture of normals near these clusters, by expectation maximisation."""
    for _ in range(EXPECTATIONS):
        heights = _heights(draws, centres, spreads, shares)
        belongs = np.exp(heights - scipy.special.logsumexp(heights, axis=1, keepdims=True))
        sizes = belongs.sum(axis=0) + 1e-6
        centres = belongs.T @ draws / sizes[:, None]
        squares = belongs.T @ np.square(draws) / sizes[:, None] - np.square(centres)
        spreads = np.sqrt(np.maximum(squares, 0.0)) + LEAST_SPREAD
        shares = sizes
    return centres, spreads, shares


def _log_density_of_held_out(white: _Whitened, components: int, is_held: Bool[np.ndarray, " N"]) -> np.ndarray:
    """Of each draw that is held out, nats, less what all outlines have in common."""
    dim = white.draws.shape[1]
    normals = (np.zeros((1, dim)), np.ones((1, dim)), np.ones(1))
    if components > 1:
        normals = _clusters(white.draws[~is_held], components)
    return scipy.special.logsumexp(_heights(white.draws[is_held], *normals), axis=1) + white.log_det[is_held]


def _simplest(log_densities: np.ndarray) -> int:
    """The first outline than which none is likelier by more than two standard errors of the difference."""
    best = log_densities[int(np.argmax(log_densities.mean(axis=1)))]
    with np.errstate(invalid="ignore"):
        short = best - log_densities
        error = short.std(axis=1) / np.sqrt(short.shape[1])
        return int(np.argmax(short.mean(axis=1) <= SURELY * error))


def _heights(draws: np.ndarray, centres: np.ndarray, spreads: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Log density of each normal at each draw, with its share, [N, K]."""
    away = (draws[:, None] - centres) / spreads
    return np.log(shares / shares.sum()) - np.log(spreads).sum(axis=1) - 0.5 * np.square(away).sum(axis=2)


class _Fitted(NamedTuple):
    """Trainable arrays in a likelihood fit: now, averaged over the last steps, and of the likeliest average so far."""

    parameters: PyTree
    optimizer_state: PyTree
    averaged: PyTree
    best: PyTree
    likelihood: Scalar


@compiled
def _fit_draws(key: Key, flow: AbstractDistribution, draws: Draws) -> AbstractDistribution:
    """Maximum likelihood, which is the least forward KL; of the looks at held-out draws the likeliest."""
    parameters, static = partition(flow)
    is_held = _held_out(len(draws))
    train, held = draws[~is_held], draws[is_held]
    per_look = max(1, min(MOST_STEPS, MOST_PASSES * len(train) // LIKELIHOOD_DRAWS) // LOOKS)
    num_steps = LOOKS * per_look
    optimizer = _optimizer.default(num_steps, LIKELIHOOD_RATE, num_steps // RISING_PART)
    share = 1.0 / max(1, num_steps // LIKELIHOOD_MEMORY_PART)

    def likelihood(parameters: PyTree) -> Scalar:
        return jnp.mean(combine(parameters, static).log_prob(held))

    def step(fitted: _Fitted, key: Key) -> tuple[_Fitted, None]:
        gradient = jax.grad(lambda p: -mean_log_density(key, combine(p, static), train, LIKELIHOOD_DRAWS))(
            fitted.parameters
        )
        updates, state = optimizer.update(gradient, fitted.optimizer_state, fitted.parameters)
        parameters = optax.apply_updates(fitted.parameters, updates)
        averaged = optax.incremental_update(parameters, fitted.averaged, share)
        return fitted._replace(parameters=parameters, optimizer_state=state, averaged=averaged), None

    def look(fitted: _Fitted, keys: Key) -> tuple[_Fitted, None]:
        fitted, _ = jax.lax.scan(step, fitted, keys)
        found = likelihood(fitted.averaged)
        is_best = found > fitted.likelihood
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), fitted.averaged, fitted.best)
        return fitted._replace(best=best, likelihood=jnp.where(is_best, found, fitted.likelihood)), None

    at_first = jnp.nan_to_num(likelihood(parameters), nan=-jnp.inf)
    begin = _Fitted(parameters, optimizer.init(parameters), parameters, parameters, at_first)
    fitted, _ = jax.lax.scan(look, begin, jax.random.split(key, (LOOKS, per_look)))
    return combine(fitted.best, static)


def _held_out(count: int) -> Bool[np.ndarray, " N"]:
    """Which of so many draws judge a fit to the others: rows of adjacent ones, evenly spaced."""
    every = int(np.clip(count // ENOUGH_HELD, *HELD_OUT))
    adjacent = min(MOST_ADJACENT, max(1, count // (4 * every)))
    return (np.arange(count) // adjacent) % every == every // 2
