"""Fixtures that several test modules use."""

import sys

import pytest

from numpyro_epi import _problem, statistics


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """A folder on sys.path for ``fake_distributions.install``; what is loaded from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(_problem._REGISTRY, "_loaded", {})
    monkeypatch.setattr(statistics._REGISTRY, "_loaded", {})
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("fake_") and name != "fake_distributions"]:
        del sys.modules[name]
