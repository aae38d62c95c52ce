"""What happens to a run, and to what it leaves behind, when things go wrong.

    python benchmarks/faults.py [--kills 50] [--flips 200] [--out FILE] [--append]

Every run is a process of its own that fits a small problem, or goes on with its checkpoint where there is one. "Survived" are
faults after which the wanted result, or a clear error, came; "lost" is the most work that had to be done again, in seconds from
the last checkpoint to the fault, the certificate and the file among them, which come after it (a process that has written none
yet loses the seconds since it began, most of them Python's and the compiler's: they are told apart); "wrong" are results that
differ in any digit from an undisturbed run's, reads of damaged files that gave anything but an error or the very same content,
and answers more than 8 % of their multipliers or .06 nats off the exact one.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _table import PROVENANCE, add_table_arguments, opened, provenance, write_row

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

HEADER = ("fault", "tried", "survived", "lost (s)", "wrong", "what was seen", *PROVENANCE)
MAX_STEPS = 3000


class Outcome(NamedTuple):
    """One row of the table."""

    tried: int
    survived: int
    lost: float
    wrong: int
    seen: str


def main() -> None:
    """Try every fault, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    add_table_arguments(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, opened(arguments, HEADER) as table:
        bench = Bench(Path(folder))
        faults: dict[str, Callable[[], Outcome]] = {
            "SIGKILL at a random moment, then resumed": lambda: bench.killed(arguments.kills),
            "the same, with a start by weighed draws": lambda: Bench(Path(folder) / "pilot").killed(20),
            "SIGINT at a random moment, then resumed": lambda: bench.asked(signal.SIGINT, 5),
            "SIGTERM at a random moment, then resumed": lambda: bench.asked(signal.SIGTERM, 5),
            "checkpoint cut off or one bit turned": lambda: bench.damaged_checkpoint(arguments.flips),
            "newest checkpoint damaged, the one before whole": bench.fallen_back,
            "result file cut off or one bit turned": lambda: bench.damaged_result(arguments.flips),
            "files may not grow (a full disk)": bench.full_disk,
            "a folder that takes no files": bench.read_only,
            "two runs at one checkpoint": bench.two_at_once,
            "0.1, 10, 90 % of simulations fail, conditioned": lambda: failing("condition"),
            "0.1, 10, 90 % of simulations fail, a value instead": lambda: failing("replace"),
            "0.1, 10, 90 % of simulations fail, refused": refused,
            "all simulations fail, by each policy": all_failing,
            "steps 150 and 500 times too long": too_long,
            "a batch that does not fit": too_large,
            "the device fails, then resumed": lambda: device_lost(bench.folder),
            "a worker forked from a running process": forked,
        }
        for name, fault in faults.items():
            found = fault()
            lost = f"{found.lost:.1f}" if np.isfinite(found.lost) else "-"
            numbers = (str(found.tried), str(found.survived), lost, str(found.wrong), found.seen)
            write_row(table, (name, *numbers, *provenance()))


class Bench:
    """A folder with an undisturbed run's result to compare with; its name ``pilot`` asks for a start by weighed draws."""

    def __init__(self, folder: Path):
        folder.mkdir(exist_ok=True)
        self.folder, self.rng = folder, np.random.default_rng(0)
        self.environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs")}
        # The first run compiles, the second is timed.
        for name in ("first", "whole"):
            began = time.monotonic()
            finished = self.start(name).wait()
            if finished != 0:
                raise RuntimeError(f"Expected an undisturbed run to end with 0; got {finished}.")
        self.seconds = time.monotonic() - began

    def start(self, name: str, **more) -> subprocess.Popen:
        """Begin a run, or go on with it."""
        command = [sys.executable, __file__, "--worker", str(self.folder / name)]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True, **more)

    def is_right(self, name: str) -> bool:
        """Whether a run ended at the very numbers of the undisturbed one."""
        return _same(self.folder / f"{name}.nc", self.folder / "whole.nc")

    def killed(self, count: int) -> Outcome:
        """Chains of runs, each killed and gone on with until it comes through."""
        kills = chains = right = ended = 0
        lost = unsaved = 0.0
        while kills < count:
            name, alive, here = f"killed-{chains}", True, 0
            while alive:
                began = time.time()
                run = self.start(name)
                try:
                    # A chain is let through at the latest after five kills.
                    limit = None if kills >= count or here == 5 else self.rng.uniform(0, 1.2 * self.seconds)
                    run.communicate(timeout=limit)
                    alive = False
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.communicate()
                    kills, here = kills + 1, here + 1
                    kept_at, now = self.kept_at(name), time.time()
                    lost, unsaved = (
                        (max(lost, now - kept_at), unsaved) if kept_at > began else (lost, max(unsaved, now - began))
                    )
            chains += 1
            ended += run.returncode == 0
            right += run.returncode == 0 and self.is_right(name)
        seen = (
            f"{chains} results after {kills} kills; {right} equal the undisturbed one to the last digit; at most "
            f"{unsaved:.1f} s in a process that had written no checkpoint yet"
        )
        return Outcome(kills, kills if ended == chains else 0, lost, ended - right, seen)

    def kept_at(self, name: str) -> float:
        """When a run's last checkpoint was written."""
        path = self.folder / f"{name}.ckpt"
        return path.stat().st_mtime if path.exists() else 0.0

    def asked(self, number: signal.Signals, count: int) -> Outcome:
        """Runs that are asked to stop while their loop runs."""
        codes, right, lost = [], 0, 0.0
        for trial in range(count):
            name = f"{number.name}-{trial}"
            # A process in the background ignores SIGINT, and so do its children.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            run = self.start(name)
            signal.signal(signal.SIGINT, before)
            while run.poll() is None and not (self.folder / f"{name}.ckpt").exists():
                time.sleep(0.01)
            time.sleep(self.rng.uniform(0, 0.1))
            run.send_signal(number)
            asked_at = time.time()
            run.communicate()
            codes.append(run.returncode)
            lost = max(lost, asked_at - self.kept_at(name)) if run.returncode else lost
            ended = self.start(name)
            ended.communicate()
            right += codes[-1] == 128 + number and ended.returncode == 0 and self.is_right(name)
        return Outcome(count, right, max(lost, 0.0), count - right, f"exit codes {sorted(set(codes))}")

    def damaged_checkpoint(self, count: int) -> Outcome:
        """The checkpoint of a finished run, read after damage."""
        from numpyro_epi._checkpoint import read

        path = self.folder / "damaged.ckpt"
        whole = (self.folder / "whole.ckpt").read_bytes()
        return self._damaged(whole, path, count, lambda: read(path))

    def damaged_result(self, count: int) -> Outcome:
        """The result of a finished run, read after damage."""
        import numpyro_epi as epi

        path = self.folder / "damaged.nc"
        whole = (self.folder / "whole.nc").read_bytes()
        return self._damaged(whole, path, count, lambda: epi.read_arviz(path))

    def _damaged(self, whole: bytes, path: Path, count: int, read: Callable[[], object]) -> Outcome:
        refused = same = 0
        for trial in range(count):
            place = int(self.rng.integers(len(whole)))
            broken = bytearray(whole[:place] if trial % 2 else whole)
            if trial % 2 == 0:
                broken[place] ^= 1 << int(self.rng.integers(8))
            path.write_bytes(bytes(broken))
            try:
                read()
                same += path.suffix == ".nc" and _same(path, self.folder / "whole.nc")
            except (ValueError, OSError) as error:
                refused += str(path) in str(error)
            path.unlink()
        seen = f"{refused} refused with the file's name, {same} read with unchanged content"
        return Outcome(count, refused + same, np.nan, count - refused - same, seen)

    def fallen_back(self) -> Outcome:
        """A run whose newest checkpoint is damaged goes on from the one before."""
        for suffix in (".ckpt", ".ckpt.previous"):
            shutil.copy(self.folder / f"whole{suffix}", self.folder / f"back{suffix}")
        path = self.folder / "back.ckpt"
        path.write_bytes(path.read_bytes()[:-100])
        run = self.start("back")
        _, said = run.communicate()
        right = run.returncode == 0 and self.is_right("back")
        return Outcome(1, int(right), np.nan, int(not right), "a warning" if "Going on from" in said else "no warning")

    def full_disk(self) -> Outcome:
        """A process that may write 100 bytes to a file and no more: every checkpoint and the result fail."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

        run = self.start("full", preexec_fn=limit)
        _, said = run.communicate()
        left = [path for path in self.folder.glob("full*") if not path.name.endswith(".lock")]
        clear = run.returncode == 1 and "The run goes on" in said and "File too large" in said
        seen = (
            f"checkpoints: a warning each time; result: {said.strip().splitlines()[-1][:100]}; {len(left)} files left"
        )
        return Outcome(1, int(clear), np.nan, len(left), seen.replace(str(self.folder), "..."))

    def read_only(self) -> Outcome:
        """Checkpoint, result and report where nothing can be written; ``/proc/self`` takes no files from anybody."""
        import numpyro_epi as epi
        from numpyro_epi._datatree import write

        tree, refused, seen = epi.read_arviz(self.folder / "whole.nc"), 0, []
        for attempt in (
            lambda: _fit(Path("/proc/self/run.ckpt")),
            lambda: write(tree, "/proc/self/run.nc"),
            lambda: epi.report(tree, "/proc/self/run.html"),
        ):
            try:
                attempt()
            except (OSError, ValueError) as error:
                refused += "/proc/self" in str(error)
                seen.append(f"{type(error).__name__}: {str(error)[:60]}")
        return Outcome(3, refused, np.nan, 3 - refused, "; ".join(seen))

    def two_at_once(self) -> Outcome:
        """The second of two runs that write to one checkpoint."""
        first = self.start("shared")
        while first.poll() is None and not (self.folder / "shared.ckpt").exists():
            time.sleep(0.01)
        second = self.start("shared")
        _, said = second.communicate()
        first.communicate()
        right = first.returncode == 0 and self.is_right("shared")
        refused = second.returncode == 1 and "Expected a checkpoint that no run is writing" in said
        return Outcome(2, int(right) + int(refused), np.nan, int(not right), "the second is refused at once")


def failing(policy: str) -> Outcome:
    """Fits by the defaults, where the border of failure cuts through the property, against quadrature."""
    import jax
    from failing import exact_answer, failing_problem

    import numpyro_epi as epi

    right, seen = 0, []
    for share in (0.001, 0.1, 0.9):
        found = epi.fit(jax.random.key(0), failing_problem(share, policy), progress=False)
        exact = exact_answer(share, policy)
        off = np.max(np.abs(found.eta - exact.eta)) / np.max(np.abs(exact.eta))
        right += found.satisfied and off < 0.08 and abs(found.entropy - exact.entropy) < 0.06
        seen.append(
            f"{found.status_name}, entropy {found.entropy - exact.entropy:+.3f} nats, multipliers {off:.1%} off"
        )
    return Outcome(3, right, np.nan, 3 - right, "; ".join(seen))


def refused() -> Outcome:
    """Failures that nothing was said about, which the property does not lead away from."""
    import jax
    from failing import failing_problem

    import numpyro_epi as epi

    found = [
        epi.fit(jax.random.key(0), failing_problem(share, "refuse", correlated=False), progress=False)
        for share in (0.001, 0.1, 0.9)
    ]
    wrong = sum(one.satisfied for one in found)
    return Outcome(3, 3 - wrong, np.nan, wrong, ", ".join(one.status_name for one in found))


def all_failing() -> Outcome:
    """No simulation is finite."""
    import jax
    from failing import failing_problem

    import numpyro_epi as epi

    names = []
    for policy in ("refuse", "condition", "replace"):
        found = epi.fit(jax.random.key(0), failing_problem(1.0, policy), start=epi.starts.Gaussian(), progress=False)
        names.append(found.status_name)
    wrong = names.count("satisfied")
    return Outcome(3, 3 - wrong, np.nan, wrong, ", ".join(names))


def too_long() -> Outcome:
    """Adam with the learning rates of another problem."""
    import jax
    import optax
    from failing import failing_problem

    import numpyro_epi as epi

    seen, well = [], 0
    for rate in (0.3, 1.0):
        problem = failing_problem(0.001, "condition")
        found = epi.fit(
            jax.random.key(0), problem, start=epi.starts.Gaussian(), optimizer=optax.adam(rate), progress=False
        )
        halved = int(found.records["diverged"].sum())
        well += bool(np.isfinite(found.entropy))
        seen.append(f"rate {rate}: {found.status_name}, steps halved {halved} times")
    return Outcome(2, well, np.nan, 0, "; ".join(seen))


def too_large() -> Outcome:
    """More draws a step than any memory holds."""
    import jax
    from failing import failing_problem

    import numpyro_epi as epi

    try:
        epi.fit(
            jax.random.key(0),
            failing_problem(0.1, "refuse"),
            start=epi.starts.Gaussian(),
            num_draws=10**9,
            max_steps=1,
        )
    except MemoryError as error:
        return Outcome(1, 1, np.nan, 0, str(error))
    return Outcome(1, 0, np.nan, 1, "it ran")


def device_lost(folder: Path) -> Outcome:
    """The device's own error in the middle of the loop."""
    import jax
    from failing import failing_problem

    import numpyro_epi as epi
    from numpyro_epi import _loop

    path, problem, run, calls = folder / "lost.ckpt", failing_problem(0.1, "condition"), _loop.Loop.run_epochs, []
    options = {"start": epi.starts.Gaussian(), "progress": False}
    whole = epi.fit(jax.random.key(0), problem, max_steps=500, **options)

    def breaks(self, state, num_epochs):
        calls.append(num_epochs)
        if len(calls) == 4:
            raise jax.errors.JaxRuntimeError("INTERNAL: device lost")
        return run(self, state, num_epochs)

    _loop.Loop.run_epochs = breaks
    try:
        epi.fit(jax.random.key(0), problem, max_steps=500, checkpoint=path, every=0.0, **options)
        said = "nothing"
    except RuntimeError as error:
        said = str(error).replace(str(folder), "...")
    finally:
        _loop.Loop.run_epochs = run
    resumed = epi.resume(path, problem, **options)
    right = np.array_equal(resumed.eta, whole.eta) and resumed.entropy == whole.entropy
    return Outcome(1, int(right), np.nan, int(not right), said)


