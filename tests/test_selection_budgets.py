"""Budgets, masks and networks that are compressed already, with channels that may go."""

import copy
import dataclasses
from math import inf

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import lowrank
from lowrank.compression import Stopwatch
from lowrank.compression.calibration.statistics import Importance
from lowrank.compression.pipeline.selecting import Chooser, _Setting
from lowrank.errors import BudgetError, InputError
from tests.test_latency import work

X = torch.randn(48, 4, 6, 6, generator=torch.Generator().manual_seed(0))
BOTH, ALONE = ["channel_svd", "select"], "select"
WAYS = [ALONE, pytest.param(BOTH, marks=pytest.mark.slow)]


class Block(nn.Module):
    """A residual block, whose first layer's channels are its own."""

    def __init__(self, width):
        super().__init__()
        self.a, self.n = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.m = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.m(self.b(torch.relu(self.n(self.a(x))))))


def net(seed=0, width=8):
    torch.manual_seed(seed)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
    return nn.Sequential(
        nn.Conv2d(4, width, 3, padding=1), Block(width), Block(width), *head
    ).eval()


def compressed(model, methods, **more):
    how = {"data": X, "effort": "quick", **more}
    return lowrank.compress(model, X[:2], methods=methods, **how)


@pytest.fixture
def fake_clock(monkeypatch):
    """Time is the number of weights."""
    monkeypatch.setattr(Stopwatch, "__call__", lambda self, module, example: work(module))


@pytest.mark.parametrize("effort", ["quick", pytest.param("thorough", marks=pytest.mark.slow)])
@pytest.mark.parametrize("methods", WAYS)
def test_time_that_factors_alone_do_not_reach(fake_clock, methods, effort):
    """Each stage costs a fee, so that only fewer channels make it half as long."""
    model, how = net(width=12), {"data": X[:16], "effort": effort}
    advised = r'smallest is latency.*or let channels go, too: select="'
    with pytest.raises(BudgetError, match=advised):
        lowrank.compress(model, X[:2], latency=0.2, methods="channel_svd", **how)
    small, report = lowrank.compress(model, X[:2], latency=0.2, methods=methods, **how)
    assert work(small) <= 0.2 * work(model)
    assert report.latency.measured.ratio == pytest.approx(work(small) / work(model))
    assert report.plan.narrowed
    assert not any("cannot get faster" in note for note in report.notes)


@pytest.mark.parametrize("methods", WAYS)
def test_time_that_nothing_reaches_names_the_fastest(fake_clock, methods):
    with pytest.raises(BudgetError, match="the fastest takes"):
        compressed(net(), methods, latency=0.01)


@pytest.mark.parametrize("methods", WAYS)
@pytest.mark.parametrize("budget", [{"macs": 0.6}, {"params": 900}, {"bytes": 0.4, "macs": 0.9}])
def test_budgets_are_met_and_spent(methods, budget):
    _, report = compressed(net(), methods, **budget)
    dense = {
        "params": report.dense.parameters,
        "bytes": report.dense.bytes,
        "macs": report.dense.macs,
    }
    used = [
        report.kept(name) / (most if most <= 1 else most / dense[name])
        for name, most in budget.items()
    ]
    assert 0.75 < max(used) <= 1


@pytest.mark.parametrize("methods", WAYS)
def test_below_one_channel_a_unit_the_smallest_is_named(methods):
    with pytest.raises(BudgetError, match="smallest") as caught:
        compressed(net(), methods, params=10)
    assert "let channels go" not in str(caught.value)  # they were asked for


@pytest.mark.slow
@pytest.mark.parametrize("methods", [BOTH, ALONE])
def test_sweep_and_drop_take_channels(methods):
    model = net()
    points = lowrank.sweep(model, X[:2], X, keeps=(0.7, 0.1), methods=methods, effort="quick")
    assert all(p.kept["macs"] <= p.keep for p in points)
    assert points.points[-1].plan.narrowed
    with torch.no_grad():
        wanted = model(X)

    def close(one):
        with torch.no_grad():
            return -float((one(X) - wanted).norm() / wanted.norm())

    small, report = lowrank.compress(
        model, X[:2], data=X, max_drop=0.3, metric=close, methods=methods, effort="quick"
    )
    assert close(small) >= -0.3
    assert report.kept("macs") < 1


def test_a_sweep_from_curves_takes_no_rule():
    curves = lowrank.measure(net(), X[:2], data=X, methods="channel_svd", effort="quick")
    with pytest.raises(InputError, match="given beside curves"):
        lowrank.sweep(net(), X[:2], X, curves=curves, methods=BOTH)


@pytest.mark.slow
def test_low_bits_beside_channels():
    _, report = compressed(net(width=16), BOTH, bytes=0.1, low_bits=True)
    assert report.kept("bytes") <= 0.1
    with pytest.raises(InputError, match="name methods beside select"):
        compressed(net(), ALONE, bytes=0.1, low_bits=True)


@pytest.mark.slow
def test_int8_beside_channels():
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    x = torch.randn(64, 24)
    small, report = lowrank.compress(
        model.eval(), x[:2], data=x, bytes=0.1, int8=True, methods=BOTH, effort="quick"
    )
    assert report.kept("bytes") <= 0.1
    assert small(x).shape == (64, 5)


