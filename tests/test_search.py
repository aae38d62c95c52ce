"""The normal that chains begin at where the base is not a proper prior."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
from numpyro.distributions import constraints
from oracles.strangers import strangers

import numpyro_epi as epi
from numpyro_epi import _gradients, _search
from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._chains import solve
from numpyro_epi._reference import Reference
from numpyro_epi._work import solve_by_chains

LINE = dist.ImproperUniform(constraints.real, (), ())
HALF_LINE = dist.ImproperUniform(constraints.positive, (), ())


def one(prior: dist.Distribution, *targets: epi.Target, base: str = "prior") -> epi.Problem:
    return epi.Problem(lambda: numpyro.sample("z", prior), epi.EmergentProperty(*targets), base=base)


def first_two(mean: float, std: float) -> epi.Target:
    return epi.Target(lambda sites: sites["z"], mean=mean, std=std, name="z")


def moments(reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what the normal was widened from."""
    cholesky = np.array(reference.cholesky) / _search.WIDE
    return np.array(reference.loc), cholesky @ cholesky.T


def correlated(dim: int, condition: float, improper: bool) -> tuple[epi.Problem, np.ndarray, np.ndarray]:
    """All first and second moments of a normal: the problem, its mean and its covariance."""
    rng = np.random.default_rng([dim, int(improper)])
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    covariance = (axes * condition ** np.linspace(-0.5, 0.5, dim)) @ axes.T
    mean, (rows, cols) = rng.normal(size=dim), np.triu_indices(dim)
    prior = (
        dist.ImproperUniform(constraints.real_vector, (), (dim,))
        if improper
        else dist.Normal(0.0, 2.0).expand([dim]).to_event(1)
    )
    second = covariance + np.outer(mean, mean)
    prop = epi.EmergentProperty(
        epi.Target(lambda sites: sites["z"], mean=mean, name="z"),
        epi.Target(lambda sites: sites["z"][rows] * sites["z"][cols], mean=second[rows, cols], name="products"),
    )
    problem = epi.Problem(lambda: numpyro.sample("z", prior), prop, base="prior" if improper else "lebesgue")
    return problem, mean, covariance


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("mean", [0.0, 1.0, 20.0])
def test_a_normal_is_found_at_every_scale(scale: float, mean: float):
    """Its multipliers are (0, 1 / 2 sd^2), with a relative error of sqrt(2 / 40,000) = .007 and what float32 adds."""
    problem = one(LINE, first_two(mean * scale, scale))
    reference, spent = _search.find_reference(problem, jax.random.key(3))
    loc, covariance = moments(reference)
    np.testing.assert_allclose(loc, mean * scale, atol=0.1 * scale)
    np.testing.assert_allclose(covariance, [[scale**2]], rtol=0.2)
    np.testing.assert_allclose(np.array(reference.eta) * [scale, scale**2], [0.0, 0.5], atol=0.03)
    assert spent % _search.NUM_DRAWS == 0


@pytest.mark.parametrize("improper", [True, False])
def test_moments_that_no_draw_is_near_are_found(improper: bool):
    problem, mean, covariance = correlated(6, 1e3, improper)
    reference, _ = _search.find_reference(problem, jax.random.key(4))
    loc, found = moments(reference)
    root = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(root, np.linalg.solve(root, found).T)
    np.testing.assert_allclose(np.linalg.solve(root, loc - mean), 0.0, atol=0.1)
    np.testing.assert_allclose(whitened, np.eye(6), atol=0.1)
    precision = np.linalg.inv(covariance)
    eta = np.concatenate([-precision @ mean, (precision - np.diag(np.diag(precision)) / 2)[np.triu_indices(6)]])
    np.testing.assert_allclose(reference.eta, eta, rtol=0.05, atol=0.05 * np.max(np.abs(eta)))


def positive(*targets: epi.Target, dim: int) -> epi.Problem:
    support = constraints.independent(constraints.positive, 1)
    flat = dist.ImproperUniform(support, (), event_shape=(dim,))
    return epi.Problem(lambda: numpyro.sample("z", flat), epi.EmergentProperty(*targets))


