"""What compressing the bundled ResNet-20 costs: the full test set, five calibration draws.

    apt-get install dataset-fashion-mnist
    python benchmarks/resnet20.py --draws 5
    python benchmarks/resnet20.py --finetune --epochs 2
    python benchmarks/resnet20.py --finetune --epochs 2 --optimizer adamw

Every draw calibrates on 256 training pictures, without labels, and compresses to each share
of the MACs: by default, with thorough effort, and with that and block-wise refinement on the same
pictures. Rows that the
results already hold are kept, so a run can be taken up again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW

import lowrank
from lowrank.compression import accuracy, compare_outputs, weighed_plan
from lowrank.demos.bundled import fashion_mnist, normalise, resnet20

FOLDER = Path("/usr/share/datasets/fashion-mnist")
OUT = Path(__file__).parent / "results" / "resnet20.json"
KEEPS = (0.5, 0.33, 0.2, 0.12)
BARS = {
    "default": {0.5: 0.25, 0.33: 0.5, 0.2: 1.25},
    "thorough": {0.5: 0.2, 0.33: 0.45, 0.2: 1.2},
    "refined": {0.5: 0.1, 0.33: 0.25, 0.2: 0.8, 0.12: 2.7},
    "fine-tuned": {0.33: 0.0, 0.2: 0.4, 0.12: 1.0},
}
"""Points below dense, at most."""

RECIPES: dict[float, dict[str, Any]] = {
    0.33: {"lr": 5e-4, "label_weight": 0.6, "temperature": 2.0, "hint_weight": 1.0},
    0.2: {"lr": 1e-3, "label_weight": 0.3, "temperature": 2.0, "hint_weight": 10.0},
    0.12: {"lr": 2e-3, "label_weight": 0.3, "temperature": 2.0, "hint_weight": 10.0},
}
"""Fine-tuning: the farther from the teacher, the higher the rate, and the more hints say."""

OPTIMIZERS = {"soap": lowrank.SOAP, "adamw": lambda params, lr: AdamW(params, lr=2 * lr)}
"""Each at the rate that suits it: AdamW did best at twice the rate of SOAP."""


def read(split: str) -> tuple[Tensor, Tensor]:
    """All pictures of a split; of the test set the bundled 2,000 where the rest is missing."""
    prefix = {"train": "train", "test": "t10k"}[split]
    path = FOLDER / f"{prefix}-images-idx3-ubyte.gz"
    if not path.exists():
        return fashion_mnist("train" if split == "train" else "test")
    with gzip.open(path) as f:
        images = np.frombuffer(f.read(), np.uint8, offset=16).reshape(-1, 28, 28).copy()
    with gzip.open(FOLDER / f"{prefix}-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read(), np.uint8, offset=8).copy()
    return normalise(torch.from_numpy(images)), torch.from_numpy(labels).long()


class Results:
    """Rows by key, written after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text())["rows"] if path.exists() else {}

    def add(self, key: str, **figures: Any) -> None:
        self.rows[key] = figures
        print(key, figures, flush=True)
        self.path.write_text(json.dumps({"setting": setting(), "rows": self.rows}, indent=1) + "\n")


def setting() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "lowrank": lowrank.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "calibration": 256,
    }


def figures(dense: nn.Module, small: nn.Module, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    found = compare_outputs(dense, small, None, test[0])
    assert found is not None
    return {"accuracy": 100 * accuracy(small, *test), "kl": found.kl}


def draw(
    seed: int, results: Results, test: tuple[Tensor, Tensor], recipes: list[str], keeps: list[float]
) -> None:
    for effort in ("default", "thorough"):
        names = [r for r in recipes if (r == "default") == (effort == "default")]
        missing = {k: [r for r in names if f"{r} {k} {seed}" not in results.rows] for k in keeps}
        if any(missing.values()):
            _draw(seed, effort, missing, results, test)


def _draw(
    seed: int,
    effort: str,
    missing: dict[float, list[str]],
    results: Results,
    test: tuple[Tensor, Tensor],
) -> None:
    model, (images, _) = resnet20(), fashion_mnist("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    picked = images[order[:256]]
    started = time.process_time()
    curves = lowrank.measure(
        model, images[:1], data=picked, calibration=lowrank.Calibration(seed=seed, effort=effort)
    )
    measured = time.process_time() - started
    for keep, names in missing.items():
        if not names:
            continue
        started = time.process_time()
        plan = weighed_plan(model, curves, {"macs": keep}, None)
        planned = time.process_time() - started
        for name in names:
            started = time.process_time()
            small, _ = lowrank.apply(model, plan, data=curves.data, refine=name == "refined")
            seconds = {
                "measure": measured,
                "plan": planned,
                "fit": time.process_time() - started,
            }
            results.add(f"{name} {keep} {seed}", **figures(model, small, test), cpu_seconds=seconds)


def finetuned(
    results: Results,
    test: tuple[Tensor, Tensor],
    epochs: int,
    keeps: list[float],
    optimizer: str,
) -> None:
    """Draw 0, fine-tuned on the whole training set by the dense network's outputs."""
    model, train = resnet20(), read("train")
    blocks = ["bn", *(f"stages.{i}.{j}" for i in range(3) for j in range(3))]
    images = fashion_mnist("train")[0]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    curves = lowrank.measure(model, images[:1], data=images[order[:256]])
    kind = "fine-tuned" if optimizer == "soap" else f"fine-tuned by {optimizer}"
    for keep, recipe in RECIPES.items():
        if keep not in keeps or f"{kind} {keep} 0" in results.rows:
            continue
        plan = weighed_plan(model, curves, {"macs": keep}, None)
        small, _ = lowrank.apply(model, plan, data=curves.data)
        small = lowrank.finetune(
            small, teacher=model, data=train, epochs=epochs, batch_size=32,
            hints=blocks, optimizer=OPTIMIZERS[optimizer], **recipe,
        )  # fmt: skip
        results.add(f"{kind} {keep} 0", **figures(model, small, test), epochs=epochs)


def table(rows: dict[str, Any], dense: float) -> None:
    for name, bars in BARS.items():
        for keep in KEEPS:
            drops = [
                dense - r["accuracy"] for k, r in rows.items() if k.startswith(f"{name} {keep} ")
            ]
            if drops:
                spread = statistics.pstdev(drops)
                bar = bars.get(keep)
                verdict = "" if bar is None else f"  bar {bar}"
                mean = statistics.mean(drops)
                print(
                    f"{name:11} {keep:5.2f}  {mean:5.2f} +- {spread:.2f}  n={len(drops)}{verdict}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--recipes", nargs="*", default=["default", "thorough", "refined"])
    parser.add_argument("--keeps", nargs="*", type=float, default=KEEPS)
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="soap")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results, test = Results(args.out), read("test")
    if "dense" not in results.rows:
        results.add("dense", accuracy=100 * accuracy(resnet20(), *test), examples=len(test[0]))
    for seed in range(args.first, args.draws):
        draw(seed, results, test, args.recipes, args.keeps)
    if args.finetune:
        finetuned(results, test, args.epochs, args.keeps, args.optimizer)
    table(results.rows, results.rows["dense"]["accuracy"])


if __name__ == "__main__":
    main()
