"""Whatever is wrong with the input, one clear error says what was expected, what came, and what to do."""

import functools
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import xarray as xr
from flowjax.distributions import Normal, StandardNormal

import numpyro_epi as epi
from numpyro_epi._arviz import result_groups, to_datatree, write
from numpyro_epi._begin import build_flow
from numpyro_epi._cli import main
from numpyro_epi._density import Density, OfFlow
from numpyro_epi._outcome import Verdict

LIMIT = 5.0
"""Seconds within which every mistake is named."""

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


# Models.


def empty():
    return 3


def computed_only():
    numpyro.deterministic("x", jnp.ones(()))


def discrete():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("k", dist.Poisson(2.0))


def observed():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(z, 1.0), obs=1.0)


def factored():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("likelihood", -z)


def trained():
    numpyro.sample("z", dist.Normal(numpyro.param("centre", 0.0), 1.0))


def subsampled():
    with numpyro.plate("cells", 10, subsample_size=5):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def crossed_plates():
    with numpyro.plate("cells", 2, dim=-1), numpyro.plate("trials", 3, dim=-1):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def wrong_plate():
    with numpyro.plate("cells", 3):
        numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0))


def of_size_of_another():
    n = numpyro.sample("n", dist.Normal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([int(n)]))


def improper():
    numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))


def same_names():
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def same_name_as_computed():
    numpyro.deterministic("z", numpyro.sample("z", dist.Normal(0.0, 1.0)))


def branching():
    if numpyro.sample("z", dist.Normal(0.0, 1.0)) > 0:
        pass


def in_numpy():
    numpyro.deterministic("x", np.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0))))


def of_no_distribution():
    numpyro.sample("z", 3.0)


def unlicensed():
    raise RuntimeError("no licence")


def sized(size):
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size]))


def of_no_numbers():
    numpyro.sample("z", dist.Normal(0.0, 1.0).expand([0]).to_event(1))
    numpyro.sample("p", dist.Uniform(0.0, 1.0))


class Row(NamedTuple):
    """One mistake."""

    id: str
    call: object
    error: type
    match: str


def z(sites):
    return sites["z"]


MODELS = [
    Row("text", lambda: problem("model"), TypeError, r"Expected a NumPyro model .*got 'model', a str"),
    Row("none", lambda: problem(None), TypeError, "Expected a NumPyro model .*got None"),
    Row("distribution", lambda: problem(dist.Normal()), ValueError, "Expected a model that runs; 'Normal' failed"),
    Row("no site", lambda: problem(empty), ValueError, r"Expected at least one continuous parameter; .* only \{\}"),
    Row("only computed", lambda: problem(computed_only), ValueError, r"only \{'x': 'deterministic'\}"),
    Row("discrete", lambda: problem(discrete), ValueError, r"the discrete site\(s\) \['k'\]. .*parameters=\('z',\)"),
    Row("discrete asked for", lambda: problem(discrete, parameters=("k",)), ValueError, r"got the discrete .*\['k'\]"),
    Row("observed", lambda: problem(observed), ValueError, r"Expected a model that observes nothing; .*\['y'\]"),
    Row("factor", lambda: problem(factored), ValueError, r"observes nothing; .*\['likelihood'\]"),
    Row("param", lambda: problem(trained), ValueError, r"numpyro.param site\(s\) \['centre'\]. Make them sample sites"),
    Row("subsampled plate", lambda: problem(subsampled, z), ValueError, r"plates without subsampling; got \['cells'\]"),
    Row("crossed plates", lambda: problem(crossed_plates), ValueError, "'crossed_plates' failed: "),
    Row("plate of another size", lambda: problem(wrong_plate), ValueError, "'wrong_plate' failed: "),
    Row(
        "size of another site",
        lambda: problem(of_size_of_another),
        ValueError,
        "'of_size_of_another' failed: Concretiz",
    ),
    Row("two sites of a name", lambda: problem(same_names), ValueError, "'same_names' failed: .*`z`"),
    Row(
        "computed name clash", lambda: problem(same_name_as_computed), ValueError, "'same_name_as_computed' failed.*`z`"
    ),
    Row("if", lambda: problem(branching), ValueError, "'branching' failed: TracerBool.*jax.lax.cond or jnp.where"),
    Row("numpy", lambda: problem(in_numpy), ValueError, "'in_numpy' failed: TracerArray.*write jnp for np"),
    Row("number for distribution", lambda: problem(of_no_distribution), ValueError, "'of_no_distribution' failed: "),
    Row("raises", lambda: problem(unlicensed), ValueError, "'unlicensed' failed: RuntimeError: no licence. Its arg"),
    Row("missing argument", lambda: problem(sized), ValueError, "'sized' failed: TypeError: .*missing 1.*'size'"),
    Row("wrong argument", lambda: problem(sized, model_args=("two",)), ValueError, "'sized' failed: "),
    Row(
        "one argument too many",
        lambda: problem(model_args=(1,)),
        ValueError,
        "'model' failed: TypeError: .*1 was given",
    ),
    Row("unknown argument", lambda: problem(model_kwargs={"n": 1}), ValueError, "failed: TypeError: .*argument 'n'"),
    Row("no numbers", lambda: problem(of_no_numbers), ValueError, r"parameters of at least one number; got \['z'\]"),
    Row(
        "improper, pilot",
        lambda: epi.starts.Pilot()(KEY, problem(improper)),
        ValueError,
        "Expected a proper prior for pilot draws; this one is improper. Use starts.Gaussian",
    ),
    Row(
        "improper, reweighted",
        lambda: epi.solve_dual(KEY, problem(improper), method="reweight"),
        ValueError,
        "Expected a proper prior as the base.*Use method='chains'",
    ),
]

