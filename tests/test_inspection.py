"""Files of strangers: no code in them is run, no link followed, and nothing they declare takes time or memory."""

import ctypes
import gzip
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

import numpyro_epi
from numpyro_epi._datatree import read_arviz, to_datatree, write
from numpyro_epi._seal import CHECKSUMS

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
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


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


def inflating(size, header=b"\x78\x01"):
    """Deflated zeros, without compressing them all: blocks after a full flush stand alone."""
    packer = zlib.compressobj(1, wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.flush() + zlib.adler32(b"").to_bytes(4, "big")
    return header + block * (size // 2**20) + end


def compressed_chunk(group, size, shape, payload, **options):
    found = group.create_dataset("y", shape, "f8", **{"chunks": shape, "compression": "gzip", **options})
    found.id.write_direct_chunk((0,) * len(shape), payload)
    assert found.size * 8 == size


def twice_compressed(group, folder):
    """Gigabytes whose compressed form compresses again."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((200,))
    for _ in range(2):
        properties.set_deflate(9)
    h5py.h5d.create(group.id, b"y", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((200,)), properties)


def many_numbers(group):
    """Bytes, which take eight times as much as Python's numbers."""
    with h5py.File(group.file.filename.replace("stranger", "other"), "w", libver="latest") as other:
        other.create_dataset("y", (2,), "u1").attrs["z"] = np.zeros(4 * 10**6, "u1")
    source = h5py.File(group.file.filename.replace("stranger", "other"))
    source.copy("y", group)
    source.close()


def skipped_filter(group, folder):
    found = group.create_dataset("y", (200,), "f8", chunks=(200,), compression="gzip")
    found.id.write_direct_chunk((0,), bytes(10**6), filter_mask=1)


def one_long_text(group, folder):
    group.create_dataset("y", data=np.array(["a" * 3_000_000] + ["b"] * 199, object), dtype=h5py.string_dtype())


def one_text_many_times(group, folder):
    """All references lead to the longest text."""
    one_long_text(group, folder)
    group.file.flush()
    offset, path = group["y"].id.get_offset(), group.file.filename
    with open(path, "r+b") as file:
        file.seek(offset)
        reference = file.read(16)
        file.seek(offset)
        file.write(reference * 200)


HOSTILE_HDF5 = {
    "a small array that decompresses to gigabytes": (
        lambda group, folder: compressed_chunk(group, 1600, (200,), inflating(2**31)),
        "a chunk of .* bytes where 1.60e[+]03 are declared, at '/posterior/y'",
    ),
    "an array that decompresses to gigabytes": (
        lambda group, folder: compressed_chunk(group, 16 * 10**6, (2 * 10**6,), inflating(2**31)),
        "a chunk that decompresses to more than the 1.60e[+]07 bytes declared, at '/posterior/y'",
    ),
    "a chunk far larger than its array": (
        lambda group, folder: compressed_chunk(
            group, 1600, (200,), inflating(3 * 10**9), chunks=(4 * 10**8,), maxshape=(None,)
        ),
        "chunks of 3.20e[+]09 bytes for 1.60e[+]03 at '/posterior/y'",
    ),
    "a chunk that is compressed twice": (twice_compressed, "'/posterior/y' with the filters gzip, gzip"),
    "another compressor": (
        lambda group, folder: group.create_dataset("y", (200,), "f8", compression="lzf"),
        "'/posterior/y' with the filters number 32000",
    ),
    "a chunk that is not compressed": (skipped_filter, "a chunk of 1.00e[+]06 bytes where 1.60e[+]03 are declared"),
    "one long text among short ones": (one_long_text, "texts of 2.40e[+]09 bytes at '/posterior/y'"),
    "one long text many times": (one_text_many_times, "texts of 2.40e[+]09 bytes at '/posterior/y'"),
    "wide texts": (
        lambda group, folder: group.create_dataset("y", (10**6,), "S50"),
        "texts of 2.64e[+]08 bytes at '/posterior/y'",
    ),
    "many texts": (
        lambda group, folder: group.create_dataset("y", (10**7,), h5py.string_dtype()),
        "texts of 6.40e[+]08 bytes at '/posterior/y'",
    ),
    "a fill value of half a gigabyte": (
        lambda group, folder: group.create_dataset("y", (2,), "S500000000"),
        "texts of 4.00e[+]09 bytes at '/posterior/y'",
    ),
    "an attribute of many numbers": (
        lambda group, folder: many_numbers(group),
        "attributes of .* bytes at '/posterior/y@z'",
    ),
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
        r"1000000\d\d chunks at '/posterior/y'",
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


def small_file(path, count, length):
    """A file of one group, whose attribute holds ``count`` references to a text of this length."""
    with h5py.File(path, "w") as file:
        file.attrs["numpyro_epi_version"] = "0"
        texts = np.array(["a" * length] + ["b"] * (count - 1), object)
        file.create_group("posterior").attrs.create("z", texts, dtype=h5py.string_dtype())
    content = path.read_bytes()
    (place,) = (found.start() for found in re.finditer(re.escape(struct.pack("<I", length)) + rb"(?!\0{4})", content))
    path.write_bytes(content[:place] + content[place : place + 16] * count + content[place + 16 * count :])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("count", "length"), [(200, 3_000_003), (5, 8_000_003)])
def test_an_attribute_of_one_text_many_times_is_refused(tmp_path, count, length):
    path = tmp_path / "stranger.nc"
    small_file(path, count, length)
    with pytest.raises(ValueError, match="it holds attributes of .* bytes at '/posterior@z', which no export does"):
        read_arviz(path)


def test_an_attribute_of_some_texts_is_read(tmp_path):
    small_file(tmp_path / "stranger.nc", 5, 1_000_003)
    assert len(read_arviz(tmp_path / "stranger.nc")["posterior"].attrs["z"]) > 5_000_000


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_compressed_results_are_read(small_tree, tmp_path, suffix):
    """As ArviZ and xarray write them, chunks that end beyond the array and noise that does not compress included."""
    noise = np.random.default_rng(0).normal(size=(300, 1000))
    group = (
        small_tree["posterior"].to_dataset().assign(noise=(("a", "b"), noise), words=("c", np.array(["a", "é" * 99])))
    )
    tree = to_datatree({"posterior": group}, small_tree.attrs)
    path = tmp_path / f"result{suffix}"
    if suffix == ".nc":
        options = {"zlib": True, "shuffle": True, "fletcher32": True, "chunksizes": (256, 256)}
        tree.to_netcdf(path, engine="h5netcdf", encoding={"/posterior": {"noise": options}})
    else:
        packers = [numcodecs.Zlib(), numcodecs.GZip(), numcodecs.Blosc(), numcodecs.Zstd(), None]
        for packer in packers:
            encoding = {str(n): {"compressors": packer and [packer]} for n in group.variables}
            encoding["noise"]["chunks"] = (256, 256)
            tree.to_zarr(path, zarr_format=2, encoding={"/posterior": encoding}, mode="w")
            assert read_arviz(path).identical(tree), packer
    assert read_arviz(path).identical(tree)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_attributes_do_not_widen_numbers(small_tree, tmp_path, suffix):
    """Masked or scaled bytes would become numbers of eight."""
    group = small_tree["posterior"].to_dataset().assign(y=("n", np.arange(4, dtype="u1")))
    group["y"].attrs |= {"scale_factor": 0.5, "add_offset": 1.0, "_FillValue": np.uint8(2)}
    tree = xr.DataTree.from_dict({"posterior": group})
    tree.attrs = small_tree.attrs
    tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf") if suffix == ".nc" else tree.to_zarr(
        tmp_path / "a.zarr", zarr_format=2
    )
    found = read_arviz(tmp_path / f"a{suffix}")["posterior"]["y"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.arange(4))


def test_inherited_coordinates_are_kept_once(tmp_path):
    """A thousand groups below one with labels: each would hold a copy."""
    labels = np.array([f"{i:0200}" for i in range(20_000)])
    groups = {f"posterior/g{i}": xr.Dataset() for i in range(100)}
    tree = xr.DataTree.from_dict({"/": xr.Dataset(coords={"label": labels}), **groups})
    tree.attrs = {"numpyro_epi_version": "0"}
    tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_arviz(tmp_path / "a.nc")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB; one copy takes 16 MB.
    assert len(found["posterior/g7"].coords["label"]) == 20_000


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_reading_takes_five_times_what_is_declared(small_tree, tmp_path, suffix):
    """In a process of its own: what others have freed would hide it."""
    size = 12_500_000
    group = small_tree["posterior"].to_dataset().assign(big=("n", np.zeros(size)))
    write(to_datatree({"posterior": group}, small_tree.attrs), tmp_path / f"a{suffix}")
    code = (
        "import resource, sys; from numpyro_epi._datatree import read_arviz, write; import h5netcdf, zarr, arviz\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_arviz(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / f"a{suffix}")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1024 * int(done.stdout.split()[-1]) < 5 * 8 * size


def test_a_compressed_group_is_refused(small_tree, tmp_path):
    """HDF5 can compress a group's links, which would decompress to any size; h5py makes no such group."""
    maps = Path("/proc/self/maps")
    libraries = (
        {line.split()[-1] for line in maps.read_text().splitlines() if "libhdf5" in line} if maps.exists() else ()
    )
    libraries = [name for name in libraries if "_hl" not in name]
    if not libraries:
        pytest.skip("h5py's own HDF5 is not found")
    path = tmp_path / "stranger.nc"
    write(small_tree, path)
    with h5py.File(path, "r+", libver="latest") as file:
        properties = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        assert ctypes.CDLL(libraries[0]).H5Pset_deflate(ctypes.c_int64(properties.id), ctypes.c_uint(9)) == 0
        group = h5py.Group(h5py.h5g.create(file["posterior"].id, b"packed", gcpl=properties))
        for i in range(50):
            group.create_group(f"member{i}")
    with pytest.raises(ValueError, match="it holds the compressed group '/posterior/packed'"):
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


ZSTD_BOMB = numcodecs.Zstd(level=1).encode(bytes(2**28))


def with_chunk(payload, **changes):
    def change(folder):
        of_array(**changes)(folder)
        (folder / "posterior" / "x" / "0.0").write_bytes(payload)

    return change


def text_chunk(payload, count, compressor=None):
    """An array of this many texts of any length."""
    text = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "fill_value": "", "compressor": compressor}
    return with_chunk(payload, **text, shape=[1, count], chunks=[1, count])


def texts(*found):
    return numcodecs.VLenUTF8().encode(np.array(found, object))


def much_json(folder):
    (folder / "posterior" / ".zattrs").write_text(json.dumps({"z": [{}] * 2_000_000}))


def array_in_array(folder):
    shutil.copytree(folder / "posterior" / "x", folder / "posterior" / "x" / "y")


ZSTD, ZLIB = {"id": "zstd", "level": 1}, {"id": "zlib", "level": 1}
BIG = {"shape": [1, 10**6], "chunks": [1, 10**6]}
GZIP = bytes.fromhex("1f8b08000000000000ff")

HOSTILE_ZARR = {
    "a small array that decompresses to gigabytes": (
        with_chunk(inflating(2**31), compressor=ZLIB),
        "a chunk of .* bytes where 1.00e[+]02 are declared, at 'posterior/x/0.0'",
    ),
    "zlib that decompresses to gigabytes": (
        with_chunk(inflating(2**30), compressor=ZLIB, **BIG),
        "a chunk that decompresses to more than the 8.00e[+]06 bytes declared, at 'posterior/x/0.0'",
    ),
    "gzip that decompresses to gigabytes": (
        with_chunk(inflating(2**30, GZIP), compressor={"id": "gzip", "level": 1}, **BIG),
        "a chunk that decompresses to more than the 8.00e[+]06 bytes declared",
    ),
    "gzip of many parts": (
        with_chunk(gzip.compress(bytes(8 * 10**6)) * 90, compressor={"id": "gzip", "level": 1}, **BIG),
        "a chunk of several compressed parts",
    ),
    "zstd that decompresses to gigabytes": (
        with_chunk(ZSTD_BOMB, compressor=ZSTD, **BIG),
        "a chunk that decompresses to 2.68e[+]08 bytes where 8.00e[+]06 are declared",
    ),
    "zstd of unknown size": (
        with_chunk(b"\x28\xb5\x2f\xfd\x00\x58" + bytes(100), compressor=ZSTD, **BIG),
        "a chunk that decompresses to an unknown number of bytes",
    ),
    "blosc that decompresses to gigabytes": (
        with_chunk(numcodecs.Blosc().encode(bytes(2**28)), compressor={"id": "blosc"}, **BIG),
        "a chunk that decompresses to 2.68e[+]08 bytes where 8.00e[+]06 are declared",
    ),
    "a chunk that is compressed twice": (
        of_array(compressor=ZLIB, filters=[ZLIB]),
        "an array that is compressed twice, at 'posterior/x/?'",
    ),
    "a codec whose size is not known": (of_array(compressor={"id": "lzma"}), "the codec 'lzma'"),
    "a chunk far larger than its array": (
        of_array(chunks=[10**8, 6]),
        "chunks of 4.80e[+]09 bytes for 9.60e[+]01 at 'posterior/x'",
    ),
    "wide texts": (of_array(dtype="<U500000000", fill_value=""), "arrays of 2.40e[+]10 bytes"),
    "wide bytes": (of_array(dtype="|S5000000", fill_value=""), "texts of 2.40e[+]08 bytes"),
    "more texts than declared": (
        text_chunk((2**29).to_bytes(4, "little"), 3),
        "a chunk of 536870912 texts where 3 are declared, at 'posterior/x/0.0'",
    ),
    "one long text among short ones": (
        text_chunk(texts("a" * 3_000_000, *["b"] * 199), 200),
        "texts of 2.40e[+]09 bytes at 'posterior/x/0.0'",
    ),
    "texts that decompress to gigabytes": (
        text_chunk(ZSTD_BOMB, 3, ZSTD),
        "a chunk that decompresses to 2.68e[+]08 bytes where 6.71e[+]07 are declared",
    ),
    "metadata of many objects": (much_json, "metadata of 8.00e[+]06 bytes"),
    "an array in an array": (array_in_array, "an array within another, at 'posterior/x/y'"),
    "texts that are unpickled": (pickled_texts, "the codec 'pickle'"),
    "objects that are unpickled": (pickled_objects, "the codec 'pickle'"),
    "objects without a codec": (of_array(dtype="|O"), r"an array of type '\|O'"),
    "a codec that nobody knows": (of_array(compressor={"id": "evil"}), "the codec 'evil'"),
    "records": (of_array(dtype=[["a", "<f8"], ["b", "|O"]]), r"an array of type \[\["),
    "a name that leads out": (outside, r"an array at 'posterior/../../outside/'"),
    "a chunk that is a link": (linked_chunk, "the link 'posterior/x/0.0'"),
    "a group that is a link": (linked_group, "the link 'elsewhere'"),
    "huge array": (of_array(shape=[10**7, 10**6], chunks=[10**6, 10**6]), r"arrays of 8.00e\+13 bytes"),
    "many chunks": (of_array(shape=[10**6, 60], chunks=[1, 1]), "60000000 chunks"),
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


def test_deep_metadata_are_an_error(small_tree, tmp_path):
    path = tmp_path / "stranger.zarr"
    write(small_tree, path)
    (path / CHECKSUMS).unlink()
    (path / "posterior" / ".zattrs").write_text("[" * 2_000_000)
    with pytest.raises(ValueError, match="Expected a complete exported result at .*stranger.zarr; reading it failed"):
        read_arviz(path)


@pytest.mark.usefixtures("quick")
def test_a_long_list_of_checksums_is_not_read(small_tree, tmp_path):
    path = tmp_path / "stranger.zarr"
    write(small_tree, path)
    (path / CHECKSUMS).write_text("".join(f"0  {i:x}\n" for i in range(10**6)))
    with pytest.raises(ValueError, match="'numpyro_epi.sha256' is not what was saved"):
        read_arviz(path)


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
