"""Sites of every kind of support with random priors, their quadrature nodes, and random statistics of them."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from numpyro.distributions import constraints

from oracles.exact import Arrays, Factor, Feature

NODES = 40_001
"""Nodes of a scalar site; the trapezoidal rule in unconstrained coordinates converges exponentially."""


class Site(NamedTuple):
    """A scalar parameter.

    Attributes:
        name: Site name.
        distribution: Its prior; called inside the model.
        log_density: Of the base, of values [N]; zero for Lebesgue measure.
        nodes: Quadrature nodes, [N].
        log_volume: Log quadrature weights without the density, [N].
        center: A typical value.
        spread: A typical distance from it.
        kind: ``real``, ``positive``, ``interval`` or ``circular``.
        tail: ``light``, ``heavy`` (no finite variance), ``compact`` or ``flat`` (the base is improper).
    """

    name: str
    distribution: Callable[[], dist.Distribution]
    log_density: Callable[[np.ndarray], np.ndarray]
    nodes: np.ndarray
    log_volume: np.ndarray
    center: float
    spread: float
    kind: str
    tail: str

    @property
    def factor(self) -> Factor:
        """The site alone, as a factor of the base."""
        with np.errstate(all="ignore"):
            return Factor({self.name: self.nodes}, self.log_volume + self.log_density(self.nodes))

    @property
    def reference(self) -> dict[str, np.ndarray]:
        """One ordinary value."""
        return {self.name: np.array([self.center])}

    def lebesgue(self) -> "Site":
        """The same site under Lebesgue measure."""
        return self._replace(log_density=np.zeros_like, tail="compact" if self.tail == "compact" else "flat")


def model_of(*sites: Site) -> Callable[[], None]:
    """A model that draws the sites."""

    def model() -> None:
        for site in sites:
            numpyro.sample(site.name, site.distribution())

    return model


def log_base_of(*sites: Site) -> Callable[[Arrays], np.ndarray]:
    """Joint log density of independent sites."""
    return lambda values: np.sum([site.log_density(np.asarray(values[site.name], float)) for site in sites], axis=0)


def reference_of(*sites: Site) -> dict[str, np.ndarray]:
    """One ordinary value of every site."""
    return {name: value for site in sites for name, value in site.reference.items()}


def real_nodes(center: float, spread: float, reach: float = 25.0, count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights on the real line, exponentially far out, by ``z = center + spread sinh(t)``."""
    t = np.linspace(-reach, reach, count)
    return center + spread * np.sinh(t), np.log(spread * (t[1] - t[0])) + np.logaddexp(t, -t) - math.log(2)


