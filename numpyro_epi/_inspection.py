"""A look at a file before it is read: it may come from a stranger.

Reading must run no code, follow no link out of the file, end, and take no more memory than the file's size explains.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_DEPTH, MAX_OBJECTS = 8, 100_000
"""Groups within groups, and groups and arrays in all. Groups can hold each other in a circle."""

MAX_CHUNKS = 100_000
"""Pieces of all arrays in all: each takes time, whether it is stored or not."""

FREE_BYTES, MAX_RATIO = 2**30, 20
"""Bytes that a file of any size may declare, and how many more for each that it has."""

CODECS = frozenset(
    {
        *("adler32", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset", "fletcher32", "gzip"),
        *("lz4", "lzma", "sharding_indexed", "shuffle", "transpose", "vlen-bytes", "vlen-utf8", "zlib", "zstd"),
    }
)
"""Zarr codecs that decode numbers and text. One of the others unpickles, which runs what the file says."""


class Refused(ValueError):
    """A file that is not read, and why."""


def inspect(path: Path) -> None:
    """Refuse what a NetCDF file or Zarr folder should not hold, without reading any array.

    Raises:
        Refused: If it has links, foreign codecs or types, or declares more than it can hold.
        Exception: Whatever h5py or JSON raise on a damaged one.
    """
    total = _inspect_zarr(path) if path.is_dir() else _inspect_hdf5(path)
    stored = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    if total > FREE_BYTES + MAX_RATIO * stored:
        raise _refusal(path, f"arrays of {total:.2e} bytes in {stored:.2e} stored ones")


def _refusal(path: Path, what: str) -> Refused:
    return Refused(
        f"Expected an exported result at {path}; it holds {what}, which no export does. It was made by another program, "
        "or to do harm, and is not read."
    )


def _inspect_hdf5(path: Path) -> int:
    """Walk all objects; give the bytes that they declare."""
    import h5py

    total = chunks = count = 0
    with h5py.File(path, "r") as file:
        groups = [(file["/"], 0)]
        while groups:
            group, depth = groups.pop()
            for name in group:
                count += 1
                place = f"{group.name.rstrip('/')}/{name}"
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise _refusal(path, f"the link {place!r}")
                found = group[name]
                if isinstance(found, h5py.Group):
                    groups.append((found, depth + 1))
                elif isinstance(found, h5py.Dataset):
                    _check_dataset(path, place, found)
                    total += (found.size or 0) * found.dtype.itemsize
                    chunks += _num_chunks(found.shape or (), found.chunks or found.shape or ())
                if depth >= MAX_DEPTH or count > MAX_OBJECTS or chunks > MAX_CHUNKS:
                    raise _refusal(path, f"groups too deep, or too many objects or chunks, at {place!r}")
    return total


def _check_dataset(path: Path, place: str, found: Any) -> None:
    import h5py

    if found.external or found.is_virtual:
        raise _refusal(path, f"{place!r}, whose numbers lie in other files")
    is_text = h5py.check_string_dtype(found.dtype) is not None
    if not is_text and found.dtype.kind not in "biufcSU":
        raise _refusal(path, f"{place!r} of type {found.dtype}")


def _inspect_zarr(path: Path) -> int:
    """Read all metadata; give the bytes that arrays declare."""
    sizes: dict[str, int] = {}
    chunks: dict[str, int] = {}
    for place, folders, files in os.walk(path):
        for name in (*folders, *files):
            if Path(place, name).is_symlink():
                raise _refusal(path, f"the link {os.path.relpath(Path(place, name), path)!r}")
        for name in {".zarray", ".zmetadata", "zarr.json"} & set(files):
            held = json.loads(Path(place, name).read_text(encoding="utf-8"))
            for key, array in _zarr_arrays(name, held):
                _check_array(path, key, array)
                # An array's own metadata and the consolidated ones should say the same.
                own = os.path.normpath(os.path.join(os.path.relpath(place, path), key))
                grid = array["chunks"] if "chunks" in array else array["chunk_grid"]["configuration"]["chunk_shape"]
                sizes[own] = max(sizes.get(own, 0), math.prod(array["shape"]) * _itemsize(array))
                chunks[own] = max(chunks.get(own, 0), _num_chunks(array["shape"], grid))
    if sum(chunks.values()) > MAX_CHUNKS:
        raise _refusal(path, f"{sum(chunks.values())} chunks")
    return sum(sizes.values())


def _zarr_arrays(name: str, held: Any) -> Iterator[tuple[str, Any]]:
    """Keys and metadata of arrays in one metadata file, consolidated ones too."""
    if name == ".zmetadata":
        arrays = ((key, item) for key, item in held["metadata"].items() if key.endswith(".zarray"))
        yield from ((key.removesuffix(".zarray"), item) for key, item in arrays)
    elif name == ".zarray" or held.get("node_type") == "array":
        yield "", held
    elif consolidated := held.get("consolidated_metadata"):
        yield from ((key, i) for key, i in consolidated["metadata"].items() if i.get("node_type") == "array")


def _check_array(path: Path, key: str, array: Any) -> None:
    if ".." in key.split("/") or "\\" in key or key.startswith("/"):
        raise _refusal(path, f"an array at {key!r}")
    dtype, codecs = array.get("dtype", array.get("data_type")), set(_codecs(array))
    if unknown := sorted(codecs - CODECS):
        raise _refusal(path, f"the codec {unknown[0]!r}")
    plain = isinstance(dtype, str | dict) and dtype != "|O"
    if not plain and "vlen-utf8" not in codecs:
        raise _refusal(path, f"an array of type {dtype!r}")


def _codecs(array: Any) -> Iterator[str]:
    for part in ("compressor", "filters", "codecs"):
        listed = array.get(part) or []
        for codec in [listed] if isinstance(listed, dict) else listed:
            yield str(codec.get("id", codec.get("name"))).removeprefix("numcodecs.")
            yield from _codecs(codec.get("configuration") or {})


def _itemsize(array: Any) -> int:
    """Bytes of a number; text, and what only Zarr knows, counts as 8."""
    digits = "".join(letter for letter in str(array.get("dtype", array.get("data_type"))) if letter.isdigit())
    size = int(digits or 8)
    return max(1, size // 8) if "data_type" in array else size


def _num_chunks(shape: Any, chunks: Any) -> int:
    return math.prod(math.ceil(size / max(1, chunk)) for size, chunk in zip(shape, chunks, strict=True))
