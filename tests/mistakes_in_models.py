"""Models, problems, statistics and targets that are wrong, and the error that each must give."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from mistakes import INF, KEY, NAN, TINY, Row, first, model, problem, prop, z

import numpyro_epi as epi

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