OPTIONS = [
    Row("property a list", lambda: epi.Problem(model, [1.0]), TypeError, r"Expected an EmergentProperty; got \[1.0\]"),
    Row(
        "property a target",
        lambda: epi.Problem(model, epi.Target(first, 0.0)),
        TypeError,
        "EmergentProperty; got Target",
    ),
    Row("parameters a text", lambda: problem(parameters="z"), TypeError, r"got the string 'z'. Write \('z',\)"),
    Row("parameters a number", lambda: problem(parameters=3), TypeError, "a sequence of site names; got 3"),
    Row("parameters of numbers", lambda: problem(parameters=("z", 3)), TypeError, r"site names; got \('z', 3\)"),
    Row("no parameters", lambda: problem(parameters=()), ValueError, "got an empty sequence. Leave it out"),
    Row("unknown parameter", lambda: problem(parameters=("w",)), ValueError, r"among the sample sites .*got \['w'\]"),
    Row(
        "parameter twice", lambda: problem(parameters=("z", "z")), ValueError, r"each parameter once; got \('z', 'z'\)"
    ),
    Row("unknown base", lambda: problem(base="flat"), ValueError, "Expected base 'prior' or 'lebesgue'; got 'flat'"),
    Row("base none", lambda: problem(base=None), ValueError, "Expected base .*; got None"),
    Row("name a number", lambda: problem(name=3), TypeError, "Expected name to be a text; got 3"),
    Row(
        "model_args a number",
        lambda: problem(model_args=3),
        TypeError,
        r"model_args to be a tuple .*got 3. Write \(3,\)",
    ),
    Row("model_args a text", lambda: problem(model_args="ab"), TypeError, "model_args to be a tuple .*got 'ab'"),
    Row("model_kwargs a tuple", lambda: problem(model_kwargs=(1,)), TypeError, r"model_kwargs to map .*got \(1,\)"),
    Row(
        "model_kwargs of numbers",
        lambda: problem(model_kwargs={1: 2}),
        TypeError,
        r"model_kwargs to map .*got \{1: 2\}",
    ),
    Row("num_draws too few", lambda: problem(num_draws=3), ValueError, "num_draws to be an integer >= 4; got 3"),
    Row("num_draws a flag", lambda: problem(num_draws=True), ValueError, "num_draws to be an integer >= 4; got True"),
    Row("max_steps zero", lambda: problem(max_steps=0), ValueError, "max_steps to be an integer >= 1; got 0"),
    Row("max_steps a text", lambda: problem(max_steps="9"), ValueError, "max_steps to be an integer >= 1; got '9'"),
    Row(
        "check without key",
        lambda: TINY.check(0),
        TypeError,
        r"Expected one random key first; got 0. Write jax.random.key",
    ),
    Row(
        "registered name unknown", lambda: epi.get_problem("dynamics.pendulum"), LookupError, "got 'dynamics.pendulum'"
    ),
    Row("registered name a number", lambda: epi.get_problem(3), LookupError, "registered problem, a text; got 3"),
    Row("registered name empty", lambda: epi.get_problem(""), LookupError, "Expected a registered problem; got ''"),
]

STATISTICS = [
    Row("number", lambda: epi.Target(3, 0.0), TypeError, "a registered name or a function; got int 3"),
    Row("none", lambda: epi.Target(None, 0.0), TypeError, "got NoneType None"),
    Row(
        "unknown name",
        lambda: epi.Target("site.vlaue", 0.0),
        LookupError,
        "got 'site.vlaue'. Did you mean 'site.value'",
    ),
    Row("name a number", lambda: epi.get_statistic(3), LookupError, "registered statistic, a text; got 3"),
    Row(
        "without its option",
        lambda: epi.Target("site.value", 0.0),
        TypeError,
        r"option\(s\) \['site'\] of 'site.value'",
    ),
    Row("unknown option", lambda: epi.get_statistic("site.log", at="z"), TypeError, r"among \['site'\]; got \['at'\]"),
    Row(
        "missing site",
        lambda: problem(statistic=lambda s: s["x"]),
        ValueError,
        "failed on one draw: KeyError: 'x'.*'z'",
    ),
    Row("raises", lambda: problem(statistic=lambda s: 1 / 0), ValueError, "failed on one draw: ZeroDivisionError"),
    Row("returns none", lambda: problem(statistic=lambda s: None), ValueError, "failed on one draw: .*None"),
    Row("returns text", lambda: problem(statistic=lambda s: "high"), ValueError, "failed on one draw: .*high"),
    Row(
        "returns a dictionary",
        lambda: problem(statistic=lambda s: {"a": 1}),
        ValueError,
        "failed on one draw: TypeError: .*dict",
    ),
    Row(
        "returns complex",
        lambda: problem(statistic=lambda s: s["p"] * 1j),
        ValueError,
        "returned complex numbers; return",
    ),
    Row(
        "returns nothing",
        lambda: problem(statistic=lambda s: s["z"][:0]),
        ValueError,
        r"at least one number; got shape \(0,\)",
    ),
    Row(
        "changes its shape",
        lambda: problem(statistic=lambda s: s["z"][s["z"] > 0]),
        ValueError,
        "failed on one draw: NonC",
    ),
    Row(
        "branches",
        lambda: problem(statistic=lambda s: 1 if s["p"] > 0 else 0),
        ValueError,
        "failed on one draw: TracerBool",
    ),
    Row("takes two arguments", lambda: problem(statistic=lambda s, t: s["p"]), ValueError, "failed .*TypeError: .*'t'"),
    Row(
        "decorated without call",
        lambda: epi.statistic(first),
        TypeError,
        r"got @statistic on <function first.*Write @statistic\(\)",
    ),
    Row("decorates a number", lambda: epi.statistic()(3), TypeError, r"a function of one draw's sites; got 3"),
    Row(
        "unit none",
        lambda: epi.statistic(unit=None)(first),
        TypeError,
        "the unit of a statistic to be a text; got None",
    ),
    Row(
        "unit a number", lambda: epi.statistic(unit=1)(first), TypeError, "the unit of a statistic to be a text; got 1"
    ),
    Row(
        "name a list",
        lambda: epi.statistic(name=["a"])(first),
        TypeError,
        r"the name of a statistic to be a text; got \['a'\]",
    ),
    Row("dims a text", lambda: epi.statistic(dims="cell")(z), TypeError, r"got the string 'cell'. Write \('cell',\)"),
    Row(
        "coords a list", lambda: epi.statistic(coords=["E"])(z), TypeError, r"coords to map dims to labels; got \['E'\]"
    ),
    Row("coords of no dim", lambda: epi.statistic(coords={"c": "EI"})(z), ValueError, r"among \(\); got \['c'\]"),
    Row(
        "differentiable a text",
        lambda: epi.statistic(differentiable="no")(z),
        TypeError,
        "differentiable to be .*got 'no'",
    ),
    Row(
        "too many dims",
        lambda: problem(statistic=epi.statistic(dims=("a", "b"))(z)),
        ValueError,
        r"over dims \('a', 'b'\); got shape \(2,\)",
    ),
    Row(
        "too few labels",
        lambda: problem(statistic=epi.statistic(dims=("a",), coords={"a": ("E",)})(z)),
        ValueError,
        r"Expected 2 labels for dim 'a' of 'z'; got 1: \['E'\]",
    ),
    Row(
        "label twice",
        lambda: problem(statistic=epi.statistic(dims=("a",), coords={"a": ("E", "E")})(z)),
        ValueError,
        r"every constraint's name once; got \['z\[E\]'\]",
    ),
]

