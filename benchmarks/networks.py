"""The optimum of networks of many units by weighing matrices, beside the answer of `epi.solve_dual`.

    python benchmarks/networks.py [--sizes 25 50 100 250] [--seeds 0] [--out benchmarks/results/networks.md]

Both statistics of "stable amplification" see the 4 N weights only through the ten numbers of a Gram matrix ``B' B``, where the
rows of ``B = [U V]`` are the units. So matrices are drawn whose rows are independent and tilted, ``exp(-x' A x)`` in the box,
each tilt fitted to one Gram matrix of the chains' draws. They are weighed by the mixture's density, whose normalisers are
integrals over four dimensions, and the dual is minimised over them. A second round begins with the Gram matrices that the first
one weighed. Nothing of the chains' multipliers or normaliser goes in, only where to propose; what the proposals miss makes the
weighed entropy too low, and few effective draws say so. Noise is averaged over eight opposite pairs.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from _table import write_header, write_row

from numpyro_epi._weights import tilt

HEADER = (
    *("units", "seed", "chains: multipliers", "entropy (nats)", "seconds"),
    *("weighed: multipliers", "entropy (nats)", "effective draws"),
)
ROUNDS = ((200, 400_000), (400, 600_000))
"""Components of the mixture, and draws, of each round."""

NODES, MORE_NODES = 24, 40
"""Of Gauss-Legendre quadrature in each of four dimensions: while tilts are fitted, and for their normalisers."""

NUM_PAIRS = 8
UPPER = np.triu_indices(4)


class Weighed(NamedTuple):
    """The answer around the property.

    Attributes:
        eta: Multipliers.
        entropy: Nats.
        effective: Effective draws.
        gram: Gram matrices, resampled by their weights.
    """

    eta: np.ndarray
    entropy: float
    effective: float
    gram: np.ndarray


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=[25, 50, 100, 250])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "networks.md")
    arguments = parser.parse_args()
    with arguments.out.open("w") as table:
        write_header(table, HEADER)
        for size in arguments.sizes:
            for seed in arguments.seeds:
                write_row(table, _row(size, seed))


def _row(size: int, seed: int) -> tuple[str, ...]:
    import numpyro_epi as epi
    from numpyro_epi._chains import WITHIN

    problem = epi.get_problem("circuits.rnn_stable_amplification", size=size)
    found = epi.solve_dual(jax.random.key(seed), problem)
    gram = gram_matrices(problem, found.unconstrained.reshape(-1, problem.dim))
    jax.config.update("jax_enable_x64", True)
    spreads = found.settings["within"] or WITHIN
    for number, (num_tilts, num_draws) in enumerate(ROUNDS):
        rng = np.random.default_rng([seed, number])
        weighed = weigh(rng, size, gram, np.asarray(problem.target, float), num_tilts, num_draws, spreads)
        gram = weighed.gram
    jax.config.update("jax_enable_x64", False)
    return (
        *(str(size), str(seed)),
        ", ".join(f"{value:.4g}" for value in found.eta),
        f"{found.entropy:.2f} +- {found.verdict.entropy_standard_error:.2f}",
        f"{found.seconds:.0f}",
        ", ".join(f"{value:.4g}" for value in weighed.eta),
        f"{weighed.entropy:.2f}",
        f"{weighed.effective:.0f}",
    )


def gram_matrices(problem, draws) -> np.ndarray:
    """Of every draw's weights."""
    sites = jax.jit(jax.vmap(lambda u: problem.simulator.constrain(u).sites))(draws)
    rows = np.concatenate([np.asarray(sites[name], float) for name in ("U", "V")], axis=2)
    return np.einsum("kni,knj->kij", rows, rows)


def weigh(
    rng: np.random.Generator,
    size: int,
    gram: np.ndarray,
    target: np.ndarray,
    num_tilts: int,
    num_draws: int,
    spreads: float,
) -> Weighed:
    """Minimise the dual over weighed matrices whose growth rates are within so many wanted spreads of their means."""
    chosen = gram[rng.choice(len(gram), num_tilts)]
    tilts = [fitted_tilt(one / size) for one in chosen]
    vectors, log_normalizers = (np.array(parts) for parts in zip(*tilts, strict=True))
    each = num_draws // num_tilts
    drawn = np.concatenate([_gram_draws(rng, vector, size, each) for vector in vectors])
    exponents = -(drawn[:, *UPPER] @ vectors.T) - size * log_normalizers
    log_density = scipy.special.logsumexp(exponents, axis=1) - np.log(num_tilts)
    moments, noise = _moments(rng, drawn, size, target)
    near = np.all(np.abs(moments[:, :2] - target[:2]) < spreads * np.sqrt(target[2:]), axis=1)
    tilted = tilt(-log_density[near], moments[near], target, noise=noise[near])
    if not tilted.reached:
        raise ValueError(f"Expected proposals that span the targets; got {len(drawn)} of {size} units that do not.")
    weight = np.exp(tilted.log_weight)
    log_normalizer = tilted.log_normalizer + scipy.special.logsumexp(-log_density[near]) - np.log(len(drawn))
    again = drawn[near][rng.choice(len(weight), 4000, p=weight / weight.sum())]
    # The prior is uniform in a box of side two, and the mean violation is zero.
    return Weighed(tilted.eta, float(log_normalizer + 4 * size * np.log(2)), float(1 / np.sum(weight**2)), again)


