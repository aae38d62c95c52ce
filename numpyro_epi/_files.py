"""Files that are written whole or not at all, outlast a power cut, and replace nothing unasked."""

import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def checked_output(path: str | os.PathLike[str], suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """A path that may be written.

    Args:
        path: Where to write.
        suffixes: Those that it may have, the ones to name in an error.
        overwrite: Whether something may be there.

    Raises:
        ValueError: If the suffix is another, or the path is a folder.
        FileExistsError: If the file exists and ``overwrite`` is false.
        FileNotFoundError: If there is no such folder.
        PermissionError: If it takes no files.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"Expected a path that ends in {' or '.join(suffixes)}; got {path}.")
    check_free(path, overwrite=overwrite, advice="Pass overwrite=True, or another path.")
    if path.is_dir():
        raise ValueError(f"Expected a file to write; got the folder {path}. Give another path.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected a folder at {path.parent}; there is none. Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder one can write to; got {path.parent}.")
    return path


def check_free(path: Path, *, overwrite: bool, advice: str) -> None:
    """Refuse to replace what exists.

    Args:
        path: The output.
        overwrite: Whether something may exist there.
        advice: Last sentence of the error, which says how to go on.

    Raises:
        FileExistsError: If something exists there, a link that leads nowhere included, and ``overwrite`` is false.
    """
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"Expected an output that does not exist; got {path}. {advice}")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Hand out a path beside this one, of the same suffix, and rename what is there once it is complete."""
    aside = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield aside
        put(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def put(source: Path, target: Path) -> None:
    """Rename a complete file or folder, such that a power cut leaves what was there or all of the new content."""
    if source.is_dir():
        for place, _, names in os.walk(source, topdown=False):
            for name in names:
                _sync_file(Path(place, name))
            sync_folder(Path(place))
    else:
        _sync_file(source)
    os.replace(source, target)
    sync_folder(target.parent)


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk, where the system can (not on Windows)."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # It takes files, but its names cannot be listed.
        return
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems sync no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
