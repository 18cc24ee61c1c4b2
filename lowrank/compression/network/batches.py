"""Batches to train on, from the forms that data comes in.

| data | batches |
|---|---|
| a loader or list | whatever it yields, moved to the model's device |
| tensor `x` (n, ...) | shuffled anew each epoch, split into near-equal batches |
| tuple of two tensors `(x, y)` | the same, `y` being the labels |

| batch | inputs | labels |
|---|---|---|
| tensor `x`, or `[x]` | `x` | none |
| `(x, y)` | `x`, itself a tensor, tuple or dict | `y`, or None |
| dict with "labels" | the other entries | `batch["labels"]` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.network.cutting import _is_one, batch_size
from lowrank.compression.network.example import Example, check
from lowrank.compression.network.tensors import describe, mapped, tensors
from lowrank.errors import InputError


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one step, with labels where the data has them."""

    inputs: Example
    labels: Tensor | None

    def __len__(self) -> int:
        return batch_size(self.inputs)

    @classmethod
    def of(cls, item: Any) -> Batch:
        """The batch that a loader's item stands for.

        Raises:
            InputError: a form that is not in the table, or NaN or Inf among the inputs.

        Example:
            >>> Batch.of({"x": torch.zeros(8, 3), "labels": torch.zeros(8)}).inputs.keys()
            dict_keys(['x'])
        """
        inputs, labels = _parts(item)
        check(inputs, "data")
        if labels is not None and not isinstance(labels, Tensor):
            raise InputError(
                "data", f"labels are a {type(labels).__name__}", "give them as a tensor, or None"
            )
        return cls(inputs, labels)

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
    """Data that can be gone through once an epoch.

    Args:
        source: called once an epoch; gives the items of that epoch.
        steps: items in an epoch; None where the data does not know.
    """

    source: Callable[[], Iterable[Any]]
    steps: int | None

    def __iter__(self) -> Iterator[Batch]:
        return (Batch.of(item) for item in self.source())

    @classmethod
    def of(
        cls, data: Any, *, size: int, generator: torch.Generator | None = None, name: str = "data"
    ) -> Batches:
        """Batches of the data.

        Args:
            data: see the table in the module's docstring.
            size: examples in a batch, for data given as tensors.
            generator: shuffles data given as tensors; None leaves its order.
            name: what errors call the data.

        Raises:
            InputError: data that is empty, gives its batches only once, or has no batches.

        Example:
            >>> [len(b) for b in Batches.of(torch.zeros(10, 3), size=4)]
            [4, 3, 3]
        """
        whole = _as_tensors(data, name)
        if whole is not None:
            steps = -(-len(whole[0]) // size)
            batches = cls(lambda: _split(whole, steps, generator), steps)
        elif isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
            raise InputError(name, f"a {type(data).__name__} gives no batches", _FORMS)
        elif iter(data) is data:
            raise InputError(name, "an iterator gives its batches only once", _FORMS)
        else:
            batches = cls(lambda: data, _length(data))
        if batches.steps == 0:
            raise InputError(name, "it holds no batch", "pass at least one")
        return batches

    def first(self, name: str = "data") -> Batch:
        """The first batch.

        Raises:
            InputError: there is none.
        """
        for batch in self:
            return batch
        raise InputError(name, "it holds no batch", "pass at least one")


def hold_out(data: Any, share: float, generator: torch.Generator) -> tuple[Any, Any]:
    """Data given as tensors in two random parts: to train on, and a share to check on.

    Raises:
        InputError: the data is not given as tensors, or one part would be empty.

    Example:
        >>> rest, held = hold_out(torch.arange(10), 0.2, torch.Generator().manual_seed(0))
        >>> len(rest), len(held)
        (8, 2)
    """
    whole = _as_tensors(data, "data")
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
    train, check_on = parts if len(whole) == 2 else (p[0] for p in parts)
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

    Example:
        >>> placed({"x": torch.zeros(2)}, nn.Linear(2, 2).double())["x"].dtype
        torch.float64
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        return inputs
    device, dtype = like.device, like.dtype
    return mapped(inputs, lambda t: t.to(device, dtype if t.is_floating_point() else None))


_FORMS = "pass a loader, a list of batches, a tensor of inputs, or a tuple (inputs, labels)"


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Tensor):
        return item, None
    if isinstance(item, Mapping):
        return {k: v for k, v in item.items() if k != "labels"}, item.get("labels")
    if isinstance(item, tuple | list) and len(item) in (1, 2):
        return item[0], (item[1] if len(item) == 2 else None)
    raise InputError(
        "data",
        f"a batch is {describe(item)}",
        "give inputs, (inputs, labels), or a dict; several inputs as ((x1, x2), labels)",
    )


