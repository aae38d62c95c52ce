"""The dual solved on its own: multipliers, entropy and draws against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray as xr
from chosen_problems import CHOSEN, MULTIPLIERS, NOISY_PRIOR
from problems import EXACT

import numpyro_epi as epi
from numpyro_epi import _dual, _dual_chains, _dual_weights
from numpyro_epi._weights import tilt
from numpyro_epi._work import solve_by_chains

ALL = {**EXACT, **CHOSEN}
QUICK = epi.ChainSettings(num_chains=128, num_updates=80)


def relative_error(exact, solution):
    """Largest error of a multiplier, all in the inverse of their statistics' standard deviations."""
    scale = solution.verdict.scale
    return np.max(np.abs(solution.eta - exact.multipliers) * scale) / np.max(np.abs(exact.multipliers) * scale)


@pytest.fixture(scope="module")
def by_chains():
    exact = EXACT["relative_entropy_mean"]()
    return exact, epi.solve_dual(jax.random.key(0), exact.problem)


@pytest.fixture(scope="module")
def by_weights():
    exact = CHOSEN["double_well"]()
    return exact, epi.solve_dual(jax.random.key(0), exact.problem, method="reweight")


@pytest.fixture(scope="module")
def by_proposals():
    """One prior draw in ten thousand is near this property."""
    exact = CHOSEN["pushed_rates"]()
    return exact, epi.solve_dual(jax.random.key(0), exact.problem, method="adaptive")


BY_PROPOSALS = pytest.param("by_proposals", marks=pytest.mark.slow)


@pytest.mark.parametrize("solved", ["by_chains", "by_weights", BY_PROPOSALS])
def test_multipliers_entropy_and_bound_are_exact(solved, request):
    exact, solution = request.getfixturevalue(solved)
    assert solution.satisfied, str(solution)
    assert relative_error(exact, solution) < 0.03
    # Four standard errors of a mean of weights, where that is what it is.
    error = 4 * np.sqrt(max(solution.log_weight.size / solution.ess - 1, 0.0) / solution.log_weight.size)
    assert abs(solution.log_normalizer - exact.objective) < max(0.02, error if solution.method == "adaptive" else 0.0)
    assert abs(solution.entropy - exact.entropy) < 0.03


@pytest.mark.parametrize("solved", ["by_chains", "by_weights", BY_PROPOSALS])
def test_weighted_draws_meet_the_targets_exactly(solved, request):
    exact, solution = request.getfixturevalue(solved)
    weight = np.exp(solution.log_weight).ravel()
    assert weight.sum() == pytest.approx(1.0)
    mean = weight @ solution.moments.reshape(len(weight), -1)
    assert np.all(np.abs(mean - exact.problem.target) < 1e-4 * solution.verdict.scale)


def test_weighted_prior_draws_are_worth_what_kish_says(by_weights):
    _, solution = by_weights
    assert solution.ess == pytest.approx(1 / np.sum(np.exp(2 * solution.log_weight)), rel=1e-3)
    assert solution.ess < 0.9 * solution.log_weight.size


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, build in ALL.items() if build().feasible])
def test_chains_solve_every_exact_problem(name):
    exact = ALL[name]()
    solution = epi.solve_dual(jax.random.key(1), exact.problem)
    assert solution.satisfied, str(solution)
    if exact.problem.simulator.noise:
        assert np.all(np.abs(solution.eta - exact.multipliers) < 4 * solution.standard_error)
        assert np.all(
            solution.standard_error
            < 0.03 * np.max(np.abs(exact.multipliers) * solution.verdict.scale) / solution.verdict.scale
        )
    else:
        assert relative_error(exact, solution) < 0.03
    assert abs(solution.log_normalizer - exact.objective) < 0.05
    if name.startswith("oscillator"):
        share = np.average(solution.draws()["A"][..., 0, 1] > 0, weights=np.exp(solution.log_weight))
        assert 0.45 < share < 0.55


