"""Files of strangers: no code in them is run, no link followed, and nothing they declare takes time or memory."""

import json
import os
import pickle
import re
import resource
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

import numpyro_epi
from numpyro_epi._datatree import read_arviz, to_datatree, write

PACKAGE = Path(numpyro_epi.__file__).parent
LIMIT = 5.0
"""Seconds within which every file here is refused or read."""


@pytest.fixture
def small_tree():
    data = xr.Dataset({"x": (("chain", "draw"), np.arange(12.0).reshape(2, 6))})
    return to_datatree({"posterior": data, "prior": data}, {"numpyro_epi_version": "0.1.0", "status": "satisfied"})


@pytest.fixture
def quick():
    """A hostile file is done with in time, and takes little memory."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.perf_counter() - began < LIMIT
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.fixture
def secret(tmp_path):
    """What no result may show: a text, and a complete result."""
    (tmp_path / "secret.txt").write_text("root:x:0:0:" * 40)
    data = xr.Dataset({"x": (("chain", "draw"), np.full((2, 6), 42.0))})
    write(to_datatree({"posterior": data}, {"numpyro_epi_version": "0"}), tmp_path / "secret.nc")
    return tmp_path


def test_nothing_in_the_package_can_run_a_file():
    """No pickle in any form, no eval, no exec; JSON, literals, NetCDF and Zarr are what is read."""
    forbidden = re.compile(
        r"\b(c?pickle|cloudpickle|dill|joblib|marshal|shelve)\b(?! )|allow_pickle(?!=False)|\b(eval|exec|compile)\("
        r"|np\.load\((?!.*allow_pickle=False)|yaml"
        r"|os\.system|subprocess|shell="
    )
    found = {}
    for path in PACKAGE.glob("**/*.py"):
        code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
        code = re.sub(r'"""[\s\S]*?"""', "", code)
        if hits := [hit.group() for hit in forbidden.finditer(code)]:
            found[path.name] = hits
    # `Fleet.compile` compiles a program of JAX, not a text.
    assert {name: hits for name, hits in found.items() if set(hits) != {"compile("}} == {}


def virtual(group, folder):
    layout = h5py.VirtualLayout(shape=(2, 6), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.nc"), "posterior/x", shape=(2, 6))
    group.create_virtual_dataset("y", layout)


def deep(group, folder):
    for _ in range(50):
        group = group.create_group("g")


def wide(group, folder):
    """Twenty groups in each other twice: a million paths in a small file."""
    for _ in range(20):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


HOSTILE_HDF5 = {
    "link to another file": (
        lambda group, folder: group.__setitem__("y", h5py.ExternalLink(str(folder / "secret.nc"), "posterior/x")),
        "the link '/posterior/y'",
    ),
    "link to another file that is none": (
        lambda group, folder: group.__setitem__("y", h5py.ExternalLink("/etc/passwd", "/")),
        "the link '/posterior/y'",
    ),
    "link within the file": (
        lambda group, folder: group.__setitem__("y", h5py.SoftLink("/prior/x")),
        "the link '/posterior/y'",
    ),
    "link to nowhere": (
        lambda group, folder: group.__setitem__("y", h5py.SoftLink("/none")),
        "the link '/posterior/y'",
    ),
    "numbers of another file": (virtual, "'/posterior/y', whose numbers lie in other files"),
    "numbers of a text": (
        lambda group, folder: group.create_dataset("y", (100,), "u1", external=[(str(folder / "secret.txt"), 0, 100)]),
        "'/posterior/y', whose numbers lie in other files",
    ),
    "groups in a circle": (lambda group, folder: group.__setitem__("y", group), "groups too deep"),
    "groups far down": (deep, "groups too deep"),
    "groups along many paths": (wide, "groups too deep"),
    "huge array": (
        lambda group, folder: group.create_dataset("y", (10**7, 10**6), "f8", chunks=(10**5, 10**5)),
        r"arrays of 8.00e\+13 bytes",
    ),
    "huge array of text": (
        lambda group, folder: group.create_dataset("y", (10**10,), h5py.string_dtype(), chunks=(10**6,)),
        r"arrays of .*e\+1. bytes",
    ),
    "many chunks": (
        lambda group, folder: group.create_dataset("y", (10**8,), "u1", chunks=(1,)),
        "too many objects or chunks, at '/posterior/y'",
    ),
    "arrays of any length": (
        lambda group, folder: group.create_dataset("y", (2,), h5py.vlen_dtype(np.uint8)),
        "'/posterior/y' of type object",
    ),
    "references": (
        lambda group, folder: group.create_dataset("y", (2,), h5py.ref_dtype),
        "'/posterior/y' of type object",
    ),
    "records": (lambda group, folder: group.create_dataset("y", (2,), "i4,f8"), "'/posterior/y' of type"),
    "opaque bytes": (
        lambda group, folder: group.create_dataset("y", data=np.void(b"abc")),
        r"'/posterior/y' of type \|V3",
    ),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("attack", "match"), HOSTILE_HDF5.values(), ids=HOSTILE_HDF5.keys())
def test_hostile_netcdf_is_refused(small_tree, secret, attack, match):
    path = secret / "stranger.nc"
    write(small_tree, path)
    with h5py.File(path, "r+") as file:
        attack(file["posterior"], secret)
    with pytest.raises(
        ValueError, match=rf"Expected an exported result at .*stranger.nc; it holds .*{match}.* is not read"
    ):
        read_arviz(path)


HOSTILE_ATTRIBUTES = {
    "long text": "x" * 1_000_000,
    "many numbers": np.zeros(100_000),
    "empty": h5py.Empty("f8"),
    "deep JSON": "[" * 100_000,
    "bytes that are no text": np.bytes_(b"\xff\xfe<script>"),
    "array of references": "references",
    "units of a date": "days since 99999999-13-45",
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("value", HOSTILE_ATTRIBUTES.values(), ids=HOSTILE_ATTRIBUTES.keys())
@pytest.mark.parametrize("name", ["settings", "units", "entropy", "scale_factor", "_FillValue", "coordinates", "dtype"])
def test_hostile_attributes_are_text_or_an_error(small_tree, tmp_path, name, value):
    path = tmp_path / "stranger.nc"
    write(small_tree, path)
    with h5py.File(path, "r+", libver="latest") as file:
        for place in (file, file["posterior"], file["posterior/x"]):
            value = np.array([file.ref] * 3, h5py.ref_dtype) if str(value) == "references" else value
            place.attrs.create(name, value, dtype=getattr(value, "dtype", None))
    try:
        shown = read_arviz(path).attrs.get(name, "")
    except ValueError as error:
        shown = str(error) if str(path) in str(error) else None
    assert isinstance(shown, str | float | int)


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def of_array(**changes):
    """Change an array's metadata, in its own file and in the consolidated one."""

    def change(folder):
        for file, key in (
            (folder / ".zmetadata", "posterior/x/.zarray"),
            (folder / "posterior" / "x" / ".zarray", None),
        ):
            held = json.loads(file.read_text())
            (held["metadata"][key] if key else held).update(changes)
            file.write_text(json.dumps(held))

    return change


