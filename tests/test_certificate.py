"""The certificate's distance and bound are the exact ones, and it sees what the guide lost: closed forms and quadrature."""

import math

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
from chosen_problems import CHOSEN, CORNER, well
from flowjax.distributions import MultivariateNormal, Normal, VmapMixture
from problems import EXACT, SIMULATOR_COVARIANCE, SIMULATOR_MATRIX, SIMULATOR_TARGET, exact_kl

from numpyro_epi import _pool
from numpyro_epi._certificate import assess, certify, cost
from numpyro_epi._outcome import STATUS, Verdict
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi._result import Result
from numpyro_epi._weights import _shape, balance, pareto_khat, tilt

NUM_DRAWS = 4000


def result_of(problem, eta, flow, status=STATUS.satisfied):
    """What a fit would return, made by hand."""
    nothing = np.zeros(len(eta))
    return Result(
        problem=problem,
        flow=flow,
        status=status,
        verdict=Verdict(nothing, nothing, nothing, 0.0, 0.0, 0.0, 1.0, 1),
        eta=np.asarray(eta, float),
        records={"step": np.array([0])},
        settings={"tolerance": 0.05},
        seconds=0.0,
        seed="0,0",
    )


def mixture(locs, scale, weights):
    """Normals of one scale around these places."""
    return VmapMixture(eqx.filter_vmap(lambda loc: Normal(loc, scale))(jnp.asarray(locs)), jnp.asarray(weights))


def gaussian_2():
    """A normal of wrong mean and covariance under Lebesgue base: entropy and raw moments in closed form."""
    mean, covariance = np.array([-0.6, 0.9]), np.array([[2.6, 0.7], [0.7, 3.0]])
    second = covariance + np.outer(mean, mean)
    entropy = 0.5 * math.log((2 * math.pi * math.e) ** 2 * np.linalg.det(covariance))
    moments = [*mean, second[0, 0], second[0, 1], second[1, 1]]
    return "gaussian_2", MultivariateNormal(jnp.asarray(mean), jnp.asarray(covariance)), entropy, moments


def relative_entropy_mean():
    """A normal off the prior, of another width: its divergence from the prior in closed form."""
    mean, scale = np.array([0.0, 0.6, 0.1]), 0.9
    base_entropy = np.sum(math.log(scale) + 0.5 - (scale**2 + mean**2) / 2)
    return "relative_entropy_mean", Normal(jnp.asarray(mean), scale), base_entropy, [mean @ [1.0, 2.0, -1.0]]


def relative_entropy_variance():
    """Too wide by half, and off."""
    mean, scale = 0.2, 0.75
    base_entropy = math.log(scale) + 0.5 - (scale**2 + mean**2) / 2
    return "relative_entropy_variance", Normal(jnp.full(1, mean), scale), base_entropy, [scale**2 + mean**2]


GAUSSIANS = (gaussian_2, relative_entropy_mean, relative_entropy_variance)


@pytest.mark.parametrize("case", GAUSSIANS, ids=lambda case: case.__name__)
@pytest.mark.parametrize("wrong", [0.0, 0.1], ids=["exact", "wrong"])
def test_gap_is_the_exact_divergence(case, wrong):
    """From exact multipliers and from some that are a tenth off: the tilt puts these right."""
    name, flow, base_entropy, moments = case()
    exact = EXACT[name]()
    divergence = exact_kl(exact, base_entropy=base_entropy, moments=moments)
    assert divergence > 0.05
    found = assess(jax.random.key(1), exact.problem, flow, exact.multipliers * (1 + wrong), num_draws=NUM_DRAWS)
    assert abs(found.gap - divergence) < 4 * found.standard_error
    assert found.standard_error < 0.03
    assert abs(found.upper_bound - exact.objective) < 4 * found.standard_error
    assert found.tilted
    assert found.verdict.startswith("Optimal within")


@pytest.mark.parametrize("case", GAUSSIANS, ids=lambda case: case.__name__)
def test_tilted_multipliers_are_exact(case):
    """Within four standard errors by their own spread over ten keys, each from zero."""
    name, flow, *_ = case()
    exact = EXACT[name]()
    start = np.zeros_like(exact.multipliers) if name != "gaussian_2" else 1.2 * exact.multipliers
    keys = jax.random.split(jax.random.key(2), 10)
    found = np.array([assess(key, exact.problem, flow, start, num_draws=NUM_DRAWS).eta for key in keys])
    standard_error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(axis=0) - exact.multipliers) < 5 * standard_error)
    assert np.all(standard_error < 0.05)