@pytest.mark.parametrize("dim", [2, 4])
def test_exponentials_of_far_too_wide_a_normal_do_not_lead_it_astray(dim: int):
    """Gamma distributions have the multipliers (rate, 1 - shape); of the first normal's draws a few had all of the mean."""
    shape, rate = np.linspace(1.5, 6.0, dim), np.linspace(2.0, 0.5, dim) / 70.0
    log_mean = scipy.special.digamma(shape) - np.log(rate)
    problem = positive(
        epi.Target(lambda sites: sites["z"], mean=shape / rate, name="z"),
        epi.Target(lambda sites: jnp.log(sites["z"]), mean=log_mean, name="log"),
        dim=dim,
    )
    reference, _ = _search.find_reference(problem, jax.random.key(21))
    loc, covariance = moments(reference)
    np.testing.assert_allclose(loc, log_mean, atol=0.05)
    np.testing.assert_allclose(np.diag(covariance), scipy.special.polygamma(1, shape), rtol=0.1)
    np.testing.assert_allclose(reference.eta, np.concatenate([rate, 1 - shape]), rtol=0.1)


def sample_of(draws: np.ndarray, *columns: np.ndarray) -> _search._Sample:
    return _search._Sample(draws[:, None], draws[:, None], np.zeros(len(draws)), np.stack(columns, axis=1))


@pytest.mark.parametrize(("spread", "is_cut"), [(30.0, True), (1.0, False)])
def test_draws_in_far_tails_are_left_out_whole(spread: float, is_cut: bool):
    """Cut by the statistic, a mean and a mean square would be those of different numbers, which no distribution has."""
    u = spread * np.random.default_rng(22).normal(size=4000)
    whole = sample_of(u, np.exp(u), np.exp(2 * u))
    problem = positive(first_two(3.0, 1.0), dim=1)
    left = _search._without_tails(problem, whole)
    assert (len(left.draws) < 4000) == is_cut
    assert np.exp(left.draws.max()) < (1e3 * np.exp(spread) if is_cut else np.inf)
    np.testing.assert_array_equal(left.moments[:, 0], np.exp(left.draws[:, 0]))
    assert len(left.draws) > 3000


@pytest.mark.parametrize("target", [0.9, 0.005, 0.0])
def test_a_rare_event_is_no_tail(target: float):
    event = (np.arange(4000) % 20 == 0).astype(float)
    problem = one(dist.Normal(0.0, 1.0), epi.Target(lambda sites: 1.0 * (sites["z"] > 2.0), mean=target, name="event"))
    assert len(_search._without_tails(problem, sample_of(event, event)).draws) == 4000


def test_a_statistic_that_is_mostly_at_its_target_is_searched_for():
    """As one with a dead zone, of which two draws in three have the target itself."""
    dead = epi.Target(lambda s: jnp.sign(s["z"]) * jnp.maximum(jnp.abs(s["z"]) - 1.0, 0.0), mean=0.0, std=0.5, name="t")
    problem = one(dist.Normal(0.0, 1.0), dead, base="lebesgue")
    assert _search.find_reference(problem, jax.random.key(0))[0] is not None


def test_a_prior_draw_on_its_bound_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch):
    """Rounded onto the bound of an interval it is infinite in unconstrained coordinates."""
    found = _search.reference_draws

    def rounded(problem: epi.Problem, key: jax.Array, count: int) -> jax.Array:
        return found(problem, key, count).at[3].set(jnp.inf)

    monkeypatch.setattr(_search, "reference_draws", rounded)
    target = first_two(0.7, 0.1)
    reference, _ = _search.find_reference(one(dist.Uniform(0.0, 1.0), target, base="lebesgue"), jax.random.key(2))
    assert reference is not None and np.all(np.isfinite(reference.loc))


def test_multipliers_are_looked_for_in_the_spread_that_is_left():
    """E z and E z^2 of a positive number: of the widest draws one or two have all of the spread."""
    z = np.linspace(0.0, 12.0, 200_001)
    weight = np.exp(0.6 * z - 0.5 * z**2)
    mean, square = weight @ z / weight.sum(), weight @ z**2 / weight.sum()
    problem = one(
        HALF_LINE,
        epi.Target(lambda sites: sites["z"], mean=mean, name="z"),
        epi.Target(lambda sites: sites["z"] ** 2, mean=square, name="square"),
    )
    for key in (1000, 1004):
        reference, _ = _search.find_reference(problem, jax.random.key(key))
        np.testing.assert_allclose(reference.eta, (-0.6, 0.5), atol=0.1)


