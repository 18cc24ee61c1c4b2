"""Experts that transformers keeps in parameters of three dimensions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.network.scan import is_packed_experts, scan
from lowrank.compression.structure.experts import Experts, experts_apart, experts_together
from lowrank.errors import BudgetError

transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_SIZE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
FAMILIES = {  # gated; gated with a shared expert; transposed, interleaved and with biases
    "qwen3": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "qwen2": (
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt-oss": (
        "GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
}  # fmt: skip


def model(family: str = "qwen3", **more: Any) -> nn.Module:
    kind, config, size = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, kind)(getattr(transformers, config)(**{**_SIZE, **size, **more}))
    for name, p in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(p, std=0.1)  # transformers begins with zeros
    return made.eval()  # type: ignore[no-any-return]


def words(n: int = 4, length: int = 16) -> dict[str, Tensor]:
    ids = torch.randint(0, 100, (n, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids}


def packed(net: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in net.named_modules() if is_packed_experts(m)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_apart_and_together_they_are_what_they_were(
    family: str, dtype: torch.dtype, implementation: str
) -> None:
    net = model(family).to(dtype)
    experts = next(iter(packed(net).values()))
    experts.config._experts_implementation = implementation
    state = copy.deepcopy(experts.state_dict())
    x = torch.randn(7, 32).to(dtype)
    index = torch.stack([torch.randperm(4)[:2] for _ in range(7)])
    index[0] = 3  # both places the same expert
    weights = torch.rand(7, 2).to(dtype)
    with torch.no_grad():
        expected = experts(x, index, weights)
        apart = experts_apart(experts)
        tol = 1e-6 if dtype == torch.float32 else 2e-2
        for every in (False, True):
            apart.every = every
            torch.testing.assert_close(apart(x, index, weights), expected, rtol=tol, atol=tol)
        torch.testing.assert_close(
            apart._of_all(x, index, weights), expected, rtol=2 * tol, atol=2 * tol
        )
        assert apart(x[:0], index[:0], weights[:0]).shape == (0, 32)
        again = experts_together(apart)
    assert type(again) is type(experts)
    assert list(again.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    assert torch.equal(again(x, index, weights), expected)


def test_taken_apart_nothing_is_copied() -> None:
    experts: Any = next(iter(packed(model()).values()))
    apart: Any = experts_apart(experts)
    assert apart.gate_up_proj[0].weight.data_ptr() == experts.gate_up_proj.data_ptr()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("data", [False, True], ids=["no data", "data"])
def test_each_expert_is_a_layer(family: str, data: bool, tmp_path: Path) -> None:
    net, batch = model(family), words()
    before = copy.deepcopy(net.state_dict())
    small, report = lowrank.compress(net, batch, params=0.5, data=[batch] if data else None)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    rows = {row.name: row for row in report.layers if "experts." in row.name}
    assert len(rows) == 2 * 2 * 4  # blocks, matrices, experts
    assert any(name in report.plan.replaced for name in rows)
    assert sum(p.numel() for p in small.parameters()) <= 0.5 * sum(
        v.numel() for v in before.values()
    )
    assert not any(m.every for m in small.modules() if isinstance(m, Experts))
    expected = small(**batch).logits
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=model(family))
    torch.testing.assert_close(again.eval()(**batch).logits, expected)
    dense = lowrank.densify(small)
    assert list(packed(dense)) == list(packed(net))
    torch.testing.assert_close(dense(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert (
        small.generate(batch["input_ids"][:, :4], max_new_tokens=3, do_sample=False).shape[1] == 7
    )


def test_at_full_budget_they_stay_packed() -> None:
    net, batch = model(), words()
    full, report = lowrank.compress(net, batch, params=1.0)
    assert list(packed(full)) == list(packed(net))
    assert not report.plan.replaced
    assert torch.equal(full(**batch).logits, net(**batch).logits)


def test_experts_that_no_token_reaches_keep_what_they_are() -> None:
    net = model(num_experts_per_tok=1)
    batch = words(1, 2)  # two tokens for four experts
    routers = [m.mlp.gate for m in net.model.layers]
    sent: list[set[int]] = [set() for _ in routers]
    for router, seen in zip(routers, sent, strict=True):
        router.register_forward_hook(
            lambda m, args, out, seen=seen: seen.update(out[2].flatten().tolist())
        )
    net(**batch)
    for kept in (0.6, 0.35):
        small, report = lowrank.compress(net, batch, params=kept, data=[batch])
        assert small(**words()).logits.isfinite().all()
        for row in report.layers:
            if "experts" in row.name:
                block, e = int(row.name.split(".")[2]), int(row.name.rpartition(".")[2])
                if e not in sent[block]:
                    assert row.fitted in (None, "to its weights alone: no batch ran it")


@pytest.mark.parametrize("how", [{"skip": ["*.experts*"]}, {"stock": True}], ids=["skip", "stock"])
def test_where_they_may_not_be_taken_apart_a_refusal_names_them(how: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"parameters of model.layers.0-1.mlp.experts stay") as e:
        lowrank.compress(model(), words(), params=0.1, **how)
    assert f"{2 * 4 * 32 * 24 * 3:,} parameters" in str(e.value)


def test_other_parameters_or_parallel_experts_are_left_with_a_reason() -> None:
    net = model()
    first, second = packed(net).values()
    first.register_parameter("scale", nn.Parameter(torch.ones(1)))
    second._is_expert_parallel = True
    reasons = scan(net, words()).reasons
    a, b = packed(net)
    assert reasons[a] == "it holds further parameters: scale"
    assert "spread over devices" in reasons[b]


def test_exported_they_run_every_expert() -> None:
    net = model()
    small, report = lowrank.compress(net, words(), params=0.5)
    assert any("experts" in name for name in report.plan.replaced)
    program = lowrank.export_program(small, words())
    assert small.config.use_cache, "for generation, as before"
    other = {"input_ids": (words()["input_ids"] + 7) % 100}  # other words, other experts
    expected = small(**other).logits
    torch.testing.assert_close(program.module()(**other).logits, expected, rtol=1e-4, atol=1e-5)


def test_training_reaches_the_factors() -> None:
    small, _ = lowrank.compress(model(), words(), params=0.5, data=[words()])
    small(**words(), labels=words()["input_ids"]).loss.backward()
    factors = [p for n, p in small.named_parameters() if "experts" in n]
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in factors)
