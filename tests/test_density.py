"""The answer as a density: derivatives, modes, conditional draws and sensitive directions beside closed forms."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from chosen_problems import CHOSEN
from flowjax import bijections
from flowjax.distributions import StandardNormal, Transformed
from problems import EXACT
from scipy import stats

import numpyro_epi as epi
from numpyro_epi import Problem, _summits
from numpyro_epi._density import AbstractUnconstrained, Density, OfFlow, Tilted
from numpyro_epi.statistics import value


class Known(AbstractUnconstrained):
    """A NumPyro distribution of each site, with draws of its own."""

    problem: Problem
    distributions: dict

    def log_prob(self, unconstrained):
        draw = self.problem.simulator(jax.random.key(0), unconstrained)
        return sum(jnp.sum(d.log_prob(draw.sites[n])) for n, d in self.distributions.items()) + draw.log_det

    def draw(self, key, count):
        def one(key):
            return self.problem.simulator.unconstrain({n: d.sample(key) for n, d in self.distributions.items()})

        return jax.vmap(one)(jax.random.split(key, count))


def known(**distributions):
    """A density that is known, over parameters whose support is that of their prior."""

    def model():
        for name, (prior, _) in distributions.items():
            numpyro.sample(name, prior)

    targets = [
        epi.Target(value.bind(site=name), mean=jnp.zeros(prior.shape())) for name, (prior, _) in distributions.items()
    ]
    problem = Problem(model, epi.EmergentProperty(*targets))
    return Density(problem, Known(problem, {name: density for name, (_, density) in distributions.items()}))


# The density, where its derivatives are taken, and what they are.
ALPHA = np.array([2.0, 3.0, 4.0])
PLACE = np.array([0.2, 0.5, 0.3])
TANGENT = np.eye(3) - 1 / 3
DERIVATIVES = {
    "positive": (dist.LogNormal(0, 1), dist.Gamma(3.0, 2.0), 0.7, 2 / 0.7 - 2, -2 / 0.7**2),
    "interval": (
        dist.Uniform(0, 1),
        dist.Beta(3.0, 5.0),
        0.2,
        2 / 0.2 - 4 / 0.8,
        -2 / 0.2**2 - 4 / 0.8**2,
    ),
    "simplex": (
        dist.Dirichlet(np.ones(3)),
        dist.Dirichlet(ALPHA),
        PLACE,
        TANGENT @ ((ALPHA - 1) / PLACE),
        TANGENT @ np.diag(-(ALPHA - 1) / PLACE**2) @ TANGENT,
    ),
    "real": (
        dist.Normal(0, 1).expand([2]).to_event(1),
        # Made where it is used: in double precision.
        lambda: dist.MultivariateNormal(np.ones(2), precision_matrix=np.array([[2.0, 0.5], [0.5, 1.0]])),
        np.array([0.3, 2.0]),
        -np.array([[2.0, 0.5], [0.5, 1.0]]) @ (np.array([0.3, 2.0]) - 1),
        -np.array([[2.0, 0.5], [0.5, 1.0]]),
    ),
}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("prior", "density", "place", "gradient", "hessian"), DERIVATIVES.values(), ids=DERIVATIVES.keys()
)
def test_derivatives_are_those_of_closed_forms(prior, density, place, gradient, hessian):
    density = density() if inspect.isfunction(density) else density
    found = known(z=(prior, density))
    batch = {"z": np.stack([place, place])}
    np.testing.assert_allclose(found.log_prob({"z": place}), density.log_prob(place), rtol=1e-9)
    np.testing.assert_allclose(found.gradient(batch)["z"][1], gradient, rtol=1e-7)
    np.testing.assert_allclose(found.hessian(batch)["z"]["z"][0], hessian, rtol=1e-6, atol=1e-9)


def mixed_model():
    low = numpyro.sample("low", dist.Uniform(-1.0, 1.0))
    numpyro.sample("above", dist.Uniform(low, 3.0))
    numpyro.sample("share", dist.Dirichlet(np.ones(3)))
    numpyro.sample("rate", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("factor", dist.LKJCholesky(2, 1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_derivatives_are_difference_quotients_along_curves():
    """Along any curve z(t) of the support, log q has slope g.z' and curvature z'.H z' + g.z''; here of a flow."""
    problem = Problem(mixed_model, epi.EmergentProperty(epi.Target(value.bind(site="low"), mean=0.0)))
    flow = epi.flows.Coupling(num_stages=1, width=8, depth=1, initial_scale=1.0)(jax.random.key(4), problem.dim)
    density = Density(problem, OfFlow(flow))
    start, direction = np.random.default_rng(0).normal(size=(2, problem.dim))

    def at(t):
        return simulated(problem, jnp.asarray(start + t * direction))

    step = 1e-4
    places = [at(t) for t in (-step, 0.0, step)]
    low, here, high = (float(density.log_prob(place)) for place in places)
    gradient, hessian = density.gradient(places[1]), density.hessian(places[1])
    velocity = {n: (places[2][n] - places[0][n]) / (2 * step) for n in problem.simulator.names}
    bend = {n: (places[2][n] - 2 * places[1][n] + places[0][n]) / step**2 for n in problem.simulator.names}
    slope = sum(jnp.vdot(gradient[n], velocity[n]) for n in velocity)
    along = sum(
        jnp.vdot(jnp.ravel(velocity[a]), hessian[a][b].reshape(velocity[a].size, -1) @ jnp.ravel(velocity[b]))
        for a in velocity
        for b in velocity
    )
    assert slope == pytest.approx((high - low) / (2 * step), rel=1e-5)
    curvature = along + sum(jnp.vdot(gradient[n], bend[n]) for n in bend)
    assert curvature == pytest.approx((high - 2 * here + low) / step**2, rel=1e-4)


