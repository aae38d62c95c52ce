"""Claims over inputs that nobody picked: random models, targets, settings and names."""

import ast
import math
import string
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer.util import log_density

import numpyro_epi as epi
from numpyro_epi._cli import _count, _file_name, _seed, _setting
from numpyro_epi._datatree import read_arviz, to_datatree, write
from numpyro_epi._plan import Plan
from numpyro_epi._problem import Problem

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

settings.register_profile(
    "ours",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=list(hypothesis.HealthCheck),
)
settings.load_profile("ours")

PRIORS = {
    "real": lambda shape: dist.Normal(1.0, 2.0).expand(shape),
    "positive": lambda shape: dist.LogNormal(0.0, 1.0).expand(shape),
    "interval": lambda shape: dist.Uniform(-3.0, 5.0).expand(shape),
    "unit": lambda shape: dist.Beta(2.0, 3.0).expand(shape),
    "event": lambda shape: dist.Normal(0.0, 1.0).expand((*shape, 2)).to_event(1),
    "simplex": lambda shape: dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])).expand(shape),
    "cholesky": lambda shape: dist.LKJCholesky(2, 1.5).expand(shape),
    "ordered": lambda shape: dist.TransformedDistribution(
        dist.Normal(0.0, 1.0).expand((*shape, 3)).to_event(1), dist.transforms.OrderedTransform()
    ),
}
SHAPES = st.sampled_from([(), (1,), (3,), (2, 2)])
MODELS = st.lists(st.tuples(st.sampled_from(sorted(PRIORS)), SHAPES), min_size=1, max_size=3)


def problem_of(sites) -> Problem:
    def model():
        for i, (kind, shape) in enumerate(sites):
            numpyro.sample(f"s{i}", PRIORS[kind](shape))

    return Problem(model, epi.EmergentProperty(epi.Target(lambda s: jnp.sum(s["s0"]), 0.0, name="sum")))


@settings(max_examples=3)
@given(MODELS, st.integers(0, 2**32 - 1))
def test_models_go_to_unconstrained_space_and_back(sites, seed):
    simulator = problem_of(sites).simulator
    u = jax.random.normal(jax.random.key(seed), (simulator.dim,))
    with jax.disable_jit():
        draw = simulator(jax.random.key(0), u)
        again = simulator.unconstrain({name: draw.sites[name] for name in simulator.names})
        expected, _ = log_density(simulator.model, (), {}, {name: draw.sites[name] for name in simulator.names})
    np.testing.assert_allclose(again, u, rtol=2e-3, atol=2e-3)  # Single precision, through sigmoids.
    np.testing.assert_allclose(draw.log_prior, expected, rtol=1e-4, atol=1e-4)


NUMBERS = st.one_of(
    st.floats(), st.integers(-(10**25), 10**25), st.none(), st.text(max_size=3), st.complex_numbers(), st.booleans()
)
ANYTHING = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3), st.lists(st.lists(st.floats(), max_size=2), max_size=2))


@settings(max_examples=200)
@given(mean=ANYTHING, std=ANYTHING)
def test_a_target_is_finite_or_an_error(mean, std):
    try:
        target = epi.Target(lambda sites: sites["z"], mean, std, name="z")
    except (ValueError, TypeError) as error:
        text = str(error)
        hypothesis.event(text[:20])
        assert_sentence(text)
        return
    assert np.all(np.isfinite(np.square(np.float32(target.mean))))
    assert target.std is None or np.all(np.square(np.float32(target.std)) > 0)


def assert_sentence(text):
    assert text.startswith("Expected")
    assert "; got" in text


@settings(max_examples=60)
@given(st.lists(st.one_of(st.integers(0, 3), st.just("target"), st.none()), max_size=3))
def test_a_property_holds_targets_or_is_an_error(given_targets):
    targets = [epi.Target(lambda s: s["z"], 0.0, name="z") if t == "target" else t for t in given_targets]
    if given_targets == ["target"]:
        assert len(epi.EmergentProperty(*targets).targets) == 1
    else:
        with pytest.raises((ValueError, TypeError), match="^Expected .*; got"):
            epi.EmergentProperty(*targets)


LEAST = {"num_draws": 4, "max_steps": 1, "num_restarts": 1, "num_snapshots": 0}
POSITIVE = ("tolerance",)
FIT = problem_of([("real", (2,))])


