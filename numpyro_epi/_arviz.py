"""A result as data: labelled groups for ArviZ 0.x and 1.x, written to and read from NetCDF or Zarr."""

import errno
import importlib.util
import itertools
import json
import math
import os
import shutil
import time
import unicodedata
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from ._arguments import check_count
from ._certificate import pareto_khat, weigh
from ._inspection import Refused, inspect
from ._outcome import Snapshots
from ._problem import Problem, list_problems
from ._seal import CHECKSUMS, broken_seal, seal
from ._simulator import Draw, Simulator
from ._types import Draws, Key, PerDraw, Scalar, Unconstrained
from .statistics import Statistic, list_statistics

SAMPLE_DIMS = ("chain", "draw")
"""Dims along which ArviZ finds independent or successive draws."""

SENSITIVITY_GROUP = "sensitivity"
"""Where directions and the statistics' responses lie."""

SNAPSHOT_GROUP, SNAPSHOT_DIMS = "optimization_draws", ("snapshot", "draw")
"""Where draws kept during the run lie, and their leading dims."""

MOST_NOISE = 1000
"""Values of noise that a draw may keep in one site; a stochastic simulation has 1e5, which would be gigabytes a file."""

_MARK = "numpyro_epi_version"
_LONGEST_KEY = 200
_NO_ROOM = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
_RESERVED = frozenset({"DIMENSION_LIST", "zarr.json"})
_HAS_CHECKSUMS = "numpyro_epi_checksums"
_INDEPENDENT = "Chains are a split of independent draws: nothing is correlated along draw or chain."


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
    result: Exportable, *, key: Key, num_chains: int = 4, num_draws: int = 500
) -> tuple[dict[str, xr.Dataset], dict[str, Any]]:
    """Measure fresh draws of the guide and of the prior, and lay them out as ArviZ groups.

    Args:
        result: What a fit returned.
        key: Every draw and simulation comes from it.
        num_chains: Independent draws are split into this many chains; ArviZ compares chains.
        num_draws: Draws in one chain.

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
        ValueError: If a count is not positive.
    """
    check_count("num_chains", num_chains)
    check_count("num_draws", num_draws)
    shape, problem = (num_chains, num_draws), result.problem
    guide_key, prior_key = jax.random.split(key)
    measured, draws = _from_guide(problem, result.flow, guide_key, math.prod(shape))
    groups = _draw_groups(problem, measured, shape, ("posterior", "posterior_predictive", "sample_stats"))
    groups["sample_stats"] = _with_weights(result, groups["sample_stats"], measured, draws, guide_key)
    if getattr(result, "restarts", None) is not None:
        groups["restarts"] = _restarts(result, guide_key, num_draws)
    try:
        measured = _from_prior(problem, prior_key, math.prod(shape))
    except NotImplementedError:  # NumPyro's word for an improper prior.
        pass
    else:
        groups |= _draw_groups(problem, measured, shape, ("prior", "prior_predictive", "sample_stats_prior"))
    groups["constant_data"] = _constant_data(result)
    groups["optimization"] = result.history
    if (snapshots := getattr(result, "snapshots", None)) is not None:
        groups[SNAPSHOT_GROUP] = _snapshots(problem, snapshots)
    return groups, _root_attributes(result)


def to_datatree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Gather groups in one tree that NetCDF and Zarr can hold.

    A name that a file cannot hold is changed, ``/`` to ``.``, and the variable keeps its ``original_name``. A complex variable
    becomes two, ``.real`` and ``.imag``. Attributes become text, integers or floats: flags 0 or 1, None an empty text,
    anything nested JSON.
    """
    tree = xr.DataTree.from_dict({name: _portable(dataset) for name, dataset in groups.items()})
    tree.attrs = _attributes(attrs)
    return tree


def to_arviz(tree: xr.DataTree) -> Any:
    """Hand out what the installed ArviZ calls its container: an ``InferenceData`` (0.x) or the tree itself (1.x)."""
    import arviz as az

    return tree if int(az.__version__.split(".")[0]) >= 1 else az.InferenceData.from_datatree(tree)


def as_datatree(exported: Any) -> xr.DataTree:
    """Take exported data in any of its forms: a tree, an ArviZ 0.x ``InferenceData``, or a path to read.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(exported, xr.DataTree):
        return exported
    if isinstance(exported, str | os.PathLike):
        return read_arviz(exported)
    if hasattr(exported, "to_datatree"):
        return exported.to_datatree()
    raise TypeError(
        f"Expected exported data (a DataTree, an InferenceData or a path); got {exported!r:.100}. A result "
        "exports itself: result.to_arviz()."
    )


