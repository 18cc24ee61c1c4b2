"""Which frequencies are measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from scipy.fft import fftfreq

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, as_length, as_shape


def variable_density_mask(
    shape: int | Sequence[int], m: int, *, seed: int | np.random.Generator, power: float = 3.0
) -> Array:
    """m frequencies drawn without repetition, with density falling as `(1 - |f|)^power`.

    Args:
        shape: length of the signal, or (rows, columns, ...) of the picture.
        m: number of samples, 1 .. n.
        seed: integer or generator.
        power: how fast the density falls from the centre, >= 0 (0 is uniform).

    Returns:
        Booleans of the shape, in the order of `numpy.fft`.

    Raises:
        InputError: m out of range.

    Example:
        >>> int(variable_density_mask((32, 32), 200, seed=0).sum())
        200

    Source: Lustig, Donoho, Pauly 2007, section "Cartesian sampling".
    """
    shape = as_shape(shape)
    n = prod(shape)
    if not 1 <= m <= n:
        raise InputError("m", f"{m} is outside 1..{n}", "sample at most every frequency")
    grids = np.meshgrid(*(2 * fftfreq(s) for s in shape), indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grids)) / np.sqrt(len(shape))
    keys = np.random.default_rng(seed).exponential(size=n)  # the m earliest arrivals
    density = np.maximum((1 - radius.ravel()) ** power, 1e-12)
    mask = np.zeros(n, dtype=bool)
    mask[np.argpartition(keys / density, m - 1)[:m]] = True
    return mask.reshape(shape)


def radial_mask(shape: Sequence[int], lines: int) -> Array:
    """Frequencies on equally spaced lines through zero, as in radial MRI.

    Args:
        shape: (rows, columns) of the picture.
        lines: number of lines over half a turn.

    Returns:
        Booleans of the shape, in the order of `numpy.fft`.

    Raises:
        InputError: the shape is not of a picture.

    Example:
        >>> mask = radial_mask((256, 256), 22)
        >>> bool(mask[0, 0]), round(float(mask.mean()), 2)
        (True, 0.08)

    Source: Candes, Romberg, Tao 2006, figure 1.
    """
    shape = _picture(shape)
    angles = np.arange(as_length(lines, "lines")) * np.pi / lines
    direction = np.stack([np.sin(angles), np.cos(angles)])
    direction /= np.abs(direction).max(axis=0)  # one sample per row or column crossed
    reach = np.arange(-max(shape), max(shape) + 1)
    rows, columns = np.rint(direction[:, :, None] * reach).astype(int)
    inside = (np.abs(rows) <= (shape[0] - 1) // 2) & (np.abs(columns) <= (shape[1] - 1) // 2)
    mask = np.zeros(shape, dtype=bool)
    mask[rows[inside], columns[inside]] = True  # negative frequencies index from the end
    return mask


def _picture(shape: Any) -> tuple[int, int]:
    size = as_shape(shape)
    if len(size) != 2:
        raise InputError("shape", f"{size} is of no picture", "pass (rows, columns)")
    return size[0], size[1]
