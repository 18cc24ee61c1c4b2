"""Which layers of a compressed model take adapters that can be merged."""

from __future__ import annotations

from collections import Counter

from torch import nn

from lowrank.compression.network.example import unwrapped
from lowrank.compression.network.layers import is_transposed_linear
from lowrank.compression.network.tensors import memory_of


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the linear layers that PEFT may put LoRA on, for its `target_modules`.

    They are the factors and the dense layers whose weight stands in one place alone. PEFT merges
    an adapter into the weight: where a head reads the table of the embedding, or layers share a
    factor, that would change the others too, which had no adapter. The output head is left out,
    as PEFT does for "all-linear".

    Args:
        model: compressed or dense.

    Example:
        >>> import torch, lowrank
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        >>> small, _ = lowrank.compress(net, torch.zeros(1, 64), params=0.6, only="0")
        >>> lora_targets(small)
        ['0.0', '0.1', '2']
    """
    model = unwrapped(model)
    everywhere = dict(model.named_modules(remove_duplicate=False))
    linear = {
        name: module
        for name, module in everywhere.items()
        if isinstance(module, nn.Linear) or is_transposed_linear(module)
    }
    held = Counter(
        memory_of(p) for m in everywhere.values() for p in m.parameters(recurse=False)
    )  # fmt: skip
    find = getattr(model, "get_output_embeddings", lambda: None)
    head = set() if (found := find()) is None else {id(m) for m in found.modules()}
    return [
        name
        for name, module in linear.items()
        if id(module) not in head and held[memory_of(module.weight)] == 1
    ]