def pickled_texts(folder):
    """Zarr takes the first codec of objects for the only one."""
    text = [{"id": "vlen-utf8"}]
    of_array(dtype="|O", filters=text, compressor={"id": "pickle", "protocol": 5}, fill_value="")(folder)
    (folder / "posterior" / "x" / "0.0").write_bytes(pickle.dumps(Attack(folder.parent / "attacked")))


def pickled_objects(folder):
    of_array(dtype="|O", filters=[{"id": "pickle", "protocol": 5}], compressor=None, fill_value=None)(folder)
    (folder / "posterior" / "x" / "0.0").write_bytes(pickle.dumps([(2, 6), Attack(folder.parent / "attacked")]))


def outside(folder):
    """An array whose name leads out of the folder."""
    held = json.loads((folder / ".zmetadata").read_text())
    array = {
        **held["metadata"]["posterior/x/.zarray"],
        "dtype": "|u1",
        "shape": [12],
        "chunks": [12],
        "compressor": None,
    }
    held["metadata"]["posterior/../../outside/.zarray"] = {**array, "fill_value": 0}
    held["metadata"]["posterior/../../outside/.zattrs"] = {"_ARRAY_DIMENSIONS": ["d"]}
    (folder / ".zmetadata").write_text(json.dumps(held))
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "0").write_bytes(b"secret bytes")


