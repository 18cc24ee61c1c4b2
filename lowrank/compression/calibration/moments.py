"""Second moments of a layer's inputs, and their products with its outputs, summed over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric
from lowrank.linalg import wide

Form = Literal["full", "diagonal", "kronecker"]
"""How a second moment is held: all of it, its diagonal, or channels (x) kernel places."""


LARGEST = 6144
"""Largest fan-in whose second moment is held in full; beyond it channels (x) places."""


_DOUBLE = 2048
"""Up to this fan-in sums and fits are in float64, beyond it in float32."""


DAMPING = 1e-3
"""Least share of a second moment that is replaced by its mean on the diagonal."""


_PIECES = 8
"""Pieces of a batch whose second moments are compared, at most."""


def form_of(spec: LayerSpec) -> Form:
    """The form in which a layer's second moment is held."""
    if spec.kind == "embedding":
        return "diagonal"
    fan_in = spec.n_weights // spec.out_channels
    return "kronecker" if fan_in > LARGEST else "full"


def working_dtype(spec: LayerSpec) -> torch.dtype:
    """The type of a layer's moments and of the fits in their metric."""
    fan_in = spec.n_weights // spec.out_channels
    wide = fan_in <= _DOUBLE or spec.kind == "embedding"
    return torch.float64 if wide else torch.float32


def faint(dtype: torch.dtype) -> float:
    """What is no larger counts as zero: squares of such numbers hold no digits.

    Example:
        >>> f"{faint(torch.float32):.0e}"
        '3e-16'
    """
    info = torch.finfo(dtype)
    return (info.tiny / info.eps) ** 0.5


def moment_bytes(spec: LayerSpec) -> int:
    """Bytes of a layer's second moment."""
    g, _, i, *_ = spec.weight_shape
    fan_in = spec.n_weights // spec.out_channels
    k = fan_in // i
    size = {"full": fan_in**2, "diagonal": fan_in, "kronecker": i**2 + k**2}[form_of(spec)]
    return g * size * working_dtype(spec).itemsize


@dataclass(frozen=True, eq=False)
class Moments:
    """What a layer's inputs were like, over all positions of all examples.

    Args:
        n: positions.
        mean: of the inputs (groups, d).
        C: centred second moment: (groups, d, d), its diagonal (groups, d) for an embedding,
            or the factor over the channels.
        share: how much of C is left to chance, (groups,), in [DAMPING, 1]: see `Sums.share`.
        space: the factor over the kernel places, where C is in Kronecker form.
        G: second moment of the output gradients, summed over the positions of an example
            and averaged over examples (groups, o, o); None where no loss was asked for.
    """

    n: int
    mean: Tensor
    C: Tensor
    share: Tensor
    space: Tensor | None = None
    G: Tensor | None = None

    def metric(self, *, centred: bool = True, weighted: bool = False, seen: bool = False) -> Metric:
        """The damped metric; not centred where no bias or batch norm can take the mean.

        Args:
            centred: errors of the mean do not count.
            weighted: by G, scaled to a mean eigenvalue of one, damped likewise.
            seen: of these very inputs, not damped: for what is measured on them as well.
        """
        C, space = self.C, self.space
        if C.ndim == 2:  # word counts: an embedding has no bias
            return Metric(C + (0.0 if seen else DAMPING) * C.mean(-1, keepdim=True))
        if not centred:
            C = C + self._mean_moment()
        if not seen:
            C = damped(C, self.share)
            space = None if space is None else damped(space[None])[0]
        return Metric(C, self._weight() if weighted else None, space)

    def _mean_moment(self) -> Tensor:
        if self.space is None:
            return self.mean[:, :, None] * self.mean[:, None, :]
        folded = self.mean.unflatten(-1, (-1, self.space.shape[0]))  # (g, i, k)
        return folded @ folded.mT

    def _weight(self) -> Tensor | None:
        if self.G is None or not self.G.any():  # or no gradient reaches the output
            return None
        size = self.G.diagonal(dim1=-2, dim2=-1).mean(-1)  # (g,)
        scaled = damped(self.G / size.mean(), 1e-2)
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        felt = (size > 1e-9 * size.max())[:, None, None]  # a group that is not stays as it is
        return torch.where(felt, scaled, eye)


