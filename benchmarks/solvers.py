"""Diffrax beside a fixed-step ``lax.scan`` for every simulated problem, and what a batch of 1,000 draws holds in memory.

    python benchmarks/solvers.py [--rows NAME ...] [--repeats 5] [--memory] [--out benchmarks/results/solvers.md]

One evaluation is the mean moments of the problem's own number of prior draws, with and without their gradient. The solvers take
turns in one process, each with its own compiled program; medians of seconds of processor time count, since others use the machine
too. "MB" is what the compiled program asks for beside its arguments. Ratios are to the solver that the model uses.

Models with steps of their own, by a scan or by ``diffrax.Euler`` with ``diffrax.StepTo``: the other one takes the same steps,
noise included, so that the moments may differ by rounding only: the error is their difference in double precision, of ten draws.
"All kept" saves a checkpoint at each step, so that the backward pass solves nothing again. Models whose steps diffrax
chooses: the classical Runge-Kutta method with as few steps between two samples as err at most like diffrax, and at most 256.
Errors are largest over draws of the statistics' means, in their standard deviations over prior draws, from a solution in double
precision with a tolerance of 1e-10.

``--memory`` writes the other table: one step of a fit (the loss and its gradient) with 1,000 draws, each problem in a process of
its own: the compiled program's request, and the process's peak with all compilation.
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _step import training_step
from _table import peak_gigabytes, write_header, write_row

import numpyro_epi as epi


class Stepped(NamedTuple):
    """A model that steps by a scan: its module, and what the scan gives out of the state after a step."""

    module: str
    output: Callable[[Any], Any]


class Solved(NamedTuple):
    """A model that diffrax solves: the module that calls it."""

    module: str


SCANS = {
    "biology.sir": Stepped("numpyro_epi_biology.sir", lambda state: state),
}
EULER = ("circuits.stg", "circuits.v1_ssn", "circuits.sc_task_switching")
SOLVED = {
    "dynamics.oscillator_simulated": Solved("numpyro_epi_dynamics.problems"),
    "biology.repressilator": Solved("numpyro_epi_biology._solve"),
    "biology.predator_prey": Solved("numpyro_epi_biology._solve"),
}
PROBLEMS = (
    *("dynamics.oscillator", "dynamics.oscillator_simulated", "biology.predator_prey", "biology.repressilator"),
    *("biology.sir", "circuits.mean_field_ei", "circuits.rnn_stable_amplification", "circuits.stg", "circuits.v1_ssn"),
    "circuits.sc_task_switching",
)
ROWS = [*SCANS, *EULER, *SOLVED]
MOST_SUBSTEPS = 256
HEADER = (
    *(
        "problem",
        "draws",
        "solver",
        "error (sd)",
        "value, s",
        "ratio",
        "value and gradient, s",
        "ratio",
        "MB",
        "MB ratio",
    ),
    "largest difference of the gradient",
)
MEMORY_HEADER = ("problem", "draws", "objective", "program (MB)", "process peak (GB)")


def main() -> None:
    """Measure every row and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="the table of memory instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "solvers.md")
    arguments = parser.parse_args()
    with arguments.out.open("a") as table:
        if arguments.memory:
            table.write("\n")
            write_header(table, MEMORY_HEADER)
            for name in PROBLEMS:
                write_row(table, _alone(_memory, name))
            return
        write_header(table, HEADER)
        for name in arguments.rows:
            for row in _alone(_compare, name, arguments.repeats):
                write_row(table, row)


def _alone(call: Callable, *arguments: Any) -> Any:
    # Unlike a pool's, its process may start another.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def _memory(name: str) -> tuple[str, ...]:
    num_draws = 1000
    program, call, objective = training_step(epi.get_problem(name), num_draws)
    call()
    megabytes = _megabytes(program.compiled)
    return name, str(num_draws), objective, f"{megabytes:.0f}", f"{peak_gigabytes():.2f}"