def test_names_are_those_of_flattened_sites():
    problem = Problem(mixed_model, epi.EmergentProperty(epi.Target(value.bind(site="low"), mean=0.0)))
    names = Density(problem, OfFlow(epi.flows.default(jax.random.key(0), problem.dim))).names
    assert names[:5] == ("low", "above", "share[0]", "share[1]", "share[2]")
    assert names[-1] == "factor[1,1]"


def exact_density(name):
    """The exact solution, with draws of the prior that are weighed for it."""
    exact = (EXACT | CHOSEN)[name]()
    problem = exact.problem
    draws = jax.vmap(problem.simulator.sample_prior)(jax.random.split(jax.random.key(0), 100_000))
    moments = jax.jit(jax.vmap(lambda u: problem.evaluate(jax.random.key(0), u).moments))(draws)
    log_weight = np.asarray(-(moments - problem.target) @ exact.multipliers, float)
    log_weight -= np.logaddexp.reduce(log_weight)
    return Density(problem, Tilted(problem, exact.multipliers, 0.0, draws, log_weight))


@pytest.mark.parametrize(
    ("name", "coordinates"),
    [
        pytest.param("oscillator_paper", [1], marks=pytest.mark.slow),
        pytest.param("ring", [], marks=pytest.mark.slow),
        pytest.param("four_corners", [0, 1], marks=pytest.mark.slow),
        ("double_well", [0]),
    ],
)
def test_modes_are_found_with_their_shares(name, coordinates):
    """Modes are told apart by the signs of these coordinates, and so are their shares of the weighted draws."""
    density = exact_density(name)
    modes = density.modes(jax.random.key(1))
    draws = jax.vmap(lambda u: jnp.ravel(next(iter(simulated(density.problem, u).values()))))(
        density.unconstrained.draws
    )
    signs, weight = np.asarray(draws)[:, coordinates] > 0, np.exp(density.unconstrained.log_weight)
    assert len(modes) == 2 ** len(coordinates)
    for mode in modes:
        side = np.ravel(next(iter(mode.values.values())))[coordinates] > 0
        share = weight[np.all(signs == side, axis=1)].sum()
        assert abs(mode.share - share) <= 5 * mode.standard_error + 1e-9
        assert not mode.at_edge


def simulated(problem, unconstrained):
    sites = problem.simulator(jax.random.key(0), unconstrained).sites
    return {name: sites[name] for name in problem.simulator.names}


def test_unequal_modes_and_their_summits():
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.8, 0.2])), dist.Normal(jnp.array([0.0, 6.0]), 1.0))
    large, small = known(z=(dist.Normal(0, 10), mixture)).modes(jax.random.key(0))
    assert abs(large.share - 0.8) < 5 * large.standard_error
    assert large.values["z"] == pytest.approx(0.0, abs=1e-3)
    assert small.values["z"] == pytest.approx(6.0, abs=1e-3)
    assert large.log_density == pytest.approx(np.log(0.8) + stats.norm.logpdf(0), abs=1e-4)


def test_small_dents_make_no_modes():
    """Two normals two and a half spreads apart: a dip of 0.13 nats between summits."""
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.array([0.0, 2.5]), 1.0))
    density = known(z=(dist.Normal(0, 10), mixture))
    assert len(density.modes(jax.random.key(0))) == 1
    assert len(density.modes(jax.random.key(0), depth=0.05)) == 2


