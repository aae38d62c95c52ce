"""What restarts cost and give: eight of them beside one, each in a process of its own, compile included.

python benchmarks/restarts.py [--restarts 8] [--out benchmarks/results/restarts.md]
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
from problems import EXACT, exact_kl


def main() -> None:
    """Time both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "restarts.md")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_fit(arguments.child)))
        return
    one, several = (_in_a_process(count) for count in (1, arguments.restarts))
    kls = several["kls"]
    text = (
        f"| restarts | seconds, cold process | ratio | KL of the chosen (nats) | least KL of all | KL of each |\n"
        f"| --- | --- | --- | --- | --- | --- |\n"
        f"| 1 | {one['seconds']:.1f} | 1 | {one['chosen']:.4f} | {one['chosen']:.4f} | |\n"
        f"| {arguments.restarts} | {several['seconds']:.1f} | {several['seconds'] / one['seconds']:.2f} "
        f"| {several['chosen']:.4f} | {min(kls):.4f} | {', '.join(f'{kl:.4f}' for kl in kls)} |\n"
    )
    print(text)
    arguments.out.write_text(text)


def _in_a_process(count: int) -> dict:
    began = time.perf_counter()
    found = subprocess.run(
        [sys.executable, __file__, "--child", str(count)], capture_output=True, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - began}


def _fit(count: int) -> dict:
    exact = EXACT["oscillator_paper"]()
    result = epi.fit(jax.random.key(0), exact.problem, num_restarts=count, progress=False)
    chosen = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
    kls = []
    if result.restarts is not None:
        # KL(q || p*) is what the corrected entropy lacks, at the exact multipliers up to their error squared.
        kls = [float(exact.objective - value) for value in result.restarts.corrected]
    return {"chosen": chosen, "kls": kls}


if __name__ == "__main__":
    main()
