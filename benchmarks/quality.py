"""How near the answers come: every exact problem with one set of defaults, and the published rule beside it.

    python benchmarks/quality.py [--seeds 5] [--problems NAME ...] [--published] [--out benchmarks/results/quality.md]

The gap is the certificate's estimate of the KL beside it; "holds" says whether it is within 0.05 nats or 20 % of it. "Weighted"
is the violation that the exported log weights leave, and their effective share of the draws. "NUTS" samples the tilted model:
the largest error of a statistic's mean in standard errors, and the largest R-hat of a parameter.

Each row is written as soon as it is known. The first seed of a problem pays for compiling its programs. KL(q || p*)
is exact up to the Monte Carlo error of 40,000 draws (about 0.01 nats).
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

import numpyro_epi as epi
from numpyro_epi._datatree import as_datatree

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import write_row
from chosen_problems import CHOSEN
from problems import EXACT, ExactProblem, exact_kl, multiplier_error

ALL = EXACT | CHOSEN
ALLOWED_ERROR = 0.1

COLUMNS = ("problem", "method", "seed", "status", "KL (nats)", "gap (nats)", "holds", "violation (sd)")
WEIGHTED = ("weighted violation (sd)", "weighted ESS share", "NUTS error (se)", "NUTS R-hat")
HEADER = (*COLUMNS, "eta error / allowed", "mode share", *WEIGHTED, "steps", "seconds", "certificate")
PUBLISHED = {
    "rule": epi.multipliers.GrowingPenalty(),
    "objective": epi.objectives.Pathwise(penalty=epi.objectives.split_half),
    "start": epi.starts.Prior(),
    "max_steps": 10_000,
}
"""The method of Bittner et al. 2021 with its published defaults (K = 10 epochs of 1,000 steps)."""


def main() -> None:
    """Fit the problems asked for and write the table."""
    arguments = _arguments()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w") as table:
        write_row(table, HEADER)
        write_row(table, ("---",) * len(HEADER))
        runs = [(name, "defaults", {}) for name in arguments.problems]
        if arguments.published:
            runs.append(("oscillator_tutorial", "published", PUBLISHED))
        for name, method, options in runs:
            exact = ALL[name]()
            for seed in range(arguments.seeds):
                write_row(table, _row(exact, method, seed, options))
            # The system allows a process so many mapped pieces of code; each problem's programs are used once.
            jax.clear_caches()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pathwise = [name for name, build in ALL.items() if build().pathwise and build().feasible]
    parser.add_argument("--problems", nargs="*", choices=list(ALL), default=pathwise)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--published", action="store_true", help="add the published rule on the tutorial oscillator")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quality.md")
    return parser.parse_args()


def _row(exact: ExactProblem, method: str, seed: int, options: dict) -> tuple[str, ...]:
    result = epi.fit(jax.random.key(seed), exact.problem, progress=False, certify=True, **options)
    verdict = result.verdict
    kl = exact_kl(exact, base_entropy=verdict.base_entropy, moments=verdict.mean)
    violation = np.max(np.abs(verdict.violation(exact.problem.target)))
    error = multiplier_error(exact, result.eta) / ALLOWED_ERROR
    gap = result.certificate.gap if result.certificate else np.nan
    holds = "yes" if abs(gap - kl) <= max(0.05, 0.2 * kl) else "no"
    numbers = (f"{kl:.4f}", f"{gap:.4f}", holds, f"{violation:.3f}", f"{error:.2f}", _share(exact, result))
    exact_draws = (*_weighted(result), *_chains(result)) if result.certificate else ("-",) * 4
    return (
        exact.name,
        method,
        str(seed),
        result.status.name,
        *numbers,
        *exact_draws,
        str(result.settings["steps"]),
        f"{result.seconds:.1f}",
        result.certificate.verdict if result.certificate else "-",
    )


def _share(exact: ExactProblem, result: epi.Result) -> str:
    """Mass of the mode ``a12 > 0`` of an oscillator; one half is exact."""
    if not exact.name.startswith("oscillator"):
        return "-"
    return f"{float(np.mean(result.sample(jax.random.key(1), (20_000,))['A'][:, 0, 1] > 0)):.2f}"


def _weighted(result: epi.Result) -> tuple[str, str]:
    """What the exported weights leave of the violation, and their effective share of the draws."""
    tree = as_datatree(result.to_arviz())
    stats = tree["sample_stats"].to_dataset()
    if "log_weight" not in stats:
        return "-", "-"
    weights = np.exp(stats["log_weight"].values)
    violation = np.tensordot(weights, _moments(result, tree), 2) - result.problem.target
    share = stats["log_weight"].attrs["ess"] / weights.size
    return f"{np.max(np.abs(violation) / result.verdict.scale):.1e}", f"{share:.3f}"


def _chains(result: epi.Result) -> tuple[str, str]:
    """How far NUTS on the tilted model is from the exact moments, and whether its chains agree."""
    tree = as_datatree(result.sample_tilted(jax.random.key(1)))
    moments = _moments(result, tree)
    standard_error = moments.std(axis=(0, 1)) / np.sqrt(effective_sample_size(moments))
    error = np.abs(moments.mean(axis=(0, 1)) - result.problem.target) / standard_error
    values = tree["posterior"].to_dataset().data_vars.values()
    return f"{np.max(error):.1f}", f"{max(float(np.max(split_gelman_rubin(value.values))) for value in values):.4f}"


def _moments(result: epi.Result, tree: xr.DataTree) -> np.ndarray:
    """T of every draw, [chains, draws, M], in double precision."""
    groups = (tree[name].to_dataset() for name in ("posterior", "posterior_predictive"))
    sites = {name: jnp.asarray(value.values) for group in groups for name, value in group.items()}
    prop = result.problem.property
    return np.asarray(jax.jit(jax.vmap(jax.vmap(lambda draw: prop.moments(prop.values(draw)))))(sites), float)


if __name__ == "__main__":
    main()
