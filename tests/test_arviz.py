"""The exported data: what it holds, that it survives a file, and that both ArviZ generations take it."""

import json
import os
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from flowjax.distributions import Normal

from numpyro_epi import _arviz
from numpyro_epi._arviz import as_datatree, read_arviz, result_groups, to_arviz, to_datatree, write
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi.statistics import statistic

# ArviZ 0.23 announces its rewrite once a day; the others come from inside ArviZ and Matplotlib.
THIRD_PARTY = (
    "ignore:\\nArviZ is undergoing a major refactor:FutureWarning",
)
pytestmark = pytest.mark.filterwarnings("error", *THIRD_PARTY)

SUFFIXES = (".nc", ".zarr")


def network(num_rows: int = 2, num_columns: int = 2):
    """A matrix on an interval, a positive rate, and a noise vector, in a site whose name has a slash."""
    weights = numpyro.sample("A", dist.Uniform(-10, 10).expand([num_rows, num_columns]).to_event(2))
    rate = numpyro.sample("cell/rate", dist.Gamma(2.0, 1.0))
    noise = numpyro.sample("input/noise", dist.Normal(0, 1).expand([3]).to_event(1))
    numpyro.deterministic("drive", rate + noise)


@statistic(unit="Hz", dims=("cell",), coords={"cell": ("E", "I", "V")})
def cell_rate(sites):
    """A vector that depends on the noise."""
    return sites["cell/rate"] + 0.1 * sites["input/noise"]


@statistic(unit="1/s")
def trace(sites):
    """A scalar of the matrix."""
    return jnp.trace(sites["A"])


def network_problem(**sizes) -> Problem:
    prop = EmergentProperty(Target(trace, 1.0, std=0.5), Target(cell_rate, (2.0, 2.5, 3.0), std=(0.5, 0.5, 1.0)))
    return Problem(network, prop, parameters=("A", "cell/rate"), model_kwargs=sizes)


def history(num_constraints_names: list[str], num_epochs: int = 40) -> xr.Dataset:
    """A run that approaches its targets."""
    rng, epoch, names = np.random.default_rng(0), np.arange(num_epochs), num_constraints_names
    decay = np.exp(-epoch / 6)[:, None] * rng.normal(scale=3, size=len(names))
    violation = decay + 0.02 * rng.normal(size=decay.shape)
    scalars = {"step": 50 * (epoch + 1), "loss": 5 + np.exp(-epoch / 5), "entropy": 9 - 3 * (1 - np.exp(-epoch / 9))}
    scalars |= {"learning_rate": np.full(num_epochs, 3e-3), "finite_share": np.ones(num_epochs), "penalty": np.ones(num_epochs)}
    data = {name: ("epoch", values) for name, values in scalars.items()}
    matrices = {"violation": violation, "multiplier": 0.1 * violation.cumsum(axis=0), "moment": violation + 1}
    data |= {name: (("epoch", "constraint"), values) for name, values in matrices.items()}
    return xr.Dataset(data, coords={"epoch": epoch, "constraint": names})


def constraint_table(problem: Problem) -> xr.Dataset:
    """Constraints that hold nearly."""
    found, rng = problem.constraints, np.random.default_rng(1)
    numbers = {"target": problem.target, "scale": 0.5 + rng.random(len(found)), "order": np.array([c.order for c in found])}
    numbers["violation"] = 0.01 * rng.normal(size=len(found))
    numbers |= {"standard_error": 0.01 * numbers["scale"], "multiplier": rng.normal(size=len(found))}
    numbers["achieved"] = numbers["target"] + numbers["violation"] * numbers["scale"]
    data = {name: ("constraint", values) for name, values in numbers.items()}
    data["unit"] = ("constraint", [constraint.unit for constraint in found])
    return xr.Dataset(data, coords={"constraint": [constraint.name for constraint in found]})


def fake_result(problem: Problem) -> SimpleNamespace:
    """What a fit would return, without a fit."""
    constraints = constraint_table(problem)
    return SimpleNamespace(
        problem=problem,
        flow=Normal(jnp.linspace(-0.5, 0.5, problem.dim), jnp.linspace(0.3, 0.8, problem.dim)),
        status_name="satisfied",
        status_message="The emergent property holds within tolerance.",
        satisfied=True,
        entropy=6.5,
        seconds=1.5,
        seed="key<fry>[0 1]",
        settings={"tolerance": 0.05, "num_draws": 500, "flow": None},
        certificate=None,
        constraints=constraints,
        history=history(list(constraints["constraint"].values)),
    )
