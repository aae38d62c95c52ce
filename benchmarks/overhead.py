"""What the loop costs beside a bare ``lax.scan`` of the same flow, batch, statistics and optimiser, in one run.

    python benchmarks/overhead.py [--steps 1000] [--repeats 5] [--out benchmarks/results/overhead.md]

Both are compiled first; they take turns, and the smallest time of each counts, since others use the machine too.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from numpyro_epi import _optimizer, flows
from numpyro_epi._loop import Loop, LoopState, combine, partition
from numpyro_epi.multipliers import Natural
from numpyro_epi.objectives import Pathwise

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from problems import EXACT

NUM_DRAWS = 500


def main() -> None:
    """Time both and print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.md")
    arguments = parser.parse_args()
    ours, bare = _ours(arguments.steps), _bare(arguments.steps)
    times = [(_seconds(ours), _seconds(bare)) for _ in range(arguments.repeats + 1)][1:]
    own, reference = (min(column) / arguments.steps * 1e3 for column in zip(*times, strict=True))
    table = (
        "| draws | D | flow | loop, ms a step | bare scan, ms a step | ratio |\n| --- | --- | --- | --- | --- | --- |\n"
        f"| {NUM_DRAWS} | 4 | 3 affine couplings of 2x50 | {own:.3f} | {reference:.3f} | {own / reference:.3f} |\n"
    )
    print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(table)


def _setting():
    problem = EXACT["oscillator_paper"]().problem
    builder = flows.Coupling(num_stages=3, width=50, depth=2, mixing=flows.flip)
    flow = flows.with_affine(builder(jax.random.key(0), problem.dim), jnp.zeros(4), 1.8 * jnp.eye(4))
    return problem, *partition(flow)


def _ours(steps: int) -> Callable[[], None]:
    problem, parameters, static = _setting()
    optimizer, rule = _optimizer.default(3000), Natural()
    loop = Loop(problem, static, Pathwise(), rule, optimizer, NUM_DRAWS, 0)
    zeros = jnp.zeros(len(problem.constraints))
    state = LoopState(
        parameters=parameters,
        averaged=parameters,
        optimizer=optimizer.init(parameters),
        rule=rule.init(jax.random.key(1), jnp.eye(zeros.size)),
        start_moments=zeros,
        remaining=jnp.zeros(()),
        key=jax.random.key(2),
        step=jnp.zeros((), int),
    )
    return lambda: jax.block_until_ready(loop.run_epochs(state, steps // rule.steps_per_epoch))


def _bare(steps: int) -> Callable[[], None]:
    """The same step as a user would write it by hand: fixed multipliers, one loss, nothing recorded but the loss."""
    problem, parameters, static = _setting()
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(2e-3, 3000)))
    eta, metric = jnp.zeros(len(problem.constraints)), 2.0 * jnp.eye(len(problem.constraints))

    def loss_of(parameters, key):
        flow_key, noise_key = jax.random.split(key)
        u, log_q = combine(parameters, static).sample_and_log_prob(flow_key, (NUM_DRAWS,))
        found = jax.vmap(problem.evaluate)(jax.random.split(noise_key, NUM_DRAWS), u)
        violations = found.moments - problem.target
        mean = violations.mean(axis=0)
        spread = jnp.sum((violations - mean) @ metric * (violations - mean)) / (NUM_DRAWS - 1)
        penalty = 0.5 * (mean @ metric @ mean - spread / NUM_DRAWS)
        return jnp.mean(log_q - found.log_base) + eta @ mean + penalty

    def step(carry, _):
        parameters, state, key = carry
        key, batch_key = jax.random.split(key)
        loss, gradient = jax.value_and_grad(loss_of)(parameters, batch_key)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optax.apply_updates(parameters, updates), state, key), loss

    # The losses are returned: of what nobody reads, the compiler leaves out the computation too.
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=steps))
    start = (parameters, optimizer.init(parameters), jax.random.key(2))
    return lambda: jax.block_until_ready(run(start))


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
