"""A property of the plane whose simulations fail beyond a border, and its answer by quadrature, for each policy."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.optimize
import scipy.stats

import numpyro_epi as epi

MEAN, STD, INSTEAD = 2.0, 0.5, 0.0
"""Wanted of the statistic, and what stands for it where it fails."""

GRID = np.linspace(-7.0, 7.0, 1401)


def _plane(edge: float, *, correlated: bool) -> None:
    """Fails beyond a border that the statistic's own gradient crosses, or that only the other parameter decides."""
    z = numpyro.sample("z", dist.Normal().expand([2]).to_event(1))
    fails = (z[0] + z[1] / 2 < edge) if correlated else (z[1] < edge)
    numpyro.deterministic("bent", jnp.where(fails, jnp.nan, z[0] + 0.3 * z[1] ** 2))


def border(failing: float, *, correlated: bool) -> float:
    """Where this share of the prior fails."""
    return float((np.sqrt(1.25) if correlated else 1.0) * scipy.stats.norm.ppf(failing))


def failing_problem(failing: float, policy: str, *, correlated: bool = True) -> epi.Problem:
    def bent(sites):
        return sites["bent"]

    target = epi.Target(bent, mean=MEAN, std=STD, if_nonfinite=INSTEAD if policy == "replace" else None)
    return epi.Problem(
        partial(_plane, border(failing, correlated=correlated), correlated=correlated),
        epi.EmergentProperty(target),
        nonfinite="condition" if policy == "condition" else "refuse",
        name=f"plane of which {failing:g} fails",
    )


class Exact(NamedTuple):
    eta: np.ndarray
    entropy: float
    log_normalizer: float
    mean: np.ndarray


def exact_answer(failing: float, policy: str, *, correlated: bool = True) -> Exact:
    """By quadrature on a grid, and SciPy's minimum of the dual."""
    first, second = np.meshgrid(GRID, GRID, indexing="ij")
    edge = border(failing, correlated=correlated)
    fails = (first + second / 2 < edge) if correlated else (second < edge)
    log_base = scipy.stats.norm.logpdf(first) + scipy.stats.norm.logpdf(second)
    bent = np.where(fails, INSTEAD, first + 0.3 * second**2)
    if policy == "condition":
        log_base = np.where(fails, -np.inf, log_base)
    moments = np.stack([bent - MEAN, (bent - MEAN) ** 2 - STD**2])
    area = (GRID[1] - GRID[0]) ** 2

    def tilted(eta: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = log_base - np.tensordot(eta, moments, 1)
        top = exponent.max()
        total = np.exp(exponent - top).sum() * area
        return top + np.log(total), np.exp(exponent - top) * area / total

    def dual(eta: np.ndarray) -> tuple[float, np.ndarray]:
        value, weight = tilted(eta)
        return value, -np.tensordot(moments, weight, 2)

    found = scipy.optimize.minimize(dual, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10})
    value, weight = tilted(found.x)
    used = weight > 0
    entropy = -np.sum(weight[used] * np.log(weight[used] / area))
    return Exact(found.x, float(entropy), value, np.array([np.sum(weight * first), np.sum(weight * second)]))
