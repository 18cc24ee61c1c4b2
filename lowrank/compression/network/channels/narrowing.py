"""Layers of fewer channels in a model's own modules, and their full width again.

A layer that goes narrower stays the module that it was, of its class, with its hooks; what changes
is its weight, its numbers for each channel, and the sizes that it knows of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.network.layers import is_transposed_linear, own_shapes, spec_of
from lowrank.errors import PlanError

_NEUTRAL = {"running_var": 1.0}
"""What a norm holds for a channel that is not there, beside zeros."""


@dataclass(frozen=True)
class Kept:
    """The channels of one side of a layer that stay.

    Args:
        places: their positions, rising.
        of: how many there were.
    """

    places: tuple[int, ...]
    of: int

    def __str__(self) -> str:
        return f"{len(self.places)} of {self.of}"


@dataclass(frozen=True)
class Narrowed:
    """What stays of a layer that goes narrower; None where all of a side does.

    Args:
        inputs: of its inputs; of a norm its channels.
        outputs: of its outputs.
        depthwise: it passes each channel on by itself, so that its groups are its channels.
    """

    inputs: Kept | None = None
    outputs: Kept | None = None
    depthwise: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        sides = self.sides
        rows = {k: {"of": v.of, "kept": list(v.places)} for k, v in sides if v is not None}
        return {**rows, **({"depthwise": True} if self.depthwise else {})}

    @classmethod
    def from_dict(cls, name: str, given: Any) -> Narrowed:
        """The inverse of `to_dict`.

        Raises:
            PlanError: it is no such record.
        """
        try:
            row = dict(given)
            depthwise = bool(row.pop("depthwise", False))
            return cls(**{side: _kept(kept) for side, kept in row.items()}, depthwise=depthwise)
        except (TypeError, KeyError, ValueError) as error:
            problem = f"what stays of it is not told by {given!r}"
            advice = 'give {"inputs": {"of": 16, "kept": [0, 2]}}, or "outputs" likewise'
            raise PlanError(name, problem, advice) from error

    @property
    def sides(self) -> tuple[tuple[str, Kept | None], ...]:
        """Both sides by their names."""
        return ("inputs", self.inputs), ("outputs", self.outputs)

    def __str__(self) -> str:
        return ", ".join(f"{kept} {side}" for side, kept in self.sides if kept is not None)


def _kept(row: Mapping[str, Any]) -> Kept:
    places, of = tuple(map(int, row["kept"])), int(row["of"])
    if not places or list(places) != sorted(set(places)) or places[0] < 0 or places[-1] >= of:
        raise ValueError(places)
    return Kept(places, of)


def narrow(model: nn.Module, narrowed: Mapping[str, Narrowed]) -> None:
    """Leave of each layer what stays, in place; one that is as narrow already stays as it is.

    Raises:
        PlanError: a layer is missing, is none that can go narrower, or has another width.
    """
    modules = dict(model.named_modules())
    changes = [_change(name, modules, what) for name, what in narrowed.items()]
    for module, what in changes:
        if _width(module) != _after(module, what):
            _cut(module, what)


def widen(model: nn.Module, narrowed: Mapping[str, Narrowed]) -> None:
    """The inverse of `narrow`, in place, with zeros where channels went."""
    for name, what in narrowed.items():
        module = model.get_submodule(name)
        if _width(module) == _after(module, what):
            _spread(module, what)


def _change(
    name: str, modules: Mapping[str, nn.Module], what: Narrowed
) -> tuple[nn.Module, Narrowed]:
    module = modules.get(name)
    if module is None or not _can(module):
        problem = "the model has no such layer to make narrower"
        raise PlanError(name, problem, "measure this model")
    full = tuple(
        before if kept is None else kept.of
        for before, kept in zip(_width(module), _sides(module, what), strict=True)
    )
    if _width(module) not in (full, _after(module, what)):
        problem = f"it has {_width(module)} channels in and out, the plan is for {full}"
        raise PlanError(name, problem, "build the model that the plan was made for")
    return module, what


def _can(module: nn.Module) -> bool:
    """Whether this is a layer, or holds numbers for each channel."""
    known = hasattr(module, "num_features") or isinstance(module, nn.PReLU | nn.GroupNorm)
    return known or spec_of(module) is not None


def _sides(module: nn.Module, what: Narrowed) -> tuple[Kept | None, Kept | None]:
    return (
        (what.inputs, what.outputs) if spec_of(module) is not None else (what.inputs, what.inputs)
    )


def _width(module: nn.Module) -> tuple[int, int]:
    spec = spec_of(module)
    if spec is not None:
        return spec.in_channels, spec.out_channels
    names = ("num_features", "num_parameters", "num_channels")
    n = int(next(getattr(module, name) for name in names if hasattr(module, name)))
    return n, n


def _after(module: nn.Module, what: Narrowed) -> tuple[int, int]:
    a, b = (
        before if kept is None else len(kept.places)
        for before, kept in zip(_width(module), _sides(module, what), strict=True)
    )
    return a, b


def _axes(module: nn.Module, what: Narrowed) -> Iterator[tuple[str, int, Sequence[int], int]]:
    """Of each tensor that a module holds: its name, an axis, what stays there, and of how many."""
    spec = spec_of(module)
    if spec is None:
        assert what.inputs is not None
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, name, None) is not None:
                yield name, 0, what.inputs.places, what.inputs.of
        return
    groups = 1 if what.depthwise else spec.groups
    out_axis, in_axis = (1, 0) if _is_turned(module) else (0, 1)
    if what.outputs is not None:
        if not (what.depthwise and _is_turned(module)):
            n = groups if _is_turned(module) else 1
            yield "weight", out_axis, *_within(what.outputs, n)
        if module._parameters.get("bias") is not None:
            yield "bias", 0, what.outputs.places, what.outputs.of
    if what.inputs is not None and (not what.depthwise or _is_turned(module)):
        n = 1 if _is_turned(module) else groups
        yield "weight", in_axis, *_within(what.inputs, n)


def narrowed_shapes(module: nn.Module, what: Narrowed) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's parameters when it is as narrow; those of the dense one as given."""
    shapes = own_shapes(module)
    for name, axis, places, _ in _axes(module, what):
        if name in shapes:
            before = shapes[name]
            shapes[name] = (*before[:axis], len(places), *before[axis + 1 :])
    return shapes


