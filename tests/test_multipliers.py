"""Multiplier rules: contracts asked of all of them, and each against its closed form."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

from numpyro_epi.multipliers import EpochSummary, GrowingPenalty, GrowingPenaltyState, Natural, Yielding, welch_t_test

KEY = jr.key(0)
RULES = {
    "natural": Natural(),
    "natural_full_step": Natural(rate=1.0, forgetting=1.0, shrinkage=1.0),
    "yielding": Yielding(held_epochs=0),
    "growing_penalty": GrowingPenalty(steps_per_epoch=20, num_norms=10),
}
NUM_STEPS = 20
FACTOR = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.7]])
COVARIANCE = FACTOR @ FACTOR.T
UNITS = np.array([1e-3, 1.0, 1e4])


@pytest.fixture(params=RULES.values(), ids=RULES.keys())
def rule(request):
    return request.param


def epoch_of(batch_violations, covariance=COVARIANCE) -> EpochSummary:
    """What the loop would have summarised from these batches."""
    batches, covariance = jnp.asarray(batch_violations, float), jnp.asarray(covariance, float)
    standard_error = jnp.sqrt(jnp.diagonal(covariance) / len(batches))
    return EpochSummary(jnp.mean(batches, axis=0), standard_error, covariance, batches)


def steady(violation, covariance=COVARIANCE) -> EpochSummary:
    """Every batch shows the same violation."""
    return epoch_of(np.tile(violation, (NUM_STEPS, 1)), covariance)


def noisy(seed: int, covariance=COVARIANCE) -> EpochSummary:
    rng = np.random.default_rng(seed)
    return epoch_of(rng.normal(size=(NUM_STEPS, 3)) * np.sqrt(np.diag(covariance)), covariance)


def arrays(state) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def test_first_multipliers_are_zero(rule):
    state = rule.init(KEY, jnp.asarray(COVARIANCE, float))
    np.testing.assert_array_equal(state.eta, np.zeros(3))
    assert np.all(np.linalg.eigvalsh(state.metric) > 0)


def test_zero_violation_is_a_fixed_point(rule):
    state = rule.update(rule.init(KEY, jnp.asarray(COVARIANCE, float)), noisy(1))
    assert np.all(state.eta != 0)
    later = rule.update(rule.update(state, steady(np.zeros(3))), steady(np.zeros(3)))
    np.testing.assert_array_equal(later.eta, state.eta)


def test_multipliers_oppose_the_violation(rule):
    """A statistic that is too large gets a positive multiplier, which the loss adds: the guide lowers it."""
    violation = np.array([0.5, -1.0, 0.2])
    state = rule.update(rule.init(KEY, jnp.asarray(COVARIANCE, float)), steady(violation))
    assert state.eta @ violation > 0


def assert_keeps_avals(rule):
    state = rule.init(KEY, jnp.asarray(COVARIANCE, float))
    jitted = jax.jit(rule.update)(state, noisy(1))
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(jitted), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert not any(leaf.weak_type for leaf in arrays(state) + arrays(jitted))
    scanned, _ = jax.lax.scan(lambda state, _: (rule.update(state, noisy(1)), None), state, length=2)
    assert jax.tree.structure(scanned) == jax.tree.structure(state)


def test_update_keeps_shapes_and_types(rule):
    """Else every epoch would compile the loop again."""
    assert_keeps_avals(rule)


def test_update_keeps_shapes_and_types_in_double_precision(rule, double_precision):
    assert_keeps_avals(rule)
    assert all(leaf.dtype == jnp.float64 for leaf in arrays(rule.init(KEY, jnp.asarray(COVARIANCE, float))))


DEGENERATE = {
    "duplicated": np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [0.5, 0.5, 2.0]]),
    "constant": np.diag([1.0, 0.0, 2.0]),
    "all_constant": np.zeros((3, 3)),
}


@pytest.mark.parametrize("covariance", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_degenerate_moments_keep_everything_finite(rule, covariance):
    state = rule.init(KEY, jnp.asarray(covariance, float))
    for violation in (np.array([0.3, 0.3, -0.1]), np.zeros(3), np.array([5.0, 0.0, 0.0])):
        state = rule.update(state, steady(violation, covariance))
        assert all(np.all(np.isfinite(leaf)) for leaf in [state.eta, state.metric])


def test_natural_gives_a_constant_moment_no_weight():
    state = Natural().init(KEY, jnp.asarray(DEGENERATE["constant"], float))
    state = Natural().update(state, steady(np.array([0.1, 7.0, 0.1]), DEGENERATE["constant"]))
    assert state.eta[1] == 0
    assert state.eta[0] != 0


def test_natural_splits_a_duplicated_moment_evenly():
    """Two copies together weigh as one: their multipliers add up, and are equal."""
    rule = Natural(rate=1.0, penalty=1.0, shrinkage=1e-3)
    state = rule.update(rule.init(KEY, jnp.ones((2, 2))), steady(np.array([0.4, 0.4]), np.ones((2, 2))))
    np.testing.assert_allclose(state.eta, [0.2, 0.2], rtol=2e-3)


def run_natural(units):
    """Multipliers and metric after three epochs, with the moments measured in these units."""
    covariance = COVARIANCE * np.outer(units, units)
    state = Natural().init(KEY, jnp.asarray(covariance, float))
    for seed in range(3):
        plain = noisy(seed)
        state = Natural().update(state, epoch_of(plain.batch_violations * units, covariance))
    return state


def test_natural_is_invariant_to_the_moments_units():
    plain, scaled = run_natural(np.ones(3)), run_natural(UNITS)
    np.testing.assert_allclose(scaled.eta * UNITS, plain.eta, rtol=1e-4)
    np.testing.assert_allclose(scaled.metric * np.outer(UNITS, UNITS), plain.metric, rtol=1e-4)


def test_natural_is_invariant_to_the_moments_units_in_double_precision(double_precision):
    plain, scaled = run_natural(np.ones(3)), run_natural(UNITS)
    np.testing.assert_allclose(scaled.eta * UNITS, plain.eta, rtol=1e-12)


@pytest.mark.parametrize(("penalty", "rate"), [(2.0, 1.0), (0.5, 1.0), (2.0, 0.1)])
def test_natural_shrinks_the_violation_at_one_rate(double_precision, penalty, rate):
    """A normal base of covariance C and T(u) = u: the epoch's optimum has the mean m = -C (eta + P (m - target)).

    So (I + C P) R = -(C eta + target); with P = c C^-1 an update eta + rate P R takes R to R (1 - rate c / (1 + c)),
    which is R / (1 + c) at the full rate, whatever the direction.
    """
    rule, target = Natural(penalty=penalty, rate=rate, shrinkage=1e-9), np.array([1.0, -2.0, 0.5])
    state, violations = rule.init(KEY, jnp.asarray(COVARIANCE, float)), []
    for _ in range(4):
        system = np.eye(3) + COVARIANCE @ np.asarray(state.metric)
        violations.append(-np.linalg.solve(system, COVARIANCE @ np.asarray(state.eta) + target))
        state = rule.update(state, steady(violations[-1]))
    expected = 1 - rate * penalty / (1 + penalty)
    np.testing.assert_allclose(np.array(violations[1:]) / np.array(violations[:-1]), expected, rtol=1e-6)


def test_natural_forgets_old_covariances():
    rule = Natural(forgetting=0.25)
    state = rule.update(rule.init(KEY, jnp.asarray(COVARIANCE, float)), steady(np.zeros(3), 3 * COVARIANCE))
    np.testing.assert_allclose(state.covariance, 1.5 * COVARIANCE, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (20, 20)), (1.0, (10, 40)), (-0.5, (200, 5)), (4.0, (7, 9))])
def test_welch_is_scipys(double_precision, shift, sizes):
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=sizes[0]) + shift, 2 * rng.normal(size=sizes[1])
    expected = stats.ttest_ind(first, second, equal_var=False)
    t, p = welch_t_test(jnp.asarray(first), jnp.asarray(second))
    np.testing.assert_allclose([t, p], [expected.statistic, expected.pvalue], rtol=1e-8)


GROWING = GrowingPenalty(initial_penalty=3.0, shrinkage_factor=0.5, growth=4.0, steps_per_epoch=NUM_STEPS, num_norms=12)
NUM_KEYS = 4000


def penalties_after(norms, epoch):
    """The penalties of the next epoch for many keys."""

    def after(key):
        start = GROWING.init(key, jnp.asarray(COVARIANCE, float))
        return GROWING.update(start._replace(norms=jnp.asarray(norms, float)), epoch).penalty

    return np.asarray(jax.jit(jax.vmap(after))(jr.split(KEY, NUM_KEYS)))


@pytest.mark.parametrize("ratio", [1.0, 1.6, 2.4])
def test_growing_penalty_grows_with_probability_one_less_half_p(ratio):
    """Last epoch's norms are a shuffled multiple of this one's, so t is positive below the ratio 1 / gamma = 2."""
    epoch = noisy(5)
    norms = np.square(epoch.batch_violations[-12:]).sum(axis=1)
    previous = ratio * norms[::-1]
    t, p = stats.ttest_ind(norms, 0.5 * previous, equal_var=False)
    expected = 1 - p / 2 if t > 0 else 0.0
    penalties = penalties_after(previous, epoch)
    assert set(penalties) <= {3.0, 12.0}
    standard_error = np.sqrt(expected * (1 - expected) / NUM_KEYS)
    assert abs(np.mean(penalties == 12.0) - expected) <= 5 * standard_error


def test_growing_penalty_never_grows_in_the_first_epoch():
    np.testing.assert_array_equal(penalties_after(np.full(12, np.inf), noisy(5)), np.full(NUM_KEYS, 3.0))


def test_growing_penalty_moves_eta_by_the_last_batch():
    """By the penalty of the epoch that ended, not by the grown one."""
    state, epoch = GROWING.init(KEY, jnp.asarray(COVARIANCE, float)), noisy(5)
    state = GROWING.update(state._replace(norms=jnp.full(12, 1e-6)), epoch)
    assert state.penalty == 12.0
    np.testing.assert_allclose(state.eta, 3.0 * epoch.batch_violations[-1], rtol=1e-6)
    np.testing.assert_allclose(state.metric, 12.0 * np.eye(3))


def test_growing_penalty_tosses_a_new_coin_each_epoch():
    state = GROWING.init(KEY, jnp.asarray(COVARIANCE, float))
    later = GROWING.update(state, noisy(1))
    assert isinstance(later, GrowingPenaltyState)
    assert jr.key_data(later.key).tolist() != jr.key_data(state.key).tolist()
    np.testing.assert_allclose(later.norms, np.square(noisy(1).batch_violations[-12:]).sum(axis=1), rtol=1e-5)


def test_yielding_multipliers_stay_while_they_are_held_and_while_moments_are_near():
    rule = Yielding(held_epochs=2, slack=0.01, rate=0.25, momentum=0.5, shrinkage=1e-9)
    deviation = np.sqrt(np.diag(COVARIANCE))
    off, near = 0.011 * deviation, 0.009 * deviation
    state, found = rule.init(KEY, jnp.asarray(COVARIANCE, float)), []
    for violation in (off, off, off, off, near, off):
        state = rule.update(state, steady(violation))
        found.append(np.asarray(state.eta))
    step = 0.25 * 2.0 * np.linalg.solve(COVARIANCE, off)
    # Momentum adds half of the step before, and is lost where nothing moves.
    for eta, steps in zip(found, (0.0, 1.0, 2.5, 4.25, 4.25, 5.25), strict=True):
        np.testing.assert_allclose(eta, steps * step, rtol=1e-3, atol=1e-6)


def test_yielding_multipliers_take_no_long_steps_and_heed_nothing_that_does_not_vary():
    rule, variance = Yielding(held_epochs=0), np.diag([4.0, 0.0])
    state = rule.init(KEY, jnp.asarray(variance, float))
    state = rule.update(state, steady(np.array([1e6, 0.0]), variance))
    # Two tenths of one over the standard deviation.
    np.testing.assert_allclose(state.eta, [0.1, 0.0], rtol=1e-5)
    later = rule.update(state, steady(np.array([0.0, 1e-7]), variance))
    np.testing.assert_array_equal(later.eta, state.eta)


BAD_FIELDS = {
    "penalty": (Natural, {"penalty": 0.0}, "Expected penalty > 0; got 0.0"),
    "penalty_nan": (Natural, {"penalty": np.nan}, "Expected penalty > 0; got nan"),
    "rate": (Natural, {"rate": -1.0}, "Expected rate > 0; got -1.0"),
    "steps": (Natural, {"steps_per_epoch": 0}, "Expected steps_per_epoch to be an integer >= 1; got 0"),
    "forgetting": (Natural, {"forgetting": 1.5}, "Expected 0 < forgetting <= 1; got 1.5"),
    "shrinkage": (Natural, {"shrinkage": 0.0}, "Expected 0 < shrinkage <= 1; got 0.0"),
    "held": (Yielding, {"held_epochs": -1}, "Expected held_epochs to be an integer >= 0; got -1"),
    "slack": (Yielding, {"held_epochs": 0, "slack": 0.0}, "Expected slack > 0; got 0.0"),
    "momentum": (Yielding, {"held_epochs": 0, "momentum": 1.0}, "Expected 0 <= momentum < 1; got 1.0"),
    "yielding_shrinkage": (Yielding, {"held_epochs": 0, "shrinkage": 2.0}, "Expected 0 < shrinkage <= 1; got 2.0"),
    "initial_penalty": (GrowingPenalty, {"initial_penalty": 0.0}, "Expected initial_penalty > 0; got 0.0"),
    "factor": (GrowingPenalty, {"shrinkage_factor": 2.0}, "Expected 0 <= shrinkage_factor <= 1; got 2.0"),
    "growth": (GrowingPenalty, {"growth": 0.5}, "Expected growth >= 1; got 0.5"),
    "norms": (GrowingPenalty, {"num_norms": 1}, "Expected 2 <= num_norms <= steps_per_epoch; got 1, 1000"),
    "norms_steps": (GrowingPenalty, {"steps_per_epoch": 9}, "Expected 2 <= num_norms <= steps_per_epoch; got 200, 9"),
}


@pytest.mark.parametrize(("rule_type", "fields", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_rejects_bad_fields(rule_type, fields, message):
    with pytest.raises(ValueError, match=message):
        rule_type(**fields)
