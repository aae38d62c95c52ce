"""What restarts cost and give: eight of them beside one, each in a process of its own, compile included.

python benchmarks/restarts.py [--keys 0 ...] [--restarts 8] [--out FILE] [--append]

The KL of each restart is what its corrected entropy lacks of the optimum.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import jax

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_table_arguments, opened, provenance, write_row
from problems import EXACT, exact_kl

HEADER = (
    *("key", "restarts", "CPU s, cold process", "ratio", "KL of the chosen (nats)", "worst of all", "KL of each"),
    *PROVENANCE,
)


def main() -> None:
    """Time both for each key and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[0])
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_fit(arguments.keys[0], arguments.child)))
        return
    with opened(arguments, HEADER) as table:
        for key in arguments.keys:
            alone = None
            for count in (1, arguments.restarts):
                found = _in_a_process(key, count)
                alone = alone or found["seconds"]
                kls = found["kls"] or [found["chosen"]]
                cells = (
                    *(str(key), str(count), f"{found['seconds']:.0f}", f"{found['seconds'] / alone:.2f}"),
                    *(f"{found['chosen']:.4f}", f"{max(kls):.4f}", ", ".join(f"{kl:.4f}" for kl in kls)),
                    *provenance(),
                )
                write_row(table, cells)


def _in_a_process(key: int, count: int) -> dict:
    command = [sys.executable, __file__, "--keys", str(key), "--child", str(count)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def _fit(key: int, count: int) -> dict:
    exact = EXACT["oscillator_paper"]()
    result = epi.fit(jax.random.key(key), exact.problem, num_restarts=count, progress=False)
    chosen = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
    kls = []
    if result.restarts is not None:
        # At the exact multipliers, up to their error squared.
        kls = [float(exact.objective - value) for value in result.restarts.corrected]
    return {"chosen": chosen, "kls": kls, "seconds": time.process_time()}


if __name__ == "__main__":
    main()
