"""Where a fit begins. Add a start here: a final subclass of `AbstractStart`.

A start gives draws in unconstrained coordinates; the guide is moved to their mean and covariance and, where the start asks
for it, fitted to them by maximum likelihood.
"""

import math
from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import check_bool, check_count, check_instance, check_positive
from ._certificate import Known
from ._chain_settings import ChainSettings
from ._pilot import Near, approach, resample, tilt_prior
from ._problem import Problem
from ._products import compiled
from ._reach import why_infeasible
from ._search import UnboundedError
from ._types import Draws, Key, Metric, Moments, Numbers, PerDraw
from ._weighed import Weighed, weigh_draws
from ._weights import pareto_khat
from ._work import expensive, has_large_noise, is_trivial, log_base_at, solve_by_chains

__all__ = ["AbstractStart", "Chains", "FirstOf", "Gaussian", "Pilot", "Prior", "Start", "default"]

FEW_PARAMETERS = 6
"""Number of parameters up to which proposals of weighed draws find a solution under large noise with fewer simulations than
chains take."""

LEAST_LOG_DENSITY = -1e6
"""Of a proposed draw, nats: single precision has no more digits to tell such densities apart."""

TIMES_WHERE_TRIVIAL = 50
"""Model runs of the weighed draws over those of the search, where one takes next to no time: as many as chains take."""


class Proposed(NamedTuple):
    """Every draw that was weighed to the solution, those next to the property among them.

    Attributes:
        draws: In unconstrained coordinates, shape [N, D].
        log_density: Of the solution, nats, normalised, finite, shape [N].
        log_proposal: Log density that they were proposed from, shape [N].
    """

    draws: Draws
    log_density: PerDraw
    log_proposal: PerDraw


class Start(NamedTuple):
    """What a run begins with.

    Attributes:
        draws: Draws in unconstrained coordinates, shape [N, D].
        fit_draws: Fit the flow to the draws by maximum likelihood, and not only to their mean and covariance.
        eta: Multipliers of the solution, shape [M], where the start knows them; the draws are then draws of it too, and
            the loop goes on comparing the guide with them. ``None`` where it does not.
        message: What was done, in a sentence.
        known: What else is known of the solution, where the draws were weighed to it.
        covariance: Of the moments under the solution, shape [M, M], where the multipliers are known.
        independent: Draws of the solution that had no part in ``draws``, shape [K, D]: they may show that modes are missing.
        log_normalizer: ``log Z`` of ``base exp(-eta . (T - target))``, nats, where it is known.
        infeasible: Why no distribution seems to have the property, in a sentence; then no step is taken.
        log_density: Of the solution at ``draws``, nats, any constant added, shape [N]; ``None`` where it is not known exactly.
        is_hopeless: That is certain, and no other start is worth a try.
        ess: Effective number of ``draws``, where they are worth fewer than they are.
        proposed: What ``draws`` were chosen from, where they were weighed to the solution; the flow is then fitted to that.
        times_solved: How often the dual was solved again from a flow's weights.
        num_simulations: Model runs that it took, gradients and starts that did not succeed included.
    """

    draws: Draws
    fit_draws: bool
    eta: Moments | None
    message: str
    known: Known | None = None
    covariance: Metric | None = None
    independent: Draws | None = None
    log_normalizer: float | None = None
    infeasible: str | None = None
    log_density: PerDraw | None = None
    is_hopeless: bool = False
    ess: float | None = None
    proposed: Proposed | None = None
    times_solved: int = 0
    num_simulations: int = 0

    @property
    def num_effective(self) -> float:
        """Independent draws that ``draws`` are worth."""
        if self.known is not None:
            return self.known.ess
        return len(self.draws) if self.ess is None else self.ess


class AbstractStart(eqx.Module):
    """Finds draws to begin with."""

    @abstractmethod
    def __call__(self, key: Key, problem: Problem) -> Start:
        """Begin a fit of this problem."""


