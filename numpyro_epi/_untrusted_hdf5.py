"""What an untrusted HDF5 file would take to read, found without reading any array of numbers."""

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from ._budget import CHARACTER, MAX_ATTRIBUTES, TEXT_OBJECT, Budget

_FILTERS = ("shuffle", "gzip", "fletcher32")
"""Filters that NetCDF's writers use, in their order. No other is applied."""

_COLLECTION = re.compile(rb"GCOL\x01\0\0\0")
"""Header of a global heap collection, in which all values of variable length lie."""

_TEXT_BLOCK = 2**24
"""Bytes of text that are read at once."""

_MAX_BLOCKS, _MAX_TEXT_CHUNK = 10_000, 2**20
"""Maximal number of such blocks, and size of a text array's chunks, which each block decompresses anew."""

_FILTER_MESSAGE = 0x0B
"""Type of the object header's message that names filters."""


def inspect_hdf5(path: Path, budget: Budget) -> None:
    """Walk all objects and count what they declare.

    Raises:
        Refused: If the file holds what no export does, or too much of it.
    """
    import h5py

    with h5py.File(path, "r") as file:
        walk = _Walk(budget, largest_heap(path, file.id.get_create_plist().get_sizes()[1]))
        walk.attributes(file)
        groups = [(file["/"], 0)]
        while groups:
            group, depth = groups.pop()
            # Links to many members lie in a heap that could be compressed.
            if h5py.h5o.get_info(group.id).hdr.mesg.present >> _FILTER_MESSAGE & 1:
                raise budget.refusal(f"the compressed group {group.name!r}")
            for name in group:
                place = f"{group.name.rstrip('/')}/{name}"
                budget.add_object(place, depth)
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise budget.refusal(f"the link {place!r}")
                found = group[name]
                if isinstance(found, h5py.Group):
                    groups.append((found, depth + 1))
                elif isinstance(found, h5py.Dataset):
                    walk.dataset(place, found)
                walk.attributes(found)