def linked_chunk(folder):
    of_array(dtype="|u1", compressor=None, fill_value=0)(folder)
    (folder / "posterior" / "x" / "0.0").unlink()
    (folder / "posterior" / "x" / "0.0").symlink_to(folder.parent / "secret.txt")


def linked_group(folder):
    (folder / "elsewhere").symlink_to("/etc")


HOSTILE_ZARR = {
    "texts that are unpickled": (pickled_texts, "the codec 'pickle'"),
    "objects that are unpickled": (pickled_objects, "the codec 'pickle'"),
    "objects without a codec": (of_array(dtype="|O"), r"an array of type '\|O'"),
    "a codec that nobody knows": (of_array(compressor={"id": "evil"}), "the codec 'evil'"),
    "records": (of_array(dtype=[["a", "<f8"], ["b", "|O"]]), r"an array of type \[\["),
    "a name that leads out": (outside, r"an array at 'posterior/../../outside/'"),
    "a chunk that is a link": (linked_chunk, "the link 'posterior/x/0.0'"),
    "a group that is a link": (linked_group, "the link 'elsewhere'"),
    "huge array": (of_array(shape=[10**7, 10**6], chunks=[10**6, 10**6]), r"arrays of 8.00e\+13 bytes"),
    "many chunks": (of_array(shape=[10**6, 60], chunks=[1, 1]), "60000001 chunks"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("attack", "match"), HOSTILE_ZARR.values(), ids=HOSTILE_ZARR.keys())
def test_hostile_zarr_is_refused(small_tree, secret, attack, match):
    path = secret / "stranger.zarr"
    small_tree.to_zarr(path, zarr_format=2, consolidated=True)
    assert read_arviz(path).identical(small_tree)
    attack(path)
    with pytest.raises(
        ValueError, match=rf"Expected an exported result at .*stranger.zarr; it holds {match}.* is not read"
    ):
        read_arviz(path)
    assert not (secret / "attacked").exists()


def test_pickled_texts_would_run_unseen(small_tree, tmp_path, monkeypatch):
    """The attack is a real one: without the inspection it runs, as older versions of numcodecs and zarr let it."""
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = tmp_path / "stranger.zarr"
    small_tree.to_zarr(path, zarr_format=2, consolidated=True)
    pickled_texts(path)
    monkeypatch.setattr("numpyro_epi._datatree.inspect", lambda path: None)
    unsafe = zarr.config.set({"array.allow_unsafe_pickle_decode": True})
    with unsafe, pytest.raises(ValueError, match="reading it failed"):
        read_arviz(path)
    assert (tmp_path / "attacked").exists()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_formats_of_other_programs_are_read(small_tree, tmp_path, zarr_format):
    small_tree.to_zarr(tmp_path / "other.zarr", zarr_format=zarr_format)
    assert read_arviz(tmp_path / "other.zarr").identical(small_tree)


def test_a_zip_with_names_that_lead_out_is_no_folder(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "stranger.zarr", "w") as file:
        file.writestr("../outside", "x")
    with pytest.raises(ValueError, match=r"Expected a NetCDF file or a Zarr folder, .*; got the file .*stranger.zarr"):
        read_arviz(tmp_path / "stranger.zarr")
    assert not (tmp_path.parent / "outside").exists()


def test_array_of_text_may_be_of_any_length_in_zarr(small_tree, tmp_path):
    words = np.array(["a", "long"], dtype=object)
    small_tree["posterior"] = small_tree["posterior"].to_dataset().assign(w=("n", words))
    small_tree.to_zarr(tmp_path / "words.zarr", zarr_format=2)
    assert list(read_arviz(tmp_path / "words.zarr")["posterior"]["w"].values) == ["a", "long"]