def write(tree: Any, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write exported data to ``path``, all of it or nothing.

    Args:
        tree: A tree, or an ArviZ 0.x ``InferenceData``.
        path: ``.nc`` for NetCDF, ``.zarr`` for a Zarr folder.
        overwrite: Replace what is there, if it is a file or a Zarr folder.

    Raises:
        ValueError: If the suffix is neither.
        FileNotFoundError: If the parent folder is missing.
        FileExistsError: If something is there, and ``overwrite`` is false or it is of another kind.
        PermissionError: If the folder cannot be written.
        OSError: If there is no room.
        ImportError: If Zarr is asked for and not installed.
    """
    tree, target = as_datatree(tree), Path(path)
    tree = to_datatree(tree.to_dict(), tree.attrs)
    check_target(target, overwrite)
    token = uuid.uuid4().hex
    fresh, old = target.with_name(f".{token}.partial"), target.with_name(f".{token}.replaced")
    try:
        if target.suffix == ".nc":
            # By way of memory: on a full disk HDF5 cannot close its file, and ends the process.
            fresh.write_bytes(tree.to_netcdf(None, engine="h5netcdf"))
            seal(fresh)
        else:
            tree.attrs[_HAS_CHECKSUMS] = CHECKSUMS
            # Format 2 has a specification for text and for metadata in one place; format 3 has neither yet.
            tree.to_zarr(fresh, zarr_format=2, consolidated=True, encoding=_checked(tree))
            seal(fresh)
            if target.exists():
                target.rename(old)
        os.replace(fresh, target)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            f"Expected room for a result at {target}; writing it failed: {error.strerror}. What was there is as it "
            "was. Make room, or give another path."
        ) from error
    finally:
        _discard(fresh, old, target)


def read_arviz(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read an exported file into memory and close it; it needs no model, no flow and no ArviZ.

    No code in the file is run, no link in it followed. What was saved with a digest is compared with it first; what another
    program has rewritten has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the file is truncated or damaged, something else wrote it, or it holds what no
            export does.
        ImportError: If it is a Zarr folder and Zarr is not installed.
    """
    source = Path(path)
    engine = _engine(source)
    if not source.exists():
        raise FileNotFoundError(f"Expected an exported result at {source}; there is no such file.")
    if source.is_dir() != (source.suffix == ".zarr"):
        raise ValueError(
            f"Expected a NetCDF file or a Zarr folder, as the suffix says; got the {'folder' if source.is_dir() else 'file'} "
            f"{source}. Give it the other suffix."
        )
    if broken := broken_seal(source):
        raise ValueError(_damaged(source, broken, engine))
    try:
        inspect(source)
        # Nothing of ours is a date; a stranger's attribute cannot make it one.
        with xr.open_datatree(source, engine=engine, decode_times=False) as opened:
            groups, attrs = opened.load().to_dict(), {str(name): value for name, value in opened.attrs.items()}
    except Refused:
        raise
    # Each storage library fails in its own way on a damaged file: say which file, and keep the cause.
    except Exception as error:
        raise ValueError(
            f"Expected a complete exported result at {source}; reading it failed: {error}. It may be truncated, or not "
            "what its suffix says. Export it again."
        ) from error
    if CHECKSUMS == attrs.pop(_HAS_CHECKSUMS, "") and not (source / CHECKSUMS).exists():
        raise ValueError(_damaged(source, f"{CHECKSUMS!r} is missing", engine))
    if _MARK not in attrs:
        raise ValueError(
            f"Expected a file that numpyro_epi exported (attribute {_MARK!r}); {source} has {sorted(attrs)}."
        )
    return to_datatree(groups, attrs)


def _damaged(source: Path, what: str, engine: str) -> str:
    return (
        f"Expected a complete exported result at {source}; {what}. It may be truncated or damaged, or another program edited "
        f"it. Export it again; xarray.open_datatree({str(source)!r}, engine={engine!r}) reads what is there."
    )


class _Measured(NamedTuple):
    draw: Draw
    values: dict[str, Array]
    finite: Array
    log_density: Scalar | PerDraw


class _Variable(NamedTuple):
    values: np.ndarray
    dims: tuple[str, ...]
    labels: tuple[np.ndarray, ...]
    attrs: dict[str, str]


def _measure(problem: Problem, key: Key, unconstrained: Unconstrained) -> _Measured:
    draw = problem.simulator(key, unconstrained)
    values = problem.property.values(draw.sites)
    finite = jnp.all(jnp.isfinite(problem.property.moments(values))) & jnp.isfinite(draw.log_prior)
    noise = {name for name in problem.simulator.noise if draw.sites[name].size > MOST_NOISE}
    draw = draw._replace(sites={name: value for name, value in draw.sites.items() if name not in noise})
    return _Measured(draw, values, finite, draw.log_prior)


def _from_guide(problem: Problem, flow: Any, key: Key, num_draws: int) -> tuple[_Measured, Draws]:
    @eqx.filter_jit
    def sample(flow, key):
        flow_key, noise_key = jax.random.split(key)
        unconstrained, log_q = flow.sample_and_log_prob(flow_key, (num_draws,))
        found = _batch(problem, noise_key, unconstrained)
        log_density = log_q - found.draw.log_det
        found = found._replace(log_density=log_density, finite=found.finite & jnp.isfinite(log_density))
        return found, unconstrained

    return jax.device_get(sample(flow, key))


def _from_prior(problem: Problem, key: Key, num_draws: int) -> _Measured:
    @jax.jit
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
    problem: Problem, measured: _Measured, shape: tuple[int, int], names: tuple[str, str, str]
) -> dict[str, xr.Dataset]:
    simulator, sites = problem.simulator, measured.draw.sites
    parameters = {name: _variable(name, sites[name], {"kind": "parameter"}) for name in simulator.names}
    predicted = {
        s.name: _predicted(s, measured.values[s.name]) for s in (t.statistic for t in problem.property.targets)
    }
    noise = [name for name in simulator.noise if name in sites]
    kinds = {name: "deterministic" for name in simulator.deterministics} | {name: "noise" for name in noise}
    for name, kind in kinds.items():
        predicted[_free(name, predicted, prefix="site.")] = _variable(name, sites[name], {"kind": kind})
    stats = {"lp": measured.log_density, "log_prior": measured.draw.log_prior, "finite": measured.finite}
    quality = {name: _variable(name, values, {"kind": "quality"}) for name, values in stats.items()}
    found = {name: _dataset(group, shape) for name, group in zip(names, (parameters, predicted, quality), strict=True)}
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