@settings(max_examples=300)
@given(st.sampled_from([*LEAST, *POSITIVE, "every"]), st.one_of(ANYTHING, st.integers(-3, 10**6), st.floats(0.0, 2.0)))
def test_an_option_of_a_fit_is_in_range_or_an_error(name, value):
    """What a fit is about to do, without doing it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Plan, "begin", lambda plan, saved, keeper, **_: keeper),
        mock.patch.object(Plan, "run", lambda plan, keeper, *_, **__: (plan, keeper)),
    ):
        try:
            plan, keeper = epi.fit(jax.random.key(0), FIT, checkpoint=Path(folder) / "c", **{name: value})
        except (ValueError, TypeError) as error:
            assert_sentence(str(error))
            return
    if name in LEAST:
        assert value is None or (type(value) is int and value >= LEAST[name])
    elif name == "every":
        assert keeper.every == float(value) >= 0
    else:
        assert plan.tolerance == value and 0 < value < math.inf


LITERALS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=150)
@given(st.text(string.ascii_letters + "_", min_size=1, max_size=8), LITERALS)
def test_settings_of_the_program_are_what_was_written(name, value):
    assert _setting(f"{name}={value!r}") == (name, value)


@settings(max_examples=300)
@given(st.text(max_size=30))
def test_any_other_text_is_text_or_an_error(text):
    import argparse

    for parse in (_setting, _count, _seed):
        try:
            found = parse(text)
        except argparse.ArgumentTypeError as error:
            found = str(error)
            assert_sentence(found) if repr(text) in found else pytest.fail(found)
        else:
            assert parse is not _count or found > 0
            assert parse is not _seed or 0 <= found < 2**32


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_a_literal_is_read_and_never_run(text):
    key, value = _setting(f"a={text}")
    try:
        expected = ast.literal_eval(text)
    except Exception:
        expected = text
    assert key == "a"
    assert repr(value) == repr(expected)


@settings(max_examples=200)
@given(st.text(max_size=400))
def test_a_problem_of_any_name_is_saved_in_the_current_folder(name):
    path = Path(f"{_file_name(name)}.nc")
    assert len(path.parts) == 1
    assert len(str(path).encode()) <= 255
    assert "\0" not in str(path)


ODD_NAMES = [
    *("", " ", ".", "..", "../../etc/passwd", "/", "//", "a/b", "\\", "a\0b", "\n", "con", "z" * 1000, "µ" * 300),
    *("<script>alert(1)</script>", "_FillValue", "_NCProperties", "_Netcdf4Dimid", "DIMENSION_LIST", ".zgroup"),
    *(".zattrs", "zarr.json", "chain", "draw", "posterior", "e\u0301", "\u202etxt", "😀", " lead", "trail ", "a=b;c"),
]
NAMES = st.one_of(st.sampled_from(ODD_NAMES), st.text(st.characters(exclude_categories=["Cs"]), max_size=40))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@settings(max_examples=25)
@given(names=st.lists(NAMES, min_size=1, max_size=3, unique=True), text=st.text(max_size=50))
def test_files_keep_any_name(suffix, names, text):
    """Values come back, in their order, each under its name or beside its original one."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    hypothesis.assume(not {"chain", "draw"} & set(names))
    data = {name: (("chain", "draw"), np.full((1, 2), float(i))) for i, name in enumerate(names)}
    tree = to_datatree({"posterior": xr.Dataset(data)}, {"numpyro_epi_version": "0", "problem": text})
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"inner/result{suffix}"
        path.parent.mkdir()
        write(tree, path)
        found = read_arviz(path)
        assert [p.name for p in Path(place).iterdir()] == ["inner"]
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    xr.testing.assert_identical(found, tree)
    assert found.attrs["problem"] == text.replace("\0", "\u2400")
    originals = {
        str(v.attrs.get("original_name", name)): v.values[0, 0] for name, v in found["posterior"].data_vars.items()
    }
    assert originals == {name.replace("\0", "\u2400"): float(i) for i, name in enumerate(names)}


@given(st.one_of(st.floats(), st.integers(), st.text(max_size=5), st.none(), st.booleans()))
def test_a_penalty_is_positive_and_finite_or_an_error(value):
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value < math.inf:
        assert epi.multipliers.Natural(penalty=value).penalty == value
    else:
        with pytest.raises(ValueError, match="^Expected (a finite )?penalty.*; got"):
            epi.multipliers.Natural(penalty=value)
