"""Where an output goes, the prefix cache, and fitting behind the compressed prefix."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowrank
from lowrank.compression import (
    Downstream,
    Fitting,
    PrefixCache,
    Reached,
    Statistics,
    calibration_batches,
    compare_outputs,
    find_downstream,
    probe,
    replace_layers,
    run,
    scan,
)
from lowrank.compression.methods import ChannelSVD
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.errors import InputError

SINGLE = 1e-5
"""Relative: sums in float32 in another order."""

FEW = ("channel_svd", "spatial_svd")
"""Methods enough where the plan is not the point; they need few steps of a search, or none."""

Add = Callable[[Tensor, Tensor], Tensor]


def _in_place(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def _in_place_other(a: Tensor, b: Tensor) -> Tensor:
    b = b.clone()
    b += a
    return b


ADDITIONS: dict[str, Add] = {
    "a + b": lambda a, b: a + b,
    "b + a": lambda a, b: b + a,
    "a += b": _in_place,
    "b += a": _in_place_other,
    "torch.add(a, b)": torch.add,
    "torch.add(b, a)": lambda a, b: torch.add(b, a),
    "a.add(b)": lambda a, b: a.add(b),
    "a.add_(b)": lambda a, b: a.add_(b),
    "dropout(a) + b": lambda a, b: F.dropout(a, 0.3, training=False) + b,
    "b + dropout(a)": lambda a, b: b + F.dropout(a, 0.3, training=False),
}
"""Every spelling of a residual sum."""


class Block(nn.Module):
    """A convolution, perhaps a batch norm and a dropout, and a residual sum."""

    def __init__(self, add: Add = torch.add, *, norm: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 12, 3, padding=1)
        self.a = nn.Conv2d(12, 12, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(12) if norm else None
        self.drop = nn.Dropout(0.3)
        self.leave = nn.Linear(12, 8)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        y = self.a(h)
        if self.norm is not None:
            y = self.norm(y)
        return self.leave(torch.relu(self.add(self.drop(y), h)).mean((2, 3)))


def _seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return model


def _sinks(model: nn.Module, x: Any) -> dict[str, Downstream]:
    return find_downstream(model, scan(model, x).views, x)


PICTURES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# --- sinks -------------------------------------------------------------------------------


@pytest.mark.parametrize("add", ADDITIONS.values(), ids=ADDITIONS)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_residual_sums_in_all_spellings(add: Add, norm: bool) -> None:
    model = _seeded(lambda: Block(add, norm=norm))
    found = _sinks(model, PICTURES[:2])
    assert found["a"] == Downstream("norm" if norm else None, added=True)
    assert found["leave"] == Downstream()


class Odd(nn.Module):
    """Uses of a layer's output that are no sink of its own."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(6, 6) for _ in range(2))
        self.norm = nn.BatchNorm1d(6)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.use == "shared norm":
            return self.norm(y) * self.norm(self.b(x))
        if self.use == "read twice":
            return self.norm(y) * y
        if self.use == "read twice behind the norm":
            z = self.norm(y)
            return (z + x) * z
        if self.use == "subtracted":
            return y - x
        if self.use == "broadcast":
            return y + x[:1]
        if self.use == "scaled":
            return torch.add(x, y, alpha=0.5)
        if self.use == "doubled":
            return y + y
        if self.use == "returned too":
            return y + x, y  # type: ignore[return-value]
        return self.norm(torch.relu(y))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("shared norm", Downstream()),
        ("read twice", Downstream()),
        ("read twice behind the norm", Downstream("norm")),
        ("subtracted", Downstream()),
        ("broadcast", Downstream()),
        ("scaled", Downstream()),
        ("doubled", Downstream()),
        ("returned too", Downstream()),
        ("norm behind a relu", Downstream()),
    ],
)
def test_what_is_no_sink(use: str, expected: Downstream) -> None:
    x = torch.randn(4, 6)
    assert _sinks(Odd(use).eval(), x)["a"] == expected


def test_looking_at_a_shape_is_no_use() -> None:
    def add(a: Tensor, b: Tensor) -> Tensor:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.dim() == b.size(0) - b.size(0) + 4
        return a + b

    assert _sinks(_seeded(lambda: Block(add)), PICTURES[:2])["a"] == Downstream("norm", added=True)


