"""Load examples from files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank.cli.network.code import _module, _value
from lowrank.cli.network.weights import _safetensors
from lowrank.compression.network.example import check
from lowrank.compression.network.tensors import describe
from lowrank.errors import InputError

_BATCH = 64
"""Examples in a batch, for data that comes as whole tensors."""


_FILES = (".safetensors", ".npz", ".npy")
"""Endings of files that hold data."""


def load_data(name: str) -> Any:
    """Batches from a safetensors, npz or npy file, or from a function.

    Raises:
        InputError: the file or function is missing, fails, or holds no data.
    """
    path = Path(name)
    if path.suffix in _FILES:
        read = _safetensors if path.suffix == ".safetensors" else _arrays
        return _batches(path, read(path))
    where, _, function = name.rpartition(":")
    if not where:
        raise InputError(name, "it is no data", "give .safetensors, .npz, .npy or FILE.py:FUNCTION")
    data = _value(name, _module(where), function)
    pair = isinstance(data, tuple) and len(data) == 2
    if isinstance(data, Tensor) or (pair and all(isinstance(t, Tensor) for t in data)):
        x, labels = data if pair else (data, None)
        return _batches(Path(where), {"x": x} | ({} if labels is None else {"labels": labels}))
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        given = f"it returned {describe(data)}"
        raise InputError(name, given, "return a loader, a list of batches, or tensors")
    return list(data) if iter(data) is data else data


def _arrays(path: Path) -> dict[str, Tensor]:
    try:
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return {"x": torch.from_numpy(held)}
        with held as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError as error:
        raise InputError(str(path), "there is no such file", "check the path") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own
        problem = f"it is no readable {path.suffix[1:]} file ({type(error).__name__}: {error})"
        raise InputError(str(path), problem, "save numbers with numpy.save or savez") from error


def _batches(path: Path, tensors: dict[str, Tensor]) -> list[Any]:
    """Whole tensors as batches: `x`, `(x, labels)`, or dicts of keyword inputs."""
    inputs = {name: t for name, t in tensors.items() if name != "labels"}
    if not inputs:
        raise InputError(str(path), "it holds no inputs", "store them under any name but 'labels'")
    lengths = {name: len(t) if t.ndim else 0 for name, t in tensors.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        given = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise InputError(str(path), f"{given} examples", "give as many of each, at least one")
    check(inputs)
    splits = {name: t.split(_BATCH) for name, t in tensors.items()}
    if len(inputs) > 1:
        return [
            dict(zip(splits, parts, strict=True)) for parts in zip(*splits.values(), strict=True)
        ]
    [name] = inputs
    if "labels" not in tensors:
        return list(splits[name])
    return list(zip(splits[name], splits["labels"], strict=True))
