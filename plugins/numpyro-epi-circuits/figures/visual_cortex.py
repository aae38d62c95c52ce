"""Which input noise of four populations makes the excitatory rate fluctuate by 5 Hz, and which by 10 Hz?

Figure 3 of Bittner et al. 2021 (eLife 10:e56265) from a registered problem: noise of the excitatory cells trades off against that
of the parvalbumin cells, on a ring. Run it with ``--quick`` for a rough answer in some minutes, or with ``--results FILE FILE``
to draw saved ones.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import numpyro_epi as epi

FREQUENCIES = (5.0, 10.0)
SCALE = 1000.0
"""Noise is drawn in thousandths of the code's unit."""
NUM_TESTED = 500
"""Draws of each answer that are compared, as in the paper: a p-value is one of their number too."""


def main():
    """Fit or load, compare the two answers, draw."""
    parser = argparse.ArgumentParser(description="Input noise of visual cortex.")
    parser.add_argument("--quick", action="store_true", help="short, rough fits")
    parser.add_argument("--results", type=Path, nargs=2, help="draw these saved results, for 5 and 10 Hz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for i, frequency in enumerate(FREQUENCIES):
        problem = epi.get_problem("circuits.v1_ssn", fluctuation_hz=frequency)
        if arguments.results:
            result = epi.load(arguments.results[i], problem)
        else:
            result = epi.fit(jax.random.key(0), problem, **({"max_steps": 200} if arguments.quick else {}))
            result.save(arguments.out / f"visual_cortex_{frequency:g}.nc", overwrite=True)
        print(result, "\n")
        results.append(result)

    draws = [np.asarray(result.sample(jax.random.key(1), (2000,))["sigma"], float) for result in results]
    tests = {}
    for name, columns in {"E² + P²": [0, 1], "S² + V²": [2, 3]}.items():
        sums = [np.sum(np.square(found[:NUM_TESTED, columns]), axis=1) for found in draws]
        tests[name] = stats.ks_2samp(*sums)
        print(f"{name}, 5 against 10 Hz, Kolmogorov-Smirnov: {tests[name].statistic:.2f}, p = {tests[name].pvalue:.2g}")
    paths = [conditional_modes(result) for result in results]
    draw(results, draws, paths, tests).savefig(arguments.out / "visual_cortex.png", dpi=150)
    print(f"The figure is in {arguments.out}.")


def conditional_modes(result):
    """Modes at fixed noise of P, and the steepest direction of log q in the plane of E and P at each, its E part positive.

    They stay away from the box's edges, where a flow falls off.
    """
    largest = float(np.quantile(result.sample(jax.random.key(2), (2000,))["sigma"][:, 1], 0.9))
    path = result.density.conditional_modes(jax.random.key(3), "sigma[1]", np.linspace(0.25, 0.75, 4) * largest)
    modes = np.array([mode.values["sigma"] for mode in path], float)
    hessians = np.asarray(result.density.hessian({"sigma": modes})["sigma"]["sigma"], float)
    vectors = np.linalg.eigh(hessians[:, :2, :2])[1][:, :, 0]
    return modes, vectors * np.sign(vectors[:, :1])


def draw(results, draws, paths, tests):
    """Draws of E and P with modes and sensitive directions; sums of squares; fresh simulations."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for frequency, result, found, (modes, vectors), color in zip(
        FREQUENCIES, results, draws, paths, ("C0", "C3"), strict=True
    ):
        left.scatter(*SCALE * found[:1000, :2].T, s=3, alpha=0.4, color=color, label=f"{frequency:g} Hz")
        left.plot(*SCALE * modes[:, :2].T, "k*", markersize=8)
        left.quiver(*SCALE * modes[:, :2].T, *vectors.T, color="k", scale=10, width=0.005)
        for columns, style in (([0, 1], "-"), ([2, 3], ":")):
            sums = np.sum(np.square(SCALE * found[:, columns]), axis=1)
            name = "E² + P²" if style == "-" else "S² + V²"
            middle.hist(
                sums, 40, density=True, histtype="step", color=color, linestyle=style, label=f"{name}, {frequency:g} Hz"
            )
        rates = result.statistics(jax.random.key(5), 300)["v1.excitatory_fluctuation"].values
        right.hist(rates, 30, density=True, histtype="step", color=color)
        grid = np.linspace(frequency - 4, frequency + 4, 100)
        right.plot(grid, stats.norm.pdf(grid, frequency, 1.0), ":", color=color, label=f"normal, {frequency:g} ± 1 Hz")
    left.set(xlabel="$\\sigma_E$ (1e-3)", ylabel="$\\sigma_P$ (1e-3)", title="Answers, modes at fixed $\\sigma_P$")
    middle.set(
        xlabel="sum of squares (1e-6)",
        ylabel="density of draws",
        title="5 or 10 Hz? " + ", ".join(f"{name}: p = {test.pvalue:.1g}" for name, test in tests.items()),
    )
    middle.title.set_fontsize(10)
    right.set(xlabel="fluctuation of the excitatory rate (Hz)", ylabel="density (1/Hz)", title="Fresh simulations")
    for axis in (left, middle, right):
        axis.legend(fontsize=8, loc="upper right")
    right.set_ylim(0, 0.55)
    return figure


if __name__ == "__main__":
    main()
