"""Rates of hares and lynxes whose cycles are as long and whose numbers as large as they were, beside the answer in closed form.

From a registered problem to a figure. Run it with ``--quick`` for a rough answer in half a minute, or with ``--result FILE`` to
draw a saved one.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from _answer import answer, simulated
from matplotlib.ticker import FixedLocator, NullLocator

SYMBOLS = ("alpha", "beta", "gamma", "delta")
PRIOR_MEAN, PRIOR_VARIANCE = np.log([1.0, 0.05, 1.0, 0.05]), 0.5**2
TARGETS, SPREADS = np.log([34.0, 20.0, 10.0]), np.array([0.2, 0.2, 0.1])
STATISTICS = np.array([[0, 0, 1, -1], [1, -1, 0, 0], [-0.5, 0, -0.5, 0]])
"""In the rates' logarithms, for small cycles; the third is less log 2 pi."""
TICKS = np.array([0.2, 0.5, 1.0, 2.0])
"""In medians of the prior."""


def main():
    """Fit or load, solve in closed form, simulate, draw."""
    result, out = answer("biology.predator_prey", "Rates of predator and prey.")
    draw(result, *closed_form()).savefig(out / "predator_prey.png", dpi=100)
    print(f"The figure is in {out}.")


def closed_form():
    """Mean and covariance of the rates' logarithms.

    The statistics ``y = L x`` are linear and the prior normal, so the tilt by means and squares of ``y`` is a normal whose
    precision gains ``L' diag(w) L``, and whose mean moves along the covariance times ``L'`` until ``y`` has its targets.
    """

    def covariance(weights):
        return np.linalg.inv(np.eye(4) / PRIOR_VARIANCE + STATISTICS.T * weights @ STATISTICS)

    def excess(weights):
        return np.diag(STATISTICS @ covariance(weights) @ STATISTICS.T) / SPREADS**2 - 1

    spread = covariance(scipy.optimize.root(excess, SPREADS**-2.0).x)
    missing = TARGETS - [0, 0, np.log(2 * np.pi)] - STATISTICS @ PRIOR_MEAN
    along = spread @ STATISTICS.T
    return PRIOR_MEAN + along @ np.linalg.solve(STATISTICS @ along, missing), spread


def draw(result, center, spread):
    """Three planes of rates with ellipses of the prior and of the closed form, and cycles of draws."""
    draws = result.sample(jax.random.key(1), (1500,))
    color = result.log_prob(draws)
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    for axis, (first, second) in zip(
        axes.flat, (("alpha", "gamma"), ("gamma", "delta"), ("alpha", "beta")), strict=False
    ):
        points = axis.scatter(draws[first], draws[second], c=color, s=3)
        pair = [SYMBOLS.index(first), SYMBOLS.index(second)]
        for mean, covariance, style, label in (
            (center, spread, "k-", "closed form"),
            (PRIOR_MEAN, PRIOR_VARIANCE * np.eye(4), "k:", "prior"),
        ):
            for radius in (1, 2):
                path = ellipse(mean[pair], covariance[np.ix_(pair, pair)], radius)
                axis.plot(*np.exp(path), style, linewidth=1, label=f"{label}, 1 and 2 sd" if radius == 1 else None)
        axis.set(xscale="log", yscale="log", xlabel=label_of(first), ylabel=label_of(second))
        for each, rate in ((axis.xaxis, first), (axis.yaxis, second)):
            each.set_major_locator(FixedLocator(TICKS * np.exp(PRIOR_MEAN[SYMBOLS.index(rate)])))
            each.set_major_formatter("{x:g}")
            each.set_minor_locator(NullLocator())
    axes[0, 0].legend(loc="lower left", fontsize=8)
    axes[0, 0].set_title("Answer")
    figure.colorbar(points, ax=axes[0, 1], label="log q")

    cycles = axes[1, 1]
    sites = simulated(result, 12)
    for species, color, wanted in (("prey", "C0", 34.0), ("predator", "C3", 20.0)):
        cycles.plot(sites["time"].T, sites[species].T, color=color, linewidth=0.8, alpha=0.7)
        cycles.plot([], [], color=color, label=species)
        cycles.axhline(wanted, color=color, linestyle="--", linewidth=2)
    cycles.set(
        xlim=(0, 30), xlabel="time (years)", ylabel="population (thousands)", title="Twelve draws; dashed: wanted means"
    )
    cycles.legend(loc="upper right", fontsize=8)
    return figure


def label_of(rate):
    """Symbol and unit."""
    return f"$\\{rate}$ {'(1 / year / thousand)' if rate in ('beta', 'delta') else '(1 / year)'}"


def ellipse(mean, covariance, radius):
    """Points at this many standard deviations, shape [2, 200]."""
    angle = np.linspace(0, 2 * np.pi, 200)
    return mean[:, None] + radius * np.linalg.cholesky(covariance) @ [np.cos(angle), np.sin(angle)]


if __name__ == "__main__":
    main()
