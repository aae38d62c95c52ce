"""Every objective's gradient and value are unbiased at a normal guide, where the augmented Lagrangian is known."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flowjax.distributions import Normal

from numpyro_epi._problem import Evaluation
from numpyro_epi.objectives import Anchored, Lagrangian, Pathwise, Score, mean_log_density, split_half, squared_mean

OBJECTIVES = {
    "pathwise_u": Pathwise(),
    "pathwise_u_path_derivative": Pathwise(path_derivative=True),
    "pathwise_split_half": Pathwise(penalty=split_half),
    "score": Score(),
}
LOC, SCALE = np.array([0.3, -0.5]), np.array([0.8, 1.2])
ETA = np.array([0.5, -0.3])
METRIC = np.array([[2.0, 0.7], [0.7, 1.0]])
TARGET = np.array([0.2, 0.4])
LAGRANGIAN = Lagrangian(*(jnp.asarray(part, jnp.float32) for part in (ETA, METRIC, TARGET)))
NUM_KEYS = 100_000
NUM_DRAWS, BATCH_KEY = 6, jr.key(2)


def evaluate(key, u):
    """A linear and a quadratic moment with noise of their own; the base is a standard normal without its constant."""
    noise = 0.5 * jr.normal(key, (2,))
    moments = jnp.stack([u[0] + 0.5 * u[1], jnp.square(u[0]) + u[0] * u[1]]) + noise
    return Evaluation(-0.5 * jnp.sum(jnp.square(u)), jnp.zeros(()), moments, jnp.asarray(True))


def exact_loss(parameters):
    """``-H_b + eta . R + 1/2 R' P R`` of the normal guide, in closed form."""
    loc, scale = parameters
    relative = -jnp.sum(jnp.log(scale)) - jnp.log(2 * jnp.pi * jnp.e) + 0.5 * jnp.sum(loc**2 + scale**2)
    mean = jnp.stack([loc[0] + 0.5 * loc[1], loc[0] ** 2 + scale[0] ** 2 + loc[0] * loc[1]])
    violation = mean - TARGET
    return relative + ETA @ violation + 0.5 * violation @ METRIC @ violation


def exact() -> tuple[float, np.ndarray]:
    value, gradient = jax.value_and_grad(exact_loss)((jnp.asarray(LOC), jnp.asarray(SCALE)))
    return float(value), np.concatenate(gradient)


def start():
    return jnp.asarray(LOC, jnp.float32), jnp.asarray(SCALE, jnp.float32)


def loss_and_gradient(objective, key, run=evaluate, lagrangian=LAGRANGIAN, num_draws=2, parameters=None):
    """The loss, and its gradient with respect to the normal guide's means and standard deviations, flat."""

    def loss(parameters):
        return objective(key, Normal(*parameters), run, lagrangian, num_draws)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(start() if parameters is None else parameters)
    return value, jnp.concatenate(gradient)


def over_keys(objective, **options):
    """Losses [K] and gradients [K, 4] at the smallest batch, where a bias is worst."""
    keys = jr.split(jr.key(5), NUM_KEYS)
    once = eqx.filter_jit(
        lambda keys: jax.lax.map(lambda k: loss_and_gradient(objective, k, **options), keys, batch_size=25_000)
    )
    return tuple(np.asarray(part, float) for part in once(keys))


@cache
def found(name: str):
    return over_keys(OBJECTIVES[name])


