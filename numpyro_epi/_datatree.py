"""Exported data as a tree: in memory for ArviZ 0.x and 1.x, written to and read from NetCDF or Zarr."""

import errno
import importlib.util
import itertools
import json
import os
import shutil
import time
import unicodedata
import uuid
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ._budget import Refused
from ._files import check_free, put
from ._inspection import inspect
from ._seal import CHECKSUMS, broken_seal, seal

SAMPLE_DIMS = ("chain", "draw")
"""Dims along which ArviZ finds independent or successive draws."""

SENSITIVITY_GROUP = "sensitivity"
"""Where directions and the statistics' responses lie."""

SNAPSHOT_GROUP, SNAPSHOT_DIMS = "optimization_draws", ("snapshot", "draw")
"""Where draws kept during the run lie, and their leading dims."""

MARK = "numpyro_epi_version"

_LONGEST_KEY = 200

_NO_ROOM = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))

_RESERVED = frozenset({"DIMENSION_LIST", "zarr.json"})

_HAS_CHECKSUMS = "numpyro_epi_checksums"


def to_datatree(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> xr.DataTree:
    """Gather groups in one tree that NetCDF and Zarr can hold.

    A name that a file cannot hold is changed, ``/`` to ``.``, and the variable keeps its ``original_name``. A complex variable
    becomes two, ``.real`` and ``.imag``. Attributes become text, integers or floats: flags 0 or 1, None an empty text,
    anything nested JSON.
    """
    tree = xr.DataTree.from_dict({name: _portable(dataset) for name, dataset in groups.items()})
    tree.attrs = _attributes(attrs)
    return tree


def to_arviz(tree: xr.DataTree) -> Any:
    """Hand out what the installed ArviZ calls its container: an ``InferenceData`` (0.x) or the tree itself (1.x)."""
    import arviz as az

    return tree if int(az.__version__.split(".")[0]) >= 1 else az.InferenceData.from_datatree(tree)


def as_datatree(exported: Any) -> xr.DataTree:
    """Take exported data in any of its forms: a tree, an ArviZ 0.x ``InferenceData``, or a path to read.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(exported, xr.DataTree):
        return exported
    if isinstance(exported, str | os.PathLike):
        return read_arviz(exported)
    if hasattr(exported, "to_datatree"):
        return exported.to_datatree()
    raise TypeError(
        f"Expected exported data (a DataTree, an InferenceData or a path); got {exported!r:.100}. A result "
        "exports itself: result.to_arviz()."
    )


def write(tree: Any, path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write exported data to ``path``, all of it or nothing.

    Args:
        tree: A tree, or an ArviZ 0.x ``InferenceData``.
        path: ``.nc`` for NetCDF, ``.zarr`` for a Zarr folder.
        overwrite: Replace what is there, if it is a file or a Zarr folder.

    Raises:
        ValueError: If the suffix is neither.
        FileNotFoundError: If the parent folder is missing.
        FileExistsError: If something is there, and ``overwrite`` is false or it is of another kind.
        PermissionError: If the folder cannot be written.
        OSError: If there is no room.
        ImportError: If Zarr is asked for and not installed.
    """
    tree, target = as_datatree(tree), Path(path)
    tree = to_datatree(tree.to_dict(), tree.attrs)
    check_target(target, overwrite)
    token = uuid.uuid4().hex
    fresh, old = target.with_name(f".{token}.partial"), target.with_name(f".{token}.replaced")
    try:
        if target.suffix == ".nc":
            # By way of memory: on a full disk HDF5 cannot close its file, and ends the process.
            fresh.write_bytes(tree.to_netcdf(None, engine="h5netcdf"))
            seal(fresh)
        else:
            tree.attrs[_HAS_CHECKSUMS] = CHECKSUMS
            # Format 2 has a specification for text and for metadata in one place; format 3 has neither yet.
            tree.to_zarr(fresh, zarr_format=2, consolidated=True, encoding=_checked(tree))
            seal(fresh)
            if target.exists():
                target.rename(old)
        put(fresh, target)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            f"Expected room for a result at {target}; writing it failed: {error.strerror}. What was there is as it "
            "was. Make room, or give another path."
        ) from error
    finally:
        _discard(fresh, old, target)