def forked() -> Outcome:
    """Work in a child of a process where JAX is running."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            pool.apply(all_failing)
        except RuntimeError as error:
            return Outcome(1, 1, np.nan, 0, str(error).partition(";")[0])
    return Outcome(1, 0, np.nan, 1, "it ran")


def _same(one: Path, other: Path) -> bool:
    import numpyro_epi as epi

    trees = [epi.read_arviz(path) for path in (one, other)]
    groups = [set(tree.children) for tree in trees]
    # Wall time and when it was made are the run's own.
    return groups[0] == groups[1] and all(
        trees[0][name].to_dataset().equals(trees[1][name].to_dataset()) for name in groups[0]
    )


def _fit(checkpoint: Path):
    """A fit, or what is left of it; in a folder ``pilot`` its start is found by weighed draws."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    import numpyro_epi as epi

    def cloud() -> None:
        numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))

    @epi.statistic(name="total")
    def total(sites):
        return jnp.sum(sites["x"])

    prop = epi.EmergentProperty(epi.Target(total, mean=0.5, std=0.5))
    problem = epi.Problem(cloud, prop, num_draws=100, max_steps=MAX_STEPS)
    start = epi.starts.Pilot() if checkpoint.parent.name == "pilot" else epi.starts.Prior()
    if checkpoint.exists() or checkpoint.with_name(checkpoint.name + ".previous").exists():
        return epi.resume(checkpoint, problem, start=start, every=0.0)
    return epi.fit(jax.random.key(1), problem, start=start, checkpoint=checkpoint, every=0.0)


def _work(path: Path) -> int:
    """One run: fit, or go on; then save."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    result = _fit(path.with_suffix(".ckpt"))
    if cut_by := result.settings["cut_by"]:
        return 128 + signal.Signals[cut_by]
    # A run that was killed after it had saved is run again.
    result.save(path.with_suffix(".nc"), overwrite=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        warnings.simplefilter("always")
        raise SystemExit(_work(Path(sys.argv[2])))
    main()
