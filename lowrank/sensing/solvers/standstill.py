"""The end of progress: an error that rounding keeps from falling."""

from __future__ import annotations

import numpy as np

from lowrank.sensing.operators.operator import Operator

PATIENCE = 2000
"""Iterations that are not asked about, where products are in single precision."""
PROGRESS = 0.9
"""Share of the least error so far that a new one must be below to count."""
LOW = 0.1
"""Errors above this are no end: a gap may stand at 1 until the dual point is nearly feasible."""


class Standstill:
    """Tells a run whose error has not fallen by a tenth in the later half of its iterations.

    In double precision a first-order method may stand for thousands of iterations and then go on.

    Args:
        patience: iterations before it is asked; inf is never.

    Example:
        >>> stands = Standstill(patience=4)
        >>> [stands(k, max(2.0**-k, 1e-1)) for k in range(1, 9)]
        [False, False, False, False, False, False, False, True]
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience, self.least, self.last = patience, np.inf, 0

    @staticmethod
    def by(A: Operator) -> Standstill:
        """That of a run with products of this operator."""
        single = not A.is_dense and A.dtype in (np.float32, np.complex64)
        return Standstill(PATIENCE if single else np.inf)

    def __call__(self, k: int, error: float) -> bool:
        """Whether iteration k, of this error, is one too many."""
        if error < PROGRESS * self.least:
            self.least, self.last = error, k
        return k >= self.patience and self.least <= LOW and k >= 2 * self.last
