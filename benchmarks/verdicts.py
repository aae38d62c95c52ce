"""Who says "done" too early: the equivalence verdict, the published test and the certificate, beside the exact KL.

    python benchmarks/verdicts.py [--seeds 5] [--steps 2000] [--out benchmarks/results/verdicts.md]

Runs that lose modes now and then: from the prior, without chains, by the natural and by the published rule. A test is wrong
where it says "done" although KL(q || p*) is above 0.2 nats; the certificate says so with "Optimal within" less than that.
"""

import argparse
import sys
from pathlib import Path

import jax

import numpyro_epi as epi

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chosen_problems import CHOSEN
from problems import EXACT, exact_kl

ALL = EXACT | CHOSEN
PROBLEMS = ("oscillator_tutorial", "oscillator_paper", "four_corners")
FAR = 0.2
METHODS = {
    "natural, from the prior": {"start": epi.starts.Prior()},
    "published": {
        "start": epi.starts.Prior(),
        "rule": epi.multipliers.GrowingPenalty(steps_per_epoch=200),
        "objective": epi.objectives.Pathwise(penalty=epi.objectives.split_half),
    },
}
TESTS = ("equivalence", "published", "certificate")


def main() -> None:
    """Fit, ask all three, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "verdicts.md")
    arguments = parser.parse_args()
    lines = [
        _line("problem", "method", "seed", "KL (nats)", "gap (nats)", *TESTS, "certificate's words"),
        _line(*["---"] * 9),
    ]
    print("\n".join(lines), flush=True)
    said: list[tuple[float, dict[str, bool]]] = []
    for name in PROBLEMS:
        exact = ALL[name]()
        for method, options in METHODS.items():
            for seed in range(arguments.seeds):
                key = jax.random.key(seed)
                result = epi.fit(key, exact.problem, max_steps=arguments.steps, certify=True, progress=False, **options)
                kl = exact_kl(exact, base_entropy=result.verdict.base_entropy, moments=result.verdict.mean)
                done = _done(result)
                said.append((kl, done))
                words = (("done" if done[test] else "-") for test in TESTS)
                certificate = result.certificate
                gap = f"{certificate.gap:.3f}" if certificate else "-"
                verdict = certificate.verdict if certificate else "-"
                lines.append(_line(name, method, str(seed), f"{kl:.3f}", gap, *words, verdict))
                print(lines[-1], flush=True)
        jax.clear_caches()
    lines += ["", _line("test", "says done", "of these wrong", "runs", "of these far"), _line(*["---"] * 5)]
    far = sum(kl > FAR for kl, _ in said)
    for test in TESTS:
        done = [kl for kl, found in said if found[test]]
        lines.append(_line(test, str(len(done)), str(sum(kl > FAR for kl in done)), str(len(said)), str(far)))
    print("\n".join(lines[-5:]))
    arguments.out.write_text("\n".join(lines) + "\n")


def _done(result: epi.Result) -> dict[str, bool]:
    certificate = result.certificate
    optimal = certificate is not None and certificate.verdict.startswith("Optimal within")
    return {
        "equivalence": result.satisfied,
        "published": epi.bittner2021_test(jax.random.key(99), result)[0],
        "certificate": optimal and result.satisfied and certificate.gap + 2 * certificate.standard_error < FAR,
    }


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
