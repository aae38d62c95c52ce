"""Labelled arrays of draws: names of axes from plates, statistics and users, and the labels along them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Array

from ._datatree import SAMPLE_DIMS, free_name
from ._simulator import Simulator

INDEPENDENT = "Chains are a split of independent draws: nothing is correlated along draw or chain."


class Variable(NamedTuple):
    """Draws of one site or statistic, [N, *shape], with a name and labels for each axis of the shape."""

    values: np.ndarray
    dims: tuple[str, ...]
    labels: tuple[np.ndarray, ...]
    attrs: dict[str, str]


class Axes(NamedTuple):
    """Names of sites' axes where they have any, and labels along axes by their name."""

    dims: Mapping[str, Mapping[int, str]]
    coords: Mapping[str, Sequence[Any]]

    @classmethod
    def of(
        cls,
        simulator: Simulator,
        dims: Mapping[str, Sequence[str]] = MappingProxyType({}),
        coords: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    ) -> "Axes":
        """The plates' names, and over them what the user says."""
        sites = [*simulator.names, *simulator.deterministics, *simulator.noise]
        if unknown := [name for name in dims if name not in sites]:
            raise ValueError(f"Expected dims of the sites {sites}; got {unknown}. A statistic brings its own.")
        if texts := [name for given in (dims, coords) for name, value in given.items() if isinstance(value, str)]:
            raise TypeError(f"Expected a sequence of names or labels for each of {texts}; got a text. Write a list.")
        plates = {p.name: {axis: plate for plate, axis in p.plates} for p in simulator.parameters}
        given = {name: dict(enumerate(names)) for name, names in dims.items()}
        return cls({name: plates.get(name, {}) | given.get(name, {}) for name in sites}, coords)

    def names(self, site: str, num_axes: int) -> tuple[str, ...]:
        named = self.dims.get(site, {})
        if any(axis >= num_axes for axis in named):
            raise ValueError(f"Expected {num_axes} names of the axes of {site!r} at most; got {list(named.values())}.")
        return tuple(named.get(i, f"{site}_dim_{i}") for i in range(num_axes))

    def variable(self, site: str, values: Array | np.ndarray, kind: str) -> Variable:
        """Draws of a site, [N, *shape]."""
        return make_variable(site, values, {"kind": kind}, self.names(site, values.ndim - 1), self.coords)


def make_variable(
    name: str,
    values: Array | np.ndarray,
    attrs: Mapping[str, str],
    dims: tuple[str, ...] = (),
    coords: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> Variable:
    sizes = values.shape[1:]
    dims = dims or tuple(f"{name}_dim_{i}" for i in range(len(sizes)))
    labels = tuple(_axis(dim, coords.get(dim), size) for dim, size in zip(dims, sizes, strict=True))
    return Variable(np.asarray(values), dims, labels, {"original_name": name, **attrs})


def _axis(dim: str, coord: Sequence[Any] | None, size: int) -> np.ndarray:
    if coord is None:
        return np.arange(size)
    if len(coord) != size:
        raise ValueError(f"Expected {size} labels along {dim!r}; got {len(coord)}.")
    names, labels = [str(label) for label in coord], np.asarray(coord)
    # Mixed types, such as 1 and 2.5, would change how a label prints, and with it the constraint's name.
    faithful = labels.ndim == 1 and labels.dtype.kind in "iufbU" and [str(label) for label in labels] == names
    return labels if faithful else np.asarray(names)


def make_dataset(
    variables: Mapping[str, Variable], shape: tuple[int, int], leading: tuple[str, str] = SAMPLE_DIMS
) -> xr.Dataset:
    """Two variables share a dim only where they also share its labels."""
    axes: dict[str, np.ndarray] = {dim: np.arange(size) for dim, size in zip(leading, shape, strict=True)}
    data: dict[str, tuple] = {}
    for name, variable in variables.items():
        dims: list[str] = [*leading]
        for dim, labels in zip(variable.dims, variable.labels, strict=True):
            blocked = {
                *dims,
                *SAMPLE_DIMS,
                *variables,
                *(d for d, known in axes.items() if not np.array_equal(known, labels)),
            }
            dims.append(free_name(dim, blocked, prefix=f"{name}_"))
            axes[dims[-1]] = labels
        values = variable.values.reshape(*shape, *variable.values.shape[1:])
        data[free_name(name, leading, prefix="site.")] = (dims, values, variable.attrs)
    return xr.Dataset(data, coords=axes, attrs={"draws": INDEPENDENT})
