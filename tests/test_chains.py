"""The chains find multipliers, normaliser and draws of exact problems, and say how far off they can be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from chosen_problems import CHOSEN, grid, well
from problems import EXACT, ExactProblem

from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._chains import SCOUT_MOVES, Solved, covariance_of_mean, solve
from numpyro_epi._path import Chains, Path, on_the_way, resample
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target

SMALL = ChainSettings(num_chains=128, num_leapfrog=6, num_transitions=4, num_updates=80, num_draws=16, max_rounds=8)
"""Half a second a run where the model is cheap, once compiled."""

NUM_SEEDS = 30


def half_normal() -> ExactProblem:
    """A statistic that fails for half of the prior: its mean is 1.2 where it does not. The solution is a normal, cut off."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    half = Target(lambda sites: jnp.where(sites["z"] > 0, sites["z"], jnp.nan), mean=1.2, name="half")
    eta = scipy.optimize.brentq(lambda eta: scipy.stats.truncnorm.mean(eta, np.inf, loc=-eta) - 1.2, -3.0, 3.0)
    # The integral of normal(z) exp(-eta z) over z > 0 is exp(eta^2 / 2) Phi(-eta).
    objective = eta**2 / 2 + scipy.stats.norm.logcdf(-eta) + eta * 1.2
    return ExactProblem("half_normal", Problem(model, EmergentProperty(half)), np.nan, objective, np.array([eta]))


CASES = {
    "bounded, not differentiable": (EXACT["indicator"], SMALL),
    "improper base": (EXACT["gaussian_2"], SMALL),
    "model that fails": (half_normal, eqx.tree_at(lambda s: s.num_chains, SMALL, 512)),
    "two modes": (EXACT["oscillator_paper"], ChainSettings()),
}
"""Problem and settings; each compiles once."""

NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "two modes" else ()) for name in CASES]


@pytest.fixture(scope="module")
def solved():
    """An exact problem with its chains' answer, by name."""
    found = {}

    def run(name: str) -> tuple[ExactProblem, ChainSettings, Solved]:
        if name not in found:
            build, settings = CASES[name]
            exact = build()
            found[name] = exact, settings, solve(exact.problem, jax.random.key(0), settings)
        return found[name]

    return run


@pytest.fixture(scope="module")
def repeated(solved):
    """The same over many seeds: answers whose spread shows what their errors should be."""

    def run(name: str) -> tuple[ExactProblem, list[Solved]]:
        exact, settings, _ = solved(name)
        return exact, [solve(exact.problem, jax.random.key(100 + seed), settings) for seed in range(NUM_SEEDS)]

    names = ("bounded, not differentiable", "improper base")
    return {name: run(name) for name in names}


def flat(found: Solved) -> np.ndarray:
    """Moments of all draws, [N, M]."""
    return np.asarray(found.moments, float).reshape(-1, len(found.eta))


def assert_multipliers(exact: ExactProblem, found: Solved, share: float = 0.03):
    """Within this share of the largest, each in the inverse of its statistic's standard deviation."""
    spread = flat(found).std(axis=0)
    deviation = np.abs(found.eta - exact.multipliers) * spread
    assert np.all(deviation < share * np.max(np.abs(exact.multipliers) * spread)), (found.eta, exact.multipliers)


