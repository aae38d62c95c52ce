"""The dual problem solved on its own: multipliers and draws of the maximum-entropy distribution, without a flow."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ._arguments import check_instance, check_positive
from ._chain_settings import ChainSettings
from ._density import Density, Tilted
from ._derivatives import constrain
from ._dual_chains import MAX_RHAT, MIN_CHAINS_ESS, is_mixed, judge_chains
from ._dual_weights import by_prior, by_proposals, judge_weights
from ._kept import kept
from ._keys import checked_key, key_text
from ._outcome import STATUS, Summary, Verdict, constraint_table, message, summary
from ._problem import Problem
from ._types import Key, Sites
from ._work import solve_by_chains

if TYPE_CHECKING:
    import xarray as xr

_ADVICE = {
    "chains": "Some mean is not within the tolerance. Give more and longer chains (settings=ChainSettings(num_chains=..., "
    "num_draws=...)).",
    "reweight": "Too few of the prior's draws have the property. Use method='chains'.",
    "adaptive": "Too few of the draws have the property. Use method='chains'.",
}

_NOT_MIXED = (
    f"The chains do not mix: R-hat is {{rhat:.2f}}, at most {MAX_RHAT} is accepted, and the effective sample size (ESS) is "
    f"{{ess:.0f}}, at least {MIN_CHAINS_ESS:.0f} is needed. Give longer chains (settings=ChainSettings(num_draws=..., "
    "num_transitions=...)), parameters that are less correlated and of similar scale, or another method."
)
_IMPRECISE = (
    "The multipliers' standard errors are above the precision that was asked for. Give more chains or more rounds "
    "(settings=ChainSettings(num_chains=..., max_rounds=...))."
)


class DualSolution(eqx.Module):
    """What `solve_dual` found: the maximum-entropy distribution ``p_eta`` as multipliers and draws.

    Attributes:
        problem: The question.
        method: ``"chains"``, ``"reweight"`` or ``"adaptive"``.
        status: How it ended.
        verdict: The constraints. For chains, under draws at the final multipliers as they are, without weights, with errors
            from the spread between independent groups of chains; else under the weighted draws.
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        standard_error: Of ``eta``, shape [M]; for chains, from the spread between groups of chains.
        precise: Whether these errors are within ``settings.precision`` where chains measured them.
        unconstrained: Draws in unconstrained coordinates, shape [chains, draws, D].
        moments: Unbiased estimates of ``T`` at the draws, of several simulations each where the model has noise, shape
            [chains, draws, M].
        log_weight: Log weights of the draws, which sum to one and meet the targets exactly, shape [chains, draws].
        log_normalizer: ``D(eta)``, log of the integral of ``base exp(-eta . (T - target))``, nats: the most that
            ``-KL(q || base)`` can be.
        log_normalizer_error: Its standard error, nats.
        local: Whether these multipliers give mass to places far from the property, where the chains are not: prior draws show it,
            or chains left for there and were held (``settings["within"]``). The answer has the property, and the most entropy
            of what stays around it: draws, entropy and ``log_normalizer`` are of that region. Over the whole base a minute
            share of simulations far away could widen a spread at less cost.
        ess: Effective sample size: the least of a moment's mean for chains, that of the weights for weighted draws.
        rhat: Largest rank-normalised split R-hat (Vehtari et al. 2021) of a moment over the chains; NaN for weighted draws.
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
    precise: bool
    unconstrained: Float[Array, "chains draws D"]
    moments: Float[np.ndarray, "chains draws M"]
    log_weight: Float[np.ndarray, "chains draws"]
    log_normalizer: float
    log_normalizer_error: float
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
        if advice and self.method == "chains" and not is_mixed(self.rhat, self.ess):
            advice = _NOT_MIXED.format(rhat=self.rhat, ess=self.ess)
        text = message(self.status, self.problem, self.verdict, self.settings["tolerance"], advice)
        return text if self.precise or self.status is not STATUS.satisfied else f"{text} {_IMPRECISE}"

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
        diagnostics = {"R-hat": f"{self.rhat:.3f}", "Pareto k-hat": f"{self.khat:.2f}"}
        applicable = [f"{name} {value}" for name, value in diagnostics.items() if value != "nan"]
        lines = [
            ("status", f"{self.status.name}: {self.status_message}"),
            (
                "entropy",
                f"{self.entropy:.4f} +- {self.verdict.entropy_standard_error:.4f} nats, at most {self.log_normalizer:.4f} "
                f"relative to the base{', of what stays around the property' if self.local else ''}",
            ),
            ("draws", ", ".join([f"ESS {self.ess:.0f}", *applicable])),
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
    run_key, judge_key = jax.random.split(key)
    chosen: dict[str, Any] = {}
    if method == "chains":
        solved, used = solve_by_chains(problem, run_key, settings)
        used = replace(used, within=solved.within)
        found = judge_chains(problem, solved, used, judge_key, tolerance)
        chosen = _fields(used)
    else:
        found = judge_weights(problem, (by_prior if method == "reweight" else by_proposals)(problem, run_key))
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
