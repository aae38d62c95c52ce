"""The family ``base exp(-eta . T)`` and the moves of weighted chains along it.

A transition is Hamiltonian Monte Carlo in coordinates scaled by the chains' spread, with jumps by the difference of two
others; where steps are short, several trajectories are joined to one. Members of a plate also move together (`_collective`).
With simulator noise ``T`` is a mean over several simulations, whose noise is part of the chain's state (a pseudo-marginal chain,
Andrieu & Roberts 2009), and what that noise adds on average is taken off the exponent, from the variance and the skewness of
``eta . T`` (the penalty method, Ceperley & Dewing 1999; `_noise`). Simulations may come in antithetic pairs, each of which then
is one simulation of that sum (`_mirror`).
"""

import math
from functools import partial
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._chain_settings import ChainSettings
from ._collective import FIRST_STEP, members, move_together
from ._loop import masked_moments
from ._noise import correction
from ._problem import Evaluation, Problem
from ._reference import begins_at_base, draw_reference, log_reference, normal_of
from ._types import Draws, Key, Metric, MomentDraws, Moments, PerDraw, Scalar, Unconstrained
from .multipliers import shrunk_inverse

A = TypeVar("A", Array, np.ndarray)

ENOUGH = 0.6
"""Length of a trajectory, in the positions' standard deviations, from which on it is not made longer."""

STEP_SIZES = (1e-4, 3.0)
"""Range of the leapfrog's step size, in the positions' standard deviations."""

MOST_GROUPS, GROUP_SIZE = 32, 16
"""Largest number of groups of chains, and number of chains in a group from which on there are more than two groups."""

LONGEST_STEP = 1.0
"""Of an update, in standard deviations of the log weights: beyond it few chains would keep a weight, and targets that are many
standard deviations away, as under a prior of many parameters, would send the multipliers off for good."""


class Chains(NamedTuple):
    """The moving part.

    Attributes:
        position: Shape [N, D].
        log_weight: Not normalised, shape [N].
        noise: Each chain's key of the simulator's noise.
        step_size: Of the leapfrog, in the positions' standard deviations.
        collective_steps: Of each plate's, see `_collective`.
        eta: Multipliers.
        reference: Power of the reference in ``base^(1 - power) reference^power exp(-eta . T)``.
        covariance: Running covariance of the moments.
        log_normalizer: Of that density, nats.
    """

    position: Draws
    log_weight: PerDraw
    noise: Key
    step_size: Scalar
    collective_steps: Float[Array, " plates"]
    eta: Moments
    reference: Scalar
    covariance: Metric
    log_normalizer: Scalar


class Measured(NamedTuple):
    """What the density at one position is made of; moments of each independent simulation or pair, one without noise."""

    simulations: Float[Array, "S M"]
    log_base: Scalar
    log_reference: Scalar

    @property
    def moments(self) -> Moments:
        return jnp.mean(self.simulations, axis=-2)


class Record(NamedTuple):
    """A round at fixed multipliers: kept draws and their moments, mean moments of every piece between them."""

    draws: Float[Array, "K N D"]
    moments: Float[Array, "K N M"]
    piece_means: Float[Array, "K N M"]
    acceptance: Float[Array, " K"]


class Newton(NamedTuple):
    """A Newton step of the dual, measured on one round.

    Attributes:
        ends: Where it leads by each chain's own mean moments; their mean is the estimate, shape [N, M].
        length: Of the step, in standard deviations of the moments.
        noise: Root mean square of what chance adds to that length.
        scale: Standard deviations of the moments, shape [M].
    """

    ends: Float[Array, "N M"]
    length: Scalar
    noise: Scalar
    scale: Moments


