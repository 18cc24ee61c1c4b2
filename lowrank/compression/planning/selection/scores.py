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


_ONE_BY_ONE, _SPARE = 32, 4
"""Of so many channels one at a time is weighed against all; of more a share that is the less, and
chosen among so many times as many."""


def _backward(unit: ChannelUnit, readers: Sequence[Reader]) -> list[int]:
    """One channel after another goes that costs least, the rest reconstructed.

    With H = C^-1 of what is left, losing the columns c costs tr(G W_c (H_cc)^-1 W_c^T), and the
    rest makes up by W - W_c H_cc^-1 H_c (Hassibi and Stork 1993, block by block). Of many channels
    a few go before all are looked at again, one after another among the cheapest.
    """
    states = [_Alone(reader) if reader.wide else _Left.of(reader) for reader in readers]
    left, gone = list(unit.channels), []
    while len(left) > 1:
        together = max(1, len(left) // _ONE_BY_ONE)
        costs = sum(state.costs(left) for state in states)
        assert isinstance(costs, Tensor)
        if together == 1:
            going = [left[int(costs.argmin())]]
        else:
            cheapest = costs.argsort(stable=True)[: _SPARE * together].tolist()
            going = _cheapest(states, [left[k] for k in cheapest], together)
        for state in states:
            state.drop(going)
        dropped = set(going)
        left = [mark for mark in left if mark not in dropped]
        gone += going
    return gone + left


def _cheapest(states: Sequence[_Alone | _Left], marks: list[int], n: int) -> list[int]:
    """n of these channels that go one after another, each when it costs least of them."""
    parts = [state.part(marks) for state in states]
    going: list[int] = []
    for _ in range(n):
        costs = sum(part.costs(marks) for part in parts)
        assert isinstance(costs, Tensor)
        going.append(marks[int(costs.argmin())])
        for part in parts:
            part.drop(going[-1:])
        marks = [mark for mark in marks if mark != going[-1]]
    return going


_SMALLER = 1.2
"""Times as many columns as are left from which on what is left is moved together."""


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

    def drop(self, marks: Sequence[int]) -> None:
        """Nothing changes for the others."""

    def part(self, marks: Sequence[int]) -> _Alone:
        """The same on these channels."""
        return self


class _Left:
    """A reader on what is left of its columns.

    Args:
        reader: what it is.
        H: the inverse of the moment of the columns that are left (groups, d, d).
        W: the weight that makes up for those that went (groups, o, d).
        columns: channel -> its places in d.
    """

    def __init__(self, reader: Reader, H: Tensor, W: Tensor, columns: dict[int, Tensor]) -> None:
        self.reader, self.H, self.W, self.columns = reader, H, W, columns

    @classmethod
    def of(cls, reader: Reader) -> _Left:
        """With all of its columns."""
        columns = {
            int(m): torch.nonzero(reader.columns == m).flatten() for m in reader.columns.unique()
        }
        return cls(reader, torch.linalg.inv(reader.C.double()), reader.W.double().clone(), columns)

    def costs(self, marks: Sequence[int]) -> Tensor:
        """What losing each channel costs."""
        scale = self.reader.share / self.reader.whole
        weighed = self.reader.metric.weighs(self.W.to(self.reader.W.dtype)).double()
        alike: dict[int, list[int]] = {}  # channels of as many columns
        for k, mark in enumerate(marks):
            if mark in self.columns:
                alike.setdefault(len(self.columns[mark]), []).append(k)
        found = torch.zeros(len(marks), dtype=torch.float64)
        for some in alike.values():
            c = torch.stack([self.columns[marks[k]] for k in some])  # (n, k)
            inner = self.H[:, c[:, :, None], c[:, None, :]]
            W, GW = (M[:, :, c].movedim(1, 3) for M in (self.W, weighed))  # (g, n, k, o)
            found[some] = scale * (GW * torch.linalg.solve(inner, W)).sum((0, 2, 3))
        return found

    def drop(self, marks: Sequence[int]) -> None:
        """Go on without channels."""
        gone = [self.columns.pop(mark) for mark in marks if mark in self.columns]
        if not gone:
            return
        c = torch.cat(gone)
        rows = self.H[:, c]
        solved = torch.linalg.solve(rows[:, :, c], rows)  # (g, k, d)
        self.W.baddbmm_(self.W[:, :, c], solved, alpha=-1)
        self.H.baddbmm_(rows.mT, solved, alpha=-1)
        self.W[:, :, c] = 0.0
        if self.H.shape[-1] > _SMALLER * sum(map(len, self.columns.values())):
            self._close_up()

    def _close_up(self) -> None:
        """Hold what is left alone, side by side."""
        small = self.part([*self.columns])
        self.H, self.W, self.columns = small.H, small.W, small.columns

    def part(self, marks: Sequence[int]) -> _Left:
        """The same on these channels, of its own: how they cost each other is all in their rows."""
        columns, at = {}, 0
        taken = [(m, self.columns[m]) for m in marks if m in self.columns]
        for mark, c in taken:
            columns[mark] = torch.arange(at, at + len(c))
            at += len(c)
        c = torch.cat([c for _, c in taken]) if taken else torch.zeros(0, dtype=torch.long)
        H = self.H[:, c[:, None], c[None, :]]
        return _Left(self.reader, H, self.W[:, :, c], columns)
