"""A new flow, moved to where a start says."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import paramax
from flowjax.bijections import AbstractBijection, Affine, Chain, Scan
from flowjax.distributions import AbstractDistribution, Transformed
from jaxtyping import Array, Bool, Float, PyTree

from . import _normals, _optimizer, flows, starts
from ._loop import combine, partition, share_programs
from ._marginals import fitted, straight
from ._products import compiled
from ._types import Draws, Key, PerDraw, Scalar

COMPONENTS, MIN_DRAWS_PER_COMPONENT = (1, 2, 4, 8, 16), 100
"""Components that a base may have, and the fewest different draws that one must stand on."""

STANDARD_ERRORS, BATCHES, NORMAL_PART = 2.0, 20, 1.4826
"""By which an outline's held-out draws must be likelier than a simpler one's, of how many rows the means show them, and
the standard deviation of a normal distribution over its median absolute deviation."""

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

MOST_LOG_WEIGHT, MOST_LOG_RATIO, MOST_PASSES_WEIGHED = 2.0, 10.0, 500
"""Where proposals are known: largest log of the flow's density over theirs that a draw counts with, nats; log of it over the
solution's from which on the divergence grows slowly; and most times that a draw is seen. After the likelihood fit to 4000 draws
weighed for the STG a flow was .062 nats away, with the divergence .021; with that alone .018, but 8 nats for a shell in four
dimensions, by mass where no draws were."""

FOLLOWED = 0.005
"""Divergence, nats, of a flow from the draws' density, down to which it is fitted: a tenth of the default ``max_gap``."""

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
        components: Number of normals in the flow's base; one where the draws are not fitted.
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
    if np.sum(is_held) < 2:
        return plain
    white = plain.whitened(draws)
    outlines = [(plain, white)]
    if plain.marginals is not None:
        standardised = jnp.asarray((draws - plain.loc) / plain.scale, float)
        bent = plain._replace(marginals=fitted(plain.marginals, standardised[~is_held]))
        outlines.append((bent, bent.whitened(draws)))
    most = len(np.unique(draws, axis=0)) // MIN_DRAWS_PER_COMPONENT
    numbers = [number for number in COMPONENTS if 1 < number <= most]
    outlines += [(plain._replace(components=number), white) for number in numbers]
    likelihoods = [_log_density_of_held_out(each, found.components, is_held) for found, each in outlines]
    return outlines[_simplest(np.array(likelihoods))][0]


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
        draws, _ = _inverse(inner.bijection, white.draws[~_held_out(len(white.draws))])
        normals = _normals.fitted(draws[np.all(np.isfinite(draws), axis=1)], found.components)
        inner = flows.with_mixture_base(inner, *(jnp.asarray(part, float) for part in normals))
    moved: AbstractDistribution = _outermost(inner, found, white.loc, white.cholesky)
    if not begin.fit_draws or is_fitted:
        return moved
    if begin.proposed is not None:
        return _fit_draws(fit_key, moved, *begin.proposed, ess=begin.ess)
    return _fit_draws(fit_key, moved, begin.draws, begin.log_density, None, ess=begin.ess)


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


def _log_density_of_held_out(white: _Whitened, components: int, is_held: Bool[np.ndarray, " N"]) -> np.ndarray:
    """Of each draw that is held out, nats, less what all outlines have in common."""
    held = white.draws[is_held]
    if components == 1:
        return white.log_det[is_held] - 0.5 * np.square(held).sum(axis=1)
    return white.log_det[is_held] + _normals.fitted(white.draws[~is_held], components).log_density(held)


def _simplest(log_densities: Float[np.ndarray, "outlines N"]) -> int:
    """The first outline that the likeliest one does not beat by more than its standard errors."""
    # Neighbours are draws of one chain, or one draw many times: the errors are those of means of rows.
    rows = np.array_split(log_densities, min(BATCHES, log_densities.shape[1]), axis=1)
    means = np.array([row.mean(axis=1) for row in rows])
    usable = np.all(np.isfinite(means), axis=0)
    if not np.any(usable):
        return 0
    best = np.argmax(np.where(usable, means.mean(axis=0), -np.inf))
    with np.errstate(invalid="ignore"):
        short = means[:, [best]] - means
        # The spread of most rows: one in which the simpler outline misses a rare mode altogether is not noise.
        spread = NORMAL_PART * np.median(np.abs(short - np.median(short, axis=0)), axis=0)
        error = spread / np.sqrt(len(rows))
        return int(np.argmax(usable & (short.mean(axis=0) <= STANDARD_ERRORS * error)))


class _Fitted(NamedTuple):
    """Trainable arrays in a likelihood fit: now, averaged over the last steps, and of the likeliest average so far."""

    parameters: PyTree
    optimizer_state: PyTree
    averaged: PyTree
    best: PyTree
    likelihood: Scalar
    looks: Scalar
    is_followed: Bool[Array, ""]


class _Rows(NamedTuple):
    """Draws that a flow is fitted to, and log densities there: the solution's, and that which they were proposed from."""

    draws: Draws
    log_density: PerDraw | None
    log_proposal: PerDraw | None

    def at(self, rows: Array | np.ndarray) -> "_Rows":
        return jax.tree.map(lambda part: part[rows], self)


