"""The figures: what they draw is what was exported, and it can be read."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from legible import assert_legible
from matplotlib.colors import to_hex
from test_arviz import export, fake_result, network_problem

from numpyro_epi import _plots
from numpyro_epi._arviz import result_groups
from numpyro_epi._datatree import to_arviz, to_datatree, write
from numpyro_epi._pair import plot_pair
from numpyro_epi._plots import plot_fit, plot_statistics
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi.statistics import statistic

pytestmark = pytest.mark.filterwarnings("error", "ignore:\\nArviZ is undergoing a major refactor:FutureWarning")

PLOTS = {"pair": plot_pair, "fit": plot_fit, "statistics": plot_statistics}
NAMES = ["A[0,0]", "A[0,1]", "A[1,0]", "A[1,1]", "cell/rate"]


def weights_problem(size: int) -> Problem:
    """As many bounded parameters as asked for, each with a mean and a spread, and one statistic without a spread."""

    def weights():
        numpyro.sample("weights", dist.Uniform(-1, 1).expand([size]).to_event(1))

    potential = statistic(name="potential", unit="mV")(lambda sites: 3 * sites["weights"])
    total = statistic(name="total")(lambda sites: jnp.exp(3 * sites["weights"].sum()))
    return Problem(weights, EmergentProperty(Target(potential, 0.3, std=0.5), Target(total, 1.0)))


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return export(network_problem(), num_chains=2, num_draws=300)


@pytest.fixture(scope="module")
def sized_trees() -> dict[int, xr.DataTree]:
    return {size: export(weights_problem(size)) for size in (2, 4, 20)}


def columns(tree: xr.DataTree, group: str) -> dict[str, np.ndarray]:
    """The network's parameters by the names a figure gives them, written out."""
    weights, rate = tree[group]["A"].values, tree[group]["cell.rate"].values
    return {f"A[{i},{j}]": weights[..., i, j].ravel() for i in range(2) for j in range(2)} | {"cell/rate": rate.ravel()}


def panels(figure) -> dict[str, object]:
    """Axes by title."""
    return {axis.get_title().replace("\n", ""): axis for axis in figure.axes if axis.get_title()}


def heading(figure) -> str:
    """The title of the figure, unwrapped."""
    return figure.get_suptitle().replace("\n", " ")


def outlines(axis) -> dict[str, object]:
    """Histograms of a panel by label: heights and edges."""
    return {patch.get_label(): patch.get_data() for patch in axis.patches if hasattr(patch, "get_data")}


def made_by_hand(shifts: np.ndarray, *, with_prior: bool = True, lp: np.ndarray | None = None) -> xr.DataTree:
    """Normal draws of a vector ``x``, each component shifted from its prior, in the exported layout."""
    rng, attrs = np.random.default_rng(0), {"kind": "parameter", "original_name": "x"}
    dims = ("chain", "draw", "x_dim_0")
    prior = rng.normal(size=(2, 200, len(shifts)))
    groups = {"posterior": xr.Dataset({"x": (dims, rng.normal(size=prior.shape) + shifts, attrs)})}
    if with_prior:
        groups["prior"] = xr.Dataset({"x": (dims, prior, attrs)})
    density = -np.square(groups["posterior"]["x"].values).sum(axis=-1) if lp is None else lp
    groups["sample_stats"] = xr.Dataset({"lp": (("chain", "draw"), density)})
    return to_datatree(groups, {"problem": "by_hand", "status": "satisfied", "entropy": 1.0})


