"""The dual problem solved by weighted chains: multipliers and draws of the solution, without a flow.

The solution is ``p_eta(u)``, proportional to ``base(u) exp(-eta . T(u))``. Many Hamiltonian Monte Carlo chains follow it
while ``eta`` moves by the natural rule towards targets that are annealed from the chains' first moments. Every move of
``eta`` changes the weights of the chains' positions (annealed importance sampling, Neal 2001; sequential Monte Carlo
samplers, Del Moral et al. 2006), so a chain that is stranded far from the mass dies, and separate modes keep their shares.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._loop import masked_moments
from ._problem import Problem
from ._types import Draws, Key, Metric, MomentDraws, Moments, PerDraw, Scalar
from .multipliers import shrunk_inverse


class DualSolution(NamedTuple):
    """What the chains found.

    Attributes:
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        draws: Equally weighted draws of ``p_eta`` in unconstrained coordinates.
        moments: ``T`` of those draws.
        acceptance: Mean Metropolis acceptance of the last updates.
        num_simulations: Model runs used, gradients included.
    """

    eta: Moments
    draws: Draws
    moments: MomentDraws
    acceptance: float
    num_simulations: int

    def settled(self, target: Float[np.ndarray, " M"], tolerance: float) -> bool:
        """Whether every mean of the draws' moments is within ``tolerance`` standard deviations of its target."""
        moments = np.asarray(self.moments, float)
        spread = np.maximum(moments.std(axis=0), np.finfo(np.float32).tiny)
        finite = np.all(np.isfinite(moments)) and np.all(np.isfinite(self.eta))
        return bool(finite and np.all(np.abs(moments.mean(axis=0) - target) <= tolerance * spread))


class _Chains(NamedTuple):
    """Positions [N, D], log weights [N], step size, and the path's state: multipliers and covariance."""

    position: Draws
    log_weight: PerDraw
    step_size: Scalar
    eta: Moments
    covariance: Metric


class ChainSettings(eqx.Module):
    """How the chains move.

    Attributes:
        num_chains: Chains, all of them stepped together.
        num_leapfrog: Leapfrog steps of one transition.
        num_transitions: Transitions between two updates of the multipliers.
        num_updates: Updates in all; the targets are annealed during the first half.
        rate: Share of the natural step taken by an update while annealing, and a third of it after.
        num_draws: Draws handed out at the end.
        thinning: Transitions between two of them.
        target_acceptance: What the step size is adapted to.
    """

    num_chains: int = 512
    num_leapfrog: int = 8
    num_transitions: int = 10
    num_updates: int = 160
    rate: float = 0.3
    num_draws: int = 20480
    thinning: int = 2
    target_acceptance: float = 0.8


def solve(problem: Problem, key: Key, settings: ChainSettings) -> DualSolution:
    """Follow the path from the base measure to the solution; one compile, no host round trips.

    The problem must be noiseless and differentiable, and its base a proper prior.
    """
    start_key, run_key = jax.random.split(key)
    eta, draws, moments, acceptance = _run(problem, settings, start_key, run_key)
    transitions = settings.num_updates * settings.num_transitions + _num_sweeps(settings) * settings.thinning
    simulations = settings.num_chains * transitions * (settings.num_leapfrog + 1)
    return DualSolution(eta, draws, moments, float(acceptance), simulations)


def _num_sweeps(settings: ChainSettings) -> int:
    return math.ceil(settings.num_draws / settings.num_chains)


@eqx.filter_jit
def _run(
    problem: Problem, settings: ChainSettings, start_key: Key, key: Key
) -> tuple[Moments, Draws, MomentDraws, Scalar]:
    path = _Path(problem, settings)
    chains, first = path.start(start_key)
    keys = jax.random.split(key, settings.num_updates + 1)
    numbers = jnp.arange(settings.num_updates)

    def update(chains: _Chains, number_and_key: tuple[Array, Key]) -> tuple[_Chains, tuple[Moments, Scalar]]:
        chains, acceptance = path.update(chains, *number_and_key, first)
        return chains, (chains.eta, acceptance)

    chains, (etas, acceptance) = jax.lax.scan(update, chains, (numbers, keys[1:]))
    last = settings.num_updates // 5
    eta = jnp.mean(etas[-last:], axis=0)
    chains = _resample(chains._replace(eta=eta), keys[0])

    def sweep(chains: _Chains, key: Key) -> tuple[_Chains, tuple[Draws, MomentDraws]]:
        chains, moments, _ = path.move(chains, key, settings.thinning)
        return chains, (chains.position, moments[-1])

    _, (draws, moments) = jax.lax.scan(sweep, chains, jax.random.split(keys[0], _num_sweeps(settings)))
    flat = draws.reshape(-1, draws.shape[-1]), moments.reshape(-1, moments.shape[-1])
    return eta, *flat, jnp.mean(acceptance[-last:])


