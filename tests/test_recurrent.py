"""Recurrent modules and cells: their matrices are layers like others, in a loop over time.

They are taken apart where one of them is replaced, and only there.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lowrank
from lowrank.compression import scan
from lowrank.compression.structure.packed import put_together, take_apart
from lowrank.compression.structure.recurrent import Recurrent
from lowrank.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")

IN, HIDDEN, STEPS, BATCH = 6, 8, 5, 3


class Read(nn.Module):
    """A recurrent layer, and a linear one of its last output."""

    def __init__(self, cls: type[nn.RNNBase] = nn.LSTM, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Linear(IN, IN)
        self.rnn = cls(IN, HIDDEN, **{"batch_first": True, **settings})
        self.last = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        return self.last(self.rnn(self.table(x))[0][:, -1])


X = torch.randn(BATCH, STEPS, IN, generator=torch.Generator().manual_seed(5))
MATRICES = {"rnn.ih_l0", "rnn.hh_l0"}


def apart(model: nn.Module) -> nn.Module:
    holder = nn.Sequential(copy.deepcopy(model))
    take_apart(holder, ["0"])
    return holder


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for v in value for t in flat(v)]


SETTINGS = list(itertools.product((1, 2), (False, True), (False, True), (False, True)))


CASES = [(cls, *row) for cls in (nn.LSTM, nn.GRU) for row in SETTINGS]
CASES += [(nn.RNN, 2, True, True, True), (nn.RNN, 1, False, False, False)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("cls", "layers", "both", "first", "bias"), CASES)
def test_what_is_taken_apart_gives_the_same(
    cls: type[nn.RNNBase], layers: int, both: bool, first: bool, bias: bool
) -> None:
    for proj, batched, given, training in itertools.product((0, 4), *[(False, True)] * 3):
        if proj and cls is not nn.LSTM:
            continue
        torch.manual_seed(1)
        sizes = {"proj_size": proj} if proj else {}
        model = cls(
            IN, HIDDEN, layers, bias=bias, batch_first=first, bidirectional=both, **sizes,
            dropout=0.3 if layers > 1 else 0.0,
        ).train(training)  # fmt: skip
        x = X if first else X.transpose(0, 1)
        hx: Any = None
        if given:
            n = layers * (2 if both else 1)
            hx = torch.randn(n, BATCH, proj or HIDDEN)
            hx = (hx, torch.randn(n, BATCH, HIDDEN)) if cls is nn.LSTM else hx
        if not batched:
            x = X[0]
            hx = (
                None
                if hx is None
                else hx[:, 0]
                if cls is not nn.LSTM
                else (hx[0][:, 0], hx[1][:, 0])
            )
        holder = apart(model)
        outs = []
        for net in (model, holder[0]):
            torch.manual_seed(3)  # of the dropout
            outs.append(flat(net(x, hx)))
        for a, b in zip(*outs, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
        put_together(holder)
        assert type(holder[0]) is cls
        assert vars(model).keys() == vars(holder[0]).keys()
        for (k, a), (name, b) in zip(
            model.state_dict().items(), holder[0].state_dict().items(), strict=True
        ):
            assert k == name
            assert torch.equal(a, b)
        torch.manual_seed(3)
        for a, b in zip(outs[0], flat(holder[0](x, hx)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("data", [None, [X]])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("both", [False, True])
def test_the_matrices_are_replaced_and_exact_at_full_rank(
    cls: type[nn.RNNBase], both: bool, data: Any
) -> None:
    model = Read(cls, bidirectional=both).eval()
    full = {
        name: lowrank.ChannelSVD(HIDDEN if "hh" in name else IN)
        for name in (f"rnn.{k}_l0{s}" for k in ("ih", "hh") for s in ("", "_reverse")[: 1 + both])
    }
    small, report = lowrank.compress(model, X, params=10**6, overrides=full, data=data)
    assert set(full) <= set(report.plan.replaced)
    assert isinstance(small.rnn, Recurrent)
    assert type(model.rnn) is cls
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X), rtol=1e-4, atol=1e-5)


CELLS: list[Callable[..., nn.RNNCellBase]] = [
    nn.LSTMCell, nn.GRUCell, nn.RNNCell, partial(nn.RNNCell, nonlinearity="relu")
]  # fmt: skip


class ReadStep(nn.Module):
    """A cell that is called at every step, and a linear layer of its last state."""

    def __init__(self, cls: Callable[..., nn.RNNCellBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.last = cls(IN, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.rnn(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("cls", CELLS)
def test_cells_are_taken_apart_and_put_together(cls: Callable[..., nn.RNNCellBase]) -> None:
    for bias, batched, given in itertools.product((False, True), repeat=3):
        cell = cls(IN, HIDDEN, bias=bias)
        shape = (BATCH, HIDDEN) if batched else (HIDDEN,)
        hx: Any = torch.randn(shape) if given else None
        if given and isinstance(cell, nn.LSTMCell):
            hx = (hx, torch.randn(shape))
        x, holder = X[:, 0] if batched else X[0, 0], apart(cell)
        expected = flat(cell(x, hx))
        for a, b in zip(expected, flat(holder[0](x, hx)), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
        with pytest.raises(InputError, match="states of shapes"):
            holder[0](x, torch.zeros(2, 2, 2))
        put_together(holder)
        assert type(holder[0]) is type(cell)
        assert vars(holder[0]).keys() == vars(cell).keys()
        for a, b in zip(expected, flat(holder[0](x, hx)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("cls", CELLS)
def test_a_network_of_cells_goes_the_whole_way(
    cls: Callable[..., nn.RNNCellBase], tmp_path: Path
) -> None:
    model = ReadStep(cls).eval()
    small, report = lowrank.compress(model, X, params=0.8, data=[X], only="rnn.*")
    assert report.kept("parameters") <= 0.8
    assert set(report.plan.replaced) <= {"rnn.ih", "rnn.hh"}
    with torch.no_grad():
        expected = small(X)
        lowrank.save(small, tmp_path / "small.safetensors")
        loaded = lowrank.load(tmp_path / "small.safetensors", into=ReadStep(cls))
        assert torch.equal(loaded.eval()(X), expected)
        dense = lowrank.densify(small)
        assert list(dense.state_dict()) == list(model.state_dict())
        torch.testing.assert_close(dense(X), expected, rtol=1e-4, atol=1e-5)
    lowrank.finetune(small, teacher=model, data=[X], loss="mse", epochs=1)
    macs = [lowrank.profile(net, X, latency=False).macs for net in (model, dense)]
    assert macs[0] == macs[1] == report.dense.macs


@pytest.mark.parametrize("data", [None, [X]])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_a_compressed_network_goes_the_whole_way(
    cls: type[nn.RNNBase], data: Any, tmp_path: Path
) -> None:
    model = Read(cls).eval()
    small, report = lowrank.compress(
        model, X, params=0.8, data=data, only="rnn.*", refine=2 if data else False
    )
    assert report.kept("parameters") <= 0.8
    assert any("loop over time" in remark for remark in report.remarks)
    assert set(report.plan.replaced) <= MATRICES
    with torch.no_grad():
        expected = small(X)
        lowrank.save(small, tmp_path / "small.safetensors")
        loaded = lowrank.load(tmp_path / "small.safetensors", into=Read(cls))
        for again in (loaded, copy.deepcopy(small)):
            assert torch.equal(again.eval()(X), expected)
        dense = lowrank.densify(small)
        assert list(dense.state_dict()) == list(model.state_dict())
        torch.testing.assert_close(dense(X), expected, rtol=1e-4, atol=1e-5)
        lowrank.apply(model, lowrank.Plan.from_json(report.plan.to_json()))
    before = {k: v.clone() for k, v in small.state_dict().items()}
    tuned = lowrank.finetune(small, teacher=model, data=[X], loss="mse", epochs=1)
    assert any(not torch.equal(v, before[k]) for k, v in tuned.state_dict().items())
    lowrank.export_program(small, X)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_macs_are_those_of_the_fused_kernel(cls: type[nn.RNNBase]) -> None:
    model = Read(cls, num_layers=2, bidirectional=True).eval()
    other = copy.deepcopy(model)
    take_apart(other, ["rnn"])
    counts = [lowrank.profile(net, X, latency=False).macs for net in (model, other)]
    assert counts[0] == counts[1]


def test_an_exported_onnx_file_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    small, _ = lowrank.compress(Read().eval(), X, params=0.8, only="rnn.*")
    lowrank.export_onnx(small, X, tmp_path / "small.onnx")


def test_what_is_not_replaced_stays_torchs() -> None:
    small, report = lowrank.compress(Read().eval(), X, params=10**6, overrides={
        "table": lowrank.ChannelSVD(2)}, only="table")  # fmt: skip
    assert report.plan.replaced
    assert type(small.rnn) is nn.LSTM
    assert set(report.plan.layers) >= MATRICES


@pytest.mark.parametrize("settings", [{"stock": True}, {"latency": 0.99, "params": 0.97}])
def test_no_loop_where_time_or_stock_modules_count(settings: dict[str, Any]) -> None:
    curves = lowrank.measure(
        Read().eval(), X, latency="latency" in settings, stock="stock" in settings
    )
    assert "stays packed" in curves.reasons["rnn"]
    assert not MATRICES & set(curves.kinds)


class Other(nn.LSTM):
    pass


class OtherCell(nn.GRUCell):
    pass


class Packs(Read):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), STEPS)
        y, _ = self.rnn(pack_padded_sequence(self.table(x), lengths, batch_first=True))
        return self.last(pad_packed_sequence(y, batch_first=True)[0][:, -1])


class Reads(Read):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.rnn.weight_hh_l0.mean()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Read(Other), "Other may use its packed weights otherwise than LSTM"),
        (Packs(), "packed sequences"),
        (Reads(), "reads its weight_hh_l0 directly"),
        (ReadStep(OtherCell), "OtherCell may use its packed weights otherwise than GRUCell"),
    ],
)
def test_what_is_used_otherwise_stays_with_a_reason(model: nn.Module, reason: str) -> None:
    assert reason in lowrank.measure(model.eval(), X).reasons["rnn"]
    assert reason in scan(model, X).reasons["rnn"]


def test_wrong_inputs_are_refused() -> None:
    holder = apart(nn.LSTM(IN, HIDDEN, batch_first=True))
    packed: PackedSequence = pack_padded_sequence(X, torch.full((BATCH,), STEPS), batch_first=True)
    with pytest.raises(InputError, match="packed sequences"):
        holder(packed)
    wrong = torch.zeros(1, 1, HIDDEN)
    with pytest.raises(InputError, match="states of shapes"):
        holder[0](X, (wrong, wrong))
