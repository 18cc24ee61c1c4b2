"""Models that run and cannot be differentiated, in whole or in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import Statistics, calibrate, scan
from lowrank.errors import InputError

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
FEW: Any = {"params": 0.6, "methods": "channel_svd"}


class Thrice(torch.autograd.Function):
    """A function whose author left the way back out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise TypeError("no way back")


class Net(nn.Module):
    """Two layers, something between them or behind them that stops gradients, and a third."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.a, self.b, self.c = nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "inference mode":
            with torch.inference_mode():
                return self.inside(x)
        return self.inside(x)

    def inside(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if self.how == "detached inside":
            h = h.detach()
        y = self.c(h)
        if self.how == "in place":
            y = y.sigmoid()
            y[:, :2] = y[:, :2] * 2
        elif self.how == "numpy":
            y = torch.as_tensor(y.numpy() * 2)
        elif self.how == "numpy beside":
            return y, float(y.max().numpy())  # type: ignore[return-value]
        elif self.how == "detached":
            y = y.detach()
        elif self.how == "rounded":
            y = (8 * y).round()
        elif self.how == "no way back":
            y = Thrice.apply(y)
        elif self.how == "no slope":
            y = y * 0 + (y - y.detach()).abs().sqrt()  # 0, and of slope NaN there
        return y


WHOLE = ["in place", "numpy", "numpy beside", "detached", "inference mode", "no way back"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", [*WHOLE, "rounded", "no slope", "detached inside"])
@pytest.mark.parametrize("weighting", ["probe", "gradients"])
def test_they_are_compressed_and_the_report_says_how(how: str, weighting: Any) -> None:
    settings = lowrank.Calibration(weighting=weighting)
    net = Net(how).eval()
    small, report = lowrank.compress(net, X[:1], data=X, calibration=settings, **FEW)
    assert report.replaced
    assert report.kept("params") <= 0.6
    assert [p.requires_grad for p in small.parameters()].count(False) == 0
    (note,) = [n for n in report.notes if "outputs are taken as they are" in n]
    if how == "detached inside":
        assert note.endswith("where no gradient of use arrives: a, b")
    else:
        assert "no gradients can be had" in note
    quality = report.quality
    assert quality is not None
    assert how == "no slope" or 0 < quality.relative_error < 1


@pytest.mark.parametrize("how", WHOLE)
def test_fits_are_those_that_outputs_alone_ask_for(how: str) -> None:
    net = Net(how).eval()
    plan = lowrank.measure(net, X[:1], methods="channel_svd").plan(params=0.6)
    fell, asked = (
        lowrank.apply(net, plan, data=X, calibration=lowrank.Calibration(weighting=w))[0]
        for w in ("gradients", "outputs")
    )
    for name, value in fell.state_dict().items():
        assert torch.equal(value, asked.state_dict()[name]), name


@pytest.mark.parametrize("how", WHOLE)
def test_refinement_leaves_what_it_cannot_train(how: str) -> None:
    _, report = lowrank.compress(Net(how).eval(), X[:1], data=X, refine=3, **FEW)
    (note,) = [n for n in report.notes if "refined" in n]
    if how != "detached":  # of which what is inside can be trained
        assert "no gradients can be had" in note


@pytest.mark.parametrize("how", ["in place", "numpy", "inference mode", "no way back"])
def test_finetune_says_what_cannot_be_trained(how: str) -> None:
    net = Net(how).eval()
    small, _ = lowrank.compress(net, X[:1], **FEW)
    with pytest.raises(InputError, match="model: no gradients can be had"):
        lowrank.finetune(small, teacher=net, data=X)


def test_finetune_says_what_training_mode_changes() -> None:
    class Aside(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.inside(x)
            return (y, y) if self.training else y

    net = Aside("").eval()
    small, _ = lowrank.compress(net, X[:1], **FEW)
    with pytest.raises(InputError, match=r"in training mode it is another.*training=False"):
        lowrank.finetune(small, teacher=net, data=X)
    lowrank.finetune(small, teacher=net, data=X, training=False)


def test_layers_without_a_gradient_weigh_on_the_scale_of_the_others() -> None:
    settings = lowrank.Calibration(weighting="gradients")
    curves = lowrank.measure(
        Net("detached inside").eval(), X[:1], data=X, calibration=settings, methods="channel_svd"
    )
    a, _, c = (curve.importance for curve in curves.curves)
    assert a is not None
    assert c is not None
    assert a.loss / a.outputs == pytest.approx(c.loss / c.outputs)  # type: ignore[operator]


def test_a_loss_that_is_at_fault_is_named_and_a_model_is_not_blamed_for_data() -> None:
    net = Net("").eval()
    found = scan(net, X[:1])
    with pytest.raises(InputError, match=r"^loss: it does not depend on any layer"):
        Statistics.of(net, found.units, [X], loss=lambda y: torch.zeros(()))
    with pytest.raises(InputError, match=r"^data: the model refused a batch"):
        Statistics.of(net, found.units, [X[:, :3]])
    with pytest.raises(InputError, match=r'no gradients can be had.*weighting="outputs"'):
        calibrate(Net("numpy").eval(), scan(Net("numpy"), X[:1]).views, [X], gradients=True)


def test_calls_are_made_under_inference_mode_and_on_models_made_there() -> None:
    with torch.inference_mode():
        made = Net("plain")
        x = X.clone()
        small, report = lowrank.compress(Net("plain"), x[:1], data=x, refine=2, **FEW)
        again, _ = lowrank.apply(Net("plain"), report.plan, example=x[:1], data=x)
        lowrank.finetune(small, teacher=made, data=x, epochs=1)
        assert lowrank.sweep(made, x[:1], x, keeps=(0.6,), methods="channel_svd").points
    assert not any(p.is_inference() for m in (small, again) for p in m.parameters())
    _, report = lowrank.compress(made, x[:1], data=x, **FEW)
    assert any("no gradients" in note for note in report.notes)
    assert all(p.requires_grad for p in made.parameters())


class PassedOn(nn.Module):
    """What a layer gives is passed on under inference mode by a module that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.nothing, self.b = nn.Linear(16, 48), nn.Dropout(0.1), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        with torch.inference_mode():
            return self.b(self.nothing(h))


