"""The doctor passes what is healthy, and names what is not."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from problems import EXACT

from numpyro_epi._check import CheckItem, CheckReport, check
from numpyro_epi._problem import Problem
from numpyro_epi._property import EmergentProperty, Target
from numpyro_epi.statistics import statistic, value

KEY = jr.key(0)
Z = Target(value.bind(site="z"), mean=0.5)
X = Target(value.bind(site="x"), mean=0.0)
SLOPE = "gradient of T"


def normal():
    """One standard normal parameter, z."""
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def noisy():
    """The parameter z, seen through noise of variance 1."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0))


def unmoved():
    """Whose noise does not depend on the parameter."""
    numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def improper():
    """One parameter with an improper prior."""
    numpyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), event_shape=()))


def prior_on_noise():
    """Whose parameter's prior moves with the noise."""
    numpyro.sample("z", dist.Normal(numpyro.sample("x", dist.Normal(0.0, 1.0)), 1.0))


def support_on_noise():
    """Whose parameter's support moves with the noise."""
    numpyro.sample("z", dist.Uniform(0.0, numpyro.sample("x", dist.Uniform(1.0, 2.0))))


def outside_noise():
    """Which draws from NumPy behind JAX's back."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.deterministic("x", z + np.random.default_rng().normal())


def loops():
    """Whose statistic comes out of a while loop, through which reverse mode cannot go."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.deterministic("x", jax.lax.while_loop(lambda x: jnp.abs(x) > 1, lambda x: x / 2, z))


def fails_when_run():
    """A model that raises only once it computes."""
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))

    def measure(z):
        raise RuntimeError("no licence for the solver")

    numpyro.deterministic(
        "x", jax.pure_callback(measure, jax.ShapeDtypeStruct((), z.dtype), z, vmap_method="sequential")
    )


@jax.custom_jvp
def doubled_slope(x):
    """The identity, with a wrong derivative."""
    return x


doubled_slope.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))


def root_of_positive(z):
    """Finite, but where() differentiates the branch not taken too."""
    return jnp.where(z > 0, jnp.sqrt(z), 0.0)


def of_z(function: Callable, *, mean: float = 0.5, std: float | None = None, differentiable: bool = True) -> Target:
    """A target on a function of z."""
    decorate = statistic(name="T", unit="mV", differentiable=differentiable)
    return Target(decorate(lambda sites: function(sites["z"])), mean, std)


def report(*targets: Target, model=normal, **options) -> CheckReport:
    return check(Problem(model, EmergentProperty(*targets), **options), KEY, num_draws=300)


HEALTHY = {
    "oscillator": EXACT["oscillator_paper"]().problem,
    "dirichlet": EXACT["dirichlet"]().problem,
    "noise": Problem(noisy, EmergentProperty(Target(value.bind(site="x"), mean=0.5, std=1.2)), parameters=("z",)),
}


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(problem, id=name, marks=() if name == "noise" else pytest.mark.slow)
        for name, problem in HEALTHY.items()
    ],
)
def test_a_healthy_problem_passes_all(problem):
    found = problem.check(KEY)
    assert [item for item in found.items if item.passed is not True] == []
    assert found.passed


