"""A run that was killed and resumed ends at the very same numbers; what cannot be resumed is refused and said so."""

import hashlib
import io
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import numpyro_epi as epi
from numpyro_epi import ChainSettings, _checkpoint, _chunks, _fit, _journal, _plan, _stop
from numpyro_epi._method import Method

KEY = jax.random.key(3)


class Killed(Exception):
    """Stands for a SIGKILL at the end of a chunk."""


def cloud(width=1.0):
    numpyro.sample("x", dist.Normal(0, width).expand([2]).to_event(1))


@epi.statistic()
def total(sites):
    return jnp.sum(sites["x"])


def problem(mean=0.5, width=1.0):
    return epi.Problem(
        cloud,
        epi.EmergentProperty(epi.Target(total, mean=mean, std=0.5)),
        model_kwargs={"width": width},
        num_draws=20,
        max_steps=100,
    )


# A small flow: what is compiled for the default one takes most of a test.
METHOD = {"start": epi.starts.Prior(), "flow": epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine())}
OPTIONS = {**METHOD, "certify": False, "progress": False}


def killed_after(chunks, path, monkeypatch, **options):
    """A fit that dies after so many checkpoints, the one before the first step included."""
    left = [chunks]
    save = _checkpoint.Keeper.save

    def save_and_die(self, *arguments, **more):
        save(self, *arguments, **more)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint.Keeper, "save", save_and_die)
        with pytest.raises(Killed):
            epi.fit(KEY, problem(), checkpoint=path, every=0.0, **OPTIONS | options)


def assert_same(found, expected):
    for one, other in zip(jax.tree.leaves(found.flow), jax.tree.leaves(expected.flow), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.eta, expected.eta)
    np.testing.assert_array_equal(found.verdict.mean, expected.verdict.mean)
    assert found.verdict.entropy == expected.verdict.entropy
    assert found.status is expected.status
    assert found.records.keys() == expected.records.keys()
    for name in found.records:
        np.testing.assert_array_equal(found.records[name], expected.records[name])


@pytest.fixture(scope="module")
def whole():
    return epi.fit(KEY, problem(), **OPTIONS)


@pytest.mark.parametrize("chunks", [1, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5))])
def test_a_killed_run_ends_at_the_same_numbers(chunks, tmp_path, monkeypatch, whole):
    path = tmp_path / "run.ckpt"
    killed_after(chunks, path, monkeypatch)
    resumed = epi.resume(path, problem(), **METHOD, progress=False)
    assert_same(resumed, whole)


SHORT = ChainSettings(num_chains=64, num_updates=20, num_transitions=4, num_draws=4, max_rounds=4)
SEARCHES = {
    "chains": epi.starts.Chains(settings=SHORT, tolerance=10.0),
    "weighed": epi.starts.Pilot(num_draws=20, batch=100, num_weighed=50, max_simulations=2000),
}


@pytest.mark.parametrize("name", [pytest.param("chains", marks=pytest.mark.slow), "weighed"])
def test_a_run_killed_in_its_start_repeats_none_of_its_steps(name, tmp_path, monkeypatch):
    path, chosen = tmp_path / "run.ckpt", {"start": SEARCHES[name]}
    expected = epi.fit(KEY, problem(), **OPTIONS | chosen)
    killed_after(2, path, monkeypatch, **chosen)
    kept = _checkpoint.read(path)
    assert "begin" not in kept.about
    assert {name.split(".")[1] for name in kept.arrays} == {"0", "1"}
    found = []
    read = _journal.Journal._read
    monkeypatch.setattr(_journal.Journal, "_read", lambda self, *args: found.append(args[0]) or read(self, *args))
    assert_same(epi.resume(path, problem(), **METHOD | chosen, progress=False), expected)
    assert found == ["start.0.", "start.1."]


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_stopped_in_its_start_leaves_a_checkpoint_and_says_so(name, tmp_path, monkeypatch):
    path, chosen = tmp_path / "run.ckpt", {"start": SEARCHES["weighed"]}
    step = _journal.Journal.step

    def step_and_signal(self, *args):
        if self._number == 1:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(_journal.Journal, "step", step_and_signal)
        with pytest.raises(
            KeyboardInterrupt, match=rf"{name} before the first step; epi.resume\('.*run.ckpt'\)"
        ) as stop:
            epi.fit(KEY, problem(), checkpoint=path, every=1e6, **OPTIONS | chosen)
    assert stop.value.signal_name == name
    assert {name.split(".")[1] for name in _checkpoint.read(path).arrays} == {"0", "1"}


