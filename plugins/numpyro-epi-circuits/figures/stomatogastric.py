"""Which couplings let the hub neuron of the stomatogastric ganglion burst at 0.55 Hz, and in which direction are they stiff?

The first figure of Bittner et al. 2021 (eLife 10:e56265), from a registered problem to the sensitive direction: where the
density of the answer falls fastest, the property is lost fastest. Run it with ``--quick`` for a rough answer in a minute, or
with ``--result FILE`` to draw a saved one.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import numpyro_epi as epi

NAMES = ("g_el", "g_synA")
STEPS = np.linspace(-0.3, 0.3, 13)
"""Displacements from the mode, nS."""


def main():
    """Fit, find the mode, perturb, draw."""
    parser = argparse.ArgumentParser(description="Couplings of the stomatogastric ganglion for bursts at 0.55 Hz.")
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--result", type=Path, help="draw this saved result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # 1. The question comes with a plugin. Its statistic jumps where the neurons lock to one another, and says so, so that
    #    `fit` takes no gradient through the simulation.
    problem = epi.get_problem("circuits.stg")
    quick = {"max_steps": 100, "num_draws": 100, "start": epi.starts.Pilot(num_draws=200, batch=500)}
    if arguments.result:
        result = epi.load(arguments.result, problem)
    else:
        result = epi.fit(jax.random.key(0), problem, **(quick if arguments.quick else {}))
        result.save(arguments.out / "stomatogastric.nc", overwrite=True)
    print(result, "\n")

    # 2. The answer is a density: its mode, and the curvature there. The steepest direction is the sensitive one.
    mode, directions, curvatures = mode_and_directions(result)
    print(f"Mode: g_el {mode[0]:.2f} nS, g_synA {mode[1]:.2f} nS")
    for name, direction, curvature in zip(("sensitive", "degenerate"), directions, curvatures, strict=True):
        print(f"{name} direction ({direction[0]:+.2f}, {direction[1]:+.2f}), curvature of log q {curvature:.1f} / nS^2")

    # 3. What the simulator says about these directions, with fresh noise.
    frequencies = [perturbed(problem, mode, direction) for direction in directions]
    for name, found in zip(("sensitive", "degenerate"), frequencies, strict=True):
        mean = found.mean(axis=1)
        print(f"along the {name} direction the mean frequency spans {mean.max() - mean.min():.3f} Hz")
    draw(result, mode, directions, frequencies).savefig(arguments.out / "stomatogastric.png", dpi=100)
    print(f"The figure is in {arguments.out}.")


def mode_and_directions(result):
    """Place of the highest density, unit vectors and eigenvalues of the Hessian there, the most negative first."""
    mode = max(result.density.modes(jax.random.key(1)), key=lambda mode: mode.log_density)
    found = result.density.sensitivity(jax.random.key(4), mode.values)
    # The sign is a convention: more inhibition.
    directions = [vector * np.sign(vector[1]) for vector in found["vector"].values]
    return np.array([mode.values[name] for name in NAMES], float), directions, found["curvature"].values


def perturbed(problem, mode, direction):
    """Hub frequency at every displacement, in 50 simulations each."""
    places = mode + STEPS[:, None] * direction
    keys = jax.random.split(jax.random.key(2), (len(STEPS), 50))

    @jax.jit
    def simulate(places, keys):
        def one(place, key):
            sites = problem.simulator.simulate(key, dict(zip(NAMES, place, strict=True))).sites
            return problem.property.values(sites)["stg.hub_frequency"]

        return jax.vmap(jax.vmap(one, (None, 0)))(places, keys)

    return np.asarray(simulate(jnp.asarray(places, float), keys))


def draw(result, mode, directions, frequencies):
    """Draws with the two directions at the mode, and the frequency along them."""
    draws = result.sample(jax.random.key(3), (3000,))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    points = left.scatter(draws["g_el"], draws["g_synA"], c=result.log_prob(draws), s=4, cmap="viridis")
    figure.colorbar(points, label="log q (nats)")
    for direction, name, color in zip(directions, ("sensitive", "degenerate"), ("C3", "C0"), strict=True):
        ends = mode + STEPS[[0, -1], None] * direction
        left.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
        left.plot([], [], color=color, label=name)
    left.plot(*mode, "k*", markersize=10, label="mode")
    left.set(xlabel="$g_{el}$ (nS)", ylabel="$g_{synA}$ (nS)", title="Answer")
    left.legend(loc="upper right")
    for found, name, color in zip(frequencies, ("sensitive", "degenerate"), ("C3", "C0"), strict=True):
        right.errorbar(STEPS, found.mean(axis=1), found.std(axis=1), color=color, label=f"along the {name} direction")
    right.axhline(0.55, color="0.5", linestyle=":", label="wanted")
    right.set(xlabel="displacement from the mode (nS)", ylabel="hub frequency (Hz)", title="Fresh simulations")
    right.legend()
    return figure


if __name__ == "__main__":
    main()