INDICATOR = {"function": lambda z: jnp.where(z > 0, 1.0, 0.0)}
FAULTS = {
    "NaN everywhere": ([of_z(lambda z: z * jnp.nan)], {}, "finite", False, r"0\.0% of .* not finite elsewhere: T\."),
    "NaN in a tenth": ([of_z(lambda z: jnp.log(z + 1.28))], {}, "finite", None, r"(8|9)\d\.\d% of .* elsewhere: T\."),
    "constant": ([of_z(lambda z: 0 * z + 3.0), Z], {}, "T", False, r"constant: 3 mV in every draw, target 0\.5 mV\."),
    "duplicate": ([of_z(lambda z: 1 - 2 * z), Z], {}, "independent", None, r"dependent moments: T, value\(z\)\."),
    "declared indicator": ([of_z(**INDICATOR, differentiable=False)], {}, SLOPE, None, r"declared not .*Score\(\)"),
    "indicator": ([of_z(**INDICATOR)], {}, SLOPE, False, r"zero in every draw, though .*objectives\.Score\(\)"),
    "jumps": ([of_z(lambda z: jnp.round(z) + 0.1 * z)], {}, SLOPE, False, r"wrong: it is \d+ standard errors"),
    "wrong derivative": ([of_z(doubled_slope)], {}, SLOPE, False, r"wrong: it is \d+ standard errors"),
    "infinite slope": ([of_z(root_of_positive)], {}, SLOPE, False, r"not finite in \d+\.\d% of the draws\. Look for"),
    "no reverse mode": ([X], {"model": loops}, "gradient", False, r"model 'loops' failed: ValueError: Reverse-mode"),
    "moves nothing": ([X], {"model": unmoved, "parameters": ("z",)}, "gradient of value(x)", None, "may not depend"),
    "mean out of range": (
        [of_z(jnp.tanh, mean=1.2)],
        {},
        "T",
        False,
        r"target 1\.2 mV was out of reach: all 1800 draws",
    ),
    "spread out of range": ([of_z(jnp.tanh, std=1.6)], {}, "var T", False, r"target 2\.56 \(mV\)\^2 was out of reach"),
    "spread below the noise": (
        [Target(value.bind(site="x"), mean=0.5, std=0.5)],
        {"model": noisy, "parameters": ("z",)},
        "noise of value(x)",
        None,
        r"noise alone gives a variance of (0\.[89]|1\.[01])\d* on average, more than the wanted 0\.25\.",
    ),
    "together out of reach": (
        [of_z(jnp.square, mean=0.1), Z],
        {},
        "together",
        None,
        r"no mixture of \d+ draws has all targets at once; the closest misses",
    ),
    "prior on noise": (
        [Z],
        {"model": prior_on_noise, "parameters": ("z",)},
        "prior",
        False,
        r"density changed with the noise, \['x'\]",
    ),
    "support on noise": (
        [Z],
        {"model": support_on_noise, "parameters": ("z",), "base": "lebesgue"},
        "prior",
        False,
        r"parameters' support and density changed with the noise",
    ),
    "outside noise": ([X], {"model": outside_noise}, "repeatable", False, r"gave two results\. .*numpyro\.prng_key"),
    "improper": ([Z], {"model": improper}, "draws", None, r"prior is improper: 300 standard normal draws"),
    "fails when run": ([X], {"model": fails_when_run}, "finite", False, r"model 'fails_when_run' failed: .*"),
}


@pytest.mark.parametrize(("targets", "options", "name", "passed", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_is_named(targets, options, name, passed, message):
    found = report(*targets, **options)
    item = {item.name: item for item in found.items}[name]
    assert item.passed is passed
    assert re.search(message, item.message), item.message
    assert found.passed == (passed is None)


def test_lebesgue_base_allows_a_density_that_moves_with_the_noise():
    """Only its support matters there."""
    found = report(Z, model=prior_on_noise, parameters=("z",), base="lebesgue")
    assert found.passed


def test_scale_is_that_of_the_prior():
    z = {item.name: item.message for item in report(of_z(lambda z: 3 + 2 * z)).items}["T"]
    mean, sd, low, high, target = (float(number) for number in re.findall(r"-?\d+\.?\d*", z))
    # Of 300 normal draws: five standard errors; the range is about +-2.9 standard deviations.
    assert abs(mean - 3) < 5 * 2 / np.sqrt(300)
    assert abs(sd - 2) < 5 * 2 / np.sqrt(600)
    assert low < 3 - 4 < 3 + 4 < high
    assert target == 0.5
    assert z.endswith("target 0.5 mV")


def test_report_is_a_table_that_fits_a_terminal():
    found = CheckReport(
        "model", (CheckItem("a", True, "word " * 40), CheckItem("longer", None, "b"), CheckItem("c", False, "d"))
    )
    lines = str(found).splitlines()
    assert lines[0] == "model: 1 ok, 1 warn, 1 FAIL"
    assert lines[1].startswith("  ok    a       word")
    assert lines[2].startswith("                word")
    assert lines[-2:] == ["  warn  longer  b", "  FAIL  c       d"]
    assert max(map(len, lines)) <= 110


def test_too_few_draws_are_refused():
    problem = Problem(normal, EmergentProperty(Z))
    with pytest.raises(ValueError, match="Expected num_draws to be an integer >= 10; got 9"):
        check(problem, KEY, num_draws=9)