def largest_heap(path: Path, size_length: int) -> int:
    """Size of the file's largest global heap collection, bytes: no value of variable length is larger.

    Many values may refer to the same collection, so that their sum is not limited by the file's size.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        ends = (match.end() for match in _COLLECTION.finditer(content))
        sizes = [int.from_bytes(content[end : end + size_length], "little") for end in ends]
        return min(max(sizes, default=0), len(content))


class _Walk:
    """Checks of single objects.

    Args:
        budget: Where they are counted.
        heap: Bytes of the largest value of variable length.
    """

    def __init__(self, budget: Budget, heap: int):
        self._budget, self._heap = budget, heap

    def attributes(self, found: Any) -> None:
        import h5py

        for name in found.attrs:
            place = f"{found.name}@{name}"
            attribute = h5py.h5a.open(found.id, name.encode("utf-8", "surrogateescape"))
            kind, count = attribute.get_type(), attribute.get_space().get_simple_extent_npoints()
            if isinstance(kind, h5py.h5t.TypeVlenID) or (
                isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()
            ):
                self._heap_attribute(place, found, name, count)
            elif isinstance(kind, h5py.h5t.TypeArrayID) or kind.detect_class(h5py.h5t.VLEN):
                raise self._budget.refusal(f"{place!r} of type {attribute.dtype}")
            else:
                self._budget.add_attribute(place, max(attribute.get_storage_size(), 8 * count))

    def _heap_attribute(self, place: str, found: Any, name: str, count: int) -> None:
        """Text, or the references by which NetCDF names an array's axes."""
        if count * (self._heap + TEXT_OBJECT) > 4 * MAX_ATTRIBUTES:
            raise self._budget.refusal(f"attributes of {count * self._heap:.2e} bytes at {place!r}")
        values = found.attrs[name]
        parts = np.ravel(values) if isinstance(values, np.ndarray) else [values]
        self._budget.add_attribute(place, sum(TEXT_OBJECT + _length(part) for part in parts))

    def dataset(self, place: str, found: Any) -> None:
        import h5py

        budget, dtype = self._budget, found.dtype
        if found.external or found.is_virtual:
            raise budget.refusal(f"{place!r}, whose numbers lie in other files")
        text = h5py.check_string_dtype(dtype)
        if text is None and dtype.kind not in "biufcS":
            raise budget.refusal(f"{place!r} of type {dtype}")
        size, shape = found.size or 0, found.shape or ()
        # A reference to a text takes twice as much in the file as in memory.
        itemsize = 2 * dtype.itemsize if dtype.kind == "O" else dtype.itemsize
        chunk = itemsize * math.prod(found.chunks or (0,))
        budget.add_array(place, size * itemsize, _num_chunks(shape, found.chunks or shape), chunk)
        if found.chunks:
            self._chunks(place, found, chunk)
        if dtype.kind == "S":
            budget.add_text(place, size * (TEXT_OBJECT + CHARACTER * dtype.itemsize))
        elif dtype.kind == "O":
            self._text(place, found, chunk)

    def _chunks(self, place: str, found: Any, most: int) -> None:
        """Refuse stored chunks that would decompress to more than the declared size."""
        properties, budget = found.id.get_create_plist(), self._budget
        filters = [_filter_name(properties.get_filter(i)[0]) for i in range(properties.get_nfilters())]
        if filters != [name for name in _FILTERS if name in filters]:
            raise budget.refusal(f"{place!r} with the filters {', '.join(filters)}")
        count, compressed = 0, list[tuple[int, ...]]()

        def note(stored: Any) -> None:
            nonlocal count
            count += 1
            # An index may name more chunks than fit into the shape.
            if count > most_chunks:
                raise budget.refusal(f"more chunks than its shape has, at {place!r}")
            budget.check_chunk(place, stored.size, most)
            # A chunk can leave out filters.
            if "gzip" in filters and not stored.filter_mask >> filters.index("gzip") & 1:
                compressed.append(stored.chunk_offset)

        most_chunks = _num_chunks(found.shape, found.chunks)
        found.id.chunk_iter(note)
        for offset in compressed:
            budget.check_inflated(place, found.id.read_direct_chunk(offset)[1], most)

    def _text(self, place: str, found: Any, chunk: int) -> None:
        """Count texts by reading them in blocks that are small however often the file refers to its longest text."""
        count, rows, budget = found.size or 0, found.shape[0] if found.ndim else 1, self._budget
        budget.add_text(place, count * TEXT_OBJECT)
        # Rows are read whole.
        block = _TEXT_BLOCK // ((self._heap + TEXT_OBJECT) * max(1, math.prod(found.shape[1:])))
        block = max(block, 1) if found.ndim < 2 else block
        if rows > block * _MAX_BLOCKS or chunk > _MAX_TEXT_CHUNK:
            raise budget.refusal(f"texts of up to {count * self._heap:.2e} bytes at {place!r}")
        longest = 0
        for first in range(0, rows, max(block, 1)):
            values = found[first : first + block] if found.ndim else [found[()]]
            grown = max(0, *map(_length, np.ravel(values))) - longest
            if grown > 0:
                budget.add_text(place, count * CHARACTER * grown)
                longest += grown


def _filter_name(code: int) -> str:
    import h5py

    known = {
        h5py.h5z.FILTER_SHUFFLE: "shuffle",
        h5py.h5z.FILTER_DEFLATE: "gzip",
        h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    }
    return known.get(code, f"number {code}")


def _length(part: Any) -> int:
    """Bytes of one value of variable length: a text, or references of 64 bytes each in memory."""
    if isinstance(part, str | bytes):
        return len(part)
    return TEXT_OBJECT * int(np.size(part))


def _num_chunks(shape: Any, chunks: Any) -> int:
    return math.prod(math.ceil(size / max(1, chunk)) for size, chunk in zip(shape, chunks, strict=True))
