"""What random networks (`grammar.py`) brought to light, each kind by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import (
    Batch,
    GroupedLinear,
    Objective,
    count_macs,
    measure_memory,
    run,
)
from lowrank.compression.network.example import spare
from lowrank.decompositions.metric import Metric
from lowrank.decompositions.sparse_part import low_rank_plus_masked
from lowrank.errors import ExportError, InputError

# --- lazy models -----------------------------------------------------------------------------

LAZY: dict[str, Callable[[], nn.Module]] = {
    "weights": lambda: nn.LazyLinear(8),
    "statistics": lambda: nn.LazyBatchNorm1d(affine=False),
}


def _read_only(path: Path) -> dict[str, Callable[[nn.Module, Tensor], object]]:
    return {
        "run": run,
        "profile": lowrank.profile,
        "count_macs": count_macs,
        "measure": lowrank.measure,
        "compress": lambda m, x: lowrank.compress(m, x, params=0.5, data=x),
        "export": lowrank.export_program,
        "quantize": lambda m, x: lowrank.quantize(m),
        "finetune": lambda m, x: lowrank.finetune(nn.Linear(8, 8), teacher=m, data=x),
        "save": lambda m, x: lowrank.save(m, path / "net.safetensors"),
    }


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_model_is_refused_and_stays_lazy(kind: str, tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    for name, act in _read_only(tmp_path).items():
        model = nn.Sequential(nn.Linear(8, 8), LAZY[kind]())
        with pytest.raises(InputError, match=r"1\..*: it is lazy and has no values yet; run the"):
            act(model, x)
        held = [*model[1].parameters(), *model[1].buffers()]
        assert any(nn.parameter.is_lazy(t) for t in held), name


def test_nothing_is_loaded_into_a_lazy_model(tmp_path: Path) -> None:
    small, _ = lowrank.compress(nn.Sequential(nn.Linear(8, 8)), torch.zeros(1, 8), params=0.7)
    lowrank.save(small, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=r"0\.weight: it is lazy"):
        lowrank.load(tmp_path / "small.safetensors", into=nn.Sequential(nn.LazyLinear(8)))


# --- branches by data ------------------------------------------------------------------------


class ByMean(nn.Module):
    """One layer for batches of positive mean, another one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.up if float(x.detach().mean()) > 0 else self.down)(x))


@pytest.mark.parametrize("place", range(8))
def test_batches_that_are_cut_anew_may_take_another_branch(place: int) -> None:
    """One example of eight lifts the mean: where it is held out, the rest run another layer."""
    x = torch.randn(8, 8) - 0.5
    x[place] += 8
    model = ByMean().eval()
    settings = {"params": 0.9, "methods": "channel_svd", "data": [x]}
    small, _ = lowrank.compress(model, torch.full((1, 8), -1.0), **settings)
    assert small(x).isfinite().all()


# --- several types in one model --------------------------------------------------------------


class Cast(nn.Module):
    """A layer in a type of its own."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_data_of_a_model_of_several_types_stay_in_theirs(dtype: torch.dtype) -> None:
    teacher = nn.Sequential(nn.Sequential(Cast(nn.Linear(8, 8), dtype)), nn.Linear(8, 4))
    x = torch.randn(6, 8)
    terms = Objective("mse").terms(teacher, teacher, Batch(x, None))
    assert all(float(term.detach()) == 0 for term in terms.values())
    small, _ = lowrank.compress(teacher, x, params=0.8, data=x, refine=2, methods="channel_svd")
    assert small(x).dtype == torch.float32


# --- linear layers without a weight of their own ---------------------------------------------


def test_int8_leaves_the_linear_layer_inside_of_a_sparse_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its weight is stored as the non-zeros, which are no matrix."""
    quantized: list[Any] = []
    where = "lowrank.compression.pipeline.quantize.quantize_linear"
    monkeypatch.setattr(where, lambda model, names: quantized.extend(names))
    plan = {"0": lowrank.LowRankSparse(rank=0, density=0.5, sparsity="2:4")}
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    small, _ = lowrank.compress(model, torch.zeros(1, 16), bytes=0.9, overrides=plan, only="0")
    lowrank.quantize(small)
    assert quantized == ["1"]