class Path(eqx.Module):
    """The family ``base^(1 - power) reference^power exp(-eta . T)`` and the moves along it."""

    problem: Problem
    settings: ChainSettings

    def start(self, key: Key) -> tuple[Chains, Moments]:
        position_key, noise_key, resample_key = jax.random.split(key, 3)
        keys = jax.random.split(position_key, self.settings.num_chains)
        position = jax.vmap(partial(draw_reference, self.problem, reference=self.settings.reference))(keys)
        noise = jax.random.split(noise_key, self.settings.num_chains)
        moments = jax.vmap(self._measure)(position, noise).moments
        finite = jnp.all(jnp.isfinite(moments), axis=1).astype(position.dtype)
        first, covariance = masked_moments(jnp.where(finite[:, None] > 0, moments, 0.0), finite)
        chains = Chains(
            position=position,
            # A chain that starts where the model fails has no weight; the others stand in for it at the next resampling.
            log_weight=jnp.where(finite > 0, 0.0, -jnp.inf),
            noise=noise,
            step_size=jnp.full((), 0.2, position.dtype),
            collective_steps=first_collective_steps(self.problem).astype(position.dtype),
            eta=jnp.zeros_like(first),
            reference=jnp.ones((), position.dtype),
            covariance=covariance,
            log_normalizer=jnp.log(jnp.mean(finite)),
        )
        return resample(chains, resample_key), first

    def plan(self) -> Float[np.ndarray, "updates M"]:
        """Multipliers of the updates, where they are known before the first: on the way from the reference's own."""
        plan = np.full((self.settings.num_updates, len(self.problem.constraints)), np.nan)
        if self.settings.reference is not None and self.settings.reference.eta:
            half = self.settings.num_updates // 2
            plan[:half] = np.multiply.outer(np.arange(1, half + 1) / half, self.settings.reference.eta)
        return plan

    def update(self, chains: Chains, number: Array, key: Key, first: Moments, eta: Moments) -> Chains:
        """Move the chains, then the multipliers, by the natural rule where planned ones are no numbers, then the weights."""
        move_key, resample_key = jax.random.split(key)
        half = self.settings.num_updates / 2
        # Until the targets have arrived, noise may make p_eta one without a normaliser, and a jump would find that out.
        chains, moments, _ = self.move(chains, move_key, jumps=number >= half)
        weight = jax.nn.softmax(chains.log_weight) / moments.shape[0]
        mean = jnp.einsum("n,tnm->m", weight, moments)
        centred = moments - mean
        covariance = 0.5 * (chains.covariance + jnp.einsum("n,tni,tnj->ij", weight, centred, centred))
        to_go = jnp.maximum(1.0 - (number + 1) / half, 0.0).astype(mean.dtype)
        rate = jnp.where(number < half, self.settings.rate, self.settings.rate / 3).astype(mean.dtype)
        # Second moments fall by decades on the way: squared, so that the last decades are not crossed in one step.
        step = rate * shrunk_inverse(covariance, 0.01) @ (mean - on_the_way(self.problem, first, to_go**2))
        length = jnp.sqrt(jnp.maximum(step @ covariance @ step, jnp.finfo(step.dtype).tiny))
        moved = chains.eta + step * jnp.minimum(1.0, LONGEST_STEP / length)
        # Many parameters hold a statistic closely while it is on its way. What widens it there draws chains to its far ends.
        moved = jnp.where(self._squares & (number < half), jnp.maximum(moved, 0.0), moved)
        chains = chains._replace(covariance=covariance)
        chains = self.reweigh(chains, self.measure(chains), jnp.where(jnp.all(jnp.isfinite(eta)), eta, moved), to_go)
        weight = jax.nn.softmax(chains.log_weight)
        share = 1.0 / (jnp.sum(weight**2) * weight.size)
        resampled = resample(chains, resample_key)
        return jax.tree.map(lambda a, b: jnp.where(share < 0.5, a, b), resampled, chains)

    def reweigh(self, chains: Chains, found: Measured, eta: Moments, reference: Scalar) -> Chains:
        """Change the density under the chains' feet, and their weights with it."""
        exponent = jax.vmap(self._exponent, (0, None, None))
        change = exponent(found, eta, reference) - exponent(found, chains.eta, chains.reference)
        change = jnp.where(jnp.isnan(change), -jnp.inf, change)
        log_weight = chains.log_weight + change
        gained = jax.nn.logsumexp(log_weight) - jax.nn.logsumexp(chains.log_weight)
        return chains._replace(
            log_weight=log_weight, eta=eta, reference=reference, log_normalizer=chains.log_normalizer + gained
        )

    def measure(self, chains: Chains) -> Measured:
        """The parts of the density at the chains' positions."""
        return jax.vmap(self._measure)(chains.position, chains.noise)

    def sample(self, chains: Chains, key: Key) -> tuple[Chains, Record]:
        """Run at fixed multipliers, with the step sizes and the scale that the chains have at the beginning.

        Adaptation during the run would make the transitions depend on the draws, which then need not have the density.
        """
        scale = self._scale(chains)

        def piece(moving: Chains, key: Key) -> tuple[Chains, Record]:
            moving, moments, acceptance = self.move(moving, key, scale=scale)
            moving = moving._replace(collective_steps=chains.collective_steps)
            return moving, Record(moving.position, moments[-1], jnp.mean(moments, axis=0), acceptance)

        return jax.lax.scan(piece, chains, jax.random.split(key, self.settings.num_draws))

    def adapt(self, chains: Chains, acceptance: Scalar) -> Chains:
        """Change the step size between two rounds towards the wanted acceptance."""
        step_size = chains.step_size * jnp.exp(acceptance - self.settings.target_acceptance)
        return chains._replace(step_size=jnp.clip(step_size, *STEP_SIZES))

    def newton(self, chains: Chains, record: Record) -> tuple[Newton, Moments]:
        """A Newton step of the dual, and the same no longer than one standard deviation."""
        flat = record.moments.reshape(-1, record.moments.shape[-1])
        _, covariance = masked_moments(flat, jnp.ones(flat.shape[0], flat.dtype))
        inverse = shrunk_inverse(covariance, 1e-4)
        violations = jnp.mean(record.piece_means, axis=0) - self._target(flat.dtype)
        violation = jnp.mean(violations, axis=0)
        step = inverse @ violation
        length = jnp.sqrt(jnp.maximum(violation @ step, 0.0))
        means = group_means(violations)
        _, spread = masked_moments(means, jnp.ones(means.shape[0], flat.dtype))
        noise = jnp.sqrt(jnp.sum(inverse * spread) / means.shape[0])
        ends = chains.eta + violations @ inverse
        found = Newton(ends, length, noise, jnp.sqrt(jnp.diagonal(covariance)))
        return found, step / jnp.maximum(length, 1.0)

    def move(
        self, chains: Chains, key: Key, jumps: bool | Array = True, scale: Float[Array, " D"] | None = None
    ) -> tuple[Chains, Float[Array, "K N M"], Scalar]:
        """Plates together, then transitions at fixed multipliers in coordinates scaled by the chains' weighted spread.

        Args:
            chains: Where they are.
            key: Random key.
            jumps: Whether jumps are allowed.
            scale: Scale of the coordinates. Default: the chains' weighted standard deviations; step sizes then are adapted
                from one transition to the next.

        Returns:
            The chains, their moments after every transition (after the last one with noise), and the mean acceptance.
        """
        key, refresh_key, fresh_key = jax.random.split(key, 3)
        if self.problem.simulator.noise:
            chains = self._refresh(refresh_key, chains)
        weight = jax.nn.softmax(chains.log_weight)
        is_adapted = scale is None
        scale = self._scale(chains) if scale is None else scale

        collective_key, key = jax.random.split(key) if members(self.problem.simulator) else (key, key)
        position, collective_steps = self._move_plates(collective_key, chains, weight)
        stride = self._stride(chains.step_size)

        def transition(carry: tuple[Draws, Scalar, MomentDraws, Scalar], now: tuple[Array, Key]):
            number, key = now
            walk_key, jump_key = jax.random.split(key)

            def walk(carry):
                position, moments, probability = self._transition(walk_key, chains, carry[0], carry[1], scale, stride)
                acceptance = jnp.mean(probability)
                rate = 0.1 * stride if is_adapted else 0.0
                step_size = carry[1] * jnp.exp(rate * (acceptance - self.settings.target_acceptance))
                return position, jnp.clip(step_size, *STEP_SIZES), moments, acceptance

            position, step_size, moments, acceptance = jax.lax.cond(
                number % stride == 0, walk, lambda carry: carry, carry
            )
            position, moments = self._jump(jump_key, chains, position, moments, jumps)
            return (position, step_size, moments, acceptance), (moments, acceptance)

        numbers = jnp.arange(self.settings.num_transitions)
        nothing = jnp.zeros((len(position), len(self.problem.constraints)), position.dtype)
        carry, (moments, acceptance) = jax.lax.scan(
            transition,
            (position, chains.step_size, nothing, jnp.zeros((), position.dtype)),
            (numbers, jax.random.split(key, self.settings.num_transitions)),
        )
        chains = chains._replace(position=carry[0], step_size=carry[1], collective_steps=collective_steps)
        if self.problem.simulator.noise:
            # A chain leans towards what its own noise makes better: only fresh noise measures its moments.
            fresh = self.measure(chains._replace(noise=jax.random.split(fresh_key, chains.log_weight.size))).moments
            finite = jnp.all(jnp.isfinite(fresh), axis=1, keepdims=True)
            moments = jnp.where(finite, fresh, self._target(fresh.dtype))[None]
        return chains, moments, jnp.mean(acceptance)

    def _stride(self, step_size: Scalar) -> Array:
        """How many transitions in a row make one trajectory: where steps are short, so that it does not walk at random.

        Without gradients steps are short since long trajectories are refused.
        """
        if not self.problem.differentiable:
            return jnp.ones((), int)
        count, length = self.settings.num_transitions, self.settings.num_leapfrog * step_size
        strides = jnp.array([n for n in range(1, count + 1) if count % n == 0])
        return jnp.max(jnp.where((strides == 1) | (strides * length <= ENOUGH), strides, 1))

    def _move_plates(self, key: Key, chains: Chains, weight: PerDraw) -> tuple[Draws, Float[Array, " plates"]]:
        """A trajectory of each plate's members together, with half as many leapfrog steps as all transitions take."""
        position, steps = chains.position, chains.collective_steps

        def slope(position: Draws) -> tuple[PerDraw, Draws]:
            log_density, _, gradient = self._slopes(position, chains)
            return log_density, gradient

        for i, index in enumerate(members(self.problem.simulator)):
            position, acceptance = move_together(
                slope,
                index,
                position,
                weight,
                jax.random.fold_in(key, i),
                step_size=steps[i],
                num_leapfrog=self.settings.num_collective,
            )
            change = jnp.exp(0.3 * (acceptance - self.settings.target_acceptance))
            steps = steps.at[i].set(jnp.clip(steps[i] * change, 1e-5, 1.0))
        return position, steps

    def _slopes(self, position: Draws, chains: Chains) -> tuple[PerDraw, MomentDraws, Draws]:
        """Log density, moments and gradient at the positions, with the chains' own noise."""
        (log_density, moments), slope = jax.vmap(
            jax.value_and_grad(lambda u, key: self._log_density(u, key, chains), has_aux=True)
        )(position, chains.noise)
        return log_density, moments, jnp.nan_to_num(slope)

    def _refresh(self, key: Key, chains: Chains) -> Chains:
        """Propose new noise to every chain."""
        noise_key, accept_key = jax.random.split(key)
        noise = jax.random.split(noise_key, chains.log_weight.size)
        log_density = jax.vmap(self._log_density, (0, 0, None))
        before, _ = log_density(chains.position, chains.noise, chains)
        after, _ = log_density(chains.position, noise, chains)
        accepted = jnp.log(jax.random.uniform(accept_key, before.shape)) < after - before
        return chains._replace(noise=jnp.where(accepted, noise, chains.noise))

    def _transition(
        self, key: Key, chains: Chains, position: Draws, step_size: Scalar, scale: Float[Array, " D"], stride: Array
    ):
        """Hamiltonian Monte Carlo (Neal 2011), all chains at once."""
        momentum_key, accept_key, jitter_key = jax.random.split(key, 3)
        before, moments, slope = self._slopes(position, chains)
        momentum = jax.random.normal(momentum_key, position.shape, position.dtype)
        # Jittered, so that no chain's trajectory can be periodic (Neal 2011, section 3.2).
        jitter = jax.random.normal(jitter_key, (position.shape[0], 1), position.dtype)
        length = step_size * jnp.exp(0.4 * jitter)

        def leapfrog(_, carry):
            q, p, slope, *_ = carry
            p = p + 0.5 * length * scale * slope
            q = q + length * self._from_white(scale * p)
            log_density, moments, slope = self._slopes(q, chains)
            slope = self._to_white(slope)
            return q, p + 0.5 * length * scale * slope, slope, log_density, moments

        start = (position, momentum, self._to_white(slope), before, moments)
        q, p, _, after, proposed = jax.lax.fori_loop(0, stride * self.settings.num_leapfrog, leapfrog, start)
        log_ratio = after - before - 0.5 * jnp.sum(p**2, axis=1) + 0.5 * jnp.sum(momentum**2, axis=1)
        probability = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        accepted = (jax.random.uniform(accept_key, probability.shape) < probability)[:, None]
        return jnp.where(accepted, q, position), jnp.where(accepted, proposed, moments), probability

    def _scale(self, chains: Chains) -> Float[Array, " D"]:
        """Weighted standard deviations of the chains' positions, in the reference's coordinates where it was found."""
        weight, position = jax.nn.softmax(chains.log_weight), chains.position
        if self.settings.reference is not None:
            found = normal_of(self.problem, self.settings.reference)
            position = (position - found.loc) @ found.whiten.T
        return jnp.sqrt(weight @ jnp.square(position - weight @ position)) + 1e-6

    def _from_white(self, steps: Draws) -> Draws:
        if self.settings.reference is None:
            return steps
        return steps @ normal_of(self.problem, self.settings.reference).cholesky.T

    def _to_white(self, slopes: Draws) -> Draws:
        if self.settings.reference is None:
            return slopes
        return slopes @ normal_of(self.problem, self.settings.reference).cholesky

    def _jump(
        self, key: Key, chains: Chains, position: Draws, moments: MomentDraws, allowed: bool | Array
    ) -> tuple[Draws, MomentDraws]:
        """Half of each group's chains jump by the difference of two others of the group (ter Braak 2006, gamma = 1).

        The others stand still meanwhile, so the proposal is symmetric. Jumps lead from mode to mode. Within groups, they leave
        the groups independent of each other: see `group_means`.
        """
        order_key, shift_key, accept_key = jax.random.split(key, 3)
        index = _group_index(position.shape[0])
        half = index.shape[1] // 2
        order = jax.random.permutation(order_key, index, axis=1, independent=True)
        shift = jax.random.randint(shift_key, (), 1, half)
        others = position[order[:, half : 2 * half]]
        movers, difference = order[:, :half].ravel(), others - jnp.roll(others, shift, axis=1)
        proposal = position[movers] + difference.reshape(-1, position.shape[1])
        log_density = jax.vmap(self._log_density, (0, 0, None))
        before, _ = log_density(position[movers], chains.noise[movers], chains)
        after, proposed = log_density(proposal, chains.noise[movers], chains)
        uniform = jax.random.uniform(accept_key, before.shape)
        accepted = (allowed & (jnp.log(uniform) < after - before))[:, None]
        position = position.at[movers].set(jnp.where(accepted, proposal, position[movers]))
        return position, moments.at[movers].set(jnp.where(accepted, proposed, moments[movers]))

    def _log_density(self, u: Float[Array, " D"], key: Key, chains: Chains) -> tuple[Scalar, Moments]:
        """Log density at one position, minus infinity where the model fails, and the moments there."""
        found = self._measure(u, key)
        log_density = self._exponent(found, chains.eta, chains.reference)
        finite = jnp.isfinite(log_density)
        moments = jnp.where(finite, found.moments, self._target(found.moments.dtype))
        return jnp.where(finite, log_density, -jnp.inf), moments

    def _measure(self, u: Float[Array, " D"], key: Key) -> Measured:
        count = self.settings.num_simulations if self.problem.simulator.noise else 1
        if count > 1 and self.settings.mirrored:
            found = mirrored_pairs(self.problem, jax.random.split(key, count // 2), u)
            first = jax.tree.map(lambda leaf: leaf[0, 0], found)
            return Measured(
                jnp.mean(found.moments, axis=1),
                first.log_base,
                log_reference(self.problem, u, first, self.settings.reference),
            )
        found = jax.vmap(self.problem.evaluate, (0, None))(jax.random.split(key, count), u)
        first = jax.tree.map(lambda leaf: leaf[0], found)
        return Measured(found.moments, first.log_base, log_reference(self.problem, u, first, self.settings.reference))

    def _exponent(self, found: Measured, eta: Moments, reference: Scalar) -> Scalar:
        slack = (found.simulations - self._target(found.simulations.dtype)) @ eta
        log_density = found.log_base - jnp.mean(slack) - correction(slack)
        if self.settings.within is not None:
            log_density = jnp.where((reference == 0) & ~self.is_within(found), -jnp.inf, log_density)
        if begins_at_base(self.problem):
            return log_density
        return log_density + reference * (found.log_reference - found.log_base)

    def is_within(self, found: Measured) -> Bool[Array, ""]:
        """Whether every statistic with a wanted spread is within so many of them of its mean."""
        spreads = jnp.asarray(wanted_spreads(self.problem), found.simulations.dtype)
        away = jnp.abs(found.moments - self._target(spreads.dtype))
        within = math.inf if self.settings.within is None else self.settings.within
        return jnp.all((spreads == 0) | (away <= within * spreads))

    @property
    def _squares(self) -> Array:
        return jnp.array([constraint.order == 2 for constraint in self.problem.constraints])

    def _target(self, dtype) -> Moments:
        return jnp.asarray(self.problem.target, dtype)


def _group_index(num_chains: int) -> Int[np.ndarray, "groups size"]:
    """Numbers of the chains of each group; at most one chain a group is left out at the end."""
    count = min(MOST_GROUPS, max(num_chains // GROUP_SIZE, 2 if num_chains >= 8 else 1))
    size = num_chains // count
    return np.arange(count * size).reshape(count, size)


def group_means(by_chain: Any) -> Any:
    """Means over groups of neighbouring chains, from whose spread errors follow.

    Single chains are not independent: resampling leaves copies of one chain, next to each other, and jumps join those of a
    group. Groups are nearly independent (superchains; Margossian et al. 2024, Bayesian Analysis).

    Args:
        by_chain: Array of NumPy or JAX with the chains along its first axis.
    """
    return by_chain[_group_index(by_chain.shape[0])].mean(axis=1)


def wanted_spreads(problem: Problem) -> list[float]:
    """Of each constraint's statistic where it is one of a mean with a spread, zero elsewhere."""
    spread_of = {c.statistic: math.sqrt(c.target) for c in problem.constraints if c.order == 2}
    return [spread_of.get(c.statistic, 0.0) if c.order == 1 else 0.0 for c in problem.constraints]


def mirrored_pairs(problem: Problem, keys: Array, u: Unconstrained) -> Evaluation:
    """A simulation a key and its mirror image, shape [keys, 2, ...]; the key's random numbers are drawn once."""
    both = jax.vmap(problem.evaluate, (None, None, 0))
    return jax.vmap(both, (0, None, None))(keys, u, jnp.array([False, True]))


def on_the_way(problem: Problem, first: A, share: float | Scalar) -> A:
    """Targets that still hold this share of the first moments, on a path along which *variances* are interpolated.

    Interpolated second moments would ask for a mixture of the first distribution and the last one, with a gap where the
    mean has far to go.
    """
    constraints = problem.constraints
    mean_of = {c.statistic: i for i, c in enumerate(constraints) if c.order == 1}
    squares = np.zeros((len(constraints), len(constraints)), first.dtype)
    for i, constraint in enumerate(constraints):
        if constraint.order == 2:
            squares[i, mean_of[constraint.statistic]] = 1.0
    target = problem.target.astype(first.dtype)
    away = first - target
    # NumPy's declarations take a sum with an array of JAX for one of NumPy.
    return target + share * away - share * (1 - share) * (squares @ (away * away))  # type: ignore[return-value]


def first_collective_steps(problem: Problem) -> Float[Array, " plates"]:
    """Before they are adapted."""
    return jnp.full(len(members(problem.simulator)), FIRST_STEP)


def resample(chains: Chains, key: Key) -> Chains:
    """Systematic resampling (Carpenter, Clifford & Fearnhead 1999): equal weights again."""
    weight = jax.nn.softmax(chains.log_weight)
    count = weight.size
    points = (jnp.arange(count) + jax.random.uniform(key, dtype=weight.dtype)) / count
    index = jnp.clip(jnp.searchsorted(jnp.cumsum(weight), points), 0, count - 1)
    equal = jnp.zeros_like(chains.log_weight)
    return chains._replace(position=chains.position[index], noise=chains.noise[index], log_weight=equal)
