"""Channels that travel together, and what is left of a model without some of them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lowrank
from lowrank.cli.network.values import Methods
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.network.channels.narrowing import narrow, widen
from lowrank.compression.network.channels.units import find_channels
from lowrank.compression.network.scan import scan
from lowrank.compression.planning.selection import SCORES, readers, scores
from lowrank.compression.planning.selection.narrowed import narrowed_model, proven
from lowrank.compression.planning.selection.path import narrowed_by, select
from lowrank.compression.structure.opening import opened
from lowrank.errors import BudgetError, LowRankError, PlanError
from lowrank.sensing.problems.l1 import Lasso
from lowrank.sensing.solvers.homotopy import Homotopy, lasso_path
from tests.zoo import SMALL


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(i, o, k=3, **more):
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


def rectify(x):
    return F.relu(x, inplace=True)


def gate(n, x):
    h = n.a(x)
    s = torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(h, 1)))))
    return n.b(h * s)


def heads(x, n):
    return x.unflatten(-1, (-1, n)).transpose(1, 2)


def turned(x):
    """Rotary positions, as Llama has them."""
    angle = torch.arange(x.shape[-2] * x.shape[-1]).reshape(x.shape[-2:]) / 7.0
    half = x.shape[-1] // 2
    other = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angle.cos() + other * angle.sin()


def attend(n, x, by="sdpa"):
    q, k, v = turned(heads(n.q(x), 4)), turned(heads(n.k(x), 4)), heads(n.v(x), 4)
    times = q.shape[1] // k.shape[1]
    if by == "sdpa":
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=times > 1)
    else:
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = (q @ k.mT / 2).masked_fill(torch.ones(6, 6).triu(1).bool(), -1e9)
        y = scores.softmax(-1) @ v
    return n.o(y.transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """Torch's own attention."""

    def __init__(self):
        super().__init__()
        self.both = nn.MultiheadAttention(8, 4, batch_first=True)

    def forward(self, x):
        return self.both(x, x, x, need_weights=False)[0]


def linear(i, o):
    return nn.Linear(i, o)


