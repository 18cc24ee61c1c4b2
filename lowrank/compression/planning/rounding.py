"""The error that int8 adds to a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lowrank.compression.methods import Method
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.stages import Cost, Factor, compose, leaves, with_leaves
from lowrank.compression.structure.int8 import TYPES, _reason, rounded, stage_bytes, stages_fit
from lowrank.decompositions.metric import Metric, identity

if TYPE_CHECKING:
    from lowrank.compression.planning.candidates import Candidate


_FITS = 3
"""Ranks of a method at which the rounding error is measured; in between it is interpolated."""


@dataclass(frozen=True, eq=False)
class Rounding:
    """What int8 does to one layer.

    Args:
        view: the layer.
        metric: in which errors count; the Frobenius norm of the weight if None.
        seed: of fits that are random.
    """

    view: LayerView
    metric: Metric | None
    seed: int = 0

    def whole(self) -> tuple[Cost, float] | None:
        """Cost and relative squared error of the layer with its own weight in int8."""
        if _reason(self.view.module) is not None or self.view.spec.kind != "linear":
            return None
        cost = self.view.cost()
        W = self.view.weight()
        error = self._relative(W - rounded(W))
        return replace(cost, bytes=stage_bytes([self.view.spec])), error

    def of(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The candidates whose stages are linear layers, in int8: fewer bytes, more error."""
        if self.view.spec.kind != "linear" or self.view.parameter.dtype not in TYPES:
            return []
        found: list[Candidate] = []
        for cls in dict.fromkeys(type(c.method) for c in candidates):
            mine = [c for c in candidates if type(c.method) is cls]
            mine = [c for c in mine if stages_fit(c.method.stages(self.view.spec))]
            found += self._rounded(sorted(mine, key=lambda c: c.cost.params))
        return found

    def _rounded(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """One method's, by rising size; the rounding error is measured at a few of them."""
        if not candidates:
            return []
        places = sorted({int(k) for k in np.linspace(0, len(candidates) - 1, _FITS)})
        added = [self._added(candidates[k].method) for k in places]
        sizes = [c.cost.params for c in candidates]
        extra = np.interp(sizes, [sizes[k] for k in places], added)
        return [
            replace(
                c,
                cost=replace(c.cost, bytes=stage_bytes(c.method.stages(self.view.spec))),
                error=c.error + float(e),
                int8=True,
            )
            for c, e in zip(candidates, extra, strict=True)
        ]

    def _added(self, method: Method) -> float:
        """Relative squared error that the rounding of the factors adds."""
        spec, W = self.view.spec, self.view.weight()
        stages = method.stages(spec)
        factors = method.factor(spec, W, seed=self.seed, metric=self.metric, max_iter=0)
        exact, coarse = (compose(spec, stages, f).to(W) for f in (factors, _rounded_all(factors)))
        return max(self._relative(W - coarse) - self._relative(W - exact), 0.0)

    def _relative(self, difference: Tensor) -> float:
        W = self.view.weight()
        metric = self.metric or identity(W)
        energy = metric.error(W.flatten(2))
        return max(metric.error(difference.flatten(2)), 0.0) / energy if energy else 0.0


def _rounded_all(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    return with_leaves(factors, [rounded(f) for f in leaves(factors)])