@pytest.mark.parametrize("key", [1000, 1001, 1002])
def test_multipliers_of_nearly_collinear_statistics_are_those_of_their_tails_too(key: int):
    """By quadrature. From draws without tails the errors were some ten times as large, and a square's multiplier might be
    negative, under which nothing has a normaliser. Allowed are four standard errors of 8,000 draws of the solution.
    """
    z = np.linspace(1e-6, 12.0, 400_001)
    columns, eta, mean = np.stack([z, np.exp(-z), 1 / (1 + z)], axis=1), np.array([0.2, 0.15, 0.1, 0.6]), 1.0
    for _ in range(100):
        weight = np.exp(-columns @ eta[:3] - eta[3] * np.square(z - mean))
        weight /= weight.sum()
        mean = weight @ z
    expected, variance = weight @ columns, weight @ np.square(z - mean)
    problem = one(
        HALF_LINE,
        first_two(mean, math.sqrt(variance)),
        epi.Target(lambda sites: jnp.exp(-sites["z"]), mean=expected[1], name="decay"),
        epi.Target(lambda sites: 1 / (1 + sites["z"]), mean=expected[2], name="saturation"),
    )
    reference, _ = _search.find_reference(problem, jax.random.key(key))
    centred = np.column_stack([columns - expected, np.square(z - mean) - variance])
    error = np.sqrt(np.diag(np.linalg.inv((centred.T * weight) @ centred)) / 8000)
    assert np.all(np.abs(np.array(reference.eta) - eta) < 4 * error), (reference.eta, error)


def test_a_target_beyond_the_range_of_a_statistic_has_no_normal():
    problem = one(LINE, epi.Target(lambda sites: jnp.tanh(sites["z"]), mean=1.5, name="tanh"))
    assert _search.find_reference(problem, jax.random.key(0))[0] is None


def test_a_normal_that_the_weights_do_not_reach_stands_back_behind_a_proper_prior(monkeypatch: pytest.MonkeyPatch):
    """As with a power of the weights of one half in every round; an improper prior has nothing else to begin at."""

    def halved(_: epi.Problem, sample: _search._Sample, __: int) -> tuple[int, np.ndarray]:
        count = len(sample.draws)
        return 1, np.full(count, -math.log(count))

    monkeypatch.setattr(_search, "_nearer", halved)
    target = first_two(1.0, 0.5)
    assert _search.find_reference(one(dist.Normal(0.0, 2.0), target, base="lebesgue"), jax.random.key(0))[0] is None
    reference, _ = _search.find_reference(one(LINE, target), jax.random.key(0))
    assert reference is not None and reference.eta == ()


@pytest.mark.parametrize("key", [0, 1])
def test_multipliers_that_lead_off_are_found_anew(key: int):
    """Such that widen a normal without end once the reference has gone: until numbers end, or no chain differs from another."""
    wrong = Reference((0.0,), ((1.0,),), (0.0, -5.0))
    settings = ChainSettings(
        num_chains=128, num_leapfrog=6, num_transitions=4, num_updates=80, num_draws=16, max_rounds=8, reference=wrong
    )
    solved = solve(one(LINE, first_two(0.3, 0.8)), jax.random.key(key), settings)
    # NumPy's own comparison of arrays passes where both sides are not numbers.
    assert np.all(np.abs(solved.eta - [0.0, 0.5 / 0.8**2]) < 5 * np.sqrt(np.diag(solved.error)) + 1e-3), solved.eta


def test_expensive_models_are_not_searched_for_the_sake_of_their_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_gradients, "work", lambda _: _gradients.EXPENSIVE + 1)
    monkeypatch.setattr(_gradients, "find_reference", lambda *_: pytest.fail("searched"))
    assert _gradients.misleading(one(LINE, first_two(0.0, 1.0))) == ()


FREE = {
    "a mean alone on the line": one(LINE, epi.Target(lambda sites: sites["z"], mean=1.0, name="z")),
    "a mean alone under Lebesgue measure": one(
        dist.Normal(0.0, 3.0), epi.Target(lambda sites: sites["z"], mean=1.0, name="z"), base="lebesgue"
    ),
    "a saturating statistic": one(LINE, epi.Target(lambda sites: jnp.tanh(sites["z"]), mean=0.3, name="tanh")),
}
"""Questions without an answer: what holds one parameter lets its entropy grow."""


