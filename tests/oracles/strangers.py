"""Problems that nobody tuned the defaults on: random, exact, and such as a person could pose.

    strangers(seed, count)

draws families of problems by turns, each with random numbers, so that every family occurs about equally often.
"""

from collections.abc import Callable

import jax
import numpy as np

import numpyro_epi as epi
from oracles import gaussians, hard, noisy, products, supports, textbook
from oracles.exact import Arrays, Stranger

FAMILIES: tuple[Callable[[np.random.Generator], Stranger], ...] = (
    products.one_number,
    products.mixed_sites,
    products.gated,
    products.wells,
    products.many_numbers,
    textbook.truncated_normal,
    textbook.gamma_logs,
    textbook.beta_logs,
    textbook.dirichlet_logs,
    textbook.angles,
    textbook.directions,
    textbook.rates,
    gaussians.all_moments,
    gaussians.chain,
    gaussians.linear_outputs,
    supports.simplex,
    supports.ordered,
    supports.correlation,
    noisy.noisy_number,
    noisy.counts,
    noisy.trials,
    noisy.threshold,
    hard.compass,
    hard.needles,
    hard.bump,
    hard.rare_event,
    hard.tube,
    hard.shell,
)
"""Each makes one problem from a random generator."""

LEFT_OUT = 1e-3
"""Largest fraction of draws with an infinite density ratio, such as those rounded onto a bound, that `exact_kl` leaves out."""


def strangers(seed: int, count: int = 30) -> list[Stranger]:
    """Make problems; the same seed makes the same, and fewer are the first of more.

    Args:
        seed: Any non-negative integer.
        count: How many.
    """
    order = np.random.default_rng([seed, 0])
    turns = -(-count // len(FAMILIES))
    chosen = [index for _ in range(turns) for index in order.permutation(len(FAMILIES))][:count]
    return [_numbered(i, FAMILIES[index](np.random.default_rng([seed, 1, i]))) for i, index in enumerate(chosen)]


def _numbered(i: int, stranger: Stranger) -> Stranger:
    return stranger._replace(name=f"{i:02d}_{stranger.name}")


def exact_kl(stranger: Stranger, sites: Arrays, log_q: np.ndarray) -> tuple[float, float]:
    """``KL(q || p*)`` and its standard error, nats, from draws of ``q``.

    Args:
        stranger: The problem.
        sites: Draws on the constrained scale, [N, *shape] each.
        log_q: Their log density, [N].

    Returns:
        Infinity where more than `LEFT_OUT` of the draws have no finite density ratio.
    """
    with np.errstate(all="ignore"):
        ratio = np.asarray(log_q, float) - stranger.log_density(sites)
    finite = np.isfinite(ratio)
    if np.mean(~finite) > LEFT_OUT:
        return float("inf"), float("nan")
    return float(ratio[finite].mean()), float(ratio[finite].std() / np.sqrt(finite.sum()))


def draw(result: epi.Result, key: jax.Array, count: int = 40_000) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws of a result and their log density, in double precision on the host."""
    sites = result.sample(key, (count,))
    log_q = np.asarray(result.log_prob(sites), float)
    return {name: np.asarray(value, float) for name, value in sites.items()}, log_q
