"""What an untrusted Zarr folder would take to read, found from its metadata and the headers of its compressed chunks."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._budget import CHARACTER, MAX_TEXT, TEXT_OBJECT, Budget

COMPRESSORS = frozenset({"blosc", "gzip", "zlib", "zstd"})
"""Codecs whose decompressed size can be found without decompressing into memory. xarray's and ArviZ's defaults are here."""

CODECS = COMPRESSORS | {"bytes", "crc32c", "vlen-utf8"}
"""Zarr codecs that decode numbers and text. One of the others unpickles, which runs what the file says."""

_METADATA = frozenset({".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json"})

MAX_METADATA = 2**22
"""Bytes of one file of metadata, and half of those of all files; as Python objects they take up to twenty times as much."""

_ZSTD = (0xFD2FB528).to_bytes(4, "little")
"""First bytes of a Zstandard frame."""

_UNKNOWN = -1
"""Size of what declares none."""


def inspect_zarr(path: Path, budget: Budget) -> None:
    """Read all metadata, and of each stored chunk its decompressed size.

    Raises:
        Refused: If the folder holds what no export does, or too much of it.
    """
    arrays: dict[str, list[Any]] = {}
    size = 0
    for place, folders, files in os.walk(path):
        for name in (*folders, *files):
            inner = os.path.relpath(Path(place, name), path)
            budget.add_object(inner)
            if Path(place, name).is_symlink():
                raise budget.refusal(f"the link {inner!r}")
        for name in sorted(_METADATA & set(files)):
            file = Path(place, name)
            size += file.stat().st_size
            if size > 2 * MAX_METADATA or file.stat().st_size > MAX_METADATA:
                raise budget.refusal(f"metadata of {size:.2e} bytes")
            for key, array in _arrays(name, json.loads(file.read_text(encoding="utf-8"))):
                # An array's own metadata and the consolidated ones should say the same; either may be read.
                _check_array(budget, key, array)
                arrays.setdefault(os.path.normpath(os.path.join(os.path.relpath(place, path), key)), []).append(array)
    for key, versions in arrays.items():
        if any(str(parent) in arrays for parent in Path(key).parents):
            raise budget.refusal(f"an array within another, at {key!r}")
        most = [max(column) for column in zip(*map(_declared, versions), strict=True)]
        budget.add_array(key, most[0], most[1], most[2])
        for array in versions:
            _check_chunks(budget, path / key, key, array)


def _arrays(name: str, held: Any) -> Iterator[tuple[str, Any]]:
    """Keys and metadata of arrays in one metadata file, consolidated ones too."""
    if name == ".zmetadata":
        arrays = ((key, item) for key, item in held["metadata"].items() if key.endswith(".zarray"))
        yield from ((key.removesuffix(".zarray"), item) for key, item in arrays)
    elif name == ".zarray" or held.get("node_type") == "array":
        yield "", held
    elif consolidated := held.get("consolidated_metadata"):
        yield from ((key, i) for key, i in consolidated["metadata"].items() if i.get("node_type") == "array")


def _check_array(budget: Budget, key: str, array: Any) -> None:
    if ".." in key.split("/") or "\\" in key or key.startswith("/"):
        raise budget.refusal(f"an array at {key!r}")
    codecs = list(_codecs(array))
    if unknown := sorted(set(codecs) - CODECS):
        raise budget.refusal(f"the codec {unknown[0]!r}")
    if sum(codec in COMPRESSORS for codec in codecs) > 1:
        raise budget.refusal(f"an array that is compressed twice, at {key!r}")
    dtype = array.get("dtype", array.get("data_type"))
    if _is_text(array) != ("vlen-utf8" in codecs) or _itemsize(array) is None:
        raise budget.refusal(f"an array of type {dtype!r}")
    if not all(type(size) is int and size >= 0 for size in (*array["shape"], *_grid(array))):
        raise budget.refusal(f"an array of shape {array['shape']} in chunks of {_grid(array)}")


def _codecs(array: Any) -> Iterator[str]:
    for part in ("compressor", "filters", "codecs"):
        listed = array.get(part) or []
        for codec in [listed] if isinstance(listed, dict) else listed:
            yield str(codec.get("id", codec.get("name"))).removeprefix("numcodecs.")


def _is_text(array: Any) -> bool:
    """Whether values are texts of any length."""
    return array.get("dtype") == "|O" or array.get("data_type") in ("string", "variable_length_utf8")


def _itemsize(array: Any) -> int | None:
    """Bytes of a value in memory, of the reference where it is a text; ``None`` for types that no export has."""
    if _is_text(array):
        return 8
    name = array.get("dtype", array.get("data_type"))
    if isinstance(name, dict) and name.get("name") == "fixed_length_utf32":
        return int(name["configuration"]["length_bytes"])
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except TypeError:
        return None
    return dtype.itemsize if dtype is not None and dtype.kind in "biufcSU" else None


def _grid(array: Any) -> list[Any]:
    return array["chunks"] if "chunks" in array else array["chunk_grid"]["configuration"]["chunk_shape"]


def _declared(array: Any) -> tuple[int, int, int]:
    """Bytes, number of chunks, and bytes of one chunk."""
    shape, grid, itemsize = array["shape"], _grid(array), _itemsize(array) or 0
    num_chunks = math.prod(math.ceil(size / max(1, chunk)) for size, chunk in zip(shape, grid, strict=True))
    return math.prod(shape) * itemsize, num_chunks, math.prod(grid) * itemsize


def _check_chunks(budget: Budget, folder: Path, key: str, array: Any) -> None:
    """Refuse stored chunks that would decompress to more than the declared size."""
    compressor = next((codec for codec in _codecs(array) if codec in COMPRESSORS), "")
    count, longest = math.prod(array["shape"]), 0
    if _is_text(array):
        budget.add_text(key, count * TEXT_OBJECT)
    elif str(array.get("dtype", "")).lstrip("|").startswith("S"):
        budget.add_text(key, count * (TEXT_OBJECT + CHARACTER * (_itemsize(array) or 0)))
    # Text declares no size: its limit is that of all text.
    most = MAX_TEXT if _is_text(array) else _declared(array)[2] + 4
    for place, _, files in os.walk(folder):
        for file in (Path(place, name) for name in files if name not in _METADATA):
            where = f"{key}/{os.path.relpath(file, folder)}"
            budget.check_chunk(where, file.stat().st_size, most)
            payload = file.read_bytes()
            _check_size(budget, where, compressor, payload, most)
            if _is_text(array):
                length = _longest_text(budget, where, _decompressed(compressor, payload), math.prod(_grid(array)))
                if length > longest:
                    budget.add_text(where, count * CHARACTER * (length - longest))
                    longest = length


def _check_size(budget: Budget, place: str, compressor: str, payload: bytes, most: int) -> None:
    if compressor in ("gzip", "zlib"):
        budget.check_inflated(place, payload, most)
    elif compressor:
        size = _zstd_size(payload) if compressor == "zstd" else _blosc_size(payload)
        if not 0 <= size <= most:
            said = "an unknown number of" if size < 0 else f"{size:.2e}"
            raise budget.refusal(
                f"a chunk that decompresses to {said} bytes where {most:.2e} are declared, at {place!r}"
            )


def _zstd_size(payload: bytes) -> int:
    """Decompressed size by the header of the first frame (RFC 8878, section 3.1.1.1), which the decoder trusts."""
    if payload[:4] != _ZSTD or len(payload) < 6:
        return _UNKNOWN
    descriptor = payload[4]
    flag, is_single = descriptor >> 6, descriptor >> 5 & 1
    length = (1, 2, 4, 8)[flag] if flag or is_single else 0
    first = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    if not length:
        return _UNKNOWN
    return int.from_bytes(payload[first : first + length], "little") + (256 if length == 2 else 0)


def _blosc_size(payload: bytes) -> int:
    """Decompressed size by Blosc's header of 16 bytes: its fields are size, block size and compressed size."""
    size, block = (int.from_bytes(payload[first : first + 4], "little") for first in (4, 8))
    return size if len(payload) >= 16 and block <= max(size, 1) else _UNKNOWN


def _decompressed(compressor: str, payload: bytes) -> bytes:
    """Bytes of a chunk whose size was checked."""
    import numcodecs

    return bytes(numcodecs.get_codec({"id": compressor}).decode(payload)) if compressor else payload


def _longest_text(budget: Budget, place: str, content: bytes, count: int) -> int:
    """Bytes of the longest text in a chunk: their number, then each one's length and bytes."""
    found = int.from_bytes(content[:4], "little")
    if found != count:
        raise budget.refusal(f"a chunk of {found} texts where {count} are declared, at {place!r}")
    position, longest = 4, 0
    for _ in range(count):
        length = int.from_bytes(content[position : position + 4], "little")
        position += 4 + length
        longest = max(longest, length)
        if position > len(content):
            raise ValueError(f"the text at {place!r} is cut off")
    return longest
