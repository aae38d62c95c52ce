"""A dual solve that was killed is resumed by the same call, to the same digits; its solution draws, evaluates and saves."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

import numpyro_epi as epi
from numpyro_epi import _checkpoint, _journal
from numpyro_epi._kept import kept

KEY = jax.random.key(5)
SETTINGS = epi.ChainSettings(num_chains=64, num_updates=20, num_transitions=4, num_draws=4, max_rounds=4)


@epi.statistic()
def total(sites):
    return jnp.sum(sites["x"])


def problem(mean=0.5, noise=False):
    """Two independent normals whose sum is moved: a normal of mean (mean / 2, mean / 2) and unit covariance."""

    def cloud():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        if noise:
            numpyro.sample("y", dist.Normal(x[0], 1.0))

    parameters = ("x",) if noise else None
    return epi.Problem(cloud, epi.EmergentProperty(epi.Target(total, mean=mean)), parameters=parameters, num_draws=20)


def solve(checkpoint=None, **options):
    return epi.solve_dual(
        options.pop("key", KEY),
        options.pop("problem", problem()),
        **{"settings": SETTINGS, "checkpoint": checkpoint, "every": 0.0, **options},
    )


def assert_same(found, expected):
    for name in (
        "eta",
        "standard_error",
        "unconstrained",
        "moments",
        "log_weight",
        "log_normalizer",
        "num_simulations",
    ):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.verdict.entropy == expected.verdict.entropy
    assert found.status is expected.status


@pytest.fixture(scope="module")
def whole():
    return solve()


@pytest.fixture
def steps(monkeypatch):
    """Names of the steps that are computed."""
    found = []
    step = _journal.Journal.step

    def noted(self, function, args):
        def computed(*args):
            found.append(getattr(function, "__name__", str(function)))
            return function(*args)

        # What is read is asked for its shape alone.
        return step(self, function if f"start.{self._number}.0" in self.arrays else computed, args)

    monkeypatch.setattr(_journal.Journal, "step", noted)
    return found


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is saved on the way out."""


def killed_after(count, path, monkeypatch, **options):
    left, save = [count], _checkpoint.Keeper.save

    def save_and_die(self, *arguments, **more):
        if left[0] == 0:
            raise Killed
        save(self, *arguments, **more)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint.Keeper, "save", save_and_die)
        with pytest.raises(Killed):
            solve(path, **options)


def test_a_killed_solve_is_resumed_to_the_same_digits(tmp_path, monkeypatch, whole, steps):
    path = tmp_path / "dual.ckpt"
    killed_after(2, path, monkeypatch)
    assert len(steps) == 2
    resumed = solve(path)
    assert_same(resumed, whole)
    num_steps = len(steps)
    # The two steps before were not taken again, and nothing is once the run is done.
    assert num_steps > 2
    assert_same(solve(path), whole)
    assert len(steps) == num_steps
    assert {each.name for each in tmp_path.iterdir()} <= {f"dual.ckpt{suffix}" for suffix in ("", ".previous", ".lock")}


def test_time_is_that_of_all_calls(tmp_path):
    path = tmp_path / "dual.ckpt"
    first = solve(path, method="reweight", settings=None)
    saved = _checkpoint.read(path, "solve_dual").about["seconds"]
    second = solve(path, method="reweight", settings=None)
    assert first.seconds <= saved < second.seconds


@pytest.mark.slow
def test_an_interrupted_solve_keeps_what_it_has(tmp_path, monkeypatch, whole):
    path = tmp_path / "dual.ckpt"
    step = _journal.Journal.step

    def interrupted(self, *args):
        if self._number == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_journal.Journal, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solve(path, every=1e6)
    assert {name.split(".")[1] for name in _checkpoint.read(path, "solve_dual").arrays} == {"0"}
    assert_same(solve(path), whole)


@pytest.fixture
def done(tmp_path):
    path = tmp_path / "dual.ckpt"
    solve(path, method="reweight", settings=None)
    return path


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"key": jax.random.key(6)}, "Expected the key that .*dual.ckpt was made with; got another one"),
        ({"problem": problem(mean=0.25)}, r"Expected the problem that .*dual.ckpt was made for, targets \[0.5\]"),
        ({"method": "chains"}, "Expected method=reweight, as .*dual.ckpt was made with; got chains"),
        ({"settings": SETTINGS}, "Expected settings=None, as .*dual.ckpt was made with; got ChainSettings"),
    ],
)
def test_another_run_is_refused(done, changed, match):
    before = done.read_bytes()
    with pytest.raises(ValueError, match=match):
        solve(done, **{"method": "reweight", "settings": None, **changed})
    assert done.read_bytes() == before


