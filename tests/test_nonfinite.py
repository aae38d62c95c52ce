"""Simulations that are not finite: refused, given a value, or conditioned away, against quadrature over the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from failing import Exact, border, exact_answer, failing_problem

import numpyro_epi as epi

LIGHT = epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())
"""Compiles quickly."""


def _assert_exact(found: epi.Result, exact: Exact) -> None:
    """Within the distance that the certificate allows; the multipliers are those of the start's weighed draws."""
    assert found.satisfied, found.status_message
    slack = found.eta @ (found.verdict.mean - found.problem.target)
    distance = exact.log_normalizer - found.verdict.base_entropy + slack
    assert -0.03 < distance < 0.06, str(found)
    np.testing.assert_allclose(found.entropy, exact.entropy, atol=0.06)
    # Four standard errors of multipliers by so many effective draws.
    error = 4.0 / (found.verdict.scale * np.sqrt(found.certificate.ess))
    assert np.all(np.abs(found.eta - exact.eta) < error)
    draws = np.asarray(found.sample(jax.random.key(5), 20_000)["z"])
    np.testing.assert_allclose(draws.mean(axis=0), exact.mean, atol=0.06)


@pytest.mark.parametrize(
    ("method", "failing"),
    [
        ("adaptive", 0.001),
        ("adaptive", 0.1),
        ("adaptive", 0.9),
        pytest.param("chains", 0.9, marks=pytest.mark.slow),
    ],
)
def test_dual_is_that_of_finite_simulations(failing: float, method: str):
    problem, exact = failing_problem(failing, "condition"), exact_answer(failing, "condition")
    settings = epi.ChainSettings(num_chains=256, num_updates=80) if method == "chains" else None
    found = epi.solve_dual(jax.random.key(1), problem, method=method, settings=settings)
    assert found.satisfied
    # Of chains the standard error is an estimate from their own spread, of weights from their own scatter.
    assert np.all(np.abs(found.eta - exact.eta) < 4.5 * found.standard_error + 0.01)
    np.testing.assert_allclose(found.log_normalizer, exact.log_normalizer, atol=0.05)
    np.testing.assert_allclose(found.entropy, exact.entropy, atol=0.05)
    height = found.density.log_prob({"z": jnp.array([[-6.0, -2.0], [1.5, 0.5]])})
    assert height[0] == -jnp.inf and jnp.isfinite(height[1])


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0.001, 0.1, 0.9])
def test_dual_with_a_value_instead(failing: float):
    problem, exact = failing_problem(failing, "replace"), exact_answer(failing, "replace")
    found = epi.solve_dual(jax.random.key(2), problem, method="adaptive")
    assert found.satisfied
    assert np.all(np.abs(found.eta - exact.eta) < 4.5 * found.standard_error + 0.01)
    np.testing.assert_allclose(found.log_normalizer, exact.log_normalizer, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "correlated"), [(0.9, True), (0.1, False)])
def test_fit_conditions_on_finite_simulations(failing: float, correlated: bool):
    found = epi.fit(jax.random.key(3), failing_problem(failing, "condition", correlated=correlated), progress=False)
    _assert_exact(found, exact_answer(failing, "condition", correlated=correlated))
    assert found.certificate.gap < 0.05
    assert np.all(np.isfinite(found.statistics(jax.random.key(4), 500)["bent"]))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0.9])
def test_fit_with_a_value_instead(failing: float):
    _assert_exact(
        epi.fit(jax.random.key(3), failing_problem(failing, "replace"), progress=False),
        exact_answer(failing, "replace"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0.001, 0.1, 0.9])
def test_refused_failures_are_never_satisfied(failing: float):
    # The flow is free to leave the region: then nothing fails, and the answer may be satisfied.
    found = epi.fit(jax.random.key(3), failing_problem(failing, "refuse", correlated=False), progress=False)
    assert found.verdict.finite_share < 1.0
    assert not found.satisfied


@pytest.fixture(scope="module")
def conditioned() -> epi.Result:
    return epi.fit(
        jax.random.key(0),
        failing_problem(0.5, "condition", correlated=False),
        start=epi.starts.Gaussian(),
        num_draws=200,
        max_steps=150,
        flow=LIGHT,
        progress=False,
    )


@pytest.mark.slow
def test_answer_is_a_density_over_finite_parameters(conditioned: epi.Result):
    draws = conditioned.sample(jax.random.key(1), 4000)["z"]
    assert jnp.all(draws[:, 1] >= 0.0)
    side = jnp.linspace(-8.0, 8.0, 400)
    corners = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(np.asarray(conditioned.log_prob({"z": corners})))
    # The border cuts cells of the grid.
    np.testing.assert_allclose(density.sum() * float(side[1] - side[0]) ** 2, 1.0, atol=0.03)
    assert np.all(density[corners[:, 1] < 0.0] == 0.0)
    own = conditioned.log_prob({"z": draws})
    error = float(jnp.std(own)) / 60
    np.testing.assert_allclose(-np.mean(own), conditioned.entropy, atol=4 * error + 0.02)


