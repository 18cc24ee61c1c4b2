"""An optimizer for factors: Adam in the eigenbases of the gradients' second moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank.errors import InputError
from lowrank.linalg import wide

Params: TypeAlias = Any
"""Parameters, or groups of them, as `torch.optim.Optimizer` takes."""


class SOAP(Optimizer):
    """Adam, run in the eigenbases of each weight's gradient moments.

    The factors of a layer multiply each other, so a step along one of them changes the layer
    by the size of the others: the loss is steep in some mixtures of rows and columns and flat
    in most. Those mixtures are the eigenvectors of L = E[G G^T] and R = E[G^T G], with G the
    gradient as a matrix (out, rest); Adam scales each of them by itself. Biases and other
    vectors are given plain Adam.

    Args:
        params: as for any optimizer of torch.
        lr: learning rate, above 0.
        betas: decay of the mean gradient and of the second moments, each in [0, 1).
        eps: added to the denominator.
        every: steps between two updates of the eigenbases.
        largest: sides longer than this keep their own basis; a basis of n rows costs
            2 n^2 numbers of memory, and n^3 operations at each update.

    Raises:
        InputError: arguments out of range.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(4, 3))
        >>> optimizer = SOAP([w], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> bool(w.detach().abs().max() < 0.2)
        True

    Source: Vyas et al. 2025, SOAP: Improving and Stabilizing Shampoo using Adam.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        *,
        eps: float = 1e-8,
        every: int = 10,
        largest: int = 256,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "every": every, "largest": largest}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own.

        Raises:
            InputError: settings out of range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the first after construction only learns the eigenbases of matrices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.numel():
                    self._move(p, p.grad, group)
        return loss

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if p.is_complex() or gradient.is_sparse:
            kind = "complex" if p.is_complex() else "sparse"
            raise InputError("params", f"a gradient is {kind}", "use another optimizer for it")
        shape = (len(p), -1) if p.ndim > 1 else (-1, 1)
        G = wide(gradient).reshape(shape)
        state, sides = self.state[p], {"L": G, "R": G.T} if p.ndim > 1 else {}
        if not state:
            state.update(step=0, mean=torch.zeros_like(G), square=torch.zeros_like(G))
            for side, rows in sides.items():
                if len(rows) <= group["largest"]:
                    state[side] = rows @ rows.T
                    state[f"basis {side}"] = torch.linalg.eigh(state[side])[1]
            if "L" in state or "R" in state:
                return
        beta, beta2 = group["betas"]
        state["step"] += 1
        t = state["step"]
        state["mean"].lerp_(G, 1 - beta)
        state["square"].lerp_(_into(state, G).square(), 1 - beta2)
        mean = _into(state, state["mean"]) / (1 - beta**t)
        root = (state["square"] / (1 - beta2**t)).sqrt()
        floor = group["eps"]
        if "L" in state or "R" in state:  # mixtures may be of rounding errors alone
            floor = floor + root.max() * torch.finfo(root.dtype).eps ** 0.75
        step = _out_of(state, mean / (root + floor)).reshape(p.shape)
        p.add_(step.to(p.dtype), alpha=-group["lr"])
        for side, rows in sides.items():
            if side in state:
                state[side].lerp_(rows @ rows.T, 1 - beta2)
                if t % group["every"] == 0:
                    _turn(state, side)


def _check(group: dict[str, Any]) -> None:
    lr, betas, eps, every = (group[name] for name in ("lr", "betas", "eps", "every"))
    if not 0 < lr < math.inf:
        raise InputError("lr", f"{lr!r} is no learning rate", "give one above 0")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise InputError("betas", f"{betas!r} are no decays", "give two in [0, 1)")
    if not 0 <= eps < math.inf:
        raise InputError("eps", f"{eps!r} is no small number", "give 1e-8, say")
    if not isinstance(every, int) or every < 1:
        raise InputError("every", f"{every!r} is no number of steps", "give one from 1 up")


def _into(state: dict[str, Any], X: Tensor) -> Tensor:
    """X in the eigenbases."""
    if "L" in state:
        X = state["basis L"].T @ X
    return X @ state["basis R"] if "R" in state else X


def _out_of(state: dict[str, Any], X: Tensor) -> Tensor:
    """Back from the eigenbases."""
    if "L" in state:
        X = state["basis L"] @ X
    return X @ state["basis R"].T if "R" in state else X


def _turn(state: dict[str, Any], side: str) -> None:
    """One step of subspace iteration, which follows the eigenbasis; its squares go along."""
    moment, Q = state[side], state[f"basis {side}"]
    order = (Q * (moment @ Q)).sum(0).argsort(descending=True)
    state["square"] = state["square"].index_select(0 if side == "L" else 1, order)
    state[f"basis {side}"] = torch.linalg.qr(moment @ Q[:, order])[0]
