"""Hand a compressed model to other runtimes: torch.export and ONNX, outputs checked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank.atomic import replacing
from lowrank.compression.network.example import (
    Example,
    arguments,
    evaluating,
    first_line,
    run,
    spare,
    without_key_cache,
)
from lowrank.compression.network.tensors import flatten, tensors
from lowrank.errors import ExportError

TOLERANCE = 1e-3
"""Largest difference accepted between runtimes, relative to the largest output."""


def export_program(
    model: nn.Module, example: Example, path: str | Path | None = None
) -> torch.export.ExportedProgram:
    """The model as an `ExportedProgram`, whose outputs equal the model's on the example.

    Args:
        model: dense or compressed; left as it is. Of a transformers decoder the program gives
            the scores, without keys and values to go on from.
        example: inputs of one forward pass, whose shapes are fixed in the program.
        path: file (`.pt2`) to write as well.

    Raises:
        ExportError: torch cannot trace the model, or the program does not run or its outputs
            differ.
        InputError: an example that is no tensor, tuple or dict.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> program = export_program(net, torch.randn(2, 8))
        >>> program.module()(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """
    with evaluating(model), without_key_cache(model):
        try:
            program = torch.export.export(model, *arguments(spare(example)))
        except Exception as error:
            raise ExportError(
                "torch.export", f"cannot trace the model ({_said(error)})", _ADVICE
            ) from error
    args, kwargs = arguments(spare(example))
    try:
        with torch.no_grad():
            got = program.module()(*args, **kwargs)
    except Exception as error:  # SyntaxError too: names of modules become code
        problem = f"the program does not run ({_said(error)})"
        raise ExportError("torch.export", problem, _ADVICE) from error
    _compare("torch.export", _outputs(model, example), flatten(got))
    if path is not None:
        with _written("torch.export", path) as temporary:
            torch.export.save(program, temporary)
    return program


def export_onnx(
    model: nn.Module, example: Example, path: str | Path, *, dynamic_batch: bool = False
) -> None:
    """Write the model as ONNX, and check it with onnxruntime on the example.

    Args:
        model: dense or compressed; left as it is. Of a transformers decoder the graph gives the
            scores, without keys and values to go on from.
        example: inputs of one forward pass.
        path: file to write.
        dynamic_batch: leave the first axis of every input free; the model must allow that.

    Raises:
        ExportError: the extra `onnx` is not installed, the model cannot be traced, or
            onnxruntime's outputs differ.
        InputError: an example that is no tensor, tuple or dict.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "onnx", f"{error.name} is not installed", 'pip install "lowrank-kit[onnx]"'
        ) from error
    args, kwargs = arguments(spare(example))
    with _written("onnx", path) as temporary:
        _write_onnx(model, *arguments(spare(example)), temporary, dynamic_batch)
        try:
            session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no public base class
            raise ExportError(
                "onnx", f"onnxruntime refuses the graph ({_said(error)})", _ADVICE
            ) from error
        names = [i.name for i in session.get_inputs()]
        values = tensors([*args, *kwargs.values()])
        if len(names) != len(values):
            raise ExportError(
                "onnx", f"the graph takes {names}, the example has {len(values)}", _ADVICE
            )
        got = _run_onnx(session, dict(zip(names, values, strict=True)))
        expected = [t.cpu() for t in _outputs(model, example)]
        _compare("onnx", expected, [t for t in got if t.is_floating_point()][: len(expected)])


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """The outputs that another runtime should give."""
    with without_key_cache(model):
        return flatten(run(model, example))


def _run_onnx(session: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The graph's outputs, by way of NumPy, which has no bfloat16."""
    try:
        found = session.run(None, {n: v.detach().cpu().numpy() for n, v in inputs.items()})
        return [torch.as_tensor(o) for o in found]
    except Exception as error:
        problem = f"onnxruntime cannot run the graph ({_said(error)})"
        advice = "export the model in float32, with a tensor for every output"
        raise ExportError("onnx", problem, advice) from error


@contextmanager
def _written(what: str, path: str | Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` when the block succeeds."""
    try:
        with replacing(Path(path)) as temporary:
            yield temporary
    except OSError as error:
        raise ExportError(
            what, f"{path} cannot be written ({error})", "check the folder and the space on it"
        ) from error


def _write_onnx(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path, free: bool
) -> None:
    shapes = None
    if free:
        batch = torch.export.Dim("batch", min=1)
        shapes = tree_map(
            lambda v: {0: batch} if isinstance(v, Tensor) else None, (*args, *kwargs.values())
        )
    with evaluating(model), without_key_cache(model), _quiet():
        try:
            torch.onnx.export(
                model,
                args,
                path,
                kwargs=kwargs,
                dynamo=True,
                dynamic_shapes=shapes,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                "onnx", f"cannot trace the model ({_said(error)})", _ADVICE
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own deprecations and its notes on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_ADVICE = "see torch.export's notes on what can be traced"


def _compare(where: str, expected: list[Tensor], got: list[Tensor]) -> None:
    if len(expected) != len(got):
        raise ExportError(where, f"{len(got)} outputs came for {len(expected)}", _ADVICE)
    for a, b in zip(expected, got, strict=True):
        scale = max(float(a.abs().max()), 1e-6) if a.numel() else 1.0
        worst = float((a.double() - b.double()).abs().max()) / scale if a.numel() else 0.0
        if not worst <= TOLERANCE:
            raise ExportError(where, f"its outputs differ by {worst:.1e} of the largest", _ADVICE)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