def _compare(name: str, repeats: int) -> list[tuple[str, ...]]:
    problem = epi.get_problem(name)
    keys = jax.random.split(jax.random.key(0), problem.num_draws)
    draws = jax.jit(jax.vmap(problem.simulator.sample_prior))(keys)
    exact, substeps = None, 0
    if name in SOLVED:
        exact = _alone(_tight, name, np.asarray(draws))
        substeps = _fewest_substeps(name, keys, draws, exact)
    variants = _variants(name, substeps)
    programs = {label: _programs(name, keys, draws, change) for label, change in variants.items()}
    seconds: dict[tuple[str, int], list[float]] = {(label, i): [] for label in programs for i in range(2)}
    for _ in range(repeats):
        for label, pair in programs.items():
            for i, program in enumerate(pair):
                began = time.process_time()
                jax.block_until_ready(program(keys, draws))
                seconds[label, i].append(time.process_time() - began)
    own = next(iter(programs))
    found = {label: [np.asarray(part, float) for part in pair[1](keys, draws)] for label, pair in programs.items()}
    if exact is None:
        errors = _alone(_differences, name, np.asarray(draws[:10]))
    else:
        errors = {
            label: _error(problem, _moments(name, keys, draws, change), exact) for label, change in variants.items()
        }
    rows = []
    for label, pair in programs.items():
        value, gradient = (float(np.median(seconds[label, i])) for i in range(2))
        own_value, own_gradient = (float(np.median(seconds[own, i])) for i in range(2))
        memory, own_memory = _megabytes(pair[1]), _megabytes(programs[own][1])
        scale = np.abs(found[own][1]).max()
        difference = np.nanmax(np.abs(found[label][1] - found[own][1])) / scale
        rows.append(
            (
                name,
                str(problem.num_draws),
                label,
                f"{errors[label]:.1e}",
                f"{value:.4f}",
                f"{value / own_value:.2f}",
                f"{gradient:.4f}",
                f"{gradient / own_gradient:.2f}",
                f"{memory:.0f}",
                f"{memory / own_memory:.2f}",
                f"{difference:.0e}",
            )
        )
    return rows


def _variants(name: str, substeps: int) -> dict[str, Callable[[], Any]]:
    """The solvers of a model, its own first, as what to change while it is traced."""
    if name in SCANS:
        module, output = SCANS[name]
        return {
            "scan": lambda: mock.patch.dict({}),
            "diffrax": lambda: _other_scan(module, _by_diffrax(output, keep_all=False)),
            "diffrax, all kept": lambda: _other_scan(module, _by_diffrax(output, keep_all=True)),
        }
    if name in EULER:
        return {
            "diffrax": lambda: mock.patch.dict({}),
            "scan": lambda: _other_diffeqsolve("numpyro_epi_circuits._euler", _euler),
        }
    module = SOLVED[name].module
    return {
        "diffrax": lambda: mock.patch.dict({}),
        f"scan, {substeps} steps a sample": lambda: _other_diffeqsolve(module, _runge_kutta(substeps)),
    }


def _programs(name: str, keys: Any, draws: Any, change: Callable[[], Any]) -> tuple[Any, Any]:
    """Compiled mean moments, and those with the gradient of their sum, each moment in its standard deviation."""
    problem = epi.get_problem(name)
    scale = jnp.asarray(np.std(_moments(name, keys, draws, change), axis=0), draws.dtype)

    def value(keys, draws):
        moments = jax.vmap(problem.evaluate)(keys, draws).moments
        return jnp.sum(jnp.mean(moments, axis=0) / scale)

    def gradient(keys, draws):
        return jax.value_and_grad(value, argnums=1)(keys, draws)

    with change():
        return tuple(jax.jit(call).lower(keys, draws).compile() for call in (value, gradient))


def _moments(name: str, keys: Any, draws: Any, change: Callable[[], Any]) -> np.ndarray:
    problem = epi.get_problem(name)
    with change():
        return np.asarray(jax.jit(jax.vmap(lambda *pair: problem.evaluate(*pair).moments))(keys, draws), float)


def _error(problem: epi.Problem, found: np.ndarray, exact: np.ndarray) -> float:
    """Largest over draws and statistics, in standard deviations over the draws."""
    means = [i for i, constraint in enumerate(problem.constraints) if constraint.order == 1]
    return float(np.max(np.abs(found - exact)[:, means] / exact[:, means].std(axis=0)))


def _tight(name: str, draws: np.ndarray) -> np.ndarray:
    """Moments in double precision, to a tolerance of 1e-10."""
    jax.config.update("jax_enable_x64", True)
    keys = jax.random.split(jax.random.key(0), len(draws))
    controller = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-10), "max_steps": 100_000}

    def tighter(*arguments, **options):
        return diffrax.diffeqsolve(*arguments, **{**options, **controller})

    return _moments(name, keys, jnp.asarray(draws, float), lambda: _other_diffeqsolve(SOLVED[name].module, tighter))


def _differences(name: str, draws: np.ndarray) -> dict[str, float]:
    """Of the moments by every solver from those by the model's own, in double precision."""
    jax.config.update("jax_enable_x64", True)
    problem, keys = epi.get_problem(name), jax.random.split(jax.random.key(0), len(draws))
    found = {
        label: _moments(name, keys, jnp.asarray(draws, float), change) for label, change in _variants(name, 0).items()
    }
    return {label: _error(problem, moments, next(iter(found.values()))) for label, moments in found.items()}