def deviation(samples, expected):
    """Distance of the mean from what is expected, in standard errors."""
    return np.abs(samples.mean(axis=0) - expected) / (samples.std(axis=0) / np.sqrt(len(samples)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_unbiased(name):
    assert np.all(deviation(found(name)[1], exact()[1]) < 5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_is_unbiased(name):
    assert deviation(found(name)[0], exact()[0]) < 5


def test_squared_mean_is_biased():
    """The naive penalty fails what all others pass: by tr(P S) / 2N in the value, and by its slope in the gradient."""
    values, gradients = over_keys(Pathwise(penalty=squared_mean))
    assert deviation(values, exact()[0]) > 5
    assert np.any(deviation(gradients, exact()[1]) > 5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_reports_what_was_drawn(name):
    objective, key = OBJECTIVES[name], jr.key(1)
    _, batch = jax.jit(lambda key: objective(key, Normal(*start()), evaluate, LAGRANGIAN, 50))(key)
    flow_key, noise_key = jr.split(key)
    u = Normal(*start()).sample(flow_key, (50,))
    expected = jax.jit(jax.vmap(evaluate))(jr.split(noise_key, 50), u)
    np.testing.assert_allclose(batch.moments, expected.moments, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch.log_base, expected.log_base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch.log_q, Normal(*start()).log_prob(u), rtol=1e-4)
    assert np.all(batch.finite)


def sometimes_nan(key, u):
    """A simulator that fails where u_0 is large, in its values and so in its gradients."""
    found = evaluate(key, u)
    failed = u[0] > 0.5
    moments = jnp.where(failed, jnp.nan, found.moments)
    return found._replace(moments=moments, log_base=jnp.where(failed, -jnp.inf, found.log_base), finite=~failed)


def sometimes_nan_gradient(key, u):
    """Every value is finite, but the square root's slope is NaN where u_0 is negative."""
    found = evaluate(key, u)
    root = jnp.where(u[0] > 0, jnp.sqrt(u[0]), 0.0)
    return found._replace(moments=found.moments + root)


def by_hand(name, *, rows, run, held=()):
    """Gradient of the loss of some rows of a batch alone; the held ones send none through the simulator."""
    rows, keys = np.asarray(rows), jr.split(jr.split(BATCH_KEY)[1], NUM_DRAWS)
    keys, standard = keys[rows], (first_draws()[rows] - LOC) / SCALE
    cut = np.isin(rows, held)[:, None]

    def loss(parameters):
        u = parameters[0] + parameters[1] * standard.astype(np.float32)
        runs = jax.vmap(run)(keys, jnp.where(cut, jax.lax.stop_gradient(u), u))
        v = runs.moments - LAGRANGIAN.target
        log_q = Normal(*freeze(name, "path_derivative", parameters)).log_prob(freeze(name, "score", u))
        linear = log_q - runs.log_base + v @ LAGRANGIAN.eta
        gram = v @ LAGRANGIAN.metric @ v.T
        if name == "score":
            return jnp.mean(jax.lax.stop_gradient(score_coefficients(linear, gram)) * log_q)
        if name == "pathwise_split_half":
            first = rows < NUM_DRAWS // 2
            return jnp.mean(linear) + jnp.mean(gram[first][:, ~first]) / 2
        return jnp.mean(linear) + jnp.mean(gram[~np.eye(len(rows), dtype=bool)]) / 2

    return jnp.concatenate(jax.jit(jax.grad(loss))(start()))


def freeze(name, kind, tree):
    return jax.lax.stop_gradient(tree) if kind in name else tree


def score_coefficients(linear, gram):
    """Each draw's part of the loss less the same of the others alone."""
    coefficients = []
    for i in range(len(linear)):
        rest = np.array([j for j in range(len(linear)) if j != i])
        own = linear[i] + jnp.mean(gram[i, rest])
        pairs = gram[np.ix_(rest, rest)][~np.eye(len(rest), dtype=bool)]
        coefficients.append(own - jnp.mean(linear[rest]) - jnp.mean(pairs))
    return jnp.stack(coefficients)


@cache
def first_draws():
    """The draws of ``BATCH_KEY``."""
    sample = jax.jit(lambda key: Normal(*start()).sample(key, (NUM_DRAWS,)))
    return np.asarray(sample(jr.split(BATCH_KEY)[0]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_failed_draws_leave_the_gradient_of_the_others(name):
    finite = [int(i) for i in np.flatnonzero(first_draws()[:, 0] <= 0.5)]
    assert 2 < len(finite) < NUM_DRAWS
    value, gradient = loss_and_gradient(OBJECTIVES[name], BATCH_KEY, sometimes_nan, num_draws=NUM_DRAWS)
    expected = by_hand(name, rows=finite, run=evaluate)
    assert np.isfinite(value)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "score"])
def test_draws_with_a_broken_derivative_send_none(name):
    """Their values still count; only their path through the simulator is cut."""
    held = [int(i) for i in np.flatnonzero(first_draws()[:, 0] <= 0)]
    assert 0 < len(held) < NUM_DRAWS
    _, gradient = loss_and_gradient(OBJECTIVES[name], BATCH_KEY, sometimes_nan_gradient, num_draws=NUM_DRAWS)

    def safe(key, u):
        root = jnp.where(u[0] > 0, jnp.sqrt(jnp.where(u[0] > 0, u[0], 1.0)), 0.0)
        found = evaluate(key, u)
        return found._replace(moments=found.moments + root)

    expected = by_hand(name, rows=list(range(NUM_DRAWS)), run=safe, held=held)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_score_needs_no_derivative():
    _, broken = loss_and_gradient(OBJECTIVES["score"], BATCH_KEY, sometimes_nan_gradient, num_draws=NUM_DRAWS)
    assert np.all(np.isfinite(broken))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_finite_gives_a_finite_gradient(name):
    def always_nan(key, u):
        return evaluate(key, u)._replace(moments=jnp.full(2, jnp.nan), finite=jnp.asarray(False))

    value, gradient = loss_and_gradient(OBJECTIVES[name], BATCH_KEY, always_nan, num_draws=4)
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, np.zeros(4))


def noiseless(key, u):
    """One linear and one quadratic moment, so that the tilted base is a normal again."""
    moments = jnp.stack([u[0], jnp.square(u[1])])
    return Evaluation(-0.5 * jnp.sum(jnp.square(u)), jnp.zeros(()), moments, jnp.asarray(True))


def gradients_at_the_optimum(objective):
    """exp(-u²/2 - eta . T) is Normal(-eta_0, 1) times Normal(0, 1 / sqrt(1 + 2 eta_1)); the metric is zero."""
    solution = jnp.array([-0.7, 0.0]), jnp.array([1.0, 0.5])
    lagrangian = Lagrangian(jnp.array([0.7, 1.5]), jnp.zeros((2, 2)), jnp.array([-0.7, 0.25]))
    run = jax.jit(jax.vmap(lambda key: loss_and_gradient(objective, key, noiseless, lagrangian, 4, solution)[1]))
    return np.asarray(run(jr.split(jr.key(3), 500)))


def test_path_derivative_has_no_variance_at_the_optimum():
    np.testing.assert_allclose(gradients_at_the_optimum(Pathwise(path_derivative=True)), 0.0, atol=2e-5)
    assert np.all(gradients_at_the_optimum(Pathwise()).std(axis=0) > 0.1)


@pytest.mark.slow
def test_anchor_adds_the_cross_entropy_of_its_draws():
    """``-E_p[log q]`` of a normal guide in closed form, on top of the objective it wraps."""
    draws, weight = jr.normal(jr.key(8), (40, 2)), 0.7
    centre, spread = np.asarray(draws).mean(axis=0), np.asarray(draws).std(axis=0)

    def forward(parameters):
        loc, scale = parameters
        return jnp.sum(jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi) + ((loc - centre) ** 2 + spread**2) / (2 * scale**2))

    values, gradients = over_keys(Anchored(Pathwise(), draws, weight))
    value, gradient = jax.value_and_grad(forward)(start())
    assert deviation(values, exact()[0] + weight * float(value)) < 5
    assert np.all(deviation(gradients, exact()[1] + weight * np.concatenate(gradient)) < 5)


def test_mean_log_density_picks_every_draw():
    draws = jr.normal(jr.key(8), (5, 2))
    flow = Normal(*start())
    picks = jax.jit(jax.vmap(lambda key: mean_log_density(key, flow, draws, 3)))(jr.split(jr.key(0), 20_000))
    assert deviation(np.asarray(picks, float), float(jnp.mean(flow.log_prob(draws)))) < 5
