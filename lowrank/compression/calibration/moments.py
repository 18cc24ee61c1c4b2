"""Second moments of a layer's inputs, and their products with its outputs, summed over batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, Weight, inner_products, scaled_cholesky
from lowrank.linalg import wide

Form = Literal["full", "diagonal", "rows"]
"""How a second moment is held: all of it, its diagonal, or the positions that it is of."""


POSITIONS = 1 << 18
"""Most positions of a layer that are summed, over all examples."""


_FORMED = 6144
"""Largest fan-in whose second moment is written out; of more inputs its positions are held."""


_ROWS_FROM, _ROWS, _HELD = 512, 1152, 1 << 25
"""Fan-in beyond which positions are held where they are no more than half the inputs; most
positions, and most numbers, that are held."""


DOUBLE = 320
"""Up to so many inputs and outputs sums and fits are in float64, beyond it in float32."""


_TELL = 8
"""Examples from which words that one of them alone holds tell of those that none does."""


DAMPING = 1e-3
"""Least share of a second moment that is replaced by its mean on the diagonal."""


_DAMPED = 1e-2
"""Share of the gradients' moment that is replaced by its mean on the diagonal."""


WORDS_DAMPED = 0.1
"""Likewise of a language model, whose few directions of large gradients are those of rare words."""


_HELD_OUT = 4
"""Of so many draws from the data, one is held out of regressions that are tried."""


_STRENGTHS = (1.0, 0.5, 0.0)
"""How strongly a regression may be drawn to the weight as it was, from as much as is left to chance
to the least: powers of the share between the two."""


_FAR = 0.9
"""Share of the way from the weight to a regression that has to be worth going for a weaker pull to
be tried."""


_PIECES = 8
"""Pieces of a batch whose second moments are compared, at most."""


@dataclass(frozen=True)
class Look:
    """How a layer's inputs are looked at.

    Args:
        positions: at how many, at most, over all examples.
        form: how their second moment is held.
    """

    positions: int
    form: Form


