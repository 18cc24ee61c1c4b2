"""SmolLM2-135M: would heads of fewer dimensions be taken, beside what the planner has?

    python -m benchmarks.heads

Model, texts and budgets are those of benchmarks/language.py, and so is what has to be installed.
Two units of several layers, as MoDeGPT has them, are priced beside what the default plan makes of
the same layers, block by block, by the loss that is predicted and what a parameter costs at that
budget:

- value and output: each key-value head keeps so many directions, all as many, so that `v_proj` has
  fewer rows and `o_proj` fewer columns. Directions are those in which the heads' outputs count most
  in the metric of the output's error (Lin et al. 2025, "MoDeGPT", type III), and `o_proj` is then
  the best on what they leave;
- query and key: rotary embeddings turn dimensions in pairs, so that pairs go, those first without
  which the scores lose least (type II, which drops dimensions where vectors are rotated).

A unit is taken in a block where its loss plus what its parameters cost there comes to less than the
plan's of these two layers. What all blocks would gain so is set beside the predicted loss.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowrank
from benchmarks.ablations import Bench
from benchmarks.language import budget
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.planning.curves import Curves

OUT = Path(__file__).parent / "results" / "heads.json"
STEP = 2_000_000
"""Parameters over which a budget's price is taken."""

Losses = dict[int, float]
"""Parameters of both layers -> the loss that is predicted, in nats."""