class BumpyRing(AbstractUnconstrained):
    """Radius 3, spread 0.2, with three summits between which log density falls by 0.4."""

    problem: Problem

    def log_prob(self, unconstrained):
        x, y = unconstrained
        return -0.5 * ((jnp.hypot(x, y) - 3) / 0.2) ** 2 + 0.2 * jnp.cos(3 * jnp.arctan2(y, x))

    def draw(self, key, count):
        angle_key, radius_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, (count,), maxval=2 * jnp.pi)
        radius = 3 + 0.2 * jax.random.normal(radius_key, (count,))
        return radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def test_a_climb_that_ends_on_the_way_does_not_join_the_modes_beside_it():
    """Two summits with 0.4 nats between them, and a climb that ended at the bottom."""
    places = np.array([0.0, np.pi, 2 * np.pi])[:, None]
    limits = _summits.Limits.of(jnp.asarray(places, float))
    heights = 0.2 * np.cos(places[:, 0])
    for depth, count in ((0.3, 2), (0.5, 1)):
        labels = _summits.join(lambda u: 0.2 * jnp.cos(u[0]), places, heights, limits, depth)
        assert len(set(labels)) == count
        assert (labels[0] == labels[2]) == (count == 1)


def test_summits_that_a_higher_one_joins_are_joined_by_bent_ways_too():
    """Two groups on a ring, and a climb between them that ended lower than both; straight on, dips are deeper than round."""
    angles = np.concatenate([[0.0], 0.77 + 0.02 * np.arange(11), -0.77 - 0.02 * np.arange(11)])
    radius = np.r_[3.1265, np.full(22, 3.0)]
    places = radius[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])

    def height(u):
        return -0.5 * ((jnp.hypot(*u) - 3.0) / 0.2) ** 2

    heights = np.array([float(height(place)) for place in places])
    limits = _summits.Limits.of(jnp.asarray(places, float))
    assert len(set(_summits.join(height, places, heights, limits, 0.3))) == 1


@pytest.mark.slow
def test_summits_are_joined_by_ways_that_bend():
    """Straight lines between the summits pass 1.5 from the centre, 28 nats deep."""
    problem = EXACT["ring"]().problem
    density = Density(problem, BumpyRing(problem))
    (mode,) = density.modes(jax.random.key(0))
    assert mode.share == 1.0
    assert len(density.modes(jax.random.key(0), depth=0.2)) == 3


def test_difference_quotients_step_by_each_direction_s_own_spread():
    """Parameters a millionfold apart: a sine of the small one is followed, and the floor of the large one."""

    @epi.statistic(name="wave", differentiable=False)
    def wave(sites):
        return jnp.sin(sites["small"] / 1e-3) + jnp.floor(sites["large"])

    def model():
        numpyro.sample("small", dist.Normal(0.0, 1e-3))
        numpyro.sample("large", dist.Normal(0.0, 1e3))

    problem = Problem(model, epi.EmergentProperty(epi.Target(wave, mean=0.0)))
    known_draws = {"small": dist.Normal(0.0, 1e-3), "large": dist.Normal(0.0, 1e3)}
    found = Density(problem, Known(problem, known_draws)).sensitivity(jax.random.key(0), {"small": 0.0, "large": 0.5})
    along = dict(zip(np.argmax(np.abs(found["vector"].values), axis=1), found["response"].values[:, 0], strict=True))
    assert along[0] == pytest.approx(1e3, rel=0.01)
    assert along[1] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("prior", "density"),
    [(dist.Uniform(0, 1), dist.Beta(3.0, 1.0)), (dist.LogNormal(0, 1), dist.Exponential(2.0))],
    ids=["interval", "positive"],
)
def test_density_that_rises_towards_a_bound_has_no_summit(prior, density):
    (mode,) = known(z=(prior, density)).modes(jax.random.key(0))
    assert mode.at_edge