def test_a_grouped_linear_layer_counts_alike_at_every_width() -> None:
    """Also where a group has a single input or output, of which torch makes no matrix product."""
    for i, o, groups in ((2, 8, 2), (8, 2, 2), (4, 4, 4), (12, 8, 2)):
        layer, x = GroupedLinear(i, o, groups), torch.randn(3, 5, i)
        assert count_macs(nn.Sequential(layer), x)["(total)"] == 15 * layer.weight.numel()
        blocks = torch.block_diag(*layer.weight.detach().unflatten(0, (groups, -1)))
        torch.testing.assert_close(layer(x), nn.functional.linear(x, blocks, layer.bias))
        assert layer(x[0, 0]).shape == (o,)
        assert layer(x[:0]).shape == (0, 5, o)


# --- what cannot be copied -------------------------------------------------------------------

UNCOPYABLE: dict[str, Callable[[], object]] = {
    "lock": threading.Lock,
    "generator": lambda: (n for n in range(3)),
}


@pytest.mark.parametrize("what", UNCOPYABLE)
def test_what_cannot_be_copied_is_named(what: str, tmp_path: Path) -> None:
    x = torch.zeros(1, 8)
    small, _ = lowrank.compress(nn.Sequential(nn.Linear(8, 8)), x, params=0.7)
    lowrank.save(small, tmp_path / "small.safetensors")

    def held() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8))
        model[0].extra = UNCOPYABLE[what]()
        return model

    small[0].extra = UNCOPYABLE[what]()
    for act in (
        lambda: lowrank.compress(held(), x, params=0.7),
        lambda: lowrank.load(tmp_path / "small.safetensors", into=held()),
        lambda: lowrank.densify(small),
    ):
        with pytest.raises(InputError, match=r"^0\.extra: it cannot be copied \(\w+: "):
            act()


# --- programs that do not run ----------------------------------------------------------------


class Worded(nn.Module):
    """Layers under names that are words of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"in": nn.Linear(8, 8), "is": nn.Linear(8, 8)})

    def forward(self, x: Tensor) -> Tensor:
        return self.parts["is"](self.parts["in"](x))


def test_a_program_that_does_not_run_is_refused() -> None:
    """torch writes Python code out of the names of modules."""
    try:
        lowrank.export_program(Worded(), torch.zeros(1, 8))
    except ExportError as error:
        assert "the program does not run (SyntaxError" in str(error)  # noqa: PT017
    small, _ = lowrank.compress(Worded(), torch.zeros(1, 8), params=0.7)
    assert small(torch.zeros(2, 8)).shape == (2, 8)


def test_onnx_of_bfloat16_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Linear(4, 4), Rounded())
    with pytest.raises(ExportError, match="onnx: onnxruntime cannot run the graph"):
        lowrank.export_onnx(model, torch.zeros(1, 4), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


class Rounded(nn.Module):
    """A cast."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


# --- work in place on the inputs -------------------------------------------------------------


