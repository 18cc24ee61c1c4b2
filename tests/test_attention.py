"""Attention that torch keeps packed: its four projections are layers like others.

They are taken apart where one of them is replaced, and only there.
"""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lowrank
from lowrank.compression import run, scan
from lowrank.compression.structure.attention import Attention
from lowrank.compression.structure.packed import put_together, take_apart
from lowrank.errors import InputError

WIDTH, HEADS, LENGTH, OTHER, BATCH = 16, 4, 5, 7, 3
PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
FULL = {f"*{part}": lowrank.ChannelSVD(8) for part in PARTS}


class Block(nn.Module):
    """Attention of x to y, both of them outputs."""

    def __init__(self, need_weights: bool = False, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, **settings)
        self.need_weights = need_weights
        for p in self.parameters():
            p.data += 0.1 * torch.randn_like(p)

    def forward(self, x: Tensor, y: Tensor, z: Tensor, **masks: Any) -> Any:
        return self.attn(x, y, z, need_weights=self.need_weights, **masks)


def apart(model: nn.Module) -> nn.Module:
    """A copy in which all attention is taken apart."""
    model = copy.deepcopy(model)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    take_apart(model, names)
    return model


def inputs(first: bool, batched: bool, kdim: int = WIDTH, vdim: int = WIDTH) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    x, y, z = (
        torch.randn(BATCH, n, d, generator=rng)
        for n, d in ((LENGTH, WIDTH), (OTHER, kdim), (OTHER, vdim))
    )
    if not batched:
        return x[0], y[0], z[0]
    return (x, y, z) if first else (x.transpose(0, 1), y.transpose(0, 1), z.transpose(0, 1))


def masks(kind: str, batched: bool) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(2)
    hidden = torch.zeros(BATCH, OTHER, dtype=torch.bool)
    hidden[1, 4:] = True
    plane = torch.rand(LENGTH, OTHER, generator=rng) > 0.7
    plane[:, 0] = False
    heads = (BATCH if batched else 1) * HEADS
    found: dict[str, dict[str, Any]] = {
        "none": {},
        "padding": {"key_padding_mask": hidden},
        "bool": {"attn_mask": plane},
        "float": {"attn_mask": torch.randn(LENGTH, OTHER, generator=rng)},
        "heads": {"attn_mask": torch.randn(heads, LENGTH, OTHER, generator=rng)},
        "both": {"attn_mask": plane, "key_padding_mask": hidden},
    }
    return {
        k: v[1] if k == "key_padding_mask" and not batched else v for k, v in found[kind].items()
    }


def same(model: nn.Module, other: nn.Module, args: Any, kwargs: Any, training: bool) -> None:
    outs = []
    for net in (model, other):
        net.train(training)
        torch.manual_seed(3)  # of the dropout
        outs.append(net(*args, **kwargs))
    for a, b in zip(*outs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["none", "padding", "bool", "float", "heads", "both"])