TARGETS = [
    Row("mean nan", lambda: prop(NAN), ValueError, "Expected a finite mean for 'first'; got nan"),
    Row("mean infinite", lambda: prop(-INF), ValueError, "Expected a finite mean for 'first'; got -inf"),
    Row("mean none", lambda: prop(None), ValueError, "mean of 'first' .*; got None|finite mean .*; got None"),
    Row("mean a text", lambda: prop("high"), ValueError, "Expected mean of 'first' to be numbers; got 'high'"),
    Row("mean complex", lambda: prop(1j), ValueError, "Expected mean of 'first' to be numbers; got 1j"),
    Row("mean ragged", lambda: prop([[1.0], [1.0, 2.0]]), ValueError, r"to be numbers; got \[\[1.0\], \[1.0, 2.0\]\]"),
    Row(
        "mean out of single precision",
        lambda: prop(1e30),
        ValueError,
        r"at most 1e\+18, .*; got 1e\+30. .* larger unit",
    ),
    Row(
        "std out of single precision",
        lambda: prop(0.0, 1e-30),
        ValueError,
        "at least 1e-18, .*; got 1e-30. .*smaller unit",
    ),
    Row("std zero", lambda: prop(0.0, 0.0), ValueError, "Expected std > 0 for 'first'; got 0.0. .* leave std out"),
    Row("std negative", lambda: prop(0.0, -1.0), ValueError, "Expected std > 0 for 'first'; got -1.0"),
    Row("std nan", lambda: prop(0.0, NAN), ValueError, "Expected a finite std for 'first'; got nan"),
    Row("std infinite", lambda: prop(0.0, INF), ValueError, "Expected a finite std for 'first'; got inf"),
    Row(
        "one std of two negative",
        lambda: prop(0.0, [1.0, -2.0], z),
        ValueError,
        r"Expected std > 0 for 'z'; got \[1.0, -2.0\]",
    ),
    Row("mean too long", lambda: problem(mean=[0.0, 1.0]), ValueError, r"scalar or of shape \(\); got shape \(2,\)"),
    Row("mean of no numbers", lambda: problem(mean=[]), ValueError, r"scalar or of shape \(\); got shape \(0,\)"),
    Row("std too long", lambda: problem(statistic=z, std=np.ones(3)), ValueError, r"shape \(2,\); got shape \(3,\)"),
    Row("unknown order", lambda: epi.Target(first, 0.0, order=3), TypeError, "unexpected keyword argument 'order'"),
    Row("name a number", lambda: prop(name=3), TypeError, "name to be a text of at least one letter; got 3"),
    Row("name empty", lambda: prop(name=""), TypeError, "name to be a text of at least one letter; got ''"),
    Row("no target", epi.EmergentProperty, ValueError, "Expected at least one Target; got none"),
    Row(
        "a list of targets", lambda: epi.EmergentProperty([epi.Target(first, 0.0)]), TypeError, r"got \['list'\]. Write"
    ),
    Row("a function", lambda: epi.EmergentProperty(first), TypeError, r"Expected Target objects; got \['function'\]"),
    Row(
        "statistic twice",
        lambda: epi.EmergentProperty(epi.Target(first, 0.0), epi.Target(first, 1.0)),
        ValueError,
        r"Expected each statistic once; got \['first'\]",
    ),
]

KEYS = [
    Row(f"{kind}, {call}", lambda use=use, key=key: use(key), TypeError, rf"Expected one random key first; got {got}")
    for kind, key, got in (
        ("number", 0, "0. Write jax.random.key"),
        ("none", None, "None"),
        ("batch", jax.random.split(KEY), r"an array of key<fry>\[2\]"),
        ("batch of legacy keys", np.zeros((3, 2), np.uint32), "array"),
        ("numbers", jnp.zeros(2), r"an array of float32\[2\]"),
    )
    for call, use in (("fit", fit), ("dual", lambda key: epi.solve_dual(key, TINY)))
]
KEYS += [
    Row(f"number, {call}", use, TypeError, "Expected one random key first; got 7")
    for call, use in (
        ("sample", lambda: RESULT.sample(7)),
        ("statistics", lambda: RESULT.statistics(7)),
        ("export", lambda: RESULT.to_arviz(7)),
        ("modes", lambda: DENSITY.modes(7)),
        ("certify", lambda: epi.certify(7, RESULT)),
        ("tilted", lambda: RESULT.sample_tilted(7)),
        ("published test", lambda: epi.bittner2021_test(7, RESULT)),
    )
]

