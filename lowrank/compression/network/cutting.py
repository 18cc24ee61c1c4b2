"""Cut batches: into examples, into parts that memory holds, into fits and held-out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn

from lowrank.compression.network.example import Example, batch_size, run
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.tensors import flatten, mapped, tensors
from lowrank.errors import InputError

_MEMORY, _COPIES = 3 << 28, 4
"""Bytes that a pass may hold, and how often it does each layer's output: as it is, for its
gradient, and behind a norm and an activation."""


def in_memory(
    batches: Sequence[Example], views: Sequence[LayerView], example: Example
) -> list[Example]:
    """The batches, cut where they are one tensor, so that a pass with gradients holds about
    0.8 GB at most.

    Args:
        batches: inputs, from `calibration_batches`.
        views: the layers, from `scan` on the example.
        example: what they ran on.
    """
    numbers = sum(
        call.batch * math.prod(v.spec.output_size(call.size)) * v.spec.out_channels
        for v in views
        for call in v.calls
    )
    held = 4 * _COPIES * numbers / batch_size(example)  # bytes of one
    size = max(1, int(_MEMORY / max(1, held)))
    return [part for b in batches for part in (b.split(size) if _is_one(b) else [b])]


def _is_one(batch: Example) -> TypeGuard[Tensor]:
    return isinstance(batch, Tensor) and batch.ndim > 0


def few_of(batch: Example, n: int = 4) -> Example:
    """The first examples of a batch that is one tensor; any other as it is.

    Example:
        >>> few_of(torch.zeros(64, 3)).shape
        torch.Size([4, 3])
    """
    return batch[:n] if _is_one(batch) else batch


def split_batches(
    batches: Sequence[Example], size: int, model: nn.Module | None = None
) -> list[Example]:
    """Batches of at most `size` examples, where a batch can be cut.

    Example:
        >>> [len(b) for b in split_batches([torch.zeros(5, 3), torch.zeros(2, 3)], 4)]
        [4, 1, 2]
    """
    parts: list[Example] = []
    several: bool | None = None
    for batch in batches:
        if isinstance(batch, Tensor) and batch.ndim:
            parts.extend(batch.split(size))
            continue
        n = batch_size(batch)
        if several is None and n > size:
            several = model is not None and can_be_cut(model, batch)
        if several and n > size and _equally_long(batch):
            parts.extend(cut(batch, k, k + size) for k in range(0, n, size))
        else:
            parts.append(batch)
    return parts


def can_be_cut(model: nn.Module, batch: Example) -> bool:
    """Whether a model gives each example of a batch its output, whatever else is in the batch.

    The examples must be on the first axis of every tensor that is not 1 long there. A tensor
    may be as long by chance (positions, a mask over pairs), so the model is asked, about half
    of the batch.

    Example:
        >>> x, mask = torch.randn(8, 4, 3), torch.zeros(1, 4)
        >>> net = nn.MultiheadAttention(3, 1, batch_first=True)
        >>> can_be_cut(net, {"query": x, "key": x, "value": x, "need_weights": False})
        True
        >>> can_be_cut(net, {"query": x, "key": x, "value": x.movedim(0, 1), "need_weights": False})
        False
    """
    n = batch_size(batch)
    if n < 2 or not _equally_long(batch):
        return False
    half = n // 2
    try:
        whole, part = run(model, batch), run(model, cut(batch, 0, half))
    except InputError:
        return False
    pairs = list(zip(flatten(whole), flatten(part), strict=False))
    return bool(pairs) and all(
        y.ndim > 0 and len(y) == n and y[:half].shape == x.shape and _close(y[:half], x)
        for y, x in pairs
    )


def _close(y: Tensor, x: Tensor) -> bool:
    scale = float(y.abs().max()) if y.numel() else 0.0
    return bool(torch.allclose(y, x, rtol=1e-2, atol=1e-3 * scale))


def _equally_long(batch: Example) -> bool:
    return {t.shape[0] for t in tensors(batch) if t.ndim} - {1} == {batch_size(batch)}


def cut(batch: Example, start: int, stop: int) -> Example:
    """The examples from start to stop of a batch whose examples are on its tensors' first axis.

    Example:
        >>> cut({"x": torch.zeros(8, 3), "mask": torch.ones(1, 3)}, 2, 5)["x"].shape
        torch.Size([3, 3])
    """
    n = batch_size(batch)
    return mapped(batch, lambda t: t[start:stop] if t.ndim and len(t) == n else t)


def held_out(
    batches: Sequence[Example], model: nn.Module, most: int = 64
) -> tuple[list[Example], list[Example]]:
    """Three quarters of the examples in batches of at most `most`, and a fourth held out.

    Where they cannot be cut into two batches, all and none.

    Example:
        >>> rest, held = held_out([torch.zeros(80, 3)], nn.Linear(3, 3))
        >>> [len(b) for b in rest], [len(b) for b in held]
        ([20, 20, 20], [20])
    """
    n = sum(map(batch_size, batches))
    parts = split_batches(batches, max(1, min(most, n // 4)), model)
    if len(parts) < 2:
        return parts, []
    return [b for k, b in enumerate(parts) if k % 4], parts[::4]


def rows_of(batches: Sequence[Example], *, start: int = 0) -> list[slice]:
    """Where the examples of batches stand that follow one another.

    Example:
        >>> rows_of([torch.zeros(3, 2), torch.zeros(2, 2)])
        [slice(0, 3, None), slice(3, 5, None)]
    """
    ends = [start, *(start + n for n in accumulate(map(batch_size, batches)))]
    return [slice(a, b) for a, b in pairwise(ends)]


def rows_held_out(rest: Sequence[Example], held: Sequence[Example]) -> list[slice]:
    """Where the examples that `held_out` holds out stand among all.

    Example:
        >>> rows_held_out(*held_out([torch.zeros(80, 3)], nn.Linear(3, 3)))
        [slice(0, 20, None)]
    """
    others, mine = iter(rest), iter(held)
    parts = [next(others if k % 4 else mine) for k in range(len(rest) + len(held))]
    return rows_of(parts)[::4] if held else []
