"""A first-order transition, which tempering fails on: the default fit, and nested sampling beside its certificate.

    python benchmarks/phases.py --seed S [--out FILE] [--append]

Two normal phases in ten dimensions, a narrow one inside of a wide one; verdicts as in `strangers`. ``log Z`` is that of the fit's
multipliers by the certificate and by nested sampling, and that of the exact multipliers by nested sampling and in closed form.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_table_arguments, opened, provenance, write_row
from oracles.phases import phases
from oracles.strangers import draw, exact_kl
from strangers import claim, deviations, verdict_of

DIM = 10
CASES = ((0.1, 0.5), (0.1, 20 / 21), (0.3, 0.5))
"""Width of the narrow phase, and its share."""
SAMPLER = epi.NestedSampling(num_live=500, num_delete=100)
HEADER = (
    *(
        "narrow width",
        "its share",
        "share of the guide",
        "status",
        "certified",
        "KL (nats)",
        "interval (nats)",
        "verdict",
    ),
    *(
        "eta (exact: 1)",
        "log Z there, certificate",
        "nested",
        "log Z at 1, exact",
        "nested at 1",
        "CPU s of the fit",
        "of nested",
    ),
    *("seed", *PROVENANCE),
)


def main() -> None:
    """Fit each case and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with opened(arguments, HEADER) as table:
        for number, (narrow, share) in enumerate(CASES):
            write_row(table, _row(narrow, share, arguments.seed, number))
            jax.clear_caches()


def _row(narrow: float, share: float, seed: int, number: int) -> tuple[str, ...]:
    exact = phases(DIM, narrow, share)
    key, started = jax.random.fold_in(jax.random.key(seed), number), time.process_time()
    result = epi.fit(key, exact.problem, progress=False)
    fitted = time.process_time()
    sites, log_q = draw(result, jax.random.fold_in(key, 1))
    kl, error = exact_kl(exact, sites, log_q)
    off, said = deviations(exact, sites), claim(result)
    eta = np.asarray(result.eta, float)
    after = time.process_time()
    there, at_one = (SAMPLER(jax.random.fold_in(key, 2), exact.problem, at) for at in (eta, exact.eta))
    nested = time.process_time() - after
    certificate = result.certificate
    # Around the target, as the package has it.
    log_z = exact.log_normalizer + float(exact.eta @ exact.mu)
    return (
        *(f"{narrow:g}", f"{share:.3f}", f"{np.mean(exact.modes.label(sites) == 1):.3f}"),
        *(result.status_name, "yes" if said.certified else "no", f"{kl:.4f} ± {error:.4f}"),
        f"({said.lower:.3f}, {said.upper:.3f})" if np.isfinite(said.lower) else "nothing",
        verdict_of(said, kl=kl, off=off, tolerance=exact.tolerance),
        f"{eta[0]:.3f}",
        "-" if certificate is None else f"{certificate.upper_bound:.2f}",
        f"{there.log_normalizer:.2f} ± {there.standard_error:.2f}",
        *(f"{log_z:.2f}", f"{at_one.log_normalizer:.2f} ± {at_one.standard_error:.2f}"),
        *(f"{fitted - started:.0f}", f"{nested:.0f}", str(seed)),
        *provenance(),
    )


if __name__ == "__main__":
    main()