FIT = [
    Row("no problem", lambda: fit(problem=model), TypeError, "Expected a Problem; got function. Write fit"),
    Row("num_draws zero", lambda: fit(num_draws=0), ValueError, "num_draws to be an integer >= 4; got 0"),
    Row("num_draws negative", lambda: fit(num_draws=-5), ValueError, "num_draws to be an integer >= 4; got -5"),
    Row("num_draws a fraction", lambda: fit(num_draws=99.5), ValueError, "num_draws to be an integer >= 4; got 99.5"),
    Row("num_draws nan", lambda: fit(num_draws=NAN), ValueError, "num_draws to be an integer >= 4; got nan"),
    Row(
        "max_steps too large",
        lambda: fit(max_steps=10**12),
        ValueError,
        "max_steps .* from 1 to 2147483647; got 1000000000000",
    ),
    Row("max_steps a flag", lambda: fit(max_steps=True), ValueError, "max_steps to be an integer >= 1; got True"),
    Row("num_restarts zero", lambda: fit(num_restarts=0), ValueError, "num_restarts to be an integer >= 1; got 0"),
    Row(
        "num_restarts a text", lambda: fit(num_restarts="2"), ValueError, "num_restarts to be an integer >= 1; got '2'"
    ),
    Row("tolerance zero", lambda: fit(tolerance=0.0), ValueError, "Expected a finite tolerance > 0, .*; got 0.0"),
    Row("tolerance nan", lambda: fit(tolerance=NAN), ValueError, "finite tolerance > 0, .*; got nan"),
    Row("tolerance infinite", lambda: fit(tolerance=INF), ValueError, "finite tolerance > 0, .*; got inf"),
    Row("tolerance a text", lambda: fit(tolerance="5 %"), ValueError, "finite tolerance > 0, .*; got '5 %'"),
    Row("tolerance none", lambda: fit(tolerance=None), ValueError, "finite tolerance > 0, .*; got None"),
    Row("tolerance a flag", lambda: fit(tolerance=True), ValueError, "finite tolerance > 0, .*; got True"),
    Row("flow a text", lambda: fit(flow="coupling"), TypeError, "Expected flow to be a builder .*got 'coupling'"),
    Row(
        "flow a class",
        lambda: fit(flow=epi.flows.Coupling),
        TypeError,
        "Expected flow to be a builder .*got <class .*Coupling",
    ),
    Row(
        "start a text",
        lambda: fit(start="prior"),
        TypeError,
        r"start to be a start, such as starts.Prior\(\); got 'prior'",
    ),
    Row("start a class", lambda: fit(start=epi.starts.Prior), TypeError, "start to be a start, .*got <class .*Prior"),
    Row("objective a text", lambda: fit(objective="score"), TypeError, "objective to be an objective, .*got 'score'"),
    Row("objective a class", lambda: fit(objective=epi.objectives.Score), TypeError, "objective, .*got <class .*Score"),
    Row("rule none", lambda: fit(rule=None), TypeError, "rule to be a rule, .*got None"),
    Row(
        "rule a class",
        lambda: fit(rule=epi.multipliers.Natural),
        TypeError,
        "rule to be a rule, .*got <class .*Natural",
    ),
    Row(
        "optimizer a number", lambda: fit(optimizer=1e-3), TypeError, "optimizer to be an optax optimiser, .*got 0.001"
    ),
    Row("optimizer a function", lambda: fit(optimizer=optax.adam), TypeError, "optax optimiser, .*got <function adam"),
    Row("certify a text", lambda: fit(certify="yes"), TypeError, "certify to be True or False; got 'yes'"),
    Row("progress a number", lambda: fit(progress=1), TypeError, "progress to be True or False; got 1"),
    Row("unknown option", lambda: fit(num_step=5), TypeError, "unexpected keyword argument 'num_step'"),
    Row(
        "flow of another size",
        lambda: fit(flow=lambda key, dim: StandardNormal((dim + 1,)), start=epi.starts.Gaussian()),
        ValueError,
        r"an unconditional flow of shape \(3,\); got shape \(4,\)",
    ),
    Row(
        "flow of another kind",
        lambda: fit(flow=lambda key, dim: dist.Normal(), start=epi.starts.Gaussian()),
        TypeError,
        "to return a flowjax distribution; got Normal",
    ),
]

