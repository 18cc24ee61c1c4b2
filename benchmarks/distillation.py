"""What each term of distillation brings back on the bundled ResNet-20, with and without selection.

    python benchmarks/distillation.py
    python benchmarks/distillation.py --table

The network is compressed to a third of its MACs by 256 pictures without labels, by low rank or by
channels alone, and trained for one epoch on bundled pictures: on labels alone, on the teacher's
softened scores (Hinton, Vinyals, Dean 2015), and on these with hints (Romero et al. 2015), with the
flow between layers (Yim et al. 2017), or of two teachers (You et al. 2017), the second of which is
the dense network at 0.8 of its MACs. Points are of the bundled test pictures. Rows that the results
already hold are kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowrank
from lowrank.compression import accuracy
from lowrank.demos.bundled import fashion_mnist, resnet20

OUT = Path(__file__).parent / "results" / "distillation.json"
BLOCKS = [f"stages.{i}.{j}" for i in range(3) for j in range(3)]
FLOWS = [(f"stages.{i}.0", f"stages.{i}.2") for i in range(3)]
BASES: dict[str, dict[str, Any]] = {"low rank": {}, "channels": {"methods": "select"}}
TERMS: dict[str, dict[str, Any]] = {
    "labels": {"label_weight": 1.0},
    "scores": {},
    "scores, hints": {"hints": BLOCKS, "hint_weight": 10.0},
    "scores, flows": {"flows": FLOWS, "flow_weight": 10.0},
    "scores of two teachers": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, default=0.33)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    if args.table:
        for name, row in made["rows"].items():
            print(f"{name:40} {row['points_lost']:6.2f}")
        return
    dense, (images, labels) = resnet20(), fashion_mnist("train")
    data = images[: args.pictures], labels[: args.pictures]
    how = {"epochs": 1, "batch_size": 32, "lr": 1e-3, "data": data}
    made["setting"] = {
        "torch": torch.__version__, "lowrank": lowrank.__version__, "threads": 1, "seed": 0,
        "effort": "quick", "calibration": 256, "keep": args.keep, "pictures": args.pictures,
    }  # fmt: skip

    test = fashion_mnist("test")
    whole = accuracy(dense, *test)

    def add(name: str, small: nn.Module, began: float) -> None:
        spent = time.process_time() - began
        lost = 100 * (whole - accuracy(small, *test))
        made["rows"][name] = {"points_lost": lost, "cpu_seconds": spent}
        print(name, made["rows"][name], flush=True)
        args.out.write_text(json.dumps(made, indent=1) + "\n")

    second, _ = lowrank.compress(dense, images[:1], macs=0.8, effort="quick")
    for base, rules in BASES.items():
        began = time.process_time()
        small, _ = lowrank.compress(
            dense, images[:1], macs=args.keep, data=images[:256], effort="quick", **rules
        )
        if f"{base}: untrained" not in made["rows"]:
            add(f"{base}: untrained", small, began)
        for term, settings in TERMS.items():
            if f"{base}: {term}" in made["rows"]:
                continue
            began = time.process_time()
            teacher = [dense, second] if "two" in term else dense
            tuned = lowrank.finetune(copy.deepcopy(small), teacher=teacher, **{**how, **settings})
            add(f"{base}: {term}", tuned, began)


if __name__ == "__main__":
    main()
