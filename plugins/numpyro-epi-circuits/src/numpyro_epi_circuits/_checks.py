"""Checks of the problems' arguments."""

import math


def check_positive(**numbers: float) -> None:
    """Raise unless every number is finite and above zero.

    Raises:
        ValueError: If one is not.
    """
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"Expected a finite {name} > 0; got {number}.")


def check_counts(**counts: int) -> None:
    """Raise unless every number is an integer above zero.

    Raises:
        ValueError: If one is not.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"Expected {name} to be an integer >= 1; got {count!r}.")


def check_finite(**numbers: float) -> None:
    """Raise unless every number is finite.

    Raises:
        ValueError: If one is not.
    """
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise ValueError(f"Expected a finite {name}; got {number}.")