def test_standard_error_covers():
    """Over 40 keys, by the least number of draws: not smaller than the truth, and not five times larger."""
    name, flow, base_entropy, moments = relative_entropy_variance()
    exact = EXACT[name]()
    divergence = exact_kl(exact, base_entropy=base_entropy, moments=moments)
    keys = jax.random.split(jax.random.key(3), 40)
    found = [assess(key, exact.problem, flow, exact.multipliers, num_draws=400) for key in keys]
    ratios = [(each.gap - divergence) / each.standard_error for each in found]
    assert 0.04 < np.mean(np.square(ratios)) < scipy.stats.chi2.ppf(1 - 1e-4, df=40) / 40


def uniform_problem(mean):
    def model():
        numpyro.sample("z", dist.Uniform(0.0, 1.0))

    return Problem(model, EmergentProperty(Target(lambda sites: sites["z"], mean=mean, name="z")))


def test_upper_bound_is_the_dual_where_no_tilt_has_the_property():
    """A mean of 1.5 of numbers below 1: the bound is the integral of ``exp(-eta (z - 1.5))`` at the eta given."""
    eta = -3.0
    dual = scipy.integrate.quad(lambda z: math.exp(-eta * (z - 1.5)), 0.0, 1.0)[0]
    found = assess(jax.random.key(0), uniform_problem(1.5), Normal(jnp.ones(1), 1.5), np.array([eta]))
    assert not found.tilted
    assert found.eta == eta
    assert abs(found.upper_bound - math.log(dual)) < 4 / math.sqrt(found.ess)
    assert found.verdict.startswith("Cannot tell: no weighting of the draws has the property")


@pytest.mark.parametrize("eta", [0.5, 2.5, 3e4, -3e4, 3e12])
def test_upper_bound_is_the_dual_s_minimum_whatever_eta(eta):
    """The exact objective; the dual at these multipliers is above it by more than the tolerance, up to thousands of nats."""
    exact = EXACT["truncated_exponential_0.3"]()
    found = assess(jax.random.key(0), exact.problem, Normal(-jnp.ones(1), 1.5), np.array([eta]))
    assert abs(found.upper_bound - exact.objective) < 4 / math.sqrt(found.ess)
    assert abs(found.eta[0] - exact.multipliers[0]) < 0.15


def draws_of(exact, number):
    """Draws of the double well by inversion of its distribution function."""
    z = np.linspace(-3.0, 3.0, 20_001)
    mass = np.exp(-(z**2) / 2 - exact.multipliers @ [z, well(z)])
    cdf = np.cumsum(mass) / mass.sum()
    draws = np.interp(np.random.default_rng(0).uniform(size=number), cdf, z)
    return jnp.asarray(draws, jnp.float32)[:, None], float(1 - np.interp(0.0, z, cdf))


def corners(exact, number):
    """Draws of the four corners from a grid, and the share of the first quadrant."""
    x, y = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-2.99, 2.99, 300)] * 2))
    mass = np.exp(-exact.multipliers @ [x, y, well(x, CORNER), well(y, CORNER), x * y])
    index = np.random.default_rng(0).choice(len(x), size=number, p=mass / mass.sum())
    z = np.stack([x, y], axis=1)[index] + np.random.default_rng(1).uniform(-0.01, 0.01, size=(number, 2))
    u = jax.vmap(lambda z: exact.problem.simulator.unconstrain({"z": z}))(jnp.asarray(z, jnp.float32))
    return u, float(mass[(x > 0) & (y > 0)].sum() / mass.sum())


def unconstrained_corner(signs):
    """Where a corner lies before it is squeezed into [-3, 3]."""
    return scipy.special.logit((CORNER * np.array(signs) + 3) / 6)