def test_the_bundled_network_is_understood() -> None:
    found = _sinks(resnet20(), fashion_mnist("test")[0][:2])
    assert found["conv"] == Downstream("bn")
    for stage in range(3):
        for block in range(3):
            name = f"stages.{stage}.{block}"
            assert found[f"{name}.conv1"] == Downstream(f"{name}.bn1")
            assert found[f"{name}.conv2"] == Downstream(f"{name}.bn2", added=True)
    assert found["stages.1.0.shortcut.0"] == Downstream("stages.1.0.shortcut.1", added=True)
    assert found["fc"] == Downstream()


def test_layers_that_run_twice_have_no_sink() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x)) + x

    assert _sinks(Twice(), torch.randn(2, 6)) == {}


# --- replay ------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts how often it runs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.n = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return self.inner(x)


class InPlace(nn.Module):
    """Blocks whose outputs are worked on in place."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Counting(nn.Linear(6, 6)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            y = part(x)
            x = y.relu_().add_(x)
        return x


def _input_of(
    replay: PrefixCache,
    k: int,
    batch: Tensor,
    module: nn.Module,
    changing: nn.Module | None = None,
) -> Tensor:
    """What comes into a module, the pass ended there."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(args[0].clone())
        replay.mark(changing)
        raise Reached

    handle = module.register_forward_hook(stop)
    try:
        assert replay.run(k, batch)
    finally:
        handle.remove()
    return seen[0]


def test_a_module_that_is_going_to_change_is_run_again() -> None:
    torch.manual_seed(0)
    net, x = InPlace().eval(), torch.randn(5, 6)
    replay = PrefixCache(net, 1, limit=1 << 20)
    _input_of(replay, 0, x, net.parts[1], changing=net.parts[1])
    with torch.no_grad():
        net.parts[1].inner.weight.add_(1.0)
    expected = _input_of(PrefixCache(net, 1, limit=1 << 20), 0, x, net.parts[2])
    assert torch.equal(_input_of(replay, 0, x, net.parts[2]), expected)
    assert [part.n for part in net.parts] == [2, 3, 2, 0]


def test_replay_gives_the_same_and_runs_nothing_twice() -> None:
    torch.manual_seed(0)
    net, batches = InPlace().eval(), torch.randn(2, 5, 6)
    plain = PrefixCache(net, 2, limit=0)  # keeps nothing
    expected = [[_input_of(plain, k, x, p) for p in net.parts] for k, x in enumerate(batches)]
    for part in net.parts:
        part.n = 0
    replay = PrefixCache(net, 2, limit=1 << 20)
    for j, part in enumerate(net.parts):
        for k, x in enumerate(batches):
            assert torch.equal(_input_of(replay, k, x, part), expected[k][j])
    assert [part.n for part in net.parts] == [2, 2, 2, 2]  # once for each batch
    assert all("forward" not in m.__dict__ for m in net.modules())


def test_replay_gives_the_output_of_a_model_that_differs_behind_the_mark() -> None:
    torch.manual_seed(0)
    net, batches = InPlace().eval(), torch.randn(2, 5, 6)
    replay = PrefixCache(net, 2, limit=1 << 20)
    for k, x in enumerate(batches):
        _input_of(replay, k, x, net.parts[1])
    other = copy.deepcopy(net)
    other.parts[2].load_state_dict(InPlace().parts[2].state_dict())
    expected = [run(other, x) for x in batches]
    for part in other.parts:
        part.n = 0
    for k, x in enumerate(batches):
        assert torch.equal(replay.output(other, k, x), expected[k])
    assert [part.n for part in other.parts] == [0, 0, 2, 2]
    assert all("forward" not in m.__dict__ for m in other.modules())


def test_probes_from_the_middle_of_the_model_are_those_of_whole_passes() -> None:
    model = _seeded(Residual)
    x = _pictures(48, 2)
    curves = lowrank.measure(
        model,
        x[:1],
        data=[x],
        methods=["channel_svd"],
        calibration=lowrank.Calibration(weighting="gradients"),
    )

    def whole(small: nn.Module) -> float:
        found = compare_outputs(model, small, None, [x])
        assert found is not None
        return -found.kl

    found, expected = probe(model, curves), probe(model, curves, metric=whole)
    for a, b in zip(found.curves, expected.curves, strict=True):
        assert a.importance is not None
        assert b.importance is not None
        assert a.importance.loss == pytest.approx(b.importance.loss, rel=1e-4)


def test_replay_runs_to_the_end_when_nothing_ends_it() -> None:
    replay = PrefixCache(InPlace().eval(), 1, limit=1 << 20)
    assert not replay.run(0, torch.randn(2, 6))