PIECES = [
    Row("dual of no problem", lambda: epi.solve_dual(KEY, model), TypeError, "Expected a Problem; got function"),
    Row(
        "dual method",
        lambda: epi.solve_dual(KEY, TINY, method="nuts"),
        ValueError,
        "'chains', 'reweight' or 'adaptive'; got 'nuts'",
    ),
    Row(
        "dual tolerance", lambda: epi.solve_dual(KEY, TINY, tolerance=-1), ValueError, "Expected tolerance > 0; got -1"
    ),
    Row(
        "dual settings",
        lambda: epi.solve_dual(KEY, TINY, settings={"a": 1}),
        TypeError,
        r"ChainSettings\(...\); got \{'a': 1\}",
    ),
    Row(
        "chains too few", lambda: epi.ChainSettings(num_chains=3), ValueError, "num_chains to be an integer >= 4; got 3"
    ),
    Row("chains a flag", lambda: epi.ChainSettings(num_updates=True), ValueError, "num_updates .*; got True"),
    Row("chains precision", lambda: epi.ChainSettings(precision=NAN), ValueError, "Expected precision > 0; got nan"),
    Row("chains rate", lambda: epi.ChainSettings(rate="fast"), ValueError, "Expected rate between 0 and 1; got 'fast'"),
    Row("start without draws", lambda: epi.starts.Prior(0), ValueError, "num_draws to be an integer >= 2; got 0"),
    Row(
        "gaussian mean nan",
        lambda: epi.starts.Gaussian(NAN),
        ValueError,
        "Expected a finite mean and covariance; got nan",
    ),
    Row(
        "gaussian mean a word",
        lambda: epi.starts.Gaussian("zero"),
        ValueError,
        "a mean and a covariance of numbers; got 'zero'",
    ),
    Row(
        "gaussian draws",
        lambda: epi.starts.Gaussian(num_draws=1.5),
        ValueError,
        "num_draws to be an integer >= 2; got 1.5",
    ),
    Row(
        "gaussian of another size",
        lambda: epi.starts.Gaussian([0.0, 1.0])(KEY, TINY),
        ValueError,
        r"mean of shape \(3,\)",
    ),
    Row(
        "gaussian not definite",
        lambda: epi.starts.Gaussian(covariance=-np.eye(3))(KEY, TINY),
        ValueError,
        r"Expected a positive definite covariance; got \[\[-1.0",
    ),
    Row("pilot spreads", lambda: epi.starts.Pilot(spreads=0), ValueError, "Expected spreads > 0; got 0"),
    Row("pilot batch", lambda: epi.starts.Pilot(batch=0.5), ValueError, "batch to be an integer >= 1; got 0.5"),
    Row("pilot flag", lambda: epi.starts.Pilot(or_prior="yes"), TypeError, "or_prior to be True or False; got 'yes'"),
    Row(
        "chains start settings",
        lambda: epi.starts.Chains(500),
        TypeError,
        r"settings to be ChainSettings\(...\); got 500",
    ),
    Row("chains start tolerance", lambda: epi.starts.Chains(tolerance=INF), ValueError, "a finite tolerance; got inf"),
    Row("penalty zero", lambda: epi.multipliers.Natural(penalty=0), ValueError, "Expected penalty > 0; got 0"),
    Row("penalty a text", lambda: epi.multipliers.Natural(penalty="2"), ValueError, "Expected penalty > 0; got '2'"),
    Row(
        "penalty infinite",
        lambda: epi.multipliers.Natural(penalty=INF),
        ValueError,
        "Expected a finite penalty; got inf",
    ),
    Row("rate nan", lambda: epi.multipliers.Natural(rate=NAN), ValueError, "Expected rate > 0; got nan"),
    Row(
        "steps a fraction",
        lambda: epi.multipliers.Natural(steps_per_epoch=2.5),
        ValueError,
        "steps_per_epoch .*; got 2.5",
    ),
    Row(
        "forgetting above one", lambda: epi.multipliers.Natural(forgetting=2), ValueError, "0 < forgetting <= 1; got 2"
    ),
    Row("shrinkage none", lambda: epi.multipliers.Natural(shrinkage=None), ValueError, "0 < shrinkage <= 1; got None"),
    Row(
        "growth below one",
        lambda: epi.multipliers.GrowingPenalty(growth=0.5),
        ValueError,
        "Expected growth >= 1; got 0.5",
    ),
    Row(
        "first penalty",
        lambda: epi.multipliers.GrowingPenalty(-1.0),
        ValueError,
        "Expected initial_penalty > 0; got -1.0",
    ),
    Row(
        "factor",
        lambda: epi.multipliers.GrowingPenalty(shrinkage_factor=-1),
        ValueError,
        "shrinkage_factor <= 1; got -1",
    ),
    Row("norms", lambda: epi.multipliers.GrowingPenalty(num_norms=1), ValueError, "2 <= num_norms <= .*; got 1, 1000"),
    Row("estimator a text", lambda: epi.objectives.Pathwise("u"), TypeError, "penalty to be a function, .*; got 'u'"),
    Row(
        "path derivative",
        lambda: epi.objectives.Pathwise(path_derivative=1),
        TypeError,
        "path_derivative to be .*; got 1",
    ),
    Row(
        "anchored to a text",
        lambda: epi.objectives.Anchored("a", jnp.ones((4, 3))),
        TypeError,
        "objective to be .*; got 'a'",
    ),
    Row(
        "anchored draws",
        lambda: epi.objectives.Anchored(epi.objectives.Score(), jnp.ones(4)),
        ValueError,
        r"draws of shape \[K, D\]; got shape \[4\]",
    ),
    Row("stages zero", lambda: epi.flows.Coupling(0), ValueError, "num_stages to be an integer >= 1; got 0"),
    Row("stages a flag", lambda: epi.flows.Elementwise(True), ValueError, "num_stages to be an integer >= 1; got True"),
    Row("width a fraction", lambda: epi.flows.Coupling(width=2.5), ValueError, "width to be an integer >= 1; got 2.5"),
    Row(
        "depth negative",
        lambda: epi.flows.MaskedAutoregressive(depth=-1),
        ValueError,
        "depth to be an integer .*; got -1",
    ),
    Row(
        "transformer a text",
        lambda: epi.flows.Coupling(transformer="affine"),
        TypeError,
        "a bijection, .*; got 'affine'",
    ),
    Row(
        "transformer a function",
        lambda: epi.flows.Elementwise(transformer=epi.flows.spline),
        TypeError,
        "a bijection, .*; got <function spline",
    ),
    Row(
        "mixing a text", lambda: epi.flows.Coupling(mixing="flip"), TypeError, "mixing to be a function, .*; got 'flip'"
    ),
    Row(
        "normalise a number", lambda: epi.flows.Coupling(normalise=1), TypeError, "normalise to be True or False; got 1"
    ),
    Row(
        "scale nan", lambda: epi.flows.Coupling(initial_scale=NAN), ValueError, "initial_scale >= 0 and finite; got nan"
    ),
    Row("knots", lambda: epi.flows.spline(knots=1), ValueError, "knots to be an integer >= 2; got 1"),
    Row("interval", lambda: epi.flows.spline(interval=-4), ValueError, "Expected interval > 0; got -4"),
    Row("least scale", lambda: epi.flows.affine(2.0), ValueError, "Expected 0 <= min_scale < 1; got 2.0"),
    Row(
        "coupling of one",
        lambda: epi.flows.Coupling()(KEY, 1),
        ValueError,
        "Expected dim >= 2 for a coupling flow; got 1",
    ),
    Row("mixture of none", lambda: epi.flows.mixture([], []), ValueError, "at least one; got 0 flows"),
    Row("mixture of texts", lambda: epi.flows.mixture(["a"], [1.0]), TypeError, "flowjax distributions, .*; got 'a'"),
    Row(
        "negative share", lambda: epi.flows.mixture([FLOW], [-1.0]), ValueError, r"positive finite shares; got \[-1.0\]"
    ),
    Row("shares too few", lambda: epi.flows.mixture([FLOW, FLOW], [1.0]), ValueError, r"got 2 flows, shares \[1.0\]"),
    Row(
        "base of no transform",
        lambda: epi.flows.with_mixture_base(StandardNormal((2,)), 0, 1, 1),
        ValueError,
        "got StandardNormal",
    ),
    Row("guide of a text", lambda: epi.AutoFlow(model, "coupling"), TypeError, "flow builder or a flowjax .*; got str"),
]

RESULTS = [
    Row(
        "sample shape a text",
        lambda: RESULT.sample(KEY, "3"),
        ValueError,
        "number of a shape to be an integer >= 0; got '3'",
    ),
    Row("sample shape negative", lambda: RESULT.sample(KEY, -1), ValueError, "integer >= 0; got -1"),
    Row("sample shape a fraction", lambda: RESULT.sample(KEY, (2, 1.5)), ValueError, "integer >= 0; got 1.5"),
    Row("statistics of none", lambda: RESULT.statistics(KEY, 0), ValueError, "Expected n to be an integer >= 1; got 0"),
    Row(
        "export of no chain",
        lambda: RESULT.to_arviz(num_chains=0),
        ValueError,
        "num_chains to be an integer >= 1; got 0",
    ),
    Row(
        "export of a fraction",
        lambda: RESULT.to_arviz(num_draws=2.5),
        ValueError,
        "num_draws to be an integer >= 1; got 2.5",
    ),
    Row("tilted simulations", lambda: RESULT.tilted_model(num_simulations=0), ValueError, "num_simulations .*; got 0"),
    Row("tilted eta", lambda: result(NAN).tilted_model(), ValueError, r"Expected finite multipliers; got \[nan\]"),
    Row("tilted chains", lambda: RESULT.sample_tilted(KEY, num_chains=0), ValueError, "num_chains .*>= 1; got 0"),
    Row("tilted warmup", lambda: RESULT.sample_tilted(KEY, num_warmup=-1), ValueError, "num_warmup .*>= 0; got -1"),
    Row("certify a guide", lambda: epi.certify(KEY, FLOW), TypeError, "a result to be what fit returned; got "),
    Row(
        "certify too few draws",
        lambda: epi.certify(KEY, RESULT, num_draws=99),
        ValueError,
        "num_draws .*>= 100; got 99",
    ),
    Row("certify nan", lambda: epi.certify(KEY, result(NAN)), ValueError, r"Expected finite multipliers; got \[nan\]"),
    Row("published test level", lambda: epi.bittner2021_test(KEY, RESULT, level=2), ValueError, "0 < level < 1; got 2"),
    Row(
        "published test of none",
        lambda: epi.bittner2021_test(KEY, RESULT, num_tests=0),
        ValueError,
        "num_tests .*; got 0",
    ),
]