@pytest.mark.slow
def test_chains_say_that_nothing_has_the_property():
    problem = EXACT["linear_gaussian_infeasible"]().problem
    solution = epi.solve_dual(jax.random.key(0), problem, settings=QUICK)
    assert solution.status is epi.STATUS.infeasible
    assert "var value(x)[0]" in solution.status_message


def test_reweighting_names_its_limit():
    """One prior draw in ten thousand is near this property: the answer must not be called satisfied."""
    exact = CHOSEN["pushed_rates"]()
    solution = epi.solve_dual(jax.random.key(0), exact.problem, method="reweight")
    assert not solution.satisfied
    assert "method='chains'" in solution.status_message


@pytest.mark.parametrize("method", ["reweight", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_noise_in_weights_is_corrected(method):
    exact = CHOSEN["noisy_spread"]()
    solution = epi.solve_dual(jax.random.key(0), exact.problem, method=method)
    assert np.all(np.abs(solution.eta - exact.multipliers) < 4 * solution.standard_error)
    assert abs(solution.log_normalizer - exact.objective) < 0.03


def test_export_has_the_chains_weights_and_normalised_density(by_chains):
    _, solution = by_chains
    exported = solution.to_arviz()
    groups = {name: exported[name] for name in ("posterior", "sample_stats", "constant_data")}
    groups = {n: g if isinstance(g, xr.Dataset) else g.to_dataset() for n, g in groups.items()}
    sizes = groups["posterior"].sizes
    assert (sizes["chain"], sizes["draw"]) == solution.log_weight.shape
    z = groups["posterior"]["z"].values
    # The solution is the prior moved along a: a normal of unit covariance.
    a = np.array([1.0, 2.0, -1.0])
    expected = -0.5 * np.sum((z - 1.5 * a / 6) ** 2, axis=-1) - 1.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(groups["sample_stats"]["lp"], expected, atol=0.1)
    np.testing.assert_allclose(groups["sample_stats"]["log_weight"], solution.log_weight, rtol=1e-5)
    assert exported.attrs["log_normalizer"] == pytest.approx(solution.log_normalizer)


def test_print_and_tables_show_the_constraint(by_chains):
    _, solution = by_chains
    assert "projection" in str(solution)
    assert "<td>projection</td>" in solution._repr_html_()
    assert float(solution.multipliers.sel(constraint="projection")) == pytest.approx(solution.eta[0])
    assert solution.draws()["z"].shape == (*solution.log_weight.shape, 3)


@pytest.mark.slow
def test_same_key_gives_the_same_solution():
    problem = EXACT["truncated_exponential_0.3"]().problem
    first, second = (epi.solve_dual(jax.random.key(3), problem, settings=QUICK) for _ in range(2))
    np.testing.assert_array_equal(first.eta, second.eta)
    np.testing.assert_array_equal(first.unconstrained, second.unconstrained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "newton"}, "Expected method 'chains', 'reweight' or 'adaptive'; got 'newton'"),
        ({"tolerance": 0.0}, "Expected tolerance > 0; got 0.0"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        epi.solve_dual(jax.random.key(0), EXACT["indicator"]().problem, **options)


@pytest.mark.parametrize("method", ["reweight", "adaptive"])
def test_weighing_needs_a_proper_prior(method):
    with pytest.raises(ValueError, match="Expected a proper prior.* Use method='chains'"):
        epi.solve_dual(jax.random.key(0), EXACT["gaussian_2"]().problem, method=method)


def test_proposals_that_find_nothing_say_so():
    """A statistic within one of zero has no such spread."""

    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    def bounded(sites):
        return jnp.tanh(sites["x"])

    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(bounded, mean=0.5, std=1.5)))
    solution = epi.solve_dual(jax.random.key(0), problem, method="adaptive")
    assert not solution.satisfied
    assert "Too few of the draws have the property" in solution.status_message


