"""Files that are written whole or not at all, and replace nothing unasked."""

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
        ValueError: If the suffix is another, or the file exists and ``overwrite`` is false.
        FileNotFoundError: If there is no such folder.
        PermissionError: If it takes no files.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"Expected a path that ends in {' or '.join(suffixes)}; got {path}.")
    # A link that leads nowhere is there too.
    if os.path.lexists(path) and not overwrite:
        raise ValueError(f"Expected an output that does not exist; got {path}. Pass overwrite=True, or another path.")
    if path.is_dir():
        raise ValueError(f"Expected a file to write; got the folder {path}. Give another path.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected a folder at {path.parent}; there is none. Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder one can write to; got {path.parent}.")
    return path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Hand out a path beside this one, of the same suffix, and rename what is there once it is complete."""
    aside = path.with_name(f".{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
