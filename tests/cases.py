"""The tables that the compression tests iterate over: layers with every attribute, methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lowrank.compression import GroupedLinear, LayerSpec
from lowrank.compression.methods import METHODS, Method

Build = Callable[[], nn.Module]


def _conv(cls: type[nn.Module], i: int, o: int, k: object, **kwargs: object) -> Build:
    return lambda: cls(i, o, k, **kwargs)


LAYERS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear, no bias, 3-d input": (lambda: nn.Linear(6, 9, bias=False), (2, 4, 6)),
    "linear, even": (lambda: nn.Linear(8, 12), (2, 3, 8)),
    "linear, one input": (lambda: nn.Linear(8, 4, bias=False), (8,)),
    "linear grouped": (lambda: GroupedLinear(12, 8, groups=2), (2, 3, 12)),
    "embedding": (lambda: nn.Embedding(11, 6, padding_idx=2), (3, 5)),
    "conv1d": (_conv(nn.Conv1d, 4, 6, 5, padding=2), (2, 4, 12)),
    "conv1d dilated, strided": (_conv(nn.Conv1d, 4, 6, 3, stride=2, dilation=2), (2, 4, 15)),
    "conv1d circular": (
        _conv(nn.Conv1d, 4, 6, 3, padding=1, padding_mode="circular"),
        (2, 4, 12),
    ),
    "conv2d": (_conv(nn.Conv2d, 6, 8, 3, padding=1), (2, 6, 7, 9)),
    "conv2d no bias, unbatched": (_conv(nn.Conv2d, 6, 8, 3, bias=False), (6, 7, 9)),
    "conv2d per axis": (
        _conv(nn.Conv2d, 6, 8, (3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2), bias=False),
        (2, 6, 11, 13),
    ),
    "conv2d reflect": (
        _conv(nn.Conv2d, 6, 8, 3, padding=(1, 2), padding_mode="reflect"),
        (2, 6, 7, 9),
    ),
    "conv2d replicate": (
        _conv(nn.Conv2d, 6, 8, 3, stride=2, padding=2, padding_mode="replicate"),
        (2, 6, 8, 9),
    ),
    "conv2d same": (_conv(nn.Conv2d, 6, 8, (3, 4), padding="same", dilation=2), (2, 6, 9, 9)),
    "conv2d valid": (_conv(nn.Conv2d, 6, 8, 3, padding="valid"), (2, 6, 9, 9)),
    "conv2d 1 x 1 strided": (_conv(nn.Conv2d, 6, 8, 1, stride=2, padding=1), (2, 6, 7, 9)),
    "conv2d 1 x 3": (_conv(nn.Conv2d, 6, 8, (1, 3), stride=(2, 1), padding=(0, 1)), (2, 6, 7, 9)),
    "conv2d grouped": (_conv(nn.Conv2d, 6, 9, 3, groups=3, padding=1), (2, 6, 7, 9)),
    "conv2d depthwise": (_conv(nn.Conv2d, 6, 6, 3, groups=6, padding=1, stride=2), (2, 6, 7, 9)),
    "conv2d depthwise, two filters each": (_conv(nn.Conv2d, 4, 8, 5, groups=4), (2, 4, 9, 9)),
    "conv3d": (
        _conv(nn.Conv3d, 4, 6, (2, 3, 3), padding=(0, 1, 1), stride=(1, 2, 1)),
        (2, 4, 5, 7, 6),
    ),
    "conv3d grouped": (_conv(nn.Conv3d, 4, 6, 3, groups=2, padding=1, bias=False), (1, 4, 5, 5, 4)),
    "conv_transpose1d": (
        _conv(nn.ConvTranspose1d, 4, 6, 5, stride=3, padding=1, output_padding=2),
        (2, 4, 8),
    ),
    "conv_transpose2d": (
        _conv(nn.ConvTranspose2d, 6, 8, 4, stride=2, padding=1),
        (2, 6, 5, 7),
    ),
    "conv_transpose2d per axis, grouped": (
        _conv(
            nn.ConvTranspose2d,
            6,
            4,
            (3, 2),
            stride=(2, 3),
            padding=(1, 0),
            output_padding=(1, 2),
            dilation=(1, 2),
            groups=2,
            bias=False,
        ),
        (2, 6, 5, 4),
    ),
    "conv_transpose2d depthwise": (
        _conv(nn.ConvTranspose2d, 4, 4, 3, stride=2, groups=4),
        (2, 4, 5, 5),
    ),
    "conv_transpose3d": (
        _conv(nn.ConvTranspose3d, 3, 4, (2, 3, 3), stride=(1, 2, 2), output_padding=(0, 1, 1)),
        (1, 3, 3, 4, 3),
    ),
}
"""Name -> a layer with some combination of attributes, and the shape of its input."""


def layer_input(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A random input, word numbers for an embedding."""
    if isinstance(layer, nn.Embedding):
        return torch.randint(0, layer.num_embeddings, shape)
    return torch.randn(shape, dtype=dtype)


def full_rank_methods(spec: LayerSpec) -> Iterator[Method]:
    """Every method that serves the layer by itself, at full rank, in every variant."""
    for cls in METHODS.values():
        if "alone" in cls.serves and cls.supports(spec) is None:
            yield from cls.variants(spec)


PROMISE = {
    "cp": 0.1,
    "low_rank_sparse": 0.02,
    "low_rank_quantized": 0.02,
    "monochromatic": 1e-6,
    "legonet": 0.02,
}
"""How far the curve's error may be from the built one, where fits are interpolated."""

SELECTIVE = ("monochromatic", "legonet")
"""Methods that offer nothing where no form of theirs is smaller than the layer."""
