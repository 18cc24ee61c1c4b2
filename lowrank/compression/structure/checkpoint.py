"""Save a compressed model as safetensors, and load it into a fresh dense one.

The file's header holds the plans as JSON, which tensors share memory, and a digest over all
of it. Nothing is unpickled; the names of methods are looked up among the `known` ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.atomic import replacing
from lowrank.compression.network.example import refuse_lazy, unwrapped
from lowrank.compression.network.tensors import memory_of
from lowrank.compression.structure.fused import settle_fused
from lowrank.compression.structure.history import (
    Applied,
    build_structure,
    copy_model,
    part_of,
    records,
    remade,
)
from lowrank.compression.structure.int8 import packed, require_torchao, unpacked, write_int8
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.pretrained.writing import guard
from lowrank.compression.structure.swap import is_made
from lowrank.errors import CheckpointError, PlanError

FORMAT, VERSION = "lowrank.checkpoint", 1


_KEY = "lowrank"


ModelT = TypeVar("ModelT", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Write the weights and the plans of a model to one safetensors file, whole or not at all.

    Args:
        model: what `compress`, `apply` or `finetune` returned (a dense model works too), or a
            model of which that is a part. Of one that `torch.compile` or `DataParallel` wraps,
            what is inside is written.
        path: file to write; an older one is replaced only when the new one is complete.

    Raises:
        CheckpointError: the model's state holds something other than tensors, it is a part of
            a compressed model and does not know the plan, or the file cannot be written.
        InputError: the model is lazy and has no weights yet.

    Example:
        >>> import tempfile, torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> small, _ = lowrank.compress(net, torch.randn(1, 64), params=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lowrank.save(small, f"{folder}/small.safetensors")
        ...     fresh = torch.nn.Sequential(torch.nn.Linear(64, 64))
        ...     again = lowrank.load(f"{folder}/small.safetensors", into=fresh)
        >>> x = torch.randn(2, 64)
        >>> torch.equal(small(x), again(x))
        True
    """
    refuse_lazy(model)
    path, model = Path(path), unwrapped(model)
    known = records(model)
    _check_whole(path, model, known)
    tensors, aliases, int8 = _unshared(model, path)
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "plans": [applied.plan.to_dict() for _, applied in known],
        "parts": [at for at, _ in known],
        "aliases": aliases,
        "int8": int8,
    }
    header["sha256"] = _digest(header, tensors)
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            str(path), f"cannot be written ({error})", "check the folder and the space on it"
        ) from error


def load(path: str | Path, *, into: ModelT) -> ModelT:
    """Build the saved structure into a fresh dense model and load its weights strictly.

    Args:
        path: file that `save` wrote.
        into: the dense model that was compressed, freshly built, of the same type (dtype) as
            the saved one; changed in place, and only when everything fits. It may be wrapped
            by `torch.compile` or `DataParallel`.

    Returns:
        The same model, with factorized layers and the saved weights.

    Raises:
        CheckpointError: the file is missing, damaged, altered, or does not fit the model.
        PlanError: the file's plan is for another model; the first mismatch is named.
        InputError: the model is lazy and has no weights yet.
    """
    refuse_lazy(into)
    path, model = Path(path), unwrapped(into)
    header, tensors = _read(path)
    parts = header.get("parts", [""] * len(header["plans"]))
    plans = [(at, Plan.from_dict(plan)) for at, plan in zip(parts, header["plans"], strict=True)]
    refuse_lazy(model)
    meta = [n for n, t in _state(model) if t.is_meta]
    if meta:
        raise CheckpointError(
            str(path),
            f"{meta[0]} of the model is on the meta device and cannot take values",
            "build the model on a real device, or call model.to_empty(device='cpu') first",
        )
    trial = _weightless(model)
    try:
        for at, plan in plans:
            build_structure(part_of(trial, at), plan)
    except PlanError as error:
        raise PlanError(f"{path.name}: {error.where}", error.problem, error.advice) from error
    tensors, coarse = _packed(path, header.get("int8", []), tensors, trial)
    _check_fit(path, trial, tensors)
    if coarse:
        require_torchao()
    guard()
    for at, plan in plans:
        build_structure(part_of(model, at), plan)
    settle_fused(model)  # of what holds the parts, too
    with torch.inference_mode(any(t.is_inference() for _, t in _state(model))):
        model.load_state_dict(tensors, strict=True)
    write_int8(model, coarse)
    return into


