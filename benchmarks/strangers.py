"""Problems that nobody tuned the defaults on: random exact ones, each fitted with the defaults and judged by its exact answer.

    python benchmarks/strangers.py --seed S [--count 30] [--only NAME|INDEX ...] [--out FILE] [--append]

A problem's name begins with its index. The exact KL(q || p*) is from 40,000 draws, in double precision on the host.

- RIGHT: satisfied, and the exact KL is at most 0.05 nats (0.1 above ten dimensions).
- WRONG: called satisfied while a mean is off by more than 0.1 of its wanted standard deviation (of the solution's own where none
  is wanted), or a wanted standard deviation by more than 10 %; or called satisfied or certified while the exact KL exceeds the
  certificate's upper end by 0.05 nats and 20 %.
- HONEST MISS: not right, and not called so.
- ERROR: the fit raised.

"Interval" is the certificate's 95 % interval of the gap; "nothing" where it gives none. "Off" is the largest error of a mean in
those units, and the largest relative error of a wanted standard deviation.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

import jax
import numpy as np

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_table_arguments, opened, provenance, write_row
from oracles.strangers import Stranger, draw, exact_kl, strangers

NUM_DRAWS = 40_000
OFF = 0.1
"""Error of a mean or of a standard deviation, in units of the standard deviation, above which the property does not hold."""
EXCESS, RELATIVE_EXCESS = 0.05, 0.2
"""Nats, and fraction of it, by which the upper end of a certificate's interval may be exceeded."""
NAMES = ("RIGHT", "HONEST MISS", "WRONG", "ERROR")
HEADER = (
    *("problem", "D", "status", "certified", "KL (nats)", "interval (nats)", "off: mean (sd)", "off: sd (relative)"),
    *("mode fractions (exact)", "CPU s", "simulations", "verdict", "seed", *PROVENANCE),
)


class Claim(NamedTuple):
    """What a result says of itself.

    Attributes:
        satisfied: It has the property.
        certified: It is near the optimum.
        lower: Lower end of the certificate's interval, nats; NaN where it gives none.
        upper: Upper end; infinite where the result claims none.
    """

    satisfied: bool
    certified: bool
    lower: float
    upper: float


def main() -> None:
    """Fit what is asked for, and print a line each and the counts."""
    arguments = _arguments()
    with opened(arguments, HEADER) as table:
        _run(arguments, table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="of the problems and of the fits")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=[], help="names, families or indices")
    add_table_arguments(parser)
    return parser.parse_args()


