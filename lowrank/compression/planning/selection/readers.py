"""What the readers of a unit lose without some of its channels, by their moments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.network.channels.units import Channels, ChannelUnit
from lowrank.compression.network.layers import LayerView
from lowrank.decompositions.metric import Metric, identity

WIDEST = 6144
"""Inputs beyond which their products with each other are not written out: each counts alone."""

_SILENT = 1e-9
"""Share of the mean square below which an input counts as one that never varies."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels.

    Args:
        view: the layer.
        columns: (inputs of a group times kernel,) the channel that each column of the unfolded
            weight reads; 0 for those that stay.
        metric: of its output's error; that of its weight where there is no data.
        share: what losing its whole output counts.
    """

    view: LayerView
    columns: Tensor
    metric: Metric
    share: float

    @cached_property
    def W(self) -> Tensor:
        """The unfolded weight (groups, o, d) in the metric's type."""
        return self.metric.cast(self.view.weight().flatten(2))

    @cached_property
    def at_rows(self) -> Tensor:
        """W R^T (groups, o, n), where the moment of its inputs is held by rows R."""
        assert self.metric.rows is not None
        return self.W @ self.metric.rows.mT

    @property
    def wide(self) -> bool:
        """Whether its inputs count one by one: there are too many, or nothing is known of them."""
        C, rows = self.metric.C, self.metric.rows
        return self.W.shape[-1] > WIDEST or (C.ndim == 2 and rows is None)

    @cached_property
    def whole(self) -> float:
        """The size of its output."""
        size = float(self.energies.sum()) if self.wide else self.metric.error(self.W)
        return max(size, torch.finfo(torch.float64).tiny)

    @cached_property
    def C(self) -> Tensor:
        """The second moment (groups, d, d) of its inputs; its diagonal (groups, d) if wide."""
        C, rows = self.metric.C, self.metric.rows
        if self.wide:
            return C if rows is None else C + rows.square().sum(1)
        return torch.diag_embed(C) if C.ndim == 2 else C

    @cached_property
    def energies(self) -> Tensor:
        """(d,), what each column by itself gives of the output's square, over all groups."""
        C = self.C if self.C.ndim == 2 else self.C.diagonal(dim1=-2, dim2=-1)
        return ((self.W * self.metric.weighs(self.W)).sum(1) * C).sum(0).double()

    @cached_property
    def products(self) -> Tensor:
        """(d, d), what each pair of columns gives of the output's square, over all groups."""
        return (self.W.mT @ self.metric.weighs(self.W) * self.C).sum(0)

    def stays(self, dropped: Collection[int]) -> Tensor:
        """(d,) whether a column stays."""
        gone = torch.tensor(sorted(dropped), dtype=torch.int64)
        return ~torch.isin(self.columns, gone)

    def reconstructed(self, stays: Tensor) -> Tensor:
        """The weight on what stays that comes closest to the whole output (He et al. 2017).

        W C[:, S] C[S, S]^-1, with zeros where columns went.
        """
        made = torch.zeros_like(self.W)
        if self.wide:
            made[:, :, stays] = self._by_positions(stays)
            return made
        inner = self.C[:, stays][:, :, stays]
        L = torch.linalg.cholesky(inner)
        right = (self.W @ self.C[:, :, stays]).mT
        made[:, :, stays] = torch.cholesky_solve(right, L).mT
        return made

    def _by_positions(self, stays: Tensor) -> Tensor:
        """`reconstructed` on what stays, with the moment D + R^T R never written out (Woodbury)."""
        W, D, R = self.W, self.metric.C[:, stays], self.metric.rows
        if R is None:
            return W[:, :, stays]
        S = R[:, :, stays]
        A = W[:, :, stays] * D[:, None] + self.at_rows @ S
        X = A / D[:, None]
        inner = S / D[:, None] @ S.mT
        eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
        less = torch.linalg.solve(inner + eye, S / D[:, None])  # (g, n, k)
        return X - (X @ S.mT) @ less

    def lost(self, ordered: Sequence[int], gone: Sequence[int]) -> NDArray[np.float64]:
        """Its share of the error without the first channels of a list, its weight reconstructed.

        With C = L L^T, what stays before what goes and what goes last before what goes first,
        W C[:, S] C[S, S]^-1 C[S, :] W^T is the product of the first columns of W L alone: one
        factorization tells the loss of every number of channels.

        Args:
            ordered: the channels, those that go first first.
            gone: how many of them go, each.

        Returns:
            As many figures.
        """
        place = {mark: k for k, mark in enumerate(ordered)}
        places = torch.tensor([place.get(m, len(ordered)) for m in self.columns.tolist()])
        if self.wide:
            sizes = self.energies
        else:
            turned = places.argsort(descending=True)
            L = torch.linalg.cholesky(self.C[:, turned][:, :, turned])
            B = self.W[:, :, turned] @ L
            sizes, places = (B * self.metric.weighs(B)).sum((0, 1)).double(), places[turned]
        by_channel = torch.zeros(len(ordered) + 1, dtype=torch.float64).index_add_(0, places, sizes)
        lost = np.concatenate([[0.0], by_channel[: len(ordered)].cumsum(0).clamp_min(0).numpy()])
        return self.share / self.whole * lost[list(gone)]


