"""An independent estimate of ``log Z`` by nested sampling, which does not temper and has no part of the package's own chains.

Nested sampling (Skilling 2006, Bayesian Analysis 1:833) raises a bound on the likelihood ``exp(-eta . (T - target))`` while
live points stay draws of the base above it. So it passes a first-order phase transition, where a narrow phase outweighs a wide
one only at the end: tempering from the base stays in the wide one. New points come by slice sampling (BlackJAX's ``nss``;
Yallup, Kroupa & Handley 2026, arXiv:2601.23252).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, ArrayLike, Float

from ._arguments import check_count, check_positive
from ._derivatives import constrain
from ._keys import checked_key
from ._outcome import Certificate
from ._problem import Problem
from ._products import compiled
from ._types import Key, Moments, Scalar, Unconstrained

NUM_VOLUMES = 200
"""Simulated sequences of prior volumes, whose spread is the error of ``log Z``."""

AGREEMENT = 3.0
"""Difference of two estimates of ``log Z``, in their combined standard errors, up to which they agree."""


class NestedEvidence(NamedTuple):
    """What nested sampling found.

    Attributes:
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats.
        standard_error: Of ``log_normalizer``, nats.
        draws: Equally weighted draws of the normalised density on the constrained scale by site, ``(N, *site shape)``.
        ess: Effective sample size of the weighted points behind ``draws``.
        eta: The multipliers, shape [M].
        complete: Whether the run ended by its own rule; ``log_normalizer`` is a lower bound otherwise.
        num_simulations: Model runs used.
    """

    log_normalizer: float
    standard_error: float
    draws: dict[str, Array]
    ess: float
    eta: Float[np.ndarray, " M"]
    complete: bool
    num_simulations: int


class NestedSampling(eqx.Module):
    """Nested slice sampling of ``base exp(-eta . (T - target))``, by BlackJAX.

    Needs a proper prior and a model without noise of its own, but no gradients. Modes are found if live points fall into them:
    a mode has to hold more than about one part in ``num_live`` of the base's mass above some level of the likelihood.

    Example:
        ``epi.NestedSampling(num_live=500)(jax.random.key(0), problem, result.eta).log_normalizer``, or
        ``epi.certify(key, result, second_opinion=epi.NestedSampling())``.

    Attributes:
        num_live: Number of live points. The error of ``log Z`` is about ``sqrt(information / num_live)`` nats.
        num_delete: Number of points replaced at a time, in parallel.
        num_inner_steps: Slice moves behind each new point. Default: three times the number of parameters, at least five.
        tolerance: The run ends when the best live point's likelihood over the volume that is left is this part of ``Z``.
        max_simulations: Model runs after which the run is given up.
    """

    num_live: int = 500
    num_delete: int = 50
    num_inner_steps: int | None = None
    tolerance: float = 1e-3
    max_simulations: int = 20_000_000

    def __check_init__(self):
        for name in ("num_delete", "max_simulations"):
            check_count(name, getattr(self, name))
        check_count("num_live", self.num_live, 2 * self.num_delete)
        if self.num_inner_steps is not None:
            check_count("num_inner_steps", self.num_inner_steps)
        check_positive(tolerance=self.tolerance)

    def __call__(self, key: Key, problem: Problem, eta: ArrayLike) -> NestedEvidence:
        """Run it.

        Args:
            key: Random key.
            problem: The problem, with a proper prior and without noise.
            eta: Lagrange multipliers, shape [M].

        Raises:
            ImportError: If BlackJAX is not installed.
            ValueError: If the model has noise, the prior is improper, ``eta`` is not of shape [M] or not finite, or no
                simulation is finite.
        """
        key = checked_key(key)
        multipliers = _checked(problem, eta)
        start_key, run_key, weigh_key = jax.random.split(key, 3)
        task = _Task(
            problem, jnp.asarray(multipliers, float), self.num_inner_steps or _inner_steps(problem), self.num_delete
        )
        points, complete, num_simulations = self._run(task, start_key, run_key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(weigh_key)).ravel().tolist())
        log_weights = points.log_likelihood[:, None] + _log_volumes(points, rng)
        log_z = scipy.special.logsumexp(log_weights, axis=0)
        weight = np.exp(log_weights - log_z).mean(axis=1)
        ess = float(1.0 / np.sum(weight**2))
        count = max(1, int(ess))
        index = np.searchsorted(np.cumsum(weight), (np.arange(count) + rng.uniform()) / count).clip(0, len(weight) - 1)
        draws = jnp.asarray(points.position[index], float)
        return NestedEvidence(
            log_normalizer=float(log_z.mean()),
            standard_error=float(log_z.std(ddof=1)),
            draws=constrain(problem, draws),
            ess=ess,
            eta=multipliers,
            complete=complete,
            num_simulations=num_simulations,
        )

    def _run(self, task: "_Task", start_key: Key, run_key: Key) -> tuple["_Points", bool, int]:
        """Every point that was live, whether the run ended by its own rule, and the model runs."""
        state = _start(task, jax.random.split(start_key, self.num_live))
        dead: list[_Points] = []
        spent, number = self.num_live, 0
        while True:
            live = np.sort(np.asarray(state.particles.loglikelihood, float))
            # By the best live point and not by their mean, which a narrow phase hardly raises before it is reached.
            remaining = live[-1] + float(state.integrator.logX) - float(state.integrator.logZ)
            # On a plateau no point is above the bound: the points that are left share its volume.
            if not np.isfinite(live[-1]):
                raise ValueError(
                    f"Expected finite simulations; got none of {self.num_live} prior draws. See problem.check(key)."
                )
            complete = remaining < math.log(self.tolerance) or not live[-1] > live[self.num_delete - 1]
            if complete or spent > self.max_simulations:
                break
            state, replaced, used = _step(task, jax.random.fold_in(run_key, number), state)
            dead.append(_Points.of(replaced))
            spent, number = spent + int(used), number + 1
        every = [*dead, _Points.of(state.particles)]
        return _Points(*(np.concatenate(column) for column in zip(*every, strict=True))), complete, spent


def add_second_opinion(key: Key, problem: Problem, found: Certificate, sampler: NestedSampling) -> Certificate:
    """Run nested sampling at the certificate's multipliers, and add to its sentence whether both have the same ``log Z``."""
    evidence = sampler(key, problem, found.eta)
    error = math.hypot(found.standard_error, evidence.standard_error)
    ahead = evidence.log_normalizer - found.upper_bound
    if not evidence.complete:
        sentence = f"Nested sampling did not end within {evidence.num_simulations:.1e} simulations."
    elif not np.isfinite(ahead):
        sentence = f"Nested sampling has log Z = {evidence.log_normalizer:.2f} +- {evidence.standard_error:.2f} nats."
    elif abs(ahead) <= AGREEMENT * error:
        sentence = f"Nested sampling agrees within {abs(ahead) + 2 * error:.2g} nats."
    else:
        who = "the guide" if ahead > 0 else "nested sampling"
        sentence = (
            f"Nested sampling disagrees: its log Z is {abs(ahead):.2f} +- {error:.2f} nats "
            f"{'higher' if ahead > 0 else 'lower'}, so {who} may miss modes."
        )
    return found._replace(
        verdict=f"{found.verdict} {sentence}",
        num_simulations=found.num_simulations + evidence.num_simulations,
        second_log_normalizer=evidence.log_normalizer,
        second_standard_error=evidence.standard_error,
    )


