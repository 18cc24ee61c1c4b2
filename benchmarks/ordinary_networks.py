"""The networks that people have, at their published widths, with random weights.

Spectra fall a little as in trained networks, and batch norms hold the statistics of passes in
training mode, so a planner finds something to choose and a fit something to mend. Nothing is
downloaded. `ordinary.py` compresses them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SEED, GRAIN, PASSES, SPREAD = 0, 8, 3, 0.6
"""Noise is drawn this many times coarser; passes in training mode; spread of the logarithms of
the pattern that multiplies a weight."""


@dataclass(frozen=True)
class Network:
    """How to build a network, and what it is run on.

    Args:
        build: gives it with the weights of its initialisation.
        shape: of one input.
        reduced: of one input as small as the network takes.
        count: calibration examples.
        words: size of the vocabulary where inputs are words.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    reduced: tuple[int, ...]
    count: int
    words: int | None = None

    def seeded(self) -> nn.Module:
        """The network in evaluation mode, the same each time."""
        torch.manual_seed(SEED)
        return self.build().eval()

    def inputs(self, shape: tuple[int, ...], count: int) -> Tensor:
        """(count, *shape): smooth noise, or random words; the same each time."""
        generator = torch.Generator().manual_seed(SEED + 1)
        if self.words is not None:
            return torch.randint(0, self.words, (count, *shape), generator=generator)
        coarse = [max(2, side // GRAIN) for side in shape[1:]]
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(coarse)]
        noise = torch.randn(count, shape[0], *coarse, generator=generator)
        fine = torch.randn(count, *shape, generator=generator)
        return F.interpolate(noise, shape[1:], mode=mode) + 0.1 * fine

    def prepared(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The network with falling spectra and real statistics, calibration and held-out inputs."""
        model = faded(self.seeded())
        data, held = self.inputs(self.shape, 2 * self.count).split(self.count)
        return with_statistics(model, data), data, held


def faded(model: nn.Module) -> nn.Module:
    """The model with each weight multiplied by a smooth random pattern, at its old norm.

    The pattern is exp(a_i + b_j), of rank one, with a and b smooth over rows and columns, and a
    tenth of noise: a few rows and columns carry most, as filters do in trained networks.
    """
    generator = torch.Generator().manual_seed(SEED)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    for module in model.modules():
        if isinstance(module, (*kinds, nn.ConvTranspose3d)):
            W = module.weight.data
            a, b = (_smooth(n, generator).mul(SPREAD).exp() for n in W.shape[:2])
            noise = 1 + 0.1 * torch.randn(W.shape[:2], generator=generator)
            pattern = a[:, None] * b * noise
            made = W * pattern.reshape(*pattern.shape, *[1] * (W.ndim - 2))
            module.weight.data = made * (W.norm() / made.norm())
    return model


def _smooth(n: int, generator: torch.Generator) -> Tensor:
    """(n,): smooth noise of about unit variance."""
    coarse = torch.randn(1, 1, max(2, n // 4), generator=generator)
    return 1.2 * F.interpolate(coarse, n, mode="linear", align_corners=True)[0, 0]


def with_statistics(model: nn.Module, data: Tensor) -> nn.Module:
    """The model in evaluation mode, its batch norms with the statistics of the data."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = None  # the mean over all passes
    with torch.no_grad():
        for batch in data.tensor_split(min(PASSES, len(data) // 2)) if norms else ():
            model(batch)
    for norm in norms:
        norm.eval().momentum = 0.1
    return model


def conv(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)


def conv_bn(
    i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: type = nn.ReLU
) -> nn.Sequential:
    return nn.Sequential(conv(i, o, kernel, stride, groups), nn.BatchNorm2d(o), act())


class Residual(nn.Module):
    """A body beside a shortcut; He et al. 2016."""

    def __init__(self, i: int, o: int, stride: int, body: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*body, nn.BatchNorm2d(o))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or i != o:
            self.short = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def basic(i: int, width: int, stride: int) -> Residual:
    return Residual(i, width, stride, [conv_bn(i, width, 3, stride), conv(width, width)])


def bottleneck(i: int, width: int, stride: int) -> Residual:
    body = [conv_bn(i, width, 1), conv_bn(width, width, 3, stride), conv(width, 4 * width, 1)]
    return Residual(i, 4 * width, stride, body)


def resnet(
    block: Callable[[int, int, int], Residual], widening: int, depths: Sequence[int]
) -> nn.Module:
    stages, channels = [], 64
    for stage, depth in enumerate(depths):
        blocks = []
        for i in range(depth):
            blocks.append(block(channels, 64 << stage, 2 if stage and not i else 1))
            channels = widening * 64 << stage
        stages.append(nn.Sequential(*blocks))
    stem = [conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return nn.Sequential(*stem, *stages, *head)


def vgg16() -> nn.Module:
    """Simonyan and Zisserman 2015, configuration D, with batch norms and torchvision's head."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    hidden = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), *hidden, nn.Dropout(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, *head)


class Squeeze(nn.Module):
    """Channels weighed by what their means say; Hu et al. 2018."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.SiLU(),
            nn.Conv2d(width, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """1 x 1 up, depthwise, 1 x 1 down; Sandler et al. 2018, Tan and Le 2019 with `squeeze`."""

    def __init__(
        self, i: int, o: int, expand: int, kernel: int, stride: int, act: type, squeeze: bool
    ) -> None:
        super().__init__()
        width = i * expand
        self.adds = stride == 1 and i == o
        self.body = nn.Sequential(
            *([conv_bn(i, width, 1, act=act)] if expand > 1 else []),
            conv_bn(width, width, kernel, stride, groups=width, act=act),
            *([Squeeze(width, i // 4)] if squeeze else []),
            conv(width, o, 1), nn.BatchNorm2d(o),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def inverted(
    rows: Sequence[tuple[int, int, int, int, int]], last: int, act: type, squeeze: bool
) -> nn.Module:
    """A network from rows (expansion, width, depth, stride, kernel)."""
    layers, channels = [conv_bn(3, 32, 3, 2, act=act)], 32
    for expand, width, depth, stride, kernel in rows:
        for i in range(depth):
            layers.append(
                InvertedResidual(channels, width, expand, kernel, 1 if i else stride, act, squeeze)
            )
            channels = width
    head = [conv_bn(channels, last, 1, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Dropout(0.2), nn.Linear(last, 1000))


def mobilenet() -> nn.Module:
    rows = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3),
        (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3),
    )  # fmt: skip
    return inverted(rows, 1280, nn.ReLU6, squeeze=False)


def efficientnet() -> nn.Module:
    rows = (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    )  # fmt: skip
    return inverted(rows, 1280, nn.SiLU, squeeze=True)


def convnext() -> nn.Module:
    """The layer scale is that of trained blocks, not the 1e-6 that training begins with."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(layer_scale_init_value=0.5, num_labels=1000)
    return ConvNextForImageClassification(config)


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        image_size=112, num_labels=1000,
    )  # fmt: skip
    return ViTForImageClassification(config)


def minilm() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015 with batch norms, on pictures (dims 2) or volumes (3)."""

    def __init__(self, dims: int, channels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        Conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        Norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        Up = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]

        def twice(i: int, o: int) -> nn.Sequential:
            pairs = [(i, o), (o, o)]
            layers = [(Conv(a, b, 3, padding=1, bias=False), Norm(b), nn.ReLU()) for a, b in pairs]
            return nn.Sequential(*(layer for trio in layers for layer in trio))

        self.pool = {2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims](2)
        ins = [channels, *widths[:-1]]
        self.down = nn.ModuleList(twice(i, o) for i, o in zip(ins, widths, strict=True))
        pairs = [*zip(widths[1:], widths[:-1], strict=True)][::-1]
        self.up = nn.ModuleList(Up(i, o, 2, 2) for i, o in pairs)
        self.merge = nn.ModuleList(twice(2 * o, o) for _, o in pairs)
        self.head = Conv(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for depth, down in enumerate(self.down):
            skips.append(down(self.pool(skips[-1]) if depth else x))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class Separable(nn.Module):
    """A block of Conv-TasNet: 1 x 1, dilated depthwise, and 1 x 1 to what is kept and skipped."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(channels, width, 1), nn.PReLU(), nn.GroupNorm(1, width),
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation, groups=width),
            nn.PReLU(), nn.GroupNorm(1, width),
        )  # fmt: skip
        self.keep, self.skip = nn.Conv1d(width, channels, 1), nn.Conv1d(width, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return x + self.keep(h), self.skip(h)


class ConvTasNet(nn.Module):
    """Luo and Mesgarani 2019: two speakers by masks on a learnt transform of the waveform."""

    def __init__(self, n: int = 256, channels: int = 128, width: int = 256) -> None:
        super().__init__()
        self.encode = nn.Conv1d(1, n, 16, 8, bias=False)
        self.enter = nn.Sequential(nn.GroupNorm(1, n), nn.Conv1d(n, channels, 1))
        self.blocks = nn.ModuleList(
            Separable(channels, width, 2**i) for _ in range(2) for i in range(6)
        )
        self.mask = nn.Sequential(nn.PReLU(), nn.Conv1d(channels, 2 * n, 1), nn.Sigmoid())
        self.decode = nn.ConvTranspose1d(n, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        coded = torch.relu(self.encode(x))  # (batch, n, frames)
        h = self.enter(coded)
        total = torch.zeros_like(h)
        for block in self.blocks:
            h, skip = block(h)
            total = total + skip
        masks = self.mask(total).unflatten(1, (2, -1))  # (batch, speakers, n, frames)
        each = (masks * coded[:, None]).flatten(0, 1)  # (batch * speakers, n, frames)
        return self.decode(each).reshape(len(x), 2, -1)


class Aligned(nn.Module):
    """Points turned by a matrix that a small network reads off them; Qi et al. 2017."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.points = shared_mlp(channels, 64, 128, 1024)
        self.head = nn.Sequential(*mlp(1024, 512, 256), nn.Linear(256, channels**2))

    def forward(self, x: Tensor) -> Tensor:
        T = self.head(self.points(x).amax(2)).unflatten(1, (x.shape[1], -1))
        return (T + torch.eye(x.shape[1])) @ x


def shared_mlp(*widths: int) -> nn.Sequential:
    pairs = pairwise(widths)
    trios = [(nn.Conv1d(i, o, 1), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairs]
    return nn.Sequential(*(layer for trio in trios for layer in trio))


def mlp(*widths: int) -> list[nn.Module]:
    pairs = pairwise(widths)
    trios = [(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairs]
    return [layer for trio in trios for layer in trio]


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(
            Aligned(3), shared_mlp(3, 64, 64), Aligned(64), shared_mlp(64, 64, 128, 1024)
        )
        self.head = nn.Sequential(*mlp(1024, 512, 256), nn.Dropout(0.3), nn.Linear(256, 40))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(x).amax(2))


class Split(nn.Module):
    """Half of the channels through a chain of bottlenecks, all that it passes put together."""

    def __init__(self, i: int, o: int, depth: int, adds: bool) -> None:
        super().__init__()
        half, self.adds = o // 2, adds
        self.enter = conv_bn(i, o, 1, act=nn.SiLU)
        self.chain = nn.ModuleList(
            nn.Sequential(conv_bn(half, half, act=nn.SiLU), conv_bn(half, half, act=nn.SiLU))
            for _ in range(depth)
        )
        self.leave = conv_bn((2 + depth) * half, o, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [*self.enter(x).chunk(2, 1)]
        for block in self.chain:
            made = block(parts[-1])
            parts.append(parts[-1] + made if self.adds else made)
        return self.leave(torch.cat(parts, 1))


class Pyramid(nn.Module):
    """Max-pooled thrice, all put together: what a place sees of the whole picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = conv_bn(channels, channels // 2, 1, act=nn.SiLU)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = conv_bn(2 * channels, channels, 1, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """Like YOLOv8n: a backbone, features of three scales mixed up and down, boxes and scores."""

    BINS, CLASSES = 16, 80

    def __init__(self) -> None:
        super().__init__()

        def step(i: int, o: int, depth: int) -> nn.Sequential:
            return nn.Sequential(conv_bn(i, o, 3, 2, act=nn.SiLU), Split(o, o, depth, True))

        self.stem = nn.Sequential(conv_bn(3, 16, 3, 2, act=nn.SiLU), step(16, 32, 1))
        self.third, self.fourth = step(32, 64, 2), step(64, 128, 2)
        self.fifth = nn.Sequential(step(128, 256, 1), Pyramid(256))
        self.up4, self.up3 = Split(384, 128, 1, False), Split(192, 64, 1, False)
        self.shrink3 = conv_bn(64, 64, 3, 2, act=nn.SiLU)
        self.shrink4 = conv_bn(128, 128, 3, 2, act=nn.SiLU)
        self.down4, self.down5 = Split(192, 128, 1, False), Split(384, 256, 1, False)
        self.boxes = nn.ModuleList(self._head(i, 64, 4 * self.BINS) for i in (64, 128, 256))
        self.scores = nn.ModuleList(self._head(i, 80, self.CLASSES) for i in (64, 128, 256))

    @staticmethod
    def _head(i: int, width: int, o: int) -> nn.Sequential:
        both = conv_bn(i, width, act=nn.SiLU), conv_bn(width, width, act=nn.SiLU)
        return nn.Sequential(*both, nn.Conv2d(width, o, 1))

    def forward(self, x: Tensor) -> Tensor:
        third = self.third(self.stem(x))
        fourth = self.fourth(third)
        fifth = self.fifth(fourth)
        four = self.up4(torch.cat([F.interpolate(fifth, scale_factor=2.0), fourth], 1))
        three = self.up3(torch.cat([F.interpolate(four, scale_factor=2.0), third], 1))
        four = self.down4(torch.cat([self.shrink3(three), four], 1))
        five = self.down5(torch.cat([self.shrink4(four), fifth], 1))
        heads = zip(self.boxes, self.scores, (three, four, five), strict=True)
        return torch.cat([self._decoded(box(f), score(f)) for box, score, f in heads], 2)

    def _decoded(self, box: Tensor, score: Tensor) -> Tensor:
        """(batch, 4 + classes, places): distances to the four sides, and scores."""
        bins = box.flatten(2).unflatten(1, (4, self.BINS)).softmax(2)
        sides = (bins * torch.arange(float(self.BINS))[:, None]).sum(2)
        return torch.cat([sides, score.flatten(2).sigmoid()], 1)


PICTURE, SMALL = (3, 112, 112), (3, 32, 32)

NETWORKS = {
    "resnet-18": Network(lambda: resnet(basic, 1, (2, 2, 2, 2)), PICTURE, SMALL, 32),
    "resnet-50": Network(lambda: resnet(bottleneck, 4, (3, 4, 6, 3)), PICTURE, SMALL, 16),
    "vgg-16-bn": Network(vgg16, PICTURE, SMALL, 8),
    "mobilenet-v2": Network(mobilenet, PICTURE, SMALL, 32),
    "efficientnet-b0": Network(efficientnet, PICTURE, SMALL, 32),
    "convnext-t": Network(convnext, PICTURE, SMALL, 16),
    "vit-s": Network(vit, PICTURE, PICTURE, 32),
    "u-net": Network(
        lambda: UNet(2, 3, (32, 64, 128, 256), 4), (3, 96, 96), (3, 16, 16), 16
    ),
    "conv-tasnet": Network(ConvTasNet, (1, 8000), (1, 800), 16),
    "pointnet": Network(PointNet, (3, 1024), (3, 32), 32),
    "u-net-3d": Network(
        lambda: UNet(3, 1, (16, 32, 64), 3), (1, 32, 32, 32), (1, 8, 8, 8), 8
    ),
    "yolo": Network(Detector, (3, 160, 160), SMALL, 32),
    "minilm": Network(minilm, (64,), (8,), 32, words=30522),
}  # fmt: skip
