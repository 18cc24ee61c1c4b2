"""The wavelet basis behind `bases.wavelet`."""

from __future__ import annotations

import warnings
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pywt

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator


def wavelet_basis(size: tuple[int, ...], name: str, level: int | None, mode: str) -> Operator:
    """Synthesis of a picture of this size from stacked wavelet coefficients; see `bases.wavelet`.

    The adjoint of synthesis is analysis by the time-reversed synthesis filters: in the same mode
    for "periodization", and with zero extension for the others, whose synthesis does not depend on
    the extension.
    """
    wave = _wavelet(name)
    level = _level(size, wave, level, mode)
    axes = tuple(range(len(size)))
    reverse = pywt.Wavelet(
        f"{name} reversed",
        filter_bank=[f[::-1] for f in (wave.rec_lo, wave.rec_hi, wave.dec_lo, wave.dec_hi)],
    )
    extension = mode if mode == "periodization" else "zero"

    def decompose(picture: Array, filters: Any) -> Any:
        with warnings.catch_warnings():  # deep levels of periodized wavelets are exact all the same
            warnings.filterwarnings("ignore", "Level value", UserWarning)
            return pywt.wavedecn(picture, filters, mode=extension, level=level, axes=axes)

    template = decompose(np.zeros(size), wave)
    p = sum(prod(block.shape) for block in _blocks(template))
    per_level = [template[0].size, *(sum(b.size for b in d.values()) for d in template[1:])]
    octaves = np.repeat([level - 1, *range(level - 1, -1, -1)], per_level)

    def synthesis(c: Array) -> Array:
        coefficients = _unpack(c, template)
        picture = pywt.waverecn(coefficients, wave, mode=extension, axes=axes)
        return np.asarray(picture[tuple(slice(s) for s in size)].reshape(-1, *c.shape[1:]))

    def adjoint(x: Array) -> Array:
        picture = x.reshape(*size, *x.shape[1:])
        blocks = _blocks(decompose(picture, reverse))
        parts = [block.reshape(-1, *x.shape[1:]) for block in blocks]
        return np.concatenate(parts)

    orthonormal = bool(wave.orthogonal) and mode == "periodization"
    return Operator(
        (prod(size), p),
        float,
        synthesis,
        adjoint,
        name=f"{name} wavelets, level {level}",
        facts=Facts(row_gram=1.0 if orthonormal else None, scales=len(size) * octaves),
        recipe=partial(wavelet_basis, size, name, level, mode),
    )


def _wavelet(name: str) -> Any:
    try:
        return pywt.Wavelet(name)
    except ValueError as error:
        text = f"{name!r} is not one of PyWavelets' discrete wavelets"
        raise InputError("wavelet", text, "see pywt.wavelist(kind='discrete')") from error


def _level(size: tuple[int, ...], wave: Any, level: int | None, mode: str) -> int:
    if mode not in pywt.Modes.modes:
        text = f"mode {mode!r} is not one of {', '.join(pywt.Modes.modes)}"
        raise InputError("wavelet", text, "take one of these")
    allowed = min(pywt.dwt_max_level(s, wave.dec_len) for s in size)
    if mode == "periodization":
        halvings = min((s & -s).bit_length() - 1 for s in size)
        allowed = min(allowed, halvings) if level is None else halvings
    level = allowed if level is None else level
    if not 1 <= level <= max(allowed, 1) or allowed < 1:
        text = f"level {level} is outside 1..{allowed} for shape {size} and {wave.name}"
        advice = "pad the signal to a multiple of 2^level, or pass mode='symmetric'"
        raise InputError("wavelet", text, advice)
    return int(level)


def _blocks(coefficients: Any) -> list[Array]:
    """Approximation first, then each level's details in the order of their names."""
    details = (level[key] for level in coefficients[1:] for key in sorted(level))
    return [coefficients[0], *details]


def _unpack(c: Array, template: Any) -> list[Any]:
    batch, start = c.shape[1:], 0

    def take(block: Array) -> Array:
        nonlocal start
        part = c[start : start + block.size].reshape(*block.shape, *batch)
        start += block.size
        return part

    return [
        take(template[0]),
        *({key: take(level[key]) for key in sorted(level)} for level in template[1:]),
    ]
