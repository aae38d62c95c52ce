"""The normaliser by a walk back to the base, against exact ones."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from problems import EXACT

import numpyro_epi as epi
from numpyro_epi import _ladder
from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._ladder import descend
from numpyro_epi._path import Path

SETTINGS = ChainSettings(num_chains=256, num_transitions=4)
DIM = 60


def cloud():
    numpyro.sample("z", dist.Normal().expand([DIM]).to_event(1))


def squared_length(sites):
    return (sites["z"] ** 2).sum()


@pytest.mark.parametrize("eta", [0.0, 2.0, 12.0])
def test_shrunk_normal(eta):
    """``E exp(-eta (|z|^2 - target)) = exp(eta target) (1 + 2 eta)^(-D/2)``, and its draws are normal too."""
    target = 5.0
    problem = epi.Problem(cloud, epi.EmergentProperty(epi.Target(squared_length, mean=target)))
    draws = jax.random.normal(jax.random.key(0), (256, DIM)) / np.sqrt(1 + 2 * eta)
    found, error = descend(problem, SETTINGS, draws, np.array([eta]), jax.random.key(1))
    assert abs(found - (eta * target - 0.5 * DIM * np.log1p(2 * eta))) < 4 * error + 0.02
    assert error < 0.25


def test_a_rung_weighs_by_the_density_that_its_chains_follow():
    """The correction for noise included, which is large here."""
    exact = EXACT["linear_gaussian_simulator"]()
    settings, eta = ChainSettings(num_chains=8, num_simulations=3), exact.multipliers
    draws = jax.random.normal(jax.random.key(0), (8, exact.problem.dim))
    chains = _ladder._begin(exact.problem, draws, jax.random.split(jax.random.key(1), 8), eta)
    path = Path(exact.problem, settings)
    followed, _ = jax.vmap(path._log_density, (0, 0, None))(chains.position, chains.noise, chains)
    rung = _ladder._measured(exact.problem, settings, chains)
    np.testing.assert_allclose(rung.exponent(eta) + path.measure(chains).log_base, followed, rtol=1e-4, atol=1e-4)
    assert np.max(np.abs(rung.exponent(eta) + rung.slack @ eta + 0.5 * (rung.noise @ eta) @ eta)) > 0.1


@pytest.mark.slow
def test_answer_that_leaves_more_mass_elsewhere_is_that_of_its_region_and_says_so():
    """A spread wider than the many dimensions give it: ``exp(-eta T)`` grows with the squared deviation, and at the prior's own
    lengths, |z|^2 = 60, it has more mass than around |z|^2 = 5. Quadrature over |z|^2 below 20 alone, where the density of
    it has its gap, gives the answer of the region."""
    target = epi.Target(squared_length, mean=5.0, std=1.05)
    problem = epi.Problem(cloud, epi.EmergentProperty(target))
    found = epi.solve_dual(jax.random.key(0), problem, settings=SETTINGS)
    grid = np.linspace(0.5, 20.0, 20_000)
    moments = np.stack([grid - 5.0, (grid - 5.0) ** 2 - 1.05**2])
    log_base = scipy.stats.chi2.logpdf(grid, DIM) + np.log(grid[1] - grid[0])

    def dual(eta):
        return scipy.special.logsumexp(log_base - eta @ moments)

    exact = scipy.optimize.minimize(
        dual, np.array([5.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}
    )
    assert exact.x[1] < -0.1
    assert found.satisfied
    assert found.local
    assert "of what stays around the property" in str(found)
    assert np.all(np.abs(found.eta - exact.x) < 4 * found.standard_error + 0.01 * np.abs(exact.x))
    assert abs(found.log_normalizer - exact.fun) < 0.3
    whole = scipy.special.logsumexp(
        scipy.stats.chi2.logpdf(s := np.linspace(0.5, 200.0, 50_000), DIM)
        - exact.x @ np.stack([s - 5.0, (s - 5.0) ** 2 - 1.05**2])
    )
    assert whole > exact.fun + 5.0


@pytest.mark.slow
def test_answer_with_all_its_mass_says_nothing():
    problem = epi.Problem(cloud, epi.EmergentProperty(epi.Target(squared_length, mean=40.0)))
    found = epi.solve_dual(jax.random.key(0), problem, settings=SETTINGS)
    assert found.satisfied
    assert not found.local


def test_noise_of_the_simulator_leaves_the_normaliser_right():
    """``E[T | z] = z``, so ``log Z`` is that of a normal; noise that chains have picked would make it larger."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 0.05).expand([1]).to_event(1))
        numpyro.deterministic("x", z[0] + 0.45 * numpyro.sample("e", dist.Normal()))

    prop = epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=0.0, name="x"))
    problem = epi.Problem(model, prop, parameters=("z",))
    settings = ChainSettings(num_chains=4096, num_transitions=4, num_simulations=2)
    draws = -(0.05**2) + 0.05 * jax.random.normal(jax.random.key(0), (4096, 1))
    found, error = descend(problem, settings, draws, np.array([1.0]), jax.random.key(1))
    assert abs(found - 0.05**2 / 2) < 4 * error
    assert error < 0.01


