"""Refinement without labels: blocks, end to end, and what examples held out say of it."""

import copy

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import (
    Batch,
    Trained,
    Trial,
    compare_outputs,
    distil,
    find_blocks,
    mixable,
    refine,
    train_blocks,
    try_out,
)
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.errors import InputError


@pytest.fixture(scope="module")
def compressed():
    """The bundled network at 0.4 of its MACs by its weights alone, and 96 pictures."""
    model, images = resnet20(), fashion_mnist("train")[0][:96]
    plan = lowrank.measure(model, images[:1], methods=["channel_svd", "spatial_svd"]).plan(macs=0.4)
    small, _ = lowrank.apply(model, plan)
    return model, small, [images[:64], images[64:]], list(plan.replaced)


def tensors_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def loss(dense, small, x):
    return compare_outputs(dense, small, None, [x]).loss


def test_blocks_of_the_bundled_network():
    model = resnet20()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    blocks = [str(b) for b in find_blocks(model, names)]
    assert blocks == ["conv", *(f"stages.{i}.{j}" for i in range(3) for j in range(3)), "fc"]
    assert [str(b) for b in find_blocks(model, ["stages.1.0.conv2"])] == ["stages.1.0"]


def test_refinement_helps_on_pictures_it_has_not_seen(compressed):
    """The whole of it, twice over, on the bundled network: it takes over five seconds."""
    dense, small, batches, layers = compressed
    unseen, held = fashion_mnist("test")[0][:100], fashion_mnist("train")[0][96:128]
    trial = try_out(copy.deepcopy(small), dense, batches[1:], [held], layers, steps=3)
    assert min(trial.means) < trial.means[0]
    trained = copy.deepcopy(small)
    found = refine(trained, dense, batches[1:], layers, trial=trial, steps=3)
    assert found.done == trial.best > 0
    assert loss(dense, trained, unseen) < loss(dense, small, unseen)
    assert "held out went from" in str(found)
    assert trained.training == small.training
    flags = [[p.requires_grad for p in m.parameters()] for m in (trained, small)]
    assert flags[0] == flags[1]


def test_refinement_is_deterministic(compressed):
    dense, small, batches, layers = compressed
    one, two = copy.deepcopy(small), copy.deepcopy(small)
    state = torch.get_rng_state()
    for model in (one, two):
        refine(model, dense, batches[1:], layers, trial=Trial(((3,), (2,), (1,))), steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


@pytest.mark.parametrize(("lost", "done"), [((1, 2, 3), 0), ((2, 1, 3), 1), ((3, 2, 1), 2)])
def test_a_trial_decides_how_far_it_goes(compressed, lost, done, monkeypatch):
    dense, small, batches, layers = compressed
    ends = []
    monkeypatch.setattr("lowrank.compression.fitting.refine.distil", lambda *_, **k: ends.append(k))
    trained = copy.deepcopy(small)
    found = refine(
        trained, dense, batches[1:], layers, trial=Trial(tuple((x,) for x in lost)), steps=1
    )
    assert found.done == done
    assert [k["steps"] for k in ends] == ([5] if done == 2 else [])
    assert bool(found.blocks) == bool(done)
    assert ("not refined" in str(found)) == (not done)


@pytest.mark.parametrize(
    ("after", "best"),
    [
        ((1, 3, 1, 3), 1),
        ((1.5, 2.6, 2, 2.1), 1),
        ((1.9, 2.2, 1.9, 2.2), 1),
        ((2.1, 2.1, 2.1, 2.1), 0),
    ],
    ids=["as good", "within the noise", "hardly worse", "worse for all"],
)
def test_only_harm_beyond_the_noise_stops_it(after, best):
    assert Trial(((2, 2, 2, 2), after)).best == best


def test_a_block_that_comes_no_closer_stays(compressed):
    dense, small, batches, layers = compressed
    trained = copy.deepcopy(small)
    before = tensors_of(trained)
    found = train_blocks(trained, dense, batches, layers, steps=1, lr=10.0)
    assert all(b.before == b.after and b.why is None for b in found.values())
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_steps_are_what_was_asked_for(compressed):
    dense, small, batches, layers = compressed
    errors = []
    for steps in (1, 8):
        found = train_blocks(copy.deepcopy(small), dense, batches[1:], layers, steps=steps)
        errors.append(sum(b.after for b in found.values()))
        assert sum(b.before for b in found.values()) > errors[-1]
    assert errors[1] < errors[0]


def test_few_examples_allow_no_trial():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8)).eval()
    x = torch.randn(5, 3, 6, 6)
    plan = lowrank.measure(dense, x[:1], methods=["channel_svd"]).plan(macs=0.5)
    for n, said in ((1, "too few examples"), (5, "held out")):
        _, report = lowrank.apply(dense, plan, data=x[:n], refine=1)
        assert any(said in note for note in report.notes)


def test_a_trial_without_gain_leaves_the_fits(monkeypatch):
    def harmful(small, *_, **__):
        for p in small.parameters():
            p.data.mul_(3)
        return {"0": Trained(0.5, 0.4)}

    monkeypatch.setattr("lowrank.compression.fitting.refine.train_blocks", harmful)
    monkeypatch.setattr("lowrank.compression.fitting.refine.distil", lambda *_, **__: None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    x = torch.randn(80, 32)
    plan = lowrank.measure(model, x[:1], data=x, methods=["channel_svd"]).plan(macs=0.4)
    plain, _ = lowrank.apply(model, plan, data=x)
    refined, report = lowrank.apply(model, plan, data=x, refine=1)
    assert any("not refined" in note for note in report.notes)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, refined.state_dict()[name]), name


