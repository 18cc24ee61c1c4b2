"""The weight of the penalty, chosen from the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.checks import not_bool
from lowrank.sensing.problems.l1 import Lasso
from lowrank.sensing.result import Recovery
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers.protocol import Solver
from lowrank.sensing.verdict import debiased

MAX_ROUNDS = 30
"""Most rounds of the noise estimate and of the root search; each is one LASSO."""


@dataclass(frozen=True, eq=False)
class Selection:
    """A regularisation parameter and the rule's score along the way.

    Attributes:
        lam: the parameter chosen.
        recovery: the solution of LASSO at `lam`.
        lams: the parameters that were tried, descending.
        scores: the rule's figure for each; the least won, or the one nearest to the target.
        rule: which rule it was.
    """

    lam: float
    recovery: Recovery
    lams: Array
    scores: Array
    rule: str

    def plot(self, ax: Any = None) -> Any:
        """Draw the score against the penalty; see `lowrank.plots.selection`."""
        from lowrank.sensing.plots import selection

        score = f"score of {self.rule}"
        return selection(self.lams, self.scores, chosen=self.lam, score=score, ax=ax)


def lam_max(
    A: MatrixLike, y: ArrayLike, *, basis: MatrixLike | None = None, nonneg: bool = False
) -> float:
    """Smallest lam at which LASSO answers zero: `max_j |a_j^H y|`, without the modulus if c >= 0.

    A fraction of it, 0.5 to 0.01, is a lam without units.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.

    Returns:
        lam_max, >= 0.

    Raises:
        InputError: wrong shapes, NaN or Inf.

    Example:
        >>> lam_max(np.eye(2), [1.0, -3.0]), lam_max(np.eye(2), [1.0, -3.0], nonneg=True)
        (3.0, 1.0)

    Source: Osborne, Presnell, Turlach 2000, section 3.
    """
    return _lasso(A, y, basis, nonneg).lam_max


def lam_grid(
    A: MatrixLike,
    y: ArrayLike,
    *,
    n_lams: int = 30,
    smallest: float = 1e-3,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
) -> Array:
    """`n_lams` parameters from just below `lam_max` down to `smallest * lam_max`, geometric.

    Raises:
        InputError: n_lams < 2, smallest outside (0, 1), or no positive lam_max.
    """
    if n_lams < 2 or not 0 < smallest < 1:
        problem = f"n_lams={n_lams}, smallest={smallest}"
        raise InputError("lam_grid", problem, "pass n_lams >= 2 and smallest in (0, 1)")
    top = lam_max(A, y, basis=basis, nonneg=nonneg)
    if top == 0:
        problem = "no column correlates with y, so the answer is zero at every lam"
        raise InputError("lam_grid", problem, "check A and y")
    return np.geomspace(0.99 * top, smallest * top, n_lams)


def lam_by_discrepancy(
    A: MatrixLike,
    y: ArrayLike,
    epsilon: float,
    *,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    solver: str | Solver = "auto",
    tol: float = 1e-3,
) -> Selection:
    """Discrepancy principle: the lam at which `||A Psi c - y||_2 = epsilon`.

    The residual norm grows with lam, so a root is bracketed and found by the secant rule in log
    lam, kept within the bracket. The solution is that of BPDN with the same epsilon.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        epsilon: norm of the noise, e.g. `estimate_noise(A, y).epsilon` or `std * sqrt(m)`.
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.
        solver: any solver of LASSO.
        tol: relative error of the residual norm.

    Returns:
        The choice; scores are the residual norms.

    Raises:
        InputError: epsilon not between 0 and `||y||`, or below what any c can reach.

    Example:
        >>> found = lam_by_discrepancy(np.eye(3), [3.0, 1.0, 0.0], 1.0)
        >>> round(found.recovery.residual_norm, 2)
        1.0

    Source: Morozov 1966; for LASSO van den Berg, Friedlander 2008, section 2.
    """
    problem = _lasso(A, y, basis, nonneg)
    size = float(np.linalg.norm(np.asarray(problem.y)))
    not_bool("epsilon", np.asarray(epsilon))
    if not 0 < epsilon < size:
        text = f"epsilon={epsilon} is not between 0 and ||y|| = {size:.6g}"
        raise InputError("lam_by_discrepancy", text, "at ||y|| and above the answer is zero")
    high = math.log(lam_max(A, y, basis=basis, nonneg=nonneg) or 1.0)
    low, above, below = high - math.log(1e10), size - epsilon, -epsilon
    guess, tried = high + math.log(epsilon / size), []
    for _ in range(MAX_ROUNDS):
        found = solve(replace(problem, lam=math.exp(guess)), solver)
        miss = found.residual_norm - epsilon
        tried.append((math.exp(guess), found))
        if abs(miss) <= tol * epsilon:
            norms = [r.residual_norm for _, r in tried]
            return _selected(tried, len(tried) - 1, norms, "residual norm")
        if miss > 0:
            high, above = guess, miss
        else:
            low, below = guess, miss
        share = above / (above - below)
        guess = high - min(max(share, 0.1), 0.9) * (high - low)
    text = f"no lam reaches the residual {epsilon}; the nearest is {found.residual_norm:.6g}"
    raise InputError("lam_by_discrepancy", text, "raise epsilon: A may have fewer rows than rank")


def lam_by_cross_validation(
    A: MatrixLike,
    y: ArrayLike,
    *,
    folds: int = 5,
    lams: ArrayLike | None = None,
    one_standard_error: bool = False,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    solver: str | Solver = "auto",
    seed: int = 0,
) -> Selection:
    """Cross-validation: the lam whose solutions predict measurements that were left out best.

    With m (1 - 1/folds) rows in place of m, the fit on the fold takes `lam (1 - 1/folds)`, so that
    the penalty keeps its weight against the data.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        folds: parts of the rows, 2..m.
        lams: parameters to try; None is `lam_grid`.
        one_standard_error: take the largest lam within a standard error of the best.
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.
        solver: any solver of LASSO.
        seed: of the split.

    Returns:
        The choice; scores are mean squared errors of prediction.

    Raises:
        InputError: folds out of range, or lams not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((60, 30)), np.zeros(30)
        >>> x[[3, 17]] = 1, -2
        >>> found = lam_by_cross_validation(A, A @ x + 0.1 * rng.standard_normal(60))
        >>> set([3, 17]) <= set(found.recovery.support.tolist())
        True

    Source: Stone 1974; Hastie, Tibshirani, Friedman 2009, section 7.10 (one standard error).
    """
    problem = _lasso(A, y, basis, nonneg)
    values, m = np.asarray(problem.y), problem.operator.shape[0]
    not_bool("folds", np.asarray(folds))
    if not 2 <= folds <= m:
        raise InputError("folds", f"{folds} is outside 2..{m}", "change it")
    grid = _checked_lams(lams, A, y, basis, nonneg)
    parts = np.array_split(np.random.default_rng(seed).permutation(m), folds)
    errors = np.empty((folds, grid.size))
    for i, out in enumerate(parts):
        kept = np.setdiff1d(np.arange(m), out)
        inner = _lasso(problem.operator[kept], values[kept], None, nonneg)
        held = problem.operator[out]
        for j, (_, found) in enumerate(_path(inner, grid * kept.size / m, solver)):
            misses = held.forward(np.asarray(found.coefficients)) - values[out]
            errors[i, j] = float(np.mean(np.abs(misses) ** 2))
    scores = errors.mean(axis=0)
    best = int(scores.argmin())
    if one_standard_error:
        limit = scores[best] + errors[:, best].std(ddof=1) / math.sqrt(folds)
        best = int(np.flatnonzero(scores <= limit)[0])
    found = solve(replace(problem, lam=float(grid[best])), solver)
    return Selection(float(grid[best]), found, grid, scores, "cross-validation")


def lam_by_sure(
    A: MatrixLike,
    y: ArrayLike,
    std: float,
    *,
    lams: ArrayLike | None = None,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    solver: str | Solver = "auto",
) -> Selection:
    """Stein's unbiased risk estimate of `||A Psi (c - c0)||^2`, at its least.

        SURE = ||A Psi c - y||^2 - m std^2 + 2 std^2 df,   df = rank of the columns of the support

    Args:
        A: real measurement operator (m, n).
        y: measurements (m,).
        std: standard deviation of each measurement's noise, > 0.
        lams: parameters to try; None is `lam_grid`.
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.
        solver: any solver of LASSO.

    Returns:
        The choice; scores are the risk estimates.

    Raises:
        InputError: complex data, or std or lams not positive.

    Example:
        >>> found = lam_by_sure(np.eye(4), [3.0, 0.1, -0.1, 0.05], 0.1)
        >>> found.recovery.support.tolist()
        [0]

    Source: Stein 1981; degrees of freedom by Tibshirani, Taylor 2012, theorem 2.
    """
    not_bool("std", np.asarray(std))
    if not std > 0:
        raise InputError("std", f"{std} is not above 0", "use estimate_noise")

    def score(rss: float, df: int, m: int, p: int) -> float:
        return rss - m * std**2 + 2 * std**2 * df

    return _least(A, y, lams, basis, nonneg, solver, score, "SURE")


def lam_by_information(
    A: MatrixLike,
    y: ArrayLike,
    *,
    criterion: Literal["aic", "bic", "ebic"] = "ebic",
    std: float | None = None,
    lams: ArrayLike | None = None,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    solver: str | Solver = "auto",
) -> Selection:
    """Information criterion: fit plus a price on every degree of freedom, at its least.

        m log(RSS / m) + price,   or RSS / std^2 + price with a known std
        price: aic 2 df,  bic log(m) df,  ebic log(m) df + 2 log C(p, df)

    RSS is that of LASSO, and for ebic that of least squares on LASSO's support. The extended
    criterion also pays for the choice among the p columns; without it, and with p > m, supports
    come out too large. Where std is not known, lams that leave less than half of
    the degrees of freedom to the residual are not taken: the fit would go to zero there.

    Args:
        A: real measurement operator (m, n).
        y: measurements (m,).
        criterion: "aic", "bic" or "ebic".
        std: standard deviation of each measurement's noise, > 0; None estimates it from the fit.
        lams: parameters to try; None is `lam_grid`.
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.
        solver: any solver of LASSO.

    Returns:
        The choice; scores are the criterion.

    Raises:
        InputError: complex data, an unknown criterion, or std or lams not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((60, 100)), np.zeros(100)
        >>> x[[3, 17]] = 1, -2
        >>> found = lam_by_information(A, A @ x + 0.1 * rng.standard_normal(60))
        >>> found.recovery.support.tolist()
        [3, 17]

    Source: Akaike 1974; Schwarz 1978; Chen, Chen 2008, equation (2) with gamma = 1; degrees of
    freedom by Zou, Hastie, Tibshirani 2007.
    """
    prices: dict[str, Callable[[int, int, int], float]] = {
        "aic": lambda df, m, p: 2 * df,
        "bic": lambda df, m, p: math.log(m) * df,
        "ebic": lambda df, m, p: math.log(m) * df + 2 * _log_binomial(p, df),
    }
    if criterion not in prices:
        problem = f"{criterion!r} is not one of {', '.join(prices)}"
        raise InputError("criterion", problem, "take one of these")
    not_bool("std", np.asarray(0.0 if std is None else std))
    if std is not None and not std > 0:
        raise InputError("std", f"{std} is not above 0", "leave it out, or use estimate_noise")

    def score(rss: float, df: int, m: int, p: int) -> float:
        price = prices[criterion](df, m, p)
        if std is not None:
            return rss / std**2 + price
        return m * math.log(max(rss, 1e-300) / m) + price if df <= m // 2 else math.inf

    refit = criterion == "ebic"
    return _least(A, y, lams, basis, nonneg, solver, score, criterion, refit=refit)


def _least(
    A: MatrixLike,
    y: ArrayLike,
    lams: ArrayLike | None,
    basis: MatrixLike | None,
    nonneg: bool,
    solver: str | Solver,
    score: Callable[[float, int, int, int], float],
    rule: str,
    *,
    refit: bool = False,
) -> Selection:
    problem = _lasso(A, y, basis, nonneg)
    if problem.is_complex:
        text = "degrees of freedom are those of real coefficients, and the data are complex"
        raise InputError(rule, text, "use cross-validation or the discrepancy principle")
    m, p = problem.operator.shape
    tried = _path(problem, _checked_lams(lams, A, y, basis, nonneg), solver)
    rss = [_refitted(problem, r) if refit else r.residual_norm**2 for _, r in tried]
    ranks = [_rank(problem.operator, r) for _, r in tried]
    scores = np.array([score(fit, df, m, p) for fit, df in zip(rss, ranks, strict=True)])
    least = scores.min()
    best = np.flatnonzero(scores <= least + 1e-9 * abs(least))[-1]  # of a tie, the least bias
    return _selected(tried, int(best), scores, rule)


def _selected(
    tried: list[tuple[float, Recovery]], best: int, scores: Sequence[float] | Array, rule: str
) -> Selection:
    lams = np.array([lam for lam, _ in tried])
    order = np.argsort(-lams)
    return Selection(*tried[best], lams[order], np.array(scores)[order], rule)


def _path(problem: Lasso, lams: Array, solver: str | Solver) -> list[tuple[float, Recovery]]:
    """LASSO along descending lams, each from the last one's answer."""
    tried: list[tuple[float, Recovery]] = []
    start: Any = None
    for lam in lams:
        found = solve(replace(problem, lam=float(lam)), solver, x0=start)
        start = np.asarray(found.coefficients)
        tried.append((float(lam), found))
    return tried


