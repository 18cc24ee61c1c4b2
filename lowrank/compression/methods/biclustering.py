"""Bi-clustering: clusters of input and of output channels, a low-rank map for each pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from lowrank.compression.methods.group_svd import GroupSVD
from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import nested_curve
from lowrank.compression.methods.shared.folding import weighted
from lowrank.compression.methods.shared.joint_search import fit_from
from lowrank.compression.methods.shared.search import fit_factors
from lowrank.compression.network.own_stages import SelectStage
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.decompositions.metric import Metric, identity, whitened

_CLUSTERS = ((2, 2), (4, 2), (2, 4), (4, 4))
"""Numbers of clusters (in, out) that are tried."""


_MOST = 2048
"""Channels up to which it is planned with: assigning more of them to places takes minutes."""


_Orders: TypeAlias = "dict[tuple[str, int], Tensor]"


_N_STEPS = 8
"""Alternations between clusters and their directions."""


_N_POWERS = 10
"""Steps of the power method towards a cluster's direction; the next alternation goes on."""


@dataclass(frozen=True)
class BiClustering(Method):
    """Input channels in `in_clusters`, filters in `out_clusters`, each pair with its own map.

    The input channels are put in order, a grouped k x k convolution maps each cluster to
    `rank` channels for every cluster of filters, a grouped 1 x 1 convolution makes each of
    these from its own, and the outputs are put back in order. Clusters are equally large. For
    a linear layer both are block-diagonal, with a permutation in between: a Monarch matrix.

    Costs rank * (out_clusters * in * kernel + in_clusters * out).

    Args:
        in_clusters: divides the input channels.
        out_clusters: divides the output channels.
        rank: channels in between for each pair of clusters.

    Source: Denton, Zaremba, Bruna, LeCun, Fergus 2014, section 3.3. Clusters hold channels
        that lie along one direction, up to sign; the maps of a cluster of filters are fitted
        together, as in `GroupSVD`, where the paper takes them pair by pair. Monarch matrices:
        Dao et al. 2022.
    """

    name: ClassVar[str] = "biclustering"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    in_clusters: int
    out_clusters: int
    rank: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if spec.kind == "embedding":
            return "the rows of a table are words, not channels"
        if spec.groups > 1:
            return depthwise(spec) or "the channels of a grouped layer are in clusters already"
        if not _splits(spec):
            return "its channels do not split into equal clusters"
        return None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[BiClustering]:
        a, b = _splits(spec)[0]
        return [cls(a, b, _full(spec, a, b))]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[BiClustering, float]]:
        metric = identity(weight) if metric is None else metric.formed
        if max(spec.in_channels, spec.out_channels) > _MOST:
            return
        known: _Orders = {}
        for a, b in _splits(spec):
            top = worthwhile(cls(a, b, 1), spec, _full(spec, a, b))
            ranks = rank_grid(top, round_to=round_to, limit=12)
            if not ranks:
                continue
            widest = cls(a, b, ranks[-1])
            parts = widest._clustered(spec, metric.cast(weight), metric, known)
            engine = GroupSVD(a, ranks[-1])
            (start,) = engine.starts(parts.spec, parts.weight, parts.metric, seed=seed)
            features = engine.features(parts.spec, start)
            within = weighted(parts.metric, parts.weight)
            N = whitened(*parts.metric.products(features, within))
            lost = nested_curve(parts.weight, parts.metric, N, a)
            yield from ((cls(a, b, rank), lost[rank - 1]) for rank in ranks)

    def check(self, spec: LayerSpec) -> str | None:
        _, o, i, *_ = spec.weight_shape
        for what, n, of in (("in", self.in_clusters, i), ("out", self.out_clusters, o)):
            if not isinstance(n, int) or n < 1 or of % n:
                return f"{what}_clusters {n!r} do not divide {of} channels"
        full = _full(spec, self.in_clusters, self.out_clusters)
        return outside("rank", self.rank, full, spec)

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        a, b, n = self.in_clusters, self.out_clusters, len(spec.kernel)
        inner = a * b * self.rank
        return (
            SelectStage(spec.in_channels, spec.in_channels, 1, n),
            spec.along(range(n), spec.in_channels, inner, groups=a),
            SelectStage(inner, inner, 1, n),
            spec.pointwise(inner, spec.out_channels, groups=b),
            SelectStage(spec.out_channels, spec.out_channels, 1, n, bias=spec.bias),
        )

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        n = 20 if max_iter is None else min(20, max_iter)

        def start(metric: Metric) -> tuple[Factor, ...]:
            parts = self._clustered(spec, metric.cast(weight), metric)
            engine = GroupSVD(self.in_clusters, self.rank)
            found = fit_factors(
                engine, parts.spec, parts.weight, parts.metric, seed=seed, max_iter=n
            )
            return self._stages(spec, parts, *engine.weights(parts.spec, found.free, found.last))

        return fit_from(spec, self.stages(spec), weight, metric, start, max_iter=n)

    def _clustered(
        self, spec: LayerSpec, W: Tensor, metric: Metric, known: _Orders | None = None
    ) -> _Clustered:
        """The layer with its channels in order and its clusters of filters as groups.

        `known` holds the orders of the same weight that were found before.
        """
        a, b = self.in_clusters, self.out_clusters
        _, o, i, *kernel = spec.weight_shape
        scaled = metric.left(W.flatten(2)) * _spread(metric).sqrt()
        rows = scaled[0].reshape(o, i, -1)
        known = {} if known is None else known
        if ("in", a) not in known:
            known["in", a] = clusters(rows.transpose(0, 1).flatten(1), a)
        if ("out", b) not in known:
            known["out", b] = clusters(rows.flatten(1), b)
        inputs, outputs = known["in", a], known["out", b]
        weight = W[0, outputs][:, inputs].reshape(b, o // b, i, *kernel)
        shape = replace(spec, groups=b, in_channels=b * i, bias=False)
        return _Clustered(inputs, outputs, shape, weight, _of_clusters(metric, inputs, outputs, b))

    def _stages(
        self, spec: LayerSpec, parts: _Clustered, first: Tensor, last: Tensor
    ) -> tuple[Factor, ...]:
        """Factors from first (b * a, r, i / a, *k) and last (b, o / b, a * r, 1...)."""
        a, b, r = self.in_clusters, self.out_clusters, self.rank
        maps = first.unflatten(0, (b, a)).transpose(0, 1).flatten(1, 2)  # (a, b * r, i / a, *k)
        middle = torch.arange(a * b * r, device=first.device).reshape(a, b, r).transpose(0, 1)
        order = parts.outputs.argsort()
        return parts.inputs[None], maps, middle.reshape(1, -1), last, order[None]


@dataclass(frozen=True, eq=False)
class _Clustered:
    """A layer in clusters.

    Attributes:
        inputs: (i,) channels, cluster by cluster.
        outputs: (o,) filters, likewise.
        spec: a layer whose groups are the clusters of filters, each reading all inputs.
        weight: its canonical weight (out_clusters, o / out_clusters, i, *kernel).
        metric: its error; what G says between clusters is left out.
    """

    inputs: Tensor
    outputs: Tensor
    spec: LayerSpec
    weight: Tensor
    metric: Metric


def clusters(X: Tensor, n: int) -> Tensor:
    """The rows of X in n equally large clusters along one direction each: numbers, in order.

    Lloyd's iteration on squared cosines, the clusters' directions their leading singular
    vectors; between any two clusters rows are exchanged as is best.

    Args:
        X: (rows, features).
        n: divides the rows.
    """
    rows = len(X)
    if n == 1:
        return torch.arange(rows, device=X.device)
    unit = X / X.norm(dim=1, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)
    centres = unit[_apart(unit, n)]
    of = torch.arange(rows, device=X.device) // (rows // n)
    for _ in range(_N_STEPS):
        new = _shares((unit @ centres.mT).square(), of)
        if torch.equal(new, of):
            break
        of = new
        centres = torch.stack([_lead(unit[of == c], centres[c]) for c in range(n)])
    return of.argsort(stable=True)


def _shares(like: Tensor, of: Tensor) -> Tensor:
    """Clusters of as many rows as before, by exchanges between two that raise the likeness.

    Args:
        like: (rows, n), of each row to each cluster.
        of: (rows,) the clusters before.
    """
    of = of.clone()
    for _ in range(2):  # what is left to gain, the next step of Lloyd's iteration sees
        for a, b in combinations(range(like.shape[1]), 2):
            both = torch.nonzero((of == a) | (of == b))[:, 0]
            size = len(both) // 2
            order = both[(like[both, b] - like[both, a]).argsort(stable=True)]
            of[order[:size]], of[order[size:]] = a, b
    return of


def _lead(rows: Tensor, start: Tensor) -> Tensor:
    """The leading right singular vector of rows, by the power method from a direction near it."""
    for _ in range(_N_POWERS):
        start = (rows @ start) @ rows
        start = start / start.norm().clamp_min(torch.finfo(rows.dtype).tiny)
    return start


def _apart(unit: Tensor, n: int) -> list[int]:
    """Rows far from each other: the first, then each time the least like those before."""
    taken, like = [0], (unit @ unit[0]).square()
    for _ in range(n - 1):
        taken.append(int(like.argmin()))
        like = torch.maximum(like, (unit @ unit[taken[-1]]).square())
    return taken


def _spread(metric: Metric) -> Tensor:
    """The diagonal of C, (1, 1, d)."""
    if metric.C.ndim == 2:
        return metric.C[:, None]
    return metric.C.diagonal(dim1=1, dim2=2)[:, None].clamp_min(0)


def _of_clusters(metric: Metric, inputs: Tensor, outputs: Tensor, b: int) -> Metric:
    """The metric with the inputs in order, once for every cluster of outputs."""
    width = metric.C.shape[-1] // len(inputs)
    columns = (inputs[:, None] * width + torch.arange(width, device=inputs.device)).flatten()
    if metric.C.ndim == 2:
        C = metric.C[:, columns].expand(b, -1)
    else:
        C = metric.C[:, columns[:, None], columns].expand(b, -1, -1)
    if metric.G is None:
        return Metric(C)
    rows = outputs.reshape(b, -1)
    return Metric(C, metric.G[0, rows[:, :, None], rows[:, None, :]])


def _splits(spec: LayerSpec) -> list[tuple[int, int]]:
    _, o, i, *_ = spec.weight_shape
    return [(a, b) for a, b in _CLUSTERS if not i % a and not o % b and i > a and o > b]


def _full(spec: LayerSpec, a: int, b: int) -> int:
    _, o, i, *kernel = spec.weight_shape
    return min(o // b, i // a * prod(kernel))
