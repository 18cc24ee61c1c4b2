"""A folder of transformers as a model without weights, and where each of its weights lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.network.layers import spec_of
from lowrank.compression.pipeline.streaming.heap import give_back
from lowrank.compression.structure.pretrained.building import tie, ties
from lowrank.compression.structure.pretrained.reading import (
    class_of,
    config_of,
    packed_file,
    refuse_quantized,
    required_transformers,
)
from lowrank.compression.structure.pretrained.record import METHOD
from lowrank.compression.structure.pretrained.tensor_files import Stored, files_of, stored_in
from lowrank.compression.structure.pretrained.writing import check_release
from lowrank.errors import CheckpointError, InputError

_IN_MEMORY = "compress it in memory: lowrank.compress, or --no-stream"


@dataclass(frozen=True, eq=False)
class Source:
    """A dense model whose weights stay on disk.

    Args:
        folder: where it is.
        model: of its class, on the meta device, in float32, in which all is computed.
        stored: names in the model's state, without those tied to earlier ones -> the tensors.
        dtype: of the weights of what is written.
        stack: name of the list of blocks.
        blocks: the names of the blocks, first to last.
        spare: names in the files that the model has no place for.
    """

    folder: Path
    model: Any
    stored: Mapping[str, Stored]
    dtype: torch.dtype
    stack: str
    blocks: tuple[str, ...]
    spare: tuple[str, ...]

    def inside(self, block: str) -> dict[str, Stored]:
        """The tensors of a block."""
        return {n: s for n, s in self.stored.items() if n.startswith(f"{block}.")}

    @property
    def rest(self) -> dict[str, Stored]:
        """The tensors outside of the blocks."""
        prefix = f"{self.stack}."
        return {n: s for n, s in self.stored.items() if not n.startswith(prefix)}

    def dtype_of(self, name: str) -> torch.dtype:
        """The type that a tensor is written in."""
        stored = self.stored[name].dtype
        return self.dtype if stored.is_floating_point else stored

    @contextmanager
    def filled(self, block: str) -> Iterator[nn.Module]:
        """A block with its weights; they are dropped in the end."""
        module = self.model.get_submodule(block)
        try:
            fill_buffers(self.model, module)
            for name, stored in self.inside(block).items():
                put(self.model, name, _finite(name, stored))
            yield module
        finally:
            module.to("meta")
            give_back()

    @contextmanager
    def front(self) -> Iterator[None]:
        """The model with all weights outside of the blocks but those of an output head."""
        head = self.head_alone()
        filled = [n for n in self.rest if n not in head]
        try:
            fill_buffers(self.model, self.model)
            for name in filled:
                put(self.model, name, _finite(name, self.stored[name]))
            yield
        finally:
            self.model.to("meta")

    def head_alone(self) -> set[str]:
        """The weights of an output head that is not tied to the embedding."""
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        if head is None:
            return set()
        own = {id(p) for p in head.parameters()}
        table = self.model.get_input_embeddings()
        own -= {id(p) for p in table.parameters()}
        return {n for n, p in self.model.named_parameters() if id(p) in own}


def opened(folder: Path) -> Source:
    """Read a folder's config and the headers of its files, no weights.

    Raises:
        InputError: it holds no model of transformers with one stack of blocks, or a quantized
            one.
        CheckpointError: its files are damaged, or lack a weight.
    """
    values = _config(folder)
    transformers = required_transformers(folder)
    check_release(str(folder))
    stored: dict[str, Stored] = {}
    for path in files_of(folder):
        stored |= stored_in(path)
    kind = class_of(transformers, values)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    given = config.dtype
    model = _empty(kind, config)
    placed, spare = _placed(folder, model, stored)
    stack, blocks = _stack(folder, model)
    dtype = _dtype(given, placed)
    return Source(folder, model, placed, dtype, stack, blocks, spare)


def _config(folder: Path) -> Mapping[str, Any]:
    if (packed := packed_file(folder)) is not None:
        problem = "a GGUF file holds packed weights, which are not read block by block"
        advice = "unpack it first: lowrank.load_pretrained(file).save_pretrained(another)"
        raise InputError(str(packed), problem, advice)
    values = config_of(folder)
    refuse_quantized(folder, values)
    if (values.get("quantization_config") or {}).get("quant_method") == METHOD:
        problem = "it holds a compressed model already"
        raise InputError(str(folder), problem, "name the folder of the dense one")
    return values


def _empty(kind: Any, config: Any) -> Any:
    """The model on the meta device, its ties in place."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = kind._from_config(config, dtype=torch.float32)
    tie(model, model.all_tied_weights_keys)
    return model.eval().requires_grad_(False)


