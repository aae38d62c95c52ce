"""Arguments from the outside: each check says what was expected and what came, or says nothing."""

import math
from typing import Any

LARGEST = 2**31 - 1
"""Counters on the device have 32 bits."""


def check_count(name: str, count: Any, least: int = 1) -> None:
    """Refuse all but an integer in range.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise ValueError(f"Expected {name} to be an integer >= {least}; got {count!r}.")
    if count > LARGEST:
        raise ValueError(f"Expected {name} to be an integer from {least} to {LARGEST}; got {count}.")


def check_positive(**numbers: Any) -> None:
    """Refuse all but finite positive numbers.

    Raises:
        ValueError: If one is none.
    """
    for name, given in numbers.items():
        if not as_number(given) > 0:
            raise ValueError(f"Expected {name} > 0; got {given!r}.")
        if as_number(given) == math.inf:
            raise ValueError(f"Expected a finite {name}; got {given!r}.")


def check_bool(**flags: Any) -> None:
    """Refuse all but True and False.

    Raises:
        TypeError: If one is neither.
    """
    for name, given in flags.items():
        if not isinstance(given, bool):
            raise TypeError(f"Expected {name} to be True or False; got {given!r}.")


def check_optional(**flags: Any) -> None:
    """Refuse all but True, False and None.

    Raises:
        TypeError: If one is none of them.
    """
    check_bool(**{name: given for name, given in flags.items() if given is not None})


def check_instance(name: str, given: Any, kind: type, how: str) -> None:
    """Refuse an object of another class, and the class itself in place of an object.

    Args:
        name: Of the argument.
        given: What came.
        kind: What was expected.
        how: Example of one, for the message.

    Raises:
        TypeError: If it is of another class.
    """
    if not isinstance(given, kind):
        raise TypeError(f"Expected {name} to be {how}; got {given!r}.")


def as_number(given: Any) -> float:
    """A real number as a float, NaN where it is none: no text, no flag, no array."""
    if isinstance(given, str | bytes | bool):
        return math.nan
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError):
        return math.nan