def test_half_precision_is_not_trained_end_to_end(compressed):
    dense, small, batches, layers = compressed
    halves = [m.to(torch.bfloat16) for m in (copy.deepcopy(dense), copy.deepcopy(small))]
    x = [b[:16].bfloat16() for b in batches]
    trial = try_out(halves[1], halves[0], x[:1], x[1:], layers, steps=1)
    assert len(trial.means) == 2
    assert next(halves[1].parameters()).dtype == torch.bfloat16


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, ids):
        return self.body(self.table(ids).mean(1))


def test_tokens_are_refined_without_mixing():
    torch.manual_seed(0)
    model, ids = Tokens().eval(), torch.randint(0, 20, (64, 6))
    small, report = lowrank.compress(model, ids[:1], params=0.8, data=ids, refine=3)
    assert report.replaced
    assert any("refined" in note for note in report.notes)
    with pytest.raises(InputError, match="cannot be mixed"):
        lowrank.finetune(small, teacher=model, data=ids, mix=True)


def test_outputs_that_are_no_scores_are_distilled_too(compressed):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    small, x = copy.deepcopy(dense), torch.randn(32, 1, 8, 8)
    for p in small.parameters():
        p.data.mul_(0.8)
    before = loss(dense, small, x)
    distil(small, dense, [x], ["0", "2"], steps=50, lr=1e-2)
    assert loss(dense, small, x) < 0.5 * before


def test_mixing_stays_between_two_examples_and_drops_labels():
    x = {"a": torch.arange(6.0).reshape(6, 1), "b": (torch.arange(6.0).repeat(2, 1).T,)}
    torch.manual_seed(0)
    mixed = Batch(x, torch.arange(6)).mixed()
    assert mixed.labels is None
    a, b = mixed.inputs["a"], mixed.inputs["b"][0]
    assert torch.allclose(b, a.expand(6, 2))  # one partner and one share for all inputs
    assert a.min() >= 0
    assert a.max() <= 5
    assert not torch.equal(a, x["a"])
    assert mixable(x)
    assert not mixable({"ids": torch.zeros(6, dtype=torch.long)})
    assert not mixable((torch.zeros(6, 1), torch.zeros(3, 1)))


def test_mixing_is_a_choice_of_finetune(compressed):
    dense, small, batches, _ = compressed
    data = torch.cat(batches)
    models = [copy.deepcopy(small) for _ in range(2)]
    for model, mix in zip(models, (False, True), strict=True):
        lowrank.finetune(model, teacher=dense, data=data, epochs=1, mix=mix)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in models]
    assert not torch.equal(*weights)


class Keys:
    """What a language model keeps of the words before: it grows at every call."""

    def __init__(self):
        self.k = None

    def update(self, k):
        self.k = k if self.k is None else torch.cat([self.k, k], 1)
        return self.k


class Attending(nn.Module):
    """A block that fills its caller's cache, works in place on its input, or takes a generator."""

    def __init__(self, how):
        super().__init__()
        self.how, self.q, self.o = how, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x, cache):
        if self.how == "in place":
            x += 1
        seen = cache.update(x) if self.how == "cache" else x
        longest.append(seen.shape[1])
        return self.o(torch.relu(self.q(seen[:, -x.shape[1] :])))


class Speaking(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.table, self.block = how, nn.Embedding(20, 16), Attending(how)
        self.head = nn.Linear(16, 20)

    def forward(self, ids):
        cache = (k for k in range(3)) if self.how == "generator" else Keys()
        return self.head(self.block(self.table(ids), cache))


longest = []


@pytest.mark.parametrize("how", ["cache", "in place", "generator"])
def test_a_block_is_called_each_time_as_it_was_the_first(how):
    torch.manual_seed(0)
    longest.clear()
    model, ids = Speaking(how).eval(), torch.randint(0, 20, (32, 6))
    few = {"methods": "channel_svd", "only": "block.*"}
    small, _ = lowrank.compress(model, ids[:1], params=0.9, **few)
    found = train_blocks(small, model, [ids], ["block.q", "block.o"], steps=3)["block"]
    assert set(longest) == {6}
    if how == "generator":
        assert "a generator, which cannot be copied" in found.why
    else:
        assert found.after < found.before
    calls = longest.copy()
    _, report = lowrank.compress(model, ids[:1], params=0.9, data=ids, refine=2, **few)
    assert set(longest) == {6}
    assert len(longest) > len(calls)
    assert any("refined" in note for note in report.notes)


class Moody(nn.Module):
    """What training mode changes of a model."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.more = how, nn.Linear(16, 32), nn.Linear(32, 32)
        self.last, self.aside = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, x, targets=None):
        h = torch.relu(self.first(x))
        if not (self.training and self.how == "a layer less"):
            h = h + torch.relu(self.more(h))
        y = self.last(h)
        if self.training and self.how == "a loss":
            return {"loss": nn.functional.cross_entropy(y, targets)}
        return (y, self.aside(h)) if self.training and self.how == "two heads" else y


@pytest.mark.parametrize("how", ["a layer less", "a loss", "two heads"])
def test_models_are_refined_as_they_will_be_used(how):
    torch.manual_seed(0)
    model, x = Moody(how).eval(), torch.randn(64, 16)
    small, report = lowrank.compress(
        model, x[:1], params=0.6, data=x, refine=20, methods="channel_svd"
    )
    assert any("then trained end to end" in note for note in report.notes)
    assert not any(module.training for module in small.modules())
