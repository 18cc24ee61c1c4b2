"""What a latency budget costs in accuracy, beside the MAC budget of equal loss.

    python benchmarks/latency_accuracy.py --out benchmarks/results/latency_accuracy.json

The bundled ResNet-20 on 64 pictures and one thread, calibrated on 256 training pictures. For
every latency budget: the time that was measured, the MACs that are left, and what was lost on
the 2,000 bundled test pictures. Then the MAC budget that loses as much (by bisection on the
divergence from the dense scores), and the time that its model takes: MACs are not time.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import Curves, accuracy, compare_outputs, weighed_plan
from lowrank.compression.gauges.timing import time_ratio
from lowrank.demos.bundled import fashion_mnist, resnet20

LATENCIES = (0.6, 0.7, 0.8)
BISECTIONS = 4


def figures(dense: nn.Module, small: nn.Module, example: Tensor) -> dict[str, float]:
    images, labels = fashion_mnist("test")
    found = compare_outputs(dense, small, None, images)
    assert found is not None
    return {
        "latency_ratio": time_ratio(dense, small, example, rounds=(25, 60), enough=2.0).ratio,
        "points_below_dense": 100 * (accuracy(dense, images, labels)
                                     - accuracy(small, images, labels)),
        "kl": found.kl,
    }  # fmt: skip


def equal_loss(dense: nn.Module, curves: Curves, kl: float, example: Tensor) -> dict[str, Any]:
    """The MAC budget whose model is as far from the dense scores."""
    low, high, best = 0.08, 1.0, None
    for _ in range(BISECTIONS):
        keep = (low * high) ** 0.5
        plan = weighed_plan(dense, curves, {"macs": keep}, None)
        small, _ = lowrank.apply(dense, plan, data=curves.data)
        found = compare_outputs(dense, small, None, fashion_mnist("test")[0])
        assert found is not None
        if found.kl <= kl:
            high, best = keep, small
        else:
            low = keep
    small = dense if best is None else best
    return {"kept_macs": high, **figures(dense, small, example)}


def row(dense: nn.Module, curves: Curves, wanted: float, example: Tensor) -> dict[str, Any]:
    small, report = lowrank.compress(
        dense, example, latency=wanted, data=fashion_mnist("train")[0][:256]
    )
    clock = {"kept_macs": report.kept("macs"), **figures(dense, small, example)}
    return {
        "latency": wanted,
        "by_the_clock": clock,
        "macs_of_equal_loss": equal_loss(dense, curves, clock["kl"], example),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/latency_accuracy.json")
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense, images = resnet20().eval(), fashion_mnist("train")[0]
    example = images[:64]
    curves = lowrank.measure(dense, example, data=images[:256])
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "batch": 64}
    rows: list[dict[str, Any]] = []
    for wanted in LATENCIES:
        rows.append(row(dense, curves, wanted, example))
        print(json.dumps(rows[-1]), flush=True)
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
