"""Monochromatic: 1 x 1 to a few colours, of which every filter reads one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import Method, depthwise, no_kernel, outside
from lowrank.compression.methods.shared.joint_search import error_of, fit_from
from lowrank.compression.network.own_stages import SelectStage
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.decompositions.metric import Metric, energy, identity

_N_STEPS = 10
"""Alternations between the filters' colours and the colours themselves."""


_MOST_INPUTS = 16
"""Input channels up to which it is offered to the planner: beyond, every other form is better."""


@dataclass(frozen=True)
class Monochromatic(Method):
    """A 1 x 1 convolution to `colours` channels; every filter then reads `per_filter` of them.

    Filters of one colour are clusters of the layer's filters that look at the same mixture of
    the input channels. The clusters need not be equally large: each filter takes its colour
    by number. Costs in * colours + out * per_filter * kernel. For layers of few input
    channels, such as the first of a network on RGB pictures.

    Args:
        colours: mixtures of the input channels, from per_filter up.
        per_filter: colours that a filter reads, 1..in; 1 in the paper. With all of them and
            colours = in it is exact.

    Source: Denton, Zaremba, Bruna, LeCun, Fergus 2014, section 3.1, with clusters of any size,
        colours and filters fitted in turn and then together.
    """

    name: ClassVar[str] = "monochromatic"
    rank_names: ClassVar[tuple[str, ...]] = ("colours",)
    colours: int
    per_filter: int = 1

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if reason := no_kernel(spec, 1, "the layer itself behind another") or depthwise(spec):
            return reason
        if spec.groups > 1:
            return "the filters of a grouped layer read different channels"
        return "a single input channel has one colour" if spec.in_channels == 1 else None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[Monochromatic]:
        return [cls(spec.in_channels, spec.in_channels)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[Monochromatic, float]]:
        metric = identity(weight) if metric is None else metric
        whole = energy(weight, metric) or 1.0
        W = metric.cast(weight)
        for method in _offered(spec, round_to):
            found = method._start(spec, W, metric, n_steps=4)
            yield method, error_of(spec, method.stages(spec), found, W, metric) / whole

    def check(self, spec: LayerSpec) -> str | None:
        m, most = self.per_filter, max(spec.in_channels, spec.out_channels)
        if (wrong := outside("per_filter", m, spec.in_channels, spec)) is not None:
            return wrong
        if wrong := outside("colours", self.colours, most * m, spec):
            return wrong
        return f"{self.colours} colours are fewer than {m} a filter" if self.colours < m else None

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        n, axes = self.per_filter * spec.out_channels, range(len(spec.kernel))
        return (
            spec.pointwise(spec.in_channels, self.colours),
            SelectStage(self.colours, n, 1, len(spec.kernel)),
            spec.along(axes, n, spec.out_channels, groups=spec.out_channels, bias=spec.bias),
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
        def start(metric: Metric) -> tuple[Factor, ...]:
            return self._start(spec, metric.cast(weight), metric, n_steps=_N_STEPS)

        n = 40 if max_iter is None else max_iter
        return fit_from(spec, self.stages(spec), weight, metric, start, max_iter=n)

    def _start(self, spec: LayerSpec, W: Tensor, metric: Metric, *, n_steps: int) -> _Factors:
        """Colours and what each filter makes of its own, found in turn."""
        _, o, i, *kernel = spec.weight_shape
        m, K = self.per_filter, prod(kernel)
        if m == i:  # every filter reads everything
            chosen = torch.arange(i, device=W.device).expand(o, i)
            eye = torch.eye(self.colours, i, dtype=W.dtype, device=W.device)
            return self._stages(spec, eye, chosen, W.reshape(o, i, K))
        flat = W.reshape(o, i, K)
        C = metric.block(torch.arange(i * K, device=W.device))[0].reshape(i, K, i, K)
        weights = torch.ones(o, dtype=W.dtype, device=W.device)
        if (felt := metric.of_each_output) is not None:
            weights = felt[0]
        colours = _first_colours(flat, C, weights, self.colours)
        chosen, filters = _read(flat, C, colours, m)
        for _ in range(n_steps if m == 1 else 0):
            colours = _recoloured(flat, C, weights, colours, chosen[:, 0], filters[:, 0])
            chosen, filters = _read(flat, C, colours, m)
        return self._stages(spec, colours, chosen, filters)

    def _stages(
        self, spec: LayerSpec, colours: Tensor, chosen: Tensor, filters: Tensor
    ) -> _Factors:
        """Factors from colours (c, i), their numbers (o, m) and filters (o, m, K)."""
        o, m = chosen.shape
        ones = (1,) * len(spec.kernel)
        return (
            colours.reshape(1, *colours.shape, *ones),
            chosen.reshape(1, o * m),
            filters.reshape(o, 1, m, *spec.kernel),
        )


_Factors = tuple[Tensor, Tensor, Tensor]


def _offered(spec: LayerSpec, round_to: int) -> list[Monochromatic]:
    """Numbers of colours, a factor of 1.5 apart up to half the filters, that make it smaller."""
    if spec.in_channels > _MOST_INPUTS:
        return []
    found = []
    for m in (1, 2) if spec.in_channels > 2 else (1,):
        colours = m
        while colours <= max(m, spec.out_channels // 2):
            rounded = max(round_to, colours // round_to * round_to)
            method = Monochromatic(rounded, m)
            small = sum(s.n_weights for s in method.stages(spec)) < spec.n_weights
            if small and method.check(spec) is None:
                found.append(method)
            colours = max(colours + 1, colours * 3 // 2)
    return list(dict.fromkeys(found))


def _first_colours(W: Tensor, C: Tensor, weights: Tensor, n: int) -> Tensor:
    """Leading colours of n filters, each the one that those before it serve worst: (n, i).

    Args:
        W: (o, i, K).
        C: (i, K, i, K).
        weights: of the filters (o,).
        n: how many.
    """
    size = torch.einsum("ikik->i", C).clamp_min(0).sqrt()  # of each channel
    X = W * size[:, None]
    own = torch.linalg.svd(X, full_matrices=False)
    lead, strength = own.U[:, :, 0], own.S[:, 0].square() * weights
    missing, taken = strength.clone(), []
    for _ in range(n):
        taken.append(lead[int(missing.argmax())])
        missing = torch.minimum(missing, strength * (1 - (lead @ taken[-1]).square()))
    safe = torch.where(size > 0, size, 1.0)
    colours = torch.stack(taken) / safe
    return colours / colours.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)


def _read(W: Tensor, C: Tensor, colours: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m colours that serve each filter best, one after another, and its filters on them.

    Returns:
        Numbers (o, m) and filters (o, m, K).
    """
    o, _, K = W.shape
    n = len(colours)
    half = torch.einsum("ikjl,bj->ikbl", C, colours)
    gram = torch.einsum("ai,ikbl->akbl", colours, half)
    WC = (W.flatten(1) @ C.reshape(W[0].numel(), -1)).reshape(W.shape)
    P = torch.einsum("ojl,bj->obl", WC, colours)  # (o, n, K)
    own = gram.diagonal(dim1=0, dim2=2).movedim(-1, 0)  # (n, K, K)
    eye = torch.eye(K, dtype=W.dtype, device=W.device)
    ridge = _ridge(own)
    inverse = torch.linalg.inv(own + ridge[:, None, None] * eye)
    left, chosen = P, torch.zeros(o, 0, dtype=torch.long, device=W.device)
    filters = W.new_zeros(o, 0, K)
    for _ in range(m):
        gain = torch.einsum("obk,bkl,obl->ob", left, inverse, left)
        gain = gain.scatter(1, chosen, -torch.inf)
        chosen = torch.cat([chosen, gain.argmax(1, keepdim=True)], 1)
        filters = _solved(gram, P, chosen)
        left = P - torch.einsum("osk,oskbl->obl", filters, gram[chosen])
    assert n >= m
    return chosen, filters


def _solved(gram: Tensor, P: Tensor, chosen: Tensor) -> Tensor:
    """The filters (o, m, K) of least error on the chosen colours."""
    o, m = chosen.shape
    K = P.shape[-1]
    rows = torch.arange(o, device=P.device)[:, None]
    A = gram[chosen[:, :, None], :, chosen[:, None, :]]  # (o, m, m, K, K)
    A = A.transpose(2, 3).reshape(o, m * K, m * K)
    eye = torch.eye(m * K, dtype=P.dtype, device=P.device)
    ridge = _ridge(A)
    right = P[rows, chosen].reshape(o, m * K, 1)
    return torch.linalg.solve(A + ridge[:, None, None] * eye, right).reshape(o, m, K)


def _recoloured(
    W: Tensor, C: Tensor, weights: Tensor, colours: Tensor, chosen: Tensor, filters: Tensor
) -> Tensor:
    """The best colour of each cluster for its filters (o, K); an empty one stays."""
    P = (W.flatten(1) @ C.reshape(W[0].numel(), -1)).reshape(W.shape)
    out = colours.clone()
    for c in chosen.unique().tolist():
        F = filters[chosen == c] * weights[chosen == c, None].sqrt()
        moment = torch.einsum("kl,ikjl->ij", F.mT @ F, C)
        right = torch.einsum("ok,oik->i", F * weights[chosen == c, None].sqrt(), P[chosen == c])
        ridge = _ridge(moment)
        eye = torch.eye(len(right), dtype=W.dtype, device=W.device)
        best = torch.linalg.solve(moment + ridge * eye, right)
        out[c] = best / best.norm().clamp_min(torch.finfo(W.dtype).tiny)
    return out


def _ridge(A: Tensor) -> Tensor:
    """What keeps a system (..., n, n) solvable: a share of its diagonal above rounding, (...)."""
    info = torch.finfo(A.dtype)
    size = A.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(info.tiny / info.eps)
    return max(1e-10, info.eps) * size
