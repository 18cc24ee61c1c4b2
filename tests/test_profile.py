"""Profiles against torch's own counter, hand-computed formulas and published figures."""

import json
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.profiles import CASES, measure
from lowrank.compression import (
    TOTAL,
    batch_size,
    check,
    compare_latency,
    count_macs,
    flatten,
    measure_latency,
    merge_alike,
    profile,
    run,
)
from lowrank.compression.gauges.counting import _cost
from lowrank.demos.bundled import ResNet20
from lowrank.errors import InputError
from lowrank.tables import amount


def cost_of(model, example):
    return profile(model, example, latency=False)


def row(cost, name):
    return next(layer for layer in cost.layers if layer.name == name)


class Lambda(nn.Module):
    """A model that is one function: everything lands in the row of the model itself."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(100, 1000), nn.Linear(1000, 10)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


# --- against torch.utils.flop_counter ----------------------------------------------------

IMAGE = torch.zeros(2, 3, 16, 16)
SEQUENCE = torch.zeros(2, 7, 16)
NETS = {
    "resnet20": (lambda: ResNet20(in_channels=3), IMAGE),
    "mlp": (Mlp, torch.zeros(5, 100)),
    "grouped": (lambda: nn.Conv2d(3, 6, 3, stride=2, groups=3, dilation=2), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1), IMAGE),
    "conv1d": (lambda: nn.Conv1d(7, 5, 3), SEQUENCE),
    "conv3d": (lambda: nn.Conv3d(1, 2, 3), torch.zeros(1, 1, 5, 6, 7)),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), SEQUENCE),
    "gru": (lambda: nn.GRU(16, 8, 2, bidirectional=True), SEQUENCE),
    "einsum": (lambda: Lambda(lambda x: torch.einsum("bij,bkj->bik", x, x)), SEQUENCE),
}


@pytest.mark.parametrize("name", NETS)
def test_macs_are_half_of_torchs_flops(name):
    build, example = NETS[name]
    model = build().eval()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's counter does not see into it
    try:
        # Plain attention: torch's counter skips the fused CPU kernel, which ours sees.
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    cost = cost_of(model, example)
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.macs == sum(layer.macs for layer in cost.layers) > 0
    assert cost.flops == sum(layer.flops for layer in cost.layers) >= 2 * cost.macs
    assert cost.uncounted == ()


def test_inference_mode_counts_the_same():
    model, example = Mlp(), torch.zeros(5, 100)
    normal = cost_of(model, example)
    with torch.inference_mode():
        assert cost_of(model, example) == normal


# --- hand-computed -----------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    cost = cost_of(nn.Linear(8, 4, bias=bias), torch.zeros(3, 5, 8))
    assert cost.macs == 3 * 5 * 8 * 4
    assert cost.flops == 2 * cost.macs + bias * 3 * 5 * 4
    assert cost.layers[0].output_shape == (3, 5, 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(groups):
    conv = nn.Conv2d(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), groups=groups)
    cost = cost_of(conv, torch.zeros(2, 4, 10, 12))
    positions = 2 * 5 * 12
    assert cost.macs == positions * 8 * (4 // groups) * 15
    assert cost.flops == 2 * cost.macs + positions * 8


def test_transposed_convolution():
    conv = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False)
    cost = cost_of(conv, torch.zeros(2, 4, 5, 5))
    assert cost.macs == 2 * 25 * 4 * (6 // 2) * 9  # every input meets every tap once
    assert cost.flops == 2 * cost.macs


@pytest.mark.parametrize(
    ("layer", "shape", "flops"),
    [
        (nn.ReLU(), (2, 3, 8, 8), 384),
        (nn.GELU(), (2, 3, 8, 8), 384),
        (nn.Hardswish(), (2, 3, 8, 8), 384),
        (nn.ReLU(inplace=True), (2, 3, 8, 8), 384),
        (nn.Hardswish(inplace=True), (2, 3, 8, 8), 384),
        (nn.PReLU(), (2, 3, 8, 8), 384),
        (nn.BatchNorm2d(3), (2, 3, 8, 8), 384),
        (nn.LayerNorm(8), (2, 3, 8, 8), 384),
        (nn.GroupNorm(1, 3), (2, 3, 8, 8), 384),
        (nn.Softmax(-1), (2, 3, 8, 8), 384),
        (nn.AdaptiveAvgPool2d(1), (2, 3, 8, 8), 384),  # a reduction reads its input
        (nn.MaxPool2d(2), (2, 3, 8, 8), 384),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 8, 8), 4 * 384),
        (nn.Upsample(scale_factor=2), (2, 3, 8, 8), 0),
        (nn.Dropout(), (2, 3, 8, 8), 0),
        (nn.Flatten(), (2, 3, 8, 8), 0),
        (nn.ZeroPad2d(1), (2, 3, 8, 8), 0),
        (nn.PixelShuffle(1), (2, 3, 8, 8), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_activations_and_their_kin_are_flops_and_not_macs(layer, shape, flops):
    cost = cost_of(layer, torch.zeros(shape))
    assert (cost.macs, cost.flops, cost.uncounted) == (0, flops, ())


@pytest.mark.parametrize("heads_kv", [4, 2])
def test_attention_without_weights(heads_kv):
    query, key = torch.zeros(2, 4, 5, 8), torch.zeros(2, heads_kv, 7, 8)
    model = Lambda(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    cost = cost_of(model, (query, key))
    scores = 2 * 4 * 5 * 7
    assert cost.macs == 2 * scores * 8
    assert cost.flops == 2 * cost.macs + scores
    assert [layer.name for layer in cost.layers] == ["(model)"]


def test_attention_belongs_to_the_module_that_runs_it():
    cost = cost_of(nn.MultiheadAttention(16, 4, batch_first=True), (SEQUENCE,) * 3)
    projections, products = 2 * 7 * 16 * 16 * 4, 2 * 2 * 7 * 7 * 16
    assert row(cost, "(model)").macs == projections + products
    out_proj = row(cost, "out_proj")  # its weight is read by the parent, it never runs itself
    assert (out_proj.macs, out_proj.calls, out_proj.parameters) == (0, 0, 16 * 16 + 16)


def test_fused_lstm_counts_like_its_cells():
    fused, cell = nn.LSTM(6, 5), nn.LSTMCell(6, 5)
    whole, one = cost_of(fused, torch.zeros(3, 2, 6)), cost_of(cell, torch.zeros(2, 6))
    assert one.macs == 2 * 4 * 5 * (6 + 5)
    assert (whole.macs, whole.flops) == (3 * one.macs, 3 * one.flops)


def test_bilinear_and_matrix_vector():
    assert cost_of(nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4))).macs == 2 * 60
    product = Lambda(lambda a, x: (a @ x, torch.dot(x, x)))
    assert cost_of(product, (torch.zeros(6, 4), torch.zeros(4))).macs == 24 + 4


def test_a_product_in_place():
    cost = cost_of(Lambda(lambda a, b: a.clone().addmm_(a, b)), (torch.zeros(3, 3),) * 2)
    assert (cost.macs, cost.flops) == (27, 54 + 9)


@pytest.mark.parametrize(
    ("left", "right", "macs"),
    [
        ((6, 16), (2, 16, 8), 6 * 16 * 8),  # every row meets the matrix of its group
        ((2, 4, 16), (2, 16, 8), 2 * 4 * 16 * 8),
        ((2, 4, 16), (16, 24), 4 * 16 * 24),  # every column belongs to one group
        ((16, 32), (32, 8), 16 * 32 * 8),  # the inner axis is split over the groups
    ],
)
def test_grouped_product_of_experts(left, right, macs):
    func = torch.ops.aten._grouped_mm.default
    sides = torch.empty(left, device="meta"), torch.empty(right, device="meta")
    assert _cost(func, sides, {}, torch.empty(1, device="meta")) == (macs, 0)


def test_scripted_parts_count_under_their_caller():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Linear(4, 4))
    cost = cost_of(nn.Sequential(scripted, nn.Linear(4, 2)), torch.zeros(1, 4))
    assert (cost.macs, row(cost, "(model)").macs, row(cost, "0").parameters) == (24, 16, 20)


def test_an_operation_without_a_rule_is_named():
    cost = cost_of(Lambda(torch.linalg.inv), torch.eye(3))
    assert any("inv" in name for name in cost.uncounted)
    assert "not counted" in str(cost)


# --- published figures -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_networks_as_published(case):
    pytest.importorskip("transformers").logging.set_verbosity_error()
    cost, torch_flops = measure(case)
    assert cost.parameters == case.parameters
    assert 2 * cost.macs == torch_flops
    assert cost.uncounted == ()
    assert cost.latency is None  # nothing to time on the meta device
    if case.gmacs:
        assert cost.macs / 1e9 == pytest.approx(case.gmacs, abs=case.within)
    if "tied" in case.name:
        head = row(cost, "lm_head")
        assert (head.parameters, head.tied_to) == (0, "transformer.wte")
        assert head.macs == 128 * 768 * 50257


# --- memory ------------------------------------------------------------------------------


def test_peak_by_hand():
    cost = cost_of(Mlp(), torch.zeros(64, 100))
    hidden, output = 64 * 1000 * 4, 64 * 10 * 4
    assert cost.peak_activation_bytes == 2 * hidden  # relu holds its input and its output
    assert cost.activation_bound_bytes == 2 * hidden
    in_place = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(inplace=True), nn.Linear(1000, 10))
    assert cost_of(in_place, torch.zeros(64, 100)).peak_activation_bytes == hidden + output


def test_peak_above_the_bound_where_an_early_output_waits():
    def skip(x):
        early = x + 1
        late = early[:1] + 1  # one row
        late = late + 1
        return early.sum() + late.sum()

    cost = cost_of(Lambda(skip), torch.zeros(8, 25))
    assert cost.activation_bound_bytes == 800 + 100
    assert cost.peak_activation_bytes == 800 + 2 * 100


def test_views_parameters_and_the_example_are_not_activations():
    weight = nn.Parameter(torch.zeros(50, 50))
    model = Lambda(lambda x: x.view(-1)[:10])
    model.weight = weight
    assert cost_of(model, torch.zeros(50, 50)).peak_activation_bytes == 0
    model.function = lambda x: model.weight.t()
    assert cost_of(model, torch.zeros(50, 50)).peak_activation_bytes == 0


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Mlp(), torch.zeros(64, 100)),
        (nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64)), torch.zeros(9, 16)),
    ],
    ids=["mlp", "norm"],
)
def test_peak_is_what_the_allocator_saw(model, example):
    run(model, example)
    activities = [torch.profiler.ProfilerActivity.CPU]
    profiler = torch.profiler.profile(activities=activities, profile_memory=True)
    with profiler as recorded, torch.no_grad():
        model(example)
    events = recorded.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    assert cost_of(model, example).peak_activation_bytes == max(np.cumsum(changes))


@pytest.mark.parametrize("name", NETS)
def test_measured_peak_is_not_below_the_bound(name):
    build, example = NETS[name]
    cost = cost_of(build(), example)
    assert cost.peak_activation_bytes >= cost.activation_bound_bytes > 0


# --- rows, dtypes, sharing ---------------------------------------------------------------


def test_bytes_follow_every_dtype():
    model = nn.Sequential(nn.Linear(4, 4).half(), nn.BatchNorm1d(4), nn.Linear(4, 4).bfloat16())
    model.register_forward_pre_hook(lambda m, args: (args[0].half(),))
    model[1].register_forward_pre_hook(lambda m, args: (args[0].float(),))
    model[2].register_forward_pre_hook(lambda m, args: (args[0].bfloat16(),))
    cost = cost_of(model, torch.zeros(3, 4))
    assert cost.bytes == 2 * 20 + 4 * 8 + 2 * 20
    assert cost.buffer_bytes == 4 * 8 + 8


def test_a_model_without_parameters():
    cost = cost_of(Lambda(torch.relu), torch.zeros(3, 4))
    assert (cost.parameters, cost.bytes, cost.macs, cost.flops) == (0, 0, 0, 12)
    assert "(model)" in str(cost)


def test_a_module_called_twice_and_held_twice():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    cost = cost_of(model, torch.zeros(1, 4))
    assert (cost.parameters, cost.macs, row(cost, "0").calls) == (20, 32, 2)


def test_parameters_tied_by_memory_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    cost = cost_of(model, torch.zeros(1, 4))
    assert (cost.parameters, row(cost, "1").tied_to) == (16, "0")


def test_keyword_and_several_inputs():
    model = nn.Bilinear(3, 2, 5)
    inputs = {"input1": torch.zeros(4, 3), "input2": torch.zeros(4, 2)}
    cost = cost_of(model, inputs)
    assert cost == cost_of(model, inputs)
    assert cost.batch_size == 4
    assert cost.example_shapes == {"example['input1']": (4, 3), "example['input2']": (4, 2)}
    assert cost.macs == cost_of(model, tuple(inputs.values())).macs


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_counting_needs_no_data(kind):
    real = cost_of(ResNet20(), torch.zeros(2, 1, 28, 28))
    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        model, example = ResNet20(), torch.zeros(2, 1, 28, 28)
    cost = profile(model, example)
    assert cost.latency_ms is None
    for name in ("parameters", "bytes", "buffer_bytes", "macs", "flops"):
        assert getattr(cost, name) == getattr(real, name)
    # Kernels differ in by-products of a few bytes, such as the statistics of a batch norm.
    assert cost.peak_activation_bytes == pytest.approx(real.peak_activation_bytes, rel=1e-3)
    assert cost.activation_bound_bytes == pytest.approx(real.activation_bound_bytes, rel=1e-3)


def test_count_macs_agrees_with_the_profile():
    model, example = ResNet20(), torch.zeros(2, 1, 28, 28)
    macs, cost = count_macs(model, example), cost_of(model, example)
    assert macs[TOTAL] == cost.macs == 2 * 31_021_952
    assert {layer.name: macs[layer.name] for layer in cost.layers} == {
        layer.name: layer.macs for layer in cost.layers
    }
    assert set(macs) - {TOTAL, "(model)"} == {name for name, _ in model.named_modules() if name}


# --- nothing is left behind --------------------------------------------------------------


def state_of(model):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_always_called))
        for m in model.modules()
    ]
    return hooks, [m.training for m in model.modules()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_flags_hooks_and_random_state_stay(fails):
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), Lambda(F.dropout))
    model[0].eval()
    before = state_of(model)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises(InputError, match="the model refused the example: RuntimeError") as info:
            profile(model, torch.zeros(2, 5))
        assert "float32 (2, 5) on cpu" in str(info.value)
        assert isinstance(info.value.__cause__, RuntimeError)
    else:
        profile(model, torch.zeros(2, 4), repeats=2)
    assert state_of(model) == before
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


def test_a_model_that_catches_its_own_failure_keeps_the_count():
    class Fallback(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(9, 9), nn.Linear(4, 4)

        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return self.second(x + 1)

    cost = cost_of(Fallback(), torch.zeros(1, 4))
    assert (row(cost, "second").macs, row(cost, "(model)").flops) == (16, 4)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.full((2, 4), float("nan")), "holds NaN or Inf in 8 of 8"),
        (torch.full((2, 4), float("inf")), "holds NaN or Inf"),
        (torch.zeros(0, 4), "is empty"),
        ((), "holds no tensor"),
        ("text", "holds no tensor, given str"),
    ],
)
def test_bad_examples(example, message):
    with pytest.raises(InputError, match=message):
        profile(nn.Linear(4, 4), example)


# --- latency -----------------------------------------------------------------------------


def test_latency_says_how_it_was_measured():
    timed = measure_latency(nn.Linear(4, 4), torch.zeros(1, 4), repeats=3, warmup=0)
    assert (timed.runs, timed.warmup, timed.device) == (3, 0, "cpu")
    assert timed.threads == torch.get_num_threads()
    low, high = timed.quartiles_ms
    assert 0 < low <= timed.median_ms <= high


def test_latencies_are_taken_in_turns():
    order = []
    models = [Lambda(lambda x, i=i: order.append(i) or x) for i in range(3)]
    timed = compare_latency(models, torch.zeros(1), repeats=3, warmup=1)
    assert len(timed) == 3
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]


def test_latency_tells_a_large_model_from_a_small_one():
    small, large = nn.Linear(512, 8), nn.Linear(512, 8192)
    fast, slow = compare_latency([small, large], torch.zeros(64, 512), repeats=5)
    assert fast.median_ms < slow.median_ms


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}])
def test_senseless_repeats(options):
    with pytest.raises(InputError, match=r"repeats|warmup"):
        profile(nn.Linear(4, 4), torch.zeros(1, 4), **options)


# --- printing and JSON -------------------------------------------------------------------


def test_to_dict_is_json():
    cost = profile(ResNet20(), torch.zeros(1, 1, 28, 28), repeats=2, warmup=0)
    data = json.loads(json.dumps(cost.to_dict()))
    assert data["macs"] == cost.macs
    assert data["latency"]["runs"] == 2
    assert data["latency_ms"] == cost.latency_ms
    assert (cost.latency_runs, cost.warmup) == (2, 0)
    assert data["layers"][1]["name"] == "conv"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_fits_and_adds_up(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(cost_of(ResNet20(), torch.zeros(1, 1, 28, 28)))
    assert max(map(len, text.splitlines())) <= width
    assert "272.2 k" in text
    assert "272,186" in text
    assert ("output" in text) == (width == 120)


def test_alike_blocks_share_a_row_and_unlike_ones_do_not():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 5), nn.Linear(5, 4))
    names = [name for name, _ in merge_alike(cost_of(model, torch.zeros(1, 4)).layers)]
    assert names == ["0-2", "3", "4"]
    groups = merge_alike(cost_of(ResNet20(), torch.zeros(1, 1, 28, 28)).layers)
    assert sum(len(group) for _, group in groups) == len({l.name for _, g in groups for l in g})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.000 k"), (999_949, "999.9 k"), (999_960, "1.000 M")],
)
def test_amounts_have_four_digits(value, text):
    assert amount(value) == text


def test_importing_does_not_load_the_printer():
    code = "import sys, lowrank.compression.gauges.profile; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- examples ----------------------------------------------------------------------------


def test_flatten_finds_the_float_tensors():
    transformers = pytest.importorskip("transformers")
    output = transformers.modeling_outputs.BaseModelOutput(
        last_hidden_state=torch.zeros(1, 2), hidden_states=(torch.zeros(3), torch.zeros(4))
    )
    assert [t.numel() for t in flatten(output)] == [2, 3, 4]
    assert [t.numel() for t in flatten((torch.zeros(2), None, torch.zeros(3).long()))] == [2]


def test_batch_size():
    assert batch_size((None, torch.tensor(1.0), torch.zeros(6, 2))) == 6
    assert batch_size(torch.tensor(1.0)) == 1


def test_check_passes_what_is_good():
    check({"ids": torch.zeros(2, dtype=torch.long), "flag": True})
    check((np.float32(1), torch.zeros(1)))


def test_run_restores_mixed_flags_and_takes_no_gradients():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    flags = [random.Random(0).random() < 0.5 for _ in model.modules()]
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    assert not run(model, torch.ones(2, 3)).requires_grad
    assert [module.training for module in model.modules()] == flags
