"""What selecting channels costs the bundled ResNet-20: by every score, alone and with low rank.

    pip install --no-deps torch-pruning
    python benchmarks/selection.py --draws 5
    python benchmarks/selection.py --draws 1 --latency 0.5
    python benchmarks/selection.py --shapes resnet-50 vgg-16-bn mobilenet-v2 vit-base llama-135m
    python benchmarks/selection.py --table

Every draw calibrates on 256 training pictures, without labels. Torch-pruning cuts the same network
to the same MACs in the same run, and its batch norms are estimated anew on the same pictures. One
epoch of fine-tuning by the dense network's outputs, on the 5,000 bundled pictures, follows for
those that `--finetune` names. `--shapes` times networks of the sizes that people use, of random
weights and without data, at half of the MACs by channels alone. Rows that the results already hold
are kept, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import accuracy, recalibrate_batchnorm
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.gauges.timing import time_ratio
from lowrank.demos.bundled import fashion_mnist, resnet20

OUT = Path(__file__).parent / "results" / "selection.json"
KEEPS = (0.5, 0.33)
SCORES = ("lasso", "omp", "backward", "slimming", "norm", "gradient", "nystrom", "random")
TOGETHER = ("lasso", "norm", "random")


class Results:
    """Rows by key, written after each; of another effort than the rows that are there, none."""

    def __init__(self, path: Path, effort: str) -> None:
        self.path, self.effort = path, effort
        known = json.loads(path.read_text()) if path.exists() else {"rows": {}}
        self.rows: dict[str, Any] = known["rows"]
        if self.rows and known["setting"].get("effort", effort) != effort:
            raise SystemExit(
                f"{path} holds rows of effort {known['setting']['effort']}: name another"
            )

    def add(self, key: str, **figures: Any) -> None:
        self.rows[key] = figures
        print(key, figures, flush=True)
        made = {"setting": {"effort": self.effort, **setting()}, "rows": self.rows}
        self.path.write_text(json.dumps(made, indent=1) + "\n")


def setting() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "lowrank": lowrank.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "calibration": 256,
    }


def calibration(seed: int) -> Tensor:
    images, _ = fashion_mnist("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:256]]


def figures(dense: nn.Module, small: nn.Module, *, timed: bool = False) -> dict[str, float]:
    images, labels = fashion_mnist("test")
    example = images[:1]
    found = {
        "points_lost": 100 * (accuracy(dense, images, labels) - accuracy(small, images, labels)),
        "kept_macs": model_cost(small, example).macs / model_cost(dense, example).macs,
    }
    if timed:
        found["latency_ratio"] = time_ratio(dense, small, images[:64]).ratio
    return found


def ours(dense: nn.Module, seed: int, budget: dict[str, float], **rules: Any) -> nn.Module:
    images = calibration(seed)
    example = images[:64] if "latency" in budget else images[:1]
    settings = lowrank.Calibration(seed=seed, effort=rules.pop("effort"))
    return lowrank.compress(
        dense, example, data=images, val=images[:64], calibration=settings, **budget, **rules
    )[0]


def pruned(dense: nn.Module, seed: int, keep: float, kind: str) -> nn.Module:
    """Torch-pruning's model of at most so many MACs, its batch norms on the same pictures."""
    import torch_pruning as tp

    images = calibration(seed)
    whole = model_cost(dense, images[:1]).macs
    low, high, best = 0.0, 0.95, None
    for _ in range(10):
        ratio = (low + high) / 2
        small = copy.deepcopy(dense)
        importance = {
            "magnitude": tp.importance.GroupMagnitudeImportance,
            "slimming": tp.importance.BNScaleImportance,
        }[kind]()
        pruner = tp.pruner.BasePruner(
            small, images[:1], importance=importance, pruning_ratio=ratio,
            ignored_layers=[small.fc], global_pruning=kind == "slimming",
        )  # fmt: skip
        pruner.step()
        if model_cost(small, images[:1]).macs <= keep * whole:
            high, best = ratio, small
        else:
            low = ratio
    assert best is not None
    recalibrate_batchnorm(best.eval(), teacher=dense, data=images, val=images)
    return best


