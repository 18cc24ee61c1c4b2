"""Outputs whose length depends on the data: what can be compared is, and the rest is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import compare_outputs, run
from lowrank.errors import InputError

X = torch.randn(96, 16, generator=torch.Generator().manual_seed(0))
FEW: Any = {"params": 0.6, "methods": "channel_svd"}


class Finder(nn.Module):
    """Answers above a threshold only; beside them, if asked for, all scores."""

    def __init__(self, threshold: float, *, beside: bool = False, whole: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.threshold, self.beside, self.whole = threshold, beside, whole
        self.body = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.BatchNorm1d(48))
        self.head = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.head(self.body(x))
        keep = y.amax(1) > self.threshold
        found = {"scores": y[keep].amax(1), "labels": y[keep].argmax(1)}
        if self.whole:
            return {"labels": y.argmax(1)}
        return {"all": y, **found} if self.beside else found


CASES = [
    ({}, "some"),
    ({"data": X}, "some"),
    ({"data": list(X.split(16)), "refine": 2}, "some"),
    ({}, "none"),
    ({"data": X, "refine": 2}, "none"),
    ({"data": X, "calibration": lowrank.Calibration(weighting="gradients")}, "none"),
    ({}, "numbers"),
    ({"data": X}, "numbers"),
]


@pytest.mark.parametrize(("more", "what"), CASES)
def test_nothing_that_can_be_compared_is_said(more: Any, what: str) -> None:
    net = Finder(0.55 if what == "some" else 50, whole=what == "numbers").eval()
    found = len(net(X)["labels"])
    assert {"some": 0 < found < 96, "none": found == 0, "numbers": found == 96}[what]
    _, report = lowrank.compress(net, X, **FEW, **more)
    assert report.kept("params") <= 0.6  # type: ignore[operator]
    if report.quality is None:
        assert any("its outputs cannot be compared" in note for note in report.notes)
    else:
        assert 0 < report.quality.unmatched < 1
        assert any("are not compared" in note for note in report.notes)
    if "data" in more and what != "some":
        assert any("no gradients can be had" in note for note in report.notes)


def test_outputs_of_one_shape_are_compared_beside_others() -> None:
    net = Finder(0.55, beside=True).eval()
    small, report = lowrank.compress(net, X, data=X, val=[X], **FEW)
    quality = report.quality
    assert quality is not None
    assert quality == compare_outputs(net, small, X)
    wanted, given = run(net, X)["all"], run(small, X)["all"]
    assert quality.relative_error == pytest.approx(float((wanted - given).norm() / wanted.norm()))
    assert quality.unmatched == 0.5
    assert quality.loss == quality.kl + 0.5


def test_a_loss_of_the_user_is_compared_where_nothing_else_can_be() -> None:
    net, asked = Finder(0.55).eval(), []

    def loss(output: dict[str, Tensor]) -> Tensor:
        asked.append(len(output["scores"]))
        return output["scores"].sum()

    small, report = lowrank.compress(
        net, X, data=X, val=[X], calibration=lowrank.Calibration(loss=loss), **FEW
    )
    assert len(set(asked)) > 1
    quality = report.quality
    assert quality is not None
    a, b = (float(run(m, X)["scores"].sum()) for m in (net, small))
    assert quality.relative_error == pytest.approx(abs(a - b) / abs(a), rel=1e-4)
    assert not any("cannot be compared" in note for note in report.notes)


def test_another_model_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"cannot be compared: \(96, 7\) in place of \(96, 8\)"):
        compare_outputs(nn.Linear(16, 8), nn.Linear(16, 7), X)
