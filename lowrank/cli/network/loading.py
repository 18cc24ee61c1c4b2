"""From the names on the command line to a model, an example and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lowrank.cli.network.code import _build, _module
from lowrank.cli.network.data import _FILES, load_data, load_text
from lowrank.cli.network.examples import _example
from lowrank.cli.network.source import Source
from lowrank.cli.network.values import is_pretrained
from lowrank.cli.network.weights import _with_weights
from lowrank.compression.network.batches import placed
from lowrank.compression.network.example import Example


@dataclass(frozen=True, eq=False)
class Loaded:
    """What the commands work on.

    Args:
        model: the model, with its weights.
        example: inputs of one forward pass.
        data: batches, or None where none were named.
    """

    model: nn.Module
    example: Example
    data: Any


def load(source: Source) -> Loaded:
    """Build the model, load its weights, find an example.

    Raises:
        InputError: a file, module or function that is missing or fails, or no example.
        CheckpointError: weights that are damaged or belong to another model.
    """
    code = None
    if is_pretrained(source.model):
        from lowrank.cli.network import pretrained

        model = pretrained.load(Path(source.model), allow_pickle=source.allow_pickle)
    else:
        where, _, function = source.model.rpartition(":")
        code = _module(where)
        model = _build(source.model, code, function)
    if source.weights is not None:
        model = _with_weights(model, source.weights, allow_pickle=source.allow_pickle)
    data = None if source.data is None else _data(source.data, source.model, code, model)
    return Loaded(model, _example(source, code, model, data), data)


def _data(name: str, model_name: str, code: ModuleType | None, model: nn.Module) -> Any:
    """What `--data` names: a text, for a model of transformers, a file of tensors or a function."""
    if code is None and name.endswith(".txt"):
        return [placed(batch, model) for batch in load_text(Path(name), model_name, model)]
    data = load_data(name)
    if isinstance(data, list) and Path(name).suffix in _FILES:
        return [placed(batch, model) for batch in data]  # numpy makes float64 of everything
    return data
