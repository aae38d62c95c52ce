"""Families whose solution is a Gaussian."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats
from numpyro.distributions import constraints

from oracles.exact import Feature, Solution, Stranger, pose


def quadratic_moments(
    mean: np.ndarray, covariance: np.ndarray, matrices: np.ndarray, slopes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariance of ``z'Az + b'z`` under a Gaussian.

    Args:
        mean: Shape [D].
        covariance: Shape [D, D].
        matrices: Symmetric ``A`` of every statistic, [M, D, D].
        slopes: ``b`` of every statistic, [M, D].
    """
    products = matrices @ covariance
    expected = np.trace(products, axis1=1, axis2=2) + np.einsum("i,mij,j->m", mean, matrices, mean) + slopes @ mean
    gradients = 2 * matrices @ mean + slopes
    return expected, 2 * np.einsum("mij,nji->mn", products, products) + gradients @ covariance @ gradients.T


def gaussian(
    eta: np.ndarray, matrices: np.ndarray, slopes: np.ndarray, prior_precision: np.ndarray, log_prior_constant: float
) -> Solution:
    """The solution for quadratic statistics ``z'Az + b'z`` and the base ``exp(constant - z' precision z / 2)``."""
    precision = prior_precision + 2 * np.einsum("m,mij->ij", eta, matrices)
    covariance = np.linalg.inv(precision)
    covariance = (covariance + covariance.T) / 2
    slope = -slopes.T @ eta
    mean = covariance @ slope
    mu, spread = quadratic_moments(mean, covariance, matrices, slopes)
    dim = len(mean)
    log_normalizer = log_prior_constant + 0.5 * (dim * math.log(2 * math.pi) - np.linalg.slogdet(precision)[1])
    return Solution(eta, mu, spread, float(log_normalizer + 0.5 * slope @ mean), np.zeros(len(eta)))


def all_moments(rng: np.random.Generator) -> Stranger:
    """All first and second moments of two to ten real numbers, by Lebesgue measure."""
    dim, condition = int(rng.integers(2, 11)), 10 ** rng.uniform(0.5, 4.0)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    spectrum = condition ** np.linspace(-0.5, 0.5, dim)
    precision, mean = (axes * spectrum) @ axes.T, rng.normal(size=dim)
    rows, cols = np.triu_indices(dim)
    full = bool(rng.random() < 0.4)
    if full:
        rows, cols = (index.ravel() for index in np.indices((dim, dim)))
    units = np.eye(dim)
    second = 0.5 * (
        units[rows][:, :, None] * units[cols][:, None, :] + units[cols][:, :, None] * units[rows][:, None, :]
    )
    # exp(-z'Pz/2 + (Pm)'z): an off-diagonal product that is counted once stands for both entries of the matrix.
    weight = precision[rows, cols] / 2 * (1 if full else np.where(rows == cols, 1, 2))
    eta = np.concatenate([-precision @ mean, weight])
    matrices = np.concatenate([np.zeros((dim, dim, dim)), second])
    slopes = np.concatenate([units, np.zeros((len(rows), dim))])
    shape = (dim, dim) if full else (len(rows),)

    def products(xp, sites):
        z = sites["z"]
        return z[..., :, None] * z[..., None, :] if full else z[..., rows] * z[..., cols]

    improper = bool(rng.random() < 0.5)

    def model() -> None:
        flat = dist.ImproperUniform(constraints.real_vector, (), event_shape=(dim,))
        numpyro.sample("z", flat if improper else dist.Normal(0.0, 2.0).expand([dim]).to_event(1))

    features = [Feature("z", lambda xp, v: v["z"], shape=(dim,)), Feature("products", products, shape=shape)]
    return pose(
        "all_moments",
        f"all moments up to the second in {dim} dimensions, condition number {condition:.2g}, Lebesgue measure",
        model,
        features,
        gaussian(eta, matrices, slopes, np.zeros((dim, dim)), 0.0),
        log_base=lambda v: np.zeros(len(v["z"])),
        base="prior" if improper else "lebesgue",
        unique=not full,
        tags=["real", "closed form", *(["redundant"] if full else [])],
    )


