"""Families whose base is a product of independent factors, or a product given one of them."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats

from oracles.exact import Factor, Feature, Modes, Solution, Stranger, gently, pose, solve
from oracles.sites import (
    Site,
    any_site,
    arrange,
    circular_site,
    interval_nodes,
    interval_site,
    log_base_of,
    model_of,
    positive_site,
    random_features,
    read,
    real_nodes,
    real_site,
    reference_of,
)

Pairs = list[tuple[Feature, tuple[float, ...]]]


def embellish(rng: np.random.Generator, pairs: Pairs, spare: Feature | None = None) -> tuple[Pairs, bool, set[str]]:
    """Now and then add a redundant target, or an inactive one whose multiplier is zero; say whether eta stays unique."""
    pairs, unique, tags = list(pairs), True, set()
    if rng.random() < 0.25:
        features = [feature for feature, _ in pairs if feature.variance is None and feature.mean is None]
        if features:
            chosen = [features[i] for i in rng.permutation(len(features))[:2]]
            factors = rng.uniform(0.5, 2.5, len(chosen))
            pairs.append((_combination(chosen, factors), (0.0,)))
            unique = False
            tags.add("redundant")
    if spare is not None and rng.random() < 0.35:
        pairs.append((spare, (0.0,)))
        tags.add("inactive")
    return pairs, unique, tags


def _combination(features: list[Feature], factors: np.ndarray) -> Feature:
    def measure(xp, sites):
        values = [feature.measure(xp, sites) for feature in features]
        axes = [tuple(range(-len(feature.shape), 0)) for feature in features]
        sums = [xp.sum(value, axis=axis) if axis else value for value, axis in zip(values, axes, strict=True)]
        return sum(factor * value for factor, value in zip(factors, sums, strict=True))

    return Feature("combination", measure, differentiable=all(feature.differentiable for feature in features))


def independent(
    rng: np.random.Generator, name: str, line: str, sites: list[Site], pairs: Pairs, *, base: str = "prior", tags=()
) -> Stranger:
    """Independent scalar sites, with statistics that are sums over them."""
    site = sites[rng.integers(len(sites))]
    spare = Feature(f"slope {site.name}", read(site.name, lambda xp, z: xp.tanh(0.7 * (z - site.center) / site.spread)))
    pairs, unique, more = embellish(rng, pairs, spare)
    features, eta = arrange(pairs)
    solution = solve(features, [site.factor for site in sites], eta, reference_of(*sites))
    kinds = {site.kind for site in sites} | ({"heavy"} if any(site.tail == "heavy" for site in sites) else set())
    return pose(
        *(name, line, model_of(*sites), features, solution),
        log_base=log_base_of(*sites),
        base=base,
        unique=unique,
        tags=[*tags, *more, *kinds],
    )


def one_number(rng: np.random.Generator) -> Stranger:
    """One to three statistics of a single number, by its prior or by Lebesgue measure."""
    scale = float(rng.choice([1.0, 1.0, 1e-6, 1e-3, 1e3, 1e6]))
    site, base = any_site(rng, "z", scale), "prior"
    if rng.random() < 0.3:
        site, base = site.lebesgue(), "lebesgue"
    pairs = random_features(rng, site, most=2)
    tags = ["scaled"] if scale != 1 else []
    line = f"{site.kind} number of scale {scale:g}, {site.tail} tails, {len(pairs)} statistics, base {base}"
    return independent(rng, "one_number", line, [site], pairs, base=base, tags=tags)


def mixed_sites(rng: np.random.Generator) -> Stranger:
    """Two to six independent sites of different supports and units."""
    scales = rng.choice([1e-6, 1e-3, 1.0, 1.0, 1.0, 1e3, 1e6], rng.integers(2, 7))
    sites = [any_site(rng, f"site_{i}", float(scale)) for i, scale in enumerate(scales)]
    pairs = [pair for site in sites for pair in random_features(rng, site, most=1)]
    tags = ["mixed"] + (["scaled"] if np.any(scales != 1) else [])
    line = f"{len(sites)} sites ({', '.join(site.kind for site in sites)}) of scales 1e-6 to 1e6"
    return independent(rng, "mixed_sites", line, sites, pairs, tags=tags)


def gated(rng: np.random.Generator) -> Stranger:
    """One number in (0, 1) gates the statistics of other sites: T_k = p g_k(z_k)."""
    gate = interval_site(rng, "gate")
    while not np.isclose(gate.nodes[0], 0.0, atol=1e-9):
        gate = interval_site(rng, "gate")
    makers = [real_site, positive_site, interval_site, circular_site]
    others = [makers[i](rng, f"z_{i}") for i in rng.permutation(4)[: rng.integers(2, 5)]]
    shapes = {
        "real": lambda xp, z, c, s: xp.tanh((z - c) / s),
        "positive": lambda xp, z, c, s: xp.log1p(z / s),
        "interval": lambda xp, z, c, s: (z - c) / s,
        "circular": lambda xp, z, c, s: xp.cos(z),
    }

    def feature(site: Site) -> Feature:
        shape, c, s = shapes[site.kind], site.center, site.spread
        return Feature(f"gated {site.name}", lambda xp, values: values["gate"] * shape(xp, values[site.name], c, s))

    features, eta = [feature(site) for site in others], rng.uniform(0.5, 5.0, len(others))
    eta *= [1.0 if site.tail == "heavy" or site.kind == "positive" else rng.choice([-1, 1]) for site in others]
    ungated = [shapes[site.kind](np, site.nodes, site.center, site.spread) for site in others]
    solution = _solve_gated(gate, others, ungated, eta)
    sites = [gate, *others]
    return pose(
        "gated",
        f"a number in (0, 1) gates {', '.join(site.kind for site in others)}",
        model_of(*sites),
        features,
        solution,
        log_base=log_base_of(*sites),
        tags=["mixed", *(site.kind for site in sites), *("heavy" for site in sites if site.tail == "heavy")],
    )


def _solve_gated(gate: Site, others: list[Site], ungated: list[np.ndarray], eta: np.ndarray) -> Solution:
    """Given the gate all others are independent."""
    p, log_weight = gate.nodes[::200], gate.factor.log_weight[::200] + math.log(200)
    log_z, first, second = np.zeros((len(eta), len(p))), np.zeros((len(eta), len(p))), np.zeros((len(eta), len(p)))
    for k, (site, g) in enumerate(zip(others, ungated, strict=True)):
        node_weight = site.factor.log_weight
        kept = (np.isfinite(node_weight) & np.isfinite(g)).nonzero()[0][::8]
        exponent = node_weight[kept] + math.log(8) - eta[k] * np.outer(p, g[kept])
        log_z[k] = scipy.special.logsumexp(exponent, axis=1)
        mass = np.exp(exponent - log_z[k][:, None])
        first[k], second[k] = mass @ g[kept], mass @ g[kept] ** 2
    total = log_weight + log_z.sum(axis=0)
    log_normalizer = scipy.special.logsumexp(total)
    mass = np.exp(total - log_normalizer)
    mu = (first * p) @ mass
    products = (first * p * mass) @ (first * p).T
    products[np.diag_indices(len(eta))] = (second * p**2) @ mass
    return Solution(eta, mu, products - np.outer(mu, mu), float(log_normalizer), np.zeros(len(eta)))


def wells(rng: np.random.Generator) -> Stranger:
    """One to three coordinates in double wells: two to eight modes of unequal masses."""
    dim, half = int(rng.integers(1, 4)), rng.uniform(1.5, 3.0)
    depth, tilts = rng.uniform(2.5, 6.0) / half**4, rng.uniform(-1.5, 1.5, dim) / half
    normal = bool(rng.random() < 0.5)
    s, bound = half * rng.uniform(0.8, 1.5), 2.2 * half

    def prior() -> dist.Distribution:
        one = dist.Normal(0.0, s) if normal else dist.Uniform(-bound, bound)
        return one.expand([dim]).to_event(1)

    frozen = scipy.stats.norm(0, s) if normal else scipy.stats.uniform(-bound, 2 * bound)
    base = "prior" if rng.random() < 0.7 else "lebesgue"
    log_density = frozen.logpdf if base == "prior" else np.zeros_like
    nodes, volume = real_nodes(0.0, half, reach=6.0) if normal else interval_nodes(-bound, bound)
    log_weight = volume + log_density(nodes)
    factors = [Factor({"z": np.where(np.arange(dim) == i, nodes[:, None], 0.0)}, log_weight) for i in range(dim)]
    depth_feature = Feature("depth", lambda xp, v: xp.sum((v["z"] ** 2 - half**2) ** 2, axis=-1))
    value = Feature("z", lambda xp, v: v["z"], shape=(dim,))
    pairs, unique, more = embellish(rng, [(depth_feature, (depth,))])
    features = [*[feature for feature, _ in pairs], value]

    def answer(tilts: np.ndarray) -> tuple[Solution, np.ndarray]:
        eta = np.array([*(eta[0] for _, eta in pairs), *tilts])
        solution, fractions = solve(features, factors, eta, {"z": np.zeros((1, dim))}), np.ones(1)
        for mass in solution.masses:
            up = mass[nodes > 0].sum()
            fractions = np.concatenate([fractions * (1 - up), fractions * up])
        return solution, fractions

    solution, fractions = gently(tilts, answer)
    return pose(
        "wells",
        f"{dim} coordinates in double wells at +-{half:.2g}: {2**dim} modes, base {base}",
        lambda: numpyro.sample("z", prior()),
        features,
        solution,
        log_base=lambda v: np.sum(log_density(np.asarray(v["z"], float)), axis=-1) + np.zeros(len(v["z"])),
        base=base,
        modes=Modes(lambda v: (np.asarray(v["z"]) > 0) @ 2 ** np.arange(dim), fractions),
        unique=unique,
        tags=[*more, "modes", "real" if normal else "interval"],
    )


def many_numbers(rng: np.random.Generator) -> Stranger:
    """Eight to twenty coordinates with a mean each, and one shared statistic."""
    dim, s = int(rng.integers(8, 21)), rng.uniform(0.5, 2.0)
    eta_each, shared = rng.uniform(-1.0, 1.0, dim) / s, rng.uniform(-2.0, 2.0)
    positive = bool(rng.random() < 0.5)
    shape = rng.uniform(1.5, 5.0)
    if positive:
        eta_each = np.abs(eta_each)
        frozen, nodes, volume = scipy.stats.gamma(shape, scale=s), *_positive(s)
        one = lambda: dist.Gamma(shape, 1 / s)  # noqa: E731
    else:
        frozen, (nodes, volume) = scipy.stats.norm(0, s), real_nodes(0.0, s, reach=6.0, count=4001)
        one = lambda: dist.Normal(0.0, s)  # noqa: E731
    log_weight = volume + frozen.logpdf(nodes)
    factors = [Factor({"z": np.where(np.arange(dim) == i, nodes[:, None], s)}, log_weight) for i in range(dim)]
    features = [
        Feature("z", lambda xp, v: v["z"], shape=(dim,)),
        Feature("shared", lambda xp, v: xp.sum(xp.cos(v["z"] / s), axis=-1)),
    ]
    solution = solve(features, factors, np.array([*eta_each, shared]), {"z": np.full((1, dim), s)})
    return pose(
        "many_numbers",
        f"{dim} {'positive' if positive else 'real'} numbers with a mean each and one shared statistic",
        lambda: numpyro.sample("z", one().expand([dim]).to_event(1)),
        features,
        solution,
        log_base=lambda v: np.sum(frozen.logpdf(np.asarray(v["z"], float)), axis=-1),
        tags=["positive" if positive else "real"],
    )


def _positive(scale: float) -> tuple[np.ndarray, np.ndarray]:
    t = np.linspace(-25.0, 6.0, 4001)
    return scale * np.exp(t), math.log(scale * (t[1] - t[0])) + t
