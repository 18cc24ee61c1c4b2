"""Linear functions of torch as operators, whose adjoint is their derivative's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, Map, is_torch, to_numpy
from lowrank.sensing.operators.foreign import by_parts, each_vector
from lowrank.sensing.operators.operator import Operator

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 1e3
"""Roundings, of the function's precision, up to which what should be equal is."""


def from_torch(function: Callable[[Tensor], Tensor], example: Tensor) -> Operator:
    """The operator of a linear function of torch tensors; its adjoint is found by autograd.

    Signals and measurements are flattened in C order. A product with the adjoint takes one forward
    and one backward pass; an operator in single precision says so, as far as it can be solved.

    Args:
        function: such as `torch.fft.fft`, a convolution without a bias, or a module of linear
            layers; it takes one tensor and gives one.
        example: a signal of the shape, dtype and device that the function takes; values are not
            looked at.

    Raises:
        InputError: no tensor, a function that gives none, that has no derivative, or that is not
            linear.

    Example:
        >>> import torch
        >>> blur = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
        >>> A = from_torch(blur, torch.zeros(1, 1, 16, dtype=torch.float64))
        >>> A.shape, A.dot_test < 1e-12
        ((16, 16), True)
    """
    _check_example(example)
    run, pull = partial(_value, function, example), partial(_pulled, function, example)
    name = getattr(function, "__name__", type(function).__name__)
    like = _first(run, example, name)
    n, m = example.numel(), like.size
    forward = each_vector(run, (n, m), name)
    _check_linear(forward, example, name)
    adjoint = each_vector(pull, (m, n), f"the derivative of {name}")
    if not example.is_complex():
        forward, adjoint = by_parts(forward), _of_real(adjoint, np.iscomplexobj(like))
    return Operator(
        (m, n),
        like.dtype,
        forward,
        adjoint,
        name=name,
        trusted=False,
        recipe=partial(from_torch, function, example),
    )


def _check_example(example: Any) -> None:
    import torch

    if not is_torch(example) or not (example.is_floating_point() or example.is_complex()):
        text = f"{type(example).__name__} is no tensor of real or complex numbers"
        raise InputError("example", text, "pass a signal, such as torch.zeros(64)")
    if torch.finfo(example.dtype).bits < 32:
        text = f"{example.dtype} is too coarse for products to solve with"
        raise InputError("example", text, "pass the function and the example in float32 or more")


def _first(run: Callable[[Array], Array], example: Tensor, name: str) -> Array:
    try:
        return run(np.zeros(example.numel()))
    except InputError:
        raise
    except Exception as error:
        text = f"{name} fails on {example.dtype} of shape {tuple(example.shape)}: {error}"
        raise InputError("from_torch", text, "pass a signal that it takes") from error


def _tensor(x: Array, example: Tensor) -> Tensor:
    """A vector as a signal for the function."""
    import torch

    wanted = x if example.is_complex() else x.real
    return torch.from_numpy(np.ascontiguousarray(wanted)).to(example).reshape(example.shape)


def _value(function: Callable[[Tensor], Tensor], example: Tensor, x: Array) -> Array:
    import torch

    with torch.no_grad():
        return to_numpy(_answer(function, _tensor(x, example))).ravel()


def _pulled(function: Callable[[Tensor], Tensor], example: Tensor, y: Array) -> Array:
    """The derivative's adjoint at y; its real part where signals are real."""
    import torch

    with torch.enable_grad():
        x = torch.zeros_like(example, requires_grad=True)
        answer = _answer(function, x)
        if not answer.requires_grad:
            raise InputError("from_torch", "no gradient reaches the signal", "leave out detach")
        weights = y if answer.is_complex() else y.real
        back = torch.from_numpy(np.ascontiguousarray(weights)).to(answer).reshape(answer.shape)
        (found,) = torch.autograd.grad(answer, x, back)
    return to_numpy(found).ravel()


def _answer(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Any = function(x)
    if not is_torch(found):
        text = f"the function gives {type(found).__name__}"
        raise InputError("from_torch", text, "one tensor is to come out")
    return found


def _of_real(pull: Map, is_complex: bool) -> Map:
    """`A^H` of a function of real signals, whose derivative gives the real part alone."""
    return (lambda y: pull(y) + 1j * pull(-1j * y)) if is_complex else by_parts(pull)


def _check_linear(forward: Map, example: Tensor, name: str) -> None:
    import torch

    a, b = np.random.default_rng(0).standard_normal((2, example.numel()))
    turn = 1j if example.is_complex() else 2.0
    first, second = forward(a), forward(b)
    size = float(np.linalg.norm(first) + np.linalg.norm(second))
    most = DIGITS * float(torch.finfo(example.dtype).eps) * size
    offset = float(np.linalg.norm(forward(0 * a)))
    if offset > most:
        text = f"{name} adds {offset:.2g} to A x: it is not 0 at 0"
        raise InputError("from_torch", text, "leave out its bias, and take it from y")
    bent = float(np.linalg.norm(forward(turn * a - b) - turn * first + second))
    if bent > most:
        text = f"{name} is not linear: f({turn:g} a - b) is not {turn:g} f(a) - f(b)"
        raise InputError("from_torch", text, "pass a linear function, in eval mode")