class Prior(AbstractStart):
    """Begin at the parameters' prior; at a standard normal of the unconstrained coordinates where it is improper.

    Attributes:
        num_draws: Prior draws whose mean and covariance the guide takes.
    """

    num_draws: int = 4096

    def __check_init__(self):
        check_count("num_draws", self.num_draws, 2)

    def __call__(self, key, problem):
        if not problem.simulator.has_proper_prior:
            draws = jax.random.normal(key, (self.num_draws, problem.dim))
            return Start(draws, False, None, "Started from a standard normal of the unconstrained parameters.")
        return Start(_prior_draws(key, problem, self.num_draws), False, None, "Started from the prior.")


class Gaussian(AbstractStart):
    """Begin at a normal distribution of the unconstrained parameters (the original's default start).

    Attributes:
        mean: Shape [D], or a scalar.
        covariance: Shape [D, D], or a scalar variance.
        num_draws: Draws of it that the guide is moved to.
    """

    mean: np.ndarray
    covariance: np.ndarray
    num_draws: int

    def __init__(self, mean: Numbers = 0.0, covariance: Numbers = 1.0, num_draws: int = 4096):
        try:
            self.mean, self.covariance = np.asarray(mean, float), np.asarray(covariance, float)
        except (TypeError, ValueError):
            raise ValueError(f"Expected a mean and a covariance of numbers; got {mean!r} and {covariance!r}.") from None
        check_count("num_draws", num_draws, 2)
        self.num_draws = num_draws
        if not (np.all(np.isfinite(self.mean)) and np.all(np.isfinite(self.covariance))):
            raise ValueError(f"Expected a finite mean and covariance; got {mean} and {covariance}.")

    def __call__(self, key, problem):
        dim = problem.dim
        if self.mean.shape not in ((), (dim,)) or self.covariance.shape not in ((), (dim, dim)):
            raise ValueError(
                f"Expected a mean of shape {(dim,)} and a covariance of shape {(dim, dim)}, or scalars; got "
                f"{self.mean.shape} and {self.covariance.shape}."
            )
        covariance = self.covariance * np.eye(dim) if self.covariance.ndim == 0 else self.covariance
        try:
            cholesky = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise ValueError(f"Expected a positive definite covariance; got {covariance.tolist()}.") from None
        noise = jax.random.normal(key, (self.num_draws, dim))
        draws = jnp.asarray(self.mean + jnp.matmul(noise, cholesky.T, precision="highest"))
        return Start(draws, False, None, "Started from a Gaussian.")


