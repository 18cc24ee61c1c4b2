"""Load examples from files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.cli.network.code import _module, _value
from lowrank.cli.network.weights import _safetensors
from lowrank.compression.network.example import check
from lowrank.compression.network.tensors import describe
from lowrank.errors import InputError

_BATCH = 64
"""Examples in a batch, for data that comes as whole tensors."""


WINDOW = 128
"""Tokens of a window of text, at most."""


_FILES = (".safetensors", ".npz", ".npy")
"""Endings of files that hold data."""


def load_text(path: Path, folder: str, model: nn.Module) -> list[Any]:
    """The windows of a text, in an order of chance, as batches for a model of transformers.

    Args:
        path: of a UTF-8 file.
        folder: the model's, with its tokenizer, or its .gguf file.
        model: it.

    Raises:
        InputError: the text cannot be read, the model reads none, or there is no tokenizer.
    """
    from lowrank.cli.network.pretrained import tokenizer
    from lowrank.compression.gauges.texts import token_ids

    if (name := getattr(model, "main_input_name", None)) != "input_ids":
        problem = f"{type(model).__name__} takes {name}, no text"
        raise InputError(str(path), problem, "give .safetensors, .npz, .npy or FILE.py:FUNCTION")
    ids = token_ids(tokenizer(Path(folder)), path, str(path))
    config: Any = model.config
    length = min(len(ids), getattr(config, "max_position_embeddings", None) or WINDOW, WINDOW)
    windows = ids[: len(ids) // length * length].view(-1, length)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    batches = windows[order].split(_BATCH)
    if config.is_encoder_decoder:
        return [{"input_ids": ids, "decoder_input_ids": ids} for ids in batches]
    return list(batches)


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
        advice = "give .safetensors, .npz, .npy or FILE.py:FUNCTION"
        if path.suffix == ".txt":
            advice += "; a text is for a model of transformers in its folder"
        raise InputError(name, "it is no data", advice)
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
