"""From the names on the command line to a model, an example and data."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowrank.cli.source import Source
from lowrank.cli.values import Input
from lowrank.compression.batches import Batch, placed
from lowrank.compression.checkpoint import load as load_compressed
from lowrank.compression.example import Example, check, describe, flatten, run
from lowrank.errors import CheckpointError, InputError

_BATCH = 64
"""Examples in a batch, for data that comes as whole tensors."""

_FILES = (".safetensors", ".npz")
"""Endings of files that hold data."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What the commands work on.

    Args:
        model: the model, with its weights.
        example: inputs of one forward pass.
        data: batches, or None where none were named.
    """

    model: nn.Module
    example: Example
    data: Any


def load(source: Source) -> Loaded:
    """Build the model, load its weights, find an example.

    Raises:
        InputError: a file, module or function that is missing or fails, or no example.
        CheckpointError: weights that are damaged or belong to another model.
    """
    code = None
    if Path(source.model).is_dir():
        from lowrank.cli import pretrained

        model = pretrained.load(Path(source.model), allow_pickle=source.allow_pickle)
    else:
        where, _, function = source.model.rpartition(":")
        code = _module(where)
        model = _build(source.model, code, function)
    if source.weights is not None:
        model = _with_weights(model, source.weights, allow_pickle=source.allow_pickle)
    data = None if source.data is None else load_data(source.data)
    if isinstance(data, list) and Path(source.data or "").suffix in _FILES:
        data = [placed(batch, model) for batch in data]  # numpy makes float64 of everything
    return Loaded(model, _example(source, code, model, data), data)


def load_data(name: str) -> Any:
    """Batches from a safetensors or npz file, or from a function.

    Raises:
        InputError: the file or function is missing, fails, or holds no data.
    """
    path = Path(name)
    if path.suffix in _FILES:
        read = _safetensors if path.suffix == ".safetensors" else _npz
        return _batches(path, read(path))
    where, _, function = name.rpartition(":")
    if not where:
        raise InputError(name, "it is no data", "give .safetensors, .npz or FILE.py:FUNCTION")
    data = _value(name, _module(where), function)
    pair = isinstance(data, tuple) and len(data) == 2
    if isinstance(data, Tensor) or (pair and all(isinstance(t, Tensor) for t in data)):
        x, labels = data if pair else (data, None)
        return _batches(Path(where), {"x": x} | ({} if labels is None else {"labels": labels}))
    if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
        given = f"it returned {describe(data)}"
        raise InputError(name, given, "return a loader, a list of batches, or tensors")
    return list(data) if iter(data) is data else data


def _module(where: str) -> ModuleType:
    """Import a file as Python would run it, its folder on the path; or a module by name."""
    if not where.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
        return _guarded(where, lambda: importlib.import_module(where))
    path = Path(where).resolve()
    if not path.is_file():
        raise InputError(where, "there is no such file", "check the path")
    name = f"_lowrank_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    sys.path.insert(0, str(path.parent))
    loader = spec.loader
    _guarded(where, lambda: loader.exec_module(module))
    return module


def _guarded(where: str, call: Callable[[], Any]) -> Any:
    """What the user's own code returns; its exception as one sentence with the line."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
        at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        text = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(
            where,
            f"it raised {type(error).__name__}: {text}{at}",
            "mend it; lowrank --debug shows the traceback",
        ) from error


def load_member(name: str) -> Any:
    """What FILE.py:NAME or MODULE:NAME stands for.

    Raises:
        InputError: the file or the name is missing, or the file fails.
    """
    where, _, member = name.rpartition(":")
    return _member(name, _module(where), member)


