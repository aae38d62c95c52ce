"""Statistics of sampled signals, beside SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from numpyro_epi import signals
from numpyro_epi.statistics import get_statistic

STEP = 0.01
TIME = STEP * np.arange(1000)
OPTIONS = {"step": STEP, "highest": 10.0, "resolution": 0.02}
REGISTERED = {
    "signal.correlation": signals.correlation,
    "signal.dominant_frequency": signals.dominant_frequency,
    "signal.fano_factor": signals.fano_factor,
    "signal.standard_deviation": signals.standard_deviation,
}


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)


def test_amplitude_is_that_of_the_fast_transform(noise):
    """At the transform's own frequencies."""
    signal = noise[0]
    frequencies, found = signals.spectral_amplitude(jnp.asarray(signal), step=STEP, highest=50.0, resolution=0.5)
    expected_frequencies, power = scipy.signal.periodogram(signal, fs=1 / STEP, detrend="constant", scaling="spectrum")
    np.testing.assert_allclose(frequencies, expected_frequencies, rtol=1e-6)
    # One-sided: all but the first and the last stand for two.
    twice = np.where((expected_frequencies == 0) | (expected_frequencies == 50.0), 1.0, 2.0)
    np.testing.assert_allclose(found, signal.size * np.sqrt(power / twice), atol=2e-3)


@pytest.mark.parametrize("frequency", [0.7, 2.0, 3.33])
@pytest.mark.parametrize("amplitude", [1e-3, 1.0, 1e3])
def test_dominant_frequency_is_a_sine_s(frequency, amplitude):
    sine = jnp.asarray(3.0 + amplitude * np.sin(2 * np.pi * frequency * TIME), jnp.float32)
    found = signals.dominant_frequency.bind(site="x", sharpness=300.0, **OPTIONS)({"x": sine})
    assert abs(found - frequency) < 0.02


@pytest.mark.usefixtures("double_precision")
def test_dominant_frequency_s_gradient_is_a_difference_quotient():
    def found(frequency):
        sine = jnp.sin(2 * jnp.pi * frequency * TIME)
        return signals.dominant_frequency.bind(site="x", **OPTIONS)({"x": sine})

    slope = float(found(2.0 + 1e-6) - found(2.0 - 1e-6)) / 2e-6
    assert float(jax.grad(found)(2.0)) == pytest.approx(slope, rel=1e-5)
    assert slope > 0


def test_mean_frequency_of_a_sharp_softmax_is_the_peak(noise):
    signal = jnp.asarray(noise[0])
    options = {"step": STEP, "highest": 40.0, "resolution": 0.5}
    frequencies, amplitude = signals.spectral_amplitude(signal, **options)
    found = signals.spectral_mean_frequency(signal, sharpness=1e4, **options)
    assert found == pytest.approx(float(frequencies[jnp.argmax(amplitude)]), rel=1e-5)


def test_spread_ratio_and_correlation_are_numpy_s(noise):
    sites = {"x": jnp.asarray(noise), "y": jnp.asarray(noise[::-1] ** 2)}
    x, y = np.asarray(sites["x"], float), np.asarray(sites["y"], float)
    np.testing.assert_allclose(signals.standard_deviation.bind(site="x")(sites), x.std(axis=1), rtol=1e-5)
    np.testing.assert_allclose(signals.fano_factor.bind(site="y")(sites), y.var(axis=1) / y.mean(axis=1), rtol=1e-5)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(signals.correlation.bind(first="x", second="y")(sites), expected, atol=1e-5)


@pytest.mark.parametrize("measure", ["dominant_frequency", "standard_deviation"])
def test_signal_that_never_moves_has_a_finite_gradient(measure):
    options = OPTIONS if measure == "dominant_frequency" else {}
    measured = getattr(signals, measure).bind(site="x", **options)
    value, gradient = jax.value_and_grad(lambda x: measured({"x": x}))(jnp.full(50, 2.0))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(("name", "function"), REGISTERED.items())
def test_registered_under_its_name(name, function):
    assert get_statistic(name).function is function.function


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": 0.0}, "Expected a finite step > 0; got 0"),
        ({"highest": -1.0}, "Expected a finite highest > 0; got -1"),
        ({"resolution": np.inf}, "Expected a finite resolution > 0; got inf"),
        ({"highest": 60.0}, "Expected highest <= 50, half the sampling rate; got 60"),
    ],
)
def test_options_are_checked(changed, message):
    with pytest.raises(ValueError, match=message):
        signals.spectral_amplitude(jnp.zeros(10), **(OPTIONS | changed))


@pytest.mark.parametrize("window", [1, 7, 50])
def test_moving_average_is_numpy_s_convolution(window):
    signal = np.random.default_rng(0).normal(size=50)
    expected = np.convolve(signal, np.full(window, 1 / window), mode="valid")
    np.testing.assert_allclose(signals.moving_average(jnp.asarray(signal), window), expected, atol=1e-6)


def test_moving_average_is_differentiable_inside_a_loop():
    """What `jnp.convolve` is not: it ends the process there."""

    def gradient(carry, signal):
        return carry, jax.vmap(jax.grad(lambda s: jnp.sum(jnp.square(signals.moving_average(s, 20)))))(signal)

    batches = jax.random.normal(jax.random.key(0), (2, 100, 60))
    found = jax.jit(lambda s: jax.lax.scan(gradient, 0, s)[1])(batches)
    kernel = np.full(20, 1 / 20)
    expected = 2 * np.convolve(np.convolve(np.asarray(batches[1, 3]), kernel, mode="valid"), kernel, mode="full")
    np.testing.assert_allclose(found[1, 3], expected, atol=1e-5)


@pytest.mark.parametrize("window", [0, 51])
def test_moving_average_refuses_a_window_that_does_not_fit(window):
    with pytest.raises(ValueError, match=f"Expected a window of 1 to 50 samples; got {window}"):
        signals.moving_average(jnp.zeros(50), window)
