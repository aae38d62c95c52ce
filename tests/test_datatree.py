"""Exported data in memory and on disk: what a file holds, refuses, and leaves when writing fails."""

import importlib.util
import itertools
import os

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from test_arviz import export, network_problem

from numpyro_epi import _datatree
from numpyro_epi._datatree import as_datatree, read_arviz, to_arviz, to_datatree, write

# ArviZ 0.23 announces its rewrite once a day.
pytestmark = pytest.mark.filterwarnings("error", "ignore:\\nArviZ is undergoing a major refactor:FutureWarning")
SUFFIXES = (".nc", ".zarr")


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return export(network_problem())


@pytest.fixture
def small_tree() -> xr.DataTree:
    """Cheap, ours by its attribute, for what only concerns files."""
    data = xr.Dataset({"x": (("chain", "draw"), np.arange(12.0).reshape(2, 6))})
    return to_datatree({"posterior": data}, {"numpyro_epi_version": "0.1.0"})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (True, 1),
        (np.bool_(False), 0),
        (None, ""),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (2**70, str(2**70)),
        ({"a": (1, np.float64(2.0)), "b": None}, '{"a": [1, 2.0], "b": null}'),
        (["a", "b"], '["a", "b"]'),
        (np.arange(3), "[0, 1, 2]"),
        (jnp.arange(3), "[0, 1, 2]"),
        ({"rule": len}, '{"rule": "<built-in function len>"}'),
    ],
    ids=str,
)
def test_attributes_become_plain(given, kept):
    found = to_datatree({"group": xr.Dataset(attrs={"name": given})}, {"name": given})
    for attrs in (found.attrs, found["group"].attrs):
        assert attrs == {"name": kept}
        assert type(attrs["name"]) is type(kept)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_file_keeps_everything(tree, tmp_path, suffix):
    write(tree, tmp_path / f"result{suffix}")
    found = read_arviz(tmp_path / f"result{suffix}")
    xr.testing.assert_identical(found, tree)
    assert {name: type(value) for name, value in found.attrs.items()} == {n: type(v) for n, v in tree.attrs.items()}
    for node, name in itertools.chain.from_iterable(
        ((node, name) for name in node.variables) for node in tree.descendants
    ):
        assert found[node.path].variables[name].dtype == node.variables[name].dtype, (node.path, name)
    assert [path.name for path in tmp_path.iterdir()] == [f"result{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_odd_types_survive_a_file(tmp_path, suffix):
    columns = {
        "flags": np.array([True, False, True]),
        "words": np.array(["", "µV", "a/b"]),
        "objects": np.array(["", "µV", "a/b"], dtype=object),
        "counts": np.arange(3, dtype=np.uint32),
        "gaps": np.array([np.nan, np.inf, 1], dtype=np.float32),
        "halves": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)),
    }
    data = xr.Dataset(
        {name: ("label", values) for name, values in columns.items()}, coords={"label": ["a b", "c/d", "é"]}
    )
    tree = to_datatree({"group": data}, {"numpyro_epi_version": "0", "nothing": None, "number": float("nan")})
    write(tree, tmp_path / f"odd{suffix}")
    found = read_arviz(tmp_path / f"odd{suffix}")
    xr.testing.assert_identical(found, tree)
    kinds = {name: variable.dtype for name, variable in found["group"].data_vars.items()}
    assert kinds == {
        **{"flags": bool, "words": np.dtype("<U3"), "objects": np.dtype("<U3")},
        **{"counts": np.uint32, "gaps": np.float32, "halves": np.float32},
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_read_data_is_in_memory(small_tree, tmp_path, suffix):
    path = tmp_path / f"result{suffix}"
    write(small_tree, path)
    found = read_arviz(path)
    path.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(found["posterior"]["x"].values, np.arange(12.0).reshape(2, 6))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exported_and_read_arrays_can_be_written_to(tree, tmp_path, suffix):
    write(tree, tmp_path / f"result{suffix}")
    for found in (tree, read_arviz(tmp_path / f"result{suffix}")):
        arrays = {
            f"{node.path}/{name}": variable.values
            for node in found.subtree
            for name, variable in node.data_vars.items()
        }
        assert [name for name, array in arrays.items() if not array.flags.writeable] == []


def test_what_arviz_saves_can_be_read(tree, tmp_path):
    to_arviz(tree).to_netcdf(str(tmp_path / "result.nc"), engine="h5netcdf")
    xr.testing.assert_identical(read_arviz(tmp_path / "result.nc"), tree)


def test_arviz_container_can_be_written(tree, tmp_path):
    write(to_arviz(tree), tmp_path / "result.nc")
    xr.testing.assert_identical(read_arviz(tmp_path / "result.nc"), tree)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated_file_is_named(small_tree, tmp_path, share):
    path = tmp_path / "result.nc"
    write(small_tree, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="Expected a complete exported result at .*result.nc; .*may be truncated"):
        read_arviz(path)


@pytest.mark.parametrize(
    "damage",
    [lambda chunk: chunk[:-1], lambda chunk: chunk[:20], lambda chunk: chunk[:-1] + bytes([chunk[-1] ^ 1])],
    ids=["last byte lost", "most lost", "one bit flipped"],
)
def test_damaged_zarr_chunk_is_named(small_tree, tmp_path, damage):
    path = tmp_path / "result.zarr"
    write(small_tree, path)
    chunk = path / "posterior" / "x" / "0.0"
    chunk.write_bytes(damage(chunk.read_bytes()))
    with pytest.raises(ValueError, match="Expected a complete exported result at .*may be truncated"):
        read_arviz(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_foreign_file_is_refused(small_tree, tmp_path, suffix):
    del small_tree.attrs["numpyro_epi_version"]
    write(small_tree, tmp_path / f"result{suffix}")
    with pytest.raises(ValueError, match="Expected a file that numpyro_epi exported"):
        read_arviz(tmp_path / f"result{suffix}")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected an exported result at .*none.nc; there is no such file"):
        read_arviz(tmp_path / "none.nc")


@pytest.mark.parametrize("name", ["result.csv", "result"])
def test_other_suffixes_are_refused(small_tree, tmp_path, name):
    for use in (lambda path: write(small_tree, path), read_arviz):
        with pytest.raises(ValueError, match=r"Expected a path that ends in .nc \(NetCDF\) or .zarr"):
            use(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_existing_file_is_replaced_only_on_request(small_tree, tmp_path, suffix):
    path = tmp_path / f"result{suffix}"
    write(small_tree, path)
    changed = to_datatree({"posterior": small_tree["posterior"].to_dataset() + 1}, small_tree.attrs)
    with pytest.raises(FileExistsError, match="Expected an output that does not exist; got .* Pass overwrite=True"):
        write(changed, path)
    xr.testing.assert_identical(read_arviz(path), small_tree)
    write(changed, path, overwrite=True)
    xr.testing.assert_identical(read_arviz(path), changed)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folder_of_something_else_is_never_replaced(small_tree, tmp_path, suffix):
    path = tmp_path / f"result{suffix}"
    path.mkdir()
    (path / "thesis.tex").write_text("dear")
    with pytest.raises(FileExistsError, match="it is not, so it is not replaced"):
        write(small_tree, path, overwrite=True)
    assert (path / "thesis.tex").read_text() == "dear"


@pytest.mark.parametrize(("suffix", "method"), [(".nc", "to_netcdf"), (".zarr", "to_zarr")])
def test_failed_write_leaves_the_old_file_and_no_litter(small_tree, tmp_path, monkeypatch, suffix, method):
    path = tmp_path / f"result{suffix}"
    write(small_tree, path)
    whole = getattr(xr.DataTree, method)

    def interrupted(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        raise OSError("No space left on device")

    monkeypatch.setattr(xr.DataTree, method, interrupted)
    with pytest.raises(OSError, match="No space left"):
        write(small_tree, path, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    xr.testing.assert_identical(read_arviz(path), small_tree)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_old_file_returns_if_the_new_one_cannot_take_its_place(small_tree, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"result{suffix}"
    write(small_tree, path)
    replace = os.replace

    def refused(source, target):
        if os.fspath(target) == os.fspath(path):
            raise OSError("Stale file handle")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_datatree.os, "replace", refused)
        with pytest.raises(OSError, match="Stale file handle"):
            write(small_tree, path, overwrite=True)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    xr.testing.assert_identical(read_arviz(path), small_tree)


def test_missing_folder_is_named(small_tree, tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a folder at .*nowhere; there is none"):
        write(small_tree, tmp_path / "nowhere" / "result.nc")


def test_folder_that_cannot_be_written_is_named(small_tree, tmp_path, monkeypatch):
    """Asked of the system, since tests may run as root, who may write anywhere."""
    monkeypatch.setattr(_datatree.os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(PermissionError, match="Expected a folder one can write to"):
        write(small_tree, tmp_path / "result.nc")


def test_missing_zarr_names_the_extra(small_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (lambda path: write(small_tree, path), read_arviz):
        with pytest.raises(ImportError, match=r"pip install 'zarr>=3'"):
            use(tmp_path / "result.zarr")


def test_only_exported_data_is_taken():
    with pytest.raises(TypeError, match="Expected exported data .*; got {}. A result exports itself"):
        as_datatree({})


def test_every_form_of_exported_data_gives_the_same_tree(tree, tmp_path):
    write(tree, tmp_path / "result.nc")
    for form in (tree, to_arviz(tree), tmp_path / "result.nc", str(tmp_path / "result.nc")):
        xr.testing.assert_identical(as_datatree(form), tree)
