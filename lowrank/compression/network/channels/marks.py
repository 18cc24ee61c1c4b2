"""Marks on tensors: which channel each element belongs to, carried through a run.

A mark is a tensor of whole numbers of the same shape as what it marks, mostly one row expanded.
Functions that move elements move their marks alike; where two marks meet at one element, as in a
residual sum or under a gate, their channels are one from then on. What no rule here knows reads
all that it is given, and holds those channels where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

FIXED = 0
"""The mark of what belongs to no channel that may go."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EACH = _words("""
    relu silu gelu sigmoid tanh hardswish hardsigmoid leaky_relu elu celu selu relu6 hardtanh
    softplus softsign mish logsigmoid threshold dropout dropout1d dropout2d dropout3d
    feature_dropout alpha_dropout exp log log1p expm1 sqrt rsqrt pow square abs neg reciprocal
    clamp clamp_min clamp_max sin cos erf sign add sub rsub mul div true_divide maximum
    minimum float half double bfloat16 to type type_as contiguous clone detach requires_grad
    nan_to_num masked_fill where
""")
"""Functions of each element alone."""

_MOVES = _words("""
    view reshape view_as reshape_as flatten unflatten permute transpose t swapaxes swapdims
    movedim moveaxis unsqueeze squeeze expand expand_as broadcast_to chunk split
    split_with_sizes tensor_split unbind select narrow cat concat concatenate stack repeat
    repeat_interleave tile flip roll channel_shuffle native_channel_shuffle
""")
"""Functions that move elements; they move marks alike."""

_PARTS = _words("getitem split split_with_sizes narrow tensor_split unbind select chunk")
"""Of those, what takes parts."""

_OVER = _words("mean sum amax amin var std logsumexp norm")
"""Functions that leave out axes."""

_NORMS = _words("layer_norm rms_norm")
"""Functions over the last axes, as many as their second argument names."""

_PLACES = frozenset(
    f"{name}{n}d"
    for name in ("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool")
    for n in (1, 2, 3)
) | {"boolean_dispatch", "interpolate", "pad"}
"""Functions over the places of a picture, channel by channel."""

_SHAPES = _words("""
    size dim ndimension stride numel nelement is_contiguous is_floating_point is_complex
    get_device element_size storage_offset len hash register_hook is_view
    is_same_size new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like
    rand_like randn_like
""")
"""Questions about a tensor that its elements do not answer."""

_SPOKEN = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "radd": "add", "rmul": "mul",
    "rsub": "sub", "truediv": "div", "rtruediv": "div", "rpow": "pow", "ipow": "pow",
    "rdiv": "div", "idiv": "div", "multiply": "mul", "divide": "div", "subtract": "sub",
}  # fmt: skip
"""Other names of the same functions."""


@dataclass
class Ties:
    """Which marks are one: a forest of numbers (Tarjan 1975), with what tied and fixed them."""

    parent: list[int] = field(default_factory=lambda: [FIXED])
    links: dict[int, tuple[int, str]] = field(default_factory=dict)

    def new(self, n: int) -> Tensor:
        """Marks of n new channels."""
        first = len(self.parent)
        self.parent += range(first, first + n)
        return torch.arange(first, first + n)

    def root(self, mark: int) -> int:
        """The one that stands for all that are tied to a mark."""
        while self.parent[mark] != mark:
            self.parent[mark] = self.parent[self.parent[mark]]
            mark = self.parent[mark]
        return mark

    def canonical(self, marks: Tensor) -> Tensor:
        """The root of each mark in its place."""
        known, places = marks.unique(return_inverse=True)
        roots = torch.tensor(self.roots(known), dtype=torch.int64)
        return roots[places].reshape(marks.shape)

    def tie(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Make the marks at the same places one.

        Args:
            a: marks.
            b: as many.
            reason: why those are fixed that meet a fixed one.
        """
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)]).unique(dim=1)
        for x, y in pairs[:, pairs[0] != pairs[1]].T.tolist():
            self._tie(x, y, reason)

    def fix(self, marks: Tensor, reason: str) -> None:
        """Hold these channels where they are."""
        for x in marks.unique().tolist():
            self._tie(x, FIXED, reason)

    def _tie(self, x: int, y: int, reason: str) -> None:
        a, b = sorted((self.root(x), self.root(y)))
        if a == b:
            return
        self.parent[b] = a  # the fixed one is the least
        self.links[b] = a, reason

    def roots(self, marks: Tensor) -> list[int]:
        """The root of each."""
        return [self.root(m) for m in marks.tolist()]

    def reason(self, mark: int) -> str | None:
        """What fixed a channel, or None."""
        if self.root(mark) != FIXED:
            return None
        why = "it is fixed"
        while mark != FIXED:  # not by the parents, which are shortcuts
            mark, why = self.links.get(mark, (FIXED, why))
        return why


