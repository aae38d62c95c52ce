"""Every example runs to its end with ``--quick`` and leaves its figures."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=[script.stem for script in EXAMPLES])
def test_example_runs_and_leaves_figures(script, tmp_path):
    arguments = [sys.executable, script, "--quick", "--out", tmp_path / "out"]
    subprocess.run(arguments, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert len(list((tmp_path / "out").glob(f"{script.stem}-*.png"))) >= 2


@pytest.mark.parametrize("script", EXAMPLES, ids=[script.stem for script in EXAMPLES])
def test_example_is_short_and_listed(script):
    assert len(script.read_text().splitlines()) < 100
    assert f"`{script.name}`" in (script.parent / "README.md").read_text()
