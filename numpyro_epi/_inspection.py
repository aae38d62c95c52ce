"""A look at a file before it is read: it may be untrusted.

Reading must run no code, follow no link out of the file, end, and take no more than about five times the memory that the
file's header declares, whatever its compressed chunks, texts and attributes hold.
"""

from pathlib import Path

from ._budget import Budget
from ._untrusted_hdf5 import inspect_hdf5
from ._untrusted_zarr import inspect_zarr


def inspect(path: Path) -> None:
    """Refuse what a NetCDF file or Zarr folder should not hold, without reading any array of numbers.

    Raises:
        Refused: If it has links, foreign codecs or types, or holds more than it declares or than its size explains.
        Exception: Whatever h5py or JSON raise on a damaged one.
    """
    if path.is_dir():
        stored = sum(file.stat().st_size for file in path.rglob("*"))
        inspect_zarr(path, Budget(path, stored))
    else:
        inspect_hdf5(path, Budget(path, path.stat().st_size))