def reader_of(
    model: nn.Module,
    view: LayerView,
    channels: Channels,
    data: Statistics | None,
    exponent: float,
) -> Reader:
    """A layer as a reader.

    Args:
        model: the dense network.
        view: the layer.
        channels: those of the model.
        data: moments; without them the weights alone count.
        exponent: how layers are weighed, by gradients: a probe replaces a layer by one of low rank,
            which tells nothing of channels that go.
    """
    marks = torch.tensor(channels.sides[view.name, "in"])[: view.spec.weight_shape[2]]
    taps = view.weight().flatten(2).shape[2] // len(marks)
    columns = marks.repeat_interleave(taps)
    known = data is not None and data.reason(view.name) is None
    if not known or data is None:
        return Reader(view, columns, identity(view.weight()), 1.0)
    metric = metric_of(model, view.name, data)
    counts = data.importance(model, view.name)
    return Reader(view, columns, metric, counts.weight(exponent))


def metric_of(model: nn.Module, name: str, data: Statistics) -> Metric:
    """The metric of a layer with its moment written out."""
    metric = data.metric(model, name)
    if metric.C.shape[-1] > WIDEST:
        return metric
    metric = metric.formed
    C = torch.diag_embed(metric.C) if metric.C.ndim == 2 else metric.C
    return replace(metric, C=_without_silent(C, data, name))


def _without_silent(C: Tensor, data: Statistics, name: str) -> Tensor:
    """A moment in which inputs that never vary, as those of masked channels, count for nothing."""
    moments = data.calibrated.layers[name]
    size = moments.C if moments.C.ndim == 2 else moments.C.diagonal(dim1=-2, dim2=-1)
    if not data.centred(name):
        size = size + moments.mean.square()
    silent = size <= _SILENT * size.mean(-1, keepdim=True)  # (g, d)
    if not bool(silent.any()):
        return C
    floor = _SILENT * C.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    C = torch.where(silent[:, :, None] | silent[:, None, :], 0.0, C)
    return C + torch.diag_embed(torch.where(silent, floor, 0.0))


def gram(readers: Sequence[Reader], channels: Sequence[int]) -> Tensor:
    """(n, n) of what scaling each channel by itself gives and takes of all outputs.

    G_cd = sum over readers of share tr(G W_c C_cd W_d^T), so that the LASSO of He et al. 2017,
    sum ||Y - sum_c b_c W_c X_c||^2, is b^T G b - 2 b^T G 1 and a constant.

    Args:
        readers: of the unit.
        channels: its channels.
    """
    n = len(channels)
    place = {mark: k for k, mark in enumerate(channels)}
    total = torch.zeros(n, n, dtype=torch.float64)
    for reader in readers:
        index = torch.tensor([place.get(m, n) for m in reader.columns.tolist()])
        if reader.wide:
            alone = torch.zeros(n + 1, dtype=torch.float64).index_add_(0, index, reader.energies)
            total += reader.share / reader.whole * torch.diag(alone[:n])
            continue
        rows = torch.zeros(n + 1, len(index), dtype=torch.float64)
        rows.index_add_(0, index, reader.products.double())
        both = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        both.index_add_(1, index, rows)
        total += reader.share / reader.whole * both[:n, :n]
    return (total + total.T) / 2


def readers_of(unit: ChannelUnit, known: dict[str, Reader]) -> list[Reader]:
    """The readers of a unit."""
    return [known[name] for name in unit.readers]