@pytest.mark.slow
def test_many_parameters_have_the_exact_answer():
    """So many that no bridge is tried: the normaliser comes from chains that walk back to the base."""
    dim, mean, std = 80, 0.5, 0.5

    def model():
        with numpyro.plate("units", dim):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    total = epi.statistic(name="total")(lambda sites: jnp.sum(sites["z"]) / np.sqrt(dim))
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(total, mean=mean, std=std)))
    assert problem.dim > _dual_chains.MOST_BRIDGED
    solution = epi.solve_dual(jax.random.key(0), problem, settings=QUICK)
    assert solution.satisfied, str(solution)
    # The total is a standard normal of the base, and normal in the answer; what is across is the base's.
    np.testing.assert_allclose(solution.eta, [-mean, (1 / std**2 - 1) / 2], rtol=0.03)
    exact = dim * 0.5 * np.log(2 * np.pi * np.e) + np.log(std)
    assert abs(solution.entropy - exact) < 4 * solution.verdict.entropy_standard_error + 0.03


SHIFT, DIM = 0.5, 20


@pytest.fixture(scope="module")
def shifted():
    """A standard normal whose first coordinate's mean is moved: what its chains find, and the settings."""

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))

    first = epi.statistic(name="first")(lambda sites: sites["z"][0])
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(first, mean=SHIFT)))
    return problem, *solve_by_chains(problem, jax.random.key(0), QUICK)


def solve_from(monkeypatch, shifted, **changes):
    """`solve_dual` of chains that found something else."""
    problem, solved, settings = shifted
    monkeypatch.setattr(_dual, "solve_by_chains", lambda *_: (solved._replace(**changes), settings))
    return epi.solve_dual(jax.random.key(1), problem)


def test_means_are_judged_before_the_tilt(monkeypatch, shifted):
    """Multipliers that are 0.2 off make a mean that is 0.2 off; weights of the same draws have it right nevertheless."""
    assert solve_from(monkeypatch, shifted).satisfied
    solution = solve_from(monkeypatch, shifted, eta=np.array([-SHIFT - 0.2]))
    assert solution.status is epi.STATUS.unsatisfied
    assert "first is 0.7" in solution.status_message
    assert abs(solution.verdict.mean[0] - SHIFT - 0.2) < 4 * solution.verdict.standard_error[0]
    assert np.sum(np.exp(solution.log_weight) * solution.moments[..., 0]) == pytest.approx(SHIFT, abs=1e-4)


def test_chains_that_do_not_mix_are_not_called_satisfied(monkeypatch, shifted):
    """Steps of next to no length, in so many dimensions that next to no jump is accepted."""
    chains = shifted[1].chains
    solution = solve_from(monkeypatch, shifted, chains=chains._replace(step_size=jnp.full((), 1e-4)))
    assert solution.status is epi.STATUS.unsatisfied
    assert solution.rhat > _dual_chains.MAX_RHAT
    assert "The chains do not mix: R-hat is" in solution.status_message
    assert "effective sample size (ESS)" in solution.status_message
    assert "settings=ChainSettings(num_draws=" in solution.status_message


