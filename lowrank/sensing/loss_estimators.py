"""Losses beside least squares as scikit-learn estimators: classes, counts, outliers, quantiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lowrank.errors import InputError
from lowrank.sensing import problems
from lowrank.sensing.estimator_checks import judge, no_operator
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.recover import share_of
from lowrank.sensing.result import Recovery
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers import Solver


class _LossEstimator(BaseEstimator):  # type: ignore[misc]
    """Solve with an intercept of the problem's own; a subclass names the problem."""

    def _fit(self, X: Any, y: Array) -> None:
        lower = 0.0 if self.nonneg else -np.inf
        problem = self._problem()(X, y, 1.0, lower=lower, intercept=bool(self.fit_intercept))
        lam = share_of(self.lam_fraction, problem.lam_max) if self.lam is None else self.lam
        at = replace(problem, lam=lam)
        found = solve(at, self.solver, tol=self.tol, max_iter=self.max_iter)
        judge(type(self).__name__, found)
        self.recovery_: Recovery = found
        self.status_, self.n_iter_ = found.status, max(1, found.n_iter)
        self.coef_, self.intercept_ = np.asarray(found.x), found.intercept or 0.0

    def _problem(self) -> Callable[..., Any]:
        raise NotImplementedError

    def _linear(self, X: Any) -> Array:
        check_is_fitted(self)
        no_operator(X)
        X = validate_data(self, X, reset=False, dtype=np.float64, accept_sparse="csr")
        return np.asarray(X @ self.coef_ + self.intercept_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class _LossRegressor(RegressorMixin, _LossEstimator):  # type: ignore[misc]
    def fit(self, X: Any, y: ArrayLike) -> Any:
        """Find the coefficients.

        Args:
            X: (m, n), real; a sparse matrix stays sparse.
            y: (m,), real.

        Returns:
            The estimator, with `coef_` (n,), `intercept_`, `n_iter_`, `status_` and `recovery_`.

        Raises:
            InputError: parameters or data out of range.
        """
        no_operator(X)
        options: dict[str, Any] = {"y_numeric": True, "dtype": np.float64, "accept_sparse": "csc"}
        A, b = validate_data(self, X, y, **options)
        self._fit(A, b.astype(np.float64))
        return self

    def predict(self, X: ArrayLike) -> Array:
        """What is expected of rows X (m, n): (m,)."""
        return self._linear(X)


class LogisticLasso(ClassifierMixin, _LossEstimator):  # type: ignore[misc]
    """Sparse logistic regression of two classes, certified: `sensing.LogisticLasso`.

    Args:
        lam: penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: add a constant, without penalty.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), ["no", "no", "yes", "yes"]
        >>> LogisticLasso().fit(X, y).predict([[0.5], [2.5]]).tolist()
        ['no', 'yes']

    Source: Shevade, Keerthi 2003, equation (2).
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

    def fit(self, X: Any, y: ArrayLike) -> Any:
        """Find the coefficients.

        Args:
            X: (m, n), real; a sparse matrix stays sparse.
            y: (m,), of two classes.

        Returns:
            The estimator, with `classes_`, `coef_` (n,), `intercept_`, `n_iter_`, `status_` and
            `recovery_`.

        Raises:
            InputError: one class, or more than two; parameters out of range.
        """
        no_operator(X)
        A, labels = validate_data(self, X, y, dtype=np.float64, accept_sparse="csc")
        check_classification_targets(labels)
        self.classes_, index = np.unique(labels, return_inverse=True)
        if self.classes_.size != 2:
            n = self.classes_.size
            text = f"{n} class" if n == 1 else f"Only binary classification is supported, not {n}"
            raise InputError("y", text, "give two classes, or one against the rest")
        self._fit(A, 2.0 * index - 1)
        return self

    def _problem(self) -> Callable[..., Any]:
        return problems.LogisticLasso

    def decision_function(self, X: ArrayLike) -> Array:
        """`X coef_ + intercept_`, (m,): above 0 for the second class."""
        return self._linear(X)

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probabilities of both classes, (m, 2)."""
        second = expit(self._linear(X))
        return np.stack([1 - second, second], axis=1)

    def predict(self, X: ArrayLike) -> Array:
        """The likelier class of each row, (m,)."""
        second = self._linear(X) > 0
        return np.asarray(self.classes_[second.astype(int)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class PoissonLasso(_LossRegressor):
    """Sparse regression of counts whose mean is `exp(X c + b)`: `sensing.PoissonLasso`.

    Args:
        lam: penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: add a constant b, without penalty.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), [1, 2, 4, 8]
        >>> PoissonLasso(lam_fraction=1e-6).fit(X, y).predict([[4.0]]).round(2).tolist()
        [16.0]

    Source: McCullagh, Nelder 1989, section 6.2, with the penalty of Tibshirani 1996.
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

    def _problem(self) -> Callable[..., Any]:
        return problems.PoissonLasso

    def predict(self, X: ArrayLike) -> Array:
        """`exp(X coef_ + intercept_)`, (m,)."""
        return np.exp(self._linear(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


class HuberLasso(_LossRegressor):
    """Robust LASSO, for gross errors in y: `sensing.HuberLasso`.

    Args:
        lam: penalty, > 0; None is `lam_fraction` of the smallest at which all are zero.
        delta: residual from which on moduli count, > 0, in the unit of y; about 1.35 standard
            deviations of the noise is usual.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: add a constant, without penalty.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.arange(6.0)[:, None], [0.0, 1.0, 2.0, 3.0, 4.0, 99.0]
        >>> HuberLasso(delta=0.1, lam_fraction=1e-3).fit(X, y).predict([[2.0]]).round(1).tolist()
        [2.0]

    Source: Huber 1964; Rosset, Zhu 2007, section 4, for the penalised form.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        delta: float = 1.35,
        lam_fraction: float = 0.05,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.lam = lam
        self.delta = delta
        self.lam_fraction = lam_fraction
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _problem(self) -> Callable[..., Any]:
        return partial(problems.HuberLasso, delta=self.delta)


class QuantileLasso(_LossRegressor):
    """Sparse quantile regression: `sensing.QuantileLasso`.

    Args:
        lam: penalty, > 0; None is `lam_fraction` of one at which all are zero.
        tau: quantile, in (0, 1); 0.5 is the median.
        lam_fraction: that share, in (0, 1]; not used with lam.
        fit_intercept: add a constant, without penalty.
        nonneg: coefficients are >= 0.
        solver: as in `recover`.
        tol: relative gap; None is 1e-8.
        max_iter: limit of the solver's iterations; None is its own.

    Example:
        >>> X, y = np.zeros((5, 1)), [1.0, 2.0, 3.0, 4.0, 100.0]
        >>> QuantileLasso(lam=1.0).fit(X, y).predict([[0.0]]).round(6).tolist()
        [3.0]

    Source: Koenker, Bassett 1978; Belloni, Chernozhukov 2011, equation (2.5), for the penalty.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        tau: float = 0.5,
        lam_fraction: float = 0.05,
        fit_intercept: bool = True,
        nonneg: bool = False,
        solver: str | Solver = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.lam = lam
        self.tau = tau
        self.lam_fraction = lam_fraction
        self.fit_intercept = fit_intercept
        self.nonneg = nonneg
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter

    def _problem(self) -> Callable[..., Any]:
        return partial(problems.QuantileLasso, tau=self.tau)
