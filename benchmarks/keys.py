"""The defaults on exact problems with many keys: how often a lucky key is needed.

    python benchmarks/keys.py [--problems NAME ...] [--first 1000] [--count 20] [--out FILE] [--append]

The exact KL(q || p*) is from the verdict's fresh draws (Monte Carlo error about 0.01 nats), the interval the certificate's.
The mode's share is that of ``a12 > 0``: one half is exact. The first key of a problem pays for compiling its programs.
"""

import argparse
import io
import sys
import time
from pathlib import Path

import jax
import numpy as np

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_table_arguments, opened, provenance, write_row
from problems import EXACT, ExactProblem, exact_kl

HEADER = (
    *("problem", "key", "status", "certified", "KL (nats)", "interval (nats)", "mode's share", "steps", "CPU s"),
    *PROVENANCE,
)


def main() -> None:
    """Fit what is asked for, and print a line each and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problems", nargs="*", choices=list(EXACT), default=["oscillator_paper", "oscillator_tutorial"]
    )
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--count", type=int, default=20)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with opened(arguments, HEADER) as table:
        for name in arguments.problems:
            exact = EXACT[name]()
            found = [_row(table, exact, key) for key in range(arguments.first, arguments.first + arguments.count)]
            good = sum(kl <= 0.05 for kl in found)
            print(f"{name}: {good} of {len(found)} within 0.05 nats, the worst {max(found):.3f}", flush=True)
            jax.clear_caches()


def _row(table: io.TextIOBase, exact: ExactProblem, key: int) -> float:
    started = time.process_time()
    result = epi.fit(jax.random.key(key), exact.problem, progress=False)
    seconds = time.process_time() - started
    kl = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
    certificate = result.certificate
    write_row(
        table,
        (
            *(exact.name, str(key), result.status_name, "yes" if result.certified else "no", f"{kl:.4f}"),
            "nothing" if certificate is None else f"({certificate.lower:.3f}, {certificate.upper:.3f})",
            *(_share(exact, result), str(result.settings["steps"]), f"{seconds:.0f}"),
            *provenance(),
        ),
    )
    return kl


def _share(exact: ExactProblem, result: epi.Result) -> str:
    if not exact.name.startswith("oscillator"):
        return "-"
    return f"{float(np.mean(result.sample(jax.random.key(1), (20_000,))['A'][:, 0, 1] > 0)):.3f}"


if __name__ == "__main__":
    main()