DENSITIES = [
    *(
        Row(f"{name}, {what}", lambda use=use, v=v: use(v), ValueError, match)
        for name, use in (
            ("density", DENSITY.log_prob),
            ("gradient", DENSITY.gradient),
            ("sensitivity", lambda v: DENSITY.sensitivity(KEY, v)),
        )
        for what, v, match in (
            ("missing site", place(p=None), r"Expected values of the parameters \['z', 'p'\]; \['p'\] are missing"),
            ("unknown site", place(q=1.0), r"Expected values of the parameters \['z', 'p'\] only; got \['q'\]"),
            (
                "wrong shape",
                place(z=np.zeros(3)),
                r"Expected 'z' of shape \(..., 2\); got \(3,\)|Expected 'z' of shape \(2,\); got \(3,\)",
            ),
            ("text", place(p="high"), "Expected numbers for 'p'; got 'high'"),
        )
    ),
    Row(
        "density, two batches",
        lambda: DENSITY.log_prob({"z": np.zeros((3, 2)), "p": np.zeros(2)}),
        ValueError,
        "one batch shape",
    ),
    Row(
        "gradient, out of support",
        lambda: DENSITY.gradient(place(p=1.5)),
        ValueError,
        "inside the parameters' support; got .*1.5",
    ),
    Row(
        "hessian, out of support",
        lambda: DENSITY.hessian(place(p=-0.5)),
        ValueError,
        "inside the parameters' support; got .*-0.5",
    ),
    Row(
        "gradient, nan", lambda: DENSITY.gradient(place(p=NAN)), ValueError, "inside the parameters' support; got .*nan"
    ),
    Row(
        "sensitivity, out of support",
        lambda: DENSITY.sensitivity(KEY, place(p=2.0)),
        ValueError,
        "parameters' support; got .*2.0",
    ),
    Row(
        "modes of no start",
        lambda: DENSITY.modes(KEY, num_starts=0),
        ValueError,
        "num_starts to be an integer >= 1; got 0",
    ),
    Row("modes of no depth", lambda: DENSITY.modes(KEY, depth=0), ValueError, "Expected depth > 0; got 0"),
    Row("modes of any depth", lambda: DENSITY.modes(KEY, depth=NAN), ValueError, "Expected depth > 0; got nan"),
    Row(
        "fixed, unknown",
        lambda: DENSITY.conditional_mode(KEY, {"q": 1.0}),
        ValueError,
        r"Expected names among \['z', 'p', .*got 'q'",
    ),
    Row(
        "fixed, nan",
        lambda: DENSITY.conditional_mode(KEY, {"p": NAN}),
        ValueError,
        "Expected finite values; got 'p': nan",
    ),
    Row(
        "fixed, wrong shape",
        lambda: DENSITY.conditional_mode(KEY, {"z": 1.0}),
        ValueError,
        r"'z' of shape \(2,\); got \(\)",
    ),
    Row("fixed, out of support", lambda: DENSITY.condition(KEY, {"p": 3.0}), ValueError, r"support; got \{'p': 3.0\}"),
    Row(
        "fixed, a text",
        lambda: DENSITY.condition(KEY, {"p": "high"}),
        ValueError,
        "Expected numbers for 'p'; got 'high'",
    ),
    Row(
        "fixed, nothing",
        lambda: DENSITY.condition(KEY, {}),
        ValueError,
        r"some parameters fixed and some free; got \[\]",
    ),
    Row("fixed, everything", lambda: DENSITY.condition(KEY, place()), ValueError, r"some free; got \['z', 'p'\]"),
    Row(
        "conditional draws",
        lambda: DENSITY.condition(KEY, {"p": 0.5}, num_samples=0),
        ValueError,
        "num_samples .*; got 0",
    ),
    Row(
        "conditional chains",
        lambda: DENSITY.condition(KEY, {"p": 0.5}, num_chains=1.5),
        ValueError,
        "num_chains .*; got 1.5",
    ),
    Row("response draws", lambda: DENSITY.target_response(KEY, num_draws=1), ValueError, "num_draws .*>= 2; got 1"),
]

