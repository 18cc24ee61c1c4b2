"""The trained network and the pictures that come with the package.

A CIFAR-style ResNet-20 trained on all of Fashion-MNIST by
`examples/scripts/train_fashion_resnet20.py`, with 2,000 test and 5,000 training
pictures. Fashion-MNIST is (c) 2017 Zalando SE, MIT licence; see
`assets/LICENSE-fashion-mnist`.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the ten labels, in order."""


PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
"""Mean and standard deviation of the 60,000 training pictures, in [0, 1]."""


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet20(nn.Module):
    """CIFAR-style ResNet-20: 3 stages of 3 blocks with 16, 32 and 64 channels.

    Input (batch, in_channels, height, width); output logits (batch, n_classes).

    Source: He, Zhang, Ren, Sun 2016, section 4.2, with 1 x 1 shortcuts.
    """

    def __init__(self, *, in_channels: int = 1, n_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.stages = nn.Sequential(*(self._stage(*w) for w in widths))
        self.fc = nn.Linear(64, n_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(in_channels, out_channels, stride),
            BasicBlock(out_channels, out_channels, 1),
            BasicBlock(out_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stages(torch.relu(self.bn(self.conv(x))))
        return self.fc(h.mean(dim=(2, 3)))


def resnet20(*, trained: bool = True) -> ResNet20:
    """The bundled ResNet-20, in evaluation mode; 272,186 parameters.

    Args:
        trained: load the committed Fashion-MNIST weights; else a fresh network.

    Example:
        >>> import torch
        >>> resnet20()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    model = ResNet20().eval()
    if trained:
        with as_file(files("lowrank") / "assets" / "resnet20_fashion.safetensors") as path:
            model.load_state_dict(load_file(path))
    return model


def fashion_mnist(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """The packed Fashion-MNIST pictures: 5,000 for training, 2,000 for testing.

    Args:
        split: "train" (the first 500 of each class) or "test" (the first 200 of each).

    Returns:
        images (n, 1, 28, 28) float32, normalised as the network expects, and
        labels (n,) int64.

    Example:
        >>> images, labels = fashion_mnist("test")
        >>> tuple(images.shape), tuple(labels.shape)
        ((2000, 1, 28, 28), (2000,))
    """
    source = files("lowrank") / "assets" / "fashion_mnist.npz"
    with as_file(source) as path, np.load(path) as packed:
        images, labels = packed[f"{split}_images"], packed[f"{split}_labels"]
    return normalise(torch.from_numpy(images)), torch.from_numpy(labels).long()


def normalise(images: Tensor) -> Tensor:
    """uint8 pictures (n, 28, 28) to the network's input (n, 1, 28, 28) float32."""
    return ((images.float() / 255 - PIXEL_MEAN) / PIXEL_STD).unsqueeze(1)