def test_replay_keeps_a_forward_of_ones_own() -> None:
    net = InPlace().eval()
    own = net.parts[0].forward
    net.parts[0].forward = own  # as accelerate and others do
    PrefixCache(net, 1, limit=1 << 20).run(0, torch.randn(2, 6))
    assert net.parts[0].__dict__["forward"] is own


def test_replay_is_bounded() -> None:
    torch.manual_seed(0)
    net, batches = InPlace().eval(), torch.randn(3, 5, 6)
    replay = PrefixCache(net, 3, limit=2 * 5 * 6 * 4)
    for part in net.parts:
        for k, x in enumerate(batches):
            _input_of(replay, k, x, part)
            assert sum(replay._bytes) <= replay.limit


# --- fitting behind the prefix -----------------------------------------------------------


class Residual(nn.Module):
    """Three blocks as in a ResNet, small."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(6)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(6))
        self.leave = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        for k in range(0, 6, 2):
            y = torch.relu(self.norms[k](self.convs[k](h)))
            h = torch.relu(self.norms[k + 1](self.convs[k + 1](y)) + h)
        return self.leave(h.mean((2, 3)))


FIRST = ["convs.[0-2]"]
"""Layers enough where a fit is not the point: one behind another and one behind a sum."""


def _narrow() -> nn.Module:
    return _seeded(lambda: Residual(8))


def _pictures(n: int, seed: int) -> Tensor:
    """Smooth pictures: neighbouring pixels correlate, as in photographs."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=rng)
    return F.interpolate(coarse, size=10, mode="bilinear") + 0.1 * torch.randn(
        n, 3, 10, 10, generator=rng
    )


def _lost(model: nn.Module, small: nn.Module, held: Tensor) -> float:
    found = compare_outputs(model, small, None, [held])
    assert found is not None
    return found.relative_error


def test_sequential_beats_parallel_beats_weights_alone_on_held_out_data() -> None:
    model = _seeded(Residual)
    x, held = _pictures(128, 2), _pictures(128, 3)
    lowrank.recalibrate_batchnorm(model, teacher=_seeded(Residual, 1), data=x, val=lambda m: 0.0)
    overrides = {f"convs.{k}": ChannelSVD(3) for k in range(6)}
    curves = lowrank.measure(
        model, x[:1], data=[x], rules=lowrank.Rules(overrides=overrides, only=["convs.*"])
    )
    plan = curves.plan(params=10**9)
    assert len(plan.replaced) == 6
    blind, _ = replace_layers(model, plan)
    parallel, _ = replace_layers(model, plan, curves.data, "parallel")
    sequential, _ = replace_layers(model, plan, curves.data, "sequential")
    lost = [_lost(model, m, held) for m in (sequential, parallel, blind)]
    assert lost == sorted(lost)
    assert lost[0] < 0.9 * lost[1]


def test_later_layers_are_fitted_to_what_earlier_ones_lost() -> None:
    """Behind a layer that is off by a known map, the next one undoes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    x = torch.randn(400, 8)
    units = scan(model, x[:1]).units
    data = Statistics.of(model, units, [x], weighting="outputs")
    small = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    small.load_state_dict(model.state_dict())
    with torch.no_grad():
        small[0].weight.mul_(0.5)
        small[0].bias.mul_(0.5).add_(1)
    goal, fitted = Fitting(data, model, small, "sequential", seed=0).goal("1")
    assert goal is not None
    assert fitted == "to the inputs behind the compressed layers"
    wanted = 2 * model[1].weight.detach()[None].double()
    lost = goal.metric.error(goal.weight - wanted)
    assert lost < 1e-3 * goal.metric.error(wanted)  # what the damping of 1e-3 leaves


def test_layers_are_fitted_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)))

    model, x = _seeded(Backwards), torch.randn(40, 8)
    overrides = {"last": ChannelSVD(3), "first": ChannelSVD(3)}
    curves = lowrank.measure(model, x[:1], data=[x], rules=lowrank.Rules(overrides=overrides))
    order: list[str] = []
    lowrank.apply(
        model,
        curves.plan(params=10**9),
        data=curves.data,
        progress=lambda name, done, total: order.append(name),
    )
    assert order[:2] == ["fitting first", "fitting last"]


def test_a_layer_makes_up_for_what_the_other_branch_lost() -> None:
    """The target of the layer before a sum is its output plus the other branch's loss."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    model = _seeded(Sum)
    x = torch.randn(400, 8)
    plan = lowrank.measure(
        model, x[:1], rules=lowrank.Rules(overrides={"left": ChannelSVD(3), "right": ChannelSVD(8)})
    ).plan(params=10**9)
    data = lowrank.measure(
        model, x[:1], data=[x], calibration=lowrank.Calibration(weighting="outputs")
    ).data
    small, _ = replace_layers(model, plan, data, "sequential")
    assert _lost(model, small, torch.randn(50, 8)) < 0.01  # left lost a half, right makes it up