def _member(name: str, module: ModuleType, function: str) -> Any:
    if not hasattr(module, function):
        public = [n for n in vars(module) if not n.startswith("_")]
        close = difflib.get_close_matches(function, public, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "check the name"
        raise InputError(name, f"there is no {function!r} in it", advice)
    return getattr(module, function)


def _value(name: str, module: ModuleType, function: str) -> Any:
    """What a function returns, or a value that stands in its place."""
    value = _member(name, module, function)
    if isinstance(value, nn.Module) or not callable(value):
        return value
    return _guarded(name, value)


def _build(name: str, module: ModuleType, function: str) -> nn.Module:
    model = _value(name, module, function)
    if not isinstance(model, nn.Module):
        given = f"it returned {describe(model)}, not a torch.nn.Module"
        raise InputError(name, given, "return the model")
    return model


# --- weights -----------------------------------------------------------------------------


def _with_weights(model: nn.Module, path: Path, *, allow_pickle: bool) -> nn.Module:
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", "check the path")
    if path.suffix != ".safetensors":
        return _load_state(model, path, _unpickled(path, allow_pickle=allow_pickle))
    tensors = _safetensors(path)
    with safe_open(path, framework="pt") as file:
        compressed = "lowrank" in (file.metadata() or {})
    return load_compressed(path, into=model) if compressed else _load_state(model, path, tensors)


def _load_state(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> nn.Module:
    expected = model.state_dict()
    for name in dict.fromkeys([*expected, *state]):
        if name not in expected or name not in state:
            who, other = ("file", "model") if name in state else ("model", "file")
            problem = f"{name} is in the {who} and not in the {other}"
            raise CheckpointError(str(path), problem, "use the weights of this very model")
        have, want = tuple(state[name].shape), tuple(expected[name].shape)
        if have != want:
            problem = f"{name} has shape {have}, the model has {want}"
            raise CheckpointError(str(path), problem, "use the weights of this very model")
    model.load_state_dict(state)
    return model


def _unpickled(path: Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise CheckpointError(
            str(path),
            "it is not a .safetensors file, and pickled files are not read unasked",
            "add --allow-pickle if you trust it (tensors only are read), or convert it",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problem = f"it is no pickled state dict of tensors ({text})"
        raise CheckpointError(str(path), problem, "save model.state_dict()") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # what training frameworks write
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(
            str(path), f"it holds a {type(state).__name__}, no dict of tensors", "save a state dict"
        )
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(str(path), "there is no such file", "check the path") from error
    except (OSError, SafetensorError, ValueError) as error:
        problem = f"it is no whole safetensors file ({error})"
        raise CheckpointError(str(path), problem, "copy or save it again") from error


def _npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except FileNotFoundError as error:
        raise InputError(str(path), "there is no such file", "check the path") from error
    except Exception as error:  # zipfile, zlib and numpy each have their own
        problem = f"it is no readable npz file ({type(error).__name__}: {error})"
        raise InputError(str(path), problem, "save numbers with numpy.savez") from error


def labelled_accuracy(data: Any, calibration: int = 256) -> Callable[[nn.Module], float]:
    """Share of right answers on the data behind the calibration examples, or on all of it.

    Args:
        data: batches with a label for each example.
        calibration: examples at the start that models are fitted to.

    Raises:
        InputError: no data, or a batch without labels.
    """
    batches = [] if data is None else [Batch.of(item) for item in data]
    if not batches or any(b.labels is None for b in batches):
        raise InputError(
            "--max-drop", "there are no labels to measure accuracy on", "give --data with labels"
        )
    ends = np.cumsum([len(b) for b in batches])
    for batch in batches:
        assert batch.labels is not None
        if batch.labels.numel() != len(batch):
            shape = tuple(batch.labels.shape)
            problem = f"labels of shape {shape} for {len(batch)} examples"
            raise InputError("--max-drop", problem, "give one whole number for each example")
    held = [b for b, end in zip(batches, ends, strict=True) if end - len(b) >= calibration]

    def accuracy(model: nn.Module) -> float:
        right = total = 0
        for batch in held or batches:
            assert batch.labels is not None
            answers = flatten(run(model, batch.inputs))[0].argmax(-1)
            right += int((answers == batch.labels.flatten().to(answers.device)).sum())
            total += batch.labels.numel()
        return right / total

    return accuracy


# --- data and examples -------------------------------------------------------------------


def _batches(path: Path, tensors: dict[str, Tensor]) -> list[Any]:
    """Whole tensors as batches: `x`, `(x, labels)`, or dicts of keyword inputs."""
    inputs = {name: t for name, t in tensors.items() if name != "labels"}
    if not inputs:
        raise InputError(str(path), "it holds no inputs", "store them under any name but 'labels'")
    lengths = {name: len(t) if t.ndim else 0 for name, t in tensors.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        given = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise InputError(str(path), f"{given} examples", "give as many of each, at least one")
    check(inputs)
    splits = {name: t.split(_BATCH) for name, t in tensors.items()}
    if len(inputs) > 1:
        return [
            dict(zip(splits, parts, strict=True)) for parts in zip(*splits.values(), strict=True)
        ]
    [name] = inputs
    if "labels" not in tensors:
        return list(splits[name])
    return list(zip(splits[name], splits["labels"], strict=True))


def _example(source: Source, code: ModuleType | None, model: nn.Module, data: Any) -> Example:
    if source.inputs:
        return _made(source.inputs, model)
    if data is not None:
        for item in data:
            return _first(Batch.of(item).inputs)
        raise InputError(str(source.data), "it holds no batch", "give at least one")
    if code is not None and hasattr(code, "example"):
        return _value(f"{source.model.rpartition(':')[0]}:example", code, "example")
    if code is None:
        from lowrank.cli import pretrained

        return pretrained.example(model)
    raise InputError(
        "example", "there is no input to run the model on", "give --input 1x3x224x224, or --data"
    )


def _first(inputs: Any) -> Any:
    """The first example of a batch, as a batch of one."""
    if isinstance(inputs, Tensor):
        return inputs[:1]
    if isinstance(inputs, Mapping):
        return {k: _first(v) for k, v in inputs.items()}
    return tuple(_first(v) for v in inputs) if isinstance(inputs, tuple | list) else inputs


def _made(inputs: Sequence[Input], model: nn.Module) -> Example:
    """Random floats in the type of the weights; ones where whole numbers are asked for."""
    generator = torch.Generator().manual_seed(0)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    made = []
    for given in inputs:
        dtype = getattr(torch, given.dtype) if given.dtype else like.dtype
        if dtype.is_floating_point:
            values = torch.randn(given.shape, generator=generator).to(dtype)
        else:
            values = torch.ones(given.shape, dtype=dtype)  # valid as tokens and as masks
        made.append(values.to(like.device))
    named = [given.keyword for given in inputs if given.keyword]
    if not named:
        return made[0] if len(made) == 1 else tuple(made)
    if len(set(named)) != len(inputs):
        raise InputError("--input", "some inputs have no name or one twice", "name each: ids=1x8")
    return dict(zip(named, made, strict=True))
