"""Two regimes of rapid task switching in the superior colliculus, what they are sensitive to, and what silencing does to them.

Figures 4 and 5 of Bittner et al. 2021 (eLife 10:e56265) from a registered problem. Run it with ``--quick`` for a rough answer in
some minutes, or with ``--result FILE`` to draw a saved one.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from numpyro_epi_circuits.colliculus import WEIGHT_NAMES

import numpyro_epi as epi

PROBLEM = "circuits.sc_task_switching"
TASK_MODES = {"task": np.array([1, -1, -1, 1]) / 2, "diagonal": np.array([1, -1, 1, -1]) / 2}
"""Eigenvectors of the connectivity, in the order of the weights' names."""
STRENGTHS = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.675, 0.75, 0.85, 1.0])
"""Shares of the output that are silenced; the paper looks at 0.675 and 0.85."""
FLIPPED = 0.85
"""Where the task that units hold is flipped to Pro."""
SHIFTS = np.linspace(-0.25, 0.25, 7)


def main():
    """Fit or load, follow the conditional modes, perturb, silence, draw."""
    parser = argparse.ArgumentParser(description="Task switching in the superior colliculus.")
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--result", type=Path, help="draw this saved result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problem = epi.get_problem(PROBLEM)
    if arguments.result:
        result = epi.load(arguments.result, problem)
    else:
        result = epi.fit(jax.random.key(0), problem, **({"max_steps": 300} if arguments.quick else {}))
        result.save(arguments.out / "colliculus.nc", overwrite=True)
    print(result, "\n")

    # 1. With the weight within units fixed, the density has one summit: from high to low it goes through both regimes.
    path = result.density.conditional_modes(jax.random.key(1), "sW", np.linspace(1.0, -1.0, 9))
    modes = np.array([[mode.values[name] for name in WEIGHT_NAMES] for mode in path], float)
    steepest = [sensitive_direction(result, mode.values) for mode in path]
    for place, direction in zip(modes, steepest, strict=True):
        print("mode", np.round(place, 2), "sensitive direction", np.round(direction, 2), "of", WEIGHT_NAMES)

    # 2. Accuracies along the sensitive direction and the connectivity's own modes, in both regimes.
    regimes = {"low sW": -2, "high sW": 1}
    along = {}
    for regime, i in regimes.items():
        for name, direction in {"sensitive": steepest[i], **TASK_MODES}.items():
            places = modes[i] + SHIFTS[:, None] * direction
            along[regime, name] = np.mean([accuracies(problem, key, places) for key in range(25)], axis=0)

    # 3. Silencing in the delay, over the whole answer: every draw belongs to the nearest of the modes.
    sites = result.sample(jax.random.key(2), (400,))
    draws = np.stack([np.asarray(sites[name]) for name in WEIGHT_NAMES], axis=1)
    low = np.argmin(np.linalg.norm(draws[:, None] - modes, axis=2), axis=1) >= len(modes) // 2
    silenced = [accuracies(epi.get_problem(PROBLEM, inactivation=float(s)), 0, draws) for s in STRENGTHS]
    silenced = np.array(silenced)
    flipped = silenced[STRENGTHS == FLIPPED][0]
    for members, regime in ((low, "low sW"), (~low, "high sW")):
        slip = np.sqrt(np.mean(np.square(flipped[members, 1] - (1 - silenced[0, members, 0]))))
        print(
            f"silenced by {FLIPPED}, {regime}: Anti accuracy {flipped[members, 1].mean():.3f}, 1 - Pro accuracy without",
            end=" ",
        )
        print(f"{1 - silenced[0, members, 0].mean():.3f}, root mean square difference {slip:.3f}")
    figure = draw(result, modes, steepest, along, silenced, low)
    figure.savefig(arguments.out / "colliculus.png", dpi=95)
    print(f"The figure is in {arguments.out}.")


def sensitive_direction(result, values):
    """Unit vector of the steepest fall of the density at a place, in the order of the weights; its hW part is negative."""
    vector = result.density.sensitivity(jax.random.key(3), values)["vector"]
    vector = vector.isel(direction=0).sel(parameter=list(WEIGHT_NAMES)).values
    return vector * -np.sign(vector[WEIGHT_NAMES.index("hW")])


