"""Which couplings let the hub neuron of the stomatogastric ganglion burst at 0.55 Hz, and in which direction are they stiff?

The first figure of Bittner et al. 2021 (eLife 10:e56265), from a registered problem to the sensitive direction: where the
density of the answer falls fastest, the property is lost fastest. Run it with ``--quick`` for a rough answer in minutes, or
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
PLACE = np.array([6.1071, 1.3093])
"""Where the directions are looked at, nS: the published answer's mode. The top of the answer of most entropy is a plateau, on
which the highest point of one fit is not that of another."""

STEPS = np.linspace(-0.3, 0.3, 13)
"""Displacements from there, nS."""


def main():
    """Fit, find the directions, perturb, draw."""
    parser = argparse.ArgumentParser(description="Couplings of the stomatogastric ganglion for bursts at 0.55 Hz.")
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--result", type=Path, help="draw this saved result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    # 1. The question comes with a plugin. Its statistic jumps where the neurons lock to one another, and says so, so that
    #    `fit` takes no gradient through the simulation.
    problem = epi.get_problem("circuits.stg")
    quick = {"max_steps": 50, "num_draws": 50, "certify": False, "start": epi.starts.Pilot(num_draws=200, batch=500)}
    if arguments.result:
        result = epi.load(arguments.result, problem)
    else:
        result = epi.fit(jax.random.key(0), problem, **(quick if arguments.quick else {}))
        result.save(arguments.out / "stomatogastric.nc", overwrite=True)
    print(result, "\n")

    # 2. The answer is a density, with a curvature in every place. The steepest direction is the sensitive one.
    directions, curvatures = directions_at(result, PLACE)
    for name, direction, curvature in zip(("sensitive", "degenerate"), directions, curvatures, strict=True):
        print(f"{name} direction ({direction[0]:+.2f}, {direction[1]:+.2f}), curvature of log q {curvature:.1f} / nS^2")

    # 3. What the simulator says about these directions, with fresh noise.
    frequencies = [perturbed(problem, PLACE, direction) for direction in directions]
    gradient = frequency_gradient(problem, PLACE)
    angle = np.degrees(np.arccos(np.clip(abs(gradient @ directions[0]) / np.linalg.norm(gradient), 0, 1)))
    print(
        f"the frequency's own gradient there is ({gradient[0]:+.3f}, {gradient[1]:+.3f}) Hz / nS, {angle:.0f} degrees off"
    )
    for name, found in zip(("sensitive", "degenerate"), frequencies, strict=True):
        mean = found.mean(axis=1)
        print(f"along the {name} direction the mean frequency spans {mean.max() - mean.min():.3f} Hz")
    draw(result, directions, frequencies).savefig(arguments.out / "stomatogastric.png", dpi=100)
    print(f"The figure is in {arguments.out}.")


def directions_at(result, place):
    """Unit vectors and eigenvalues of the Hessian of log q in a place, the most negative first."""
    found = result.density.sensitivity(jax.random.key(4), dict(zip(NAMES, place, strict=True)))
    # The sign is a convention: more inhibition.
    directions = [vector * np.sign(vector[1]) for vector in found["vector"].values]
    return directions, found["curvature"].values


def frequency_gradient(problem, place, radius=0.25, num_places=300):
    """Slopes of a plane through the frequencies of random places around one, Hz / nS."""
    rng = np.random.default_rng(0)
    angle, distance = rng.uniform(0, 2 * np.pi, num_places), radius * np.sqrt(rng.uniform(size=num_places))
    away = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
    frequencies = simulated(problem, place + away, jax.random.split(jax.random.key(5), (num_places, 1)))[:, 0]
    return np.linalg.lstsq(np.column_stack([away, np.ones(num_places)]), frequencies, rcond=None)[0][:2]


def perturbed(problem, place, direction):
    """Hub frequency at every displacement, in 50 simulations each."""
    return simulated(problem, place + STEPS[:, None] * direction, jax.random.split(jax.random.key(2), (len(STEPS), 50)))


def simulated(problem, places, keys):
    """Hub frequency in every place, once for each of its keys."""

    @jax.jit
    def simulate(places, keys):
        def one(place, key):
            sites = problem.simulator.simulate(key, dict(zip(NAMES, place, strict=True))).sites
            return problem.property.values(sites)["stg.hub_frequency"]

        return jax.vmap(jax.vmap(one, (None, 0)))(places, keys)

    return np.asarray(simulate(jnp.asarray(places, float), keys))


def draw(result, directions, frequencies):
    """Draws with the two directions, and the frequency along them."""
    draws = result.sample(jax.random.key(3), (3000,))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    height = np.asarray(result.log_prob(draws))
    points = left.scatter(draws["g_el"], draws["g_synA"], c=height, s=4, vmin=np.quantile(height, 0.02))
    figure.colorbar(points, label="log q (nats)")
    for direction, name, color in zip(directions, ("sensitive", "degenerate"), ("C3", "C0"), strict=True):
        ends = PLACE + STEPS[[0, -1], None] * direction
        left.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": color, "linewidth": 2})
        left.plot([], [], color=color, label=name)
    left.plot(*PLACE, "k*", markersize=10, label="published mode")
    left.set(xlabel="$g_{el}$ (nS)", ylabel="$g_{synA}$ (nS)", title="Answer")
    left.legend(loc="upper right")
    for found, name, color in zip(frequencies, ("sensitive", "degenerate"), ("C3", "C0"), strict=True):
        right.errorbar(STEPS, found.mean(axis=1), found.std(axis=1), color=color, label=f"along the {name} direction")
    right.axhline(0.55, color="0.5", linestyle=":", label="wanted")
    right.set(xlabel="displacement (nS)", ylabel="hub frequency (Hz)", title="Fresh simulations")
    right.legend()
    return figure


if __name__ == "__main__":
    main()