ALL_CORNERS = [unconstrained_corner([a, b]) for a in (1, -1) for b in (1, -1)]
MODES = {
    "double_well": (
        draws_of,
        lambda: mixture([[1.0]], 0.17, [1.0]),
        lambda: mixture([[1.0], [-1.0]], 0.17, [0.56, 0.44]),
    ),
    "four_corners": (
        corners,
        lambda: mixture(ALL_CORNERS[:1], 0.18, [1.0]),
        lambda: mixture(ALL_CORNERS, 0.18, [1.0] * 4),
    ),
}
"""Draws of the solution, a guide with its first mode only, and one with all."""


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("with_solution", [False, True], ids=["base", "solution"])
def test_missing_modes_are_seen(name, with_solution):
    """Their mass is unseen; the gap is at least what the lost share costs, ``-log`` of the rest."""
    draw, crippled, _ = MODES[name]
    exact = CHOSEN[name]()
    solution, share = draw(exact, NUM_DRAWS)
    found = assess(
        jax.random.key(0),
        exact.problem,
        crippled(),
        exact.multipliers,
        solution=solution if with_solution else None,
        num_draws=NUM_DRAWS,
    )
    assert found.verdict.startswith("Modes are probably missing")
    # The guide's own mode has tails that it does not cover either.
    assert 1 - share - 0.05 < found.unseen < 1 - share + 0.1
    assert -math.log(share) - 3 * found.standard_error < found.gap < -math.log(share) + 0.3


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("with_solution", [False, True], ids=["base", "solution"])
def test_modes_that_are_there_are_not_missed(name, with_solution):
    draw, _, whole = MODES[name]
    exact = CHOSEN[name]()
    solution, _ = draw(exact, NUM_DRAWS)
    found = assess(
        jax.random.key(0),
        exact.problem,
        whole(),
        exact.multipliers,
        solution=solution if with_solution else None,
        num_draws=NUM_DRAWS,
    )
    assert found.verdict.startswith("Optimal within")
    assert "missing" not in found.verdict
    assert found.unseen < 0.05
    assert abs(found.upper_bound - exact.objective) < 4 * found.standard_error


FAR_DIM, FAR_SCALE = 8, 0.1


@pytest.fixture(scope="module")
def far():
    """Two wells in one of eight coordinates, all of which are narrow: the base never draws what has the property.

    Returns the problem, its multipliers, a guide with one mode, one with the other, and draws of the solution.
    """

    def model():
        numpyro.sample("z", dist.Normal(0.0, 10.0).expand([FAR_DIM]).to_event(1))

    squared = Target(lambda s: jnp.square(jnp.abs(s["z"][0]) - 5.0), mean=FAR_SCALE**2, name="well")
    rest = Target(lambda s: jnp.mean(jnp.square(s["z"][1:])), mean=FAR_SCALE**2, name="rest")
    problem = Problem(model, EmergentProperty(squared, rest))
    eta = np.array([0.5, 0.5 * (FAR_DIM - 1)]) / FAR_SCALE**2
    places = jnp.zeros(FAR_DIM).at[0].set(5.0)
    guides = [Normal(sign * places, FAR_SCALE) for sign in (1, -1)]
    random = np.random.default_rng(0)
    z = FAR_SCALE * random.normal(size=(NUM_DRAWS, FAR_DIM))
    z[:, 0] += 5.0 * random.choice([-1, 1], size=NUM_DRAWS)
    return problem, eta, guides, jnp.asarray(z, jnp.float32)


def test_out_of_sight_of_the_base_it_cannot_tell(far):
    """From the guide and the base alone the collapsed guide looks optimal: the sentence owns up to it."""
    problem, eta, (guide, _), _ = far
    found = assess(jax.random.key(0), problem, guide, eta, num_draws=NUM_DRAWS)
    assert abs(found.gap) < 0.05
    assert found.reach < 10
    assert "Cannot tell whether modes are missing" in found.verdict


def test_draws_of_the_solution_see_the_lost_mode(far):
    """Half of the mass, log 2."""
    problem, eta, (guide, _), solution = far
    found = assess(jax.random.key(0), problem, guide, eta, solution=solution, num_draws=NUM_DRAWS)
    assert found.verdict.startswith("Modes are probably missing")
    assert abs(found.unseen - 0.5) < 0.05
    assert abs(found.gap - math.log(2)) < 4 * found.standard_error
    assert found.standard_error < 0.05


def test_another_result_sees_the_lost_mode(far):
    """The same from the mirror image's guide, which never met the chains."""
    problem, eta, guides, _ = far
    first, second = (result_of(problem, eta, guide) for guide in guides)
    found = certify(jax.random.key(0), first, others=(second,), num_draws=NUM_DRAWS)
    assert found.verdict.startswith("Modes are probably missing")
    assert abs(found.gap - math.log(2)) < 4 * found.standard_error
    assert found.num_simulations == cost(problem, 3, NUM_DRAWS) == 3 * NUM_DRAWS


def noisy_guide():
    """A normal of the solution's mean, a third wider: its divergence in closed form."""
    mean = np.linalg.solve(SIMULATOR_MATRIX, SIMULATOR_TARGET)
    return MultivariateNormal(jnp.asarray(mean), jnp.asarray(1.3 * SIMULATOR_COVARIANCE)), 1.3 - 1 - math.log(1.3)


