"""What a fit found: plain data, printable as a table, exportable, and a distribution to draw from."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np
from flowjax.distributions import AbstractDistribution
from jaxtyping import Array, Float

from ._arguments import check_count
from ._density import Density, OfFlow
from ._guide import AutoFlow, parameters_only
from ._keys import checked_key, key_from_text
from ._outcome import STATUS, Certificate, Restarts, Snapshots, Summary, Verdict, constraint_table, message, summary
from ._problem import Problem
from ._products import compiled
from ._types import Key, Sites

if TYPE_CHECKING:
    import xarray as xr


MAX_GAP = 0.05
"""Distance from the maximum-entropy solution, nats, up to which an answer is called certified by default."""

NOT_FOLLOWED = (
    "The property can be had: the run's start found draws that have it, and the flow does not follow them closely enough. "
    "Give more steps (max_steps) or a larger flow, or take the exact answer: solve_dual has its draws and its normaliser."
)
"""Advice for a run that fell short of what its start knew."""

FAR = 0.2
"""Distance of a guide from the solution, nats, above which the solution's multipliers are not taken for those of its density."""


class Result(eqx.Module):
    """The outcome of `fit`.

    Attributes:
        problem: The question.
        flow: The fitted flow, over the unconstrained parameters.
        status: How the run ended.
        verdict: The constraints measured on fresh draws.
        eta: Lagrange multipliers, shape [M], each in the inverse of its moment's unit.
        records: The run's history by name, each with epochs as leading axis.
        settings: What the run was asked for and what it did.
        seconds: Wall time, compile included.
        seed: The key the run was given, as text.
        certificate: How far from the optimum the answer can be; ``None`` where it was not asked for.
        restarts: All restarts of a fit that had several.
        snapshots: Draws kept during the run; ``None`` where none were asked for.
    """

    problem: Problem
    flow: AbstractDistribution
    status: STATUS = eqx.field(static=True)
    verdict: Verdict
    eta: Float[np.ndarray, " M"]
    records: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = eqx.field(static=True)
    seconds: float
    seed: str = eqx.field(static=True)
    certificate: Certificate | None = None
    restarts: Restarts | None = None
    snapshots: Snapshots | None = None

    @property
    def satisfied(self) -> bool:
        """Whether the emergent property holds within the tolerance."""
        return self.status is STATUS.satisfied

    @property
    def certified(self) -> bool:
        """Whether the property holds and a conclusive certificate puts the answer within ``max_gap`` nats of the optimum."""
        found = self.certificate
        most = self.settings.get("max_gap", MAX_GAP)
        return self.satisfied and found is not None and bool(found.conclusive) and found.upper <= most

    @property
    def num_simulations(self) -> int | None:
        """Model runs of the start, the steps, the fresh draws that the guide was looked at with, and of certificates.

        Those of snapshots, and of conditioning on finite simulations, are not counted. ``None`` in files of releases that did
        not count.
        """
        return self.settings.get("num_simulations")

    @property
    def status_name(self) -> str:
        """The status as one word."""
        return self.status.name

    @property
    def status_message(self) -> str:
        """The status in a sentence, with the constraints that are furthest off where there are any."""
        if self.settings.get("infeasible"):
            return f"No step was taken, since the start found no answer to be possible. {self.settings['infeasible']}"
        is_flow = self.status is STATUS.unsatisfied and self.settings.get("start_solved")
        said = message(
            self.status, self.problem, self.verdict, self.settings["tolerance"], NOT_FOLLOWED if is_flow else ""
        )
        return f"{said} {self._distance()}".rstrip()

    def _distance(self) -> str:
        """The certificate beside the status, and the moments whose standard deviation says little."""
        parts = []
        if self.satisfied and (found := self.certificate) is not None:
            if not found.conclusive:
                parts.append("Its distance from maximum entropy is not certified; see the certificate.")
            elif self.certified:
                parts.append(f"It is within {found.upper:.2g} nats of maximum entropy.")
            else:
                parts.append(f"It may be {found.upper:.2g} nats short of maximum entropy.")
        if (heavy := self.verdict.heavy_tailed) is not None and np.any(heavy):
            names = ", ".join(c.name for c, is_heavy in zip(self.problem.constraints, heavy, strict=True) if is_heavy)
            parts.append(f"Few draws make most of the standard deviation of {names}.")
        return " ".join(parts)

    @property
    def entropy(self) -> float:
        """Differential entropy of the parameters' distribution, nats."""
        return self.verdict.entropy

    @property
    def guide(self) -> AutoFlow:
        """The fitted NumPyro guide, with ``guide.params``: `Predictive`, `SVI` and `NeuTraReparam` accept it."""
        simulator = self.problem.simulator
        model = parameters_only(simulator.model, simulator.names)
        return AutoFlow.from_flow(model, self.flow, *simulator.args, **simulator.kwargs)

    def sample(self, key: Key, shape: int | tuple[int, ...] = ()) -> dict[str, Array]:
        """Draw parameters on the constrained scale.

        Args:
            key: Random key.
            shape: Leading shape of every site's draws, or their number.

        Returns:
            Site name to array of shape ``(*shape, *site shape)``.
        """
        return self.density.sample(key, shape)

    def log_prob(self, values: Sites) -> Float[Array, "..."]:
        """Log density of parameter values on the constrained scale, nats.

        Args:
            values: Site name to values; leading axes in common are batch axes.

        Raises:
            ValueError: If a parameter is missing or its shape does not fit.
        """
        return self.density.log_prob(values)

    @property
    def density(self) -> Density:
        """The guide as a density on the constrained scale: gradients, modes, conditional draws, sensitive directions."""
        is_near = self.satisfied and self.settings.get("pathwise", False) and bool(np.all(np.isfinite(self.eta)))
        # A guide that has the property by multipliers of its own is not the solution of these.
        is_far = self.certificate is not None and self.certificate.gap > FAR
        return Density(self.problem, OfFlow(self.flow), self.eta if is_near and not is_far else None)

    def statistics(self, key: Key, n: int = 1000) -> "xr.Dataset":
        """Measure the statistics of ``n`` fresh draws.

        Returns:
            One variable a statistic over the dim ``draw`` and the statistic's own dims.
        """
        import xarray as xr

        check_count("n", n)
        values = _statistics(self.problem, self.flow, checked_key(key), n)
        data = {}
        for target in self.problem.property.targets:
            statistic = target.statistic
            array = np.asarray(values[statistic.name])
            dims = statistic.dims or tuple(f"{statistic.name}_dim_{i}" for i in range(array.ndim - 1))
            coords = {dim: list(labels) for dim, labels in statistic.coords.items()}
            data[statistic.name] = xr.DataArray(
                array, dims=("draw", *dims), coords=coords, attrs={"unit": statistic.unit}
            )
        return xr.Dataset(data, coords={"draw": np.arange(n)})

    @property
    def constraints(self) -> "xr.Dataset":
        """Everything about every constraint, over the dim ``constraint``."""
        return constraint_table(self.problem, self.verdict, self.eta)

    @property
    def violation(self) -> "xr.DataArray":
        """``(E[T] - target) / scale`` on fresh draws, over ``constraint``, with targets and scales as coordinates."""
        return self._column("violation")

    @property
    def multipliers(self) -> "xr.DataArray":
        """Lagrange multipliers over ``constraint``, with targets and scales as coordinates."""
        return self._column("multiplier")

    @property
    def history(self) -> "xr.Dataset":
        """The run by epoch: step, loss, entropy, violation, multiplier, moment, penalty, finite_share."""
        import xarray as xr

        names = [constraint.name for constraint in self.problem.constraints]
        data = {n: (("epoch", "constraint")[: a.ndim], a) for n, a in self.records.items()}
        return xr.Dataset(data, coords={"constraint": names, "epoch": np.arange(len(self.records["step"]))})

    def to_arviz(
        self,
        key: Key | None = None,
        *,
        num_chains: int = 4,
        num_draws: int = 500,
        sensitivity: "xr.Dataset | None" = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> Any:
        """Export as ArviZ data: ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x.

        ``posterior_predictive`` holds statistics, deterministic sites and noise; a noise site of more than 1,000 values a draw
        is left out and named in the attribute ``noise_left_out``.

        Args:
            key: For the exported draws; derived from the run's own key by default, so exports repeat.
            num_chains: Independent draws are split into this many chains.
            num_draws: Draws in each.
            sensitivity: What ``density.sensitivity`` gave, to be kept with the draws; `report` shows it. It takes gradients of
                the flow, and seconds to compile, so nobody computes it unasked.
            dims: Names of a site's axes, site name to names, as `arviz.from_numpyro` takes them; trailing ones may be missing.
                By default an axis along a plate has the plate's name, another ``<site>_dim_<i>``.
            coords: Labels along axes, axis name to labels; 0, 1, ... by default.

        Raises:
            ValueError: If a count is not positive, ``dims`` has an unknown site or too many names, or ``coords`` an unknown axis
                or another number of labels than the axis is long.

        Example:
            ``result.to_arviz(dims={"w": ["unit"]}, coords={"unit": ["left", "right"]})``
        """
        from ._arviz import result_groups
        from ._datatree import SENSITIVITY_GROUP, to_arviz, to_datatree

        key = jax.random.fold_in(key_from_text(self.seed), 7) if key is None else checked_key(key)
        groups, attrs = result_groups(
            self, key=key, num_chains=num_chains, num_draws=num_draws, dims=dims or {}, coords=coords or {}
        )
        groups |= {} if sensitivity is None else {SENSITIVITY_GROUP: sensitivity}
        return to_arviz(to_datatree(groups, attrs))

    def tilted_model(self, *, num_simulations: int = 32) -> Callable[[], None]:
        """The maximum-entropy distribution at the result's multipliers, as a plain NumPyro model.

        Its posterior is ``p(z)`` proportional to ``base(z) exp(-eta · (T(z) - target))`` over the parameters, exactly: the
        guide has no part in it. The parameters' sites have the model's own priors, masked where the base is Lebesgue; the
        tilt is the factor ``epi``; no other site is visible.

        Where the simulator has noise of its own, ``T(z)`` is the average of ``num_simulations`` simulations whose noise
        is the same for every ``z`` (common random numbers, fixed by the run's own key), so the density is deterministic
        and differentiable. It then is not quite the exact one: the average has a standard error of one simulation's
        spread over ``sqrt(num_simulations)``, and moments under ``p`` are off by about as much, however long the chains.

        Args:
            num_simulations: Simulations in the average, and thus the cost of one density; one is run without noise.

        Returns:
            A model without arguments; the problem's own are bound.

        Raises:
            ValueError: If ``num_simulations`` is not positive, or a multiplier is not finite.
        """
        from ._tilted import tilted_model

        return tilted_model(self, num_simulations=num_simulations)

    def sample_tilted(
        self,
        key: Key,
        *,
        num_warmup: int = 500,
        num_samples: int = 1000,
        num_chains: int = 4,
        num_simulations: int = 32,
    ) -> Any:
        """Draw the maximum-entropy distribution by NUTS in the flow's coordinates, with chains that ArviZ can judge.

        The flow only sets how well the chains move: a poor guide costs effective draws, not correctness. Each chain
        starts from its own draw of the guide and proposes jumps to others, so it visits the modes that the guide has;
        where no jump is taken, a large R-hat says that chains sit in different modes. R-hat near 1 cannot show a mode
        in which no chain started, such as one the guide has lost.

        Where the simulator has noise of its own, each chain carries the noise of its simulations along and changes it
        by Metropolis' rule (pseudo-marginal; Andrieu & Roberts 2009). Averaged over that noise the density is that of
        the expected statistics: exactly for normal noise known to its covariance, which here is estimated, and up to
        terms of order ``num_simulations ** -2`` otherwise. `tilted_model` keeps its noise.

        Args:
            key: For the starts, the chains, and the simulations in ``posterior_predictive``.
            num_warmup: Steps of each chain that adapt NUTS and are dropped.
            num_samples: Draws of each chain.
            num_chains: Run side by side, so memory and time of a step grow with it; R-hat needs at least two.
            num_simulations: Simulations in the average, where there is noise; each leapfrog step costs this many and
                their gradient. A single one cannot be corrected for its noise.

        Returns:
            As `to_arviz`: ``InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x. Groups: ``posterior``, the
            parameters; ``posterior_predictive``, each draw's statistics in one simulation with fresh noise; and
            ``sample_stats`` with ``diverging``, ``acceptance_rate``, ``n_steps``, ``energy`` and ``lp``, the log density
            of the constrained parameters up to its normaliser, nats, with noise an estimate of it.

        Raises:
            ValueError: If a count is too small, a multiplier is not finite, the flow is no flowjax ``Transformed``, or
                too few draws of the guide have a finite density.
        """
        from ._tilted import sample_tilted

        return sample_tilted(
            self,
            checked_key(key),
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            num_simulations=num_simulations,
        )

    def save(
        self, path: str | os.PathLike[str], *, overwrite: bool = False, sensitivity: "xr.Dataset | None" = None
    ) -> None:
        """Write the exported data and the flow to one NetCDF (``.nc``) or Zarr (``.zarr``) file, all or nothing.

        Args:
            path: Where.
            overwrite: Replace what is there.
            sensitivity: As in `to_arviz`.

        Raises:
            OSError: If the path cannot be written, or exists and ``overwrite`` is false.
            ValueError: If the suffix is neither.
        """
        from ._store import save

        save(self, path, overwrite=overwrite, sensitivity=sensitivity)

    def __str__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()

    def _summary(self) -> Summary:
        v, settings = self.verdict, self.settings
        lines = [
            ("status", f"{self.status.name}: {self.status_message}"),
            ("entropy", f"{v.entropy:.4f} +- {v.entropy_standard_error:.4f} nats"),
        ]
        if self.problem.base == "prior" and self.problem.simulator.has_proper_prior:
            lines.append(("KL(q || prior)", f"{-v.base_entropy:.4f} nats"))
        if self.certificate is not None:
            c = self.certificate
            gap = f"{c.gap:.4f} +- {c.standard_error:.4f} nats to the optimum, by {c.ess:.0f} effective draws"
            lines += [("gap", gap), ("", c.verdict)]
        if settings.get("finite_share") is not None:
            share = 100 * settings["finite_share"]
            lines.append(("finite", f"conditioned on finite simulations, {share:.2f} % of the flow's own draws"))
        if v.finite_share < 1:
            lines.append(("finite", f"{100 * v.finite_share:.2f} % of simulations"))
        skipped, diverged = (int(np.sum(self.records.get(name, 0))) for name in ("skipped", "diverged"))
        without = int(np.sum(self.records.get("without_gradient", 0)))
        if without:
            of = max(settings["steps"], 1) * settings["num_draws"]
            lines.append(
                ("gradients", f"of {without} draws in {of} were not finite, and left out: the slope may be biased")
            )
        if skipped:
            lines.append(("skipped", f"{skipped} of {settings['steps']} steps, whose gradient was not finite"))
        if diverged:
            lines.append(
                ("steps", f"halved {diverged} times, since an epoch diverged: a lower learning rate would do better")
            )
        if self.restarts is not None:
            lines.append(("restarts", str(self.restarts)))
        lines.append(("start", settings["start_message"]))
        spent = "" if self.num_simulations is None else f", {self.num_simulations:.1e} simulations"
        steps = f"{settings['steps']} steps of {settings['num_draws']} draws"
        lines.append(("run", f"{steps}{spent} in {self.seconds:.1f} s"))
        return summary(f"Emergent property inference: {self.problem.name}", lines, self.problem, v, self.eta)

    def _column(self, name: str) -> "xr.DataArray":
        found = self.constraints
        beside = ("target", "achieved", "standard_error", "scale", "unit")
        return found[name].assign_coords({n: found[n] for n in beside})


@compiled
def _statistics(problem: Problem, flow: AbstractDistribution, key: Key, n: int) -> dict[str, Array]:
    flow_key, noise_key = jax.random.split(key)
    u = flow.sample(flow_key, (n,))
    draw = jax.vmap(lambda key, u: problem.property.values(problem.simulator(key, u).sites))
    return draw(jax.random.split(noise_key, n), u)
