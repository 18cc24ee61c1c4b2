"""Sparse recovery as scikit-learn regressors: `X` measures the coefficients, `y` is measured.

They clone, pipe and search like any estimator; `recovery_` keeps the answer with its certificate.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lstsq, solve_triangular
from scipy.linalg.lapack import dpotrf
from scipy.sparse import diags_array, issparse
from scipy.sparse.linalg import lsqr

from lowrank.errors import InputError
from lowrank.sensing import problems
from lowrank.sensing.estimator_checks import judge, no_operator
from lowrank.sensing.limits import TOL
from lowrank.sensing.operators.algebra import centred_sparse
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import as_operator
from lowrank.sensing.path import checked_grid, points
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.recover import recover, share_of
from lowrank.sensing.result import Recovery
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers import Solver

if TYPE_CHECKING:
    from lowrank.sensing.loss_estimators import (
        HuberLasso,
        LogisticLasso,
        PoissonLasso,
        QuantileLasso,
    )
    from lowrank.sensing.matrix_estimators import RobustPCA, SoftImpute

__all__ = [
    "BPDN",
    "BPDNCV",
    "OMP",
    "OMPCV",
    "BasisPursuit",
    "ElasticNet",
    "GroupLasso",
    "GroupLassoCV",
    "HuberLasso",
    "Lasso",
    "LassoCV",
    "LogisticLasso",
    "PoissonLasso",
    "QuantileLasso",
    "RobustPCA",
    "SoftImpute",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lowrank.sensing.{_HOME[name]}"), name)


_HOME = dict.fromkeys(("RobustPCA", "SoftImpute"), "matrix_estimators")  # which import torch
_HOME |= dict.fromkeys(
    ("HuberLasso", "LogisticLasso", "PoissonLasso", "QuantileLasso"), "loss_estimators"
)


try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.model_selection import check_cv
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    missing = "lowrank.sensing.estimators: scikit-learn 1.6 or later is not installed"
    raise ImportError(f"{missing}; pip install 'lowrank-kit[sklearn]'") from error


class _SparseRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Centre, recover, put the intercept back; a subclass names the formulation."""

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Recover the coefficients.

        Args:
            X: (m, n), real; a sparse matrix stays sparse.
            y: (m,), real.
            sample_weight: how much each row's squared residual counts, (m,), >= 0; scaled to a mean
                of 1, so that the other parameters keep their meaning. None counts all alike.

        Returns:
            The estimator, with `coef_` (n,), `intercept_`, `n_iter_`, `status_` and `recovery_`.

        Raises:
            InputError: parameters out of range, or no coefficients satisfy the constraint.
        """
        A, b, roots = self._checked(X, y, sample_weight)
        rows = _Rows(A, b, roots, self.fit_intercept)
        found = self._recover(rows.A, rows.b)
        judge(type(self).__name__, found)
        self.recovery_, self.status_ = found, found.status
        self.n_iter_ = max(1, found.n_iter)  # scikit-learn counts an answer without steps as one
        self.coef_ = np.asarray(found.x)
        self.intercept_ = rows.intercept(self.coef_)
        return self

    def _checked(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[Any, Array, Array | None]:
        """The data in double precision, and the roots of the weights."""
        no_operator(X)
        options: dict[str, Any] = {"y_numeric": True, "dtype": np.float64, "accept_sparse": "csc"}
        A, b = validate_data(self, X, y, **options)
        b = b.astype(np.float64)
        if sample_weight is None:
            return A, b, None
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weights.any():
            raise InputError("sample_weight", "all are zero", "give some rows a positive weight")
        kept = weights > 0  # a row of no weight is as good as absent
        weights = weights[kept] / weights[kept].mean()
        return A[np.flatnonzero(kept)], b[kept], np.sqrt(weights)

    def predict(self, X: ArrayLike) -> Array:
        """`X coef_ + intercept_`.

        Args:
            X: (m, n), real.

        Returns:
            Predictions (m,).
        """
        check_is_fitted(self)
        no_operator(X)
        X = validate_data(self, X, reset=False, dtype=np.float64, accept_sparse="csr")
        return np.asarray(X @ self.coef_ + self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _recover(self, X: Any, y: Array) -> Recovery:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {"solver": self.solver, "tol": self.tol, "max_iter": self.max_iter}


class _Rows:
    """Weighted and centred rows `A`, `b`, and the way back to an intercept.

    Args:
        A: (m, n), dense or sparse.
        b: (m,).
        roots: of the rows' weights, whose mean square is 1; None for 1.
        centre: whether to take the weighted means away.
    """

    def __init__(self, A: Any, b: Array, roots: Array | None, centre: bool) -> None:
        u = np.ones(len(b)) if roots is None else roots
        share = u * u / (u @ u)
        self.middle = np.asarray(share @ A) if centre else np.zeros(A.shape[1])
        self.level = float(share @ b) if centre else 0.0
        self.b = u * (b - self.level)
        if issparse(A):
            scaled = A if roots is None else diags_array(u) @ A
            self.A: Any = centred_sparse(scaled, u, self.middle) if centre else scaled
        else:
            self.A = A - self.middle if centre else A
            self.A = self.A if roots is None else u[:, None] * self.A

    def intercept(self, c: Array) -> float:
        """What is to be added to `X c`."""
        return float(self.level - self.middle @ c)


class BasisPursuit(_SparseRegressor):
    """The smallest coefficients that fit best: `min ||c||_1` among those with least `||X c - y||`.

    With fewer rows than columns that is basis pursuit, `X c = y`; else y is first projected onto
    what X can make, so that noise leaves a solution.

    Args:
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0; y is not projected then.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((20, 40))
        >>> fitted = BasisPursuit().fit(X, 2 * X[:, 3] - X[:, 17] + 5)
        >>> fitted.coef_[[3, 17]].round(6), round(fitted.intercept_, 6), fitted.status_.name
        (array([ 2., -1.]), 5.0, 'OPTIMAL')

    Source: Chen, Donoho, Saunders 1998, equation (1.3); the projection is ours.
    """

    def __init__(
        self,
        *,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        if self.nonneg:
            reachable = y
        elif isinstance(X, np.ndarray):
            reachable = X @ lstsq(X, y)[0]
        else:
            A, limits = as_operator(X), {"atol": 1e-15, "btol": 1e-15, "conlim": 0}
            reachable = A @ lsqr(A, y, iter_lim=20 * min(A.shape), **limits)[0]
        return recover(X, reachable, nonneg=self.nonneg, **self._options())


class BPDN(_SparseRegressor):
    """Basis pursuit denoising: `min ||c||_1  subject to  ||X c - y||_2 <= noise sqrt(m)`.

    Args:
        noise: bound on the root mean square of the m training residuals, >= 0, which means the same
            for any number of rows; "auto" estimates it.
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 90))
        >>> y = 2 * X[:, 3] - X[:, 17] + 0.05 * rng.standard_normal(60)
        >>> BPDN().fit(X, y).coef_[[3, 17]].round(1)
        array([ 2., -1.])

    Source: van den Berg, Friedlander 2008; Sun, Zhang 2012 for the noise level.
    """

    def __init__(
        self,
        noise: float | Literal["auto"] = "auto",
        *,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.noise = noise
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        with warnings.catch_warnings():  # a regressor that predicts the mean is no surprise
            warnings.filterwarnings("ignore", message="noise='auto'")
            noise = self.noise
            if not isinstance(noise, str):
                noise = checked_number("noise", noise, zero=True) * math.sqrt(len(y))
            return recover(X, y, noise=noise, nonneg=self.nonneg, **self._options())


class Lasso(_SparseRegressor):
    """LASSO: `min 1/2 ||X c - y||_2^2 + lam ||c||_1`, to a certified gap.

    scikit-learn's `alpha` is `lam / m`.

    Args:
        lam: penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.eye(3), np.array([3.0, 0.5, 0.0])
        >>> Lasso(lam=1.0, fit_intercept=False).fit(X, y).coef_.round(6)
        array([2., 0., 0.])

    Source: Tibshirani 1996.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        lam_fraction: float = 0.05,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.lam = lam
        self.lam_fraction = lam_fraction
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        fraction = self.lam_fraction if self.lam is None else None
        options = self._options() | {"nonneg": self.nonneg}
        return recover(X, y, lam=self.lam, lam_fraction=fraction, **options)


