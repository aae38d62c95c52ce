"""How contagious, and for how long: rates of epidemics that peak on day 45 and infect 60 %, beside the differential equations.

From a registered problem to a figure. Run it with ``--quick`` for a rough answer in half a minute, or with ``--result FILE`` to
draw a saved one.
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.integrate
from _answer import answer, simulated

POPULATION, INFECTED, NUM_DAYS = 100_000, 500, 150
PEAK, PEAK_SD, ATTACK, ATTACK_SD = 45.0, 5.0, 0.6, 0.05


def main():
    """Fit or load, simulate, draw."""
    result, out = answer("biology.sir", "Rates of an epidemic.")
    draw(result).savefig(out / "sir.png", dpi=100)
    print(f"The figure is in {out}.")


def draw(result):
    """Rates with level sets of the equations, epidemics of draws, and attack rates beside the final-size relation."""
    draws = result.sample(jax.random.key(1), (2000,))
    figure, (rates, epidemics, sizes) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    points = rates.scatter(draws["transmission"], draws["recovery"], c=result.log_prob(draws), s=4)
    figure.colorbar(points, label="log q")
    limits = rates.get_xlim(), rates.get_ylim()
    transmission = np.linspace(*limits[0], 200)
    for attack, style in ((ATTACK - 2 * ATTACK_SD, ":"), (ATTACK, "-"), (ATTACK + 2 * ATTACK_SD, ":")):
        rates.plot(transmission, transmission / reproduction_number(attack), f"k{style}", linewidth=1)
    grid = [np.linspace(*limit, 25) for limit in limits]
    # Where hardly anybody is infected the peak jumps to the first day.
    peaks = [[expected_peak(a, b) if a > 1.15 * b else np.nan for a in grid[0]] for b in grid[1]]
    days = [PEAK - 2 * PEAK_SD, PEAK, PEAK + 2 * PEAK_SD]
    rates.contour(*grid, peaks, days, colors="C3", linestyles=[":", "-", ":"], linewidths=1)
    rates.plot([], [], "k-", label="60 % (dotted: 50, 70)")
    rates.plot([], [], "C3-", label="day 45 (dotted: 35, 55)")
    rates.set(xlim=limits[0], ylim=limits[1])
    rates.set(xlabel="transmission (1/day)", ylabel="recovery (1/day)", title="Answer, with the equations' level sets")
    rates.legend(loc="upper left", fontsize=8)

    sites = simulated(result, 400)
    epidemics.axvspan(PEAK - PEAK_SD, PEAK + PEAK_SD, color="C3", alpha=0.15, label="wanted peak, ± 1 sd")
    epidemics.plot(sites["infected"][:40].T, color="C0", linewidth=0.7, alpha=0.7)
    tops = np.argmax(sites["infected"], axis=1)
    epidemics.plot(
        tops[:40], sites["infected"][np.arange(40), tops[:40]], "k.", markersize=4, label="peaks of 40 draws"
    )
    epidemics.set(
        xlabel="day", ylabel="infected", title=f"Fresh simulations: peak on day {tops.mean():.1f} ± {tops.std():.1f}"
    )
    epidemics.legend(fontsize=8)

    attack = 1 - sites["susceptible"][:, -1] / sites["susceptible"][:, 0]
    ratio = sites["transmission"] / sites["recovery"]
    sizes.axhspan(ATTACK - ATTACK_SD, ATTACK + ATTACK_SD, color="C3", alpha=0.15, label="wanted, ± 1 sd")
    sizes.scatter(ratio, attack, s=5, label="fresh simulations")
    grid = np.linspace(0.35, 0.8, 100)
    sizes.plot(reproduction_number(grid), grid, "k-", label="final-size relation")
    title = f"{100 * attack.mean():.1f} ± {100 * attack.std():.1f} % are infected"
    sizes.set(xlabel="transmission / recovery", ylabel="attack rate", title=title)
    sizes.legend(loc="lower right", fontsize=8)
    return figure


def reproduction_number(attack):
    """Of epidemics that infect this share ``a`` of the susceptible share ``s``: ``1 - a = exp(-R0 (a s + 1 - s))``."""
    susceptible = 1 - INFECTED / POPULATION
    return -np.log(1 - attack) / (attack * susceptible + 1 - susceptible)


def expected_peak(transmission, recovery):
    """Day of the largest prevalence, by SciPy's solver of Kermack and McKendrick's equations."""

    def slope(t, state):
        infections = transmission * state[0] * state[1] / POPULATION
        return [-infections, infections - recovery * state[1]]

    days = np.linspace(0, NUM_DAYS, 10 * NUM_DAYS + 1)
    found = scipy.integrate.solve_ivp(slope, (0, NUM_DAYS), [POPULATION - INFECTED, INFECTED], t_eval=days, rtol=1e-6)
    return days[np.argmax(found.y[1])]


if __name__ == "__main__":
    main()
