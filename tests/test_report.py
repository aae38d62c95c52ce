"""The report: everything in it, nothing from elsewhere, and no text of the file read as HTML."""

import json
import re
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
import xarray as xr
from problems import EXACT

import numpyro_epi as epi
from numpyro_epi._cli import main
from numpyro_epi._datatree import as_datatree

SHORT = {
    "max_steps": 50,
    "num_draws": 50,
    "start": epi.starts.Prior(),
    "flow": epi.flows.Elementwise(num_stages=1, transformer=epi.flows.affine()),
    "certify": True,
    "progress": False,
}


@pytest.fixture(scope="module")
def result():
    return epi.fit(jax.random.key(0), EXACT["dirichlet"]().problem, **SHORT)


@pytest.fixture(scope="module")
def sensitivity():
    """In the layout of `Density.sensitivity`."""
    data = {"curvature": ("direction", [-12.25, -0.5]), "vector": (("direction", "parameter"), np.eye(2))}
    data["response"] = (("direction", "statistic"), [[3.5, 0.25]] * 2)
    coords = {"parameter": ["z[0]", "z[1]"], "statistic": ["rate", "gain"]}
    return xr.Dataset(data, coords=coords, attrs={"where": "one place"})


@pytest.fixture(scope="module")
def tree(result, sensitivity):
    return as_datatree(result.to_arviz(num_draws=50, sensitivity=sensitivity))


@pytest.mark.slow
def test_sensitivity_is_shown_where_it_was_exported(tree, tmp_path):
    rows = " ".join(read(epi.report(tree, tmp_path / "page.html")).text)
    for shown in ("rate by a unit step", "gain by a unit step", "-12.2", "+1.00 z[0]", "+3.5", "+0.25", "at one place"):
        assert shown in rows


@pytest.mark.slow
def test_notebooks_show_what_is_printed(result):
    reader = Reader()
    reader.feed(result._repr_html_())
    shown = "".join(" ".join(reader.text).split())
    for line in str(result).splitlines():
        assert "".join(line.split()) in shown


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    return reader


def test_page_holds_the_answer(tree, tmp_path):
    reader = read(epi.report(tree, tmp_path / "page.html"))
    text = " ".join(reader.text)
    for name, target in zip(
        tree["constant_data"]["constraint"].values, tree["constant_data"]["target"].values, strict=True
    ):
        assert name in text
        assert f"{target:.5g}" in text
    for attribute in ("status_message", "certificate", "numpyro_version"):
        assert str(tree.attrs[attribute]) in text
    assert f"{tree.attrs['entropy']:.4f}" in text


def test_page_asks_for_nothing_from_elsewhere(tree, tmp_path):
    path = epi.report(tree, tmp_path / "page.html")
    reader = read(path)
    for tag, attributes in reader.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", path.read_text())
    policies = [
        a["content"] for t, a in reader.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_says_what_it_shows(tree, tmp_path):
    pictures = [a for t, a in read(epi.report(tree, tmp_path / "page.html")).tags if t == "img"]
    assert len(pictures) == 4
    assert len({picture["alt"] for picture in pictures}) == 4
    assert all(len(picture["alt"]) > 20 for picture in pictures)


EVIL = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>\"'&"


def test_texts_of_the_file_are_not_html(tree, tmp_path):
    """In every attribute that is a text, in constraints' names and in units."""
    evil = tree.copy(deep=True)
    evil.attrs = {key: EVIL if isinstance(value, str) else value for key, value in evil.attrs.items()}
    evil.attrs |= {key: json.dumps({EVIL: EVIL}) for key in ("settings", "plugins")}
    constants = evil["constant_data"].to_dataset()
    names = np.array([EVIL + str(i) for i in range(constants.sizes["constraint"])])
    evil["optimization"] = evil["optimization"].to_dataset().assign_coords(constraint=names)
    evil["constant_data"] = constants.assign_coords(constraint=names).assign(unit=("constraint", names))
    reader = read(epi.report(evil, tmp_path / "page.html"))
    assert [tag for tag, _ in reader.tags if tag == "script"] == []
    assert not [a for _, a in reader.tags if "onerror" in a]
    assert EVIL + "0" in " ".join(reader.text)


def test_stiff_direction_of_a_normal_is_first(tree, tmp_path):
    """Draws along (1, -1) are spread ten times less than along (1, 1)."""
    one = tree.copy(deep=True)
    del one["sensitivity"]
    along, across = np.random.default_rng(0).normal(size=(2, 4, 50))
    z = np.stack([along + 0.1 * across, along - 0.1 * across], axis=-1) / np.sqrt(2)
    posterior = one["posterior"].to_dataset()
    one["posterior"] = posterior.isel(z_dim_0=slice(0, 2)).assign(
        z=(("chain", "draw", "z_dim_0"), z, posterior["z"].attrs)
    )
    one["prior"] = one["prior"].to_dataset().isel(z_dim_0=slice(0, 2))
    text = epi.report(one, tmp_path / "page.html").read_text()
    first, last = re.findall(r"<td>[^<]*</td><td>([+-][^<]*z\[[^<]*)</td>", text)
    # In the prior's units the axes turn a little.
    assert re.fullmatch(r"\+0\.\d\d z\[\d\] -0\.\d\d z\[\d\]", first)
    assert re.fullmatch(r"\+0\.\d\d z\[\d\] \+0\.\d\d z\[\d\]", last)


def test_report_replaces_nothing_unasked(tree, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="Expected an output that does not exist; got .*page.html"):
        epi.report(tree, path)
    assert path.read_text() == "mine"
    epi.report(tree, path, overwrite=True)
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_report_is_a_page(tree, tmp_path):
    with pytest.raises(ValueError, match=r"Expected a path that ends in \.html or \.htm; got .*page\.pdf"):
        epi.report(tree, tmp_path / "page.pdf")


def test_program_writes_a_report_of_a_file(tree, tmp_path, capsys):
    tree.to_netcdf(tmp_path / "saved.nc", engine="h5netcdf")
    assert main(["report", str(tmp_path / "saved.nc")]) == 0
    assert capsys.readouterr().out == f"Saved {tmp_path / 'saved.html'}\n"
    assert main(["report", str(tmp_path / "saved.nc")]) == 2
    assert "Expected an output that does not exist" in capsys.readouterr().err


def test_report_says_where_the_multipliers_come_from(tree, tmp_path):
    unknown = tree.copy(deep=True)
    unknown["constant_data"]["multiplier"].attrs.pop("source", None)
    assert "Lagrange multiplier (from" not in epi.report(unknown, tmp_path / "unknown.html").read_text()
    told = tree.copy(deep=True)
    told["constant_data"]["multiplier"].attrs["source"] = "chains"
    assert "Lagrange multiplier (from chains)" in read(epi.report(told, tmp_path / "told.html")).text


def test_report_leaves_out_draws_that_are_not_finite_and_says_so(tree, tmp_path):
    one = tree.copy(deep=True)
    values = one["posterior"]["z"].values.astype(float)
    values[0, 0, 0] = np.inf
    one["posterior"]["z"] = one["posterior"]["z"].copy(data=values)
    one["prior"]["z"].values[0, 0, 0] = -np.inf
    text = read(epi.report(one, tmp_path / "page.html")).text
    assert f"1 of {values[..., 0].size} draws are not finite and not shown." in text
    assert f"{values[..., 0][np.isfinite(values[..., 0])].mean():.4g}" in text
    assert "inf" not in text
    assert "nan" not in text
