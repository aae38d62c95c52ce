"""Signals: the first stops a run and says so, the second ends the program, also in a script that fits in a loop."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from numpyro_epi import _stop
from numpyro_epi._stop import StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM]
SAID = "{}: the fit stops after its current steps; a second signal ends the program at once.\n"


class Ended(Exception):
    """Stands for the end of the program."""


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Both signals would end the program; no run was interrupted before."""
    monkeypatch.setattr(StopRequest, "_stopped_at", -np.inf)

    def end(number, frame):
        raise Ended

    before = {number: signal.signal(number, end) for number in SIGNALS}
    yield end
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_announced(number, handlers, capsys):
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop.signal_name == signal.Signals(number).name
    assert signal.getsignal(number) is handlers
    assert capsys.readouterr().err.endswith(SAID.format(signal.Signals(number).name))


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_program(first, second):
    with StopRequest():
        os.kill(os.getpid(), first)
        with pytest.raises(Ended):
            os.kill(os.getpid(), second)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_next_run_of_a_loop_ends_the_program(number):
    with StopRequest():
        os.kill(os.getpid(), number)
    with pytest.raises(Ended), StopRequest():
        os.kill(os.getpid(), number)


def test_a_later_run_is_stopped_as_the_first_was(monkeypatch):
    """As in a notebook, where someone begins anew."""
    for _ in range(2):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop
        monkeypatch.setattr(StopRequest, "_stopped_at", StopRequest._stopped_at - _stop.LOOP_SECONDS)


def test_a_run_that_nobody_stops_changes_nothing_for_the_next():
    for _ in range(2):
        with StopRequest():
            pass
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop


def test_what_cannot_be_said_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop


def test_a_thread_notes_nothing(handlers):
    found = []

    def run():
        with StopRequest():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [handlers]


LOOP = """
import signal, sys, time
from numpyro_epi._stop import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
for i in range(3):
    with StopRequest() as stop:
        print("begins", i, flush=True)
        while not stop:
            time.sleep(0.01)
print("the end", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, -signal.SIGTERM)])
def test_two_signals_end_a_script_with_a_loop(number, code):
    with subprocess.Popen(
        [sys.executable, "-c", LOOP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for expected in ("begins 0\n", "begins 1\n"):
            assert process.stdout.readline() == expected
            time.sleep(0.1)
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert "begins" not in out
    assert "the end" not in out
    assert process.returncode == code
    assert err.count(SAID.format(signal.Signals(number).name)) == 1
