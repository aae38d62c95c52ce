"""Flow builders: every one is an exact density whose every coordinate can be trained, and starts near the identity."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from itertools import product

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
TRANSFORMERS = {"affine": flows.affine(), "spline": flows.spline(knots=4)}
MIXINGS = {"learnt": flows.learnt_linear, "permute": flows.fixed_permutation, "flip": flows.flip}
OTHERS = {
    "default": flows.default,
    "autoregressive-affine": flows.MaskedAutoregressive(num_stages=2, **SMALL),
    "autoregressive-spline": flows.MaskedAutoregressive(
        num_stages=2,
        transformer=TRANSFORMERS["spline"],
        mixing=flows.flip,
        normalise=True,
        closing_affine=True,
        **SMALL,
    ),
    "elementwise": flows.Elementwise(transformer=TRANSFORMERS["spline"]),
    "elementwise-affine": flows.Elementwise(num_stages=1, transformer=TRANSFORMERS["affine"], closing_affine=True),
}
# Every pair of choices occurs in one of these; all 48 combinations run with -m slow.
COVERING = {
    *(("affine", "learnt", False, False, 2), ("spline", "learnt", True, True, 3)),
    *(("affine", "permute", False, True, 3), ("spline", "permute", True, False, 2)),
    *(("affine", "flip", True, False, 3), ("spline", "flip", False, True, 2)),
}


def couplings() -> dict[str, tuple[flows.Coupling, bool]]:
    """Every transformer, mixing map, normalisation, closing map and two depths, and whether it is one of the covering."""
    found = {}
    for choice in product(TRANSFORMERS, MIXINGS, (False, True), (False, True), (2, 3)):
        transformer, mixing, normalise, closing, stages = choice
        name = f"coupling-{transformer}-{mixing}{'-normalise' * normalise}{'-closing' * closing}-{stages}"
        builder = flows.Coupling(
            num_stages=stages,
            transformer=TRANSFORMERS[transformer],
            mixing=MIXINGS[mixing],
            normalise=normalise,
            closing_affine=closing,
            **SMALL,
        )
        found[name] = builder, choice in COVERING
    return found


COUPLINGS = couplings()
BUILDERS: dict[str, Callable] = OTHERS | {name: builder for name, (builder, _) in COUPLINGS.items()}
SLOW = {name for name, (_, covering) in COUPLINGS.items() if not covering}


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
    """What one flow does at its start and after a perturbation, in double precision."""
    with double_precision():
        vector, rebuild = trainable(BUILDERS[name](jr.key(1), DIM))

        @jax.jit
        def look(vector):
            flow = rebuild(vector)
            bijection = flow.merge_transforms().bijection
            z = jr.normal(jr.key(2), (NUM_DRAWS, DIM))
            x, log_q = flow.sample_and_log_prob(jr.key(3), (NUM_DRAWS,))
            return {
                "draws": x,
                "log_q": log_q,
                "log_prob": flow.log_prob(x),
                "log_det": jax.vmap(lambda z: bijection.transform_and_log_det(z)[1])(z),
                "jacobian": jax.vmap(jax.jacfwd(bijection.transform))(z),
                "returned": jax.vmap(lambda z: bijection.inverse(bijection.transform(z)))(z) - z,
                "slopes": jax.jacrev(lambda vector: rebuild(vector).merge_transforms().bijection.transform(z[0]))(
                    vector
                ),
            }

        return jax.tree.map(np.asarray, (look(vector), look(perturbed(vector))))


def test_log_det_is_that_of_the_autodiff_jacobian(name):
    for seen in examine(name):
        np.testing.assert_allclose(seen["log_det"], np.linalg.slogdet(seen["jacobian"])[1], rtol=1e-9, atol=1e-9)


def test_density_of_a_draw_is_that_of_the_inverse(name):
    for seen in examine(name):
        np.testing.assert_allclose(seen["log_prob"], seen["log_q"], rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(seen["returned"], 0.0, atol=1e-7)


def test_every_coordinate_can_be_trained(name):
    """A coordinate that no stage transforms stays at the base's for ever."""
    assert np.all(np.abs(examine(name)[1]["slopes"]).max(axis=1) > 1e-3)


def test_starts_near_a_standard_normal(name):
    start = examine(name)[0]
    standard = stats.norm.logpdf(start["draws"]).sum(axis=1)
    assert np.abs(start["log_q"] - standard).mean() < 0.5
    assert np.abs(examine(name)[1]["log_q"] - stats.norm.logpdf(examine(name)[1]["draws"]).sum(axis=1)).mean() > 0.5


EXACT_STARTS = {
    "coupling": flows.Coupling(num_stages=2, initial_scale=0.0, normalise=True, closing_affine=True, **SMALL),
    "autoregressive": flows.MaskedAutoregressive(num_stages=2, initial_scale=0.0, closing_affine=True, **SMALL),
    "elementwise": flows.Elementwise(),
}


