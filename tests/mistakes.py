"""One tiny problem, what it could have given, files of many kinds, and how a mistake is written down."""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from flowjax.distributions import StandardNormal

import numpyro_epi as epi
from numpyro_epi._arviz import result_groups
from numpyro_epi._begin import build_flow
from numpyro_epi._datatree import to_datatree, write
from numpyro_epi._density import Density, OfFlow
from numpyro_epi._outcome import Verdict

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")


# One tiny problem, and what it could have given.


def model():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("p", dist.Uniform(0.0, 1.0))


def first(sites):
    return sites["z"][0]


def prop(mean=0.0, std=None, statistic=first, **options):
    return epi.EmergentProperty(epi.Target(statistic, mean, std, **options))


def problem(model=model, statistic=first, mean=0.0, std=None, **options):
    return epi.Problem(model, prop(mean, std, statistic), **options)


def tiny_flow(key, dim):
    return StandardNormal((dim,))


TINY = problem()
FLOW = build_flow(KEY, tiny_flow, 3, 1)
DENSITY = Density(TINY, OfFlow(FLOW))


def result(eta=0.1):
    """As after a run of no epochs."""
    one = np.ones(1)
    verdict = Verdict(0 * one, one, 0.01 * one, 1.0, 0.1, -0.1, 1.0, 100)
    records = {name: np.zeros((0, 1)) for name in ("multiplier", "violation", "moment")}
    records |= {name: np.zeros(0) for name in ("step", "loss", "entropy")}
    settings = {"tolerance": 0.05, "num_components": 1, "start_message": "", "steps": 0, "num_draws": 4}
    return epi.Result(TINY, FLOW, epi.STATUS.satisfied, verdict, eta * one, records, settings, 1.0, "0,0")


RESULT = result()


def fit(key=KEY, problem=TINY, **options):
    return epi.fit(key, problem, **{"progress": False, **options})


def place(**changes):
    """Values of all parameters, some of them wrong."""
    return {name: v for name, v in ({"z": np.zeros(2), "p": 0.5} | changes).items() if v is not None}


@functools.cache
def folder():
    """Files of many kinds, made once."""
    found = Path(tempfile.mkdtemp())
    groups, attrs = result_groups(RESULT, key=KEY, num_chains=2, num_draws=3)
    write(to_datatree(groups, attrs), found / "exported.nc")
    RESULT.save(found / "saved.nc")
    xr.Dataset({"x": 1.0}).to_netcdf(found / "foreign.nc", engine="h5netcdf")
    with h5py.File(found / "plain.nc", "w") as file:
        file["x"] = np.zeros(3)
    (found / "text.nc").write_text("no result")
    (found / "text.nc.ckpt").write_text("no checkpoint")
    (found / "folder.ckpt").mkdir()
    (found / "empty.nc").write_bytes(b"")
    (found / "folder.nc").mkdir()
    (found / "file.zarr").write_text("no folder")
    (found / "empty.zarr").mkdir()
    (found / "page.html").write_text("mine")
    (found / "folder.html").mkdir()
    (found / "link.html").symlink_to(found / "nowhere.html")
    (found / "link.nc").symlink_to(found / "nowhere.nc")
    (found / "exported-pair.png").write_bytes(b"mine")
    (found / "problems.py").write_text(PROBLEMS)
    return found


PROBLEMS = """
import numpyro, numpyro.distributions as dist, numpyro_epi as epi
def model(): numpyro.sample("z", dist.Normal(0, 1))
def build(*, mean=0.5): return epi.Problem(model, epi.EmergentProperty(epi.Target(lambda s: s["z"], mean, name="z")))
def sized(*, size: int): return build(mean=1.0 / size)
ready = build()
number = 3
"""


class Row(NamedTuple):
    """One mistake."""

    id: str
    call: object
    error: type
    match: str


def z(sites):
    return sites["z"]