@pytest.mark.parametrize("name", FREE)
def test_an_entropy_without_a_maximum_is_said(name: str):
    with pytest.raises(_search.UnboundedError, match="Give a proper prior, a std beside the mean"):
        _search.find_reference(FREE[name], jax.random.key(9))


HELD = {
    "a positive number with its mean": one(HALF_LINE, epi.Target(lambda sites: sites["z"], mean=2.0, name="z")),
    "a heavy tail": one(LINE, epi.Target(lambda sites: jnp.log1p(sites["z"] ** 2), mean=2 * math.log(2), name="log")),
    "a spread of a million": one(LINE, first_two(0.0, 1e6)),
    "two in a plane": one(
        dist.ImproperUniform(constraints.real_vector, (), (2,)),
        epi.Target(lambda sites: jnp.sum(sites["z"] ** 2), mean=2.0, name="length"),
    ),
}
"""Such as have one: exponential, Cauchy, and normals."""


@pytest.mark.parametrize("name", HELD)
def test_an_entropy_with_a_maximum_is_not_called_unbounded(name: str):
    for key in range(3):
        reference, _ = _search.find_reference(HELD[name], jax.random.key(key))
        assert reference is not None


def test_a_fit_without_an_answer_says_so_at_once():
    result = epi.fit(jax.random.key(10), FREE["a mean alone on the line"], progress=False)
    assert result.status_name == "infeasible" and not result.satisfied
    assert "Give a proper prior, a std beside the mean" in result.status_message
    assert "multipliers" not in result.status_message