def test_what_is_passed_on_under_inference_mode_is_fitted_in_sequence() -> None:
    outputs = lowrank.Calibration(weighting="outputs", fit="sequential")
    both: Any = {"a": lowrank.ChannelSVD(4), "b": lowrank.ChannelSVD(8)}
    _, report = lowrank.compress(
        PassedOn().eval(), X[:1], params=10**6, overrides=both, data=X, calibration=outputs
    )
    assert set(report.plan.replaced) == set(both)


def test_what_was_saved_is_loaded_into_a_model_made_for_inference(tmp_path: Path) -> None:
    small, _ = lowrank.compress(Net("plain"), X[:1], **FEW)
    lowrank.save(small, tmp_path / "small.safetensors")
    with torch.inference_mode():
        into = Net("plain")
    loaded = lowrank.load(tmp_path / "small.safetensors", into=into)
    with torch.no_grad():
        assert torch.equal(loaded(X), small(X))


def test_buffers_that_change_under_inference_mode_alone_come_back() -> None:
    class Own(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return super().forward(x)

    with torch.inference_mode():
        net = Own(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8)).eval()
    before = {k: v.clone() for k, v in net.named_buffers()}
    lowrank.compress(net, X, **FEW)
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers())


def test_buffers_that_cannot_change_are_left() -> None:
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 8))
    small, _ = lowrank.compress(net, X, data=X, **FEW)
    lowrank.finetune(small, teacher=net, data=X, epochs=1)
    with torch.inference_mode():
        hooked = nn.Sequential(nn.utils.spectral_norm(nn.Linear(16, 16)), nn.Linear(16, 16)).eval()
    lowrank.compress(hooked, X[:1], data=X, params=0.8, methods="channel_svd")
