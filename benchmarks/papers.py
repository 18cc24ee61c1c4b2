"""Three papers in shape: what they claim, what was run on the bundled ResNet-20, what came out.

    python benchmarks/papers.py --out benchmarks/results/papers.json
    python benchmarks/papers.py --show benchmarks/results/papers.json

Denton et al. 2014 (bi-clustering and low rank), Yu et al. 2017 (low rank plus sparse) and
Yang et al. 2019 (LegoNet). Calibration on 256 of the bundled training pictures, fine-tuning
on the 5,000; accuracy on the 2,000 bundled test pictures, where 0.1 points are two of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowrank
from lowrank.compression import Candidate, Curves, accuracy
from lowrank.demos.bundled import fashion_mnist, resnet20

CLAIMS = {
    "Denton 2014": (
        "conv layers of a trained network 2 to 2.5 times cheaper, within 1 % of its accuracy, "
        "by bi-clustering and low rank (and monochromatic filters where pictures have colours)"
    ),
    "Yu 2017": (
        "low rank plus sparse compresses further than either alone at little loss, VGG-16 by 15, "
        "and reconstructs the feature maps so well that little is lost before retraining"
    ),
    "LegoNet 2019": (
        "filters from shared bricks, trained from scratch: VGG-16 for CIFAR-10 with 3.8 million "
        "parameters, about a quarter, at 93.88 %"
    ),
}


@dataclass
class Setting:
    """The network, its pictures and what is measured once."""

    seed: int

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.dense = resnet20()
        self.train, self.test = fashion_mnist("train"), fashion_mnist("test")
        chosen = torch.randperm(len(self.train[0]))[:256]
        self.calibration = [self.train[0][chosen]]
        self.example = self.train[0][:1]
        self.data: Any = self.calibration

    def measure(self, methods: list[str], *, data: bool = True) -> Curves:
        given = self.data if data else None
        curves = lowrank.measure(self.dense, self.example, methods=methods, data=given)
        if data:
            self.data = curves.data  # calibrated once
        return curves

    def accuracy(self, model: nn.Module) -> float:
        return 100 * accuracy(model.eval(), *self.test)

    def row(
        self,
        paper: str,
        what: str,
        curves: Curves,
        epochs: int,
        *,
        codes: bool = False,
        **budget: float,
    ) -> dict[str, Any]:
        began = time.perf_counter()
        plan = curves.plan(**budget)
        small, _ = lowrank.apply(self.dense, plan, data=curves.data)
        if epochs:
            lowrank.finetune(small, teacher=self.dense, data=self.train, epochs=epochs, relax=codes)
        used: dict[str, int] = {}
        for method in plan.replaced.values():
            used[method.name] = used.get(method.name, 0) + 1
        return {
            "paper": paper,
            "run": what,
            "epochs": epochs,
            "params_ratio": self.cost("params", plan),
            "macs_ratio": self.cost("macs", plan),
            "accuracy": self.accuracy(small),
            "drop": self.accuracy(self.dense) - self.accuracy(small),
            "methods": used,
            "seconds": time.perf_counter() - began,
        }

    def cost(self, what: str, plan: lowrank.Plan) -> float:
        return getattr(plan.total, what) / getattr(plan.cost, what)


def only(curves: Curves, wanted: Callable[[Candidate], bool]) -> Curves:
    """The curves with some of their candidates."""
    kept = [replace(c, candidates=tuple(filter(wanted, c.candidates))) for c in curves.curves]
    return replace(curves, curves=tuple(kept))


def denton(setting: Setting, epochs: int) -> Any:
    names = ["biclustering", "channel_svd", "monochromatic"]
    blind, seen = setting.measure(names, data=False), setting.measure(names)
    for share in (1 / 2, 1 / 2.5):
        yield setting.row("Denton 2014", "their forms, weights alone", blind, 0, macs=share)
        yield setting.row("Denton 2014", "their forms, fitted to data", seen, 0, macs=share)
    what = "their forms, fitted to data, fine-tuned"
    yield setting.row("Denton 2014", what, seen, epochs, macs=1 / 2.5)


def yu(setting: Setting, epochs: int) -> Any:
    curves = setting.measure(["channel_svd", "low_rank_sparse"])

    def kind(c: Candidate) -> tuple[str, bool, bool]:
        m = c.method
        if m.name == "channel_svd":
            return getattr(m, "fold", ""), True, False
        return getattr(m, "sparsity", ""), getattr(m, "rank", 0) > 0, True

    forms: dict[str, Callable[[Candidate], bool]] = {
        "low rank alone": lambda c: kind(c) == ("kernel_first", True, False),
        "sparse alone": lambda c: kind(c) == ("unstructured", False, True),
        "low rank plus sparse": lambda c: kind(c)[0] in ("unstructured", "kernel_first"),
        "low rank plus whole channels": lambda c: kind(c)[0] in ("channels", "kernel_first"),
    }
    for share in (1 / 3, 1 / 5):
        for what, wanted in forms.items():
            run = f"{what}, {share:.0%} of the bytes"
            yield setting.row("Yu 2017", run, only(curves, wanted), 0, bytes=share)


def legonet(setting: Setting, epochs: int) -> Any:
    curves = setting.measure(["legonet"])
    for share in (1 / 2, 1 / 3):
        yield setting.row("LegoNet 2019", "coded in the output metric", curves, 0, params=share)
    what = "coded, then bricks and coefficients trained"
    yield setting.row("LegoNet 2019", what, curves, 2 * epochs, params=1 / 3)
    what = "coded, then bricks, coefficients and codes trained"
    yield setting.row("LegoNet 2019", what, curves, 2 * epochs, params=1 / 3, codes=True)


PAPERS = {"Denton 2014": denton, "Yu 2017": yu, "LegoNet 2019": legonet}


def table(found: dict[str, Any]) -> str:
    lines = [f"dense: {found['dense_accuracy']:.2f} % of {found['n_test']} test pictures", ""]
    for paper, claim in CLAIMS.items():
        lines += [f"{paper} claims: {claim}", ""]
        lines.append("| run | epochs | parameters / | MACs / | accuracy | points lost |")
        lines.append("|---|---|---|---|---|---|")
        for r in (r for r in found["rows"] if r["paper"] == paper):
            lines.append(
                f"| {r['run']} | {r['epochs']} | {r['params_ratio']:.2f} | {r['macs_ratio']:.2f} "
                f"| {r['accuracy']:.2f} | {r['drop']:+.2f} |"
            )
        lines.append("")
    return "\n".join([*lines, found.get("note", "")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--paper", choices=PAPERS, nargs="+", default=list(PAPERS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.show:
        print(table(json.loads(args.show.read_text())))
        return
    torch.set_num_threads(1)
    setting = Setting(args.seed)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "seed": args.seed,
        "calibration": 256,
        "n_test": len(setting.test[0]),
        "dense_accuracy": setting.accuracy(setting.dense),
        "claims": CLAIMS,
        "rows": [],
    }
    if args.out and args.out.exists():  # what was run before stays, but for these papers
        rows = json.loads(args.out.read_text())["rows"]
        found["rows"] = [r for r in rows if r["paper"] not in args.paper]
    for paper in args.paper:
        for row in PAPERS[paper](setting, args.epochs):
            found["rows"].append(row)
            print(row, flush=True)
            if args.out:
                args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
