"""Families whose solution is a small or thin part of the base: needles, holes, tubes and shells; and modes on a ring."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.optimize
import scipy.special
import scipy.stats

from oracles.exact import Factor, Feature, Modes, Solution, Stranger, gently, pose, solve
from oracles.sites import uniform_nodes
from oracles.supports import gauss, grid


def _box(dim: int, bound: float):
    """Model and log density of a uniform box."""

    def model() -> None:
        numpyro.sample("z", dist.Uniform(-bound, bound).expand([dim]).to_event(1))

    return model, lambda v: np.full(len(v["z"]), -dim * math.log(2 * bound))


def _distances(centers: np.ndarray, widths: np.ndarray):
    """Squared distances from every center in its own width, [..., K]."""
    return lambda xp, v: xp.sum((v["z"][..., None, :] - centers) ** 2, axis=-1) / widths**2


def _centers(rng: np.random.Generator, count: int, dim: int, widths: np.ndarray, bound: float) -> np.ndarray | None:
    """Places in the box that are far from each other and from its walls, if they are found."""
    for _ in range(100):
        centers = rng.uniform(-1, 1, (count, dim)) * (bound - 7 * widths[:, None])
        apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1) + 1e9 * np.eye(count)
        if np.all(apart > 6.5 * (widths[:, None] + widths[None])):
            return centers
    return None


def needles(rng: np.random.Generator) -> Stranger:
    """One to eight small Gaussian regions of unequal masses in a box of one to four dimensions."""
    dim, bound = int(rng.integers(1, 5)), 10 ** rng.uniform(-1, 2)
    count, centers, tries = int(rng.integers(1, 9)), None, 0
    while centers is None:
        fraction = 10 ** rng.uniform(-4, -0.8 - 0.5 * dim)
        weights = 0.05 + (1 - 0.05 * count) * rng.dirichlet(np.full(count, 2.0))
        widths = weights ** (1 / dim) * 2 * bound * fraction ** (1 / dim) / math.sqrt(2 * math.pi)
        centers = _centers(rng, count, dim, widths, bound) if np.all(8 * widths < bound) else None
        tries += 1
        count = max(1, count - 1) if centers is None and tries % 10 == 0 else count
    places, distances = centers, _distances(centers, widths)
    feature = Feature("distance", lambda xp, v: xp.min(distances(xp, v), axis=-1))
    model, log_base = _box(dim, bound)
    # Each region is a whole Gaussian: the squared distance has the chi-squared distribution.
    log_normalizer = math.log(fraction) + math.log(weights.sum())
    solution = Solution(np.array([0.5]), np.array([float(dim)]), np.array([[2.0 * dim]]), log_normalizer, np.zeros(1))
    return pose(
        "needles",
        f"{len(places)} regions in {dim} dimensions, {fraction:.1e} of the prior's volume",
        model,
        [feature],
        solution,
        log_base=log_base,
        modes=Modes(lambda v: np.argmin(distances(np, v), axis=-1), weights) if len(places) > 1 else None,
        tags=["interval", "hard", "needle", "closed form", *(["modes"] if len(places) > 1 else [])],
    )


REACH = 7.0
"""Widths of a ball beyond which its score is counted as zero: it is 2e-11 there."""


def bump(rng: np.random.Generator) -> Stranger:
    """A score that is one in a small ball of a box and zero elsewhere, with a mean between: a hole in a plateau."""
    dim, bound = int(rng.integers(2, 4)), 10 ** rng.uniform(-1, 2)
    fraction, wanted = 10 ** rng.uniform(-3, -1), rng.uniform(0.3, 0.8)
    # A wider one would have a score in the corners of the box too, where the quadrature has none.
    fraction = min(fraction, (math.sqrt(2 * math.pi) / (2 * REACH)) ** dim)
    width = 2 * bound * fraction ** (1 / dim) / math.sqrt(2 * math.pi)
    center = rng.uniform(-1, 1, dim) * (bound - REACH * width)
    reach = REACH * width
    r, log_weight = gauss(0.0, reach, 200)
    area = math.log(2 * math.pi ** (dim / 2)) - scipy.special.gammaln(dim / 2)
    log_weight = log_weight + area + (dim - 1) * np.log(r) - dim * math.log(2 * bound)
    z = center + np.where(np.arange(dim) == 0, r[:, None], 0.0)
    outside = center + np.where(np.arange(dim) == 0, 50 * bound, 0.0)
    nodes = Factor(
        {"z": np.vstack([z, outside])}, np.append(log_weight, np.log1p(-np.exp(scipy.special.logsumexp(log_weight))))
    )
    distance = _distances(center[None], np.array([width]))
    feature = Feature("score", lambda xp, v: xp.exp(-distance(xp, v)[..., 0] / 2))
    reference = {"z": outside[None]}
    excess = lambda eta: solve([feature], [nodes], [eta], reference).mu[0] - wanted  # noqa: E731
    solution = solve([feature], [nodes], [scipy.optimize.brentq(excess, -60.0, 0.0, xtol=1e-12)], reference)
    model, log_base = _box(dim, bound)
    inside = lambda v: (distance(np, v)[..., 0] < 9).astype(int)  # noqa: E731
    fractions = np.bincount(inside(nodes.sites), solution.masses[0], 2)
    return pose(
        "bump",
        f"mean score {wanted:.2f} where {fraction:.1e} of a box in {dim} dimensions has a score",
        model,
        [feature],
        solution,
        log_base=log_base,
        modes=Modes(inside, fractions),
        tags=["interval", "hard", "hole", "modes"],
    )


def rare_event(rng: np.random.Generator) -> Stranger:
    """An event that holds in a small ball of a box, with a wanted probability."""
    dim, bound, declared = int(rng.integers(2, 4)), 10 ** rng.uniform(-1, 2), bool(rng.random() < 0.7)
    fraction, wanted = 10 ** rng.uniform(-4, -1.3), rng.uniform(0.3, 0.95)
    radius = 2 * bound * (fraction * math.gamma(dim / 2 + 1) / math.pi ** (dim / 2)) ** (1 / dim)
    center = rng.uniform(-1, 1, dim) * (bound - radius)
    feature = Feature(
        "event",
        lambda xp, v: 1.0 * (xp.sum((v["z"] - center) ** 2, axis=-1) < radius**2),
        differentiable=not declared,
    )
    eta = -math.log(wanted / (1 - wanted) * (1 - fraction) / fraction)
    log_normalizer = math.log((1 - fraction) / (1 - wanted))
    spread = wanted * (1 - wanted)
    solution = Solution(np.array([eta]), np.array([wanted]), np.array([[spread]]), log_normalizer, np.zeros(1))
    model, log_base = _box(dim, bound)
    return pose(
        "rare_event",
        f"an event of prior probability {fraction:.1e} with probability {wanted:.2f}, {'declared' if declared else 'mistaken'}",
        model,
        [feature],
        solution,
        log_base=log_base,
        modes=Modes(lambda v: feature.expected(v)[:, 0].astype(int), np.array([1 - wanted, wanted])),
        tags=["interval", "hard", "hole", "indicator", "modes", "closed form", "declared" if declared else "mistaken"],
    )


def tube(rng: np.random.Generator) -> Stranger:
    """Two numbers on a curve: y - f(x) has mean zero and a small standard deviation; and the mean of x."""
    bound, rise, turns = 10 ** rng.uniform(-1, 2), rng.uniform(0.3, 0.8), rng.uniform(1.0, 4.0)
    width = bound * 10 ** rng.uniform(-3.3, -1.3)
    wave = bool(rng.random() < 0.5)

    def curve(xp, x):
        return rise * bound * xp.sin(turns * x / bound) if wave else rise * bound * (2 * (x / bound) ** 2 - 1)

    features = [
        Feature("residual", lambda xp, v: v["z"][..., 1] - curve(xp, v["z"][..., 0]), center=0.0),
        Feature("x", lambda xp, v: v["z"][..., 0]),
    ]
    x, x_weight = gauss(-bound, bound, 200)
    w, w_weight = gauss(-9 * width, 9 * width, 200)
    # (x, y) -> (x, residual) keeps volume, and the two are independent.
    factors = [
        Factor({"z": np.stack([x, curve(np, x)], axis=1)}, x_weight - math.log(2 * bound)),
        Factor({"z": np.stack([np.zeros_like(w), curve(np, 0.0) + w], axis=1)}, w_weight - math.log(2 * bound)),
    ]
    eta = np.array([0.0, rng.uniform(-1.0, 1.0) / bound, 0.5 / width**2])
    model, log_base = _box(2, bound)
    return pose(
        "tube",
        f"two numbers within {width / bound:.1e} of a {'wave' if wave else 'parabola'}",
        model,
        features,
        solve(features, factors, eta, {"z": np.array([[0.0, curve(np, 0.0)]])}),
        log_base=log_base,
        tags=["interval", "hard", "tube"],
    )


def shell(rng: np.random.Generator) -> Stranger:
    """A squared radius with mean and standard deviation, in two to five dimensions."""
    dim, s = int(rng.integers(2, 6)), 10 ** rng.uniform(-2, 2)
    radius, width = s * rng.uniform(1.0, 3.0), 10 ** rng.uniform(-2.0, -0.7)
    base = "prior" if rng.random() < 0.6 else "lebesgue"
    width *= radius
    r, log_weight = gauss(max(0.0, radius - 12 * width), radius + 12 * width, 200)
    if base == "prior":
        log_weight = log_weight + scipy.stats.chi(dim, scale=s).logpdf(r)
    else:
        area = math.log(2 * math.pi ** (dim / 2)) - scipy.special.gammaln(dim / 2)
        log_weight = log_weight + area + (dim - 1) * np.log(r)
    feature = Feature("radius2", lambda xp, v: xp.sum(v["z"] ** 2, axis=-1), center=radius**2)
    factor = Factor({"z": np.where(np.arange(dim) == 0, r[:, None], 0.0)}, log_weight)
    reference = {"z": np.where(np.arange(dim) == 0, radius, 0.0)[None]}
    solution = solve([feature], [factor], [0.0, 0.5 / (2 * radius * width) ** 2], reference)
    prior = scipy.stats.norm(0, s)
    return pose(
        "shell",
        f"a shell of relative width {width / radius:.1e} in {dim} dimensions, base {base}",
        lambda: numpyro.sample("z", dist.Normal(0.0, s).expand([dim]).to_event(1)),
        [feature],
        solution,
        log_base=lambda v: np.sum(prior.logpdf(np.asarray(v["z"], float)), axis=-1) * (base == "prior"),
        base=base,
        modes=Modes(lambda v: (np.asarray(v["z"])[..., 0] > 0).astype(int), np.array([0.5, 0.5])),
        tags=["real", "hard", "shell"],
    )


def compass(rng: np.random.Generator) -> Stranger:
    """Two to eight modes of unequal masses on a ring."""
    count, radius = int(rng.integers(2, 9)), rng.uniform(2.0, 4.0)
    bound = 2 * radius
    r, r_weight = uniform_nodes(0.0, bound, 400)
    t, t_weight = uniform_nodes(-math.pi, math.pi, 360)
    (r, t), log_weight = grid((r, r_weight + np.log(r)), (t, t_weight))
    log_weight = log_weight - 2 * math.log(2 * bound)
    angle = lambda xp, v: xp.arctan2(v["z"][..., 1], v["z"][..., 0])  # noqa: E731
    features = [
        Feature("order", lambda xp, v: xp.cos(count * angle(xp, v))),
        Feature("ring", lambda xp, v: (xp.sqrt(xp.sum(v["z"] ** 2, axis=-1)) - radius) ** 2),
        Feature("east", lambda xp, v: v["z"][..., 0]),
        Feature("north", lambda xp, v: v["z"][..., 1]),
    ]
    strong = [-rng.uniform(3.0, 8.0), rng.uniform(5.0, 12.0)]
    label = lambda v: np.round(angle(np, v) / (2 * math.pi / count)).astype(int) % count  # noqa: E731
    sites = {"z": np.stack([r * np.cos(t), r * np.sin(t)], axis=1)}
    labels = label(sites)

    def answer(tilts: np.ndarray) -> tuple[Solution, np.ndarray]:
        solution = solve(features, [Factor(sites, log_weight)], [*strong, *tilts], {"z": np.array([[radius, 0.0]])})
        return solution, np.bincount(labels, solution.masses[0], count)

    solution, fractions = gently(rng.uniform(-0.7, 0.7, 2) / radius, answer)
    model, log_base = _box(2, bound)
    return pose(
        "compass",
        f"{count} modes on a ring",
        model,
        features,
        solution,
        log_base=log_base,
        modes=Modes(label, fractions),
        tags=["interval", "modes"],
    )