def test_each_function_resumes_its_own(done, tmp_path):
    with pytest.raises(
        ValueError, match="Expected a checkpoint of fit; .*dual.ckpt is one of solve_dual, and the same call"
    ):
        epi.resume(done, problem())
    about = {**_checkpoint.read(done, "solve_dual").about, "run": "fit"}
    _checkpoint._write(tmp_path / "fit.ckpt", {n: v for n, v in about.items() if n != "names"}, {})
    with pytest.raises(
        ValueError, match="Expected a checkpoint of solve_dual; .*fit.ckpt is one of fit, and epi.resume"
    ):
        solve(tmp_path / "fit.ckpt")


def test_a_damaged_checkpoint_is_refused(done):
    content = bytearray(done.read_bytes())
    content[-100] ^= 1
    done.write_bytes(content)
    done.with_name("dual.ckpt.previous").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="its checksum says that it is damaged"):
        solve(done)


@pytest.mark.parametrize("changed", [{"versions": 3}, {"problem": []}, {"options": None}, {"seconds": "x" * 9}])
def test_what_a_checkpoint_says_is_checked(done, changed):
    saved = _checkpoint.read(done, "solve_dual")
    about = {name: value for name, value in saved.about.items() if name != "names"} | changed
    _checkpoint._write(done, about, saved.arrays)
    with pytest.raises(ValueError, match="dual.ckpt|could not convert"):
        solve(done, method="reweight", settings=None)


def test_one_solve_at_a_time(tmp_path):
    path = tmp_path / "dual.ckpt"
    with (
        kept(path, 0.0, "solve_dual", KEY, problem(), {}),
        pytest.raises(ValueError, match="Expected a checkpoint that no run is writing"),
    ):
        solve(path)


@pytest.fixture(scope="module")
def solution():
    return epi.solve_dual(KEY, problem(), method="reweight")


def test_samples_are_drawn_by_weight(solution):
    found = solution.sample(jax.random.key(0), (4, 5000))
    assert found["x"].shape == (4, 5000, 2)
    x = np.asarray(found["x"], float).reshape(-1, 2)
    # Unweighted draws have the mean 0; the standard error of a mean is 1 / sqrt(20,000).
    np.testing.assert_allclose(x.mean(axis=0), 0.25, atol=5 / np.sqrt(len(x)))
    np.testing.assert_allclose(np.cov(x.T), np.eye(2), atol=0.05)
    assert solution.sample(jax.random.key(0), 3)["x"].shape == (3, 2)
    assert solution.sample(jax.random.key(0))["x"].shape == (2,)


def test_log_density_is_that_of_the_exact_solution(solution):
    x = np.random.default_rng(0).normal(size=(3, 4, 2))
    expected = scipy.stats.multivariate_normal([0.25, 0.25], np.eye(2)).logpdf(x)
    np.testing.assert_allclose(solution.log_prob({"x": x}), expected, atol=0.02)


def test_a_noisy_model_has_samples_and_no_density():
    noisy = epi.solve_dual(KEY, problem(noise=True), method="reweight")
    assert noisy.sample(jax.random.key(0), 7)["x"].shape == (7, 2)
    with pytest.raises(ValueError, match=r"Expected a model without noise; got the noise sites \['y'\]"):
        noisy.log_prob({"x": np.zeros(2)})


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.filterwarnings("ignore:\\nArviZ is undergoing a major refactor:FutureWarning")
def test_a_solution_is_saved_as_a_result_is(whole, tmp_path, suffix):
    path = tmp_path / f"dual{suffix}"
    whole.save(path)
    found = epi.read_arviz(path)
    np.testing.assert_allclose(found["posterior"]["x"], whole.draws()["x"], rtol=1e-6)
    np.testing.assert_allclose(found["sample_stats"]["log_weight"], whole.log_weight)
    assert found.attrs["log_normalizer"] == whole.log_normalizer
    with pytest.raises(FileExistsError, match="Expected an output that does not exist; got .*dual"):
        whole.save(path)
    whole.save(path, overwrite=True)
    with pytest.raises(ValueError, match="ends in .nc"):
        whole.save(tmp_path / "dual.csv")