def damped(C: Tensor, share: float | Tensor = DAMPING) -> Tensor:
    """C (..., d, d), a share (...) of it replaced by its mean eigenvalue on the diagonal."""
    size = C.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    floor = torch.finfo(C.dtype).tiny ** 0.5  # a constant input; smaller, squares underflow
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    rho = share[..., None, None].to(C) if isinstance(share, Tensor) else share
    return (1 - rho) * C + (rho * size).clamp_min(floor) * eye


@dataclass(frozen=True, eq=False)
class Regression:
    """Targets against inputs, over all positions.

    Args:
        Q: centred products of targets and inputs (groups, o, d).
        mean: of the targets (groups, o).
        size: their centred squared norm (groups,).
    """

    Q: Tensor
    mean: Tensor
    size: Tensor

    def uncentred(self, mean: Tensor) -> Regression:
        """The same with products as they are; `mean` is that of the inputs (groups, d)."""
        Q = self.Q + self.mean[:, :, None] * mean[:, None, :]
        return Regression(Q, self.mean, self.size + self.mean.square().sum(1))

    def solution(self, W: Tensor, C: Tensor, share: Tensor) -> Tensor:
        """The map that comes closest to the targets, drawn towards W (groups, o, d).

        By as much of `share` as the targets' distance from W x is unexplained: where inputs
        explain it, chance has no part in it.

        Args:
            W: the map as it is.
            C: moment of the inputs (groups, d, d).
            share: of C that is left to chance (groups,).
        """
        found = self._drawn(W, C, share)
        if not bool((share > DAMPING).any()):
            return found
        gap = self.Q - W @ C  # products of what W x misses with the inputs
        whole = self.size - (W * (self.Q + gap)).sum((1, 2))
        step = found - W
        explained = (step * (2 * gap - step @ C)).sum((1, 2))
        tiny = torch.finfo(C.dtype).tiny
        rest = (1 - explained / whole.clamp_min(tiny)).clamp(0, 1)
        rest = torch.where(whole > 1e-12 * self.size, rest, 1.0)  # W x misses nothing
        return self._drawn(W, C, (share * rest).clamp_min(DAMPING))

    def _drawn(self, W: Tensor, C: Tensor, share: Tensor) -> Tensor:
        rho = share[:, None, None].to(C)
        ridge = rho * C.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        L = torch.linalg.cholesky(damped(C, share))
        return torch.cholesky_solve(((1 - rho) * self.Q + ridge * W).mT, L).mT