KINDS = {
    "a norm and a reader": (
        Net(
            lambda n, x: n.b(rectify(n.n(n.a(x)))),
            a=conv(4, 6), n=nn.BatchNorm2d(6), b=conv(6, 3),
        ),
        X, {"a": 6},
    ),
    "a residual sum": (
        Net(lambda n, x: n.c(F.relu(n.a(x) + n.b(x))), a=conv(4, 6), b=conv(4, 6), c=conv(6, 3)),
        X, {"a": 6},
    ),
    "a concatenation": (
        Net(
            lambda n, x: n.c(torch.cat([n.a(x), n.b(x)], 1)),
            a=conv(4, 6), b=conv(4, 5), c=conv(11, 3),
        ),
        X, {"a": 6, "b": 5},
    ),
    "a depthwise layer": (
        Net(
            lambda n, x: n.c(F.relu6(n.d(n.a(x)))),
            a=conv(4, 6), d=conv(6, 12, groups=6), c=conv(12, 3),
        ),
        X, {"a": 6},
    ),
    "a grouped layer": (
        Net(lambda n, x: n.c(n.g(n.a(x))), a=conv(4, 8), g=conv(8, 12, groups=4), c=conv(12, 3)),
        X, {"a": 2, "g": 3},
    ),
    "squeeze and excitation": (
        Net(gate, a=conv(4, 6), down=conv(6, 3, 1), up=conv(3, 6, 1), b=conv(6, 2)),
        X, {"a": 6, "down": 3},
    ),
    "a flattened picture": (
        Net(
            lambda n, x: n.f(F.max_pool2d(F.relu(n.a(x)), 2).flatten(1)),
            a=conv(4, 6), f=nn.Linear(96, 5),
        ),
        X, {"a": 6},
    ),
    "a transposed convolution": (
        Net(
            lambda n, x: n.b(F.silu(n.t(n.a(x)))),
            a=conv(4, 6), t=nn.ConvTranspose2d(6, 5, 2, 2), b=conv(5, 3),
        ),
        X, {"a": 6, "t": 5},
    ),
    "gated neurons": (
        Net(
            lambda n, x: n.down(F.silu(n.gate(x)) * n.up(x)),
            gate=nn.Linear(8, 12), up=nn.Linear(8, 12), down=nn.Linear(12, 8),
        ),
        ROWS, {"gate": 12},
    ),
    "gated neurons of one layer": (
        Net(
            lambda n, x: n.down(torch.mul(*n.both(x).chunk(2, -1))),
            both=nn.Linear(8, 24), down=nn.Linear(12, 8),
        ),
        ROWS, {"both": 12},
    ),
    "heads": (
        Net(attend, q=linear(8, 12), k=linear(8, 12), v=linear(8, 12), o=linear(12, 8)),
        ROWS, {"q": 3},
    ),
    "heads that share keys": (
        Net(attend, q=linear(8, 24), k=linear(8, 12), v=linear(8, 12), o=linear(24, 8)),
        ROWS, {"q": 3},
    ),
    "heads by products": (
        Net(
            lambda n, x: attend(n, x, "products"),
            q=linear(8, 24), k=linear(8, 12), v=linear(8, 12), o=linear(24, 8),
        ),
        ROWS, {"q": 3},
    ),
    "heads that are normed": (
        Net(
            lambda n, x: n.o(
                F.scaled_dot_product_attention(
                    n.n(heads(n.q(x), 4)), n.n(heads(n.k(x), 4)), heads(n.v(x), 4)
                ).transpose(1, 2).flatten(2)
            ),
            q=linear(8, 12), k=linear(8, 12), v=linear(8, 12), o=linear(12, 8), n=nn.RMSNorm(4),
        ),
        ROWS, {"q": 3},
    ),
    "packed heads": (Packed(), ROWS, {"both.q_proj": 4}),
    "groups that are normed": (
        Net(
            lambda n, x: n.b(F.silu(n.n(n.a(x)))),
            a=conv(4, 8), n=nn.GroupNorm(4, 8), b=conv(8, 3),
        ),
        X, {"a": 4},
    ),
    "words": (
        Net(
            lambda n, x: n.b(n.a(x) + n.p(torch.arange(5))),
            a=nn.Embedding(9, 6), p=nn.Embedding(5, 6), b=linear(6, 3),
        ),
        torch.arange(10).reshape(2, 5) % 9, {"a": 6},
    ),
    "a number for each channel": (
        Net(lambda n, x: n.b(n.p(n.a(x))), a=conv(4, 6), p=nn.PReLU(6), b=conv(6, 3)),
        X, {"a": 6},
    ),
}  # fmt: skip
"""A network, its input, and of each unit the number of channels that may go."""


FIXED = {
    "returned": (Net(lambda n, x: n.a(x), a=conv(4, 6)), X, "returns it"),
    "read by unknown code": (
        Net(
            lambda n, x: n.b(torch.from_numpy(n.a(x).detach().numpy() * 2)),
            a=conv(4, 6), b=conv(6, 3),
        ),
        X, "numpy",
    ),
    "normed over all channels": (
        Net(
            lambda n, x: n.b(n.n(n.a(x))),
            a=nn.Linear(8, 6), n=nn.LayerNorm(6), b=nn.Linear(6, 3),
        ),
        ROWS, "layer_norm",
    ),
    "half of them read elsewhere": (
        Net(lambda n, x: n.b(n.a(x)[:, :3]), a=conv(4, 6), b=conv(3, 3)), X, "getitem",
    ),
    "added to the input": (
        Net(lambda n, x: n.b(x + n.a(x)), a=conv(4, 4), b=conv(4, 3)), X, "no layer's",
    ),
}  # fmt: skip
"""Networks whose first layer keeps its channels, and a word of the reason."""


