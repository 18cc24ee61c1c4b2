"""Outputs that are probabilities: of one class among several, or each of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.calibration.calibrate import drawn_loss
from lowrank.compression.fitting.distillation import Objective, relative_mse, softened_kl
from lowrank.compression.gauges.quality import (
    compare_outputs,
    is_distribution,
    is_scores,
    logits,
    no_choice,
)
from lowrank.compression.network.batches import Batch


def _net(*last: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 9), *last).eval()


X = torch.randn(96, 20, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(31, 3), (4, 8), (2, 5, 6, 7)], ids=str)
def test_what_outputs_are_taken_for(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    axis = 1 if len(shape) > 3 else -1
    shares, chances = x.softmax(axis).to(dtype), x.sigmoid().to(dtype)
    assert is_distribution(shares)
    assert not is_distribution(chances)
    assert not is_distribution(x.to(dtype))
    assert is_scores(shares) == is_scores(x.to(dtype)) == (len(shape) == 2)
    assert not is_scores(chances)


def test_of_few_numbers_it_may_be_chance() -> None:
    inside = torch.full((1, 31), 0.9)
    assert is_scores(inside)
    assert not is_scores(torch.full((1, 32), 0.9))
    assert is_scores(torch.cat([inside, torch.tensor([[1.5]])], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_largest_number_of_an_embedding_is_no_answer(dtype: torch.dtype) -> None:
    unit = nn.functional.normalize(torch.randn(8, 9, dtype=torch.float64), dim=1)
    assert not is_scores(unit.to(dtype))
    assert is_scores(1.1 * unit.to(dtype))
    assert is_scores(unit[:3].to(dtype))  # of few numbers it may be chance
    assert is_scores(torch.eye(9, dtype=dtype))  # sure of its class


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Identity(), "length one"], ids=str)
def test_same_answers_are_told_of_choices_alone(last: nn.Module | str) -> None:
    end = _Normalized() if isinstance(last, str) else last
    _, report = lowrank.compress(_net(end), X[:1], params=0.7, methods="channel_svd", data=X)
    assert report.quality is not None
    told = isinstance(end, nn.Identity)
    assert (report.quality.agreement is not None) == ("same answer" in str(report)) == told


class _Detector(nn.Module):
    """Boxes first, and probabilities of two classes beside them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net, self.boxes, self.kind = _net(seed=seed), nn.Linear(9, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.net(x)
        return self.boxes(h) / 8, self.kind(h).softmax(-1)


def test_boxes_beside_probabilities_of_classes_are_no_scores() -> None:
    boxes, kind = torch.randn(32, 4), torch.randn(32, 2).softmax(-1)
    assert is_scores(boxes)
    assert not is_scores(boxes, others=[kind])
    assert is_scores(boxes, others=[torch.rand(32, 2), kind[:8], kind[:, None], torch.ones(32, 1)])
    assert is_scores(boxes, others=[boxes.softmax(-1)])  # its own probabilities
    assert is_scores(boxes.softmax(-1), others=[kind])
    maps, kinds = torch.randn(4, 4, 6, 6), torch.randn(4, 2, 6, 6).softmax(1)
    assert no_choice(maps, [kinds])
    assert not no_choice(maps, [kinds[..., 1:]])
    assert not no_choice(maps)


def test_a_detector_is_compared_and_trained_on_its_boxes() -> None:
    dense, small = _Detector(), _Detector(seed=1)
    found = compare_outputs(dense, small, None, X)
    assert found is not None
    assert found.agreement is None
    assert not found.scores
    target, batch = dense(X), Batch(X, None)
    loss = Objective(loss="kl").terms(small, dense, batch)["distillation"]
    torch.testing.assert_close(loss, relative_mse(small(X), target))
    free = drawn_loss(small(X), torch.Generator().manual_seed(0))
    (small.boxes.weight.grad,) = torch.autograd.grad(free, [small.boxes.weight])
    assert small.boxes.weight.grad.norm() > 0


class _Normalized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)


def test_logits_of_probabilities_have_their_softmax() -> None:
    p = torch.randn(16, 5).softmax(-1)
    torch.testing.assert_close(logits(p, is_distribution(p)).softmax(-1), p)
    x = torch.randn(16, 5)
    assert torch.equal(logits(x, is_distribution(x)), x)


def test_probabilities_are_compared_as_their_logits_are() -> None:
    dense, small = _net(), _net(seed=1)
    plain = compare_outputs(dense, small, None, X)
    shares = compare_outputs(
        nn.Sequential(dense, nn.Softmax(-1)), nn.Sequential(small, nn.Softmax(-1)), None, X
    )
    assert plain is not None
    assert shares is not None
    assert shares.scores
    assert shares.kl == pytest.approx(plain.kl, rel=1e-4)
    assert shares.agreement == plain.agreement


def test_a_softmax_at_the_end_changes_no_plan() -> None:
    def plan(net: nn.Module) -> lowrank.Plan:
        return lowrank.measure(net, X[:1], data=X).plan(params=0.6)

    plain, shares = plan(_net()), plan(_net(nn.Softmax(-1)))
    assert plain.replaced == shares.replaced


def test_gradients_of_probabilities_are_those_of_their_logits() -> None:
    def gradient(end: Callable[[Tensor], Tensor]) -> Tensor:
        x = X[:, :9].clone().requires_grad_()
        drawn_loss(end(x), torch.Generator().manual_seed(0)).backward()
        assert x.grad is not None
        return x.grad

    plain, shares = gradient(lambda x: x), gradient(lambda x: x.softmax(-1))
    torch.testing.assert_close(plain, shares, rtol=1e-4, atol=1e-5)


def test_sigmoids_are_judged_by_their_squared_error() -> None:
    net = _net(nn.Sigmoid())
    _, report = lowrank.compress(net, X[:1], data=X, params=0.5)
    quality = report.quality
    assert quality is not None
    assert not quality.scores
    assert quality.loss == quality.relative_error


@pytest.mark.parametrize("end", ["logits", "softmax", "sigmoid"])
def test_distillation_follows_what_the_teacher_gives(end: str) -> None:
    last = {"logits": [], "softmax": [nn.Softmax(-1)], "sigmoid": [nn.Sigmoid()]}[end]
    student, teacher = _net(*last, seed=1), _net(*last)
    with torch.no_grad():
        term = Objective(temperature=2.0).terms(student, teacher, Batch(X, None))["distillation"]
        if end == "sigmoid":
            expected = relative_mse([student(X)], [teacher(X)])
        else:
            expected = softened_kl(student[:3](X), teacher[:3](X), 2.0)
    torch.testing.assert_close(term, expected, rtol=1e-4, atol=1e-6)
