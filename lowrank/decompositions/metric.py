"""The error that counts: that of a linear map's output on data, and fits that minimise it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lowrank.errors import InputError
from lowrank.linalg import SKETCHED_FROM, leading_eigenvectors, sketched_eigenvectors

WORK = 2e11
"""Multiplications that one fit may take where nothing else is said."""


_BAND = 512
"""Rows of W C W^T that are computed at a time: what lies above their diagonal is left out."""


_FORMED = 6144
"""Most inputs whose second moment is written out."""


def changes(W: Tensor) -> int:
    """How often W was changed in place; what inference mode made stays as it is outside of it."""
    return 0 if W.is_inference() else W._version


@dataclass(eq=False)
class _Last:
    """What is known of the weight that was asked about last: held, so that its place is its own."""

    weight: Tensor
    version: int
    energy: float | None = None
    gram: Tensor | None = None

    def is_of(self, W: Tensor) -> bool:
        """Whether this is that very weight, unchanged."""
        same = self.weight.shape == W.shape and self.weight.stride() == W.stride()
        same = same and self.weight.dtype == W.dtype and self.version == changes(W)
        return same and self.weight.data_ptr() == W.data_ptr()


@dataclass(frozen=True, eq=False)
class Weight:
    """What weighs the outputs: G, or felt^T felt + diag(G); see `Metric`."""

    G: Tensor
    felt: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Metric:
    """Squared error of an output, sum over groups of tr(G (W - W') C (W - W')^T).

    With `C = E[x x^T]` and `G = E[g g^T]`, x an input and g a gradient at the output, this
    is the expected squared change of the output, weighted by what follows. Nothing here
    inverts C, which may be singular.

    Whatever is fitted in a metric is computed in its `dtype`, that of C: this is the one place
    where the precision of a layer's fits is decided. G and `rows` are brought to it here,
    weights by `cast`.

    Args:
        C: second moment of the inputs: (groups, d, d), or (groups, d) if diagonal.
        G: second moment of the output's gradients (groups, o, o); the identity if None.
        rows: (groups, n, d); then rows^T rows + diag(C), with C (groups, d), stands for the
            moment: of fewer examples than inputs, in whose span products take 2 n d instead
            of d^2 multiplications.
        felt: (groups, n, o); then felt^T felt + diag(G), with G (groups, o) above zero, stands
            for the gradients' moment likewise.
        work: multiplications that one fit in this metric may take; a search is cut short, or
            left out, accordingly.

    Example:
        >>> metric = Metric(2 * torch.eye(3)[None])
        >>> metric.error(torch.ones(1, 2, 3))
        12.0
    """

    C: Tensor
    G: Tensor | None = None
    rows: Tensor | None = None
    felt: Tensor | None = None
    work: float = WORK

    def __post_init__(self) -> None:
        for name, X in (("G", self.G), ("rows", self.rows), ("felt", self.felt)):
            if X is not None and X.dtype != self.dtype:
                object.__setattr__(self, name, X.to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in: that of C."""
        return self.C.dtype

    def cast(self, X: Tensor) -> Tensor:
        """X in the type that is computed in.

        Example:
            >>> Metric(torch.ones(1, 2)).cast(torch.ones(2, dtype=torch.float64)).dtype
            torch.float32
        """
        return X.to(self.dtype)

    def times(self, M: Tensor) -> Tensor:
        """M C for rows M of shape (groups, q, d)."""
        if self.rows is not None:
            return M @ self.rows.mT @ self.rows + M * self.C[:, None, :]
        if self.C.ndim == 2:
            return M * self.C[:, None, :]
        return M @ self.C

    @property
    def per_row(self) -> int:
        """Multiplications that `times` takes for each row of each group."""
        d = self.C.shape[-1]
        if self.rows is not None:
            return 2 * d * self.rows.shape[1]
        return d * d if self.C.ndim == 3 else d

    @cached_property
    def formed(self) -> Metric:
        """The same with its moments written out where they are held by rows; of more than
        `_FORMED` inputs the diagonal alone."""
        if self.felt is not None:
            assert self.G is not None
            G = self.felt.mT @ self.felt + torch.diag_embed(self.G)
            return replace(self, G=G, felt=None).formed
        if self.rows is None:
            return self
        if self.C.shape[-1] > _FORMED:
            diagonal = self.C + self.rows.square().sum(1)
            return replace(self, C=diagonal, rows=None)
        return replace(self, C=self.rows.mT @ self.rows + torch.diag_embed(self.C), rows=None)

    def weighed(self, weight: Weight | None) -> Metric:
        """The same with its outputs weighed so."""
        if weight is None:
            return replace(self, G=None, felt=None)
        return replace(self, G=weight.G, felt=weight.felt)

    def weighs(self, X: Tensor) -> Tensor:
        """G X for X (groups, o, q); X itself where outputs are not weighed."""
        if self.G is None:
            return X
        if self.felt is None:
            return self.G @ X
        return self.felt.mT @ (self.felt @ X) + self.G[:, :, None] * X

    @property
    def of_each_output(self) -> Tensor | None:
        """The diagonal of G (groups, o)."""
        if self.G is None or self.felt is None:
            return None if self.G is None else self.G.diagonal(dim1=1, dim2=2)
        return self.felt.square().sum(1) + self.G

    def error(self, difference: Tensor) -> float:
        """Squared error of W - W' of shape (groups, o, d)."""
        D = self.cast(difference)
        if self.rows is None:
            return float((self.times(D) * self.weighs(D)).sum())
        seen = D @ self.rows.mT
        rest = self._of_each_input(D)
        return float((seen * self.weighs(seen)).sum()) + float((rest * self.C).sum())

    def _of_each_input(self, D: Tensor) -> Tensor:
        """The diagonal of D^T G D (groups, d)."""
        if self.G is None or self.felt is None:
            return (D * self.weighs(D)).sum(1)
        own = self.G[:, None, :] @ D.square()
        return (self.felt @ D).square().sum(1) + own.squeeze(1)

    def left(self, X: Tensor) -> Tensor:
        """G^(1/2) X in the sense that its Gram matrix is X^T G X; X is (groups, o, ...)."""
        if self.G is None:
            return X
        if self.felt is not None:
            X = self.G.sqrt()[:, :, None] * X
            return X + self._along_felt(X, self._felt_spectrum[1] - 1)
        return self.root_of_G.mT @ X

    def right(self, X: Tensor) -> Tensor:
        """X R^T for X (groups, q, o) and the root of G, R R^T = G, of which `left` gives R^T X."""
        if self.G is None:
            return X
        if self.felt is not None:
            inside = X.mT + self._along_felt(X.mT, self._felt_spectrum[1] - 1)
            return (self.G.sqrt()[:, :, None] * inside).mT
        return X @ self.root_of_G.mT

    def _along_felt(self, X: Tensor, gains: Tensor) -> Tensor:
        """V diag(gains) V^T X with V the directions in which G is not diagonal."""
        V = self._felt_spectrum[0]
        return V @ (gains[:, :, None] * (V.mT @ X))

    @cached_property
    def _felt_spectrum(self) -> tuple[Tensor, Tensor]:
        """V (groups, o, n) and sizes (groups, n) with felt^T felt + diag(G) = root root^T, root
        = diag(G)^(1/2) (I + V diag(sizes - 1) V^T)."""
        assert self.felt is not None
        assert self.G is not None
        scaled = self.felt * self.G.rsqrt()[:, None, :]
        values, U = torch.linalg.eigh(scaled @ scaled.mT)
        values = values.clamp_min(0)
        kept = values > torch.finfo(values.dtype).eps * len(U[0]) * values[:, -1:]
        V = scaled.mT @ (U * torch.where(kept, values, 1.0).rsqrt()[:, None, :])
        return V * kept[:, None, :], torch.where(kept, (1 + values).sqrt(), 1.0)

    def energy(self, W: Tensor) -> float:
        """Squared error of losing W (groups, o, d), remembered for the last one asked about."""
        last = self._last_of(W)
        if last.energy is None:
            last.energy = self._energy(W)
        return last.energy

    def _energy(self, W: Tensor) -> float:
        if self.rows is None or W.shape[1] > W.shape[2]:
            return self.error(W)
        return float(self.weighs(self.gram(W)).diagonal(dim1=1, dim2=2).sum())

    def gram(self, W: Tensor) -> Tensor:
        """W C W^T (groups, o, o), remembered for the last W asked about."""
        last = self._last_of(W)
        if last.gram is None:
            last.gram = self._gram(self.cast(W))
        return last.gram

    def _gram(self, X: Tensor) -> Tensor:
        """X C X^T, of whose lower half in bands the upper one follows."""
        right, whole = X, X.new_zeros(*X.shape[:2], X.shape[1])
        if self.rows is not None:
            A = X @ self.rows.mT  # (g, o, n)
            whole, right = add_gram(whole, A), X * self.C[:, None, :]
        elif X.shape[1] > _BAND or self.C.ndim == 2:
            right = self.times(X)
        else:
            return self.times(X) @ X.mT
        return _add_symmetric(whole, right, X)

    def _last_of(self, W: Tensor) -> _Last:
        if not self._asked or not self._asked[-1].is_of(W):
            self._asked[:] = [_Last(W, changes(W))]
        return self._asked[-1]

    @cached_property
    def _asked(self) -> list[_Last]:
        return []

    @cached_property
    def root_of_G(self) -> Tensor:
        """R (groups, o, o) with R R^T = G: its Cholesky factor, unless G is all but singular."""
        if self._factor_of_G is not None:
            return self._factor_of_G
        vectors, sizes = self._spectrum_of_G
        return vectors * sizes[:, None, :]

    def unweighted(self, X: Tensor) -> Tensor:
        """G^(-1/2) X for X (groups, o, q), which `left` turns back into X where G is not zero."""
        if self.felt is not None:
            assert self.G is not None
            inside = X + self._along_felt(X, 1 / self._felt_spectrum[1] - 1)
            return self.G.rsqrt()[:, :, None] * inside
        if (L := self._factor_of_G) is not None:
            return torch.linalg.solve_triangular(L.mT, X, upper=True)
        vectors, sizes = self._spectrum_of_G
        kept = sizes > 1e-6 * sizes[:, -1:]
        return (vectors * torch.where(kept, 1 / sizes, 0.0)[:, None, :]) @ X

    @cached_property
    def _factor_of_G(self) -> Tensor | None:
        assert self.G is not None
        L, info = torch.linalg.cholesky_ex(self.G)
        own = L.diagonal(dim1=-2, dim2=-1)
        least = 1e3 * torch.finfo(L.dtype).eps * float(own.max()) ** 2
        sound = not info.any() and float(own.min()) ** 2 > least
        return L if sound else None

    @cached_property
    def _spectrum_of_G(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors of G, and the roots of its eigenvalues, ascending."""
        assert self.G is not None
        values, vectors = torch.linalg.eigh(self.G)
        return vectors, values.clamp_min(0).sqrt()

    def to(self, dtype: torch.dtype) -> Metric:
        """The same metric, computed in another type."""
        return self if dtype == self.dtype else replace(self, C=self.C.to(dtype))

    @cached_property
    def marginals(self) -> dict[tuple[int, ...], Metric]:
        """Metrics of parts of the input that were asked for, by what the asker calls them."""
        return {}

    @cached_property
    def asides(self) -> dict[tuple[object, ...], tuple[Tensor, ...]]:
        """What was found for a weight that was asked about, its first tensor, by what the asker
        calls it."""
        return {}

    @cached_property
    def rivals(self) -> list[tuple[int, float]]:
        """Numbers and relative squared error of what was found for the weight so far: the asker
        fills it in, and a search that would come to nothing beside it is spared."""
        return []

    def products(self, M: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        """M C M^T and W C M^T for rows M (groups, q, d) and W (groups, o, d)."""
        if self.rows is None:
            MC = self.times(M)
            return MC @ M.mT, W @ MC.mT
        A = M @ self.rows.mT  # (g, q, n)
        scaled = M * self.C[:, None, :]
        return A @ A.mT + scaled @ M.mT, (W @ self.rows.mT) @ A.mT + W @ scaled.mT

    def block(self, index: Tensor) -> Tensor:
        """C[index, index] of every group, for index (..., n) into d: (groups, ..., n, n)."""
        if self.rows is not None:
            X = self.rows[:, :, index].movedim(1, -1)  # (g, ..., n, rows)
            return X @ X.mT + torch.diag_embed(self.C[:, index])
        if self.C.ndim == 2:
            return torch.diag_embed(self.C[:, index])
        rows, columns = index[..., :, None], index[..., None, :]
        return self.C[:, rows, columns]


def add_gram(S: Tensor, A: Tensor) -> Tensor:
    """S += A A^T for A (groups, q, n), of whose lower half in bands the upper one follows."""
    if A.shape[1] <= _BAND:
        return S.baddbmm_(A, A.mT)
    return _add_symmetric(S, A, A)


def inner_products(X: Tensor) -> Tensor:
    """X^T X for X (groups, n, d): in bands as `add_gram` where they are worth their additions.

    Example:
        >>> inner_products(torch.ones(1, 3, 2))
        tensor([[[3., 3.],
                 [3., 3.]]])
    """
    g, n, d = X.shape
    if d <= _BAND or 2 * n < d:
        return X.mT @ X
    return _add_symmetric(X.new_zeros(g, d, d), X.mT, X.mT)


def _add_symmetric(S: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """S += left right^T where that is symmetric."""
    for top in range(0, S.shape[1], _BAND):
        end = min(top + _BAND, S.shape[1])
        band = left[:, top:end] @ right[:, :end].mT
        S[:, top:end, :end] += band
        S[:, :top, top:end] += band[:, :, :top].mT
    return S


def best_map(
    W: Tensor,
    metric: Metric,
    rank: int,
    *,
    product: Tensor | None = None,
    sketched: bool = False,
) -> tuple[Tensor, Tensor]:
    """Best approximation of given rank in the metric, W' = U V.

    With E the leading eigenvectors of (G^1/2 W) C (G^1/2 W)^T, W' = G^-1/2 E E^T G^1/2 W:
    C is never inverted, and G only where it is not zero.

    Args:
        W: (groups, o, d).
        metric: the error that is minimised.
        rank: 1..min(o, d).
        product: W C, where it is known.
        sketched: of very wide layers, nearly the best is good enough.

    Returns:
        U (groups, o, rank) and V (groups, rank, d), in the metric's type.

    Example:
        >>> U, V = best_map(torch.eye(2)[None], Metric(torch.tensor([[4.0, 1.0]])), 1)
        >>> (U @ V).abs()
        tensor([[[1., 0.],
                 [0., 0.]]])

    Source: the solution of reduced-rank regression, Izenman 1975.
    """
    W = metric.cast(W)
    U, F = output_maps(W, metric, rank, product=product, sketched=sketched)
    return U, F @ W


def output_maps(
    W: Tensor,
    metric: Metric,
    rank: int,
    *,
    product: Tensor | None = None,
    sketched: bool = False,
) -> tuple[Tensor, Tensor]:
    """The U and F with which `best_map` is W' = U F W.

    Args:
        W: (groups, o, d).
        metric: the error that is minimised.
        rank: 1..min(o, d).
        product: W C, where it is known.
        sketched: of very wide layers, nearly the best is good enough.

    Returns:
        U (groups, o, rank) and F (groups, rank, o), in the metric's type.
    """
    W = metric.cast(W)
    if W.shape[1] > W.shape[2]:  # the spectrum is that of the shorter side
        Q, R = torch.linalg.qr(metric.left(W))
        return _around(Q @ _leading(metric.times(R) @ R.mT, rank, sketched), metric)
    moment = metric.gram(W) if product is None else product @ W.mT
    return output_maps_of(moment, metric, rank, sketched=sketched)


def output_maps_of(
    moment: Tensor, metric: Metric, rank: int, *, sketched: bool = False
) -> tuple[Tensor, Tensor]:
    """`output_maps` from the moment W C W^T (groups, o, o) alone."""
    return _around(_leading(metric.left(metric.left(moment).mT), rank, sketched), metric)


def _leading(S: Tensor, rank: int, sketched: bool) -> Tensor:
    S = (S + S.mT) / 2
    if sketched and len(S) == 1 and S.shape[-1] >= SKETCHED_FROM and 4 * rank <= S.shape[-1]:
        return sketched_eigenvectors(S[0], rank)[1][None]
    return leading_eigenvectors(S, rank)[1]


def _around(E: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """G^-1/2 E and E^T G^1/2."""
    if metric.G is None:
        return E, E.mT
    return metric.unweighted(E), metric.right(E.mT)


def input_directions(W: Tensor, metric: Metric, rank: int) -> Tensor:
    """V (groups, rank, d) whose rows span the row space of `best_map`, largest first.

    The eigenvectors are those of the shorter side: of W C W^T, or of C^1/2 W^T W C^1/2.

    Args:
        W: (groups, o, d).
        metric: the error, without G.
        rank: 1..min(o, d).

    Example:
        >>> input_directions(torch.eye(2)[None], Metric(torch.tensor([[4.0, 1.0]])), 1).abs()
        tensor([[[1., 0.]]])
    """
    W = metric.cast(W)
    if W.shape[1] <= W.shape[2]:
        return best_map(W, metric, rank)[1]
    inner = W.mT @ W
    metric = metric.formed
    if metric.C.ndim == 2:
        root = torch.diag_embed(metric.C.clamp_min(0).sqrt())
    else:
        values, vectors = torch.linalg.eigh(metric.C)
        root = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
    S = root @ inner @ root
    _, F = leading_eigenvectors((S + S.mT) / 2, rank)
    V = F.mT @ root @ inner
    return V / V.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(V.dtype).tiny)


def output_moment(W: Tensor, metric: Metric) -> Tensor:
    """(G^1/2 W) C (G^1/2 W)^T, whose spectrum's tails are the errors of `best_map`.

    For W (groups, o, d) the moment is (groups, m, m) with m = min(o, d): of more outputs than
    inputs there is one of d combinations with the same spectrum but for zeros.
    """
    if W.shape[1] > W.shape[2]:
        R = fewest_outputs(W, metric)
        S = metric.times(R) @ R.mT
    else:
        S = metric.left(metric.left(metric.gram(metric.cast(W))).mT)
    return (S + S.mT) / 2


def fewest_outputs(W: Tensor, metric: Metric) -> Tensor:
    """R (groups, min(o, d), d) with R^T R = W^T G W: its errors without G are those of W."""
    X = metric.left(metric.cast(W))
    return torch.linalg.qr(X, mode="r").R if X.shape[1] > X.shape[2] else X


def best_last(S: Tensor, P: Tensor) -> Tensor:
    """The A that minimises the error of A M: A = W C M^T (M C M^T)^-1.

    Args:
        S: M C M^T (groups, q, q), of features M (groups, q, d); see `Metric.products`.
        P: W C M^T (groups, o, q).

    Returns:
        A (groups, o, q); where features repeat, a small one of the many.
    """
    return _solved(S, P.mT)


def _solved(S: Tensor, right: Tensor) -> Tensor:
    """right^T S^-1 for S (groups, q, q) and right (groups, q, o)."""
    scale, L = scaled_cholesky(S)
    return (scale[:, :, None] * torch.cholesky_solve(scale[:, :, None] * right, L)).mT


def nested_gains(W: Tensor, metric: Metric, M: Tensor, width: int) -> Tensor:
    """How much each block of features, added to those before it, lets the error fall.

    With the best last factor, the error of the first r blocks is the energy of W minus the
    first r gains, so one Cholesky factorization gives the error at every rank.

    Args:
        W: (groups, o, d).
        metric: the error.
        M: features (groups, n * width, d), in the order in which they are added.
        width: features in a block.

    Returns:
        Gains (n,), summed over the groups.
    """
    return gains_of(whitened(*metric.products(M, metric.left(metric.cast(W)))), width)


def gains_of(N: Tensor, width: int) -> Tensor:
    """`nested_gains` from `whitened`.

    Args:
        N: (groups, o, n * width).
        width: features in a block.
    """
    return N.square().sum((0, 1)).unflatten(0, (-1, width)).sum(1)


def moments_of(N: Tensor, width: int, ends: Sequence[int]) -> Tensor:
    """Gram matrices of the output that the first blocks of features explain together.

    Args:
        N: from `whitened`, (groups, o, n * width).
        width: features in a block.
        ends: how many blocks, ascending.

    Returns:
        (len(ends), groups, o, o).
    """
    parts = []
    total = N.new_zeros(N.shape[0], N.shape[1], N.shape[1])
    for start, end in zip((0, *ends), ends, strict=False):
        block = N[:, :, start * width : end * width]
        total = total + block @ block.mT
        parts.append(total)
    return torch.stack(parts)


def whitened(S: Tensor, P: Tensor) -> Tensor:
    """N = G^1/2 W C M^T L^-T (groups, o, q) with L L^T = M C M^T, for `nested_gains` and
    `nested_moments`.

    Args:
        S: M C M^T (groups, q, q).
        P: G^1/2 W C M^T (groups, o, q).
    """
    scale, L = scaled_cholesky(S)
    N = P * scale[:, None, :]
    return torch.linalg.solve_triangular(L, N.mT, upper=False).mT


def scaled_cholesky(S: Tensor) -> tuple[Tensor, Tensor]:
    """D (groups, q) and L with L L^T = D S D of unit diagonal, where features do not repeat.

    Scaling first makes the size of a feature irrelevant; where features repeat, or are
    zero, a little is added to the diagonal.
    """
    diagonal = S.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    unit = scale[:, :, None] * S * scale[:, None, :]
    eps = torch.finfo(S.dtype).eps
    jitter = 0.0
    for _ in range(10):
        L, info = torch.linalg.cholesky_ex(unit)  # which reads the lower triangle only
        if float(L.diagonal(dim1=-2, dim2=-1).min()) ** 2 > 100 * eps and not info.any():
            return scale, L
        more = max(9 * jitter, 1e3 * eps)
        unit.diagonal(dim1=-2, dim2=-1).add_(more)
        jitter += more
    raise InputError("metric", "the moment C is far from positive", "check it for NaN and overflow")


Features = Callable[[Sequence[Tensor]], Tensor]
"""From the free factors to the features M (groups, q, d) that the last factor combines."""


Products = Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]]
"""From the free factors to M C M^T and W C M^T of their features."""


@dataclass(frozen=True, eq=False)
class Projected:
    """A fit by variable projection.

    Args:
        free: the factors that were searched for.
        last: the last factor A (groups, o, q), best for these.
        error: squared error in the metric.
    """

    free: tuple[Tensor, ...]
    last: Tensor
    error: float


def variable_projection(
    W: Tensor,
    metric: Metric,
    features: Features,
    start: Sequence[Tensor],
    *,
    max_iter: int = 40,
    products: Products | None = None,
) -> Projected:
    """Minimise the error of A M(free) over A and the free factors.

    For given features the best A is in closed form, so only the free factors are searched
    for, by L-BFGS from a start. The gradient with respect to M is -2 A^T G (W - A M) C, as
    if A were constant; what M is made of, automatic differentiation knows.

    Args:
        W: (groups, o, d).
        metric: the error that is minimised.
        features: from the free factors to M (groups, q, d).
        start: free factors to start from; never returned worse.
        max_iter: L-BFGS iterations; 0 gives the best A for the start.
        products: `Metric.products` of the features of some free factors with W, where there is
            a shorter way to them.

    Returns:
        The factors in the metric's type.

    Source: Golub and Pereyra 1973.
    """
    W, energy = metric.cast(W), metric.energy(W)
    P = metric.times(W) if max_iter else W
    free = [metric.cast(s.detach()) for s in start]
    best: list[Projected] = []
    if not max_iter:
        return _projected(W, metric, features, free, energy, products)
    flat = torch.cat([f.flatten() for f in free])
    free = _parts(flat, [f.shape for f in free])

    def evaluate() -> float:
        M = features(free)
        with torch.no_grad():
            MC, right = metric.times(M), M @ P.mT
            A = _solved(MC @ M.mT, right)
            GA = metric.weighs(A)
            error = energy - float((GA.mT * right).sum())  # A is optimal: W' is orthogonal
            if not best or error < best[0].error:
                best[:] = [Projected(tuple(f.detach().clone() for f in free), A, error)]
            slope = -2 * GA.mT @ (P - A @ MC) / max(energy, 1e-300)
        flat.grad = torch.cat([g.flatten() for g in torch.autograd.grad(M, free, slope)])
        return error / max(energy, 1e-300)

    with torch.enable_grad():
        if energy > 0:
            with torch.no_grad():  # unit scale: A makes up for the size of features
                for f in free:
                    f /= f.square().mean().sqrt().clamp_min(torch.finfo(f.dtype).tiny)
            _descend(flat, evaluate, max_iter)
        else:
            evaluate()
    found = best[0]
    return Projected(found.free, found.last, max(found.error, 0.0))


def _projected(
    W: Tensor,
    metric: Metric,
    features: Features,
    free: Sequence[Tensor],
    energy: float,
    products: Products | None,
) -> Projected:
    """The best last factor for features that stay as they are."""
    with torch.no_grad():
        S, P = metric.products(features(free), W) if products is None else products(free)
        A = _solved(S, P.mT)
        error = energy - float((metric.weighs(A) * P).sum())
    return Projected(tuple(f.detach() for f in free), A, max(error, 0.0))


def _parts(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of consecutive parts of a vector, each of which can be differentiated by."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [p.view(shape).requires_grad_() for p, shape in zip(parts, shapes, strict=True)]


def _descend(flat: Tensor, evaluate: Callable[[], float], max_iter: int) -> None:
    """Minimise over a vector, in place: one vector, for the steps cost as much for each tensor."""
    search = torch.optim.LBFGS(
        [flat],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        history_size=20,
        tolerance_grad=0,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    search.step(evaluate)


_EXACT = 1e-4
"""Relative squared error that is mostly what damping leaves of an exact fit: a gain over that
is none, and says nothing of other ranks."""


def identity(weight: Tensor, dtype: torch.dtype = torch.float64) -> Metric:
    """The metric without data: the Frobenius norm.

    Args:
        weight: canonical weight.
        dtype: what is computed in; where a layer has a metric, that of the metric.
    """
    g, _, *rest = weight.shape
    d = int(np.prod(rest))
    return Metric(torch.ones(g, d, dtype=dtype, device=weight.device))


def energy(weight: Tensor, metric: Metric) -> float:
    """Squared norm of a canonical weight in the metric."""
    return metric.energy(weight.flatten(2))
