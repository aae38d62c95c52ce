"""Limits on what an untrusted file may hold; its reader counts what the file declares and stops at the first excess."""

import zlib
from pathlib import Path

MAX_DEPTH, MAX_OBJECTS = 8, 100_000
"""Maximal depth of nested groups, and number of groups, arrays and attributes. Groups can contain each other in a circle."""

MAX_CHUNKS = 100_000
"""Maximal number of chunks of all arrays; each takes time, whether it is stored or not."""

FREE_BYTES, MAX_RATIO = 2**30, 20
"""Bytes that a file of any size may declare, and additional bytes per byte of the file."""

FREE_CHUNK = 2**22
"""Bytes of a chunk that may be larger than its array: NetCDF makes such chunks along unlimited dimensions."""

MAX_TEXT = 2**26
"""Bytes of all text in arrays, once each array is padded to its longest text."""

MAX_ATTRIBUTES = 2**24
"""Bytes of all attributes in memory."""

TEXT_OBJECT, CHARACTER = 64, 4
"""Bytes of one Python text beside its characters, and of one character in NumPy's padded arrays."""

_BLOCK = 2**20


class Refused(ValueError):
    """A file that is not read, with the reason."""


class Budget:
    """Counts what one file declares.

    Args:
        path: The file or folder.
        stored: Its size in bytes.
    """

    def __init__(self, path: Path, stored: int):
        self.path = path
        self._stored = stored
        self._declared = self._chunks = self._objects = self._text = self._attributes = 0

    def refusal(self, what: str) -> Refused:
        """The error that says what the file holds and no export does."""
        return Refused(
            f"Expected an exported result at {self.path}; it holds {what}, which no export does. It was made by another "
            "program, or to do harm, and is not read."
        )

    def add_object(self, place: str, depth: int = 0) -> None:
        """Count a group, an array or an attribute."""
        self._objects += 1
        if depth >= MAX_DEPTH or self._objects > MAX_OBJECTS:
            raise self.refusal(f"groups too deep, or too many objects, at {place!r}")

    def add_array(self, place: str, num_bytes: int, num_chunks: int, chunk_bytes: int) -> None:
        """Count the numbers of an array as its header declares them."""
        self._declared += num_bytes
        self._chunks += num_chunks
        if self._declared > FREE_BYTES + MAX_RATIO * self._stored:
            raise self.refusal(f"arrays of {self._declared:.2e} bytes in {self._stored:.2e} stored ones")
        if self._chunks > MAX_CHUNKS:
            raise self.refusal(f"{self._chunks} chunks at {place!r}")
        if chunk_bytes > max(num_bytes, FREE_CHUNK):
            raise self.refusal(f"chunks of {chunk_bytes:.2e} bytes for {num_bytes:.2e} at {place!r}")

    def add_text(self, place: str, num_bytes: int) -> None:
        """Count what an array of texts takes in memory."""
        self._text += num_bytes
        if self._text > MAX_TEXT:
            raise self.refusal(f"texts of {self._text:.2e} bytes at {place!r}")

    def add_attribute(self, place: str, num_bytes: int) -> None:
        """Count an attribute."""
        self.add_object(place)
        self._attributes += num_bytes
        if self._attributes > MAX_ATTRIBUTES:
            raise self.refusal(f"attributes of {self._attributes:.2e} bytes at {place!r}")

    def check_chunk(self, place: str, stored: int, most: int) -> None:
        """Refuse a stored chunk that is larger than a compressor makes it that finds nothing to compress."""
        if stored > most + most // 64 + 1024:
            raise self.refusal(f"a chunk of {stored:.2e} bytes where {most:.2e} are declared, at {place!r}")

    def check_inflated(self, place: str, payload: bytes, most: int) -> None:
        """Refuse zlib's or gzip's data that decompress to more than ``most`` bytes, without keeping them."""
        unpacker, found = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0
        while payload and not unpacker.eof:
            found += len(unpacker.decompress(payload, _BLOCK))
            payload = unpacker.unconsumed_tail
            if found > most:
                raise self.refusal(
                    f"a chunk that decompresses to more than the {most:.2e} bytes declared, at {place!r}"
                )
        # A checksum of four bytes may follow; gzip goes on with a second part, also after zeros.
        if len(unpacker.unused_data.lstrip(b"\0")) > 4:
            raise self.refusal(f"a chunk of several compressed parts, at {place!r}")