def _within(kept: Kept, groups: int) -> tuple[Sequence[int], int]:
    """What stays of one group: the same of each."""
    size = kept.of // groups
    return [p for p in kept.places if p < size], size


def _is_turned(module: nn.Module) -> bool:
    """Whether the inputs come first in the module's own layout."""
    spec = spec_of(module)
    if isinstance(module, nn.Embedding):
        return True
    return is_transposed_linear(module) or (spec is not None and spec.kind == "conv_transpose")


def _cut(module: nn.Module, what: Narrowed) -> None:
    width = _after(module, what)
    for name, axis, places, _ in [*_axes(module, what)]:  # told by the shapes from before
        value = _tensor(module, name)
        _put(module, name, value.detach().index_select(axis, torch.tensor(places).to(value.device)))
    _resize(module, *width, depthwise=what.depthwise)


def _spread(module: nn.Module, what: Narrowed) -> None:
    sides = _sides(module, what)
    width = [b if k is None else k.of for b, k in zip(_width(module), sides, strict=True)]
    for name, axis, places, of in [*_axes(module, what)]:
        value = _tensor(module, name).detach()
        shape = list(value.shape)
        shape[axis] = of
        full = value.new_full(shape, _NEUTRAL.get(name, 0.0))
        full.index_copy_(axis, torch.tensor(places).to(value.device), value)
        _put(module, name, full)
    _resize(module, width[0], width[1], depthwise=what.depthwise)


def _tensor(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    if name in module._buffers:
        module._buffers[name] = value
        return
    old = module._parameters[name]
    assert old is not None
    if old.ndim == 4 and not old.is_contiguous():
        value = value.contiguous(memory_format=torch.channels_last)
    module._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)


_SIZES = (
    ("in_features", "out_features"),
    ("in_channels", "out_channels"),
    ("nx", "nf"),
    ("num_features", "num_features"),
    ("num_parameters", "num_parameters"),
    ("num_channels", "num_channels"),
    ("num_embeddings", "embedding_dim"),
)
"""What modules call the numbers of their channels."""


def _resize(module: nn.Module, inputs: int, outputs: int, *, depthwise: bool) -> None:
    if isinstance(module, nn.GroupNorm):  # groups go as a whole
        module.num_groups = module.num_groups * outputs // module.num_channels
    for pair in _SIZES:
        for name, value in zip(pair, (inputs, outputs), strict=True):
            if name in module.__dict__:
                setattr(module, name, value)
    if depthwise:
        module.groups = inputs  # type: ignore[assignment]