def _restarts(result: Any, key: Key, num_draws: int) -> xr.Dataset:
    """Parameters drawn from every restart's guide, one chain each."""
    problem, restarts = result.problem, result.restarts
    found = [
        _from_guide(problem, flow, jax.random.fold_in(key, 2 + i), num_draws)[0]
        for i, flow in enumerate(restarts.flows)
    ]
    sites = {
        name: _variable(name, np.concatenate([f.draw.sites[name] for f in found]), {"kind": "parameter"})
        for name in problem.simulator.names
    }
    dataset = _dataset(sites, (len(found), num_draws))
    by_chain = {"corrected": restarts.corrected, "standard_error": restarts.standard_error, "share": restarts.shares}
    dataset = dataset.assign({n: ("chain", np.asarray(v), {"kind": "restart"}) for n, v in by_chain.items()})
    dataset = dataset.assign(status=("chain", np.array(restarts.statuses), {"kind": "restart"}))
    return dataset.assign_attrs(draws="Chains are restarts, drawn independently from each one's own guide.")


def _snapshots(problem: Problem, found: Snapshots) -> xr.Dataset:
    """Parameters and statistics of the draws kept during the run."""
    shape = found.log_density.shape
    variables = {
        name: _variable(name, values.reshape(-1, *values.shape[2:]), {"kind": "parameter"})
        for name, values in found.parameters.items()
    }
    for statistic in (target.statistic for target in problem.property.targets):
        values = found.statistics[statistic.name]
        name = _free(statistic.name, variables, prefix="statistic.")
        variables[name] = _predicted(statistic, values.reshape(-1, *values.shape[2:]))
    density = _variable("lp", found.log_density.reshape(-1), {"kind": "quality"})
    variables[_free("lp", variables, prefix="quality.")] = density
    dataset = _dataset(variables, (shape[0], shape[1]), SNAPSHOT_DIMS)
    name = _free("step", map(str, dataset.variables), prefix="quality.")
    dataset = dataset.assign({name: ("snapshot", np.asarray(found.step), {"kind": "step"})})
    return dataset.assign_attrs(draws="The same noise goes into every snapshot, so that a draw can be followed.")


