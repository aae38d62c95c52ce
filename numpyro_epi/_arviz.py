"""A result as data: labelled groups for ArviZ."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from ._arguments import check_count
from ._axes import Axes, Variable, make_dataset, make_variable
from ._datatree import MARK, SAMPLE_DIMS, SNAPSHOT_DIMS, SNAPSHOT_GROUP, free_name
from ._outcome import Snapshots
from ._pool import weigh
from ._problem import Problem, list_problems
from ._products import compiled
from ._simulator import Draw, Simulator
from ._types import Draws, Key, PerDraw, Scalar, Unconstrained
from ._weights import pareto_khat
from .statistics import Statistic, list_statistics

MOST_NOISE = 1000
"""Values of noise that a draw may keep in one site; a stochastic simulation has 1e5, which would be gigabytes a file."""


class Outcome(Protocol):
    """What root attributes and constant data are made of."""

    @property
    def problem(self) -> Problem: ...
    @property
    def status_name(self) -> str: ...
    @property
    def status_message(self) -> str: ...
    @property
    def satisfied(self) -> bool: ...
    @property
    def entropy(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def seed(self) -> str: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def constraints(self) -> xr.Dataset: ...


@runtime_checkable
class Exportable(Outcome, Protocol):
    """What `result_groups` reads of a result."""

    @property
    def flow(self) -> Any: ...
    @property
    def certificate(self) -> Any: ...
    @property
    def history(self) -> xr.Dataset: ...


def result_groups(
    result: Exportable,
    *,
    key: Key,
    num_chains: int = 4,
    num_draws: int = 500,
    dims: Mapping[str, Sequence[str]] = MappingProxyType({}),
    coords: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Measure fresh draws of the guide and of the prior, and lay them out as ArviZ groups.

    Args:
        result: What a fit returned.
        key: Every draw and simulation comes from it.
        num_chains: Independent draws are split into this many chains; ArviZ compares chains.
        num_draws: Draws in one chain.
        dims: Names of a site's axes, by site, as ArviZ takes them. Axes that have none are named by their plate, and without a
            plate ``<site>_dim_<i>``.
        coords: Labels along axes, by the axis' name; 0, 1, ... by default.

    Returns:
        The groups ``posterior``, ``posterior_predictive``, ``sample_stats``, ``prior``, ``prior_predictive``,
        ``sample_stats_prior``, ``constant_data`` and ``optimization``, and the root attributes. An improper prior
        cannot be drawn from, so its three groups are left out. ``sample_stats`` holds normalised log weights of the
        draws: ``log_importance_weight`` towards the solution at the multipliers, and ``log_weight``, tilted on so that the
        weighted statistics meet the targets exactly. After several restarts the group ``restarts`` has one chain of
        parameters for each: its R-hat says whether they agree. Draws kept during the run are the group
        ``optimization_draws``, over ``snapshot`` and ``draw``. Noise of more than 1,000 values a draw is left out and named in
        ``noise_left_out``; `numpyro.deterministic` keeps what is wanted of it.

        Cost: ``num_chains * num_draws`` simulations, twice.

    Raises:
        ValueError: If a count is not positive, ``dims`` has an unknown site or more names than the site has axes, or ``coords``
            has an unknown axis or another number of labels than the axis is long.
    """
    check_count("num_chains", num_chains)
    check_count("num_draws", num_draws)
    shape, problem = (num_chains, num_draws), result.problem
    axes = Axes.of(problem.simulator, dims, coords)
    guide_key, prior_key = jax.random.split(key)
    measured, draws = _from_guide(problem, result.flow, guide_key, math.prod(shape))
    groups = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"), axes)
    groups["sample_stats"] = _with_weights(result, groups["sample_stats"], measured, draws, guide_key)
    if getattr(result, "restarts", None) is not None:
        groups["restarts"] = _restarts(result, guide_key, num_draws, axes)
    try:
        measured = _from_prior(problem, prior_key, math.prod(shape))
    except NotImplementedError:  # NumPyro's word for an improper prior.
        pass
    else:
        groups |= _draw_groups(problem, measured, shape, ("prior", "prior_predictive", "sample_stats_prior"), axes)
    groups["constant_data"] = _constant_data(result, axes)
    groups["optimization"] = result.history
    if (snapshots := getattr(result, "snapshots", None)) is not None:
        groups[SNAPSHOT_GROUP] = _snapshots(problem, snapshots, axes)
    found = {str(dim) for name in ("posterior", "posterior_predictive") for dim in groups[name].dims}
    if unknown := [dim for dim in coords if dim not in found - {*SAMPLE_DIMS}]:
        raise ValueError(
            f"Expected coords of the axes {sorted(found - {*SAMPLE_DIMS})}; got {unknown}. Name axes by dims."
        )
    return groups, _root_attributes(result)


