"""The default call on the networks that people have: what it costs, and what it gives.

    python benchmarks/ordinary.py
    python benchmarks/ordinary.py --networks resnet-18 vit-s --efforts default --timeout 300

Half of the MACs, `lowrank.compress(net, x[:1], macs=0.5, data=x)`, at each effort; with `--efforts
latency` 0.6 of the time of a pass instead. Every run is in a process of its own with one thread,
for its peak memory and so that one failure is one row. Times are CPU seconds, passes are of the
dense network over the calibration examples (a backward one is two, one through a part of the
layers that part), and the target is 15 passes and 2 s for each replaced layer; the modules that a
process loads once (2 s) are loaded before. Rows that the
results already hold are kept unless `--again`, so a run can be taken up again. Reads peak memory
from Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which torch's optimizers load when the first is made
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lowrank
from lowrank.compression import compare_outputs
from lowrank.compression.gauges.timing import time_ratio
from lowrank.compression.network.example import tallying
from lowrank.compression.pipeline import compress  # noqa: F401  loaded before the clock starts

if __package__:
    from benchmarks.ordinary_networks import NETWORKS
else:
    from ordinary_networks import NETWORKS

KEEP = 0.5
EFFORTS = ("quick", "default", "thorough")
TIME, LATENCY = "latency", 0.6
"""The run that is given so much of the time of a pass in place of MACs, at default effort."""

PASSES, SECONDS_PER_LAYER = 15, 2.0
"""The target: so many dense passes over the examples, and so much for each replaced layer."""

MEMORY = 12 << 30
"""Bytes of address space that a run may take: one that wants more fails by itself."""

OUT = Path(__file__).parent / "results" / "ordinary.json"


class OutOfTimeError(BaseException):
    """The CPU seconds of a run are spent; no `except Exception` on the way may hold it."""


class Stages:
    """CPU seconds by what `progress` was told is going on, and by step of it."""

    def __init__(self) -> None:
        self.by_stage: Counter[str] = Counter()
        self.by_step: Counter[str] = Counter()
        self.stage = self.step = "scanning"
        self.since = time.process_time()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.close()
        words = what.split()
        if words[0][0].isdigit():  # 2/6 measuring conv1
            words = words[1:]
        self.stage = "forecasting" if words[0] == "up" else words[0]
        self.step = self.stage if self.stage == "forecasting" else " ".join(words)

    def close(self) -> None:
        """Count what has passed since the last call."""
        now = time.process_time()
        self.by_stage[self.stage] += now - self.since
        self.by_step[self.step] += now - self.since
        self.since = now

    def to_dict(self) -> dict[str, Any]:
        """CPU seconds by stage, and the three longest steps."""
        self.close()
        return {
            "stages": {name: round(s, 2) for name, s in self.by_stage.most_common()},
            "longest": {name: round(s, 2) for name, s in self.by_step.most_common(3)},
        }


def dense_pass(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of a pass over all examples: the median of three behind a first."""
    taken = []
    with torch.no_grad():
        for _ in range(4):
            began = time.process_time()
            model(x)
            taken.append(time.process_time() - began)
    return statistics.median(taken[1:])