@pytest.mark.parametrize("norm", [False, True], ids=["no norm", "norm"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_mean_goes_to_a_bias_or_a_batch_norm_that_is_there(norm: bool, bias: bool) -> None:
    model = _seeded(lambda: Block(norm=norm, bias=bias))
    x = 2 + PICTURES  # a mean that matters
    settings: dict[str, Any] = {
        "rules": lowrank.Rules(overrides={"a": ChannelSVD(2)}, only=["a"]),
        "params": 10**9,
    }
    small, report = lowrank.compress(model, x[:1], data=[x], **settings)
    assert (small.a[-1].bias is not None) == bias
    assert len(list(small.a.parameters())) == 2 + bias
    assert report.plan["a"] == ChannelSVD(2)

    means = []
    for net in (model, small):
        seen: list[Tensor] = []
        after = net.norm if norm else net.a
        handle = after.register_forward_hook(lambda m, args, y, seen=seen: seen.append(y))
        run(net, x)
        handle.remove()
        means.append(seen[0].mean((0, 2, 3)))
    if norm or bias:
        assert torch.allclose(means[0], means[1], atol=0.02)
    if bias:
        assert not torch.equal(small.a[-1].bias, model.a.bias)
    if norm and not bias:
        assert not torch.equal(small.norm.running_mean, model.norm.running_mean)


def test_a_shared_bias_is_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)
            self.b.bias = self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    model, x = _seeded(Shared), 1 + torch.randn(64, 24)
    small, _ = lowrank.compress(model, x[:1], data=[x], params=0.6, methods=["channel_svd"])
    assert torch.equal(small.a[-1].bias, model.a.bias)
    assert small.a[-1].bias is small.b[-1].bias


class Words(nn.Module):
    """An embedding, a layer that runs twice, and one that runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 24)
        self.twice, self.once = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        h = h + torch.relu(self.twice(torch.relu(self.twice(h))))
        return self.once(h)


def test_layers_that_cannot_be_ordered_fall_back_and_say_so() -> None:
    model, ids = _seeded(Words), torch.randint(0, 40, (30, 6))
    overrides = {name: ChannelSVD(6) for name in ("words", "twice", "once")}
    small, report = lowrank.compress(
        model, ids[:1], data=[ids], params=10**9, rules=lowrank.Rules(overrides=overrides)
    )
    fitted = {row.name: row.fitted for row in report.layers}
    assert fitted == {
        "words": "to the dense model's inputs: nothing comes before an embedding",
        "twice": "to the dense model's inputs: it runs 2 times in a pass",
        "once": "to the inputs behind the compressed layers",
    }
    notes = " ".join(report.notes)
    assert "it runs 2 times in a pass (twice)" in notes
    assert "nothing comes before an embedding (words)" in notes
    assert "it runs 2 times in a pass" in str(report)
    assert small(ids).isfinite().all()


def test_parallel_is_said_too() -> None:
    model = _narrow()
    x = _pictures(16, 2)
    _, report = lowrank.compress(
        model,
        x[:1],
        data=[x],
        params=0.8,
        calibration=lowrank.Calibration(fit="parallel"),
        methods=["channel_svd"],
        rules=lowrank.Rules(only=["convs.[01]"]),
    )
    assert report.replaced
    fitted = {row.fitted for row in report.layers if row.fitted is not None}
    assert fitted == {"to the dense model's inputs"}


class Transformer(nn.Module):
    """Two pre-norm blocks with attention, layer norms, dropouts and residual sums."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.blocks = nn.ModuleList(Attention(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 50, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.words(input_ids)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm1(h)
        heads = [f(x).unflatten(-1, (3, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        h = h + self.drop(self.o(y))
        return h + self.drop(self.down(F.gelu(self.up(self.norm2(h)))))


def test_a_transformer_with_layer_norms() -> None:
    model = _seeded(Transformer)
    ids = torch.randint(0, 50, (64, 8), generator=torch.Generator().manual_seed(0))
    example, data = {"input_ids": ids[:1]}, [{"input_ids": part} for part in ids[:48].split(16)]
    found = _sinks(model, example)
    assert found["blocks.0.o"] == found["blocks.1.down"] == Downstream(added=True)
    assert found["blocks.0.q"] == found["head"] == Downstream()
    linear = {n: ChannelSVD(8) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    settings: dict[str, Any] = {
        "params": 10**9,
        "rules": lowrank.Rules(overrides=linear, only=list(linear)),
        "calibration": lowrank.Calibration(fit="sequential"),
    }
    blind, _ = lowrank.compress(model, example, **settings)
    small, report = lowrank.compress(model, example, data=data, **settings)
    assert {r.fitted for r in report.layers if r.fitted} == {
        "to the inputs behind the compressed layers"
    }
    held = [{"input_ids": ids[48:]}]
    lost = [compare_outputs(model, m, None, held) for m in (small, blind)]
    assert lost[0] is not None
    assert lost[1] is not None
    assert lost[0].relative_error < lost[1].relative_error


def test_data_aware_models_save_load_and_come_back(tmp_path: Path) -> None:
    model, x = _narrow(), _pictures(48, 2)
    small, report = lowrank.compress(
        model, x[:1], data=[x], macs=0.8, methods=FEW, rules=lowrank.Rules(only=FIRST)
    )
    assert report.replaced
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=_narrow()).eval()
    assert torch.equal(run(again, x), run(small, x))
    dense = lowrank.densify(small)
    expected = run(small, x)
    assert (run(dense, x) - expected).norm() < SINGLE * expected.norm()
    assert all(type(m) is nn.Conv2d for m in dense.convs)


def test_one_seed_one_answer() -> None:
    """Of CP, whose searches start at random; the layer with the fewest ranks."""
    model, x = _narrow(), _pictures(48, 2)
    settings: dict[str, Any] = {
        "data": [x],
        "macs": 0.98,
        "methods": ["cp"],
        "rules": lowrank.Rules(only=["enter"], round_to=4),
    }
    made = [
        lowrank.compress(model, x[:1], calibration=lowrank.Calibration(seed=3), **settings)
        for _ in range(2)
    ]
    assert [[row.name for row in report.replaced] for _, report in made] == [["enter"]] * 2
    states = [net.state_dict() for net, _ in made]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_data_serve_a_copy_of_the_model_and_no_other() -> None:
    """Curves may have been pickled, and the network loaded anew: fits see the same inputs."""
    model, x = _narrow(), _pictures(64, 2)
    curves = lowrank.measure(
        model, x[:1], data=[x], methods=FEW, rules=lowrank.Rules(only=["convs.[01]"])
    )
    plan = curves.plan(macs=0.9, exponent=0.5)
    assert curves.data is not None
    again, kept = copy.deepcopy(model), copy.deepcopy(curves.data)
    one, _ = lowrank.apply(model, plan, data=curves.data)
    two, _ = lowrank.apply(again, plan, data=kept)
    assert torch.equal(run(one, x), run(two, x))
    (part, _), (same, _) = curves.data.parted(model), kept.parted(again)
    assert same.calibrated.layers.keys() == part.calibrated.layers.keys() == kept.views.keys()
    for name, moments in part.calibrated.layers.items():
        assert torch.equal(moments.C, same.calibrated.layers[name].C)
    with torch.no_grad():
        again.convs[0].weight.mul_(2)
    with pytest.raises(InputError, match=r"data: it was calibrated on other weights of convs\.0"):
        lowrank.apply(again, plan, data=curves.data)
    other = nn.Sequential(nn.Conv2d(1, 8, 3))
    with pytest.raises(InputError, match="data: the model that it was calibrated on has another"):
        lowrank.measure(other, x[:1, :1], data=curves.data)


def test_curves_carry_their_data_to_apply() -> None:
    """One calibration serves every plan, with the same result as compress: four fits in all."""
    model, x = _narrow(), _pictures(48, 2)
    curves = lowrank.measure(model, x[:1], data=[x], methods=FEW, rules=lowrank.Rules(only=FIRST))
    plan = curves.plan(macs=0.8, exponent=0.5)
    one, _ = lowrank.apply(model, plan, example=x[:1], data=curves.data)
    two, _ = lowrank.compress(
        model,
        x[:1],
        macs=0.8,
        data=[x],
        calibration=lowrank.Calibration(exponent=0.5),
        methods=FEW,
        rules=lowrank.Rules(only=FIRST),
    )
    assert torch.equal(run(one, x), run(two, x))
    three, _ = lowrank.apply(model, plan, example=x[:1], data=calibration_batches([x], x[:1]))
    assert torch.allclose(run(one, x), run(three, x), atol=1e-4)
