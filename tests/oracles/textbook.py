"""Families with answers from a textbook: truncated normal, gamma, beta, Dirichlet and von Mises distributions."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

from oracles.exact import Feature, Modes, Solution, Stranger, gently, pose, solve
from oracles.sites import Site, arrange, circular_site, log_base_of, model_of, positive_nodes, positive_site, read


def truncated_normal(rng: np.random.Generator) -> Stranger:
    """A positive number with E z and E z^2: a truncated normal, whatever flat base."""
    s = 10 ** rng.uniform(-3, 3)
    mode, width = s * rng.uniform(-1.0, 2.0), s * rng.uniform(0.3, 1.0)
    improper = bool(rng.random() < 0.5)

    def prior() -> dist.Distribution:
        return dist.ImproperUniform(constraints.positive, (), ()) if improper else dist.HalfCauchy(s)

    base = "prior" if improper or rng.random() < 0.5 else "lebesgue"
    flat = improper or base == "lebesgue"
    log_density = np.zeros_like if flat else scipy.stats.halfcauchy(scale=s).logpdf
    site = Site("z", prior, log_density, *positive_nodes(s), s, s, "positive", "flat" if flat else "heavy")
    with_std = bool(rng.random() < 0.5)
    eta = np.array([-mode / width**2, 0.5 / width**2])
    if with_std:
        features = [Feature("z", read("z", lambda xp, z: z), center=0.0)]
    else:
        features = [Feature("z", read("z", lambda xp, z: z)), Feature("z2", read("z", lambda xp, z: z**2))]
    return pose(
        "truncated_normal",
        f"a positive number of scale {s:.1e} with its first two moments, base {base}{', improper' if improper else ''}",
        model_of(site),
        features,
        solve(features, [site.factor], eta, site.reference),
        log_base=log_base_of(site),
        base=base,
        tags=["positive", "scaled", *([] if flat else ["heavy"])],
    )


def gamma_logs(rng: np.random.Generator) -> Stranger:
    """Positive numbers with E z and E log z by Lebesgue measure: gamma distributions."""
    dim, s = int(rng.integers(1, 6)), 10 ** rng.uniform(-2, 2)
    shape, rate = rng.uniform(0.8, 8.0, dim), rng.uniform(0.5, 2.0, dim) / s
    trigamma = scipy.special.polygamma(1, shape)
    covariance = np.zeros((2 * dim, 2 * dim))
    first, second = np.arange(dim), dim + np.arange(dim)
    covariance[first, first], covariance[second, second] = shape / rate**2, trigamma
    covariance[first, second] = covariance[second, first] = 1 / rate
    mu = np.concatenate([shape / rate, scipy.special.digamma(shape) - np.log(rate)])
    log_normalizer = float(np.sum(scipy.special.gammaln(shape) - shape * np.log(rate)))
    improper = bool(rng.random() < 0.5)

    def model() -> None:
        flat = dist.ImproperUniform(constraints.independent(constraints.positive, 1), (), event_shape=(dim,))
        numpyro.sample("z", flat if improper else dist.LogNormal(math.log(s), 1.0).expand([dim]).to_event(1))

    features = [
        Feature("z", lambda xp, v: v["z"], shape=(dim,)),
        Feature("log z", lambda xp, v: xp.log(v["z"]), shape=(dim,)),
    ]
    eta = np.concatenate([rate, 1 - shape])
    return pose(
        "gamma_logs",
        f"{dim} positive numbers with means of value and logarithm, Lebesgue measure",
        model,
        features,
        Solution(eta, mu, covariance, log_normalizer, np.zeros(2 * dim)),
        log_base=lambda v: np.zeros(len(v["z"])),
        base="prior" if improper else "lebesgue",
        tags=["positive", "closed form", "scaled"],
    )


def dirichlet_logs(rng: np.random.Generator) -> Stranger:
    """Parts of a whole with the means of their logarithms: a Dirichlet distribution."""
    parts = int(rng.integers(2, 9))
    prior, wanted = rng.uniform(0.8, 2.0, parts), rng.uniform(0.7, 8.0, parts)
    base = "prior" if rng.random() < 0.6 else "lebesgue"
    before = prior if base == "prior" else np.ones(parts)
    log_beta = lambda a: float(np.sum(scipy.special.gammaln(a)) - scipy.special.gammaln(np.sum(a)))  # noqa: E731
    constant = -log_beta(before) if base == "prior" else 0.0
    covariance = np.diag(scipy.special.polygamma(1, wanted)) - scipy.special.polygamma(1, wanted.sum())
    mu = scipy.special.digamma(wanted) - scipy.special.digamma(wanted.sum())
    solution = Solution(before - wanted, mu, covariance, log_beta(wanted) + constant, np.zeros(parts))
    return pose(
        "dirichlet_logs",
        f"{parts} parts of a whole with means of logarithms, base {base}",
        lambda: numpyro.sample("z", dist.Dirichlet(prior)),
        [Feature("log z", lambda xp, v: xp.log(v["z"]), shape=(parts,))],
        solution,
        log_base=lambda v: constant + np.log(np.asarray(v["z"], float)) @ (before - 1),
        base=base,
        tags=["simplex", "closed form"],
    )


def beta_logs(rng: np.random.Generator) -> Stranger:
    """A number in (0, 1) with E log z and E log(1 - z): a beta distribution, of one mode or of two at the bounds."""
    a, b = rng.uniform(0.6, 6.0, 2)
    polygamma = scipy.special.polygamma
    covariance = np.diag(polygamma(1, np.array([a, b]))) - polygamma(1, a + b)
    mu = scipy.special.digamma([a, b]) - scipy.special.digamma(a + b)
    solution = Solution(np.array([1 - a, 1 - b]), mu, covariance, float(scipy.special.betaln(a, b)), np.zeros(2))
    features = [
        Feature("log z", lambda xp, v: xp.log(v["z"])),
        Feature("log 1 - z", lambda xp, v: xp.log1p(-v["z"])),
    ]
    return pose(
        "beta_logs",
        f"a number in (0, 1) with means of both logarithms: Beta({a:.2g}, {b:.2g})",
        lambda: numpyro.sample("z", dist.Uniform(0.0, 1.0)),
        features,
        solution,
        log_base=lambda v: np.zeros(len(v["z"])),
        tags=["interval", "closed form"],
    )


def angles(rng: np.random.Generator) -> Stranger:
    """One to four angles, each with E cos and E sin: von Mises distributions again."""
    sites = [circular_site(rng, f"angle_{i}") for i in range(rng.integers(1, 5))]
    eta, mu, blocks, log_normalizer = [], [], [], 0.0
    for site in sites:
        # The prior's vector is read back from its log density at two angles.
        middle = (site.log_density(np.array([0.0])) + site.log_density(np.array([math.pi])))[0] / 2
        prior = np.array([site.log_density(np.array([0.0]))[0], site.log_density(np.array([math.pi / 2]))[0]]) - middle
        kappa, center = rng.uniform(0.3, 8.0), rng.uniform(-math.pi, math.pi)
        wanted = kappa * np.array([math.cos(center), math.sin(center)])
        ratio = scipy.special.i1e(kappa) / scipy.special.i0e(kappa)
        along = np.array([math.cos(center), math.sin(center)])
        # E[cos^2] about the center is 1 - A / kappa.
        parallel, across = 1 - ratio / kappa - ratio**2, ratio / kappa
        side = np.array([-along[1], along[0]])
        eta.append(prior - wanted)
        mu.append(ratio * along)
        blocks.append(parallel * np.outer(along, along) + across * np.outer(side, side))
        log_normalizer += math.log(scipy.special.i0(kappa) / scipy.special.i0(np.linalg.norm(prior)))
    covariance = scipy.linalg.block_diag(*blocks)
    features = [
        Feature(f"{label} {site.name}", read(site.name, function))
        for site in sites
        for label, function in (("cos", lambda xp, z: xp.cos(z)), ("sin", lambda xp, z: xp.sin(z)))
    ]
    solution = Solution(np.concatenate(eta), np.concatenate(mu), covariance, log_normalizer, np.zeros(2 * len(sites)))
    return pose(
        "angles",
        f"{len(sites)} angles with mean cosine and sine: von Mises",
        model_of(*sites),
        features,
        solution,
        log_base=log_base_of(*sites),
        tags=["circular", "closed form"],
    )


def directions(rng: np.random.Generator) -> Stranger:
    """An angle with two to six preferred directions of unequal probability."""
    count = int(rng.integers(2, 7))
    site = circular_site(rng, "z", most=0.5)
    label = lambda z: np.round(np.asarray(z, float) / (2 * math.pi / count)).astype(int) % count  # noqa: E731
    features = [
        Feature("order", read("z", lambda xp, z: xp.cos(count * z))),
        Feature("cos", read("z", lambda xp, z: xp.cos(z))),
        Feature("sin", read("z", lambda xp, z: xp.sin(z))),
    ]
    order = -rng.uniform(3.0, 6.0)

    def answer(tilts: np.ndarray) -> tuple[Solution, np.ndarray]:
        solution = solve(features, [site.factor], [order, *tilts], site.reference)
        return solution, np.bincount(label(site.nodes), solution.masses[0], count)

    solution, fractions = gently(rng.uniform(-0.8, 0.8, 2), answer)
    return pose(
        "directions",
        f"an angle with {count} preferred directions",
        model_of(site),
        features,
        solution,
        log_base=log_base_of(site),
        modes=Modes(lambda v: label(v["z"]), fractions),
        tags=["circular", "modes"],
    )


def rates(rng: np.random.Generator) -> Stranger:
    """Two positive numbers with a mean and a standard deviation each, six decades apart."""
    scales = 10 ** rng.uniform([-6, 2], [-3, 6])
    sites = [positive_site(rng, name, float(scale)) for name, scale in zip(("tau", "rate"), scales, strict=True)]
    pairs = []
    for site in sites:
        center = site.center * rng.uniform(0.6, 1.6)
        feature = Feature(site.name, read(site.name, lambda xp, z: z), center=center)
        pairs.append((feature, (0.0, 0.5 / (center * rng.uniform(0.1, 0.5)) ** 2)))
    features, eta = arrange(pairs)
    reference = {name: value for site in sites for name, value in site.reference.items()}
    heavy = any(site.tail == "heavy" for site in sites)
    return pose(
        "rates",
        f"two positive numbers of scales {scales[0]:.0e} and {scales[1]:.0e}, mean and standard deviation each",
        model_of(*sites),
        features,
        solve(features, [site.factor for site in sites], eta, reference),
        log_base=log_base_of(*sites),
        tags=["positive", "scaled", *(["heavy"] if heavy else [])],
    )