class _Path(eqx.Module):
    """The family ``base exp(-eta . T)`` and the moves along it."""

    problem: Problem
    settings: ChainSettings

    def start(self, key: Key) -> tuple[_Chains, Moments]:
        keys = jax.random.split(key, self.settings.num_chains)
        position = jax.vmap(self.problem.simulator.sample_prior)(keys)
        _, moments = jax.vmap(self._parts)(position)
        finite = jnp.all(jnp.isfinite(moments), axis=1).astype(position.dtype)
        first, covariance = masked_moments(jnp.where(finite[:, None] > 0, moments, 0.0), finite)
        # A chain that starts where the model fails has no weight; the others stand in for it at the next resampling.
        log_weight = jnp.where(finite > 0, 0.0, -jnp.inf)
        chains = _Chains(
            position=position,
            log_weight=log_weight,
            step_size=jnp.full((), 0.2, position.dtype),
            eta=jnp.zeros_like(first),
            covariance=covariance,
        )
        return _resample(chains, key), first

    def update(self, chains: _Chains, number: Array, key: Key, first: Moments) -> tuple[_Chains, Scalar]:
        """Move the chains, then the multipliers, then the weights."""
        move_key, resample_key = jax.random.split(key)
        chains, moments, acceptance = self.move(chains, move_key, self.settings.num_transitions)
        weight = jax.nn.softmax(chains.log_weight) / self.settings.num_transitions
        mean = jnp.einsum("n,tnm->m", weight, moments)
        centred = moments - mean
        covariance = 0.5 * (chains.covariance + jnp.einsum("n,tni,tnj->ij", weight, centred, centred))
        half = self.settings.num_updates / 2
        # Second moments fall by decades on the way: squared, so that the last decades are not crossed in one step.
        to_go = jnp.square(jnp.maximum(1.0 - (number + 1) / half, 0.0)).astype(mean.dtype)
        target = self._target(mean.dtype)
        rate = jnp.where(number < half, self.settings.rate, self.settings.rate / 3).astype(mean.dtype)
        step = rate * shrunk_inverse(covariance, 0.01) @ (mean - target - to_go * (first - target))
        log_weight = chains.log_weight - (moments[-1] - target) @ step
        moved = chains._replace(log_weight=log_weight, eta=chains.eta + step, covariance=covariance)
        weight = jax.nn.softmax(log_weight)
        share = 1.0 / (jnp.sum(weight**2) * weight.size)
        resampled = _resample(moved, resample_key)
        return jax.tree.map(lambda a, b: jnp.where(share < 0.5, a, b), resampled, moved), acceptance

    def move(self, chains: _Chains, key: Key, count: int) -> tuple[_Chains, Float[Array, "count N M"], Scalar]:
        """Hamiltonian transitions at fixed multipliers, in coordinates scaled by the chains' weighted spread."""
        weight = jax.nn.softmax(chains.log_weight)
        mean = weight @ chains.position
        scale = jnp.sqrt(weight @ jnp.square(chains.position - mean)) + 1e-6

        def transition(carry: tuple[Draws, Scalar], key: Key):
            position, moments, probability = self._transition(key, *carry, scale, chains.eta)
            acceptance = jnp.mean(probability)
            step_size = carry[1] * jnp.exp(0.1 * (acceptance - self.settings.target_acceptance))
            return (position, jnp.clip(step_size, 1e-4, 3.0)), (moments, acceptance)

        carry, (moments, acceptance) = jax.lax.scan(
            transition, (chains.position, chains.step_size), jax.random.split(key, count)
        )
        return chains._replace(position=carry[0], step_size=carry[1]), moments, jnp.mean(acceptance)

    def _transition(self, key, position, step_size, scale, eta):
        momentum_key, accept_key, jitter_key = jax.random.split(key, 3)
        density = jax.vmap(jax.value_and_grad(self._log_density, has_aux=True), (0, None))
        (before, moments), slope = density(position, eta)
        momentum = jax.random.normal(momentum_key, position.shape, position.dtype)
        # Jittered, so that no chain's trajectory can be periodic (Neal 2011, section 3.2).
        jitter = jax.random.normal(jitter_key, (position.shape[0], 1), position.dtype)
        length = step_size * jnp.exp(0.1 * jitter)

        def leapfrog(carry, _):
            q, p, slope, *_ = carry
            p = p + 0.5 * length * scale * slope
            q = q + length * scale * p
            (log_density, moments), slope = density(q, eta)
            slope = jnp.nan_to_num(slope)
            return (q, p + 0.5 * length * scale * slope, slope, log_density, moments), None

        start = (position, momentum, jnp.nan_to_num(slope), before, moments)
        (q, p, _, after, proposed), _ = jax.lax.scan(leapfrog, start, None, length=self.settings.num_leapfrog)
        log_ratio = after - before - 0.5 * jnp.sum(p**2, axis=1) + 0.5 * jnp.sum(momentum**2, axis=1)
        probability = jnp.where(jnp.isfinite(log_ratio), jnp.exp(jnp.minimum(log_ratio, 0.0)), 0.0)
        accepted = (jax.random.uniform(accept_key, probability.shape) < probability)[:, None]
        return jnp.where(accepted, q, position), jnp.where(accepted, proposed, moments), probability

    def _log_density(self, u: Float[Array, " D"], eta: Moments) -> tuple[Scalar, Moments]:
        log_base, moments = self._parts(u)
        log_density = log_base - eta @ (moments - self._target(moments.dtype))
        finite = jnp.isfinite(log_density)
        return jnp.where(finite, log_density, -jnp.inf), jnp.where(finite, moments, self._target(moments.dtype))

    def _parts(self, u: Float[Array, " D"]) -> tuple[Scalar, Moments]:
        found = self.problem.evaluate(jax.random.key(0), u)
        return found.log_base, found.moments

    def _target(self, dtype) -> Moments:
        return jnp.asarray(self.problem.target, dtype)


def _resample(chains: _Chains, key: Key) -> _Chains:
    """Systematic resampling (Carpenter, Clifford & Fearnhead 1999): equal weights again."""
    weight = jax.nn.softmax(chains.log_weight)
    count = weight.size
    points = (jnp.arange(count) + jax.random.uniform(key, dtype=weight.dtype)) / count
    index = jnp.clip(jnp.searchsorted(jnp.cumsum(weight), points), 0, count - 1)
    return chains._replace(position=chains.position[index], log_weight=jnp.zeros_like(chains.log_weight))
