"""The dual problem solved on its own: multipliers and draws of the maximum-entropy distribution, without a flow."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.distributions import AbstractDistribution, MultivariateNormal, VmapMixture
from jaxtyping import Array, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from scipy.cluster.vq import kmeans2

from ._arguments import check_instance, check_positive
from ._certificate import MAX_KHAT, MIN_ESS, MIN_OVERLAP, assess, pareto_khat, tilt
from ._chains import Solved
from ._density import Density, Tilted
from ._derivatives import constrain
from ._kept import kept
from ._keys import checked_key, key_text
from ._ladder import descend, has_mass_elsewhere
from ._outcome import STATUS, Summary, Verdict, constraint_table, message, summary
from ._path import ChainSettings, begins_at_base
from ._pilot import approach
from ._problem import Problem
from ._products import compiled
from ._types import Draws, Key, Sites
from ._weighed import weigh_draws
from ._work import solve_by_chains

if TYPE_CHECKING:
    import xarray as xr

REWEIGHT_DRAWS, NOISY_REWEIGHT_DRAWS, REWEIGHT_SIMULATIONS = 200_000, 20_000, 16
"""Prior draws that ``method="reweight"`` weighs; with simulator noise fewer, each simulated so many times."""

ADAPTIVE_DRAWS, NUM_NEAR, NEAR = 4000, 500, 3.0
ADAPTIVE = {"batch": 2000, "max_simulations": 500_000}
"""Effective draws of ``method="adaptive"``; those that it begins around, and how near they are, in standard deviations."""

BRIDGE_COMPONENTS = 12
"""Normal distributions, fitted to the draws, that bridge to the normaliser."""

MOST_BRIDGED = 60
"""Parameters beyond which normal distributions do not meet a solution that chains can walk back from."""

_ADVICE = {
    "chains": "Some mean is not known within the tolerance. Give more chains (settings=ChainSettings(num_chains=...)).",
    "reweight": "Too few of the prior's draws have the property. Use method='chains'.",
    "adaptive": "Too few of the draws have the property. Use method='chains'.",
}


class DualSolution(eqx.Module):
    """What `solve_dual` found: the maximum-entropy distribution ``p_eta`` as multipliers and draws.

    Attributes:
        problem: The question.
        method: ``"chains"``, ``"reweight"`` or ``"adaptive"``.
        status: How it ended.
        verdict: The constraints under the weighted draws; their errors are those that ``eta``'s error makes.
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        standard_error: Of ``eta``, shape [M].
        unconstrained: Draws in unconstrained coordinates, shape [chains, draws, D].
        moments: Unbiased estimates of ``T`` at the draws, of several simulations each where the model has noise, shape
            [chains, draws, M].
        log_weight: Log weights of the draws, which sum to one and meet the targets exactly, shape [chains, draws].
        log_normalizer: ``D(eta)``, log of the integral of ``base exp(-eta . (T - target))``, nats: the most that
            ``-KL(q || base)`` can be.
        local: Whether these multipliers give mass to places far from the property, where the chains are not: prior draws show it,
            or chains left for there and were held (``settings["within"]``). The answer has the property, and the most entropy
            of what stays around it: draws, entropy and ``log_normalizer`` are of that region. Over the whole base a minute
            share of simulations far away could widen a spread at less cost.
        ess: Effective draws: the least over all moments for chains, that of the weights for weighted draws.
        rhat: Largest split R-hat of a moment over the chains; NaN for weighted draws.
        khat: Pareto shape of the weights; of those that bridge to ``log_normalizer`` for chains, NaN where none do.
        num_simulations: Model runs used, gradients included.
        seconds: Wall time, compile included.
        seed: The key the run was given, as text.
        settings: What was asked for.
    """

    problem: Problem
    method: str = eqx.field(static=True)
    status: STATUS = eqx.field(static=True)
    verdict: Verdict
    eta: Float[np.ndarray, " M"]
    standard_error: Float[np.ndarray, " M"]
    unconstrained: Float[Array, "chains draws D"]
    moments: Float[np.ndarray, "chains draws M"]
    log_weight: Float[np.ndarray, "chains draws"]
    log_normalizer: float
    local: bool
    ess: float
    rhat: float
    khat: float
    num_simulations: int
    seconds: float
    seed: str = eqx.field(static=True)
    settings: dict[str, Any] = eqx.field(static=True)

    @property
    def satisfied(self) -> bool:
        """Whether the emergent property holds within the tolerance."""
        return self.status is STATUS.satisfied

    @property
    def status_name(self) -> str:
        """The status as one word."""
        return self.status.name

    @property
    def status_message(self) -> str:
        """The status in a sentence."""
        advice = _ADVICE[self.method] if self.status is STATUS.unsatisfied else ""
        return message(self.status, self.problem, self.verdict, self.settings["tolerance"], advice)

    @property
    def entropy(self) -> float:
        """Differential entropy of ``p_eta``, nats."""
        return self.verdict.entropy

    @property
    def constraints(self) -> "xr.Dataset":
        """Everything about every constraint, over the dim ``constraint``."""
        return constraint_table(self.problem, self.verdict, self.eta).assign(
            multiplier_standard_error=("constraint", self.standard_error)
        )

    @property
    def multipliers(self) -> "xr.DataArray":
        """Lagrange multipliers over ``constraint``, with standard errors, targets and scales as coordinates."""
        found = self.constraints
        beside = ("target", "scale", "unit", "multiplier_standard_error")
        return found["multiplier"].assign_coords({n: found[n] for n in beside})

    def draws(self) -> dict[str, Array]:
        """Draws on the constrained scale by site, of shape ``(chains, draws, *site shape)``; weigh them by ``log_weight``."""
        shape = self.unconstrained.shape[:2]
        sites = constrain(self.problem, self.unconstrained.reshape(-1, self.problem.dim))
        return {name: value.reshape(*shape, *value.shape[1:]) for name, value in sites.items()}

    def sample(self, key: Key, shape: int | tuple[int, ...] = ()) -> dict[str, Array]:
        """Resample the draws by their weights, with replacement, on the constrained scale.

        More draws than the ESS are no more information: they repeat.

        Args:
            key: Random key.
            shape: Leading shape of every site's draws, or their number.

        Returns:
            Site name to array of shape ``(*shape, *site shape)``.
        """
        return self._resampled.sample(key, shape)

    def log_prob(self, values: Sites) -> Float[Array, "..."]:
        """Exact log density of parameter values on the constrained scale, nats.

        Args:
            values: Site name to values; leading axes in common are batch axes.

        Raises:
            ValueError: If the model has noise of its own, or a parameter is missing or its shape does not fit.
        """
        return self.density.log_prob(values)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the exported data of `to_arviz` to one NetCDF (``.nc``) or Zarr (``.zarr``) file, all or nothing.

        `read_arviz` reads it back.

        Args:
            path: Output path.
            overwrite: Replace what is there.

        Raises:
            OSError: If the path cannot be written, or exists and ``overwrite`` is false.
            ValueError: If the suffix is neither.
        """
        from ._datatree import check_target, write

        check_target(Path(path), overwrite)
        write(self.to_arviz(), path, overwrite)

    @property
    def density(self) -> Density:
        """The exact density on the constrained scale: gradients, modes, conditional draws, sensitive directions.

        Raises:
            ValueError: If the model has noise of its own: its density then is an expectation; `fit` gives one.
        """
        if self.problem.simulator.noise:
            raise ValueError(
                f"Expected a model without noise; got the noise sites {list(self.problem.simulator.noise)}. Use fit's density."
            )
        return self._resampled

    @property
    def _resampled(self) -> Density:
        draws, log_weight = self.unconstrained.reshape(-1, self.problem.dim), self.log_weight.ravel()
        return Density(self.problem, Tilted(self.problem, self.eta, self.log_normalizer, draws, log_weight))

    def to_arviz(self, key: Key | None = None) -> Any:
        """Export as ArviZ data with the chains as they ran: ``InferenceData`` with ArviZ 0.x, a ``DataTree`` with 1.x.

        ``sample_stats`` holds ``lp``, the normalised log density of the constrained parameters, and ``log_weight``.

        Args:
            key: For the simulations in ``posterior_predictive``; derived from the run's own key by default.
        """
        from ._tilted import export_dual

        return export_dual(self, key)

    def __str__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()

    def _summary(self) -> Summary:
        lines = [
            ("status", f"{self.status.name}: {self.status_message}"),
            (
                "entropy",
                f"{self.entropy:.4f} +- {self.verdict.entropy_standard_error:.4f} nats, at most {self.log_normalizer:.4f} "
                f"relative to the base{', of what stays around the property' if self.local else ''}",
            ),
            ("draws", f"{self.ess:.0f} effective, R-hat {self.rhat:.3f}, Pareto k-hat {self.khat:.2f}"),
            ("run", f"{self.num_simulations:.1e} simulations in {self.seconds:.1f} s"),
        ]
        title = f"Dual of {self.problem.name}, solved by {self.method}"
        return summary(title, lines, self.problem, self.verdict, self.eta)


