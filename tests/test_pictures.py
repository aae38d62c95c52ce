"""Overlays on pairs, and the pictures of certificate, matrices and trajectories: they draw what was exported, legibly."""

import numpy as np
import pytest
import xarray as xr
from legible import assert_legible
from made_runs import CHAINS, DRAWS, STEPS, made_run
from matplotlib.axes import Axes

from numpyro_epi._canvas import new_figure
from numpyro_epi._certificate_plot import plot_certificate
from numpyro_epi._density import Mode
from numpyro_epi._gallery import gallery
from numpyro_epi._matrix import plot_matrix
from numpyro_epi._overlays import draw_contours
from numpyro_epi._pair import plot_pair
from numpyro_epi._predictive import plot_predictive

PLACE = {"A": np.array([[1.0, 2.0], [3.0, 4.0]])}


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return made_run()


def panel(figure, row: int, column: int, size: int = 4):
    return figure.axes[row * size + column]


def line(axis, label: str) -> np.ndarray:
    """The points of the one line that has this label."""
    (found,) = (line for line in axis.lines if line.get_label() == label)
    return np.stack([found.get_xdata(), found.get_ydata()], axis=1)


def sensitivity(curvature=(-4.0, -1.0)) -> xr.Dataset:
    """Most sensitive along A[0,0], least along A[0,1]."""
    vectors = np.eye(4)[: len(curvature)]
    names = ["A[0,0]", "A[0,1]", "A[1,0]", "A[1,1]"]
    data = {"curvature": ("direction", np.array(curvature)), "vector": (("direction", "parameter"), vectors)}
    return xr.Dataset(data, coords={"parameter": names})


@pytest.mark.parametrize("place", [PLACE, Mode(PLACE, -3.0, 1.0, 0.0, False)], ids=["sites", "mode"])
def test_points_are_where_they_were_said_to_be(tree, place):
    figure = plot_pair(tree, points={"mode": place})
    np.testing.assert_array_equal(line(panel(figure, 1, 0), "mode"), [[1, 2]])
    np.testing.assert_array_equal(line(panel(figure, 3, 2), "mode"), [[3, 4]])


def test_paths_may_be_places_or_arrays(tree):
    along = {"A[0,0]": np.array([0.0, 1.0, 2.0]), "A[1,0]": np.array([2.0, 1.0, 0.0])}
    places = [{name: values[i] for name, values in along.items()} for i in range(3)]
    for path in (along, places):
        figure = plot_pair(tree, paths={"path": path})
        np.testing.assert_array_equal(line(panel(figure, 2, 0), "path"), [[0, 2], [1, 1], [2, 0]])
        assert "path" not in [found.get_label() for found in panel(figure, 1, 0).lines]


def test_arrows_are_one_deviation_long(tree):
    """``1 / sqrt(4)`` along the first number, ``1 / sqrt(1)`` along the second."""
    figure = plot_pair(tree, points={"mode": PLACE}, arrows={"mode": sensitivity()})
    np.testing.assert_allclose(line(panel(figure, 1, 0), "most sensitive direction"), [[1, 2], [1.5, 2]])
    np.testing.assert_allclose(line(panel(figure, 1, 0), "least sensitive direction"), [[1, 2], [1, 3]])


def test_a_long_arrow_is_cut_and_keeps_its_direction(tree):
    figure = plot_pair(tree, points={"mode": PLACE}, arrows={"mode": {"A": np.array([[300.0, 0], [-600, 0]])}})
    start, end = line(panel(figure, 2, 0), "direction")
    low, high = panel(figure, 2, 0).get_ylim()
    np.testing.assert_allclose(end - start, 0.3 * (high - low) * np.array([0.5, -1]))


def test_what_is_laid_over_is_in_sight(tree):
    axis = panel(plot_pair(tree, points={"far": {"A[0,0]": 40.0, "A[0,1]": 0.0}}), 1, 0)
    assert axis.get_xlim()[0] < -5 < 40 < axis.get_xlim()[1]


def test_bounds_are_drawn(tree):
    axis = panel(plot_pair(tree), 1, 0)
    dotted = [found for found in axis.lines if found.get_linestyle() == ":"]
    found = {(*found.get_xdata(), *found.get_ydata()) for found in dotted}
    assert found == {(-5, -5, 0, 1), (5, 5, 0, 1), (0, 1, -5, -5), (0, 1, 5, 5)}