def _dtype(given: object, placed: Mapping[str, Stored]) -> torch.dtype:
    """The type that the config gives, else that of the files."""
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if isinstance(found, torch.dtype):
        return found
    return next(s.dtype for s in placed.values() if s.dtype.is_floating_point)


def _placed(
    folder: Path, model: Any, stored: Mapping[str, Stored]
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """The tensors by the model's own names: files of the bare model lack its prefix, those of
    one with a head have it, and those of older releases may have other names."""
    base, state = f"{model.base_model_prefix}.", model.state_dict()
    named, mixed = _renamed(model, stored)
    tied, found, used = ties(model), {}, set()
    for name, like in state.items():
        if name in tied:
            continue
        tries = (name, name.removeprefix(base), base + name, *_tied_to(name, tied))
        key = next((named[t] for t in tries if t in named), None)
        if key is None:
            why = "which transformers makes of several tensors" if name in mixed else ""
            problem = f"the weights lack {name}{why and ', ' + why}"
            raise CheckpointError(str(folder), problem, f"save the whole model, or {_IN_MEMORY}")
        if stored[key].shape != tuple(like.shape):
            problem = f"{key} has shape {stored[key].shape}, the config says {tuple(like.shape)}"
            raise CheckpointError(str(folder), problem, "copy or save the whole folder again")
        found[name] = stored[key]
        used.add(key)
    spare = tuple(n for n in stored if n not in used and n not in tied)
    return found, spare


def _renamed(model: Any, stored: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Names of the files by those that transformers gives them, and those of which it makes
    others with values of their own, as of experts that it packs."""
    from transformers import conversion_mapping, core_model_loading

    steps = conversion_mapping.get_model_conversion_mapping(model)
    plain = [s for s in steps if isinstance(s, core_model_loading.WeightRenaming)]
    mixing = [s for s in steps if isinstance(s, core_model_loading.WeightConverter)]
    named, mixed = {}, set()
    for key in stored:
        new, pattern = core_model_loading.rename_source_key(key, plain, mixing)
        if pattern is None:
            named[new] = key
        else:
            mixed.add(new)
    return {**{key: key for key in named.values()}, **named}, mixed


def _tied_to(name: str, tied: Mapping[str, str]) -> list[str]:
    return [other for other, first in tied.items() if first == name]


def _stack(folder: Path, model: Any) -> tuple[str, tuple[str, ...]]:
    """The list of blocks that holds nearly all linear weights of the lists."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1
    }
    outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{o}.") for o in lists)}
    sizes = {name: _linear_weights(module) for name, module in outer.items()}
    if not sizes or not max(sizes.values()):
        problem = f"a {type(model).__name__} has no list of blocks with linear layers"
        raise InputError(str(folder), problem, _IN_MEMORY)
    largest = max(sizes, key=lambda n: sizes[n])
    if others := [n for n, size in sizes.items() if n != largest and 10 * size > sizes[largest]]:
        problem = f"it has several stacks of blocks: {largest}, {', '.join(others)}"
        raise InputError(str(folder), problem, _IN_MEMORY)
    names = tuple(f"{largest}.{k}" for k in range(len(outer[largest])))
    return largest, names


def _linear_weights(module: nn.Module) -> int:
    specs = (spec_of(m) for m in module.modules())
    return sum(s.n_weights for s in specs if s is not None and s.kind == "linear")


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a parameter or a buffer of a model its values; everything that is tied to it too."""
    at, _, own = name.rpartition(".")
    module = model.get_submodule(at)
    if own in module._buffers:
        module._buffers[own] = tensor
        return
    old = module._parameters[own]
    new = nn.Parameter(tensor, requires_grad=False)
    for holder in model.modules():
        for key, parameter in holder._parameters.items():
            if parameter is old:
                holder._parameters[key] = new


def fill_buffers(model: Any, part: nn.Module) -> None:
    """Compute what is no weight: rotary frequencies, masks, numbers of positions."""
    for module in part.modules():
        own = module._non_persistent_buffers_set
        empty = {n: b for n in own if (b := module._buffers.get(n)) is not None and b.is_meta}
        if empty:
            for name, buffer in empty.items():
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                _owner(model, module)._init_weights(module)


def _owner(model: Any, module: nn.Module) -> Any:
    """The innermost model of transformers that a module is part of, which knows its buffers."""
    kinds = [m for m in model.modules() if hasattr(m, "_init_weights")]
    return [m for m in kinds if any(part is module for part in m.modules())][-1]


def _finite(name: str, stored: Stored) -> Tensor:
    """A tensor in float32, if it is of floating point.

    Raises:
        InputError: it holds NaN or Inf.
    """
    tensor = stored.read()
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        problem = f"it holds NaN or Inf (in {stored.path.name})"
        raise InputError(name, problem, "take a sound checkpoint, or repair the tensor")
    return tensor