def many_constraints(count: int, tolerance: float = 0.05) -> xr.DataTree:
    """A run whose constraint ``c<i>`` ends ``i`` tenths of an sd off its target."""
    names, steps = [f"c{i}" for i in range(count)], np.arange(1, 6) * 100
    violation = np.linspace(2, 1, 5)[:, None] * np.arange(count) / 10
    data = {"violation": (("epoch", "constraint"), violation), "multiplier": (("epoch", "constraint"), violation + 1)}
    data |= {"step": ("epoch", steps), "entropy": ("epoch", np.linspace(5, 3, 5))}
    history = xr.Dataset(data, coords={"constraint": names})
    constraints = xr.Dataset({"scale": ("constraint", np.arange(1.0, count + 1))}, coords={"constraint": names})
    groups = {"optimization": history, "constant_data": constraints}
    return to_datatree(groups, {"settings": {"tolerance": tolerance}})


def test_pair_scatters_the_draws(tree):
    figure, draws = plot_pair(tree, num_draws=600), columns(tree, "posterior")
    axes = np.array(figure.axes[:25]).reshape(5, 5)
    order = np.argsort(tree["sample_stats"]["lp"].values.ravel())
    for row in range(5):
        for column in range(row):
            (points,) = axes[row, column].collections
            expected = np.stack([draws[NAMES[column]], draws[NAMES[row]]], axis=1)[order]
            np.testing.assert_array_equal(points.get_offsets(), expected)
            np.testing.assert_array_equal(points.get_array(), tree["sample_stats"]["lp"].values.ravel()[order])


def test_pair_leaves_the_upper_triangle_free(tree):
    axes = np.array(plot_pair(tree).axes[:25]).reshape(5, 5)
    assert all(not axes[i, j].axison and not axes[i, j].collections for i in range(5) for j in range(i + 1, 5))


def test_pair_has_one_colour_bar(tree):
    labels = [axis.get_ylabel() for axis in plot_pair(tree).axes[0].figure.findobj(lambda a: hasattr(a, "get_ylabel"))]
    assert labels.count("log density (nats)") == 1


@pytest.mark.parametrize("num_draws", [1, 50, 600, 10_000])
def test_pair_scatters_as_many_draws_as_asked_for(tree, num_draws):
    figure = plot_pair(tree, parameters=("A[0,0]", "A[0,1]"), num_draws=num_draws)
    assert len(figure.axes[2].collections[0].get_offsets()) == min(num_draws, 600)


@pytest.mark.parametrize(("group", "label"), [("posterior", "guide"), ("prior", "prior")])
def test_pair_counts_every_draw_in_the_marginals(tree, group, label):
    found, draws = panels(plot_pair(tree, num_draws=10)), columns(tree, group)
    assert list(found) == NAMES
    for name, axis in found.items():
        heights, edges, _ = outlines(axis)[label]
        counts = np.histogram(draws[name], edges)[0]
        np.testing.assert_allclose(heights * len(draws[name]) * np.diff(edges), counts, atol=1e-6)
        assert label == "prior" or counts.sum() > 0.97 * len(draws[name])


def test_pair_takes_bounds_as_limits(tree):
    found = panels(plot_pair(tree))
    for name in NAMES[:4]:
        np.testing.assert_allclose(found[name].get_xlim(), (-10, 10), atol=0.6 + 1e-9)
        assert found[name].get_xlim()[0] < -10 < 10 < found[name].get_xlim()[1]
    assert -1 < found["cell/rate"].get_xlim()[0] <= 0


def test_pair_is_not_squashed_by_a_far_draw():
    tree = made_by_hand(np.zeros(2))
    tree["posterior"]["x"].values[0, 0] = 1e6
    assert panels(plot_pair(tree))["x[0]"].get_xlim()[1] < 10


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [(("A",), NAMES[:4]), (("cell/rate", "A[1,0]"), ["A[1,0]", "cell/rate"]), (("cell/rate",), ["cell/rate"])],
    ids=str,
)
def test_pair_shows_the_parameters_asked_for(tree, wanted, shown):
    assert list(panels(plot_pair(tree, parameters=wanted))) == shown