def read_arviz(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read an exported file into memory and close it; it needs no model, no flow and no ArviZ.

    No code in the file is run, no link in it followed. What was saved with a digest is compared with it first; what another
    program has rewritten has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the suffix is unknown, the file is truncated or damaged, something else wrote it, or it holds what no
            export does.
        ImportError: If it is a Zarr folder and Zarr is not installed.
    """
    source = Path(path)
    engine = _engine(source)
    if not source.exists():
        raise FileNotFoundError(f"Expected an exported result at {source}; there is no such file.")
    if source.is_dir() != (source.suffix == ".zarr"):
        raise ValueError(
            f"Expected a NetCDF file or a Zarr folder, as the suffix says; got the {'folder' if source.is_dir() else 'file'} "
            f"{source}. Give it the other suffix."
        )
    if broken := broken_seal(source):
        raise ValueError(_damaged(source, broken, engine))
    try:
        inspect(source)
        # Exports hold neither dates nor masked or scaled numbers; an untrusted file's attributes cannot make them so.
        with xr.open_datatree(source, engine=engine, decode_times=False, mask_and_scale=False) as opened:
            opened.load()
            # Coordinates that groups inherit would be converted once for each group.
            groups = {node.path: _without_fill_values(node.to_dataset(inherit=False)) for node in opened.subtree}
            attrs = {str(name): value for name, value in opened.attrs.items()}
    except Refused:
        raise
    # Each storage library fails in its own way on a damaged file: say which file, and keep the cause.
    except Exception as error:
        raise ValueError(
            f"Expected a complete exported result at {source}; reading it failed: {error}. It may be truncated, or not "
            "what its suffix says. Export it again."
        ) from error
    if CHECKSUMS == attrs.pop(_HAS_CHECKSUMS, "") and not (source / CHECKSUMS).exists():
        raise ValueError(_damaged(source, f"{CHECKSUMS!r} is missing", engine))
    if MARK not in attrs:
        raise ValueError(
            f"Expected a file that numpyro_epi exported (attribute {MARK!r}); {source} has {sorted(attrs)}."
        )
    return to_datatree(groups, attrs)


def _without_fill_values(dataset: xr.Dataset) -> xr.Dataset:
    """Drop the attribute that writers add to numbers of which none is missing."""
    for variable in dataset.variables.values():
        variable.attrs.pop("_FillValue", None)
    return dataset


def _damaged(source: Path, what: str, engine: str) -> str:
    return (
        f"Expected a complete exported result at {source}; {what}. It may be truncated or damaged, or another program edited "
        f"it. Export it again; xarray.open_datatree({str(source)!r}, engine={engine!r}) reads what is there."
    )


def free_name(name: str, blocked: Iterable[str], *, prefix: str) -> str:
    tries = itertools.chain([name], (prefix + name + "_" * i for i in itertools.count()))
    return next(found for found in tries if found not in blocked)


def _portable(dataset: xr.Dataset) -> xr.Dataset:
    originals: dict[str, str] = {}
    taken = {str(name) for name in (*dataset.variables, *dataset.dims)}
    for name in sorted(name for name in taken if _file_key(name) != name):
        originals[free_name(_file_key(name), {*taken, *originals}, prefix="site.")] = name
    data: dict[str, tuple] = {}
    for key, variable in dataset.rename({old: new for new, old in originals.items()}).variables.items():
        name = str(key)
        renamed = {"original_name": originals[name]} if name in originals else {}
        attrs = _attributes({**renamed, **variable.attrs})
        # JAX hands out arrays that cannot be written to; a reader's can.
        parts = {part: np.require(values, requirements="W") for part, values in _parts(name, variable.values).items()}
        data |= {part: (variable.dims, values, attrs) for part, values in parts.items()}
    coords = [name for name in data if originals.get(name, name) in dataset.coords]
    return xr.Dataset(data, attrs=_attributes(dataset.attrs)).set_coords(coords)


def _file_key(name: str) -> str:
    """A name that both formats can hold, as a file's name too: no path, no control characters, short, no reserved word."""
    key = "".join("." if letter in "/\\" or not letter.isprintable() else letter for letter in name)
    key = unicodedata.normalize("NFC", key)
    if not key.strip(". ") or key[0] in "._ " or key[-1] == " " or key in _RESERVED:
        key = f"site.{key.strip('. ')}"
    if len(key.encode()) > _LONGEST_KEY:
        key = f"{key.encode()[: _LONGEST_KEY - 9].decode(errors='ignore')}-{zlib.crc32(name.encode()):08x}"
    return key


def _parts(name: str, values: Any) -> dict[str, np.ndarray]:
    array = np.asarray(values)
    if array.dtype.kind == "c":
        return {f"{name}.real": np.real(array), f"{name}.imag": np.imag(array)}
    if array.dtype.kind == "V":  # bfloat16 and its kin, which no file format knows.
        return {name: array.astype(np.float32)}
    if array.dtype.kind in "OT":
        # By way of a list, since NumPy casts its texts of any length to none of a fixed one.
        return {name: np.array([str(value) for value in array.ravel()], str).reshape(array.shape)}
    if array.dtype.kind == "U" and any("\0" in text for text in array.ravel()):
        return {name: np.char.replace(array, "\0", "\u2400")}
    return {name: array}


def _attributes(attrs: Mapping[Any, Any]) -> dict[str, str | int | float]:
    return {str(name): _attribute(value) for name, value in attrs.items()}


def _attribute(value: Any) -> str | int | float:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        # HDF5 ends a text at its first NUL, and UTF-8 has no lone halves of a pair.
        return value.replace("\0", "\u2400").encode(errors="replace").decode()
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return json.dumps(value, default=lambda part: part.tolist() if hasattr(part, "tolist") else str(part))


def _engine(path: Path) -> str:
    engines = {".nc": "h5netcdf", ".zarr": "zarr"}
    if path.suffix not in engines:
        raise ValueError(f"Expected a path that ends in .nc (NetCDF) or .zarr (a Zarr folder); got {path}.")
    if path.suffix == ".zarr" and importlib.util.find_spec("zarr") is None:
        raise ImportError(f"Expected the package zarr for {path}; it is missing: pip install 'zarr>=3'.")
    return engines[path.suffix]


def check_target(path: Path, overwrite: bool) -> None:
    """Find out whether something can be written, before what takes long.

    Raises:
        ValueError: As `write`, and the others.
    """
    engine = _engine(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"Expected a folder at {path.parent}; there is none. Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"Expected a folder one can write to; got {path.parent}.")
    check_free(path, overwrite=overwrite, advice="Pass overwrite=True, or another path.")
    ours = path.is_file() if engine == "h5netcdf" else any((path / part).is_file() for part in (".zgroup", "zarr.json"))
    if os.path.lexists(path) and not ours:
        raise FileExistsError(f"Expected {path} to be something {engine} wrote; it is not, so it is not replaced.")


def _checked(tree: xr.DataTree) -> dict[str, dict[str, dict]]:
    """Zarr encodings with a checksum: the default codec reads a truncated chunk as garbage, without an error."""
    import numcodecs

    codec = {"compressors": [numcodecs.Zstd(level=3, checksum=True)]}
    return {node.path: {str(name): codec for name in node.variables} for node in tree.subtree}


def _discard(fresh: Path, old: Path, target: Path) -> None:
    """Leave neither a half-written export nor a replaced one; put the old one back if no new one arrived."""
    if old.exists() and not target.exists():
        old.rename(target)
    for path in (fresh, old):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            # Zarr's threads may be writing still, where one of them has failed.
            for _ in range(10 if path is fresh else 0):
                time.sleep(0.05)
                shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
