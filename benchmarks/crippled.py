"""Does the certificate notice? Guides that were fitted to one mode only, of every problem with several.

    python benchmarks/crippled.py [--keys K ...] [--out FILE] [--append]

"alone" has draws of the guide and of the base to look with; "chains" has draws of the chains that solved the dual too.
"""

import argparse
import sys
from pathlib import Path
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_epi as epi
from numpyro_epi._begin import begin_flow, outline
from numpyro_epi._certificate import assess
from numpyro_epi.starts import Start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_key_argument, add_table_arguments, opened, provenance, write_row
from chosen_problems import CHOSEN
from problems import EXACT

ALL = EXACT | CHOSEN
KEPT = {
    "oscillator_tutorial": lambda sites: sites["A"][:, 0, 1] > 0,
    "oscillator_paper": lambda sites: sites["A"][:, 0, 1] > 0,
    "double_well": lambda sites: sites["z"] > 0,
    "four_corners": lambda sites: (sites["z"][:, 0] > 0) & (sites["z"][:, 1] > 0),
    "winner_takes_all": lambda sites: np.argmax(sites["z"], axis=1) == 0,
    "double_well_chain": lambda sites: sites["z"][:, 0] > 0,
}
"""Which draws are of the mode that the guide is fitted to."""
HEADER = (
    *("problem", "key", "mass kept", "-log of it", "looks with", "gap (nats)", "unseen", "words"),
    *PROVENANCE,
)


def main() -> None:
    """Cripple, certify and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_key_argument(parser, 3)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with opened(arguments, HEADER) as table:
        noticed = [each for name in KEPT for each in _rows(table, name, arguments.keys)]
    print(f"Noticed: {sum(noticed)} of {len(noticed)}.")


def _rows(table: TextIO, name: str, keys: list[int]) -> list[bool]:
    """Whether the missing mode was noticed, by each key without chains and with them."""
    exact, noticed = ALL[name](), []
    for key in keys:
        dual = epi.solve_dual(jax.random.key(key), exact.problem)
        draws = dual.unconstrained.reshape(-1, exact.problem.dim)
        sites = {n: np.asarray(v).reshape(-1, *v.shape[2:]) for n, v in dual.draws().items()}
        kept = np.flatnonzero(KEPT[name](sites))
        start = Start(draws[kept], True, jnp.asarray(dual.eta, draws.dtype), "")
        flow = begin_flow(jax.random.key(key), epi.flows.default, start, outline(epi.flows.default, start))
        share = len(kept) / len(draws)
        for label, solution in (("alone", None), ("chains", draws)):
            found = assess(jax.random.key(key), exact.problem, flow, dual.eta, solution=solution)
            noticed.append(found.verdict.startswith("Modes are probably missing"))
            numbers = (f"{share:.2f}", f"{-np.log(share):.2f}", label, f"{found.gap:.3f}", f"{found.unseen:.2f}")
            write_row(table, (name, str(key), *numbers, found.verdict, *provenance()))
    # The system allows a process so many mapped pieces of code; each problem's programs are used once.
    jax.clear_caches()
    return noticed


if __name__ == "__main__":
    main()
