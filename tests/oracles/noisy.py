"""Families whose simulator has noise of its own, of known mean."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.stats

from oracles.exact import Factor, Feature, Modes, Stranger, pose, solve
from oracles.sites import interval_nodes, real_nodes, uniform_nodes


def noisy_number(rng: np.random.Generator) -> Stranger:
    """A measurement x = z + s(z) e of a normal number: its mean and standard deviation, or its mean and cosine."""
    center, spread = rng.normal(), rng.uniform(0.8, 2.0)
    level, growth = rng.uniform(0.1, 0.6), float(rng.choice([0.0, rng.uniform(0.2, 0.5)]))
    scale = lambda xp, z: level * xp.exp(growth * (z - center))  # noqa: E731

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(center, spread))
        e = numpyro.sample("e", dist.Normal(0.0, 1.0))
        numpyro.deterministic("x", z + scale(jnp, z) * e)

    narrow = bool(rng.random() < 0.5)
    value = Feature(
        "x",
        lambda xp, v: v["x"],
        mean=lambda v: v["z"],
        variance=lambda v: scale(np, v["z"]) ** 2,
        center=center + rng.normal() if narrow else None,
    )
    cosine_mean = lambda v: np.cos(v["z"]) * np.exp(-(scale(np, v["z"]) ** 2) / 2)  # noqa: E731
    cosine = Feature(
        "cos x",
        lambda xp, v: xp.cos(v["x"]),
        mean=cosine_mean,
        # cos^2 = (1 + cos 2x) / 2.
        variance=lambda v: (1 + np.cos(2 * v["z"]) * np.exp(-2 * scale(np, v["z"]) ** 2)) / 2 - cosine_mean(v) ** 2,
    )
    features = [value] if narrow else [value, cosine]
    eta = np.array([0.0, rng.uniform(0.5, 4.0)] if narrow else [rng.uniform(-0.5, 0.5), rng.uniform(-2.0, 2.0)])
    nodes, volume = real_nodes(center, spread, reach=5.0)
    prior = scipy.stats.norm(center, spread)
    factor = Factor({"z": nodes}, volume + prior.logpdf(nodes))
    return pose(
        "noisy_number",
        f"a noisy measurement of one number, {'mean and standard deviation' if narrow else 'mean and cosine'}",
        model,
        features,
        solve(features, [factor], eta, {"z": np.array([center])}),
        log_base=lambda v: prior.logpdf(v["z"]),
        parameters=["z"],
        tags=["real"],
    )


def counts(rng: np.random.Generator) -> Stranger:
    """Poisson counts of one to three log rates: mean, or mean and standard deviation."""
    dim, declared = int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    center, spread = rng.uniform(0.0, 2.0), rng.uniform(0.6, 1.2)
    narrow = bool(rng.random() < 0.5)
    wanted = math.exp(center) * rng.uniform(0.7, 2.0)

    def model() -> None:
        z = numpyro.sample("z", dist.Normal(center, spread).expand([dim]).to_event(1))
        numpyro.sample("n", dist.Poisson(jnp.exp(z)).to_event(1))

    feature = Feature(
        "n",
        lambda xp, v: v["n"] * 1.0,
        mean=lambda v: np.exp(v["z"]),
        variance=lambda v: np.exp(v["z"]),
        shape=(dim,),
        center=np.full(dim, wanted) if narrow else None,
        differentiable=not declared,
    )
    weights = rng.uniform(0.05, 0.6, dim) if not narrow else rng.uniform(-0.1, 0.1, dim)
    eta = np.concatenate([weights, rng.uniform(0.5, 3.0, dim) / wanted]) if narrow else weights / math.exp(center)
    nodes, volume = real_nodes(center, spread, reach=3.5, count=8001)
    prior = scipy.stats.norm(center, spread)
    factors = [
        Factor({"z": np.where(np.arange(dim) == i, nodes[:, None], center)}, volume + prior.logpdf(nodes))
        for i in range(dim)
    ]
    return pose(
        "counts",
        f"{dim} Poisson counts, {'declared' if declared else 'mistaken for'} {'not ' * declared}differentiable",
        model,
        [feature],
        solve([feature], factors, eta, {"z": np.full((1, dim), center)}),
        log_base=lambda v: np.sum(prior.logpdf(np.asarray(v["z"], float)), axis=-1),
        parameters=["z"],
        tags=["real", "discrete", "declared" if declared else "mistaken"],
    )


def trials(rng: np.random.Generator) -> Stranger:
    """Successes in one to twenty trials whose probability is sigmoid of gain times stimulus plus bias."""
    total, declared = int(rng.choice([1, 5, 20])), bool(rng.random() < 0.5)
    stimuli = rng.uniform(-2, 2, int(rng.integers(1, 3)))
    chance = lambda xp, v: 1 / (1 + xp.exp(-(v["gain"][..., None] * stimuli + v["bias"][..., None])))  # noqa: E731
    bound = rng.uniform(2.0, 4.0)

    def model() -> None:
        gain = numpyro.sample("gain", dist.Uniform(0.0, bound))
        bias = numpyro.sample("bias", dist.Normal(0.0, 1.5))
        p = chance(jnp, {"gain": gain, "bias": bias})
        numpyro.sample("successes", dist.Binomial(total, p).to_event(1))

    feature = Feature(
        "rate",
        lambda xp, v: v["successes"] / total,
        mean=lambda v: chance(np, v),
        variance=lambda v: chance(np, v) * (1 - chance(np, v)) / total,
        shape=(len(stimuli),),
        differentiable=not declared,
    )
    eta = rng.choice([-1, 1], len(stimuli)) * rng.uniform(1.0, 6.0, len(stimuli))
    gain, gain_volume = interval_nodes(0, bound, 301)
    bias, bias_volume = real_nodes(0.0, 1.5, reach=4.0, count=401)
    prior = scipy.stats.norm(0, 1.5)
    log_weight = np.add.outer(gain_volume, bias_volume + prior.logpdf(bias)).ravel() - math.log(bound)
    a, b = (x.ravel() for x in np.meshgrid(gain, bias, indexing="ij"))
    reference = {"gain": np.array([1.0]), "bias": np.array([0.0])}
    return pose(
        "trials",
        f"success rates of {total} trials at {len(stimuli)} stimuli, {'declared not' if declared else 'left'} differentiable",
        model,
        [feature],
        solve([feature], [Factor({"gain": a, "bias": b}, log_weight)], eta, reference),
        log_base=lambda v: prior.logpdf(v["bias"]) - math.log(bound),
        parameters=["gain", "bias"],
        tags=["mixed", "real", "interval", "discrete", "declared" if declared else "mistaken"],
    )


def threshold(rng: np.random.Generator) -> Stranger:
    """How often a number passes a threshold, and its mean: an indicator, declared or not."""
    declared, bound = bool(rng.random() < 0.6), 10 ** rng.uniform(-2, 2)
    cut = bound * rng.uniform(-0.3, 0.7)
    indicator = Feature("passes", lambda xp, v: 1.0 * (v["z"] > cut), differentiable=not declared)
    value = Feature("z", lambda xp, v: v["z"])
    features = [indicator, value]
    eta = np.array([rng.choice([-1, 1]) * rng.uniform(0.5, 2.5), rng.uniform(-0.7, 0.7) / bound])
    left, right = uniform_nodes(-bound, cut, 5000), uniform_nodes(cut, bound, 5000)
    nodes = np.concatenate([left[0], right[0]])
    log_weight = np.concatenate([left[1], right[1]]) - math.log(2 * bound)
    solution = solve(features, [Factor({"z": nodes}, log_weight)], eta, {"z": np.zeros(1)})
    up = float(solution.masses[0][nodes > cut].sum())
    return pose(
        "threshold",
        f"fraction above a threshold and mean, indicator {'declared not' if declared else 'mistaken for'} differentiable",
        lambda: numpyro.sample("z", dist.Uniform(-bound, bound)),
        features,
        solution,
        log_base=lambda v: np.full(len(v["z"]), -math.log(2 * bound)),
        modes=Modes(lambda v: (np.asarray(v["z"]) > cut).astype(int), np.array([1 - up, up])),
        tags=["interval", "indicator", "scaled", "declared" if declared else "mistaken"],
    )
