"""The dual solved on its own: multipliers, entropy and draws against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from chosen_problems import CHOSEN
from problems import EXACT

import numpyro_epi as epi
from numpyro_epi import _dual

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
    assert (groups["posterior"].sizes["chain"], groups["posterior"].sizes["draw"]) == solution.log_weight.shape
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
    assert problem.dim > _dual.MOST_BRIDGED
    solution = epi.solve_dual(jax.random.key(0), problem, settings=QUICK)
    assert solution.satisfied, str(solution)
    # The total is a standard normal of the base, and normal in the answer; what is across is the base's.
    np.testing.assert_allclose(solution.eta, [-mean, (1 / std**2 - 1) / 2], rtol=0.03)
    exact = dim * 0.5 * np.log(2 * np.pi * np.e) + np.log(std)
    assert abs(solution.entropy - exact) < 4 * solution.verdict.entropy_standard_error + 0.03
