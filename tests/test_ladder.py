"""The normaliser by a walk back to the base, against exact ones."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import numpyro_epi as epi
from numpyro_epi._chains import ChainSettings
from numpyro_epi._ladder import descend

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


@pytest.mark.slow
def test_many_parameters_have_the_entropy_that_importance_sampling_gives():
    """25 units, 100 parameters: 44.2 +- 0.2 nats by weighing matrices whose rows are drawn from tilted normals, which the
    network's eigenvalues cannot tell from the solution's but for ten numbers; a bridge of normals gave 35 to 38."""
    circuits = pytest.importorskip("numpyro_epi_circuits.rank2")
    found = epi.solve_dual(jax.random.key(0), circuits.rnn_stable_amplification(size=25))
    assert found.satisfied
    error = np.hypot(found.verdict.entropy_standard_error, 0.2)
    assert abs(found.entropy - 44.2) < 3 * error
    assert error < 0.5
