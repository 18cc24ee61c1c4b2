"""Load the model from the user's Python code."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from lowrank.compression.network.tensors import describe
from lowrank.errors import InputError


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
