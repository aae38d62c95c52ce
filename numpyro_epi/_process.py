"""JAX does not survive a fork: its threads stay behind, and the child waits for them for good."""

import os

_FIRST: list[int] = []


def check_process() -> None:
    """Note the first process that computes here, and refuse its forks.

    Raises:
        RuntimeError: If this process was forked from one that has computed.
    """
    if not _FIRST:
        _FIRST.append(os.getpid())
    elif _FIRST[0] != os.getpid():
        raise RuntimeError(
            f"Expected a process of its own; this one was forked from process {_FIRST[0]}, where JAX was running, and would "
            "hang. Start workers with multiprocessing.get_context('spawn'), or fork before the first Problem is made."
        )
