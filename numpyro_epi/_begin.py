"""A new flow, moved to where a start says."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
import scipy.special
from flowjax.bijections import AbstractBijection, Affine, Chain, Scan
from flowjax.distributions import AbstractDistribution, Transformed
from jaxtyping import Bool, Float, PyTree
from scipy.cluster.vq import kmeans2

from . import _optimizer, flows, starts
from ._loop import combine, partition, share_programs
from ._marginals import fitted, straight
from ._products import compiled
from ._types import Draws, Key, PerDraw, Scalar
from .objectives import mean_log_density

COMPONENTS, MIN_DRAWS_PER_COMPONENT = (1, 2, 4, 8, 16), 100
"""Components that a base may have, and the fewest draws that one must stand on."""

MOST_STEPS, MOST_PASSES, LIKELIHOOD_DRAWS, LIKELIHOOD_RATE, RISING_PART = 4000, 110, 500, 1e-2, 5
"""Most steps that fit a flow to a start's draws, which chains' 20,000 get, most times that each draw is seen, draws in each step,
the largest learning rate, and the part of the steps, one in so many, in which it rises: no simulation is needed. With a thousand
steps at 2e-3, guides of two tubes in four dimensions ended with .08 to .09 nats of forward KL, and the loop could not bring them
nearer than .03 to .3; with these, at .02, and the loop at .02 too. Without the rise a base of normals that was right from the
beginning was lost. Few draws are learnt by heart within as many steps: 200 of a normal, seen 11,000 times, lost .2 to 30 nats on
others, which twenty held-out ones did not show. Seen 110 times, none of 60 sets of 200 to 8000 draws from normals, bananas and
blobs lost more than .02."""

LOOKS, HELD_OUT, ENOUGH_HELD, MOST_ADJACENT = 10, (3, 10), 100, 50
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
    """The outline with which the draws that are held out are likeliest.

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
    likelihoods = [_likelihood_of_held_out(white, n, is_held) for n in counts]
    if plain.marginals is not None:
        standardised = jnp.asarray((draws - plain.loc) / plain.scale, float)
        bent = plain._replace(marginals=fitted(plain.marginals, standardised[~is_held]))
        found.append(bent)
        likelihoods.append(_likelihood_of_held_out(bent.whitened(draws), 1, is_held))
    return found[int(np.argmax(np.nan_to_num(likelihoods, nan=-np.inf)))]


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
        inner = flows.with_mixture_base(inner, *(jnp.asarray(part, float) for part in clusters))
    moved: AbstractDistribution = _outermost(inner, found, white.loc, white.cholesky)
    if not begin.fit_draws or is_fitted:
        return moved
    return _fit_draws(fit_key, moved, begin.draws)


def _outermost(
    inner: AbstractDistribution, found: Outline, loc: Float[np.ndarray, " D"], cholesky: Float[np.ndarray, "D D"]
) -> Transformed:
    """Mean and covariance, the map of each marginal, and the scales, which are not trained."""
    white = flows.with_affine(inner, jnp.asarray(loc, float), jnp.asarray(cholesky, float))
    scales = eqx.tree_at(
        lambda affine: (affine.loc, affine.scale),
        Affine(jnp.asarray(found.loc, float), jnp.asarray(found.scale, float)),
        replace_fn=paramax.NonTrainable,
        is_leaf=lambda leaf: isinstance(leaf, paramax.AbstractUnwrappable),
    )
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
    spreads = np.array([draws[labels == i].std(axis=0) + 1e-3 for i in index])
    return centres[index], spreads, sizes[index]


def _likelihood_of_held_out(white: _Whitened, components: int, is_held: Bool[np.ndarray, " N"]) -> float:
    """Mean log density of draws that are held out, nats, less what all outlines have in common."""
    dim = white.draws.shape[1]
    normals = (np.zeros((1, dim)), np.ones((1, dim)), np.ones(1))
    if components > 1:
        normals = _clusters(white.draws[~is_held], components)
    return _likelihood(white.draws[is_held], *normals) + float(np.mean(white.log_det[is_held]))


def _likelihood(draws: np.ndarray, centres: np.ndarray, spreads: np.ndarray, shares: np.ndarray) -> float:
    """Mean log density, nats, of a mixture of normals, less what all mixtures have in common."""
    away = (draws[:, None] - centres) / spreads
    heights = np.log(shares / shares.sum()) - np.log(spreads).sum(axis=1) - 0.5 * np.square(away).sum(axis=2)
    return float(np.mean(scipy.special.logsumexp(heights, axis=1)))


@compiled
def _fit_draws(key: Key, flow: AbstractDistribution, draws: Draws) -> AbstractDistribution:
    """Maximum likelihood, which is the least forward KL; of the looks at held-out draws the likeliest."""
    parameters, static = partition(flow)
    is_held = _held_out(len(draws))
    train, held = draws[~is_held], draws[is_held]
    per_look = max(1, min(MOST_STEPS, MOST_PASSES * len(train) // LIKELIHOOD_DRAWS) // LOOKS)
    num_steps = LOOKS * per_look
    optimizer = _optimizer.default(num_steps, LIKELIHOOD_RATE, num_steps // RISING_PART)

    def step(carry: tuple[PyTree, PyTree], key: Key) -> tuple[tuple[PyTree, PyTree], None]:
        parameters, state = carry
        gradient = jax.grad(lambda p: -mean_log_density(key, combine(p, static), train, LIKELIHOOD_DRAWS))(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    def look(
        carry: tuple[PyTree, PyTree, PyTree, Scalar], keys: Key
    ) -> tuple[tuple[PyTree, PyTree, PyTree, Scalar], None]:
        parameters, state, best, most = carry
        (parameters, state), _ = jax.lax.scan(step, (parameters, state), keys)
        likelihood = jnp.mean(combine(parameters, static).log_prob(held))
        is_best = likelihood > most
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), parameters, best)
        return (parameters, state, best, jnp.where(is_best, likelihood, most)), None

    keys = jax.random.split(key, (LOOKS, per_look))
    at_first = jnp.mean(combine(parameters, static).log_prob(held))
    begin = (parameters, optimizer.init(parameters), parameters, jnp.nan_to_num(at_first, nan=-jnp.inf))
    (_, _, best, _), _ = jax.lax.scan(look, begin, keys)
    return combine(best, static)


def _held_out(count: int) -> Bool[np.ndarray, " N"]:
    """Which of so many draws judge a fit to the others: rows of adjacent ones, evenly spaced."""
    every = int(np.clip(count // ENOUGH_HELD, *HELD_OUT))
    adjacent = min(MOST_ADJACENT, max(1, count // (4 * every)))
    return (np.arange(count) // adjacent) % every == every // 2
