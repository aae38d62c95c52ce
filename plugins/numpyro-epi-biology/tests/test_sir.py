"""The epidemic beside Kermack and McKendrick's closed forms and Gillespie's exact simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from numpyro_epi_biology.sir import attack_rate, peak_day, sir

import numpyro_epi as epi


@pytest.fixture
def double_precision():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def expected(transmission, recovery, *, population, infected, num_days):
    """The sites of an epidemic without chance."""
    problem = sir(population=population, infected=infected, num_days=num_days, peak_mean=10.0)
    values = {"transmission": jnp.asarray(transmission, float), "recovery": jnp.asarray(recovery, float)}
    given = values | {"chance": jnp.zeros((num_days, 2))}
    # Chance is a noise site, which `simulate` leaves to the key: it is made a parameter of the same model here.
    model = epi.Problem(
        problem.simulator.model, problem.property, model_kwargs=problem.simulator.kwargs, name="without chance"
    )
    return model.simulator.simulate(jax.random.key(0), given).sites


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("transmission", "recovery"), [(0.3, 0.2), (0.5, 0.2), (0.9, 0.3)])
def test_final_size_equation(transmission, recovery):
    """``s = exp(-R0 (1 - s n0 / n))`` for the share ``s`` that escapes, with those infected at the start counted."""
    population, infected = 10**6, 10
    sites = expected(transmission, recovery, population=population, infected=infected, num_days=1000)
    ratio, susceptible = transmission / recovery, 1 - infected / population

    def excess(attack):
        return 1 - np.exp(-ratio * (susceptible * attack + infected / population)) - attack

    assert attack_rate(sites) == pytest.approx(scipy.optimize.brentq(excess, 1e-3, 1.0), abs=1e-9)
    plain = scipy.optimize.brentq(lambda a: 1 - np.exp(-ratio * a) - a, 1e-3, 1.0)
    assert attack_rate(sites) == pytest.approx(plain, abs=1e-4)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("transmission", "recovery"), [(0.6, 0.2), (0.3, 0.3), (0.1, 0.4)])
def test_early_growth_rate(transmission, recovery):
    infected = expected(transmission, recovery, population=10**9, infected=1, num_days=20)["infected"]
    np.testing.assert_allclose(np.diff(np.log(infected))[:10], transmission - recovery, atol=1e-6)


def test_single_precision_agrees_with_the_differential_equations():
    """To the error of a daily step."""
    sites = expected(0.4, 0.2, population=10_000, infected=50, num_days=150)

    def slope(t, state):
        infections = 0.4 * state[0] * state[1] / 10_000
        return [-infections, infections - 0.2 * state[1]]

    exact = scipy.integrate.solve_ivp(slope, (0, 150), [9950, 50], t_eval=np.arange(151), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sites["infected"], exact.y[1], atol=0.03 * exact.y[1].max())
    assert abs(peak_day(sites) - np.argmax(exact.y[1])) < 1.0


def gillespie(rng, transmission, recovery, population, infected):
    """Susceptible and infected people on days 0 to 150 of one exact epidemic, shape [2, 151]."""
    state, time, days = [population - infected, infected], 0.0, []
    while len(days) < 151:
        infection, removal = transmission * state[0] * state[1] / population, recovery * state[1]
        time = time + rng.exponential() / (infection + removal) if state[1] else np.inf
        while len(days) < min(time, 151):
            days.append(tuple(state))
        if rng.random() * (infection + removal) < infection:
            state = [state[0] - 1, state[1] + 1]
        else:
            state = [state[0], state[1] - 1]
    return np.array(days).T


def test_chance_agrees_with_exact_simulation():
    """Means and standard deviations, the latter to a sixth: of 300 draws they are known to a twentieth."""
    rng, number = np.random.default_rng(0), 300
    daily = jnp.asarray([gillespie(rng, 0.4, 0.2, 2000, 50) for _ in range(number)], float)

    def statistics(susceptible, infected):
        sites = {"susceptible": susceptible, "infected": infected}
        return jnp.stack([peak_day(sites), attack_rate(sites)])

    exact = np.asarray(jax.vmap(statistics)(daily[:, 0], daily[:, 1]))
    problem = sir(population=2000, infected=50, peak_mean=30.0)
    values = {"transmission": jnp.float32(0.4), "recovery": jnp.float32(0.2)}

    def measure(key):
        sites = problem.simulator.simulate(key, values).sites
        return statistics(sites["susceptible"], sites["infected"])

    found = np.asarray(jax.jit(jax.vmap(measure))(jax.random.split(jax.random.key(0), 4000)))
    standard_error = exact.std(axis=0) / np.sqrt(number)
    # A day's step may shift the peak by half a day.
    assert np.all(np.abs(found.mean(axis=0) - exact.mean(axis=0)) < 5 * standard_error + [0.5, 0.005])
    np.testing.assert_allclose(found.std(axis=0), exact.std(axis=0), rtol=0.17)


def test_chance_leaves_the_rates_their_freedom():
    """Near the targets, it alone makes less than a third of the spread that the peak should have."""
    problem = sir()
    values = {"transmission": jnp.float32(0.265), "recovery": jnp.float32(0.173)}

    def moments(key):
        return problem.property.values(problem.simulator.simulate(key, values).sites)["sir.peak_day"]

    peaks = jax.jit(jax.vmap(moments))(jax.random.split(jax.random.key(0), 500))
    assert np.mean(peaks) == pytest.approx(45.0, abs=1.0)
    assert 0.5 < np.std(peaks) < 5.0 / 3


def test_peak_day_is_a_parabola_s_vertex():
    days = np.arange(101.0)
    for vertex in (30.0, 47.3):
        infected = jnp.asarray(np.exp(-0.5 * ((days - vertex) / 12) ** 2))
        assert peak_day({"infected": infected}) == pytest.approx(vertex, abs=0.01)


def test_peak_day_of_a_decline_is_the_first():
    assert peak_day({"infected": jnp.exp(-0.2 * jnp.arange(100.0))}) < 0.01


@pytest.mark.usefixtures("double_precision")
def test_gradients_are_difference_quotients():
    problem, direction = sir(), jnp.array([0.6, -0.8])
    moments = jax.jit(lambda key, u: problem.evaluate(key, u).moments)
    slopes = jax.jit(jax.jacrev(moments, argnums=1))
    for seed in range(3):
        key, u = jax.random.key(seed), jnp.array([-0.6 + 0.2 * seed, -0.7])
        quotient = (moments(key, u + 1e-5 * direction) - moments(key, u - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(slopes(key, u) @ direction, quotient, rtol=1e-4)


def test_gradients_of_prior_draws_are_finite():
    problem = sir()
    keys = jax.random.split(jax.random.key(0), 200)
    u = 3 * jax.random.normal(jax.random.key(1), (200, 2))
    gradients = jax.jit(jax.vmap(jax.jacrev(lambda key, u: problem.evaluate(key, u).moments, argnums=1)))(keys, u)
    assert jnp.all(jnp.isfinite(gradients))


def test_registered_problem_has_its_targets():
    problem = epi.get_problem("biology.sir")
    np.testing.assert_allclose(problem.target, [45.0, 0.6, 5.0**2, 0.05**2])
    assert problem.dim == 2
    assert problem.simulator.noise == ("chance",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak_std": 0.0}, r"Expected a finite peak_std > 0; got 0\.0"),
        ({"population": 1.5}, r"Expected population to be an integer >= 1; got 1\.5"),
        ({"infected": 100_000}, "Expected infected below the population of 100000; got 100000"),
        ({"peak_mean": 200.0}, r"Expected peak_mean below the 150 days that are simulated; got 200\.0"),
        ({"attack_mean": 1.0}, r"Expected attack_mean below 1; got 1\.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sir(**options)


def test_bad_sharpness_is_named():
    with pytest.raises(ValueError, match="Expected a finite sharpness > 0; got -1"):
        peak_day.bind(sharpness=-1)({"infected": jnp.ones(3)})
