"""Timing of layers and memory of chains: caching, turns, interpolation; no test reads a clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import (
    GRID,
    TRIES,
    Alone,
    Branches,
    Call,
    Candidate,
    Dense,
    LayerSpec,
    LayerTimer,
    Stopwatch,
    chain_bytes,
    in_turns,
    measure_memory,
    profile,
    runs_channels_last,
    scan,
    time_layers,
)
from lowrank.compression.gauges.timing import time_ratio
from lowrank.compression.methods import CP, ChannelSVD, SpatialSVD, Tucker2
from lowrank.compression.planning import clock as on_the_clock
from lowrank.compression.planning.clock import MOST, _next_limit, plan_on_the_clock
from lowrank.errors import BudgetError, InputError

STAGE = 50.0
"""What the fake clock asks for starting a stage, in the units of one weight."""


def work(module: nn.Module) -> float:
    """Weights to multiply by, and a fee for every stage."""
    stages = [m for m in module.modules() if getattr(m, "weight", None) is not None]
    return sum(m.weight.numel() + STAGE for m in stages)


@dataclass
class FakeClock:
    """A timer that knows what a module must take, and remembers what it was asked."""

    asked: list[nn.Module] = field(default_factory=list)
    inputs: list[object] = field(default_factory=list)

    def __call__(self, module, example):
        self.asked.append(module)
        self.inputs.append(example)
        with torch.no_grad():
            module(example)
        return work(module)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.Flatten(),
        nn.Linear(24 * 64, 10),
    ).eval()


EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONV = LayerSpec("conv", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
AT = Call(2, (8, 8))


def candidates(view, methods):
    return [Candidate(view.name, m, view.cost(m.stages(view.spec)), 0.5) for m in methods]


def timed(methods, clock=None):
    model = net()
    views = {v.name: v for v in scan(model, EXAMPLE).views}
    offered = {n: candidates(views[n], methods) for n in ("2", "4")}
    clock = clock or FakeClock()
    units = {n: Alone(views[n]) for n in offered}
    timing = time_layers(model, EXAMPLE, units, offered, timer=clock)
    return timing, offered, views, clock


# --- turns -------------------------------------------------------------------------------------


def test_each_round_runs_every_module_and_begins_with_another():
    modules, clock = [nn.Identity() for _ in range(3)], FakeClock()
    runs = in_turns(modules, EXAMPLE, lambda m, x: clock(m, x) and 0.0, rounds=(4, 4), warmup=1)
    assert [len(r) for r in runs] == [4, 4, 4]
    turns = [clock.asked[i : i + 3] for i in range(0, 15, 3)]
    assert all(Counter(map(id, turn)) == Counter(map(id, modules)) for turn in turns)
    assert [modules.index(turn[0]) for turn in turns] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(("seconds", "rounds"), [(1.0, 5), (0.004, 10), (1e-6, 30)])
def test_quick_modules_get_more_rounds(seconds, rounds):
    runs = in_turns(
        [nn.Identity()] * 2, EXAMPLE, lambda *_: seconds, rounds=(5, 30), enough=0.04, warmup=0
    )
    assert [len(r) for r in runs] == [rounds, rounds]


def test_modules_run_in_evaluation_mode_and_get_their_flags_back():
    model, seen = nn.Dropout().train(), []
    in_turns([model], EXAMPLE, lambda m, _: seen.append(m.training) or 1.0)
    assert not any(seen)
    assert model.training


def test_comparison_takes_the_ratio_round_by_round():
    """A machine that gets ten times slower half way does not change the ratio."""
    slow, fast = nn.Linear(2, 2), nn.Linear(2, 2)
    runs = Counter()

    def timer(module, example):
        runs[id(module)] += 1
        pace = 10.0 if runs[id(module)] > 10 else 1.0
        return pace * (4.0 if module is slow else 3.0)

    found = time_ratio(slow, fast, torch.zeros(1, 2), timer=timer, rounds=(20, 20))
    assert found.ratio == 0.75
    assert (found.rounds, found.clock) == (20, "given")


def test_one_thread_is_timed_on_its_own_clock():
    assert Stopwatch(torch.device("cpu"), 1).clock == "thread CPU time"
    assert Stopwatch(torch.device("cpu"), 2).clock == "wall clock"
    assert Stopwatch(torch.device("cuda"), 1).clock == "CUDA events"
    assert Stopwatch(torch.device("cpu"), 1)(nn.Linear(2, 2), torch.zeros(1, 2)) >= 0


# --- layers ------------------------------------------------------------------------------------


def test_equal_chains_at_equal_inputs_are_timed_once():
    clock = FakeClock()
    timer = LayerTimer(timer=clock)
    first = timer.seconds([(CONV,), (CONV,)], [AT, AT])
    n = len(clock.asked)
    assert len({id(m) for m in clock.asked}) == 1
    assert timer.seconds([(CONV,)], [AT, AT]) == first[:1]
    assert len(clock.asked) == n
    assert first[0] == 2 * (CONV.n_weights + STAGE)


@pytest.mark.parametrize("other", ["batch", "size", "spec", "threads"])
def test_what_changes_the_time_is_timed_anew(other):
    clock = FakeClock()
    timer = LayerTimer(timer=clock)
    timer.seconds([(CONV,)], [AT])
    n, threads = len(clock.asked), torch.get_num_threads()
    chain, at = (CONV,), AT
    if other == "batch":
        at = Call(3, (8, 8))
    elif other == "size":
        at = Call(2, (4, 8))
    elif other == "spec":
        chain = ChannelSVD(3).stages(CONV)
    else:
        torch.set_num_threads(threads + 1)
    try:
        timer.seconds([chain], [at])
    finally:
        torch.set_num_threads(threads)
    assert len(clock.asked) > n


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_are_built_as_they_will_run(dtype, channels_last):
    clock = FakeClock()
    timer = LayerTimer(dtype=dtype, channels_last=channels_last, timer=clock)
    timer.seconds([CP(5).stages(CONV)], [AT])
    x, module = clock.inputs[0], clock.asked[0]
    assert x.shape == (2, 8, 8, 8)
    for tensor in (x, *(p for p in module.parameters() if p.shape[2] > 1 or p.shape[3] > 1)):
        assert tensor.dtype == dtype
        wanted = torch.channels_last if channels_last else torch.contiguous_format
        assert tensor.is_contiguous(memory_format=wanted)
    assert all(torch.isfinite(p).all() and p.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("spec", "at", "shape"),
    [
        (LayerSpec("linear", 6, 4, bias=True), Call(5), (5, 6)),
        (LayerSpec("embedding", 9, 4), Call(7), (7,)),
        (LayerSpec("conv", 6, 4, (3,), (1,), (1,), (1,), (0,)), Call(2, (11,)), (2, 6, 11)),
        (
            LayerSpec("conv_transpose", 6, 4, (2, 2), (2, 2), (0, 0), (1, 1), (1, 0)),
            Call(1, (3, 5)),
            (1, 6, 3, 5),
        ),
    ],
)
def test_every_kind_of_layer_gets_an_input(spec, at, shape):
    clock = FakeClock()
    LayerTimer(timer=clock).seconds([(spec,)], [at])
    assert clock.inputs[0].shape == shape


def test_the_fastest_run_counts():
    runs = iter([9.0, 3.0, 2.0, 8.0, 4.0, 5.0] * 9)
    timer = LayerTimer(timer=lambda *_: next(runs))
    assert timer.seconds([(CONV,)], [AT]) == [2.0]


@pytest.mark.parametrize("last", [False, True])
def test_channels_last_shows_in_the_example_or_the_kernels(last):
    layout = torch.channels_last if last else torch.contiguous_format
    assert runs_channels_last(net().to(memory_format=layout), EXAMPLE) == last
    assert runs_channels_last(net(), EXAMPLE.contiguous(memory_format=layout)) == last


# --- candidates --------------------------------------------------------------------------------

RANKS = range(1, 21)


def test_a_grid_is_timed_and_the_rest_lies_between():
    methods = [ChannelSVD(r) for r in RANKS]
    timing, offered, views, clock = timed(methods)
    distinct = {m for m in clock.asked if isinstance(m, nn.Sequential) and len(m) == 2}
    assert len(distinct) == GRID  # the two layers have one shape
    seconds = timing.predict("2", offered["2"])
    # the fake clock is linear in the rank, so what lies between is exact
    view = views["2"]
    exact = [sum(s.n_weights + STAGE for s in m.stages(view.spec)) for m in methods]
    np.testing.assert_allclose(seconds, exact, rtol=1e-12)
    assert timing.dense("2") == view.spec.n_weights + STAGE


def test_each_family_has_its_own_grid():
    methods = [
        m
        for r in RANKS
        for m in (ChannelSVD(r), ChannelSVD(r, "kernel_last"), SpatialSVD(r), Tucker2(r, r), CP(r))
    ]
    timing, offered, views, _ = timed(methods)
    seconds = timing.predict("2", offered["2"])
    spec = views["2"].spec
    for m, s in zip(methods, seconds, strict=True):
        exact = sum(stage.n_weights + STAGE for stage in m.stages(spec))
        assert s == pytest.approx(exact, rel=0.05 if isinstance(m, Tucker2) else 1e-12)


def test_more_work_is_never_predicted_to_take_less():
    noise = np.random.default_rng(0)
    timing, offered, _, _ = timed(
        [CP(r) for r in RANKS], lambda m, x: work(m) * noise.uniform(0.5, 1.5)
    )
    assert (np.diff(timing.predict("2", offered["2"])) >= 0).all()


def test_sharpened_candidates_are_exact():
    """A clock with a step that the grid does not see."""

    def stepped(module, example):
        ranks = [m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d)]
        return 1e3 * -(-ranks[0] // 8)

    timing, offered, _, _ = timed([ChannelSVD(r) for r in RANKS], stepped)
    chosen = offered["2"][7].method
    assert timing.predict("2", offered["2"])[7] > 1e3
    timing.sharpen({"2": chosen})
    assert timing.predict("2", offered["2"])[7] == 1e3


def test_the_rest_of_the_model_is_what_its_layers_leave():
    timing, _, views, _ = timed([CP(4)])
    layers = 2 * (views["2"].spec.n_weights + STAGE)
    assert timing.total == work(net())
    assert timing.rest == timing.total - layers


def test_the_rest_is_never_negative():
    timing, _, _, _ = timed([CP(4)], lambda m, x: 1.0)
    assert timing.total == 1.0
    assert timing.rest == 0.0


def test_a_model_without_data_is_refused():
    model = net().to("meta")
    with pytest.raises(InputError, match="latency: the model is on the meta device; time it where"):
        time_layers(model, torch.zeros(2, 3, 8, 8, device="meta"), {}, {})


# --- budgets -----------------------------------------------------------------------------------


@pytest.fixture
def fake_clock(monkeypatch):
    """Every time is read off the fake clock."""
    clock = FakeClock()
    monkeypatch.setattr(Stopwatch, "__call__", lambda self, m, x: clock(m, x))
    return clock


METHODS_USED = ("channel_svd", "spatial_svd", "tucker2")


@pytest.mark.parametrize("latency", [0.8, 0.6, 0.45])
def test_latency_budget_is_met_on_the_clock(fake_clock, latency):
    model = net()
    small, report = lowrank.compress(model, EXAMPLE, latency=latency, methods=METHODS_USED)
    ratio = work(small) / work(model)
    assert ratio <= latency
    assert ratio > 0.9 * latency
    check = report.latency
    assert check.measured.ratio == pytest.approx(ratio)
    assert check.predicted == pytest.approx(ratio)  # the fake clock is additive
    assert f"latency budget {latency} met" in "; ".join(report.notes)
    assert report.plan.budget == {"latency": latency}
    assert report.to_dict()["latency"]["measured"]["ratio"] == check.measured.ratio


def test_a_missed_budget_is_planned_again_tighter(monkeypatch):
    """In place a chain takes a third longer than by itself."""
    clock = FakeClock()

    def slower_in_place(self, module, example):
        chains = [m for m in module.children() if isinstance(m, nn.Sequential)]
        return clock(module, example) + 0.3 * sum(map(work, chains))

    monkeypatch.setattr(Stopwatch, "__call__", slower_in_place)
    deep = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    _, report = lowrank.compress(deep, torch.ones(2, 64), latency=0.7)
    check = report.latency
    assert check.measured.ratio <= 0.7
    assert check.predicted < 0.9 * check.measured.ratio
    assert 2 <= check.tries <= TRIES


@pytest.mark.one_in(2)
@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize("slow", [TRIES - 1, TRIES, MOST - 3, MOST])
@pytest.mark.parametrize("far", [0.9, 0.3])
def test_more_plans_are_timed_while_none_comes_near(monkeypatch, fake_clock, slow, least, far):
    """The first plans are too slow or faster than asked for, whatever they are; below `least` there
    are none."""
    model, example = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))), torch.ones(2, 64)
    curves = lowrank.measure(model, example, latency=True)
    once, ratios = time_ratio(model, model, example), iter([far] * slow + [0.5] * MOST)

    def within(limit):
        if limit < least:
            raise BudgetError("latency", f"{limit} cannot be reached", "raise it")
        return curves.plan(latency=max(limit, 0.3))

    monkeypatch.setattr(
        on_the_clock, "time_ratio", lambda *_, **__: replace(once, ratio=next(ratios))
    )
    found = plan_on_the_clock(model, example, curves, 0.6, within)
    if least == 0.0:
        assert found.ratio == (0.5 if slow < MOST else far)
    assert 1 < found.tries <= MOST  # it goes on where the proposed limit is out of reach


@pytest.mark.parametrize("truth", [lambda p: 1.2 * p, lambda p: 0.9 * p + 0.1, lambda p: p**0.5])
def test_limits_approach_the_aim(truth):
    """Whatever the clock makes of a predicted time, as long as it rises with it."""
    aim, limit, points = 0.6, 0.6, []
    for _ in range(TRIES):
        points.append((limit, truth(limit)))
        limit = _next_limit(points, aim)
    assert min(abs(measured - aim) for _, measured in points) < 0.01 * aim


def test_a_layer_that_would_get_slower_stays_dense(fake_clock):
    curves = lowrank.measure(net(), EXAMPLE, latency=True, methods=METHODS_USED)
    plan = curves.plan(latency=0.6)
    timing = curves.timing
    for curve in curves.curves:
        faster = timing.predict(curve.layer, curve.candidates) < timing.dense(curve.layer)
        chosen = plan[curve.layer]
        if isinstance(chosen, Dense):
            assert faster.any() or chosen.reason == "no rank makes it faster here"
        else:
            assert faster[[c.method for c in curve.candidates].index(chosen)]
    assert any(isinstance(plan[c.layer], Dense) for c in curves.curves)


def test_a_network_that_cannot_get_faster_comes_back_dense(monkeypatch):
    def fee(self, module, example):
        return float(sum(getattr(m, "weight", None) is not None for m in module.modules()))

    monkeypatch.setattr(Stopwatch, "__call__", fee)
    model = net()
    small, report = lowrank.compress(model, EXAMPLE, latency=0.6, methods=METHODS_USED)
    assert not report.plan.replaced
    assert set(report.left_alone.values()) <= {"no rank makes it faster here"}
    assert "no layer was replaced: the network cannot get faster here" in report.notes
    assert torch.equal(small(EXAMPLE), model(EXAMPLE))


def test_a_network_that_is_slower_in_place_comes_back_dense(monkeypatch):
    """Layers win by themselves, and the whole loses."""
    clock = FakeClock()

    def slower_in_place(self, module, example):
        chains = [m for m in module.children() if isinstance(m, nn.Sequential)]
        return clock(module, example) + 1e6 * len(chains)

    monkeypatch.setattr(Stopwatch, "__call__", slower_in_place)
    _, report = lowrank.compress(net(), EXAMPLE, latency=0.6, methods=METHODS_USED)
    assert not report.plan.replaced
    assert report.latency.measured.ratio == 1.0


def test_a_budget_out_of_reach_names_the_smallest(fake_clock):
    with pytest.raises(
        BudgetError, match=r"latency=0\.01 cannot be reached; the smallest is latency="
    ):
        lowrank.compress(net(), EXAMPLE, latency=0.01, methods=METHODS_USED)


@pytest.mark.parametrize("latency", [2, 1.5, 0, -0.1, "fast"])
def test_bad_latency(fake_clock, latency):
    with pytest.raises(BudgetError, match="latency"):
        lowrank.compress(net(), EXAMPLE, latency=latency, methods=METHODS_USED)


@pytest.mark.parametrize("measure", ["latency", "memory"])
def test_a_budget_without_its_measurement_says_what_to_pass(measure):
    curves = lowrank.measure(net(), EXAMPLE, methods=METHODS_USED)
    with pytest.raises(BudgetError, match=f"{measure}: it was not measured; pass {measure}=True"):
        curves.plan(**{measure: 0.5})


def test_latency_beside_another_budget(fake_clock):
    model = net()
    small, report = lowrank.compress(model, EXAMPLE, latency=0.7, params=0.5, methods=METHODS_USED)
    assert work(small) <= 0.7 * work(model)
    assert report.kept("parameters") <= 0.5


@pytest.mark.parametrize("memory", [0.9, 0.7])
def test_memory_budget_is_met_by_the_finished_model(memory):
    model = net()
    small, report = lowrank.compress(model, EXAMPLE, memory=memory, methods=METHODS_USED)
    dense = measure_memory(model, EXAMPLE)
    after = measure_memory(small, EXAMPLE)
    assert after.total <= memory * dense.total
    assert report.memory.measured == after.total
    assert "met" in str(report.memory)


class TiedWords(nn.Module):
    """A table of words that also scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 32)
        self.head = nn.Linear(32, 300, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.words(x))