def solve_dual(
    key: Key,
    problem: Problem,
    *,
    method: Literal["chains", "reweight", "adaptive"] = "chains",
    settings: ChainSettings | None = None,
    tolerance: float = 0.05,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 30.0,
) -> DualSolution:
    """Find the multipliers and draws of the maximum-entropy distribution ``p_eta = base exp(-eta . T) / Z``; no flow.

    ``"chains"`` follows ``p_eta`` from the base with many Hamiltonian chains while the multipliers move; with statistics
    that have no useful gradient it still is exact, but its chains move less. Parameters of many alike units belong in a
    `numpyro.plate`: chains then also move all of a plate's members at once, without which sums over them mix slowly.
    ``"reweight"`` weighs draws of the prior and minimises the dual by Newton's method: instant, and good where the prior's
    draws have the property often enough.
    ``"adaptive"`` weighs draws of proposals that move to the property (`starts.Pilot`): it needs no gradients and few
    simulations, in up to about ten dimensions.

    Args:
        key: Random key, ``jax.random.key(seed)``; the same key gives the same answer.
        problem: The question.
        method: Which of the three.
        settings: How the chains move; by default as the problem's cost and noise ask for.
        tolerance: How near every mean must be to its target, in standard deviations of its statistic.
        checkpoint: File that keeps the chains' walk and rounds, or the proposals' simulations. If it exists, the same call
            resumes the run from there, to the same digits: on the same machine, with the same versions. It stays when the
            run is done. Draws of the prior and the normaliser are computed again.
        every: Minimal number of seconds between two checkpoints.

    Raises:
        TypeError: If ``problem`` is not a `Problem` or ``key`` not a random key.
        ValueError: If the method is unknown, "reweight" is asked of a problem whose base is no proper prior, or
            "adaptive" of one whose prior is improper or has next to no draws near the property; if the checkpoint is damaged,
            of another run or being written by one.

    References:
        ``_chains`` and ``_path`` name the sources of the chains' moves; the dual is that of Csiszár 1975, Ann. Probab. 3.
    """
    began = time.perf_counter()
    key = checked_key(key)
    if not isinstance(problem, Problem):
        raise TypeError(
            f"Expected a Problem; got {type(problem).__name__}. Write solve_dual(key, Problem(model, property))."
        )
    if method not in _ADVICE:
        raise ValueError(f"Expected method 'chains', 'reweight' or 'adaptive'; got {method!r}.")
    if settings is not None:
        check_instance("settings", settings, ChainSettings, "ChainSettings(...)")
    check_positive(tolerance=tolerance)
    if checkpoint is not None:
        with kept(
            checkpoint, every, "solve_dual", key, problem, {"method": method, "settings": repr(settings)}
        ) as spent:
            found_again = solve_dual(key, problem, method=method, settings=settings, tolerance=tolerance)
        return replace(found_again, seconds=spent + found_again.seconds)
    run_key, bridge_key = jax.random.split(key)
    chosen: dict[str, Any] = {}
    if method == "chains":
        solved, used = solve_by_chains(problem, run_key, settings)
        used = replace(used, within=solved.within)
        found, chosen = _by_chains(problem, solved, used, bridge_key), _fields(used)
    else:
        found = (_by_weights if method == "reweight" else _by_proposals)(problem, run_key)
    verdict, status = found["verdict"], found.pop("status")
    if status is STATUS.satisfied and not np.all(verdict.satisfies(problem.target, tolerance)):
        status = STATUS.unsatisfied
    return DualSolution(
        problem=problem,
        method=method,
        status=status,
        seconds=time.perf_counter() - began,
        seed=key_text(key),
        settings={"tolerance": tolerance, "method": method, **chosen},
        **found,
    )