def chain(rng: np.random.Generator) -> Stranger:
    """A chain of three to twenty normal numbers: its roughness, its sum, and its ends' product."""
    dim, s = int(rng.integers(3, 21)), 10 ** rng.uniform(-3, 3)
    steps = np.diff(np.eye(dim), axis=0)
    ends = np.zeros((dim, dim))
    ends[0, -1] = ends[-1, 0] = 0.5
    matrices = np.stack([steps.T @ steps, ends, np.zeros((dim, dim))])
    slopes = np.stack([np.zeros(dim), np.zeros(dim), np.ones(dim)])
    eta = np.array([rng.uniform(0.2, 20.0) / s**2, rng.uniform(-0.8, 0.8) / s**2, rng.uniform(-0.5, 0.5) / s])
    constant = -0.5 * dim * math.log(2 * math.pi * s**2)
    features = [
        Feature("roughness", lambda xp, v: xp.sum((v["z"][..., 1:] - v["z"][..., :-1]) ** 2, axis=-1)),
        Feature("ends", lambda xp, v: v["z"][..., 0] * v["z"][..., -1]),
        Feature("total", lambda xp, v: xp.sum(v["z"], axis=-1)),
    ]
    return pose(
        "chain",
        f"a Gaussian chain of {dim} numbers of scale {s:.1e}",
        lambda: numpyro.sample("z", dist.Normal(0.0, s).expand([dim]).to_event(1)),
        features,
        gaussian(eta, matrices, slopes, np.eye(dim) / s**2, constant),
        log_base=lambda v: np.sum(scipy.stats.norm.logpdf(np.asarray(v["z"], float), scale=s), axis=-1),
        tags=["real", "closed form", "scaled"],
    )


def linear_outputs(rng: np.random.Generator) -> Stranger:
    """Mean and standard deviation of one to three linear outputs of two to fifteen inputs, with noise or without."""
    dim = int(rng.integers(2, 16))
    count = int(rng.integers(1, min(dim, 3) + 1))
    gains = rng.normal(size=(count, dim)) / math.sqrt(dim)
    noise = float(rng.choice([0.0, rng.uniform(0.1, 0.5)]))
    first, second = rng.normal(0, 1.0, count), rng.uniform(0.5, 8.0, count)
    matrices = np.concatenate([np.zeros((count, dim, dim)), gains[:, :, None] * gains[:, None, :]])
    slopes = np.concatenate([gains, np.zeros((count, dim))])
    eta = np.concatenate([first, second])
    constant = -0.5 * dim * math.log(2 * math.pi)
    solution = gaussian(eta, matrices, slopes, np.eye(dim), constant)
    # The columns of second moments are E[(output + noise)^2 | z], about zero.
    added = np.concatenate([np.zeros(count), np.full(count, noise**2)])
    solution = solution._replace(
        mu=solution.mu + added,
        log_normalizer=solution.log_normalizer - float(eta @ added),
        noise=np.concatenate([np.full(count, noise**2), np.zeros(count)]),
    )

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        if noise:
            e = numpyro.sample("e", dist.Normal(0.0, noise).expand([count]).to_event(1))
            numpyro.deterministic("x", gains @ z + e)
        else:
            numpyro.deterministic("x", gains @ z)

    feature = Feature(
        "x",
        lambda xp, v: v["x"],
        mean=lambda v: np.asarray(v["z"], float) @ gains.T,
        variance=lambda v: np.full((len(v["z"]), count), noise**2),
        shape=(count,),
        center=np.zeros(count),
    )
    return pose(
        "linear_outputs",
        f"mean and standard deviation of {count} linear outputs of {dim} inputs, noise {noise:.2g}",
        model,
        [feature],
        solution,
        log_base=lambda v: np.sum(scipy.stats.norm.logpdf(np.asarray(v["z"], float)), axis=-1),
        parameters=["z"],
        tags=["real", "closed form"],
    )
