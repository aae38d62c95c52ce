"""Fixtures that several test modules use."""

import os
import sys
from pathlib import Path

# XLA's threads of two workers on the same cores hold each other up more than they help: one core for each worker.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import jaxlib

# A test runs each program a few times at most: compiling it takes longer, and half as long without optimisation. XLA ends a
# process whose flag it does not know, so the flag is set for versions that are known to have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if jaxlib.version.__version_info__ < (0, 10, 3):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax
import pytest

from numpyro_epi import _problem, statistics

MOST_MAPS = 20_000


class ForgetCompiledPrograms:
    """Each compiled program keeps a few memory maps, of which Linux allows a process 65,530: a long run would crash."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item, nextitem):
        maps = Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
            jax.clear_caches()


def pytest_configure(config):
    # Hooks of this file alone would not see the plugins' tests.
    config.pluginmanager.register(ForgetCompiledPrograms())


@pytest.fixture
def optimised():
    """Programs that LLVM optimises, where a test is about the same numbers by different programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    # What is compiled already is found again whatever the setting.
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


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
