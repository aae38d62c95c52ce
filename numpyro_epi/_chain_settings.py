"""How chains move."""

import equinox as eqx

from ._arguments import as_number, check_count, check_positive
from ._collective import members
from ._problem import Problem
from ._reference import Reference


class ChainSettings(eqx.Module):
    """How the chains move.

    Attributes:
        num_chains: Chains of each of the two populations, all of them stepped together.
        num_leapfrog: Leapfrog steps of one transition.
        num_transitions: Transitions between two updates of the multipliers; where steps are short, several of them are one
            trajectory.
        num_updates: Updates in all; the targets are annealed during the first half.
        rate: Share of the natural step taken by an update while annealing, and a third of it after.
        num_draws: Draws of every chain kept from a round at fixed multipliers, ``num_transitions`` apart.
        precision: Rounds go on until the multipliers' standard errors are this share of the largest one, all of them
            measured in the inverse of their statistics' standard deviations, and the means' are small too.
        max_rounds: Most rounds.
        target_acceptance: What the step size is adapted to.
        num_simulations: Simulations that one evaluation averages where the model has noise of its own.
        mirrored: Whether every second one is the mirror image of the one before it, where the model's noise has one.
        within: Standard deviations of a target's that its statistic's mean may be away from it, once the targets have arrived;
            no limit by default, but for chains that left for far away in a first attempt. Several: the normaliser takes it that
            nothing reaches so far but what negative multipliers of a squared deviation draw there.
        reference: The normal that chains begin at where the base is not a proper prior; by default found near the property.
    """

    num_chains: int = 512
    num_leapfrog: int = 8
    num_transitions: int = 8
    num_updates: int = 160
    rate: float = 0.3
    num_draws: int = 20
    precision: float = 0.007
    max_rounds: int = 20
    target_acceptance: float = 0.8
    num_simulations: int = 16
    mirrored: bool = False
    within: float | None = None
    reference: Reference | None = None

    @property
    def num_collective(self) -> int:
        """Leapfrog steps of each plate's members together, between two updates."""
        return self.num_leapfrog * self.num_transitions // 2

    def num_evaluations(self, problem: Problem) -> int:
        """Most evaluations of one chain between two updates, each of `num_simulations` model runs."""
        together = len(members(problem.simulator)) * (self.num_collective + 1)
        return self.num_transitions * (self.num_leapfrog + 1) + together

    def __check_init__(self):
        names = ("num_leapfrog", "num_transitions", "num_updates", "max_rounds", "num_draws", "num_simulations")
        for name, least in (("num_chains", 4), *((name, 2) for name in names)):
            check_count(name, getattr(self, name), least)
        if not isinstance(self.mirrored, bool):
            raise TypeError(f"Expected mirrored to be True or False; got {self.mirrored!r}.")
        if self.mirrored and (self.num_simulations < 4 or self.num_simulations % 2):
            raise ValueError(
                f"Expected two pairs of simulations or more for mirrored=True; got num_simulations={self.num_simulations}."
            )
        check_positive(precision=self.precision)
        if self.within is not None:
            check_positive(within=self.within)
        for name in ("rate", "target_acceptance"):
            if not 0 < as_number(getattr(self, name)) < 1:
                raise ValueError(f"Expected {name} between 0 and 1; got {getattr(self, name)!r}.")
