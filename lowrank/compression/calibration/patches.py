"""What a layer multiplies its weight with: one vector per output position (im2col)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec

CHUNK = 1 << 24
"""Numbers unfolded at a time: 64 MB in float32."""


def patches(spec: LayerSpec, x: Tensor, take: Tensor | None = None) -> Tensor:
    """The vectors whose product with the canonical weight is the layer's output.

    `y[p, g] = W[g].flatten(1) @ patches[p, g] + bias` at every position p of the output, in
    the order of `outputs`. A transposed convolution is the convolution of its input with
    zeros in between, by the turned kernel.

    Args:
        spec: shape of a linear layer or a convolution of any kind.
        x: its input, batched or not.
        take: positions to give, all by default: indices into batch x output grid.

    Returns:
        (positions, groups, fan-in), fan-in = in / groups x kernel.

    Example:
        >>> spec = LayerSpec("linear", 3, 5)
        >>> patches(spec, torch.zeros(2, 4, 3)).shape
        torch.Size([8, 1, 3])
    """
    if not spec.kernel:
        rows = x.reshape(-1, spec.in_channels)
        rows = rows if take is None else rows[take]
        return rows.reshape(len(rows), spec.groups, -1)
    planes, pads = batched(spec, x).transpose(0, 1), _pads(spec)  # (c, b, *in)
    if spec.kind == "conv_transpose":
        planes = _with_zeros_between(spec, planes)
    elif any(pads):
        planes = F.pad(planes, pads, spec.padding_mode.replace("zeros", "constant"))
    picked = _windows(spec, planes, take)  # (c, k, p): each a row of its own, which is quick
    return picked.view(spec.groups, -1, picked.shape[-1]).permute(2, 0, 1)


def outputs(spec: LayerSpec, y: Tensor, take: Tensor | None = None) -> Tensor:
    """A layer's output as (positions, groups, out / groups), in the order of `patches`.

    Example:
        >>> outputs(LayerSpec("linear", 3, 5), torch.zeros(2, 4, 5)).shape
        torch.Size([8, 1, 5])
    """
    if spec.kernel:
        flat = batched(spec, y).transpose(0, 1).reshape(spec.out_channels, -1)  # (out, p)
        flat = flat if take is None else flat.index_select(1, take.to(y.device))
        return flat.view(spec.groups, -1, flat.shape[-1]).permute(2, 0, 1)
    rows = y.reshape(-1, spec.out_channels)
    rows = rows if take is None else rows[take.to(y.device)]
    return rows.reshape(len(rows), spec.groups, -1)


def n_positions(spec: LayerSpec, y: Tensor) -> int:
    """Output positions of a batch, over all examples."""
    return y.numel() // spec.out_channels


def batched(spec: LayerSpec, x: Tensor) -> Tensor:
    """A convolution's input or output with its batch axis."""
    return x if x.ndim == len(spec.kernel) + 2 else x[None]


def chunks(spec: LayerSpec, positions: Tensor) -> Iterator[Tensor]:
    """Positions in parts whose patches hold at most `CHUNK` numbers."""
    return iter(positions.split(max(1, CHUNK // (spec.n_weights // spec.weight_shape[1]))))


def _windows(spec: LayerSpec, planes: Tensor, take: Tensor | None) -> Tensor:
    """What each place of the kernel meets, (c, k, positions), of padded planes (c, b, *in)."""
    turned = spec.kind == "conv_transpose"  # and its stride lies between the inputs
    stride = (1,) * len(spec.kernel) if turned else spec.stride
    places = product(*map(range, spec.kernel))
    starts = [[i * d for i, d in zip(p, spec.dilation, strict=True)] for p in places]
    sides = zip(planes.shape[2:], starts[-1], stride, strict=True)
    grid = (planes.shape[1], *((n - far - 1) // s + 1 for n, far, s in sides))
    starts = starts[::-1] if turned else starts
    made = planes.new_empty(len(planes), len(starts), prod(grid) if take is None else len(take))
    if take is None:
        whole = made.view(len(planes), len(starts), *grid)
        for q, start in enumerate(starts):
            ends = zip(start, grid[1:], stride, strict=True)
            seen: tuple[Any, ...] = (..., *(slice(i, i + (n - 1) * s + 1, s) for i, n, s in ends))
            whole[:, q] = planes[seen]
        return made
    flat, steps = planes.reshape(len(planes), -1), _steps(planes.shape[1:])
    found = torch.unravel_index(take.to(planes.device), grid)
    moves = [s * m for s, m in zip(steps, (1, *stride), strict=True)]
    first = torch.stack([i * m for i, m in zip(found, moves, strict=True)]).sum(0)
    for q, start in enumerate(starts):
        off = sum(i * s for i, s in zip(start, steps[1:], strict=True))
        made[:, q] = flat.index_select(1, first + off)
    return made


def _steps(shape: Sequence[int]) -> list[int]:
    """How far apart neighbours along each axis lie in an array of that shape."""
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _pads(spec: LayerSpec) -> list[int]:
    """Padding as `torch.nn.functional.pad` takes it: last axis first, before and after."""
    pads: list[int] = []
    for axis in reversed(range(len(spec.kernel))):
        if isinstance(spec.padding, str):
            total = spec.dilation[axis] * (spec.kernel[axis] - 1) if spec.padding == "same" else 0
            pads += [total // 2, total - total // 2]
        else:
            pads += [spec.padding[axis]] * 2
    return pads


def _with_zeros_between(spec: LayerSpec, x: Tensor) -> Tensor:
    """The input of a transposed convolution, spread by its stride and padded by its kernel."""
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], spec.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *size)
    places: tuple[Any, ...] = (..., *(slice(None, None, s) for s in spec.stride))
    spread[places] = x
    pads: list[int] = []
    assert not isinstance(spec.padding, str)
    for axis in reversed(range(len(spec.kernel))):
        edge = spec.dilation[axis] * (spec.kernel[axis] - 1) - spec.padding[axis]
        pads += [edge, edge + spec.output_padding[axis]]
    return F.pad(spread, pads)