def test_steps_of_another_start_are_refused():
    def step(size):
        return jnp.zeros(size)

    with _journal.Journal({}, lambda arrays: None) as journal:
        _journal.remembered(step, 3)
    with _journal.Journal(journal.arrays, lambda arrays: None):
        np.testing.assert_array_equal(_journal.remembered(step, 3), np.zeros(3))
    with (
        _journal.Journal(journal.arrays, lambda arrays: None),
        pytest.raises(
            ValueError, match=r"Expected the start that the run was given; step 0.0 .* is \(3,\), not \(4,\)"
        ),
    ):
        _journal.remembered(step, 4)


def test_steps_beyond_the_journal_s_size_are_not_kept(monkeypatch):
    monkeypatch.setattr(_journal, "MOST_BYTES", 100)
    with _journal.Journal({}, lambda arrays: None) as journal:
        for size in (10, 1000, 10):
            assert _journal.remembered(np.zeros, size).shape == (size,)
    assert list(journal.arrays) == ["start.0.0"]


def test_checkpoints_change_nothing(tmp_path, whole):
    assert_same(epi.fit(KEY, problem(), checkpoint=tmp_path / "run.ckpt", every=0.0, **OPTIONS), whole)


def test_snapshots_are_resumed_too(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    killed_after(3, path, monkeypatch, num_snapshots=4)
    resumed = epi.resume(path, problem(), **METHOD, progress=False)
    expected = epi.fit(KEY, problem(), num_snapshots=4, **OPTIONS).snapshots
    for one, other in zip(jax.tree.leaves(resumed.snapshots), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_restarts_are_resumed_together(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    killed_after(3, path, monkeypatch, num_restarts=2)
    resumed = epi.resume(path, problem(), **METHOD, progress=False)
    assert_same(resumed, epi.fit(KEY, problem(), num_restarts=2, **OPTIONS))
    assert len(resumed.restarts.flows) == 2


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    epi.fit(KEY, problem(), checkpoint=path, every=0.0, **OPTIONS)
    return path.read_bytes(), path.with_name("run.ckpt.previous").read_bytes()


def test_a_registered_problem_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(epi._problem._REGISTRY, "get", lambda name: lambda mean=0.5: problem(mean=mean))
    path = tmp_path / "run.ckpt"
    asked = epi.get_problem("here.cloud", mean=0.25)
    assert asked.origin == ("here.cloud", '{"mean": 0.25}')
    plans = []
    monkeypatch.setattr(_plan.Plan, "run", lambda plan, *_, **__: plans.append(plan))
    arrays = {"begin.draws": np.zeros((3, 2), np.float32)}
    wanted = _plan.Plan(
        KEY,
        asked,
        Method(epi.flows.default, None, None, epi.multipliers.Natural(), None),
        20,
        100,
        1,
        0.1,
        None,
        0.05,
        0,
    )
    start = {"fit_draws": False, "message": "here", "log_normalizer": None, "infeasible": None}
    start |= {"ess": None, "times_solved": 0, "num_simulations": 0}
    with _checkpoint.Keeper(path, 0.0, new=True) as keeper:
        keeper.save({**wanted.about(), "begin": start, "chunks": 0, "attempt": 0, "seconds": 1.0, "looked": {}}, arrays)
    epi.resume(path)
    assert plans[0].problem.target[0] == 0.25
    assert plans[0].about() == wanted.about()


def test_an_unregistered_problem_has_to_be_passed(tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with pytest.raises(ValueError, match=r"it was not built by get_problem, so pass it: resume\(path, problem\)"):
        epi.resume(path)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"mean": 0.6}, {}, r"targets \[0.5, 0.25\]; got targets \[0.6, 0.25\]"),
        ({"width": 2.0}, {}, "one whose model or statistics have changed"),
        ({}, {"start": None}, "Expected start=Prior.*got None"),
        ({}, {"rule": epi.multipliers.Natural(steps_per_epoch=10)}, "Expected rule=Natural"),
        ({}, {"objective": epi.objectives.Pathwise()}, "Expected objective=None"),
        ({}, {"optimizer": optax.sgd(0.1)}, "Expected optimizer=the default.*got one that was given"),
        ({}, {"flow": epi.flows.Elementwise()}, "Expected flow="),
        ({}, {"flow": epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine(0.5))}, "Expected flow="),
    ],
)
def test_another_question_or_method_is_refused(changed, options, message, tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with pytest.raises(ValueError, match=message):
        epi.resume(path, problem(**changed), **METHOD | {"progress": False} | options)


DRAWS = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    ("name", "one", "same", "other"),
    [
        ("optimizer", optax.adam(1e-3), optax.adam(1e-3), optax.adam(1e-1)),
        ("optimizer", *(optax.sgd(optax.cosine_decay_schedule(0.1, n)) for n in (100, 100, 200))),
        ("start", *(epi.starts.Gaussian(mean=mean) for mean in (-1.0, -1.0, 2.0))),
        ("objective", *(epi.objectives.Anchored(epi.objectives.Pathwise(), DRAWS + x, 1.0) for x in (0, 0, 1))),
    ],
    ids=["rate", "schedule", "numbers", "draws"],
)
def test_a_method_is_known_by_its_numbers(name, one, same, other):
    method = Method(epi.flows.default, None, None, epi.multipliers.Natural(), None)
    first, again, changed = (method._replace(**{name: given}).described() for given in (one, same, other))
    assert first == again
    assert first != changed


