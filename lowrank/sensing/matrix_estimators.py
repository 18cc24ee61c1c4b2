"""Matrices with holes and outliers as scikit-learn transformers: rows are samples, NaN is missing.

They fit a low-rank matrix, and take rows that were not there: `SoftImpute` fills their holes,
`RobustPCA` finds their place on the components in spite of outliers.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from lowrank.decompositions.completion import Completion, complete
from lowrank.decompositions.low_rank_sparse import LowRankSparse, robust_pca
from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.recover import share_of
from lowrank.status import Status

try:
    from sklearn.base import (
        BaseEstimator,
        ClassNamePrefixFeaturesOutMixin,
        OneToOneFeatureMixin,
        TransformerMixin,
    )
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    missing = "lowrank.sensing.estimators: scikit-learn 1.6 or later is not installed"
    raise ImportError(f"{missing}; pip install 'lowrank-kit[sklearn]'") from error

RIDGE = 1e-12
"""Relative, of rows with fewer entries than the rank: they stay solvable."""

BLOCK = 2**22
"""Numbers in the normal equations that are solved at a time."""

STEPS = 2000
"""Most steps of ADMM for the places of new rows on the components."""

CLOSE = 1e-10
"""Relative change at which those have settled."""


class _Holey(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What both share: NaN is missing, components of the rows, no sparse matrices."""

    def _checked(self, X: Any, *, fitting: bool) -> Array:
        if not fitting:
            check_is_fitted(self)
        options: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        return np.asarray(validate_data(self, X, reset=fitting, **options))

    def _keep(self, found: Completion[Array] | LowRankSparse[Array], L: Array) -> None:
        """The right singular vectors of L, and how the run ended."""
        _, size, Vh = np.linalg.svd(L, full_matrices=False)
        self.components_, self.singular_values_ = Vh[: found.rank], size[: found.rank]
        self.status_, self.n_iter_ = found.status, max(1, found.n_iter)
        if not found.status.ok and found.status is not Status.INFEASIBLE:
            text = f"{type(self).__name__}: {found.status.name.lower()}, {found.status.value}"
            warnings.warn(text, ConvergenceWarning, stacklevel=4)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class SoftImpute(OneToOneFeatureMixin, _Holey):  # type: ignore[misc]
    """Fill the holes of a matrix with those of a low-rank one: `complete`, as a transformer.

    A new row `x` takes the place `a` that minimises `||P(x - a B^H)||^2 + lam ||a||^2` with
    `L = A B^H` balanced, which is what every row of the training data does at the optimum; so its
    observed entries stay, and the holes are filled with `a B^H`.

    Args:
        lam: weight of the nuclear norm, >= 0; 0 fits the observed entries exactly. None is
            `lam_fraction` of the smallest at which all is zero.
        lam_fraction: that share, in (0, 1]; not used with lam or rank.
        rank: fix the rank in place of lam; not convex.
        max_iter: most iterations.
        tol: relative duality gap.
        seed: of the random start that a fixed rank may need.

    Attributes:
        completion_: the `Completion` of the training data, with its gap.
        components_: right singular vectors of its `L`, (rank, n).
        singular_values_: (rank,).
        lam_: the weight that was used; for a fixed rank 0.
        status_, n_iter_: of the run.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> M = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 20))
        >>> X = np.where(rng.random(M.shape) < 0.7, M, np.nan)
        >>> imputer = SoftImpute(lam=0).fit(X[:50])
        >>> bool(np.abs(imputer.transform(X[50:]) - M[50:]).max() < 1e-4)
        True

    Source: Mazumder, Hastie, Tibshirani 2010, eq. (8); Hastie, Mazumder, Lee, Zadeh 2015, lemma 1,
        for the balanced factors.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        lam_fraction: float = 0.02,
        rank: int | None = None,
        max_iter: int = 1000,
        tol: float = 1e-7,
        seed: int = 0,
    ) -> None:
        self.lam = lam
        self.lam_fraction = lam_fraction
        self.rank = rank
        self.max_iter = max_iter
        self.tol = tol
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> SoftImpute:
        """Complete the training data.

        Args:
            X: (m, n), real; NaN where nothing was observed.
            y: not used.

        Returns:
            The estimator.

        Raises:
            InputError: parameters out of range, lam together with rank, or nothing observed.
        """
        X = self._checked(X, fitting=True)
        if self.lam is not None and self.rank is not None:
            raise InputError("SoftImpute", "lam excludes rank", "give one of them")
        lam = self.lam
        if lam is None and self.rank is None:
            lam = share_of(self.lam_fraction, float(np.linalg.norm(np.nan_to_num(X), 2)))
        options: dict[str, Any] = {"max_iter": self.max_iter, "tol": self.tol, "seed": self.seed}
        if lam != 0:
            options["lam"] = lam
        found = complete(X, rank=self.rank, **options)
        L = np.nan_to_num(found.L)
        self._keep(found, L)
        self.completion_, self.lam_ = found, float(lam or 0.0)
        balance = 1.0 if self.rank is not None else np.sqrt(self.singular_values_)[:, None]
        self._B = (balance * self.components_).T  # (n, rank)
        return self

    def transform(self, X: Any) -> Array:
        """Rows with their holes filled.

        Args:
            X: (m, n), real; NaN where nothing was observed.

        Returns:
            (m, n); NaN stays in a row without an observed entry, and in a column that had none.
        """
        X = self._checked(X, fitting=False)
        seen = ~np.isnan(X)
        if seen.all():
            return X.copy()
        filled = np.where(seen, X, _ridge_rows(X, seen, self._B, self.lam_) @ self._B.T)
        known = np.ones(X.shape[1], bool)
        known[list(self.completion_.empty_columns)] = False
        filled[:, ~known] = X[:, ~known]
        empty = ~seen.any(axis=1)
        filled[empty] = np.nan
        _name_empty("SoftImpute", empty)
        return filled

    def inverse_transform(self, X: Any) -> Array:
        """The rows as they are: filled rows lie where the given ones did, so pipelines invert."""
        return self._checked(X, fitting=False).copy()


def _name_empty(name: str, empty: Array) -> None:
    places = np.flatnonzero(empty)
    if places.size:
        some = ", ".join(map(str, places[:5])) + (
            f" and {places.size - 5} more" * (places.size > 5)
        )
        text = f"rows without an observed entry stay NaN: {some}"
        warnings.warn(f"{name}: {text}; leave them out", stacklevel=3)


def _ridge_rows(X: Array, seen: Array, B: Array, lam: float) -> Array:
    """Of each row `argmin ||P(x - B a)||^2 + lam ||a||^2`, (m, rank)."""
    rank = B.shape[1]
    weight, values = seen.astype(float), np.where(seen, X, 0.0)
    outer = (B[:, :, None] * B[:, None, :]).reshape(len(B), -1)  # (n, rank^2)
    found = np.zeros((len(X), rank))
    rows = max(1, BLOCK // max(1, rank * rank))
    for j in range(0, len(X) if rank else 0, rows):
        normal = (weight[j : j + rows] @ outer).reshape(-1, rank, rank)
        trace = np.trace(normal, axis1=1, axis2=2)
        normal += (lam + RIDGE * trace + 1e-300)[:, None, None] * np.eye(rank)
        right = (values[j : j + rows] @ B)[:, :, None]
        found[j : j + rows] = np.linalg.solve(normal, right)[:, :, 0]
    return found


class RobustPCA(ClassNamePrefixFeaturesOutMixin, _Holey):  # type: ignore[misc]
    """Components of rows of which some entries are grossly wrong: `robust_pca`, as a transformer.

    `transform` finds where rows lie on the components by the same loss that separated the outliers
    from the training data, `min ||x - a V||_1`, or Huber's where noise is given: a gross error in
    an entry moves nothing. There is no centring; a mean is one more component.

    Args:
        lam: weight of the sparse part, > 0; None is that of `robust_pca`.
        noise: standard deviation of dense noise on each entry, >= 0.
        outliers: what is corrupted: single entries, or whole rows.
        max_iter: most iterations.
        tol: relative duality gap.

    Attributes:
        split_: the `LowRankSparse` of the training data; of its transpose with outliers="rows".
        low_rank_, sparse_: its parts, (m, n).
        components_: right singular vectors of `low_rank_`, (rank, n).
        singular_values_: (rank,).
        status_, n_iter_: of the run.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> L = rng.standard_normal((80, 2)) @ rng.standard_normal((2, 40))
        >>> X = L + 5.0 * (rng.random(L.shape) < 0.05)
        >>> pca = RobustPCA().fit(X[:60])
        >>> rows = pca.inverse_transform(pca.transform(X[60:]))
        >>> pca.components_.shape, bool(np.abs(rows - L[60:]).max() < 1e-4)
        ((2, 40), True)

    Source: Candes, Li, Ma, Wright 2011; Xu, Caramanis, Sanghavi 2012 for whole rows.
    """

    def __init__(
        self,
        lam: float | None = None,
        *,
        noise: float = 0.0,
        outliers: Literal["entries", "rows"] = "entries",
        max_iter: int = 1000,
        tol: float = 1e-7,
    ) -> None:
        self.lam = lam
        self.noise = noise
        self.outliers = outliers
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: Any, y: Any = None) -> RobustPCA:
        """Split the training data.

        Args:
            X: (m, n), real; NaN where nothing was observed.
            y: not used.

        Returns:
            The estimator.

        Raises:
            InputError: parameters out of range, or nothing observed.
        """
        X = self._checked(X, fitting=True)
        if self.outliers not in ("entries", "rows"):
            text = f"outliers={self.outliers!r}, allowed are 'entries' and 'rows'"
            raise InputError("RobustPCA", text, "name what is corrupted")
        rows = self.outliers == "rows"
        seen = ~np.isnan(X)
        options: dict[str, Any] = {"noise": self.noise, "max_iter": self.max_iter, "tol": self.tol}
        options["outliers"] = "columns" if rows else "entries"
        found = robust_pca(X.T if rows else X, self.lam, mask=seen.T if rows else seen, **options)
        self.low_rank_, self.sparse_ = (found.L.T, found.S.T) if rows else (found.L, found.S)
        self._keep(found, self.low_rank_)
        self.split_ = found
        spread = float(np.sqrt(seen.mean()) * np.sqrt(X.shape).sum())  # as in robust_pca
        self._bend = float(found.lam or 0.0) * self.noise * spread
        return self

    def transform(self, X: Any) -> Array:
        """Places on the components, (m, rank).

        Args:
            X: (m, n), real; NaN where nothing was observed.

        Returns:
            (m, rank); NaN in a row without an observed entry.
        """
        X = self._checked(X, fitting=False)
        seen = ~np.isnan(X)
        if self.outliers == "rows":
            found = _ridge_rows(X, seen, self.components_.T, 0.0)
        else:
            found = _robust_rows(X, seen, self.components_, self._bend)
        empty = ~seen.any(axis=1)
        found[empty] = np.nan
        _name_empty("RobustPCA", empty)
        return found

    def inverse_transform(self, X: Any) -> Array:
        """Low-rank rows from their places on the components.

        Args:
            X: (m, rank).

        Returns:
            (m, n).

        Raises:
            InputError: another number of places.
        """
        check_is_fitted(self)
        places = np.asarray(X, dtype=float)
        if places.ndim != 2 or places.shape[1] != len(self.components_):
            text = f"shape {places.shape}, and there are {len(self.components_)} components"
            raise InputError("RobustPCA", text, "pass what transform gives")
        return np.asarray(places @ self.components_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _robust_rows(X: Array, seen: Array, V: Array, bend: float) -> Array:
    """Of each row `argmin sum_i h(x_i - (a V)_i)` over what is seen, `h` Huber's, `|.|` at bend 0.

    ADMM on the residuals, whose steps are products with the orthonormal V.
    """
    found = _ridge_rows(X, seen, V.T, 0.0)
    x = np.where(seen, X, 0.0)
    left = np.where(seen, x - found @ V, 0.0)
    size = np.abs(left).max(axis=1, keepdims=True)
    todo = np.flatnonzero(size[:, 0] > 1e-13 * np.abs(x).max(axis=1, initial=0.0))
    if not len(V) or not todo.size:
        return found
    x, w, unit = x[todo], seen[todo], size[todo]
    x, bends = x / unit, bend / unit
    a, s, u = found[todo] / unit, left[todo] / unit, np.zeros_like(x)
    for _ in range(STEPS):
        before = s
        v = x - a @ V - u
        t = STEP
        shrunk = np.where(np.abs(v) <= bends + t, v * bends / (bends + t), v - t * np.sign(v))
        s = np.where(w, shrunk, v)
        a = (x - s - u) @ V.T
        off = a @ V + s - x
        u = u + off
        if max(np.abs(off).max(), np.abs(s - before).max()) <= CLOSE:
            break
    found[todo] = (a if bend else _on_vertices(x, w, V, a)) * unit
    return found


STEP = 0.1
"""Of ADMM, over the largest residual of the least-squares start."""


def _on_vertices(x: Array, seen: Array, V: Array, a: Array) -> Array:
    """The least absolute loss is met where as many entries fit as there are components, at least.

    So the entries that fit best are fitted exactly, in the rows where the loss grows no larger.
    """
    off = np.where(seen, np.abs(x - a @ V), np.inf)
    last = np.sort(off, axis=1)[:, min(len(V), x.shape[1]) - 1]
    near = seen & (off <= (1 + 1e-9) * last[:, None])
    exact = _ridge_rows(x, near, V.T, 0.0)
    losses = [(np.abs(x - b @ V) * seen).sum(axis=1) for b in (exact, a)]
    return np.where((losses[0] <= losses[1])[:, None], exact, a)
