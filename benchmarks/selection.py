"""What selecting channels costs the bundled ResNet-20: by every score, alone and with low rank.

    pip install --no-deps torch-pruning
    python benchmarks/selection.py --draws 5 --finetune "low rank" "low rank + backward"
    python benchmarks/selection.py --draws 1 --latency 0.5
    python benchmarks/selection.py --shapes resnet-50 vgg-16-bn mobilenet-v2 vit-base llama-135m
    python benchmarks/selection.py --costs resnet-18
    python benchmarks/selection.py --table

Every draw calibrates on 256 training pictures, without labels, once for all its rows. Torch-pruning
cuts the same network to the same MACs in the same run, and its batch norms are estimated anew on
the same pictures. One epoch of fine-tuning by the dense network's outputs, on `--pictures` of the
5,000 bundled ones, follows for the rows of draw 0 that `--finetune` names. Rows of draw 0 are timed
(`--timed` times all). `--only` and `--first` part the work; `--merge` joins the files of the parts.
`--costs` counts passes and seconds of a call with channels beside factors.
`--shapes` times networks of the sizes that people use, of random weights and without data, at half
of the MACs by channels alone. Rows that the results already hold are kept, so that a run can be
taken up again.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import recalibrate_batchnorm
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.gauges.quality import quality_of
from lowrank.compression.gauges.timing import time_ratio
from lowrank.compression.network.example import run, tallying
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.errors import BudgetError

OUT = Path(__file__).parent / "results" / "selection.json"
KEEPS = (0.5, 0.33)
SCORES = ("lasso", "omp", "backward", "slimming", "norm", "random")
TOGETHER = ("backward",)


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


class Judge:
    """What the dense network says of the test pictures, and how far others are from it."""

    def __init__(self, dense: nn.Module) -> None:
        self.dense = dense
        self.images, self.labels = fashion_mnist("test")
        self.parts = self.images.split(64)
        self.wanted = [run(dense, part) for part in self.parts]
        self.right = (torch.cat(self.wanted).argmax(1) == self.labels).float().mean()

    def figures(self, small: nn.Module, *, timed: bool) -> dict[str, float]:
        given = [run(small, part) for part in self.parts]
        right = (torch.cat(given).argmax(1) == self.labels).float().mean()
        example = self.images[:1]
        found = {
            "points_lost": float(100 * (self.right - right)),
            "kl": quality_of(zip(self.wanted, given, strict=True)).kl,
            "kept_macs": model_cost(small, example).macs / model_cost(self.dense, example).macs,
        }
        if timed:
            found["latency_ratio"] = time_ratio(self.dense, small, self.images[:64]).ratio
        return found


def ours(
    dense: nn.Module, seed: int, budget: dict[str, float], effort: str, cache: str, **rules: Any
) -> tuple[nn.Module, lowrank.Report]:
    images = calibration(seed)
    example = images[:64] if "latency" in budget else images[:1]
    settings = lowrank.Calibration(seed=seed, effort=effort, cache=cache)
    return lowrank.compress(
        dense, example, data=images, val=images[:64], calibration=settings, **budget, **rules
    )


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


def runs(
    dense: nn.Module, seed: int, keep: float, effort: str, cache: str
) -> Iterator[tuple[str, Any]]:
    def mine(**rules: Any) -> Any:
        return lambda: ours(dense, seed, {"macs": keep}, effort, cache, **rules)[0]

    yield "low rank", mine()
    for score in TOGETHER:
        yield f"low rank + {score}", mine(select=score)
    for score in SCORES:
        yield f"{score} alone", mine(methods="select", select=score)
    for kind in ("magnitude", "slimming"):
        yield f"torch-pruning {kind}", lambda kind=kind: pruned(dense, seed, keep, kind)


def in_time(
    dense: nn.Module, seed: int, wanted: float, effort: str, cache: str
) -> Iterator[tuple[str, Any]]:
    ways: dict[str, dict[str, Any]] = {
        "low rank": {},
        "low rank + backward": {"select": "backward"},
        "backward alone": {"methods": "select", "select": "backward"},
    }
    for name, rules in ways.items():
        yield (
            name,
            lambda r=rules: ours(dense, seed, {"latency": wanted}, effort, cache, **r),
        )


def tuned(dense: nn.Module, small: nn.Module, pictures: int) -> nn.Module:
    images, labels = fashion_mnist("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:pictures]
    data = images[order], labels[order]
    return lowrank.finetune(small, teacher=dense, data=data, epochs=1, batch_size=64)


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


def cost(name: str, score: str) -> dict[str, float]:
    """What a call with channels in the knapsack takes, beside 15 dense passes and 2 s a layer."""
    sys.path.insert(0, str(Path(__file__).parent))
    from ordinary import PASSES, SECONDS_PER_LAYER, dense_pass
    from ordinary_networks import NETWORKS

    model, data, _ = NETWORKS[name].prepared()
    before = dense_pass(model, data)
    began = time.process_time()
    with tallying() as tally:
        _, report = lowrank.compress(model, data[:1], macs=0.5, data=data, select=score)
    spent = time.process_time() - began
    dense_s = (before + dense_pass(model, data)) / 2
    layers = set(report.replaced) | set(report.plan.narrowed)
    said = lowrank.forecast(model, data[:1], data=data, rules=lowrank.Rules(select=score))
    return {
        "passes": tally.passes / len(data), "forecast_passes": said.passes,
        "cpu_seconds": spent, "dense_s": dense_s, "layers": len(layers),
        "target_s": PASSES * dense_s + SECONDS_PER_LAYER * len(layers),
        "kept_macs": report.kept("macs") or 0.0, "narrowed": len(report.plan.narrowed),
    }  # fmt: skip


def table(rows: dict[str, Any]) -> None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for key, row in rows.items():
        if "points_lost" in row:
            name, budget, _ = key.rsplit(" ", 2)
            found.setdefault((budget, name), []).append(row)
    for (budget, name), some in sorted(found.items()):
        lost = [row["points_lost"] for row in some]
        error = statistics.stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
        kl = statistics.mean(row["kl"] for row in some)
        timed = [row["latency_ratio"] for row in some if "latency_ratio" in row]
        time_ = f"{statistics.median(timed):.2f}" if timed else "-"
        print(f"{budget:6} {name:28} {statistics.mean(lost):6.2f} +- {error:.2f}  "
              f"kl {kl:.4f}  time {time_}  n={len(lost)}")  # fmt: skip


def merged(into: Results, paths: list[Path]) -> None:
    """The rows of parts of a run beside one another."""
    for path in paths:
        for key, row in json.loads(path.read_text())["rows"].items():
            into.add(key, **row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first draw")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--keeps", nargs="*", type=float, default=KEEPS)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--latency", type=float, help="a budget of time in place of MACs")
    parser.add_argument("--finetune", nargs="*", default=[], help="names of rows to tune, too")
    parser.add_argument("--pictures", type=int, default=5000, help="that fine-tuning sees")
    parser.add_argument("--timed", action="store_true", help="time the rows of every draw")
    parser.add_argument("--shapes", nargs="*", default=[], help="networks of tests/zoo.py to time")
    parser.add_argument("--costs", nargs="*", default=[], help="of benchmarks/ordinary_networks.py")
    parser.add_argument("--merge", nargs="*", type=Path, default=[], help="files of other parts")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cache", type=Path, help="folder of calibrations, for parts of a run")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, dense = Results(args.out, args.effort), resnet20()
    merged(results, args.merge)
    judge = Judge(dense)
    for seed in range(args.first, args.first + args.draws):
        with tempfile.TemporaryDirectory() as cache:
            cache = cache if args.cache is None else str(args.cache)
            _draw(args, seed, cache, results, dense, judge)
    for name in args.shapes:
        if f"shape {name}" not in results.rows:
            results.add(f"shape {name}", **shape(name))
    for name in args.costs:
        for score in ("lasso", *TOGETHER):
            if (key := f"cost {name} {score}") not in results.rows:
                results.add(key, **cost(name, score))
    if args.table:
        table(results.rows)


def _draw(
    args: argparse.Namespace,
    seed: int,
    cache: str,
    results: Results,
    dense: nn.Module,
    judge: Judge,
) -> None:
    for keep in args.keeps if args.latency is None else ():
        for name, make in runs(dense, seed, keep, args.effort, cache):
            key = f"{name} {keep} {seed}"
            if key in results.rows or (args.only and name not in args.only):
                continue
            small = make()
            results.add(key, **judge.figures(small, timed=args.timed or not seed))
            if name in args.finetune and not seed:
                small = tuned(dense, small, args.pictures)
                found = judge.figures(small, timed=False)
                results.add(f"{name}, tuned {keep} {seed}", **found, pictures=args.pictures)
    if args.latency is None:
        return
    for name, make in in_time(dense, seed, args.latency, args.effort, cache):
        key = f"{name} latency={args.latency} {seed}"
        if key in results.rows or (args.only and name not in args.only):
            continue
        try:
            small, report = make()
        except BudgetError as error:
            results.add(key, refused=str(error))
            continue
        found = judge.figures(small, timed=True)
        results.add(
            key,
            **found,
            met=report.latency.measured.ratio <= args.latency,
            reported=report.latency.measured.ratio,
        )


if __name__ == "__main__":
    main()
