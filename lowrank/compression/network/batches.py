"""Batches, from the forms that data comes in: read here, once, for all that takes data.

| data | batches |
|---|---|
| a loader or list | whatever it yields |
| tensor `x` (n, ...) | split into batches; to train on, shuffled anew each epoch |
| tuple of tensors `(x, y)` | the same, `y` being the labels |
| tuple of tensors `(x1, x2)` or `(x1, x2, y)` | the same, where the model takes two inputs |
| dict | one batch |

| batch | inputs | labels |
|---|---|---|
| tensor `x`, or `[x]` | `x` | none |
| `(x, y, ...)` | `x` | `y`, or None |
| `(x1, x2)`, `(x1, x2, y)` or `((x1, x2), y)` | both, where the model takes two | `y`, or None |
| dict | the entries that the model takes | `batch["labels"]` |
| namedtuple or dataclass `b`, or `(b, y)` | `b`, where the model takes it whole | `y`, or None |

What the model takes is seen by the example; by `finetune`, which has none, by what the model was
compressed with, else by its forward's required arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lowrank.compression.network.cutting import _is_one
from lowrank.compression.network.example import Example, batch_size, check
from lowrank.compression.network.tensors import describe, is_whole, like_mapping, mapped, tensors
from lowrank.compression.network.words.counts import may_be_words, numbers_in
from lowrank.errors import InputError


@dataclass(frozen=True)
class Form:
    """How a model takes its inputs, by which a batch tells inputs from labels.

    Args:
        several: how many inputs it takes in a row; None where it takes one, or names.
        names: of the inputs that it takes by name; None where it takes them in a row.
        record: class of the namedtuple or dataclass that it takes whole; None otherwise.
        nested: the first of several inputs is itself a tuple, list or dict.
        known: an example showed it.
        single: the look of one example of a batch, as `_looks` tells it; None without one.
        device: that batches are moved to, the example's; None leaves them where they are.
    """

    several: int | None = None
    names: frozenset[str] | None = None
    record: type | None = None
    nested: bool = False
    known: bool = False
    single: tuple[tuple[int, int], ...] | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, example: Example | None) -> Form:
        """The form that an example shows.

        Example:
            >>> Form.of((torch.zeros(2, 3), torch.ones(2))).several
            2
        """
        if example is None:
            return cls()
        found = tensors(example)
        devices = {t.device for t in found}
        return replace(
            cls._shown_by(example),
            single=_looks([t[0] for t in found]) if all(t.ndim and len(t) for t in found) else None,
            device=devices.pop() if len(devices) == 1 else None,
        )

    @classmethod
    def _shown_by(cls, example: Example) -> Form:
        if isinstance(example, Tensor):
            return cls(known=True)
        if is_whole(example):
            return cls(record=type(example), known=True)
        if isinstance(example, Mapping):
            return cls(names=frozenset(example), known=True)
        nested = bool(example) and isinstance(example[0], tuple | list | Mapping)
        return cls(several=len(example), nested=nested, known=True)

    @classmethod
    def taken_by(cls, model: nn.Module) -> Form:
        """The form that the required arguments of a model's forward show.

        Example:
            >>> Form.taken_by(nn.Bilinear(2, 3, 4)).several, Form.taken_by(nn.Linear(2, 3)).several
            (2, None)
        """
        required = [p for p in _parameters(model) if p.kind in _IN_A_ROW and p.default is p.empty]
        return cls(several=len(required) if len(required) > 1 else None)

    def to_train(self, model: nn.Module) -> Form:
        """The same for training: labels are apart, other names that forward knows are taken."""
        form = replace(self, device=None)  # that of the model, by then
        if self.names is None:
            return form
        found = _parameters(model)
        if any(p.kind is p.VAR_KEYWORD for p in found):
            return replace(form, names=None)
        return replace(form, names=(self.names | {p.name for p in found}) - {"labels"})

    def checked(self, inputs: Any, name: str) -> Any:
        """The inputs of a batch, on the example's device.

        Raises:
            InputError: there is no tensor, one holds NaN or Inf, or it is a single example of
                what the model takes in batches.
        """
        found = tensors(inputs)
        if not found:
            problem = f"a batch holds no tensor, given {describe(inputs)}"
            advice = "give tensors; of a datasets.Dataset, take data.with_format('torch')"
            raise InputError(name, problem, advice)
        check(inputs, name)
        if self.single == _looks(found):
            problem = f"it gives single examples, {describe(inputs)}, without the axis of a batch"
            raise InputError(name, problem, _LOADER)
        if self.device is None or all(t.device == self.device for t in found):
            return inputs
        return mapped(inputs, lambda t: t.to(self.device, non_blocking=t.is_pinned()))

    def parts(self, item: Any, name: str = "data") -> tuple[Any, Any]:
        """Inputs and labels of a loader's item.

        Raises:
            InputError: a form that is not in the table.
        """
        if isinstance(item, Mapping):
            return self._named(item)
        pair = isinstance(item, tuple | list) and len(item) in (1, 2)
        if self.record is not None:
            labelled = pair and not isinstance(item, self.record)
            return (item[0], _second(item)) if labelled else (item, None)
        if not isinstance(item, tuple | list):
            return item, None
        if not item:
            raise InputError(name, "a batch is empty", "give inputs, or (inputs, labels)")
        if self.names is not None and pair and isinstance(item[0], Mapping):
            return self._named(item[0])[0], _second(item)
        if self.several is None:
            if len(item) > 2 and not self.known:
                advice = "give several inputs as ((x1, x2), labels), and others by name"
                raise InputError(name, f"a batch is {describe(item)}", advice)
            return item[0], _second(item)
        inside = item[0]
        if pair and not self.nested and isinstance(inside, tuple | list):
            return inside, _second(item)  # ((x1, x2), labels)
        return tuple(item[: self.several]), (
            item[self.several] if len(item) > self.several else None
        )

    def _named(self, item: Mapping[str, Any]) -> tuple[Any, Any]:
        labels = item.get("labels")
        if self.names is None:
            return like_mapping(item, {k: v for k, v in item.items() if k != "labels"}), labels
        kept = {k: v for k, v in item.items() if k in self.names}
        return like_mapping(item, kept), None if "labels" in kept else labels


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one step, with labels where the data has them."""

    inputs: Example
    labels: Any

    def __len__(self) -> int:
        return batch_size(self.inputs)

    @classmethod
    def of(cls, item: Any, form: Form | None = None, name: str = "data") -> Batch:
        """The batch that a loader's item stands for.

        Raises:
            InputError: a form that is not in the table, or NaN or Inf among the inputs.

        Example:
            >>> Batch.of({"x": torch.zeros(8, 3), "labels": torch.zeros(8)}).inputs.keys()
            dict_keys(['x'])
        """
        if isinstance(item, Batch):
            return item
        form = form or Form()
        inputs, labels = form.parts(item, name)
        return cls(form.checked(inputs, name), labels)

    def to_train(self) -> Batch:
        """The same, of which labels are known to be a tensor.

        Raises:
            InputError: they are none.
        """
        if self.labels is not None and not isinstance(self.labels, Tensor):
            problem = f"labels are a {type(self.labels).__name__}"
            raise InputError("data", problem, "give them as a tensor, or None")
        return self

    def mixed(self) -> Batch:
        """Each example moved towards another of the batch by a random share; without labels.

        Raises:
            InputError: inputs that are not all floating-point with examples on the first axis.

        Example:
            >>> Batch(torch.tensor([[0.0], [1.0]]), None).mixed().inputs.shape
            torch.Size([2, 1])

        Source: mixup, Zhang et al. 2018; scored by a teacher, Beyer et al. 2022.
        """
        if not mixable(self.inputs):
            problem = f"inputs {describe(self.inputs)} cannot be mixed"
            advice = "give floating-point inputs with examples on the first axis, or mix=False"
            raise InputError("mix", problem, advice)
        n = len(self)
        return Batch(_mixed(self.inputs, torch.randperm(n), torch.rand(n)), None)


