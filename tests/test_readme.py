"""What the README shows works as it stands."""

import re
import tomllib
from functools import partial
from pathlib import Path

import pytest

import numpyro_epi as epi

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    """The code block that follows a marker."""
    found = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)\n```\n", README, re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
def test_example_runs(monkeypatch, tmp_path):
    """All of it, with a short fit."""
    monkeypatch.chdir(tmp_path)
    short = partial(epi.fit, start=epi.starts.Prior(), max_steps=50, num_draws=50)
    monkeypatch.setattr(epi, "fit", short)
    namespace = {}
    exec(block("example"), namespace)
    assert namespace["result"].settings["steps"] == 50
    assert {path.name for path in tmp_path.iterdir()} == {"pair.png", "fit.png"}


def test_statistic_of_the_plugin_example_works():
    namespace = {"epi": epi}
    exec(block("plugin"), namespace)
    found = namespace["mean_rate"]
    assert (found.unit, found.name) == ("Hz", "mean_rate")


@pytest.mark.parametrize("marker", ["fit command", "test command"])
def test_command_starts_from_python_and_pip_alone(marker):
    """Every extra, folder and program that it names is there."""
    command = block(marker)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert command.startswith("python -m venv .venv && .venv/bin/pip install -e ")
    for extra in re.findall(r"\.\[(\w+)\]", command):
        assert extra in project["optional-dependencies"]
    for folder in re.findall(r"-e (plugins/\S+)", command):
        assert (ROOT / folder / "pyproject.toml").is_file()
    for program in set(re.findall(r"\.venv/bin/([\w-]+)", command)) - {"pip", "python"}:
        assert program in project["scripts"]


def test_links_point_somewhere():
    """Pictures aside, which are made by hand."""
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_no_text_says_to_install_what_is_not_published():
    """The packages are installed from a clone: only paths and other packages may follow ``pip install``."""
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("examples/**/*.md"),
    ]
    texts += [*ROOT.glob("numpyro_epi/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
    commands = {path: re.findall(r"pip install ([^\n`)]*)", path.read_text()) for path in texts}
    assert sum(map(len, commands.values())) >= 5
    assert {
        path for path, found in commands.items() if any(re.search(r"(?<![/\w])numpyro-epi", c) for c in found)
    } == set()


@pytest.mark.parametrize("plugin", ["biology", "circuits", "dynamics"])
def test_plugins_are_installed_from_a_clone(plugin):
    text = (ROOT / "plugins" / f"numpyro-epi-{plugin}" / "README.md").read_text()
    (folders,) = re.findall(r"^pip install (.*)$", text, re.MULTILINE)
    assert folders.split() == ["-e", ".", "-e", f"plugins/numpyro-epi-{plugin}"]
    assert all((ROOT / folder / "pyproject.toml").is_file() for folder in folders.split()[1::2])
