"""What is measured on one draw: declaring it, naming its components, and the built-in ones."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi.statistics import Statistic, get_statistic, log, norm, square, statistic, value

POINT = jnp.array([[0.5, 2.0, 3.0], [1.5, 0.25, 4.0]])
BUILT_IN = {
    "site.value": (value, lambda x: x),
    "site.square": (square, lambda x: x**2),
    "site.log": (log, np.log),
    "site.norm": (norm, lambda x: np.sqrt(np.sum(x**2))),
}


@statistic(unit="Hz", dims=("neuron",), coords={"neuron": ["E", "P"]})
def rates(sites, *, gain=1.0, offset):
    return gain * sites["r"] + offset


def test_decorated_function_carries_what_was_declared():
    assert isinstance(rates, Statistic)
    assert (rates.name, rates.unit, rates.dims) == ("rates", "Hz", ("neuron",))
    assert rates.coords == {"neuron": ["E", "P"]}
    assert rates.differentiable


def test_bare_decorator_is_a_pure_number_of_the_functions_name():
    found = statistic()(lambda sites: sites["x"])
    assert (found.name, found.unit, found.dims, found.coords) == ("<lambda>", "", (), {})


def test_name_and_differentiability_can_be_declared():
    found = statistic(name="spikes", differentiable=False)(lambda sites: sites["x"] > 0)
    assert (found.name, found.differentiable) == ("spikes", False)


@pytest.mark.parametrize("returned", [True, 3, np.float32(3), jnp.array([1, 2])])
def test_value_is_a_floating_array(returned):
    measured = statistic()(lambda sites: returned)({})
    assert jnp.issubdtype(measured.dtype, jnp.floating)
    np.testing.assert_array_equal(measured, np.asarray(returned, float))


def test_coords_of_no_dim_are_refused():
    with pytest.raises(ValueError, match=r"Expected coords of 'f' for dims among \('time',\); got \['neuron'\]"):
        statistic(dims=("time",), coords={"neuron": ["E"]}, name="f")(lambda sites: sites["x"])


def test_options_are_the_keyword_only_arguments():
    assert rates.options == {"gain": 1.0, "offset": inspect.Parameter.empty}
    assert rates.missing_options() == ["offset"]


def test_bound_options_reach_the_function_and_the_name():
    bound = rates.bind(gain=2.0, offset=1.0)
    np.testing.assert_array_equal(bound({"r": jnp.array([3.0, 4.0])}), [7, 9])
    assert bound.name == "rates(2.0, 1.0)"
    assert (bound.unit, bound.dims, bound.coords) == (rates.unit, rates.dims, rates.coords)
    assert bound.missing_options() == []


def test_binding_keeps_differentiability():
    counts = statistic(differentiable=False)(lambda sites, *, site: sites[site] > 0)
    assert not counts.bind(site="x").differentiable


def test_options_can_be_bound_one_after_another():
    bound = rates.bind(offset=1.0).bind(gain=2.0)
    np.testing.assert_array_equal(bound({"r": jnp.array([3.0, 4.0])}), [7, 9])


def test_binding_nothing_changes_nothing():
    assert rates.bind() is rates


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match=r"Expected options of 'rates' among \['gain', 'offset'\]; got \['Gain'\]"):
        rates.bind(Gain=2.0)


def test_a_scalar_is_labelled_by_its_name():
    assert norm.labels(()) == ["norm"]


def test_components_are_labelled_by_coords():
    assert rates.labels((2,)) == ["rates[E]", "rates[P]"]


def test_components_without_dims_are_labelled_by_position():
    assert value.labels((2,)) == ["value[0]", "value[1]"]


def test_labels_run_in_the_order_of_ravel():
    found = statistic(dims=("row", "column"), coords={"column": ["l", "r", "x"]}, name="f")(lambda sites: sites["x"])
    expected = np.array([[f"f[{row},{column}]" for column in "lrx"] for row in range(2)])
    assert found.labels((2, 3)) == list(expected.ravel())


def test_a_value_of_other_dims_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected 'rates' to return an array over dims \('neuron',\); got shape \(\)"
    ):
        rates.labels(())


def test_a_value_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"Expected 3 labels for dim 'neuron' of 'rates'; got 2: \['E', 'P'\]"):
        rates.labels((3,))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_is_registered(name):
    declared, _ = BUILT_IN[name]
    found = get_statistic(name, site="x")
    assert found.name == f"{name}(x)"
    assert found.function.func is declared.function


@pytest.mark.parametrize(("found", "formula"), BUILT_IN.values(), ids=BUILT_IN.keys())
def test_built_in_value_is_numpys(found, formula):
    # Single precision, a few roundings.
    np.testing.assert_allclose(found.bind(site="x")({"x": POINT}), formula(np.asarray(POINT, float)), rtol=1e-6)


@pytest.mark.parametrize(("found", "formula"), BUILT_IN.values(), ids=BUILT_IN.keys())
def test_built_in_gradient_is_the_finite_difference(found, formula):
    gradient = jax.grad(lambda x: found.bind(site="x")({"x": x}).sum())(POINT)
    point = np.asarray(POINT, float)
    for index in np.ndindex(point.shape):
        shift = np.zeros(point.shape)
        shift[index] = 1e-6
        slope = (np.sum(formula(point + shift)) - np.sum(formula(point - shift))) / 2e-6
        np.testing.assert_allclose(gradient[index], slope, rtol=1e-5)


def test_norm_and_its_gradient_are_zero_at_zero():
    measured, gradient = jax.value_and_grad(lambda x: norm.bind(site="x")({"x": x}))(jnp.zeros(3))
    assert measured == 0
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("found", [value, square, log, norm], ids=lambda found: found.name)
def test_a_missing_site_is_named(found):
    with pytest.raises(KeyError, match="'y'"):
        found.bind(site="y")({"x": POINT})


def test_a_required_option_must_be_bound():
    with pytest.raises(TypeError, match="site"):
        norm({"x": POINT})


@pytest.mark.parametrize(("found", "formula"), BUILT_IN.values(), ids=BUILT_IN.keys())
def test_batching_is_a_loop(found, formula):
    bound = found.bind(site="x")
    batch = jnp.stack([POINT, POINT + 1, 2 * POINT])
    batched = jax.vmap(lambda x: bound({"x": x}))(batch)
    np.testing.assert_allclose(batched, np.stack([formula(np.asarray(x, float)) for x in batch]), rtol=1e-6)
