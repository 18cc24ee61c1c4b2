"""Train the bundled ResNet-20 on all of Fashion-MNIST and pack the demo's pictures.

    apt-get install dataset-fashion-mnist
    python examples/scripts/train_fashion_resnet20.py --out lowrank/assets

Prints the accuracy on the full 10,000 test pictures after every epoch and writes
`resnet20_fashion.safetensors`, `resnet20_fashion.json` (figures, versions, seed) and
`fashion_mnist.npz` (200 test and 500 training pictures of each class).
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.demos.bundled import ResNet20, normalise

DATA = Path("/usr/share/datasets/fashion-mnist")


def read_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """uint8 images (n, 28, 28) and labels (n,) from the IDX files."""
    with gzip.open(folder / f"{prefix}-images-idx3-ubyte.gz") as f:
        images = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{prefix}-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read(), np.uint8, offset=8)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()).long()


def augment(images: Tensor, rng: torch.Generator, *, shift: int = 2) -> Tensor:
    """Random horizontal flips and one random shift per picture; (n, 1, 28, 28)."""
    n, _, h, w = images.shape
    flip = torch.rand(n, generator=rng) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    edge = float(images.min())
    padded = F.pad(images, (shift,) * 4, value=edge)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n), generator=rng)
    rows = (dy[:, None] + torch.arange(h))[:, None, :, None]
    cols = (dx[:, None] + torch.arange(w))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], 0, rows, cols]


def batches(
    images: Tensor, labels: Tensor, size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for chunk in torch.randperm(len(images), generator=rng).split(size):
        if len(chunk) == size:
            yield augment(images[chunk], rng), labels[chunk]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, in [0, 1]."""
    model.eval()
    hits = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return hits / len(labels)


def train(args: argparse.Namespace) -> tuple[nn.Module, dict[str, object]]:
    torch.manual_seed(args.seed)
    rng = torch.Generator().manual_seed(args.seed)
    images, labels = read_split(args.data, "train")
    test_images, test_labels = read_split(args.data, "t10k")
    images, test_images = normalise(images), normalise(test_images)
    model = ResNet20().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    steps = args.epochs * (len(images) // args.batch)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=steps, pct_start=0.15
    )
    started, history = time.time(), []
    for epoch in range(args.epochs):
        model.train()
        for x, y in batches(images, labels, args.batch, rng):
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = F.cross_entropy(model(x).float(), y, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
        score = accuracy(average.module, test_images, test_labels)
        history.append(round(score, 4))
        print(f"epoch {epoch + 1:3d}  test {score:.4f}  {time.time() - started:.0f} s", flush=True)
    figures: dict[str, object] = {
        "test_accuracy": history[-1],
        "history": history,
        "epochs": args.epochs,
        "seed": args.seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return average.module, figures


def first_of_each_class(images: Tensor, labels: Tensor, per_class: int) -> tuple[Tensor, Tensor]:
    keep = torch.cat([(labels == c).nonzero()[:per_class, 0] for c in range(10)]).sort().values
    return images[keep], labels[keep]


def pack_pictures(folder: Path, out: Path) -> None:
    arrays = {}
    for split, prefix, per_class in (("train", "train", 500), ("test", "t10k", 200)):
        images, labels = first_of_each_class(*read_split(folder, prefix), per_class)
        arrays[f"{split}_images"] = images.numpy()
        arrays[f"{split}_labels"] = labels.to(torch.uint8).numpy()
    np.savez_compressed(out / "fashion_mnist.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("lowrank/assets"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    parser.add_argument("--pack-only", action="store_true", help="pack the pictures and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pack_pictures(args.data, args.out)
    if args.pack_only:
        return
    model, figures = train(args)
    weights = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(weights, args.out / "resnet20_fashion.safetensors")
    (args.out / "resnet20_fashion.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