def look_at(spec: LayerSpec, available: int, work: float) -> Look:
    """How many positions of a layer are looked at, and how their second moment is held.

    As many as are affordable. Of few positions beside the inputs the positions themselves are
    held, in whose span all products are cheaper.

    Args:
        spec: the layer.
        available: positions in all examples.
        work: multiplications that the moment may take.

    Example:
        >>> look_at(LayerSpec("linear", 1000, 64), 20_000, 1e10)
        Look(positions=10000, form='full')
        >>> look_at(LayerSpec("linear", 9216, 64), 10_000, 1e10)
        Look(positions=1152, form='rows')
    """
    if spec.kind == "embedding":
        return Look(POSITIONS, "diagonal")
    d = spec.n_weights // spec.out_channels
    n = min(POSITIONS, max(1, int(work / (spec.groups * d * d))))
    if (2 * min(n, available) > d and d <= _FORMED) or d <= _ROWS_FROM:
        return Look(max(n, d), "full")
    return Look(max(1, min(_ROWS, d // 2, _HELD // (spec.groups * d))), "rows")


def working_dtype(spec: LayerSpec) -> torch.dtype:
    """The type of a layer's moments and of the fits in their metric."""
    widest = max(spec.n_weights // spec.out_channels, spec.out_channels // spec.groups)
    narrow = widest <= DOUBLE or spec.kind == "embedding"
    return torch.float64 if narrow else torch.float32


def faint(dtype: torch.dtype) -> float:
    """What is no larger counts as zero: squares of such numbers hold no digits.

    Example:
        >>> f"{faint(torch.float32):.0e}"
        '3e-16'
    """
    info = torch.finfo(dtype)
    return (info.tiny / info.eps) ** 0.5


@dataclass(frozen=True, eq=False)
class Moments:
    """What a layer's inputs were like, over all positions of all examples.

    Args:
        n: positions that were looked at.
        seen: positions that there were.
        mean: of the inputs (groups, d).
        C: centred second moment (groups, d, d); its diagonal (groups, d) for an embedding, and
            where the positions are held.
        share: how much of C is left to chance, (groups,), in [DAMPING, 1]: see `Sums.share`.
        rows: (groups, n, d) with rows^T rows the centred second moment, where it is held so.
        G: second moment of the output gradients, summed over the positions of an example
            and averaged over examples (groups, o, o); None where no loss was asked for, or
            where the gradients are held.
        felt: (groups, n, o) with felt^T felt that moment, where the gradients are held.
        lone: of an embedding, 1 for each word that stands for those that never came, else 0
            (groups, words): the words that a single example holds, or that came once; those that
            came once where it is None.
    """

    n: int
    seen: int
    mean: Tensor
    C: Tensor
    share: Tensor
    rows: Tensor | None = None
    G: Tensor | None = None
    felt: Tensor | None = None
    lone: Tensor | None = None

    @property
    def differentiated(self) -> bool:
        """Whether gradients at the output are known."""
        return self.G is not None or self.felt is not None

    @property
    def felt_at_all(self) -> bool:
        """Whether one of them is not zero."""
        return any(X is not None and bool(X.any()) for X in (self.G, self.felt))

    @property
    def bytes(self) -> int:
        """Memory that the second moment takes."""
        held = self.C if self.rows is None else self.rows
        return held.numel() * held.element_size()

    def metric(self, *, centred: bool = True, seen: bool = False) -> Metric:
        """The damped metric; not centred where no bias or batch norm can take the mean.

        Args:
            centred: errors of the mean do not count.
            seen: of these very inputs, not damped: for what is measured on them as well.
        """
        C = self.C
        if self.rows is not None:
            return self._by_rows(centred, seen)
        if C.ndim == 2:  # word counts: an embedding has no bias
            return Metric(C if seen else C + self.unseen_words + DAMPING * C.mean(-1, keepdim=True))
        if not centred:
            C = C + self.mean[:, :, None] * self.mean[:, None, :]
        return Metric(C if seen else damped(C, self.share))

    def _by_rows(self, centred: bool, seen: bool) -> Metric:
        """`metric` where the positions are held: as `damped` would have it."""
        R = self.rows
        assert R is not None
        if not centred:
            R = torch.cat([R, self.mean[:, None, :].to(R.dtype)], dim=1)
        if seen:
            return Metric(torch.zeros_like(self.C), rows=R)
        size = R.square().sum((1, 2)) / R.shape[-1]  # mean of the diagonal
        rho = self.share.to(size)
        floor = (rho * size).clamp_min(torch.finfo(R.dtype).tiny ** 0.5)
        rest = floor[:, None].expand(-1, R.shape[-1]).contiguous()
        return Metric(rest, rows=(1 - rho).sqrt()[:, None, None] * R)

    @property
    def unseen_words(self) -> Tensor:
        """What words that never came may be expected to have, (groups, words): together the share
        of those that came once, or that a single example holds if that is more: examples are of
        a topic each, and a word that comes often in one may come in no other.

        Source: Good 1953, "The population frequencies of species and the estimation of population
        parameters" (by Turing), with examples for single draws.
        """
        counts = self.C * self.n
        unseen = counts < 0.5
        lone = _once(self.C, self.n) if self.lone is None else self.lone
        each = (self.C * lone).sum(-1, keepdim=True) / unseen.sum(-1, keepdim=True).clamp_min(1)
        return torch.where(unseen, each, 0.0)

    def beside_words(self, counts: Tensor, padding_idx: int | None) -> Moments:
        """Frequencies of words with those of further texts, which were not run.

        Args:
            counts: how often each word comes there, (numbers,).
            padding_idx: the word that stands for nothing, if there is one.
        """
        counts = counts.to(self.C)
        if len(counts) > self.C.shape[1]:  # no such word: it is another thing that was counted
            return self
        counts = torch.nn.functional.pad(counts, (0, self.C.shape[1] - len(counts)))
        if padding_idx is not None:
            counts[padding_idx] = 0
        n = self.n + int(counts.sum())
        lone = self.lone
        if lone is not None:
            lone = torch.where(self.C > 0, lone * (counts == 0), (counts == 1).to(lone))
        return replace(self, n=n, C=(self.n * self.C + counts) / n, lone=lone)

    @property
    def felt_size(self) -> float:
        """The mean eigenvalue of the gradients' moment."""
        if self.felt is not None:
            return float(self.felt.square().sum() / self.felt[:, 0].numel())
        return 0.0 if self.G is None else float(self.G.diagonal(dim1=-2, dim2=-1).mean())

    def weight(self, share: float = _DAMPED) -> Weight | None:
        """The gradients' moment scaled to a mean eigenvalue of one, and damped; None where no
        gradient is known, or none reaches the output.

        Args:
            share: of it that is replaced by its mean on the diagonal.
        """
        if not self.felt_at_all:
            return None
        if self.felt is not None:
            return _by_gradients(self.felt, share)
        assert self.G is not None
        size = self.G.diagonal(dim1=-2, dim2=-1).mean(-1)  # (g,)
        scaled = damped(self.G / size.mean(), share)
        eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        return Weight(torch.where(_felt(size)[:, None, None], scaled, eye))


def _once(C: Tensor, n: int) -> Tensor:
    """Which words of these frequencies came once among n, as 1, the others as 0."""
    return ((C * n > 0.5) & (C * n < 1.5)).to(C)


def _felt(size: Tensor) -> Tensor:
    """Which groups are: the others stay as they are."""
    return size > 1e-9 * size.max()


def _by_gradients(rows: Tensor, share: float) -> Weight:
    """`Moments.weight` where the gradients (groups, n, o) are held."""
    size = rows.square().sum((1, 2)) / rows.shape[-1]  # (g,)
    felt = _felt(size)
    scaled = ((1 - share) / size.mean()) ** 0.5 * felt[:, None, None] * rows
    floor = torch.where(felt, share * size / size.mean(), 1.0)
    return Weight(floor[:, None].expand(-1, rows.shape[-1]).contiguous(), scaled)


def damped(C: Tensor, share: float | Tensor = DAMPING) -> Tensor:
    """C (..., d, d), a share (...) of it replaced by its mean eigenvalue on the diagonal."""
    size = C.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    floor = torch.finfo(C.dtype).tiny ** 0.5  # a constant input; smaller, squares underflow
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    rho = share[..., None, None].to(C) if isinstance(share, Tensor) else share
    return (1 - rho) * C + (rho * size).clamp_min(floor) * eye


@dataclass(frozen=True, eq=False)
class Fold:
    """Sums over some of the positions, all of shifted inputs and targets.

    Args:
        n: positions.
        s: of the inputs (groups, d).
        S: of their products (groups, d, d).
        sy: of the targets (groups, o).
        Q: of targets times inputs (groups, o, d).
    """

    n: int
    s: Tensor
    S: Tensor
    sy: Tensor
    Q: Tensor

    def __add__(self, other: Fold) -> Fold:
        return self._with(other, 1)

    def __sub__(self, other: Fold) -> Fold:
        return self._with(other, -1)

    def _with(self, other: Fold, sign: int) -> Fold:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Fold(*(a + sign * b for a, b in pairs))

    def products(self, around: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Mean products of targets and inputs (groups, o, d), and of inputs (groups, d, d).

        Args:
            around: what inputs and targets lack of what they were before the shift; None takes
                them around their means.
        """
        x, y = self.s / self.n, self.sy / self.n
        Q, C = _centred(self.Q / self.n, y, x), _centred(self.S / self.n, x, x)
        if around is None:
            return Q, C
        x, y = x + around[0], y + around[1]
        return Q + y[:, :, None] * x[:, None, :], C + x[:, :, None] * x[:, None, :]


@dataclass(frozen=True, eq=False)
class Regression:
    """Targets against inputs, over all positions.

    Args:
        Q: centred products of targets and inputs (groups, o, d).
        mean: of the targets (groups, o).
        folds: those products and the inputs' own, of most positions and of the others, on which
            solutions are tried; None where all come from a single draw.
    """

    Q: Tensor
    mean: Tensor
    folds: tuple[tuple[Tensor, Tensor], ...] | None = None

    def solution(self, W: Tensor, C: Tensor, share: Tensor) -> Tensor:
        """The map that comes closest to the targets, drawn towards W (groups, o, d).

        By how much of `share`, and how far the way from W is gone, is what does best on
        positions that were held out.

        Args:
            W: the map as it is.
            C: moment of the inputs (groups, d, d).
            share: of C that is left to chance (groups,).
        """
        found = share, torch.ones_like(share)
        if self.folds is not None and bool((share > DAMPING).any()):
            (Q, most), (held, rest) = self.folds
            gap = held - W @ rest

            def gained(rho: Tensor) -> tuple[Tensor, Tensor]:
                step = _drawn(Q, W, most, rho) - W
                return (step * gap).sum((1, 2)), (step * (step @ rest)).sum((1, 2))

            found = _tried(share, gained)
        rho, way = found
        return W + way[:, None, None] * (_drawn(self.Q, W, C, rho) - W)


def _drawn(Q: Tensor, W: Tensor, C: Tensor, share: Tensor) -> Tensor:
    """The regression; W itself for a group of whose inputs rounding leaves no moment, as of a
    channel that is constant."""
    rho, size = share[:, None, None].to(C), C.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    ridge = rho * size
    L, failed = torch.linalg.cholesky_ex(damped(C, share))
    whole = (failed == 0)[:, None, None] & (size > torch.finfo(C.dtype).tiny ** 0.5)
    eye = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
    found = torch.cholesky_solve(((1 - rho) * Q + ridge * W).mT, torch.where(whole, L, eye)).mT
    return torch.where(whole, found, W)


def _tried(
    share: Tensor, gained: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """How strongly a map is drawn to what it was, and how far it goes, (groups,) each.

    Args:
        share: the strongest.
        gained: from a strength to the products, on positions held out, of a step with what
            was missed there, and with itself.
    """
    rho, way, most = share, torch.zeros_like(share), torch.zeros_like(share)
    for power in _STRENGTHS:
        drawn = DAMPING * (share / DAMPING) ** power
        along, size = (t.to(share) for t in gained(drawn))
        far = (along / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(0, 1)
        gain = far * (2 * along - far * size)
        better = gain > most
        rho, way = torch.where(better, drawn, rho), torch.where(better, far, way)
        most = torch.where(better, gain, most)
        if bool((far < _FAR).all()):  # drawn less, they would go farther astray
            break
    return rho, way


@dataclass(frozen=True, eq=False)
class Missed:
    """What a map misses of its targets, position by position.

    Args:
        rows: centred inputs (groups, n, d) over the root of their number.
        errors: likewise what the map misses, (groups, n, o).
        mean: of the targets (groups, o).
        held: positions (n,) on which solutions are tried; None where all come from a single
            draw.
        centred: errors of the mean do not count.
    """

    rows: Tensor
    errors: Tensor
    mean: Tensor
    held: Tensor | None = None
    centred: bool = True

    def uncentred(self, W: Tensor, mean: Tensor) -> Missed:
        """The same with products as they are.

        Args:
            W: the map (groups, o, d).
            mean: of the inputs (groups, d).
        """
        left = self.mean - (W @ mean[..., None]).squeeze(-1)
        root = self.rows.shape[1] ** 0.5
        rows = self.rows + (mean / root)[:, None, :].to(self.rows)
        errors = self.errors + (left / root)[:, None, :].to(self.errors)
        return Missed(rows, errors, self.mean, self.held, centred=False)

    def solution(self, W: Tensor, share: Tensor) -> Tensor:
        """`Regression.solution`, in the span of the positions."""
        found = share, torch.ones_like(share)
        if self.held is not None and bool((share > DAMPING).any()):
            most, rest = self._of(~self.held), self._of(self.held)

            def gained(rho: Tensor) -> tuple[Tensor, Tensor]:
                seen = rest[0] @ _step(*most, rho).mT  # (g, n, o)
                return (seen * rest[1]).sum((1, 2)), seen.square().sum((1, 2))

            found = _tried(share, gained)
        rho, way = found
        return W + way[:, None, None].to(W) * _step(self.rows, self.errors, rho)

    def _of(self, some: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and errors at some positions (n,), around their means if they are centred."""
        parts = self.rows[:, some], self.errors[:, some]
        if not self.centred:
            return parts
        rows, errors = (X - X.mean(1, keepdim=True) for X in parts)
        return rows, errors


def _step(R: Tensor, errors: Tensor, share: Tensor) -> Tensor:
    """(groups, o, d) towards the errors of rows R."""
    rho = share[:, None, None].to(R)
    size = R.square().sum((1, 2)) / R.shape[-1]
    floor = torch.finfo(R.dtype).tiny ** 0.5
    ridge = (rho * size[:, None, None]).clamp_min(floor)
    gram = (1 - rho) * R @ R.mT + ridge * torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    scale, L = scaled_cholesky(gram)
    dual = scale[:, :, None] * torch.cholesky_solve(scale[:, :, None] * errors, L)
    return (1 - rho) * dual.mT @ R


@dataclass(frozen=True, eq=False)
class _Added:
    """What a batch of patches adds.

    Args:
        X: the patches as they came.
        version: of them, which changes where they are worked on in place; None where that is not
            known.
        rows: how many of them count as one draw.
        shift: what was taken off.
        shifted: (groups, positions, d).
        S: sum of their products (groups, d, d); None where they are held.
        norms: sum over the draws of the products' squared norms (groups,).
        draws: sum over the draws of their squared sizes.
    """

    X: Tensor
    version: int | None
    rows: int
    shift: Tensor
    shifted: Tensor
    S: Tensor | None
    norms: Tensor
    draws: int

    def serves(self, X: Tensor, rows: int, shift: Tensor, form: Form) -> bool:
        """Whether other patches are these very ones, and wanted alike."""
        if self.version is None or X.is_inference() or X._version != self.version:
            return False
        same = X.data_ptr() == self.X.data_ptr() and X.stride() == self.X.stride()
        same = same and X.shape == self.X.shape
        same = same and rows == self.rows and (self.S is None) == (form == "rows")
        return same and shift.dtype == self.shift.dtype and bool(torch.equal(shift, self.shift))


class Last:
    """What was added last, to any of the sums that share this: layers that read one input sum its
    products once."""

    added: _Added | None = None


class Sums:
    """Sums over batches from which `Moments` follow, and the regression on targets.

    Products of a batch are in the layer's own precision, at least float32; the sums over
    batches are float64, or float32 beyond a fan-in of 320. Inputs are shifted by the first
    batch's mean, so that subtracting the mean's square costs no digits.
    """

    def __init__(self, spec: LayerSpec, *, work: float = 1e11, last: Last | None = None) -> None:
        self.spec, self.n, self.seen, self.work = spec, 0, 0, work
        self._last = last
        self.S: Tensor
        self.form: Form = "diagonal" if spec.kind == "embedding" else "full"
        self.dtype = working_dtype(spec)
        self._look: Look | None = None
        self._rows: list[Tensor] = []
        self._goals: list[Tensor] = []
        self._out: list[Tensor] = []
        self._held: Fold | None = None
        self._shift: Tensor | None = None
        self._shift_y: Tensor | None = None
        self._examples, self._held_by = 0, torch.zeros((), dtype=torch.int64)

    def look(self, available: int) -> Look:
        """How the layer is looked at, settled when it is asked for the first time.

        Args:
            available: positions in all examples.
        """
        if self._look is None:
            self._look = look_at(self.spec, available, self.work)
            self.form = self._look.form
        return self._look

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
        added = self._added(X, rows or max(1, len(X)))
        X = added.shifted
        self.n += X.shape[1]
        self.s += X.sum(1)  # pairwise, in its own type: with a wider one it takes 20 times as long
        self._draws += added.draws
        self._norms += added.norms
        if added.S is None:
            self._rows.append(X)
        else:
            self.S += added.S
        if Y is not None:
            assert self._shift_y is not None
            Y = (wide(Y) - self._shift_y.to(X.dtype)).movedim(0, 1)  # (g, p, o)
            self.sy += Y.sum(1)
            for part, goal in zip(X.split(added.rows, 1), Y.split(added.rows, 1), strict=True):
                self._add_goal(part, goal)

    def _add_goal(self, X: Tensor, Y: Tensor) -> None:
        """Add products of the targets (g, p, o) of a draw of patches; one of four is held out."""
        self._n_draws += 1
        out = self._n_draws % _HELD_OUT == 2  # of two, too, there is one
        if self.form == "rows":
            self._goals.append(Y)
            self._out.append(X.new_full((X.shape[1],), out, dtype=torch.bool))
            return
        Q = (Y.mT @ X).to(self.dtype)
        self.Q += Q
        if out:
            s, sy, S = (t.to(self.dtype) for t in (X.sum(1), Y.sum(1), inner_products(X)))
            fold = Fold(X.shape[1], s, S, sy, Q)
            self._held = fold if self._held is None else self._held + fold

    def _added(self, X: Tensor, rows: int) -> _Added:
        """What patches (positions, groups, d) add, unless it is known."""
        shift, known = self._shift, None if self._last is None else self._last.added
        assert shift is not None
        if known is not None and known.serves(X, rows, shift, self.form):
            return known
        shifted = (X - shift.to(X.dtype)).movedim(0, 1)  # (g, p, d)
        low, high = shifted.aminmax()
        if not bool(torch.maximum(-low, high) > faint(X.dtype)):
            shifted = torch.zeros_like(shifted)
        S, norms, draws = None, torch.zeros_like(self._norms), 0
        for part in shifted.split(rows, dim=1):
            draws += part.shape[1] ** 2
            if self.form == "rows":
                product = part @ part.mT  # of the same norm as X^T X
            else:
                product = inner_products(part).to(self.dtype)
                S = product if S is None else S + product
            norms += torch.linalg.vector_norm(product, dim=(1, 2)).double().square()
        version = None if X.is_inference() else X._version
        found = _Added(X, version, rows, shift, shifted, S, norms, draws)
        if self._last is not None:
            self._last.added = found
        return found

    def share(self, whole: Tensor, size: Tensor) -> Tensor:
        """How much of the centred second moment is left to chance, (groups,), in [DAMPING, 1].

        The variance of the mean over all draws, as far as these differ, over the squared size
        of the moment: near 0 with many draws, near 1 with fewer than there are inputs.

        Args:
            whole: squared norm of the moment that is not centred, (groups,).
            size: squared norm of the centred one, (groups,).

        Source: the estimate of Ledoit and Wolf 2004, "A well-conditioned estimator for
        large-dimensional covariance matrices", lemma 3.4, with groups of positions for single
        draws. They divide by the distance from a multiple of the identity instead, which
        would give up a moment that is one, and with it the regression on such inputs.
        """
        least = torch.full_like(self._norms, DAMPING)
        together = self._draws / self.n**2  # 1 over the number of draws
        if together >= 1 - 1e-9:
            return least
        spread = (self._norms / self.n**2 - together * whole) / (1 - together)
        return (spread / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(DAMPING, 1.0)

    def count(self, words: Tensor) -> None:
        """Add word numbers of an embedding, without its padding where there is something else."""
        self._count_examples(words)
        if self.spec.padding_idx is not None:
            shown = words[words != self.spec.padding_idx]
            words = shown if shown.numel() else words
        counts = torch.bincount(words.flatten().cpu(), minlength=self.spec.in_channels)
        self.S = counts.double() + self.S if self.n else counts.double()
        self.n += words.numel()

    def _count_examples(self, words: Tensor) -> None:
        """In how many examples (b, ...) each word comes."""
        size = self.spec.in_channels
        rows = words.flatten(1).cpu() if words.ndim > 1 else words.cpu()[None]
        numbered = rows.long() + size * torch.arange(len(rows))[:, None]
        self._examples += len(rows)
        self._held_by = self._held_by + torch.bincount(numbered.unique() % size, minlength=size)

    def moments(self) -> Moments:
        """What was summed so far; at least one position."""
        seen = max(self.n, self.seen)
        if self.form == "diagonal":
            C = (self.S / self.n)[None]
            lone, once = (self._held_by == 1).to(C)[None], _once(C, self.n)
            if self._examples < _TELL or float((C * lone).sum()) <= float((C * once).sum()):
                lone = once
            share = C.new_full((1,), DAMPING)
            return Moments(self.n, seen, torch.zeros_like(C), C, share, lone=lone)
        assert self._shift is not None
        offset = self.s / self.n  # of the shifted inputs
        mean = self._shift + offset
        if self.form == "full":
            C = _centred(self.S / self.n, offset, offset)
            share = self.share(_squared(self.S / self.n), _squared(C))
            return Moments(self.n, seen, mean, C, share)
        X = torch.cat(self._rows, dim=1).to(self.dtype)
        R = (X - offset[:, None, :]) / self.n**0.5
        plain = X @ X.mT / self.n
        share = self.share(_squared(plain), _squared(R @ R.mT))
        return Moments(self.n, seen, mean, R.square().sum(1), share, R)

    def regression(self, *, centred: bool = True) -> Regression:
        """The targets against the inputs, where these are summed.

        Args:
            centred: errors of the mean do not count.
        """
        assert self._shift is not None
        assert self._shift_y is not None
        whole = Fold(self.n, self.s, self.S, self.sy, self.Q)
        around = None if centred else (self._shift, self._shift_y)
        parts = () if self._held is None else (whole - self._held, self._held)
        folds = tuple(part.products(around) for part in parts) or None
        mean = self._shift_y + self.sy / self.n
        return Regression(whole.products(around)[0], mean, folds)

    def missed(self, W: Tensor) -> Missed:
        """What a map misses of the targets at every position, where these are held.

        Args:
            W: (groups, o, d).
        """
        assert self._shift_y is not None
        offset, offset_y = self.s / self.n, self.sy / self.n
        X = torch.cat(self._rows, dim=1).to(self.dtype) - offset[:, None, :]
        Y = torch.cat(self._goals, dim=1).to(self.dtype) - offset_y[:, None, :]
        root, out = self.n**0.5, torch.cat(self._out)
        errors = (Y - X @ W.mT) / root
        return Missed(X / root, errors, self._shift_y + offset_y, out if out.any() else None)

    def _begin(self, X: Tensor, Y: Tensor | None) -> None:
        g, o, *_ = self.spec.weight_shape
        d = X.shape[-1]
        self._shift = X.mean(0).to(self.dtype)
        new = X.new_zeros
        self.s = new((g, d), dtype=self.dtype)
        if self.form == "full":
            self.S = new((g, d, d), dtype=self.dtype)
        self._norms = new((g,), dtype=torch.float64)
        self._draws = self._n_draws = 0
        if Y is not None:
            self._shift_y = wide(Y).mean(0).to(self.dtype)
            self.sy = new((g, o), dtype=self.dtype)
            if self.form == "full":
                self.Q = new((g, o, d), dtype=self.dtype)


def rows_of_a_draw(n: int, examples: int) -> int:
    """Of n positions of so many examples, how many count as one draw from the data."""
    return max(1, -(-n // max(1, min(_PIECES, examples, n // 4))))


def _squared(S: Tensor) -> Tensor:
    """Squared Frobenius norm (groups,) of (groups, ..., ...)."""
    return S.double().square().sum((1, 2))


def _centred(S: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return S - a[:, :, None] * b[:, None, :]