class _Measured(NamedTuple):
    draw: Draw
    values: dict[str, Array]
    finite: Array
    log_density: Scalar | PerDraw


def _measure(problem: Problem, key: Key, unconstrained: Unconstrained) -> _Measured:
    draw = problem.simulator(key, unconstrained)
    values = problem.property.values(draw.sites)
    finite = jnp.all(jnp.isfinite(problem.property.moments(values))) & jnp.isfinite(draw.log_prior)
    noise = {name for name in problem.simulator.noise if draw.sites[name].size > MOST_NOISE}
    draw = draw._replace(sites={name: value for name, value in draw.sites.items() if name not in noise})
    return _Measured(draw, values, finite, draw.log_prior)


def _from_guide(problem: Problem, flow: Any, key: Key, num_draws: int) -> tuple[_Measured, Draws]:
    @compiled
    def sample(flow, key):
        flow_key, noise_key = jax.random.split(key)
        unconstrained, log_q = flow.sample_and_log_prob(flow_key, (num_draws,))
        found = _batch(problem, noise_key, unconstrained)
        log_density = log_q - found.draw.log_det
        found = found._replace(log_density=log_density, finite=found.finite & jnp.isfinite(log_density))
        return found, unconstrained

    return jax.device_get(sample(flow, key))


def _from_prior(problem: Problem, key: Key, num_draws: int) -> _Measured:
    @compiled
    def sample(key):
        prior_key, noise_key = jax.random.split(key)
        unconstrained = jax.vmap(problem.simulator.sample_prior)(jax.random.split(prior_key, num_draws))
        return _batch(problem, noise_key, unconstrained)

    return jax.device_get(sample(key))


def _batch(problem: Problem, key: Key, unconstrained: Draws) -> _Measured:
    # As many at once as a fit simulates: that many fit into memory.
    keys, size = jax.random.split(key, len(unconstrained)), problem.num_draws
    return jax.lax.map(lambda pair: _measure(problem, *pair), (keys, unconstrained), batch_size=size)


def _draw_groups(
    problem: Problem,
    measured: _Measured,
    shape: tuple[int, int],
    names: tuple[str, str, str],
    axes: Axes | None = None,
) -> dict[str, xr.Dataset]:
    simulator, sites = problem.simulator, measured.draw.sites
    axes = Axes.of(simulator) if axes is None else axes
    parameters = {name: axes.variable(name, sites[name], "parameter") for name in simulator.names}
    predicted = {
        s.name: _predicted(s, measured.values[s.name]) for s in (t.statistic for t in problem.property.targets)
    }
    noise = [name for name in simulator.noise if name in sites]
    kinds = {name: "deterministic" for name in simulator.deterministics} | {name: "noise" for name in noise}
    for name, kind in kinds.items():
        predicted[free_name(name, predicted, prefix="site.")] = axes.variable(name, sites[name], kind)
    stats = {"lp": measured.log_density, "log_prior": measured.draw.log_prior, "finite": measured.finite}
    quality = {name: make_variable(name, values, {"kind": "quality"}) for name, values in stats.items()}
    found = {
        name: make_dataset(group, shape) for name, group in zip(names, (parameters, predicted, quality), strict=True)
    }
    if left_out := [name for name in simulator.noise if name not in noise]:
        found[names[1]] = found[names[1]].assign_attrs(noise_left_out=left_out)
    return found


