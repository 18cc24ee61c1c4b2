"""Networks and data that are legal and unusual: they are served, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import relative_mse, run

X = torch.randn(96, 16, generator=torch.Generator().manual_seed(0))
FEW: Any = {"methods": ["channel_svd"]}
KINDS: Any = {"methods": ["channel_svd", "group_svd", "low_rank_sparse"]}
"""Fits in closed form, by search, and with entries of their own."""


def _net(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 8)
        self.norm = nn.BatchNorm1d(32)

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        return self.c(self.norm(self.a(p) + self.b(q)).relu())


PAIRS = [(x, -x) for x in X.split(24)]


@pytest.mark.parametrize("refine", [False, 2])
def test_two_inputs(refine: Any) -> None:
    _, report = lowrank.compress(
        Two().eval(), PAIRS[0], params=0.5, data=PAIRS, refine=refine, **FEW
    )
    assert report.quality is not None
    assert report.quality.relative_error < 1
    if refine:
        assert any("in a trial" in note for note in report.notes)  # so they were cut


def test_two_inputs_with_labels_as_finetune_takes_them() -> None:
    labelled = [(pair, torch.zeros(24)) for pair in PAIRS]
    one, _ = lowrank.compress(Two().eval(), PAIRS[0], params=0.5, data=labelled, **FEW)
    two, _ = lowrank.compress(Two().eval(), PAIRS[0], params=0.5, data=PAIRS, **FEW)
    assert torch.equal(run(one, PAIRS[0]), run(two, PAIRS[0]))
    shares: Any = {"keeps": (0.5,), "budget": "params"} | FEW
    found = lowrank.sweep(Two().eval(), PAIRS[0], PAIRS, val=PAIRS, **shares)
    assert found.points[0].quality is not None
    assert found.points[0].quality.n_examples == len(X)


def test_an_example_in_a_tuple_of_one() -> None:
    net = _net(16, 32, 10)
    one, _ = lowrank.compress(net, (X[:1],), params=0.5, data=(X, X + 1), **FEW)
    two, _ = lowrank.compress(net, X[:1], params=0.5, data=X, **FEW)
    assert torch.allclose(one(X), two(X), atol=1e-5)


class Residual(nn.Module):
    """A residual branch behind a batch norm of zeros, as `zero_init_residual` leaves it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.head((h + self.norm(self.conv(h))).relu().mean((2, 3)))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("weighting", ["probe", "gradients", "outputs"])
@pytest.mark.parametrize("method", ["channel_svd", "legonet", "cp"])
def test_a_batch_norm_of_zeros(weighting: Any, method: str) -> None:
    pictures = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    small, report = lowrank.compress(
        Residual().eval(), pictures[:1], params=0.8, data=pictures,
        calibration=lowrank.Calibration(weighting=weighting), methods=[method, "channel_svd"],
        rules=lowrank.Rules(round_to=4 if method == "channel_svd" else 8),
    )  # fmt: skip
    assert report.quality is not None
    assert report.quality.relative_error < 0.5
    assert all(bool(p.isfinite().all()) for p in small.parameters())


class Gated(nn.Module):
    """A branch that a gate of zero shuts: no gradient reaches it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(h + self.gate * self.b(h))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_that_no_gradient_reaches(dtype: torch.dtype) -> None:
    small, _ = lowrank.compress(
        Gated().eval().to(dtype), X[:1].to(dtype), params=0.6, data=X.to(dtype), **KINDS
    )
    sizes = [float(p.detach().abs().max()) for p in small.b.parameters()]
    assert all(1e-3 < size < 1e2 for size in sizes)
    if dtype == torch.float32:
        lowrank.compress(Gated().eval(), X[:1], params=0.6, data=X, refine=2, **FEW)


class Graph(nn.Module):
    """Rows that look at each other by number: a batch of them cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(h.index_add(0, edges, h))


def test_batches_that_only_look_as_if_they_could_be_cut() -> None:
    edges = torch.randint(90, (90,), generator=torch.Generator().manual_seed(0))
    data = [{"x": X[:90] + k, "edges": edges} for k in range(4)]
    _, report = lowrank.compress(Graph().eval(), data[0], params=0.6, data=data, refine=2, **FEW)
    assert any("calibrated 2 layers on 270 examples" in n for n in report.notes)