class Marks(TorchFunctionMode):
    """Carries the marks of tensors through the functions that are called on them.

    Args:
        ties: which of them are one.
    """

    def __init__(self, ties: Ties) -> None:
        super().__init__()
        self.ties, self.paused = ties, 0
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        """The marks of a tensor, or None of one that has none."""
        found = self._held.get(id(tensor))
        return None if found is None else found[1]

    def put(self, tensor: Tensor, marks: Tensor) -> None:
        """Mark a tensor; it is held, so that its id stays its own."""
        self._held[id(tensor)] = tensor, folded(marks)

    def marked(self, *values: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """The tensors in these values that have marks, with them."""
        for value in tree_flatten(values)[0]:
            if isinstance(value, Tensor) and (marks := self.of(value)) is not None:
                yield value, marks

    def fix(self, reason: str, *values: Any) -> None:
        """Hold the channels of all tensors in these values."""
        for _, marks in self.marked(*values):
            self.ties.fix(lean(marks), reason)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and mark what it gives."""
        kwargs = kwargs or {}
        if self.paused or not any(True for _ in self.marked(args, kwargs)):
            return func(*args, **kwargs)
        name, in_place = _name_of(func)
        before = list(self.marked(args, kwargs))
        out = func(*args, **kwargs)
        if name in _SHAPES or (name == "get" and not _has_tensor(out)):
            return out
        try:
            known = self._follow(name, func, args, kwargs, out)
        except Exception:  # a function that takes marks otherwise than numbers: not known
            known = False
        target = args[0] if args else None
        bare = in_place and isinstance(target, Tensor) and self._was_bare(target, before)
        if not known or bare:
            for _, marks in before:
                self.ties.fix(lean(marks), f"{name} reads it")
        return out

    def _was_bare(self, target: Tensor, before: Sequence[tuple[Tensor, Tensor]]) -> bool:
        return not any(t is target for t, _ in before)

    def _follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        """Mark what a function gave; False where no rule tells how."""
        if name in _EACH and isinstance(out, Tensor):
            return self._each(args, kwargs, out)
        if name in _MOVES or name in ("getitem", "get"):
            return self._moved(func, args, kwargs, out)
        if name in _PLACES and isinstance(out, Tensor):
            return self._places(args, kwargs, out)
        if name in _OVER and isinstance(out, Tensor):
            return self._reduced(args, kwargs, out)
        if name in ("softmax", "log_softmax") and isinstance(out, Tensor):
            return self._along(args, kwargs, out)
        if name in _NORMS and isinstance(out, Tensor):
            return self._normed(*args, out=out, **kwargs)
        if name in ("matmul", "bmm") and isinstance(out, Tensor):
            return self._product(*args, out=out, **kwargs)
        if name == "scaled_dot_product_attention":
            return self._attended(*args, out=out, **kwargs)
        return False

    def _each(self, args: Any, kwargs: Any, out: Tensor) -> bool:
        rows: list[tuple[torch.Size, Tensor | None]] = []
        for value in tree_flatten((args, kwargs))[0]:
            if not isinstance(value, Tensor):
                continue
            marks = self.of(value)
            if marks is None:
                if value.numel() > 1:
                    rows.append((value.shape, None))
            else:
                rows.append((value.shape, marks.expand(out.shape)))
        found = [marks for _, marks in rows if marks is not None]
        first = found[0]
        for other in found[1:]:
            a, b = torch.broadcast_tensors(lean(first), lean(other))
            self.ties.tie(a, b, "it meets a channel that is fixed")
            first = torch.maximum(a, b).expand(out.shape)
        for shape, marks in rows:
            if marks is None and (axes := self._varies_where(first, shape)):
                less = self.together(first, axes)
                if less is None:
                    self.ties.fix(lean(first), "it meets numbers of the model that are no layer's")
                else:
                    first = less
        self.put(out, first)
        return True

    def _varies_where(self, marks: Tensor, shape: torch.Size) -> list[int]:
        """The axes along which marks differ and along which a tensor of this shape extends."""
        row = lean(marks)
        padded = (1,) * (row.ndim - len(shape)) + tuple(shape)
        both = zip(row.shape, padded, strict=True)
        return [k for k, (a, b) in enumerate(both) if a > 1 and b > 1]

    def together(self, marks: Tensor, axes: Sequence[int]) -> Tensor | None:
        """Marks that are one along some axes, as the channels of a head are: these go together.

        None where nothing else tells the marks apart.
        """
        row = self.ties.canonical(lean(marks))
        axes = [k % row.ndim for k in axes]
        if not any(row.shape[k] > 1 for k in axes):
            return marks
        first = row.amin(axes, keepdim=True)
        if first.numel() == 1:
            return None
        self.ties.tie(row, first.expand(row.shape), "it goes with channels that are fixed")
        return self.ties.canonical(first).expand(marks.shape)

    def _moved(self, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
        def swap(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            marks = self.of(value)
            return (
                torch.zeros((), dtype=torch.int64).expand(value.shape) if marks is None else marks
            )

        def move() -> list[Tensor]:
            return tree_flatten(func(*tree_map(swap, args), **tree_map(swap, kwargs)))[0]

        given, made = tree_flatten(out)[0], move()
        if any(t.shape != m.shape for t, m in zip(given, made, strict=True)):
            return False
        tensor, whole = max(self.marked(args, kwargs), key=lambda pair: _n_marks(pair[1]))
        parted = len(made) > 0 and min(map(_n_marks, made)) < _n_marks(whole)
        if parted and not self._alike(func, made):
            less = self._whole_heads(tensor, whole, move)
            if less is None:
                return False
            made = less
        for tensor, marks in zip(given, made, strict=True):
            self.put(tensor, marks)
        return True

    def _whole_heads(
        self, tensor: Tensor, marks: Tensor, move: Callable[[], list[Tensor]]
    ) -> list[Tensor] | None:
        """The marks of parts along an axis whose channels go together with those beside them, so
        that each part has all heads; None where there is no such axis."""
        row = self.ties.canonical(lean(marks))
        for axis in reversed(range(row.ndim)):
            first = row.amin(axis, keepdim=True)
            if row.shape[axis] == 1 or first.numel() == 1:
                continue
            self.put(tensor, first.expand(marks.shape))
            made = move()
            if min(map(_n_marks, made)) == _n_marks(first):
                less = self.together(marks, [axis])
                assert less is not None
                self.put(tensor, less)
                return move()
        self.put(tensor, marks)
        return None

    def _alike(self, func: Any, parts: Sequence[Tensor]) -> bool:
        """Tie what stands at one place of equal parts, whose number stays the same."""
        if func.__name__ not in ("chunk", "tensor_split") or len({p.shape for p in parts}) > 1:
            return False
        for part in parts[1:]:
            self.ties.tie(lean(parts[0]), lean(part), "another part of it is fixed")
        return True

    def _places(self, args: Any, kwargs: Any, out: Tensor) -> bool:
        found = list(self.marked(args, kwargs))
        if len(found) != 1 or found[0][0].ndim != out.ndim:
            return False
        tensor, marks = found[0]
        row = lean(marks)
        for axis in range(out.ndim):
            if out.shape[axis] != tensor.shape[axis] and row.shape[axis] > 1:
                return False
        if sum(n > 1 for n in row.shape) > 1 or any(n > 1 for n in row.shape[2:]):
            return False
        self.put(out, row.expand(out.shape))
        return True

    def _reduced(self, args: Any, kwargs: Any, out: Tensor) -> bool:
        (_, marks), *others = self.marked(args, kwargs)
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        if others or given is None:
            return False
        axes = [given] if isinstance(given, int) else list(given)
        less = self.together(marks, axes)
        if less is None:
            return False
        left = less.amin(axes, keepdim=out.ndim == marks.ndim)
        if left.shape != out.shape:
            return False
        self.put(out, left)
        return True

    def _normed(
        self, x: Tensor, shape: Sequence[int], *rest: Any, out: Tensor, **more: Any
    ) -> bool:
        """Over the last axes: what is normed together goes together."""
        marks = self.of(x)
        less = None if marks is None else self.together(marks, range(-len(shape), 0))
        if less is None:
            return False
        self.put(out, less)
        return True

    def _product(self, a: Tensor, b: Tensor, *rest: Any, out: Tensor, **more: Any) -> bool:
        """Of a matrix for each head: the channels of one head go together, in both."""
        row = self._heads(rest, more, (a, -1), (b, -1))
        if row is None or out.ndim != max(a.ndim, b.ndim):
            return False
        self.put(out, row.expand(out.shape))
        return True

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, *rest: Any, out: Tensor, **more: Any
    ) -> bool:
        """The channels of one head go together, in queries, keys and values."""
        grouped = bool(more.pop("enable_gqa", False))
        n = query.shape[-3] // key.shape[-3] if grouped and query.ndim > 2 else 1
        row = self._heads(rest, more, (query, 1), (key, n), (value, n))
        if row is None:
            return False
        self.put(out, row.expand(out.shape))
        return True

    def _heads(self, rest: Any, more: Any, *some: tuple[Tensor, int]) -> Tensor | None:
        """One mark for each head of tensors (..., heads, n, d), or None.

        Args:
            rest: further arguments, such as a mask.
            more: likewise, by name.
            *some: each tensor, and for how many heads one of its own stands.
        """
        rows = []
        for tensor, times in some:
            marks = self.of(tensor)
            if marks is None or tensor.ndim < 3:
                return None
            less = self.together(marks, [-1, -2])
            if less is None:
                return None
            row = lean(less)[..., :1, :1].movedim(-3, 0).repeat_interleave(max(times, 1), 0)
            rows.append(row.movedim(0, -3))
        first = rows[0]
        for other in rows[1:]:
            a, b = torch.broadcast_tensors(first, other)
            self.ties.tie(a, b, "it meets a head that is fixed")
            first = a
        first = self.ties.canonical(first)
        for value in tree_flatten((rest, more))[0]:
            if isinstance(value, Tensor) and value.ndim > 2 and value.shape[-3] > 1:
                self.ties.fix(first, "numbers for each head, such as a mask, meet it")
        return first

    def _along(self, args: Any, kwargs: Any, out: Tensor) -> bool:
        (_, marks), *others = self.marked(args, kwargs)
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        row = lean(marks)
        if others or not isinstance(axis, int) or row.shape[axis] > 1:
            return False
        self.put(out, marks)
        return True


def lean(marks: Tensor) -> Tensor:
    """Marks without the axes along which they are one row expanded."""
    for axis, (size, stride) in enumerate(zip(marks.shape, marks.stride(), strict=True)):
        if size > 1 and stride == 0:
            marks = marks.narrow(axis, 0, 1)
    return marks


def _n_marks(marks: Tensor) -> int:
    return len(lean(marks).unique())


def folded(marks: Tensor) -> Tensor:
    """Marks that are one row expanded along every axis along which they do not differ."""
    row = lean(marks)
    for axis in range(row.ndim):
        first = row.narrow(axis, 0, min(1, row.shape[axis]))
        if row.shape[axis] > 1 and bool((row == first).all()):
            row = first
    return row.expand(marks.shape)


def _name_of(func: Callable[..., Any]) -> tuple[str, bool]:
    """The plain name of a function, and whether it works in place."""
    name = getattr(func, "__name__", str(func))
    if name.startswith("__") and name.endswith("__"):
        plain = name[2:-2]
        return _SPOKEN.get(plain, plain), plain.startswith("i") and plain in _SPOKEN
    if name.startswith("_") and name[1:] in _PLACES:
        name = name[1:]
    in_place = name.endswith("_")
    plain = name.rstrip("_")
    return _SPOKEN.get(plain, plain), in_place


def _has_tensor(out: Any) -> bool:
    return any(isinstance(v, Tensor) for v in tree_flatten(out)[0])