def _loss(flow: AbstractDistribution, rows: _Rows) -> tuple[Scalar, Scalar]:
    """The loss, nats: less the likelihood, plus the symmetric divergence where proposals are known; and that divergence.

    Each draw's part of it (Jeffreys 1946, Proc. R. Soc. A 186:453), ``(q - p) log(q / p) / g``, is never negative, and zero where
    the flow is right: near the solution it hardly varies, while a likelihood does, and draws next to the property that do
    not have it count too. Mass of the flow where no draws are costs nothing by it, but it costs likelihood.
    """
    log_q = flow.log_prob(rows.draws)
    if rows.log_proposal is None or rows.log_density is None:
        return -jnp.mean(log_q), jnp.full((), jnp.inf, float)
    log_q = jnp.maximum(log_q, starts.LEAST_LOG_DENSITY)
    ratio, log_weight = log_q - rows.log_density, rows.log_density - rows.log_proposal
    most = jnp.maximum(log_weight, MOST_LOG_WEIGHT)
    weight, of_flow = jnp.exp(log_weight), jnp.exp(jnp.minimum(log_q - rows.log_proposal, most))
    beyond = jnp.maximum(jnp.abs(ratio) - MOST_LOG_RATIO, 0.0)
    slowed = jnp.clip(ratio, -MOST_LOG_RATIO, MOST_LOG_RATIO) + jnp.sign(ratio) * jnp.log1p(beyond)
    divergence = jnp.mean((of_flow - weight) * slowed)
    return divergence - jnp.mean(weight * log_q), divergence


@compiled
def _fit_draws(
    key: Key,
    flow: AbstractDistribution,
    draws: Draws,
    log_density: PerDraw | None,
    log_proposal: PerDraw | None,
    ess: float | None,
) -> AbstractDistribution:
    """The least `_loss`: a forward KL, by maximum likelihood, and the divergence; of the looks at held-out draws the best.

    It ends where the flow follows the draws' own ``log_density``, of any normaliser where no proposals are known.
    """
    parameters, static = partition(flow)
    is_held = _held_out(len(draws))
    train, held = (_Rows(draws, log_density, log_proposal).at(rows) for rows in (~is_held, is_held))
    passes = MOST_PASSES if log_proposal is None else MOST_PASSES_WEIGHED
    num_seen = len(train.draws) if ess is None else min(len(train.draws), int(ess))
    per_look = max(1, min(MOST_STEPS, passes * num_seen // LIKELIHOOD_DRAWS) // LOOKS)
    num_steps = LOOKS * per_look
    optimizer = _optimizer.default(num_steps, LIKELIHOOD_RATE, num_steps // RISING_PART)
    share = 1.0 / max(1, num_steps // LIKELIHOOD_MEMORY_PART)
    keys = jax.random.split(key, (LOOKS, per_look))

    def looked(parameters: PyTree) -> tuple[Scalar, Bool[Array, ""]]:
        flow = combine(parameters, static)
        loss, divergence = _loss(flow, held)
        if log_density is None or log_proposal is not None:
            return -loss, divergence <= 2 * FOLLOWED
        # Half the variance of a log ratio is the divergence where it is small, whatever the normaliser.
        return -loss, 0.5 * jnp.var(log_density - flow.log_prob(draws)) <= FOLLOWED

    def step(fitted: _Fitted, key: Key) -> tuple[_Fitted, None]:
        picked = train.at(jax.random.randint(key, (LIKELIHOOD_DRAWS,), 0, len(train.draws)))
        gradient = jax.grad(lambda p: _loss(combine(p, static), picked)[0])(fitted.parameters)
        updates, state = optimizer.update(gradient, fitted.optimizer_state, fitted.parameters)
        parameters = optax.apply_updates(fitted.parameters, updates)
        averaged = optax.incremental_update(parameters, fitted.averaged, share)
        return fitted._replace(parameters=parameters, optimizer_state=state, averaged=averaged), None

    def look(fitted: _Fitted) -> _Fitted:
        fitted, _ = jax.lax.scan(step, fitted, keys[fitted.looks])
        found, is_followed = looked(fitted.averaged)
        is_best = is_followed | (found > fitted.likelihood)
        best = jax.tree.map(lambda new, old: jnp.where(is_best, new, old), fitted.averaged, fitted.best)
        likelihood = jnp.where(is_best, found, fitted.likelihood)
        return fitted._replace(best=best, likelihood=likelihood, looks=fitted.looks + 1, is_followed=is_followed)

    at_first, is_followed = looked(parameters)
    begin = _Fitted(
        parameters,
        optimizer.init(parameters),
        averaged=parameters,
        best=parameters,
        likelihood=jnp.nan_to_num(at_first, nan=-jnp.inf),
        looks=jnp.zeros((), int),
        is_followed=is_followed,
    )
    fitted = jax.lax.while_loop(lambda f: (f.looks < LOOKS) & ~f.is_followed, look, begin)
    return combine(fitted.best, static)


def _held_out(count: int) -> Bool[np.ndarray, " N"]:
    """Which of so many draws judge a fit to the others: rows of adjacent ones, evenly spaced."""
    every = int(np.clip(count // ENOUGH_HELD, *HELD_OUT))
    adjacent = min(MOST_ADJACENT, max(1, count // (4 * every)))
    return (np.arange(count) // adjacent) % every == every // 2
