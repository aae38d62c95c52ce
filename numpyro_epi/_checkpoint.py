"""What a run needs to go on, in a file that survives being killed at any moment.

The file is a line that names the format, the SHA-256 of all that follows, a line of JSON, and NumPy's own ``.npz``: nothing in it
can be executed. It is written aside, flushed to the disk and renamed, and the one before it is kept beside it, so that at every
moment one of the two is whole. A lock keeps a second run off.
"""

import hashlib
import io
import json
import os
import platform
import re
import time
import uuid
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from jaxtyping import PyTree

from ._arguments import as_number
from ._files import put
from ._problem import Problem

KIND = b"numpyro-epi checkpoint "
MAGIC = KIND + b"12\n"
"""First line; the number is that of the format."""

LEAST_UNPACKED, MOST_UNPACKED = 2**26, 100
"""Bytes that a checkpoint's arrays may take whatever its size, and times its size beyond them: noise does not compress so far."""

PREVIOUS, LOCK, ASIDE = ".previous", ".lock", ".writing"
"""Added to a checkpoint's name: the one before it, the lock of the run that writes it, and, after 32 random digits, the one that
is being written."""

FIT = "fit"
"""The function that a checkpoint is of, if it does not say."""

_ABOUT = ("problem", "origin", "options", "x64", "platform", "device", "versions", "key", "numbers", "seconds", "names")


class Saved(NamedTuple):
    """A checkpoint as it was read.

    Attributes:
        about: The run, as JSON; see `describe`.
        arrays: By name.
        path: The file that was whole.
    """

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    path: Path


class Keeper:
    """Writes one run's checkpoints, and no other run's at the same time. Use it in a ``with`` statement.

    Attributes:
        path: Where they go.
        every: Seconds that pass at least between two of them.
    """

    def __init__(self, path: str | os.PathLike[str], every: float, *, new: bool):
        self.path, self.every, self._new = Path(path), as_number(every), new
        if not self.every >= 0:
            raise ValueError(f"Expected every >= 0, in seconds; got {every!r}.")
        if not self.path.name:
            raise ValueError(f"Expected a file for the checkpoint; got {os.fspath(path)!r}, which names none.")
        if self.path.is_dir():
            raise ValueError(f"Expected a file for the checkpoint; got the folder {self.path}. Name a file in it.")
        self._lock = filelock.FileLock(f"{self.path}{LOCK}", timeout=0)
        self._saved_at = -np.inf

    def __enter__(self) -> "Keeper":
        if not self.path.parent.is_dir():
            raise ValueError(f"Expected a folder for the checkpoint; {self.path.parent} is none. Make it first.")
        if not os.access(self.path.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"Expected a folder that can be written, for the checkpoint; got {self.path.parent}.")
        try:
            self._lock.acquire()
        except OSError as error:
            # What asks for a lock tells a folder that takes no files by the same error as a lock that is taken.
            if isinstance(error, filelock.Timeout) and beside(self.path, LOCK).exists():
                raise ValueError(
                    f"Expected a checkpoint that no run is writing; {self.path} belongs to one. Wait for it, or name another."
                ) from None
            raise PermissionError(
                f"Expected a folder that can be written, for the checkpoint; got {self.path.parent}: {error}."
            ) from error
        if self._new and (left := [p for p in (self.path, beside(self.path, PREVIOUS)) if p.exists()]):
            self._lock.release()
            raise FileExistsError(
                f"Expected no checkpoint yet; got {left[0]}, left by an earlier run. Go on with it (epi.resume, or "
                "numpyro-epi resume), or delete it."
            )
        _remove_unfinished(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if not self.path.exists():
            beside(self.path, LOCK).unlink(missing_ok=True)

    def save(self, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, now: bool = False) -> None:
        """Write a checkpoint if the last is old enough, or ``now``; a full disk is a warning, the last one stays."""
        if not now and time.monotonic() - self._saved_at < self.every:
            return
        try:
            _write(self.path, about, arrays)
        except OSError as error:
            warnings.warn(f"Could not write the checkpoint {self.path}: {error}. The run goes on.", stacklevel=2)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete what is not needed once the result is safe."""
        remove(self.path)


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a checkpoint and what stands beside it."""
    _remove_unfinished(Path(path))
    for suffix in ("", PREVIOUS, LOCK):
        beside(Path(path), suffix).unlink(missing_ok=True)


def _remove_unfinished(path: Path) -> None:
    """Delete what runs that were killed while they wrote have left."""
    for each in path.parent.iterdir():
        if each.name.startswith(f"{path.name}.") and each.name.endswith(ASIDE):
            each.unlink(missing_ok=True)


def clear(path: str | os.PathLike[str]) -> None:
    """Delete what an earlier run has left, so that a new one can begin.

    Raises:
        ValueError: If a run is writing it, or it is no checkpoint.
    """
    keeper = Keeper(path, 0.0, new=False)
    files = [beside(keeper.path, suffix) for suffix in ("", PREVIOUS)]
    for each in files:
        if os.path.lexists(each) and not (each.is_file() and _starts_as_ours(each)):
            raise ValueError(f"Expected a checkpoint to replace; {each} is none, so it stays. Name another.")
    with keeper:
        for each in files:
            each.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], run: str = FIT) -> Saved:
    """The newest whole checkpoint: ``path``, or the one before it where ``path`` is missing or damaged, with a warning.

    Args:
        path: The checkpoint.
        run: Name of the function that resumes it.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If none of them is whole, or it is of another function.
    """
    path = Path(path)
    candidates = [path, beside(path, PREVIOUS)]
    if not any(candidate.is_file() for candidate in candidates):
        raise FileNotFoundError(f"Expected a checkpoint; there is no {path}.")
    faults = []
    for candidate in candidates:
        try:
            saved = Saved(*_read(candidate), candidate)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        if faults:
            warnings.warn(f"{faults[0]} Going on from the one before it, {candidate}.", stacklevel=2)
        if (found := saved.about.get("run", FIT)) != run:
            how = "epi.resume resumes it" if found == FIT else "the same call resumes it"
            raise ValueError(f"Expected a checkpoint of {run}; {candidate} is one of {found}, and {how}.")
        return saved
    raise ValueError(" ".join(faults))


