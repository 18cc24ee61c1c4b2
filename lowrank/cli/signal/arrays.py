"""Matrices and vectors from files and into them; nothing is unpickled."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, mmread
from scipy.sparse import issparse, load_npz

from lowrank.cli.signal.text import read_text
from lowrank.cli.targets import saving
from lowrank.errors import InputError

Array = NDArray[Any]


READS = ".npy, .npz, .mtx, .mat, .csv or .txt"


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
    name = path.name.lower().removesuffix(".gz")
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
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as opened:
            return np.asarray(np.load(io.BytesIO(opened.read()), allow_pickle=False))
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


def _mat(path: Path) -> Any:
    try:
        found = loadmat(path)
    except NotImplementedError as error:
        text = "it is of MATLAB's version 7.3"
        raise InputError(str(path), text, "save it with save('A.mat', 'A', '-v7')") from error
    arrays = {name: value for name, value in found.items() if not name.startswith("__")}
    if len(arrays) != 1:
        held = ", ".join(arrays) or "nothing"
        raise InputError(str(path), f"it holds {held}", "save one matrix or vector")
    return next(iter(arrays.values()))


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".mtx": mmread,
    ".mat": _mat,
    ".csv": read_text,
    ".txt": read_text,
}