class _Points(NamedTuple):
    """Points with their likelihood, and its bound when they were drawn: none for the first ones."""

    position: Float[np.ndarray, "N D"]
    log_likelihood: Float[np.ndarray, " N"]
    born: Float[np.ndarray, " N"]

    @classmethod
    def of(cls, particles: Any) -> "_Points":
        fields = particles.position, particles.loglikelihood, particles.loglikelihood_birth
        return cls(*(np.asarray(field, float) for field in fields))


class _Task(NamedTuple):
    """What is sampled, with how many slice moves behind each of how many new points."""

    problem: Problem
    eta: Moments
    num_inner_steps: int
    num_delete: int

    def log_prior(self, u: Unconstrained) -> Scalar:
        draw = self.problem.simulator(jax.random.key(0), u)
        return _finite_or_none(draw.log_prior + draw.log_det)

    def log_likelihood(self, u: Unconstrained) -> Scalar:
        """Of the density relative to the prior, which is not the base where that is Lebesgue measure."""
        found = self.problem.evaluate(jax.random.key(0), u)
        slack = (found.moments - jnp.asarray(self.problem.target, u.dtype)) @ self.eta
        ratio = found.log_base - self.log_prior(u) if self.problem.base == "lebesgue" else 0.0
        return _finite_or_none(ratio - slack)

    @property
    def sampler(self) -> Any:
        return _blackjax().nss(
            logprior_fn=self.log_prior,
            loglikelihood_fn=self.log_likelihood,
            num_inner_steps=self.num_inner_steps,
            num_delete=self.num_delete,
        )