def _check_whole(path: Path, model: nn.Module, known: Sequence[tuple[str, Applied]]) -> None:
    """Refuse a part of a compressed model, whose plan is with the whole."""
    there = {f"{at}.{name}" if at else name for at, a in known for name in a.originals}
    lost = [n for n, m in model.named_modules() if is_made(m)]
    if strange := [name for name in lost if name not in there]:
        problem = f"{strange[0] or 'it'} was replaced by a plan that is not with this model"
        raise CheckpointError(str(path), problem, "save the model that compress returned")


def _packed(
    path: Path, names: Sequence[str], tensors: Mapping[str, Tensor], trial: nn.Module
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Floating-point weights in place of the parts of int8 ones, and the parts."""
    expected = trial.state_dict()
    try:
        return packed(tensors, names, lambda name: expected[name].dtype)
    except KeyError as error:
        raise CheckpointError(
            str(path), f"an int8 weight does not fit ({error})", "use the same model"
        ) from error


def _unshared(model: nn.Module, path: Path) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The state without repeats, repeated names -> those that hold the tensor, and int8 ones."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    state, int8 = unpacked(model.state_dict())
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                str(path),
                f"{name} of the model's state is a {type(value).__name__}, not a tensor",
                "save that part yourself",
            )
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return tensors, aliases, int8


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "there is no such file", "check the path") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            str(path), f"it is no whole safetensors file ({error})", "copy or save it again"
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(
            str(path), "it holds plain weights and no plan", "load it with load_state_dict"
        )
    header = _header(path, metadata[_KEY])
    if header.pop("sha256", None) != _digest(header, tensors):
        raise CheckpointError(
            str(path), "its contents are not what was saved", "copy or save it again"
        )
    aliased = {name: tensors[target] for name, target in header["aliases"].items()}
    return header, {**tensors, **aliased}


def _header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        known = header["format"] == FORMAT
        version = header["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            str(path), f"its plan is not readable ({error})", "copy or save it again"
        ) from error
    if not known or version != VERSION:
        raise CheckpointError(
            str(path), f"format {version!r} is not {FORMAT} {VERSION}", "save it with this release"
        )
    return header


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _weightless(model: ModelT) -> ModelT:
    """A copy of the structure on the meta device; the weights are not copied."""
    memo: dict[int, Any] = {k: t.to("meta") for k, t in remade(model).items()}
    known: dict[Any, nn.Parameter] = {}
    for p in model.parameters():
        mine = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        memo[id(p)] = known.setdefault(memory_of(p), mine)
    for b in model.buffers():
        memo[id(b)] = b.detach().to("meta")
    return copy_model(model, memo)


def _check_fit(path: Path, trial: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected = trial.state_dict()
    for name in dict.fromkeys([*expected, *tensors]):
        if name not in tensors or name not in expected:
            who, other = ("file", "model") if name not in tensors else ("model", "file")
            raise CheckpointError(
                str(path), f"{name} is in the {other} and not in the {who}", "use the same model"
            )
        have, want = tensors[name], expected[name]
        if have.shape != want.shape:
            raise CheckpointError(
                str(path),
                f"{name} has shape {tuple(have.shape)}, the model has {tuple(want.shape)}",
                "use the same model",
            )
        if have.dtype != want.dtype:
            raise CheckpointError(
                str(path),
                f"{name} is {have.dtype}, the model has {want.dtype}",
                f"call model.to({have.dtype}) first",
            )
