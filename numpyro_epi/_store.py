"""A result on disk: its exported data, and beside them the flow's arrays, so that it can be drawn from again."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from flowjax.distributions import AbstractDistribution
from jax.tree_util import keystr, tree_flatten_with_path

from . import flows
from ._arguments import check_instance
from ._arviz import result_groups
from ._begin import build_flow
from ._conditioned import finite_test, wrap
from ._datatree import SENSITIVITY_GROUP, SNAPSHOT_GROUP, check_target, read_arviz, to_datatree, write
from ._keys import key_from_text
from ._outcome import STATUS, Certificate, Snapshots, Verdict
from ._problem import Problem
from ._result import Result

FLOW_GROUP, VERDICT_GROUP, CERTIFICATE_GROUP = "guide", "verdict", "certificate"
"""Groups of the file beside those that ArviZ knows."""


def save(
    result: Result,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    sensitivity: xr.Dataset | None = None,
) -> None:
    """Write a result to one NetCDF (``.nc``) or Zarr (``.zarr``) file; see `Result.save`."""
    check_target(Path(path), overwrite)
    key = jax.random.fold_in(key_from_text(result.seed), 7)
    groups, attrs = result_groups(result, key=key)
    groups[FLOW_GROUP] = _flow_dataset(result.flow)
    groups[VERDICT_GROUP] = _dataset(result.verdict)
    if result.certificate is not None:
        groups[CERTIFICATE_GROUP] = _dataset(result.certificate)
    if sensitivity is not None:
        groups[SENSITIVITY_GROUP] = sensitivity
    write(to_datatree(groups, attrs), path, overwrite)


def load(path: str | os.PathLike[str], problem: Problem, *, flow: flows.FlowBuilder = flows.default) -> Result:
    """Read a saved result back.

    Args:
        path: What `Result.save` wrote.
        problem: The question it answers; its constraints and parameters are compared with the file's.
        flow: The flow builder that the run was given; only the shapes of what it builds matter.

    Returns:
        A result that draws, evaluates and exports as the saved one did.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is damaged, answers another question, or holds another flow.
    """
    check_instance("problem", problem, Problem, "the Problem that was fitted")
    if not callable(flow):
        raise TypeError(
            f"Expected flow to be the builder that the run was given, such as flows.Coupling(); got {flow!r}."
        )
    tree = read_arviz(path)
    missing = {FLOW_GROUP, VERDICT_GROUP, "constant_data", "optimization"} - set(tree.children)
    if missing:
        raise ValueError(f"Expected a file written by Result.save; {Path(path)} has no group {sorted(missing)}.")
    constraints = tree["constant_data"].to_dataset()
    _compare(problem, constraints, Path(path))
    settings = json.loads(tree.attrs["settings"])
    built: AbstractDistribution = build_flow(jax.random.key(0), flow, problem.dim, int(settings["num_components"]))
    if (policy := settings.get("nonfinite", "refuse")) != problem.nonfinite:
        raise ValueError(
            f"Expected a result for nonfinite={problem.nonfinite!r}; {Path(path)} holds one for {policy!r}."
        )
    if problem.nonfinite == "condition":
        built = wrap(built, finite_test(problem), 1.0, 1)  # Its share is among the arrays.
    if (count := int(settings.get("num_mixed", 1))) > 1:
        built = flows.mixture([built] * count, np.ones(count))
    certificate = Certificate(**_fields(tree, CERTIFICATE_GROUP)) if CERTIFICATE_GROUP in tree.children else None
    history = tree["optimization"].to_dataset()
    return Result(
        problem=problem,
        flow=_with_arrays(built, tree[FLOW_GROUP].to_dataset(), Path(path)),
        status=STATUS[tree.attrs["status"]],
        verdict=Verdict(**_fields(tree, VERDICT_GROUP)),
        eta=np.asarray(constraints["multiplier"]),
        records={str(n): np.asarray(v) for n, v in history.data_vars.items()},
        settings=settings,
        seconds=float(tree.attrs["seconds"]),
        seed=str(tree.attrs["seed"]),
        certificate=certificate,
        snapshots=_snapshots(tree[SNAPSHOT_GROUP].to_dataset()) if SNAPSHOT_GROUP in tree.children else None,
    )


def _dataset(found: Verdict | Certificate) -> xr.Dataset:
    known = {name: value for name, value in found._asdict().items() if value is not None}
    return xr.Dataset({name: _cell(value, name if np.ndim(value) > 1 else "") for name, value in known.items()})


def _fields(tree: xr.DataTree, group: str) -> dict[str, Any]:
    return {str(name): _uncell(variable) for name, variable in tree[group].to_dataset().data_vars.items()}


def _snapshots(found: xr.Dataset) -> Snapshots:
    columns: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ("parameter", "statistic", "quality", "step")}
    for variable in found.data_vars.values():
        name = str(variable.attrs.get("original_name", variable.name))
        columns[variable.attrs["kind"]][name] = np.asarray(variable)
    (step,), (density,) = columns["step"].values(), columns["quality"].values()
    return Snapshots(step, columns["parameter"], columns["statistic"], density)


def _flow_dataset(flow: AbstractDistribution) -> xr.Dataset:
    arrays = [(keystr(path), leaf) for path, leaf in tree_flatten_with_path(flow)[0] if eqx.is_array(leaf)]
    data = {f"leaf_{i}": _cell(leaf, prefix=f"leaf_{i}", path=path) for i, (path, leaf) in enumerate(arrays)}
    return xr.Dataset(data)


def _cell(value: Any, prefix: str = "", path: str = "") -> xr.DataArray:
    array = np.asarray(value)
    dims = [f"{prefix}_dim_{i}" if prefix else "constraint" for i in range(array.ndim)]
    return xr.DataArray(array, dims=dims, attrs={"path": path} if path else {})


def _uncell(variable: xr.DataArray) -> Any:
    array = np.asarray(variable)
    return array if array.ndim else array.item()


def _with_arrays(flow: AbstractDistribution, saved: xr.Dataset, path: Path) -> AbstractDistribution:
    leaves, structure = tree_flatten_with_path(flow)
    found = {str(v.attrs["path"]): np.asarray(v) for v in saved.data_vars.values()}
    wanted = {keystr(p): np.shape(leaf) for p, leaf in leaves if eqx.is_array(leaf)}
    if wanted != {p: a.shape for p, a in found.items()}:
        raise ValueError(
            f"Expected the flow that was fitted; the {len(found)} arrays in {path} are not those of the {len(wanted)} "
            "that flow=... builds. Pass the builder that the run was given; files of an earlier version hold another flow."
        )
    filled = [jnp.asarray(found[keystr(p)], leaf.dtype) if eqx.is_array(leaf) else leaf for p, leaf in leaves]
    return jax.tree.unflatten(structure, filled)


def _compare(problem: Problem, constraints: xr.Dataset, path: Path) -> None:
    names = [constraint.name for constraint in problem.constraints]
    saved = [str(name) for name in constraints["constraint"].values]
    if names != saved:
        raise ValueError(f"Expected a result for the constraints {names}; {path} holds one for {saved}.")
    targets = np.asarray(constraints["target"], float)
    if not np.allclose(targets, problem.target, rtol=1e-6):
        raise ValueError(f"Expected a result for the targets {problem.target.tolist()}; {path} has {targets.tolist()}.")