class FlatRidge(AbstractUnconstrained):
    """The box's diagonal, 0.5 wide and flat along it, as draws know it; the density has an error of 1.5 nats in one corner."""

    problem: Problem

    def log_prob(self, unconstrained):
        draw = self.problem.simulator(jax.random.key(0), unconstrained)
        exact = -0.5 * ((draw.sites["z"][0] - draw.sites["z"][1]) / 0.5) ** 2
        return exact + 1.5 * jnp.exp(-2.0 * jnp.sum((unconstrained - 6.0) ** 2)) + draw.log_det

    def draw(self, key, count):
        along_key, across_key = jax.random.split(key)
        along = jax.random.uniform(along_key, (count, 1), minval=-9.99, maxval=9.99)
        z = along + 0.5 * jax.random.normal(across_key, (count, 1)) * jnp.array([0.5, -0.5])
        return jax.vmap(lambda z: self.problem.simulator.unconstrain({"z": z}))(jnp.clip(z, -9.99, 9.99))


def test_a_mode_on_a_flat_ridge_is_not_where_the_density_errs_in_a_corner():
    """In unconstrained coordinates the corner is at 6, which is 9.95 of 10; a box's uniform draws seldom come there."""
    box = dist.Uniform(-10.0, 10.0).expand([2]).to_event(1)
    problem = known(z=(box, box)).problem
    density = Density(problem, FlatRidge(problem))
    assert float(density.log_prob({"z": np.array([9.95, 9.95])})) > float(density.log_prob({"z": np.zeros(2)})) + 1
    (mode,) = density.modes(jax.random.key(0))
    assert np.all(np.abs(mode.values["z"]) < 9.0)
    assert not mode.at_edge
    found = density.sensitivity(jax.random.key(0), mode.values)
    assert angle(found["vector"].values[0], [np.sqrt(0.5), -np.sqrt(0.5)]) < 1.0
    assert found["curvature"].values[0] == pytest.approx(-2 / 0.5**2, rel=0.05)


def wide_flow():
    """A normal of spread 3 on the logit scale: within the unit interval its density has summits at logits of -9 and 9."""
    problem = known(z=(dist.Uniform(0, 1), dist.Uniform(0, 1))).problem
    flow = Transformed(StandardNormal((1,)), bijections.Affine(jnp.zeros(1), jnp.full(1, 3.0)))
    return Density(problem, OfFlow(flow))


def test_summits_at_a_bound_are_at_the_edge():
    """``u / 9 = tanh(u / 2)``, at 8.998: the density has no slope there, and is 1.2e-4 from the bound."""
    modes = wide_flow().modes(jax.random.key(0))
    assert len(modes) == 2
    for mode in modes:
        assert min(mode.values["z"], 1 - mode.values["z"]) == pytest.approx(1.2e-4, rel=0.05)
        assert mode.at_edge


def test_sensitivity_at_a_bound_says_so():
    density = wide_flow()
    with pytest.warns(UserWarning, match="at a bound of the support, .* Look at a place inside, or at no place"):
        found = density.sensitivity(jax.random.key(0), {"z": 0.9999})
    assert "at a bound of the support" in found.attrs["where"]
    assert density.sensitivity(jax.random.key(0), {"z": 0.9}).attrs["where"] == "one place"


