"""Flow builders: every one is an exact density whose every coordinate can be trained, and starts near the identity."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from itertools import combinations, product

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from flowjax.distributions import StandardNormal
from jax.flatten_util import ravel_pytree
from scipy import stats

from numpyro_epi import flows

DIM, NUM_DRAWS = 3, 20
SMALL = {"width": 6, "depth": 1}
TRANSFORMERS = {"affine": flows.affine, "spline": partial(flows.spline, knots=4)}
MIXINGS = {"learnt": flows.learnt_linear, "permute": flows.fixed_permutation, "flip": flows.flip}


def coupling(transformer: str, mixing: str, normalise: bool, closing_affine: bool, num_stages: int) -> flows.Coupling:
    found = TRANSFORMERS[transformer](), MIXINGS[mixing]
    return flows.Coupling(num_stages, 6, 1, *found, normalise=normalise, closing_affine=closing_affine)


def autoregressive() -> flows.MaskedAutoregressive:
    return flows.MaskedAutoregressive(num_stages=2, **SMALL)


def autoregressive_spline() -> flows.MaskedAutoregressive:
    options = {"mixing": flows.flip, "normalise": True, "closing_affine": True}
    return flows.MaskedAutoregressive(num_stages=2, transformer=TRANSFORMERS["spline"](), **options, **SMALL)


# Every pair of choices occurs in one of these six.
PAIRS = [
    ("affine", "learnt", False, False, 2),
    ("spline", "learnt", True, True, 3),
    ("affine", "permute", False, True, 3),
    ("spline", "permute", True, False, 2),
    ("affine", "flip", True, False, 3),
    ("spline", "flip", False, True, 2),
]


def with_every_three(chosen: list[tuple]) -> list[tuple]:
    """These and more, always the one with the most new threes, until all threes of choices occur in one of them."""
    every = list(product(TRANSFORMERS, MIXINGS, (False, True), (False, True), (2, 3)))

    def threes(choice):
        return set(combinations(enumerate(choice), 3))

    missing = set().union(*map(threes, every)).difference(*map(threes, chosen))
    chosen = list(chosen)
    while missing:
        chosen.append(max(every, key=lambda choice: len(threes(choice) & missing)))
        missing -= threes(chosen[-1])
    return chosen


CHOICES = {
    f"coupling-{choice[0]}-{choice[1]}{'-normalise' * choice[2]}{'-closing' * choice[3]}-{choice[4]}": choice
    for choice in with_every_three(PAIRS)
}
BUILDERS: dict[str, Callable[[], flows.FlowBuilder]] = {
    "default": lambda: flows.default,
    "autoregressive-affine": autoregressive,
    "autoregressive-spline": autoregressive_spline,
    "elementwise": flows.Elementwise,
    "elementwise-bent": lambda: flows.Elementwise(1, flows.bent(3)),
    "elementwise-affine": lambda: flows.Elementwise(1, flows.affine(), closing_affine=True),
    **{name: partial(coupling, *choice) for name, choice in CHOICES.items()},
}
"""By name: functions that give a builder, so that its arrays have the test's precision."""

SLOW = {name for name, choice in CHOICES.items() if choice not in PAIRS}


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in BUILDERS])
def name(request):
    return request.param


@contextmanager
def double_precision():
    """So that a tolerance tells a wrong formula from rounding."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def is_frozen(leaf):
    return isinstance(leaf, flows.paramax.NonTrainable)


def trainable(flow):
    """The flow's trainable numbers as one vector, and the way back."""
    arrays, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_frozen)
    vector, unravel = ravel_pytree(arrays)
    return vector, lambda vector: eqx.combine(unravel(vector), static, is_leaf=is_frozen)


def perturbed(vector):
    """Somewhere else: at the start most maps are too simple to show a mistake."""
    return vector + 0.3 * jr.normal(jr.key(9), vector.shape, vector.dtype)