class Pilot(AbstractStart):
    """Begin at draws found without gradients: of the solution where they can be weighed to it, else of the prior near it.

    Prior draws that roughly have the property come first (the original's ``abc`` start, with their own covariance): a draw
    is kept if every statistic is within ``spreads`` standard deviations of its target mean, the target's where it has one,
    the prior's otherwise. Where few prior draws are, the search comes nearer in rounds, each around the nearest draws of
    the last, weighted towards the prior (Beaumont et al. 2009). Further rounds weigh draws to the targets (`_weighed`),
    which gives the multipliers too.

    Attributes:
        num_draws: Effective number of draws to keep, and least number of weighed ones.
        spreads: How near a kept draw must be, in standard deviations.
        max_simulations: Model runs before giving up, in the search and again for the weighed draws; fifty times as many for these
            where one takes next to no time.
        batch: Draws simulated at once.
        or_prior: Begin at the prior, and say so, where nothing near enough is found or the prior is improper; else that is
            an error.
        num_weighed: Effective number of weighed draws; with 0 the kept ones are used as they are.
    """

    num_draws: int = 500
    spreads: float = 3.0
    max_simulations: int = 200_000
    batch: int = 2000
    or_prior: bool = False
    num_weighed: int = 4000

    def __check_init__(self):
        for name, least in (("num_draws", 2), ("batch", 1), ("max_simulations", 1), ("num_weighed", 0)):
            check_count(name, getattr(self, name), least)
        check_positive(spreads=self.spreads)
        check_bool(or_prior=self.or_prior)

    def __call__(self, key, problem):
        pilot_key, prior_key = jax.random.split(key)
        if not problem.simulator.has_proper_prior:
            if self.or_prior:
                return Prior()(prior_key, problem)
            raise ValueError("Expected a proper prior for pilot draws; this one is improper. Use starts.Gaussian.")
        budget = {"batch": self.batch, "max_simulations": self.max_simulations}
        near = approach(problem, pilot_key, num_draws=self.num_draws, spreads=self.spreads, **budget)
        is_near = near.tolerance <= self.spreads and near.ess >= problem.dim + 1
        begin: Near | None = near
        spent = near.num_simulations
        if not is_near:
            begin = tilt_prior(problem, prior_key, self.num_weighed, **budget) if self.num_weighed else None
            spent += max(1, self.max_simulations // self.batch) * self.batch if self.num_weighed else 0
        if begin is not None and self.num_weighed:
            budget["max_simulations"] = self.max_simulations * (TIMES_WHERE_TRIVIAL if is_trivial(problem) else 1)
            weighed = weigh_draws(problem, jax.random.fold_in(key, 2), begin, num_draws=self.num_weighed, **budget)
            if weighed.ess >= self.num_draws:
                return _weighed_start(problem, weighed, spent)
            spent += weighed.num_simulations
        if not is_near:
            found = (
                f"Expected at least {problem.dim + 1} pilot draws within {self.spreads} spreads of the targets; got "
                f"{near.ess:.0f} within {near.tolerance:.3g} of {near.num_simulations} simulated."
            )
            if self.or_prior:
                start = Prior()(prior_key, problem)
                return start._replace(message=f"{found} {start.message}", num_simulations=spent)
            raise ValueError(f"{found} Raise spreads or max_simulations, or start from the prior.")
        draws = jnp.asarray(resample(near.draws, near.log_weight, len(near.draws)), float)
        message = (
            f"Started from {len(draws)} pilot draws, worth {near.ess:.0f} independent ones, of {near.num_simulations} "
            "simulated."
        )
        return Start(draws, True, None, message, num_simulations=spent)


def _weighed_start(problem: Problem, weighed: Weighed, num_simulations: int) -> Start:
    columns = np.column_stack([weighed.draws, weighed.log_density])
    columns = resample(columns, weighed.log_weight, len(columns))
    draws = jnp.asarray(columns[:, :-1], float)
    num_simulations += weighed.num_simulations
    message = (
        f"Started from {len(draws)} draws weighed to the targets, worth {weighed.ess:.0f} independent ones, of "
        f"{num_simulations:.1e} simulations."
    )
    khat = pareto_khat(np.exp(weighed.log_weight))
    weight = np.exp(weighed.log_weight)
    centred = weighed.moments - weight @ weighed.moments
    covariance = (centred * weight[:, None]).T @ centred
    log_proposal = weighed.log_density - weighed.log_weight - math.log(len(weighed.draws))
    proposed = (weighed.draws, np.maximum(weighed.log_density, LEAST_LOG_DENSITY), log_proposal)
    known = Known(
        log_density=columns[:, -1],
        log_normalizer=weighed.log_normalizer,
        relative_variance=weighed.relative_variance,
        ess=weighed.ess,
        khat=khat,
        num_simulations=num_simulations,
    )
    return Start(
        draws,
        True,
        jnp.asarray(weighed.eta, draws.dtype),
        message,
        known,
        covariance=jnp.asarray(covariance, draws.dtype),
        log_normalizer=float(weighed.log_normalizer),
        log_density=None if problem.simulator.noise else jnp.asarray(columns[:, -1], draws.dtype),
        proposed=Proposed(*(jnp.asarray(part, draws.dtype) for part in proposed)),
        num_simulations=num_simulations,
    )


class Chains(AbstractStart):
    """Solve the dual with weighted Hamiltonian chains first, and begin at their draws and multipliers.

    Falls back to the prior, and says so, where the chains do not reach the targets.

    Attributes:
        settings: How the chains move; by default as the problem's cost and noise ask for.
        tolerance: Furthest mean of the draws' moments from its target, in standard deviations.
    """

    settings: ChainSettings | None = None
    tolerance: float = 0.1

    def __check_init__(self):
        if self.settings is not None:
            check_instance("settings", self.settings, ChainSettings, "ChainSettings(...)")
        check_positive(tolerance=self.tolerance)

    def __call__(self, key, problem):
        if not problem.differentiable:
            raise ValueError(
                f"Expected differentiable statistics, for chains; some of {problem.name!r} are not. Use starts.Prior or "
                "starts.Pilot."
            )
        chain_key, prior_key = jax.random.split(key)
        try:
            solution, settings = solve_by_chains(problem, chain_key, self.settings)
        except UnboundedError as unbounded:
            return Prior()(prior_key, problem)._replace(infeasible=str(unbounded), is_hopeless=True)
        if not solution.settled(problem.target, self.tolerance):
            start = Prior()(prior_key, problem)
            reason = why_infeasible(problem, solution, prior_key)
            return start._replace(
                message=f"The chains did not reach the targets. {start.message}",
                infeasible=reason,
                num_simulations=solution.num_simulations,
            )
        draws = solution.draws.reshape(-1, problem.dim)
        message = (
            f"Started from {len(draws)} draws of {settings.num_chains} chains that solved the dual with "
            f"{solution.num_simulations:.1e} simulations."
        )
        moments = np.asarray(solution.moments, float).reshape(len(draws), -1)
        log_density = None
        if not problem.simulator.noise:
            log_density = log_base_at(problem, draws) - jnp.asarray(
                (moments - problem.target) @ solution.eta, draws.dtype
            )
        return Start(
            draws,
            True,
            jnp.asarray(solution.eta, draws.dtype),
            message,
            covariance=jnp.asarray(np.atleast_2d(np.cov(moments.T)), draws.dtype),
            independent=solution.independent,
            log_normalizer=float(solution.log_normalizer),
            log_density=log_density,
            num_simulations=solution.num_simulations,
        )


class FirstOf(AbstractStart):
    """The first of several starts that finds draws of the solution; else the best that one of them found.

    Attributes:
        options: Starts, in order.
    """

    options: tuple[AbstractStart, ...]

    def __check_init__(self):
        if not self.options:
            raise ValueError("Expected at least one start; got none.")
        for option in self.options:
            check_instance("an option", option, AbstractStart, "a start, such as starts.Chains()")

    def __call__(self, key, problem):
        found: list[Start] = []
        for number, option in enumerate(self.options):
            found.append(option(jax.random.fold_in(key, number), problem))
            if found[-1].is_hopeless:
                return found[-1]._replace(num_simulations=sum(start.num_simulations for start in found))
            if found[-1].eta is not None:
                break
        # Draws near the property are nearer than the prior.
        best = next((start for start in found if start.eta is not None or start.fit_draws), found[-1])
        reasons = [start.infeasible for start in found if start.infeasible is not None]
        infeasible = reasons[0] if reasons and best.eta is None and not best.fit_draws else None
        return best._replace(
            message=" ".join(dict.fromkeys(start.message for start in found)),
            infeasible=infeasible,
            num_simulations=sum(start.num_simulations for start in found),
        )


def default(problem: Problem) -> AbstractStart:
    """What finds draws of the solution at the cost and with the noise that the problem has.

    Chains where statistics have gradients and simulations are cheap; weighed draws where simulations are expensive or noisy,
    or where statistics have no gradients. Each stands in for the other where it fails, and the prior for both.
    """
    is_cheap = not expensive(problem)
    chains, pilot = Chains(), _pilot_for(problem)
    options: list[AbstractStart] = []
    if problem.differentiable and is_cheap and not (has_large_noise(problem) and problem.dim <= FEW_PARAMETERS):
        options = [chains, pilot]
    else:
        options = [pilot, chains] if problem.differentiable and is_cheap else [pilot]
    if not problem.simulator.has_proper_prior:
        options = [option for option in options if option is chains] or [Prior()]
    return FirstOf(tuple(options))


def _pilot_for(problem: Problem) -> Pilot:
    """More simulations where they cost next to nothing."""
    if is_trivial(problem):
        return Pilot(or_prior=True, batch=4000, max_simulations=800_000)
    return Pilot(or_prior=True)


def _prior_draws(key: Key, problem: Problem, num_draws: int) -> Draws:
    return compiled(jax.vmap(problem.simulator.sample_prior))(jax.random.split(key, num_draws))
