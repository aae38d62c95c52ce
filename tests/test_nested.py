"""Nested sampling has the exact ``log Z``, also where tempering from the base has not, and sees lost modes."""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from flowjax.distributions import Normal
from oracles.phases import BOX, PLACE, phases
from problems import EXACT
from test_certificate import result_of

import numpyro_epi as epi

pytest.importorskip("blackjax")

SAMPLER = epi.NestedSampling(num_live=200, num_delete=40)

DIM, NARROW, SHARE = 10, 0.1, 20 / 21
"""The narrow phase has twenty times the wide one's mass, and a volume 1e10 times smaller."""
PHASES = phases(DIM, NARROW, SHARE)


def log_phases(z):
    return -PHASES.moments({"z": z})[:, 0]


LOG_Z = PHASES.log_normalizer
LOG_WIDE = LOG_Z + math.log(1 - SHARE)


def tempered(rng, num_particles=1000, num_steps=200):
    """``log Z`` by tempering from the base: sequential Monte Carlo with random walks (Del Moral et al. 2006), on its own."""
    z = rng.uniform(-BOX, BOX, size=(num_particles, DIM))
    powers = np.linspace(0.0, 1.0, num_steps) ** 3
    log_z = 0.0
    for before, power in itertools.pairwise(powers):
        log_weight = (power - before) * log_phases(z)
        log_z += scipy.special.logsumexp(log_weight) - math.log(num_particles)
        z = z[rng.choice(num_particles, size=num_particles, p=scipy.special.softmax(log_weight))]
        for _ in range(5):
            moved = z + rng.normal(size=z.shape) * z.std(axis=0) * 2.4 / math.sqrt(DIM)
            inside = np.all(np.abs(moved) < BOX, axis=1)
            gain = power * (log_phases(moved) - log_phases(z))
            z = np.where((inside & (np.log(rng.uniform(size=num_particles)) < gain))[:, None], moved, z)
    return log_z


@pytest.mark.slow
def test_nested_sampling_passes_a_phase_transition_that_tempering_does_not():
    found = epi.NestedSampling(num_live=500, num_delete=100)(jax.random.key(0), PHASES.problem, [1.0])
    assert found.complete
    # The package's exponent is about the target.
    assert abs(found.log_normalizer - PHASES.mu[0] - LOG_Z) < 3 * found.standard_error
    assert found.standard_error < 0.35
    narrow = np.sum((np.asarray(found.draws["z"]) - PLACE) ** 2, axis=1) < 50 * NARROW**2
    assert np.mean(narrow) > 0.8
    stuck = tempered(np.random.default_rng(0))
    assert abs(stuck - LOG_WIDE) < 0.5
    assert found.log_normalizer - PHASES.mu[0] - stuck > 1.5


@pytest.mark.parametrize("base", ["prior", pytest.param("lebesgue", marks=pytest.mark.slow)])
def test_normalizer_of_a_normal_is_exact(base):
    """A normal prior of width two, with the variance of a standard normal: under Lebesgue measure ``exp(-z^2 / 2)`` itself."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 2.0).expand([2]).to_event(1))

    squares = epi.statistic(name="square")(lambda sites: jnp.sum(sites["z"] ** 2))
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(squares, mean=2.0)), base=base)
    eta = {"prior": 3 / 8, "lebesgue": 0.5}[base]
    log_z = {"prior": -math.log(4.0), "lebesgue": math.log(2 * math.pi)}[base] + eta * 2.0
    found = SAMPLER(jax.random.key(1), problem, [eta])
    assert abs(found.log_normalizer - log_z) < 3 * found.standard_error
    assert found.standard_error < 0.15
    draws = np.asarray(found.draws["z"], float)
    assert len(draws) > 200
    assert scipy.stats.kstest(np.sum(draws**2, axis=1)[::4], scipy.stats.chi2(2).cdf).pvalue > 1e-3
    assert found.num_simulations > 2 * 200


@pytest.mark.slow
def test_standard_error_is_the_spread_of_runs():
    exact = EXACT["relative_entropy_variance"]()
    sampler = epi.NestedSampling(num_live=100, num_delete=20)
    found = [sampler(jax.random.key(seed), exact.problem, exact.multipliers) for seed in range(12)]
    errors = np.array([each.log_normalizer - exact.objective for each in found])
    reported = np.mean([each.standard_error for each in found])
    assert abs(errors.mean()) < 4 * reported / math.sqrt(len(errors))
    assert 0.4 * reported < errors.std(ddof=1) < 2.0 * reported


def plateau(share):
    """A likelihood of two levels, of which the upper one holds this share of the base."""

    def model():
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    inside = epi.statistic(name="inside", differentiable=False)(lambda sites: (sites["z"] < share) * 1.0)
    return epi.Problem(model, epi.EmergentProperty(epi.Target(inside, mean=0.5)))


@pytest.mark.slow
def test_plateaus_are_counted():
    """Points of one likelihood are no sequence: an indicator's two levels have their exact masses."""
    found = epi.NestedSampling(num_live=500, num_delete=50)(jax.random.key(0), plateau(0.3), [-2.0])
    expected = math.log(0.7 + 0.3 * math.exp(2.0)) - 1.0
    assert found.complete
    assert abs(found.log_normalizer - expected) < 3 * found.standard_error
    assert found.standard_error < 0.1


