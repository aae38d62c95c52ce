"""The plugins' figures: what they draw beside the answers is right, and every README shows those that there are."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from problems import EXACT

PLUGINS = sorted((Path(__file__).parent.parent / "plugins").iterdir())
SCRIPTS = [path for plugin in PLUGINS for path in sorted((plugin / "figures").glob("[!_]*.py"))]


def script(name):
    (path,) = [path for path in SCRIPTS if path.stem == name]
    sys.path.insert(0, str(path.parent))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(path.parent))


@pytest.mark.parametrize("plugin", PLUGINS, ids=[plugin.name for plugin in PLUGINS])
def test_readme_shows_small_figures_and_names_their_scripts(plugin):
    text = (plugin / "README.md").read_text()
    figures = list((plugin / "figures").glob("*.png"))
    assert figures
    for figure in figures:
        assert f"(figures/{figure.name})" in text
        assert figure.stat().st_size < 300_000
    for path in (plugin / "figures").glob("[!_]*.py"):
        assert f"figures/{path.name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["networks", "stomatogastric"])
def test_script_of_the_circuits_draws_its_figure(name, tmp_path):
    """The others' fits take too long, rough ones too: those figures were made by hand."""
    (path,) = [path for path in SCRIPTS if path.stem == name]
    arguments = [sys.executable, path, "--quick", "--out", tmp_path]
    subprocess.run(arguments, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_exact_marginals_of_the_oscillator():
    """Symmetric, of mass one; their moments beside those of weighed draws from the box."""
    cells, of_a12, of_a11 = script("oscillator").exact_marginals()
    width = cells[1] - cells[0]
    exact = EXACT["oscillator_paper"]()
    matrices = np.random.default_rng(0).uniform(-10, 10, (2_000_000, 2, 2))
    center, squared = np.trace(matrices, axis1=1, axis2=2) / 2, -np.linalg.det(matrices)
    matrices, center, squared = (each[squared + center**2 < 0] for each in (matrices, center, squared))
    frequency = np.sqrt(-squared - center**2)
    moments = np.stack([center, frequency, center**2, (frequency - 2 * np.pi) ** 2])
    exponent = -exact.multipliers @ moments
    weight = np.exp(exponent - exponent.max())
    weight /= weight.sum()
    assert np.sum(weight**2) < 1 / 5000
    for density, entry in ((of_a12, matrices[:, 0, 1]), (of_a11, matrices[:, 0, 0])):
        assert density.sum() * width == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(density, density[::-1], atol=1e-8)
        for power in (2, 4):
            mean = weight @ entry**power
            error = np.sqrt(np.sum((weight * (entry**power - mean)) ** 2))
            assert np.sum(density * cells**power) * width == pytest.approx(mean, abs=5 * error)


def test_rates_in_closed_form_have_the_targets():
    figure = script("predator_prey")
    center, spread = figure.closed_form()
    np.testing.assert_allclose(figure.STATISTICS @ center + [0, 0, np.log(2 * np.pi)], np.log([34, 20, 10]), atol=1e-9)
    np.testing.assert_allclose(np.diag(figure.STATISTICS @ spread @ figure.STATISTICS.T), [0.04, 0.04, 0.01], rtol=1e-6)


def test_final_size_agrees_with_the_differential_equations():
    figure = script("sir")
    ratio = figure.reproduction_number(0.6)
    recovery = 0.2

    def slope(t, state):
        infections = ratio * recovery * state[0] * state[1] / figure.POPULATION
        return [-infections, infections - recovery * state[1]]

    start = [figure.POPULATION - figure.INFECTED, figure.INFECTED]
    left = scipy.integrate.solve_ivp(slope, (0, 1000), start, rtol=1e-9, atol=1e-9).y[0, -1]
    assert 1 - left / start[0] == pytest.approx(0.6, abs=1e-4)


@pytest.mark.parametrize(("beta", "n"), [(1.0, 2.5), (0.3, 3.0), (4.0, 2.5)])
def test_onset_of_oscillations_is_that_of_the_publication(beta, n):
    """Box 1 of Elowitz and Leibler 2000: oscillations where ``(beta + 1)^2 / beta < 3 X^2 / (4 + 2 X)``."""
    figure = script("repressilator")

    def criterion(alpha):
        p = scipy.optimize.brentq(lambda p: alpha / (1 + p**n) + alpha * figure.LEAK - p, 0.0, 2 * alpha + 1)
        x = -alpha * n * p ** (n - 1) / (1 + p**n) ** 2
        return 3 * x**2 - (beta + 1) ** 2 / beta * (4 + 2 * x)

    onset = scipy.optimize.brentq(criterion, 1.0, 30.0)
    assert figure.growth_rate(0.98 * onset, beta, n) < 0 < figure.growth_rate(1.02 * onset, beta, n)