def found(model, x):
    model = opened(model.eval(), x)
    layers = scan(model, x)
    channels, failed = proven(model, x, find_channels(model, x, layers))
    return layers, channels, failed


@pytest.mark.parametrize("kind", KINDS)
def test_every_unit_is_found_and_goes_without_a_trace(kind):
    model, x, expected = KINDS[kind]
    _, channels, failed = found(copy.deepcopy(model), x)
    assert not failed
    assert {u.name: len(u.channels) for u in channels.units} == expected


@pytest.mark.parametrize("kind", FIXED)
def test_an_escape_keeps_its_unit(kind):
    model, x, word = FIXED[kind]
    _, channels, failed = found(copy.deepcopy(model), x)
    assert "a" not in {u.name for u in channels.units}
    assert word in {**channels.reasons, **failed}["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_channel_moves_nothing(kind):
    """The full width is the model; without channels it is as if they were zeros."""
    model, x, _ = KINDS[kind]
    model = opened(copy.deepcopy(model).eval(), x)
    _, channels, _ = found(model, x)
    dropped = [u.channels[0] for u in channels.units]
    what = narrowed_by(channels, dropped)
    for (
        name,
        side,
    ), marks in channels.sides.items():  # what they hold does not matter
        module = model.get_submodule(name)
        if side == "out" and not getattr(module, "transposed", False):
            gone = [k for k, m in enumerate(marks) if m in dropped]
            with torch.no_grad():
                module.weight[(slice(None), gone) if isinstance(module, nn.Embedding) else gone] = (
                    1e3
                )
    small = copy.deepcopy(model)
    narrow(small, what)
    wide = copy.deepcopy(small)
    widen(wide, what)
    assert [p.shape for p in wide.parameters()] == [p.shape for p in model.parameters()]
    torch.testing.assert_close(small(x), wide(x))
    same = copy.deepcopy(model)
    narrow(same, {})
    assert torch.equal(same(x), model(x))


QUICK = ("audio", "unet")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SMALL]
)
def test_the_zoo_accounts_for_every_channel(name):
    net = SMALL[name]
    model, example = net.build(), net.example()
    layers, channels, failed = found(model, example)
    assert not failed
    free = {m for u in channels.units for m in u.channels}
    for view in layers.views:
        marks = channels.sides.get((view.name, "out"))
        if marks is not None:
            assert set(marks) & free or view.name in channels.reasons
    assert channels.units


def data_of(kind):
    model, x, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(1)
    return copy.deepcopy(model).eval(), x, torch.randn(64, *x.shape[1:], generator=generator)


