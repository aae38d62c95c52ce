"""Texts of strangers are shown as texts, in pages and notebooks and by a real browser; plugins run only when asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from fake_distributions import GOOD_STATISTIC, install

import numpyro_epi as epi
from numpyro_epi._datatree import read_arviz, to_datatree
from numpyro_epi._html import page, table
from numpyro_epi._outcome import Summary

EVIL = "</title></td><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">'\"&$\\alpha^{$"
# A browser comes with a system, not with pip; the rest of this file reads the page without one.
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A result file, all of whose texts are hostile: names, units, attributes, settings, versions."""
    rng, dims = np.random.default_rng(0), ("chain", "draw")
    sites = {
        f"{EVIL}{i}": (
            dims,
            rng.normal(size=(2, 10)),
            {"kind": "parameter", "original_name": f"{EVIL}{i}", "unit": EVIL},
        )
        for i in range(2)
    }
    measured = {"t": (dims, rng.normal(size=(2, 10)), {"kind": "statistic", "original_name": EVIL, "unit": EVIL})}
    columns = ("target", "achieved", "standard_error", "scale", "violation", "multiplier")
    table = {name: ("constraint", [0.5]) for name in columns}
    table |= {"order": ("constraint", [1]), "unit": ("constraint", [EVIL]), "statistic": ("constraint", [EVIL])}
    epochs = {name: (("epoch", "constraint"), np.ones((3, 1))) for name in ("violation", "multiplier")}
    epochs |= {name: ("epoch", np.arange(3.0)) for name in ("step", "entropy")}
    names = {"constraint": [EVIL]}
    groups = {
        "posterior": xr.Dataset(sites),
        "prior": xr.Dataset(sites),
        "posterior_predictive": xr.Dataset(measured),
        "sample_stats": xr.Dataset({"lp": (dims, rng.normal(size=(2, 10)))}),
        "constant_data": xr.Dataset(table, coords=names),
        "optimization": xr.Dataset(epochs, coords=names),
        "sensitivity": xr.Dataset(
            {
                "curvature": ("direction", [-2.0, -1.0]),
                "vector": (("direction", "parameter"), np.eye(2)),
                "response": (("direction", "statistic"), np.ones((2, 1))),
            },
            coords={"parameter": [f"{EVIL}0", f"{EVIL}1"], "statistic": [EVIL], "direction": [0, 1]},
            attrs={"where": EVIL},
        ),
    }
    texts = ("problem", "status", "status_message", "certificate", "seed", "base", "created_at", "jax_version", EVIL)
    attrs = dict.fromkeys(texts, EVIL) | {"numpyro_epi_version": EVIL, "gap": 0.1, "gap_standard_error": 0.1}
    attrs |= {name: json.dumps({EVIL: EVIL}) for name in ("settings", "plugins")}
    path = tmp_path_factory.mktemp("stranger") / "stranger.nc"
    to_datatree(groups, attrs).to_netcdf(path, engine="h5netcdf")
    return path


@pytest.fixture(scope="module")
def shown(stranger):
    return epi.report(stranger, stranger.with_suffix(".html"))


def is_harmless(text):
    tags = Reader(text).tags
    assert not [tag for tag, _ in tags if tag in ("script", "iframe", "object", "embed", "base", "form", "svg")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert all(a.get("src", "data:").startswith("data:image/png;base64,") for tag, a in tags if tag == "img")


def test_a_page_of_hostile_texts_is_harmless(shown):
    is_harmless(shown.read_text())
    text = " ".join(Reader(shown.read_text()).text)
    assert text.count("<script>") > 10


def test_notebooks_show_hostile_texts_as_texts():
    is_harmless(page(EVIL, table((EVIL,), [(EVIL,)])))
    is_harmless(Summary(EVIL, [(EVIL, EVIL)], (EVIL,), [(EVIL,)]).html())


@pytest.mark.parametrize(
    ("name", "value"), [("entropy", EVIL), ("gap", EVIL), ("settings", "[" * 50_000), ("settings", "3")]
)
def test_attributes_of_another_kind_are_an_error_or_text(stranger, tmp_path, name, value):
    tree = read_arviz(stranger)
    tree.attrs[name] = value
    try:
        is_harmless(epi.report(tree, tmp_path / "page.html").read_text())
    except ValueError as error:
        found = str(error)
    else:
        found = f"Expected nothing; {name}"
    assert re.match(f"Expected .*{name}", found)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_runs_nothing_and_asks_for_nothing(shown, tmp_path):
    """The page's title would say if a script had run; the console would say what the policy stopped."""
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000", f"--log-net-log={tmp_path / 'net.json'}"),
        shown.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    reader = Reader(done.stdout)
    titles = re.findall(r"<title>(.*?)</title>", done.stdout, re.S)
    assert len(titles) == 1
    assert titles[0] != "run"
    assert "CONSOLE" not in done.stderr
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert len(images) == sum(tag == "img" for tag, _ in Reader(shown.read_text()).tags) > 0
    assert all(attributes.get("alt") for attributes in images)
    asked = set(re.findall(r'"url":"((?:https?|file)://[^"]*)"', (tmp_path / "net.json").read_text()))
    assert {url for url in asked if "://x" in url or url.endswith("/x")} == set()


PROGRAM = """
import sys
from numpyro_epi._cli import main
for argv in (
    ["--help"],
    ["plot", *sys.argv[1:]],
    ["report", *sys.argv[1:]],
    ["check", "other.problem"],
    ["resume", "none.nc.ckpt"],
    ["list"],
):
    try: main(argv)
    except SystemExit: pass
    print(argv[0], "fake_good" in sys.modules, file=sys.stderr)
"""


def test_a_plugin_runs_only_where_it_is_asked_for(tmp_path, stranger):
    """Not for help, not for a figure, not for a report; for a list of what it has."""
    install(tmp_path, "fake-good", {"cell.voltage": "voltage"}, source=GOOD_STATISTIC)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PROGRAM, str(stranger)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert stranger.with_suffix(".html").exists()
    assert stranger.with_name(f"{stranger.stem}-pair.png").exists()
    said = [line for line in done.stderr.splitlines() if line.endswith(("True", "False"))]
    assert said == [f"{name} False" for name in ("--help", "plot", "report", "check", "resume")] + ["list True"]
