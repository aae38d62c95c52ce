"""Where a result cannot be written: one clear error, no litter, and what was there before is whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import numpyro_epi as epi
from numpyro_epi._datatree import read_arviz, to_datatree, write

SUFFIXES = (".nc", ".zarr")
needs_linux = pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="asks Linux to refuse")


@pytest.fixture
def old():
    data = xr.Dataset({"x": (("chain", "draw"), np.random.default_rng(0).normal(size=(4, 2000)))})
    return to_datatree({"posterior": data, "prior": data}, {"numpyro_epi_version": "0.1.0"})


PROGRAM = """
import resource, signal, sys
import numpy as np, xarray as xr
from numpyro_epi._datatree import to_datatree, write
data = xr.Dataset({"x": (("chain", "draw"), np.random.default_rng(1).normal(size=(4, 20000)))})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write(to_datatree({"posterior": data}, {"numpyro_epi_version": "0"}), sys.argv[1], True)
except OSError as error:
    print("said:", error)
"""


@needs_linux
@pytest.mark.parametrize("room", [0, 100_000])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_old_result(old, tmp_path, suffix, room):
    """Files that may not grow fail as on a full disk does, without being root."""
    path = tmp_path / f"result{suffix}"
    write(old, path)
    command = [sys.executable, "-c", PROGRAM, str(path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("said: Expected room for a result at")
    assert str(path) in done.stdout
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    xr.testing.assert_identical(read_arviz(path), old)


@needs_linux
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_nobody_can_write_to_is_named(old, suffix):
    """Root may write anywhere but here."""
    with pytest.raises(OSError, match="/proc/self"):
        write(old, f"/proc/self/result{suffix}")


@needs_linux
def test_a_page_that_cannot_be_written_is_named():
    with pytest.raises(OSError, match="/proc/self"):
        epi.report(page_tree(), "/proc/self/page.html")


def page_tree():
    dims, numbers = ("chain", "draw"), np.random.default_rng(0).normal(size=(2, 10))
    columns = {
        n: ("constraint", [0.5]) for n in ("target", "achieved", "standard_error", "scale", "violation", "multiplier")
    }
    columns |= {"order": ("constraint", [1]), "unit": ("constraint", [""]), "statistic": ("constraint", ["t"])}
    groups = {
        "posterior": xr.Dataset({"z": (dims, numbers, {"kind": "parameter"})}),
        "posterior_predictive": xr.Dataset({"t": (dims, numbers, {"kind": "statistic"})}),
        "sample_stats": xr.Dataset({"lp": (dims, numbers)}),
        "constant_data": xr.Dataset(columns, coords={"constraint": ["t"]}),
    }
    return to_datatree(groups, {"numpyro_epi_version": "0"})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_link_is_replaced_and_not_what_it_leads_to(old, tmp_path, suffix):
    write(old, tmp_path / f"kept{suffix}")
    link = tmp_path / f"link{suffix}"
    link.symlink_to(tmp_path / f"kept{suffix}")
    new = to_datatree({"posterior": old["posterior"].to_dataset() + 1}, old.attrs)
    with pytest.raises(FileExistsError, match="link"):
        write(new, link)
    write(new, link, overwrite=True)
    assert not link.is_symlink()
    xr.testing.assert_identical(read_arviz(tmp_path / f"kept{suffix}"), old)
    xr.testing.assert_identical(read_arviz(link), new)


def test_a_file_that_another_program_holds_is_replaced(old, tmp_path):
    """A new file takes the place of the old one: whoever reads the old one goes on reading it."""
    path = tmp_path / "result.nc"
    write(old, path)
    with xr.open_datatree(path, engine="h5netcdf") as held:
        write(to_datatree({"posterior": old["posterior"].to_dataset() + 1}, old.attrs), path, overwrite=True)
        np.testing.assert_array_equal(held["posterior"]["x"], old["posterior"]["x"])
    assert os.listdir(tmp_path) == ["result.nc"]
