"""The movie: a frame for each snapshot, and nothing replaced or left half written."""

import importlib.util
import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from made_runs import SNAPSHOTS, made_run
from PIL import Image

from numpyro_epi import _movie
from numpyro_epi._movie import movie


@pytest.fixture(scope="module")
def tree():
    return made_run()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two parameters in few pixels."""
    monkeypatch.setattr(_movie, "MAX_PARAMETERS", 2)
    monkeypatch.setattr(_movie, "DPI", 40)


def test_gif_has_a_frame_for_each_snapshot(tree, tmp_path):
    """Four in two seconds; the last stays for another, which Pillow writes as one long frame."""
    path = movie(tree, tmp_path / "run.gif", seconds=2.0)
    with Image.open(path) as image:
        assert image.n_frames == SNAPSHOTS
        durations = [image.seek(i) or image.info["duration"] for i in range(SNAPSHOTS)]
    assert durations == [500, 500, 500, 1500]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("only_the_package", [False, True])
def test_mp4_has_a_frame_for_each_snapshot(tree, tmp_path, monkeypatch, only_the_package):
    """Two frames a second, and two more in which the last one stays; players want this pixel format."""
    if only_the_package:
        monkeypatch.setenv("PATH", str(tmp_path))
    path = movie(tree, tmp_path / "run.mp4", seconds=2.0)
    program = imageio_ffmpeg.get_ffmpeg_exe()
    told = subprocess.run([program, "-i", path, "-f", "null", "-"], capture_output=True, text=True, check=True).stderr
    assert re.findall(r"frame= *(\d+)", told)[-1] == str(SNAPSHOTS + 2)
    assert "Duration: 00:00:03.00" in told
    assert re.search(r"Video: h264.* yuv420p", told)


def test_a_frame_shows_its_snapshot(tree):
    run = _movie._read(tree)
    screen = _movie._Screen(tree, run, ["A[0,0]", "A[0,1]"])
    for frame in (0, 2):
        screen.show(frame)
        drawn = tree["optimization_draws"]["A"].values[frame, :, 0, :]
        order = np.argsort(tree["optimization_draws"]["lp"].values[frame])
        np.testing.assert_array_equal(screen.clouds[0, 1].get_offsets(), drawn[order])
        counts, edges, _ = screen.statistics[1].stairs.get_data()
        np.testing.assert_array_equal(counts, np.histogram(drawn[:, 1], edges)[0])
        assert screen.figure.get_suptitle() == f"made: step {50 * frame} of 150"
        assert len(screen.lines[0][0].get_xdata()) == frame


def test_a_draw_that_is_not_finite_is_left_out(tree):
    bad = tree.copy(deep=True)
    bad["optimization_draws"]["A"].values[0, :3] = np.nan
    screen = _movie._Screen(bad, _movie._read(bad), ["A[0,0]", "A[0,1]"])
    screen.show(0)
    assert len(screen.clouds[0, 1].get_offsets()) == 97
    assert screen.figure.get_suptitle() == "made: step 0 of 150; 3 of 100 draws are not finite and not shown"


def test_movie_replaces_nothing_unasked(tree, tmp_path):
    path = tmp_path / "run.gif"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"Expected an output that does not exist; got .*run\.gif"):
        movie(tree, path)
    assert path.read_text() == "mine"
    movie(tree, path, overwrite=True)
    assert path.read_bytes().startswith(b"GIF8")


def test_a_failure_leaves_the_old_movie(tree, tmp_path, monkeypatch):
    path = tmp_path / "run.gif"
    path.write_text("mine")
    monkeypatch.setattr(_movie._Screen, "show", lambda self, frame: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        movie(tree, path, overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.gif", "mine")]


def test_missing_ffmpeg_is_named(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"Expected the program ffmpeg for .*run\.mp4; it is not on PATH, nor"):
        movie(tree, tmp_path / "run.mp4")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("run.avi", {}, r"Expected a path that ends in \.gif or \.mp4; got .*run\.avi"),
        ("run.gif", {"seconds": 0.0}, "Expected seconds > 0; got 0.0"),
        ("run.gif", {"parameters": ("B",)}, r"Expected parameters among .*; got \['B'\]"),
    ],
)
def test_movie_names_a_wrong_argument(tree, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        movie(tree, tmp_path / name, **options)


def test_movie_says_how_to_keep_draws(tree, tmp_path):
    bare = tree.copy(deep=True)
    del bare["optimization_draws"]
    with pytest.raises(ValueError, match=r"Expected draws kept during the run.*Fit with num_snapshots=20"):
        movie(bare, tmp_path / "run.gif")
