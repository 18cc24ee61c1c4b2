"""What tells a model, its inputs and this library from others: digests of their contents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank.compression.network.example import unwrapped
from lowrank.errors import InputError
from lowrank.store import bytes_of
from lowrank.version import __version__


def of_model(model: nn.Module) -> str:
    """Digest of a model's weights and buffers, its modules' settings and their code.

    Of what the code calls, functions of the same file are looked into.

    Example:
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> of_model(net) == of_model(net), of_model(net) == of_model(other)
        (True, False)
    """
    model = unwrapped(model)
    found = hashlib.sha256()
    codes: dict[type, str] = {}
    for name, module in model.named_modules():
        cls = type(module)
        if cls not in codes:
            codes[cls] = _code_of(cls)
        settings = sorted(_settings(vars(module)))
        found.update(f"{name} {cls.__module__}.{cls.__qualname__} {settings}".encode())
        found.update(codes[cls].encode())
    held = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
        *((f"{n}.{k}", t) for n, m in model.named_modules() for k, t in _loose(m)),
    ]
    for name, tensor in held:
        _add(found, name, tensor, "model")
    return found.hexdigest()


def of_inputs(value: Any, name: str = "data") -> str:
    """Digest of the contents of inputs.

    Args:
        value: batches or an example.
        name: what errors call them.

    Raises:
        InputError: they hold something whose contents cannot be told.

    Example:
        >>> of_inputs([torch.zeros(3)]) == of_inputs([torch.zeros(3)])
        True
        >>> of_inputs([torch.zeros(3)]) == of_inputs([torch.zeros(3, dtype=torch.int)])
        False
    """
    found = hashlib.sha256()
    _walk(found, value, "", name)
    return found.hexdigest()


@cache
def of_library() -> str:
    """Digest of this library's code, and the versions that results depend on."""
    found = hashlib.sha256(f"{__version__} {torch.__version__} {np.__version__}".encode())
    root = Path(__file__).resolve().parents[2]
    for path in sorted(root.rglob("*.py")):
        if {"cli", "sensing", "demos", "pictures"}.isdisjoint(path.relative_to(root).parts):
            found.update(path.read_bytes())
    return found.hexdigest()


def of_class(cls: type) -> str:
    """A class by its name and its code."""
    return f"{cls.__module__}.{cls.__qualname__} {_code_of(cls)}"


def _add(found: Any, name: str, tensor: Tensor, where: str) -> None:
    place = f"{tuple(tensor.shape)} {tuple(tensor.stride())} {tensor.dtype} {tensor.device}"
    found.update(f"{name} {place}".encode())
    try:
        found.update(bytes_of(tensor))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        problem = f"{name} of the {where} is a {type(tensor.data).__name__}, whose values it "
        raise InputError("cache", problem + "cannot tell from others", "drop cache=") from error


def _walk(found: Any, value: Any, at: str, name: str) -> None:
    found.update(f"{at} {type(value).__name__} ".encode())
    if isinstance(value, Tensor):
        _add(found, at, value, name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _walk(found, item, f"{at}[{key!r}]", name)
    elif isinstance(value, list | tuple):
        for k, item in enumerate(value):
            _walk(found, item, f"{at}[{k}]", name)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            _walk(found, getattr(value, one.name), f"{at}.{one.name}", name)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.shape} {value.dtype}".encode() + value.tobytes())
    elif isinstance(value, NoneType | bool | int | float | complex | str | bytes | torch.dtype):
        found.update(repr(value).encode())
    else:
        problem = f"the {name} holds a {type(value).__name__}, which it cannot tell from others"
        raise InputError("cache", problem, "drop cache=")


def _settings(given: Mapping[str, Any], deep: bool = True) -> Iterator[str]:
    """What a module's attributes say of what it computes, as far as they are plain."""
    for key, value in given.items():
        if key == "training":
            continue
        if (text := _plain(value)) is not None:
            yield f"{key}={text}"
        elif deep and not isinstance(value, nn.Module | Tensor | type):
            inside = getattr(value, "__dict__", None)  # a config
            if isinstance(inside, dict):
                yield from (f"{key}.{one}" for one in sorted(_settings(inside, deep=False)))


def _plain(value: Any) -> str | None:
    if isinstance(
        value, NoneType | bool | int | float | complex | str | torch.dtype | torch.device
    ):
        return repr(value)
    if isinstance(value, tuple | list):
        parts = [_plain(one) for one in value]
        return None if None in parts else f"({', '.join(p for p in parts if p)})"
    if isinstance(value, FunctionType | MethodType):
        return f"{value.__qualname__} {_code_of_function(value)}"
    if callable(value) and hasattr(value, "__qualname__") and not isinstance(value, nn.Module):
        return str(value.__qualname__)
    return None


def _loose(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Tensors that a module holds and does not register."""
    return ((k, v) for k, v in vars(module).items() if isinstance(v, Tensor))


def _code_of(cls: type) -> str:
    """Digest of the functions of a class that torch has not written."""
    found = hashlib.sha256()
    for one in cls.__mro__:
        if one is object or one.__module__.split(".")[0] == "torch":
            continue
        for name, value in sorted(vars(one).items()):
            inside = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(inside, FunctionType):
                found.update(f"{name} {_code_of_function(inside)}".encode())
            elif not name.startswith("__") and (text := _plain(inside)) is not None:
                found.update(f"{name} {text}".encode())
    return found.hexdigest()


def _code_of_function(function: Any, seen: frozenset[Any] = frozenset()) -> str:
    """Digest of what a function does: its code, and what it reads of its surroundings."""
    function = getattr(function, "__func__", function)
    code = function.__code__
    cells = (cell for cell in function.__closure__ or () if not _is_empty(cell))
    around = [cell.cell_contents for cell in cells] + [function.__defaults__ or ()]
    known = function.__globals__
    around += [known[name] for name in _names(code) if name in known]
    found = hashlib.sha256(_code(code).encode())
    for value in around:
        if not isinstance(value, FunctionType):
            found.update(str(_plain(value)).encode())
        elif value.__module__ == function.__module__ and value.__code__ not in seen:
            found.update(_code_of_function(value, seen | {code}).encode())
    return found.hexdigest()


def _is_empty(cell: CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def _names(code: CodeType) -> list[str]:
    """What a function and those inside it read from outside, in order."""
    inside = (name for c in code.co_consts if isinstance(c, CodeType) for name in _names(c))
    return [*code.co_names, *inside]


def _code(code: CodeType) -> str:
    """Digest of what a function does: no line numbers, no file."""
    found = hashlib.sha256(code.co_code)
    for value in code.co_consts:
        if isinstance(value, CodeType):
            text = _code(value)
        elif isinstance(value, frozenset):
            text = str(sorted(map(repr, value)))
        else:
            text = repr(value)
        found.update(text.encode())
    found.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    return found.hexdigest()
