"""What plugins register: found lazily, loaded safely, refused clearly. The plugins are real ones, on disk."""

import sys

import jax.numpy as jnp
import pytest
from fake_distributions import GOOD_PROBLEM, GOOD_STATISTIC, PROBLEMS, install

from numpyro_epi._problem import get_problem, list_problems
from numpyro_epi._registry import DISABLE_VARIABLE, PluginError
from numpyro_epi.statistics import get_statistic, list_statistics

RAISES = "raise RuntimeError('no licence for this simulator')"
BROKEN = {
    "raises on import": ({"cell.bad": "f"}, RAISES, "RuntimeError: no licence for this simulator"),
    "has no such object": ({"cell.bad": "f"}, "", "AttributeError: module 'fake_broken' has no attribute 'f'"),
    "imports what is missing": ({"cell.bad": "f"}, "import no_such_module_at_all", "No module named 'no_such_module"),
    "is of the wrong type": (
        {"cell.bad": "f"},
        "def f(sites): ...",
        "Expected a numpyro_epi Statistic.*; got function",
    ),
    "is no Python": ({"cell.bad": "f"}, "def def", "SyntaxError"),
    "names no object": ({"cell.bad": "!"}, "", "Error"),
}


def names(providers):
    return [provider.name for provider in providers]


def test_listing_imports_nothing(site_packages):
    module = install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    assert "cell.voltage" in names(list_statistics())
    assert module not in sys.modules


def test_listing_says_package_version_and_target(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, version="3.1", source=GOOD_STATISTIC)
    found = next(provider for provider in list_statistics() if provider.name == "cell.voltage")
    assert found == ("cell.voltage", "fake-good", "3.1", "fake_good:voltage")
    assert found.qualified == "fake-good:cell.voltage"


def test_listing_is_sorted_and_holds_our_own():
    found = names(list_statistics())
    assert found == sorted(found)
    assert {"site.value", "site.square", "site.log", "site.norm"} <= set(found)


