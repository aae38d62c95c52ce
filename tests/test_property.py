"""An emergent property names, orders and measures its constraints; what does not fit is explained."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from numpyro_epi._property import Constraint, EmergentProperty, Target
from numpyro_epi.statistics import statistic, value

SITES = {"x": jnp.array([1.0, -2.0, 4.0]), "y": jnp.array(3.0)}


@statistic(unit="Hz", dims=("cell",), coords={"cell": ("pyramidal", "basket", "chandelier")})
def rate(sites):
    return 2 * sites["x"]


@statistic(unit="mV")
def voltage(sites):
    return sites["y"] - 1.0


@statistic(dims=("row", "column"), coords={"row": ("a", "b")})
def outer(sites):
    return jnp.outer(sites["x"][:2], sites["x"])


@statistic()
def needs_option(sites, *, site):
    return sites[site]


def undeclared(sites):
    return sites["y"]


def moments_of(property):
    return property.moments(property.values(SITES))


def names_of(property):
    return [constraint.name for constraint in property.constraints(SITES)]


def test_constraints_carry_names_units_targets_and_orders():
    property = EmergentProperty(Target(rate, mean=np.array([1.0, 2.0, 3.0]), std=0.5), Target(voltage, mean=-65.0))
    assert property.constraints(SITES) == [
        Constraint("rate[pyramidal]", "Hz", 1.0, "rate[pyramidal]", 1),
        Constraint("rate[basket]", "Hz", 2.0, "rate[basket]", 1),
        Constraint("rate[chandelier]", "Hz", 3.0, "rate[chandelier]", 1),
        Constraint("voltage", "mV", -65.0, "voltage", 1),
        Constraint("var rate[pyramidal]", "(Hz)^2", 0.25, "rate[pyramidal]", 2),
        Constraint("var rate[basket]", "(Hz)^2", 0.25, "rate[basket]", 2),
        Constraint("var rate[chandelier]", "(Hz)^2", 0.25, "rate[chandelier]", 2),
    ]


def test_all_means_come_before_all_second_moments():
    property = EmergentProperty(
        Target(voltage, mean=0.0, std=1.0),
        Target(undeclared, mean=0.0),
        Target(value.bind(site="y"), mean=0.0, std=2.0),
    )
    assert names_of(property) == ["voltage", "undeclared", "value(y)", "var voltage", "var value(y)"]


def test_a_pure_number_has_no_unit_at_any_order():
    property = EmergentProperty(Target(undeclared, mean=0.0, std=1.0))
    assert [constraint.unit for constraint in property.constraints(SITES)] == ["", ""]


def test_moments_match_a_direct_computation():
    mean, std = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 3.0]]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    property = EmergentProperty(Target(voltage, mean=5.0, std=0.1), Target(outer, mean=mean, std=std))
    x = np.array([1.0, -2.0, 4.0])
    table = x[:2, None] * x
    expected = [2.0, *table.ravel(), (2.0 - 5.0) ** 2, *np.square(table - mean).ravel()]
    np.testing.assert_allclose(moments_of(property), expected, rtol=1e-6)


def test_moments_stand_in_the_order_of_their_constraints():
    """At a draw that is on target, every mean equals its target and every square is zero."""
    property = EmergentProperty(
        Target(outer, mean=np.asarray(outer(SITES)), std=1.0), Target(voltage, mean=2.0, std=1.0)
    )
    moments, constraints = moments_of(property), property.constraints(SITES)
    assert names_of(property)[:3] == ["outer[a,0]", "outer[a,1]", "outer[a,2]"]
    assert len(moments) == len(constraints)
    for moment, constraint in zip(moments, constraints, strict=True):
        assert moment == (constraint.target if constraint.order == 1 else 0.0)


def test_a_scalar_target_holds_for_every_component():
    constraints = EmergentProperty(Target(rate, mean=4.0, std=3.0)).constraints(SITES)
    assert [constraint.target for constraint in constraints] == [4.0] * 3 + [9.0] * 3


def test_an_array_target_goes_by_component():
    wanted = np.arange(6.0).reshape(2, 3)
    constraints = EmergentProperty(Target(outer, mean=wanted, std=1 + wanted)).constraints(SITES)
    assert [constraint.target for constraint in constraints] == [*wanted.ravel(), *np.square(1 + wanted).ravel()]


def test_values_are_the_statistics_under_their_printed_names():
    property = EmergentProperty(Target(rate, mean=0.0, name="firing"), Target(voltage, mean=0.0))
    values = property.values(SITES)
    assert list(values) == ["firing", "voltage"]
    np.testing.assert_array_equal(values["firing"], [2.0, -4.0, 8.0])


def test_a_given_name_keeps_everything_else():
    renamed = Target(rate, mean=0.0, name="firing").statistic
    assert renamed.labels((3,)) == ["firing[pyramidal]", "firing[basket]", "firing[chandelier]"]
    assert (renamed.unit, renamed.dims, renamed.differentiable) == (rate.unit, rate.dims, rate.differentiable)
    assert rate.name == "rate"


@pytest.mark.parametrize(
    ("given", "name"),
    [(undeclared, "undeclared"), (voltage, "voltage"), (lambda sites: sites["y"], "<lambda>")],
)
def test_a_statistic_or_a_plain_function_can_be_a_target(given, name):
    assert names_of(EmergentProperty(Target(given, mean=0.0))) == [name]


def test_a_function_twice_under_two_names_is_two_statistics():
    property = EmergentProperty(Target(undeclared, mean=0.0), Target(undeclared, mean=0.0, name="again"))
    assert names_of(property) == ["undeclared", "again"]


def or_hook(match):
    """Where the test run checks types, the checker speaks first: our own message is for everyone else."""
    return rf"{match}|Type-check error"


BAD_TARGETS = {
    "no statistic": (
        3.0,
        0.0,
        None,
        TypeError,
        or_hook(r"Expected a statistic, a registered name or a function; got float"),
    ),
    "unknown name": ("cell.rate", 0.0, None, LookupError, r"Expected a registered statistic; got 'cell\.rate'"),
    "unbound option": (
        needs_option,
        0.0,
        None,
        TypeError,
        r"Expected the option\(s\) \['site'\] of 'needs_option'; bind them: \.bind\(site=\.\.\.\)",
    ),
    "unbound registered": ("site.value", 0.0, None, TypeError, r"Expected the option\(s\) \['site'\] of 'site\.value'"),
    "words for a mean": (voltage, "high", None, ValueError, r"Expected mean of 'voltage' to be numbers; got 'high'"),
    "complex mean": (voltage, 1j, None, ValueError, r"Expected mean of 'voltage' to be numbers; got 1j"),
    "ragged mean": (rate, [1.0, [2.0]], None, ValueError, r"Expected mean of 'rate' to be numbers; got \[1"),
    "no mean": (
        voltage,
        None,
        None,
        (ValueError, TypeCheckError),
        or_hook(r"Expected a finite mean for 'voltage'; got None"),
    ),
    "NaN mean": (voltage, float("nan"), None, ValueError, r"Expected a finite mean for 'voltage'; got nan"),
    "infinite mean": (rate, [0.0, np.inf, 1.0], None, ValueError, r"Expected a finite mean for 'rate'; got \["),
    "words for a std": (voltage, 0.0, "wide", ValueError, r"Expected std of 'voltage' to be numbers; got 'wide'"),
    "infinite std": (voltage, 0.0, np.inf, ValueError, r"Expected a finite std for 'voltage'; got inf"),
    "zero std": (voltage, 0.0, 0.0, ValueError, r"Expected std > 0 for 'voltage'; got 0\.0\..* leave std out"),
    "negative std": (voltage, 0.0, -1.0, ValueError, r"Expected std > 0 for 'voltage'; got -1\.0"),
    "one zero std": (rate, 0.0, [1.0, 0.0, 1.0], ValueError, r"Expected std > 0 for 'rate'; got \[1\.0, 0\.0, 1\.0\]"),
}


@pytest.mark.parametrize(("given", "mean", "std", "error", "match"), BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_bad_targets_are_explained(given, mean, std, error, match):
    with pytest.raises(error, match=match):
        Target(given, mean=mean, std=std)


BAD_PROPERTIES = {
    "empty": ((), ValueError, r"Expected at least one Target; got none"),
    "bare statistic": ((voltage,), TypeError, or_hook(r"Expected Target objects; got \['Statistic'\]")),
    "list of targets": (([Target(voltage, mean=0.0)],), TypeError, or_hook(r"Expected Target objects; got \['list'\]")),
    "one name twice": (
        (Target(voltage, mean=0.0), Target(undeclared, mean=0.0, name="voltage"), Target(rate, mean=0.0)),
        ValueError,
        r"Expected each statistic once; got \['voltage'\] more than once\..* pass name=",
    ),
}


@pytest.mark.parametrize(("targets", "error", "match"), BAD_PROPERTIES.values(), ids=BAD_PROPERTIES.keys())
def test_bad_properties_are_explained(targets, error, match):
    with pytest.raises(error, match=match):
        EmergentProperty(*targets)


BAD_FITS = {
    "missing site": (
        lambda sites: sites["w"],
        0.0,
        None,
        r"Statistic 'tested' failed on one draw: KeyError: 'w'\. .*\{'x': \(3,\), 'y': \(\)\}",
    ),
    "wrong shapes inside": (lambda sites: sites["x"] @ jnp.ones(2), 0.0, None, r"'tested' failed .*TypeError"),
    "no array": (lambda sites: sites, 0.0, None, r"Statistic 'tested' failed on one draw: TypeError"),
    "empty array": (lambda sites: sites["x"][:0], 0.0, None, r"at least one number; got shape \(0,\)"),
    "too many means": (
        undeclared,
        [0.0, 1.0],
        None,
        r"Expected mean of 'tested' to be a scalar or of shape \(\); got shape \(2,\)",
    ),
    "too few means": (rate, [0.0, 1.0], None, r"Expected mean of 'tested' to be .* of shape \(3,\); got shape \(2,\)"),
    "too few stds": (rate, 0.0, [1.0, 1.0], r"Expected std of 'tested' to be .* of shape \(3,\); got shape \(2,\)"),
    "dims of another shape": (
        statistic(dims=("cell",))(undeclared),
        0.0,
        None,
        r"Expected 'tested' to return an array over dims \('cell',\); got shape \(\)",
    ),
    "coords of another length": (
        statistic(dims=("cell",), coords={"cell": "ab"})(lambda sites: sites["x"]),
        0.0,
        None,
        r"Expected 3 labels for dim 'cell' of 'tested'; got 2: \['a', 'b'\]",
    ),
}


@pytest.mark.parametrize(("given", "mean", "std", "match"), BAD_FITS.values(), ids=BAD_FITS.keys())
def test_what_does_not_fit_the_model_is_explained(given, mean, std, match):
    property = EmergentProperty(Target(given, mean=mean, std=std, name="tested"))
    with pytest.raises(ValueError, match=match):
        property.constraints(SITES)