@pytest.mark.parametrize(("first", "batched"), [(True, True), (False, True), (False, False)])
def test_attention_that_is_taken_apart_gives_the_same(
    kind: str, first: bool, batched: bool
) -> None:
    flags = list(itertools.product((False, True), repeat=5))
    for bias, more, zero, own_sizes, need in flags:
        sizes = {"kdim": 6, "vdim": 10} if own_sizes else {}
        model = Block(
            need, bias=bias, add_bias_kv=more, add_zero_attn=zero, batch_first=first,
            dropout=0.3 if bias else 0.0, **sizes,
        )  # fmt: skip
        other = apart(model)
        args = inputs(first, batched, **sizes)
        for training in (False, True):
            same(model, other, args, masks(kind, batched), training)
        put_together(other)
        for (name, a), (b_name, b) in zip(
            model.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert name == b_name
            assert torch.equal(a, b)
        assert vars(model.attn).keys() == vars(other.attn).keys()
        same(model, other, args, masks(kind, batched), training=False)


@pytest.mark.parametrize("need", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_the_causal_hint_and_weights_a_head(need: bool, average: bool, padded: bool) -> None:
    model = Block(need, batch_first=True)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    kwargs: dict[str, Any] = {"attn_mask": causal, "is_causal": True}
    kwargs |= {"average_attn_weights": average}
    if padded:
        hidden = torch.zeros(BATCH, LENGTH)
        hidden[1, 3:] = -torch.inf
        kwargs["key_padding_mask"] = hidden
    for training in (False, True):
        same(model, apart(model), (x, x, x), kwargs, training)


def test_what_torch_refuses_is_refused() -> None:
    model = apart(Block(batch_first=True))
    x = torch.randn(BATCH, LENGTH, WIDTH)
    with pytest.raises(InputError, match="is_causal"):
        model(x, x, x, is_causal=True)


class Net(nn.Module):
    """Self-attention between two linear layers."""

    def __init__(self, cls: type[nn.MultiheadAttention] = nn.MultiheadAttention) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.attn = cls(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.attn(x, x, x, need_weights=False)[0])


X = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(5))
NAMES = {f"attn.{part}" for part in PARTS}


def at_full_rank(data: Any = None) -> nn.Module:
    full = {f"*{part}": lowrank.ChannelSVD(WIDTH) for part in PARTS}
    small, report = lowrank.compress(Net().eval(), X, params=10**6, overrides=full, data=data)
    assert set(report.plan.replaced) == NAMES
    return small


@pytest.mark.parametrize("data", [None, [X]])
def test_the_projections_are_replaced_and_exact_at_full_rank(data: Any) -> None:
    model = Net().eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    small = at_full_rank(data)
    assert isinstance(small.attn, Attention)
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X), rtol=1e-4, atol=1e-5)
    lowrank.compress(model, X, params=0.7, data=data)
    assert type(model.attn) is nn.MultiheadAttention
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("data", [None, [X]])
def test_compressed_attention_goes_the_whole_way(data: Any, tmp_path: Path) -> None:
    model = Net().eval()
    small, report = lowrank.compress(
        model, X, params=0.6, data=data, only="attn.*", refine=2 if data else False
    )
    assert report.kept("parameters") <= 0.6
    assert set(report.plan.replaced) <= NAMES
    with torch.no_grad():
        expected = small(X)
        lowrank.save(small, tmp_path / "small.safetensors")
        loaded = lowrank.load(tmp_path / "small.safetensors", into=Net())
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        for again in (loaded, copy.deepcopy(small), torch.load(file, weights_only=False)):
            assert torch.equal(again.eval()(X), expected)
        dense = lowrank.densify(small)
        assert list(dense.state_dict()) == list(model.state_dict())
        assert type(dense.attn) is nn.MultiheadAttention
        torch.testing.assert_close(dense(X), expected, rtol=1e-4, atol=1e-5)
        again, _ = lowrank.apply(model, lowrank.Plan.from_json(report.plan.to_json()))
        assert again(X).isfinite().all()
    before = {k: v.clone() for k, v in small.state_dict().items()}
    tuned = lowrank.finetune(small, teacher=model, data=[X], loss="mse", epochs=1)
    assert any(not torch.equal(v, before[k]) for k, v in tuned.state_dict().items())
    twice, report = lowrank.compress(small, X, params=0.9)
    with torch.no_grad():
        torch.testing.assert_close(lowrank.densify(twice)(X), twice(X), rtol=1e-4, atol=1e-5)
    lowrank.save(twice, tmp_path / "twice.safetensors")
    lowrank.load(tmp_path / "twice.safetensors", into=Net())


def test_attention_of_which_no_layer_is_replaced_stays_torchs() -> None:
    small, report = lowrank.compress(Net().eval(), X, params=0.95, only=["first", "last"])
    assert report.plan.replaced
    assert type(small.attn) is nn.MultiheadAttention
    assert set(report.plan.layers) >= NAMES


@pytest.mark.parametrize("layer", sorted(NAMES))
def test_one_layer_alone_may_be_replaced(layer: str, tmp_path: Path) -> None:
    model = Net().eval()
    small, _ = lowrank.compress(
        model, X, params=10**6, overrides={layer: lowrank.ChannelSVD(WIDTH)}, only=layer
    )
    lowrank.save(small, tmp_path / "small.safetensors")
    loaded = lowrank.load(tmp_path / "small.safetensors", into=Net().eval())
    with torch.no_grad():
        for net in (small, loaded, lowrank.densify(small)):
            torch.testing.assert_close(net(X), model(X), rtol=1e-4, atol=1e-5)


def test_query_key_and_value_share_their_input() -> None:
    from lowrank.compression.structure.opening import opened

    (unit,) = scan(opened(Net().eval(), X), X).same_input
    assert {view.name for view in unit.layers} == NAMES - {"attn.out_proj"}


