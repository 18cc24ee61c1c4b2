"""What comes of thousands of random networks: counts by step and outcome, and every fault.

    python benchmarks/grammar.py --count 2000 --out benchmarks/results/grammar.json

Each seed is a network of `tests/grammar.py`, which `tests/walk.py` takes through the library: a
step is done, refused by an error whose sentence is listed there, skipped where it does not apply
(an export that the dense network does not have, int8 without torchao), or a fault. Seeds 0 to 99
are those of the default suite. `--steps` draws so many of the cheap steps for each network, else
all of them are taken.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from grammar import network  # noqa: E402
from walk import FAULT, REFUSED, Outcome, walk  # noqa: E402


@dataclass
class Counts:
    """What came of the networks so far.

    Args:
        steps: step -> outcome -> how often.
        refused: name of the refusal -> how often.
        features: what networks are made of -> in how many.
        faults: seed, step and error of every fault.
        slowest: CPU seconds and seed of the slowest.
    """

    steps: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)

    def add(self, seed: int, features: Iterable[str], outcomes: list[Outcome], cpu: float) -> None:
        self.features.update(features)
        self.slowest = max(self.slowest, (round(cpu, 1), seed))
        for o in outcomes:
            self.steps.setdefault(o.step, Counter())[o.result] += 1
            if o.result == REFUSED:
                self.refused[o.what] += 1
            if o.result == FAULT:
                self.faults.append({"seed": seed, "step": o.step, "error": o.what})


def counted(seeds: Iterable[int], steps: int | None) -> Counts:
    """Every network of the seeds on its way."""
    counts = Counts()
    for seed in seeds:
        started = time.process_time()
        net = network(seed)
        outcomes = walk(net, steps)
        counts.add(seed, net.features, outcomes, time.process_time() - started)
        for o in outcomes:
            if o.result == FAULT:
                print(f"{seed} {o}\n    {net}", flush=True)
    return counts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    seeds = range(arguments.first, arguments.first + arguments.count)
    counts = counted(seeds, arguments.steps)
    for step, found in counts.steps.items():
        print(f"{step:16} " + "  ".join(f"{k} {n}" for k, n in sorted(found.items())))
    result = {
        "seeds": [seeds.start, seeds.stop],
        "steps_drawn": arguments.steps,
        "python": platform.python_version(),
        "versions": {n: _version(n) for n in ("torch", "numpy", "scipy", "torchao", "onnxruntime")},
        "threads": 1,
        "cpu_seconds": round(time.process_time() - started, 1),
        "slowest": {"cpu_seconds": counts.slowest[0], "seed": counts.slowest[1]},
        "steps": {step: dict(sorted(found.items())) for step, found in counts.steps.items()},
        "refused": dict(counts.refused.most_common()),
        "faults": counts.faults,
        "features": dict(counts.features.most_common()),
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