class Sums:
    """Sums over batches from which `Moments` follow, and the regression on targets.

    Products of a batch are in the layer's own precision, at least float32; the sums over
    batches are float64, or float32 beyond a fan-in of 2,048. Inputs are shifted by the first
    batch's mean, so that subtracting the mean's square costs no digits.
    """

    def __init__(self, spec: LayerSpec, *, targets: bool = False) -> None:
        self.spec, self.n = spec, 0
        self.S: Tensor
        self.form, self.dtype = form_of(spec), working_dtype(spec)
        self.targets = targets
        self._shift: Tensor | None = None
        self._shift_y: Tensor | None = None

    def add(self, X: Tensor, Y: Tensor | None = None, *, rows: int | None = None) -> None:
        """Add patches (positions, groups, d), with targets (positions, groups, o).

        Args:
            X: the patches.
            Y: the targets.
            rows: how many of the positions, in a row, come from examples of their own, as
                far as is known; all of them by default. See `share`.
        """
        X = wide(X)
        if self._shift is None:
            self._begin(X, Y)
        assert self._shift is not None
        X = (X - self._shift.to(X.dtype)).movedim(0, 1)  # (g, p, d)
        self.n += X.shape[1]
        if not bool(X.abs().amax() > faint(X.dtype)):
            X = torch.zeros_like(X)
        self.s += X.sum(1, dtype=self.dtype)
        for part in X.split(rows or max(1, X.shape[1]), dim=1):
            self._add_part(part)
        if Y is not None:
            assert self._shift_y is not None
            Y = (wide(Y) - self._shift_y.to(X.dtype)).movedim(0, 1)  # (g, p, o)
            self.sy += Y.sum(1, dtype=self.dtype)
            self.syy += Y.square().sum((1, 2), dtype=self.dtype)
            self.Q += (Y.mT @ X).to(self.dtype)

    def _add_part(self, X: Tensor) -> None:
        """Add products of shifted patches (g, p, d) that count as one draw from the data."""
        if self.form == "full":
            product = (X.mT @ X).to(self.dtype)
        else:
            folded = X.unflatten(-1, (-1, self._places))  # (g, p, i, k)
            product = torch.einsum("gpik,gpjk->gij", folded, folded).to(self.dtype)
            self.space += torch.einsum("gpik,gpil->kl", folded, folded).to(self.dtype)
        self.S += product
        self._norms += product.flatten(1).square().sum(1).double()
        self._draws += X.shape[1] ** 2

    def share(self, C: Tensor) -> Tensor:
        """How much of the centred second moment C is left to chance, (groups,), in [DAMPING, 1].

        The variance of the mean over all draws, as far as these differ, over the squared size
        of the moment: near 0 with many draws, near 1 with fewer than there are inputs.

        Source: the estimate of Ledoit and Wolf 2004, "A well-conditioned estimator for
        large-dimensional covariance matrices", lemma 3.4, with groups of positions for single
        draws. They divide by the distance from a multiple of the identity instead, which
        would give up a moment that is one, and with it the regression on such inputs.
        """
        least = torch.full_like(self._norms, DAMPING)
        together = self._draws / self.n**2  # 1 over the number of draws
        if together >= 1 - 1e-9:
            return least
        whole = (self.S / self.n).double().square().sum((1, 2))
        spread = (self._norms / self.n**2 - together * whole) / (1 - together)
        size = C.double().square().sum((1, 2))
        return (spread / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(DAMPING, 1.0)

    def count(self, words: Tensor) -> None:
        """Add word numbers of an embedding."""
        counts = torch.bincount(words.flatten().cpu(), minlength=self.spec.in_channels)
        self.S = counts.double() + self.S if self.n else counts.double()
        self.n += words.numel()

    def moments(self) -> Moments:
        """What was summed so far; at least one position."""
        if self.form == "diagonal":
            C = (self.S / self.n)[None]
            return Moments(self.n, torch.zeros_like(C), C, C.new_full((1,), DAMPING))
        assert self._shift is not None
        offset = self.s / self.n  # of the shifted inputs
        mean = self._shift + offset
        if self.form == "full":
            C = _centred(self.S / self.n, offset, offset)
            return Moments(self.n, mean, C, self.share(C))
        folded = offset.unflatten(-1, (-1, self._places))
        C = self.S / self.n - folded @ folded.mT
        space = self.space / self.n - torch.einsum("gik,gil->kl", folded, folded)
        total = space.diagonal().sum().clamp_min(torch.finfo(self.dtype).tiny)
        share = self.share(C)
        return Moments(self.n, mean, C, share, space / total)  # tr(C (x) space) = the true trace

    def regression(self) -> Regression:
        """The targets against the inputs."""
        assert self._shift_y is not None
        offset, offset_y = self.s / self.n, self.sy / self.n
        size = self.syy / self.n - offset_y.square().sum(1)
        Q = _centred(self.Q / self.n, offset_y, offset)
        return Regression(Q, self._shift_y + offset_y, size)

    def _begin(self, X: Tensor, Y: Tensor | None) -> None:
        g, o, i, *_ = self.spec.weight_shape
        d = X.shape[-1]
        self._places = d // i
        self._shift = X.mean(0, dtype=self.dtype)
        new = X.new_zeros
        self.s = new((g, d), dtype=self.dtype)
        side = d if self.form == "full" else i
        self.S = new((g, side, side), dtype=self.dtype)
        self._norms = new((g,), dtype=torch.float64)
        self._draws = 0
        self.space = new((self._places, self._places), dtype=self.dtype)
        if Y is not None:
            self._shift_y = wide(Y).mean(0, dtype=self.dtype)
            self.sy = new((g, o), dtype=self.dtype)
            self.syy = new((g,), dtype=self.dtype)
            self.Q = new((g, o, d), dtype=self.dtype)


def rows_of_a_draw(n: int, examples: int) -> int:
    """Of n positions of so many examples, how many count as one draw from the data."""
    return max(1, -(-n // max(1, min(_PIECES, examples, n // 4))))


def _centred(S: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return S - a[:, :, None] * b[:, None, :]
