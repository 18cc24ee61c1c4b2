"""The same calls on a GPU: layers stay there, and answers are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import scan

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


class Read(nn.Module):
    """A recurrent module and a cell, whose matrices are layers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.cell = nn.GRU(16, 16, batch_first=True), nn.LSTMCell(16, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.rnn(x)[0].unbind(1):
            state = self.cell(step, state)
        return self.last(state[0])


def _plain() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 8))


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def _llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _words() -> Tensor:
    return torch.randint(96, (8, 24))


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, Any]]] = {
    "ranks": (_plain, lambda: torch.randn(64, 16), {"params": 0.6}),
    "ranks and refinement": (_plain, lambda: torch.randn(64, 16), {"params": 0.6, "refine": 4}),
    "convolutions": (_convolutions, lambda: torch.randn(16, 3, 8, 8), {"params": 0.7}),
    "low bits": (_plain, lambda: torch.randn(64, 16), {"bytes": 0.2, "low_bits": True}),
    "channels": (
        _convolutions, lambda: torch.randn(16, 3, 8, 8),
        {"params": 0.7, "methods": ["channel_svd", "select"]},
    ),
    "neurons": (_llama, _words, {"params": 0.7}),
    "recurrent": (Read, lambda: torch.randn(16, 5, 16), {"params": 0.8}),
    "latency": (_plain, lambda: torch.randn(64, 16), {"latency": 0.99}),
}  # fmt: skip


def _goes(way: str, device: str, folder: Path) -> None:
    build, draw, budget = WAYS[way]
    torch.manual_seed(0)
    model, x = build().eval().to(device), draw().to(device)
    small, report = lowrank.compress(model, x[:1], data=x, **budget)
    assert {t.device.type for t in (*small.parameters(), *small.buffers())} == {device}
    for name, most in budget.items():
        if name in ("params", "bytes"):
            assert report.kept({"params": "parameters"}.get(name, name)) <= most + 1e-6
    lowrank.save(small, folder / "small.safetensors")
    loaded = lowrank.load(folder / "small.safetensors", into=build().eval().to(device))
    with torch.no_grad():
        found, again = (net(x) for net in (small, loaded))
        assert torch.equal(*(getattr(y, "logits", y) for y in (found, again)))
    lowrank.densify(small)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_on_a_gpu_stays_there(way: str, tmp_path: Path) -> None:
    _goes(way, "cuda", tmp_path)


def test_plans_of_weights_alone_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    model, x = _convolutions().eval(), torch.randn(2, 3, 8, 8)
    plans = [
        lowrank.measure(model.to(device), x.to(device), methods="channel_svd").plan(params=0.6)
        for device in ("cpu", "cuda")
    ]
    assert plans[0].replaced == plans[1].replaced
    assert [u.names for u in scan(model, x.cuda()).units]


def test_training_on_a_gpu_ends_there() -> None:
    torch.manual_seed(0)
    model, x = _plain().eval().cuda(), torch.randn(64, 16)
    small, _ = lowrank.compress(model, x[:1].cuda(), params=0.6, data=x)
    tuned = lowrank.finetune(small, teacher=model, data=x, epochs=1)
    assert {p.device.type for p in tuned.parameters()} == {"cuda"}
