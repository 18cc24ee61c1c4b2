"""How long the planner takes for every budget of a ResNet-50, once its curves are measured.

    python benchmarks/planning.py --out benchmarks/results/planning.json

The network is that of `latency.py`, calibrated on eight random pictures of 64 x 64. Each budget is
planned nine times; the median of the CPU time is shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from latency import resnet50

import lowrank

METHODS = ("channel_svd", "spatial_svd", "tucker2", "group_svd")
BUDGETS: tuple[dict[str, float], ...] = tuple(
    {name: keep} for name in ("params", "bytes", "macs") for keep in (0.7, 0.5, 0.33, 0.2)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planning.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures = torch.randn(8, 3, 64, 64)
    curves = lowrank.measure(
        resnet50(),
        pictures[:1],
        data=pictures,
        methods=args.methods,
        calibration=lowrank.Calibration(weighting="outputs"),
    )
    assert curves.data is not None
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        seconds = []
        for _ in range(9):
            started = time.process_time()
            curves.plan(**budget, exponent=0.5)
            seconds.append(time.process_time() - started)
        rows.append({**budget, "cpu_seconds": round(statistics.median(seconds), 4)})
        print(rows[-1], flush=True)
    about = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "layers": len(curves.curves),
        "candidates": sum(len(c.candidates) for c in curves.curves),
        "calibration": str(curves.data.calibrated),
        "all_budgets_cpu_seconds": round(sum(r["cpu_seconds"] for r in rows), 4),
    }
    print(json.dumps(about, indent=1))
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
