"""Penalties that training takes by proximal steps, so that what they press to zero is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowrank.compression.network.layers import is_transposed_linear, spec_of
from lowrank.compression.structure.history import factors_in
from lowrank.errors import InputError

Kind = Literal["slimming", "group", "nuclear"]
"""What is pressed to zero."""


@dataclass(frozen=True)
class Penalty:
    """A penalty on the weights beside the loss, taken by a proximal step after each step of it.

    "slimming": strength * sum |scale| over the scales of batch norms; "group": strength * sum over
    the outputs of each layer of sqrt(d) times the norm of their d weights; "nuclear": strength
    times the sum of the singular values of each product of two factors, so that ranks fall.

    Args:
        kind: which.
        strength: above 0.

    Raises:
        InputError: another kind, or a strength that is not above 0.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> penalty = Penalty("slimming", 0.5)
        >>> penalty.step(net, 1.0)
        >>> net[1].weight.tolist(), penalty.sparsity(net)
        ([0.5, 0.5, 0.5], 0.0)

    Source: Liu et al. 2017 (slimming); Wen et al. 2016 (groups); Recht, Fazel, Parrilo 2010
    (nuclear norm). They take subgradients; the proximal step is exact, and gives zeros.
    """

    kind: Kind
    strength: float

    def __post_init__(self) -> None:
        if self.kind not in ("slimming", "group", "nuclear"):
            problem = f"{self.kind!r} is unknown"
            raise InputError("penalty", problem, 'choose among "slimming", "group" and "nuclear"')
        if not 0 < self.strength < math.inf:
            problem = f"its strength is {self.strength!r}"
            raise InputError("penalty", problem, "pass a number above 0")

    def check(self, model: nn.Module) -> None:
        """Refuse a model that has nothing to press.

        Raises:
            InputError: it says what is missing.
        """
        if self._sizes(model).numel() == 0:
            needs = {
                "slimming": "scales of batch norms",
                "group": "layers",
                "nuclear": "layers of two factors",
            }
            problem = f"the model has no {needs[self.kind]} that are trained"
            raise InputError("penalty", problem, "choose another kind")

    def step(self, model: nn.Module, lr: float) -> None:
        """The proximal step, in place.

        Args:
            model: what is trained.
            lr: the learning rate of the step before it.
        """
        by = lr * self.strength
        with torch.no_grad():
            if self.kind == "slimming":
                for scale in _scales(model):
                    scale.copy_(scale.sign() * (scale.abs() - by).clamp_min(0))
            elif self.kind == "group":
                for rows in _rows(model):
                    norms = rows.flatten(1).norm(dim=1)
                    root = math.sqrt(rows[0].numel())
                    kept = (1 - by * root / norms.clamp_min(1e-30)).clamp_min(0)
                    rows.mul_(kept.reshape(-1, *[1] * (rows.ndim - 1)))
            else:
                for first, last in _pairs(model):
                    _shrink(first, last, by)

    def sparsity(self, model: nn.Module) -> float:
        """The share of scales, outputs or singular values that are zero."""
        sizes = self._sizes(model)
        return float((sizes == 0).double().mean()) if sizes.numel() else 0.0

    def _sizes(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            if self.kind == "slimming":
                found = [s.abs().flatten() for s in _scales(model)]
            elif self.kind == "group":
                found = [r.flatten(1).norm(dim=1) for r in _rows(model)]
            else:
                found = [a.flatten(1).norm(dim=1) for a, _ in _pairs(model)]
        return torch.cat([f.double().cpu() for f in found]) if found else torch.zeros(0)


def _scales(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine and module.weight.requires_grad:
            yield module.weight


def _rows(model: nn.Module) -> Iterator[Tensor]:
    """The weights of layers, their outputs first."""
    for module in model.modules():
        spec, weight = spec_of(module), module._parameters.get("weight")
        if spec is None or weight is None or not weight.requires_grad:
            continue
        if spec.kind in ("linear", "conv"):
            yield weight.T if is_transposed_linear(module) else weight


def _pairs(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer of two factors these as (rank, ...), views of the parameters."""
    for chain in factors_in(model):
        parts = list(chain.children()) if isinstance(chain, nn.Sequential) else []
        specs = [spec_of(part) for part in parts]
        known = [
            s for s in specs if s is not None and s.groups == 1 and s.kind in ("linear", "conv")
        ]
        if len(parts) != 2 or len(known) != 2:
            continue
        first, last = (part._parameters["weight"] for part in parts)
        if first is not None and last is not None and first.requires_grad and last.requires_grad:
            yield first, last.transpose(0, 1)


def _shrink(first: Tensor, last: Tensor, by: float) -> None:
    """Make the singular values of first^T last smaller by as much, balanced over both."""
    a, b = first.flatten(1).double(), last.flatten(1).double()  # (r, m), (r, n)
    q, r = torch.linalg.qr(a.T)
    p, t = torch.linalg.qr(b.T)
    u, s, vh = torch.linalg.svd(r @ t.T)
    root = (s - by).clamp_min(0).sqrt()[:, None]
    rank = len(root)
    for whole, made in ((first, root * (q @ u).T), (last, root * (vh @ p.T))):
        full = torch.zeros_like(whole, dtype=torch.float64).flatten(1)
        full[:rank] = made
        whole.copy_(full.reshape(whole.shape))
