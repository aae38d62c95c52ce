"""What a simulation costs and how noisy it is decides where a fit begins and by which gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from problems import EXACT, SIMULATOR_COVARIANCE, SIMULATOR_MATRIX, SIMULATOR_NOISE

import numpyro_epi as epi
from numpyro_epi import _work, objectives, starts
from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._work import (
    LIGHT,
    MAX_EXPONENT_NOISE,
    MIRRORED,
    NOISY,
    _noise_share,
    _variance_between,
    chain_settings,
    exponent_noise,
    solve_by_chains,
    work,
)


def problem_of(function, *, noise=0.0, power=1, prior=None, differentiable=True):
    prior = dist.Normal(0.0, 1.0) if prior is None else prior

    def model():
        z = numpyro.sample("z", prior)
        e = numpyro.sample("e", dist.Normal(0.0, 1.0)) if noise else 0.0
        numpyro.deterministic("x", z + noise * e**power)

    statistic = epi.statistic(name="T", differentiable=differentiable)(lambda sites: function(sites["x"]))
    prop = epi.EmergentProperty(epi.Target(statistic, mean=0.5, std=0.1))
    return epi.Problem(model, prop, parameters=("z",))


def repeated(count):
    return lambda x: jax.lax.scan(lambda carry, _: (jnp.sin(carry), None), x, None, length=count)[0]


def identity(x):
    return x


def test_a_loop_counts_as_often_as_it_runs():
    none, few, many = (work(problem_of(function)) for function in (identity, repeated(1000), repeated(3000)))
    assert 1000 <= few - none <= 1100
    assert many - few == 2000


def test_a_loop_within_a_loop_counts_by_both():
    def nested(x):
        return jax.lax.fori_loop(0, 10, lambda _, y: repeated(50)(y), x)

    assert work(problem_of(nested)) - work(problem_of(identity)) >= 500


def test_of_two_branches_the_longer_one_counts():
    def branching(x):
        return jax.lax.cond(x > 0, repeated(1000), lambda y: y, x)

    assert 1000 <= work(problem_of(branching)) - work(problem_of(identity)) <= 1100


def test_a_loop_of_unknown_length_counts_as_a_long_one():
    def until(x):
        return jax.lax.while_loop(lambda y: y > 1e-3, lambda y: 0.5 * y, x)

    assert work(problem_of(until)) - work(problem_of(identity)) >= 200


def test_counting_runs_nothing():
    assert work(problem_of(repeated(10**9))) > 10**9


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_noise_share_is_the_variance_s(noise):
    """Of x = z + noise e it is noise^2 / (1 + noise^2); of its squared deviation from 0.5, by moments of the normal."""
    mean = noise**2 / (1 + noise**2)
    # y = (z - 0.5) + noise e, y^2: E Var(y^2 | z) = 2 s^4 + 4 s^2 (1 + 0.25), Var(y^2) = 2 (1 + s^2)^2 + (1 + s^2).
    # 500 draws of products of squares: a tenth is one standard error.
    s2 = noise**2
    square = (2 * s2**2 + 5 * s2) / (2 * (1 + s2) ** 2 + (1 + s2))
    assert float(_noise_share(problem_of(identity, noise=noise))) == pytest.approx(max(mean, square), rel=0.5)


def test_a_simulation_that_overflows_leaves_the_noise_of_the_others():
    two = jnp.array([[[0.0, jnp.inf], [1.0, 3.0]], [[0.0, jnp.nan], [4.0, 8.0]]]).swapaxes(1, 2)
    np.testing.assert_allclose(_variance_between(two[:, :, 1]), (0.5 * 4 + 0.5 * 16) / 2)
    np.testing.assert_allclose(_variance_between(jnp.array([[0.0, jnp.inf], [1.0, 3.0]])), 2.0)


EXPENSIVE = repeated(300_000)
SITUATIONS = {
    "trivial": (problem_of(identity), starts.Chains, ChainSettings()),
    "a little work": (problem_of(repeated(5000)), starts.Chains, LIGHT),
    "expensive": (problem_of(EXPENSIVE), starts.Pilot, LIGHT),
    "small noise": (problem_of(identity, noise=0.01), starts.Chains, MIRRORED),
    "small noise that does not cancel": (problem_of(identity, noise=0.01, power=2), starts.Chains, LIGHT),
    "large noise": (problem_of(identity, noise=1.0), starts.Pilot, NOISY),
    "jumps": (problem_of(identity, differentiable=False), starts.Pilot, ChainSettings()),
    "improper": (problem_of(identity, prior=dist.ImproperUniform(dist.constraints.real, (), ())), starts.Chains, None),
}


@pytest.mark.parametrize(("problem", "start", "settings"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_default_start_fits_the_problem(problem, start, settings):
    found = starts.default(problem)
    assert isinstance(found, starts.FirstOf)
    assert type(found.options[0]) is start
    if settings is not None:
        assert chain_settings(problem) == settings


def test_default_gradients_do_not_go_through_what_jumps():
    assert isinstance(objectives.default(problem_of(identity)), objectives.Pathwise)
    assert isinstance(objectives.default(problem_of(identity, differentiable=False)), objectives.Score)


@pytest.mark.parametrize(
    ("name", "number"), [("num_draws", 3), ("num_draws", 10.0), ("max_steps", 0), ("max_steps", True)]
)
def test_budget_of_a_problem_is_checked(name, number):
    with pytest.raises(ValueError, match=f"Expected {name} to be an integer >= .; got {number}"):
        epi.Problem(lambda: numpyro.sample("z", dist.Normal()), problem_of(identity).property, **{name: number})


@pytest.mark.slow
def test_fit_takes_the_problem_s_budget_unless_told():
    target = epi.Target(lambda sites: sites["z"], mean=0.0, name="T")
    problem = epi.Problem(
        lambda: numpyro.sample("z", dist.Normal()), epi.EmergentProperty(target), num_draws=20, max_steps=25
    )
    result = epi.fit(jax.random.key(0), problem, start=starts.Prior(), certify=False, progress=False, num_draws=10)
    assert (result.settings["num_draws"], result.settings["max_steps"]) == (10, 25)
    assert np.isfinite(result.verdict.entropy)


@pytest.mark.slow
def test_light_chains_average_more_where_the_solution_s_noise_is_too_large_for_them(monkeypatch):
    """Even where noise over the prior looked small. Of a x + b (x - mu)^2 it is s^2 (a + 2 b d)^2 + 2 b^2 s^4, d = E x - mu.

    The first of both is odd: a pair of opposite noise has none of it.
    """
    exact = EXACT["linear_gaussian_simulator"]()
    monkeypatch.setattr(_work, "chain_settings", lambda problem: LIGHT)
    solved, settings = solve_by_chains(exact.problem, jax.random.key(0), None)
    np.testing.assert_allclose(solved.eta, exact.multipliers, atol=0.03 * np.max(np.abs(exact.multipliers)))
    first, second = solved.eta[:2], solved.eta[2:]
    spread = np.diagonal(SIMULATOR_MATRIX @ SIMULATOR_COVARIANCE @ SIMULATOR_MATRIX.T)
    slope = first**2 + 4 * second**2 * spread
    even = np.sum(2 * second**2 * SIMULATOR_NOISE**2)
    alone, paired = exponent_noise(exact.problem, solved)
    # 500 draws of squares of products of normals: a tenth is one standard error.
    assert alone == pytest.approx(np.sum(SIMULATOR_NOISE * slope) + even, rel=0.5)
    assert paired == pytest.approx(even, rel=0.5)
    assert settings.num_simulations > LIGHT.num_simulations
    count, variance = settings.num_simulations, alone
    if settings.mirrored:
        count, variance = count // 2, paired
    assert variance / count <= 1.2 * MAX_EXPONENT_NOISE * np.sqrt(count - 1)


def test_pairs_are_chosen_where_neither_is_enough(monkeypatch):
    exact = EXACT["linear_gaussian_simulator"]()
    monkeypatch.setattr(_work, "exponent_noise", lambda *_: (1000.0, 40.0))
    found = _work._enough(exact.problem, None, LIGHT)
    assert (found.num_simulations, found.mirrored) == (_work.MOST_SIMULATIONS, True)


@pytest.mark.parametrize("variance", [0.1, 1.0, 4.0, 30.0])
def test_as_few_as_keep_the_noise_within_its_bound(variance):
    counts = np.arange(2, 200)
    enough = variance / counts <= MAX_EXPONENT_NOISE * np.sqrt(counts - 1)
    assert _work._fewest(variance) == counts[enough][0]
