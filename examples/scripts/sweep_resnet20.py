"""Draw what each size costs the bundled ResNet-20: calibrated on 256 pictures, then trained.

python examples/scripts/sweep_resnet20.py --out examples/assets/sweep_resnet20.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch

import lowrank
from lowrank.compression import accuracy
from lowrank.demos.bundled import fashion_mnist, resnet20

BLOCKS = [f"stages.{i}.{j}" for i in range(3) for j in range(3)]
KEEPS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples/assets/sweep_resnet20.png"))
    args = parser.parse_args()
    matplotlib.use("agg")
    torch.set_num_threads(1)
    model, train, test = resnet20(), fashion_mnist("train"), fashion_mnist("test")
    images, _ = train
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    found = lowrank.sweep(
        model,
        images[:1],
        images[order[:256]],
        lambda network: 100 * accuracy(network, *test),
        keeps=KEEPS,
        finetune={
            "data": train,
            "epochs": 2,
            "batch_size": 32,
            "mix": True,
            "hints": BLOCKS,
            "hint_weight": 10.0,
            "optimizer": lowrank.SOAP,
            "lr": 5e-4,
        },
    )
    ax = found.plot()
    ax.set_ylabel("accuracy on 2,000 test pictures, %")
    ax.set_title("fitted to 256 pictures, then trained on 5,000, both without labels")
    ax.figure.suptitle("ResNet-20 on Fashion-MNIST")
    ax.figure.savefig(args.out, dpi=120)
    for point in found:
        macs = 100 * point.kept["macs"]
        print(f"{macs:5.1f} % of the MACs: {point.metric:.2f} %, trained {point.finetuned:.2f} %")


if __name__ == "__main__":
    main()
