"""Promoters, lifetimes and cooperativity of a ring of three repressors that oscillates as in cells, beside its onset.

From a registered problem to a figure: where oscillations begin is known from the eigenvalues at the state without them. Run it
with ``--quick`` for a rough answer in a minute, or with ``--result FILE`` to draw a saved one.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from _answer import answer, simulated

LEAK = 1e-3
PERIOD, PERIOD_SD = 55.0, 14.0
LEVELS = {2.0: ":", 3.0: "--", 4.0: "-"}
"""Hill coefficients whose onset is drawn."""


def main():
    """Fit or load, simulate, draw."""
    result, out = answer("biology.repressilator", "A ring of three repressors.")
    draw(result).savefig(out / "repressilator.png", dpi=100)
    print(f"The figure is in {out}.")


def draw(result):
    """Draws in the plane of promoter and decay with the onset, trajectories, and amplitudes beside the growth rate."""
    draws = result.sample(jax.random.key(1), (2000,))
    figure, (plane, traces, onset) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    points = plane.scatter(draws["log10_alpha"], draws["log10_beta"], c=draws["n"], s=4, vmin=1.5, vmax=4)
    figure.colorbar(points, label="Hill coefficient n")
    grid = np.linspace(0.0, 3.0, 60), np.linspace(-1.0, 1.0, 60)
    for n, style in LEVELS.items():
        growth = np.array([[growth_rate(10**a, 10**b, n) for a in grid[0]] for b in grid[1]])
        plane.contour(*grid, growth, [0.0], colors="k", linestyles=style, linewidths=1)
        plane.plot([], [], f"k{style}", label=f"onset, n = {n:g}")
    plane.set(
        xlabel="log10 of promoter strength",
        ylabel="log10 of protein decay",
        title="Answer; oscillations right of a line",
    )
    plane.legend(loc="upper right", fontsize=8)

    sites = simulated(result, 400)
    for color, proteins in zip(("C0", "C1", "C2"), sites["log_protein"][0].T, strict=True):
        traces.plot(sites["time"][0], np.exp(proteins), color=color, linewidth=2)
    traces.plot(sites["time"][1:6].T, np.exp(sites["log_protein"][1:6, :, 0]).T, color="0.7", linewidth=0.8, zorder=0)
    traces.set(
        yscale="log",
        xlabel="time (mRNA lifetimes)",
        ylabel="protein",
        title="Three proteins of a draw, one of five more",
    )

    values = {name: np.asarray(value) for name, value in statistics(result, sites).items()}
    rates = [
        growth_rate(10**a, 10**b, n)
        for a, b, n in zip(sites["log10_alpha"], sites["log10_beta"], sites["n"], strict=True)
    ]
    period = values["repressilator.period"]
    points = onset.scatter(rates, values["repressilator.amplitude"], c=period, s=6, cmap="plasma")
    figure.colorbar(points, label="period (mRNA lifetimes)")
    onset.axvline(0.0, color="k", linewidth=1)
    onset.set(xlabel="growth rate from the eigenvalues (1 / mRNA lifetime)", ylabel="amplitude")
    onset.set_title(f"Fresh simulations: period {period.mean():.0f} ± {period.std():.0f}")
    return figure


def statistics(result, sites):
    """The statistics of every simulation."""
    return jax.vmap(result.problem.property.values)(sites)


def growth_rate(alpha, beta, n):
    """Largest real part of the Jacobian's eigenvalues at the state in which all proteins are equal, per mRNA lifetime."""

    def excess(log_p):
        return alpha * (1 / (1 + np.exp(n * log_p)) + LEAK) - np.exp(log_p)

    p = np.exp(scipy.optimize.brentq(excess, -20.0, 20.0))
    repression = -alpha * n * p ** (n - 1) / (1 + p**n) ** 2
    jacobian = np.block(
        [[-np.eye(3), repression * np.roll(np.eye(3), 1, axis=0)], [beta * np.eye(3), -beta * np.eye(3)]]
    )
    return np.linalg.eigvals(jacobian).real.max()


if __name__ == "__main__":
    main()
