"""What was saved is read as it was, or not at all: cut off or changed anywhere, in either format."""

import hashlib

import h5py
import numpy as np
import pytest
import xarray as xr

from numpyro_epi._datatree import read_arviz, to_datatree, write
from numpyro_epi._seal import CHECKSUMS, broken_seal

SUFFIXES = (".nc", ".zarr")
NUM_PLACES = 200


@pytest.fixture(scope="module")
def tree():
    """Numbers, flags, words and attributes, as an export has them."""
    rng = np.random.default_rng(0)
    draws = {
        "z": (("chain", "draw", "axis"), rng.normal(size=(2, 20, 3)).astype("f4"), {"unit": "µV", "kind": "parameter"})
    }
    flags = {"finite": (("chain", "draw"), rng.random((2, 20)) > 0.5)}
    words = {"unit": ("constraint", np.array(["mV", ""])), "target": ("constraint", np.array([0.0, 1.0]))}
    groups = {"posterior": draws, "sample_stats": flags, "constant_data": words}
    attrs = {"numpyro_epi_version": "0.1.0", "status": "satisfied", "entropy": 6.5, "satisfied": 1}
    return to_datatree({name: xr.Dataset(data) for name, data in groups.items()}, attrs)


@pytest.fixture(params=SUFFIXES)
def saved(request, tree, tmp_path):
    path = tmp_path / f"result{request.param}"
    write(tree, path)
    return path


def pieces(path):
    """The files of a result, one for NetCDF."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def outcome(path, tree):
    """Which of the two allowed ends reading has; anything else fails."""
    try:
        found = read_arviz(path)
    except (OSError, ValueError) as error:
        return "refused" if str(path) in str(error) else f"unclear: {error}"
    return "identical" if found.identical(tree) else "another result"


def test_a_flipped_bit_never_gives_another_result(saved, tree):
    rng, ends = np.random.default_rng(1), []
    for _ in range(NUM_PLACES):
        file = rng.choice(pieces(saved))
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        whole = file.read_bytes()
        file.write_bytes(content)
        ends.append(outcome(saved, tree))
        file.write_bytes(whole)
    # The mark before a NetCDF file's digest is not data.
    assert set(ends) <= {"refused", "identical"}
    assert ends.count("refused") >= 0.95 * NUM_PLACES
    assert outcome(saved, tree) == "identical"


def test_a_cut_off_file_never_gives_another_result(saved, tree):
    rng, ends = np.random.default_rng(2), []
    for _ in range(NUM_PLACES):
        file = rng.choice(pieces(saved))
        whole = file.read_bytes()
        file.write_bytes(whole[: rng.integers(len(whole))])
        ends.append(outcome(saved, tree))
        file.write_bytes(whole)
    assert set(ends) <= {"refused", "identical"}
    assert ends.count("refused") >= 0.95 * NUM_PLACES


def test_a_lost_file_of_a_folder_is_named(tree, tmp_path):
    path = tmp_path / "result.zarr"
    write(tree, path)
    for file in pieces(path):
        aside = tmp_path / "aside"
        file.rename(aside)
        name = file.relative_to(path).as_posix()
        with pytest.raises(
            ValueError, match=f"Expected a complete exported result at .*result.zarr; '{name}' is missing"
        ):
            read_arviz(path)
        aside.rename(file)
    assert outcome(path, tree) == "identical"


def test_what_others_leave_in_a_folder_is_no_damage(tree, tmp_path):
    write(tree, tmp_path / "result.zarr")
    (tmp_path / "result.zarr" / ".DS_Store").write_bytes(b"\0")
    assert outcome(tmp_path / "result.zarr", tree) == "identical"


def test_damage_is_explained(saved):
    file = next(piece for piece in pieces(saved) if piece.name in (saved.name, ".zmetadata"))
    content = file.read_bytes()
    assert content.count(b"satisfied") > 0
    file.write_bytes(content.replace(b"satisfied", b"satisfied".swapcase()))
    what = "its content" if saved.is_file() else "'.zmetadata'"
    match = (
        f"at .*{saved.name}; {what} is not what was saved. .* xarray.open_datatree.*{saved.name}.* reads what is there"
    )
    with pytest.raises(ValueError, match=match):
        read_arviz(saved)


def test_the_digest_is_that_of_the_data(tree, tmp_path):
    write(tree, tmp_path / "result.nc")
    content, _, end = (tmp_path / "result.nc").read_bytes().rpartition(b"\nnumpyro_epi sha256 ")
    assert end == hashlib.sha256(content).hexdigest().encode() + b"\n"


def test_the_list_is_that_of_sha256sum(tree, tmp_path):
    path = tmp_path / "result.zarr"
    write(tree, path)
    lines = [line.split("  ") for line in (path / CHECKSUMS).read_text().splitlines()]
    assert lines == [
        [hashlib.sha256(file.read_bytes()).hexdigest(), file.relative_to(path).as_posix()]
        for file in pieces(path)
        if file.name != CHECKSUMS
    ]


def test_another_program_may_edit_a_file(tree, tmp_path):
    """It drops the digest with what it rewrites."""
    path = tmp_path / "result.nc"
    write(tree, path)
    with h5py.File(path, "r+") as file:
        file["posterior/z"][0, 0, 0] = 7.0
    assert broken_seal(path) == ""
    assert read_arviz(path)["posterior"]["z"].values[0, 0, 0] == 7.0


def test_a_changed_copy_is_saved_as_any_result(saved, tmp_path):
    """What is read has no seal of its own, which a change would break."""
    changed = read_arviz(saved)
    changed.attrs["status"] = "unsatisfied"
    assert not [name for name in changed.attrs if "checksum" in name]
    copy = tmp_path / f"copy{saved.suffix}"
    changed.to_netcdf(copy, engine="h5netcdf") if saved.suffix == ".nc" else changed.to_zarr(copy, zarr_format=2)
    assert read_arviz(copy).attrs["status"] == "unsatisfied"