def _as_tensors(data: Any, name: str) -> tuple[Tensor, ...] | None:
    """The tensors of data given as `x` or `(x, y)`; None for a loader or a list."""
    whole = (data,) if isinstance(data, Tensor) else data
    if not isinstance(whole, tuple) or not all(isinstance(t, Tensor) for t in whole):
        return None
    shapes = ", ".join(str(tuple(t.shape)) for t in whole)
    if len(whole) not in (1, 2) or not all(t.ndim for t in whole):
        raise InputError(name, f"a tuple of tensors of shapes {shapes}", _FORMS)
    if len({len(t) for t in whole}) != 1:
        problem = f"inputs and labels have shapes {shapes}"
        raise InputError(name, problem, "give one label for each input")
    return whole


def _split(
    whole: tuple[Tensor, ...], steps: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, ...]]:
    """Near-equal parts: a last batch of one example would break batch norm."""
    n = len(whole[0])
    order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
    for part in order.tensor_split(steps):
        yield tuple(_take(t, part) for t in whole)


def _take(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor[index.to(tensor.device)]


def _length(data: Iterable[Any]) -> int | None:
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader over an iterable dataset has no length
        return None


def calibration_batches(
    data: Any, example: Example | None, n_examples: int = 256, size: int = 64
) -> list[Example]:
    """The first examples of the data, as batches of inputs in the example's form.

    Args:
        data: a loader, a list of batches, a tensor of inputs, or a pair (inputs, labels);
            see `batches_of`.
        example: shows what the model takes.
        n_examples: at least so many examples, if there are as many.
        size: examples in a batch; larger ones are split where they are one tensor.

    Raises:
        InputError: no batch at all, NaN or Inf, or data that gives no batches.
    """
    found: list[Example] = []
    n = 0
    for batch in batches_of(data, example):
        room = n_examples - n
        found.extend(batch[:room].split(size) if _is_one(batch) else [batch])
        n += batch_size(batch)
        if n >= n_examples:
            break
    if not found:
        raise InputError("data", "it holds no batch", "pass at least one")
    return found


def check_batches(
    data: Any, example: Example | None, used: Sequence[Example], n_examples: int = 256
) -> list[Example]:
    """Further examples of the data, behind those that were used; none if there are no more.

    A loader that shuffles may give some of the same ones again. An iterator goes on from
    where it was left.
    """
    skip = 0 if isinstance(data, Iterator) else sum(batch_size(b) for b in used)
    found: list[Example] = []
    n = 0
    for batch in batches_of(data, example):
        size = batch_size(batch)
        if skip >= size:
            skip -= size
            continue
        if _is_one(batch):
            batch = batch[skip : skip + n_examples - n]
        elif skip:
            skip = 0
            continue
        skip = 0
        found.append(batch)
        n += batch_size(batch)
        if n >= n_examples:
            break
    return found


def batches_of(data: Any, example: Example | None) -> Iterable[Example]:
    """Batches of inputs in the example's form, from the forms that data comes in.

    A tensor (n, ...) is split into batches of 64, and so are the inputs of a pair of tensors
    (inputs, labels) of equal length; a loader or list yields batches. From a
    batch that is a pair (inputs, labels) the labels are dropped where the example shows that
    the model takes one tensor; from a dict the keys that the example lacks are dropped.

    Raises:
        InputError: NaN or Inf, or nothing that can be iterated over.
    """
    if _is_labelled(data, example):
        data = data[0]
    if isinstance(data, Tensor):
        batches: Iterable[Any] = data.split(64)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        batches = [data] if isinstance(data, Mapping) else data
    else:
        raise InputError("data", f"{type(data).__name__} gives no batches", "pass a loader")
    for batch in batches:
        inputs = _inputs_only(batch, example)
        check(inputs, "data")
        yield inputs


def _is_labelled(data: Any, example: Example | None) -> bool:
    """Whether the data is a pair (inputs, labels) of tensors, and the model takes one tensor.

    As in `finetune`, a tuple of two equally long tensors is, whatever their shapes.
    """
    several = not isinstance(example, Tensor | None) and (
        isinstance(example, Mapping) or len(example) > 1
    )
    if several or not isinstance(data, tuple) or len(data) != 2:
        return False
    a, b = data
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.ndim or not b.ndim:
        return False
    return len(a) == len(b)


def _inputs_only(batch: Any, example: Example | None) -> Example:
    if isinstance(batch, Mapping) and isinstance(example, Mapping):
        return {k: v for k, v in batch.items() if k in example}
    if isinstance(batch, tuple | list):
        if example is None or isinstance(example, Tensor):
            return batch[0]
        if len(batch) in (1, 2) and _alike(batch[0], example):
            return batch[0]  # (inputs, labels), as `finetune` takes them
        if isinstance(example, tuple | list):
            return tuple(batch[: len(example)])
    return batch


def _alike(inputs: Any, example: Example) -> bool:
    """Whether inputs are several, named or in a row, as those of the example are."""
    if isinstance(example, Mapping):
        return isinstance(inputs, Mapping)
    several = isinstance(inputs, tuple | list) and len(inputs) == len(example)
    return several and not isinstance(example[0], tuple | list)
