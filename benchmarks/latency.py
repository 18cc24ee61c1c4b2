"""`latency=0.6` against the clock: networks, batch sizes, threads and memory formats.

    python benchmarks/latency.py --out benchmarks/results/latency.json

The file keeps the rows of other networks and threads than those of `--networks` and `--threads`.
Each run compresses a network with random weights to 0.6 of its time and then times the result
against the dense network anew, in turns, in this script. One thread is timed by its CPU time,
which a busy machine hardly disturbs; two threads by the wall clock. The ratio is the median over
the rounds of compressed / dense of one round; 0.63 is to be reached. Pictures are 96 x 96, so
that all of it takes minutes. The weights are random with falling spectra, so accuracy says
nothing here; the summed error is what the planner saw.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.gauges.timing import time_ratio

SEED, SIZE, WANTED, REACHED = 0, 96, 0.6, 0.63
METHODS = ("channel_svd", "spatial_svd", "tucker2")


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1, with a projection where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.short: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            projection = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.short = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet50() -> nn.Module:
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for i in range(depth):
            width = 64 * 2**stage
            layers.append(Bottleneck(channels, width, 2 if stage and i == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    side = SIZE // 32
    head = (nn.Flatten(), nn.Linear(512 * side * side, 1024), nn.ReLU(), nn.Linear(1024, 100))
    return nn.Sequential(*layers, *head)


def small_layers() -> nn.Module:
    """Layers so small that starting another one costs more than the work it saves."""
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(*blocks)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet-50": resnet50, "vgg-16": vgg16}


def fading(model: nn.Module) -> nn.Module:
    """Weights whose spectrum falls as in trained networks: a planner has something to choose."""
    generator = torch.Generator().manual_seed(SEED)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            W = module.weight.data
            flat = torch.randn(W.flatten(1).shape, generator=generator)
            for axis in (0, 1):
                scale = (torch.arange(flat.shape[axis]) + 1.0) ** -0.4
                scale = scale[torch.randperm(len(scale), generator=generator)]
                flat = flat * (scale[:, None] if axis == 0 else scale)
            module.weight.data = (flat / flat.norm() * W.norm()).reshape(W.shape)
    return model.eval()


def run(name: str, batch: int, threads: int, channels_last: bool) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    model, x = fading(NETWORKS[name]()), torch.randn(batch, 3, SIZE, SIZE)
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    began = time.perf_counter()
    small, report = lowrank.compress(
        model, x, latency=WANTED, methods=METHODS, rules=lowrank.Rules(round_to=8)
    )
    took = time.perf_counter() - began
    found, check = time_ratio(model, small, x, rounds=(25, 60), enough=2.0), report.latency
    assert check is not None
    row = {
        "network": name,
        "batch": batch,
        "threads": threads,
        "channels_last": channels_last,
        "ratio": round(found.ratio, 4),
        "reached": found.ratio <= REACHED,
        "ratio_in_report": round(check.measured.ratio, 4),
        "predicted": round(check.predicted, 4),
        "plans_timed": check.tries,
        "dense_ms": round(found.dense.median_ms, 2),
        "clock": found.clock,
        "rounds": found.rounds,
        "kept_macs": round(report.kept("macs") or 0.0, 4),
        "kept_parameters": round(report.kept("parameters") or 0.0, 4),
        "layers_replaced": len(report.replaced),
        "layers_dense": len(report.left_alone),
        "summed_error": round(report.plan.error, 4),
        "seconds_of_compress": round(took, 1),
    }
    print(row, flush=True)
    return row


def cannot_get_faster() -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    _, report = lowrank.compress(small_layers().eval(), torch.randn(1, 32), latency=WANTED)
    notes = [note for note in report.notes if "faster" in note]
    return {"layers_replaced": len(report.replaced), "notes": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.json"))
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    args = parser.parse_args()
    before = json.loads(args.out.read_text())["results"] if args.out.exists() else []
    done = {condition(row): row for row in before}
    for name in args.networks:
        for threads in args.threads:
            for batch in (1, 8):
                for last in (False, True):
                    row = run(name, batch, threads, last)
                    done[condition(row)] = row
                    write(args.out, [done[key] for key in sorted(done)])


def condition(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["threads"], row["batch"], row["channels_last"]


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    record = {
        "what": f"compress(latency={WANTED}): time of the result over the dense network's",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seed": SEED,
        "picture": [SIZE, SIZE],
        "methods": METHODS,
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "all_reached": all(row["reached"] for row in rows),
        "largest_ratio": max(row["ratio"] for row in rows),
        "tiny_layers": cannot_get_faster(),
        "results": rows,
    }
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