def test_pair_picks_the_parameters_that_differ_most_from_the_prior():
    figure = plot_pair(made_by_hand(np.array([0.1, 3.0, 0.0, -2.0, 0.2])), max_parameters=2)
    assert list(panels(figure)) == ["x[1]", "x[3]"]
    assert "2 of 5 parameters, those that differ most from the prior: x[1], x[3]" in heading(figure)


def test_pair_without_a_prior_shows_the_first_parameters():
    figure = plot_pair(made_by_hand(np.array([0.1, 3.0, 0.0]), with_prior=False), max_parameters=2)
    assert list(panels(figure)) == ["x[0]", "x[1]"]
    assert "2 of 3 parameters, the first ones: x[0], x[1]" in heading(figure)
    assert "prior" not in outlines(panels(figure)["x[0]"])


def test_pair_counts_the_draws_it_cannot_show():
    lp = np.zeros((2, 200))
    lp[0, :7] = np.nan
    tree = made_by_hand(np.zeros(2), lp=lp)
    tree["posterior"]["x"].values[1, :3, 0] = np.inf
    figure = plot_pair(tree)
    assert "10 of 400 draws are not finite and not shown" in heading(figure)
    assert len(figure.axes[2].collections[0].get_offsets()) == 390


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parameters": ("B",)}, ValueError, r"Expected parameters among \['A', 'cell/rate'\] .*; got \['B'\]"),
        ({"parameters": ()}, ValueError, "Expected at least one parameter; got an empty sequence"),
        ({"parameters": "A"}, TypeError, r"Expected a sequence of names; got the string 'A'. Write \('A',\)"),
        ({"num_draws": 0}, ValueError, "Expected num_draws to be an integer >= 1; got 0"),
        ({"max_parameters": 0}, ValueError, "Expected max_parameters to be an integer >= 1; got 0"),
    ],
    ids=["unknown", "empty", "text", "draws", "parameters"],
)
def test_pair_names_a_wrong_argument(tree, options, error, message):
    with pytest.raises(error, match=message):
        plot_pair(tree, **options)


def test_fit_draws_the_history(tree):
    top, middle, bottom = plot_fit(tree).axes
    history, scale = tree["optimization"], tree["constant_data"]["scale"].values
    np.testing.assert_array_equal(top.lines[0].get_ydata(), history["entropy"])
    lines = {line.get_label(): line for line in middle.lines}
    multipliers = dict(zip(lines, bottom.lines, strict=True))
    for i, name in enumerate(history["constraint"].values):
        np.testing.assert_array_equal(lines[name].get_xdata(), history["step"])
        np.testing.assert_array_equal(lines[name].get_ydata(), history["violation"][:, i])
        np.testing.assert_allclose(multipliers[name].get_ydata(), history["multiplier"][:, i] * scale[i])
        assert lines[name].get_color() == multipliers[name].get_color()
        assert lines[name].get_linestyle() == multipliers[name].get_linestyle()


@pytest.mark.parametrize("source", ["chains", None])
def test_fit_marks_the_multipliers_of_the_result(source):
    """They may come from elsewhere than the run: 3 in the table beside 2.1 at the run's end."""
    result = fake_result(network_problem())
    result.constraints["multiplier"].values[:] = np.arange(len(result.constraints["multiplier"])) + 3.0
    result.settings |= {} if source is None else {"multiplier_source": source}
    tree = to_datatree(*result_groups(result, key=jax.random.key(0), num_chains=1, num_draws=10))
    figure = plot_fit(tree)
    bottom, last_step = figure.axes[2], tree["optimization"]["step"].values[-1]
    constraints = tree["constant_data"]
    np.testing.assert_allclose(
        [marker.get_offsets()[0] for marker in bottom.collections],
        [
            (last_step, m * s)
            for m, s in zip(constraints["multiplier"].values, constraints["scale"].values, strict=True)
        ],
    )
    for marker, line in zip(bottom.collections, bottom.lines, strict=False):
        assert to_hex(marker.get_edgecolor()[0]) == to_hex(line.get_color())
    entries = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert "multiplier during the run" in entries
    assert "multiplier of the result" + (", from chains" if source else "") in entries
    assert_legible(figure)