def _nodes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the box, with log weights; half of them, since what is integrated is even."""
    x, w = np.polynomial.legendre.leggauss(number)
    points = np.stack(np.meshgrid(x, x, x, x, indexing="ij"), axis=-1).reshape(-1, 4)
    weights = np.prod(np.stack(np.meshgrid(w, w, w, w, indexing="ij"), axis=-1), axis=-1).ravel() / 16
    half = points[:, 0] > 0
    return points[half], np.log(2 * weights[half])


def _matrix(vector):
    upper = jnp.zeros((4, 4)).at[UPPER].set(vector)
    return (upper + upper.T) / 2


def _log_normalizer(vector, nodes):
    """Of ``exp(-x' A x)`` over the uniform distribution of the box."""
    points, log_weights = nodes
    return jax.nn.logsumexp(log_weights - jnp.einsum("ni,ij,nj->n", points, _matrix(vector), points))


@partial(jax.jit, static_argnames="number")
def _dual_of_tilt(vector, moments, number):
    def value(v):
        return _log_normalizer(v, _nodes(number)) + v @ moments

    return value(vector), jax.grad(value)(vector), jax.hessian(value)(vector)


@jax.jit
def _precise_log_normalizer(vector):
    return _log_normalizer(vector, _nodes(MORE_NODES))


def fitted_tilt(second_moments: np.ndarray) -> tuple[np.ndarray, float]:
    """The tilt of one row whose second moments these are, by Newton's method, and its log normaliser."""
    sizes, vectors = np.linalg.eigh(np.linalg.inv(second_moments) / 2)
    # What is as wide as the box needs next to no tilt.
    begin = (vectors * np.where(sizes < 2.2, 0.1, sizes)) @ vectors.T
    vector = jnp.asarray(begin[UPPER] * np.where(UPPER[0] == UPPER[1], 1, 2))
    moments = jnp.asarray(second_moments[UPPER])
    value, slope, curvature = _dual_of_tilt(vector, moments, NODES)
    for _ in range(40):
        step, share = jnp.linalg.solve(curvature + 1e-9 * jnp.eye(10), slope), 1.0
        while share > 1e-6:
            after = _dual_of_tilt(vector - share * step, moments, NODES)
            if np.isfinite(after[0]) and after[0] <= value + 1e-12:
                break
            share /= 2
        vector, (value, slope, curvature) = vector - share * step, after
        if float(jnp.max(jnp.abs(slope))) < 1e-5:
            break
    return np.asarray(vector), float(_precise_log_normalizer(vector))


def _gram_draws(rng: np.random.Generator, vector: np.ndarray, size: int, number: int) -> np.ndarray:
    rows = _rows(rng, vector, size * number).reshape(number, size, 4)
    return np.einsum("rni,rnj->rij", rows, rows)


def _rows(rng: np.random.Generator, vector: np.ndarray, number: int) -> np.ndarray:
    """Draws of the tilted distribution, by rejection along the tilt's axes: normal where it is stiff, uniform elsewhere."""
    stiffness, axes = np.linalg.eigh(np.asarray(_matrix(vector)))
    stiff = stiffness > 1.0
    # Along an axis no point of the box is further than two from its centre.
    most = np.where(stiff, 0.0, 4 * np.minimum(stiffness, 0.0))
    kept, count = [], 0
    while count < number:
        shape = (3 * number + 1000, 4)
        normal = rng.normal(size=shape) / np.sqrt(2 * np.where(stiff, stiffness, 1.0))
        along = np.where(stiff, normal, rng.uniform(-2, 2, shape))
        x = along @ axes.T
        log_share = -np.sum(np.where(stiff, 0.0, stiffness * along**2 - most), axis=1)
        kept.append(x[np.all(np.abs(x) < 1, axis=1) & (np.log(rng.uniform(size=len(x))) < log_share)])
        count += len(kept[-1])
    return np.concatenate(kept)[:number]


def _moments(
    rng: np.random.Generator, gram: np.ndarray, size: int, target: np.ndarray, noise: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Mean moments under noise on every entry, and the means' covariance; the small square of the noise is its expectation."""
    root = np.linalg.cholesky(gram)
    pairs = []
    for _ in range(NUM_PAIRS):
        cross = noise * root @ rng.normal(size=gram.shape)
        both = np.zeros((len(gram), 4))
        for sign in (1, -1):
            noisy = gram + sign * (cross + np.swapaxes(cross, 1, 2)) + noise**2 * size * np.eye(4)
            rates = np.stack([_growth_rates(noisy), _initial_growth_rates(noisy)], axis=1)
            both += np.concatenate([rates, np.square(rates - target[:2])], axis=1) / 2
        pairs.append(both)
    mean = np.mean(pairs, axis=0)
    away = np.array(pairs) - mean
    return mean, np.einsum("pni,pnj->nij", away, away) / (NUM_PAIRS * (NUM_PAIRS - 1))


def _growth_rates(gram: np.ndarray) -> np.ndarray:
    return np.linalg.eigvals(gram[:, 2:, :2]).real.max(axis=1)


def _initial_growth_rates(gram: np.ndarray) -> np.ndarray:
    swap = np.kron(np.array([[0, 1], [1, 0]]), np.eye(2))
    root = np.linalg.cholesky(gram)
    return np.linalg.eigvalsh(np.swapaxes(root, 1, 2) @ swap @ root / 2)[:, -1]


if __name__ == "__main__":
    main()
