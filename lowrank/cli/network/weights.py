"""Read a model's weights from a file."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lowrank.compression.structure.checkpoint import load as load_compressed
from lowrank.errors import CheckpointError


def _with_weights(model: nn.Module, path: Path, *, allow_pickle: bool) -> nn.Module:
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", "check the path")
    if path.suffix != ".safetensors":
        return _load_state(model, path, _unpickled(path, allow_pickle=allow_pickle))
    tensors = _safetensors(path)
    with safe_open(path, framework="pt") as file:
        compressed = "lowrank" in (file.metadata() or {})
    return load_compressed(path, into=model) if compressed else _load_state(model, path, tensors)


_NESTED = ("state_dict", "model_state_dict", "model")
"""Where a training checkpoint holds the weights, beside its optimizer's state and the like."""


_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What `DataParallel`, `torch.compile` and training frameworks put before every name."""


def _unprefixed(state: Mapping[str, Tensor], expected: Collection[str]) -> Mapping[str, Tensor]:
    """The weights under the model's own names, where every name has a prefix that these lack."""
    for prefix in _PREFIXES:
        alien = not any(name.startswith(prefix) for name in expected)
        if alien and state and all(name.startswith(prefix) for name in state):
            bare = {name.removeprefix(prefix): value for name, value in state.items()}
            return _unprefixed(bare, expected)
    return state


def _load_state(model: nn.Module, path: Path, state: Mapping[str, Tensor]) -> nn.Module:
    expected = model.state_dict()
    state = _unprefixed(state, expected)
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
    for key in _NESTED:  # what training frameworks write
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
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
