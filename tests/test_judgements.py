"""What decides whether an answer is believed: each test fails with a mistake that leaves every other test content."""

import math
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.integrate
import scipy.stats
from chosen_problems import CHOSEN
from flowjax.distributions import Normal
from test_arviz import export, network_problem

import numpyro_epi as epi
from numpyro_epi import _plan, _restarts
from numpyro_epi._certificate import Known, assess, assess_by_draws
from numpyro_epi._chain_settings import ChainSettings
from numpyro_epi._checkpoint import Keeper
from numpyro_epi._fresh import measure
from numpyro_epi._html import escape
from numpyro_epi._loop import partition
from numpyro_epi._outcome import STATUS
from numpyro_epi._path import Path
from numpyro_epi._restarts import Candidates, Fleet, rank
from numpyro_epi._seal import broken_seal, seal
from numpyro_epi._simulator import Simulator
from numpyro_epi._tilted import _log_tilted
from numpyro_epi.multipliers import Natural

WELLS = CHOSEN["double_well"]()
KEY = jax.random.key(0)


def normal(location, width):
    return Normal(jnp.array([location]), jnp.array([width]))


# Restarts and their mixture.


def test_restarts_are_ranked_by_the_entropy_relative_to_the_base():
    """The differential entropy of the worse guide is made larger; it has no say where the base is the prior."""
    flows = [normal(1.0, 0.22), normal(1.0, 0.5)]
    verdicts = [measure(WELLS.problem, flow, KEY, 10, 500).verdict() for flow in flows]
    verdicts[1] = verdicts[1]._replace(entropy=verdicts[1].entropy + 10.0)
    found = Candidates(flows, verdicts, [STATUS.satisfied] * 2)
    _, restarts = rank(KEY, WELLS.problem, found, WELLS.multipliers, measure_with=(10, 500))
    assert restarts.chosen == 0


def test_a_mixture_is_judged_on_draws_that_had_no_part_in_its_shares(monkeypatch):
    """Its gain beside the exact one, by quadrature, over many keys: on the draws that found the shares it is too large."""
    monkeypatch.setattr(_restarts, "MIXTURE_DRAWS", 8)
    locations = np.array([-0.3, -0.1, 0.1, 0.3])
    members, corrected = [normal(location, 1.0) for location in locations], np.zeros(4)
    grid = np.linspace(-7.0, 7.0, 2001)
    density = scipy.stats.norm.pdf(grid, locations[:, None])

    def exact(shares):
        mixture = np.log(shares @ density)
        return shares @ scipy.integrate.trapezoid(density * (np.log(density) - mixture), grid, axis=1)

    found = [_restarts._mixture_shares(key, members, corrected) for key in jax.random.split(KEY, 60)]
    excess = np.array([gain - exact(shares) for shares, gain in found if np.count_nonzero(shares) > 1])
    assert len(excess) > 30
    assert excess.mean() < 4 * excess.std() / math.sqrt(len(excess))


# The verdict and the certificate.


def test_a_mean_on_its_target_passes_only_where_enough_draws_say_so():
    """A 95 % interval of 100 draws is 0.2 standard deviations to either side, of 10,000 draws 0.02."""
    few, many = (measure(WELLS.problem, normal(1.0, 0.22), KEY, count, 100).verdict() for count in (1, 100))
    assert not np.any(few.satisfies(few.mean, 0.05))
    assert np.all(many.satisfies(many.mean, 0.05))


def told(*, ess=1000.0, khat=0.2):
    """A certificate of a guide that is exact but for 0.01 nats, by draws of this worth."""
    flow, eta = normal(1.0, 0.22), np.zeros(len(WELLS.problem.target))
    verdict = measure(WELLS.problem, flow, KEY, 20, 500).verdict()
    draws = flow.sample(KEY, (500,))
    log_density = np.asarray(flow.log_prob(draws), float)
    known = Known(log_density, verdict.base_entropy + 0.01, 1 / ess, ess, khat, 1000)
    return assess_by_draws(WELLS.problem, flow, verdict, draws, eta, known)


@pytest.mark.parametrize("worth", [{"khat": 1.0}, {"ess": 50.0}], ids=["uneven", "few"])
def test_weights_that_say_little_are_not_believed(worth):
    assert told().verdict.startswith("Optimal within")
    assert told(**worth).verdict.startswith("Cannot tell: the importance weights are too uneven")


def test_the_distance_that_is_vouched_for_has_its_error_added():
    found = told(ess=150.0)
    within = float(re.search(r"Optimal within ([\d.e+-]+) nats", found.verdict).group(1))
    # 1 / sqrt(150) alone is 0.08.
    assert found.standard_error > 0.08
    assert within > found.gap + 1.8 * found.standard_error


def test_uneven_weights_count_for_fewer_draws():
    """A guide of one well out of two, and the prior: half of the prior's draws lie where the solution has next to no mass."""
    certificate = assess(KEY, WELLS.problem, normal(1.0, 0.22), WELLS.multipliers, num_draws=1000)
    assert 100 < certificate.ess < 0.8 * 2000


def test_exported_weights_say_how_many_draws_they_are_worth():
    weights = export(network_problem(), num_chains=2, num_draws=50)["sample_stats"]["log_weight"]
    assert weights.attrs["ess"] == pytest.approx(1 / np.sum(np.exp(2 * weights.values)), rel=1e-3)
    assert weights.attrs["ess"] < 90


# The run.


class Enough(Exception):
    """The run's first looks are all that is wanted."""