class Other(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        return 2 * out, weights


class Reads(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.attn.in_proj_weight.mean()


class Never(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


class Listed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.held = [self.attn]


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(WIDTH, 3 * WIDTH)
        self.again.weight = self.attn.in_proj_weight


def hooked() -> nn.Module:
    net = Net()
    net.attn.out_proj.register_forward_hook(lambda m, x, y: 2 * y)
    return net


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(Other), "Other may use its packed weights otherwise"),
        (Reads(), "reads its in_proj_weight directly"),
        (Never(), "the example never runs it"),
        (Listed(), "held holds it too"),
        (Tied(), "shares its weight with again"),
        (hooked(), "whose hooks would run"),
    ],
)
def test_attention_that_is_used_otherwise_stays_with_a_reason(
    model: nn.Module, reason: str
) -> None:
    model.eval()
    small, report = lowrank.compress(model, X, params=0.98, only=["first", "last"])
    assert reason in str(report.plan.layers["attn"].choice)
    assert type(small.attn) is type(model.attn)
    assert not NAMES & {*report.plan.layers} - {"attn.out_proj"}


def test_stock_keeps_torchs_module() -> None:
    small, report = lowrank.compress(Net().eval(), X, params=0.95, stock=True)
    assert type(small.attn) is nn.MultiheadAttention
    assert "stock" in str(report.plan.layers["attn"].choice)


@pytest.mark.parametrize("skip", ["attn", "att*", "attn.*"])
def test_attention_is_skipped_by_its_name_or_its_layers(skip: str) -> None:
    small, report = lowrank.compress(Net().eval(), X, params=0.95, skip=skip)
    assert type(small.attn) is nn.MultiheadAttention
    assert report.plan.replaced
    assert not NAMES & set(report.plan.replaced)


def test_hooks_of_attention_are_kept() -> None:
    model, seen = Net().eval(), []
    model.attn.register_forward_hook(lambda m, args, out: seen.append(type(m)))
    small, _ = lowrank.compress(model, X, params=0.6, only="attn.*")
    seen.clear()
    small(X)
    lowrank.densify(small)(X)
    model(X)
    assert seen == [Attention, nn.MultiheadAttention, nn.MultiheadAttention]


def test_macs_are_those_that_torch_counts() -> None:
    small = at_full_rank()
    for net in (small, apart(Net().eval())):
        plainly = sdpa_kernel(SDPBackend.MATH)  # of the fused kernels torch counts some
        with FlopCounterMode(display=False) as counter, torch.no_grad(), plainly:
            net(X)
        found = lowrank.profile(net, X, latency=False)
        assert 2 * found.macs == counter.get_total_flops()
    packed = lowrank.profile(Net().eval(), X, latency=False)
    assert packed.macs == found.macs


def test_exports_of_compressed_attention_are_checked(tmp_path: Path) -> None:
    small, _ = lowrank.compress(Net().eval(), X, params=0.6, only="attn.*")
    lowrank.export_program(small, X)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    lowrank.export_onnx(small, X, tmp_path / "small.onnx")


def test_int8_beside_factors_and_alone(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    model = Net().eval()
    for kept in (0.5, 0.36):
        small, _ = lowrank.compress(model, X, bytes=kept, int8=True, only="attn.*")
        lowrank.save(small, tmp_path / "small.safetensors")
        loaded = lowrank.load(tmp_path / "small.safetensors", into=Net().eval())
        with torch.no_grad():
            torch.testing.assert_close(loaded(X), small(X))
    lowrank.densify(small)


PADDED = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
PADDED[1, 3:] = True


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_padded_encoder_with_its_fast_path_on() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    example = {"src": X, "src_key_padding_mask": PADDED}
    small, report = lowrank.compress(model, example, params=0.6, only="*proj", data=[example])
    assert report.plan.replaced
    with torch.no_grad():
        torch.testing.assert_close(small(**example), run(small, example))
        dense = lowrank.densify(small)
        torch.testing.assert_close(dense(**example)[~PADDED], small(**example)[~PADDED])
        assert not dense(**example)[PADDED].any()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("need", [False, True])
def test_attention_that_is_taken_apart_can_be_scripted(need: bool) -> None:
    model = apart(Net().eval()).attn
    scripted = torch.jit.script(model)
    for a, b in zip(
        scripted(X, X, X, PADDED, need), model(X, X, X, PADDED, need), strict=True
    ):  # fmt: skip
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("settings", [{}, {"kdim": WIDTH, "vdim": OTHER}, {"bias": False}])
def test_attention_that_was_made_for_inference(settings: dict[str, Any]) -> None:
    """Its weights could never be trained; those of the result can."""
    with torch.inference_mode():
        model = Block(**settings).eval()
    x, y = (
        torch.randn(LENGTH, BATCH, WIDTH),
        torch.randn(LENGTH, BATCH, settings.get("kdim", WIDTH)),
    )
    z = torch.randn(LENGTH, BATCH, settings.get("vdim", WIDTH))
    small, report = lowrank.compress(model, (x, y, z), params=0.7)
    assert report.plan.replaced
    assert all(p.requires_grad and not p.is_inference() for p in small.parameters())