@compiled
def _start(task: _Task, keys: Key) -> Any:
    """The first live points."""
    return task.sampler.init(jax.vmap(task.problem.simulator.sample_prior)(keys))


@compiled
def _step(task: _Task, key: Key, state: Any) -> tuple[Any, Any, Array]:
    """The new state, the points that were replaced, and the model runs."""
    state, info = task.sampler.step(key, state)
    # Both ends of the interval are evaluated once more than it is extended.
    moves = info.update_info
    return state, info.particles, jnp.sum(moves.num_expansions + moves.num_shrink + 2)


def _inner_steps(problem: Problem) -> int:
    return max(5, 3 * problem.dim)


def _checked(problem: Problem, eta: ArrayLike) -> Float[np.ndarray, " M"]:
    if problem.simulator.noise:
        raise ValueError(
            f"Expected a model without noise, whose likelihood is known exactly; got the noise sites "
            f"{list(problem.simulator.noise)}. Use solve_dual for a second opinion."
        )
    if not problem.simulator.has_proper_prior:
        raise ValueError("Expected a proper prior, to draw live points from; this one is improper. Use solve_dual.")
    found = np.asarray(eta, float)
    if found.shape != problem.target.shape or not np.all(np.isfinite(found)):
        raise ValueError(f"Expected finite multipliers of shape {problem.target.shape}; got {eta}.")
    return found


def _blackjax() -> Any:
    try:
        import blackjax
    except ImportError as error:
        raise ImportError(
            "Expected BlackJAX, for nested sampling; it is not installed. Run: pip install 'blackjax>=1.7'"
        ) from error
    if not hasattr(blackjax, "nss"):
        raise ImportError(
            f"Expected blackjax >= 1.7, for nested sampling; got {blackjax.__version__}. "
            "Run: pip install 'blackjax>=1.7'"
        )
    return blackjax


def _finite_or_none(log_density: Scalar) -> Scalar:
    """A density of zero where it is not finite."""
    return jnp.where(jnp.isfinite(log_density), log_density, -jnp.inf)


def _log_volumes(points: _Points, rng: np.random.Generator) -> Float[np.ndarray, "N S"]:
    """Simulated logs of the base's mass that each point stands for.

    A point is live from the bound at its birth to its own likelihood. Each death shrinks the mass by the largest of as many
    uniform numbers as there are live points, which counts points on a plateau one by one (Fowlie, Handley & Su 2021, MNRAS
    503:1199).
    """
    order = np.argsort(points.log_likelihood, kind="stable")
    levels = points.log_likelihood[order]
    births = np.sort(np.where(np.isnan(points.born), -np.inf, points.born))
    first = np.isnan(points.born).sum()
    # Those of the first points, and those whose bound is below this level.
    born = first + np.searchsorted(births[first:], levels, side="left")
    num_live = np.maximum(born - np.arange(len(levels)), 1)
    shrinkage = np.log(rng.uniform(size=(len(levels), NUM_VOLUMES))) / num_live[:, None]
    log_mass = np.concatenate([np.zeros((1, NUM_VOLUMES)), np.cumsum(shrinkage, axis=0)])
    log_mass[-1] = -np.inf
    volumes = np.empty_like(shrinkage)
    volumes[order] = log_mass[:-1] + np.log(-np.expm1(log_mass[1:] - log_mass[:-1]))
    return volumes