@cache
def examine(name: str) -> tuple[dict, dict]:
    """What one flow does at its start and after a perturbation."""
    with double_precision():
        vector, rebuild = trainable(BUILDERS[name]()(jr.key(1), DIM))

        def transform(vector, z):
            x, log_det = rebuild(vector).bijection.transform_and_log_det(z)
            return x, (x, log_det)

        @jax.jit
        def look(vector):
            z = jr.normal(jr.key(2), (NUM_DRAWS, DIM))
            jacobian, (x, log_det) = jax.vmap(jax.jacfwd(transform, argnums=1, has_aux=True), (None, 0))(vector, z)
            direction = jr.normal(jr.key(3), vector.shape)
            slopes = jax.jvp(lambda vector: transform(vector, z[0])[0], (vector,), (direction,))[1]
            draws, log_q = rebuild(vector).sample_and_log_prob(jr.key(3), (NUM_DRAWS,))
            log_prob = rebuild(vector).log_prob(jnp.concatenate([draws, x]))
            return {
                "z": z,
                "jacobian": jacobian,
                "log_det": log_det,
                "slopes": slopes,
                "log_q": log_q,
                "log_prob": log_prob,
                "draws": draws,
            }

        return jax.tree.map(np.asarray, (look(vector), look(perturbed(vector))))


def standard_log_density(x):
    return stats.norm.logpdf(x).sum(axis=1)


def test_log_det_is_that_of_the_autodiff_jacobian(name):
    for seen in examine(name):
        np.testing.assert_allclose(seen["log_det"], np.linalg.slogdet(seen["jacobian"])[1], rtol=1e-9, atol=1e-9)


def test_density_of_a_draw_is_that_of_the_inverse(name):
    for seen in examine(name):
        np.testing.assert_allclose(seen["log_prob"][:NUM_DRAWS], seen["log_q"], rtol=1e-7, atol=1e-7)


def test_density_is_the_change_of_variables_of_the_base(name):
    for seen in examine(name):
        expected = standard_log_density(seen["z"]) - np.linalg.slogdet(seen["jacobian"])[1]
        np.testing.assert_allclose(seen["log_prob"][NUM_DRAWS:], expected, rtol=1e-7, atol=1e-7)


def test_every_coordinate_can_be_trained(name):
    """A coordinate that no stage transforms stays at the base's for ever. Seen along a random direction."""
    assert np.all(np.abs(examine(name)[1]["slopes"]) > 1e-6)


def test_starts_near_a_standard_normal(name):
    start, later = ((seen["log_q"], standard_log_density(seen["draws"])) for seen in examine(name))
    assert np.abs(start[0] - start[1]).mean() < 0.5
    assert np.abs(later[0] - later[1]).mean() > 0.5


EXACT_STARTS = {
    "coupling": lambda: flows.Coupling(num_stages=2, initial_scale=0.0, normalise=True, closing_affine=True, **SMALL),
    "autoregressive": lambda: flows.MaskedAutoregressive(num_stages=2, initial_scale=0.0, **SMALL),
    "elementwise": flows.Elementwise,
}


@pytest.mark.parametrize("make", EXACT_STARTS.values(), ids=EXACT_STARTS.keys())
def test_with_affine_starts_at_the_asked_normal(make):
    """Without the conditioners' last layers the map is x -> loc + L P x with a permutation P."""
    loc, cholesky = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0, 0], [1.0, 0.5, 0], [-0.3, 0.2, 1.5]])
    with double_precision():
        flow = flows.with_affine(make()(jr.key(1), DIM), jnp.asarray(loc), jnp.asarray(cholesky))
        found = jax.jit(lambda key: flow.sample_and_log_prob(key, (10,)))(jr.key(0))
    x, log_q = map(np.asarray, found)
    np.testing.assert_allclose(log_q, stats.multivariate_normal(loc, cholesky @ cholesky.T).logpdf(x), rtol=1e-7)


INTEGRATED = {
    "autoregressive of one": (autoregressive, 1),
    "default of one": (lambda: flows.default, 1),
    "coupling": (partial(coupling, "spline", "flip", False, True, 2), 2),
    "autoregressive": (autoregressive, 2),
}


@pytest.mark.parametrize(("make", "dim"), INTEGRATED.values(), ids=INTEGRATED.keys())
def test_density_integrates_to_one(make, dim):
    """By the midpoint rule; a spline's density may jump at its ends, which costs it an order."""
    edge, count = 15.0, 30_000 if dim == 1 else 500
    step = 2 * edge / count
    line = -edge + step * (np.arange(count) + 0.5)
    points = np.stack(np.meshgrid(*[line] * dim), axis=-1).reshape(-1, dim)
    with double_precision():
        vector, rebuild = trainable(make()(jr.key(4), dim))
        density = jnp.exp(jax.jit(lambda vector, points: rebuild(vector).log_prob(points))(perturbed(vector), points))
        total = float(jnp.sum(density)) * step**dim
    assert abs(total - 1) < 2e-3


