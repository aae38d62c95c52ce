"""Whatever is wrong with the input, one clear error says what was expected, what came, and what to do."""

import re
import sys

import pytest
from mistakes import folder
from mistakes_in_calls import DENSITIES, FIT, KEYS, PIECES, RESULTS
from mistakes_in_files import CLI, FILES
from mistakes_in_models import MODELS, OPTIONS, STATISTICS, TARGETS

from numpyro_epi._cli import main

TOPICS = {
    **{"model": MODELS, "problem": OPTIONS, "statistic": STATISTICS, "target": TARGETS, "key": KEYS, "fit": FIT},
    **{"piece": PIECES, "result": RESULTS, "density": DENSITIES, "file": FILES},
}
ROWS = {f"{topic}: {row.id}": row for topic, rows in TOPICS.items() for row in rows}


def test_no_mistake_is_listed_twice():
    assert len(ROWS) == sum(map(len, TOPICS.values()))
    assert len(ROWS) + len(CLI) >= 150


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_one_clear_error(row):
    with pytest.raises(row.error, match=row.match):
        row.call()


@pytest.mark.parametrize(("argv", "match"), CLI.values(), ids=CLI.keys())
def test_one_clear_line_of_the_program(argv, match, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {path: path.read_bytes() for path in folder().rglob("*") if path.is_file()}
    try:
        code = main([argument.replace("{0}", str(folder())) for argument in argv])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    assert code == 2
    assert re.search(match, shown.err)
    assert "Traceback" not in shown.err + shown.out
    assert shown.out == ""
    after = {path: path.read_bytes() for path in folder().rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