def test_contours_hold_their_share_of_a_normal():
    """Radii of 50 and 90 % of a standard normal are ``sqrt(-2 log(1 - share))``; smoothing and noise take a twentieth."""
    axis = new_figure(3, 3).subplots()
    x, y = np.random.default_rng(0).normal(size=(2, 40_000))
    draw_contours(axis, x, y, (-5.0, 5.0), (-5.0, 5.0))
    radii = [np.linalg.norm(np.concatenate(level), axis=1).mean() for level in axis.collections[0].allsegs]
    np.testing.assert_allclose(radii, [np.sqrt(-2 * np.log(0.1)), np.sqrt(-2 * np.log(0.5))], rtol=0.05)


BAD_OVERLAYS = {
    "site": ({"points": {"mode": {"B": 1.0}}}, ValueError, r"Expected in points\['mode'\] sites .*; got \['B'\]"),
    "shape": ({"points": {"mode": {"A": np.ones(2)}}}, ValueError, r"got \['A\[0\]', 'A\[1\]'\]"),
    "kind": ({"points": {"mode": 3.0}}, TypeError, "Expected in .* a Mode or a mapping of site names .*; got float"),
    "nowhere": ({"arrows": {"mode": PLACE}}, ValueError, r"Expected arrows at points among \[\]; got \['mode'\]"),
    "dataset": (
        {"points": {"mode": PLACE}, "arrows": {"mode": xr.Dataset()}},
        ValueError,
        r"Expected in arrows\['mode'\] what Density.sensitivity returns; it lacks \['curvature', 'vector'\]",
    ),
    "empty": ({"paths": {"path": []}}, ValueError, r"Expected in paths\['path'\] one or more places .*; got 0 places"),
    "number": ({"paths": {"path": {"A[0,0]": 1.0}}}, ValueError, "with the path's axis first; got one number"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_OVERLAYS.values(), ids=BAD_OVERLAYS.keys())
def test_a_wrong_overlay_is_named(tree, options, error, message):
    with pytest.raises(error, match=message):
        plot_pair(tree, **options)


def test_certificate_shows_the_gap_of_each_restart():
    left = plot_certificate(made_run(restarts=2)).axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], [0.1, 0.1, 0.8])
    assert left.get_yticklabels()[0].get_text() == "this result"
    assert "one of two equal modes lost, 0.69 nats" in left.get_legend_handles_labels()[1]


def test_certificate_counts_every_weight(tree):
    right = plot_certificate(tree).axes[1]
    for patch, name in zip(right.patches, ("log_importance_weight", "log_weight"), strict=True):
        counts, edges, _ = patch.get_data()
        weights = tree["sample_stats"][name].values.ravel() + np.log(CHAINS * DRAWS)
        np.testing.assert_array_equal(counts, np.histogram(weights, edges)[0])
        assert counts.sum() >= 0.99 * CHAINS * DRAWS
    assert right.get_title().startswith("290 of 300 draws effective, Pareto k 0.20")


def test_certificate_needs_one(tree):
    bare = tree.copy(deep=True)
    bare.attrs["gap"] = float("nan")
    with pytest.raises(
        ValueError, match="Expected a result with a certificate; got one without. Fit with certify=True"
    ):
        plot_certificate(bare)


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (40, 2)])
def test_matrix_shows_means_and_spreads(rows, columns):
    tree = made_run(rows, columns)
    images = [axis.images[0].get_array() for axis in plot_matrix(tree).findobj(Axes) if axis.images]
    draws = tree["posterior"]["A"].values.reshape(-1, rows, columns)
    np.testing.assert_allclose(images, [draws.mean(axis=0), draws.std(axis=0)])


def test_matrix_leaves_out_draws_that_are_not_finite_and_says_so():
    tree = made_run(2, 3)
    tree["posterior"]["A"].values[0, 0, 1, 2] = np.inf
    figure = plot_matrix(tree)
    images = [axis.images[0].get_array() for axis in figure.findobj(Axes) if axis.images]
    draws = tree["posterior"]["A"].values.reshape(-1, 2, 3)[1:]
    np.testing.assert_allclose(images, [draws.mean(axis=0), draws.std(axis=0)])
    assert f"1 of {CHAINS * DRAWS} draws are not finite and not shown" in figure.get_suptitle()
    assert_legible(figure)


def test_matrix_of_which_nothing_is_finite_says_so():
    tree = made_run(2, 3)
    tree["posterior"]["A"].values[..., 0, 0] = np.nan
    assert "300 of 300 draws are not finite and not shown" in plot_matrix(tree).get_suptitle()


def test_matrix_lays_marginals_out_like_the_matrix():
    axes = [axis for axis in plot_matrix(made_run(2, 3)).findobj(Axes) if axis.get_title().startswith("A[")]
    places = {axis.get_title(): axis.get_position() for axis in axes}
    assert len(places) == 6
    assert places["A[0,0]"].y0 > places["A[1,0]"].y1
    assert places["A[0,0]"].x1 < places["A[0,1]"].x0 < places["A[0,2]"].x0