class Heads:
    """The attention of one block, with what is known of its layers.

    Args:
        net: the dense model.
        data: its statistics.
        block: number of the block.
    """

    def __init__(self, net: Any, data: Statistics, block: int) -> None:
        config = net.config
        self.net, self.data = net, data
        self.name = f"model.layers.{block}.self_attn."
        self.n, self.n_kv, self.width = (
            config.num_attention_heads, config.num_key_value_heads, config.hidden_size,
        )  # fmt: skip
        self.size = self.width // self.n
        self.group = self.n // self.n_kv

    def metric(self, layer: str) -> tuple[Tensor, Tensor, Tensor, float]:
        """W, C and G of a layer in float64, and what losing its whole output costs."""
        name = self.name + layer
        metric = self.data.metric(self.net, name).formed
        C = metric.C[0].double()
        W = self.data.views[name].weight().flatten(2)[0].double()
        eye = torch.eye(len(W), dtype=metric.C.dtype)
        G = metric.weighs(eye[None])[0].double()
        counts = self.data.importance(self.net, name).weight(self.data.exponent)
        return W, torch.diag(C) if C.ndim == 1 else C, G, counts

    def value_output(self) -> Losses:
        """With r directions of each key-value head."""
        W, C, G, counts = self.metric("o_proj")
        S, d = W.T @ G @ W, self.size
        whole = float((S * C).sum())
        bases = [self._directions(C, S, k) for k in range(self.n_kv)]
        found = {}
        for r in range(d // 8, d, d // 16):
            E = torch.block_diag(*(bases[h // self.group][:, :r] for h in range(self.n)))
            CE = C @ E
            inner = E.T @ CE
            inner += 1e-10 * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
            kept = float((S * (CE @ torch.linalg.solve(inner, CE.T))).sum())
            found[r * self.width * (self.n_kv + self.n)] = max(0.0, 1 - kept / whole) * counts
        return found

    def _directions(self, C: Tensor, S: Tensor, k: int) -> Tensor:
        """Of a key-value head, most important first, each of unit size in what heads give."""
        parts = [
            slice(h * self.size, (h + 1) * self.size)
            for h in range(k * self.group, (k + 1) * self.group)
        ]
        given, felt = (torch.stack([M[p, p] for p in parts]).sum(0) for M in (C, S))
        sizes, Q = torch.linalg.eigh(given)
        root = sizes.clamp_min(1e-10 * sizes.max()).sqrt()
        _, U = torch.linalg.eigh((Q * root).T @ felt @ (Q * root))
        return (Q / root) @ U.flip(1)

    def query_key(self) -> Losses:
        """Without so many pairs of dimensions."""
        W, C, G, counts = self.metric("q_proj")
        lost = G * (W @ C @ W.T)
        whole, half = float(lost.sum()), self.size // 2
        pairs = [
            [h * self.size + p + o for h in range(k * self.group, (k + 1) * self.group)
             for o in (0, half)]
            for k in range(self.n_kv) for p in range(half)
        ]  # fmt: skip
        between = torch.stack([lost[rows].sum(0) for rows in pairs])
        between = torch.stack([between[:, rows].sum(1) for rows in pairs], dim=1)
        left, more, total, found = set(range(len(pairs))), between.diagonal().clone(), 0.0, {}
        dense = self.width * self.size * (self.n + self.n_kv)
        a_pair = 2 * self.width * (self.group + 1)
        for gone in range(1, len(pairs)):
            least = min(left, key=lambda j: float(more[j]))
            total += float(more[least])
            left.discard(least)
            more += 2 * between[:, least]
            found[dense - gone * a_pair] = max(0.0, total / whole) * counts
        return found


def weights(curves: Curves) -> dict[str, float]:
    """What losing the whole output of each layer costs."""
    return {
        c.layer: 1.0 if c.importance is None else c.importance.weight(curves.exponent)
        for c in curves.curves
    }


def planned(
    plan: lowrank.Plan, counts: dict[str, float], names: Sequence[str]
) -> tuple[float, int]:
    """The loss that a plan predicts of some layers, and their parameters."""
    rows = {name: plan.layers[name] for name in names}
    lost = sum(counts[name] * (row.error or 0.0) for name, row in rows.items())
    return lost, sum((row.cost or row.dense).params for row in rows.values())  # type: ignore[union-attr]


def priced(
    net: Any, curves: Curves, keep: float, units: dict[str, tuple[list[Losses], tuple[str, str]]]
) -> dict[str, Any]:
    """What each unit would gain at a budget."""
    counts, limit = weights(curves), budget(net, keep)
    plan, less = (curves.plan(params=p, exponent=curves.exponent) for p in (limit, limit - STEP))
    lost, more = (sum(counts.values()) * curves.predicted(p, curves.exponent) for p in (plan, less))
    price = (more - lost) / STEP
    row: dict[str, Any] = {"keep": keep, "predicted_nats": lost, "nats_a_million": 1e6 * price}
    for unit, (found, layers) in units.items():
        gains = []
        for block, losses in enumerate(found):
            names = [f"model.layers.{block}.self_attn.{layer}" for layer in layers]
            now, params = planned(plan, counts, names)
            best = min(loss + price * n for n, loss in losses.items())
            gains.append(now + price * params - best)
        row[unit] = {"blocks": sum(g > 0 for g in gains), "nats": sum(max(g, 0.0) for g in gains)}
        row[unit]["least"], row[unit]["most"] = min(gains), max(gains)
    return row


def measured(net: Any, curves: Curves, keeps: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each budget."""
    assert curves.data is not None
    blocks = [Heads(net, curves.data, k) for k in range(net.config.num_hidden_layers)]
    ways: dict[str, tuple[Callable[[Heads], Losses], tuple[str, str]]] = {
        "value and output": (Heads.value_output, ("v_proj", "o_proj")),
        "query and key": (Heads.query_key, ("q_proj", "k_proj")),
    }
    units = {name: ([way(b) for b in blocks], layers) for name, (way, layers) in ways.items()}
    return [priced(net, curves, keep, units) for keep in keeps]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, nargs="*", default=[0.8, 0.6, 0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=24, help="for calibration")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.seed, args.windows, 1)
    rows = measured(bench.net, bench.known, args.keep)
    for row in rows:
        print(row, flush=True)
    about = {"seed": args.seed, "windows": args.windows, "torch": torch.__version__, "threads": 1}
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
