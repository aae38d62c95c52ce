"""The eigenvalue statistics against NumPy's eigenvalues, in both regimes and on the border between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro_epi_dynamics import angular_frequency, growth_rate

import numpyro_epi as epi

TAU = 2 * np.pi
REFERENCE = {
    "center at 1 Hz": ([[0, TAU], [-TAU, 0]], 0.0, TAU),
    "center with unequal diagonal": ([[1, 2], [-3, -1]], 0.0, np.sqrt(5)),
    "saddle": ([[1, 2], [3, 4]], (5 + np.sqrt(33)) / 2, 0.0),
    "spiral about a center": ([[-0.5, 8], [-5, 0.5]], 0.0, np.sqrt(39.75)),
    "triangular": ([[2, 1], [0, -3]], 2.0, 0.0),
    "twice the same eigenvalue": ([[-1, 0], [0, -1]], -1.0, 0.0),
}
BORDER = {
    "zero": [[0.0, 0.0], [0.0, 0.0]],
    "scaled identity": [[3.0, 0.0], [0.0, 3.0]],
    "defective": [[2.0, 1.0], [0.0, 2.0]],
    "equal and opposite": [[1.0, 1.0], [-1.0, -1.0]],
}


def primary(matrix):
    """Growth rate and angular frequency by NumPy, in double precision."""
    eigenvalues = np.linalg.eigvals(np.asarray(matrix, dtype=float))
    return eigenvalues.real.max(), np.abs(eigenvalues.imag).max()


def random_matrices(*, rotating, count=200):
    """Matrices of one regime, well away from the border."""
    candidates = np.random.default_rng(3).uniform(-10, 10, (20 * count, 2, 2))
    eigenvalues = np.linalg.eigvals(candidates)
    gap = eigenvalues[:, 0] - eigenvalues[:, 1]
    found = candidates[np.abs(gap.imag if rotating else gap.real) > 1]
    assert len(found) >= count
    return found[:count].astype(np.float32)


def measure(matrices):
    return jax.vmap(lambda a: jnp.stack([growth_rate({"A": a}), angular_frequency({"A": a})]))(matrices)


@pytest.mark.parametrize(("matrix", "growth", "frequency"), REFERENCE.values(), ids=REFERENCE.keys())
def test_reference_values(matrix, growth, frequency):
    measured = measure(jnp.array([matrix], float))[0]
    # Single precision: 4e-7 relative to entries of order 10.
    np.testing.assert_allclose(measured, [growth, frequency], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("rotating", [True, False])
def test_values_are_numpys_eigenvalues(rotating):
    matrices = random_matrices(rotating=rotating)
    expected = np.array([primary(matrix) for matrix in matrices])
    np.testing.assert_allclose(measure(matrices), expected, rtol=1e-5, atol=1e-4)
    assert np.all((expected[:, 1] > 0) == rotating)


@pytest.mark.parametrize("rotating", [True, False])
def test_gradients_are_finite_differences_of_numpys_eigenvalues(rotating):
    matrices = random_matrices(rotating=rotating, count=50)
    jacobian = jax.vmap(jax.jacobian(lambda a: measure(a[None])[0]))(matrices)
    step = 1e-5
    for matrix, gradient in zip(matrices.astype(float), jacobian, strict=True):
        for index in np.ndindex(2, 2):
            shift = np.zeros((2, 2))
            shift[index] = step
            slope = (np.array(primary(matrix + shift)) - primary(matrix - shift)) / (2 * step)
            np.testing.assert_allclose(gradient[(slice(None), *index)], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("matrix", BORDER.values(), ids=BORDER.keys())
def test_gradient_on_the_border_is_that_of_half_the_trace(matrix):
    gradients = jax.jacobian(lambda a: measure(a[None])[0])(jnp.array(matrix))
    np.testing.assert_array_equal(gradients, [[[0.5, 0], [0, 0.5]], np.zeros((2, 2))])


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("sign", [-1, 1])
def test_gradient_is_finite_arbitrarily_near_the_border(scale, sign):
    gradients = jax.jacobian(lambda a: measure(a[None])[0])(jnp.array([[1.0, 1.0], [sign * scale, 1.0]]))
    assert np.all(np.isfinite(gradients))
    assert np.abs(gradients).max() > 1


def test_frequency_is_the_oscillation_of_the_solution():
    """A state turned for a quarter of a period by the matrix exponential is orthogonal to where it started."""
    matrix = jnp.array([[0.0, 5.0], [-5.0, 0.0]])
    quarter = jax.scipy.linalg.expm(matrix * (TAU / 4) / angular_frequency({"A": matrix}))
    np.testing.assert_allclose(quarter, [[0, 1], [-1, 0]], atol=1e-5)


@pytest.mark.parametrize(("found", "unit"), [(growth_rate, "1/s"), (angular_frequency, "rad/s")])
def test_unit_name_and_label(found, unit):
    registered = epi.get_statistic(found.name)
    assert (registered.unit, registered.function) == (unit, found.function)
    assert registered.labels(()) == [found.name]
    assert registered.differentiable


def test_another_site_can_be_read():
    sites = {"A": jnp.eye(2), "B": 2 * jnp.eye(2)}
    assert epi.get_statistic("linear2d.growth_rate", site="B")(sites) == 2


@pytest.mark.parametrize("shape", [(3, 3), (4,), (1, 2, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"Expected site 'A' to be a 2 x 2 matrix; got shape"):
        growth_rate({"A": jnp.zeros(shape)})


def test_a_missing_site_is_named():
    with pytest.raises(KeyError, match="'A'"):
        angular_frequency({"B": jnp.zeros((2, 2))})