FILES = [
    Row("read, missing", lambda: epi.read_arviz(folder() / "no.nc"), FileNotFoundError, "no.nc; there is no such file"),
    Row("read, a number", lambda: epi.read_arviz(3), TypeError, "int"),
    Row("read, suffix", lambda: epi.read_arviz("result.csv"), ValueError, r"ends in .nc .*; got result.csv"),
    Row("read, folder", lambda: epi.read_arviz(folder() / "folder.nc"), ValueError, "got the folder .*folder.nc"),
    Row("read, file", lambda: epi.read_arviz(folder() / "file.zarr"), ValueError, "got the file .*file.zarr"),
    Row(
        "read, empty folder",
        lambda: epi.read_arviz(folder() / "empty.zarr"),
        ValueError,
        "complete exported result at .*empty.zarr",
    ),
    Row(
        "read, text",
        lambda: epi.read_arviz(folder() / "text.nc"),
        ValueError,
        "complete exported result at .*text.nc; reading",
    ),
    Row(
        "read, empty",
        lambda: epi.read_arviz(folder() / "empty.nc"),
        ValueError,
        "complete exported result at .*empty.nc; reading",
    ),
    Row(
        "read, foreign",
        lambda: epi.read_arviz(folder() / "foreign.nc"),
        ValueError,
        r"numpyro_epi exported .*; .*foreign.nc has \[",
    ),
    Row(
        "read, plain HDF5", lambda: epi.read_arviz(folder() / "plain.nc"), ValueError, "at .*plain.nc|; .*plain.nc has"
    ),
    Row("read, odd letters", lambda: epi.read_arviz("n\udcff.nc"), FileNotFoundError, "there is no such file"),
    Row(
        "load, no result",
        lambda: epi.load(folder() / "exported.nc", TINY),
        ValueError,
        r"exported.nc has no group \['guide', 'verdict'\]",
    ),
    Row(
        "load, no problem",
        lambda: epi.load(folder() / "saved.nc", model),
        TypeError,
        "the Problem that was fitted; got <function model",
    ),
    Row(
        "load, another problem",
        lambda: epi.load(folder() / "saved.nc", problem(statistic=z)),
        ValueError,
        r"\['z\[0\]', 'z\[1\]'\]; .*saved.nc",
    ),
    Row(
        "load, another target",
        lambda: epi.load(folder() / "saved.nc", problem(mean=2.0)),
        ValueError,
        r"targets \[2.0\]; .*saved.nc has \[0.0\]",
    ),
    Row(
        "load, another flow",
        lambda: epi.load(folder() / "saved.nc", TINY, flow=lambda key, dim: Normal(jnp.zeros(dim))),
        ValueError,
        "arrays in .*saved.nc",
    ),
    Row(
        "load, flow a text",
        lambda: epi.load(folder() / "saved.nc", TINY, flow="default"),
        TypeError,
        "flow to be the builder .*'default'",
    ),
    Row("save, suffix", lambda: RESULT.save(folder() / "result.pkl"), ValueError, "ends in .nc .*; got .*result.pkl"),
    Row(
        "save, no folder",
        lambda: RESULT.save(folder() / "no" / "result.nc"),
        FileNotFoundError,
        "Expected a folder at .*no; there is none",
    ),
    Row(
        "save, existing",
        lambda: RESULT.save(folder() / "text.nc"),
        FileExistsError,
        "Expected nothing at .*text.nc yet; it exists",
    ),
    Row(
        "save, link to nowhere",
        lambda: RESULT.save(folder() / "link.nc"),
        FileExistsError,
        "Expected nothing at .*link.nc yet",
    ),
    Row(
        "save, over a folder",
        lambda: RESULT.save(folder() / "folder.nc", overwrite=True),
        FileExistsError,
        "folder.nc to be something h5netcdf",
    ),
    Row(
        "plot, a dictionary",
        lambda: epi.plot_pair({"a": 1}),
        TypeError,
        r"Expected exported data .*; got \{'a': 1\}. A result exports",
    ),
    Row("plot, the result itself", lambda: epi.plot_fit(RESULT), TypeError, "A result exports itself: result.to_arviz"),
    Row(
        "plot, parameters a text",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters="z"),
        TypeError,
        r"got the string 'z'. Write \('z',\)",
    ),
    Row(
        "plot, unknown parameter",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters=("q",)),
        ValueError,
        r"got \['q'\]",
    ),
    Row(
        "plot, no parameter",
        lambda: epi.plot_pair(folder() / "exported.nc", parameters=()),
        ValueError,
        "got an empty sequence",
    ),
    Row(
        "plot, no draw",
        lambda: epi.plot_pair(folder() / "exported.nc", num_draws=0),
        ValueError,
        "num_draws to be an integer >= 1; got 0",
    ),
    Row(
        "plot, a fraction",
        lambda: epi.plot_pair(folder() / "exported.nc", max_parameters=2.5),
        ValueError,
        "max_parameters .*; got 2.5",
    ),
    Row(
        "plot, no groups",
        lambda: epi.plot_statistics(xr.DataTree()),
        ValueError,
        r"Expected a group 'posterior_predictive'; got the groups \[\]",
    ),
    Row(
        "report, suffix",
        lambda: epi.report(folder() / "exported.nc", "page.pdf"),
        ValueError,
        "ends in .html or .htm; got page.pdf",
    ),
    Row(
        "report, existing",
        lambda: epi.report(folder() / "exported.nc", folder() / "page.html"),
        ValueError,
        "does not exist; got .*page.html",
    ),
    Row(
        "report, link",
        lambda: epi.report(folder() / "exported.nc", folder() / "link.html"),
        ValueError,
        "does not exist; got .*link.html",
    ),
    Row(
        "report, folder",
        lambda: epi.report(folder() / "exported.nc", folder() / "folder.html", overwrite=True),
        ValueError,
        "got the folder .*folder.html",
    ),
    Row(
        "report, no folder",
        lambda: epi.report(folder() / "exported.nc", folder() / "no" / "p.html"),
        FileNotFoundError,
        "Expected a folder at .*no;",
    ),
    Row(
        "report, a number", lambda: epi.report(3, folder() / "new.html"), TypeError, "Expected exported data .*; got 3"
    ),
]

