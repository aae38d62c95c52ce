"""The mean-field state of a rank-one network beside SciPy's solution of the published equations and a simulated network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from numpyro_epi_circuits import low_rank, low_rank_rnn

import numpyro_epi as epi

STRUCTURED = (2.3, 2.8, 1.1)
NODES = np.linspace(-8, 8, 801)
WEIGHTS = scipy.stats.norm.pdf(NODES) * (NODES[1] - NODES[0])


solve = jax.jit(low_rank.solve)
slopes = jax.jit(jax.jacobian(lambda parameters: jnp.stack(low_rank.solve(*parameters))))


def state(*parameters):
    return np.array([float(value) for value in solve(*map(jnp.float32, parameters))])


def published_equations(unknowns, g, mean, spread):
    """The three conditions as they are printed, by the trapezoidal rule."""
    mu, delta_inf, delta_0 = unknowns
    z, x = NODES[:, None], NODES[None, :]
    inner = mu + np.sqrt(delta_0 - delta_inf) * x + np.sqrt(delta_inf) * z
    total = mu + np.sqrt(delta_0) * NODES
    rate = WEIGHTS @ np.tanh(total)
    shared = (spread * rate) ** 2
    static = g**2 * WEIGHTS @ (np.tanh(inner) @ WEIGHTS) ** 2 + shared
    energy = g**2 * (
        WEIGHTS @ np.log(np.cosh(total)) ** 2 - WEIGHTS @ (np.log(np.cosh(inner)) @ WEIGHTS) ** 2
    ) + shared * (delta_0 - delta_inf)
    return np.array([mu - mean * rate, delta_inf - static, (delta_0**2 - delta_inf**2) / 2 - energy])


def test_a_chaotic_state_solves_the_published_equations():
    mu, static, temporal = state(*STRUCTURED)
    assert mu > 0.5 and temporal > 0.3
    near = [mu * 1.02, static * 0.98, (static + temporal) * 1.01]
    solved = scipy.optimize.root(published_equations, near, args=STRUCTURED, tol=1e-10)
    assert solved.success
    np.testing.assert_allclose([mu, static, static + temporal], solved.x, rtol=2e-3)


def test_chaos_without_structure_begins_at_one():
    """Sompolinsky, Crisanti & Sommers 1988: no activity below g = 1, and chaos alone above."""
    np.testing.assert_allclose(state(0.8, 0.0, 0.0), 0.0, atol=1e-5)
    mu, static, temporal = state(2.0, 0.0, 0.0)
    solved = scipy.optimize.brentq(lambda delta: published_equations((0.0, 0.0, delta), 2.0, 0.0, 0.0)[2], 0.5, 5.0)
    np.testing.assert_allclose([mu, static, temporal], [0.0, 0.0, solved], atol=2e-3)


def test_a_network_at_rest_has_the_state_of_the_theory():
    g, mean_m, mean_n, spread_m = 0.7, 1.6, 1.2, 0.8
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        size = 1000
        random = g * rng.standard_normal((size, size)) / np.sqrt(size)
        m = mean_m + spread_m * rng.standard_normal(size)
        x = np.ones(size)
        for _ in range(120):
            rate = np.tanh(x)
            x = x + 0.3 * (-x + random @ rate + m * mean_n * rate.mean())
        found.append((x.mean(), x.var()))
    mu, static, temporal = state(g, mean_m * mean_n, spread_m * mean_n)
    error = np.std(found, axis=0, ddof=1) / 2
    assert np.all(np.abs(np.mean(found, axis=0) - [mu, static]) < 4 * error)
    assert np.all(error < 0.05)
    assert temporal < 1e-5


def test_slopes_are_those_of_the_converged_state():
    found = np.array(slopes(tuple(map(jnp.float32, STRUCTURED))))
    for i, h in enumerate((0.02, 0.02, 0.02)):
        up, down = np.array(STRUCTURED), np.array(STRUCTURED)
        up[i] += h
        down[i] -= h
        np.testing.assert_allclose(found[i], (state(*up) - state(*down)) / (2 * h), rtol=0.03, atol=0.03)


def test_all_over_the_box_values_and_slopes_are_finite():
    rng = np.random.default_rng(3)
    g, m_m, m_n, s_m = rng.uniform([0, -3, -3, 0], [3, 3, 3, 3], size=(300, 4)).astype(np.float32).T
    edge = [np.append(column, value) for column, value in zip((g, m_m * m_n, s_m * m_n), (0.0, 0.0, 0.0), strict=True)]

    @jax.jit
    def all_of(columns):
        return jax.vmap(jax.value_and_grad(lambda p: sum(low_rank.solve(*p))))(columns)

    value, slope = all_of(tuple(map(jnp.asarray, edge)))
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope))


@pytest.mark.slow
def test_the_sign_of_both_means_does_not_matter():
    problem = epi.get_problem("circuits.low_rank_rnn")
    values = {"g": 2.3, "M_m": 2.0, "M_n": 1.4, "Sigma_m": 0.8}
    mirrored = values | {"M_m": -2.0, "M_n": -1.4}
    found = [
        problem.simulator.simulate(jax.random.key(0), {name: jnp.float32(v) for name, v in each.items()}).sites
        for each in (values, mirrored)
    ]
    np.testing.assert_allclose(found[0]["mu"], found[1]["mu"], rtol=1e-6)
    np.testing.assert_allclose(found[0]["mu"], state(2.3, 2.8, 1.12)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activity": (np.nan, 1.0)}, "Expected a finite activity; got nan"),
        ({"static": (-1.0, 1.0)}, "Expected a finite static > 0; got -1.0"),
        ({"temporal": (1.0, 0.0)}, "Expected a finite temporal_std > 0; got 0.0"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        low_rank_rnn(**arguments)
