"""Accelerators shorten float32 numbers in matrix products unless a product asks for full ones."""

import ast
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.lax import Precision

import numpyro_epi as epi
from numpyro_epi import _products, flows, objectives, signals
from numpyro_epi._density import OfFlow, Tilted
from numpyro_epi._guide import AutoFlow, FlowDistribution, FlowTransform
from numpyro_epi._products import compiled, with_full_products
from numpyro_epi._tilted import tilted_model
from numpyro_epi._work import _inside

FULL = (Precision.HIGHEST, Precision.HIGHEST)
MATRIX = jnp.array([[1.0, 0.3], [0.2, 0.7]])
KEY = jax.random.key(0)
FLOW = flows.Coupling(num_stages=1, width=4, depth=1)(KEY, 2)


def precisions(function, *arguments):
    """What each product of the function's program asks for."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                yield equation.params["precision"]
            for inner in _inside(equation.params):
                yield from walk(inner)

    return set(walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def model():
    z = numpyro.sample(
        "z", dist.MultivariateNormal(jnp.zeros(2), scale_tril=MATRIX * jnp.array([[1.0, 0.0], [1.0, 1.0]]))
    )
    numpyro.deterministic("x", MATRIX @ z)


def problem():
    return epi.Problem(model, epi.EmergentProperty(epi.Target(lambda sites: sites["x"], mean=jnp.ones(2), name="x")))


def test_products_are_full():
    assert precisions(lambda a: a @ a, MATRIX) == {None}
    assert precisions(with_full_products(lambda a: a @ a), MATRIX) == {FULL}
    assert precisions(compiled(lambda a: a @ a), MATRIX) == {FULL}


def test_transformed_functions_are_compiled_without_a_warning():
    assert precisions(compiled(jax.vmap(lambda a: a @ a)), MATRIX[None]) == {FULL}


def test_a_product_that_names_its_own_precision_keeps_it():
    low = jax.lax.Precision.DEFAULT
    assert precisions(compiled(lambda a: jnp.matmul(a, a, precision=low)), MATRIX) == {(low, low)}


def test_the_user_s_configuration_counts():
    with jax.default_matmul_precision("high"):
        assert precisions(compiled(lambda a: a @ a), MATRIX) == {(Precision.HIGH, Precision.HIGH)}
    assert jax.config.jax_default_matmul_precision is None


def evaluation():
    return problem().evaluate, (KEY, jnp.zeros(2))


def slope_of_evaluation():
    evaluate = problem().evaluate
    return jax.grad(lambda u: evaluate(KEY, u).moments.sum()), (jnp.zeros(2),)


def measurement():
    return epi.statistic(name="x")(lambda sites: MATRIX @ sites["z"]), ({"z": jnp.zeros(2)},)


def prior():
    return problem().simulator.sample_prior, (KEY,)


def means():
    return problem().mean_moments, (jax.random.split(KEY, 2), {"z": jnp.zeros(2)})


def guide():
    distribution = FlowDistribution(FLOW)
    return lambda key: distribution.log_prob(distribution.sample(key, (3,))), (KEY,)


def transform():
    there = FlowTransform(FLOW.bijection)
    return lambda x: (there.call_with_intermediates(x), there(x), there.inv(x)), (jnp.zeros(2),)


def guided_model():
    guide = AutoFlow.from_flow(model, FLOW)
    return lambda key: numpyro.handlers.seed(guide, key)(), (KEY,)


def loss(objective):
    lagrangian = objectives.Lagrangian(jnp.zeros(2), jnp.eye(2), jnp.ones(2))
    evaluate = problem().evaluate
    return lambda key: objective(key, FLOW, evaluate, lagrangian, 10)[0], (KEY,)


def density_of_a_flow():
    density = OfFlow(FLOW)
    return lambda key: density.log_prob(density.draw(key, 2)[0]), (KEY,)


def exact_density():
    density = Tilted(problem(), np.ones(2), 0.0, jnp.zeros((3, 2)), np.zeros(3))
    return density.log_prob, (jnp.zeros(2),)


def tilted_program():
    result = SimpleNamespace(problem=problem(), eta=np.ones(2), seed="0,1")
    return lambda key: numpyro.handlers.seed(tilted_model(result), key)(), (KEY,)


def simulation():
    return problem().simulator.simulate, (KEY, {"z": jnp.zeros(2)})


def spectrum():
    return partial(signals.spectral_mean_frequency, step=0.1, highest=4.0, resolution=0.5, sharpness=1.0), (
        jnp.ones(50),
    )


ANCHORED = objectives.Anchored(objectives.Pathwise(), jnp.zeros((5, 2)))
PROGRAMS = {
    program.__name__: program
    for program in (
        *(evaluation, slope_of_evaluation, simulation, measurement, spectrum, prior, means),
        *(guide, transform, guided_model, density_of_a_flow, exact_density, tilted_program),
    )
} | {
    type(objective).__name__: partial(loss, objective)
    for objective in (objectives.Pathwise(), objectives.Score(), ANCHORED)
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_what_users_call_directly_has_full_products(program):
    function, arguments = program()
    assert precisions(function, *arguments) == {FULL}


MODELS_WITH_PRODUCTS = {
    *("circuits.low_rank_rnn", "circuits.mean_field_ei", "circuits.sc_task_switching", "circuits.v1_ssn"),
    *("dynamics.oscillator_simulated", "biology.predator_prey", "biology.repressilator"),
}


@pytest.mark.parametrize("name", [provider.name for provider in epi.list_problems()])
def test_models_of_plugins_have_full_products_as_plain_numpyro_programs_too(name):
    simulator = epi.get_problem(name).simulator

    def run(key):
        trace = numpyro.handlers.trace(numpyro.handlers.seed(simulator.model, key))
        return {name: site["value"] for name, site in trace.get_trace(*simulator.args, **simulator.kwargs).items()}

    expected = {FULL} if name in MODELS_WITH_PRODUCTS else set()
    assert precisions(run, KEY) == expected


def test_every_compiled_program_has_full_products():
    """The one place that compiles is `_products`; `_memory` asks a compiler for sizes and runs nothing."""
    found = set()
    for path in Path(epi.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "attr", getattr(node, "name", ""))
            if called in ("jit", "filter_jit", "pmap", "filter_pmap"):
                found.add(path.stem)
    assert found == {"_products", "_memory"}


def test_a_program_runs_alone_within_another_vectorised_and_differentiated():
    program = compiled(lambda x: jnp.sin(x) ** 2)
    x, slope = jnp.array(0.3), np.sin(0.6)
    assert program(x) == pytest.approx(np.sin(0.3) ** 2)
    assert jax.jit(program)(x) == pytest.approx(np.sin(0.3) ** 2)
    assert jax.jit(lambda: program(x))() == pytest.approx(np.sin(0.3) ** 2)
    assert jax.vmap(program)(jnp.array([0.3, 0.0])) == pytest.approx([np.sin(0.3) ** 2, 0.0])
    assert jax.vmap(lambda _: program(x))(jnp.arange(2)) == pytest.approx([np.sin(0.3) ** 2] * 2)
    assert jax.grad(program)(x) == pytest.approx(slope)
    assert jax.jit(jax.grad(program))(x) == pytest.approx(slope)


def test_a_program_runs_where_the_compiler_does_not_know_the_options(monkeypatch):
    monkeypatch.setattr(_products, "QUICK", {"xla_cpu_has_no_such_option": False})
    _products._is_quick_known.cache_clear()
    try:
        assert compiled(lambda x: x + 1)(jnp.array(1.0)) == 2.0
        assert not _products._is_quick_known()
    finally:
        _products._is_quick_known.cache_clear()
