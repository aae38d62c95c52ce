"""Every model of the EPI papers by the defaults, beside the attainable entropy and what the original reached.

    python benchmarks/papers.py [--rows NAME ...] [--keys K ...] [--published] [--save DIR] [--out FILE] [--append]

Each run is a process of its own, so its wall time holds all compilation and its peak memory is its own. ``fit`` is the flow
by `epi.fit`; ``dual`` and ``weighed`` are the exact answer by `epi.solve_dual`: draws of chains, or of adaptive proposals,
with the tilted density and its normaliser, for where a flow cannot follow. "Around the property only": the multipliers favour
places far from it too, where the chains are not (`DualSolution.local`), so that the entropy is a bound of H* from below.
Rows "published" go by the original's multiplier rule, its estimator of the penalty and its initial penalty, from a Gaussian, but
with the flow, optimiser and draws of this package, for 10,000 steps: what differs from a "fit" is the rule and the start.
Entropies of 25 to 100 units by commits before 74f97e0 are of chains that mix slowly, and up to a nat off (networks.md).
"Code" is the commit that made a row, as `git show` takes it: a table is made in parts.
"Achieved" are fresh simulations of the answer's draws: mean and standard deviation of each statistic, with the half widths of
their 95 % intervals. H* was computed independently of this package but for STG with noise and V1 at 10 Hz, which are by
weighing prior draws (optimum.md), with its own simulations; noise takes .23 nats from STG's 1.571, and .22 from V1's.
"""

import argparse
import multiprocessing
import re
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _table import (
    PROVENANCE,
    achieved,
    add_key_argument,
    add_table_arguments,
    opened,
    peak_gigabytes,
    provenance,
    write_row,
)

DUAL = {"dual": "chains", "weighed": "adaptive"}


class Row(NamedTuple):
    """A problem, how it is answered, and what counts as solved."""

    problem: str
    arguments: dict
    method: str
    optimum: str
    original: str
    goal: float


RNN = "circuits.rnn_stable_amplification"
ROWS = {
    "oscillator (tutorial)": Row("dynamics.oscillator_tutorial", {}, "fit", "7.735", "7.0 to 7.68", 7.60),
    "oscillator (paper)": Row("dynamics.oscillator", {}, "fit", "7.042", "not stored", 6.90),
    "STG, without noise": Row("circuits.stg", {"current_noise": 0.0}, "fit", "1.571", "-.19, 1.04 (noisy)", 1.45),
    "STG": Row("circuits.stg", {}, "fit", "1.34 (optimum.md)", "-.19, 1.04; 3 of 6 fail", 1.27),
    "V1 SSN, 5 Hz": Row("circuits.v1_ssn", {}, "fit", "-22.23", "-23.08 to -22.9", -22.40),
    "V1 SSN, 10 Hz": Row(
        "circuits.v1_ssn", {"fluctuation_hz": 10.0}, "fit", "-22.46 (optimum.md)", "-23.12 to -22.87", -22.40
    ),
    "SC, weighed draws": Row(
        "circuits.sc_task_switching",
        {},
        "weighed",
        "1.3 +- .3 (.97 to .99 by weighed draws)",
        "-.62, -2.54, -5.03; 2 of 5 NaN",
        0.8,
    ),
    "SC": Row(
        "circuits.sc_task_switching",
        {},
        "fit",
        "1.3 +- .3 (.97 to .99 by weighed draws)",
        "-.62, -2.54, -5.03; 2 of 5 NaN",
        0.8,
    ),
    "RNN N = 2": Row(RNN, {"size": 2}, "dual", "-1.8", "-8.6, -7.2", -3.0),
    "RNN N = 5": Row(RNN, {"size": 5}, "dual", "11.3 (12.36, optimum.md)", "-2.3", 8.0),
    "RNN N = 10": Row(RNN, {"size": 10}, "dual", "24.8 (25.86, optimum.md)", "-6.3", 15.0),
    "RNN N = 25": Row(RNN, {"size": 25}, "dual", "44.64 (networks.md)", "-13.7", 25.0),
    "RNN N = 50": Row(RNN, {"size": 50}, "dual", "about 50", "-44", 20.0),
    "RNN N = 100": Row(RNN, {"size": 100}, "dual", "not known", "-221", -np.inf),
    "RNN N = 250": Row(RNN, {"size": 250}, "dual", "not known", "not converged", -np.inf),
    "RNN N = 2, flow": Row(RNN, {"size": 2}, "fit", "-1.8", "-8.6, -7.2", -3.0),
    "RNN N = 10, flow": Row(RNN, {"size": 10}, "fit", "24.8", "-6.3", 15.0),
}
PUBLISHED = {"oscillator (paper)": 1e-3, "STG": 1e5, "RNN N = 10, flow": 1e3}
"""The original's initial penalty of each problem that is run by its rule; it had to be searched for."""
HEADER = (
    *("problem", "method", "key", "status", "worst violation (sd)", "achieved", "multipliers", "entropy (nats)"),
    *("interval (nats)", "H*", "original", "goal", "met", "draws x steps", "seconds", "ms a step"),
    *("simulations", "peak memory (GB)", "start", "certificate"),
    *PROVENANCE,
)