def test_rhat_of_the_limit_is_one_effective_draw_of_half_a_chain():
    """Of autoregressive chains, whose ESS is known: what the docstring of the limit says."""
    num_chains, num_draws, correlation = 512, 200, 0.98
    rng = np.random.default_rng(0)
    draws = np.empty((num_chains, num_draws))
    draws[:, 0] = rng.normal(size=num_chains)
    for i in range(1, num_draws):
        draws[:, i] = correlation * draws[:, i - 1] + np.sqrt(1 - correlation**2) * rng.normal(size=num_chains)
    ess, rhat = _dual_chains._mixing(draws[..., None])
    # Variance of a half chain's mean over that of a draw.
    lags = np.arange(1, num_draws // 2)
    share = (1 + 2 * np.sum((1 - lags / (num_draws // 2)) * correlation**lags)) / (num_draws // 2)
    assert rhat**2 - 1 == pytest.approx(share / (1 - share), rel=0.15)
    assert ess == pytest.approx(num_chains * num_draws * (1 - correlation) / (1 + correlation), rel=0.25)


def test_multipliers_that_are_not_precise_enough_are_said_to_be_so(monkeypatch, shifted):
    assert "precision" not in solve_from(monkeypatch, shifted).status_message
    solution = solve_from(monkeypatch, shifted, precise=False)
    assert solution.satisfied
    assert "The multipliers' standard errors are above the precision that was asked for" in solution.status_message


def noisy_spread_draws(count, rng):
    """Exact ones of the problem with noise, from a fine grid."""
    center, log_std = np.meshgrid(np.linspace(-8, 8, 1201), np.linspace(-5, 3, 801), indexing="ij")
    variance = np.exp(2 * log_std)
    moments = [center, center**2 + variance, np.cos(center) * np.exp(-variance / 2)]
    log_density = sum(
        scipy.stats.norm.logpdf(z, loc, scale)
        for z, loc, scale in zip((center, log_std), NOISY_PRIOR["loc"], NOISY_PRIOR["scale"], strict=True)
    ) - np.tensordot(MULTIPLIERS["noisy_spread"], moments, axes=1)
    mass = np.exp(log_density - log_density.max()).ravel()
    index = rng.choice(mass.size, size=count, p=mass / mass.sum())
    return jnp.asarray(np.stack([center.ravel()[index], log_std.ravel()[index]], axis=1), float)


@pytest.mark.slow
def test_normalizer_of_a_noisy_model_is_unbiased():
    """To 0.006 nats, where a bridge from the draws themselves was 0.017 too low."""
    exact = CHOSEN["noisy_spread"]()
    rng = np.random.default_rng(0)
    found = [
        _dual_chains._bridge(exact.problem, noisy_spread_draws(20_000, rng), exact.multipliers, jax.random.key(seed))
        for seed in range(6)
    ]
    values, errors, _ = np.transpose(found)
    assert abs(values.mean() - exact.objective) < 0.006
    assert np.all(np.abs(values - exact.objective) < 4 * errors)


def test_draws_at_the_edge_of_a_box_do_no_harm():
    """Single precision puts one draw of 16,000 onto the edge of this box, where unconstrained coordinates are infinite."""
    exact = EXACT["truncated_exponential_0.3"]()

    def model():
        numpyro.sample("z", dist.Uniform(1000.0, 1001.0))

    first = epi.statistic(name="first")(lambda sites: sites["z"] - 1000.0)
    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(first, mean=0.3)))
    solution = epi.solve_dual(jax.random.key(0), problem, method="reweight")
    assert solution.satisfied
    assert abs(solution.entropy - exact.entropy) < 4 * solution.verdict.entropy_standard_error + 1e-4
    assert abs(solution.log_normalizer - exact.objective) < 4 * solution.log_normalizer_error + 1e-4


def test_errors_of_weights_are_honest():
    """Of log Z and entropy: against the spread of 200 samples."""
    exact = CHOSEN["double_well"]()
    target, rng, count = exact.problem.target, np.random.default_rng(0), 1000
    found = []
    for _ in range(200):
        draws = rng.normal(size=(count, 1))
        moments = np.concatenate([draws, (draws**2 - 1) ** 2], axis=1)
        tilted = tilt(np.zeros(count), moments, target)
        weights = _dual_weights.Weights(
            jnp.asarray(draws, float), moments, None, tilted, tilted.log_normalizer, count, count
        )
        judged = _dual_weights.judge_weights(exact.problem, weights)
        errors = judged["log_normalizer_error"], judged["verdict"].entropy_standard_error
        found.append([judged["log_normalizer"], judged["verdict"].entropy, *errors])
    log_normalizer, entropy, *errors = np.transpose(found)
    for values, expected, error in zip(
        (log_normalizer, entropy), (exact.objective, exact.entropy), errors, strict=True
    ):
        assert abs(values.mean() - expected) < 0.3 * values.std()
        assert np.sqrt(np.mean(error**2)) == pytest.approx(values.std(), rel=0.2)


def test_summary_leaves_out_what_does_not_apply(by_weights):
    _, solution = by_weights
    text = str(solution)
    assert "nan" not in text
    assert "R-hat" not in text
    assert "+- 0.0000" not in text
