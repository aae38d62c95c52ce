"""Does the certificate notice? Guides that were fitted to one mode only, of every problem with several.

    python benchmarks/crippled.py [--seeds 5] [--out benchmarks/results/crippled.md]

"alone" has draws of the guide and of the base to look with; "chains" has draws of the chains that solved the dual too.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import numpyro_epi as epi
from numpyro_epi._begin import begin_flow, outline
from numpyro_epi._certificate import assess
from numpyro_epi.starts import Start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
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


def main() -> None:
    """Cripple, certify and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "crippled.md")
    arguments = parser.parse_args()
    lines = [_line("problem", "seed", "mass kept", "-log of it", "looks with", "gap (nats)", "unseen", "words")]
    lines.append(_line(*["---"] * 8))
    print("\n".join(lines), flush=True)
    noticed = []
    for name, keeps in KEPT.items():
        exact = ALL[name]()
        for seed in range(arguments.seeds):
            dual = epi.solve_dual(jax.random.key(seed), exact.problem)
            draws = dual.unconstrained.reshape(-1, exact.problem.dim)
            sites = {n: np.asarray(v).reshape(-1, *v.shape[2:]) for n, v in dual.draws().items()}
            kept = np.flatnonzero(keeps(sites))
            start = Start(draws[kept], True, jnp.asarray(dual.eta, draws.dtype), "")
            flow = begin_flow(jax.random.key(seed), epi.flows.default, start, outline(epi.flows.default, start))
            share = len(kept) / len(draws)
            for label, solution in (("alone", None), ("chains", draws)):
                found = assess(jax.random.key(seed), exact.problem, flow, dual.eta, solution=solution)
                noticed.append(found.verdict.startswith("Modes are probably missing"))
                numbers = (f"{share:.2f}", f"{-np.log(share):.2f}", label, f"{found.gap:.3f}", f"{found.unseen:.2f}")
                lines.append(_line(name, str(seed), *numbers, found.verdict))
                print(lines[-1], flush=True)
        jax.clear_caches()
    lines += ["", f"Noticed: {sum(noticed)} of {len(noticed)}."]
    print(lines[-1])
    arguments.out.write_text("\n".join(lines) + "\n")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
