"""A digest inside what was saved: a byte that has changed since is an error, and never another result.

A NetCDF file ends with its own SHA-256: HDF5 reads no further than its data, and whatever rewrites the file drops the last
line with it. A Zarr folder has a list as of ``sha256sum``. Neither says who wrote a file: for strangers' see `_inspection`.
"""

import hashlib
import os
from pathlib import Path

CHECKSUMS = "numpyro_epi.sha256"
"""The list in a Zarr folder; the root attribute ``numpyro_epi_checksums`` says that there is one."""

_MARK = b"\nnumpyro_epi sha256 "
_LENGTH = len(_MARK) + 2 * hashlib.sha256().digest_size + 1
_BLOCK = 2**20
_LONGEST_LINE = 1000
_CHANGED = "{} is not what was saved"


def seal(path: Path) -> None:
    """Add the digest to a complete file or folder."""
    if path.is_dir():
        lines = [f"{_digest(file)}  {file.relative_to(path).as_posix()}\n" for file in _files(path)]
        (path / CHECKSUMS).write_text("".join(lines), encoding="utf-8")
        return
    digest = _digest(path)
    with path.open("ab") as stream:
        stream.write(_MARK + digest.encode() + b"\n")


def broken_seal(path: Path) -> str:
    """What is wrong with a file or folder, in a clause; empty if it is as it was saved, or has no seal."""
    return _broken_folder(path) if path.is_dir() else _broken_file(path)


def _broken_file(path: Path) -> str:
    length = path.stat().st_size - _LENGTH
    if length < 0:
        return ""
    with path.open("rb") as stream:
        stream.seek(length)
        end = stream.read()
    if not end.startswith(_MARK):
        return ""
    return "" if end[len(_MARK) :].strip() == _digest(path, length).encode() else _CHANGED.format("its content")


def _broken_folder(path: Path) -> str:
    if not (path / CHECKSUMS).is_file():
        return ""
    files = _files(path)
    if (path / CHECKSUMS).stat().st_size > _LONGEST_LINE * (len(files) + 1):
        return _CHANGED.format(repr(CHECKSUMS))
    text = (path / CHECKSUMS).read_text(encoding="utf-8", errors="replace")
    saved = {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}
    found = {file.relative_to(path).as_posix(): file for file in files}
    if lost := sorted(saved.keys() - found.keys()):
        return f"{lost[0]!r} is missing"
    changed = [name for name, digest in saved.items() if digest != _digest(found[name])]
    return _CHANGED.format(repr(changed[0])) if changed else ""


def _files(folder: Path) -> list[Path]:
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(file for file in files if file.is_file() and file != folder / CHECKSUMS)


def _digest(path: Path, length: int | None = None) -> str:
    """SHA-256 of a file's first bytes, all of them by default."""
    left, digest = path.stat().st_size if length is None else length, hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(min(left, _BLOCK)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