@pytest.mark.parametrize("score", SCORES)
def test_every_score_orders_all_channels(score):
    model, x, data = data_of("squeeze and excitation")
    curves = lowrank.measure(model, x, data=data, methods="channel_svd")
    layers, channels, _ = found(model, x)
    selection = select(model, layers, channels, curves.total, curves.data, score=score)
    for curve in selection.curves:
        assert sorted(curve.ordered) == list(curve.unit.channels)
        assert curve.lost[0] == 0
        assert list(curve.lost) == sorted(curve.lost)
    path = selection.path("macs")
    costs = [step.cost.macs for step in path]
    assert costs == sorted(costs, reverse=True)
    for step in path[1::5]:
        small = narrowed_model(model, selection.narrowed(step.dropped), curves.data)
        assert sum(p.numel() for p in small.parameters()) < sum(
            p.numel() for p in model.parameters()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_is_rounded_at_every_budget(kind):
    """Layers go narrower by multiples, heads and groups by whole ones; a narrow layer stays."""
    model, x, _ = KINDS[kind]
    model = copy.deepcopy(model).eval()
    layers, channels, _ = found(model, x)
    makers, total = {n for u in channels.units for n in u.makers}, model_cost(model, x)
    for round_to in (2, 3, 4, 8):
        selection = select(model, layers, channels, total, None, round_to=round_to)
        path = selection.path("params")
        assert len(path) > 1 or all(u.width <= round_to for u in channels.units)
        least = path[-1].cost.params
        for share in (0.0, 0.1, 0.5, 0.77):
            limit = least + share * (total.params - least)
            step = selection.reach(path, {"params": limit})
            assert step is not None
            assert step.cost.params <= limit
            narrowed = selection.narrowed(step.dropped)
            for kept in (narrowed[name].outputs for name in makers & narrowed.keys()):
                assert kept is None or len(kept.places) in range(0, kept.of, round_to)


@pytest.mark.parametrize("kind", ["squeeze and excitation", "a concatenation", "heads"])
def test_one_factorization_tells_what_each_width_loses(kind):
    model, x, data = data_of(kind)
    curves = lowrank.measure(model, x, data=data, methods="channel_svd")
    layers, channels, _ = found(model, x)
    selection = select(model, layers, channels, curves.total, curves.data)
    for curve in selection.curves:
        some = [selection.readers[name] for name in curve.unit.readers]
        for n, lost in zip(curve.gone, curve.lost, strict=True):
            stays = [r.stays(curve.ordered[:n]) for r in some]
            off = [r.W - r.reconstructed(s) for r, s in zip(some, stays, strict=True)]
            each = [r.share / r.whole * r.metric.error(d) for r, d in zip(some, off, strict=True)]
            assert lost == pytest.approx(sum(each), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("score", ["lasso", "backward", "nystrom"])
def test_a_reader_of_very_many_inputs_does_without_their_moment(score, monkeypatch):
    """Its columns are ordered one by one, and it is reconstructed by its positions."""
    torch.manual_seed(0)
    model = nn.Sequential(conv(4, 16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)).eval()
    data = torch.randn(96, 4, 8, 8)
    off = {}
    for widest in (readers.WIDEST, 100):
        monkeypatch.setattr(readers, "WIDEST", widest)
        how = {"methods": "select", "select": score, "data": data}
        small, _ = lowrank.compress(model, data[:2], macs=0.6, **how)
        off[widest] = (small(data) - model(data)).norm() / model(data).norm()
    assert off[100] < 1.2 * off[6144]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("n", [20, 63, 64, 130])
def test_of_many_channels_a_few_go_at_a_time_and_lose_no_more(n, kernel, monkeypatch):
    """Half of the channels are told by others: one of each two may go for next to nothing."""
    torch.manual_seed(n)
    free = (n + 1) // 2
    first = nn.Conv2d(4, n, 1)
    with torch.no_grad():
        first.weight[free:] = first.weight[: n - free] * 1.5
        first.bias[free:] = first.bias[: n - free] * 1.5
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(n, 8, kernel), nn.ReLU(), nn.Flatten(2))
    data = torch.randn(64, 4, 7, 7)
    curves = lowrank.measure(model.eval(), data[:1], data=data, methods="channel_svd")
    layers, channels, _ = found(model, data[:1])
    lost, orders = {}, {}
    for size in (scores._ONE_BY_ONE, 10**6):
        monkeypatch.setattr(scores, "_ONE_BY_ONE", size)
        chosen = select(model, layers, channels, curves.total, curves.data, score="backward")
        (curve,) = (c for c in chosen.curves if len(c.ordered) >= n - 1)
        orders[size], lost[size] = curve.ordered, np.interp(range(n), curve.gone, curve.lost)
    few, each = lost.values()
    assert (few <= 1.1 * each + 1e-6).all()
    assert few[n - free] < 0.05 * few[-1]
    if n < 64:
        assert len({tuple(o) for o in orders.values()}) == 1


@pytest.mark.parametrize("seed", range(3))
def test_reconstruction_makes_up_for_channels_that_others_tell(seed):
    """Two channels that are the same: one goes, and nothing is lost."""
    model, x, data = data_of("a norm and a reader")
    torch.manual_seed(seed)
    model.a.reset_parameters()
    model.b.reset_parameters()
    with torch.no_grad():
        for p in (*model.a.parameters(), *model.n.parameters()):
            p[1] = p[0]
    rules = {"methods": "select", "select": "backward"}  # the LASSO scales channels one by one
    small, _ = lowrank.compress(model, x, params=0.9, data=data, **rules)
    assert (small(x) - model(x)).norm() < 0.05 * model(x).norm()


@pytest.mark.parametrize("methods", ["select", ["channel_svd", "select"]])
@pytest.mark.parametrize("kind", ["squeeze and excitation", "gated neurons"])
def test_one_plan_is_made_saved_and_undone(kind, methods, tmp_path):
    model, x, data = data_of(kind)
    small, report = lowrank.compress(model, x, macs=0.7, data=data, methods=methods)
    assert report.kept("macs") <= 0.7
    assert report.plan.cost.macs == report.compressed.macs
    assert lowrank.Plan.from_json(report.plan.to_json()) == report.plan
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=copy.deepcopy(model))
    assert torch.equal(again(x), small(x))
    dense = lowrank.densify(small)
    assert [p.shape for p in dense.parameters()] == [p.shape for p in model.parameters()]
    torch.testing.assert_close(dense(x), small(x))
    applied, _ = lowrank.apply(model, report.plan, example=x, data=data)
    torch.testing.assert_close(applied(x), small(x), rtol=1e-3, atol=1e-3)
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), small(x))


