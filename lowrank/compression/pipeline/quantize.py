"""Quantize a (factorized) model's linear layers to int8, by torchao."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from lowrank.compression.network.example import refuse_lazy, unwrapped
from lowrank.compression.network.layer_names import left_out
from lowrank.compression.network.own_stages import weight_bytes
from lowrank.compression.network.tensors import distinct
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.int8 import (
    int8_layers,
    linear_in,
    quantize_linear,
    reasons_against,
)
from lowrank.errors import InputError


@dataclass(frozen=True)
class Quantized:
    """What became int8, and what that saved.

    Args:
        int8: the layers whose weights are int8 now.
        left_alone: every other layer with a weight -> why it stays.
        parameters: of the model, before and after.
        bytes_before: of its parameters.
        bytes_after: the same after: int8 values, their scales and zero points, and the rest.
    """

    int8: tuple[str, ...]
    left_alone: dict[str, str]
    parameters: int
    bytes_before: int
    bytes_after: int

    @property
    def kept(self) -> float:
        """Kept fraction of the bytes; all parameters are kept."""
        return self.bytes_after / self.bytes_before

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self) | {"kept": self.kept}

    def __str__(self) -> str:
        lines = [
            f"{len(self.int8)} layers in int8, {len(self.left_alone)} left as they are",
            f"parameters {self.parameters:,}, as before",
            f"bytes      {self.bytes_before:,} -> {self.bytes_after:,} ({100 * self.kept:.1f} %)",
        ]
        for reason in dict.fromkeys(self.left_alone.values()):
            names = [n or "(model)" for n, why in self.left_alone.items() if why == reason]
            lines.append(f"left: {', '.join(names)}: {reason}")
        return "\n".join(lines)


def quantize(
    model: nn.Module, *, skip: Sequence[str] = (), only: Sequence[str] | None = None
) -> tuple[nn.Module, Quantized]:
    """A copy of the model whose linear layers multiply in int8, for inference.

    Weights are stored as int8 with one scale a row; inputs are rounded token by token while
    the model runs. Convolutions and embeddings stay as they are: torchao has no such kernels
    for them. The result saves, loads and exports; `densify` takes it back to floating point.
    To choose ranks and int8 together under one budget of bytes, see `lowrank.Rules(int8=True)`.
    torchao's kernels take no empty input: skip experts that may be sent none.

    Args:
        model: any model, such as `compress` or `finetune` returned; left as it is.
        skip: layers to leave: names or patterns such as "head.*".
        only: the only layers to quantize.

    Returns:
        The copy, and what became of every layer with a weight.

    Raises:
        InputError: torchao is not installed, a pattern matches nothing, or no layer is left.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> small, report = quantize(net)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
        2 layers in int8, 0 left as they are
        parameters 4,680, as before
        bytes      18,720 -> 5,256 (28.1 %)

    Source: torchao's `Int8DynamicActivationInt8WeightConfig`.
    """
    refuse_lazy(model)
    model = unwrapped(model)
    reasons = reasons_against(model)
    modules = dict(model.named_modules())
    own = {id(m) for m in linear_in(model)}
    linear = [n for n, m in modules.items() if id(m) in own and n not in reasons]
    reasons |= left_out(linear, skip, only, modules)
    chosen = [name for name in linear if name not in reasons]
    if not chosen:
        first = next(iter(reasons.items()), ("the model", "it has no linear layer"))
        problem = f"no layer can be int8; {first[0] or 'the model'}: {first[1]}"
        raise InputError("quantize", problem, "pass a model with linear layers")
    with torch.inference_mode(False):
        small = copy_model(model)
        quantize_linear(small, chosen)
    n = sum(p.numel() for p in distinct(model.parameters()))
    return small, Quantized(
        tuple(int8_layers(small)), reasons, n, weight_bytes(model), weight_bytes(small)
    )