def describe(problem: Problem, options: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for a run to go on: the question, the way, numbers' width; and versions, to compare."""
    return {
        "problem": {
            "name": problem.name,
            "constraints": [constraint.name for constraint in problem.constraints],
            "targets": [float(target) for target in problem.target],
            "nonfinite": problem.nonfinite,
            "parameters": [[p.name, list(p.shape)] for p in problem.simulator.parameters],
            "program": _program(problem),
        },
        "origin": problem.origin,
        "options": dict(options),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "platform": jax.default_backend(),
        "device": _device(),
        "versions": {name: version(name) for name in ("numpyro-epi", "jax", "jaxlib", "equinox", "flowjax", "numpyro")},
    }


def compare(saved: Saved, wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with something else, and say where the same numbers cannot be promised.

    Raises:
        ValueError: If the question, an option or the width of numbers differs.
    """
    about, path = saved.about, saved.path
    before, now = (
        {**each["versions"], "platform": each["platform"], "device": each["device"]} for each in (about, wanted)
    )
    same_versions = before == now
    if about["x64"] != wanted["x64"]:
        raise ValueError(
            f"Expected jax_enable_x64={about['x64']}, as {path} was made with; got {wanted['x64']}. "
            f"Call jax.config.update('jax_enable_x64', {about['x64']}) first."
        )
    for name, value in wanted["problem"].items():
        # The same model is another program under another version.
        if about["problem"].get(name) != value and (name != "program" or same_versions):
            found = f"{name} {value}" if name != "program" else "one whose model or statistics have changed"
            raise ValueError(
                f"Expected the problem that {path} was made for, {name} {about['problem'].get(name)}; got {found}."
            )
    for name, value in wanted["options"].items():
        if about["options"].get(name) != value:
            raise ValueError(
                f"Expected {name}={about['options'].get(name)}, as {path} was made with; got {value}. "
                "Pass what the run was given."
            )
    if not same_versions:
        changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
        warnings.warn(
            f"{path} was made under other versions ({', '.join(changed)}): the run goes on, but may not end at the same "
            "digits.",
            stacklevel=2,
        )


def flatten(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    """A tree's arrays by name; random keys as their words."""
    leaves = tree_flatten_with_path(tree)[0]
    return {f"{prefix}{keystr(path)}": _words(leaf) for path, leaf in leaves if _is_array(leaf)}


def unflatten(template: PyTree, arrays: Mapping[str, np.ndarray], prefix: str) -> PyTree:
    """Put arrays into a tree of the same structure.

    Raises:
        ValueError: If names, shapes or dtypes differ.
    """
    wanted = flatten(template, prefix)
    found = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    kinds = [{n: (a.shape, a.dtype) for n, a in each.items()} for each in (wanted, found)]
    if kinds[0] != kinds[1]:
        odd = next(n for n in (*wanted, *found) if kinds[0].get(n) != kinds[1].get(n))
        raise ValueError(
            f"Expected the arrays of the run that is resumed; {odd} is {kinds[1].get(odd, 'missing')}, not "
            f"{kinds[0].get(odd, 'known')}. Pass the flow, rule and optimizer that the run was given."
        )
    leaves, structure = tree_flatten_with_path(template)
    filled = [_unwords(leaf, found[f"{prefix}{keystr(path)}"]) if _is_array(leaf) else leaf for path, leaf in leaves]
    return jax.tree.unflatten(structure, filled)


def _device() -> str:
    """What computes: the same program rounds otherwise elsewhere."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _words(leaf: Any) -> np.ndarray:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _unwords(leaf: Any, array: np.ndarray) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array)


def _program(problem: Problem) -> str:
    """A fingerprint of what one draw computes: it changes with the model's code, its constants and its statistics."""
    traced = jax.make_jaxpr(problem.evaluate)(jax.random.key(0), jnp.zeros(problem.dim))
    return fingerprint(traced.consts, str(traced.jaxpr))


def fingerprint(values: Iterable[Any], text: str = "") -> str:
    """A digest of numbers and of a text."""
    digest = hashlib.sha256(without_addresses(text).encode())
    for value in values:
        digest.update(_words(value).tobytes())
    return digest.hexdigest()


def without_addresses(text: str) -> str:
    """Functions are printed with their addresses, which differ from process to process."""
    return re.sub(r" ?0x[0-9a-f]+", "", text)


def beside(path: Path, suffix: str) -> Path:
    """The file of this suffix that belongs to a checkpoint."""
    return path.with_name(path.name + suffix)


def _write(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    packed = io.BytesIO()
    # Names of leaves hold characters that a zip archive would take for folders.
    names = list(arrays)
    np.savez(packed, allow_pickle=False, **{f"array_{i}": arrays[name] for i, name in enumerate(names)})
    body = json.dumps({**about, "names": names}).encode() + b"\n" + packed.getvalue()
    # A name that nobody can know: a link by that name in a shared folder would redirect what is written.
    aside = beside(path, f".{uuid.uuid4().hex}{ASIDE}")
    try:
        with aside.open("xb") as file:
            file.write(MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(beside(path, PREVIOUS))
        put(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        kind = content[: len(MAGIC) + 2].partition(b"\n")[0].decode("ascii", "replace")
        advice = " Go on with the version of numpyro-epi that wrote it." if content.startswith(KIND) else ""
        raise ValueError(f"Expected {MAGIC.decode().strip()!r} at the start of {path}; got {kind!r}.{advice}")
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"Expected {path} as it was written; its checksum says that it is damaged or cut off.")
    try:
        line, _, packed = body.partition(b"\n")
        about = json.loads(line)
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > LEAST_UNPACKED + MOST_UNPACKED * len(packed):
            raise ValueError(f"its arrays would take {size} bytes, of {len(packed)} in the file")
        with np.load(io.BytesIO(packed), allow_pickle=False) as found:
            arrays = {name: found[f"array_{i}"] for i, name in enumerate(about["names"])}
        if missing := [name for name in _ABOUT if name not in about]:
            raise ValueError(f"it does not say its {' and '.join(missing)}")
        return about, arrays
    # A stranger's file may be anything, and each library fails on it in its own way.
    except Exception as error:
        raise ValueError(f"Expected a checkpoint in {path}; it cannot be read: {error!r}.") from error


def _starts_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(KIND)) == KIND
