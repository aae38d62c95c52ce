"""Steps of a start whose results are kept, so that a run that is killed before its loop need not repeat them.

A start is a function of key and problem alone, and may simulate for minutes. Inside a journal's ``with`` block each of its
`remembered` steps is read from the checkpoint if it was done before, and written down otherwise.
"""

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

MOST_BYTES = 200_000_000
"""Size of what is kept; steps beyond it are repeated."""

PREFIX = "start."
"""Of the arrays' names in a checkpoint."""


class Journal:
    """Results of steps, by the order in which they were taken.

    Args:
        arrays: Those of a checkpoint; names of other things are left out.
        keep: Called with all arrays after every new step.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], keep: Callable[[dict[str, np.ndarray]], None]):
        self.arrays = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
        self._keep = keep
        self._number = 0
        self._token: Token[Journal | None] | None = None

    def __enter__(self) -> "Journal":
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)

    def step(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The function's result, a tree of arrays, from the journal or into it."""
        prefix, self._number = f"{PREFIX}{self._number}.", self._number + 1
        if f"{prefix}0" in self.arrays:
            return self._read(prefix, function, args)
        found = function(*args)
        new = {f"{prefix}{i}": _words(leaf) for i, leaf in enumerate(jax.tree.leaves(found))}
        if sum(array.nbytes for array in (*self.arrays.values(), *new.values())) <= MOST_BYTES:
            self.arrays |= new
        self._keep(self.arrays)
        return found

    def _read(self, prefix: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        shapes, structure = jax.tree.flatten(eqx.filter_eval_shape(function, *args))
        keys = [leaf for leaf in jax.tree.leaves(args) if _is_key(leaf)]
        leaves = []
        for i, shape in enumerate(shapes):
            array = self.arrays.get(f"{prefix}{i}")
            if array is not None and _is_key(shape):
                like = next(key for key in keys if key.dtype == shape.dtype)
                leaf = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
            else:
                leaf = None if array is None else jnp.asarray(array)
            if leaf is None or (leaf.shape, leaf.dtype) != (shape.shape, shape.dtype):
                raise ValueError(
                    f"Expected the start that the run was given; step {prefix.removeprefix(PREFIX)}{i} of the one in the "
                    f"checkpoint is {None if leaf is None else leaf.shape}, not {shape.shape}."
                )
            leaves.append(leaf)
        return jax.tree.unflatten(structure, leaves)


_CURRENT: ContextVar[Journal | None] = ContextVar("journal", default=None)


def remembered(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function whose result is a tree of arrays, unless the journal around holds what it gave."""
    journal = _CURRENT.get()
    return function(*args) if journal is None else journal.step(function, args)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _words(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