@pytest.mark.parametrize(("A", "y"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_path_of_what_is_all_zero_has_no_entry(A, y):
    assert not lasso_path(np.full((4, 3), A), np.full(4, y)).any()


@pytest.mark.parametrize("asked", [{"params": 0.01}, {"macs": 0.01}, {"bytes": 0.01}])
def test_a_refusal_names_the_budget_that_was_asked_for(asked):
    name, keep = next(iter(asked.items()))
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), torch.randn(8, 8)
    with pytest.raises(BudgetError, match=f"{name}={keep} cannot be reached"):
        lowrank.compress(net, x, methods=["channel_svd", "select"], data=x, effort="quick", **asked)


def test_the_path_is_that_of_the_lasso():
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(12, 8, generator=generator, dtype=torch.float64).numpy()
    y = A.sum(1)
    entered = lasso_path(A, y)
    for lam in (0.9 * entered.max(), float(entered[entered > 0].mean())):
        support = Homotopy().solve(Lasso(A, y, lam)).coefficients != 0
        assert set(support.nonzero()[0]) <= set((entered >= lam).nonzero()[0])


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"macs": 0.5, "select": "magic"}, "unknown"),
        ({"memory": 0.5}, "memory"),
        ({"macs": 0.001}, "smallest"),
    ],
)
def test_bad_input_is_a_sentence(more, word):
    model, x, _ = data_of("a norm and a reader")
    with pytest.raises(LowRankError, match=word):
        lowrank.compress(model, x, **{"methods": "select", **more})


def test_a_plan_for_another_width_is_refused():
    model, x, data = data_of("a norm and a reader")
    _, report = lowrank.compress(model, x, params=0.7, data=data, methods="select")
    other = KINDS["a concatenation"][0]
    with pytest.raises(PlanError):
        lowrank.apply(copy.deepcopy(other), report.plan)
    text = report.plan.to_json().replace('"kept": [', '"kept": [99, ')
    with pytest.raises(PlanError, match="what stays"):
        lowrank.Plan.from_json(text)


def test_a_unit_with_no_channel_to_spare_stays():
    model = Net(lambda n, x: n.b(n.a(x)), a=conv(4, 1), b=conv(1, 3)).eval()
    _, channels, _ = found(model, X)
    assert not channels.units


def test_the_command_line_takes_the_word():
    assert Methods().convert("select", None, None) == ("select",)
    assert Methods().convert("channel_svd,select", None, None)[0] == "select"


def test_curves_are_of_factors_alone():
    model, x, _ = data_of("a norm and a reader")
    with pytest.raises(LowRankError, match="select"):
        lowrank.measure(model, x, methods=["channel_svd", "select"])