def test_every_look_at_a_run_takes_draws_of_its_own(monkeypatch):
    keys, known = [], []

    def remember(problem, flow, key, *size):
        keys.append(tuple(np.asarray(jax.random.key_data(key))))
        known.append(known[0] if known else measure(problem, flow, key, 1, 10))
        return known[-1]

    def look(fleet, run, max_steps, judge, *_, **__):
        keys.clear()
        for number in range(3):
            judge(fleet.split(run.state), number)
        raise Enough

    monkeypatch.setattr(_plan, "measure", remember)
    monkeypatch.setattr(_plan, "run_chunks", look)
    builder = epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())
    with pytest.raises(Enough):
        epi.fit(KEY, WELLS.problem, start=epi.starts.Prior(), flow=builder, num_draws=10, max_steps=100, progress=False)
    assert len(keys) == len(set(keys)) == 3


def test_a_guide_is_the_average_of_the_last_steps():
    """Parameters that move by 0.01 a step: the average over about four lags behind them by a known part."""

    def drift(gradient, state, parameters=None):
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), gradient), state

    steps, memory = 10, 4
    optimizer = optax.GradientTransformation(lambda parameters: (), drift)
    objective = epi.objectives.default(WELLS.problem)
    settings = _plan._Settings(WELLS.problem, objective, Natural(steps_per_epoch=1), optimizer, 20, 0, memory)
    keys = jax.random.split(KEY, 5)
    loop, state, _ = settings.begin(normal(1.0, 0.5), SimpleNamespace(eta=None, covariance=None), keys, is_known=True)
    first = state.parameters
    state, _ = loop.run_epochs(state, steps)
    average = 0.0
    for step in range(1, steps + 1):
        average += (0.01 * step - average) / min(step, memory)
    (guide,) = Fleet.of([loop]).flows([state])
    for begun, found in zip(jax.tree.leaves(first), jax.tree.leaves(partition(guide)[0]), strict=True):
        np.testing.assert_allclose(found - begun, average, rtol=1e-3)
    assert average < 0.01 * steps - 0.02


# Noise.


def noisy(spread):
    """A normal parameter, and a statistic that is its noise alone."""

    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.deterministic("y", 0.0 * z + spread * numpyro.sample("noise", dist.Normal(0.0, 1.0)))

    wanted = epi.EmergentProperty(epi.Target(epi.statistics.value.bind(site="y"), mean=0.0))
    return epi.Problem(model, wanted, parameters=("z",))


def test_moments_of_noisy_chains_are_measured_with_fresh_noise():
    """The noise that a chain keeps is chosen: its mean is near -eta times the variance of the mean of two, -1; others' is 0."""
    settings = ChainSettings(num_chains=64, num_leapfrog=2, num_transitions=2, num_draws=20, num_simulations=2)
    path = Path(noisy(1.0), settings)
    chains, _ = path.start(KEY)
    chains = chains._replace(eta=jnp.array([2.0]), reference=jnp.zeros_like(chains.reference))
    chains, record = path.sample(chains, jax.random.key(1))
    assert float(jnp.mean(path.measure(chains).moments)) < -0.4
    assert abs(float(jnp.mean(record.moments[5:]))) < 5 * math.sqrt(0.5 / (15 * 64))


def test_tilted_density_is_right_on_average_over_its_noise():
    """Noise of the mean of 32 has variance 16 / 32 in the exponent, and would make the density exp(1/4) times too large."""
    result = SimpleNamespace(problem=noisy(4.0), eta=np.array([1.0]), status_name="satisfied")
    log_tilted = _log_tilted(result, 32)
    found = jax.jit(jax.vmap(log_tilted, (0, None)))(jax.random.split(KEY, 20_000), jnp.zeros(1))
    ratio = np.exp(np.asarray(found, float) - scipy.stats.norm.logpdf(0.0))
    assert ratio.mean() == pytest.approx(1.0, abs=5 * ratio.std() / math.sqrt(len(ratio)))


def test_a_handler_s_scale_is_part_of_the_prior():
    def model():
        with numpyro.handlers.scale(scale=3.0):
            numpyro.sample("z", dist.Normal(1.0, 2.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    draw = Simulator(model).simulate(KEY, {"z": jnp.array(0.5), "x": jnp.array(0.2)})
    expected = 3 * scipy.stats.norm.logpdf(0.5, 1.0, 2.0) + scipy.stats.norm.logpdf(0.2)
    assert float(draw.log_prior) == pytest.approx(expected, rel=1e-5)


# Files.


def test_a_checkpoint_is_the_very_file_that_was_flushed(tmp_path, monkeypatch):
    """A copy of it could be cut off half-way by a power cut."""
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino) or fsync(handle))
    path = tmp_path / "run.ckpt"
    with Keeper(path, 0.0, new=True) as keeper:
        for number in range(2):
            flushed.clear()
            keeper.save({"number": number}, {"x": np.arange(3.0)}, now=True)
            assert path.stat().st_ino in flushed
    assert not (tmp_path / "run.ckpt.writing").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_damage_far_into_a_file_is_found(kind, tmp_path):
    path = tmp_path / "saved.nc" if kind == "file" else tmp_path / "saved.zarr"
    data = path if kind == "file" else path / "chunk"
    data.parent.mkdir(exist_ok=True)
    data.write_bytes(bytes(3 * 2**20))
    seal(path)
    assert broken_seal(path) == ""
    with data.open("r+b") as file:
        file.seek(5 * 2**19)
        file.write(b"\1")
    assert "is not what was saved" in broken_seal(path)


def test_escaped_text_ends_no_attribute():
    assert escape("\"'<>&") == "&quot;&#x27;&lt;&gt;&amp;"
