"""A long computation whose steps are kept in a checkpoint, so that the same call resumes it."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ._checkpoint import PREVIOUS, Keeper, Saved, beside, compare, describe, read
from ._journal import Journal
from ._keys import key_text
from ._problem import Problem
from ._types import Key


@contextmanager
def kept(
    checkpoint: str | os.PathLike[str], every: float, run: str, key: Key, problem: Problem, options: Mapping[str, Any]
) -> Iterator[float]:
    """Keep the steps of what is computed inside, and take those from the checkpoint that it holds.

    Args:
        checkpoint: The file. If it exists, it must be of the same run.
        every: Minimal number of seconds between two checkpoints.
        run: Name of the function that computes.
        key: Random key of the run.
        problem: The problem.
        options: What else the computation depends on, as text.

    Yields:
        Seconds that earlier calls have taken.

    Raises:
        ValueError: If the checkpoint is damaged, or of another function, key, problem or option.
    """
    path = Path(checkpoint)
    exists = any(os.path.lexists(each) for each in (path, beside(path, PREVIOUS)))
    about = {**describe(problem, options), "run": run, "key": key_text(key), "numbers": {}}
    saved = _checked(read(path, run), about) if exists else None
    spent, began = float(saved.about["seconds"]) if saved else 0.0, time.perf_counter()
    with Keeper(path, every, new=not exists) as keeper:

        def keep(arrays: Mapping[str, np.ndarray], now: bool = False) -> None:
            keeper.save({**about, "seconds": spent + time.perf_counter() - began}, arrays, now=now)

        with Journal(saved.arrays if saved else {}, keep) as journal:
            try:
                yield spent
            finally:
                # Also where the run is interrupted.
                keep(journal.arrays, now=True)


def _checked(saved: Saved, about: Mapping[str, Any]) -> Saved:
    try:
        if saved.about["key"] != about["key"]:
            raise ValueError(
                f"Expected the key that {saved.path} was made with; got another one. Pass that key, or name another checkpoint."
            )
        compare(saved, about)
        float(saved.about["seconds"])
    # A checkpoint of untrusted origin may say anything under a right checksum.
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"Expected a checkpoint in {saved.path}; it cannot be read: {error!r}.") from error
    return saved
