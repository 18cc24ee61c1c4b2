"""Test signals."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array

Kind = Literal["gaussian", "sign", "uniform", "complex"]


def sparse_signal(
    n: int, k: int, *, seed: int | np.random.Generator, kind: Kind = "gaussian"
) -> Array:
    """A k-sparse signal (n,) with its support drawn uniformly.

    Args:
        n: length.
        k: number of non-zeros, 0 .. n.
        seed: integer or generator.
        kind: of the non-zeros: "gaussian" N(0, 1), "sign" +-1, "uniform" on [0, 1] (so that the
            signal is non-negative), "complex" circular N(0, 1).

    Raises:
        InputError: k outside 0 .. n, or an unknown kind.

    Example:
        >>> x = sparse_signal(100, 3, seed=0, kind="sign")
        >>> x.shape, int((x != 0).sum())
        ((100,), 3)
    """
    if not 0 <= k <= n:
        raise InputError("k", f"{k} is outside 0..{n}", "ask for at most n non-zeros")
    rng = np.random.default_rng(seed)
    values = {
        "gaussian": lambda: rng.standard_normal(k),
        "sign": lambda: rng.choice([-1.0, 1.0], k),
        "uniform": lambda: 1 - rng.random(k),  # in (0, 1], so that none of the k is zero
        "complex": lambda: (rng.standard_normal(k) + 1j * rng.standard_normal(k)) / np.sqrt(2),
    }
    if kind not in values:
        raise InputError("kind", f"{kind!r} is not one of {', '.join(values)}", "take one of these")
    support = rng.choice(n, k, replace=False)
    x = np.zeros(n, dtype=complex if kind == "complex" else float)
    x[support] = values[kind]()
    return x
