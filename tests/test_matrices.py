"""Statistics of matrices, beside NumPy, closed forms and difference quotients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_epi import matrices
from numpyro_epi.statistics import get_statistic

MEASURES = {
    "matrix.angular_frequency": matrices.angular_frequency,
    "matrix.numerical_abscissa": matrices.numerical_abscissa,
    "matrix.spectral_abscissa": matrices.spectral_abscissa,
    "matrix.spectral_radius": matrices.spectral_radius,
}


@pytest.mark.parametrize(("name", "measure"), MEASURES.items())
def test_registered_under_its_name(name, measure):
    assert get_statistic(name).function is measure.function


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_numpy_s_eigenvalues(size):
    stack = np.random.default_rng(size).normal(size=(5, size, size))
    eigenvalues = np.linalg.eigvals(stack)
    primary = np.take_along_axis(eigenvalues, eigenvalues.real.argmax(axis=1)[:, None], axis=1)[:, 0]
    expected = {
        "matrix.angular_frequency": np.abs(primary.imag),
        "matrix.numerical_abscissa": np.linalg.eigvalsh((stack + stack.swapaxes(1, 2)) / 2)[:, -1],
        "matrix.spectral_abscissa": primary.real,
        "matrix.spectral_radius": np.abs(eigenvalues).max(axis=1),
    }
    for name, measure in MEASURES.items():
        found = measure.bind(site="A")({"A": jnp.asarray(stack, jnp.float32)})
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)


def test_a_turning_plane_in_closed_form():
    """``[[g, w], [-w, g]]`` has the eigenvalues g +- i w."""
    sites = {"A": jnp.array([[-0.3, 2.0], [-2.0, -0.3]])}
    found = {name: float(measure.bind(site="A")(sites)) for name, measure in MEASURES.items()}
    expected = {
        "matrix.angular_frequency": 2.0,
        "matrix.numerical_abscissa": -0.3,
        "matrix.spectral_abscissa": -0.3,
        "matrix.spectral_radius": np.hypot(0.3, 2.0),
    }
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_difference_quotients(name, seed):
    matrix, direction = np.random.default_rng(seed).normal(size=(2, 5, 5))
    measure = MEASURES[name].bind(site="A")

    def along(t):
        return measure({"A": matrix + t * direction})

    quotient = float(along(1e-6) - along(-1e-6)) / 2e-6
    assert float(jax.jit(jax.grad(along))(0.0)) == pytest.approx(quotient, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_what_is_not_square_is_named(name, shape):
    with pytest.raises(ValueError, match="Expected site 'A' to hold square matrices in its last two axes; got shape"):
        MEASURES[name].bind(site="A")({"A": jnp.zeros(shape)})