def accuracies(problem, seed, places):
    """Accuracy in Pro and Anti trials at every place [N, 4]: [N, 2]."""
    return np.asarray(
        _accuracies(problem, jax.random.split(jax.random.key(seed), len(places)), jnp.asarray(places, float))
    )


@eqx.filter_jit
def _accuracies(problem, keys, places):
    def one(pair):
        key, place = pair
        sites = problem.simulator.simulate(key, dict(zip(WEIGHT_NAMES, place, strict=True))).sites
        return jnp.stack(list(problem.property.values(sites).values()))

    return jax.lax.map(one, (keys, places))


def draw(result, modes, steepest, along, silenced, low):
    """Draws with the conditional modes; accuracies along directions; errors under silencing."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    draws = result.sample(jax.random.key(4), (3000,))
    height = np.asarray(result.log_prob(draws))
    points = axes[0, 0].scatter(draws["sW"], draws["hW"], c=height, s=4, vmin=np.quantile(height, 0.02))
    figure.colorbar(points, label="log q (nats)")
    axes[0, 0].plot(modes[:, 0], modes[:, 3], "k*-", label="modes at fixed sW")
    arrows = np.array(steepest)
    axes[0, 0].quiver(*modes[:, [0, 3]].T, *arrows[:, [0, 3]].T, color="C3", scale=8, zorder=3)
    axes[0, 0].plot([], [], color="C3", label="sensitive direction")
    # The few draws far out would take all the room.
    limits = {
        f"{axis}lim": np.quantile(draws[name], [0.002, 0.998]) + np.array([-0.5, 0.5])
        for axis, name in (("x", "sW"), ("y", "hW"))
    }
    axes[0, 0].set(xlabel="sW", ylabel="hW", title="Answer", **limits)
    axes[0, 0].legend()
    for axis, regime in zip((axes[0, 1], axes[0, 2]), ("low sW", "high sW"), strict=True):
        for (where, name), found in along.items():
            if where == regime:
                color = {"sensitive": "C3", "task": "C0", "diagonal": "C2"}[name]
                axis.plot(SHIFTS, found[:, 0], color=color, label=f"{name}, Pro")
                axis.plot(SHIFTS, found[:, 1], color=color, linestyle="--", label=f"{name}, Anti")
        axis.set(xlabel="displacement from the mode", ylabel="accuracy", title=f"Perturbed, {regime}", ylim=(0.4, 1))
        axis.legend(ncols=3, fontsize=7)
    error = 1 - silenced
    for members, regime, color in ((low, "low sW", "C4"), (~low, "high sW", "C1")):
        change = error[:, members].mean(axis=1) - error[0, members].mean(axis=0)
        axes[1, 0].plot(STRENGTHS, change[:, 0], color=color, label=f"{regime}, Pro")
        axes[1, 0].plot(STRENGTHS, change[:, 1], color=color, linestyle="--", label=f"{regime}, Anti")
    change = error.mean(axis=1) - error[0].mean(axis=0)
    axes[1, 0].plot(STRENGTHS, change[:, 1], color="k", linestyle="--", label="all, Anti")
    axes[1, 0].axhline(0.07, color="0.5", linestyle=":", label="rats, Anti")
    axes[1, 0].set(xlabel="share of output silenced in the delay", ylabel="change of error rate", title="Silencing")
    axes[1, 0].legend()
    axes[1, 1].set(
        xlabel="1 - Pro accuracy without silencing", ylabel="Anti accuracy, silenced", title=f"Silenced by {FLIPPED}"
    )
    axes[1, 2].set(xlabel="Pro accuracy", ylabel="Anti accuracy", title="Fresh simulations of the answer")
    (flipped,) = silenced[STRENGTHS == FLIPPED]
    for members, regime, color in ((low, "low sW", "C4"), (~low, "high sW", "C1")):
        axes[1, 1].plot(1 - silenced[0, members, 0], flipped[members, 1], ".", color=color, label=regime, alpha=0.6)
        axes[1, 2].plot(*silenced[0, members].T, ".", color=color, label=regime, alpha=0.6)
    axes[1, 1].plot([0, 0.6], [0, 0.6], "k:", label="the other task's answer")
    axes[1, 1].set(xlim=(0, 0.6), ylim=(0, 0.6))
    axes[1, 2].errorbar(0.75, 0.75, 0.075, 0.075, "k", label="targets")
    for axis in axes[1, 1:]:
        axis.legend(loc="upper left")
    return figure


if __name__ == "__main__":
    main()
