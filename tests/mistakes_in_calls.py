"""Arguments that are wrong, of fits, solutions, results and densities, and the error that each must give."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flowjax.distributions import StandardNormal
from mistakes import DENSITY, FLOW, INF, KEY, NAN, RESULT, TINY, Row, fit, model, place, result

import numpyro_epi as epi

KEYS = [
    Row(f"{kind}, {call}", lambda use=use, key=key: use(key), TypeError, rf"Expected one random key first; got {got}")
    for kind, key, got in (
        ("number", 0, "0. Write jax.random.key"),
        ("none", None, "None"),
        ("batch", jax.random.split(KEY), r"an array of key<fry>\[2\]"),
        ("batch of legacy keys", np.zeros((3, 2), np.uint32), "array"),
        ("numbers", jnp.zeros(2), r"an array of float32\[2\]"),
    )
    for call, use in (("fit", fit), ("dual", lambda key: epi.solve_dual(key, TINY)))
]
KEYS += [
    Row(f"number, {call}", use, TypeError, "Expected one random key first; got 7")
    for call, use in (
        ("sample", lambda: RESULT.sample(7)),
        ("statistics", lambda: RESULT.statistics(7)),
        ("export", lambda: RESULT.to_arviz(7)),
        ("modes", lambda: DENSITY.modes(7)),
        ("certify", lambda: epi.certify(7, RESULT)),
        ("tilted", lambda: RESULT.sample_tilted(7)),
        ("published test", lambda: epi.bittner2021_test(7, RESULT)),
    )
]

FIT = [
    *(
        Row(
            f"every {given!r}",
            lambda g=given: fit(checkpoint="c", every=g),
            ValueError,
            rf"every >= 0, .*; got {given!r}",
        )
        for given in ("soon", None, NAN, -1.0)
    ),
    Row("no problem", lambda: fit(problem=model), TypeError, "Expected a Problem; got function. Write fit"),
    Row("num_draws zero", lambda: fit(num_draws=0), ValueError, "num_draws to be an integer >= 4; got 0"),
    Row("num_draws negative", lambda: fit(num_draws=-5), ValueError, "num_draws to be an integer >= 4; got -5"),
    Row("num_draws a fraction", lambda: fit(num_draws=99.5), ValueError, "num_draws to be an integer >= 4; got 99.5"),
    Row("num_draws nan", lambda: fit(num_draws=NAN), ValueError, "num_draws to be an integer >= 4; got nan"),
    Row(
        "max_steps too large",
        lambda: fit(max_steps=10**12),
        ValueError,
        "max_steps .* from 1 to 2147483647; got 1000000000000",
    ),
    Row("max_steps a flag", lambda: fit(max_steps=True), ValueError, "max_steps to be an integer >= 1; got True"),
    Row("num_restarts zero", lambda: fit(num_restarts=0), ValueError, "num_restarts to be an integer >= 1; got 0"),
    Row(
        "num_restarts a text", lambda: fit(num_restarts="2"), ValueError, "num_restarts to be an integer >= 1; got '2'"
    ),
    Row("tolerance zero", lambda: fit(tolerance=0.0), ValueError, "Expected a finite tolerance > 0, .*; got 0.0"),
    Row("tolerance nan", lambda: fit(tolerance=NAN), ValueError, "finite tolerance > 0, .*; got nan"),
    Row("tolerance infinite", lambda: fit(tolerance=INF), ValueError, "finite tolerance > 0, .*; got inf"),
    Row("tolerance a text", lambda: fit(tolerance="5 %"), ValueError, "finite tolerance > 0, .*; got '5 %'"),
    Row("tolerance none", lambda: fit(tolerance=None), ValueError, "finite tolerance > 0, .*; got None"),
    Row("tolerance a flag", lambda: fit(tolerance=True), ValueError, "finite tolerance > 0, .*; got True"),
    Row("flow a text", lambda: fit(flow="coupling"), TypeError, "Expected flow to be a builder .*got 'coupling'"),
    Row(
        "flow a class",
        lambda: fit(flow=epi.flows.Coupling),
        TypeError,
        "Expected flow to be a builder .*got <class .*Coupling",
    ),
    Row(
        "start a text",
        lambda: fit(start="prior"),
        TypeError,
        r"start to be a start, such as starts.Prior\(\); got 'prior'",
    ),
    Row("start a class", lambda: fit(start=epi.starts.Prior), TypeError, "start to be a start, .*got <class .*Prior"),
    Row("objective a text", lambda: fit(objective="score"), TypeError, "objective to be an objective, .*got 'score'"),
    Row("objective a class", lambda: fit(objective=epi.objectives.Score), TypeError, "objective, .*got <class .*Score"),
    Row("rule none", lambda: fit(rule=None), TypeError, "rule to be a rule, .*got None"),
    Row(
        "rule a class",
        lambda: fit(rule=epi.multipliers.Natural),
        TypeError,
        "rule to be a rule, .*got <class .*Natural",
    ),
    Row(
        "optimizer a number", lambda: fit(optimizer=1e-3), TypeError, "optimizer to be an optax optimiser, .*got 0.001"
    ),
    Row("optimizer a function", lambda: fit(optimizer=optax.adam), TypeError, "optax optimiser, .*got <function adam"),
    Row("certify a text", lambda: fit(certify="yes"), TypeError, "certify to be True or False; got 'yes'"),
    Row("progress a number", lambda: fit(progress=1), TypeError, "progress to be True or False; got 1"),
    Row("unknown option", lambda: fit(num_step=5), TypeError, "unexpected keyword argument 'num_step'"),
    Row(
        "flow of another size",
        lambda: fit(flow=lambda key, dim: StandardNormal((dim + 1,)), start=epi.starts.Gaussian()),
        ValueError,
        r"an unconditional flow of shape \(3,\); got shape \(4,\)",
    ),
    Row(
        "flow of another kind",
        lambda: fit(flow=lambda key, dim: dist.Normal(), start=epi.starts.Gaussian()),
        TypeError,
        "to return a flowjax distribution; got Normal",
    ),
]

PIECES = [
    Row("dual of no problem", lambda: epi.solve_dual(KEY, model), TypeError, "Expected a Problem; got function"),
    Row(
        "dual method",
        lambda: epi.solve_dual(KEY, TINY, method="nuts"),
        ValueError,
        "'chains', 'reweight' or 'adaptive'; got 'nuts'",
    ),
    Row(
        "dual tolerance", lambda: epi.solve_dual(KEY, TINY, tolerance=-1), ValueError, "Expected tolerance > 0; got -1"
    ),
    Row(
        "dual settings",
        lambda: epi.solve_dual(KEY, TINY, settings={"a": 1}),
        TypeError,
        r"ChainSettings\(...\); got \{'a': 1\}",
    ),
    Row(
        "chains too few", lambda: epi.ChainSettings(num_chains=3), ValueError, "num_chains to be an integer >= 4; got 3"
    ),
    Row("chains a flag", lambda: epi.ChainSettings(num_updates=True), ValueError, "num_updates .*; got True"),
    Row("chains precision", lambda: epi.ChainSettings(precision=NAN), ValueError, "Expected precision > 0; got nan"),
    Row("chains rate", lambda: epi.ChainSettings(rate="fast"), ValueError, "Expected rate between 0 and 1; got 'fast'"),
    Row("start without draws", lambda: epi.starts.Prior(0), ValueError, "num_draws to be an integer >= 2; got 0"),
    Row(
        "gaussian mean nan",
        lambda: epi.starts.Gaussian(NAN),
        ValueError,
        "Expected a finite mean and covariance; got nan",
    ),
    Row(
        "gaussian mean a word",
        lambda: epi.starts.Gaussian("zero"),
        ValueError,
        "a mean and a covariance of numbers; got 'zero'",
    ),
    Row(
        "gaussian draws",
        lambda: epi.starts.Gaussian(num_draws=1.5),
        ValueError,
        "num_draws to be an integer >= 2; got 1.5",
    ),
    Row(
        "gaussian of another size",
        lambda: epi.starts.Gaussian([0.0, 1.0])(KEY, TINY),
        ValueError,
        r"mean of shape \(3,\)",
    ),
    Row(
        "gaussian not definite",
        lambda: epi.starts.Gaussian(covariance=-np.eye(3))(KEY, TINY),
        ValueError,
        r"Expected a positive definite covariance; got \[\[-1.0",
    ),
    Row("pilot spreads", lambda: epi.starts.Pilot(spreads=0), ValueError, "Expected spreads > 0; got 0"),
    Row("pilot batch", lambda: epi.starts.Pilot(batch=0.5), ValueError, "batch to be an integer >= 1; got 0.5"),
    Row("pilot flag", lambda: epi.starts.Pilot(or_prior="yes"), TypeError, "or_prior to be True or False; got 'yes'"),
    Row(
        "chains start settings",
        lambda: epi.starts.Chains(500),
        TypeError,
        r"settings to be ChainSettings\(...\); got 500",
    ),
    Row("chains start tolerance", lambda: epi.starts.Chains(tolerance=INF), ValueError, "a finite tolerance; got inf"),
    Row("penalty zero", lambda: epi.multipliers.Natural(penalty=0), ValueError, "Expected penalty > 0; got 0"),
    Row("penalty a text", lambda: epi.multipliers.Natural(penalty="2"), ValueError, "Expected penalty > 0; got '2'"),
    Row(
        "penalty infinite",
        lambda: epi.multipliers.Natural(penalty=INF),
        ValueError,
        "Expected a finite penalty; got inf",
    ),
    Row("rate nan", lambda: epi.multipliers.Natural(rate=NAN), ValueError, "Expected rate > 0; got nan"),
    Row(
        "steps a fraction",
        lambda: epi.multipliers.Natural(steps_per_epoch=2.5),
        ValueError,
        "steps_per_epoch .*; got 2.5",
    ),
    Row(
        "forgetting above one", lambda: epi.multipliers.Natural(forgetting=2), ValueError, "0 < forgetting <= 1; got 2"
    ),
    Row("shrinkage none", lambda: epi.multipliers.Natural(shrinkage=None), ValueError, "0 < shrinkage <= 1; got None"),
    Row(
        "growth below one",
        lambda: epi.multipliers.GrowingPenalty(growth=0.5),
        ValueError,
        "Expected growth >= 1; got 0.5",
    ),
    Row(
        "first penalty",
        lambda: epi.multipliers.GrowingPenalty(-1.0),
        ValueError,
        "Expected initial_penalty > 0; got -1.0",
    ),
    Row(
        "factor",
        lambda: epi.multipliers.GrowingPenalty(shrinkage_factor=-1),
        ValueError,
        "shrinkage_factor <= 1; got -1",
    ),
    Row("norms", lambda: epi.multipliers.GrowingPenalty(num_norms=1), ValueError, "2 <= num_norms <= .*; got 1, 1000"),
    Row("estimator a text", lambda: epi.objectives.Pathwise("u"), TypeError, "penalty to be a function, .*; got 'u'"),
    Row(
        "path derivative",
        lambda: epi.objectives.Pathwise(path_derivative=1),
        TypeError,
        "path_derivative to be .*; got 1",
    ),
    Row(
        "anchored to a text",
        lambda: epi.objectives.Anchored("a", jnp.ones((4, 3))),
        TypeError,
        "objective to be .*; got 'a'",
    ),
    Row(
        "anchored draws",
        lambda: epi.objectives.Anchored(epi.objectives.Score(), jnp.ones(4)),
        ValueError,
        r"draws of shape \[K, D\]; got shape \[4\]",
    ),
    Row("stages zero", lambda: epi.flows.Coupling(0), ValueError, "num_stages to be an integer >= 1; got 0"),
    Row("stages a flag", lambda: epi.flows.Elementwise(True), ValueError, "num_stages to be an integer >= 1; got True"),
    Row("width a fraction", lambda: epi.flows.Coupling(width=2.5), ValueError, "width to be an integer >= 1; got 2.5"),
    Row(
        "depth negative",
        lambda: epi.flows.MaskedAutoregressive(depth=-1),
        ValueError,
        "depth to be an integer .*; got -1",
    ),
    Row(
        "transformer a text",
        lambda: epi.flows.Coupling(transformer="affine"),
        TypeError,
        "a bijection, .*; got 'affine'",
    ),
    Row(
        "transformer a function",
        lambda: epi.flows.Elementwise(transformer=epi.flows.spline),
        TypeError,
        "a bijection, .*; got <function spline",
    ),
    Row(
        "mixing a text", lambda: epi.flows.Coupling(mixing="flip"), TypeError, "mixing to be a function, .*; got 'flip'"
    ),
    Row(
        "normalise a number", lambda: epi.flows.Coupling(normalise=1), TypeError, "normalise to be True or False; got 1"
    ),
    Row(
        "scale nan", lambda: epi.flows.Coupling(initial_scale=NAN), ValueError, "initial_scale >= 0 and finite; got nan"
    ),
    Row("knots", lambda: epi.flows.spline(knots=1), ValueError, "knots to be an integer >= 2; got 1"),
    Row("interval", lambda: epi.flows.spline(interval=-4), ValueError, "Expected interval > 0; got -4"),
    Row("least scale", lambda: epi.flows.affine(2.0), ValueError, "Expected 0 <= min_scale < 1; got 2.0"),
    Row(
        "coupling of one",
        lambda: epi.flows.Coupling()(KEY, 1),
        ValueError,
        "Expected dim >= 2 for a coupling flow; got 1",
    ),
    Row("mixture of none", lambda: epi.flows.mixture([], []), ValueError, "at least one; got 0 flows"),
    Row("mixture of texts", lambda: epi.flows.mixture(["a"], [1.0]), TypeError, "flowjax distributions, .*; got 'a'"),
    Row(
        "negative share", lambda: epi.flows.mixture([FLOW], [-1.0]), ValueError, r"positive finite shares; got \[-1.0\]"
    ),
    Row("shares too few", lambda: epi.flows.mixture([FLOW, FLOW], [1.0]), ValueError, r"got 2 flows, shares \[1.0\]"),
    Row(
        "base of no transform",
        lambda: epi.flows.with_mixture_base(StandardNormal((2,)), 0, 1, 1),
        ValueError,
        "got StandardNormal",
    ),
    Row("guide of a text", lambda: epi.AutoFlow(model, "coupling"), TypeError, "flow builder or a flowjax .*; got str"),
]

RESULTS = [
    Row(
        "sample shape a text",
        lambda: RESULT.sample(KEY, "3"),
        ValueError,
        "number of a shape to be an integer >= 0; got '3'",
    ),
    Row("sample shape negative", lambda: RESULT.sample(KEY, -1), ValueError, "integer >= 0; got -1"),
    Row("sample shape a fraction", lambda: RESULT.sample(KEY, (2, 1.5)), ValueError, "integer >= 0; got 1.5"),
    Row("statistics of none", lambda: RESULT.statistics(KEY, 0), ValueError, "Expected n to be an integer >= 1; got 0"),
    Row(
        "export of no chain",
        lambda: RESULT.to_arviz(num_chains=0),
        ValueError,
        "num_chains to be an integer >= 1; got 0",
    ),
    Row(
        "export of a fraction",
        lambda: RESULT.to_arviz(num_draws=2.5),
        ValueError,
        "num_draws to be an integer >= 1; got 2.5",
    ),
    Row("tilted simulations", lambda: RESULT.tilted_model(num_simulations=0), ValueError, "num_simulations .*; got 0"),
    Row("tilted eta", lambda: result(NAN).tilted_model(), ValueError, r"Expected finite multipliers; got \[nan\]"),
    Row("tilted chains", lambda: RESULT.sample_tilted(KEY, num_chains=0), ValueError, "num_chains .*>= 1; got 0"),
    Row("tilted warmup", lambda: RESULT.sample_tilted(KEY, num_warmup=-1), ValueError, "num_warmup .*>= 0; got -1"),
    Row("certify a guide", lambda: epi.certify(KEY, FLOW), TypeError, "a result to be what fit returned; got "),
    Row(
        "certify too few draws",
        lambda: epi.certify(KEY, RESULT, num_draws=99),
        ValueError,
        "num_draws .*>= 100; got 99",
    ),
    Row("certify nan", lambda: epi.certify(KEY, result(NAN)), ValueError, r"Expected finite multipliers; got \[nan\]"),
    Row("published test level", lambda: epi.bittner2021_test(KEY, RESULT, level=2), ValueError, "0 < level < 1; got 2"),
    Row(
        "published test of none",
        lambda: epi.bittner2021_test(KEY, RESULT, num_tests=0),
        ValueError,
        "num_tests .*; got 0",
    ),
]

DENSITIES = [
    *(
        Row(f"{name}, {what}", lambda use=use, v=v: use(v), ValueError, match)
        for name, use in (
            ("density", DENSITY.log_prob),
            ("gradient", DENSITY.gradient),
            ("sensitivity", lambda v: DENSITY.sensitivity(KEY, v)),
        )
        for what, v, match in (
            ("missing site", place(p=None), r"Expected values of the parameters \['z', 'p'\]; \['p'\] are missing"),
            ("unknown site", place(q=1.0), r"Expected values of the parameters \['z', 'p'\] only; got \['q'\]"),
            (
                "wrong shape",
                place(z=np.zeros(3)),
                r"Expected 'z' of shape \(..., 2\); got \(3,\)|Expected 'z' of shape \(2,\); got \(3,\)",
            ),
            ("text", place(p="high"), "Expected numbers for 'p'; got 'high'"),
        )
    ),
    Row(
        "density, two batches",
        lambda: DENSITY.log_prob({"z": np.zeros((3, 2)), "p": np.zeros(2)}),
        ValueError,
        "one batch shape",
    ),
    Row(
        "gradient, out of support",
        lambda: DENSITY.gradient(place(p=1.5)),
        ValueError,
        "inside the parameters' support; got .*1.5",
    ),
    Row(
        "hessian, out of support",
        lambda: DENSITY.hessian(place(p=-0.5)),
        ValueError,
        "inside the parameters' support; got .*-0.5",
    ),
    Row(
        "gradient, nan", lambda: DENSITY.gradient(place(p=NAN)), ValueError, "inside the parameters' support; got .*nan"
    ),
    Row(
        "sensitivity, out of support",
        lambda: DENSITY.sensitivity(KEY, place(p=2.0)),
        ValueError,
        "parameters' support; got .*2.0",
    ),
    Row(
        "modes of no start",
        lambda: DENSITY.modes(KEY, num_starts=0),
        ValueError,
        "num_starts to be an integer >= 1; got 0",
    ),
    Row("modes of no depth", lambda: DENSITY.modes(KEY, depth=0), ValueError, "Expected depth > 0; got 0"),
    Row("modes of any depth", lambda: DENSITY.modes(KEY, depth=NAN), ValueError, "Expected depth > 0; got nan"),
    Row(
        "fixed, unknown",
        lambda: DENSITY.conditional_mode(KEY, {"q": 1.0}),
        ValueError,
        r"Expected names among \['z', 'p', .*got 'q'",
    ),
    Row(
        "fixed, nan",
        lambda: DENSITY.conditional_mode(KEY, {"p": NAN}),
        ValueError,
        "Expected finite values; got 'p': nan",
    ),
    Row(
        "fixed, wrong shape",
        lambda: DENSITY.conditional_mode(KEY, {"z": 1.0}),
        ValueError,
        r"'z' of shape \(2,\); got \(\)",
    ),
    Row("fixed, out of support", lambda: DENSITY.condition(KEY, {"p": 3.0}), ValueError, r"support; got \{'p': 3.0\}"),
    Row(
        "fixed, a text",
        lambda: DENSITY.condition(KEY, {"p": "high"}),
        ValueError,
        "Expected numbers for 'p'; got 'high'",
    ),
    Row(
        "fixed, nothing",
        lambda: DENSITY.condition(KEY, {}),
        ValueError,
        r"some parameters fixed and some free; got \[\]",
    ),
    Row("fixed, everything", lambda: DENSITY.condition(KEY, place()), ValueError, r"some free; got \['z', 'p'\]"),
    Row(
        "conditional draws",
        lambda: DENSITY.condition(KEY, {"p": 0.5}, num_samples=0),
        ValueError,
        "num_samples .*; got 0",
    ),
    Row(
        "conditional chains",
        lambda: DENSITY.condition(KEY, {"p": 0.5}, num_chains=1.5),
        ValueError,
        "num_chains .*; got 1.5",
    ),
    Row("response draws", lambda: DENSITY.target_response(KEY, num_draws=1), ValueError, "num_draws .*>= 2; got 1"),
]
