"""The program ``numpyro-epi``, run in process; the long run itself is replaced where only its handling is at stake."""

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_distributions import GOOD_PROBLEM, GOOD_STATISTIC, PROBLEMS, install

import numpyro_epi
from numpyro_epi import _gallery
from numpyro_epi._checkpoint import Saved
from numpyro_epi._cli import main
from numpyro_epi._datatree import read_arviz
from numpyro_epi._problem import Problem
from numpyro_epi._stop import StoppedBeforeFirstStep

FILE = (
    GOOD_PROBLEM
    + """
ready = build()
number = 3
def no_problem(): return 3
def needs(argument): return build(mean=argument)
def breaks(): raise KeyError("voltage")
"""
)


class FakeResult:
    """What `fit` hands back, as far as the program looks at it."""

    def __init__(self, satisfied=True, cut_by=""):
        self.satisfied = np.bool_(satisfied)
        self.settings = {"cut_by": cut_by}

    def __str__(self):
        return "status: as asked"

    def save(self, path):
        if path.suffix == ".zarr":
            path.mkdir()
            path = path / "zarr.json"
        path.write_text("saved")


class FakeReport:
    def __init__(self, passed):
        self.passed = passed

    def __str__(self):
        return "[x] finite"


class FakeFigure:
    def savefig(self, path):
        path.write_bytes(b"PNG")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; sys.path as it was is put back afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


@pytest.fixture
def problem_file(here):
    (here / "model.py").write_text(FILE)
    return here / "model.py"


@pytest.fixture
def fits(monkeypatch):
    """The calls of a `fit` that is satisfied at once."""
    calls = []

    def fit(key, problem, **options):
        calls.append((key, problem, options))
        return FakeResult()

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    return calls


