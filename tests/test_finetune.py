"""Fine-tuning: what is learnt, what is left alone, and how it ends."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import (
    Batches,
    Objective,
    cosine,
    finetune,
    recalibrate_batchnorm,
    relative_mse,
    run,
    softened_kl,
)
from lowrank.errors import InputError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x):
        h = torch.relu(self.conv2(torch.relu(self.bn(self.conv(x)))))
        return self.fc(self.drop(h.mean((2, 3))))


IMAGES = torch.randn(192, 2, 6, 6, generator=torch.Generator().manual_seed(1))
HELD = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(2))


@functools.cache
def _pair():
    torch.manual_seed(0)
    teacher = Net()
    teacher.fc.weight.data.mul_(8)
    teacher.bn.momentum = None
    with torch.no_grad():  # running statistics that fit the weights, as training leaves them
        teacher(IMAGES)
    teacher.bn.momentum = 0.1
    teacher.eval()
    return teacher, lowrank.compress(teacher, IMAGES[:1], params=0.3)[0]


@pytest.fixture
def nets():
    """A teacher, and a fresh copy of the compressed model."""
    return copy.deepcopy(_pair())


def distance(model, teacher, x=HELD):
    return float(relative_mse([run(model, x)], [run(teacher, x)]))


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.detach().clone() for name, t in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def flags(model):
    return [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


# --- what is learnt -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", ["kl", "mse", lambda s, t: (s - t).abs().mean()], ids=["kl", "mse", "callable"]
)
def test_outputs_approach_the_teacher(nets, loss):
    teacher, small = nets
    before, records = distance(small, teacher), []
    out = finetune(
        small, teacher=teacher, data=IMAGES, epochs=6, loss=loss, lr=1e-2, batch_size=32,
        callback=records.append,
    )  # fmt: skip
    assert out is small
    assert distance(small, teacher) < 0.6 * before
    assert records[-1].loss < records[0].loss
    assert [r.steps for r in records] == [6] * 6


def test_the_default_rate_helps_at_once(nets):
    teacher, small = nets
    before = distance(small, teacher)
    finetune(small, teacher=teacher, data=IMAGES, batch_size=16)
    assert distance(small, teacher) < before


def test_labels_are_learnt(nets):
    teacher, small = nets
    labels = (run(teacher, IMAGES).argmax(1) + 1) % 6  # what the teacher would never say
    hits = lambda: float((run(small, IMAGES).argmax(1) == labels).float().mean())  # noqa: E731
    finetune(small, teacher=teacher, data=(IMAGES, labels), label_weight=0.0, epochs=1)
    assert hits() < 0.3
    finetune(small, teacher=teacher, data=(IMAGES, labels), label_weight=1.0, epochs=12, lr=1e-2)
    assert hits() > 0.5


def test_hints_bring_the_named_layer_closer(nets):
    teacher, small = nets
    inside = lambda net: run(nn.Sequential(net.conv, net.bn, nn.ReLU(), net.conv2), HELD)  # noqa: E731
    apart = lambda net: float(relative_mse([inside(net)], [inside(teacher)]))  # noqa: E731
    start, plain, hinted = apart(small), small, copy.deepcopy(small)
    common = {"teacher": teacher, "data": IMAGES, "epochs": 5, "lr": 1e-2, "batch_size": 32}
    finetune(plain, **common)
    records = []
    finetune(hinted, hints=["conv2"], hint_weight=10.0, callback=records.append, **common)
    assert apart(hinted) < min(0.8 * start, apart(plain))
    assert records[0].terms.keys() == {"distillation", "hints"}
    assert records[0].loss == pytest.approx(sum(records[0].terms.values()))
    assert not any(m._forward_hooks for net in nets for m in net.modules())


def test_kl_and_relative_mse_by_hand():
    a, b = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    p, q = (b / 2).softmax(1), (a / 2).softmax(1)
    assert softened_kl(a, b, 2.0).item() == pytest.approx(4 * float((p * (p / q).log()).sum()) / 3)
    pictures = [t.reshape(3, 5, 1, 1).expand(3, 5, 2, 2) for t in (a, b)]
    assert torch.isclose(softened_kl(*pictures, 2.0), softened_kl(a, b, 2.0))
    expected = ((a - b).square().sum() / b.square().sum()).item()
    assert relative_mse([a], [b]).item() == pytest.approx(expected)
    assert relative_mse([10 * a], [10 * b]).item() == pytest.approx(expected)


def test_label_weight_mixes_the_terms(nets):
    teacher, small = nets
    batch = Batches.of([(IMAGES[:8], torch.arange(8) % 6)], size=1).first()
    whole = [Objective(label_weight=w).terms(small, teacher, batch) for w in (0.0, 0.25, 1.0)]
    plain, mixed, only = ({k: v.item() for k, v in terms.items()} for terms in whole)
    assert plain.keys() == {"distillation"}
    assert mixed["distillation"] == pytest.approx(0.75 * plain["distillation"])
    assert mixed["labels"] == pytest.approx(0.25 * only["labels"])


# --- forms of data --------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(x)}


def test_dict_batches_with_labels_and_dict_outputs(nets):
    teacher, small = (Named(net) for net in nets)
    batch, records = {"x": IMAGES, "labels": torch.zeros(192, dtype=torch.long)}, []
    finetune(small, teacher=teacher, data=[batch], callback=records.append, epochs=1)
    assert records[0].terms.keys() == {"distillation", "labels"}
    assert "labels" in batch


class OwnLoss(Named):
    def forward(self, x, labels=None):
        out = super().forward(x)
        return out if labels is None else {"loss": out["logits"].sum() * 0 + 7.0, **out}


def test_a_model_that_takes_labels_computes_their_loss(nets):
    teacher, small = (OwnLoss(net) for net in nets)
    batch, records = {"x": IMAGES[:8], "labels": torch.zeros(8, dtype=torch.long)}, []
    finetune(small, teacher=teacher, data=[batch], callback=records.append, label_weight=0.5)
    assert records[0].terms["labels"] == pytest.approx(3.5)


def test_loaders_lists_and_half_labelled_batches(nets):
    teacher, small = nets
    dataset = torch.utils.data.TensorDataset(IMAGES)
    finetune(small, teacher=teacher, data=torch.utils.data.DataLoader(dataset, 48), epochs=1)
    mixed, records = [(IMAGES[:16], torch.zeros(16).long()), (IMAGES[16:32], None)], []
    finetune(small, teacher=teacher, data=mixed, val=[HELD], epochs=1, callback=records.append)
    trained = [r for r in records if r.terms]  # others tell of batch norms estimated anew
    assert trained[0].terms.keys() == {"distillation", "labels"}


def test_a_loader_without_length(nets):
    teacher, small = nets

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(IMAGES[:64])

    records, loader = [], torch.utils.data.DataLoader(Stream(), 16)
    finetune(small, teacher=teacher, data=loader, callback=records.append)
    assert [r.steps for r in records] == [4, 4]
    assert records[0].lr > records[1].lr > 0


def test_tensors_are_shuffled_anew_and_split_evenly():
    data = (torch.arange(65), torch.arange(65))
    batches = Batches.of(data, size=64, generator=torch.Generator().manual_seed(0))
    first, second = ([b.inputs for b in batches] for _ in range(2))
    assert [len(x) for x in first] == [33, 32]  # never a last batch of one
    assert torch.equal(torch.cat(first).sort().values, torch.arange(65))
    assert not torch.equal(first[0], second[0])


def test_float64_models_and_teachers_of_another_type(nets):
    teacher, small = nets
    small.double()
    finetune(small, teacher=teacher, data=IMAGES, epochs=1)
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert math.isfinite(distance(small.float(), teacher))


# --- bad input changes nothing --------------------------------------------------------------


BAD_DATA = {
    "no batch": [],
    "no row": torch.zeros(0, 2, 6, 6),
    "no row, labelled": (torch.zeros(0, 2, 6, 6), torch.zeros(0)),
    "an empty loader": torch.utils.data.DataLoader([], 4),
    "an iterator": iter([IMAGES]),
    "fewer labels": (IMAGES, torch.zeros(3)),
    "labels out of range": [(IMAGES, torch.full((192,), 99))],
    "three tensors": [(IMAGES, IMAGES, IMAGES)],
    "a channel less": [IMAGES[:, :1]],
    "not a number": [torch.full((4, 2, 6, 6), float("nan"))],
    "a file's name": "file.npz",
    "None": None,
    "a number": 42,
}


@pytest.mark.parametrize("data", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_is_refused_before_anything_changes(nets, data):
    teacher, small = nets
    before, was = state(small), flags(small)
    with pytest.raises(InputError) as caught:
        finetune(small, teacher=teacher, data=data)
    assert "\n" not in str(caught.value)
    assert same(state(small), before)
    assert flags(small) == was


BAD_ARGUMENTS = [
    {"epochs": 0}, {"temperature": 0.0}, {"label_weight": 1.5}, {"hint_weight": -1.0},
    {"max_norm": 0.0}, {"lr": -1.0}, {"batch_size": 0}, {"patience": 1}, {"loss": "cosine"},
    {"amp": torch.float32}, {"hints": ["nowhere"]}, {"hints": "bn"}, {"val": 1.0},
    {"val": []}, {"val": 0.5, "data": [IMAGES]}, {"only_factors": True, "dense": True},
    {"loss": lambda s, t: s - t}, {"loss": lambda s, t: 1.0}, {"hints": ["unused"]},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ARGUMENTS, ids=lambda bad: " ".join(bad))
def test_bad_arguments_are_refused_before_anything_changes(nets, bad):
    teacher, small = nets
    if "dense" in bad:
        small = copy.deepcopy(teacher)
    for net in (teacher, small):
        net.unused = nn.Linear(2, 2)
    before, was = state(small), flags(small)
    given = {name: value for name, value in bad.items() if name != "dense"}
    with pytest.raises(InputError):
        finetune(small, **{"teacher": teacher, "data": IMAGES, **given})
    assert same(state(small), before)
    assert flags(small) == was
    assert not any(m._forward_hooks for net in nets for m in net.modules())


def test_models_that_cannot_be_trained_are_refused(nets):
    teacher, small = nets
    with pytest.raises(InputError, match="shares"):
        finetune(small, teacher=small, data=IMAGES)
    other = copy.deepcopy(teacher)
    other.fc = nn.Linear(16, 5)
    with pytest.raises(InputError, match=r"\(64, 6\) against the teacher's \(64, 5\)"):
        finetune(small, teacher=other, data=IMAGES)
    with pytest.raises(InputError, match=r"bfloat16 .* amp=torch.bfloat16"):
        finetune(copy.deepcopy(small).bfloat16(), teacher=teacher, data=IMAGES)
    with pytest.raises(InputError, match="no parameter"):
        finetune(small.requires_grad_(False), teacher=teacher, data=IMAGES)


# --- how it ends ----------------------------------------------------------------------------


def test_the_best_epoch_is_kept_and_patience_stops(nets):
    teacher, small = nets
    scores = iter([5.0, 3.0, 4.0, math.nan, 1.0])
    seen, records = [], []

    def val(model):
        seen.append(state(model))
        return next(scores)

    finetune(
        small, teacher=teacher, data=IMAGES, val=val, epochs=9, patience=2, lr=1e-2,
        recalibrate=False, callback=records.append,
    )  # fmt: skip
    assert [r.index for r in records] == [0, 1, 2, 3]
    assert [r.best for r in records] == [True, True, False, False]
    assert same(state(small), seen[1])
    assert not same(seen[1], seen[3])


def test_weights_that_only_get_worse_are_given_back(nets):
    teacher, small = nets
    before = state(small)
    finetune(small, teacher=teacher, data=IMAGES, val=[HELD], epochs=1, lr=3.0, recalibrate=False)
    assert same(state(small), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_keeps_the_best_weights_and_all_flags(nets, error):
    teacher, small = nets
    small.conv2.requires_grad_(False)
    small.drop.train()
    was, after_first = flags(small), []

    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for i in range(3):
                if self.passes == 4 and i == 2:  # a first pass tries the model, two train it
                    raise error("stop")
                yield IMAGES[32 * i : 32 * i + 32]

    def note(record):
        after_first.append(state(small))

    with pytest.raises(error):
        finetune(small, teacher=teacher, data=Loader(), epochs=5, lr=1e-3, callback=note)
    assert len(after_first) == 2
    assert same(state(small), after_first[-1])
    assert flags(small) == was
    assert all(p.grad is None for p in small.parameters())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(nets):
    teacher, small = nets
    states, calls = [], []

    def loss(s, t):
        calls.append(1)
        return (s - t).square().mean() * (math.nan if len(calls) > 12 else 1.0)

    with pytest.raises(InputError, match=r"loss is nan at epoch 2, step 3.*lower lr"):
        finetune(
            small, teacher=teacher, data=IMAGES, loss=loss, epochs=4,
            callback=lambda r: states.append(state(small)),
        )  # fmt: skip
    assert same(state(small), states[0])


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(nets):
    teacher, small = nets
    before = state(small)
    with pytest.raises(InputError, match="gradient is nan"):  # d sqrt(0) = inf, times zero
        finetune(small, teacher=teacher, data=IMAGES, loss=lambda s, t: (s * 0).sqrt().sum())
    assert same(state(small), before)


# --- how it trains --------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [1e-3, None])
def test_clipping_bounds_the_step(nets, max_norm):
    teacher, small = nets
    before = torch.cat([p.detach().flatten() for p in small.parameters()])
    falling = iter(range(9, 0, -1))
    finetune(
        small, teacher=teacher, data=[IMAGES], epochs=1, lr=1.0, max_norm=max_norm,
        val=lambda model: next(falling), recalibrate=False,
        optimizer=torch.optim.SGD, schedule=lambda t: 1.0,
    )  # fmt: skip
    after = torch.cat([p.detach().flatten() for p in small.parameters()])
    moved = float((after - before).norm())  # one step of size lr * gradient
    assert moved == pytest.approx(1e-3, rel=1e-2) if max_norm else moved > 1e-2


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_and_leaves_float32(nets, amp):
    teacher, small = nets
    before, seen = distance(small, teacher), set()
    small.conv2.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    finetune(small, teacher=teacher, data=IMAGES, epochs=4, lr=1e-2, batch_size=32, amp=amp)
    assert amp in seen
    assert distance(small, teacher) < 0.9 * before
    assert {p.dtype for p in small.parameters()} == {torch.float32}


def test_the_teacher_is_untouched(nets):
    teacher, small = nets
    teacher.train()
    teacher.drop.eval()
    teacher.fc.requires_grad_(False)
    before, was = state(teacher), flags(teacher)
    finetune(small, teacher=teacher, data=IMAGES, val=0.2, epochs=1)
    assert same(state(teacher), before)
    assert flags(teacher) == was
    assert all(p.grad is None for p in teacher.parameters())


def test_one_seed_one_answer_and_the_callers_random_state_stays(nets):
    teacher, small = nets
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(runs))
        random_state = torch.get_rng_state()
        net = copy.deepcopy(small)
        finetune(net, teacher=teacher, data=IMAGES, seed=seed, epochs=1)
        runs.append(state(net))
        assert torch.equal(torch.get_rng_state(), random_state)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_only_factors_trains_the_replaced_layers(nets):
    teacher, small = nets
    replaced = lowrank.compression.structure.history.history(small)[0].plan.replaced
    assert replaced
    assert len(replaced) < 3
    before, was = state(small), flags(small)
    finetune(small, teacher=teacher, data=IMAGES, only_factors=True, epochs=1)
    after = state(small)
    for name, _ in small.named_parameters():
        inside = any(name.startswith(f"{layer}.") for layer in replaced)
        assert torch.equal(before[name], after[name]) != inside, name
    assert flags(small) == was


def test_frozen_parts_stay_frozen(nets):
    teacher, small = nets
    small.train()
    small.bn.eval().requires_grad_(False)
    small.bn.running_mean.add_(2.0)  # so wrong that recalibration would pay
    before = state(small)
    finetune(small, teacher=teacher, data=IMAGES, val=0.2, epochs=1)
    after = state(small)
    frozen = [name for name in before if name.startswith("bn.")]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not same(before, after)


def test_any_optimizer(nets):
    teacher, small = nets
    for optimizer in (
        functools.partial(torch.optim.SGD, momentum=0.9),
        torch.optim.LBFGS,
        torch.optim.RMSprop,
    ):
        net = copy.deepcopy(small)
        before = distance(net, teacher)
        finetune(net, teacher=teacher, data=IMAGES, optimizer=optimizer, lr=1e-2, epochs=1)
        assert distance(net, teacher) < before
    own = torch.optim.SGD(small.parameters(), lr=0.05)
    before = distance(small, teacher)
    finetune(small, teacher=teacher, data=IMAGES, optimizer=own)
    assert distance(small, teacher) < before
    assert own.param_groups[0]["lr"] == 0.05
    assert "initial_lr" not in own.param_groups[0]
    with pytest.raises(InputError, match="lr"):
        finetune(small, teacher=teacher, data=IMAGES, optimizer=own, lr=0.1)
    with pytest.raises(InputError, match="none of the parameters"):
        finetune(copy.deepcopy(small), teacher=teacher, data=IMAGES, optimizer=own)


def test_the_rate_follows_the_schedule(nets):
    teacher, small = nets
    records = []
    finetune(
        small, teacher=teacher, data=IMAGES, lr=1e-3, epochs=4, schedule=lambda t: 1 - t,
        callback=records.append,
    )  # fmt: skip
    expected = [1e-3 * (1 - (3 * e + 2) / 12) for e in range(4)]  # last of three steps
    assert [r.lr for r in records] == pytest.approx(expected)
    assert cosine(0.05) > cosine(0.0) > 0
    assert cosine(1.0) == pytest.approx(0.0)


def test_progress_is_silent_unless_asked_for(nets, capsys):
    teacher, small = nets
    calls = []
    finetune(small, teacher=teacher, data=IMAGES, progress=lambda *call: calls.append(call))
    assert calls[0] == ("epoch 1", 1, 6)
    assert calls[-1] == ("epoch 2", 6, 6)
    assert capsys.readouterr() == ("", "")
    finetune(small, teacher=teacher, data=IMAGES, epochs=1, progress=True)
    assert "epoch 1" in capsys.readouterr().out


# --- batch norm -----------------------------------------------------------------------------


def test_stale_statistics_are_mended(nets):
    teacher, _ = nets
    stale = copy.deepcopy(teacher)
    stale.bn.running_mean.add_(1.0)
    stale.bn.running_var.mul_(4.0)
    was = flags(stale)
    assert recalibrate_batchnorm(stale, teacher=teacher, data=[IMAGES], val=[HELD])
    torch.testing.assert_close(stale.bn.running_mean, teacher.bn.running_mean)
    torch.testing.assert_close(stale.bn.running_var, teacher.bn.running_var)
    assert stale.bn.momentum == teacher.bn.momentum
    assert flags(stale) == was


def test_statistics_that_would_harm_are_refused(nets):
    teacher, small = nets
    before = state(small)
    odd = IMAGES[:4] * 30 + 5
    assert not recalibrate_batchnorm(small, teacher=teacher, data=[odd], val=[HELD])
    assert same(state(small), before)
    with pytest.raises(InputError, match="no batch"):
        recalibrate_batchnorm(small, teacher=teacher, data=[], val=[HELD])
    broken = [HELD, torch.zeros(2, 5, 6, 6)]
    with pytest.raises(InputError):
        recalibrate_batchnorm(small, teacher=teacher, data=broken, val=[HELD])
    assert same(state(small), before)
    assert not recalibrate_batchnorm(nn.ReLU(), teacher=nn.ReLU(), data=[HELD], val=[HELD])


def _narrow(norm: nn.Module, conv: nn.Module) -> nn.Module:
    """The norm sees one place of each example."""
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 8)).eval()


NARROW = {
    "linear": (lambda: _narrow(nn.BatchNorm1d(16), nn.Linear(9, 16)), (9,)),
    "signal": (lambda: _narrow(nn.BatchNorm1d(16), nn.Conv1d(3, 16, 3)), (3, 3)),
    "picture": (lambda: _narrow(nn.BatchNorm2d(16), nn.Conv2d(3, 16, 3)), (3, 3, 3)),
    "volume": (lambda: _narrow(nn.BatchNorm3d(16), nn.Conv3d(3, 16, 3)), (3, 3, 3, 3)),
}


@pytest.mark.parametrize("kind", NARROW)
def test_batches_of_one_leave_the_statistics_and_say_so(kind):
    torch.manual_seed(0)
    net, shape = NARROW[kind][0](), NARROW[kind][1]
    x = torch.randn(16, *shape)
    compress = functools.partial(lowrank.compress, net, x[:1], params=0.8, methods="channel_svd")
    small, report = compress(data=[*x.split(1)])
    (note,) = [n for n in report.notes if "batch-norm" in n]
    assert note.startswith("batch-norm statistics stay as they were in 1: every batch")
    assert same(state(small[1]), state(net[1]))

    for data in ([*x[:9].split(1), *x[9:].split(5)], [x]):
        notes = compress(data=data)[1].notes
        assert not any("stay as they were" in n for n in notes)


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("order", [[1, 1, 5, 7], [5, 1, 7, 1], [5, 7]])
def test_statistics_are_those_of_the_batches_that_can_tell_a_variance(kind, order):
    torch.manual_seed(0)
    net, shape = NARROW[kind][0](), NARROW[kind][1]
    batches = [torch.randn(n, *shape) for n in order]
    several = [net[0](b).flatten(2) if b.ndim > 2 else net[0](b) for b in batches if len(b) > 1]
    with torch.no_grad():
        mean = sum(y.reshape(len(y), 16).mean(0) for y in several) / 2
        var = sum(y.reshape(len(y), 16).var(0) for y in several) / 2
    scores = iter([1.0, 0.0])
    assert recalibrate_batchnorm(net, teacher=net, data=batches, val=lambda _: next(scores))
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, var)
    assert int(net[1].num_batches_tracked) == 2
    assert net[1].momentum == 0.1
    assert not net[1].training
    assert not net[1]._forward_pre_hooks


def test_one_norm_of_several_keeps_its_statistics():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    net = nn.Sequential(wide, nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).eval()
    scores = iter([1.0, 0.0])
    ones = [*IMAGES[:8].split(1)]
    assert recalibrate_batchnorm(net, teacher=net, data=ones, val=lambda _: next(scores))
    assert int(net[0][1].num_batches_tracked) == 8
    assert not net[1].running_mean.any()
    assert net[0][1].running_mean.any()


def test_finetune_recalibrates_where_val_improves(nets):
    teacher, small = nets
    small.bn.running_mean.add_(2.0)
    records = []
    finetune(small, teacher=teacher, data=IMAGES, val=[HELD], epochs=1, callback=records.append)
    assert records[1].recalibrated
    assert records[1].index == 0
    assert records[1].val < records[0].val
    assert float((small.bn.running_mean - teacher.bn.running_mean).abs().max()) < 0.5


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_uses_batches_only_in_a_model_in_training_mode(nets, training):
    teacher, small = nets
    small.train(training)
    seen = set()
    small.bn.register_forward_hook(lambda m, i, out: seen.add(m.training))
    before = small.bn.running_mean.clone()
    finetune(small, teacher=teacher, data=IMAGES, epochs=1, callback=lambda r: None)
    assert seen == ({True, False} if training else {False})
    assert torch.equal(small.bn.running_mean, before) != training


def test_the_model_as_it_came_is_one_of_those_that_are_compared(nets):
    teacher, small = nets
    small.eval()
    before, records = state(small), []
    finetune(small, teacher=teacher, data=IMAGES, lr=3.0, epochs=2, callback=records.append)
    assert same(state(small), before)
    assert not any(record.best for record in records)
    finetune(small, teacher=teacher, data=IMAGES, lr=1e-3, epochs=2, callback=records.append)
    assert records[-1].best
    assert not same(state(small), before)


class Energy(nn.Module):
    """One number for a whole batch, or one for each example."""

    def __init__(self, whole):
        super().__init__()
        torch.manual_seed(0)
        self.whole, self.net = whole, nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x):
        y = self.net(x)
        return y.square().sum() if self.whole else y


@pytest.mark.parametrize("whole", [True, False])
def test_outputs_without_classes_are_learnt(whole):
    teacher, x = Energy(whole).eval(), torch.randn(64, 8)
    small, _ = lowrank.compress(teacher, x[:4], params=0.6, methods="channel_svd")
    seen = []
    finetune(small, teacher=teacher, data=x, epochs=20, lr=1e-2, callback=seen.append)
    assert seen[-1].loss < 0.8 * seen[0].loss


def test_gradients_that_end_after_the_first_step_are_refused_in_words() -> None:
    class Stale(nn.Module):
        """Works in place on what the backward pass needs, from its third training pass on."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.n = nn.Linear(6, 6), nn.Linear(6, 2), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            out = self.last(y)
            self.n += self.training
            if self.n > 2:
                y.mul_(2)
            return out

    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 2))
    data = [torch.randn(4, 6) for _ in range(6)]
    with pytest.raises(InputError, match=r"step \d: no gradients can be had: one of the variables"):
        lowrank.finetune(Stale(), teacher=teacher, data=data, epochs=1, loss="mse", val=None)
