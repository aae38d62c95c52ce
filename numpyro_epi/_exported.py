"""Exported data as pictures and pages read it: one column of draws for each number, by its name."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ._datatree import SAMPLE_DIMS


def read_group(tree: xr.DataTree, name: str) -> xr.Dataset:
    if name not in tree.children:
        raise ValueError(f"Expected a group {name!r}; got the groups {sorted(tree.children)}.")
    return tree[name].to_dataset()


def optional_group(tree: xr.DataTree, name: str) -> xr.Dataset:
    return read_group(tree, name) if name in tree.children else xr.Dataset()


def labels_of(array: xr.DataArray) -> list[str]:
    """One name for each component; a component is what is left of a draw's array.

    Statistics' components have their labels, as constraints do. Those of parameters have places, as in `Density.names`.
    """
    dims, by_place = [dim for dim in array.dims if dim not in SAMPLE_DIMS], array.attrs.get("kind") == "parameter"
    axes = [map(str, np.arange(array.sizes[dim]) if by_place else array[dim].values) for dim in dims]
    name = array.attrs.get("original_name", str(array.name))
    return [f"{name}[{','.join(index)}]" if index else name for index in itertools.product(*axes)]


def read_components(dataset: xr.Dataset, kind: str = "parameter") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for array in dataset.data_vars.values():
        if array.attrs.get("kind") == kind:
            labels = labels_of(array)
            columns = array.transpose(*SAMPLE_DIMS, ...).values.reshape(-1, len(labels)).T
            found |= dict(zip(labels, columns, strict=True))
    return found


def read_bounds(tree: xr.DataTree) -> dict[str, tuple[float, float]]:
    arrays = optional_group(tree, "constant_data").data_vars.values()
    ends = {(a.attrs["parameter"], a.attrs["kind"]): a.values.ravel() for a in arrays if "parameter" in a.attrs}
    found: dict[str, tuple[float, float]] = {}
    for name, array in read_group(tree, "posterior").data_vars.items():
        site = array.attrs.get("original_name", name)
        if (site, "lower bound") in ends:
            pairs = zip(ends[site, "lower bound"].tolist(), ends[site, "upper bound"].tolist(), strict=True)
            found |= dict(zip(labels_of(array), pairs, strict=True))
    return found


def select_names(names: list[str], wanted: Sequence[str] | None) -> list[str]:
    if isinstance(wanted, str):
        raise TypeError(f"Expected a sequence of names; got the string {wanted!r}. Write ({wanted!r},).")
    if wanted is None:
        return names
    sites = {name.partition("[")[0] for name in names}
    if unknown := [name for name in wanted if name not in {*names, *sites}]:
        raise ValueError(f"Expected parameters among {sorted(sites)} and their components {names}; got {unknown}.")
    if not wanted:
        raise ValueError("Expected at least one parameter; got an empty sequence. Leave it out for all.")
    return [name for name in names if name in wanted or name.partition("[")[0] in wanted]


def read_targets(constraints: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Mean, spread, unit and distance of each statistic component, by its name."""
    rows = [constraints.isel(constraint=i) for i in range(constraints.sizes["constraint"])]
    spreads = {str(row["statistic"].item()): math.sqrt(row["target"].item()) for row in rows if row["order"] == 2}
    found = {}
    for row in (row for row in rows if row["order"] == 1):
        name, distance = str(row["statistic"].item()), abs(row["violation"].item())
        unit = str(row["unit"].item())
        found[name] = {"mean": row["target"].item(), "std": spreads.get(name), "unit": unit, "distance": distance}
    return found


def finite_part(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def read_number(attrs: Mapping[Any, Any], name: str) -> float:
    """A root attribute that is a number; NaN where there is none."""
    try:
        return float(attrs.get(name, np.nan))
    except (TypeError, ValueError):
        raise ValueError(f"Expected the attribute {name} to be a number; got {attrs[name]!r:.100}.") from None


def read_tolerance(attrs: Mapping[Any, Any]) -> float:
    """Of the run, in standard deviations."""
    settings = attrs.get("settings") or "{}"
    try:
        return float(json.loads(settings).get("tolerance", 0.05))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"Expected the attribute settings to be JSON of a dictionary; got {settings!r:.100}."
        ) from None


def read_gap(tree: xr.DataTree) -> float:
    """How far the answer can be from the optimum, nats; NaN where that is not known."""
    return read_number(tree.attrs, "gap")
