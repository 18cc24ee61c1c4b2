"""Second moments of the gradients at a layer's outputs, summed over batches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowrank.compression.calibration.moments import Moments
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import inner_products
from lowrank.linalg import is_finite, wide

_ROWS_FROM, _ROWS = 1024, 1152
"""Outputs beyond which gradients are held where they are no more than half of them; most
gradients that are held."""


_SUMMED = 2048
"""Most outputs whose gradients' products are summed."""


_LARGE = 5.0
"""Gradients at a word beyond so many times their mean length are cut to that."""


def of_words(gradient: Tensor) -> Tensor:
    """Gradients (batch, words, o) that speak for words to come: without the first word, on which
    attention rests, and the last, and none much larger than the others.

    What has another shape, or no word between, stays as it is.

    Example:
        >>> of_words(torch.ones(2, 5, 3)).shape
        torch.Size([2, 3, 3])
    """
    if gradient.ndim != 3 or gradient.shape[1] < 3:
        return gradient
    inner = gradient[:, 1:-1]
    length = torch.linalg.vector_norm(inner, dim=-1, keepdim=True)
    most = _LARGE * length.mean()
    return inner * (most / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp(max=1)


class Gradients:
    """Gradients at a layer's outputs: their products, or they themselves where they are few.

    Of many positions a part is drawn and stands for all. Products are in float32 at least, of
    gradients brought to unit size, as squares of small ones underflow.

    Args:
        spec: the layer.
        n_batches: how often `add` is called.
        work: multiplications that the moment may take.
    """

    def __init__(self, spec: LayerSpec, n_batches: int, work: float) -> None:
        self._groups, self._outputs = spec.groups, spec.out_channels // spec.groups
        self._n_batches, self._work = n_batches, work
        self._most = 0
        self._rows: list[Tensor] = []
        self._sum: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """Add gradients (positions, groups, o)."""
        rows = wide(gradient).movedim(0, 1)  # (g, p, o)
        n = rows.shape[1]
        if not self._most:
            self._most = self._looked_at(n)
        if n > self._most:
            drawn = torch.randint(n, (self._most,), generator=torch.Generator().manual_seed(n))
            rows = rows[:, drawn.sort().values.to(rows.device)] * (n / self._most) ** 0.5
        if self._held:
            self._rows.append(rows.clone())
            return
        low, high = rows.aminmax()
        size = torch.maximum(-low, high)
        if bool(size == 0):
            size = torch.ones_like(size)
        unit = rows / size
        products = inner_products(unit).double() * size.double() ** 2
        self._sum = products if self._sum is None else self._sum + products

    def _looked_at(self, n: int) -> int:
        """At how many positions of a batch of n, which also settles how they are held."""
        g, o = self._groups, self._outputs
        affordable = max(o, int(self._work / (g * o * o))) // self._n_batches
        every = n * self._n_batches
        self._held = o > _SUMMED or (o > _ROWS_FROM and every <= min(_ROWS, o // 2))
        if self._held:
            affordable = min(_ROWS, o // 2) // self._n_batches
        return max(1, affordable)

    def beside(self, moments: Moments, n: int) -> Moments:
        """The moments of the layer with this one, averaged over n examples, if it is finite."""
        if self._rows:
            felt = torch.cat(self._rows, dim=1) / n**0.5
            return replace(moments, felt=felt) if is_finite(felt) else moments
        if self._sum is None or not is_finite(self._sum):
            return moments
        return replace(moments, G=self._sum / n)


class Squares:
    """Gradients at the outputs of a head of many words: the mean square of each, over all
    positions. As `Gradients` otherwise."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """Add gradients (positions, groups, o)."""
        squares = gradient.double().square().sum(0)
        self._sum = squares if self._sum is None else self._sum + squares

    def beside(self, moments: Moments, n: int) -> Moments:
        """The moments of the layer with this one's diagonal, averaged over n examples."""
        if self._sum is None or not is_finite(self._sum):
            return moments
        return replace(moments, G=self._sum / n)
