"""Rows of a table in Markdown, printed and written as soon as they are known, and what goes into their cells."""

import argparse
import io
import platform
import resource
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

if TYPE_CHECKING:
    import numpyro_epi as epi
    from numpyro_epi._outcome import Verdict

ROOT = Path(__file__).resolve().parents[1]


def write_row(table: TextIO, cells: tuple[str, ...]) -> None:
    """Add one row."""
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    table.write(line + "\n")
    table.flush()


def write_header(table: TextIO, header: tuple[str, ...]) -> None:
    """Add the first row and the rule below it."""
    write_row(table, header)
    write_row(table, ("---",) * len(header))


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a table is written to."""
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    parser.add_argument("--append", action="store_true", help="add rows to the file's table")


@contextmanager
def opened(arguments: argparse.Namespace, header: tuple[str, ...]) -> Iterator[TextIO]:
    """The table that `add_table_arguments` asked for, with its header unless rows are added; nowhere where no file is named."""
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a" if arguments.append else "w") if arguments.out else io.StringIO() as table:
        if not arguments.append:
            write_header(table, header)
        yield table


def add_key_argument(parser: argparse.ArgumentParser, count: int) -> None:
    """Keys of the runs, drawn anew each time: a table of always the same keys shows what these are like, lucky or not."""
    drawn = [secrets.randbelow(10**6) for _ in range(count)]
    parser.add_argument("--keys", type=int, nargs="+", default=drawn, help=f"of the runs; by default {count} at random")


PROVENANCE = ("code", "machine")


def provenance() -> tuple[str, str]:
    """Cells that say which code made a row, and where."""
    import jax

    return CODE, f"{platform.node()}, {jax.devices()[0].device_kind}"


def commit() -> str:
    """Short hash of the code that makes a row, with a plus where the package was changed after it.

    A table may be made in parts.
    """
    if shutil.which("git") is None:
        return "-"

    def said(*words: str) -> str:
        found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip()

    changed = "+" if said("status", "--porcelain", "--", "numpyro_epi") else ""
    return f"{said('rev-parse', '--short', 'HEAD') or '-'}{changed}"


CODE = commit()
"""When this process began: a commit during a long run is not what runs."""


def peak_gigabytes() -> float:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def achieved(problem: "epi.Problem", verdict: "Verdict") -> str:
    """Mean and standard deviation of every statistic over fresh simulations, each with the half width of its 95 % interval.

    With ``d = E[T] - target`` the variance is ``E[(T - target)^2] - d^2``, a difference of two moments. Its standard error is at
    most that of the first plus ``2 |d|`` times that of the mean, whatever their correlation, and the deviation's is that over
    twice the deviation (delta method). Where no spread is asked for, its moment is not measured, and there is no interval.
    """
    squares = {c.statistic: i for i, c in enumerate(problem.constraints) if c.order == 2}
    parts = []
    for i, constraint in enumerate(problem.constraints):
        if constraint.order != 1:
            continue
        mean, error = verdict.mean[i], verdict.standard_error[i]
        text = f"{mean:.4g} +- {1.96 * error:.2g}, sd "
        if constraint.statistic in squares:
            j, off = squares[constraint.statistic], abs(mean - problem.target[i])
            spread = np.sqrt(max(verdict.mean[j] - off**2, 0.0))
            spread_error = (verdict.standard_error[j] + 2 * off * error) / (2 * spread) if spread > 0 else np.nan
            text += f"{spread:.3g} +- {1.96 * spread_error:.2g}"
        else:
            text += f"{verdict.scale[i]:.3g}"
        parts.append(text)
    return "; ".join(parts)
