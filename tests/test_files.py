"""What replaces a file is on the disk before anything that it makes superfluous is deleted."""

import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import numpyro_epi
from numpyro_epi import _checkpoint, _cli
from numpyro_epi._datatree import to_datatree, write
from numpyro_epi._files import checked_output, put, written_aside

posix = pytest.mark.skipif(os.name != "posix", reason="folders can be synced on POSIX only")


@pytest.fixture
def events(monkeypatch):
    """Syncs, by the file's number, renames, by source and target, and removals of checkpoints."""
    found = []
    fsync, replace, remove = os.fsync, os.replace, _checkpoint.remove

    def noted_fsync(handle):
        found.append(("sync", os.fstat(handle).st_ino))
        fsync(handle)

    def noted_replace(source, target):
        found.append(("rename", os.stat(source).st_ino, Path(target).name))
        replace(source, target)

    def noted_remove(path):
        found.append(("remove", Path(path).name))
        remove(path)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(_checkpoint, "remove", noted_remove)
    return found


def number(path):
    return os.stat(path).st_ino


def tree():
    data = xr.Dataset({"x": (("chain", "draw"), np.arange(12.0).reshape(2, 6))})
    return to_datatree({"posterior": data}, {"numpyro_epi_version": "0.1.0"})


@posix
@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_result_is_synced_before_and_its_folder_after_the_rename(tmp_path, events, suffix):
    path = tmp_path / f"a{suffix}"
    write(tree(), path)
    renamed = next(i for i, event in enumerate(events) if event == ("rename", number(path), path.name))
    before = {event[1] for event in events[:renamed] if event[0] == "sync"}
    assert before == {number(each) for each in (path, *path.rglob("*"))}
    assert events[renamed + 1 :] == [("sync", number(tmp_path))]


@posix
def test_what_is_written_aside_is_synced(tmp_path, events):
    with written_aside(tmp_path / "page.html") as aside:
        aside.write_text("all")
    file = number(tmp_path / "page.html")
    assert events == [("sync", file), ("rename", file, "page.html"), ("sync", number(tmp_path))]


class Result:
    """What the program needs of a result."""

    settings, satisfied = {"cut_by": ""}, True

    def save(self, path):
        write(tree(), path)


@posix
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_checkpoint_goes_after_its_result_is_on_the_disk(tmp_path, monkeypatch, events, options):
    (tmp_path / "m.py").write_text(
        "import numpyro, numpyro.distributions as dist, numpyro_epi as epi\n"
        "def model(): numpyro.sample('z', dist.Normal())\n"
        "p = epi.Problem(model, epi.EmergentProperty(epi.Target('site.value', mean=0.0, std=1.0, args={'site': 'z'})))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_cli, "_problem", lambda arguments: type("Problem", (), {"name": "p"}))
    monkeypatch.setattr(numpyro_epi, "fit", lambda *args, **options: Result(), raising=False)
    out = tmp_path / "p.nc"
    if options:
        write(tree(), out)
        events.clear()
    assert _cli.main(["fit", "m.py:p", "--out", str(out), *options]) == 0
    last = max(i for i, event in enumerate(events) if event[0] == "rename" and event[2] == "p.nc")
    assert ("sync", number(out)) in events[:last]
    assert events[last + 1 :] == [("sync", number(tmp_path)), ("remove", "p.nc.ckpt")]


def test_a_rename_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("new")

    def refused(source, target):
        raise OSError("Stale file handle")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="Stale"):
        put(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"


@posix
def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    """Some network file systems do not sync folders."""
    fsync = os.fsync

    def only_files(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    (tmp_path / "b").write_text("new")
    put(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


def test_an_existing_output_is_the_same_error_everywhere(tmp_path):
    match = "Expected an output that does not exist; got .*a[.]nc. Pass overwrite=True, or another path."
    (tmp_path / "a.nc").write_text("old")
    for refused in (lambda p: checked_output(p, (".nc",), overwrite=False), lambda p: write(tree(), p)):
        with pytest.raises(FileExistsError, match=match):
            refused(tmp_path / "a.nc")


ABOUT = {name: 0 for name in _checkpoint._ABOUT}


@posix
@pytest.mark.parametrize("suffix", [".writing", ".lock"])
def test_a_link_beside_a_checkpoint_redirects_nothing(tmp_path, suffix):
    """In a folder that others may write to."""
    (tmp_path / "mine").write_text("kept")
    path = tmp_path / "run.ckpt"
    (tmp_path / f"run.ckpt{suffix}").symlink_to(tmp_path / "mine")
    try:
        with _checkpoint.Keeper(path, 0.0, new=True) as keeper:
            keeper.save(ABOUT, {"a": np.arange(3)})
    except OSError:
        assert suffix == ".lock"
    else:
        np.testing.assert_array_equal(_checkpoint.read(path).arrays["a"], np.arange(3))
    assert (tmp_path / "mine").read_text() == "kept"


def test_an_unfinished_checkpoint_has_another_name_each_time_and_is_cleaned_up(tmp_path, monkeypatch):
    path, seen = tmp_path / "run.ckpt", []

    def killed(source, target):
        seen.append(source.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint, "put", killed)
        # A process that is killed deletes nothing.
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), _checkpoint.Keeper(path, 0.0, new=True) as keeper:
                keeper.save(ABOUT, {"a": np.arange(3)})
    assert len(set(seen)) == 2
    (tmp_path / "run.ckpt2.0.writing").write_text("of another run")
    with _checkpoint.Keeper(path, 0.0, new=True):
        assert {each.name for each in tmp_path.glob("*.writing")} == {"run.ckpt2.0.writing"}