def runs(dense: nn.Module, seed: int, keep: float, effort: str) -> Iterator[tuple[str, Any]]:
    budget = {"macs": keep}
    for kind in ("magnitude", "slimming"):
        yield f"torch-pruning {kind}", lambda kind=kind: pruned(dense, seed, keep, kind)
    for score in SCORES:
        yield (
            f"{score} alone",
            lambda s=score: ours(dense, seed, budget, methods="select", select=s, effort="quick"),
        )
    yield "low rank", lambda: ours(dense, seed, budget, effort=effort)
    for score in TOGETHER:
        yield (
            f"low rank + {score}",
            lambda s=score: ours(dense, seed, budget, select=s, effort=effort),
        )


def tuned(dense: nn.Module, small: nn.Module) -> nn.Module:
    data = fashion_mnist("train")
    return lowrank.finetune(small, teacher=dense, data=data, epochs=1, batch_size=64, lr=1e-3)


def shape(name: str) -> dict[str, float]:
    """Half of a network's MACs, by channels alone, on the clock."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.zoo import FULL

    dense, example = FULL[name].build().eval(), FULL[name].example()
    began = time.process_time()
    small, report = lowrank.compress(dense, example, macs=0.5, methods="select", select="norm")
    spent = time.process_time() - began
    found = time_ratio(dense, small, example, rounds=(7, 20))
    return {
        "kept_macs": report.kept("macs") or 0.0, "latency_ratio": found.ratio,
        "dense_ms": found.dense.median_ms, "cpu_seconds": spent,
    }  # fmt: skip


def table(rows: dict[str, Any]) -> None:
    found: dict[str, list[float]] = {}
    for key, row in rows.items():
        if "points_lost" not in row:
            continue
        found.setdefault(key.rpartition(" ")[0], []).append(row["points_lost"])
    for name, lost in sorted(found.items(), key=lambda item: statistics.mean(item[1])):
        mean, spread = statistics.mean(lost), statistics.pstdev(lost)
        print(f"{name:34} {mean:6.2f} +- {spread:.2f}  n={len(lost)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--keeps", nargs="*", type=float, default=KEEPS)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--latency", type=float, help="a budget of time in place of MACs")
    parser.add_argument("--finetune", nargs="*", default=[], help="names of rows to tune, too")
    parser.add_argument("--shapes", nargs="*", default=[], help="networks of tests/zoo.py to time")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, dense = Results(args.out, args.effort), resnet20()
    for seed in range(args.draws):
        for keep in args.keeps if args.latency is None else ():
            for name, make in runs(dense, seed, keep, args.effort):
                if args.only and name not in args.only:
                    continue
                key = f"{name} {keep} {seed}"
                if key not in results.rows:
                    started = time.process_time()
                    small = make()
                    spent = time.process_time() - started
                    results.add(key, **figures(dense, small, timed=True), cpu_seconds=spent)
                    if name in args.finetune:
                        small = tuned(dense, small)
                        results.add(f"{name} tuned {keep} {seed}", **figures(dense, small))
        if args.latency is not None:
            for name, rules in (("low rank", {}), ("low rank + lasso", {"select": "lasso"}),
                                ("lasso alone", {"methods": "select"})):  # fmt: skip
                key = f"{name} latency {args.latency} {seed}"
                if key not in results.rows:
                    small = ours(
                        dense, seed, {"latency": args.latency}, effort=args.effort, **rules
                    )
                    results.add(key, **figures(dense, small, timed=True))
    for name in args.shapes:
        if f"shape {name}" not in results.rows:
            results.add(f"shape {name}", **shape(name))
    if args.table:
        table(results.rows)


if __name__ == "__main__":
    main()