def _fields(settings: ChainSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def _by_chains(problem: Problem, solved: Solved, settings: ChainSettings, key: Key) -> dict[str, Any]:
    shape = solved.moments.shape
    moments = np.asarray(solved.moments, float)
    flat = moments.reshape(-1, shape[-1])
    draws = solved.draws.reshape(-1, problem.dim)
    finite = bool(np.all(np.isfinite(flat)) and np.all(np.isfinite(solved.eta)))
    log_weight, status = np.full(len(flat), -np.log(len(flat))), STATUS.nonfinite
    if finite:
        status = STATUS.unsatisfied if solved.converged else STATUS.infeasible
    if status is STATUS.unsatisfied:
        # The last round ran at multipliers a small step from their average: the draws are weighted for it.
        tilted = tilt(np.zeros(len(flat)), flat, problem.target)
        if tilted.reached:
            log_weight, status = tilted.log_weight, STATUS.satisfied
    known = _Normalizer(solved.log_normalizer, 0.0, np.nan, False)
    if status is STATUS.satisfied:
        known = _normalizer(problem, solved, settings, key)
    verdict = _verdict(problem, draws, flat, log_weight, solved.violation_error, known.log_value, solved.eta)
    verdict = verdict._replace(entropy_standard_error=float(np.hypot(verdict.entropy_standard_error, known.error)))
    return {
        "status": status,
        "verdict": verdict,
        "eta": solved.eta,
        "standard_error": np.sqrt(np.diagonal(solved.error)),
        "unconstrained": solved.draws,
        "moments": moments,
        "log_weight": log_weight.reshape(shape[:2]),
        "log_normalizer": known.log_value,
        "local": known.local,
        "ess": float(np.min(effective_sample_size(moments))) if finite else 0.0,
        "rhat": float(np.max(split_gelman_rubin(moments))) if finite else np.inf,
        "khat": known.khat,
        "num_simulations": solved.num_simulations,
    }


class _Normalizer(NamedTuple):
    """``log Z``, nats, its standard error, k-hat of the bridge to it, and whether it is that of a region; see `DualSolution`."""

    log_value: float
    error: float
    khat: float
    local: bool


def _normalizer(problem: Problem, solved: Solved, settings: ChainSettings, key: Key) -> _Normalizer:
    """By a bridge of normals where they meet the solution, else by the way back to a proper prior, if there is one."""
    bridge_key, back_key, look_key = jax.random.split(key, 3)
    moments = np.asarray(solved.moments, float).reshape(-1, len(problem.target))
    held = solved.within is not None
    known = _Normalizer(np.nan, np.inf, np.nan, held)
    has_prior = begins_at_base(problem)
    if problem.dim <= MOST_BRIDGED or not has_prior:
        draws = solved.draws.reshape(-1, problem.dim)
        bridged = assess(bridge_key, problem, mixture_of_normals(draws), solved.eta, solution=draws)
        known = known._replace(khat=bridged.khat)
        # Draws of the solution are among the proposals, so that no weight is large: only the overlap says whether they meet.
        if bridged.khat < MAX_KHAT and bridged.ess > MIN_ESS and bridged.overlap > MIN_OVERLAP:
            # At the multipliers that its own draws ask for; the dual is flat there.
            known = known._replace(log_value=bridged.upper_bound, error=bridged.overlap**-0.5)
    if not has_prior:
        return known
    is_bridged = np.isfinite(known.log_value)
    if not is_bridged:
        log_value, error = descend(problem, settings, solved.draws[:, -1], solved.eta, back_key)
        known = known._replace(log_value=log_value, error=error)
    if held or has_mass_elsewhere(problem, settings, solved.eta, moments, known.log_value, look_key):
        known = known._replace(local=True)
        if is_bridged:
            # The bridge sees mass elsewhere, which is not the chains'; the way back does not.
            log_value, error = descend(problem, settings, solved.draws[:, -1], solved.eta, back_key)
            known = known._replace(log_value=log_value, error=error)
    return known


def _by_weights(problem: Problem, key: Key) -> dict[str, Any]:
    if not begins_at_base(problem):
        raise ValueError(
            "Expected a proper prior as the base, whose draws can be weighed; this problem has none. Use method='chains'."
        )
    noisy = bool(problem.simulator.noise)
    count = NOISY_REWEIGHT_DRAWS if noisy else REWEIGHT_DRAWS
    draws, found = _prior_simulations(problem, key, count, REWEIGHT_SIMULATIONS if noisy else 1)
    simulations = np.asarray(found, float)
    usable = np.isfinite(simulations).all(axis=(1, 2))
    draws, simulations = draws[np.flatnonzero(usable)], simulations[usable]
    if not len(draws):
        raise ValueError("Expected finite simulations; got none among the prior's draws. See problem.check(key).")
    flat: np.ndarray = simulations.mean(axis=1)
    noise = None
    if noisy:
        deviations = simulations - flat[:, None]
        noise = np.einsum("nsi,nsj->nij", deviations, deviations) / (simulations.shape[1] * (simulations.shape[1] - 1))
    tilted = tilt(np.zeros(len(flat)), flat, problem.target, noise=noise)
    weighted = _of_weights(problem, draws, flat, noise, tilted.log_weight, tilted.eta, tilted.reached)
    log_normalizer = tilted.log_normalizer + np.log(len(flat) / count)
    return _with_normalizer(problem, weighted, log_normalizer, count * simulations.shape[1])


def _by_proposals(problem: Problem, key: Key) -> dict[str, Any]:
    if not problem.simulator.has_proper_prior:
        raise ValueError("Expected a proper prior, to draw from; this one is improper. Use method='chains'.")
    near_key, weigh_key = jax.random.split(key)
    near = approach(problem, near_key, num_draws=NUM_NEAR, spreads=NEAR, **ADAPTIVE)
    weighed = weigh_draws(problem, weigh_key, near, num_draws=ADAPTIVE_DRAWS, **ADAPTIVE)
    num_simulations = near.num_simulations + weighed.num_simulations
    if len(weighed.draws) <= problem.dim:
        raise ValueError(
            f"Expected draws near the property; got {len(weighed.draws)} of {num_simulations} simulations. "
            "See problem.check(key)."
        )
    noise = weighed.noise if problem.simulator.noise else None
    draws = jnp.asarray(weighed.draws, float)
    found = _of_weights(problem, draws, weighed.moments, noise, weighed.log_weight, weighed.eta, weighed.reached)
    return _with_normalizer(problem, found, weighed.log_normalizer, num_simulations)


def _of_weights(
    problem: Problem,
    draws: Draws,
    moments: Float[np.ndarray, "N M"],
    noise: Float[np.ndarray, "N M M"] | None,
    log_weight: Float[np.ndarray, " N"],
    eta: Float[np.ndarray, " M"],
    reached: bool,
) -> dict[str, Any]:
    """What independent weighted draws say, but for the normaliser; errors are those of a weighted mean."""
    weight = np.exp(log_weight)
    ess = 1.0 / np.sum(weight**2)
    slopes = moments - problem.target if noise is None else moments - problem.target + noise @ eta
    centred = slopes * weight[:, None]
    covariance = centred.T @ slopes
    if noise is not None:
        covariance = covariance - np.einsum("n,nij->ij", weight, noise)
    inverse = np.linalg.pinv(covariance, hermitian=True)
    return {
        "status": STATUS.satisfied if reached and ess >= MIN_ESS else STATUS.unsatisfied,
        "eta": eta,
        "standard_error": np.sqrt(np.diagonal(inverse @ (centred.T @ centred) @ inverse)),
        "unconstrained": draws[None],
        "moments": (slopes + problem.target)[None],
        "log_weight": log_weight[None],
        "ess": float(ess),
        "rhat": np.nan,
        "khat": pareto_khat(weight),
    }


def _with_normalizer(
    problem: Problem, found: dict[str, Any], log_normalizer: float, num_simulations: int
) -> dict[str, Any]:
    (draws,), (moments,), (log_weight,) = (found[name] for name in ("unconstrained", "moments", "log_weight"))
    errors = np.sqrt(np.sum(np.square((moments - problem.target) * np.exp(log_weight)[:, None]), axis=0))
    verdict = _verdict(problem, draws, moments, log_weight, errors, log_normalizer, found["eta"])
    measured = {"verdict": verdict, "log_normalizer": float(log_normalizer), "local": False}
    return {**found, **measured, "num_simulations": num_simulations}


def _verdict(
    problem: Problem,
    draws: Draws,
    moments: Float[np.ndarray, "N M"],
    log_weight: Float[np.ndarray, " N"],
    errors: Float[np.ndarray, " M"],
    log_normalizer: float,
    eta: Float[np.ndarray, " M"],
) -> Verdict:
    weight = np.exp(log_weight)
    mean = weight @ moments
    scale = np.sqrt(np.maximum(weight @ np.square(moments - mean), 0.0))
    base_entropy = log_normalizer + float(eta @ (mean - problem.target))
    log_base = np.asarray(_log_base(problem, draws), float)
    base_mean = weight @ log_base
    ess = 1.0 / np.sum(weight**2)
    return Verdict(
        mean=mean,
        scale=scale,
        standard_error=errors,
        # H = H_b - E[log b], both in the constrained parameters' measure.
        entropy=base_entropy - base_mean,
        entropy_standard_error=float(np.sqrt(weight @ np.square(log_base - base_mean) / ess)),
        base_entropy=base_entropy,
        finite_share=1.0,
        num_draws=len(moments),
    )


def mixture_of_normals(draws: Draws, count: int = BRIDGE_COMPONENTS) -> AbstractDistribution:
    """Normal distributions of clusters of the draws, twice as wide in variance so that their tails cover the draws'."""
    points = np.asarray(draws, float)
    dim = points.shape[1]
    scale = points.std(axis=0) + 1e-12
    _, labels = kmeans2(points / scale, count, minit="++", rng=np.random.default_rng(0))
    sizes = np.bincount(labels, minlength=count)
    index = np.where(sizes > 2 * dim, np.arange(count), np.argmax(sizes))
    loc = np.array([points[labels == i].mean(axis=0) for i in index])
    floor = 1e-6 * np.diag(scale**2)
    covariance = np.array([2.0 * np.atleast_2d(np.cov(points[labels == i].T)) + floor for i in index])
    normals = eqx.filter_vmap(MultivariateNormal)(jnp.asarray(loc, float), jnp.asarray(covariance, float))
    return VmapMixture(normals, jnp.asarray(sizes[index], float))


@compiled
def _prior_simulations(problem: Problem, key: Key, count: int, simulations: int) -> tuple[Draws, Array]:
    def one(key: Key) -> tuple[Array, Array]:
        prior_key, noise_key = jax.random.split(key)
        u = problem.simulator.sample_prior(prior_key)
        found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(noise_key, simulations), u)
        return u, found.moments

    return jax.lax.map(one, jax.random.split(key, count), batch_size=1000)


@compiled
def _log_base(problem: Problem, draws: Draws) -> Array:
    def one(u: Array) -> Array:
        found = problem.evaluate(jax.random.key(0), u)
        return found.log_base - found.log_det

    return jax.vmap(one)(draws)