@pytest.fixture(scope="module")
def noisy():
    """Certificates of one noisy answer over ten keys, with the correction for noise and without."""
    exact = EXACT["linear_gaussian_simulator"]()
    flow, divergence = noisy_guide()

    def certificates():
        keys = jax.random.split(jax.random.key(4), 10)
        return [assess(key, exact.problem, flow, exact.multipliers, num_draws=2000) for key in keys]

    corrected = certificates()
    evaluate = _pool._evaluate

    def without_noise(*args):
        found = evaluate(*args)
        return *found[:3], jnp.zeros_like(found[3]), *found[4:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pool, "_evaluate", without_noise)
        plain = certificates()
    return exact, divergence, corrected, plain


def deviation(values, exact):
    """Of the mean from the exact value, in standard errors."""
    return (np.mean(values) - exact) / (np.std(values, ddof=1) / math.sqrt(len(values)))


def test_noise_biases_neither_bound_nor_gap(noisy):
    exact, divergence, corrected, _ = noisy
    assert abs(deviation([found.upper_bound for found in corrected], exact.objective)) < 5
    assert abs(deviation([found.gap for found in corrected], divergence)) < 5


def test_without_its_correction_noise_would_bias_them(noisy):
    """So the test above can fail."""
    exact, divergence, _, plain = noisy
    assert deviation([found.upper_bound for found in plain], exact.objective) > 6
    assert deviation([found.gap for found in plain], divergence) > 6


def test_noisy_runs_are_counted(noisy):
    exact, _, corrected, _ = noisy
    assert corrected[0].num_simulations == cost(exact.problem, 2, 2000) == 2 * 2000 * 16