def positive_nodes(scale: float, reach: float = 40.0, count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights on the positive numbers, by ``z = scale exp(t)``."""
    t = np.linspace(-reach, reach, count)
    return scale * np.exp(t), math.log(scale * (t[1] - t[0])) + t


def interval_nodes(low: float, high: float, count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and log weights between two bounds, by the logistic function."""
    t = np.linspace(-35.0, 35.0, count)
    log_slope = scipy.special.log_expit(t) + scipy.special.log_expit(-t)
    return low + (high - low) * scipy.special.expit(t), math.log((high - low) * (t[1] - t[0])) + log_slope


def uniform_nodes(low: float, high: float, count: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of equal cells: for functions that are periodic, or that end or jump inside."""
    width = (high - low) / count
    return low + width * (np.arange(count) + 0.5), np.full(count, math.log(width))


def real_site(rng: np.random.Generator, name: str, scale: float = 1.0) -> Site:
    """A real number with one of six priors."""
    c, s = scale * rng.normal(), scale * rng.uniform(0.5, 2.0)
    degrees = rng.uniform(1.5, 4.0)
    low, high = c - 3 * s, c + rng.uniform(1.0, 4.0) * s
    kind = rng.choice(["normal", "cauchy", "student", "laplace", "logistic", "uniform"])
    prior, frozen = {
        "normal": (lambda: dist.Normal(c, s), scipy.stats.norm(c, s)),
        "cauchy": (lambda: dist.Cauchy(c, s), scipy.stats.cauchy(c, s)),
        "student": (lambda: dist.StudentT(degrees, c, s), scipy.stats.t(degrees, c, s)),
        "laplace": (lambda: dist.Laplace(c, s), scipy.stats.laplace(c, s)),
        "logistic": (lambda: dist.Logistic(c, s), scipy.stats.logistic(c, s)),
        "uniform": (lambda: dist.Uniform(low, high), scipy.stats.uniform(low, high - low)),
    }[str(kind)]
    if kind == "uniform":
        nodes = interval_nodes(low, high)
        return Site(name, prior, frozen.logpdf, *nodes, (low + high) / 2, (high - low) / 4, "interval", "compact")
    tail = "heavy" if kind in ("cauchy", "student") else "light"
    return Site(name, prior, frozen.logpdf, *real_nodes(c, s), c, s, "real", tail)


def positive_site(rng: np.random.Generator, name: str, scale: float = 1.0) -> Site:
    """A positive number with one of six priors."""
    s, shape = scale * rng.uniform(0.5, 2.0), rng.uniform(1.0, 5.0)
    kind = rng.choice(["gamma", "lognormal", "halfnormal", "halfcauchy", "exponential", "inversegamma"])
    prior, frozen = {
        "gamma": (lambda: dist.Gamma(shape, shape / s), scipy.stats.gamma(shape, scale=s / shape)),
        "lognormal": (lambda: dist.LogNormal(math.log(s), 0.7), scipy.stats.lognorm(0.7, scale=s)),
        "halfnormal": (lambda: dist.HalfNormal(s), scipy.stats.halfnorm(scale=s)),
        "halfcauchy": (lambda: dist.HalfCauchy(s), scipy.stats.halfcauchy(scale=s)),
        "exponential": (lambda: dist.Exponential(1 / s), scipy.stats.expon(scale=s)),
        "inversegamma": (lambda: dist.InverseGamma(shape, shape * s), scipy.stats.invgamma(shape, scale=shape * s)),
    }[str(kind)]
    tail = "heavy" if kind in ("halfcauchy", "inversegamma") else "light"
    return Site(name, prior, frozen.logpdf, *positive_nodes(s), s, s, "positive", tail)


def interval_site(rng: np.random.Generator, name: str, scale: float = 1.0) -> Site:
    """A bounded number, uniform or by a beta distribution."""
    low = scale * rng.normal()
    if rng.random() < 0.5:
        low, width = 0.0, 1.0
        a, b = rng.uniform(1.0, 4.0, 2)
        prior, frozen = (lambda: dist.Beta(a, b)), scipy.stats.beta(a, b)
    else:
        width = scale * rng.uniform(1.0, 6.0)
        prior, frozen = (lambda: dist.Uniform(low, low + width)), scipy.stats.uniform(low, width)
    nodes = interval_nodes(low, low + width)
    return Site(name, prior, frozen.logpdf, *nodes, low + width / 2, width / 4, "interval", "compact")


def circular_site(rng: np.random.Generator, name: str, scale: float = 1.0, most: float = 3.0) -> Site:
    """An angle by a von Mises distribution, of a concentration up to ``most``; an angle has no scale."""
    del scale
    center, kappa = rng.uniform(-2.0, 2.0), rng.uniform(0.1, most)

    def log_density(z: np.ndarray) -> np.ndarray:
        return kappa * np.cos(z - center) - math.log(2 * math.pi * scipy.special.i0(kappa))

    nodes = uniform_nodes(-math.pi, math.pi)
    return Site(name, lambda: dist.VonMises(center, kappa), log_density, *nodes, center, 1.0, "circular", "compact")


def flat_site(rng: np.random.Generator, name: str, scale: float = 1.0) -> Site:
    """A real or positive number under an improper uniform prior."""
    c, s = scale * rng.normal(), scale * rng.uniform(0.5, 2.0)
    support = constraints.real if rng.random() < 0.5 else constraints.positive
    prior = lambda: dist.ImproperUniform(support, (), ())  # noqa: E731
    if support is constraints.real:
        return Site(name, prior, np.zeros_like, *real_nodes(c, s), c, s, "real", "flat")
    return Site(name, prior, np.zeros_like, *positive_nodes(s), s, s, "positive", "flat")


SITES = (real_site, positive_site, interval_site, circular_site, flat_site)


def any_site(rng: np.random.Generator, name: str, scale: float = 1.0) -> Site:
    """A scalar site of a random kind."""
    return SITES[rng.integers(len(SITES))](rng, name, scale)


def read(site: str, function: Callable) -> Callable:
    """A measure of one site: ``function(xp, value)``."""
    return lambda xp, sites: function(xp, sites[site])


def random_features(rng: np.random.Generator, site: Site, most: int = 2) -> list[tuple[Feature, tuple[float, ...]]]:
    """Up to ``most`` statistics of a site, and multipliers (of the mean, and of the second moment) that fit its tails."""
    name, c, s = site.name, site.center, site.spread
    bounded = {
        "real": [("tanh", lambda xp, z: xp.tanh((z - c) / s)), ("cos", lambda xp, z: xp.cos(2 * (z - c) / s))],
        "positive": [("saturation", lambda xp, z: z / (z + s)), ("decay", lambda xp, z: xp.exp(-z / s))],
        "interval": [("value", lambda xp, z: z), ("wave", lambda xp, z: xp.sin((z - c) / s))],
        "circular": [("cos", lambda xp, z: xp.cos(z)), ("sin", lambda xp, z: xp.sin(z)), ("cos2", lambda xp, z: xp.cos(2 * z))],
    }[site.kind]  # fmt: skip
    size = s if site.kind == "interval" else 1.0
    found: list[tuple[Feature, tuple[float, ...]]] = []
    if site.kind == "positive" and site.tail != "flat":
        bounded.append(("log", lambda xp, z: xp.log(z)))
    # Values of what has heavy tails have a mean only under a multiplier that cuts both of its tails.
    if site.tail != "compact" and (site.tail == "flat" or rng.random() < 0.6):
        feature = Feature(f"{name}", read(name, lambda xp, z: z), center=c + s * rng.normal(0, 0.5))
        found.append((feature, (rng.normal(0, 0.3) / s, rng.uniform(0.3, 3.0) / s**2)))
    for i in rng.permutation(len(bounded))[: rng.integers(0 if found else 1, most + 1)]:
        label, function = bounded[i]
        limit = 0.3 if label == "log" else 2.0
        eta = rng.uniform(-limit, limit) / (size if label == "value" else 1.0)
        found.append((Feature(f"{label} {name}", read(name, function)), (eta,)))
    return found


def arrange(pairs: Sequence[tuple[Feature, tuple[float, ...]]]) -> tuple[list[Feature], np.ndarray]:
    """Features and their multipliers in the order of `exact.columns`."""
    first = [eta[0] for _, eta in pairs]
    second = [eta[1] for _, eta in pairs if len(eta) > 1]
    return [feature for feature, _ in pairs], np.array([*first, *second])
