"""What a certified answer costs, beside an earlier version of the package: processor seconds and simulations, in one run.

    python benchmarks/cost.py [--before COMMIT] [--problems NAME ...] [--keys K ...] [--out FILE] [--append]

Every fit is by the defaults, in a process of its own, compile included; both versions take turns with one key after another, the
earlier one and its plugins from a checkout that is made for it and removed. "Within" is the upper end of the certificate's
interval, nats; "max_gap" is 0.05. The KL is exact, from the verdict's fresh draws (Monte Carlo error about 0.01 nats); "-" where
no exact answer is known. Simulations are the start's, the loop's and the certificate's; an earlier version that does not count
them is given its loop's alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, ROOT, add_key_argument, add_table_arguments, opened, provenance, write_row

BEFORE = "ff4cbd5"
"""The last version that ran every fit to its last step."""
PROBLEMS = {
    "oscillator (paper)": ("dynamics.oscillator", "oscillator_paper"),
    "oscillator (tutorial)": ("dynamics.oscillator_tutorial", "oscillator_tutorial"),
    "STG": ("circuits.stg", None),
    "SIR": ("biology.sir", None),
    "V1 SSN, 5 Hz": ("circuits.v1_ssn", None),
}
QUICK = ("oscillator (paper)", "oscillator (tutorial)", "STG", "SIR")
HEADER = (
    *("problem", "key", "status", "within (nats)", "KL (nats)", "steps", "simulations", "fewer", "CPU s", "ratio"),
    *PROVENANCE,
)


def main() -> None:
    """Fit by both versions, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="commit of the earlier version")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(QUICK))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_key_argument(parser, 2)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_fit(arguments.child, arguments.keys[0])))
        return
    with opened(arguments, HEADER) as table, _checkout(arguments.before) as earlier:
        for name in arguments.problems:
            for key in arguments.keys:
                before = _in_a_process(earlier, name, key)
                write_row(table, _cells(name, key, before, before, arguments.before))
                write_row(table, _cells(name, key, _in_a_process(ROOT, name, key), before, provenance()[0]))


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "earlier"
        subprocess.run(["git", "worktree", "add", "--detach", path, commit], cwd=ROOT, check=True, capture_output=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


def _in_a_process(root: Path, name: str, key: int) -> dict:
    paths = [root, *sorted((root / "plugins").glob("*/src"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, __file__, "--keys", str(key), "--child", name]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(run.stdout.splitlines()[-1])
    if not Path(found["package"]).is_relative_to(root):
        raise RuntimeError(f"Expected the package of {root}; the process imported {found['package']}.")
    return found


def _fit(name: str, key: int) -> dict:
    import numpyro_epi as epi

    result = epi.fit(jax.random.key(key), epi.get_problem(PROBLEMS[name][0]), progress=False)
    settings, certificate = result.settings, result.certificate
    # Records are of chunks of steps.
    steps = int(settings.get("steps", settings["max_steps"]))
    counted = getattr(result, "num_simulations", None)
    upper = np.inf
    if certificate is not None and certificate.verdict.startswith("Optimal within"):
        # Both ends of the interval as a release without one would have had them.
        upper = getattr(certificate, "upper", certificate.gap + 1.96 * certificate.standard_error)
    return {
        "package": epi.__file__,
        "status": result.status_name if hasattr(result, "status_name") else result.status.name,
        "within": float(upper),
        "steps": steps,
        "simulations": int(counted if counted is not None else steps * int(settings["num_draws"])),
        "base_entropy": float(result.verdict.base_entropy),
        "mean": np.asarray(result.verdict.mean, float).tolist(),
        "seconds": time.process_time(),
    }


def _cells(name: str, key: int, found: dict, before: dict, code: str) -> tuple[str, ...]:
    return (
        *(name, str(key), found["status"], f"{found['within']:.3f}" if np.isfinite(found["within"]) else "nothing"),
        *(_kl(name, found), str(found["steps"]), f"{found['simulations']:.1e}"),
        f"{before['simulations'] / found['simulations']:.1f}",
        *(f"{found['seconds']:.0f}", f"{found['seconds'] / before['seconds']:.2f}", code, provenance()[1]),
    )


def _kl(name: str, found: dict) -> str:
    exact_name = PROBLEMS[name][1]
    if exact_name is None:
        return "-"
    from problems import EXACT, exact_kl

    exact = EXACT[exact_name]()
    return f"{exact_kl(exact, base_entropy=found['base_entropy'], moments=np.array(found['mean'])):.4f}"


if __name__ == "__main__":
    main()