@pytest.mark.slow
def test_fewer_simulations_lower_down_leave_the_normaliser_right(monkeypatch):
    """``x = z + noise`` of a standard normal: ``log Z = eta^2 / 2``, and half the multiplier has a quarter of the noise."""

    def model():
        z = numpyro.sample("z", dist.Normal().expand([1]).to_event(1))
        numpyro.deterministic("x", z[0] + 0.2 * numpyro.sample("e", dist.Normal()))

    counts = []
    rung = _ladder._rung

    def counted(problem, settings, chains, key, eta):
        counts.append((float(eta[0]), settings.num_simulations))
        return rung(problem, settings, chains, key, eta)

    monkeypatch.setattr(_ladder, "_rung", counted)
    prop = epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=0.0, name="x"))
    problem = epi.Problem(model, prop, parameters=("z",))
    settings = ChainSettings(num_chains=1024, num_transitions=4, num_simulations=8)
    eta = 5.0
    draws = -eta + jax.random.normal(jax.random.key(0), (1024, 1))
    found, error = _ladder.descend(problem, settings, draws, np.array([eta]), jax.random.key(1))
    assert abs(found - eta**2 / 2) < 4 * error + 0.02
    assert error < 0.05
    assert {8, 4, 2} == {count for _, count in counts}
    assert all(at**2 / count <= 1.1 * eta**2 / 8 for at, count in counts)


@pytest.mark.parametrize(("mirrored", "counts"), [(False, [36, 18, 9, 5, 3, 2, 2]), (True, [36, 18, 10, 6, 4, 4, 4])])
def test_halves_of_the_simulations(mirrored, counts):
    settings = ChainSettings(num_simulations=36, mirrored=mirrored)
    spares = (1.0, 2.0, 4.0, 8.0, 12.0, 18.0, 1e9)
    assert [_ladder._lighter(settings, spare).num_simulations for spare in spares] == counts


def test_failing_simulations_have_no_mass():
    """Above its median only: ``log Z = log 1/2 + log E[exp(-eta z) | z > 0]``."""

    def half():
        z = numpyro.sample("z", dist.Normal().expand([1]).to_event(1))
        numpyro.deterministic("x", jax.numpy.where(z[0] > 0, z[0], jax.numpy.nan))

    problem = epi.Problem(
        half, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=0.5, name="x")), nonfinite="condition"
    )
    eta = 1.5
    # exp(-eta z) of a standard normal is one of mean -eta.
    uniform = np.random.default_rng(0).uniform(size=(256, 1))
    low = scipy.stats.norm.cdf(0.0, loc=-eta)
    draws = scipy.stats.norm.ppf(low + uniform * (1 - low), loc=-eta).astype(np.float32)
    found, error = descend(problem, SETTINGS, jax.numpy.asarray(draws), np.array([eta]), jax.random.key(1))
    exact = 0.5 * eta + 0.5 * eta**2 + scipy.stats.norm.logsf(0.0, loc=-eta)
    assert abs(found - exact) < 4 * error + 0.02
