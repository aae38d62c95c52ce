"""Random keys from the outside, checked, and as text that a file can hold."""

import jax
import jax.numpy as jnp
import numpy as np

from ._process import check_process
from ._types import Key


def checked_key(key: Key) -> Key:
    """One typed key; legacy ``uint32`` keys are wrapped.

    Raises:
        TypeError: If it is no random key.
        RuntimeError: If this process was forked from one where JAX was running.
    """
    check_process()
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
        return key
    if isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    given = f"an array of {key.dtype}{list(key.shape)}" if isinstance(key, jax.Array) else repr(key)
    raise TypeError(
        f"Expected one random key first; got {given}. Write jax.random.key(0); jax.random.split makes more."
    )


def key_text(key: Key) -> str:
    """The key's words, with commas between them."""
    return ",".join(str(int(word)) for word in np.asarray(jax.random.key_data(key)).ravel())


def key_from_text(text: str) -> Key:
    """The inverse of `key_text`."""
    return jax.random.wrap_key_data(jnp.asarray(np.array([int(word) for word in text.split(",")], np.uint32)))
