"""Ways to say in which order the channels of a unit go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.compression.network.channels.units import Channels, ChannelUnit
from lowrank.compression.planning.selection import Score
from lowrank.compression.planning.selection.readers import Reader, gram
from lowrank.sensing.problems.other import KSparse
from lowrank.sensing.solvers.homotopy import lasso_path
from lowrank.sensing.solvers.omp import OMP


def order(
    score: Score,
    model: nn.Module,
    unit: ChannelUnit,
    channels: Channels,
    readers: Sequence[Reader],
    *,
    seed: int,
) -> list[int]:
    """The channels of a unit, those that go first first.

    Args:
        score: "lasso", by the homotopy path of He et al. 2017, growing penalty; "omp", greedily
            by orthogonal matching pursuit on the same moments; "backward", one after another that
            whose loss the others make up for best; "nystrom", by ridge leverage; "norm", of the
            makers' weights (SSL, 2016); "slimming", by the scales of batch norms (Liu et al.
            2017); "gradient", by the readers' products weighed by the classifier's gradient (after
            DCP, 2018); "random".
        model: the network.
        unit: the unit.
        channels: of the model.
        readers: of the unit, with their moments.
        seed: of what is drawn.
    """
    n = len(unit.channels)
    if score == "random" or not readers:
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return [unit.channels[k] for k in drawn.tolist()]
    if score == "backward":
        return _backward(unit, readers)
    if score in ("lasso", "omp"):
        found = _BY_SOLVER[score](*_design(readers, unit.channels))
    elif score == "slimming":
        found = _of_sides(model, unit, channels, _scales)
    elif score == "norm":
        found = _of_sides(model, unit, channels, _norms)
    elif score == "nystrom":
        found = _leverage(readers, unit.channels)
    else:
        found = gram(readers, unit.channels).diagonal().numpy()
    return [unit.channels[k] for k in np.argsort(found, kind="stable")]


def _design(
    readers: Sequence[Reader], channels: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A and y with ||y - A b||^2 what is lost of the outputs when channels are scaled by b."""
    G = gram(readers, channels).numpy()
    size = np.sqrt(np.maximum(np.diag(G), 1e-12 * max(np.diag(G).max(), 1e-300)))
    values, vectors = np.linalg.eigh(G / size / size[:, None])
    A = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T * size
    return A, A.sum(1)


