"""Which two-dimensional linear systems oscillate at 1 Hz: the fitted answer beside the exact one, and its two modes at work.

Figure 1-figure supplement 1 of Bittner et al. 2021 (eLife 10:e56265) from a registered problem. Run it with ``--quick`` for a
rough answer in half a minute, or with ``--result FILE`` to draw a saved one.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.optimize

import numpyro_epi as epi

BOUND, GROWTH_SD = 10.0, 0.25
FREQUENCY, FREQUENCY_SD = 2 * np.pi, 0.2 * np.pi
"""Of the registered problem, in 1/s and rad/s."""
NUM_CELLS = 100
"""Along every axis of the quadrature; their width of 0.2 1/s is far below the answer's."""
START = np.array([1.0, -1.0]) / np.sqrt(2)
MODES = {"a12 > 0 > a21": ("C0", 1), "a12 < 0 < a21": ("C1", -1)}


def main():
    """Fit or load, integrate, simulate, draw."""
    parser = argparse.ArgumentParser(description="Linear systems that oscillate at 1 Hz.")
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--result", type=Path, help="draw this saved result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problem = epi.get_problem("dynamics.oscillator")
    if arguments.result:
        result = epi.load(arguments.result, problem)
    else:
        result = epi.fit(jax.random.key(0), problem, **({"max_steps": 300} if arguments.quick else {}))
        result.save(arguments.out / "oscillator.nc", overwrite=True)
    print(result, "\n")
    draw(result).savefig(arguments.out / "oscillator.png", dpi=100)
    print(f"The figure is in {arguments.out}.")


def exact_marginals():
    """Cells' centers, and the exact densities of a12 and a11 there, by quadrature.

    With ``c = (a11 + a22) / 2`` and ``d = (a11 - a22) / 2`` the growth rate of a system that rotates is ``c``, and its squared
    frequency ``-d^2 - a12 a21``. So ``c`` is normal but for the box's far ends, and independent of the other three, whose density
    is ``exp(-eta1 w - eta2 w^2)``; where nothing rotates it is negligible, ten spreads away.
    """
    cells = BOUND * (2 * np.arange(NUM_CELLS) + 1 - NUM_CELLS) / NUM_CELLS
    squared = -np.square(cells)[:, None, None] - cells[:, None] * cells
    frequency = np.sqrt(np.maximum(squared, 0.0))
    excess = (frequency - FREQUENCY) / FREQUENCY_SD

    def density(eta):
        weight = np.where(squared > 0, np.exp(-eta[0] * excess - eta[1] * excess**2), 0.0)
        return weight / weight.sum()

    def violation(eta):
        weight = density(eta)
        return [np.sum(weight * excess), np.sum(weight * excess**2) - 1]

    # Axes: d, a12, a21.
    weight = density(scipy.optimize.root(violation, [0.0, 0.5]).x) / (cells[1] - cells[0])
    of_a11 = scipy.ndimage.gaussian_filter1d(weight.sum(axis=(1, 2)), GROWTH_SD / (cells[1] - cells[0]))
    return cells, weight.sum(axis=(0, 2)), of_a11


def draw(result):
    """Off-diagonal entries with the level set, marginals beside the exact ones, and trajectories of both modes."""
    draws = result.sample(jax.random.key(1), (2000,))
    matrices = np.asarray(draws["A"], float)
    figure, ((entries, marginals), (plane, traces)) = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    points = entries.scatter(matrices[:, 0, 1], matrices[:, 1, 0], c=result.log_prob(draws), s=3)
    figure.colorbar(points, label="log q (nats)")
    grid = np.linspace(1e-2, BOUND, 400)
    for factor, style in ((0, "-"), (-2, ":"), (2, ":")):
        product = (FREQUENCY + factor * FREQUENCY_SD) ** 2
        label = {0: "1 Hz where a11 = a22", 2: "± 2 sd"}.get(factor)
        for sign in (1, -1):
            entries.plot(sign * grid, -sign * product / grid, f"k{style}", label=label if sign > 0 else None)
    entries.set(xlim=(-BOUND, BOUND), ylim=(-BOUND, BOUND), title="Answer", xlabel="a12 (1/s)", ylabel="a21 (1/s)")
    entries.legend(loc="lower left", fontsize=8)

    cells, of_a12, of_a11 = exact_marginals()
    many = np.asarray(result.sample(jax.random.key(2), (20_000,))["A"], float)
    for name, found, exact, color in (
        ("a12", many[:, 0, 1], of_a12, "C2"),
        ("a11", many[:, 0, 0], of_a11, "C4"),
    ):
        marginals.hist(
            found, 60, range=(-BOUND, BOUND), density=True, histtype="step", color=color, label=f"{name}, fitted"
        )
        marginals.plot(cells, exact, "--", color=color, label=f"{name}, exact")
    marginals.set(xlabel="entry (1/s)", ylabel="density (s)", title="Marginals beside quadrature", ylim=(0, 0.15))
    marginals.legend(ncols=2, fontsize=8, loc="upper center")

    seconds = np.linspace(0.0, 2.0, 201)
    for label, (color, sign) in MODES.items():
        chosen = matrices[sign * matrices[:, 0, 1] > 0][:5]
        paths = np.array([[scipy.linalg.expm(t * matrix) @ START for t in seconds] for matrix in chosen])
        first = paths[:, :101]
        plane.plot(*first.transpose(2, 1, 0), color=color, linewidth=1)
        plane.quiver(*first[:, 10].T, *(first[:, 11] - first[:, 10]).T, color=color, angles="xy", width=0.008, zorder=3)
        traces.plot(seconds, paths[:, :, 0].T, color=color, linewidth=1)
        traces.plot([], [], color=color, label=label)
    plane.plot(*START, "ko", markersize=5)
    plane.set(xlabel="x1", ylabel="x2", title="One second from one start")
    traces.set(xlabel="time (s)", ylabel="x1", title="Five draws of each mode")
    traces.legend(ncols=2, loc="upper left", fontsize=8)
    traces.margins(y=0.15)
    return figure


if __name__ == "__main__":
    main()
