"""Prefill and decode of SmolLM2-135M's shapes at 0.6 of its blocks' parameters, on one thread.

    python -m benchmarks.decode

Times depend on shapes alone, so weights are random. Every form keeps the same share of the blocks'
linear weights; table and head stay as they are. The forms take turns, pass by pass; figures are
ratios of medians of the thread's CPU time to those of the dense model, with the quartiles of the
ratio in a pair of neighbouring passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lowrank
from lowrank import ChannelSVD, SharedInputSVD
from lowrank.compression.gauges.generation import Writer, _timed
from lowrank.compression.network.example import evaluating
from lowrank.compression.structure.choices import Choice

OUT = Path(__file__).parent / "results" / "decode.json"
HIDDEN, INNER, KEYS, BLOCKS, WORDS = 576, 1536, 192, 30, 49152
ATTENTION = 2 * HIDDEN * (HIDDEN + KEYS)
MLP = 3 * HIDDEN * INNER


def network(inner: int = INNER) -> nn.Module:
    """Llama of these sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=inner, num_hidden_layers=BLOCKS,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rank(keep: float, inputs: int, outputs: int) -> int:
    """Of two factors that keep a share of a matrix."""
    return int(keep * inputs * outputs / (inputs + outputs))


def forms(keep: float) -> dict[str, nn.Module]:
    """Name -> a model that keeps the share of its blocks."""
    rest = (keep * (ATTENTION + MLP) - ATTENTION) / MLP  # of the MLP, where attention is dense
    near = {
        "*.q_proj": ChannelSVD(rank(keep, HIDDEN, HIDDEN)),
        "*.[kv]_proj": ChannelSVD(rank(keep, HIDDEN, KEYS)),
        "*.o_proj": ChannelSVD(rank(keep, HIDDEN, HIDDEN)),
        "*.gate_proj": ChannelSVD(rank(keep, HIDDEN, INNER)),
        "*.up_proj": ChannelSVD(rank(keep, HIDDEN, INNER)),
        "*.down_proj": ChannelSVD(rank(keep, INNER, HIDDEN)),
    }
    shared = {
        "*.[qkv]_proj": SharedInputSVD(rank(keep, HIDDEN, HIDDEN + 2 * KEYS)),
        "*.o_proj": near["*.o_proj"],
        "*.gate_proj": SharedInputSVD(rank(keep, HIDDEN, 2 * INNER)),
        "*.up_proj": SharedInputSVD(rank(keep, HIDDEN, 2 * INNER)),
        "*.down_proj": near["*.down_proj"],
    }
    mlp = {
        "*.gate_proj": SharedInputSVD(rank(rest, HIDDEN, 2 * INNER)),
        "*.up_proj": SharedInputSVD(rank(rest, HIDDEN, 2 * INNER)),
        "*.down_proj": ChannelSVD(rank(rest, INNER, HIDDEN)),
    }
    return {
        "dense": network(),
        "two factors for each matrix": made(near),
        "shared input factors": made(shared),
        "attention dense, shared in the MLP": made(mlp),
        "attention dense, a narrower MLP": network(int(rest * INNER)),
    }


def made(overrides: dict[str, Choice]) -> nn.Module:
    net = network()
    example = torch.arange(8)[None]
    rules = lowrank.Rules(overrides=overrides, only=list(overrides), methods="channel_svd")
    plan = lowrank.measure(net, example, rules=rules).plan(params=1.0)
    return lowrank.apply(net, plan)[0]


def inside(net: nn.Module) -> int:
    """Parameters of the blocks' linear layers."""
    return sum(p.numel() for n, p in net.named_parameters() if "layers." in n and "norm" not in n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--prefills", type=int, default=7)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = forms(args.keep)
    prompt = torch.arange(args.prompt)[None]
    writers = {name: Writer(model, prompt) for name, model in models.items()}
    seconds: dict[str, dict[str, list[float]]] = {n: {"prefill": [], "decode": []} for n in writers}
    for phase, rounds in (("prefill", args.prefills), ("decode", args.steps)):
        for turn in range(rounds + 1):
            for name, writer in writers.items():
                with evaluating(models[name]):
                    took = _timed(writer, writer.read if phase == "prefill" else writer.write)
                if turn:
                    seconds[name][phase].append(took)
    whole = inside(models["dense"])
    rows = []
    for name, model in models.items():
        row: dict[str, Any] = {"form": name, "kept": inside(model) / whole}
        for phase in ("prefill", "decode"):
            mine, dense = seconds[name][phase], seconds["dense"][phase]
            pairs = [a / b for a, b in zip(mine, dense, strict=True)]
            row[phase] = statistics.median(mine) / statistics.median(dense)
            row[f"{phase}_quartiles"] = statistics.quantiles(pairs, n=4)[::2]
            row[f"{phase}_ms"] = 1e3 * statistics.median(mine)
        rows.append(row)
        print(row, flush=True)
    about = {name: version(name) for name in ("torch", "transformers")}
    settings = {n: getattr(args, n) for n in ("keep", "prompt", "prefills", "steps")}
    saved = {"about": {**about, "threads": 1, "device": "cpu"}, **settings, "rows": rows}
    args.out.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
