"""The dual solved by chains with defaults: every exact problem.

    python benchmarks/dual.py [--keys K ...] [--problems NAME ...] [--out FILE] [--append]

Errors of multipliers are the largest one's share, all of them in the inverse of their statistics' standard deviations. The
first key of a problem pays for compiling its programs.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_key_argument, add_table_arguments, opened, provenance, write_row
from chosen_problems import CHOSEN
from problems import EXACT, ExactProblem

ALL = EXACT | CHOSEN
HEADER = (
    *("problem", "key", "status", "eta error", "its standard error", "bound - exact (nats)", "entropy - exact (nats)"),
    *("mode share", "ESS", "R-hat", "simulations", "seconds"),
    *PROVENANCE,
)


def main() -> None:
    """Solve the problems asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    feasible = [name for name, build in ALL.items() if build().feasible]
    parser.add_argument("--problems", nargs="*", choices=feasible, default=feasible)
    add_key_argument(parser, 3)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with opened(arguments, HEADER) as table:
        for name in arguments.problems:
            exact = ALL[name]()
            for key in arguments.keys:
                write_row(table, (*_row(exact, key), *provenance()))
            jax.clear_caches()


def _row(exact: ExactProblem, key: int) -> tuple[str, ...]:
    found = epi.solve_dual(jax.random.key(key), exact.problem)
    scale = found.verdict.scale
    size = np.max(np.abs(exact.multipliers) * scale)
    share = "-"
    if exact.name.startswith("oscillator"):
        right = found.draws()["A"][..., 0, 1] > 0
        share = f"{np.average(right, weights=np.exp(found.log_weight)):.3f}"
    return (
        exact.name,
        str(key),
        found.status_name,
        f"{np.max(np.abs(found.eta - exact.multipliers) * scale) / size:.4f}",
        f"{np.max(found.standard_error * scale) / size:.4f}",
        f"{found.log_normalizer - exact.objective:+.4f}",
        f"{found.entropy - exact.entropy:+.4f}",
        share,
        f"{found.ess:.0f}",
        f"{found.rhat:.3f}",
        f"{found.num_simulations:.1e}",
        f"{found.seconds:.1f}",
    )


if __name__ == "__main__":
    main()
