"""The optimizer of factors: against Adam, against its definition, and in fine-tuning."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import SOAP
from lowrank.errors import InputError


def _steps(optimizer: torch.optim.Optimizer, loss: object, n: int) -> float:
    value = torch.tensor(0.0)
    for _ in range(n):
        optimizer.zero_grad()
        value = loss()  # type: ignore[operator]
        value.backward()
        optimizer.step()
    return float(value.detach())


def test_vectors_are_given_plain_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.arange(1.0, 6.0)) for _ in range(2))
    scale = torch.tensor([1.0, 10.0, 0.1, 3.0, 100.0])
    for p, make in ((ours, SOAP), (theirs, torch.optim.Adam)):
        optimizer = make([p], lr=0.03, betas=(0.9, 0.99))
        _steps(optimizer, lambda p=p: (scale * p.square()).sum(), 25)
    torch.testing.assert_close(ours, theirs)


def test_sides_that_are_too_long_are_given_plain_adam() -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    _steps(SOAP([ours], lr=0.01, largest=4), lambda: ours.pow(4).sum(), 20)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    _steps(adam, lambda: theirs.pow(4).sum(), 20)
    torch.testing.assert_close(ours, theirs)


def test_turned_problems_take_the_same_course() -> None:
    """The point of the eigenbases: a turned problem is turned back, which Adam's is not."""
    torch.manual_seed(0)
    d = torch.logspace(0, -3, 8, dtype=torch.float64)
    target = torch.randn(8, 6, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    H = Q @ torch.diag(d) @ Q.T

    def course(make: type[torch.optim.Optimizer]) -> float:
        p = nn.Parameter(torch.zeros_like(target))

        def loss() -> Tensor:
            off = p - target
            return (off * (H @ off)).sum()

        return _steps(make([p], lr=0.02, betas=(0.9, 0.99)), loss, 300)  # type: ignore[call-arg]

    assert course(SOAP) < 0.1 * course(torch.optim.Adam)


def test_state_can_be_saved() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, 4, 1, 1))
    optimizer = SOAP([p], lr=0.01)
    _steps(optimizer, lambda: p.pow(4).sum(), 13)
    other = nn.Parameter(p.detach().clone())
    resumed = SOAP([other], lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _steps(optimizer, lambda: p.pow(4).sum(), 12)
    _steps(resumed, lambda: other.pow(4).sum(), 12)
    assert torch.equal(p, other)


def test_gradients_of_nothing_do_no_harm() -> None:
    p, q = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    empty = nn.Parameter(torch.ones(0, 3))
    optimizer = SOAP([p, q, empty], lr=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        ((0 * p).sum() + q.square().sum() + empty.sum()).backward()
        optimizer.step()
    assert torch.equal(p, torch.ones(3, 2))
    assert q.isfinite().all()
    assert float(q.detach().square().sum()) < 6


def test_finetune_takes_it() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x, records = torch.randn(256, 32), []
    small, _ = lowrank.compress(net, x[:1], params=0.6)
    lowrank.finetune(
        small, teacher=net, data=x, val=0.1, loss="mse", epochs=5, lr=3e-3,
        optimizer=SOAP, callback=records.append,
    )  # fmt: skip
    assert records[-1].val < 0.8 * records[0].val


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"every": 0}])
def test_bad_arguments(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        SOAP([nn.Parameter(torch.ones(2, 2))], **bad)  # type: ignore[arg-type]


def test_mixtures_that_are_rounding_alone_do_not_move() -> None:
    """Gradients of rank 1 in float32: the loss falls from the first step, as in float64."""
    losses = {}
    for dtype in (torch.float32, torch.float64):
        w = nn.Parameter(torch.ones(4, 3, dtype=dtype))
        optimizer, found = SOAP([w], lr=0.1), []
        for _ in range(6):
            optimizer.zero_grad()
            loss = w.square().sum()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        losses[dtype] = found
    assert losses[torch.float32] == pytest.approx(losses[torch.float64], rel=1e-2)
    assert losses[torch.float32] == sorted(losses[torch.float32], reverse=True)


def test_half_precision_and_complex_parameters() -> None:
    w = nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    optimizer = SOAP([w], lr=0.1)
    for _ in range(25):
        optimizer.zero_grad()
        w.float().square().sum().backward()
        optimizer.step()
    assert float(w.detach().abs().max()) < 0.5
    z = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    (z * z.conj()).real.sum().backward()
    with pytest.raises(InputError, match="a gradient is complex"):
        SOAP([z]).step()


@pytest.mark.parametrize(
    "setting",
    [{"lr": -1.0}, {"lr": float("inf")}, {"eps": -1.0}, {"betas": (0.9,)}, {"every": 1.5}],
)
def test_settings_of_a_group_are_checked_too(setting: dict[str, Any]) -> None:
    w = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(InputError, match=f"^{next(iter(setting))}: "):
        SOAP([{"params": [w], **setting}], lr=0.1)
