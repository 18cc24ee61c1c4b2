"""Bits and ranks in one budget of bytes, beside int8 and int4 alone of the same bytes.

    python -m benchmarks.bits resnet20
    python -m benchmarks.bits smollm2 --windows 8 --test-windows 12

Every byte of the weights counts, tables of words, steps and biases too. Rivals, each at 8 or 4 bits
(of ResNet-20 3, too) in every layer: entries at their nearest level, or with errors made up for on
the data; at 4 bits a table of words has 8. Then the planner gets the very bytes of a rival, and
chooses ranks and bits of every layer (`low_bits=True`). SmolLM2 needs what the head of
`benchmarks/language.py` says; its ratio to the dense model's perplexity has the standard error over
the same windows, the accuracy of ResNet-20 that of the difference to dense, picture by picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lowrank
from benchmarks import language
from benchmarks.resnet20 import fashion_mnist, read
from lowrank import LowRankQuantized
from lowrank.compression.methods import ChannelSVD
from lowrank.demos import bundled as demo
from lowrank.evaluate import calibration_text

OUT = Path(__file__).parent / "results" / "bits.json"
RIVALS = {
    "int8": LowRankQuantized(0, 8, 128),
    "int4": LowRankQuantized(0, 4, 32),
    "int3": LowRankQuantized(0, 3, 32),
}
METHODS = (ChannelSVD, LowRankQuantized)


@dataclass(frozen=True)
class Setting:
    """A model, what it is calibrated on, and how its quality is told."""

    model: nn.Module
    data: Any
    calibration: lowrank.Calibration
    quality: Callable[[nn.Module], dict[str, Any]]
    rivals: tuple[str, ...]
    tables: tuple[str, ...] = ()


def rows(setting: Setting) -> Iterator[dict[str, Any]]:
    """The rivals, and what is planned at the bytes of each."""
    model, data = setting.model, setting.data
    yield {"name": "dense", "bytes": 1.0, **setting.quality(model)}
    began = time.process_time()
    curves = lowrank.measure(
        model, data[:1], data=data, calibration=setting.calibration,
        rules=lowrank.Rules(methods=METHODS), progress=told,
    )  # fmt: skip
    spent = time.process_time() - began
    base = curves.plan(bytes=0.3)
    for name in setting.rivals:
        plan = base
        for layer in (c.layer for c in curves.curves):
            is_table = layer in setting.tables
            plan = plan.with_choice(layer, RIVALS["int8" if is_table else name])
        fits = {"nearest levels": None, "errors made up for": curves.data}
        for how, known in fits.items():
            small, report = lowrank.apply(model, plan, data=known, progress=told)
            yield row(f"{name}, {how}", small, report, setting)
        began = time.process_time()
        planned = curves.plan(bytes=report.compressed.bytes)
        small, report = lowrank.apply(model, planned, data=curves.data, progress=told)
        minutes = (spent + time.process_time() - began) / 60
        yield {
            **row(f"planned at the bytes of {name}", small, report, setting),
            "cpu_minutes": minutes,
            "chosen": chosen(planned),
        }


def row(name: str, small: nn.Module, report: lowrank.Report, setting: Setting) -> dict[str, Any]:
    return {"name": name, "bytes": report.kept("bytes"), **setting.quality(small)}


def chosen(plan: lowrank.Plan) -> dict[str, int]:
    """How many layers became what."""
    counts: dict[str, int] = {}
    for entry in plan.layers.values():
        if entry.cost is not None:
            choice: Any = entry.choice
            what = type(choice).__name__
            if isinstance(choice, LowRankQuantized):
                what = f"{choice.bits} bits" + (" + low rank" if choice.rank else "")
            counts[what] = counts.get(what, 0) + 1
    return dict(sorted(counts.items()))


def smollm2(args: argparse.Namespace) -> Setting:
    """SmolLM2-135M on two books."""
    net, tokenizer = language.network()
    texts = language.books()
    train = [text[: int(language.TRAIN * len(text))] for text in texts.values()]
    behind = {name: text[int(language.TRAIN * len(text)) :] for name, text in texts.items()}
    tests = {n: language.first(tokenizer, t, args.test_windows) for n, t in behind.items()}
    data = calibration_text(
        tokenizer, train, n_windows=args.windows, length=language.LENGTH, seed=args.seed
    )
    dense = language.measured(net, tokenizer, tests)

    def quality(model: nn.Module) -> dict[str, Any]:
        return {"texts": language.row(language.measured(model, tokenizer, tests), dense)}

    how = lowrank.Calibration(weighting="gradients", fit="parallel", seed=args.seed)
    table = next(n for n, m in net.named_modules() if isinstance(m, nn.Embedding))
    return Setting(net, data, how, quality, ("int8", "int4"), (table,))


def resnet20(args: argparse.Namespace) -> Setting:
    """The bundled ResNet-20 on Fashion-MNIST."""
    net, (pictures, labels) = demo.resnet20(), read("test")
    seen = fashion_mnist("train")[0]
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(args.seed))
    data = seen[order[: args.pictures]]
    right = answers(net, pictures) == labels

    def quality(model: nn.Module) -> dict[str, Any]:
        now = answers(model, pictures) == labels
        apart = now.double() - right.double()
        n = len(labels)
        return {
            "accuracy": float(now.double().mean()),
            "points_below": -100 * float(apart.mean()),
            "points_error": 100 * float(apart.std()) / n**0.5,
        }

    how = lowrank.Calibration(seed=args.seed)
    return Setting(net, data, how, quality, tuple(RIVALS))


def answers(net: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in pictures.split(500)])


def told(what: str, done: int, total: int) -> None:
    print(f"{time.process_time():8.0f} CPU s  {what} {done}/{total}", file=sys.stderr, flush=True)


def write(path: Path, network: str, settings: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Put a network's rows among those of others and of other seeds."""
    old = json.loads(path.read_text())["runs"] if path.exists() else []
    key = {"network": network, **settings}
    runs = [r for r in old if {k: r.get(k) for k in key} != key]
    about = {name: version(name) for name in ("torch", "transformers")} | {"threads": 1}
    saved = {"about": about, "runs": [*runs, {**key, "rows": found}]}
    path.write_text(json.dumps(saved, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", choices=["smollm2", "resnet20"])
    parser.add_argument("--windows", type=int, default=24, help="for calibration, of SmolLM2")
    parser.add_argument("--test-windows", type=int, default=24, help="of each book")
    parser.add_argument("--pictures", type=int, default=256, help="for calibration, of ResNet-20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    makers = {"smollm2": smollm2, "resnet20": resnet20}
    names = {"smollm2": ("windows", "test_windows"), "resnet20": ("pictures",)}[args.network]
    settings = {n: getattr(args, n) for n in (*names, "seed")}
    found = []
    for one in rows(makers[args.network](args)):
        print(one, flush=True)
        found.append(one)
        write(args.out, args.network, settings, found)


if __name__ == "__main__":
    main()