@pytest.mark.parametrize(
    ("module", "name", "value", "changed"),
    [
        (_checkpoint, "version", lambda name: "0.0", r"jax .* -> 0.0"),
        (_checkpoint, "_device", lambda: "another", "device .* -> another"),
        (jax, "default_backend", lambda: "tpu", "platform cpu -> tpu"),
    ],
    ids=["versions", "device", "platform"],
)
def test_another_machine_is_said(module, name, value, changed, tmp_path, two_checkpoints, monkeypatch):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    wanted = _checkpoint.describe(problem(), _checkpoint.read(path).about["options"])
    monkeypatch.setattr(module, name, value)
    found = _checkpoint.describe(problem(), wanted["options"])
    with pytest.warns(UserWarning, match=rf"made under other versions \(.*{changed}.*may not end at the same digits"):
        _checkpoint.compare(_checkpoint.read(path), found)


def test_another_width_of_numbers_is_refused(tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match="Expected jax_enable_x64=False, as .*run.ckpt was made with; got True"),
    ):
        epi.resume(path, problem(), **METHOD, progress=False)


def sealed(about, arrays=b""):
    """What only somebody who means it writes: nonsense under a right checksum."""
    body = about + b"\n" + arrays
    return _checkpoint.MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def packed(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        sealed(b""),
        sealed(b"{}", packed()),
        sealed(b"[]", packed(array_0=DRAWS)),
        sealed(b'{"names": ["a"]}', packed()),
        sealed(b'{"names": []}', packed(a=DRAWS)),
        sealed(b"[" * 100_000, packed()),
        sealed(b'{"names": ["a"]}', packed(array_0=DRAWS)[:-30]),
        sealed(b'{"names": ["a"]}', packed(array_0=np.zeros(10**8, np.int8))),
        sealed(b'{"names": ["a"]}', packed(array_0=np.array([print], object))),
    ],
    ids=["empty", "nothing", "a list", "missing", "few words", "deep", "cut archive", "huge", "pickle"],
)
def test_a_stranger_s_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Expected a checkpoint in .*run.ckpt; it cannot be read"):
        epi.resume(path, problem())


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": 3},
        {"numbers": {"num_draws": -1}},
        {"numbers": {"num_draws": "many", "max_steps": 1, "num_restarts": 1}},
        {"key": "zero"},
        {"seconds": "long"},
        {"versions": 3},
        {"problem": []},
        {"begin": []},
        {"begin": {"message": ""}},
    ],
    ids=str,
)
def test_what_a_stranger_s_checkpoint_says_is_checked(changed, tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    about, arrays, _ = _checkpoint.read(path)
    _checkpoint._write(path, {**about, **changed}, arrays)
    with pytest.raises(ValueError, match="Expected a checkpoint in .*run.ckpt; it cannot be read"):
        epi.resume(path, problem(), **METHOD, progress=False)


def test_only_a_problem_is_resumed(tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with pytest.raises(TypeError, match=r"Expected a Problem; got function. Write resume\(checkpoint, Problem"):
        epi.resume(path, cloud)


def test_other_files_are_never_cleared(tmp_path, two_checkpoints):
    path = tmp_path / "thesis.txt"
    path.write_text("years of work")
    with pytest.raises(ValueError, match=r"Expected a checkpoint to replace; .*thesis.txt is none, so it stays"):
        _checkpoint.clear(path)
    assert path.read_text() == "years of work"
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with (
        _checkpoint.Keeper(path, 0.0, new=False),
        pytest.raises(ValueError, match="Expected a checkpoint that no run is writing"),
    ):
        _checkpoint.clear(path)
    assert path.exists()
    path.with_name("run.ckpt.previous").write_bytes(two_checkpoints[1])
    _checkpoint.clear(path)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_folders_that_take_no_checkpoint_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Expected a file for the checkpoint; got the folder"):
        epi.fit(KEY, problem(), checkpoint=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="Expected a file for the checkpoint; got '', which names none"):
        epi.fit(KEY, problem(), checkpoint="", **OPTIONS)
    if os.path.isdir("/proc/self"):
        # The one folder that takes no files from a superuser either.
        with pytest.raises(
            PermissionError, match="Expected a folder that can be written, for the checkpoint; got /proc"
        ):
            epi.fit(KEY, problem(), checkpoint="/proc/self/run.ckpt", **OPTIONS)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(PermissionError, match="Expected a folder that can be written, for the checkpoint"):
        epi.fit(KEY, problem(), checkpoint=tmp_path / "run.ckpt", **OPTIONS)


def test_every_byte_counts(tmp_path, two_checkpoints):
    """200 files cut off or with one bit turned, each of them refused, and none of them unpickled or half read."""
    newest, _ = two_checkpoints
    rng = np.random.default_rng(0)
    path = tmp_path / "run.ckpt"
    for trial in range(200):
        place = int(rng.integers(len(newest)))
        broken = bytearray(newest)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(newest[:place] if trial % 2 else bytes(broken))
        with pytest.raises(ValueError, match="run.ckpt"):
            _checkpoint.read(path)


def test_the_one_before_stands_in(tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0][:1000])
    path.with_name("run.ckpt.previous").write_bytes(two_checkpoints[1])
    with pytest.warns(UserWarning, match="damaged or cut off. Going on from the one before it"):
        saved = _checkpoint.read(path)
    assert saved.about["chunks"] >= 1


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a checkpoint; there is no"):
        epi.resume(tmp_path / "none.ckpt")
    foreign = tmp_path / "notes.txt"
    foreign.write_text("numpyro-epi checkpoint 13\n")
    with pytest.raises(
        ValueError,
        match=r"Expected 'numpyro-epi checkpoint 12' at the start of .*got 'numpyro-epi checkpoint 13'.*the version of",
    ):
        epi.resume(foreign)


def test_an_old_checkpoint_is_not_overwritten(tmp_path, two_checkpoints):
    path = tmp_path / "run.ckpt"
    path.write_bytes(two_checkpoints[0])
    with pytest.raises(FileExistsError, match="Expected no checkpoint yet; got .*run.ckpt, left by an earlier run"):
        epi.fit(KEY, problem(), checkpoint=path, **OPTIONS)
    assert path.read_bytes() == two_checkpoints[0]


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "run.ckpt"
    with _checkpoint.Keeper(path, 0.0, new=True):
        with pytest.raises(ValueError, match="Expected a checkpoint that no run is writing"):
            epi.fit(KEY, problem(), checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match="Expected a folder for the checkpoint"):
        epi.fit(KEY, problem(), checkpoint=tmp_path / "no" / "run.ckpt", **OPTIONS)
    with pytest.raises(ValueError, match="Expected every >= 0, in seconds; got -1"):
        epi.fit(KEY, problem(), checkpoint=path, every=-1, **OPTIONS)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, monkeypatch, whole):
    path = tmp_path / "run.ckpt"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_checkpoint.os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device. The run goes on"):
        assert_same(epi.fit(KEY, problem(), checkpoint=path, every=0.0, **OPTIONS), whole)
    assert not list(tmp_path.glob("*.writing"))