def _by_lasso(A: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """The penalty up to which each channel is in the solution of the LASSO."""
    return lasso_path(A, y)


def _by_omp(A: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """How early orthogonal matching pursuit takes each channel."""
    n = A.shape[1]
    seen: list[NDArray[Any]] = []

    def see(step: int, x: NDArray[Any]) -> bool:
        seen.append(x != 0)
        return False

    OMP().solve(KSparse(A, y, n), callback=see)
    return np.sum(seen, axis=0, dtype=float) + 1e-9 * np.square(A).sum(0)


_BY_SOLVER: Mapping[str, Callable[..., NDArray[np.float64]]] = {"lasso": _by_lasso, "omp": _by_omp}


def _of_sides(
    model: nn.Module,
    unit: ChannelUnit,
    channels: Channels,
    values: Callable[[nn.Module], Tensor | None],
) -> NDArray[np.float64]:
    """Squares of what modules hold of each channel, summed over these modules."""
    place = {mark: k for k, mark in enumerate(unit.channels)}
    total = np.zeros(len(place))
    for (name, side), marks in channels.sides.items():
        module = model.get_submodule(name)
        held = values(module)
        if held is None or (side == "out") != (held.ndim > 1):
            continue
        squares = held.detach().double().flatten(1).square().sum(1) if held.ndim > 1 else held**2
        for mark, value in zip(marks, squares.tolist(), strict=False):
            if mark in place:
                total[place[mark]] += value
    return total if total.any() else _of_sides(model, unit, channels, _norms)


def _scales(module: nn.Module) -> Tensor | None:
    """The scales of a norm."""
    weight = getattr(module, "weight", None)
    return (
        weight.detach().double() if hasattr(module, "num_features") and weight is not None else None
    )


def _norms(module: nn.Module) -> Tensor | None:
    """The weight of a layer with its outputs first."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim < 2:
        return None
    return (
        weight
        if not hasattr(module, "output_padding") or not module.transposed
        else weight.transpose(0, 1)
    )


def _leverage(readers: Sequence[Reader], channels: Sequence[int]) -> NDArray[np.float64]:
    """Ridge leverage of each channel, the diagonal of C (C + lam)^-1 (Musco and Musco 2017)."""
    place = {mark: k for k, mark in enumerate(channels)}
    total = np.zeros(len(place))
    for reader in readers:
        C = reader.C.double().mean(0)
        if reader.wide:
            lever = C / (C + 0.1 * C.mean())
        else:
            lam = 0.1 * C.diagonal().mean()
            lever = torch.linalg.solve(C + lam * torch.eye(len(C), dtype=C.dtype), C).diagonal()
        for mark, value in zip(reader.columns.tolist(), lever.tolist(), strict=True):
            if mark in place:
                total[place[mark]] += reader.share * value
    return total


def _backward(unit: ChannelUnit, readers: Sequence[Reader]) -> list[int]:
    """One channel after another goes that costs least, the rest reconstructed.

    With H = C^-1 of what is left, losing the columns c costs tr(G W_c (H_cc)^-1 W_c^T), and the
    rest makes up by W - W_c H_cc^-1 H_c (Hassibi and Stork 1993, block by block).
    """
    states = [_Alone(reader) if reader.wide else _Left.of(reader) for reader in readers]
    left, gone = list(unit.channels), []
    while len(left) > 1:
        costs = sum(state.costs(left) for state in states)
        assert isinstance(costs, Tensor)
        mark = left[int(costs.argmin())]
        for state in states:
            state.drop(mark)
        left.remove(mark)
        gone.append(mark)
    return gone + left


class _Alone:
    """A wide reader, whose columns count one by one."""

    def __init__(self, reader: Reader) -> None:
        scale = reader.share / reader.whole
        found = torch.zeros(int(reader.columns.max()) + 1, dtype=torch.float64)
        self.sizes = scale * found.index_add_(0, reader.columns, reader.energies)

    def costs(self, marks: Sequence[int]) -> Tensor:
        """What losing each channel costs."""
        zero = torch.zeros((), dtype=torch.float64)
        return torch.stack([self.sizes[m] if m < len(self.sizes) else zero for m in marks])

    def drop(self, mark: int) -> None:
        """Nothing changes for the others."""


class _Left:
    """A reader on what is left of its columns."""

    def __init__(self, reader: Reader, H: Tensor) -> None:
        self.reader, self.H, self.W = reader, H, reader.W.double().clone()
        self.columns = {
            int(m): torch.nonzero(reader.columns == m).flatten() for m in reader.columns.unique()
        }

    @classmethod
    def of(cls, reader: Reader) -> _Left:
        return cls(reader, torch.linalg.inv(reader.C.double()))

    def costs(self, marks: Sequence[int]) -> Tensor:
        """What losing each channel costs."""
        scale = self.reader.share / self.reader.whole
        weighed = self.reader.metric.weighs(self.W.to(self.reader.W.dtype)).double()
        found = []
        for mark in marks:
            c = self.columns.get(mark)
            if c is None:
                found.append(torch.zeros((), dtype=torch.float64))
                continue
            inner = self.H[:, c][:, :, c]
            solved = torch.linalg.solve(inner, self.W[:, :, c].mT)
            found.append((weighed[:, :, c].mT * solved).sum() * scale)
        return torch.stack(found)

    def drop(self, mark: int) -> None:
        """Go on without a channel."""
        c = self.columns.pop(mark, None)
        if c is None:
            return
        inner, rows = self.H[:, c][:, :, c], self.H[:, c]
        solved = torch.linalg.solve(inner, rows)  # (g, k, d)
        self.W -= self.W[:, :, c] @ solved
        self.H -= rows.mT @ solved
        self.W[:, :, c] = 0.0