def test_fit_tells_every_constraint_apart(sized_trees):
    lines = [line for line in plot_fit(sized_trees[4]).axes[1].lines if not line.get_label().startswith("_")]
    assert len(lines) == 9
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_fit_shows_the_prior_entropy(tree):
    line = plot_fit(tree).axes[0].lines[1]
    # H of four uniforms on an interval of 20 and of Gamma(2, 1), which is 2 + log(Gamma(2)) - digamma(2) = 1.5772.
    assert line.get_ydata()[0] == pytest.approx(4 * np.log(20) + 1.5772, abs=5 * 0.65 / np.sqrt(600))
    assert line.get_linestyle() == "--"


def test_entropy_of_the_prior_leaves_out_draws_that_are_not_finite(tree):
    bad = tree.copy(deep=True)
    bad["sample_stats_prior"]["log_prior"].values[0, :2] = -np.inf
    line = plot_fit(bad).axes[0].lines[1]
    kept = bad["sample_stats_prior"]["log_prior"].values.ravel()[2:]
    assert line.get_ydata()[0] == pytest.approx(-kept.mean(), rel=1e-5)
    assert line.get_label().endswith("without 2 draws that are not finite")


def test_fit_needs_no_prior():
    assert len(plot_fit(many_constraints(2)).axes[0].lines) == 1


@pytest.mark.parametrize("tolerance", [0.05, 0.2])
def test_fit_shades_the_tolerance(tolerance):
    (band,) = plot_fit(many_constraints(3, tolerance)).axes[1].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((-tolerance, tolerance))
    assert band.get_label() == f"tolerance, {tolerance:g} sd"


def test_fit_names_the_constraints_farthest_off():
    figure = plot_fit(many_constraints(40))
    named = [line.get_label() for line in figure.axes[1].lines if not line.get_label().startswith("_")]
    assert named == [f"c{i}" for i in range(16, 40)]
    assert figure.legends[0].get_title().get_text() == "grey: 16 constraints\nthat ended nearer to target"
    assert len(figure.axes[1].lines) == 41


@pytest.mark.parametrize("largest", [0.0, 0.01, 3.0, 1e9, np.inf, np.nan])
def test_fit_labels_few_violations(largest):
    tree = many_constraints(3)
    tree["optimization"]["violation"].values[0] = largest
    figure = plot_fit(tree)
    figure.draw_without_rendering()
    ticks = figure.axes[1].get_yticks()
    assert {-0.05, 0.0, 0.05} <= set(ticks)
    assert len(ticks) <= 13


def test_statistics_count_every_draw(tree):
    found = panels(plot_statistics(tree))
    assert list(found) == ["trace", "cell_rate[E]", "cell_rate[I]", "cell_rate[V]"]
    for group, label in (("posterior_predictive", "guide"), ("prior_predictive", "prior")):
        expected = {"trace": tree[group]["trace"].values.ravel()}
        expected |= {f"cell_rate[{c}]": tree[group]["cell_rate"].sel(cell=c).values.ravel() for c in "EIV"}
        for name, axis in found.items():
            heights, edges, _ = outlines(axis)[label]
            counts = np.histogram(expected[name], edges)[0]
            np.testing.assert_allclose(heights * 600 * np.diff(edges), counts, atol=1e-6)


def test_statistics_show_target_spread_and_unit(tree):
    found = panels(plot_statistics(tree))
    expected = {"trace": (1, 0.5, "1/s"), "cell_rate[E]": (2, 0.5, "Hz"), "cell_rate[V]": (3, 1, "Hz")}
    for name, (mean, std, unit) in expected.items():
        (line,) = found[name].lines
        assert (line.get_xdata()[0], line.get_linestyle()) == (mean, "--")
        (band,) = [patch for patch in found[name].patches if patch.get_label() == "target mean ± std"]
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((mean - std, mean + std))
        assert found[name].get_xlabel().startswith(unit)


