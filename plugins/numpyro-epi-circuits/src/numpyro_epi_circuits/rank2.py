"""Which connectivity of a rank-2 recurrent network amplifies, and yet is stable?

``tau dx/dt = -x + W x`` with ``W = (U + g chi_U) (V + g chi_V)'``, all of ``U`` and ``V`` uniform in a box and ``chi``
standard normal (Bittner et al. 2021, eLife 10:e56265, Methods, "Scaling with respect to parameter dimensionality").
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

import numpyro_epi as epi

from ._checks import check_counts, check_positive

_SWAP = ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0))


@epi.statistic(name="rank2.growth_rate")
def growth_rate(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Real part of the primary eigenvalue of ``W``, of the two that are not zero by rank; no unit, since ``tau`` is one.

    They are the eigenvalues of ``W``'s 2 x 2 reduction ``R' L`` where ``W = L R'``. Below one the network is stable. The
    gradient at the border between real and complex eigenvalues is that of the mean of both.

    Args:
        sites: Must hold ``left`` and ``right``, shape [N, 2] each.

    Raises:
        KeyError: If the model has no such sites.
    """
    (a, b), (c, d) = sites["right"].T @ sites["left"]
    discriminant = jnp.square((a - d) / 2) + b * c
    positive = discriminant > 0
    # Both branches are differentiated: the inner where keeps the unused one's slope finite.
    return (a + d) / 2 + jnp.where(positive, jnp.sqrt(jnp.where(positive, discriminant, 1.0)), 0.0)


@epi.statistic(name="rank2.initial_growth_rate")
def initial_growth_rate(sites: Mapping[str, Array]) -> Float[Array, ""]:
    """Largest eigenvalue of ``(W + W') / 2``: above one, some inputs are amplified before they decay; no unit.

    Instead of N x N entries, a symmetric 4 x 4 matrix with the same eigenvalues but zeros: ``W + W' = B K B'`` with
    ``B = [L R]`` has those of ``C' K C`` where ``C C' = B' B``.

    Args:
        sites: Must hold ``left`` and ``right``, shape [N, 2] each.

    Raises:
        KeyError: If the model has no such sites.
    """
    left, right = sites["left"], sites["right"]
    if left.shape[0] <= 4:
        product = left @ right.T
        return jnp.linalg.eigvalsh((product + product.T) / 2)[-1]
    stacked = jnp.concatenate([left, right], axis=1)
    gram = stacked.T @ stacked
    # Where two columns are dependent the root is singular, and rounding may make it imaginary.
    gram = gram + 4 * jnp.finfo(gram.dtype).eps * jnp.trace(gram) * jnp.eye(4, dtype=gram.dtype)
    root = jnp.linalg.cholesky(gram)
    return jnp.linalg.eigvalsh(root.T @ jnp.array(_SWAP, root.dtype) @ root / 2)[-1]


def rnn_stable_amplification(
    *,
    size: int = 10,
    growth_mean: float = 0.5,
    growth_std: float = 0.25,
    initial_growth_mean: float = 1.5,
    initial_growth_std: float = 0.25,
    noise: float = 0.01,
    bound: float = 1.0,
) -> epi.Problem:
    """Stable amplification: real part of the primary eigenvalue 0.5 ± 0.25, of the symmetric part's 1.5 ± 0.25.

    The answer's entropy is about -1.9, 12.3, 25.8, 46.0 and -333 nats for 2, 5, 10, 50 and 250 units. From 50 on, so many weights
    hold the initial growth more closely than its wanted spread, and the multipliers that widen it also favour networks far
    from the property: `solve_dual` then gives the answer around the property, and says so.

    Args:
        size: Number of units N; the problem has 4 N parameters.
        growth_mean: Wanted mean of ``rank2.growth_rate``.
        growth_std: Its wanted spread.
        initial_growth_mean: Wanted mean of ``rank2.initial_growth_rate``.
        initial_growth_std: Its wanted spread.
        noise: ``g``, standard deviation of the noise on every entry of ``U`` and ``V``; zero for none.
        bound: Every entry of ``U`` and ``V`` lies in ``[-bound, bound]``.

    Raises:
        ValueError: If the size is not a positive integer, a spread or the bound not positive, or the noise negative.

    References:
        Bittner et al., eLife 10:e56265 (2021), Figure 2.
    """
    check_counts(size=size)
    check_positive(growth_std=growth_std, initial_growth_std=initial_growth_std, bound=bound)
    if not noise >= 0:
        raise ValueError(f"Expected noise >= 0; got {noise}.")
    wanted = epi.EmergentProperty(
        epi.Target(growth_rate, mean=growth_mean, std=growth_std),
        epi.Target(initial_growth_rate, mean=initial_growth_mean, std=initial_growth_std),
    )
    return epi.Problem(
        _network,
        wanted,
        parameters=("U", "V"),
        model_kwargs={"size": size, "noise": float(noise), "bound": float(bound)},
        name="circuits.rnn_stable_amplification",
    )


def _network(size: int, noise: float, bound: float) -> None:
    for parameter, connectivity in (("U", "left"), ("V", "right")):
        with numpyro.plate("units", size):
            entries = numpyro.sample(parameter, dist.Uniform(-bound, bound).expand([2]).to_event(1))
        if noise > 0:
            chi = numpyro.sample(f"chi_{parameter}", dist.Normal().expand([size, 2]).to_event(2))
            entries = entries + noise * chi
        numpyro.deterministic(connectivity, entries)