def _run(arguments: argparse.Namespace, table: TextIO) -> None:
    started, rows = time.process_time(), []
    for index, stranger in enumerate(strangers(arguments.seed, arguments.count)):
        family = stranger.name.partition("_")[2]
        if arguments.only and not {stranger.name, family, str(index)} & set(arguments.only):
            continue
        row = judge(stranger, arguments.seed, index)
        write_row(table, (*row.cells, str(arguments.seed), *provenance()))
        rows.append(row)
        # The system allows a process so many mapped pieces of code; each problem's programs are used once.
        jax.clear_caches()
    counts = ", ".join(f"{sum(row.verdict == name for row in rows)} {name}" for name in NAMES)
    covered = [row.covered for row in rows if row.covered is not None]
    print(
        f"{len(rows)} problems of seed {arguments.seed}: {counts}; {(time.process_time() - started) / 60:.1f} CPU minutes; "
        f"the interval holds the exact KL in {sum(covered)} of {len(covered)}",
        flush=True,
    )


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        cells: Its text, up to the verdict.
        verdict: One of `NAMES`.
        covered: Whether the certificate's interval holds the exact KL, within two of its standard errors; ``None`` where there
            is no interval.
    """

    cells: tuple[str, ...]
    verdict: str
    covered: bool | None


def judge(stranger: Stranger, seed: int, index: int) -> Row:
    """Fit with the defaults, and compare with the exact answer."""
    key, started = jax.random.fold_in(jax.random.key(seed), index), time.process_time()
    try:
        result = epi.fit(key, stranger.problem, progress=False)
    except Exception as raised:  # The table goes on, and says so.
        words = " ".join(f"{type(raised).__name__}: {raised}".split())[:200].replace("|", "/")
        after = f"{time.process_time() - started:.0f}"
        return Row((stranger.name, str(stranger.problem.dim), words, *["-"] * 6, after, "-", "ERROR"), "ERROR", None)
    seconds = time.process_time() - started
    sites, log_q = draw(result, jax.random.fold_in(key, 1), NUM_DRAWS)
    kl, error = exact_kl(stranger, sites, log_q)
    off, said = deviations(stranger, sites), claim(result)
    verdict = verdict_of(said, kl=kl, off=off, tolerance=stranger.tolerance)
    simulations = getattr(result, "num_simulations", None) or result.settings.get("num_simulations")
    cells = (
        *(stranger.name, str(stranger.problem.dim), result.status_name, "yes" if said.certified else "no"),
        f"{kl:.4f} ± {error:.4f}",
        f"({said.lower:.3f}, {said.upper:.3f})" if np.isfinite(said.lower) else "nothing",
        *(f"{off.mean:.3f}", "-" if np.isnan(off.std) else f"{off.std:.3f}"),
        _fractions(stranger, sites),
        *(f"{seconds:.0f}", "-" if simulations is None else str(simulations), verdict),
    )
    covered = said.lower - 2 * error <= kl <= said.upper + 2 * error if np.isfinite(said.lower) else None
    return Row(cells, verdict, covered)


def claim(result: epi.Result) -> Claim:
    """What a result says, also by releases whose certificate has no interval yet."""
    certificate = result.certificate
    if certificate is None:
        return Claim(result.satisfied, bool(getattr(result, "certified", False)), np.nan, np.inf)
    lower, upper = getattr(certificate, "lower", None), getattr(certificate, "upper", None)
    optimal = certificate.verdict.startswith("Optimal within")
    if lower is None or upper is None:
        half = 1.96 * certificate.standard_error
        lower, upper = (certificate.gap - half, certificate.gap + half) if optimal else (np.nan, np.inf)
    certified = getattr(result, "certified", result.satisfied and optimal)
    return Claim(result.satisfied, bool(certified), float(lower), float(upper))


class Deviations(NamedTuple):
    """How far draws are from the targets; infinite where their moments are not finite.

    Attributes:
        mean: Largest error of a mean, in its unit.
        std: Largest relative error of a wanted standard deviation, which is about the wanted mean; NaN where none is wanted.
    """

    mean: float
    std: float


def deviations(stranger: Stranger, sites: dict[str, np.ndarray]) -> Deviations:
    """Compare the draws' moments, averaged over the simulator's noise, with the exact ones."""
    with np.errstate(all="ignore"):
        found = np.mean(stranger.moments(sites), axis=0)
        second = np.array([constraint.order == 2 for constraint in stranger.problem.constraints])
        off = np.where(second, np.abs(np.sqrt(found / stranger.mu) - 1), np.abs(found - stranger.mu) / stranger.unit)
    off = np.nan_to_num(off, nan=np.inf)
    return Deviations(float(np.max(off[~second])), float(np.max(off[second])) if np.any(second) else float("nan"))


def verdict_of(said: Claim, *, kl: float, off: Deviations, tolerance: float) -> str:
    """One of the names but ERROR. Where a guide's tails are heavy, Monte Carlo errors are large and no excuse."""
    holds = off.mean <= OFF and not off.std > OFF
    beyond = kl > max(said.upper + EXCESS, (1 + RELATIVE_EXCESS) * said.upper)
    if (said.satisfied and not holds) or ((said.satisfied or said.certified) and beyond):
        return "WRONG"
    return "RIGHT" if said.satisfied and kl <= tolerance else "HONEST MISS"


def _fractions(stranger: Stranger, sites: dict[str, np.ndarray]) -> str:
    if stranger.modes is None:
        return "-"
    labels = np.clip(stranger.modes.label(sites), 0, len(stranger.modes.fractions) - 1)
    found = np.bincount(labels, minlength=len(stranger.modes.fractions)) / len(labels)
    return ", ".join(f"{a:.2f} ({b:.2f})" for a, b in zip(found, stranger.modes.fractions, strict=True))


if __name__ == "__main__":
    main()