def test_statistics_without_a_spread_have_no_band(sized_trees):
    axis = panels(plot_statistics(sized_trees[2]))["total"]
    assert "target mean ± std" not in [patch.get_label() for patch in axis.patches]


def test_statistics_are_not_squashed_by_the_prior(sized_trees):
    """The prior may add at most what the guide and the target take, on each side; a tenth is left for margins."""
    tree = sized_trees[2].copy(deep=True)
    tree["prior_predictive"]["potential"].values[:] *= 1e4
    low, high = panels(plot_statistics(tree))["potential[0]"].get_xlim()
    draws = tree["posterior_predictive"]["potential"].values[..., 0]
    assert high - low < 3.3 * (max(draws.max(), 0.3 + 0.75) - min(draws.min(), 0.3 - 0.75))


def test_statistics_say_how_many_draws_are_not_shown(sized_trees):
    tree = sized_trees[2].copy(deep=True)
    tree["posterior_predictive"]["potential"].values[0, :4, 0] = np.nan
    tree["posterior_predictive"]["potential"].values[0, 4, 0] = 1e6
    assert panels(plot_statistics(tree))["potential[0]"].get_xlabel() == "mV; 5 of 100 not shown"


def test_too_many_statistics_leave_out_those_nearest_to_their_targets(sized_trees, monkeypatch):
    monkeypatch.setattr(_plots, "MAX_PANELS", 8)
    tree = sized_trees[20].copy(deep=True)
    tree["constant_data"]["violation"].values[:21] = np.arange(21)
    figure = plot_statistics(tree)
    assert list(panels(figure)) == [*(f"potential[{i}]" for i in range(13, 20)), "total"]
    assert "8 of 21 statistics; left out: the 13 nearest to their targets" in heading(figure)


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_every_form_of_exported_data_can_be_drawn(tree, tmp_path, plot):
    write(tree, tmp_path / "result.nc")
    sizes = [len(plot(form).axes) for form in (tree, to_arviz(tree), tmp_path / "result.nc")]
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_title_says_how_the_run_ended(tree, plot):
    assert plot(tree).get_suptitle().startswith("network: satisfied, entropy 6.5 nats")


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
@pytest.mark.parametrize("size", [2, 4, 20])
def test_all_text_is_in_the_figure_and_no_numbers_overlap(sized_trees, plot, size):
    assert_legible(plot(sized_trees[size]))


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_figures_leave_no_trace_in_pyplot(tree, plot):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    plot(tree)
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS.keys())
def test_missing_matplotlib_says_what_to_install(tree, monkeypatch, plot):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="Expected Matplotlib; it is missing. Install it: pip install 'matplotlib"):
        plot(tree)


@pytest.mark.parametrize(
    ("plot", "group"),
    [(plot_pair, "posterior"), (plot_fit, "optimization"), (plot_statistics, "posterior_predictive")],
    ids=PLOTS.keys(),
)
def test_missing_group_is_named(plot, group):
    tree = to_datatree({"constant_data": xr.Dataset()}, {})
    with pytest.raises(ValueError, match=rf"Expected a group '{group}'; got the groups \['constant_data'\]"):
        plot(tree)


def test_legend_of_a_small_figure_takes_more_lines(sized_trees):
    """Two parameters with everything that has a label."""
    tree = sized_trees[2]
    first, last = ({"weights": tree["posterior"]["weights"].values[place]} for place in ((0, 0), (-1, -1)))
    points = {"the first of all draws": first, "the last of all draws": last}
    arrows = {"the first of all draws": {"weights": last["weights"] - first["weights"]}}
    assert_legible(plot_pair(tree, contours=True, points=points, arrows=arrows))
