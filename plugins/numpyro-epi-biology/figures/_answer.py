"""What the figures have in common: their options, and the registered problem's answer."""

import argparse
from pathlib import Path

import jax
import numpy as np

import numpyro_epi as epi


def answer(problem_name: str, description: str) -> tuple[epi.Result, Path]:
    """The result that the command line asks for, by the defaults or quickly or from a file, and where the figure goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a short, rough fit")
    parser.add_argument("--result", type=Path, help="draw this saved result")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the figure and the data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    problem = epi.get_problem(problem_name)
    if arguments.result:
        result = epi.load(arguments.result, problem)
    else:
        quick = {"max_steps": 100, "num_draws": 100, "start": epi.starts.Pilot(num_draws=500)}
        result = epi.fit(jax.random.key(0), problem, **(quick if arguments.quick else {}))
        result.save(arguments.out / f"{problem_name}.nc", overwrite=True)
    print(result, "\n")
    return result, arguments.out


def simulated(result: epi.Result, count: int) -> dict[str, np.ndarray]:
    """Sites of as many fresh draws, each simulated once, shape [count, ...] each."""
    draws = result.sample(jax.random.key(2), (count,))
    keys = jax.random.split(jax.random.key(3), count)
    simulate = jax.jit(jax.vmap(lambda key, values: result.problem.simulator.simulate(key, values).sites))
    return {name: np.asarray(value) for name, value in simulate(keys, draws).items()}
