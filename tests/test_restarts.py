"""Restarts: ranked by their distance from the optimum, mixed where that is nearer, one compiled program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen_problems import CHOSEN
from flowjax.distributions import Normal
from problems import EXACT, exact_kl

import numpyro_epi as epi
from numpyro_epi._fresh import measure
from numpyro_epi._outcome import STATUS
from numpyro_epi._restarts import Candidates, rank

WELLS = CHOSEN["double_well"]()
QUICK = {
    "start": epi.starts.Prior(),
    "flow": epi.flows.Elementwise(num_stages=1),
    "num_draws": 200,
    "max_steps": 200,
    "progress": False,
}


def candidates(flows, statuses=None):
    verdicts = [measure(WELLS.problem, flow, jax.random.key(1), 20, 500).verdict() for flow in flows]
    return Candidates(flows, verdicts, statuses or [STATUS.satisfied] * len(flows))


def wells(*locations, width=0.22):
    """A normal in each well; the double well's minima are at 1 and -1."""
    return [Normal(jnp.array([location]), jnp.array([width])) for location in locations]


def ranked(found, **options):
    return rank(jax.random.key(2), WELLS.problem, found, WELLS.multipliers, measure_with=(20, 500), **options)


@pytest.fixture(scope="module")
def several():
    """Three quick fits of a problem whose solution is known."""
    exact = EXACT["relative_entropy_variance"]()
    return exact, epi.fit(jax.random.key(0), exact.problem, num_restarts=3, **QUICK)


def test_corrected_entropy_is_the_optimum_s_less_the_kl():
    found = candidates([*wells(1.0, -1.0), Normal(jnp.array([0.1]), jnp.array([0.9]))])
    _, restarts = ranked(found)
    for verdict, corrected in zip(found.verdicts, restarts.corrected, strict=True):
        kl = exact_kl(WELLS, base_entropy=verdict.base_entropy, moments=verdict.mean)
        assert WELLS.objective - corrected == pytest.approx(kl, abs=1e-9)


@pytest.mark.slow
def test_restarts_differ_and_each_is_reported(several):
    _, result = several
    assert len(result.restarts.flows) == len(result.restarts.statuses) == len(result.restarts.corrected) == 3
    draws = [np.asarray(flow.sample(jax.random.key(0), (5,))) for flow in result.restarts.flows]
    assert np.abs(draws[0] - draws[1]).max() > 1e-6
    assert f"returned restart {result.restarts.chosen}" in str(result) or "returned a mixture" in str(result)


@pytest.mark.slow
def test_restarts_are_arviz_chains(several):
    _, result = several
    group = result.to_arviz(num_chains=2, num_draws=40)["restarts"]
    group = group.to_dataset() if hasattr(group, "to_dataset") and hasattr(group, "children") else group
    assert group["z"].sizes == {"chain": 3, "draw": 40}
    np.testing.assert_allclose(group["corrected"], result.restarts.corrected)


@pytest.mark.slow
def test_first_restart_is_the_run_without_restarts(several):
    """Side by side, sums are taken in another order: equal up to rounding that training amplifies."""
    exact, result = several
    alone = epi.fit(jax.random.key(0), exact.problem, **QUICK)
    first = result.restarts.flows[0]
    u = jnp.linspace(-1, 1, 9)[:, None]
    np.testing.assert_allclose(first.log_prob(u), alone.flow.log_prob(u), atol=0.02)


def test_a_guide_that_misses_its_targets_does_not_win_by_entropy():
    wide, right = wells(1.0, 1.0, width=0.22)[0], Normal(jnp.array([0.0]), jnp.array([3.0]))
    found = candidates([right, wide], [STATUS.unsatisfied, STATUS.unsatisfied])
    assert found.verdicts[0].entropy > found.verdicts[1].entropy
    _, restarts = ranked(found)
    assert restarts.chosen == 1


def test_of_guides_about_as_near_one_that_has_the_property_is_chosen():
    """The same guide three times, of which the first and the second do not; the third is .04 or .06 nats further off."""
    for behind, chosen in ((0.04, 2), (0.06, 0)):
        found = candidates(wells(1.0) * 3, [STATUS.unsatisfied, STATUS.unsatisfied, STATUS.satisfied])
        last = found.verdicts[2]
        found.verdicts[2] = last._replace(base_entropy=last.base_entropy - behind)
        assert ranked(found)[1].chosen == chosen


def test_two_guides_of_one_mode_each_are_mixed_by_the_modes_masses():
    both, restarts = ranked(candidates(wells(1.0, -1.0)))
    assert restarts.mixed
    u = np.linspace(-4, 4, 801)
    eta_mean, eta_depth = WELLS.multipliers
    mass = np.exp(-0.5 * u**2 - eta_mean * u - eta_depth * (u**2 - 1) ** 2)
    share = mass[u > 0].sum() / mass.sum()
    assert abs(restarts.shares[0] - share) < 0.05
    drawn = np.asarray(both.flows[0].sample(jax.random.key(3), (20_000,)))
    assert abs(np.mean(drawn > 0) - restarts.shares[0]) < 0.02
    assert both.verdicts[0].base_entropy > max(v.base_entropy for v in both.verdicts[1:])


def test_nothing_is_mixed_where_nothing_is_gained():
    _, restarts = ranked(candidates(wells(1.0, 1.0)))
    assert not restarts.mixed
    assert restarts.num_mixed == 1


def test_half_the_modes_are_named():
    restarts = epi.Restarts(
        chosen=0,
        corrected=np.array([-1.0, -1.0 - math.log(2), -1.02, -1.0 - math.log(3)]),
        standard_error=np.full(4, 0.01),
        statuses=("satisfied",) * 4,
        flows=(),
        shares=np.array([1.0, 0.0, 0.0, 0.0]),
        mixed=False,
    )
    assert [text.partition(",")[0] for text in restarts.lost_modes] == [
        "restart 1 is 0.69 nats lower",
        "restart 3 is 1.10 nats lower",
    ]
    assert "as if it had lost 2 of 3 equal modes" in str(restarts)


def test_mixture_is_the_weighted_sum_of_densities():
    members = wells(1.0, -0.5)
    mixture = epi.flows.mixture(members, np.array([3.0, 1.0]))
    u = jnp.linspace(-2, 2, 11)[:, None]
    expected = 0.75 * np.exp(members[0].log_prob(u)) + 0.25 * np.exp(members[1].log_prob(u))
    np.testing.assert_allclose(np.exp(mixture.log_prob(u)), expected, rtol=1e-4)


def test_mixture_wants_flows_of_one_kind():
    other = epi.flows.default(jax.random.key(0), 1)
    with pytest.raises(ValueError, match="Expected flows of one builder"):
        epi.flows.mixture([wells(1.0)[0], other], np.ones(2))
    with pytest.raises(ValueError, match="Expected one share for each flow"):
        epi.flows.mixture([], np.ones(0))


def test_number_of_restarts_is_checked():
    with pytest.raises(ValueError, match="Expected num_restarts to be an integer >= 1; got 0"):
        epi.fit(jax.random.key(0), WELLS.problem, num_restarts=0)
