"""How near the answers come: every exact problem with one set of defaults, and the published rule beside it.

    python benchmarks/quality.py [--keys K ...] [--problems NAME ...] [--published] [--out FILE] [--append]

The interval is the certificate's for the KL beside it; "holds" says whether it does, within two standard errors. "Weighted" is
the violation that the exported log weights leave, and their effective share of the draws. "NUTS" samples the tilted model:
the largest error of a statistic's mean in standard errors, and the largest R-hat of a parameter.

Each row is written as soon as it is known. The first key of a problem pays for compiling its programs. KL(q || p*) is exact up
to the Monte Carlo error of the verdict's draws (about 0.01 nats). The published rows have the original's settings: flow, start,
learning rate, draws and epochs (Bittner et al. 2021; its tutorial for the first penalty).
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

import numpyro_epi as epi
from numpyro_epi._datatree import as_datatree

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_key_argument, add_table_arguments, opened, provenance, write_row
from chosen_problems import CHOSEN
from problems import EXACT, ExactProblem, exact_kl, multiplier_error

ALL = EXACT | CHOSEN
ALLOWED_ERROR, NOISE = 0.1, 0.01

COLUMNS = ("problem", "method", "key", "status", "certified", "KL (nats)", "interval (nats)", "holds", "violation (sd)")
WEIGHTED = ("weighted violation (sd)", "weighted ESS share", "NUTS error (se)", "NUTS R-hat")
HEADER = (
    *(*COLUMNS, "eta error / allowed", "mode share", *WEIGHTED, "steps", "CPU s", "certificate"),
    *PROVENANCE,
)
PUBLISHED = {
    "flow": epi.flows.Coupling(num_stages=3, width=15, mixing=epi.flows.fixed_permutation, normalise=True),
    "rule": epi.multipliers.GrowingPenalty(initial_penalty=1e-3),
    "objective": epi.objectives.Pathwise(penalty=epi.objectives.split_half),
    "start": epi.starts.Gaussian(),
    "optimizer": optax.adam(1e-3),
    "num_draws": 500,
    "max_steps": 10_000,
}
"""Ten epochs of 1,000 steps."""


def main() -> None:
    """Fit the problems asked for and write the table."""
    arguments = _arguments()
    with opened(arguments, HEADER) as table:
        runs = [(name, "defaults", {}) for name in arguments.problems]
        if arguments.published:
            runs.append(("oscillator_tutorial", "published", PUBLISHED))
        for name, method, options in runs:
            exact = ALL[name]()
            for key in arguments.keys:
                write_row(table, (*_row(exact, method, key, options), *provenance()))
            # The system allows a process so many mapped pieces of code; each problem's programs are used once.
            jax.clear_caches()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    pathwise = [name for name, build in ALL.items() if build().pathwise and build().feasible]
    parser.add_argument("--problems", nargs="*", choices=list(ALL), default=pathwise)
    add_key_argument(parser, 1)
    parser.add_argument("--published", action="store_true", help="add the published rule on the tutorial oscillator")
    add_table_arguments(parser)
    return parser.parse_args()


def _row(exact: ExactProblem, method: str, key: int, options: dict) -> tuple[str, ...]:
    started = time.process_time()
    result = epi.fit(jax.random.key(key), exact.problem, progress=False, certify=True, **options)
    seconds, verdict, certificate = time.process_time() - started, result.verdict, result.certificate
    kl = exact_kl(exact, base_entropy=verdict.base_entropy, moments=verdict.mean)
    violation = np.max(np.abs(verdict.violation(exact.problem.target)))
    error = multiplier_error(exact, result.eta) / ALLOWED_ERROR
    interval, holds = "nothing", "-"
    if certificate is not None and np.isfinite(certificate.lower):
        interval, slack = f"({certificate.lower:.3f}, {certificate.upper:.3f})", 2 * NOISE
        holds = "yes" if certificate.lower - slack <= kl <= certificate.upper + slack else "no"
    certified = "yes" if result.certified else "no"
    numbers = (certified, f"{kl:.4f}", interval, holds, f"{violation:.3f}", f"{error:.2f}", _share(exact, result))
    exact_draws = (*_weighted(result), *_chains(result)) if certificate else ("-",) * 4
    return (
        exact.name,
        method,
        str(key),
        result.status_name,
        *numbers,
        *exact_draws,
        str(result.settings["steps"]),
        f"{seconds:.0f}",
        certificate.verdict if certificate else "-",
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