def _predicted(statistic: Statistic, values: Array | np.ndarray) -> _Variable:
    attrs = {"kind": "statistic", "unit": statistic.unit}
    return _variable(statistic.name, values, attrs, statistic.dims, statistic.coords)


def _variable(
    name: str,
    values: Array | np.ndarray,
    attrs: Mapping[str, str],
    dims: tuple[str, ...] = (),
    coords: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> _Variable:
    sizes = values.shape[1:]
    dims = dims or tuple(f"{name}_dim_{i}" for i in range(len(sizes)))
    labels = tuple(_axis(coords.get(dim), size) for dim, size in zip(dims, sizes, strict=True))
    return _Variable(np.asarray(values), dims, labels, {"original_name": name, **attrs})


def _axis(coord: Sequence[Any] | None, size: int) -> np.ndarray:
    if coord is None:
        return np.arange(size)
    names, labels = [str(label) for label in coord], np.asarray(coord)
    # Mixed types, such as 1 and 2.5, would change how a label prints, and with it the constraint's name.
    faithful = labels.ndim == 1 and labels.dtype.kind in "iufbU" and [str(label) for label in labels] == names
    return labels if faithful else np.asarray(names)


def _dataset(
    variables: Mapping[str, _Variable], shape: tuple[int, int], leading: tuple[str, str] = SAMPLE_DIMS
) -> xr.Dataset:
    """Two variables share a dim only where they also share its labels."""
    axes: dict[str, np.ndarray] = {dim: np.arange(size) for dim, size in zip(leading, shape, strict=True)}
    data: dict[str, tuple] = {}
    for name, variable in variables.items():
        dims: list[str] = [*leading]
        for dim, labels in zip(variable.dims, variable.labels, strict=True):
            blocked = {*dims, *variables, *(d for d, known in axes.items() if not np.array_equal(known, labels))}
            dims.append(_free(dim, blocked, prefix=f"{name}_"))
            axes[dims[-1]] = labels
        values = variable.values.reshape(*shape, *variable.values.shape[1:])
        data[_free(name, leading, prefix="site.")] = (dims, values, variable.attrs)
    return xr.Dataset(data, coords=axes, attrs={"draws": _INDEPENDENT})


def _free(name: str, blocked: Iterable[str], *, prefix: str) -> str:
    tries = itertools.chain([name], (prefix + name + "_" * i for i in itertools.count()))
    return next(found for found in tries if found not in blocked)


def _constant_data(result: Outcome) -> xr.Dataset:
    problem, data = result.problem, result.constraints.copy()
    data["statistic"] = ("constraint", np.array([constraint.statistic for constraint in problem.constraints]))
    for name, ends in _bounds(problem.simulator).items():
        for side, end in zip(("lower", "upper"), ends, strict=True):
            dims = [f"{name}_dim_{i}" for i in range(end.ndim)]
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
    found = jax.device_get(jax.jit(jax.vmap(ends))(places))
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
        _MARK: version("numpyro-epi"),
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


def _portable(dataset: xr.Dataset) -> xr.Dataset:
    originals: dict[str, str] = {}
    taken = {str(name) for name in (*dataset.variables, *dataset.dims)}
    for name in sorted(name for name in taken if _file_key(name) != name):
        originals[_free(_file_key(name), {*taken, *originals}, prefix="site.")] = name
    data: dict[str, tuple] = {}
    for key, variable in dataset.rename({old: new for new, old in originals.items()}).variables.items():
        name = str(key)
        renamed = {"original_name": originals[name]} if name in originals else {}
        attrs = _attributes({**renamed, **variable.attrs})
        data |= {part: (variable.dims, values, attrs) for part, values in _parts(name, variable.values).items()}
    coords = [name for name in data if originals.get(name, name) in dataset.coords]
    return xr.Dataset(data, attrs=_attributes(dataset.attrs)).set_coords(coords)


def _file_key(name: str) -> str:
    """A name that both formats can hold, as a file's name too: no path, no control characters, short, no reserved word."""
    key = "".join("." if letter in "/\\" or not letter.isprintable() else letter for letter in name)
    key = unicodedata.normalize("NFC", key)
    if not key.strip(". ") or key[0] in "._ " or key[-1] == " " or key in _RESERVED:
        key = f"site.{key.strip('. ')}"
    if len(key.encode()) > _LONGEST_KEY:
        key = f"{key.encode()[: _LONGEST_KEY - 9].decode(errors='ignore')}-{zlib.crc32(name.encode()):08x}"
    return key


def _parts(name: str, values: Any) -> dict[str, np.ndarray]:
    array = np.asarray(values)
    if array.dtype.kind == "c":
        return {f"{name}.real": np.real(array), f"{name}.imag": np.imag(array)}
    if array.dtype.kind == "V":  # bfloat16 and its kin, which no file format knows.
        return {name: array.astype(np.float32)}
    if array.dtype.kind in "OT":
        # By way of a list, since NumPy casts its texts of any length to none of a fixed one.
        return {name: np.array([str(value) for value in array.ravel()], str).reshape(array.shape)}
    if array.dtype.kind == "U" and any("\0" in text for text in array.ravel()):
        return {name: np.char.replace(array, "\0", "\u2400")}
    return {name: array}


def _attributes(attrs: Mapping[Any, Any]) -> dict[str, str | int | float]:
    return {str(name): _attribute(value) for name, value in attrs.items()}


def _attribute(value: Any) -> str | int | float:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        # HDF5 ends a text at its first NUL, and UTF-8 has no lone halves of a pair.
        return value.replace("\0", "\u2400").encode(errors="replace").decode()
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return json.dumps(value, default=lambda part: part.tolist() if hasattr(part, "tolist") else str(part))


def _engine(path: Path) -> str:
    engines = {".nc": "h5netcdf", ".zarr": "zarr"}
    if path.suffix not in engines:
        raise ValueError(f"Expected a path that ends in .nc (NetCDF) or .zarr (a Zarr folder); got {path}.")
    if path.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise ImportError(f"Expected the package zarr for {path}; it is missing: pip install 'numpyro-epi[zarr]'.")
    return engines[path.suffix]


def check_target(path: Path, overwrite: bool) -> None:
    """Find out whether something can be written, before what takes long.

    Raises:
        ValueError: As `write`, and the others.
    """
    engine = _engine(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected a folder at {path.parent}; there is none. Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder one can write to; got {path.parent}.")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"Expected nothing at {path} yet; it exists. Pass overwrite=True to replace it.")
    ours = path.is_file() if engine == "h5netcdf" else any((path / part).is_file() for part in (".zgroup", "zarr.json"))
    if os.path.lexists(path) and not ours:
        raise FileExistsError(f"Expected {path} to be something {engine} wrote; it is not, so it is not replaced.")


def _checked(tree: xr.DataTree) -> dict[str, dict[str, dict]]:
    """Zarr encodings with a checksum: the default codec reads a truncated chunk as garbage, without an error."""
    import numcodecs

    codec = {"compressors": [numcodecs.Zstd(level=3, checksum=True)]}
    return {node.path: {str(name): codec for name in node.variables} for node in tree.subtree}


def _discard(fresh: Path, old: Path, target: Path) -> None:
    """Leave neither a half-written export nor a replaced one; put the old one back if no new one arrived."""
    if old.exists() and not target.exists():
        old.rename(target)
    for path in (fresh, old):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            # Zarr's threads may be writing still, where one of them has failed.
            for _ in range(10 if path is fresh else 0):
                time.sleep(0.05)
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
