"""Control-C and termination as requests: a run finishes what it is computing, and what it has is kept."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LOOP_SECONDS = 10.0
"""A run that begins within this time of an interrupted one is in the same loop: signals then act at once."""


class StoppedBeforeFirstStep(KeyboardInterrupt):
    """A run was asked to stop while it looked for its start: there is no result yet, but a checkpoint.

    Attributes:
        signal_name: SIGINT or SIGTERM.
    """

    def __init__(self, signal_name: str, checkpoint: object):
        super().__init__(
            f"{signal_name} before the first step; epi.resume({str(checkpoint)!r}) goes on with the start."
        )
        self.signal_name = signal_name


class _StoppedAtOnce(BaseException):
    """Leaves what a stop need not wait for."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM is noted and announced; the second acts as it would have without.

    A signal during a run that begins soon after an interrupted one counts as the second: it ends a script that fits in a loop.
    Only the main thread of a process can be asked: elsewhere this waits for nothing and `signal_name` stays empty.
    """

    _stopped_at = -LOOP_SECONDS
    """End of the last interrupted run of this process, seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.signal_name = ""
        self._before: dict[int, Any] = {}
        self._at_once = False

    def unless_stopped(self, compute: Callable[[], T], otherwise: T) -> T:
        """What a function returns, or ``otherwise`` as soon as a stop is asked for, or was before."""
        if self:
            return otherwise
        self._at_once = True
        try:
            return compute()
        except _StoppedAtOnce:
            return otherwise
        finally:
            self._at_once = False

    def __enter__(self) -> "StopRequest":
        is_in_loop = time.monotonic() - StopRequest._stopped_at < LOOP_SECONDS
        if threading.current_thread() is threading.main_thread() and not is_in_loop:
            # A handler that Python did not install is None, and cannot be put back.
            self._before = {s: h for s in SIGNALS if (h := signal.getsignal(s)) not in (None, signal.SIG_IGN)}
            for number in self._before:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self:
            StopRequest._stopped_at = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()
        _say(f"{self.signal_name}: the fit stops after its current steps; a second signal ends the program at once.")
        if self._at_once:
            raise _StoppedAtOnce

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _say(text: str) -> None:
    """Write a line to stderr, where it can be written from a signal's handler."""
    try:
        # A progress bar leaves its line open.
        print(f"\nnumpyro_epi: {text}", file=sys.stderr, flush=True)
    except (RuntimeError, OSError, ValueError, AttributeError):
        pass  # The program was writing itself, or there is no stderr.