def test_matrix_names_a_wrong_site(tree):
    with pytest.raises(ValueError, match=r"Expected parameters with two axes, among \['A'\]; got \['B'\]"):
        plot_matrix(tree, sites=("B",))
    with pytest.raises(TypeError, match="Expected a sequence of names; got the string 'A'"):
        plot_matrix(tree, sites="A")


def curves(axis) -> tuple[np.ndarray, np.ndarray]:
    """Points of each curve, and the values that colour them."""
    return np.array(axis.collections[0].get_segments()), axis.collections[0].get_array()


def test_predictive_draws_each_entry_against_time(tree):
    figure = plot_predictive(tree, num_draws=CHAINS * DRAWS)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["x[0]", "x[1]"]
    points, colours = curves(figure.axes[1])
    order = np.argsort(tree["sample_stats"]["lp"].values.ravel())
    slopes = -tree["posterior"]["A"].values[..., 0, 0].ravel()[order]
    np.testing.assert_allclose(points[:, :, 1], slopes[:, None] * np.linspace(0, 3, STEPS), atol=1e-12)
    np.testing.assert_allclose(points[:, :, 0], np.tile(np.linspace(0, 3, STEPS), (CHAINS * DRAWS, 1)))
    np.testing.assert_array_equal(colours, np.sort(tree["sample_stats"]["lp"].values.ravel()))


def test_predictive_takes_what_predictive_made(tree):
    made = np.arange(CHAINS * DRAWS)[:, None] + np.zeros(7)
    figure = plot_predictive(tree, simulated={"y": made}, time=np.arange(7) / 2, num_draws=10)
    points, _ = curves(figure.axes[0])
    assert points.shape == (10, 7, 2)
    np.testing.assert_array_equal(points[0, :, 0], np.arange(7) / 2)


BAD_CURVES = {
    "unknown": ({"sites": ("y",)}, ValueError, r"Expected sites with an axis, among .*'x'.*; got \['y'\]"),
    "scalar": ({"sites": ("first",)}, ValueError, r"Expected sites with an axis, .*; got \['first'\]"),
    "text": ({"sites": "x"}, TypeError, "Expected a sequence of names; got the string 'x'"),
    "count": ({"num_draws": 0}, ValueError, "Expected num_draws >= 1; got 0"),
    "draws": ({"simulated": {"y": np.ones((9, 4))}}, ValueError, r"leading axes \(2, 150\) or \(300,\), .*\(9, 4\)"),
    "time": (
        {"time": np.ones(5)},
        ValueError,
        r"Expected an axis of 'x' as long as time, \(5,\); got the shape \(60, 2\)",
    ),
    "no time": ({"time": "clock"}, ValueError, "Expected time to be values or one of .*; got 'clock'"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_CURVES.values(), ids=BAD_CURVES.keys())
def test_predictive_names_a_wrong_argument(tree, options, error, message):
    with pytest.raises(error, match=message):
        plot_predictive(tree, **options)


def test_predictive_says_how_to_record_a_trajectory(tree):
    bare = tree.copy(deep=True)
    bare["posterior_predictive"] = bare["posterior_predictive"].to_dataset().drop_vars(["x", "time"])
    with pytest.raises(
        ValueError, match=r"Expected a recorded site with an axis.*Record one in the model by numpyro\.det"
    ):
        plot_predictive(bare)


def test_gallery_leaves_out_what_would_be_empty(tree):
    assert list(gallery(tree)) == ["pair", "matrix", "statistics", "predictive", "fit", "certificate"]
    bare = tree.copy(deep=True)
    bare.attrs["gap"] = float("nan")
    bare["posterior"] = bare["posterior"].to_dataset().isel(A_dim_1=0)
    bare["posterior_predictive"] = bare["posterior_predictive"].to_dataset().drop_vars(["x", "time"])
    assert list(gallery(bare)) == ["pair", "statistics", "fit"]


LEGIBLE = {
    "overlays": lambda: plot_pair(
        made_run(),
        contours=True,
        points={"mode": PLACE},
        arrows={"mode": sensitivity()},
        paths={"path": [PLACE, PLACE]},
    ),
    "certificate": lambda: plot_certificate(made_run(restarts=8)),
    "small matrix": lambda: plot_matrix(made_run()),
    "tall matrix": lambda: plot_matrix(made_run(50, 2)),
    "wide matrix": lambda: plot_matrix(made_run(2, 50)),
    "predictive": lambda: plot_predictive(made_run()),
}


@pytest.mark.parametrize("draw", LEGIBLE.values(), ids=LEGIBLE.keys())
def test_all_text_is_in_the_picture_and_no_numbers_overlap(draw):
    assert_legible(draw())
