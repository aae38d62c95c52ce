"""Families on a simplex, on ordered numbers, and on correlation matrices."""

import functools
import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from numpy.polynomial.legendre import leggauss

from oracles.exact import Factor, Feature, Modes, Solution, Stranger, gently, pose, solve
from oracles.sites import interval_nodes


def grid(*axes: tuple[np.ndarray, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Flat product of rules (nodes, log weights)."""
    nodes = np.meshgrid(*(axis[0] for axis in axes), indexing="ij")
    weights = functools.reduce(np.add.outer, [axis[1] for axis in axes])
    return [node.ravel() for node in nodes], weights.ravel()


_legendre = functools.lru_cache(leggauss)


def gauss(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and log weights."""
    x, w = _legendre(count)
    return low + (high - low) * (x + 1) / 2, np.log(w * (high - low) / 2)


def simplex(rng: np.random.Generator) -> Stranger:
    """Three parts of a whole: two means and the concentration, with one mode or three."""
    alpha = rng.uniform(1.0, 4.0, 3)
    several = bool(rng.random() < 0.5)
    if several:
        alpha = np.full(3, rng.uniform(1.5, 2.5))
    sharp = -rng.uniform(14.0, 20.0) if several else rng.uniform(-2.0, 6.0)
    (first, share), log_weight = grid(interval_nodes(0, 1, 301), interval_nodes(0, 1, 301))
    z = np.stack([first, (1 - first) * share, (1 - first) * (1 - share)], axis=1)
    constant = scipy.special.gammaln(alpha.sum()) - scipy.special.gammaln(alpha).sum()

    def log_base(v):
        with np.errstate(divide="ignore", invalid="ignore"):
            return constant + np.sum(scipy.special.xlogy(alpha - 1, np.asarray(v["z"], float)), axis=-1)

    with np.errstate(divide="ignore"):
        factor = Factor({"z": z}, log_weight + log_base({"z": z}) + np.log1p(-first))
    features = [
        Feature("parts", lambda xp, v: v["z"][..., :2], shape=(2,)),
        Feature("concentration", lambda xp, v: xp.sum(v["z"] ** 2, axis=-1)),
    ]
    label = lambda v: np.argmax(v["z"], axis=-1)  # noqa: E731
    labels = label({"z": z})

    def answer(tilts: np.ndarray) -> tuple[Solution, np.ndarray]:
        solution = solve(features, [factor], [*tilts, sharp], {"z": np.full((1, 3), 1 / 3)})
        return solution, np.bincount(labels, solution.masses[0], 3) if several else np.ones(1)

    solution, fractions = gently(rng.uniform(-1.0, 1.0, 2), answer)
    return pose(
        "simplex",
        f"three parts of a whole, {'three modes' if several else 'one mode'}",
        lambda: numpyro.sample("z", dist.Dirichlet(alpha)),
        features,
        solution,
        log_base=log_base,
        modes=Modes(label, fractions) if several else None,
        tags=["simplex", *(["modes"] if several else [])],
    )


def ordered(rng: np.random.Generator) -> Stranger:
    """Two or three increasing numbers: their mean, their squared span, their lowest."""
    dim = int(rng.integers(2, 4))
    s = rng.uniform([0.7, 0.3, 0.3][:dim], [2.0, 0.8, 0.8][:dim])
    rules = [_line(-9 * s[0], 9 * s[0], 81), *(_line(-7 * w, 6 * w, 61) for w in s[1:])]
    u, log_weight = grid(*rules)
    z = np.cumsum(np.stack([u[0], *(np.exp(x) for x in u[1:])], axis=1), axis=1)
    features = [
        Feature("average", lambda xp, v: xp.mean(v["z"], axis=-1)),
        Feature("span", lambda xp, v: (v["z"][..., -1] - v["z"][..., 0]) ** 2),
        Feature("lowest", lambda xp, v: v["z"][..., 0] ** 2),
    ]
    eta = np.array(
        [rng.uniform(-1, 1), rng.uniform(-0.05, 0.4) if dim == 2 else rng.uniform(0, 0.3), rng.uniform(0, 1)]
    )
    eta[1] = max(eta[1], 0.02)

    def log_base(v):
        gaps = np.diff(np.asarray(v["z"], float), axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(gaps)
        base = np.concatenate([np.asarray(v["z"], float)[..., :1], logs], axis=-1)
        return np.sum(scipy.stats.norm.logpdf(base, scale=s), axis=-1) - np.sum(logs, axis=-1)

    def model() -> None:
        base = dist.Normal(0.0, s).to_event(1)
        numpyro.sample("z", dist.TransformedDistribution(base, dist.transforms.OrderedTransform()))

    log_prior = sum(scipy.stats.norm.logpdf(x, scale=w) for x, w in zip(u, s, strict=True))
    reference = {"z": np.arange(dim, dtype=float)[None]}
    return pose(
        "ordered",
        f"{dim} increasing numbers",
        model,
        features,
        solve(features, [Factor({"z": z}, log_weight + log_prior)], eta, reference),
        log_base=log_base,
        tags=["ordered"],
    )


def _line(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    nodes = np.linspace(low, high, count)
    return nodes, np.full(count, math.log(nodes[1] - nodes[0]))


def correlation(rng: np.random.Generator) -> Stranger:
    """A correlation matrix of two or three variables, or its Cholesky factor: correlations and log determinant."""
    size, concentration = int(rng.choice([2, 3, 3])), rng.uniform(1.0, 3.0)
    cholesky = bool(rng.random() < 0.5)
    rows, cols = np.tril_indices(size, -1)

    def matrix(xp, v):
        if not cholesky:
            return v["R"]
        return xp.sum(v["L"][..., :, None, :] * v["L"][..., None, :, :], axis=-1)

    features = [
        Feature("r", lambda xp, v: matrix(xp, v)[..., rows, cols], shape=(len(rows),)),
        Feature("squares", lambda xp, v: xp.sum(matrix(xp, v)[..., rows, cols] ** 2, axis=-1)),
    ]
    eta = np.array([*rng.uniform(-2.0, 2.0, len(rows)), rng.uniform(-4.0, 4.0)])
    partial, log_weight = grid(*[interval_nodes(-1, 1, 20_001 if size == 2 else 81) for _ in rows])
    factor, log_volume = _from_partial(partial, size, cholesky=cholesky)
    log_base = _lkj(size, concentration, cholesky=cholesky)
    name, prior = ("L", dist.LKJCholesky) if cholesky else ("R", dist.LKJ)
    site = {name: factor if cholesky else factor @ factor.swapaxes(-1, -2)}
    with np.errstate(all="ignore"):
        known = Factor(site, log_weight + log_volume + log_base(site))
    return pose(
        "correlation",
        f"{'Cholesky factor of a' if cholesky else 'a'} correlation matrix of {size} variables",
        lambda: numpyro.sample(name, prior(size, concentration)),
        features,
        solve(features, [known], eta, {name: np.eye(size)[None]}),
        log_base=log_base,
        tags=["cholesky" if cholesky else "correlation matrix"],
    )


def _from_partial(partial: list[np.ndarray], size: int, *, cholesky: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cholesky factors of canonical partial correlations, and log of the volume of their free entries."""
    first = partial[0]
    factor = np.zeros((len(first), size, size))
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = 1, first, np.sqrt(1 - first**2)
    if size == 2:
        return factor, np.zeros(len(first))
    second, third = partial[1:]
    rest = np.sqrt(1 - second**2)
    factor[:, 2, 0], factor[:, 2, 1], factor[:, 2, 2] = second, rest * third, rest * np.sqrt(1 - third**2)
    # dL_21 = rest d third; and dR_21 = L_11 dL_21 at fixed first column.
    with np.errstate(divide="ignore"):
        return factor, np.log(rest) + (0.0 if cholesky else np.log(factor[:, 1, 1]))


def _lkj(size: int, concentration: float, *, cholesky: bool):
    """Log density of LKJ (Lewandowski, Kurowicka & Joe 2009) over the free entries, normalised by beta functions."""
    # Partial correlations in column k are independent, (1 - p^2)^(b - 1) with b = concentration + (size - 2 - k) / 2.
    powers = [concentration + (size - 2 - k) / 2 for k in range(size - 1)]
    log_z = sum((size - 1 - k) * ((2 * b - 1) * math.log(2) + scipy.special.betaln(b, b)) for k, b in enumerate(powers))

    def log_base(v):
        with np.errstate(divide="ignore", invalid="ignore"):
            if not cholesky:
                return (concentration - 1) * np.linalg.slogdet(np.asarray(v["R"], float))[1] - log_z
            diagonal = np.log(np.diagonal(np.asarray(v["L"], float), axis1=-2, axis2=-1)[..., 1:])
            # The matrix has the volume of its factor times the product of L_ii^(size - 1 - i).
            volume = np.arange(size - 2, -1, -1)
            return diagonal @ (2 * (concentration - 1) + volume) - log_z

    return log_base
