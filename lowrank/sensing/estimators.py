"""Sparse recovery as scikit-learn regressors: `X` measures the coefficients, `y` is measured.

They clone, pipe and search like any estimator; `recovery_` keeps the answer with its certificate.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lstsq

from lowrank.errors import InputError
from lowrank.sensing import problems
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.recover import recover, share_of
from lowrank.sensing.result import Recovery
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers import Solver
from lowrank.status import Status

__all__ = ["BPDN", "OMP", "BasisPursuit", "ElasticNet", "GroupLasso", "Lasso"]


try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    missing = "lowrank.sensing.estimators: scikit-learn 1.6 or later is not installed"
    raise ImportError(f"{missing}; pip install 'lowrank-kit[sklearn]'") from error


class _SparseRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Centre, recover, put the intercept back; a subclass names the formulation."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Any:
        """Recover the coefficients.

        Args:
            X: (m, n), real.
            y: (m,), real.

        Returns:
            The estimator, with `coef_` (n,), `intercept_`, `n_iter_`, `status_` and `recovery_`.

        Raises:
            InputError: parameters out of range, or no coefficients satisfy the constraint.
        """
        checked: tuple[Array, Array] = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        A, b = checked[0], checked[1].astype(np.float64)
        middle, level = (A.mean(axis=0), b.mean()) if self.fit_intercept else (0.0, 0.0)
        found = self._recover(A - middle, b - level)
        _judge(type(self).__name__, found)
        self.recovery_, self.status_ = found, found.status
        self.n_iter_ = max(1, found.n_iter)  # scikit-learn counts an answer without steps as one
        self.coef_ = np.asarray(found.x)
        self.intercept_ = float(level - np.dot(middle, self.coef_)) if self.fit_intercept else 0.0
        return self

    def predict(self, X: ArrayLike) -> Array:
        """`X coef_ + intercept_`.

        Args:
            X: (m, n), real.

        Returns:
            Predictions (m,).
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return np.asarray(X @ self.coef_ + self.intercept_)

    def _recover(self, X: Array, y: Array) -> Recovery:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {"solver": self.solver, "tol": self.tol, "max_iter": self.max_iter}


def _judge(name: str, found: Recovery) -> None:
    if found.status in (Status.INFEASIBLE, Status.UNBOUNDED, Status.DIVERGED):
        raise InputError(name, found.status.name.lower(), found.message)
    if not found.status.ok:
        text = f"{name}: {found.status.name.lower()}, {found.message}"
        warnings.warn(text, ConvergenceWarning, stacklevel=3)


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

    def _recover(self, X: Array, y: Array) -> Recovery:
        reachable = y if self.nonneg else X @ lstsq(X, y)[0]
        return recover(X, reachable, nonneg=self.nonneg, **self._options())


class BPDN(_SparseRegressor):
    """Basis pursuit denoising: `min ||c||_1  subject to  ||X c - y||_2 <= noise`.

    Args:
        noise: bound on the residual norm over the training rows, >= 0; "auto" estimates it.
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

    def _recover(self, X: Array, y: Array) -> Recovery:
        with warnings.catch_warnings():  # a regressor that predicts the mean is no surprise
            warnings.filterwarnings("ignore", message="noise='auto'")
            return recover(X, y, noise=self.noise, nonneg=self.nonneg, **self._options())


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

    def _recover(self, X: Array, y: Array) -> Recovery:
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

    def _recover(self, X: Array, y: Array) -> Recovery:
        lower = 0.0 if self.nonneg else -np.inf
        size = problems.ElasticNet(X, y, 1.0, 1.0, lower=lower).lam_max
        lam = share_of(self.lam_fraction, size) if self.lam is None else self.lam
        ridge = lam if self.ridge is None else self.ridge
        options = self._options()
        return solve(problems.ElasticNet(X, y, lam, ridge, lower=lower), **options)


class GroupLasso(_SparseRegressor):
    """Group LASSO: `min 1/2 ||X c - y||_2^2 + lam sum_g sqrt(|g|) ||c_g||_2`, certified.

    Args:
        groups: integer label of each column's group, (n,); None makes each a group of its own.
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

    def _recover(self, X: Array, y: Array) -> Recovery:
        groups = np.arange(X.shape[1]) if self.groups is None else np.asarray(self.groups)
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

    def _recover(self, X: Array, y: Array) -> Recovery:
        sparsity = -(-min(X.shape) // 10) if self.sparsity is None else self.sparsity
        return recover(X, y, sparsity=sparsity, **self._options())
