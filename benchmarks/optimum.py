"""The attainable entropy of noisy models, and what becomes of it where the noise in the weights is forgotten.

    python benchmarks/optimum.py [--rows NAME ...] [--draws 4000] [--out benchmarks/results/optimum.md]

The solution weighs a draw by ``exp(-eta . E[T])``, the mean over the simulator's noise. With one simulation in its place the
exponent is noisy, and the weighted draws solve another, easier problem: entropy too high, multipliers too small. Here the same
draws are simulated more and more often, with the noise ignored and with its second-order correction; what both come to is the
optimum. "prior" are draws of the prior, independent of everything else in this package but the simulator; "adaptive" are those
that a pilot start weighs, for a property that next to no prior draw has.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special
from _table import write_header, write_row

NUM_SIMULATIONS = (1, 4, 16, 32)


class Row(NamedTuple):
    """A problem, the draws that are weighed, and what is said of it."""

    problem: str
    arguments: dict
    draws: str
    expected: str


ROWS = {
    "STG": Row("circuits.stg", {}, "prior", "1.571 (without noise)"),
    "V1 SSN, 5 Hz": Row("circuits.v1_ssn", {}, "prior", "-22.23"),
    "V1 SSN, 10 Hz": Row("circuits.v1_ssn", {"fluctuation_hz": 10.0}, "prior", "-22.24"),
    "RNN N = 5": Row("circuits.rnn_stable_amplification", {"size": 5}, "prior", "11.3"),
    "RNN N = 10": Row("circuits.rnn_stable_amplification", {"size": 10}, "prior", "24.8"),
    "SC": Row("circuits.sc_task_switching", {}, "adaptive", "1.3 +- .3"),
}
HEADER = ("problem", "draws", "simulations of each", "noise", "multipliers", "entropy (nats)", "ESS", "H* of models.md")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "optimum.md")
    arguments = parser.parse_args()
    with arguments.out.open("w") as table:
        write_header(table, HEADER)
        for name in arguments.rows:
            for cells in _weighed(name, arguments.draws):
                write_row(table, cells)


def _weighed(name: str, num_draws: int):
    import jax
    import jax.numpy as jnp

    import numpyro_epi as epi
    from numpyro_epi._pilot import approach
    from numpyro_epi._weighed import _simulate, weigh_draws
    from numpyro_epi._weights import tilt

    row = ROWS[name]
    problem = epi.get_problem(row.problem, **row.arguments)
    if row.draws == "prior":
        draws = jax.vmap(problem.simulator.sample_prior)(jax.random.split(jax.random.key(0), num_draws))
        log_weight = np.zeros(num_draws)
    else:
        budget = {"batch": 2000, "max_simulations": 1_000_000}
        near = approach(problem, jax.random.key(0), num_draws=500, spreads=3.0, **budget)
        found = weigh_draws(problem, jax.random.key(1), near, num_draws=num_draws, **budget)
        draws, log_weight = jnp.asarray(found.draws, float), found.log_before
    log_prior = np.asarray(jax.jit(jax.vmap(lambda u: problem.simulator(jax.random.key(0), u).log_prior))(draws), float)
    for simulations in NUM_SIMULATIONS:
        seen = _simulate(problem, jax.random.key(2), draws, simulations, [])
        before = np.where(np.isfinite(seen.log_base), log_weight, -np.inf)
        for label, noise in (("ignored", None), ("corrected", seen.noise)):
            if simulations == 1 and noise is not None:
                continue
            tilted = tilt(before, seen.moments, problem.target, noise=noise)
            weight = np.exp(tilted.log_weight)
            # The solution's -KL from the prior is the log of its normaliser, since its mean violation is zero.
            log_normalizer = tilted.log_normalizer + scipy.special.logsumexp(before) - np.log(len(before))
            yield (
                *(name, row.draws, str(simulations), label),
                ", ".join(f"{value:.4g}" for value in tilted.eta),
                f"{log_normalizer - weight @ log_prior:.3f}",
                f"{1 / np.sum(weight**2):.0f}",
                row.expected,
            )


if __name__ == "__main__":
    main()
