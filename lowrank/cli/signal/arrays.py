"""Matrices and vectors from files and into them; nothing is unpickled."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import mmread
from scipy.sparse import issparse, load_npz

from lowrank.cli.targets import saving
from lowrank.errors import InputError

Array = NDArray[Any]


READS = ".npy, .npz, .mtx, .csv or .txt"


def read_matrix(path: Path) -> Any:
    """A matrix, dense or SciPy sparse.

    Raises:
        InputError: the file is missing, damaged, of another kind, or holds several arrays.
    """
    return _read(path)


def read_vector(path: Path) -> Array:
    """Measurements (m,), or (m, batch); a matrix of one column or row is a vector.

    Raises:
        InputError: the file is missing, damaged, of another kind, or holds several arrays.
    """
    values = _read(path)
    dense = values.toarray() if issparse(values) else np.asarray(values)
    return dense.ravel() if dense.ndim == 2 and 1 in dense.shape else dense


def write_vector(path: Path, values: Array) -> None:
    """Write .npy, or .csv of real values, whole or not at all."""
    with saving(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, values, allow_pickle=False)
        else:
            np.savetxt(temporary, values, delimiter=",", fmt="%.17g")


def _read(path: Path) -> Any:
    name = path.name.removesuffix(".gz")
    reader = _READERS.get(Path(name).suffix)
    if reader is None:
        raise InputError(str(path), "it is no kind of array that is read", f"give {READS}")
    if not path.is_file():
        raise InputError(str(path), "there is no such file", "check the path")
    try:
        return reader(path)
    except _DAMAGE as error:
        if isinstance(error, InputError):
            raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(str(path), f"it is not readable ({line})", "save it again") from error


_DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)
"""What the readers raise for files that are empty, cut off, pickled or something else."""


def _npy(path: Path) -> Array:
    return np.asarray(np.load(path, allow_pickle=False))


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as found:
        names = list(found.files)
        if len(names) == 1:
            return found[names[0]]
    if "format" in names:
        return load_npz(path)
    held = ", ".join(names) or "nothing"
    raise InputError(str(path), f"it holds {held}", "save one array, or one SciPy sparse matrix")


def _text(path: Path) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # NumPy only warns of an empty file
        try:
            delimiter = "," if ".csv" in path.suffixes else None
            # spreadsheets put a byte-order mark first
            return np.loadtxt(path, delimiter=delimiter, ndmin=2, encoding="utf-8-sig")
        except UserWarning as warning:
            raise ValueError(str(warning)) from warning


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".mtx": mmread,
    ".csv": _text,
    ".txt": _text,
}