def test_elementwise_stays_diagonal():
    jacobian = examine("elementwise")[1]["jacobian"]
    np.testing.assert_array_equal(jacobian * (1 - np.eye(DIM)), 0.0)
    assert np.ptp(jacobian[:, np.arange(DIM), np.arange(DIM)], axis=0).min() > 0.01


def test_narrow_autoregressive_stage_is_as_wide_as_the_flow():
    """With fewer units than coordinates some of them would condition on nothing."""
    narrow = flows.MaskedAutoregressive(num_stages=1, width=1, depth=1, mixing=flows.flip, initial_scale=1.0)
    with double_precision():
        bijection = narrow(jr.key(0), DIM).bijection
        jacobian = np.asarray(jax.jit(jax.jacfwd(bijection.transform))(jr.normal(jr.key(1), (DIM,))))[::-1]
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0.0)
    assert np.all(np.any(np.tril(jacobian, -1)[1:] != 0, axis=1))


@cache
def in_single_precision():
    return flows.Coupling(num_stages=2, **SMALL)(jr.key(1), DIM)


def test_stages_differ():
    """One key for each stage: stacked weights [stage, out, in]."""
    weights = [x for x in jax.tree.leaves(in_single_precision()) if eqx.is_inexact_array(x) and x.ndim == 3]
    assert any(not np.allclose(leaf[0], leaf[1]) for leaf in weights)


def test_single_precision_keeps_the_density():
    """That is what a fit uses."""
    flow = in_single_precision()
    x, log_q = eqx.filter_jit(flow.sample_and_log_prob)(jr.key(3), (50,))
    assert x.dtype == log_q.dtype == jnp.float32
    np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x), log_q, rtol=1e-4, atol=1e-4)


def test_mixture_base_is_the_mixture_moved_by_the_flow():
    centres, spreads, shares = (
        np.array([[-3.0, 0.0], [2.0, 1.0]]),
        np.array([[1.0, 0.5], [0.3, 2.0]]),
        np.array([0.2, 0.8]),
    )
    identity = flows.with_affine(StandardNormal((2,)), jnp.array([1.0, 0.0]), jnp.eye(2))
    with double_precision():
        mixture = flows.with_mixture_base(identity, *map(jnp.asarray, (centres, spreads, shares)))
        x, log_q = map(np.asarray, jax.jit(lambda key: mixture.sample_and_log_prob(key, (50,)))(jr.key(0)))
    densities = stats.norm.pdf(x[:, None] - np.array([1.0, 0.0]), centres, spreads).prod(axis=-1)
    np.testing.assert_allclose(log_q, np.log(densities @ shares), rtol=1e-6)


BAD_FIELDS = {
    "num_stages": (flows.Coupling, {"num_stages": 0}, "Expected num_stages to be an integer >= 1; got 0"),
    "width": (flows.Coupling, {"width": -3}, "Expected width to be an integer >= 1; got -3"),
    "depth": (flows.MaskedAutoregressive, {"depth": 0}, "Expected depth to be an integer >= 1; got 0"),
    "stages": (flows.Elementwise, {"num_stages": 0}, "Expected num_stages to be an integer >= 1; got 0"),
}


@pytest.mark.parametrize(("builder", "fields", "message"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_rejects_bad_fields(builder, fields, message):
    with pytest.raises(ValueError, match=message):
        builder(**fields)


def test_coupling_needs_two_coordinates():
    with pytest.raises(ValueError, match="Expected dim >= 2 for a coupling flow; got 1. Use flows.Elementwise"):
        flows.Coupling()(jr.key(0), 1)


def test_mixture_base_needs_a_base_to_replace():
    with pytest.raises(ValueError, match="Expected a Transformed flow, whose base can be replaced; got StandardNormal"):
        flows.with_mixture_base(StandardNormal((2,)), jnp.zeros((3, 2)), jnp.ones((3, 2)), jnp.ones(3))
