"""Moves of a plate's members together, against exact draws."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import numpyro_epi as epi
from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._collective import members, move_together
from numpyro_epi._path import Path

NUM_CHAINS, NUM_MEMBERS = 4000, 12


def simulator_of(model):
    target = epi.Target(lambda sites: jnp.sum(sites["a"]), mean=0.0, name="x")
    names = [name for name, site in numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace().items()]
    parameters = tuple(name for name in names if name in ("a", "b", "c"))
    return epi.Problem(model, epi.EmergentProperty(target), parameters=parameters).simulator


def test_members_of_a_plate_are_found_in_all_its_sites():
    def model():
        with numpyro.plate("units", 20, dim=-2):
            with numpyro.plate("inputs", 3, dim=-1):
                numpyro.sample("a", dist.Uniform())
        numpyro.sample("c", dist.Normal().expand([4]).to_event(1))
        with numpyro.plate("units", 20, dim=-1):
            numpyro.sample("b", dist.Dirichlet(jnp.ones(3)))

    simulator = simulator_of(model)
    (index,) = members(simulator)
    # The plate of inputs has three members of twenty coordinates: no sum over many.
    assert index.shape == (20, 5)
    number = jnp.arange(simulator.dim, dtype=float)
    values = simulator.unpack(number)
    expected = np.concatenate([values["a"], values["b"]], axis=1)
    np.testing.assert_array_equal(np.asarray(number)[index], expected)


def test_plates_of_noise_or_of_few_members_are_left_alone():
    def model():
        with numpyro.plate("units", 5):
            numpyro.sample("a", dist.Normal().expand([2]).to_event(1))
        with numpyro.plate("trials", 100):
            numpyro.sample("noise", dist.Normal())

    assert members(simulator_of(model)) == []


def test_plates_of_one_name_and_two_sizes_are_two():
    def model():
        with numpyro.plate("units", 20):
            numpyro.sample("a", dist.Normal())
        with numpyro.plate("units", 30):
            numpyro.sample("b", dist.LKJCholesky(2))

    first, second = members(simulator_of(model))
    assert (first.shape, second.shape) == ((20, 1), (30, 1))
    np.testing.assert_array_equal(np.concatenate([first, second]).ravel(), np.arange(50))


def test_members_of_very_many_coordinates_are_left_alone():
    def model():
        with numpyro.plate("units", 200):
            numpyro.sample("a", dist.Normal().expand([40]).to_event(1))

    assert members(simulator_of(model)) == []


def log_density(u):
    """Members of a mixture of two normals, whose squares' sum is held closely."""
    x = u.reshape(NUM_MEMBERS, 2)
    first = jnp.log(0.6) + jax.scipy.stats.norm.logpdf(x, 0.7, 1.0)
    second = jnp.log(0.4) + jax.scipy.stats.norm.logpdf(x, -0.8, 0.5)
    return jnp.logaddexp(first, second).sum() - 3.0 * jnp.square(jnp.sum(x**2) / NUM_MEMBERS - 2.5)


@pytest.fixture(scope="module")
def exact():
    """Draws by rejection of the mixture's."""
    rng, kept, count = np.random.default_rng(0), [], 0
    while count < NUM_CHAINS:
        is_first = rng.uniform(size=(20_000, NUM_MEMBERS, 2)) < 0.6
        x = np.where(is_first, rng.normal(0.7, 1.0, is_first.shape), rng.normal(-0.8, 0.5, is_first.shape))
        away = np.mean(np.sum(x**2, axis=2), axis=1) - 2.5
        kept.append(x[rng.uniform(size=len(x)) < np.exp(-3.0 * away**2)])
        count += len(kept[-1])
    return np.concatenate(kept)[:NUM_CHAINS].reshape(NUM_CHAINS, -1)


def slope(position):
    return jax.vmap(jax.value_and_grad(log_density))(position)


@pytest.mark.parametrize("step", [0.05, 0.15])
def test_moves_leave_the_distribution_as_it_is(exact, step):
    index = np.arange(2 * NUM_MEMBERS).reshape(NUM_MEMBERS, 2)
    weight = jnp.full(NUM_CHAINS, 1 / NUM_CHAINS)
    again = partial(move_together, slope, index, weight=weight, step_size=jnp.asarray(step), num_leapfrog=6)

    @jax.jit
    def run(position):
        return jax.lax.scan(lambda p, key: again(p, key=key), position, jax.random.split(jax.random.key(1), 20))

    position, acceptance = run(jnp.asarray(exact, jnp.float32))
    assert 0.3 < np.mean(acceptance) < 0.99
    before, after = (np.asarray(x, float).reshape(NUM_CHAINS, NUM_MEMBERS, 2) for x in (exact, position))
    assert np.mean(np.any(before != after, axis=(1, 2))) > 0.99
    sums = {
        "mean": lambda x: x.mean(axis=(1, 2)),
        "square": lambda x: np.square(x).sum(axis=(1, 2)),
        "product": lambda x: (x[..., 0] * x[..., 1]).sum(axis=1),
        "first": lambda x: x[:, 0, 0],
        "determinant": lambda x: np.linalg.slogdet(np.swapaxes(x, 1, 2) @ x)[1],
    }
    for name, of in sums.items():
        assert scipy.stats.ks_2samp(of(before), of(after)).pvalue > 1e-3, name
    # Another sum is not where it was.
    assert abs(np.corrcoef(sums["determinant"](before), sums["determinant"](after))[0, 1]) < 0.9


def opposed(num_units):
    """Both coordinates of every member are opposite to within a fiftieth, so that steps are short; their length is free."""

    def model():
        with numpyro.plate("units", num_units):
            numpyro.sample("a", dist.Normal().expand([2]).to_event(1))

    def apart(sites):
        return jnp.square(sites["a"].sum(axis=1)).mean()

    return epi.Problem(model, epi.EmergentProperty(epi.Target(apart, mean=0.0004)))


@pytest.mark.slow
def test_sums_over_a_large_plate_mix_though_members_move_slowly():
    """From members that are all too long: one by one they would still be."""
    size = 400
    path = Path(opposed(size), ChainSettings(num_chains=64, num_transitions=4))
    keys = jax.random.split(jax.random.key(0))
    along, across = (
        1.3 * np.sqrt(2.0) * jax.random.normal(keys[0], (64, size)),
        0.02 * jax.random.normal(keys[1], (64, size)),
    )
    chains, _ = path.start(jax.random.key(1))
    # The sum of both has the precision 1/2 + 2 eta / size.
    chains = chains._replace(
        position=jnp.stack([across + along, across - along], axis=2).reshape(64, -1) / 2,
        reference=jnp.zeros(()),
        eta=jnp.array([(1 / 0.0004 - 0.5) * size / 2]),
        step_size=jnp.asarray(0.02),
        collective_steps=jnp.array([0.003]),
    )
    run = eqx.filter_jit(lambda c, keys: jax.lax.scan(lambda c, key: (path.move(c, key)[0], None), c, keys)[0])
    found = run(chains, jax.random.split(jax.random.key(2), 20))
    x = np.asarray(found.position, float).reshape(64, size, 2)
    # Begun 1.4 above two, one by one they are still 0.9 above it, and 0.4 together; chance is below 0.02.
    assert abs(np.mean(np.square(x[..., 0] - x[..., 1])) - 2.0) < 0.6