def _lasso(A: MatrixLike, y: ArrayLike, basis: MatrixLike | None, nonneg: bool) -> Lasso:
    problem = Lasso(A, y, 1.0, basis=basis, lower=0.0 if nonneg else -np.inf)
    if np.ndim(problem.y) != 1:
        text = f"y has shape {np.shape(problem.y)}"
        raise InputError("y", text, "parameters are chosen for one signal at a time, (m,)")
    return problem


def _checked_lams(
    lams: ArrayLike | None,
    A: MatrixLike,
    y: ArrayLike,
    basis: MatrixLike | None,
    nonneg: bool,
) -> Array:
    if lams is None:
        return lam_grid(A, y, basis=basis, nonneg=nonneg)
    grid = np.sort(np.atleast_1d(np.asarray(not_bool("lams", np.asarray(lams)), dtype=float)))[::-1]
    if grid.ndim != 1 or grid.size == 0 or not (np.isfinite(grid) & (grid > 0)).all():
        raise InputError("lams", "not all are positive and finite", "pass such numbers, (k,)")
    return grid


def _refitted(problem: Lasso, found: Recovery) -> float:
    """Squared residual of least squares on the support of a solution."""
    fitted = debiased(problem, np.asarray(found.coefficients))
    return float(np.linalg.norm(problem.operator.forward(fitted) - np.asarray(problem.y))) ** 2


def _rank(A: Operator, found: Recovery) -> int:
    return int(np.linalg.matrix_rank(A.columns(found.support))) if found.support.size else 0


def _log_binomial(n: int, k: int) -> float:
    return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
