"""Recurrent networks that are stable and yet amplify: what 4N weights have in common.

Figure 2 of Bittner et al. 2021 (eLife 10:e56265) from a registered problem. A network of rank 2 acts in a plane, by the matrix
J = V' U: trace and determinant of J are the two numbers that say how it grows, whatever the size. Takes two minutes.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import numpyro_epi as epi

TIME = np.linspace(0.0, 1.0, 101)
TIME_CONSTANT = 0.1
"""Seconds."""


def main():
    """Solve, reduce to the plane, simulate, draw."""
    parser = argparse.ArgumentParser(description="Stable amplification by recurrent networks of rank 2.")
    parser.add_argument("--size", type=int, default=10, help="units")
    parser.add_argument("--quick", action="store_true", help="five units")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    size = 5 if arguments.quick else arguments.size
    problem = epi.get_problem("circuits.rnn_stable_amplification", size=size)
    solution = epi.solve_dual(jax.random.key(0), problem)
    print(solution)

    draws = {name: np.asarray(value, float).reshape(-1, size, 2) for name, value in solution.draws().items()}
    chosen = np.random.default_rng(0).choice(len(draws["U"]), 2000, p=np.exp(np.ravel(solution.log_weight)))
    left, right = draws["U"][chosen], draws["V"][chosen]
    figure = draw(size, left, right)
    figure.savefig(arguments.out / "networks.png", dpi=100)
    print(f"The figure is in {arguments.out}.")


def traces(left, right):
    """Length of the activity over time from the direction that grows first: x' = (W - 1) x / tau, shape [networks, T]."""

    @jax.jit
    def one(left, right):
        connectivity = left @ right.T
        vectors = jnp.linalg.eigh((connectivity + connectivity.T) / 2)[1]
        flow = (connectivity - jnp.eye(len(left))) / TIME_CONSTANT
        return jax.vmap(lambda t: jnp.linalg.norm(jax.scipy.linalg.expm(t * flow) @ vectors[:, -1]))(TIME)

    return np.array([one(*pair) for pair in zip(left, right, strict=True)])


def draw(size, left, right):
    """Predicted eigenvalues, the plane of trace and determinant, and norms of activity."""
    plane = np.swapaxes(right, 1, 2) @ left
    trace, determinant = np.trace(plane, axis1=1, axis2=2), np.linalg.det(plane)
    growth = np.linalg.eigvals(plane).real.max(axis=1)
    connectivity = left @ np.swapaxes(right, 1, 2)
    initial = np.linalg.eigvalsh((connectivity + np.swapaxes(connectivity, 1, 2)) / 2)[:, -1]
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    first.scatter(growth, initial, s=4, alpha=0.4)
    angle = np.linspace(0, 2 * np.pi, 200)
    first.plot(0.5 + 0.5 * np.cos(angle), 1.5 + 0.5 * np.sin(angle), "k--", label="targets ± 2 sd")
    first.set(
        xlabel="growth rate, Re $\\lambda_1$", ylabel="initial growth rate, $\\lambda_1^s$", title=f"{size} units"
    )
    first.legend()
    points = second.scatter(trace, determinant, c=initial, s=4)
    figure.colorbar(points, label="initial growth rate")
    limits = np.quantile(trace, [0.001, 0.999])
    grid = np.linspace(*limits, 200)
    second.plot(grid, grid**2 / 4, "k:", label="below: two real eigenvalues")
    second.plot(grid[grid < 1], 0.5 * (grid[grid < 1] - 0.5), "k-", label="growth rate 0.5")
    second.plot([1.0, 1.0], [0.25, np.quantile(determinant, 0.999)], "k-")
    second.set(xlabel="trace of V'U", ylabel="determinant of V'U", title="What the weights have in common")
    second.set(xlim=limits, ylim=np.quantile(determinant, [0.001, 0.999]))
    second.legend(fontsize=8)
    norms = traces(left[:300], right[:300])
    third.plot(TIME, norms[:15].T, color="C0", alpha=0.6)
    unstable, amplifying = growth >= 1, (growth < 1) & (initial > 1)
    shares = [100 * np.mean(which) for which in (amplifying, ~unstable & ~amplifying, unstable)]
    # One network in forty is not stable: on a linear axis it would hide the others.
    third.set(yscale="log", ylim=(0.02, 20))
    third.set(
        xlabel="time (s)",
        ylabel="length of activity",
        title="{:.0f} % amplify, {:.0f} % decay, {:.0f} % unstable".format(*shares),
    )
    third.title.set_fontsize(11)
    return figure


if __name__ == "__main__":
    main()
