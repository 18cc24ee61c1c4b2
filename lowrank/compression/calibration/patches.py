"""What a layer multiplies its weight with: one vector per output position (im2col)."""

from __future__ import annotations

from collections.abc import Iterator
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
    windows = _windows(spec, batched(spec, x))  # (b, c, *out, *k)
    n = len(spec.kernel)
    grid = (windows.shape[0], *windows.shape[2 : 2 + n])
    if take is None:
        picked = windows.movedim(1, 1 + n).reshape(prod(grid), *windows.shape[1:2], *spec.kernel)
    else:
        b, *places = torch.unravel_index(take.to(x.device), grid)
        index: tuple[Any, ...] = (b, slice(None), *places)
        picked = windows[index]  # (p, c, *k)
    return picked.reshape(len(picked), spec.groups, -1)


def outputs(spec: LayerSpec, y: Tensor, take: Tensor | None = None) -> Tensor:
    """A layer's output as (positions, groups, out / groups), in the order of `patches`.

    Example:
        >>> outputs(LayerSpec("linear", 3, 5), torch.zeros(2, 4, 5)).shape
        torch.Size([8, 1, 5])
    """
    if spec.kernel:
        y = batched(spec, y).movedim(1, -1)
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


def _windows(spec: LayerSpec, x: Tensor) -> Tensor:
    if spec.kind == "conv_transpose":
        spread = _with_zeros_between(spec, x)
        windows = _unfold(spread, spec.kernel, (1,) * len(spec.kernel), spec.dilation)
        return windows.flip(tuple(range(-len(spec.kernel), 0)))
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    pads = _pads(spec)
    padded = F.pad(x, pads, mode) if any(pads) else x
    return _unfold(padded, spec.kernel, spec.stride, spec.dilation)


def _unfold(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """(b, c, *in) as a view (b, c, *out, *k)."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return x


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