@dataclass(frozen=True, eq=False)
class Batches:
    """Data that was read at the door, and can be gone through again and again.

    Args:
        source: called once an epoch; gives the items of that epoch.
        steps: items in an epoch; None where the data does not know.
        form: how the model takes its inputs.
        name: what errors call the data.
    """

    source: Callable[[], Iterable[Any]]
    steps: int | None
    form: Form = Form()
    name: str = "data"

    def __iter__(self) -> Iterator[Batch]:
        return (Batch.of(item, self.form, self.name) for item in self.source())

    @classmethod
    def of(
        cls,
        data: Any,
        form: Form | None = None,
        *,
        size: int = 64,
        generator: torch.Generator | None = None,
        name: str = "data",
        once: bool = False,
    ) -> Batches:
        """Batches of the data.

        Args:
            data: see the table in the module's docstring.
            form: how the model takes its inputs; one tensor, if nothing says otherwise.
            size: examples in a batch, for data given as tensors.
            generator: shuffles data given as tensors, in near-equal batches; None leaves
                their order, and fills all batches but the last.
            name: what errors call the data.
            once: it is gone through a single time, so that an iterator serves too.

        Raises:
            InputError: data that is empty, gives its batches only once, or has no batches.

        Example:
            >>> [len(b) for b in Batches.of(torch.zeros(10, 3), size=4)]
            [4, 4, 2]
        """
        form = form or Form()
        whole = _as_tensors(data, form, name)
        if whole is not None:
            steps = -(-len(whole[0]) // size)
            source = _shuffled(whole, steps, generator) if generator else _in_order(whole, size)
            batches = cls(source, steps, form, name)
        elif isinstance(data, Mapping) or is_whole(data):
            batches = cls(lambda: [data], 1, form, name)
        elif isinstance(data, Dataset) and not isinstance(data, IterableDataset):
            raise InputError(name, f"a {type(data).__name__} gives no batches", _LOADER)
        elif isinstance(data, str | bytes) or not isinstance(data, Iterable):
            raise InputError(name, f"a {type(data).__name__} gives no batches", _FORMS)
        elif not once and iter(data) is data:
            raise InputError(name, "an iterator gives its batches only once", _FORMS)
        else:
            batches = cls(lambda: data, _length(data), form, name)
        if batches.steps == 0:
            raise InputError(name, "it holds no batch", "pass at least one")
        return batches

    def first(self) -> Batch:
        """The first batch.

        Raises:
            InputError: there is none.
        """
        for batch in self:
            return batch
        raise InputError(self.name, "it holds no batch", "pass at least one")


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of batches, without labels, as often as they are asked for."""

    batches: Batches

    def __iter__(self) -> Iterator[Example]:
        return (batch.inputs for batch in self.batches)


def hold_out(
    data: Any, share: float, generator: torch.Generator, form: Form | None = None
) -> tuple[Any, Any]:
    """Data given as tensors in two random parts: to train on, and a share to check on.

    Raises:
        InputError: the data is not given as tensors, or one part would be empty.

    Example:
        >>> rest, held = hold_out(torch.arange(10), 0.2, torch.Generator().manual_seed(0))
        >>> len(rest), len(held)
        (8, 2)
    """
    whole = _as_tensors(data, form or Form(), "data")
    if whole is None:
        problem = f"a share of {share} cannot be held out of a {type(data).__name__}"
        raise InputError("val", problem, "pass batches of their own as val")
    n = len(whole[0])
    held = round(share * n)
    if not 0 < held < n:
        problem = f"a share of {share} of {n} examples leaves one part empty"
        raise InputError("val", problem, "pass a share in (0, 1) that leaves examples in both")
    order = torch.randperm(n, generator=generator)
    parts = [tuple(_take(t, part) for t in whole) for part in (order[held:], order[:held])]
    train, check_on = parts if len(whole) > 1 else (p[0] for p in parts)
    return train, check_on


def mixable(inputs: Any) -> bool:
    """Whether inputs are floating-point alone and hold their examples on the first axis.

    Example:
        >>> mixable(torch.zeros(4, 3)), mixable(torch.zeros(4, 3, dtype=torch.long))
        (True, False)
    """
    found = tensors(inputs)
    return bool(found) and all(
        t.is_floating_point() and t.ndim > 0 and len(t) == len(found[0]) for t in found
    )


def _mixed(inputs: Any, order: Tensor, shares: Tensor) -> Any:
    def mix(t: Tensor) -> Tensor:
        weights = shares.to(t).reshape(-1, *[1] * (t.ndim - 1))
        return t.lerp(_take(t, order), weights)

    return mapped(inputs, mix)


def placed(inputs: Any, module: nn.Module) -> Any:
    """The inputs on the module's device and, where floating, in the type of its parameters.

    In a module of several types they stay in theirs: it takes what its parts do not tell.

    Example:
        >>> placed({"x": torch.zeros(2)}, nn.Linear(2, 2).double())["x"].dtype
        torch.float64
    """
    floating = [p for p in module.parameters() if p.is_floating_point()]
    if not floating:
        return inputs
    device, types = floating[0].device, {p.dtype for p in floating}
    dtype = types.pop() if len(types) == 1 else None
    return mapped(inputs, lambda t: t.to(device, dtype if t.is_floating_point() else None))


_LOADER = "pass torch.utils.data.DataLoader(data, batch_size=64)"


_FORMS = "pass a loader, a list of batches, a tensor of inputs, or a tuple (inputs, labels)"


_IN_A_ROW = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """Of the model's forward; none where it does not say."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _looks(inputs: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """Each tensor's number of axes, and the length of its first where further ones follow.

    Example:
        >>> _looks([torch.zeros(3, 32, 32)]), _looks([torch.zeros(17)])
        (((3, 3),), ((1, 0),))
    """
    return tuple(sorted((t.ndim, t.shape[0] if t.ndim > 1 else 0) for t in inputs))


def _second(item: Any) -> Any:
    return item[1] if len(item) > 1 else None


def _as_tensors(data: Any, form: Form, name: str) -> tuple[Tensor, ...] | None:
    """The tensors of data given as `x`, `(x, y)` or several inputs; None for a loader or list."""
    whole = (data,) if isinstance(data, Tensor) else data
    if type(whole) is not tuple or not all(isinstance(t, Tensor) for t in whole):
        return None
    n = form.several or 1
    shapes = ", ".join(str(tuple(t.shape)) for t in whole)
    if len(whole) not in (n, n + 1) or not all(t.ndim for t in whole):
        raise InputError(name, f"a tuple of tensors of shapes {shapes}", _FORMS)
    if len({len(t) for t in whole}) != 1:
        problem = f"inputs and labels have shapes {shapes}"
        raise InputError(name, problem, "give one label for each input")
    return whole


def _in_order(whole: tuple[Tensor, ...], size: int) -> Callable[[], Iterable[Any]]:
    return lambda: zip(*(t.split(size) for t in whole), strict=True)


def _shuffled(
    whole: tuple[Tensor, ...], steps: int, generator: torch.Generator
) -> Callable[[], Iterable[Any]]:
    """Near-equal parts: a last batch of one example would break batch norm."""

    def source() -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(whole[0]), generator=generator)
        for part in order.tensor_split(steps):
            yield tuple(_take(t, part) for t in whole)

    return source


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor[index.to(tensor.device)]


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over an iterable dataset has no length
        return None


class Examples(list[Example]):
    """Batches of the examples that are used, and what was counted behind them.

    Args:
        batches: of the examples.
        further: for each tensor of a batch, how often each whole number comes in the examples
            that are not used, (numbers,); None of a tensor of other things; empty where nothing
            was counted.
    """

    def __init__(
        self, batches: Iterable[Example] = (), further: Sequence[Tensor | None] = ()
    ) -> None:
        super().__init__(batches)
        self.further = tuple(further)


def further_of(data: Sequence[Example]) -> tuple[Tensor | None, ...]:
    """What was counted behind examples, if anything was."""
    return data.further if isinstance(data, Examples) else ()


def taken(
    data: Any,
    example: Example | None,
    count: int = 256,
    *,
    rest: int = 0,
    size: int = 64,
) -> tuple[Examples, list[Example]]:
    """The first examples of the data, as batches of inputs in the example's form, and further ones.

    Where examples are whole numbers alone, as texts are, those behind both are counted, sixteen
    times as many as are used at most: a table of words is fitted by how often each comes. An
    iterator is left where it is.

    Args:
        data: see the table in the module's docstring; an iterator goes on from where it was left.
        example: shows what the model takes.
        count: at least so many examples, if there are as many.
        rest: how many of those behind them to read, at least, if there are as many.
        size: examples in a batch; larger ones are split where they are one tensor.

    Raises:
        InputError: no batch at all, NaN or Inf, or data that gives no batches.

    Example:
        >>> used, behind = taken(torch.zeros(10, 3), torch.zeros(1, 3), 6, rest=2)
        >>> [len(b) for b in used], [len(b) for b in behind]
        ([6], [2])
    """
    used: list[Example] = []
    behind: list[Example] = []
    lacking, wanted = count, rest
    batches = iter(Inputs(Batches.of(data, Form.of(example), once=True)))
    for batch in batches:
        n = batch_size(batch)
        if lacking > 0:
            used.extend(batch[:lacking].split(size) if _is_one(batch) else [batch])
        begin = max(lacking, 0) if _is_one(batch) else n if lacking > 0 else 0
        lacking -= n
        if wanted > 0 and begin < n:
            behind.append(batch[begin : begin + wanted] if _is_one(batch) else batch)
            wanted -= n - begin
        if lacking <= 0 and wanted <= 0:
            break
    if not used:
        raise InputError("data", "it holds no batch", "pass at least one")
    if isinstance(data, Iterator) or not may_be_words(used[0]):
        return Examples(used), behind
    return Examples(used, numbers_in(batches, _COUNTED * count)), behind


_COUNTED = 16
"""Times the examples that are used, of those behind them whose words are counted."""


def calibration_batches(
    data: Any, example: Example | None, count: int = 256, size: int = 64
) -> Examples:
    """The first examples of the data, as batches of inputs in the example's form; see `taken`."""
    return taken(data, example, count, size=size)[0]