@pytest.mark.slow
def test_parameters_where_the_model_fails_have_no_mass():
    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    half = epi.statistic(name="half")(lambda sites: jnp.where(sites["z"] > 0, 0.0 * sites["z"], jnp.nan))
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(half, mean=0.0)))
    found = SAMPLER(jax.random.key(0), problem, [1.0])
    assert abs(found.log_normalizer - math.log(0.5)) < 3 * found.standard_error
    assert np.all(np.asarray(found.draws["z"]) > 0)


@pytest.fixture(scope="module")
def wells():
    """Two equal wells of a symmetric statistic, and guides that have both, or one of them."""

    def model():
        numpyro.sample("z", dist.Uniform(-4.0, 4.0))

    depth = epi.statistic(name="depth")(lambda sites: (sites["z"] ** 2 - 4.0) ** 2)
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(depth, mean=0.5)))
    return problem, np.array([1.0])


def unconstrained_well(problem):
    u = float(problem.simulator.unconstrain({"z": jnp.asarray(2.0)})[0])
    return Normal(jnp.array([u]), 0.25)


def test_certificate_gains_a_second_opinion(wells):
    problem, eta = wells
    result = result_of(problem, eta, unconstrained_well(problem))
    alone = epi.certify(jax.random.key(0), result, num_draws=4000)
    found = epi.certify(jax.random.key(0), result, num_draws=4000, second_opinion=SAMPLER)
    assert math.isnan(alone.second_log_normalizer)
    assert found.verdict.startswith(alone.verdict)
    assert "Nested sampling agrees within" in found.verdict
    assert abs(found.second_log_normalizer - found.upper_bound) < 3 * math.hypot(
        found.standard_error, found.second_standard_error
    )
    assert found.num_simulations > alone.num_simulations


def test_second_opinion_sees_what_the_certificate_does_not(wells, monkeypatch):
    """A certificate whose draws all lie in one of two equal wells is log 2 too low."""
    problem, eta = wells
    result = result_of(problem, eta, unconstrained_well(problem))
    found = epi.certify(jax.random.key(0), result, num_draws=4000)
    blind = found._replace(upper_bound=found.upper_bound - math.log(2.0), standard_error=0.02)
    monkeypatch.setattr("numpyro_epi._certificate.assess", lambda *_, **__: blind)
    judged = epi.certify(jax.random.key(0), result, num_draws=4000, second_opinion=SAMPLER)
    assert "Nested sampling disagrees: its log Z is 0." in judged.verdict
    assert "nats higher, so the guide may miss modes." in judged.verdict


def test_a_run_that_is_given_up_says_so(wells):
    problem, eta = wells
    sampler = epi.NestedSampling(num_live=200, num_delete=40, max_simulations=200)
    assert not sampler(jax.random.key(0), problem, eta).complete
    judged = epi.certify(
        jax.random.key(0),
        result_of(problem, eta, unconstrained_well(problem)),
        num_draws=1000,
        second_opinion=sampler,
    )
    assert "Nested sampling did not end within" in judged.verdict


def test_one_key_gives_one_answer(wells):
    problem, eta = wells
    first, again, other = (SAMPLER(jax.random.key(seed), problem, eta) for seed in (0, 0, 1))
    assert first.log_normalizer == again.log_normalizer
    assert first.log_normalizer != other.log_normalizer


def test_what_it_cannot_do_is_refused():
    sampler = epi.NestedSampling()
    with pytest.raises(ValueError, match="Expected a model without noise"):
        sampler(jax.random.key(0), EXACT["linear_gaussian_simulator"]().problem, np.zeros(4))
    with pytest.raises(ValueError, match="Expected finite multipliers of shape"):
        sampler(jax.random.key(0), plateau(0.3), [1.0, 2.0])
    with pytest.raises(ValueError, match="Expected num_live to be an integer >= 100; got 60"):
        epi.NestedSampling(num_live=60)

    def improper():
        numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))

    problem = epi.Problem(improper, epi.EmergentProperty(epi.Target(lambda s: s["z"], mean=0.0, name="z")))
    with pytest.raises(ValueError, match="Expected a proper prior"):
        sampler(jax.random.key(0), problem, [0.0])


def test_a_missing_or_old_blackjax_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(ImportError, match="pip install 'blackjax>=1.7'"):
        epi.NestedSampling()(jax.random.key(0), plateau(0.3), [0.0])
    old = type(sys)("blackjax")
    old.__version__ = "1.2"
    monkeypatch.setitem(sys.modules, "blackjax", old)
    with pytest.raises(ImportError, match="Expected blackjax >= 1.7, for nested sampling; got 1.2"):
        epi.NestedSampling()(jax.random.key(0), plateau(0.3), [0.0])