def _with_weights(result: Exportable, stats: xr.Dataset, measured: _Measured, draws: Draws, key: Key) -> xr.Dataset:
    """Add the draws' log weights, and what they are worth as attributes."""
    problem, eta = result.problem, np.asarray(result.constraints["multiplier"], float)
    if not (np.all(np.isfinite(eta)) and np.any(measured.finite)):
        return stats
    moments = np.asarray(jax.vmap(problem.property.moments)(measured.values), float)
    log_weight, tilted = weigh(jax.random.fold_in(key, 1), problem, result.flow, draws, moments, eta)
    shape = tuple(stats.sizes[dim] for dim in SAMPLE_DIMS)
    attrs = {
        "ess": float(1.0 / np.sum(np.exp(2 * tilted.log_weight))),
        "khat": pareto_khat(np.exp(tilted.log_weight)),
        "meets_targets": int(tilted.reached),
    }
    columns = {"log_importance_weight": (log_weight, {}), "log_weight": (tilted.log_weight, attrs)}
    return stats.assign(
        {name: (SAMPLE_DIMS, v.reshape(shape), {"kind": "quality", **a}) for name, (v, a) in columns.items()}
    )


def _restarts(result: Any, key: Key, num_draws: int, axes: Axes) -> xr.Dataset:
    """Parameters drawn from every restart's guide, one chain each."""
    problem, restarts = result.problem, result.restarts
    found = [
        _from_guide(problem, flow, jax.random.fold_in(key, 2 + i), num_draws)[0]
        for i, flow in enumerate(restarts.flows)
    ]
    sites = {
        name: axes.variable(name, np.concatenate([f.draw.sites[name] for f in found]), "parameter")
        for name in problem.simulator.names
    }
    dataset = make_dataset(sites, (len(found), num_draws))
    by_chain = {"corrected": restarts.corrected, "standard_error": restarts.standard_error, "share": restarts.shares}
    dataset = dataset.assign({n: ("chain", np.asarray(v), {"kind": "restart"}) for n, v in by_chain.items()})
    dataset = dataset.assign(status=("chain", np.array(restarts.statuses), {"kind": "restart"}))
    return dataset.assign_attrs(draws="Chains are restarts, drawn independently from each one's own guide.")


def _snapshots(problem: Problem, found: Snapshots, axes: Axes) -> xr.Dataset:
    """Parameters and statistics of the draws kept during the run."""
    shape = found.log_density.shape
    variables = {
        name: axes.variable(name, values.reshape(-1, *values.shape[2:]), "parameter")
        for name, values in found.parameters.items()
    }
    for statistic in (target.statistic for target in problem.property.targets):
        values = found.statistics[statistic.name]
        name = free_name(statistic.name, variables, prefix="statistic.")
        variables[name] = _predicted(statistic, values.reshape(-1, *values.shape[2:]))
    density = make_variable("lp", found.log_density.reshape(-1), {"kind": "quality"})
    variables[free_name("lp", variables, prefix="quality.")] = density
    dataset = make_dataset(variables, (shape[0], shape[1]), SNAPSHOT_DIMS)
    name = free_name("step", map(str, dataset.variables), prefix="quality.")
    dataset = dataset.assign({name: ("snapshot", np.asarray(found.step), {"kind": "step"})})
    return dataset.assign_attrs(draws="The same noise goes into every snapshot, so that a draw can be followed.")