class ElasticNet(_SparseRegressor):
    """Elastic net: `min 1/2 ||X c - y||_2^2 + lam ||c||_1 + ridge/2 ||c||_2^2`, certified.

    scikit-learn's `alpha` and `l1_ratio` are `lam = m alpha l1_ratio` and
    `ridge = m alpha (1 - l1_ratio)`.

    Args:
        lam: L1 penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        ridge: squared penalty, > 0; None is lam.
        lam_fraction: share of that smallest lam, in (0, 1]; not used with lam.
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.eye(3), np.array([3.0, 0.5, 0.0])
        >>> ElasticNet(lam=1.0, ridge=1.0, fit_intercept=False).fit(X, y).coef_.round(6)
        array([1., 0., 0.])

    Source: Zou, Hastie 2005, equation (3).
    """

    def __init__(
        self,
        lam: float | None = None,
        ridge: float | None = None,
        *,
        lam_fraction: float = 0.05,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.lam = lam
        self.ridge = ridge
        self.lam_fraction = lam_fraction
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        lower = 0.0 if self.nonneg else -np.inf
        size = problems.ElasticNet(X, y, 1.0, 1.0, lower=lower).lam_max
        lam = share_of(self.lam_fraction, size) if self.lam is None else self.lam
        ridge = lam if self.ridge is None else self.ridge
        options = self._options()
        return solve(problems.ElasticNet(X, y, lam, ridge, lower=lower), **options)


class GroupLasso(_SparseRegressor):
    """Group LASSO: `min 1/2 ||X c - y||_2^2 + lam sum_g sqrt(|g|) ||c_g||_2`, certified.

    Args:
        groups: integer label of each column's group, (n,), or the indices of each group; None makes
            each column a group of its own.
        lam: penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: centre X and y first, and predict with the mean put back.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.eye(4), np.array([3.0, 4.0, 0.5, 0.0])
        >>> GroupLasso([0, 0, 1, 1], 0.5**0.5, fit_intercept=False).fit(X, y).coef_.round(6)
        array([2.4, 3.2, 0. , 0. ])

    Source: Yuan, Lin 2006, equation (2.1).
    """

    def __init__(
        self,
        groups: ArrayLike | None = None,
        lam: float | None = None,
        *,
        lam_fraction: float = 0.05,
        fit_intercept: bool = True,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.groups = groups
        self.lam = lam
        self.lam_fraction = lam_fraction
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        groups = np.arange(X.shape[1]) if self.groups is None else self.groups
        problem = problems.GroupLasso(X, y, 1.0, groups)
        lam = share_of(self.lam_fraction, problem.lam_max) if self.lam is None else self.lam
        return solve(replace(problem, lam=lam), **self._options())


class OMP(_SparseRegressor):
    """k-sparse least squares by orthogonal matching pursuit, or another greedy solver.

    Args:
        sparsity: number of non-zeros, 1 .. min(m, n); None is a tenth of min(m, n), rounded up.
        fit_intercept: centre X and y first, and predict with the mean put back.
        solver: "omp", "cosamp", "subspace_pursuit", "iht", or a solver object.
        tol: as the solver has it; None is its own.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((20, 40))
        >>> np.flatnonzero(OMP(2).fit(X, 2 * X[:, 3] - X[:, 17]).coef_)
        array([ 3, 17])

    Source: Mallat, Zhang 1993; Pati, Rezaiifar, Krishnaprasad 1993.
    """

    def __init__(
        self,
        sparsity: int | None = None,
        *,
        fit_intercept: bool = True,
        solver: str | Solver = "omp",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.sparsity = sparsity
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _recover(self, X: Any, y: Array) -> Recovery:
        sparsity = -(-min(X.shape) // 10) if self.sparsity is None else self.sparsity
        return recover(X, y, sparsity=sparsity, **self._options())


class _CrossValidated(_SparseRegressor):
    """A parameter chosen by cross-validation, with one path of solutions for each fold.

    A subclass names the grid, the path over it, and the fit of all rows with what was chosen.
    """

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Choose the parameter, and recover the coefficients from all rows.

        Args:
            X: (m, n), real; a sparse matrix stays sparse.
            y: (m,), real.
            sample_weight: how much each row counts, in fits and scores, (m,), >= 0; None is 1.

        Returns:
            The estimator; beside what the others have, `grid_`, `mse_path_` (grid, folds) and what
            was chosen.

        Raises:
            InputError: parameters out of range.
        """
        A, b, roots = self._checked(X, y, sample_weight)
        A = A.tocsr() if issparse(A) else A
        rows = _Rows(A, b, roots, self.fit_intercept)
        self.grid_ = self._grid(rows.A, rows.b)
        splits = list(check_cv(self.cv).split(np.empty((len(b), 1)), b))
        self._begin_folds(A, b, roots, [out for _, out in splits])
        errors = [self._errors(A, b, roots, kept, out) for kept, out in splits]
        self.mse_path_ = np.stack(errors, axis=1)
        best = int(self.mse_path_.mean(axis=1).argmin())
        self._choose(best)
        found = self._recover(rows.A, rows.b)
        self._begin_folds(None, b, roots, [])
        judge(type(self).__name__, found)
        self.recovery_, self.status_ = found, found.status
        self.n_iter_, self.coef_ = max(1, found.n_iter), np.asarray(found.x)
        self.intercept_ = rows.intercept(self.coef_)
        return self

    def _errors(self, A: Any, b: Array, roots: Array | None, kept: Array, out: Array) -> Array:
        """Mean squared error of each point of the fold's path on the rows left out."""
        C, levels = self._fold(A, b, roots, kept, out)
        if (shared := self._shared_errors(C, levels, out)) is not None:
            return shared
        misses = _taken(A, out) @ C + levels - b[out][:, None]
        shares = None if roots is None else roots[out] ** 2
        return np.asarray(np.average(misses**2, axis=0, weights=shares))

    def _shared_errors(self, C: Array, levels: Array, out: Array) -> Array | None:
        """Hook: mean squared errors from what the folds share; None where that does not serve."""
        return None

    def _fold(
        self, A: Any, b: Array, roots: Array | None, kept: Array, out: Array
    ) -> tuple[Array, Array]:
        """Coefficients (n, grid) and intercepts (grid,) of the path of the rows that are kept."""
        inner = None if roots is None else roots[kept] / math.sqrt(float(np.mean(roots[kept] ** 2)))
        rows = _Rows(A[kept], b[kept], inner, self.fit_intercept)
        C = self._path(rows.A, rows.b, len(kept) / len(b))
        return C, rows.level - rows.middle @ C

    def _begin_folds(self, A: Any, b: Array, roots: Array | None, outs: list[Array]) -> None:
        """Hook: what the folds share, with the rows that each leaves out; A is None once all rows
        are fitted, too.
        """

    def _grid(self, A: Any, b: Array) -> Array:
        """What there is to choose from."""
        raise NotImplementedError

    def _choose(self, best: int) -> None:
        """Keep the chosen one of the grid under its name."""
        raise NotImplementedError

    def _path(self, A: Any, b: Array, share: float) -> Array:
        """Coefficients (n, grid), from this share of the rows."""
        raise NotImplementedError


TALL = 4
"""Rows to a column of a dense matrix from which on the folds of `LassoCV` share moments."""


INDEPENDENT = 1e-8
"""Smallest pivot of their Gram matrices, relative to the largest entry, for which that serves."""


CLEAR = 1e-6
"""Squared errors, relative to the moments that they are the difference of, from which on rounding
leaves all the digits that count."""


class _Moments(NamedTuple):
    """Weighted sums over rows: of squares and products, of the rows, of what is measured and its
    squares, and of the weights.
    """

    gram: Array
    along: Array
    rows: Array
    level: float
    energy: float
    weight: float

    @classmethod
    def of(cls, A: Array, b: Array, roots: Array | None) -> _Moments:
        """Over these rows of the data."""
        u = np.ones(len(b)) if roots is None else roots
        scaled = A if roots is None else u[:, None] * A
        gram, y = np.asarray(scaled.T @ scaled), u * b
        return cls(gram, y @ scaled, u @ scaled, float(u @ y), float(y @ y), float(u @ u))

    @staticmethod
    def total(parts: list[_Moments]) -> _Moments:
        """Over the rows of all parts."""
        return _Moments(*(sum(values) for values in zip(*parts, strict=True)))

    def without(self, other: _Moments) -> _Moments:
        """Of the other rows."""
        return _Moments(
            self.gram - other.gram,
            self.along - other.along,
            self.rows - other.rows,
            self.level - other.level,
            self.energy - other.energy,
            self.weight - other.weight,
        )

    def errors(self, C: Array, levels: Array) -> Array | None:
        """Mean squared errors of predictions `A C + levels`; None where rounding would show."""
        parts = np.stack(
            [
                np.full(levels.size, self.energy),
                np.einsum("ij,ij->j", C, self.gram @ C),
                -2 * (self.along @ C),
                levels**2 * self.weight,
                2 * levels * (self.rows @ C),
                -2 * levels * self.level,
            ]
        )
        found, sizes = parts.sum(axis=0), np.abs(parts).sum(axis=0)
        return found / self.weight if (found > CLEAR * sizes).all() else None

    def rows_alike(self, count: int, centre: bool) -> tuple[Array, Array, Array, float] | None:
        """A triangular matrix and data with the moments of `count` rows of mean weight 1, centred
        if asked for, and the means; None where columns are nearly dependent.
        """
        middle, level = self.rows / self.weight, self.level / self.weight
        if not centre:
            middle, level = np.zeros_like(middle), 0.0
        gram = self.gram - self.weight * np.outer(middle, middle)
        along = self.along - self.weight * level * middle
        scale = count / self.weight
        R, info = dpotrf(scale * gram, lower=False)
        if info or R.diagonal().min() ** 2 < INDEPENDENT * scale * self.gram.diagonal().max():
            return None
        return R, solve_triangular(R, scale * along, trans=1), middle, level


def _moments_of(A: Array, b: Array, roots: Array | None, rows: Array) -> _Moments:
    return _Moments.of(_taken(A, rows), b[rows], None if roots is None else roots[rows])


def _taken(A: Any, rows: Array) -> Any:
    """Some rows of a matrix, without a copy where they follow on each other."""
    first, count = int(rows[0]), len(rows)
    if isinstance(A, np.ndarray) and np.array_equal(rows, np.arange(first, first + count)):
        return A[first : first + count]
    return A[rows]


FOLD_TOL = 1e-4
"""Gap of the points of a fold's path, relative to the objective of 0: half of what scikit-learn
asks of them, and far below what errors of prediction tell apart."""


STARTS = 100
"""How much closer to the minimum the fit to all rows begins than it has to come."""


class LassoCV(_CrossValidated):
    """The LASSO with lam chosen by cross-validation, along one path for each fold.

    A fold of fewer rows takes lam in proportion, so that the penalty keeps its weight against the
    data, as scikit-learn's `alpha` does.

    Args:
        lams: penalties > 0, (k,); None is a geometric grid from `lam_max` down.
        n_lams: length of that grid.
        smallest: its end as a share of `lam_max`.
        cv: number of folds, or a splitter of scikit-learn; None is 5.
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0.
        solver: as in `recover`, of the fit to all rows.
        tol: relative gap of that; None is 1e-8.
        max_iter: limit of its iterations; None is its own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 90))
        >>> y = 2 * X[:, 3] - X[:, 17] + 0.1 * rng.standard_normal(60)
        >>> LassoCV().fit(X, y).coef_[[3, 17]].round(1)
        array([ 2., -1.])

    Source: Friedman, Hastie, Tibshirani 2010, section 2.5; Stone 1974.
    """

    def __init__(
        self,
        lams: ArrayLike | None = None,
        *,
        n_lams: int = 100,
        smallest: float = 1e-3,
        cv: Any = None,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.lams = lams
        self.n_lams = n_lams
        self.smallest = smallest
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _grid(self, A: Any, b: Array) -> Array:
        top = self._problem(A, b).lam_max
        grid = checked_grid(self.lams, top, self.n_lams, self.smallest)
        if grid[-1] == 0:
            raise InputError("lams", "0 is among them", "choose among positive ones")
        return grid

    def _problem(self, A: Any, b: Array) -> problems.Lasso:
        return problems.Lasso(A, b, 1.0, lower=0.0 if self.nonneg else -np.inf)

    def _begin_folds(self, A: Any, b: Array, roots: Array | None, outs: list[Array]) -> None:
        self._left: dict[bytes, _Moments] = {}
        self._moments: _Moments | None = None
        if not isinstance(A, np.ndarray) or A.shape[0] < TALL * A.shape[1]:
            return
        self._left = {out.tobytes(): _moments_of(A, b, roots, out) for out in outs}
        once = np.array_equal(np.sort(np.concatenate(outs)), np.arange(len(b)))
        parts = list(self._left.values())
        self._moments = _Moments.total(parts) if once else _Moments.of(A, b, roots)

    def _fold(
        self, A: Any, b: Array, roots: Array | None, kept: Array, out: Array
    ) -> tuple[Array, Array]:
        whole = self._moments
        if whole is not None and len(kept) + len(out) == len(b):
            left = self._left[out.tobytes()]
            alike = whole.without(left).rows_alike(len(kept), self.fit_intercept)
            if alike is not None:
                R, y, middle, level = alike
                C = self._path(R, y, len(kept) / len(b))
                return C, level - middle @ C
        return super()._fold(A, b, roots, kept, out)

    def _shared_errors(self, C: Array, levels: Array, out: Array) -> Array | None:
        left = self._left.get(out.tobytes())
        return None if left is None else left.errors(C, levels)

    def _path(self, A: Any, b: Array, share: float) -> Array:
        found = points(self._problem(A, b), self.grid_ * share, FOLD_TOL, share=1.0)
        return np.stack([c for c, _ in found], axis=1)

    def _choose(self, best: int) -> None:
        self.lam_ = float(self.grid_[best])

    def _recover(self, X: Any, y: Array) -> Recovery:
        options = self._options() | {"x0": self._start(len(y))}
        return recover(X, y, lam=self.lam_, nonneg=self.nonneg, **options)

    def _start(self, count: int) -> Array | None:
        """The minimum from the moments of all rows, which is left to be proven."""
        whole = self._moments
        alike = None if whole is None else whole.rows_alike(count, self.fit_intercept)
        if alike is None:
            return None
        tol = (TOL if self.tol is None else self.tol) / STARTS
        ((c, _),) = points(self._problem(*alike[:2]), np.array([self.lam_]), tol)
        return c


class BPDNCV(_CrossValidated):
    """Basis pursuit denoising with the noise level chosen by cross-validation.

    The solutions for all levels lie on the path of the LASSO, one for each fold: between two of its
    points the coefficients are taken to change linearly.

    Args:
        noises: bounds on the root mean square of the residuals, > 0, (k,); None takes those of the
            path of the LASSO.
        n_lams: length of the grid of the path.
        smallest: its end as a share of `lam_max`.
        cv: number of folds, or a splitter of scikit-learn; None is 5.
        fit_intercept: centre X and y first, and predict with the mean put back.
        nonneg: coefficients are >= 0.
        solver: as in `recover`, of the fit to all rows.
        tol: relative gap of that; None is 1e-8.
        max_iter: limit of its iterations; None is its own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 90))
        >>> y = 2 * X[:, 3] - X[:, 17] + 0.1 * rng.standard_normal(60)
        >>> bool(0.05 < BPDNCV().fit(X, y).noise_ < 0.2)
        True

    Source: van den Berg, Friedlander 2008, section 2, for the path; Stone 1974.
    """

    def __init__(
        self,
        noises: ArrayLike | None = None,
        *,
        n_lams: int = 50,
        smallest: float = 1e-2,
        cv: Any = None,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.noises = noises
        self.n_lams = n_lams
        self.smallest = smallest
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _lasso_path(self, A: Any, b: Array) -> tuple[Array, Array]:
        """Coefficients (n, k) and residuals (m, k), of falling norm."""
        problem = problems.Lasso(A, b, 1.0, lower=0.0 if self.nonneg else -np.inf)
        lams = checked_grid(None, problem.lam_max, self.n_lams, self.smallest)
        C = np.stack([c for c, _ in points(problem, lams, FOLD_TOL / 10)], axis=1)
        return C, b[:, None] - problem.operator.forward(C)

    def _grid(self, A: Any, b: Array) -> Array:
        if self.noises is None:
            sizes = np.linalg.norm(self._lasso_path(A, b)[1], axis=0) / math.sqrt(len(b))
            return np.asarray(np.sort(sizes[sizes > 0])[::-1] if sizes.any() else np.ones(1))
        grid = checked_grid(self.noises, 1.0, 2, 0.5)
        if grid[-1] == 0:
            raise InputError("noises", "0 is among them", "choose among positive ones")
        return grid

    def _path(self, A: Any, b: Array, share: float) -> Array:
        C, R = self._lasso_path(A, b)
        sizes = np.linalg.norm(R, axis=0)
        found = np.empty((C.shape[0], self.grid_.size))
        for k, epsilon in enumerate(self.grid_ * math.sqrt(len(b))):
            j = int(np.count_nonzero(sizes > epsilon))  # the first point that is near enough
            t = 1.0
            if 0 < j < sizes.size:
                t = _crossing(R[:, j - 1], R[:, j], epsilon)
            j = min(max(j, 1), sizes.size - 1)
            t = t if sizes[0] > epsilon else 0.0
            found[:, k] = (1 - t) * C[:, j - 1] + t * C[:, j]
        return found

    def _choose(self, best: int) -> None:
        self.noise_ = float(self.grid_[best])

    def _recover(self, X: Any, y: Array) -> Recovery:
        noise = self.noise_ * math.sqrt(len(y))
        return recover(X, y, noise=noise, nonneg=self.nonneg, **self._options())


def _crossing(r: Array, s: Array, epsilon: float) -> float:
    """The `t` in [0, 1] with `||(1 - t) r + t s|| = epsilon`, where `||r|| > epsilon >= ||s||`."""
    d = s - r
    a, b, c = float(d @ d), float(r @ d), float(r @ r) - epsilon**2
    root = math.sqrt(max(b * b - a * c, 0.0))
    return min(max(c / max(root - b, 1e-300), 0.0), 1.0)


class OMPCV(_CrossValidated):
    """Orthogonal matching pursuit with the number of non-zeros chosen by cross-validation.

    The fits of 1, 2, ... columns of a fold are the steps of one pursuit.

    Args:
        largest: most non-zeros, 1 .. min(m, n); None is a tenth of the columns, at least 5, or as
            many as the folds allow.
        cv: number of folds, or a splitter of scikit-learn; None is 5.
        fit_intercept: centre X and y first, and predict with the mean put back.
        tol: relative residual at which a pursuit ends; None is its own.
        max_iter: not used; a pursuit has a step for each column.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 90))
        >>> y = 2 * X[:, 3] - X[:, 17] + 0.1 * rng.standard_normal(60)
        >>> OMPCV().fit(X, y).sparsity_
        2

    Source: Pati, Rezaiifar, Krishnaprasad 1993; Stone 1974.
    """

    def __init__(
        self,
        largest: int | None = None,
        *,
        cv: Any = None,
        fit_intercept: bool = True,
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.largest = largest
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter

    def _grid(self, A: Any, b: Array) -> Array:
        m, n = A.shape
        default = min(max(n // 10, 5), n, max(m // 2, 1))
        return np.arange(1, (default if self.largest is None else self.largest) + 1)

    def _path(self, A: Any, b: Array, share: float) -> Array:
        steps: list[Array] = []
        k = min(self.grid_.size, *A.shape)
        solve(problems.KSparse(A, b, k), "omp", tol=self.tol, callback=lambda _, c: steps.append(c))
        steps += [np.zeros(A.shape[1])] * (not steps)
        steps += [steps[-1]] * (self.grid_.size - len(steps))  # it fits already
        return np.stack(steps, axis=1)

    def _choose(self, best: int) -> None:
        self.sparsity_ = int(self.grid_[best])

    def _recover(self, X: Any, y: Array) -> Recovery:
        return recover(X, y, sparsity=self.sparsity_, solver="omp", tol=self.tol)


class GroupLassoCV(_CrossValidated):
    """The group LASSO with lam chosen by cross-validation, along one path for each fold.

    Args:
        groups: integer label of each column's group, (n,), or the indices of each group; None makes
            each column a group of its own.
        lams: penalties > 0, (k,); None is a geometric grid from `lam_max` down.
        n_lams: length of that grid.
        smallest: its end as a share of `lam_max`.
        cv: number of folds, or a splitter of scikit-learn; None is 5.
        fit_intercept: centre X and y first, and predict with the mean put back.
        solver: as in `recover`.
        tol: relative gap of the fit to all rows; None is 1e-8.
        max_iter: limit of its iterations; None is its own.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((60, 20))
        >>> y = X[:, 4] - X[:, 5] + 0.1 * rng.standard_normal(60)
        >>> GroupLassoCV(np.arange(20) // 2).fit(X, y).coef_[4:6].round(1)
        array([ 1., -1.])

    Source: Yuan, Lin 2006, equation (2.1); Stone 1974.
    """

    def __init__(
        self,
        groups: ArrayLike | None = None,
        lams: ArrayLike | None = None,
        *,
        n_lams: int = 20,
        smallest: float = 1e-2,
        cv: Any = None,
        fit_intercept: bool = True,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.groups = groups
        self.lams = lams
        self.n_lams = n_lams
        self.smallest = smallest
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _problem(self, A: Any, b: Array) -> problems.GroupLasso:
        groups = np.arange(A.shape[1]) if self.groups is None else self.groups
        return problems.GroupLasso(A, b, 1.0, groups)

    def _grid(self, A: Any, b: Array) -> Array:
        grid = checked_grid(self.lams, self._problem(A, b).lam_max, self.n_lams, self.smallest)
        if grid[-1] == 0:
            raise InputError("lams", "0 is among them", "choose among positive ones")
        return grid

    def _path(self, A: Any, b: Array, share: float) -> Array:
        problem, found = self._problem(A, b), [np.zeros(A.shape[1])]
        for lam in self.grid_ * share:
            at = replace(problem, lam=float(lam))
            found.append(np.asarray(solve(at, self.solver, tol=FOLD_TOL / 10, x0=found[-1]).x))
        return np.stack(found[1:], axis=1)

    def _choose(self, best: int) -> None:
        self.lam_ = float(self.grid_[best])

    def _recover(self, X: Any, y: Array) -> Recovery:
        return solve(replace(self._problem(X, y), lam=self.lam_), **self._options())
