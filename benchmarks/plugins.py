"""The plugins' problems that no paper of EPI has, by the defaults, beside independent answers.

    python benchmarks/plugins.py [--rows NAME ...] [--seeds 2] [--save DIR] [--out benchmarks/results/plugins.md]

Each run is a process of its own, so its wall time holds all compilation and its peak memory is its own. "Achieved" are fresh
simulations of the answer's draws: mean and standard deviation of each statistic, with the half widths of their 95 % intervals.
"-KL" is the entropy relative to the prior, and the reference is the greatest that there is, by weighing draws (`_weighed`), which
shares no code with the package but the simulator. What is attained above it is noise.
"""

import argparse
import math
import multiprocessing
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from _table import achieved, peak_gigabytes, write_header, write_row


class Row(NamedTuple):
    """How many draws are weighed, by how many simulations each; what is known of the answer in closed form."""

    num_draws: int
    num_simulations: int = 1
    closed_form: str = ""


ROWS = {
    "biology.predator_prey": Row(20_000, closed_form="; -5.271 in closed form for small cycles"),
    "biology.sir": Row(20_000, 16),
    "biology.repressilator": Row(20_000),
    "circuits.mean_field_ei": Row(100_000),
    "circuits.low_rank_rnn": Row(100_000),
    "dynamics.oscillator_simulated": Row(200_000, closed_form="; -4.941 by quadrature of the eigenvalues"),
}
HEADER = (
    *("problem", "seed", "status", "worst violation (sd)", "achieved", "multipliers", "entropy (nats)", "-KL (nats)"),
    *("gap (nats)", "reference -KL (nats)", "its source", "draws x steps", "seconds", "peak memory (GB)", "start"),
)


def main() -> None:
    """Run every row and seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--save", type=Path, help="folder for the fits, as NAME-SEED.nc")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plugins.md")
    arguments = parser.parse_args()
    with arguments.out.open("w") as table:
        write_header(table, HEADER)
        for name in arguments.rows:
            reference = _alone(_reference, name)
            for seed in range(arguments.seeds):
                write_row(table, _alone(_run, name, seed, reference, arguments.save))


def _alone(call, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def _run(name: str, seed: int, reference: tuple[str, str], save: Path | None) -> tuple[str, ...]:
    import jax

    import numpyro_epi as epi

    problem = epi.get_problem(name)
    began = time.perf_counter()
    result = epi.fit(jax.random.key(seed), problem, progress=False)
    seconds = time.perf_counter() - began
    if save:
        save.mkdir(parents=True, exist_ok=True)
        result.save(save / f"{name}-{seed}.nc", overwrite=True)
    verdict = result.verdict
    return (
        name,
        str(seed),
        result.status.name,
        f"{np.max(np.abs(verdict.violation(problem.target))):.3f}",
        achieved(problem, verdict),
        ", ".join(f"{value:.4g}" for value in result.eta),
        f"{verdict.entropy:.3f}",
        f"{verdict.base_entropy:.3f}",
        f"{result.certificate.gap:.3f} +- {1.96 * result.certificate.standard_error:.1g}"
        if result.certificate
        else "-",
        *reference,
        f"{result.settings['num_draws']} x {result.settings['steps']}",
        f"{seconds:.0f}",
        f"{peak_gigabytes():.1f}",
        result.settings["start_message"],
    )


def _reference(name: str) -> tuple[str, str]:
    row = ROWS[name]
    bound, error, ess = _weighed(name, row.num_draws, row.num_simulations)
    return f"{bound:.3f} +- {1.96 * error:.1g}", f"{row.num_draws} weighed draws, worth {ess:.0f}{row.closed_form}"


def _weighed(name: str, num_draws: int, num_simulations: int) -> tuple[float, float, float]:
    """Least of ``log E exp(-eta . (E[T | z] - target))`` over ``eta``, its standard error, and the effective draws.

    Draws are weighed twice: those of the prior; then those of the normal of their weighted mean and twice their covariance, with
    every other one from the prior still (defensive mixture: Owen and Zhou 2000, Journal of the American Statistical Association
    95:135, section 3).
    """
    import jax

    import numpyro_epi as epi

    problem = epi.get_problem(name)

    @jax.jit
    def moments(key, draws):
        def one(pair):
            key, u = pair
            found = jax.vmap(problem.evaluate, (0, None))(jax.random.split(key, num_simulations), u)
            return jax.numpy.mean(found.moments, axis=0), found.log_base[0]

        return jax.lax.map(one, (jax.random.split(key, len(draws)), draws), batch_size=500)

    def solve(key, draws, log_proposal):
        found, log_base = (np.asarray(part, float) for part in moments(jax.random.key(key), jax.numpy.asarray(draws)))
        usable = np.all(np.isfinite(found), axis=1)
        with np.errstate(divide="ignore"):
            log_ratio = log_base - log_proposal(log_base)
        return _dual(found[usable] - problem.target, log_ratio[usable], len(draws)), usable

    keys = jax.random.split(jax.random.key(2024), num_draws)
    draws = np.asarray(jax.jit(jax.vmap(problem.simulator.sample_prior))(keys), float)
    (_, weight), usable = solve(1, draws, lambda log_base: log_base)
    center = np.average(draws[usable], axis=0, weights=weight)
    normal = scipy.stats.multivariate_normal(center, 2 * np.cov(draws[usable].T, aweights=weight))
    half = num_draws // 2
    draws = np.concatenate([draws[:half], normal.rvs(num_draws - half, random_state=0)])
    (bound, weight), _ = solve(2, draws, lambda log_base: np.logaddexp(log_base, normal.logpdf(draws)) - math.log(2))
    ess = 1.0 / np.sum(weight**2)
    return bound, np.sqrt(1.0 / ess - 1.0 / num_draws), ess


def _dual(excess: np.ndarray, log_ratio: np.ndarray, num_draws: int) -> tuple[float, np.ndarray]:
    """Least of the log mean of ``exp(log_ratio - eta . excess)`` over ``eta``, and the weights there; failed draws count zero."""
    excess = excess / np.sqrt(np.mean(excess**2, axis=0))

    def weigh(eta):
        exponent = log_ratio - excess @ eta
        total = scipy.special.logsumexp(exponent)
        return total - math.log(num_draws), np.exp(exponent - total)

    def curvature(eta):
        weight = weigh(eta)[1]
        centred = excess - weight @ excess
        return centred.T @ (weight[:, None] * centred)

    found = scipy.optimize.minimize(
        lambda eta: weigh(eta)[0],
        np.zeros(excess.shape[1]),
        jac=lambda eta: -weigh(eta)[1] @ excess,
        hess=curvature,
        method="trust-exact",
        options={"maxiter": 5000, "gtol": 1e-6},
    )
    return weigh(found.x)


if __name__ == "__main__":
    main()