class Scaling(nn.Module):
    """Scales its input in place, as networks that take pictures in bytes do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x /= 2
        return self.last(torch.relu(self.first(x)))


def test_a_model_that_works_in_place_leaves_the_example_and_the_data() -> None:
    model, tuned = Scaling().eval(), Scaling().eval()
    x, data = torch.randn(4, 16), torch.randn(24, 16)
    before = x.clone(), data.clone()
    lowrank.profile(model, x, repeats=1, warmup=0)
    measure_memory(model, x)
    run(model, x)
    lowrank.export_program(model, x)
    full, report = lowrank.compress(model, x, params=1.0, data=data, methods="channel_svd")
    lowrank.finetune(tuned, teacher=model, data=data, loss="mse", epochs=1)
    assert report.quality is not None
    assert report.quality.relative_error < 1e-6
    torch.testing.assert_close(full(x.clone()), model(x.clone()))
    assert torch.equal(x, before[0])
    assert torch.equal(data, before[1])


def test_one_tensor_in_two_places_of_an_example_stays_one() -> None:
    x = torch.ones(2)
    first, second = spare((x, {"again": x}))
    assert first is second["again"]
    assert first is not x


# --- fits that are exact ---------------------------------------------------------------------


def test_a_sparse_part_of_a_few_entries_is_fitted_exactly_and_stays_finite() -> None:
    """Two unknowns take two steps of conjugate gradients; the third has nothing to divide by."""
    for seed in range(40):
        torch.manual_seed(seed)
        W, A, B = torch.randn(1, 4, 4), torch.randn(4, 8), torch.randn(4, 8)
        metric = Metric((A @ A.T / 8)[None], (B @ B.T / 8)[None])
        for n in (1, 2, 3):
            parts = low_rank_plus_masked(W, metric, 1, n, n_steps=2)
            assert all(part.isfinite().all() for part in parts)


# --- layers that are compiled by themselves --------------------------------------------------


def test_a_layer_that_is_compiled_by_itself_runs_what_replaces_it(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layer = torch.compile(nn.Linear(32, 32), backend="eager")
        return nn.Sequential(layer, nn.ReLU(), nn.Linear(32, 4)).eval()

    x = torch.randn(3, 32)
    small, report = lowrank.compress(build(), x, macs=0.4, data=x, methods="channel_svd")
    assert count_macs(small, x)["(total)"] == report.plan.cost.macs
    assert lowrank.profile(small, x, latency=False).macs == report.plan.cost.macs
    lowrank.save(small, tmp_path / "small.safetensors")
    loaded = lowrank.load(tmp_path / "small.safetensors", into=build())
    assert torch.equal(run(loaded, x), run(small, x))
    torch.testing.assert_close(run(lowrank.densify(small), x), run(small, x))
    torch.testing.assert_close(small(x), run(small, x))


# --- outputs without a number that can be trained --------------------------------------------


class Best(nn.Module):
    """Gives the numbers of the best classes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).argmax(-1)


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("labelled", [False, True], ids=["plain", "labelled"])
def test_finetune_says_that_there_is_no_tensor_to_train_on(loss: Any, labelled: bool) -> None:
    x = torch.randn(8, 8)
    data = (x, torch.zeros(8, dtype=torch.long)) if labelled else x
    with pytest.raises(InputError, match="it returns no floating-point tensor, but int64"):
        lowrank.finetune(Best(), teacher=Best(), data=data, loss=loss)


# --- grouped and plain linear layers on one input --------------------------------------------


class Mixed(nn.Module):
    """Layers that read the same input, one of them in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.grouped = GroupedLinear(16, 16, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(x) + sum(layer(x) for layer in self.plain)


def test_a_grouped_layer_shares_no_factor_with_plain_ones() -> None:
    x = torch.randn(4, 16)
    for data in (None, x):
        small, report = lowrank.compress(
            Mixed(), x, params=0.8, methods="shared_input_svd", data=data
        )
        assert isinstance(small.grouped, GroupedLinear)
        assert "grouped" not in report.plan.replaced


# --- autocast inside of a model --------------------------------------------------------------


class Autocast(nn.Module):
    """A layer that runs under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.layer(x)
        return y.float()


def test_moments_are_not_rounded_by_the_models_autocast() -> None:
    """Rounded to eight bits, a moment of few directions has negative eigenvalues."""
    model = nn.Sequential(Autocast())
    x = torch.randn(64, 2) @ torch.randn(2, 32)
    curves = lowrank.measure(model, x[:4], data=x, methods=["channel_svd", "group_svd"])
    moments = curves.data.calibrated.layers["0.layer"]
    centred = (x - x.mean(0)).double()
    C = centred.T @ centred / 64
    assert torch.linalg.eigvalsh(moments.C.double()).min() > -1e-6 * C.norm()
    torch.testing.assert_close(moments.mean.double().flatten(), x.double().mean(0))
    curves.plan(params=0.5)