@pytest.mark.parametrize("memory", [0.97, 0.9, 0.8])
def test_memory_budget_counts_the_head_of_a_tied_table(memory):
    model, words = TiedWords(), torch.arange(24).reshape(2, 12)
    small, report = lowrank.compress(model, words, memory=memory)
    assert measure_memory(small, words).total == report.memory.measured <= report.memory.limit


# --- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [ChannelSVD(4), ChannelSVD(23), ChannelSVD(23, "kernel_last"), SpatialSVD(20), CP(30)],
)
def test_predicted_peak_is_that_of_the_built_model(method):
    model = net()
    views = {v.name: v for v in scan(model, EXAMPLE).views}
    memory = measure_memory(model, EXAMPLE, views)
    assert memory.peak == profile(model, EXAMPLE, latency=False).peak_activation_bytes
    chain = method.stages(views["2"].spec)
    model[2] = nn.Sequential(*(s.build(dtype=torch.float32, device="cpu") for s in chain))
    built = profile(model, EXAMPLE, latency=False).peak_activation_bytes
    assert memory.with_chain(views["2"], chain) == built


@pytest.mark.parametrize("joined", [False, True])
def test_branches_are_followed_without_data(joined):
    spec = LayerSpec("conv", 24, 24, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
    wide = ChannelSVD(20).stages(spec)
    narrow = (spec.along((0, 1), 24, 12), spec.pointwise(12, 12))
    chain = (Branches((narrow, narrow) if joined else (wide, (spec,)), 1, joined),)
    model = net()
    views = {v.name: v for v in scan(model, EXAMPLE).views}
    memory = measure_memory(model, EXAMPLE, views)
    model[2] = chain[0].build(dtype=torch.float32, device="cpu")
    built = profile(model, EXAMPLE, latency=False).peak_activation_bytes
    assert memory.with_chain(views["2"], chain) == built


def test_branches_are_timed():
    clock = FakeClock()
    chain = (Branches((CP(3).stages(CONV), (CONV,)), 1),)
    assert LayerTimer(timer=clock).seconds([chain], [AT])[0] > CONV.n_weights


def test_weights_and_buffers_are_counted_once():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    tied.append(tied[0])
    memory = measure_memory(tied, torch.zeros(3, 4))
    assert memory.weights == 16 * 4 + 4 * 4 * 4 + 8
    assert memory.total == memory.weights + memory.peak


def test_chain_holds_each_stage_with_the_one_before():
    chain = ChannelSVD(5).stages(CONV)
    grid = 2 * 8 * 8 * 4
    assert chain_bytes(chain, AT, torch.float32) == (5 + 8) * grid
    assert chain_bytes((CONV,), AT, torch.float32) == 8 * grid
