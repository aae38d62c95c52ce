"""What the problems ask of their arguments."""

import math


def require_positive(**numbers: float) -> None:
    """Refuse what is not a finite number above zero.

    Raises:
        ValueError: If one is not; its name is in the message.
    """
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"Expected a finite {name} > 0; got {number}.")


def require_count(least: int, **counts: int) -> None:
    """Refuse what is not an integer, or too small.

    Raises:
        ValueError: If one is not; its name is in the message.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            raise ValueError(f"Expected {name} to be an integer >= {least}; got {count!r}.")