COVARIANCE = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.4], [-0.3, 0.4, 0.5]])
MEAN = np.array([1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def normal():
    return known(
        z=(dist.Normal(0, 5).expand([3]).to_event(1), dist.MultivariateNormal(MEAN, covariance_matrix=COVARIANCE))
    )


def conditional_normal(fixed):
    """Mean and covariance of the other two where the first has this value."""
    gain = COVARIANCE[1:, :1] / COVARIANCE[0, 0]
    mean = MEAN[1:] + gain[:, 0] * (fixed - MEAN[0])
    return mean, COVARIANCE[1:, 1:] - gain @ COVARIANCE[:1, 1:]


@pytest.mark.slow
def test_conditional_modes_follow_the_conditional_mean(normal):
    values = np.array([-1.0, 0.0, 2.0])
    path = normal.conditional_modes(jax.random.key(0), "z[0]", values)
    for fixed, mode in zip(values, path, strict=True):
        mean, _ = conditional_normal(fixed)
        np.testing.assert_allclose(mode.values["z"], [fixed, *mean], atol=2e-3)
        assert not mode.at_edge


@pytest.mark.slow
def test_conditional_draws_are_those_of_the_conditional_distribution(normal):
    draws = np.asarray(normal.condition(jax.random.key(0), {"z[0]": 2.0})["z"], float)
    assert draws.shape == (8, 500, 3)
    np.testing.assert_allclose(draws[..., 0], 2.0, rtol=1e-6)
    mean, covariance = conditional_normal(2.0)
    ess = numpyro.diagnostics.effective_sample_size(draws[..., 1:])
    error = np.abs(draws[..., 1:].mean(axis=(0, 1)) - mean) / np.sqrt(np.diag(covariance) / ess)
    assert np.all(error < 5)
    np.testing.assert_allclose(np.cov(draws[..., 1:].reshape(-1, 2).T), covariance, atol=0.12)


@pytest.mark.slow
def test_conditional_draws_keep_both_modes():
    density = exact_density("four_corners")
    draws = density.condition(jax.random.key(0), {density.names[0]: 1.0}, num_chains=32, num_samples=50)
    second = np.concatenate([np.asarray(v).reshape(32 * 50, -1) for v in draws.values()], axis=1)[:, 1]
    # The 32 chains began in either of two modes: their number is a coin's.
    assert abs(np.mean(second > 0) - 0.5) < 5 * 0.5 / np.sqrt(32)


def angle(first, second):
    return np.degrees(np.arccos(min(1.0, abs(float(np.dot(first, second))))))


def test_sensitive_directions_of_a_normal_are_its_axes(normal):
    """To one degree, at the mode from the Hessian and everywhere from the gradients."""
    eigenvalues, vectors = np.linalg.eigh(np.linalg.inv(COVARIANCE))
    for where in ({"z": MEAN}, None):
        found = normal.sensitivity(jax.random.key(0), where, num_draws=50_000)
        for i in range(3):
            own = vectors[:, ::-1][:, i]
            assert angle(found["vector"].values[i], own) < 1.0
            rtol = 1e-4 if where else 0.05
            np.testing.assert_allclose(found["curvature"].values[i], -eigenvalues[::-1][i], rtol=rtol)
        # The statistic is the parameter itself.
        np.testing.assert_allclose(found["response"].values, found["vector"].values, atol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_sensitivity_of_a_fit_is_the_property_s_and_not_the_flow_s_at_bounds(noise):
    """Of ``x = z_0 + noise e``, T = (x, x^2): g is ``-eta_0 - 2 eta_1 z_0`` along the first parameter and zero along the second.

    One simulation's g would have ``(2 eta_1 noise)^2`` more in its square.
    """

    def model():
        z = numpyro.sample("z", dist.Uniform(-1.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("spare", dist.Normal())
        e = numpyro.sample("e", dist.Normal()) if noise else 0.0
        numpyro.deterministic("x", z[0] + noise * e)

    prop = epi.EmergentProperty(
        epi.Target(epi.statistics.value.bind(site="x"), mean=0.2, name="x"),
        epi.Target(epi.statistics.square.bind(site="x"), mean=0.2, name="square"),
    )
    problem = epi.Problem(model, prop, parameters=("z",))
    # Narrower than the prior in unconstrained coordinates, so that its slope grows beyond all bounds at the box's.
    flow = Transformed(StandardNormal((2,)), bijections.Affine(jnp.zeros(2), jnp.full(2, 1.5)))
    eta = np.array([0.7, 1.3])
    found = Density(problem, OfFlow(flow), eta).sensitivity(jax.random.key(0))
    z = np.asarray(Density(problem, OfFlow(flow)).sample(jax.random.key(1), 100_000)["z"][:, 0], float)
    expected = np.mean((eta[0] + 2 * eta[1] * z) ** 2)
    # 2,000 draws, with noise two simulations each.
    assert found["curvature"].values[0] == pytest.approx(-expected, rel=0.05 if not noise else 0.3)
    assert found["curvature"].values[1] == pytest.approx(0.0, abs=1e-5)
    assert angle(found["vector"].values[0], [1.0, 0.0]) < 0.1
    own = Density(problem, OfFlow(flow)).sensitivity(jax.random.key(0))
    assert abs(own["curvature"].values[1]) > 1.0


def test_moved_targets_move_the_parameters_mean(normal):
    found = normal.target_response(jax.random.key(0))
    np.testing.assert_allclose(found["moment"].values, -COVARIANCE, atol=0.1)
    np.testing.assert_allclose(found["parameter_mean"].values, np.eye(3), atol=1e-5)


def test_response_is_that_of_the_mean_statistic_where_there_is_noise():
    """A statistic with noise of spread 3 has the response of its mean, 2."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("y", 2 * z + 3 * numpyro.sample("noise", dist.Normal(0.0, 1.0)))

    problem = Problem(model, epi.EmergentProperty(epi.Target(value.bind(site="y"), mean=0.0)), parameters=("z",))
    density = Density(problem, Known(problem, {"z": dist.Normal(0.0, 1.0)}))
    assert density.sensitivity(jax.random.key(0), {"z": 0.3})["response"].values == pytest.approx(2.0, abs=1e-5)
    found = density.target_response(jax.random.key(0))
    assert found["moment"].values == pytest.approx(-4.0, abs=0.7)
    assert found["parameter_mean"].values == pytest.approx(0.5, abs=0.05)


def test_response_of_a_step_is_a_difference_quotient():
    @epi.statistic(name="steps", differentiable=False)
    def steps(sites):
        return jnp.floor(50 * sites["z"]) / 50

    def model():
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    problem = Problem(model, epi.EmergentProperty(epi.Target(steps, mean=0.0)))
    density = Density(problem, Known(problem, {"z": dist.Normal(0.0, 1.0)}))
    assert density.sensitivity(jax.random.key(0), {"z": 0.3})["response"].values == pytest.approx(1.0, abs=0.11)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"y": 1.0}, r"Expected names among \['share', 'z', 'share\[0\]', 'share\[1\]'\]; got 'y'"),
        ({"share[0]": 0.1}, "Expected one number for a parameter whose support ties it to no other; got 'share"),
        ({"z": np.nan}, "Expected finite values; got 'z': nan"),
        ({"z": [1.0, 2.0]}, r"Expected 'z' of shape \(\); got \(2,\)"),
        ({"z": -1.0}, "Expected values inside the parameters' support; got {'z': -1.0}"),
        ({}, "Expected some parameters fixed and some free"),
        ({"z": 1.0, "share": [0.5, 0.5]}, "Expected some parameters fixed and some free"),
    ],
)
def test_what_cannot_be_fixed_is_named(fixed, message):
    flat = dist.Dirichlet(np.ones(2))
    density = known(share=(flat, flat), z=(dist.LogNormal(0, 1), dist.LogNormal(0, 1)))
    with pytest.raises(ValueError, match=message):
        density.conditional_mode(jax.random.key(0), fixed)


def test_draws_come_in_the_model_s_order():
    """And not in that of the alphabet, to which compiled programs sort names."""
    density = known(z=(dist.Normal(0, 1), dist.Normal(0, 1)), a=(dist.Normal(0, 1), dist.Normal(0, 1)))
    assert list(density.sample(jax.random.key(0), 3)) == ["z", "a"]


@pytest.mark.slow
def test_whole_sites_can_be_fixed():
    flat = dist.Dirichlet(np.ones(2))
    density = known(share=(flat, flat), z=(dist.LogNormal(0, 1), dist.Gamma(3.0, 2.0)))
    mode = density.conditional_mode(jax.random.key(0), {"share": [0.3, 0.7]})
    np.testing.assert_allclose(mode.values["share"], [0.3, 0.7], rtol=1e-5)
    assert mode.values["z"] == pytest.approx(1.0, abs=2e-3)


def test_wrong_counts_are_named(normal):
    with pytest.raises(ValueError, match="Expected num_starts to be an integer >= 1; got 0"):
        normal.modes(jax.random.key(0), num_starts=0)


def test_noisy_solutions_have_no_exact_density():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("y", z + numpyro.sample("noise", dist.Normal(0.0, 0.1)))

    problem = Problem(model, epi.EmergentProperty(epi.Target(value.bind(site="y"), mean=0.5)), parameters=("z",))
    solution = epi.solve_dual(jax.random.key(0), problem, method="reweight")
    with pytest.raises(ValueError, match="Expected a model without noise"):
        _ = solution.density


def test_models_without_forward_derivative_have_hessians():
    """Diffrax's backward pass allows none; the density of the parameters does not run through it."""

    @jax.custom_vjp
    def backward_only(z):
        return z

    backward_only.defvjp(lambda z: (z, None), lambda _, slope: (slope,))

    def model():
        z = numpyro.sample("z", dist.Uniform(0.0, 1.0))
        numpyro.deterministic("x", backward_only(z))

    problem = epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=0.3, name="x")))
    found = epi.solve_dual(jax.random.key(0), problem, method="reweight")
    flow = epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())(jax.random.key(0), 1)
    density = Density(problem, OfFlow(flow))
    # A standard normal's image under the logistic map: d2/dz2 log p in closed form, at the middle.
    step, place = 1e-2, {"z": jnp.array(0.5)}
    heights = density.log_prob({"z": jnp.array([0.5 - step, 0.5, 0.5 + step])})
    expected = (heights[0] - 2 * heights[1] + heights[2]) / step**2
    np.testing.assert_allclose(density.hessian(place)["z"]["z"], expected, rtol=2e-2)
    assert found.satisfied
