"""Training under a penalty, what flows between layers, and several teachers."""

import copy

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import Penalty
from lowrank.compression.fitting.distillation import Objective
from lowrank.compression.network.batches import Batch
from lowrank.errors import InputError


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(),
        nn.Linear(96, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(0.05, 2.0, 8))
    return net


DATA = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def tuned(model, **more):
    records = []
    settings = {
        "data": DATA,
        "epochs": 2,
        "lr": 1e-2,
        "batch_size": 8,
        "loss": "mse",
        "callback": records.append,
    }
    settings |= {"teacher": network(), **more}
    return lowrank.finetune(model, **settings), records


@pytest.mark.parametrize(("kind", "strength"), [("slimming", 6.0), ("group", 6.0)])
def test_a_strong_penalty_gives_zeros_and_a_weak_one_none(kind, strength):
    _, records = tuned(network(), penalty=Penalty(kind, strength))
    assert records[-1].sparsity > 0.2
    _, records = tuned(network(), penalty=Penalty(kind, 1e-9))
    assert records[-1].sparsity == 0
    _, records = tuned(network())
    assert records[-1].sparsity is None


def test_ranks_fall_under_the_nuclear_norm():
    small, _ = lowrank.compress(network(), DATA[:1], macs=0.6, methods="channel_svd")
    before = copy.deepcopy(small)
    small, records = tuned(small, penalty=Penalty("nuclear", 30.0))
    assert records[-1].sparsity > 0
    same = Penalty("nuclear", 1e-12)
    kept = copy.deepcopy(before)
    same.step(kept, 1.0)  # balanced factors of the same products
    torch.testing.assert_close(kept(DATA), before(DATA), rtol=1e-4, atol=1e-4)


def test_scales_that_fell_to_zero_are_selected_first():
    model, _ = tuned(network(), penalty=Penalty("slimming", 6.0))
    dead = (model[1].weight == 0).sum()
    assert 0 < dead < 8
    rules = {"methods": "select", "select": "slimming", "only": ["0", "3"]}
    _, report = lowrank.compress(model, DATA[:1], params=0.97, data=DATA, **rules)
    kept = report.plan.narrowed["1"].inputs.places
    gone = set(range(8)) - set(kept)
    assert all(model[1].weight[k] == 0 for k in list(gone)[: int(dead)])


def test_what_flows_between_layers_is_a_term():
    _, records = tuned(network(), flows=[("0", "3")], flow_weight=2.0, hints=["0"])
    assert set(records[-1].terms) == {"distillation", "hints", "flows"}


def test_several_teachers_are_averaged():
    others, student = [network(), network()], network()
    with torch.no_grad():
        others[1][5].bias.add_(1.0)
    batch, objective = Batch(DATA, None), Objective("mse")
    apart = [objective.terms(student, t, batch)["distillation"] for t in others]
    both = objective.terms(student, others, batch)["distillation"]
    torch.testing.assert_close(both, torch.stack(apart).mean())
    _, records = tuned(student, teacher=others)
    assert records[-1].loss < records[0].loss


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"flows": ["0", "3"]}, "flows"),
        ({"flows": [("0", "nowhere")]}, "nowhere"),
        ({"flow_weight": -1}, "flow_weight"),
        ({"teacher": []}, "teacher"),
        ({"teacher": [1]}, "teacher"),
        ({"penalty": Penalty("nuclear", 1.0)}, "penalty"),
    ],
)
def test_bad_input_is_a_sentence(more, word):
    with pytest.raises(InputError, match=word):
        tuned(network(), **more)


@pytest.mark.parametrize(("kind", "strength"), [("magic", 1.0), ("group", 0), ("group", -1.0)])
def test_a_penalty_is_checked(kind, strength):
    with pytest.raises(InputError, match="penalty"):
        Penalty(kind, strength)