def test_gradients_are_compared_where_the_property_is(monkeypatch: pytest.MonkeyPatch):
    """Along lines of the usual size a step of the width 1e-4 is hardly ever met by a derivative, and would seem to have none."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    mean_tanh = weights @ np.tanh(0.4 * nodes - 1.0) / weights.sum()
    problem = one(
        LINE,
        first_two(-1e-4, 0.4e-4),
        epi.Target(lambda sites: jnp.tanh(sites["z"] / 1e-4), mean=mean_tanh, name="tanh"),
    )
    assert _gradients.misleading(problem) == ()
    monkeypatch.setattr(_gradients, "find_reference", lambda *_: (None, 0))
    assert _gradients.misleading(problem) == ("tanh",)


@pytest.mark.slow
@pytest.mark.parametrize("improper", [True, False])
def test_chains_solve_ten_correlated_parameters_under_lebesgue_measure(improper: bool):
    """The covariance has the condition number 1e4; without a normal to begin at, chains ended 21 nats away."""
    problem, mean, covariance = correlated(10, 1e4, improper)
    solved, settings = solve_by_chains(problem, jax.random.key(5), None)
    assert settings.reference is not None and solved.converged
    # In coordinates that are not the normal's own, steps are as short as the narrowest direction: .001.
    assert float(solved.chains.step_size) > 0.2
    draws = np.asarray(solved.draws, float).reshape(-1, 10)
    root = np.linalg.cholesky(covariance)
    np.testing.assert_allclose(np.cov(np.linalg.solve(root, (draws - mean).T)), np.eye(10), atol=0.1)
    # D(eta) = log Z + eta . target is the entropy at the solution, which the weights give with an error of some hundredths.
    entropy = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
    assert solved.log_normalizer == pytest.approx(entropy, abs=0.1)


@pytest.mark.slow
def test_one_positive_parameter_with_its_first_two_moments():
    """E z = 1.009 came out as 2893: by quadrature, the multipliers of the density exp(-eta . (z, z^2)) on the half line."""
    grid = np.linspace(0.0, 12.0, 200_001)
    eta = np.array([-0.6, 0.5])
    weight = np.exp(-eta[0] * grid - eta[1] * grid**2)
    weight /= weight.sum()
    targets = (weight @ grid, weight @ grid**2)
    problem = one(
        HALF_LINE,
        epi.Target(lambda sites: sites["z"], mean=targets[0], name="z"),
        epi.Target(lambda sites: sites["z"] ** 2, mean=targets[1], name="square"),
    )
    solved, _ = solve_by_chains(problem, jax.random.key(6), None)
    np.testing.assert_allclose(solved.eta, eta, atol=4 * np.sqrt(np.diag(solved.error)).max())


def test_many_parameters_with_few_draws_are_taken_as_uncorrelated():
    """The covariance of 200 draws of 150 numbers has hardly a Cholesky factor, and one of 300 numbers none."""
    rng = np.random.default_rng(7)
    draws = rng.normal(size=(200, 300)) * np.geomspace(1e-3, 1e3, 300)
    normal = _search._weighed(draws, np.full(200, 1 / 200))
    np.testing.assert_allclose(np.diag(np.linalg.cholesky(normal.covariance)), draws.std(axis=0), rtol=1e-6)
    assert np.count_nonzero(normal.covariance) == 300


@pytest.mark.slow
def test_forty_parameters_under_a_flat_prior_are_found():
    """Squared length within a spread of that of standard normals; each coordinate has the variance 1."""
    flat = dist.ImproperUniform(constraints.real_vector, (), (40,))
    problem = epi.Problem(
        lambda: numpyro.sample("z", flat),
        epi.EmergentProperty(
            epi.Target(lambda sites: sites["z"], mean=np.zeros(40), name="z"),
            epi.Target(lambda sites: jnp.sum(sites["z"] ** 2), mean=40.0, name="length"),
        ),
    )
    reference, _ = _search.find_reference(problem, jax.random.key(8))
    loc, covariance = moments(reference)
    np.testing.assert_allclose(loc, 0.0, atol=0.2)
    assert np.mean(np.diag(covariance)) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("loc", [10.8, 22.5])
@pytest.mark.parametrize("seed", [51, 52, 53])
def test_targets_are_not_met_by_weights_that_only_leave_far_more_spread(loc: float, seed: int):
    """The draws are a hundred times too large or more, and their spread so large that both targets seem met."""
    z, z2 = (
        epi.Target(lambda sites, n=n: sites["z"] ** n, mean, name=f"z{n}") for n, mean in ((1, 316.7), (2, 1.258e5))
    )
    problem = one(HALF_LINE, z, z2)
    sample = _search._simulate(problem, jax.random.key(seed), _search._Normal(np.array([loc]), np.array([[9.0]])))
    halvings, log_weight = _search._nearer(problem, sample, 1)
    weight = np.exp(log_weight)
    mean = weight @ sample.moments
    spread = np.sqrt(weight @ np.square(sample.moments - mean))
    is_met = np.all(np.abs(mean - problem.target) < 0.5 * spread)
    assert is_met or halvings > _search.MOST_HALVINGS


@pytest.mark.parametrize(("index", "key"), [(19, 1), (19, 2), (23, 1016), (23, 1022)])
def test_a_solution_far_from_where_the_base_alone_has_its_mass_is_found(index: int, key: int):
    """Weighed towards a flat prior alone, one or two of a wide normal's draws have all of the weight."""
    stranger = strangers(5906837, index + 1)[index]
    (name,) = stranger.problem.simulator.names
    u = np.linspace(-40.0, 20.0, 60_001)
    density = np.exp(stranger.log_density({name: np.exp(u)}) + u)
    weight = density / density.sum()
    mean = weight @ u
    spread = np.sqrt(weight @ np.square(u - mean))
    reference, spent = _search.find_reference(stranger.problem, jax.random.key(key))
    (loc,), ((variance,),) = moments(reference)
    assert abs(loc - mean) < 0.3 * spread
    assert 0.5 * spread < math.sqrt(variance) < 1.5 * spread
    assert spent < 25 * _search.NUM_DRAWS


def test_means_are_compared_in_units_of_the_weighted_spread():
    rng = np.random.default_rng(71)
    moments = np.stack([rng.normal(5.0, 2.0, 4000), np.full(4000, 3.0)], axis=1)
    log_weight = np.full(4000, -math.log(4000))
    mean = moments.mean(axis=0)
    assert _search._has(moments, log_weight, mean + np.array([0.2, 0.0]))
    assert not _search._has(moments, log_weight, mean + np.array([2.0, 0.0]))
    assert not _search._has(moments, log_weight, mean + np.array([0.0, 0.1]))