def _predicted(statistic: Statistic, values: Array | np.ndarray) -> Variable:
    attrs = {"kind": "statistic", "unit": statistic.unit}
    return make_variable(statistic.name, values, attrs, statistic.dims, statistic.coords)


def _constant_data(result: Outcome, axes: Axes | None = None) -> xr.Dataset:
    problem, data = result.problem, result.constraints.copy()
    if source := result.settings.get("multiplier_source"):
        data["multiplier"] = data["multiplier"].assign_attrs(source=str(source))
    data["statistic"] = ("constraint", np.array([constraint.statistic for constraint in problem.constraints]))
    axes = Axes.of(problem.simulator) if axes is None else axes
    for name, ends in _bounds(problem.simulator).items():
        dims: list[str] = []
        for dim, size in zip(axes.names(name, ends[0].ndim), ends[0].shape, strict=True):
            taken = {*dims, *map(str, data.variables), *(str(d) for d, n in data.sizes.items() if n != size)}
            dims.append(free_name(dim, taken, prefix=f"{name}_"))
        for side, end in zip(("lower", "upper"), ends, strict=True):
            data[f"{name}_{side}"] = (dims, end, {"kind": f"{side} bound", "parameter": name})
    return data


def _bounds(simulator: Simulator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ends of every support that is an interval or a half-line, the same wherever the other parameters are."""
    shapes = {parameter.name: parameter.shape for parameter in simulator.parameters}
    key = jax.random.key(0)

    def ends(unconstrained: Unconstrained) -> dict[str, tuple[Array, Array]]:
        sites = simulator(key, unconstrained).sites
        trace = simulator._trace(key, lambda site: sites[site["name"]] if site["name"] in shapes else None)
        found = {name: _interval(trace[name]["fn"].support, shape) for name, shape in shapes.items()}
        return {name: pair for name, pair in found.items() if pair is not None}

    # Three places tell a fixed support from a moving one. Compiled, so that a simulation nobody asks for is not run.
    places = np.random.default_rng(0).normal(size=(3, simulator.dim)).astype(np.float32)
    found = jax.device_get(compiled(jax.vmap(ends))(places))
    return {name: (low[0, ...], high[0, ...]) for name, (low, high) in found.items() if _fixed(low) and _fixed(high)}


def _fixed(ends: np.ndarray) -> bool:
    return bool(np.all(ends == ends[0]))


def _interval(support: Any, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None and high is None:
        return None
    ends = (-jnp.inf if low is None else low, jnp.inf if high is None else high)
    return jnp.broadcast_to(jnp.asarray(ends[0], float), shape), jnp.broadcast_to(jnp.asarray(ends[1], float), shape)


def _root_attributes(result: Outcome) -> dict[str, Any]:
    plugins = {p.distribution: p.version for p in (*list_statistics(), *list_problems())}
    versions = {f"{name}_version": version(name) for name in ("jax", "numpyro", "flowjax", "arviz")}
    return {
        "status": result.status_name,
        "status_message": result.status_message,
        "satisfied": bool(result.satisfied),
        "entropy": float(result.entropy),
        **_certificate_attributes(getattr(result, "certificate", None)),
        "seconds": float(result.seconds),
        "problem": result.problem.name,
        "base": result.problem.base,
        "seed": result.seed,
        "settings": dict(result.settings),
        MARK: version("numpyro-epi"),
        **versions,
        "plugins": {name: number for name, number in plugins.items() if name != "numpyro-epi"},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "inference_library": "numpyro_epi",
    }


def _certificate_attributes(certificate: Any) -> dict[str, Any]:
    if certificate is None:
        return {"gap": math.nan}
    return {
        "gap": float(certificate.gap),
        "gap_standard_error": float(certificate.standard_error),
        "upper_bound": float(certificate.upper_bound),
        "certificate": certificate.verdict,
        "certificate_ess": float(certificate.ess),
        "certificate_khat": float(certificate.khat),
    }