def test_share_of_the_flow_is_reported(conditioned: epi.Result):
    share = conditioned.settings["finite_share"]
    assert 0.3 < share < 1.0
    assert f"{100 * share:.2f} % of the flow's own draws" in str(conditioned)
    assert conditioned.verdict.finite_share == 1.0


@pytest.mark.slow
def test_conditioned_answer_is_saved_and_exported(conditioned: epi.Result, tmp_path):
    conditioned.save(tmp_path / "half.nc")
    found = epi.load(tmp_path / "half.nc", conditioned.problem, flow=LIGHT)
    key = jax.random.key(8)
    np.testing.assert_array_equal(found.sample(key, 20)["z"], conditioned.sample(key, 20)["z"])
    tree = epi.read_arviz(tmp_path / "half.nc")
    assert np.all(tree["posterior"]["z"].values[..., 1] >= 0.0)
    with pytest.raises(ValueError, match="nonfinite='refuse'; .* holds one for 'condition'"):
        epi.load(tmp_path / "half.nc", failing_problem(0.5, "refuse", correlated=False))


@pytest.mark.parametrize("policy", ["refuse", "condition"])
def test_nothing_is_finite(policy: str):
    found = epi.fit(
        jax.random.key(0),
        failing_problem(1.0, policy),
        start=epi.starts.Gaussian(),
        max_steps=50,
        flow=LIGHT,
        progress=False,
    )
    assert found.status is epi.STATUS.nonfinite
    assert not np.isfinite(found.entropy)


def test_nothing_but_the_value_instead():
    found = epi.fit(
        jax.random.key(0),
        failing_problem(1.0, "replace"),
        start=epi.starts.Gaussian(),
        max_steps=300,
        flow=LIGHT,
        progress=False,
    )
    assert found.status in (epi.STATUS.infeasible, epi.STATUS.unsatisfied)


@pytest.mark.slow
def test_restarts_may_be_mixed():
    found = epi.fit(
        jax.random.key(0),
        failing_problem(0.3, "condition", correlated=False),
        start=epi.starts.Gaussian(),
        num_draws=100,
        max_steps=50,
        num_restarts=2,
        flow=LIGHT,
        progress=False,
    )
    mixed = epi.flows.mixture(found.restarts.flows, np.ones(2))
    draws, log_q = mixed.sample_and_log_prob(jax.random.key(0), (50,))
    np.testing.assert_allclose(mixed.log_prob(draws), log_q, rtol=1e-4)
    assert jnp.all(draws[:, 1] >= border(0.3, correlated=False))


def test_what_cannot_be_conditioned_is_refused():
    def noisy():
        z = numpyro.sample("z", dist.Normal())
        numpyro.deterministic("x", jnp.log(z + numpyro.sample("noise", dist.Normal())))

    wanted = epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=0.0, name="x"))
    with pytest.raises(ValueError, match=r"without noise .* nonfinite='condition'.*\['noise'\]"):
        epi.Problem(noisy, wanted, parameters=("z",), nonfinite="condition")
    with pytest.raises(ValueError, match="Expected nonfinite 'refuse' or 'condition'; got 'drop'"):
        epi.Problem(noisy, wanted, parameters=("z",), nonfinite="drop")
    with pytest.raises(ValueError, match="Expected a finite if_nonfinite for 'x'; got nan"):
        epi.Target(lambda sites: sites["x"], mean=0.0, name="x", if_nonfinite=np.nan)
    shaped = epi.Target(lambda sites: sites["x"], mean=0.0, name="x", if_nonfinite=np.zeros(3))
    with pytest.raises(ValueError, match=r"Expected if_nonfinite of 'x' to be a scalar or of shape \(\)"):
        epi.Problem(noisy, epi.EmergentProperty(shaped), parameters=("z",))


def test_noise_may_fail_by_chance_where_a_value_stands_for_it():
    """One in ten simulations of every parameter fails, and counts as zero: ``E[x] = 0.9 z``."""

    def chance():
        z = numpyro.sample("z", dist.Normal())
        fails = numpyro.sample("fails", dist.Uniform()) < 0.1
        numpyro.deterministic("x", jnp.where(fails, jnp.nan, z))

    target = epi.Target(lambda sites: sites["x"], mean=0.9, name="x", if_nonfinite=0.0)
    problem = epi.Problem(chance, epi.EmergentProperty(target), parameters=("z",))
    found = epi.solve_dual(jax.random.key(0), problem, method="reweight")
    # Of p proportional to exp(-z^2 / 2 - eta (0.9 z - 0.9)): z has mean one.
    np.testing.assert_allclose(found.eta, [-1 / 0.9], atol=4.5 * found.standard_error[0])
    np.testing.assert_allclose(found.entropy, 0.5 * np.log(2 * np.pi * np.e), atol=0.03)