class Sometimes(nn.Module):
    """Runs its second layer for some batches only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.c(self.b(h).relu() if float(x[0, 0]) > 0 else h)


def test_a_layer_that_runs_for_some_batches() -> None:
    batches = [torch.cat([torch.full((1, 16), v), X[:15]]) for v in (1.0, -1.0, 1.0, -1.0)]
    _, report = lowrank.compress(
        Sometimes().eval(), batches[0], params=0.6, data=batches, refine=2, **FEW
    )
    assert any("refined" in note for note in report.notes)


def test_a_frozen_network_is_refined_and_stays_frozen() -> None:
    net = _net(16, 32, 10).requires_grad_(False)
    small, report = lowrank.compress(net, X[:1], params=0.6, data=X, refine=5, **FEW)
    assert not any(p.requires_grad for p in small.parameters())
    assert any("refined" in note for note in report.notes)


def test_a_head_of_zeros() -> None:
    net = _net(16, 32, 10)
    nn.init.zeros_(net[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[2].bias)  # type: ignore[arg-type]
    small, _ = lowrank.compress(net, X[:1], params=0.6, data=X, refine=2, **FEW)
    assert bool(small(X).isfinite().all())
    assert float(relative_mse([torch.ones(2)], [torch.zeros(2)])) == 1.0


def test_a_metric_promise_holds_for_parallel_fits() -> None:
    net, x = _net(32, 64, 64, 8), X.repeat(3, 2)[:256] @ torch.randn(32, 32)

    def closeness(model: nn.Module) -> float:
        return -float((run(model, x) - run(net, x)).norm() / run(net, x).norm())

    for settings in (lowrank.Calibration(fit="parallel"), lowrank.Calibration(exponent=0.0)):
        how: Any = {"calibration": settings} | FEW
        small, _ = lowrank.compress(net, x[:1], data=x, max_drop=0.2, metric=closeness, **how)
        assert closeness(small) >= -0.2


class Faint(nn.Module):
    """One branch is given next to nothing."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = scale
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu() + self.b(self.scale * x))


@pytest.fixture(scope="module")
def given_zeros() -> nn.Module:
    return lowrank.compress(Faint(0.0).eval(), X[:1], data=X, params=0.5, **KINDS)[0]


@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-25, 1e-40])
def test_a_layer_that_is_given_next_to_nothing_is_as_one_that_is_given_zeros(
    scale: float, given_zeros: nn.Module
) -> None:
    small, _ = lowrank.compress(Faint(scale).eval(), X[:1], data=X, params=0.5, **KINDS)
    assert torch.allclose(small(X), given_zeros(X), atol=1e-5)


def test_small_inputs_in_double_precision_are_taken() -> None:
    net, tiny = _net(16, 32, 10).double(), 1e-25 * X.double()
    _, report = lowrank.compress(net, tiny[:1], data=tiny, params=0.6)
    assert report.quality is not None
    assert report.quality.relative_error < 0.5


class Experts(nn.Module):
    """A router sends each example to one of four layers, none of them to the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.out = nn.Linear(16, 4), nn.Linear(16, 8)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        nn.init.constant_(self.router.bias[3:], -100.0)

    def forward(self, x: Tensor) -> Tensor:
        chosen, y = self.router(x).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            y[chosen == k] = expert(x[chosen == k])
        return self.out(y.relu())


@pytest.mark.parametrize("refine", [False, 2])
@pytest.mark.parametrize("batches", [[X], [X[:3], X[3:]]], ids=["one", "uneven"])
def test_experts_behind_a_router(batches: list[Tensor], refine: Any) -> None:
    net = Experts().eval()
    small, report = lowrank.compress(net, X[:2], params=0.6, data=batches, refine=refine, **KINDS)
    assert report.quality is not None
    assert report.quality.relative_error < 0.5
    assert bool(run(small, X).isfinite().all())
    assert any("no batch ran it (experts.3)" in note for note in report.notes)


class Heads(nn.Module):
    """Two outputs from layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 48), nn.Linear(16, 48)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


