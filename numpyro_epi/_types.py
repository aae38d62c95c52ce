"""Array aliases. Dims: M constraints, D unconstrained size, N draws, epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray

Key: TypeAlias = PRNGKeyArray
Scalar: TypeAlias = Float[Array, ""]
Sites: TypeAlias = Mapping[str, Array]
"""The sites of one draw, by name: parameters, deterministics and simulated noise."""
AbstractSites: TypeAlias = Mapping[str, Any]
"""The same with arrays or ``jax.ShapeDtypeStruct``: enough to know every shape."""
Numbers: TypeAlias = ArrayLike | Sequence[Any]
"""What NumPy turns into an array of numbers."""
Unconstrained: TypeAlias = Float[Array, " D"]
Draws: TypeAlias = Float[Array, "N D"]
PerDraw: TypeAlias = Float[Array, " N"]
Finite: TypeAlias = Bool[Array, " N"]
Moments: TypeAlias = Float[Array, " M"]
MomentDraws: TypeAlias = Float[Array, "N M"]
Metric: TypeAlias = Float[Array, "M M"]
