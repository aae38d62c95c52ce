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
    "signal.accuracy": signals.accuracy,
    "signal.correlation": signals.correlation,
    "signal.crossing_rate": signals.crossing_rate,
    "signal.dominant_frequency": signals.dominant_frequency,
    "signal.fano_factor": signals.fano_factor,
    "signal.mean": signals.mean,
    "signal.phase_difference": signals.phase_difference,
    "signal.power": signals.power,
    "signal.standard_deviation": signals.standard_deviation,
}


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


@pytest.mark.parametrize("length", [200, 201])
@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 50.0), (3.0, 12.0), (49.9, 50.0), (0.5, 0.5)])
def test_power_is_scipy_s_periodogram_over_the_band(length, lowest, highest):
    signal = np.random.default_rng(length).normal(size=(3, length)).astype(np.float32) + 2.0
    frequencies, expected = scipy.signal.periodogram(signal, fs=1 / STEP, detrend="constant", scaling="spectrum")
    chosen = (frequencies >= lowest - 1e-9) & (frequencies <= highest + 1e-9)
    measure = signals.power.bind(site="x", step=STEP, lowest=lowest, highest=highest)
    if not np.any(chosen[1:]):
        with pytest.raises(
            ValueError, match="Expected a band that holds a frequency of 20[01] samples, the multiples of 0"
        ):
            measure({"x": jnp.asarray(signal)})
        return
    np.testing.assert_allclose(measure({"x": jnp.asarray(signal)}), expected[:, chosen].sum(axis=1), rtol=1e-4)
    if (lowest, highest) == (0.0, 50.0):
        np.testing.assert_allclose(measure({"x": jnp.asarray(signal)}), signal.var(axis=1), rtol=1e-4)


def test_power_of_one_sample_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected a band that holds a frequency of 1 samples, none; got 0\.0 to 1\.0"
    ):
        signals.power.bind(site="x", step=STEP, lowest=0.0, highest=1.0)({"x": jnp.ones(1)})


@pytest.mark.parametrize("ahead", [-3.0, -0.5, 0.0, 1.2, 3.1])
@pytest.mark.parametrize("length", [1000, 1037])
def test_phase_difference_is_that_of_two_sines(ahead, length):
    """Over whole periods exactly, else but for what leaks; beside the angle of SciPy's cross spectrum."""
    time = STEP * np.arange(length)
    first, second = 3.0 + np.sin(2 * np.pi * 2 * time + ahead), -1.0 + 0.2 * np.sin(2 * np.pi * 2 * time)
    measure = signals.phase_difference.bind(first="x", second="y", step=STEP, frequency=2.0)
    found = measure({"x": jnp.asarray(first, jnp.float32), "y": jnp.asarray(second, jnp.float32)})
    assert found == pytest.approx(ahead, abs=1e-4 if length == 1000 else 0.05)
    if length == 1000:
        options = {"fs": 1 / STEP, "window": "boxcar", "nperseg": length}
        frequencies, spectrum = scipy.signal.csd(second, first, **options)
        assert found == pytest.approx(np.angle(spectrum[np.argmin(np.abs(frequencies - 2.0))]), abs=1e-4)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("measure", "options"),
    [
        ("power", {"site": "x", "step": STEP, "lowest": 1.0, "highest": 20.0}),
        ("phase_difference", {"first": "x", "second": "y", "step": STEP, "frequency": 2.5}),
        ("accuracy", {"right": "x", "wrong": "y", "sharpness": 3.0}),
        ("mean", {"site": "x"}),
    ],
)
def test_gradients_are_difference_quotients(measure, options):
    signal, other, direction = np.random.default_rng(1).normal(size=(3, 200))
    measured = getattr(signals, measure).bind(**options)

    def along(t):
        return measured({"x": signal + t * direction, "y": other})

    quotient = float(along(1e-6) - along(-1e-6)) / 2e-6
    assert float(jax.grad(along)(0.0)) == pytest.approx(quotient, rel=1e-5)


def test_a_rate_counts_rises_through_the_threshold():
    """Seven periods of a sine; a signal that begins above has risen before."""
    sine = np.sin(2 * np.pi * 7 * np.arange(1001) / 1000)
    measure = signals.crossing_rate.bind(site="x", step=0.5, threshold=0.3)
    np.testing.assert_allclose(measure({"x": jnp.asarray([sine, -sine, 0 * sine + 1])}), [7 / 500, 7 / 500, 0])
    assert not measure.differentiable


def test_accuracy_is_the_share_of_trials_where_evidence_is_clear():
    right = jnp.asarray([[0.9, 0.1, 0.8, 0.7], [0.5, 0.5, 0.5, 0.5]])
    wrong = jnp.asarray([[0.1, 0.9, 0.2, 0.3], [0.5, 0.5, 0.5, 0.5]])
    found = signals.accuracy.bind(right="right", wrong="wrong")({"right": right, "wrong": wrong})
    np.testing.assert_allclose(found, [0.75, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("power", {"site": "x", "step": 0.0, "lowest": 0.0, "highest": 1.0}, "Expected step > 0; got 0"),
        ("crossing_rate", {"site": "x", "step": -1.0, "threshold": 0.0}, "Expected step > 0; got -1"),
        (
            "phase_difference",
            {"first": "x", "second": "x", "step": 0.1, "frequency": 6.0},
            "Expected frequency <= 5, half the sampling rate; got 6",
        ),
    ],
)
def test_bad_options_of_measures_are_named(measure, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(signals, measure).bind(**options)({"x": jnp.zeros(10)})


@pytest.mark.parametrize("measure", ["dominant_frequency", "standard_deviation", "phase_difference", "power"])
def test_signal_that_never_moves_has_a_finite_gradient(measure):
    options = {
        "dominant_frequency": {"site": "x", **OPTIONS},
        "standard_deviation": {"site": "x"},
        "phase_difference": {"first": "x", "second": "x", "step": STEP, "frequency": 2.0},
        "power": {"site": "x", "step": STEP, "lowest": 0.0, "highest": 50.0},
    }
    measured = getattr(signals, measure).bind(**options[measure])
    value, gradient = jax.value_and_grad(lambda x: measured({"x": x}))(jnp.full(50, 2.0))
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


@pytest.mark.parametrize(("name", "function"), REGISTERED.items())
def test_registered_under_its_name(name, function):
    assert get_statistic(name).function is function.function


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": 0.0}, "Expected step > 0; got 0"),
        ({"highest": -1.0}, "Expected highest > 0; got -1"),
        ({"resolution": np.inf}, "Expected a finite resolution; got inf"),
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
