"""JAX does not survive a fork: its threads stay behind, and the child waits for them for good."""

import os
import sys

_FORKED_FROM: list[int] = []


def _note_fork() -> None:
    bridge = sys.modules.get("jax._src.xla_bridge")
    # JAX has no public word for it; one that hides it counts as running.
    if bridge is not None and getattr(bridge, "backends_are_initialized", lambda: True)():
        _FORKED_FROM.append(os.getpid())


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(before=_note_fork, after_in_parent=_FORKED_FROM.clear)


def check_process() -> None:
    """Refuse to compute in a process where JAX cannot.

    Raises:
        RuntimeError: If this process was forked from one where JAX was running.
    """
    if _FORKED_FROM:
        raise RuntimeError(
            f"Expected a process of its own; this one was forked from process {_FORKED_FROM[0]}, where JAX was running, and "
            "would hang. Start workers with multiprocessing.get_context('spawn'), or fork before anything is computed."
        )
