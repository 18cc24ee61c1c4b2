"""What a measurement matrix promises: coherence, spark, isometry, null space, dual certificates.

The cheap figures (coherence, Babel function) are sufficient and pessimistic; the exact ones
(spark, null-space constant) take a number of steps that grows like a binomial coefficient.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import as_operator

MAX_SUBSETS = 2_000_000
"""Most column subsets, or ten times the linear programs, that an exact figure may take."""


BATCH = 2048
"""Subsets whose eigenvalues are taken in one call."""


def mutual_coherence(A: MatrixLike) -> float:
    """Largest `|<a_i, a_j>| / (||a_i|| ||a_j||)` over pairs of columns, in [0, 1].

    Any k-sparse x with `k < (1 + 1 / mu) / 2` is recovered from `A x` by basis pursuit and by OMP.

    Args:
        A: (m, n) matrix or operator, n >= 2.

    Returns:
        The coherence mu.

    Raises:
        InputError: fewer than two columns, or a zero column.

    Example:
        >>> round(mutual_coherence(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])), 4)
        0.7071

    Source: Donoho, Elad 2003, definition 4 and theorem 7.
    """
    return float(babel(A, 1)[0])


def babel(A: MatrixLike, k: int | None = None) -> Array:
    """Babel function `mu_1(j) = max_i  sum of the j largest |<a_i, a_l>|, l != i`, for j = 1..k.

    Columns are normalised. Any k-sparse x with `mu_1(k - 1) + mu_1(k) < 1` is recovered by basis
    pursuit and by OMP.

    Args:
        A: (m, n) matrix or operator, n >= 2.
        k: largest j, 1..n - 1; None is n - 1.

    Returns:
        `mu_1(1), ..., mu_1(k)`, (k,).

    Raises:
        InputError: fewer than two columns, a zero column, or k out of range.

    Example:
        >>> babel(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])).round(4)
        array([0.7071, 1.4142])

    Source: Tropp 2004, definition 3.4 and theorem 3.5.
    """
    unit = _unit_columns(A)
    n = unit.shape[1]
    k = n - 1 if k is None else k
    if n < 2 or not 1 <= k <= n - 1:
        raise InputError("babel", f"k={k} for {n} columns is outside 1..{n - 1}", "lower it")
    best = np.zeros(k)
    for start in range(0, n, BATCH):  # a block of rows of the Gram matrix, never all of it
        block = np.abs(unit[:, start : start + BATCH].conj().T @ unit)
        rows = np.arange(block.shape[0])
        block[rows, start + rows] = 0
        largest = -np.sort(np.partition(-block, k - 1, axis=1)[:, :k], axis=1)  # descending
        best = np.maximum(best, np.cumsum(largest, axis=1).max(axis=0))
    return best


def spark(A: MatrixLike, *, tol: float = 1e-10) -> int:
    """Smallest number of columns of A that are linearly dependent.

    Every x with fewer than `spark / 2` non-zeros is the only one so sparse with its `A x`.

    Args:
        A: (m, n) matrix, small: up to two million subsets are tried.
        tol: columns count as dependent when the smallest singular value of the normalised ones is
            at most this.

    Returns:
        The spark, 1..rank + 1; n + 1 if all columns are independent.

    Raises:
        InputError: too many subsets.

    Example:
        >>> spark(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
        3

    Source: Donoho, Elad 2003, definition 1.
    """
    matrix = as_operator(A).to_dense()
    n = matrix.shape[1]
    if not np.linalg.norm(matrix, axis=0).all():
        return 1
    unit = _unit_columns(A)
    gram = unit.conj().T @ unit
    most = int(np.linalg.matrix_rank(unit, tol=tol))
    if most == n:
        return n + 1
    coherence = mutual_coherence(unit)
    first = max(2, math.ceil(1 + 1 / coherence - 1e-9)) if coherence > 0 else most + 1
    tried = 0
    for size in range(first, most + 1):
        tried += math.comb(n, size)
        if tried > MAX_SUBSETS:
            problem = f"{n} columns have more than {MAX_SUBSETS} subsets of up to {size}"
            raise InputError("spark", problem, "use babel or restricted_isometry for a bound")
        if any(low.min() <= tol**2 for low, _ in _eigenvalues(gram, _subsets(n, size))):
            return size
    return most + 1


@dataclass(frozen=True)
class RestrictedIsometry:
    """Extreme eigenvalues of `A_S^H A_S` over the supports S that were looked at.

    Attributes:
        k: size of the supports.
        smallest: smallest eigenvalue seen.
        largest: largest eigenvalue seen.
        constant: `max(1 - smallest, largest - 1)`: a lower bound of the restricted isometry
            constant, or the constant itself if `exact`.
        n_supports: supports looked at.
        exact: whether these were all supports.
    """

    k: int
    smallest: float
    largest: float
    constant: float
    n_supports: int
    exact: bool


def restricted_isometry(
    A: MatrixLike, k: int, *, samples: int = 10_000, seed: int = 0
) -> RestrictedIsometry:
    """Restricted isometry constant `delta_k = max_|S|=k ||A_S^H A_S - I||_2`, sampled.

    All supports are taken where there are at most `samples`; else random ones, which gives a
    lower bound (an upper bound is NP-hard). Columns are taken as they are, not normalised.

    Args:
        A: (m, n) matrix or operator.
        k: size of the supports, 1..n.
        samples: most supports, >= 1.
        seed: of the choice of supports.

    Returns:
        The extremes and the constant.

    Raises:
        InputError: k or samples out of range.

    Example:
        >>> restricted_isometry(np.eye(4), 2).constant
        0.0

    Source: Candes, Tao 2005, definition 1.1.
    """
    matrix = as_operator(A).to_dense()
    n = matrix.shape[1]
    if not 1 <= k <= n or samples < 1:
        problem = f"k={k}, samples={samples} for {n} columns"
        raise InputError("restricted_isometry", problem, f"pass k in 1..{n} and samples >= 1")
    exact = math.comb(n, k) <= samples
    supports = _subsets(n, k) if exact else _random_subsets(n, k, samples, seed)
    gram = matrix.conj().T @ matrix
    extremes = [(low.min(), high.max(), low.size) for low, high in _eigenvalues(gram, supports)]
    smallest, largest = min(e[0] for e in extremes), max(e[1] for e in extremes)
    return RestrictedIsometry(
        k=k,
        smallest=float(smallest),
        largest=float(largest),
        constant=float(max(1 - smallest, largest - 1)),
        n_supports=sum(e[2] for e in extremes),
        exact=exact,
    )


def null_space_constant(A: MatrixLike, k: int) -> float:
    """Null-space constant `max ||h_S||_1 / ||h_T||_1` over A h = 0, |S| = k, T the complement.

    Basis pursuit recovers every k-sparse x from `A x` if and only if it is below 1. Exact: linear
    programs over supports and signs, in the order of a bound that stops the search early.

    Args:
        A: (m, n) real matrix, small.
        k: sparsity, 1..n.

    Returns:
        The constant; 0 if the null space is trivial, inf if it holds a k-sparse vector.

    Raises:
        InputError: complex A, k out of range, or too many linear programs.

    Example:
        >>> A = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> round(null_space_constant(A, 1), 6)
        0.5

    Source: Cohen, Dahmen, DeVore 2009, section 2; Juditsky, Nemirovski 2011, for the bound.
    """
    matrix = _real_matrix(A, "null_space_constant")
    n = matrix.shape[1]
    if not 1 <= k <= n:
        raise InputError("null_space_constant", f"k={k} is outside 1..{n}", "change it")
    programs = math.comb(n, k) * 2 ** (k - 1)
    if programs > MAX_SUBSETS // 10:
        problem = f"up to {programs} linear programs for {n} columns and k={k}"
        raise InputError("null_space_constant", problem, "lower k, or use restricted_isometry")
    single = np.array([_largest_share(matrix, [i], [1.0]) for i in range(n)])
    best = float(single.max())
    if k > 1:  # the share of S is at most the sum of its members' shares
        supports = np.array(list(itertools.combinations(range(n), k)))
        bounds = single[supports].sum(axis=1)
        for index in np.argsort(-bounds):
            if min(1.0, float(bounds[index])) <= best + 1e-12:
                break
            support = supports[index].tolist()
            for tail in itertools.product((1.0, -1.0), repeat=k - 1):
                best = max(best, _largest_share(matrix, support, [1.0, *tail]))
    return best / (1 - best) if best < 1 - 1e-9 else math.inf


@dataclass(frozen=True, eq=False)
class DualCertificate:
    """A dual vector for a support and signs, and how far it is from proving recovery.

    Attributes:
        v: (m,), with `A_S^H v = signs` as well as it can be.
        off_support: `max |a_j^H v|` over the other columns; below 1 is a proof that every x with
            this support and these signs is the only solution of basis pursuit.
        mismatch: `max |A_S^H v - signs|`; above round-off no dual vector exists.
        injective: whether the columns of the support are independent.
    """

    v: Array
    off_support: float
    mismatch: float
    injective: bool

    @property
    def proves(self) -> bool:
        """Whether x is proven to be the unique solution."""
        return self.injective and self.mismatch < 1e-8 and self.off_support < 1


def dual_certificate(
    A: MatrixLike, support: ArrayLike, signs: ArrayLike, *, best: bool = True
) -> DualCertificate:
    """Dual vector `v` with `A_S^H v = signs` that makes `max_j |a_j^H v|` off the support small.

    The least-squares vector `A_S (A_S^H A_S)^-1 signs` (Fuchs) first; if that proves nothing, for
    real A and with `best`, the best vector there is, by a linear program. So for real A a failure
    of the best one is a proof that recovery is not unique or fails.

    Args:
        A: (m, n) matrix or operator.
        support: indices S, (k,).
        signs: of the non-zeros, (k,), `+-1`, or of modulus 1 for complex A.
        best: go on to the linear program.

    Returns:
        The dual vector with its figures.

    Raises:
        InputError: support out of range or with repeats, or signs of another length.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> dual_certificate(A, [0], [1.0]).proves
        True

    Source: Fuchs 2004, theorem 2; Foucart, Rauhut 2013, theorem 4.26 and 4.30.
    """
    matrix, S, T = _split(A, support, "dual_certificate")
    s = np.asarray(signs)
    if s.shape != S.shape:
        raise InputError("signs", f"shape {s.shape} for {S.size} indices", "pass one for each")
    inside, outside = matrix[:, S], matrix[:, T]
    injective = bool(np.linalg.matrix_rank(inside) == S.size)
    v = np.linalg.pinv(inside.conj().T) @ s
    found = _judged(v, inside, outside, s, injective)
    if not best or found.proves or np.iscomplexobj(matrix) or found.mismatch > 1e-8:
        return found
    least = _least_off_support(inside, outside, s)
    return found if least is None else _judged(least, inside, outside, s, injective)


def irrepresentability(A: MatrixLike, support: ArrayLike, signs: ArrayLike | None = None) -> float:
    """Irrepresentability of the other columns by those of the support.

    With signs, `max_j |a_j^H A_S (A_S^H A_S)^-1 signs|`: LASSO finds the support and the signs for
    some lam if it is below 1. Without, the worst signs: `max_j ||A_S^+ a_j||_1` (exact recovery
    coefficient): below 1, basis pursuit and OMP recover every x on the support.

    Args:
        A: (m, n) matrix or operator.
        support: indices S, (k,).
        signs: of the non-zeros, (k,), or None.

    Returns:
        The figure; inf if the columns of the support are dependent.

    Raises:
        InputError: support out of range or with repeats, or signs of another length.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> round(irrepresentability(A, [0, 1]), 6), round(irrepresentability(A, [0]), 6)
        (1.4, 0.6)

    Source: Zhao, Yu 2006, equation (2); Tropp 2004, theorem 3.1.
    """
    matrix, S, T = _split(A, support, "irrepresentability")
    inside = matrix[:, S]
    if np.linalg.matrix_rank(inside) < S.size:
        return math.inf
    if signs is not None:
        return dual_certificate(matrix, S, signs, best=False).off_support
    coefficients = np.abs(np.linalg.pinv(inside) @ matrix[:, T])
    return float(coefficients.sum(axis=0).max(initial=0.0))


def _unit_columns(A: MatrixLike) -> Array:
    matrix = as_operator(A).to_dense()
    norms = np.linalg.norm(matrix, axis=0)
    if not norms.all():
        empty = np.flatnonzero(norms == 0)
        problem = f"{empty.size} columns are zero, the first is {empty[0]}"
        raise InputError("A", problem, "leave them out")
    return np.asarray(matrix / norms)


def _real_matrix(A: MatrixLike, name: str) -> Array:
    matrix = as_operator(A).to_dense()
    if np.iscomplexobj(matrix):
        raise InputError(name, "A is complex, and a linear program needs a real one", "split it")
    return matrix


def _split(A: MatrixLike, support: ArrayLike, name: str) -> tuple[Array, Array, Array]:
    """The matrix, the support and its complement."""
    matrix = as_operator(A).to_dense()
    n = matrix.shape[1]
    S = np.asarray(support, dtype=int)
    if S.ndim != 1 or S.size == 0 or S.min() < 0 or S.max() >= n or np.unique(S).size < S.size:
        problem = f"support {S.tolist()} for {n} columns"
        raise InputError(name, problem, f"pass different indices in 0..{n - 1}")
    return matrix, S, np.setdiff1d(np.arange(n), S)


def _subsets(n: int, size: int) -> Iterator[Array]:
    combinations = itertools.combinations(range(n), size)
    while chunk := list(itertools.islice(combinations, BATCH)):
        yield np.array(chunk)


def _random_subsets(n: int, size: int, samples: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    for start in range(0, samples, BATCH):
        keys = rng.random((min(BATCH, samples - start), n))
        yield np.argpartition(keys, size - 1, axis=1)[:, :size]


def _eigenvalues(gram: Array, supports: Iterator[Array]) -> Iterator[tuple[Array, Array]]:
    """Smallest and largest eigenvalue of each principal submatrix, batch by batch."""
    for S in supports:
        values = np.linalg.eigvalsh(gram[S[:, :, None], S[:, None, :]])  # (batch, k, k)
        yield values[:, 0], values[:, -1]


def _largest_share(A: Array, support: list[int], signs: list[float]) -> float:
    """`max signs . h_S` over A h = 0, ||h||_1 <= 1, by h = p - q with p, q >= 0."""
    n = A.shape[1]
    cost = np.zeros(2 * n)
    cost[support], cost[[n + i for i in support]] = -np.array(signs), signs
    bounds: Any = (0, None)
    found = linprog(
        cost,
        A_ub=np.ones((1, 2 * n)),
        b_ub=[1.0],
        A_eq=np.hstack([A, -A]) / (np.abs(A).max() or 1.0),
        b_eq=np.zeros(A.shape[0]),
        bounds=bounds,
        method="highs",
    )
    return max(0.0, -float(found.fun))


def _judged(
    v: Array, inside: Array, outside: Array, signs: Array, injective: bool
) -> DualCertificate:
    off = float(np.abs(outside.conj().T @ v).max(initial=0.0))
    return DualCertificate(v, off, float(np.abs(inside.conj().T @ v - signs).max()), injective)


def _least_off_support(inside: Array, outside: Array, signs: Array) -> Array | None:
    """`argmin_v max |outside^T v|` with `inside^T v = signs`."""
    m, q = outside.shape
    column = -np.ones((q, 1))
    rows = np.block([[outside.T, column], [-outside.T, column]])
    found = linprog(
        np.r_[np.zeros(m), 1.0],
        A_ub=rows,
        b_ub=np.zeros(2 * q),
        A_eq=np.hstack([inside.T, np.zeros((signs.size, 1))]),
        b_eq=signs,
        bounds=[(None, None)] * m + [(0, None)],
        method="highs",
    )
    return found.x[:m] if found.success else None
