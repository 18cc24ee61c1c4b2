"""Weights of a few bits beside a low-rank layer: bytes, fits, files, export, refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import lowrank
from lowrank import LowRankQuantized
from lowrank.compression import spec_of
from lowrank.compression.network.bits.quantized import (
    PLANES,
    packed_codes,
    row_bytes,
    unpacked_codes,
)
from lowrank.compression.network.own_stages import weight_bytes
from lowrank.decompositions.metric import Metric, best_map, identity
from lowrank.decompositions.quantized import (
    low_rank_plus_quantized,
    quantized,
    spread_of,
    values_of,
)
from lowrank.errors import InputError, RankError

KINDS = {
    "linear": (lambda d: nn.Linear(d, 24), lambda d: (5, d)),
    "no bias": (lambda d: nn.Linear(d, 24, bias=False), lambda d: (2, 5, d)),
    "conv": (lambda d: nn.Conv2d(d, 24, 3, padding=1, stride=2), lambda d: (2, d, 7, 7)),
    "transposed": (lambda d: nn.ConvTranspose1d(d, 24, 3), lambda d: (2, d, 7)),
    "embedding": (lambda d: nn.Embedding(11, d), lambda d: (2, 5)),
}
"""Kind -> a layer with so many inputs (or features), and the shape of its input."""


def _inputs(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if kind == "embedding":
        return torch.randint(0, 11, shape)
    return torch.randn(shape).to(dtype)


def _replaced(layer: nn.Module, x: Tensor, method: LowRankQuantized) -> tuple[nn.Module, nn.Module]:
    model = nn.Sequential(layer).eval()
    rules = lowrank.Rules(overrides={"0": method})
    plan = lowrank.measure(model, x, rules=rules).plan(params=10**9)
    return model, lowrank.apply(model, plan)[0]


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("d", [1, 3, 7, 8, 33])
def test_codes_come_back_from_their_bytes(bits: int, d: int, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 2**bits, (50, d), dtype=torch.uint8)
    packed = packed_codes(codes, bits)
    assert packed.shape == (50, row_bytes(d, bits))
    assert torch.equal(unpacked_codes(packed, PLANES[bits], d, dtype), codes.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [31, 32, 33])
def test_bytes_are_those_on_disk(kind: str, d: int, dtype: torch.dtype, tmp_path: Path) -> None:
    """On both sides of a piece's length, with a low-rank layer where the kind has one."""
    torch.manual_seed(0)
    build, shape = KINDS[kind]
    x = _inputs(kind, shape(d), dtype)
    method = LowRankQuantized(0 if kind == "embedding" else 2, bits=3, group=32)
    model, small = _replaced(build(d).to(dtype), x, method)
    file = tmp_path / "small.safetensors"
    lowrank.save(small, file)
    with safe_open(file, framework="pt") as held:
        tensors = [held.get_tensor(name) for name in held.keys()]  # noqa: SIM118
    assert sum(t.numel() * t.element_size() for t in tensors) == weight_bytes(small)
    bias = getattr(model[0], "bias", None)
    others = 0 if bias is None else bias.numel() * bias.element_size()
    spec = spec_of(model[0])
    stages = method.stages(spec)
    assert weight_bytes(small) == others + sum(s.n_bytes(dtype.itemsize) for s in stages)
    again = lowrank.load(file, into=nn.Sequential(build(d).to(dtype)).eval())
    assert torch.equal(again(x), small(x))
    if dtype == torch.float32:
        dense = lowrank.densify(small)
        assert type(dense[0]) is type(model[0])
        torch.testing.assert_close(dense(x), small(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bits", [b for b in PLANES if b < 8])
def test_a_bit_more_loses_less(bits: int) -> None:
    """Half a step at most without data; the steps halve with each bit."""
    torch.manual_seed(0)
    W = torch.randn(1, 20, 70)
    finer = {5: 6, 6: 8}.get(bits, bits + 1)
    lost = [
        float((W - values_of(quantized(W, identity(W), b, 16), b, 16, W.dtype)).square().sum())
        for b in (bits, finer)
    ]
    assert lost[1] < 0.5 * lost[0]


def _metric(d: int, n: int = 200) -> Metric:
    X = torch.randn(n, 6) @ torch.randn(6, d) + 0.3 * torch.randn(n, d)
    return Metric((X.T @ X / n)[None])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_errors_are_made_up_for_by_other_inputs(bits: int) -> None:
    torch.manual_seed(0)
    W, metric = torch.randn(1, 40, 64), _metric(64)
    plain, carried = (
        metric.error(W - values_of(quantized(W, metric, bits, 32, spread=s), bits, 32, W.dtype))
        for s in (None, spread_of(metric))
    )
    assert carried < 0.7 * plain


@pytest.mark.parametrize("rank", [1, 4])
def test_the_parts_in_turns_are_no_worse_than_one_after_the_other(rank: int) -> None:
    torch.manual_seed(0)
    W, metric = torch.randn(1, 40, 64), _metric(64)
    found = [
        low_rank_plus_quantized(W, metric, rank, 2, 32, n_steps=n, spread=spread_of(metric))
        for n in (1, 4)
    ]
    lost = [metric.error(W - f.U @ f.V - values_of(f.grid, 2, 32, W.dtype)) for f in found]
    assert lost[1] <= lost[0]
    rest = W - values_of(found[0].grid, 2, 32, W.dtype)
    U, V = best_map(rest, metric, rank)
    assert lost[0] == pytest.approx(metric.error(rest - U @ V), rel=1e-4)


@pytest.mark.parametrize("C", [torch.zeros(1, 8, 8), torch.ones(1, 8, 8), torch.ones(1, 8)])
def test_a_moment_of_low_rank_is_no_obstacle(C: Tensor) -> None:
    W, metric = torch.randn(1, 3, 8), Metric(C)
    made = values_of(quantized(W, metric, 4, 8, spread=spread_of(metric)), 4, 8, W.dtype)
    assert made.isfinite().all()


def test_zeros_stay_zeros() -> None:
    W = torch.zeros(1, 3, 8)
    W[0, 1, 4:] = 2.0
    made = values_of(quantized(W, identity(W), 4, 4), 4, 4, W.dtype)
    torch.testing.assert_close(made, W)


class Words(nn.Module):
    """A small language model."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(90, 32, padding_idx=3), nn.Linear(32, 33)
        self.outer, self.head = nn.Linear(33, 32), nn.Linear(32, 90, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.outer(torch.relu(self.inner(self.words(ids)))))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("keep", [0.3, 0.2])
def test_ranks_and_bits_share_one_budget(tied: bool, keep: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Words(tied).eval(), torch.randint(0, 90, (24, 6))
    small, report = lowrank.compress(
        model, ids[:1], data=ids, bytes=keep, low_bits=True, methods="channel_svd", effort="quick"
    )
    assert report.compressed.bytes == report.plan.cost.bytes <= keep * report.dense.bytes
    assert report.compressed.parameters == report.plan.cost.params
    assert isinstance(report.plan["words"], LowRankQuantized)
    assert torch.equal(small.words(torch.tensor(3)), torch.zeros(32))
    if tied:
        words, head = small.words[0], small.head[-1]
        assert head.scale is words.scale
        assert head.packed.data_ptr() == words.packed.data_ptr()
    file = tmp_path / "small.safetensors"
    lowrank.save(small, file)
    again = lowrank.load(file, into=copy.deepcopy(model))
    assert torch.equal(again(ids), small(ids))
    assert (lowrank.densify(small)(ids) - small(ids)).abs().max() < 1e-4
    plain, _ = lowrank.compress(
        model, ids[:1], data=ids, bytes=keep, methods="channel_svd", effort="quick"
    )
    whole = model(ids).norm()
    assert (small(ids) - model(ids)).norm() < 0.5 * (plain(ids) - model(ids)).norm() < whole


def test_the_steps_and_the_low_rank_layer_can_be_trained() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 20)
    model, small = _replaced(nn.Linear(20, 12), x, LowRankQuantized(2, 2, 8, factor_bits=None))
    before = (small(x) - model(x)).square().mean()
    tuned = lowrank.finetune(small, teacher=model, data=[x], epochs=30, lr=1e-2)
    assert (tuned(x) - model(x)).square().mean() < before


def test_it_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    _, small = _replaced(nn.Conv2d(4, 6, 3, padding=1), x, LowRankQuantized(0, 3, 5))
    lowrank.export_onnx(small, x, tmp_path / "small.onnx")  # which compares the outputs


REFUSED = {
    "bits": (LowRankQuantized(0, bits=7), "bits 7 is none of 2, 3, 4, 5, 6, 8"),
    "group": (LowRankQuantized(0, group=0), "group 0 is not a whole number from 1 up"),
    "factor_bits": (LowRankQuantized(1, factor_bits=1), "factor_bits 1 is none of"),
    "rank": (LowRankQuantized(9), "rank 9 is outside 0..8 beside 4 bits"),
    "a boolean": (LowRankQuantized(True), "rank True is outside 0..8"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused(what: str) -> None:
    method, message = REFUSED[what]
    rules = lowrank.Rules(overrides={"0": method})
    with pytest.raises(RankError, match=message):
        lowrank.measure(nn.Sequential(nn.Linear(12, 8)), torch.zeros(1, 12), rules=rules)


def test_a_rank_beside_a_table_is_refused() -> None:
    rules = lowrank.Rules(overrides={"0": LowRankQuantized(2)})
    with pytest.raises(RankError, match=r"rank 2 is outside 0\.\.0"):
        lowrank.measure(nn.Sequential(nn.Embedding(9, 8)), torch.zeros(1, 1).long(), rules=rules)


def test_low_bits_needs_bytes_and_modules_of_ours() -> None:
    model, x = nn.Sequential(nn.Linear(12, 8)), torch.zeros(1, 12)
    with pytest.raises(InputError, match="there is no budget of bytes"):
        lowrank.compress(model, x, params=0.5, low_bits=True)
    with pytest.raises(InputError, match="torch has no modules with packed weights"):
        lowrank.compress(model, x, bytes=0.5, low_bits=True, stock=True)