@pytest.mark.parametrize("cared_for", [0, 1])
def test_layers_count_by_the_users_own_metric(cared_for: int) -> None:
    net = Heads().eval()
    target = run(net, X)[cared_for]

    def closeness(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((run(model, X)[cared_for] - target).square().mean())

    small, _ = lowrank.compress(
        net, X[:1], data=X, params=0.45, calibration=lowrank.Calibration(weighting=closeness), **FEW
    )
    cared, other = (small.get_submodule(name) for name in ("ab"[cared_for], "ab"[1 - cared_for]))
    assert closeness(small) > -0.3 * float(target.square().mean())
    assert sum(p.numel() for p in other.parameters()) < 0.3 * sum(
        p.numel() for p in cared.parameters()
    )


NET = _net(16, 32, 10)


@cache
def _curves() -> lowrank.Curves:
    return lowrank.measure(NET, X[:1], **FEW)


NAN = float("nan")
REFUSED: dict[str, Callable[[], object]] = {
    "data: squares of what 0 is given overflow": lambda: _with(data=1e25 * X),
    "data: values up to 4.1e-25, whose squares underflow": lambda: _with(data=1e-25 * X),
    "weighting: 'probes' is unknown": lambda: _with(
        calibration=lowrank.Calibration(weighting="probes")
    ),
    "metric: of the dense model it is nan;": lambda: _with(
        calibration=lowrank.Calibration(weighting=lambda m: NAN)
    ),
    "loss: on the data it gives nan": lambda: _with(
        calibration=lowrank.Calibration(loss=lambda y: y.sum() * NAN)
    ),
    "loss: it returned float32": lambda: _with(
        calibration=lowrank.Calibration(loss=lambda y: y.sum(1))
    ),
    "loss: it returned float;": lambda: _with(calibration=lowrank.Calibration(loss=lambda y: 1.0)),
    "refine: 'a' steps make no sense": lambda: _with(refine="a"),
    "refine: 1.5 steps make no sense": lambda: _with(refine=1.5),
    "max_drop: there is no metric": lambda: _with(params=None, max_drop=0.01),
    "max_drop: -1 is no drop": lambda: _with(params=None, max_drop=-1, metric=_one),
    "metric: 'accuracy' is no function": lambda: _with(
        params=None, max_drop=0.1, metric="accuracy"
    ),
    "metric: of the dense model it is nan": lambda: _sweep(metric=lambda m: NAN),
    "count: 'many'": lambda: _with(data=None, calibration=lowrank.Calibration(count="many")),
    "keeps: 1.5 is above 1": lambda: _sweep(keeps=(1.5, 0.6)),
    "budget: 'latency' is no measure": lambda: _sweep(budget="latency"),
    "rules: given beside curves": lambda: _sweep(data=None, curves=_curves(), methods=["cp"]),
    "data: the curves were measured without": lambda: _sweep(curves=_curves()),
    "finetune: its arguments: data is missing": lambda: _sweep(metric=_one, finetune={}),
    "finetune: its arguments: epoch;": lambda: _sweep(
        metric=_one, finetune={"data": X, "epoch": 1}
    ),
    "optimizer: is 'adam'": lambda: _tune(optimizer="adam"),
    "schedule: is 'cos'": lambda: _tune(schedule="cos"),
    "relax: no layer of the model holds": lambda: _tune(relax=True),
    "measure: 'flops' is unknown": lambda: _with()[1].kept("flops"),
}
"""How the answer starts, and what was asked."""


def _one(model: nn.Module) -> float:
    return 1.0


def _with(**settings: Any) -> tuple[nn.Module, lowrank.Report]:
    return lowrank.compress(NET, X[:1], **{"params": 0.6, "data": X, **FEW, **settings})


def _sweep(**settings: Any) -> object:
    return lowrank.sweep(NET, X[:1], **{"data": X, "keeps": (0.6,), **settings})


def _tune(**settings: Any) -> object:
    small, _ = lowrank.apply(NET, _curves().plan(params=0.6))
    return lowrank.finetune(small, teacher=NET, data=X, epochs=1, **settings)


@pytest.mark.parametrize("start", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(start: str) -> None:
    with pytest.raises(lowrank.LowRankError) as caught:
        REFUSED[start]()
    assert str(caught.value).startswith(start)


def test_shares_may_come_as_an_array() -> None:
    found = lowrank.sweep(NET, X[:1], keeps=np.array([0.8, 0.6]), budget="params", **FEW)  # type: ignore[arg-type]
    assert len(found) == 2


def test_a_sweep_compares_on_what_the_calibration_did_not_see() -> None:
    found = lowrank.sweep(
        NET,
        X[:1],
        X,
        keeps=(0.6,),
        budget="params",
        calibration=lowrank.Calibration(count=64),
        **FEW,
    )
    quality = found.points[0].quality
    assert quality is not None
    assert (quality.n_examples, quality.held_out) == (32, True)


def test_kept_takes_the_name_of_the_budget() -> None:
    report = _with()[1]
    assert report.kept("params") == report.kept("parameters")