def test_a_plugin_installed_while_running_is_found(site_packages):
    assert "cell.voltage" not in names(list_statistics())
    (site_packages / "later").mkdir()
    sys.path.insert(0, str(site_packages / "later"))
    try:
        install(site_packages / "later", "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
        assert "cell.voltage" in names(list_statistics())
    finally:
        sys.path.remove(str(site_packages / "later"))


def test_a_statistic_is_found_under_its_registered_name(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    found = get_statistic("cell.voltage", gain=2.0)
    assert (found.name, found.unit) == ("cell.voltage(2.0)", "mV")
    assert found({"v": jnp.array(3.0)}) == 6


def test_a_problem_is_built_with_the_arguments_given(site_packages):
    install(site_packages, "fake-good", {"cell.resting": "build"}, group=PROBLEMS, source=GOOD_PROBLEM)
    assert "cell.resting" in names(list_problems())
    assert get_problem("cell.resting", mean=0.25).target == 0.25


def test_a_plugin_is_imported_once(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    first = get_statistic("cell.voltage")
    del sys.modules["fake_good"]
    assert get_statistic("cell.voltage") is first


@pytest.mark.parametrize(("entries", "source", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_named_and_breaks_no_other(site_packages, entries, source, message):
    install(site_packages, "fake-broken", entries, version="0.7", source=source)
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    assert {"cell.bad", "cell.voltage"} <= set(names(list_statistics()))
    with pytest.raises(PluginError, match=rf"Statistic 'cell\.bad' of fake-broken 0\.7 \(fake_broken:.*{message}"):
        get_statistic("cell.bad")
    assert get_statistic("cell.voltage").unit == "mV"


def test_a_broken_plugin_keeps_its_own_traceback(site_packages):
    install(site_packages, "fake-broken", {"cell.bad": "f"}, source=RAISES)
    with pytest.raises(PluginError, match="failed to load") as caught:
        get_statistic("cell.bad")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_plugin_can_be_repaired_while_running(site_packages):
    module = install(site_packages, "fake-broken", {"cell.voltage": "voltage"}, source=RAISES)
    with pytest.raises(PluginError, match="no licence"):
        get_statistic("cell.voltage")
    (site_packages / f"{module}.py").write_text(GOOD_STATISTIC)
    assert get_statistic("cell.voltage").unit == "mV"


def test_a_problem_of_the_wrong_type_is_refused(site_packages):
    install(site_packages, "fake-broken", {"cell.bad": "f"}, group=PROBLEMS, version="0.7", source="f = 3")
    with pytest.raises(PluginError, match=r"Problem 'cell\.bad' of fake-broken 0\.7 .*Expected a function.*; got int"):
        get_problem("cell.bad")


def test_a_function_that_returns_no_problem_is_refused(site_packages):
    install(site_packages, "fake-broken", {"cell.bad": "f"}, group=PROBLEMS, source="def f(): return 3")
    with pytest.raises(TypeError, match=r"Expected registered problem 'cell\.bad' to return a Problem; got int"):
        get_problem("cell.bad")


def test_two_packages_claiming_one_name_are_both_named(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, version="1.0", source=GOOD_STATISTIC)
    install(site_packages, "fake-rival", {"cell.voltage": "voltage"}, version="2.0", source=GOOD_STATISTIC)
    message = (
        r"Expected one package to register statistic 'cell\.voltage'; "
        r"got fake-good 1\.0 \(fake_good:voltage\), fake-rival 2\.0 \(fake_rival:voltage\)\. "
        r"Ask for 'fake-good:cell\.voltage' or 'fake-rival:cell\.voltage'\."
    )
    with pytest.raises(LookupError, match=message):
        get_statistic("cell.voltage")


def test_the_qualified_name_chooses_between_claims(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    install(site_packages, "fake-rival", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC.replace("mV", "V"))
    assert get_statistic("fake-good:cell.voltage").unit == "mV"
    assert get_statistic("fake-rival:cell.voltage").unit == "V"


def test_a_distribution_installed_twice_counts_once(site_packages):
    for folder, version in (("first", "2.0"), ("second", "1.0")):
        (site_packages / folder).mkdir()
        install(
            site_packages / folder, "fake-good", {"cell.voltage": "voltage"}, version=version, source=GOOD_STATISTIC
        )
    sys.path[:0] = [str(site_packages / "first"), str(site_packages / "second")]
    try:
        found = [provider for provider in list_statistics() if provider.name == "cell.voltage"]
        assert [provider.version for provider in found] == ["2.0"]
        assert get_statistic("cell.voltage").unit == "mV"
    finally:
        del sys.path[:2]


@pytest.mark.parametrize(
    ("setting", "left"),
    [
        ("fake-good", {"cell.current", "site.norm"}),
        ("fake-good, fake-rival", {"site.norm"}),
        ("*", {"site.norm"}),
        ("", {"cell.voltage", "cell.current", "site.norm"}),
    ],
)
def test_the_environment_switches_plugins_off(site_packages, monkeypatch, setting, left):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    install(site_packages, "fake-rival", {"cell.current": "voltage"}, source=GOOD_STATISTIC)
    monkeypatch.setenv(DISABLE_VARIABLE, setting)
    assert {"cell.voltage", "cell.current", "site.norm"} & set(names(list_statistics())) == left


def test_a_plugin_switched_off_is_unknown(site_packages, monkeypatch):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    assert get_statistic("cell.voltage").unit == "mV"
    monkeypatch.setenv(DISABLE_VARIABLE, "fake-good")
    with pytest.raises(LookupError, match=r"Expected a registered statistic; got 'cell\.voltage'"):
        get_statistic("cell.voltage")


def test_close_names_are_suggested(site_packages):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    with pytest.raises(LookupError, match=r"got 'cell\.volttage'\. Did you mean 'cell\.voltage'\?"):
        get_statistic("cell.volttage")


def test_without_a_close_name_all_are_listed():
    with pytest.raises(LookupError, match=r"got 'qqqqqqqq'\. Registered: .*site\.log, site\.norm"):
        get_statistic("qqqqqqqq")