def _fewest_substeps(name: str, keys: Any, draws: Any, exact: np.ndarray) -> int:
    """As few as err at most like diffrax, a power of two."""
    problem = epi.get_problem(name)
    allowed = _error(problem, _moments(name, keys, draws, lambda: mock.patch.dict({})), exact)
    for substeps in (2**i for i in range(int(math.log2(MOST_SUBSTEPS)) + 1)):
        found = _moments(name, keys, draws, lambda n=substeps: _other_diffeqsolve(SOLVED[name].module, _runge_kutta(n)))
        if _error(problem, found, exact) <= allowed:
            return substeps
    return MOST_SUBSTEPS


@contextmanager
def _other_scan(module: str, scan: Callable) -> Iterator[None]:
    """Give the module another ``jax.lax.scan``."""
    with mock.patch(f"{module}.jax", _Wrapped(jax, lax=_Wrapped(jax.lax, scan=scan))):
        yield


@contextmanager
def _other_diffeqsolve(module: str, solve: Callable) -> Iterator[None]:
    """Give the module another ``diffrax.diffeqsolve``."""
    with mock.patch(f"{module}.diffrax", _Wrapped(diffrax, diffeqsolve=solve)):
        yield


class _Wrapped:
    """A module with some names replaced."""

    def __init__(self, module: Any, **replaced: Any):
        self._module, self._replaced = module, replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced[name] if name in self._replaced else getattr(self._module, name)


def _by_diffrax(output: Callable, *, keep_all: bool) -> Callable:
    """A scan whose steps are Euler steps of length one along the change that a step makes."""

    def scan(step, start, given):
        count = len(jax.tree.leaves(given)[0])

        def change(t, state, given):
            now = jax.tree.map(lambda each: each[jnp.asarray(t, int)], given)
            return jax.tree.map(jnp.subtract, step(state, now)[0], state)

        times = jnp.arange(count + 1.0)
        last_only = output(start) is None
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(change),
            diffrax.Euler(),
            t0=times[0],
            t1=times[-1],
            dt0=None,
            y0=start,
            args=given,
            saveat=diffrax.SaveAt(t1=True) if last_only else diffrax.SaveAt(ts=times[1:], fn=lambda t, y, _: output(y)),
            stepsize_controller=diffrax.StepTo(ts=times),
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=count if keep_all else None),
            max_steps=count,
        )
        if last_only:
            return jax.tree.map(lambda each: each[0], solution.ys), None
        return None, solution.ys

    return scan


def _euler(term, solver, t0, t1, dt0, y0, args, saveat, stepsize_controller, **options):
    """``diffrax.diffeqsolve`` with steps of length one, as a scan whose steps are computed again for the gradient."""
    times, wanted, measure = stepsize_controller.ts, saveat.subs.ts, saveat.subs.fn

    @jax.checkpoint
    def step(state, t):
        after = jax.tree.map(jnp.add, state, term.vector_field(t, state, args))
        return after, measure(t + 1, after, args) if len(wanted) > 1 else None

    last, rest = jax.lax.scan(step, y0, times[:-1])
    if rest is None:
        return SimpleNamespace(ys=measure(times[-1], last, args)[None])
    return SimpleNamespace(ys=jnp.concatenate([measure(times[0], y0, args)[None], rest])[-len(wanted) :])


def _runge_kutta(substeps: int) -> Callable:
    """``diffrax.diffeqsolve`` by the classical method of order four, equal steps between two samples."""

    def solve(term, solver, t0, t1, dt0, y0, args, saveat, **options):
        times, measure = saveat.subs.ts, saveat.subs.fn
        length = (times[1] - times[0]) / substeps

        def one(state, i):
            t = times[0] + i * length
            k1 = term.vector_field(t, state, args)
            k2 = term.vector_field(t + length / 2, state + length / 2 * k1, args)
            k3 = term.vector_field(t + length / 2, state + length / 2 * k2, args)
            k4 = term.vector_field(t + length, state + length * k3, args)
            return state + length / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

        def sample(state, k):
            state, _ = jax.lax.scan(one, state, k * substeps + jnp.arange(substeps))
            return state, measure(times[k + 1], state, args)

        _, rest = jax.lax.scan(jax.checkpoint(sample), y0, jnp.arange(len(times) - 1))
        return SimpleNamespace(ys=jnp.concatenate([measure(times[0], y0, args)[None], rest]))

    return solve


def _megabytes(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


if __name__ == "__main__":
    main()