@pytest.mark.parametrize("name", NAMES)
def test_multipliers_are_exact(solved, name):
    """Three standard errors: rounds go on until they are a hundredth."""
    exact, _, found = solved(name)
    assert_multipliers(exact, found)
    assert found.converged


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_property(solved, name):
    """Within 0.05 standard deviations: the multipliers of the last round may be 0.03 off, and their noise."""
    exact, _, found = solved(name)
    moments = flat(found)
    assert np.all(np.abs(moments.mean(axis=0) - exact.problem.target) < 0.05 * moments.std(axis=0))
    assert found.settled(exact.problem.target, 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_of_the_draws(solved, name):
    exact, _, found = solved(name)
    evaluate = jax.vmap(jax.vmap(lambda u: exact.problem.evaluate(jax.random.key(0), u).moments))
    np.testing.assert_allclose(evaluate(found.draws[:3]), found.moments[:3], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_modes_keep_their_shares(solved):
    """Half of the solution's mass is where ``a12 > 0 > a21``."""
    _, _, found = solved("two modes")
    assert 0.45 < np.mean(np.asarray(found.draws)[..., 1] > 0) < 0.55


def test_chains_where_the_model_fails_die(solved):
    _, _, found = solved("model that fails")
    assert np.all(np.asarray(found.draws) > 0)


def test_improper_base_gives_the_solution_s_distribution(solved):
    """A normal whose mean and covariance are the targets', whitened."""
    exact, _, found = solved("improper base")
    mean, (xx, xy, yy) = exact.problem.target[:2], exact.problem.target[2:]
    covariance = np.array([[xx, xy], [xy, yy]]) - np.outer(mean, mean)
    # One draw a chain: those are nearly independent.
    last = np.asarray(found.draws, float)[:, -1]
    white = np.linalg.solve(np.linalg.cholesky(covariance), (last - mean).T)
    for coordinate in white:
        assert scipy.stats.kstest(coordinate, scipy.stats.norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["bounded, not differentiable", "improper base"])
def test_errors_are_honest(repeated, name):
    """Each multiplier's deviation, against its standard error: the ratio of the mean squares is chi-squared."""
    exact, runs = repeated[name]
    squares = np.mean([np.square(found.eta - exact.multipliers) for found in runs], axis=0)
    ratio = squares / np.mean([np.diagonal(found.error) for found in runs], axis=0)
    low, high = scipy.stats.chi2.ppf([1e-4, 1 - 1e-4], df=len(runs)) / len(runs)
    assert np.all((low < ratio) & (ratio < high))


@pytest.mark.parametrize("name", ["bounded, not differentiable", "improper base"])
def test_violation_error_is_the_multipliers_error_in_moments(repeated, name):
    """Moments move by minus their covariance times eta: against the seeds' own spread, to 5 standard errors of that."""
    exact, runs = repeated[name]
    covariance = np.atleast_2d(np.cov(np.concatenate([flat(found) for found in runs]).T))
    moved = np.array([covariance @ (found.eta - exact.multipliers) for found in runs])
    ratio = np.sqrt(np.mean(np.square(moved), axis=0) / np.mean([np.square(f.violation_error) for f in runs], axis=0))
    np.testing.assert_allclose(ratio, 1.0, atol=5 / np.sqrt(2 * len(runs)))


@pytest.mark.parametrize("name", ["bounded, not differentiable", "improper base"])
def test_normalizer_is_unbiased(repeated, name):
    """At the solution the dual is the objective, and flat: an error of eta changes it in the second order only."""
    exact, runs = repeated[name]
    ratios = np.exp([found.log_normalizer - exact.objective for found in runs])
    standard_error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert standard_error < 0.01
    assert abs(ratios.mean() - 1) < 4 * standard_error


@pytest.mark.parametrize("name", NAMES)
def test_normalizer_is_the_objective(solved, name):
    """To 0.15 nats: sequential weights of few chains; what they miss of a mode would cost log 2."""
    exact, _, found = solved(name)
    assert abs(found.log_normalizer - exact.objective) < 0.15


def test_one_key_gives_one_answer(solved):
    exact, settings, found = solved("improper base")
    again, other = (solve(exact.problem, jax.random.key(seed), settings) for seed in (0, 1))
    np.testing.assert_array_equal(again.eta, found.eta)
    np.testing.assert_array_equal(again.draws, found.draws)
    assert np.all(other.eta != found.eta)


def test_runs_are_counted(solved):
    """Two populations and one that looks for modes; a transition evaluates its start and every leapfrog step."""
    _, settings, found = solved("improper base")
    pieces = settings.num_updates + found.num_rounds * settings.num_draws
    evaluations = settings.num_transitions * (settings.num_leapfrog + 1)
    pieces = 2 * pieces + settings.num_updates + SCOUT_MOVES
    assert found.num_simulations == settings.num_chains * pieces * evaluations
    assert 0.6 < found.acceptance < 0.95


NUM_CHAINS = 4000


@pytest.fixture(scope="module")
def wells():
    """The double well at its exact multipliers: a path, chains drawn from it by inversion, and its distribution function."""
    exact = CHOSEN["double_well"]()
    z = np.linspace(-3.0, 3.0, 20_001)
    mass = np.exp(-(z**2) / 2 - exact.multipliers @ [z, well(z)])
    cdf = np.cumsum(mass) / mass.sum()
    draws = np.interp(np.random.default_rng(0).uniform(size=NUM_CHAINS), cdf, z)
    chains = Chains(
        position=jnp.asarray(draws, jnp.float32)[:, None],
        log_weight=jnp.zeros(NUM_CHAINS),
        noise=jax.random.split(jax.random.key(0), NUM_CHAINS),
        step_size=jnp.asarray(0.5),
        collective_steps=jnp.zeros(0),
        eta=jnp.asarray(exact.multipliers, jnp.float32),
        reference=jnp.zeros(()),
        covariance=jnp.eye(2),
        log_normalizer=jnp.zeros(()),
    )
    return Path(exact.problem, SMALL), chains, lambda x: np.interp(x, z, cdf)


def jump(path, chains, key, number):
    """That many jumps and nothing else."""
    moments = jax.vmap(path.problem.evaluate)(chains.noise, chains.position).moments

    def one(carry, key):
        return path._jump(key, chains, *carry, True), None

    (position, moments), _ = jax.lax.scan(one, (chains.position, moments), jax.random.split(key, number))
    return position, moments


def test_errors_allow_for_common_ancestors(wells):
    """Resampling leaves copies of one chain, which jumps then set apart: they look independent for longer than they are.

    Against the spread of the mean over many populations, each of four copies of 64 independent draws.
    """
    path, chains, _ = wells
    path = Path(path.problem, eqx.tree_at(lambda s: s.num_chains, SMALL, 256))
    size, number = 256, 15
    draws = np.random.default_rng(0).choice(np.asarray(chains.position)[:, 0], size=(200, size // 4, 1))
    draws = np.repeat(draws, 4, axis=1)

    def run(position, key):
        some = chains._replace(position=position, log_weight=jnp.zeros(size), noise=chains.noise[:size])
        moments = jax.vmap(path.problem.evaluate)(some.noise, position).moments

        def one(carry, key):
            carry = path._jump(key, some, *carry, True)
            return carry, carry[0]

        return jnp.mean(jax.lax.scan(one, (position, moments), jax.random.split(key, number))[1], axis=0)

    by_chain = np.asarray(eqx.filter_jit(jax.vmap(run))(draws, jax.random.split(jax.random.key(0), len(draws))), float)
    variance = by_chain.mean(axis=1).var()
    assert np.mean([covariance_of_mean(each) for each in by_chain]) == pytest.approx(variance, rel=0.35)
    assert np.mean(by_chain.var(axis=1)) / size < 0.6 * variance


def test_a_round_neither_adapts_step_sizes_nor_the_scale(wells):
    """Its transitions are those of a fixed step size and scale, however far off these are."""
    path, chains, _ = wells
    some = chains._replace(
        position=chains.position[:64], log_weight=jnp.zeros(64), noise=chains.noise[:64], step_size=jnp.asarray(0.05)
    )
    path = Path(path.problem, eqx.tree_at(lambda s: s.num_draws, SMALL, 3))
    key, scale = jax.random.key(0), jnp.std(some.position, axis=0) + 1e-6
    after, record = eqx.filter_jit(path.sample)(some, key)
    assert float(after.step_size) == pytest.approx(0.05, rel=1e-6)
    one = eqx.filter_jit(lambda chains, key: path.move(chains, key, scale=scale)[0])
    expected = some
    for part in jax.random.split(key, 3):
        expected = one(expected, part)
    np.testing.assert_allclose(after.position, expected.position, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(record.draws[-1], after.position)


def test_step_sizes_adapt_between_rounds(wells):
    path, chains, _ = wells
    assert path.adapt(chains, jnp.asarray(0.95)).step_size > chains.step_size
    assert path.adapt(chains, jnp.asarray(0.5)).step_size < chains.step_size


def move(path, chains, key, number, jumps, step_size=None):
    """That many moves of the chains, each begun with this step size."""

    def one(chains, key):
        chains = chains if step_size is None else chains._replace(step_size=jnp.asarray(step_size))
        chains, moments, _ = path.move(chains, key, jumps=jumps)
        return chains, moments[-1]

    chains, moments = jax.lax.scan(one, chains, jax.random.split(key, number))
    return chains.position, moments[-1]


MOVES = {
    "jumps": jump,
    "walks": lambda *args: move(*args, jumps=False),
    "walks by short steps": lambda *args: move(*args, jumps=False, step_size=0.02),
    "short steps and jumps": lambda *args: move(*args, jumps=True, step_size=0.02),
}


def test_transitions_of_short_steps_make_one_trajectory(wells):
    path = Path(wells[0].problem, eqx.tree_at(lambda s: s.num_transitions, SMALL, 6))
    strides = [int(path._stride(jnp.asarray(step))) for step in (1.0, 0.06, 0.04, 0.02, 1e-4)]
    assert strides == [1, 1, 2, 3, 6]


@pytest.mark.parametrize(("size", "together"), [pytest.param(5, 0, marks=pytest.mark.slow), (20, 13)])
def test_large_plates_are_evaluated_together_too(size, together):
    def model():
        with numpyro.plate("units", size):
            numpyro.sample("z", dist.Normal().expand([2]).to_event(1))

    target = Target(lambda sites: sites["z"].mean(), mean=0.3, name="x")
    problem = Problem(model, EmergentProperty(target))
    settings = ChainSettings(
        num_chains=64, num_leapfrog=6, num_transitions=4, num_updates=40, num_draws=10, max_rounds=2
    )
    found = solve(problem, jax.random.key(0), settings)
    pieces = settings.num_updates + found.num_rounds * settings.num_draws
    evaluations = settings.num_transitions * (settings.num_leapfrog + 1) + together
    pieces = 2 * pieces + settings.num_updates + SCOUT_MOVES
    assert found.num_simulations == settings.num_chains * pieces * evaluations
    # A mean of 2 size normals, tilted.
    assert found.eta[0] == pytest.approx(-0.6 * size, rel=0.1)
    assert found.log_normalizer == pytest.approx(-0.09 * size, abs=0.3)


@pytest.mark.parametrize("name", MOVES)
def test_moves_leave_the_distribution_as_it_is(wells, name):
    """Chains that start at exact draws stay there, with the moments of where they are."""
    path, chains, cdf = wells
    position, moments = eqx.filter_jit(MOVES[name])(path, chains, jax.random.key(1), 30)
    z = np.asarray(position, float)[:, 0]
    assert np.mean(z != np.asarray(chains.position)[:, 0]) > 0.9
    assert scipy.stats.kstest(z, cdf).pvalue > 1e-3
    expected = np.stack([z, well(z)], axis=1)
    np.testing.assert_allclose(moments, expected, rtol=1e-4, atol=1e-5)
    standard_error = expected.std(axis=0) / np.sqrt(NUM_CHAINS)
    assert np.all(np.abs(expected.mean(axis=0) - path.problem.target) < 4 * standard_error)


def test_jumps_put_wrong_shares_right(wells):
    """Nineteen of twenty chains start on the left; walks alone would leave them there."""
    path, chains, cdf = wells
    z = np.asarray(chains.position)[:, 0]
    left, right = z[z < 0], z[z > 0]
    crowded = np.concatenate([np.resize(left, NUM_CHAINS * 19 // 20), np.resize(right, NUM_CHAINS // 20)])
    crowded = chains._replace(position=jnp.asarray(crowded)[:, None])
    position, _ = eqx.filter_jit(move)(path, crowded, jax.random.key(2), 40, jumps=True)
    share = 1 - cdf(0.0)
    standard_error = np.sqrt(share * (1 - share) / NUM_CHAINS)
    assert abs(np.mean(np.asarray(position) > 0) - share) < 4 * standard_error


def test_change_of_multipliers_weighs_by_the_ratio_of_densities(wells):
    """And the normaliser follows: against the quadrature of the double well."""
    path, chains, _ = wells
    eta = np.array([0.3, 5.0])
    found = path.reweigh(chains, eqx.filter_jit(path.measure)(chains), jnp.asarray(eta, jnp.float32), chains.reference)
    z = np.asarray(chains.position, float)[:, 0]
    violation = np.stack([z, well(z)], axis=1) - path.problem.target
    change = -violation @ (eta - np.asarray(chains.eta, float))
    np.testing.assert_allclose(found.log_weight, change, atol=1e-4)
    (nodes,), weights = grid((-4.0, 4.0, 200))
    violation = np.stack([nodes, well(nodes)]) - path.problem.target[:, None]

    def log_z(eta):
        return np.log(np.sum(weights * np.exp(scipy.stats.norm.logpdf(nodes) - eta @ violation)))

    standard_error = np.std(np.exp(change)) / np.mean(np.exp(change)) / np.sqrt(NUM_CHAINS)
    assert abs(found.log_normalizer - log_z(eta) + log_z(np.asarray(chains.eta, float))) < 4 * standard_error


def test_resampling_copies_each_chain_by_its_weight(wells):
    """Systematic resampling leaves less than one copy to chance; a chain without weight dies."""
    _, chains, _ = wells
    log_weight = np.random.default_rng(1).normal(scale=2.0, size=NUM_CHAINS)
    log_weight[::3] = -np.inf
    index = jnp.arange(NUM_CHAINS, dtype=jnp.float32)[:, None]
    found = resample(chains._replace(position=index, log_weight=jnp.asarray(log_weight)), jax.random.key(0))
    copies = np.bincount(np.asarray(found.position, int)[:, 0], minlength=NUM_CHAINS)
    expected = NUM_CHAINS * scipy.special.softmax(log_weight)
    # The points are sums of single-precision weights: off by a hundredth of a point.
    assert np.all(np.abs(copies - expected) < 1.02)
    assert np.all(copies[::3] == 0)
    assert np.all(np.asarray(found.log_weight) == 0)


def answer(**changes) -> Solved:
    """Two chains of two draws of one moment, at 0.9 and 1.1."""
    moments = jnp.array([[[0.9], [1.1]], [[1.1], [0.9]]])
    nothing = np.zeros(1)
    base = Solved(nothing, np.zeros((1, 1)), nothing, True, True, moments, moments, 0.0, 0.8, None, 1, 1, None, None)
    return base._replace(**changes)


def test_settled_measures_in_standard_deviations():
    """Mean 1, standard deviation 0.1."""
    assert answer().settled(np.array([1.004]), 0.05)
    assert not answer().settled(np.array([1.006]), 0.05)
    assert not answer(eta=np.array([np.nan])).settled(np.array([1.0]), 0.05)
    assert not answer(moments=jnp.full((2, 2, 1), jnp.nan)).settled(np.array([1.0]), 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 3}, "Expected num_chains to be an integer >= 4; got 3"),
        ({"num_chains": 64.0}, "Expected num_chains to be an integer >= 4; got 64.0"),
        ({"num_leapfrog": 1}, "Expected num_leapfrog to be an integer >= 2; got 1"),
        ({"num_transitions": True}, "Expected num_transitions to be an integer >= 2; got True"),
        ({"num_updates": 0}, "Expected num_updates to be an integer >= 2; got 0"),
        ({"num_draws": 1}, "Expected num_draws to be an integer >= 2; got 1"),
        ({"max_rounds": 1}, "Expected max_rounds to be an integer >= 2; got 1"),
        ({"num_simulations": 1}, "Expected num_simulations to be an integer >= 2; got 1"),
        ({"precision": 0.0}, "Expected precision > 0; got 0.0"),
        ({"precision": float("nan")}, "Expected precision > 0; got nan"),
        ({"rate": 0.0}, "Expected rate between 0 and 1; got 0.0"),
        ({"target_acceptance": 1.0}, "Expected target_acceptance between 0 and 1; got 1.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        ChainSettings(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mirrored"),
    [("linear_gaussian_simulator", False), ("noisy_spread", False), ("noisy_spread", True)],
)
def test_noise_leaves_multipliers_right(name, mirrored):
    """The mean of few simulations alone would make them wrong: see the next test."""
    exact = {**EXACT, **CHOSEN}[name]()
    found = solve(exact.problem, jax.random.key(0), ChainSettings(mirrored=mirrored))
    assert_multipliers(exact, found)
    assert found.settled(exact.problem.target, 0.05)
    assert abs(found.log_normalizer - exact.objective) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four_corners", "double_well"])
def test_unequal_modes_keep_their_shares(name):
    exact = CHOSEN[name]()
    found = solve(exact.problem, jax.random.key(0), ChainSettings())
    assert_multipliers(exact, found)
    assert abs(found.log_normalizer - exact.objective) < 0.05


@pytest.mark.slow
def test_infeasible_property_does_not_settle():
    exact = EXACT["linear_gaussian_infeasible"]()
    found = solve(exact.problem, jax.random.key(0), SMALL)
    assert not found.settled(exact.problem.target, 0.05)


@pytest.mark.slow
def test_chains_that_come_nearer_by_every_round_are_not_lost():
    """Eighty standard deviations away: an update moves by one at most, and the walk ends on its way."""

    def model():
        numpyro.sample("x", dist.Normal())

    problem = Problem(model, EmergentProperty(Target(lambda s: s["x"], mean=80.0, name="x")))
    found = solve(problem, jax.random.key(0), ChainSettings(num_chains=128, num_updates=80, num_transitions=4))
    assert found.converged
    np.testing.assert_allclose(found.eta, -80.0, rtol=0.02)


DIM = 60


def cloud(mean, std):
    """Squared length of so many standard normals: chi-squared, and held the closer, the nearer to zero."""

    def model():
        numpyro.sample("z", dist.Normal().expand([DIM]).to_event(1))

    return Problem(model, EmergentProperty(Target(lambda s: jnp.sum(s["z"] ** 2), mean=mean, std=std, name="x")))


@pytest.mark.slow
def test_no_multiplier_widens_on_the_way():
    """Half of the way from 60 to 5 the path's variance is larger than so many parameters leave it."""
    settings = ChainSettings(num_chains=64, num_transitions=4, num_updates=20)
    path = Path(cloud(5.0, 1.05), settings)
    chains, first = path.start(jax.random.key(0))
    update = eqx.filter_jit(lambda *args: path.update(*args, eta=jnp.full(2, jnp.nan)))
    for number in range(settings.num_updates):
        chains = update(chains, jnp.asarray(number), jax.random.key(number), first)
        if number < settings.num_updates / 2:
            assert chains.eta[1] >= 0
    # With the targets there, it is what it takes.
    assert chains.eta[1] < 0


@pytest.mark.slow
def test_chains_within_bounds_solve_the_bounded_problem():
    """By quadrature over |z|^2 within two wanted spreads of its mean."""
    mean, std, within = 5.0, 1.05, 2.0
    found = solve(cloud(mean, std), jax.random.key(0), ChainSettings(num_chains=256, num_transitions=4, within=within))
    assert np.max(np.abs(flat(found)[:, 0] - mean)) <= within * std
    grid = np.linspace(mean - within * std, mean + within * std, 20_000)
    moments = np.stack([grid - mean, (grid - mean) ** 2 - std**2])
    log_base = scipy.stats.chi2.logpdf(grid, DIM)
    exact = scipy.optimize.minimize(
        lambda eta: scipy.special.logsumexp(log_base - eta @ moments),
        np.array([5.0, 0.0]),
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-9},
    )
    # Without bounds the second one is -0.14.
    assert exact.x[1] < -0.2
    errors = np.sqrt(np.diagonal(found.error))
    assert np.all(np.abs(found.eta - exact.x) < 4 * errors + 0.01 * np.abs(exact.x)), (found.eta, exact.x)


def test_pairs_of_opposite_noise_need_two_of_them():
    with pytest.raises(ValueError, match="Expected two pairs of simulations or more .* got num_simulations=3"):
        ChainSettings(num_simulations=3, mirrored=True)
    with pytest.raises(TypeError, match="Expected mirrored to be True or False; got 1"):
        ChainSettings(mirrored=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_targets_on_the_way_interpolate_mean_and_variance(share):
    """And not second moments about the last target, which far from it would ask for two separate halves."""

    def model():
        numpyro.sample("x", dist.Normal(5.0, 2.0))

    problem = Problem(model, EmergentProperty(Target(lambda s: s["x"], mean=1.0, std=0.5, name="x")))
    first = jnp.array([5.0, 4.0 + 16.0])
    mean, second = on_the_way(problem, first, jnp.asarray(share))
    assert mean == pytest.approx(1.0 + 4.0 * share)
    assert second - (mean - 1.0) ** 2 == pytest.approx(4.0 * share + 0.25 * (1 - share), rel=1e-5)