@pytest.fixture
def user_error(capsys):
    """Run the program, which must end with code 2 and one line on stderr; return that line."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        line = capsys.readouterr().err
        assert line.startswith("numpyro-epi: ")
        assert line.count("\n") == 1
        return line

    return run


@pytest.mark.parametrize("argv", [["--help"], ["fit", "--help"]])
def test_help_imports_nothing_heavy(argv):
    """Under an empty package of the same name, so that the package's own imports do not count."""
    program = (
        "import sys, types, importlib.util as util\n"
        "package = types.ModuleType('numpyro_epi')\n"
        "package.__path__ = util.find_spec('numpyro_epi').submodule_search_locations\n"
        "sys.modules['numpyro_epi'] = package\n"
        "from numpyro_epi._cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'jax', 'numpy', 'numpyro', 'matplotlib', 'xarray', 'arviz'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
    assert "usage: numpyro-epi" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_list_shows_units_packages_and_versions(site_packages, capsys):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, version="3.1", source=GOOD_STATISTIC)
    install(site_packages, "fake-model", {"cell.resting": "build"}, group=PROBLEMS, source=GOOD_PROBLEM)
    assert main(["list"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cell.voltage", "fake-good", "3.1", "mV"] in rows
    assert ["cell.resting", "fake-model", "1.0", "mean=0.5"] in rows
    assert ["site.norm", "numpyro-epi", version("numpyro-epi"), "-"] in rows


def test_list_flags_a_broken_plugin_and_shows_the_others(site_packages, capsys):
    install(site_packages, "fake-broken", {"cell.bad": "f"}, version="0.7", source="raise RuntimeError('no\\nlicence')")
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["cell.bad", "fake-broken", "0.7", "broken"] in rows
    assert ["cell.voltage", "fake-good", "1.0", "mV"] in rows
    fault = "! Statistic 'cell.bad' of fake-broken 0.7 (fake_broken:f) failed to load: RuntimeError: no licence\n"
    assert fault in printed


def test_list_flags_a_name_that_two_packages_claim(site_packages, capsys):
    install(site_packages, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    install(site_packages, "fake-rival", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC.replace("mV", "V"))
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "! Statistic 'cell.voltage' is claimed by fake-good 1.0 and fake-rival 1.0; ask for 'fake-good:" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["cell.voltage", "fake-good", "1.0", "mV"] in rows
    assert ["cell.voltage", "fake-rival", "1.0", "V"] in rows


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_check_prints_the_report_and_exits_with_its_verdict(problem_file, monkeypatch, capsys, passed, code):
    monkeypatch.setattr(Problem, "check", lambda self, key: FakeReport(passed), raising=False)
    assert main(["check", f"{problem_file}:ready"]) == code
    assert capsys.readouterr().out == "[x] finite\n"


@pytest.mark.parametrize(("satisfied", "code"), [(True, 0), (False, 1)])
def test_fit_prints_and_saves_whatever_the_verdict(problem_file, here, monkeypatch, capsys, satisfied, code):
    monkeypatch.setattr(numpyro_epi, "fit", lambda key, problem, **_: FakeResult(satisfied), raising=False)
    assert main(["fit", f"{problem_file}:ready", "--out", str(here / "run.nc")]) == code
    assert (here / "run.nc").read_text() == "saved"
    assert capsys.readouterr().out == f"status: as asked\nSaved {here / 'run.nc'}\n"


def test_fit_passes_only_the_options_given(problem_file, fits):
    main(["fit", f"{problem_file}:ready"])
    main(["fit", f"{problem_file}:ready", "--overwrite", "--steps", "7", "--num-draws", "8", "--quiet"])
    checkpoint = {"checkpoint": Path("resting.nc.ckpt")}
    given = {"max_steps": 7, "num_draws": 8, "progress": False}
    assert [options for *_, options in fits] == [checkpoint, checkpoint | given]


def test_fit_draws_from_the_seed_given(problem_file, fits):
    main(["fit", f"{problem_file}:ready", "--seed", "5"])
    assert fits[0][0] == jax.random.key(5)


def test_default_output_is_named_after_the_problem(problem_file, here, fits):
    assert main(["fit", f"{problem_file}:ready"]) == 0
    assert (here / "resting.nc").exists()


def test_default_output_stays_in_the_current_folder(here, fits):
    (here / "model.py").write_text(GOOD_PROBLEM.replace("resting", "../at rest"))
    assert main(["fit", "model.py:build"]) == 0
    assert (here / ".._at_rest.nc").exists()


def test_settings_reach_a_registered_problem(site_packages, here, fits):
    install(site_packages, "fake-model", {"cell.resting": "build"}, group=PROBLEMS, source=GOOD_PROBLEM)
    assert main(["fit", "cell.resting", "--set", "mean=0.25"]) == 0
    assert fits[0][1].target == 0.25


@pytest.mark.parametrize("name", ["ready", "build"])
def test_a_problem_can_come_from_a_file(problem_file, fits, name):
    assert main(["fit", f"model.py:{name}"]) == 0
    assert fits[0][1].target == 0.5


def test_settings_reach_a_function_of_a_file(problem_file, fits):
    assert main(["fit", f"{problem_file}:needs", "--set", "argument=-1e-1"]) == 0
    assert fits[0][1].target == -0.1


def test_a_setting_that_is_no_literal_is_text(here, fits, user_error):
    (here / "model.py").write_text("def echo(a, b): raise RuntimeError(repr((a, b)))")
    line = user_error("fit", "model.py:echo", "--set", "a=north east", "--set", "b=[1, None]")
    assert "RuntimeError: ('north east', [1, None])" in line


def test_a_file_can_import_its_neighbours(tmp_path, here, fits):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "neighbour_of_the_model.py").write_text(GOOD_PROBLEM)
    (elsewhere / "model.py").write_text("from neighbour_of_the_model import build")
    assert main(["fit", f"{elsewhere / 'model.py'}:build"]) == 0


def test_a_file_named_like_a_package_hides_nothing(here, fits):
    (here / "jax.py").write_text(GOOD_PROBLEM)
    assert main(["fit", "jax.py:build"]) == 0
    assert sys.modules["jax"] is jax


def test_zarr_is_chosen_by_suffix(problem_file, here, fits):
    assert main(["fit", f"{problem_file}:ready", "--out", "run.zarr"]) == 0
    assert (here / "run.zarr" / "zarr.json").exists()


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_overwrite_replaces_a_result(problem_file, here, fits, name):
    FakeResult().save(here / name)
    (here / name / "old" if name.endswith("zarr") else here / name).write_text("old")
    assert main(["fit", f"{problem_file}:ready", "--out", name, "--overwrite"]) == 0
    files = [path for path in (here / name, *(here / name).glob("*")) if path.is_file()]
    assert [path.read_text() for path in files] == ["saved"]


def test_a_name_taken_during_the_run_is_kept(problem_file, here, monkeypatch, capsys):
    def fit(key, problem, **_):
        (here / "resting.nc").write_text("of another run")
        return FakeResult()

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    assert main(["fit", f"{problem_file}:ready"]) == 0
    assert (here / "resting.nc").read_text() == "of another run"
    assert (here / "resting-2.nc").read_text() == "saved"
    assert "Saved resting-2.nc" in capsys.readouterr().out


def make_file(here):
    (here / "run.nc").write_text("kept")
    return ["--out", "run.nc"]


def make_foreign_folder(here):
    (here / "run.zarr").mkdir()
    (here / "run.zarr" / "thesis.txt").write_text("kept")
    return ["--out", "run.zarr", "--overwrite"]


BAD_OUTPUTS = {
    "exists": (make_file, "Expected an output that does not exist; got run.nc. Pass --overwrite"),
    "is not ours to replace": (
        make_foreign_folder,
        "Expected run.zarr to be something zarr wrote; it is not, so it is not replaced.",
    ),
    "has no folder": (lambda here: ["--out", "no/run.nc"], "Expected a folder at no; there is none."),
    "has another suffix": (lambda here: ["--out", "run.pkl"], "Expected a path that ends in .nc (NetCDF) or .zarr"),
}


@pytest.mark.parametrize(("prepare", "message"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS.keys())
def test_a_bad_output_is_refused_before_the_run(problem_file, here, fits, user_error, prepare, message):
    options = prepare(here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert message in user_error("fit", f"{problem_file}:ready", *options)
    assert fits == []
    assert before == {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}


def test_an_unwritable_folder_is_refused_before_the_run(problem_file, fits, user_error, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert "Expected a folder one can write to; got ." in user_error("fit", "model.py:ready")
    assert fits == []


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_failed_save_keeps_the_result_it_would_replace(problem_file, here, monkeypatch, user_error, name):
    def fail(path):
        raise OSError(28, "No space left on device")

    result = FakeResult()
    result.save(here / name)
    monkeypatch.setattr(result, "save", fail)
    monkeypatch.setattr(numpyro_epi, "fit", lambda key, problem, **_: result, raising=False)
    assert "No space left" in user_error("fit", "model.py:ready", "--out", name, "--overwrite")
    assert (here / name).exists()


BAD_PROBLEMS = {
    "unknown name": (["cell.restin"], "Expected a registered problem; got 'cell.restin'. Did you mean 'cell.resting'?"),
    "argument of a registered one": (["cell.resting", "--set", "men=1"], "unexpected keyword argument 'men'"),
    "bad value of a registered one": (
        ["cell.resting", "--set", "mean=1e999"],
        "Expected a finite mean for 'v'; got inf.",
    ),
    "no such file": (["nowhere.py:ready"], "Expected a Python file that defines 'ready'; got nowhere.py"),
    "file alone": (["model.py"], "Expected path/to/file.py:name; got 'model.py'"),
    "no such object": (
        ["model.py:raedy"],
        "Expected model.py to define 'raedy'; got model, build, no_problem, needs, breaks, ready.",
    ),
    "object of another type": (["model.py:number"], "Expected 'number' to be, or to return, a Problem; got int."),
    "function of another type": (
        ["model.py:no_problem"],
        "Expected 'no_problem' to be, or to return, a Problem; got int.",
    ),
    "missing argument": (["model.py:needs"], "TypeError: needs() missing 1 required positional argument"),
    "function that raises": (["model.py:breaks"], "KeyError: 'voltage'"),
    "argument of a ready one": (
        ["model.py:ready", "--set", "mean=1"],
        "Expected no --set for 'ready', a Problem already",
    ),
    "argument given twice": (["model.py:build", "--set", "mean=1", "--set", "mean=2"], "Expected each --set key once"),
    "file that raises": (["broken.py:ready"], "RuntimeError: no licence"),
    "file that is no Python": (["text.py:ready"], "SyntaxError"),
}


@pytest.mark.parametrize(("argv", "message"), BAD_PROBLEMS.values(), ids=BAD_PROBLEMS.keys())
def test_a_bad_problem_is_one_clear_line(site_packages, problem_file, here, fits, user_error, argv, message):
    install(site_packages, "fake-model", {"cell.resting": "build"}, group=PROBLEMS, source=GOOD_PROBLEM)
    (here / "broken.py").write_text("raise RuntimeError('no\\nlicence')")
    (here / "text.py").write_text("def def")
    assert message in user_error("fit", *argv)
    assert fits == []


def test_a_broken_plugin_is_named(site_packages, here, fits, user_error):
    install(site_packages, "fake-broken", {"cell.bad": "f"}, group=PROBLEMS, version="0.7", source="1 / 0")
    line = user_error("fit", "cell.bad")
    assert "Problem 'cell.bad' of fake-broken 0.7 (fake_broken:f) failed to load: ZeroDivisionError" in line


def test_an_error_of_the_run_is_one_line(problem_file, monkeypatch, user_error):
    def fit(key, problem, **_):
        raise ValueError("Expected num_draws > 3; got 2.")

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    assert user_error("fit", f"{problem_file}:ready") == "numpyro-epi: Expected num_draws > 3; got 2.\n"


def test_traceback_shows_where_an_error_comes_from(problem_file, fits):
    with pytest.raises(KeyError, match="voltage"):
        main(["fit", f"{problem_file}:breaks", "--traceback"])


def test_an_interrupted_run_says_so(problem_file, monkeypatch, capsys):
    def fit(key, problem, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    assert main(["fit", f"{problem_file}:ready"]) == 130
    assert capsys.readouterr().err == "numpyro-epi: interrupted\n"


def test_a_run_stopped_before_its_first_step_says_where_to_go_on(problem_file, here, monkeypatch, capsys):
    def fit(key, problem, checkpoint):
        checkpoint.write_text("so far")
        raise StoppedBeforeFirstStep("SIGTERM", checkpoint)

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    assert main(["fit", f"{problem_file}:ready"]) == 143
    said = capsys.readouterr()
    assert said.out == (
        f"interrupted before the first step\nGo on with it: numpyro-epi resume resting.nc.ckpt {problem_file}:ready\n"
    )
    assert said.err == "numpyro-epi: interrupted\n"


@pytest.mark.parametrize(("cut_by", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_cut_short_keeps_its_checkpoint(problem_file, here, monkeypatch, capsys, cut_by, code):
    def fit(key, problem, checkpoint):
        checkpoint.write_text("so far")
        return FakeResult(False, cut_by)

    monkeypatch.setattr(numpyro_epi, "fit", fit, raising=False)
    assert main(["fit", f"{problem_file}:ready"]) == code
    go_on = f"Go on with it: numpyro-epi resume resting.nc.ckpt {problem_file}:ready"
    assert capsys.readouterr().out == f"status: as asked\n{go_on}\n"
    assert sorted(path.name for path in here.glob("resting*")) == ["resting.nc.ckpt"]


def test_a_run_cut_short_without_a_checkpoint_is_saved(problem_file, here, monkeypatch, capsys):
    monkeypatch.setattr(numpyro_epi, "fit", lambda *_, **__: FakeResult(False, "SIGINT"), raising=False)
    assert main(["fit", f"{problem_file}:ready"]) == 130
    assert capsys.readouterr().out == "status: as asked\nSaved resting.nc\n"
    assert (here / "resting.nc").exists()


def test_a_checkpoint_runs_no_program_that_it_names(here, monkeypatch, user_error):
    (here / "hostile.py").write_text("open('ran', 'w')")
    about = {"origin": [f"{here}/hostile.py:build", "{}"]}
    monkeypatch.setattr("numpyro_epi._checkpoint.read", lambda path: Saved(about, {}, path))
    line = user_error("resume", "run.nc.ckpt")
    assert f"it is {here}/hostile.py:build, a program, which does not run because a checkpoint names it" in line
    assert f"If you trust it: numpyro-epi resume run.nc.ckpt {here}/hostile.py:build" in line
    assert not (here / "ran").exists()


@pytest.mark.parametrize("where", ["sys.exit(0)", "def build():\n    sys.exit(0)"])
def test_a_program_that_exits_is_no_success(here, fits, user_error, where):
    (here / "exits.py").write_text(f"import sys\n{where}\n")
    for command in ("check", "fit"):
        assert "the problem's code to return; it called sys.exit(0)" in user_error(command, "exits.py:build")
    assert fits == []


def test_overwrite_replaces_no_file_of_others(problem_file, here, fits, user_error):
    (here / "thesis.txt").write_text("years of work")
    line = user_error("fit", "model.py:ready", "--overwrite", "--checkpoint", "thesis.txt")
    assert "Expected a checkpoint to replace; thesis.txt is none" in line
    assert (here / "thesis.txt").read_text() == "years of work"
    assert fits == []


SLOW_FILE = """
import jax.numpy as jnp, numpyro, numpyro.distributions as dist, numpyro_epi as epi

def cloud():
    numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))

@epi.statistic(differentiable=False)  # Without chains the run is short.
def total(sites):
    return jnp.sum(sites["x"])

def build(mean):
    prop = epi.EmergentProperty(epi.Target(total, mean=mean, std=0.5))
    return epi.Problem(cloud, prop, num_draws=20, max_steps=1000)
"""


PROGRAM = [sys.executable, "-c", "from numpyro_epi._cli import main; raise SystemExit(main())"]
FIT = [*PROGRAM, "fit", "slow.py:build", "--set", "mean=0.5", "--quiet"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "slow.py").write_text(SLOW_FILE)
    run = subprocess.run([*FIT, "--out", "whole.nc"], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stderr  # Whether it is satisfied does not matter here.
    return read_arviz(folder / "whole.nc")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_program_is_resumed_to_the_same_result(here, whole, number):
    """A process of its own, stopped at its second checkpoint by a real signal."""
    (here / "slow.py").write_text(SLOW_FILE)
    # A process in the background ignores SIGINT, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen([*FIT, "--out", "cut.nc"], cwd=here, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while run.poll() is None and not (here / "cut.nc.ckpt").exists():
        time.sleep(0.01)
    run.send_signal(number)
    said, _ = run.communicate()
    if number == signal.SIGKILL:
        assert run.returncode == -number
    else:
        assert run.returncode == 128 + number
        assert "interrupted" in said and "numpyro-epi resume cut.nc.ckpt slow.py:build" in said
    resume = [*PROGRAM, "resume", "cut.nc.ckpt", "slow.py:build"]
    resumed = subprocess.run(resume, cwd=here, capture_output=True, text=True, check=False)
    assert resumed.returncode in (0, 1), resumed.stderr
    assert not list(here.glob("*.ckpt*"))
    again = read_arviz(here / "cut.nc")
    for group in ("posterior", "optimization", "guide", "verdict"):
        assert whole[group].to_dataset().equals(again[group].to_dataset()), group


BAD_ARGUMENTS = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["fti", "x"], "invalid choice: 'fti'"),
    "no steps": (["fit", "x", "--steps", "0"], "Expected a whole number > 0; got '0'."),
    "negative draws": (["fit", "x", "--num-draws", "-4"], "Expected a whole number > 0; got '-4'."),
    "fraction of a draw": (["fit", "x", "--num-draws", "1.5"], "Expected a whole number > 0; got '1.5'."),
    "seed out of range": (["fit", "x", "--seed", "4294967296"], "Expected a whole number from 0 to 2^32 - 1"),
    "setting without value": (["fit", "x", "--set", "mean"], "Expected KEY=VALUE; got 'mean'."),
    "setting without name": (["fit", "x", "--set", "1=2"], "Expected KEY=VALUE; got '1=2'."),
}


@pytest.mark.parametrize(("argv", "message"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_bad_arguments_exit_with_code_two(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert message in capsys.readouterr().err


@pytest.fixture
def drawn(monkeypatch):
    """The trees that the figures were drawn from."""
    trees = []

    def draw(tree):
        trees.append(tree)
        return FakeFigure()

    monkeypatch.setattr(numpyro_epi, "read_arviz", lambda path: path.read_text(), raising=False)
    monkeypatch.setattr(_gallery, "gallery", lambda tree: {"pair": draw, "matrix": draw})
    return trees


@pytest.mark.parametrize(("options", "folder"), [([], "."), (["--out", "deep/figures"], "deep/figures")])
def test_plot_writes_the_figures_that_apply(here, drawn, options, folder):
    (here / "run.nc").write_text("saved")
    assert main(["plot", "run.nc", *options]) == 0
    assert drawn == ["saved"] * 2
    figures = {path.name for path in (here / folder).glob("*.png")}
    assert figures == {"run-pair.png", "run-matrix.png"}


def test_movie_goes_beside_the_file_and_replaces_nothing(here, monkeypatch, user_error, capsys):
    made = []
    monkeypatch.setattr(
        numpyro_epi, "movie", lambda file, out, *, overwrite: made.append((file.name, overwrite)) or out, raising=False
    )
    assert main(["movie", "run.nc"]) == 0
    assert capsys.readouterr().out == "Saved run.gif\n"
    (here / "run.gif").write_text("mine")
    assert "Expected an output that does not exist; got run.gif" in user_error("movie", "run.nc")
    assert main(["movie", "run.nc", "--overwrite"]) == 0
    assert made == [("run.nc", False), ("run.nc", True)]


BAD_FILES = {
    "missing": ("no.nc", "there is no such file"),
    "of another kind": ("run.txt", "Expected a path that ends in .nc (NetCDF) or .zarr"),
    "damaged": ("run.nc", "reading it failed"),
}


@pytest.mark.parametrize(("name", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_plot_refuses_what_is_no_result(here, drawn, user_error, monkeypatch, name, message):
    monkeypatch.setattr(numpyro_epi, "read_arviz", read_arviz)
    (here / "run.txt").write_text("saved")
    (here / "run.nc").write_text("saved")
    assert message in user_error("plot", name, "--out", "figures")
    assert drawn == []
    assert not (here / "figures").exists()
