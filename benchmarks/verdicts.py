"""Who says "done" of what: the equivalence verdict, the published test and the certificate, beside the exact KL.

    python benchmarks/verdicts.py [--keys K ...] [--out FILE] [--append]

Runs by the defaults, which mostly are right, and from the prior without chains, by the natural and by the published rule, which
lose modes now and then. A test is wrong where it says "done" although KL(q || p*) is above 0.2 nats; the certificate says so
with an interval that ends below that. "Certified" is within 0.05 nats by the result's own word; below the table, how often it was
said of answers that are, within two standard errors of the KL (0.02 nats), and of others.
"""

import argparse
import sys
from pathlib import Path
from typing import TextIO

import jax

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from _table import PROVENANCE, add_key_argument, add_table_arguments, opened, provenance, write_row
from chosen_problems import CHOSEN
from problems import EXACT, ExactProblem, exact_kl

ALL = EXACT | CHOSEN
PROBLEMS = ("oscillator_tutorial", "oscillator_paper", "four_corners")
FAR, NOISE = 0.2, 0.02
METHODS = {
    "defaults": {},
    "natural, from the prior": {"start": epi.starts.Prior(), "max_steps": 2000},
    "published, from the prior": {
        "start": epi.starts.Prior(),
        "rule": epi.multipliers.GrowingPenalty(steps_per_epoch=200),
        "objective": epi.objectives.Pathwise(penalty=epi.objectives.split_half),
        "max_steps": 2000,
    },
}
TESTS = ("equivalence", "published", "certificate", "certified")
HEADER = ("problem", "method", "key", "KL (nats)", "interval (nats)", *TESTS, "certificate's words", *PROVENANCE)


def main() -> None:
    """Fit, ask all of them, and write the table and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_key_argument(parser, 3)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    said: list[tuple[float, dict[str, bool]]] = []
    with opened(arguments, HEADER) as table:
        for name in PROBLEMS:
            exact = ALL[name]()
            said += [_row(table, exact, method, key) for method in METHODS for key in arguments.keys]
            jax.clear_caches()
    far = sum(kl > FAR for kl, _ in said)
    for test in TESTS:
        limit = epi.MAX_GAP + NOISE if test == "certified" else FAR
        done = [kl for kl, found in said if found[test]]
        wrong = sum(kl > limit for kl in done)
        print(f"{test}: says done {len(done)} times of {len(said)} ({far} far), wrong {wrong} (above {limit:g} nats)")


def _row(table: TextIO, exact: ExactProblem, method: str, key: int) -> tuple[float, dict[str, bool]]:
    result = epi.fit(jax.random.key(key), exact.problem, certify=True, progress=False, **METHODS[method])
    kl = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
    certificate, done = result.certificate, _done(result)
    words = tuple("done" if done[test] else "-" for test in TESTS)
    interval = f"({certificate.lower:.3f}, {certificate.upper:.3f})" if certificate else "-"
    verdict = certificate.verdict if certificate else "-"
    write_row(table, (exact.name, method, str(key), f"{kl:.3f}", interval, *words, verdict, *provenance()))
    return kl, done


def _done(result: epi.Result) -> dict[str, bool]:
    certificate = result.certificate
    return {
        "equivalence": result.satisfied,
        "published": epi.bittner2021_test(jax.random.key(99), result)[0],
        "certificate": certificate is not None and result.satisfied and certificate.upper < FAR,
        "certified": result.certified,
    }


if __name__ == "__main__":
    main()
