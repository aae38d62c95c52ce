"""What an installed package says of itself: its version, its types, and the classes of all that it returns."""

import importlib.resources
import tomllib
from pathlib import Path

import jax
import numpyro
import numpyro.distributions as dist
import pytest

import numpyro_epi as epi

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def test_version_is_that_of_the_project():
    assert epi.__version__ == PROJECT["version"]


def test_a_package_that_claims_types_has_the_marker_that_type_checkers_look_for():
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (importlib.resources.files("numpyro_epi") / "py.typed").is_file()


@pytest.mark.parametrize("name", ["CheckReport", "Provider", "Snapshots", "Verdict"])
def test_returned_classes_are_public(name):
    assert name in epi.__all__


def test_returned_objects_are_of_the_public_classes():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    target = epi.Target(epi.statistics.value.bind(site="z"), mean=0.0, std=1.0)
    report = epi.Problem(model, epi.EmergentProperty(target), num_draws=20).check(jax.random.key(0))
    assert isinstance(report, epi.CheckReport)
    assert all(isinstance(provider, epi.Provider) for provider in epi.list_statistics())


def test_scipy_is_demanded_from_the_version_whose_kmeans2_takes_rng():
    (demanded,) = (line for line in PROJECT["dependencies"] if line.startswith("scipy"))
    assert tuple(map(int, demanded.removeprefix("scipy>=").split("."))) >= (1, 15)