CLI = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["fti", "x"], "invalid choice: 'fti'"),
    "unknown option": (["fit", "x", "--stpes", "5"], "unrecognized arguments: --stpes"),
    "no problem": (["fit"], "required: PROBLEM"),
    "unknown problem": (["check", "dynamics.oscilator"], "Expected a registered problem; got 'dynamics.oscilator'"),
    "problem a file": (["check", "{0}/problems.py"], "Expected path/to/file.py:name; got '.*problems.py'"),
    "no such file": (["fit", "{0}/none.py:build"], "Expected a Python file that defines 'build'; got .*none.py"),
    "no such object": (["fit", "{0}/problems.py:biuld"], "to define 'biuld'; got .*build"),
    "object of another type": (
        ["fit", "{0}/problems.py:number"],
        "Expected 'number' to be, or to return, a Problem; got int",
    ),
    "model for a problem": (["fit", "{0}/problems.py:model"], "Expected 'model' to be, or to return, a Problem"),
    "set, no value": (["fit", "x", "--set", "mean"], "Expected KEY=VALUE; got 'mean'"),
    "set, no name": (["fit", "x", "--set", "=3"], "Expected KEY=VALUE; got '=3'"),
    "set, name a number": (["fit", "x", "--set", "1=2"], "Expected KEY=VALUE; got '1=2'"),
    "set, twice": (
        ["fit", "{0}/problems.py:build", "--set", "mean=1", "--set", "mean=2"],
        r"each --set key once; got \['mean', 'mean'\]",
    ),
    "set, unknown": (["fit", "{0}/problems.py:build", "--set", "men=1"], "argument 'men'"),
    "set, missing": (["fit", "{0}/problems.py:sized"], "missing 1 required keyword-only argument: 'size'"),
    "set, a text": (
        ["fit", "{0}/problems.py:build", "--set", "mean=high"],
        "Expected mean of 'z' to be numbers; got 'high'",
    ),
    "set, nan": (["fit", "{0}/problems.py:build", "--set", "mean=1e999"], "Expected a finite mean for 'z'; got inf"),
    "set, of wrong type": (["fit", "{0}/problems.py:sized", "--set", "size=[1]"], "TypeError: .*list"),
    "set, zero": (["fit", "{0}/problems.py:sized", "--set", "size=0"], "ZeroDivisionError: .*by zero"),
    "set, for a ready one": (
        ["fit", "{0}/problems.py:ready", "--set", "mean=1"],
        r"Expected no --set for 'ready', .*; got \['mean'\]",
    ),
    "set, deep": (["fit", "x", "--set", "mean=" + "(" * 5000], "Expected a registered problem; got 'x'|Expected"),
    "steps negative": (["fit", "x", "--steps", "-5"], "Expected a whole number > 0; got '-5'"),
    "steps zero": (["fit", "x", "--steps", "0"], "Expected a whole number > 0; got '0'"),
    "steps too large": (
        ["fit", "{0}/problems.py:ready", "--steps", "1000000000000"],
        "max_steps .*; got 1000000000000",
    ),
    "steps in other digits": (["fit", "x", "--steps", "²"], "Expected a whole number > 0; got '²'"),
    "draws a fraction": (["fit", "x", "--num-draws", "1.5"], "Expected a whole number > 0; got '1.5'"),
    "draws too few": (
        ["fit", "{0}/problems.py:ready", "--num-draws", "2", "--out", "{0}/n.nc"],
        "num_draws to be an integer >= 4; got 2",
    ),
    "restarts a word": (["fit", "x", "--restarts", "two"], "Expected a whole number > 0; got 'two'"),
    "seed a word": (["fit", "x", "--seed", "lucky"], "Expected a whole number from 0 to .*; got 'lucky'"),
    "seed negative": (["check", "x", "--seed", "-1"], "Expected a whole number from 0 to .*; got '-1'"),
    "seed too large": (
        ["check", "x", "--seed", "4294967296"],
        "Expected a whole number from 0 to .*; got '4294967296'",
    ),
    "out, suffix": (["fit", "{0}/problems.py:ready", "--out", "{0}/r.csv"], "ends in .nc .*; got .*r.csv"),
    "out, no folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/no/r.nc"],
        "Expected a folder at .*no; there is none",
    ),
    "out, existing": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/text.nc"],
        "does not exist; got .*text.nc. Pass --overwrite",
    ),
    "out, link": (["fit", "{0}/problems.py:ready", "--out", "{0}/link.nc"], "does not exist; got .*link.nc"),
    "out, folder": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/folder.nc", "--overwrite"],
        "to be a file; got the folder .*folder.nc",
    ),
    "out, not ours": (
        ["fit", "{0}/problems.py:ready", "--out", "{0}/empty.zarr", "--overwrite"],
        "empty.zarr to be something zarr wrote",
    ),
    "plot, missing": (["plot", "{0}/none.nc"], "none.nc; there is no such file"),
    "plot, text": (["plot", "{0}/text.nc", "--out", "{0}/figures"], "complete exported result at .*text.nc"),
    "plot, foreign": (["plot", "{0}/foreign.nc", "--out", "{0}/figures"], "numpyro_epi exported"),
    "plot, existing": (["plot", "{0}/exported.nc"], "does not exist; got .*exported-pair.png. Pass --overwrite"),
    "plot, to a file": (
        ["plot", "{0}/exported.nc", "--out", "{0}/text.nc"],
        "Expected --out to be a folder; got .*text.nc",
    ),
    "report, missing": (["report", "{0}/none.nc"], "none.nc; there is no such file"),
    "report, text": (["report", "{0}/text.nc"], "complete exported result at .*text.nc"),
    "report, existing": (["report", "{0}/exported.nc", "--out", "{0}/page.html"], "does not exist; got .*page.html"),
    "report, to a folder": (
        ["report", "{0}/exported.nc", "--out", "{0}/folder.html", "--overwrite"],
        "to be a file; got the folder",
    ),
    "report, suffix": (["report", "{0}/exported.nc", "--out", "{0}/page.txt"], "ends in .html or .htm; got .*page.txt"),
}

TOPICS = {
    **{"model": MODELS, "problem": OPTIONS, "statistic": STATISTICS, "target": TARGETS, "key": KEYS, "fit": FIT},
    **{"piece": PIECES, "result": RESULTS, "density": DENSITIES, "file": FILES},
}
ROWS = {f"{topic}: {row.id}": row for topic, rows in TOPICS.items() for row in rows}


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """Not a part of any row's time: the files, and what the density compiles to look at a place."""
    folder()
    for look in (DENSITY.log_prob, DENSITY.gradient, DENSITY.hessian):
        look(place())
    with pytest.raises(ValueError, match="inside the parameters' support"):
        DENSITY.condition(KEY, {"p": 3.0})


def test_no_mistake_is_listed_twice():
    assert len(ROWS) == sum(map(len, TOPICS.values()))
    assert len(ROWS) + len(CLI) >= 150


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_one_clear_error(row):
    began = time.perf_counter()
    with pytest.raises(row.error, match=row.match):
        row.call()
    assert time.perf_counter() - began < LIMIT


@pytest.mark.parametrize(("argv", "match"), CLI.values(), ids=CLI.keys())
def test_one_clear_line_of_the_program(argv, match, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {path: path.read_bytes() for path in folder().rglob("*") if path.is_file()}
    began = time.perf_counter()
    try:
        code = main([argument.replace("{0}", str(folder())) for argument in argv])
    except SystemExit as stop:
        code = stop.code
    assert time.perf_counter() - began < LIMIT
    shown = capsys.readouterr()
    assert code == 2
    assert re.search(match, shown.err)
    assert "Traceback" not in shown.err + shown.out
    assert shown.out == ""
    after = {path: path.read_bytes() for path in folder().rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