@pytest.mark.parametrize("removed", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("methods", WAYS)
def test_masks_are_the_start(methods, removed, tmp_path):
    """Channels that a mask made zero go first, and nothing is lost by that."""
    dense = net()
    masked = copy.deepcopy(dense)
    prune.ln_structured(masked[1].a, "weight", 0.5, 2, 0)
    if removed:
        prune.remove(masked[1].a, "weight")
    gone = masked[1].a.weight.flatten(1).norm(dim=1) == 0
    small, report = compressed(masked, ALONE, macs=0.87)
    kept = report.plan.narrowed["1.a"].outputs.places
    assert set(kept) >= set((~gone).nonzero().flatten().tolist())
    torch.testing.assert_close(small(X), masked(X), rtol=1e-4, atol=1e-5)
    small, report = compressed(masked, methods, macs=0.4)
    quick = lowrank.Calibration(effort="quick")
    applied, _ = lowrank.apply(masked, report.plan, example=X[:2], data=X, calibration=quick)
    torch.testing.assert_close(applied(X), small(X), rtol=1e-3, atol=1e-3)
    lowrank.save(small, tmp_path / "small.safetensors")
    for into in (dense, masked):
        again = lowrank.load(tmp_path / "small.safetensors", into=copy.deepcopy(into))
        assert torch.equal(again(X), small(X))
    assert prune.is_pruned(masked) is not removed


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", ["channel_svd", pytest.param(ALONE, marks=pytest.mark.slow)])
def test_a_network_that_is_compressed_already(first, second, tmp_path):
    model = net(width=12)
    once, _ = compressed(model, first, macs=0.6)
    twice, report = compressed(once, second, macs=0.5)
    assert report.kept("macs") <= 0.5
    lowrank.save(twice, tmp_path / "twice.safetensors")
    again = lowrank.load(tmp_path / "twice.safetensors", into=copy.deepcopy(model))
    assert torch.equal(again(X), twice(X))
    dense = lowrank.densify(twice)
    assert [p.shape for p in dense.parameters()] == [p.shape for p in model.parameters()]
    torch.testing.assert_close(dense(X), twice(X), rtol=1e-4, atol=1e-5)


def test_the_report_tells_which_channels_stay_and_why(tmp_path):
    _, report = compressed(net(), ALONE, macs=0.8, skip="2.a")
    assert report.staying["5"] == "the model returns it"
    assert "2.a" in report.staying
    told = report.to_dict()["channels"]
    assert told["kept"]["1.a"]["outputs"].endswith("of 8")
    text = str(report)
    assert "channels kept" in text
    assert "the model returns it" in text
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Layers that went narrower" in page
    assert "why its channels stay" in page
    _, plain = compressed(net(), "channel_svd", macs=0.6)
    assert plain.to_dict()["channels"] is None


@pytest.mark.parametrize("terms", [{"hints": ("1", "2.b")}, {"flows": (("1", "2"),)}])
def test_hints_and_flows_are_of_the_channels_that_stay(terms):
    """The stream lost channels, so that outputs of blocks are narrower than the teacher's."""
    model = net(width=12)
    small, report = compressed(model, ALONE, macs=0.1)
    assert len(report.plan.narrowed["2.b"].outputs.places) < 12
    tuned = lowrank.finetune(small, teacher=model, data=X, epochs=1, **terms)
    assert torch.isfinite(tuned(X)).all()


@pytest.mark.parametrize(("n", "share"), [(400, 1.0), (48, 1.01)])
def test_readers_make_up_for_what_comes_to_them(n: int, share: float) -> None:
    """Fitted in turn to the dense network's outputs, on what the narrower layers give them; on
    pictures that no fit has seen, of which 48 tell too little to gain by it."""
    torch.manual_seed(0)
    pairs = [(nn.Conv2d(n, 12, 3, padding=1), nn.ReLU()) for n in (4, 12, 12)]
    parts = [m for pair in pairs for m in pair]
    model, off = nn.Sequential(*parts, nn.Flatten(), nn.Linear(432, 5)).eval(), {}
    seen, others = torch.randn(n + 400, 4, 6, 6).split([n, 400])
    for fit in ("parallel", "sequential"):
        how = lowrank.Calibration(count=n, fit=fit)
        small, _ = lowrank.compress(
            model, X[:2], data=seen, macs=0.3, methods=ALONE, calibration=how
        )
        off[fit] = (small(others) - model(others)).norm() / model(others).norm()
    assert off["sequential"] < share * off["parallel"]


def test_channels_go_only_where_that_loses_less(monkeypatch) -> None:
    """Plans that save more or less by channels are compared with factors alone."""
    model, tried = net(width=12), {}
    lost = _Setting.lost

    def see(self, chosen, step):
        tried[len(step.dropped)] = lost(self, chosen, step)
        return tried[len(step.dropped)]

    monkeypatch.setattr(_Setting, "lost", see)
    _, report = compressed(model, BOTH, macs=0.6)
    assert len(tried) == 3
    best = min(tried, key=tried.__getitem__)
    assert bool(report.plan.narrowed) == (best > 0)
    for worse in (0.0, inf):  # of factors alone

        def say(self, chosen, step, worse=worse):
            return 1.0 if step.dropped else worse

        monkeypatch.setattr(_Setting, "lost", say)
        _, report = compressed(model, BOTH, macs=0.6)
        assert bool(report.plan.narrowed) == (worse > 0)


def test_probes_of_factors_do_not_weigh_channels() -> None:
    """What low rank does to a layer tells nothing of channels, which gradients weigh."""
    model, settings = net(width=12), lowrank.Calibration(effort="quick")
    curves = lowrank.measure(model, X[:2], data=X, calibration=settings)
    probed = [
        dataclasses.replace(c, importance=Importance(1.0, 10.0**k))
        for k, c in enumerate(curves.curves)
    ]
    rules = lowrank.Rules(select="backward")
    orders = [
        Chooser.of(model, model, X[:2], known, 0.5, rules, settings, None).selection.path("macs")
        for known in (curves, dataclasses.replace(curves, curves=tuple(probed)))
    ]
    assert [s.dropped for s in orders[0]] == [s.dropped for s in orders[1]]
