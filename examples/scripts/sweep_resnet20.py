"""Draw what each size costs the bundled ResNet-20, from one calibration on 256 pictures.

python examples/scripts/sweep_resnet20.py --out examples/assets/sweep_resnet20.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

import lowrank
from lowrank.bundled import fashion_mnist, resnet20
from lowrank.compression.quality import accuracy

KEEPS = (0.7, 0.5, 0.35, 0.25, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples/assets/sweep_resnet20.png"))
    args = parser.parse_args()
    matplotlib.use("agg")
    torch.set_num_threads(1)
    model, (images, _), test = resnet20(), fashion_mnist("train"), fashion_mnist("test")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    found = lowrank.sweep(
        model,
        images[:1],
        images[order[:256]],
        lambda network: 100 * accuracy(network, *test),
        keeps=KEEPS,
    )
    ax = found.plot()
    ax.set_ylabel("accuracy on 2,000 test pictures, %")
    ax.set_title("ResNet-20 on Fashion-MNIST, fitted to 256 pictures without labels")
    ax.figure.savefig(args.out, dpi=120)
    for point in found:
        print(f"{100 * point.kept['macs']:5.1f} % of the MACs: {point.metric:.2f} %")


if __name__ == "__main__":
    main()