@pytest.mark.parametrize("builder", EXACT_STARTS.values(), ids=EXACT_STARTS.keys())
def test_starts_at_a_standard_normal_and_with_affine_at_the_asked_moments(builder):
    """Without the conditioners' last layers the map is x -> loc + L P x with a permutation P: exactly the asked normal."""
    loc, cholesky = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0, 0], [1.0, 0.5, 0], [-0.3, 0.2, 1.5]])
    with double_precision():
        flow = flows.with_affine(builder(jr.key(1), DIM), jnp.asarray(loc), jnp.asarray(cholesky))
        bijection = flow.merge_transforms().bijection
        origin, matrix = jax.jit(lambda z: (bijection.transform(z), jax.jacfwd(bijection.transform)(z)))(jnp.zeros(DIM))
        x, log_q = jax.jit(lambda key: flow.sample_and_log_prob(key, (10,)))(jr.key(0))
    np.testing.assert_allclose(origin, loc, atol=1e-9)
    np.testing.assert_allclose(matrix @ matrix.T, cholesky @ cholesky.T, rtol=1e-9)
    np.testing.assert_allclose(log_q, stats.multivariate_normal(loc, cholesky @ cholesky.T).logpdf(x), rtol=1e-8)


INTEGRATED = {
    "elementwise": (flows.Elementwise(), 1),
    "autoregressive of one": (flows.MaskedAutoregressive(num_stages=2, **SMALL), 1),
    "default of one": (flows.default, 1),
    "coupling": (BUILDERS["coupling-spline-flip-closing-2"], 2),
    "autoregressive": (BUILDERS["autoregressive-affine"], 2),
}


@pytest.mark.parametrize(("builder", "dim"), INTEGRATED.values(), ids=INTEGRATED.keys())
def test_density_integrates_to_one(builder, dim):
    """By the midpoint rule; a spline's density may jump at its ends, which costs it an order."""
    edge, count = 15.0, 30_000 if dim == 1 else 500
    step = 2 * edge / count
    line = -edge + step * (np.arange(count) + 0.5)
    points = np.stack(np.meshgrid(*[line] * dim), axis=-1).reshape(-1, dim)
    with double_precision():
        vector, rebuild = trainable(builder(jr.key(4), dim))
        density = jnp.exp(jax.jit(lambda vector, points: rebuild(vector).log_prob(points))(perturbed(vector), points))
        total = float(jnp.sum(density)) * step**dim
    assert abs(total - 1) < 2e-3


def test_one_coordinate_is_elementwise():
    """There is nothing to condition on."""
    for builder in (flows.default, flows.MaskedAutoregressive()):
        flow = builder(jr.key(0), 1)
        assert flow.shape == (1,)
        assert "conditioner" not in repr(flow)
        assert "masked_autoregressive_mlp" not in repr(flow)


def test_elementwise_stays_diagonal():
    jacobian = examine("elementwise")[1]["jacobian"]
    np.testing.assert_array_equal(jacobian * (1 - np.eye(DIM)), 0.0)
    assert np.ptp(jacobian[:, np.arange(DIM), np.arange(DIM)], axis=0).min() > 0.01


def test_narrow_autoregressive_stage_is_as_wide_as_the_flow():
    """With fewer units than coordinates some would condition on nothing."""
    narrow = flows.MaskedAutoregressive(num_stages=1, width=1, depth=1, mixing=flows.flip, initial_scale=1.0)
    with double_precision():
        transform = narrow(jr.key(0), 6).merge_transforms().bijection.transform
        jacobian = np.asarray(jax.jit(jax.jacfwd(transform))(jr.normal(jr.key(1), (6,))))[::-1]
    # Hidden units' degrees rule out some pairs, but every coordinate after the first depends on an earlier one.
    np.testing.assert_array_equal(np.triu(jacobian, 1), 0.0)
    assert np.all(np.any(np.tril(jacobian, -1)[1:] != 0, axis=1))


def test_stages_differ():
    """One key for each stage."""
    vector, rebuild = trainable(flows.Coupling(num_stages=2, **SMALL)(jr.key(0), DIM))
    weights = [leaf for leaf in jax.tree.leaves(rebuild(vector)) if eqx.is_inexact_array(leaf) and leaf.ndim == 3]
    assert any(not np.allclose(leaf[0], leaf[1]) for leaf in weights)


def test_mixture_base_is_the_mixture_moved_by_the_flow():
    centres, spreads, shares = (
        np.array([[-3.0, 0.0], [2.0, 1.0]]),
        np.array([[1.0, 0.5], [0.3, 2.0]]),
        np.array([0.2, 0.8]),
    )
    identity = flows.with_affine(StandardNormal((2,)), jnp.array([1.0, 0.0]), jnp.eye(2))
    with double_precision():
        mixture = flows.with_mixture_base(identity, *map(jnp.asarray, (centres, spreads, shares)))
        x, log_q = mixture.sample_and_log_prob(jr.key(0), (50,))
    densities = stats.norm.pdf(np.asarray(x)[:, None] - np.array([1.0, 0.0]), centres, spreads).prod(axis=-1)
    np.testing.assert_allclose(log_q, np.log(densities @ shares), rtol=1e-6)


def test_single_precision_keeps_the_density():
    """The default flow, in the precision that a fit uses."""
    vector, rebuild = trainable(flows.default(jr.key(1), 4))
    flow = rebuild(vector)
    x, log_q = eqx.filter_jit(lambda: flow.sample_and_log_prob(jr.key(3), (50,)))()
    assert vector.dtype == x.dtype == log_q.dtype == jnp.float32
    np.testing.assert_allclose(eqx.filter_jit(flow.log_prob)(x), log_q, rtol=1e-4, atol=1e-4)


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
