"""Prefill and decode of SmolLM2-135M's shapes at 0.6 of its blocks' parameters, on one thread.

    python -m benchmarks.decode

Times depend on shapes alone, so weights are random, and layers are put together as `apply` puts
them: a shared input factor stands behind the norm that makes the input. Every form keeps the same
share of the blocks' linear weights; table and head stay as they are. The forms take turns, pass by
pass, in an order that is drawn anew; figures are ratios of medians of the thread's CPU time to
those of the dense model, with the quartiles of the ratio in passes of one turn. "By columns" are
the same numbers with every weight laid out in memory column by column. What the planner makes of
the model with its real weights is read from results/language.json, beside its perplexity.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank.compression.gauges.generation import Writer, _timed
from lowrank.compression.network.example import evaluating

OUT = Path(__file__).parent / "results" / "decode.json"
HIDDEN, INNER, KEYS, BLOCKS, WORDS = 576, 1536, 192, 30, 49152
ATTENTION = 2 * HIDDEN * (HIDDEN + KEYS)
MLP = 3 * HIDDEN * INNER


def network(inner: int = INNER) -> nn.Module:
    """Llama of these sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=inner, num_hidden_layers=BLOCKS,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rank(keep: float, inputs: int, outputs: int) -> int:
    """Of two factors that keep a share of a matrix."""
    return int(keep * inputs * outputs / (inputs + outputs))


def factored(keep: float) -> nn.Module:
    """Two factors in the place of every matrix of the blocks."""
    net = network()
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and "layers." in name:
            net.set_submodule(name, _pair(layer, keep))
    return net


def shared(keep: float, parts: tuple[str, ...] = ("self_attn", "mlp")) -> nn.Module:
    """The same, but one input factor for queries, keys and values, and one for gate and up."""
    net = network()
    for block in net.model.layers:
        if "self_attn" in parts:
            readers = {n: getattr(block.self_attn, n) for n in ("q_proj", "k_proj", "v_proj")}
            block.input_layernorm = _behind(block.input_layernorm, block.self_attn, readers, keep)
            block.self_attn.o_proj = _pair(block.self_attn.o_proj, keep)
        readers = {n: getattr(block.mlp, n) for n in ("gate_proj", "up_proj")}
        norm = block.post_attention_layernorm
        block.post_attention_layernorm = _behind(norm, block.mlp, readers, keep)
        block.mlp.down_proj = _pair(block.mlp.down_proj, keep)
    return net


def _pair(layer: nn.Linear, keep: float) -> nn.Module:
    r = rank(keep, layer.in_features, layer.out_features)
    return nn.Sequential(_linear(layer.in_features, r), _linear(r, layer))


def _behind(norm: nn.Module, holder: nn.Module, readers: dict[str, Any], keep: float) -> nn.Module:
    r = rank(keep, HIDDEN, sum(layer.out_features for layer in readers.values()))
    for name, layer in readers.items():
        setattr(holder, name, _linear(r, layer))
    return nn.Sequential(norm, _linear(HIDDEN, r))


def _linear(inputs: int, outputs: int | nn.Linear) -> nn.Linear:
    size = outputs if isinstance(outputs, int) else outputs.out_features
    return nn.Linear(inputs, size, bias=False)


def planned(blocks: list[str]) -> nn.Module:
    """As `language.forms` tells of a plan: ranks of each block's factors, and its MLP's width."""
    net = network()
    for block, told in zip(net.model.layers, blocks, strict=True):
        numbers = {name: int(n) for name, n in (part.split() for part in told.split(", "))}
        inner = numbers.pop("mlp")
        for name in ("gate_proj", "up_proj"):
            setattr(block.mlp, name, _linear(HIDDEN, inner))
        block.mlp.down_proj = _linear(inner, HIDDEN)
        for name, r in numbers.items():
            holder = block.mlp if hasattr(block.mlp, name) else block.self_attn
            layer = getattr(holder, name)
            pair = nn.Sequential(_linear(layer.in_features, r), _linear(r, layer))
            setattr(holder, name, pair)
    return net


def by_columns(net: nn.Module) -> nn.Module:
    """The same numbers, each weight laid out column by column; table and head stay one."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            turned = layer.weight.detach().t().contiguous().t()
            layer.weight = nn.Parameter(turned, requires_grad=False)
    net.model.embed_tokens.weight = net.lm_head.weight
    return net


def blocks_of(path: Path, keep: float) -> list[str] | None:
    """What the default plan at a share made of each block; None where there is no such row."""
    rows = json.loads(path.read_text())["rows"]
    plain = {"keep": keep, "effort": "default", "methods": None}
    found = [r for r in rows if "blocks" in r and plain.items() <= r["settings"].items()]
    return found[-1]["blocks"] if found else None


def forms(keep: float, blocks: list[str] | None) -> dict[str, nn.Module]:
    """Name -> a model that keeps the share of its blocks."""
    made: dict[str, nn.Module] = {"dense, by columns": by_columns(network())}
    if blocks is not None:
        made["as planned"] = planned(blocks)
        made["as planned, by columns"] = by_columns(planned(blocks))
    rest = (keep * (ATTENTION + MLP) - ATTENTION) / MLP  # of the MLP, where attention is dense
    return {
        "dense": network(),
        "two factors for each matrix": factored(keep),
        "shared input factors": shared(keep),
        "attention dense, shared in the MLP": shared(rest, ("mlp",)),
        "attention dense, a narrower MLP": network(int(rest * INNER)),
        **made,
    }


def inside(net: nn.Module) -> int:
    """Parameters of the blocks' linear layers."""
    return sum(p.numel() for n, p in net.named_parameters() if "layers." in n and p.ndim == 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--prefills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--plans", type=Path, default=OUT.with_name("language.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = forms(args.keep, blocks_of(args.plans, args.keep))
    prompt = torch.arange(args.prompt)[None]
    writers = {name: Writer(model, prompt) for name, model in models.items()}
    seconds: dict[str, dict[str, list[float]]] = {n: {"prefill": [], "decode": []} for n in writers}
    for phase, rounds in (("prefill", args.prefills), ("decode", args.steps)):
        for turn in range(rounds + 1):
            order = random.Random(turn).sample([*writers.items()], len(writers))
            for name, writer in order:
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
