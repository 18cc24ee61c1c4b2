"""The example inputs that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from lowrank.cli.network.code import _value
from lowrank.cli.network.source import Source
from lowrank.cli.network.values import Input
from lowrank.compression.network.batches import Batch
from lowrank.compression.network.example import Example
from lowrank.compression.network.tensors import mapped
from lowrank.errors import InputError


def _example(source: Source, code: ModuleType | None, model: nn.Module, data: Any) -> Example:
    if source.inputs:
        return _made(source.inputs, model)
    if data is not None:
        for item in data:
            return mapped(Batch.of(item).inputs, lambda t: t[:1])
        raise InputError(str(source.data), "it holds no batch", "give at least one")
    if code is not None and hasattr(code, "example"):
        return _value(f"{source.model.rpartition(':')[0]}:example", code, "example")
    if code is None:
        from lowrank.cli.network import pretrained

        return pretrained.example(model)
    raise InputError(
        "example", "there is no input to run the model on", "give --input 1x3x224x224, or --data"
    )


def _made(inputs: Sequence[Input], model: nn.Module) -> Example:
    """Random floats in the type of the weights; ones where whole numbers are asked for."""
    generator = torch.Generator().manual_seed(0)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    made = []
    for given in inputs:
        dtype = getattr(torch, given.dtype) if given.dtype else like.dtype
        if dtype.is_floating_point:
            values = torch.randn(given.shape, generator=generator).to(dtype)
        else:
            values = torch.ones(given.shape, dtype=dtype)  # valid as tokens and as masks
        made.append(values.to(like.device))
    named = [given.keyword for given in inputs if given.keyword]
    if not named:
        return made[0] if len(made) == 1 else tuple(made)
    if len(set(named)) != len(inputs):
        raise InputError("--input", "some inputs have no name or one twice", "name each: ids=1x8")
    return dict(zip(named, made, strict=True))