def interrupt_after(chunks, monkeypatch, number):
    """Send this process a signal once so many chunks are done."""
    run_epochs = _chunks.Fleet.compile

    def compile_and_count(self, state, num_epochs):
        run, done = run_epochs(self, state, num_epochs), [0]

        def counted(state):
            done[0] += 1
            if done[0] == chunks:
                os.kill(os.getpid(), number)
            return run(state)

        return counted

    monkeypatch.setattr(_chunks.Fleet, "compile", compile_and_count)


@pytest.fixture
def heard(monkeypatch):
    """SIGINT acts, also where this process was begun in the background, which ignores it; no run was interrupted before."""
    monkeypatch.setattr(_stop.StopRequest, "_stopped_at", -np.inf)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_chunk(number, tmp_path, monkeypatch, whole):
    before = signal.getsignal(number)
    path = tmp_path / "run.ckpt"
    with monkeypatch.context() as patch:
        interrupt_after(2, patch, number)
        # The second of three checkpoints would not be due yet: a stop writes it all the same.
        partial = epi.fit(KEY, problem(), checkpoint=path, every=1e6, **OPTIONS)
    assert partial.status is epi.STATUS.interrupted
    assert not partial.satisfied
    assert partial.settings["cut_by"] == signal.Signals(number).name
    assert 0 < partial.settings["steps"] < 100
    assert np.isfinite(partial.verdict.entropy)
    assert signal.getsignal(number) is before
    assert_same(epi.resume(path, problem(), **METHOD, progress=False), whole)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_signal_during_the_certificate_leaves_it_out(with_checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt" if with_checkpoint else None
    options = OPTIONS | {"certify": True}
    reached = []

    def slow(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            time.sleep(0.001)
        reached.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(_plan, "assess", slow)
        partial = epi.fit(KEY, problem(), checkpoint=path, every=0.0, **options)
    assert not reached
    assert partial.status is epi.STATUS.interrupted
    assert partial.settings["cut_by"] == "SIGTERM"
    assert partial.settings["steps"] == 100
    assert partial.certificate is None
    assert signal.getsignal(signal.SIGTERM) is before
    if with_checkpoint:
        expected = epi.fit(KEY, problem(), **options)
        resumed = epi.resume(path, problem(), **METHOD, progress=False)
        assert_same(resumed, expected)
        assert resumed.certificate.gap == expected.certificate.gap


@pytest.mark.usefixtures("heard")
def test_a_second_signal_acts_at_once(monkeypatch):
    run_epochs = _chunks.Fleet.compile

    def compile_and_insist(self, state, num_epochs):
        def insistent(state):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return run_epochs(self, state, num_epochs)(state)

        return insistent

    monkeypatch.setattr(_chunks.Fleet, "compile", compile_and_insist)
    with pytest.raises(KeyboardInterrupt):
        epi.fit(KEY, problem(), **OPTIONS)


def test_a_run_in_a_thread_needs_no_signals(whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(epi.fit(KEY, problem(), **OPTIONS)))
    thread.start()
    thread.join()
    assert_same(found[0], whole)


def test_a_start_comes_back_whole():
    """All that a checkpoint holds of one: numbers and words by name, arrays beside them."""
    arrays = ("draws", "eta", "covariance", "independent", "log_density")
    proposed = [f"proposed.{name}" for name in ("draws", "log_density", "log_proposal")]
    numbers = {"fit_draws": True, "message": "here", "log_normalizer": -1.5, "infeasible": None, "ess": 7.0}
    numbers |= {"times_solved": 1, "num_simulations": 12}
    assert set(numbers) == set(_plan.KEPT_OF_START)
    kept = {f"begin.{name}": np.full(2, number, np.float32) for number, name in enumerate((*arrays, *proposed))}
    found = _fit._begun(_checkpoint.Saved({"begin": numbers}, kept, Path("run.ckpt")))
    assert {name: getattr(found, name) for name in numbers} == numbers
    for name in arrays:
        np.testing.assert_array_equal(getattr(found, name), kept[f"begin.{name}"])
    np.testing.assert_array_equal(found.proposed, [kept[f"begin.{name}"] for name in proposed])