def test_failed_simulations_have_no_mass():
    """A statistic that fails left of zero: the normaliser is that of the other half."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    half = Target(lambda sites: jnp.sum(jnp.where(sites["z"] > 0, sites["z"], jnp.nan)), mean=0.8, name="half")
    eta = scipy.optimize.brentq(lambda eta: scipy.stats.truncnorm.mean(eta, np.inf, loc=-eta) - 0.8, -3.0, 3.0)
    objective = eta**2 / 2 + scipy.stats.norm.logcdf(-eta) + eta * 0.8
    problem = Problem(model, EmergentProperty(half))
    found = assess(jax.random.key(0), problem, Normal(jnp.ones(1), 0.5), np.array([eta]))
    assert abs(found.upper_bound - objective) < 4 / math.sqrt(found.ess)


def test_one_key_gives_one_certificate():
    name, flow, *_ = relative_entropy_variance()
    exact = EXACT[name]()
    result = result_of(exact.problem, exact.multipliers, flow)
    first, second, other = (certify(jax.random.key(seed), result, num_draws=NUM_DRAWS) for seed in (0, 0, 1))
    assert first.gap == second.gap
    assert first.gap != other.gap
    assert first.gap == assess(jax.random.key(0), exact.problem, flow, exact.multipliers, num_draws=NUM_DRAWS).gap


def weighted_draws(number=2000, scales=(1.0, 1e6, 1e-4)):
    """Log weights, three correlated moments in units that differ by decades, and targets inside their range."""
    random = np.random.default_rng(0)
    moments = random.normal(size=(number, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.8], [0.0, 0.0, 0.3]])
    moments = (moments + moments**2 * 0.2) * scales
    log_weight = random.normal(size=number) + 500.0
    return log_weight, moments, moments.mean(axis=0) + 0.7 * moments.std(axis=0)


def test_tilt_meets_the_targets():
    """To a millionth of a standard deviation."""
    log_weight, moments, target = weighted_draws()
    found = tilt(log_weight, moments, target)
    weight = np.exp(found.log_weight)
    assert found.reached
    assert abs(weight.sum() - 1) < 1e-10
    assert np.all(np.abs(weight @ moments - target) < 1e-6 * moments.std(axis=0))


@pytest.mark.parametrize("constant", [0.3, -7e5])
def test_tilt_leaves_a_statistic_that_does_not_vary(constant):
    """In single precision it is not quite its target; weighted, it seems to vary by rounding."""
    moments = np.random.default_rng(6).normal(size=(2000, 1))
    both = np.hstack([moments, np.full_like(moments, np.float32(constant) / np.float32(3))])
    target = np.array([0.4, both[0, 1] * (1 + 1e-12)])
    alone = tilt(np.zeros(2000), moments, target[:1])
    found = tilt(np.zeros(2000), both, target)
    assert found.reached
    assert found.eta[0] == pytest.approx(alone.eta[0], rel=1e-4)
    assert found.eta[1] == 0.0
    assert not tilt(np.zeros(2000), both, target * np.array([1.0, 1.001])).reached


def test_tilt_is_that_of_a_root_finder():
    """The moments' equations, solved by SciPy in scaled units; the value is the dual's, and its minimum."""
    log_weight, moments, target = weighted_draws()
    scale = moments.std(axis=0)
    columns = (moments - target) / scale
    weight = scipy.special.softmax(log_weight)

    def means(eta):
        return scipy.special.softmax(log_weight - columns @ eta) @ columns

    root = scipy.optimize.root(means, np.zeros(3), method="hybr", tol=1e-12)
    assert root.success
    found = tilt(log_weight, moments, target)
    np.testing.assert_allclose(found.eta * scale, root.x, atol=1e-5)
    assert abs(found.log_normalizer - math.log(weight @ np.exp(-columns @ root.x))) < 1e-9
    np.testing.assert_allclose(
        np.exp(found.log_weight), scipy.special.softmax(log_weight - columns @ root.x), rtol=1e-4, atol=1e-12
    )


@pytest.mark.parametrize("begin", [0.0, -0.4])
def test_tilt_is_not_misled_by_noise(begin):
    """Standard normals need a multiplier of -0.7 for a mean of 0.7, however noisily they are measured."""
    random = np.random.default_rng(1)
    number, variance, target = 100_000, 0.5, 0.7
    noisy = (random.normal(size=number) + math.sqrt(variance) * random.normal(size=number))[:, None]
    noise, eta = np.full((number, 1, 1), variance), np.array([begin])
    log_weight = -noisy @ eta - 0.5 * variance * begin**2
    found = tilt(log_weight, noisy, np.array([target]), noise=noise, eta=eta)
    assert found.reached
    # The variance of exponential weights is exp(sigma^2) with sigma^2 = 0.7^2 (1 + variance).
    standard_error = math.sqrt((1 + variance) * math.exp(target**2 * (1 + variance)) / number)
    assert abs(begin + found.eta[0] + target) < 5 * standard_error
    assert abs(tilt(log_weight, noisy, np.array([target])).eta[0] + begin + target) > 20 * standard_error


@pytest.mark.parametrize("outside", [1.01, 3.0])
def test_tilt_says_when_targets_are_out_of_reach(outside):
    """Beyond the largest draw no weights will do."""
    log_weight, moments, target = weighted_draws()
    target[0] = outside * moments[:, 0].max()
    assert not tilt(log_weight, moments, target).reached


def test_tilt_says_when_two_targets_contradict():
    """Each alone is met; the mean square cannot be below the squared mean."""
    z = np.random.default_rng(0).normal(size=2000)
    moments = np.stack([z, z**2], axis=1)
    assert tilt(np.zeros(2000), moments, np.array([0.8, 0.8])).reached
    assert not tilt(np.zeros(2000), moments, np.array([0.8, 0.6])).reached


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.7, 1.2])
def test_khat_is_the_shape_of_pareto_weights(shape):
    """Beyond a threshold a generalised Pareto distribution keeps its shape; (1 + k) / sqrt(tail) is the error of a fit."""
    weight = scipy.stats.genpareto.rvs(shape, size=100_000, random_state=0)
    tail = 3 * math.sqrt(len(weight))
    found = pareto_khat(weight)
    assert abs(found - shape) < 4 * max(1 + shape, 0.5) / math.sqrt(tail)
    assert abs(pareto_khat(1e-9 * weight) - found) < 0.02


@pytest.mark.parametrize("largest", [5.0, 20.0])
def test_khat_of_a_heap_of_weights_below_a_bound(largest):
    """As of a guide and a base that proposes alone where the guide has nothing: the threshold lies in the heap."""
    random = np.random.default_rng(2)
    heap = 2.0 + 1e-3 * random.random(1000)
    bounded = 2.0 + (largest - 2.0) * random.beta(1.0, 3.0, 200)
    assert pareto_khat(np.concatenate([random.random(38_800), heap, bounded])) < 0.5


def test_khat_of_a_tail_without_mass():
    """As of one parameter in a box, where the guide is a per cent off and at the edge a half: .0007 of the mass, of shape 2."""
    random = np.random.default_rng(3)
    bulk = np.minimum(0.3 + 1.5 * random.beta(2.0, 1.0, 39_900), 1.44 + 0.01 * random.random(39_900))
    few = 1.45 * (1.0 + 0.1 * random.pareto(1.5, 100))
    weight = np.sort(np.concatenate([bulk, few]))
    size = int(3 * math.sqrt(len(weight)))
    assert _shape(weight, size) > 1.0
    assert pareto_khat(weight) > 0.7
    assert pareto_khat(weight, is_covered=True) <= 0.0
    # With several hundredths of the mass it is not overlooked.
    assert pareto_khat(np.concatenate([bulk, 1.45 * (1.0 + 5.0 * random.pareto(1.0, 100))]), is_covered=True) > 0.7


@pytest.mark.parametrize("seed", range(5))
def test_khat_of_a_heavy_tail_behind_a_heap(seed):
    """Draws with a hundredth of the mass each are not taken for a bound."""
    random = np.random.default_rng(seed)
    heap = 2.0 + 1e-3 * random.random(1000)
    heavy = 2.0 * (1.0 + random.pareto(1.0, 1000))
    assert pareto_khat(np.concatenate([random.random(38_000), heap, heavy])) > 0.7


def test_khat_of_weights_without_a_tail():
    assert pareto_khat(np.ones(1000)) == -math.inf
    assert pareto_khat(np.ones(10)) == math.inf
    assert pareto_khat(np.concatenate([np.zeros(100_000), np.ones(10)])) == math.inf


CONSTANT, P_LOC, P_SCALE = 5.0, 2.0, 0.6
"""A normal of this place and width, times this, seen from a standard normal."""


def balanced(seed, number, has_solution):
    """``balance`` on draws of a standard normal and, or not, of ``p``; and the log densities."""
    random = np.random.default_rng(seed)
    z = random.normal(size=number)
    if has_solution:
        z = np.concatenate([z, P_LOC + P_SCALE * random.normal(size=number // 2)])
    log_q = scipy.stats.norm.logpdf(z)[None]
    log_p = scipy.stats.norm.logpdf(z, P_LOC, P_SCALE) + CONSTANT
    counts = np.array([number, number // 2])[: 1 + has_solution].astype(float)
    return log_q, log_p, *balance(log_q, log_p, counts, has_solution)


@pytest.mark.parametrize("has_solution", [False, True], ids=["proposals", "solution"])
def test_balance_finds_the_normalizer(has_solution):
    """Over 40 sets of draws, the mean within 4 standard errors; the bias of a logarithm is a tenth of those."""
    found = np.array([balanced(seed, 2000, has_solution)[-1] for seed in range(40)])
    standard_error = found.std(ddof=1) / math.sqrt(len(found))
    assert standard_error < 0.02
    assert abs(found.mean() - CONSTANT) < 4 * standard_error


def test_draws_of_the_solution_make_the_normalizer_precise():
    """Bridge sampling needs overlap, not coverage: against importance sampling from the proposal alone."""
    spread = [np.std([balanced(seed, 300, yes)[-1] for seed in range(40)]) for yes in (False, True)]
    assert spread[1] < 0.7 * spread[0]


def test_balance_gives_the_density_that_the_draws_have():
    """Two thirds of the proposal and one third of ``p``, normalised."""
    log_q, log_p, log_mixture, log_z = balanced(0, 2000, True)
    expected = np.logaddexp(log_q[0] + math.log(2 / 3), log_p - log_z + math.log(1 / 3))
    np.testing.assert_allclose(log_mixture, expected, atol=1e-6)
    # Its own fixed point: the weights' mean is Z.
    assert abs(scipy.special.logsumexp(log_p - log_mixture) - math.log(3000) - log_z) < 1e-6


def small_result(eta=(0.0,), status=STATUS.satisfied, name="truncated_exponential_0.3"):
    problem = EXACT[name]().problem
    return result_of(problem, eta, Normal(jnp.zeros(problem.dim)), status)


def test_bad_arguments_are_refused():
    key, result = jax.random.key(0), small_result()
    with pytest.raises(ValueError, match=r"Expected finite multipliers; got \[nan\]. The run ended nonfinite"):
        certify(key, small_result([np.nan], STATUS.nonfinite))
    with pytest.raises(ValueError, match="Expected num_draws to be an integer >= 100; got 99"):
        certify(key, result, num_draws=99)
    with pytest.raises(ValueError, match="Expected results for one problem; got 'model' and 'model'"):
        certify(key, result, others=(small_result(name="indicator"),))
