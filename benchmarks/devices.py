"""The CPU and the accelerator of one machine beside each other: answers, steps and whole runs.

    python benchmarks/devices.py answers [--problems NAME ...] [--platforms cpu cuda] [--out answers.md]
    python benchmarks/devices.py steps [--problems NAME ...] [--draws 100 1000 10000] [--platforms cpu cuda] [--out steps.md]
    python benchmarks/devices.py runs [--rows NAME ...] [--platforms cpu cuda] [--out runs.md]

Each problem is measured in a process of its own for each platform, which take turns.

"answers" are fits of problems with exact solutions by the defaults, and their duals by chains: KL(q || p*) and the multipliers'
error as in `quality.py` and `dual.py`, seconds of the first seed with all compilation and of the second one without. "steps" are
one step of a fit, the default flow's loss and its gradient: the median of some calls. "runs" are rows of `papers.py`.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _table import write_header, write_row

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

PROBLEMS = ("gaussian_5", "ring", "oscillator_paper", "dirichlet", "linear_gaussian_simulator", "double_well")
SIMULATED = (
    *("dynamics.oscillator", "dynamics.oscillator_simulated", "biology.sir", "circuits.rnn_stable_amplification"),
    *("circuits.stg", "circuits.v1_ssn", "circuits.sc_task_switching"),
)
MOST_CALLS, LONGEST = 20, 2.0
"""Calls of a step that are timed, and seconds after which none is added."""
ANSWERS = (
    *("problem", "device", "method", "seed", "status", "KL (nats)", "eta error"),
    *("entropy - exact (nats)", "seconds"),
)
RUNS = (
    *("row", "device", "status", "worst violation (sd)", "multipliers", "entropy (nats)"),
    *("effort", "seconds", "start"),
)


def main() -> None:
    """Measure what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("answers", "steps", "runs"))
    parser.add_argument("--problems", nargs="*")
    parser.add_argument("--rows", nargs="*", default=["RNN N = 50"])
    parser.add_argument("--draws", nargs="*", type=int, default=[100, 1000, 10_000])
    parser.add_argument("--platforms", nargs="*", default=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="benchmarks/results/devices-TABLE.md by default")
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parent / "results" / f"devices-{arguments.table}.md"
    rows = {"answers": _answers, "steps": _steps, "runs": _runs}[arguments.table](arguments)
    with out.open("w") as table:
        write_header(table, next(rows))
        for row in rows:
            write_row(table, row)


def _answers(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    yield ANSWERS
    for name in arguments.problems or PROBLEMS:
        for platform in arguments.platforms:
            yield from _on(platform, _answer, name)


def _steps(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    yield ("problem", "draws", *(f"{platform}, ms" for platform in arguments.platforms), "first / last")
    for name in arguments.problems or SIMULATED:
        found = [_on(platform, _step, name, arguments.draws) for platform in arguments.platforms]
        for i, num_draws in enumerate(arguments.draws):
            seconds = [times[i] for times in found]
            yield name, str(num_draws), *(f"{1000 * each:.3g}" for each in seconds), f"{seconds[0] / seconds[-1]:.2g}"


def _runs(arguments: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    yield RUNS
    for name in arguments.rows:
        for platform in arguments.platforms:
            yield _on(platform, _run, name)


def _on(platform: str, call: Callable, *arguments: Any) -> Any:
    os.environ["JAX_PLATFORMS"] = platform
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _answer(name: str) -> list[tuple[str, ...]]:
    import jax
    from chosen_problems import CHOSEN
    from problems import EXACT, exact_kl, multiplier_error

    import numpyro_epi as epi

    exact = (EXACT | CHOSEN)[name]()
    rows = []
    for method in ("fit", "dual"):
        for seed in range(2):
            began, key = time.perf_counter(), jax.random.key(seed)
            if method == "fit":
                found = epi.fit(key, exact.problem, progress=False)
            else:
                found = epi.solve_dual(key, exact.problem)
            seconds, verdict = time.perf_counter() - began, found.verdict
            kl = exact_kl(exact, base_entropy=verdict.base_entropy, moments=verdict.mean)
            numbers = (
                f"{kl:.4f}",
                f"{multiplier_error(exact, found.eta):.4f}",
                f"{verdict.entropy - exact.entropy:.4f}",
            )
            rows.append((name, _device(), method, str(seed), found.status.name, *numbers, f"{seconds:.1f}"))
    return rows


def _step(name: str, sizes: list[int]) -> list[float]:
    from _step import training_step

    import numpyro_epi as epi

    return [_median_seconds(training_step(epi.get_problem(name), num_draws)[1]) for num_draws in sizes]


def _median_seconds(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    while not times or (len(times) < MOST_CALLS and sum(times) < LONGEST):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _run(name: str) -> tuple[str, ...]:
    from papers import HEADER
    from papers import _run as run

    cells = dict(zip(HEADER, run(name, 0, False, None), strict=True))
    wanted = ("status", "worst violation (sd)", "multipliers", "entropy (nats)", "draws x steps", "seconds", "start")
    return name, _device(), *(cells[column] for column in wanted)


def _device() -> str:
    import jax

    return jax.devices()[0].device_kind


if __name__ == "__main__":
    main()
