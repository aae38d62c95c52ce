"""The exported data: what it holds, that it survives a file, and that both ArviZ generations take it."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
import xarray as xr
from flowjax.distributions import Normal
from numpyro.distributions import constraints

from numpyro_epi import _arviz
from numpyro_epi._arviz import result_groups
from numpyro_epi._datatree import to_arviz, to_datatree
from numpyro_epi._density import Density
from numpyro_epi._exported import read_bounds, read_components
from numpyro_epi._outcome import Certificate
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi.statistics import statistic

# ArviZ 0.23 announces its rewrite once a day, and its plots pass Matplotlib what 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings(
    "error",
    "ignore:\\nArviZ is undergoing a major refactor:FutureWarning",
    "ignore:Passing a dict or None as alias_mapping:matplotlib.MatplotlibDeprecationWarning",
)


GROUPS = ("posterior", "posterior_predictive", "sample_stats", "constant_data", "optimization")
PRIOR_GROUPS = ("prior", "prior_predictive", "sample_stats_prior")
DENSITY_TOLERANCE = 2e-4  # float32: a sum of ten terms of about 10, through a sigmoid.


def network(num_rows: int = 2, num_columns: int = 2):
    """A matrix on an interval, a positive rate, and a noise vector, in a site whose name has a slash."""
    numpyro.sample("A", dist.Uniform(-10, 10).expand([num_rows, num_columns]).to_event(2))
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


def history(names: list[str], num_epochs: int = 40) -> xr.Dataset:
    """A run that approaches its targets."""
    rng, epoch = np.random.default_rng(0), np.arange(num_epochs)
    decay = np.exp(-epoch / 6)[:, None] * rng.normal(scale=3, size=len(names))
    violation = decay + 0.02 * rng.normal(size=decay.shape)
    scalars = {"step": 50 * (epoch + 1), "loss": 5 + np.exp(-epoch / 5), "entropy": 9 - 3 * (1 - np.exp(-epoch / 9))}
    scalars |= {name: np.ones(num_epochs) for name in ("learning_rate", "finite_share", "penalty")}
    data = {name: ("epoch", values) for name, values in scalars.items()}
    matrices = {"violation": violation, "multiplier": 0.1 * violation.cumsum(axis=0), "moment": violation + 1}
    data |= {name: (("epoch", "constraint"), values) for name, values in matrices.items()}
    return xr.Dataset(data, coords={"epoch": epoch, "constraint": names})


def constraint_table(problem: Problem) -> xr.Dataset:
    """Constraints that hold nearly."""
    found, rng = problem.constraints, np.random.default_rng(1)
    numbers = {"target": problem.target, "order": np.array([constraint.order for constraint in found])}
    numbers |= {"scale": 0.5 + rng.random(len(found)), "violation": 0.01 * rng.normal(size=len(found))}
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


def export(problem: Problem, *, num_chains: int = 2, num_draws: int = 50, seed: int = 0) -> xr.DataTree:
    """The tree of a fake result."""
    key = jax.random.key(seed)
    return to_datatree(*result_groups(fake_result(problem), key=key, num_chains=num_chains, num_draws=num_draws))


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return export(network_problem(), num_chains=4, num_draws=500)


@pytest.fixture
def eager():
    """For tests of names and layout, where compiling takes longer than everything else."""
    with jax.disable_jit():
        yield


def of_one_site(support, *, deterministic=None, **statistic_options) -> Problem:
    """A problem with one vector ``x`` of size 2 on this support, and the mean of ``x`` for a statistic."""

    def model():
        x = numpyro.sample("x", support)
        if deterministic is not None:
            deterministic(x)

    measured = statistic(**{"name": "mean_x", **statistic_options})(lambda sites: sites["x"])
    return Problem(model, EmergentProperty(Target(measured, 0.0)))


def test_groups_hold_what_arviz_expects(tree):
    assert set(tree.children) == {*GROUPS, *PRIOR_GROUPS}
    for name in ("posterior", "prior"):
        assert dict(tree[name].sizes) == {"chain": 4, "draw": 500, "A_dim_0": 2, "A_dim_1": 2}
        assert list(tree[name].data_vars) == ["A", "cell.rate"]
    for name in ("posterior_predictive", "prior_predictive"):
        assert list(tree[name].data_vars) == ["trace", "cell_rate", "drive", "input.noise"]
        assert [tree[name][site].attrs["kind"] for site in tree[name].data_vars] == [
            *("statistic", "statistic", "deterministic", "noise")
        ]
        assert list(tree[name]["cell"].values) == ["E", "I", "V"]
        assert tree[name]["cell_rate"].attrs["unit"] == "Hz"
    weights = ["log_importance_weight", "log_weight"]
    assert list(tree["sample_stats"].data_vars) == ["lp", "log_prior", "finite", *weights]
    assert tree["sample_stats"]["finite"].dtype == bool


def test_noise_of_many_values_is_left_out_and_named():
    def model():
        numpyro.sample("x", dist.Uniform(0, 1))
        few = numpyro.sample("few", dist.Normal().expand([1000]).to_event(1))
        many = numpyro.sample("many", dist.Normal().expand([1001]).to_event(1))
        numpyro.deterministic("kept", many + few[0])

    mean_x = statistic(name="mean_x")(lambda sites: sites["x"] + jnp.mean(sites["many"]))
    problem = Problem(model, EmergentProperty(Target(mean_x, 0.5)), parameters=("x",), num_draws=4)
    found = export(problem, num_chains=1, num_draws=7)["prior_predictive"]
    assert list(found.data_vars) == ["mean_x", "kept", "few"]
    assert json.loads(found.attrs["noise_left_out"]) == ["many"]
    spread = np.std(found["kept"] - found["few"][..., :1].values, axis=-1)
    np.testing.assert_allclose(spread, 1.0, atol=5 / np.sqrt(2 * 1001))


def test_arrays_are_numpy(tree):
    for node in tree.descendants:
        assert all(type(variable.data) is np.ndarray for variable in node.variables.values())


@pytest.mark.parametrize(
    ("parameters", "measured"), [("posterior", "posterior_predictive"), ("prior", "prior_predictive")]
)
def test_statistics_are_those_of_the_draws_beside_them(tree, parameters, measured):
    weights, rate = tree[parameters]["A"].values, tree[parameters]["cell.rate"].values
    noise = tree[measured]["input.noise"].values
    np.testing.assert_allclose(tree[measured]["trace"], weights[..., 0, 0] + weights[..., 1, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree[measured]["cell_rate"], rate[..., None] + 0.1 * noise, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tree[measured]["drive"], rate[..., None] + noise, rtol=1e-5, atol=1e-5)


def test_density_is_that_of_the_constrained_parameters(tree):
    """Change of variables written out with SciPy: a logit on [-10, 10] and a logarithm."""
    flow = fake_result(network_problem()).flow
    share = (tree["posterior"]["A"].values.astype(float).reshape(2000, 4) + 10) / 20
    rate = tree["posterior"]["cell.rate"].values.astype(float).reshape(2000, 1)
    u = np.concatenate([scipy.special.logit(share), np.log(rate)], axis=1)
    log_det = np.log(20 * share * (1 - share)).sum(axis=1) + np.log(rate[:, 0])
    expected = scipy.stats.norm(np.linspace(-0.5, 0.5, 5), np.linspace(0.3, 0.8, 5)).logpdf(u).sum(axis=1) - log_det
    assert flow.shape == (5,)
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values.ravel(), expected, atol=DENSITY_TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize(("draws", "quality"), [("posterior", "sample_stats"), ("prior", "sample_stats_prior")])
def test_prior_density_is_that_of_the_model(tree, draws, quality):
    rate = tree[draws]["cell.rate"].values.astype(float)
    expected = -4 * np.log(20) + scipy.stats.gamma(2.0).logpdf(rate)
    np.testing.assert_allclose(tree[quality]["log_prior"], expected, atol=DENSITY_TOLERANCE, rtol=1e-4)


def test_prior_draws_follow_the_prior(tree):
    """Kolmogorov-Smirnov at a fixed key; 1e-3 for each of two."""
    weights, rate = tree["prior"]["A"].values.ravel(), tree["prior"]["cell.rate"].values.ravel()
    assert scipy.stats.kstest(weights, scipy.stats.uniform(-10, 20).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(rate, scipy.stats.gamma(2.0).cdf).pvalue > 1e-3


def test_noise_is_fresh_in_every_draw(tree):
    for name in ("posterior_predictive", "prior_predictive"):
        assert len(np.unique(tree[name]["input.noise"].values)) > 0.99 * 6000


@pytest.mark.usefixtures("eager")
def test_export_depends_on_the_key_alone():
    problem = of_one_site(dist.Normal().expand([2]))
    first, again, other = (export(problem, seed=seed) for seed in (0, 0, 1))
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
        xr.testing.assert_identical(first[group].to_dataset(), again[group].to_dataset())
    for group in ("posterior", "prior"):
        assert not np.any(first[group]["x"].values == other[group]["x"].values)


def test_model_is_traced_as_often_for_many_draws_as_for_one():
    runs = []
    problem = of_one_site(dist.Normal().expand([2]), deterministic=lambda x: runs.append(x.shape))
    counts = []
    for num_draws in (1, 40):
        runs.clear()
        export(problem, num_chains=1, num_draws=num_draws)
        counts.append(len(runs))
    assert counts[0] == counts[1] < 10


@pytest.mark.usefixtures("eager")
def test_draws_that_are_not_finite_are_marked():
    problem = of_one_site(dist.Uniform(-1, 1).expand([2]).to_event(1))
    measured = statistic(name="root")(lambda sites: jnp.sqrt(sites["x"]))
    tree = export(Problem(problem.simulator.model, EmergentProperty(Target(measured, 0.5))))
    negative = (tree["posterior"]["x"] < 0).any("x_dim_0")
    assert 0 < int(negative.sum()) < negative.size
    np.testing.assert_array_equal(tree["sample_stats"]["finite"], ~negative)


@pytest.mark.usefixtures("eager")
def test_improper_prior_is_left_out():
    tree = export(of_one_site(dist.ImproperUniform(constraints.real, (2,), ())))
    assert set(tree.children) == set(GROUPS)


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        (dist.Uniform(jnp.array([-1.0, 0.0]), 3.0).to_event(1), ([-1, 0], [3, 3])),
        (dist.Beta(2, 2).expand([2]), ([0, 0], [1, 1])),
        (dist.HalfNormal().expand([2]), ([0, 0], [np.inf, np.inf])),
        (dist.Normal().expand([2]), None),
        (dist.Dirichlet(jnp.ones(2)), None),
    ],
    ids=["uniform", "beta", "positive", "real", "simplex"],
)
def test_bounds_are_those_of_the_support(support, expected):
    found = _arviz._bounds(of_one_site(support).simulator)
    if expected is None:
        assert found == {}
    else:
        np.testing.assert_array_equal(found["x"], expected)


def test_bounds_that_depend_on_another_parameter_are_left_out():
    def model():
        width = numpyro.sample("width", dist.Uniform(1, 2))
        numpyro.sample("x", dist.Uniform(0, width))

    prop = EmergentProperty(Target(lambda sites: sites["x"], 0.5, name="mean"))
    assert _arviz._bounds(Problem(model, prop).simulator) == {"width": (1.0, 2.0)}


def test_bounds_stand_beside_the_constraints(tree):
    np.testing.assert_array_equal(tree["constant_data"]["A_upper"], np.full((2, 2), 10.0))
    assert tree["constant_data"]["A_lower"].attrs == {"kind": "lower bound", "parameter": "A"}
    assert float(tree["constant_data"]["cell.rate_lower"]) == 0
    assert tree["constant_data"]["cell.rate_lower"].attrs["parameter"] == "cell/rate"


def test_constraints_and_history_are_passed_on(tree):
    result = fake_result(network_problem())
    xr.testing.assert_identical(tree["optimization"].to_dataset(), result.history)
    table = tree["constant_data"].to_dataset()
    xr.testing.assert_identical(table[list(result.constraints.data_vars)], result.constraints)
    cells = ["trace", "cell_rate[E]", "cell_rate[I]", "cell_rate[V]"]
    assert list(table["statistic"].values) == [*cells, *cells]


def test_root_attributes_say_what_was_run(tree):
    attrs = tree.attrs
    assert (attrs["status"], attrs["satisfied"], attrs["entropy"]) == ("satisfied", 1, 6.5)
    assert (attrs["problem"], attrs["base"], attrs["seed"]) == ("network", "prior", "key<fry>[0 1]")
    assert np.isnan(attrs["gap"])
    assert json.loads(attrs["settings"]) == {"tolerance": 0.05, "num_draws": 500, "flow": None}
    assert attrs["jax_version"] == jax.__version__
    assert isinstance(json.loads(attrs["plugins"]), dict)
    assert "numpyro-epi" not in json.loads(attrs["plugins"])
    assert attrs["inference_library"] == "numpyro_epi"
    assert "independent draws" in tree["posterior"].attrs["draws"]


@pytest.mark.usefixtures("eager")
def test_gap_comes_from_the_certificate():
    result = fake_result(of_one_site(dist.Normal().expand([2])))
    result.certificate = Certificate(
        upper_bound=-4.0,
        gap=0.25,
        standard_error=0.01,
        eta=np.zeros(1),
        ess=900.0,
        khat=0.3,
        unseen=0.0,
        reach=400.0,
        tilted=True,
        num_simulations=40_000,
        verdict="Optimal within 0.27 nats.",
    )
    _, attrs = result_groups(result, key=jax.random.key(0), num_chains=1, num_draws=2)
    assert attrs["gap"] == 0.25
    assert attrs["upper_bound"] == -4.0
    assert attrs["certificate"] == "Optimal within 0.27 nats."


@pytest.mark.parametrize(("num_chains", "num_draws"), [(0, 5), (5, 0)])
def test_counts_must_be_positive(num_chains, num_draws):
    with pytest.raises(ValueError, match="Expected num_(chains|draws) to be an integer >= 1; got 0"):
        export(network_problem(), num_chains=num_chains, num_draws=num_draws)


def test_slashes_become_dots_and_are_remembered(tree):
    assert tree["posterior"]["cell.rate"].attrs["original_name"] == "cell/rate"
    assert tree["posterior_predictive"]["input.noise"].dims[2] == "input.noise_dim_0"
    assert "cell.rate_lower" in tree["constant_data"]


def test_slash_never_overwrites_a_name_with_a_dot():
    data = xr.Dataset({"a/b": ("x", [1.0]), "a.b": ("x", [2.0])})
    found = to_datatree({"group": data}, {})["group"]
    assert {array.attrs.get("original_name", name): float(array[0]) for name, array in found.data_vars.items()} == {
        "a/b": 1.0,
        "a.b": 2.0,
    }


@pytest.mark.usefixtures("eager")
def test_site_with_the_name_of_a_statistic_is_kept_beside_it():
    problem = of_one_site(dist.Normal().expand([2]), deterministic=lambda x: numpyro.deterministic("mean_x", 2 * x))
    found = export(problem)["posterior_predictive"]
    np.testing.assert_allclose(found["site.mean_x"].values, 2 * found["mean_x"].values, rtol=1e-6)
    assert found["site.mean_x"].attrs["original_name"] == "mean_x"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("dims", [("draw",), ("chain",), ("mean_x",), ("x_dim_0",)])
def test_any_dim_of_a_statistic_can_be_exported(dims):
    tree = export(of_one_site(dist.Normal().expand([2]), dims=dims))
    np.testing.assert_array_equal(tree["posterior_predictive"]["mean_x"].values, tree["posterior"]["x"].values)


@pytest.mark.usefixtures("eager")
def test_statistics_share_a_dim_only_with_its_labels():
    first = statistic(name="first", dims=("cell",), coords={"cell": ("E", "I")})(lambda sites: sites["x"])
    second = statistic(name="second", dims=("cell",), coords={"cell": ("E", "I")})(lambda sites: sites["x"])
    third = statistic(name="third", dims=("cell",), coords={"cell": ("P", "Q", "R")})(lambda sites: jnp.ones(3))
    square = statistic(name="square", dims=("cell", "cell"), coords={"cell": ("E", "I")})(
        lambda sites: jnp.ones((2, 2))
    )
    prop = EmergentProperty(*(Target(one, 1.0) for one in (first, second, third, square)))
    problem = Problem(of_one_site(dist.Normal().expand([2])).simulator.model, prop)
    found = export(problem)["posterior_predictive"]
    assert [found[name].dims[2:] for name in ("first", "second", "third", "square")] == [
        *(("cell",), ("cell",), ("third_cell",), ("cell", "square_cell"))
    ]
    assert list(found["third_cell"].values) == ["P", "Q", "R"]


def plated_problem() -> Problem:
    """Five units with a weight and a bounded matrix row each, inputs in their own plate, and a number outside of plates."""

    def model():
        numpyro.sample("free", dist.Normal().expand([3]).to_event(1))
        with numpyro.plate("neuron", 5):
            w = numpyro.sample("w", dist.Normal())
            numpyro.sample("row", dist.Uniform(0, 1).expand([2]).to_event(1))
            numpyro.sample("noise", dist.Normal())
        with numpyro.plate("input", 2, dim=-1), numpyro.plate("cell", 4, dim=-2):
            numpyro.sample("both", dist.Normal())
        numpyro.deterministic("doubled", 2 * w)

    prop = EmergentProperty(Target(lambda sites: jnp.mean(sites["w"]), 0.0, name="mean"))
    return Problem(model, prop, parameters=("free", "w", "row", "both"))


def test_axes_of_parameters_have_the_names_of_their_plates():
    tree = export(plated_problem(), num_chains=1, num_draws=3)
    for group in ("posterior", "prior"):
        assert {name: array.dims[2:] for name, array in tree[group].data_vars.items()} == {
            "free": ("free_dim_0",),
            "w": ("neuron",),
            "row": ("neuron", "row_dim_1"),
            "both": ("cell", "input"),
        }
    assert tree["constant_data"]["row_upper"].dims == ("neuron", "row_dim_1")
    assert read_bounds(tree)["row[4,1]"] == (0.0, 1.0)
    assert list(read_components(tree["posterior"].to_dataset()))[3:9] == [f"w[{i}]" for i in range(5)] + ["row[0,0]"]


def test_users_name_axes_and_their_labels():
    problem, units = plated_problem(), ["a", "b", "c", "d", "e"]
    dims = {"w": ["cell_type"], "free": ["axis"], "doubled": ["cell_type"]}
    coords = {"cell_type": units, "axis": [10, 20, 30], "neuron": units}
    options = {"num_chains": 1, "num_draws": 3, "dims": dims, "coords": coords}
    tree = to_datatree(*result_groups(fake_result(problem), key=jax.random.key(0), **options))
    assert tree["posterior"]["w"].dims[2:] == tree["posterior_predictive"]["doubled"].dims[2:] == ("cell_type",)
    assert list(tree["posterior"]["cell_type"].values) == list(tree["posterior"]["neuron"].values) == units
    assert list(tree["posterior"]["axis"].values) == [10, 20, 30]
    # Figures, overlays and sensitive directions name a number by its place, as the density does.
    assert tuple(read_components(tree["posterior"].to_dataset())) == Density(problem, None).names


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("dims", "coords", "error", "message"),
    [
        ({"y": ["cell"]}, {}, ValueError, r"Expected dims of the sites \['x'\]; got \['y'\]"),
        ({"x": ["a", "b"]}, {}, ValueError, r"Expected 1 names of the axes of 'x' at most; got \['a', 'b'\]"),
        ({"x": "cell"}, {}, TypeError, r"Expected a sequence of names or labels for each of \['x'\]; got a text"),
        ({"x": ["cell"]}, {"cell": [1, 2, 3]}, ValueError, "Expected 2 labels along 'cell'; got 3"),
        ({}, {"cell": [1, 2]}, ValueError, r"Expected coords of the axes .*'x_dim_0'\]; got \['cell'\]"),
    ],
    ids=["site", "too many", "text", "labels", "axis"],
)
def test_wrong_names_of_axes_are_named(dims, coords, error, message):
    result = fake_result(of_one_site(dist.Normal().expand([2])))
    with pytest.raises(error, match=message):
        result_groups(result, key=jax.random.key(0), num_chains=1, num_draws=2, dims=dims, coords=coords)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("plate", ["chain", "draw", "mean", "constraint", "target", "unit"])
def test_a_plate_may_have_any_name(plate):
    def model():
        with numpyro.plate(plate, 3):
            numpyro.sample("x", dist.Uniform(0, 1))

    problem = Problem(model, EmergentProperty(Target(lambda sites: sites["x"], np.zeros(3), name="mean")))
    tree = export(problem, num_chains=3, num_draws=3)
    np.testing.assert_array_equal(tree["posterior"]["x"].values, tree["posterior_predictive"]["mean"].values)
    assert read_bounds(tree)["x[2]"] == (0.0, 1.0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "coord", [("E", "I"), (1, 2.5), (0.1, 1e-5), (True, False), ("a", 1), (3, 4), ((1, 2), (3, 4))], ids=str
)
def test_labels_print_as_in_the_constraints_names(coord):
    problem = of_one_site(dist.Normal().expand([2]), dims=("cell",), coords={"cell": coord})
    labels = export(problem)["posterior_predictive"]["cell"].values
    assert [f"mean_x[{label}]" for label in labels] == [constraint.name for constraint in problem.constraints]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["chain", "draw"])
def test_site_may_be_called_like_a_sample_dim(name):
    prop = EmergentProperty(Target(lambda sites: sites[name], 0.0, name="mean"))
    tree = export(Problem(lambda: numpyro.sample(name, dist.Normal()), prop))
    np.testing.assert_array_equal(tree["posterior"][f"site.{name}"], tree["posterior_predictive"]["mean"])


@pytest.mark.usefixtures("eager")
def test_complex_sites_become_two():
    problem = of_one_site(dist.Normal().expand([2]), deterministic=lambda x: numpyro.deterministic("z", x + 2j * x))
    tree = export(problem)
    np.testing.assert_array_equal(tree["posterior_predictive"]["z.real"], tree["posterior"]["x"])
    np.testing.assert_allclose(tree["posterior_predictive"]["z.imag"].values, 2 * tree["posterior"]["x"].values)


@pytest.fixture
def arviz():
    matplotlib.use("Agg")
    import arviz

    yield arviz
    import matplotlib.pyplot as plt

    plt.close("all")


def test_arviz_summarises_every_draw(tree, arviz):
    exported = to_arviz(tree)
    table = arviz.summary(exported, round_to="none", kind="stats")
    assert list(table.index) == ["A[0, 0]", "A[0, 1]", "A[1, 0]", "A[1, 1]", "cell.rate"]
    np.testing.assert_allclose(table["mean"].iloc[1], tree["posterior"]["A"].values[..., 0, 1].mean(), rtol=1e-4)
    predicted = arviz.summary(exported, group="posterior_predictive", kind="stats")
    assert "cell_rate[V]" in predicted.index


def test_arviz_finds_the_draws_independent(tree, arviz):
    """Four chains of 500; the standard error of an effective sample size of white noise is below 10 % here."""
    sizes = arviz.ess(to_arviz(tree)["posterior"] if arviz.__version__ >= "1" else to_arviz(tree))
    assert float(sizes["A"].min()) > 0.7 * 2000


@pytest.mark.parametrize("plot", ["plot_pair", "plot_trace"])
def test_arviz_plots_what_is_exported(tree, arviz, tmp_path, plot):
    drawn = getattr(arviz, plot)(to_arviz(tree))
    figure = drawn.ravel()[0].figure if isinstance(drawn, np.ndarray) else drawn
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
