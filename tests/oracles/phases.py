"""A first-order transition: two normal phases of different width and height, between which tempering from the base jumps."""

import math

import numpy as np
import numpyro
import numpyro.distributions as dist

from oracles.exact import Feature, Modes, Solution, Stranger, pose

BOX, PLACE = 10.0, 0.1
"""Half the side of the base's box, and every coordinate of the narrow phase's centre. The wide one stands at zero, with width
one; the box cuts off less than 1e-20 of either."""


def phases(dim: int, narrow: float, share: float) -> Stranger:
    """The narrow phase has this width and this share of the solution.

    At half of the multiplier its share is smaller by a factor of about ``narrow ** (dim / 2)``.
    """
    height = math.log(share / (1 - share)) - dim * math.log(narrow)

    def log_heights(xp, v):
        wide = -0.5 * xp.sum(v["z"] ** 2, axis=-1)
        return xp.stack([wide, height - 0.5 * xp.sum((v["z"] - PLACE) ** 2, axis=-1) / narrow**2], axis=-1)

    def energy(xp, v):
        heights = log_heights(xp, v)
        return -xp.logaddexp(heights[..., 0], heights[..., 1])

    def model() -> None:
        numpyro.sample("z", dist.Uniform(-BOX, BOX).expand([dim]).to_event(1))

    # Where one phase has its draws the other's height adds less than 1e-6: the energy is half a chi-squared variable, less the
    # height in the narrow phase.
    mean = dim / 2 - share * height
    variance = dim / 2 + share * (1 - share) * height**2
    log_normalizer = dim * math.log(math.sqrt(2 * math.pi) / (2 * BOX)) - math.log(1 - share)
    solution = Solution(np.array([1.0]), np.array([mean]), np.array([[variance]]), log_normalizer, np.zeros(1))
    return pose(
        "phases",
        f"phases of widths 1 and {narrow} in {dim} dimensions, {share:.0%} in the narrow one",
        model,
        [Feature("energy", energy)],
        solution,
        log_base=lambda v: np.full(len(v["z"]), -dim * math.log(2 * BOX)),
        modes=Modes(lambda v: np.argmax(log_heights(np, v), axis=-1), np.array([1 - share, share])),
        tags=["interval", "hard", "closed form", "modes"],
    )
