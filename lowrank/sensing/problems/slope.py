"""SLOPE: the L1 norm whose weights go by rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.norms import Sorted
from lowrank.sensing.operators.arrays import as_double, to_numpy
from lowrank.sensing.problems.checks import not_bool
from lowrank.sensing.problems.groups import _Penalised

FALSE_DISCOVERIES = 0.1
"""Rate of false discoveries that the default weights aim at."""


@dataclass(frozen=True, eq=False, repr=False)
class SLOPE(_Penalised):
    """Sorted L1: `min 1/2 ||A Psi c - y||_2^2 + lam sum_i w_i |c|_(i)`.

    `|c|_(1) >= |c|_(2) >= ...` are the moduli in descending order, so that the largest pays the
    largest weight, and columns that are alike get coefficients of one modulus.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0; with the default weights, unit columns and Gaussian noise its standard
            deviation. From `lam_max` on the answer is 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), descending and >= 0, the first > 0. None is `Phi^-1(1 - 0.1 i / (2 p))`,
            for a tenth of false discoveries; ones are the LASSO, an arithmetic sequence OSCAR.
        lower: 0 for coefficients that are >= 0, else -inf; a number or (p,).
        upper: 0 for coefficients that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, weights that rise, bounds other than
            0 and infinity, bounds on complex data.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(SLOPE(np.eye(2), [3.0, 2.9], 1.0, weights=[1.0, 0.5])).x.round(6).tolist()
        [2.2, 2.2]

    Source: Bogdan, van den Berg, Sabatti, Su, Candes 2015, equation (1.3); the weights are those of
        section 1.3, after Benjamini, Hochberg 1995.
    """

    lam: float

    def _check(self) -> None:
        super()._check()
        p = self.n_unknowns
        if self.weights is None:
            self._set("weights", ndtri(1 - FALSE_DISCOVERIES * np.arange(1, p + 1) / (2 * p)))
            return
        w = as_double(not_bool("weights", to_numpy(self.weights)), "weights")
        if np.iscomplexobj(w) or w.shape != (p,):
            text = f"{w.dtype} of shape {w.shape} for {p} coefficients"
            raise InputError("weights", text, "pass a descending sequence, one for each rank")
        if (np.diff(w) > 0).any() or w[-1] < 0 or w[0] <= 0:
            text = "they rise, fall below 0, or are all 0"
            raise InputError("weights", text, "pass a descending sequence, the first above 0")
        self._set("weights", w)

    def norm(self, factor: float = 1.0) -> terms.Penalty:
        """`sum_i w_i |c|_(i)` within the bounds."""
        return self._sided(Sorted(factor * np.asarray(self.weights)[:, None]))