def memory(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def calibration(effort: str) -> lowrank.Calibration:
    """The default settings at an effort."""
    settings = lowrank.Calibration()
    return settings if effort in ("default", TIME) else replace(settings, effort=effort)


def budget(effort: str) -> dict[str, float]:
    """What a run may keep."""
    return {"latency": LATENCY} if effort == TIME else {"macs": KEEP}


def measured(name: str, effort: str, timeout: float) -> dict[str, Any]:
    """The row of one run in this process, which its memory and its clock are for."""
    torch.set_num_threads(1)
    network = NETWORKS[name]
    model, data, held = network.prepared()
    row = {"examples": len(data), "input": network.shape, "dense_s": dense_pass(model, data)}
    stages = Stages()
    forget_peak()
    before, began = memory("VmRSS"), time.process_time()
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, timeout)
    try:
        with tallying() as tally:
            small, report = lowrank.compress(
                model, data[:1], **budget(effort), data=data,
                calibration=calibration(effort), progress=stages,
            )  # fmt: skip
    except OutOfTimeError:
        row["failed"] = f"out of time after {timeout:g} s in {stages.step}"
    except Exception as error:
        row |= {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row |= {
        "seconds": time.process_time() - began,
        "passes": tally.passes / len(data),
        "peak_bytes": memory("VmHWM") - before,
        **stages.to_dict(),
    }
    return row if "failed" in row else row | figures(model, small, report, row, held)


def _out_of_time(*_: Any) -> None:
    raise OutOfTimeError


def figures(
    model: nn.Module, small: nn.Module, report: lowrank.Report, row: dict[str, Any], held: Tensor
) -> dict[str, Any]:
    """What came out, and whether it cost no more than the target."""
    quality = compare_outputs(model, small, None, held)
    assert quality is not None
    target = PASSES * row["dense_s"] + SECONDS_PER_LAYER * len(report.replaced)
    return {
        "target_s": target,
        "met": row["seconds"] <= target,
        "macs_kept": report.kept("macs"),
        "latency_ratio": time_ratio(model, small, held[:1]).ratio,
        "relative_error": quality.relative_error,
        "replaced": len(report.replaced),
        "layers": len(report.layers),
    }


def alone(name: str, effort: str, timeout: float) -> dict[str, Any]:
    """The row of one run in a fresh process; of one that died, how."""
    command = [sys.executable, "-W", "ignore", __file__, "--alone", name, effort]
    try:
        ended = subprocess.run(
            [*command, "--timeout", str(timeout)], capture_output=True, text=True,
            timeout=20 * timeout + 600,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {20 * timeout + 600:g} s by the wall clock"}
    if ended.returncode:
        problem = f"the process ended with {ended.returncode}"
        return {"failed": problem, "traceback": ended.stderr[-4000:]}
    return json.loads(ended.stdout.splitlines()[-1])


def rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def setting() -> dict[str, Any]:
    return {
        "what": f"lowrank.compress(net, x[:1], macs={KEEP}, data=x), CPU seconds",
        "target": f"{PASSES} dense passes and {SECONDS_PER_LAYER:g} s for each replaced layer",
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "lowrank": lowrank.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": 1,
    }


COLUMNS = {
    "network": "{network}",
    "effort": "{effort}",
    "dense s": "{dense_s:.2f}",
    "seconds": "{seconds:.1f}",
    "target": "{target_s:.1f}",
    "met": "{met}",
    "passes": "{passes:.0f}",
    "peak GB": "{peak_gb:.2f}",
    "MACs": "{macs_kept:.3f}",
    "time": "{latency_ratio:.2f}",
    "error": "{relative_error:.4f}",
    "replaced": "{replaced}",
}
"""What stands above a column -> its cell of a row."""


def table(rows: dict[str, Any]) -> Table:
    grid = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for key, row in rows.items():
        network, effort = key.split()
        known = {"network": network, "effort": effort, **row}
        if "peak_bytes" in row:
            known["peak_gb"] = row["peak_bytes"] / 1e9
        cells = [cell.format(**known) if _names(cell) in known else "" for cell in COLUMNS.values()]
        grid.add_row(*cells)
    return grid


def _names(cell: str) -> str:
    """The field that a cell shows."""
    return cell.strip("{}").partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--efforts", nargs="*", choices=(*EFFORTS, TIME), default=list(EFFORTS))
    parser.add_argument("--timeout", type=float, default=600, help="CPU seconds of one run")
    parser.add_argument("--again", action="store_true", help="measure rows that are there anew")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        row = measured(*args.alone, args.timeout)
        print(json.dumps({name: rounded(value) for name, value in row.items()}))
        return
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else {}
    for effort in args.efforts:
        for name in args.networks:
            if args.again or f"{name} {effort}" not in rows:
                rows[f"{name} {effort}"] = row = alone(name, effort, args.timeout)
                print(name, effort, row, flush=True)
                record = {"setting": setting(), "rows": rows}
                args.out.write_text(json.dumps(record, indent=1) + "\n")
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(table(rows))
    for key, row in rows.items():
        if "failed" in row:
            console.print(f"{key}: {row['failed'].splitlines()[0]}")


if __name__ == "__main__":
    main()