def main() -> None:
    """Run every row and seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    add_key_argument(parser, 1)
    add_table_arguments(parser)
    parser.add_argument("--published", action="store_true", help="by the published rule instead of the defaults")
    parser.add_argument("--save", type=Path, help="folder for the fits, as SLUG-KEY.nc: the plugins' figures read them")
    arguments = parser.parse_args()
    names = [name for name in arguments.rows if not arguments.published or name in PUBLISHED]
    with opened(arguments, HEADER) as table:
        for name in names:
            for seed in arguments.keys:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    write_row(table, pool.apply(_run, (name, seed, arguments.published, arguments.save)))


def _run(name: str, seed: int, published: bool, save: Path | None) -> tuple[str, ...]:
    import jax

    import numpyro_epi as epi

    row = ROWS[name]
    problem = epi.get_problem(row.problem, **row.arguments)
    began = time.perf_counter()
    if row.method != "fit":
        found = epi.solve_dual(jax.random.key(seed), problem, method=DUAL[row.method])
        gap, effort, per_step, words = "-", "-", "-", "-"
        simulations = f"{found.num_simulations:.1e}"
        within = found.settings.get("within")
        start = "Around the property only" if found.local else "-"
        start += f": chains were held within {within:g} standard deviations." if within else "." if found.local else ""
        verdict = _simulated_again(problem, found)
    else:
        options = {}
        if published:
            options = {
                "start": epi.starts.Gaussian(),
                "rule": epi.multipliers.GrowingPenalty(initial_penalty=PUBLISHED[name]),
                "objective": epi.objectives.Pathwise(penalty=epi.objectives.split_half),
                "max_steps": 10_000,
            }
        found = epi.fit(jax.random.key(seed), problem, progress=False, **options)
        if save:
            save.mkdir(parents=True, exist_ok=True)
            found.save(save / f"{'_'.join(re.findall('[a-z0-9]+', name.lower()))}-{seed}.nc", overwrite=True)
        certificate = found.certificate
        gap = f"({certificate.lower:.3f}, {certificate.upper:.3f})" if certificate else "-"
        words = certificate.verdict if certificate else "-"
        simulations = f"{found.num_simulations:.1e}" if hasattr(found, "num_simulations") else "-"
        verdict, steps = found.verdict, found.settings["steps"]
        effort = f"{found.settings['num_draws']} x {steps}"
        per_step = f"{1000 * (time.perf_counter() - began) / steps:.1f}" if steps else "-"
        start = found.settings["start_message"]
    seconds = time.perf_counter() - began
    violation = np.max(np.abs(verdict.violation(problem.target)))
    met = bool(found.satisfied) and verdict.entropy >= row.goal
    return (
        name,
        "published" if published else row.method,
        str(seed),
        found.status_name,
        f"{violation:.3f}",
        achieved(problem, verdict),
        ", ".join(f"{value:.4g}" for value in found.eta),
        f"{verdict.entropy:.3f}",
        gap,
        row.optimum,
        row.original,
        f"{row.goal:g}" if np.isfinite(row.goal) else "satisfied",
        "yes" if met else "no",
        effort,
        f"{seconds:.0f}",
        per_step,
        simulations,
        f"{peak_gigabytes():.1f}",
        start,
        words,
        *provenance(),
    )


def _simulated_again(problem, solution):
    """The solution's verdict with the moments of its draws measured again, with fresh noise."""
    import jax
    import jax.numpy as jnp

    draws = jnp.asarray(solution.unconstrained).reshape(-1, problem.dim)
    keys = jax.random.split(jax.random.key(12345), len(draws))
    measure = jax.jit(lambda each: jax.lax.map(lambda pair: problem.evaluate(*pair).moments, each, batch_size=500))
    moments = np.asarray(measure((keys, draws)), float)
    weight = np.exp(np.ravel(solution.log_weight))
    mean = weight @ moments
    return solution.verdict._replace(mean=mean, scale=np.sqrt(weight @ np.square(moments - mean)))


if __name__ == "__main__":
    main()
