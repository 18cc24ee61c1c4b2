"""Tables of operators, bases, problems and solvers that the property tests iterate over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from lowrank.sensing import (
    BPDN,
    MCP,
    AnalysisLasso,
    BasisPursuit,
    BestSubset,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    GroupLasso,
    HuberLasso,
    JointSparse,
    KSparse,
    L1Fit,
    Lasso,
    LogisticLasso,
    OneBit,
    Operator,
    PoissonLasso,
    PosteriorMean,
    Problem,
    QuantileLasso,
    SqrtLasso,
    bases,
    operators,
    sparse_signal,
    total_variation,
)
from lowrank.sensing.operators.operator import from_functions, from_matrix

Case = Callable[[], Problem]


def _complex_matrix(m: int, n: int) -> np.ndarray:
    return operators.gaussian(m, n, seed=1, dtype=complex).to_dense()


OPERATORS: dict[str, Callable[[], Operator]] = {
    "gaussian": lambda: operators.gaussian(12, 30, seed=0),
    "gaussian complex": lambda: operators.gaussian(12, 30, seed=0, dtype=complex),
    "rademacher": lambda: operators.rademacher(12, 30, seed=0),
    "sparse binary": lambda: operators.sparse_binary(12, 30, seed=0, ones=3),
    "partial dct": lambda: operators.partial_dct(33, m=12, seed=0),
    "partial dct even": lambda: operators.partial_dct(32, rows=[0, 1, 7, 16, 17, 31]),
    "partial fourier": lambda: operators.partial_fourier(33, m=12, seed=0),
    "partial fourier 2d": lambda: operators.partial_fourier(
        (8, 6), mask=operators.variable_density_mask((8, 6), 17, seed=0)
    ),
    "radial fourier": lambda: operators.partial_fourier(
        (16, 16), mask=operators.radial_mask((16, 16), 5)
    ),
    "real fourier": lambda: operators.for_real_signals(operators.partial_fourier(16, m=5, seed=0)),
    "partial hadamard": lambda: operators.partial_hadamard(256, m=40, seed=0),
    "random convolution": lambda: operators.random_convolution(32, m=10, seed=0),
    "random convolution odd": lambda: operators.random_convolution(33, m=10, seed=0),
    "sampling": lambda: operators.sampling(33, [0, 5, 7, 32]),
    "circular convolution": lambda: operators.circular_convolution(9, [1.0, 2.0, 4.0]),
    "circular convolution 2d": lambda: operators.circular_convolution(
        (6, 5), np.arange(12.0).reshape(3, 4)
    ),
    "toeplitz": lambda: operators.toeplitz(12, 30, seed=0),
    "toeplitz complex": lambda: operators.toeplitz(5, 4, taps=np.arange(8) + 1j),
    "toeplitz tall": lambda: operators.toeplitz(30, 12, seed=0),
    "matrix": lambda: from_matrix(np.arange(12.0).reshape(3, 4)),
    "functions": lambda: from_functions((9, 9), np.cumsum, lambda y: np.cumsum(y[::-1])[::-1]),
    "adjoint": lambda: operators.partial_dct(33, m=12, seed=0).H,
    "composed": lambda: operators.gaussian(12, 32, seed=0) @ bases.dct(32),
    "composed free": lambda: operators.partial_hadamard(32, m=9, seed=0) @ bases.dct(32),
    "identity": lambda: bases.identity(7),
    "dct": lambda: bases.dct(17),
    "dct 2d": lambda: bases.dct(6, 5),
    "fourier": lambda: bases.fourier(17),
    "fourier 2d": lambda: bases.fourier(6, 5),
    "haar": lambda: bases.wavelet(32, name="haar"),
    "db4": lambda: bases.wavelet(64, name="db4", level=3),
    "sym8 2d": lambda: bases.wavelet(32, 16, name="sym8", level=2),
    "bior4.4": lambda: bases.wavelet(64, name="bior4.4", level=2),
    "db4 symmetric": lambda: bases.wavelet(77, name="db4", level=2, mode="symmetric"),
    "db2 2d symmetric": lambda: bases.wavelet(21, 18, name="db2", level=2, mode="symmetric"),
    "rbio2.2 zero 3d": lambda: bases.wavelet(12, 10, 11, name="rbio2.2", level=1, mode="zero"),
    "dictionary": lambda: bases.dictionary(np.arange(12.0).reshape(3, 4)),
    "concatenation": lambda: bases.concatenation(bases.dct(16), bases.wavelet(16, name="haar")),
    "differences": lambda: bases.finite_differences(9),
    "differences 2d": lambda: bases.finite_differences((4, 5)),
    "differences 3d": lambda: bases.finite_differences((2, 3, 4)),
}
"""Every way to make an operator or a basis."""


def _instance(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix (24, 60), a sparse signal and noisy measurements."""
    m, n, k = 24, 60, 5
    rng = np.random.default_rng(7)
    x = sparse_signal(n, k, seed=3, kind="complex" if name == "complex" else "gaussian")
    A = {
        "random": lambda: rng.standard_normal((m, n)) / np.sqrt(m),
        "complex": lambda: _complex_matrix(m, n),
        "correlated": lambda: _correlated(rng, m, n, 0.9),
        "duplicated": lambda: np.repeat(rng.standard_normal((m, n // 2)), 2, axis=1) / np.sqrt(m),
        "tall": lambda: rng.standard_normal((80, n)) / np.sqrt(80),
        "scaled": lambda: rng.standard_normal((m, n)) * 10 ** rng.uniform(-1, 1, n),
    }[name]()
    noise = 0.01 * rng.standard_normal(A.shape[0])
    return A, x, A @ x + noise


def _correlated(rng: np.random.Generator, m: int, n: int, rho: float) -> np.ndarray:
    """Rows of an AR(1) process, so that neighbouring columns are alike."""
    A = rng.standard_normal((m, n))
    for j in range(1, n):
        A[:, j] = rho * A[:, j - 1] + np.sqrt(1 - rho**2) * A[:, j]
    return A / np.sqrt(m)


def _problems(kind: str) -> dict[str, Case]:
    A, x, y = _instance(kind)
    z = float(np.abs(A.conj().T @ y).max())
    size = float(np.linalg.norm(y))
    Y = np.stack([y, 2 * y[::-1], -y + 0.1], axis=1)
    made: dict[str, Case] = {
        "bpdn": lambda: BPDN(A, y, 0.05 * size),
        "lasso": lambda: Lasso(A, y, 0.05 * z),
        "constrained lasso": lambda: ConstrainedLasso(A, y, 0.5 * float(np.abs(x).sum())),
        "dantzig": lambda: DantzigSelector(A, y, 0.1 * z),
        "elastic net": lambda: ElasticNet(A, y, 0.05 * z, 0.1),
        "sqrt lasso": lambda: SqrtLasso(A, y, 0.3 * z / size),
        "l1 fit": lambda: L1Fit(A, y, 0.3 * z / size),
        "group lasso": lambda: GroupLasso(A, y, 0.05 * z, np.arange(60) // 4),
        "uneven groups": lambda: GroupLasso(A, y, 0.05 * z, np.minimum(np.arange(60) // 3, 7)),
        "joint sparse": lambda: JointSparse(A, Y, 0.1 * z),
        "lasso batch": lambda: Lasso(A, Y, 0.1 * z),
        "analysis": lambda: AnalysisLasso(A, y, np.diff(np.eye(60), axis=0), 0.02 * z),
        "tv 2d": lambda: total_variation(A, y, (6, 10), epsilon=0.1 * size),
        "tv 2d anisotropic": lambda: total_variation(A, y, (6, 10), lam=0.1, isotropic=False),
    }
    if kind != "tall":
        made["basis pursuit"] = lambda: BasisPursuit(A, A @ x)
        made["basis pursuit noisy"] = lambda: BasisPursuit(A, y)
    if kind != "complex":
        w = 1 + np.arange(60) / 20
        made |= {
            "lasso nonneg": lambda: Lasso(A, y, 0.05 * z, lower=0),
            "lasso box": lambda: Lasso(A, y, 0.05 * z, lower=-0.3, upper=0.5),
            "lasso weighted": lambda: Lasso(A, y, 0.05 * z, weights=w),
            "bpdn nonneg": lambda: BPDN(A, A @ abs(x), 0.05, lower=0),
            "bpdn box": lambda: BPDN(A, A @ np.clip(x, -0.3, 0.5), 0.05, lower=-0.4, upper=0.6),
            "basis pursuit nonneg": lambda: BasisPursuit(A, A @ abs(x), lower=0, weights=w),
            "constrained nonneg": lambda: ConstrainedLasso(A, y, 1.0, lower=0, weights=w),
            "elastic net box": lambda: ElasticNet(A, y, 0.05 * z, 0.1, lower=-0.3, upper=0.5),
            "one bit": lambda: OneBit(A, np.sign(y), 2.5),
            "one bit batch": lambda: OneBit(A, np.sign(Y), 1.5),
            "logistic": lambda: LogisticLasso(A, np.where(y < 0, -1.0, 1.0), 0.02 * z),
            "poisson": lambda: PoissonLasso(A, np.round(np.abs(y)), 0.05 * z),
            "huber": lambda: HuberLasso(A, y, 0.02 * z, delta=0.1),
            "quantile": lambda: QuantileLasso(A, y, 0.02 * z, tau=0.3),
            "lasso in dct": lambda: Lasso(A, y, 0.05 * z, basis=bases.dct(60)),
        }
    return {f"{kind}: {name}": case for name, case in made.items()}


PROBLEMS: dict[str, Case] = {
    name: case
    for kind in ("random", "complex", "correlated", "duplicated", "tall", "scaled")
    for name, case in _problems(kind).items()
}
"""Convex problems on random, complex, correlated, degenerate, tall and badly scaled matrices."""


def _sparse(kind: str) -> tuple[np.ndarray, Operator, Operator | None]:
    """Coefficients with 5 non-zeros, an operator with 60 rows that finds them, and a basis."""
    m, n = 200 if kind == "tall" else 60, 120
    values = "complex" if kind in ("complex", "complex signal") else "gaussian"
    c = sparse_signal(n, 5, seed=3, kind=values)
    if kind == "batch":
        c = np.stack([c, -c[::-1], 2 * c], axis=1)
    if kind == "matrix-free":
        return c, operators.partial_dct(n, m=m, seed=0), None
    A = operators.gaussian(m, n, seed=1, dtype=complex if kind == "complex" else float)
    if kind == "scaled":
        A = from_matrix(A.to_dense() * 10 ** np.random.default_rng(3).uniform(-1, 1, n))
    return c, A, bases.dct(n) if kind == "dct" else None


def _not_convex(kind: str) -> dict[str, Callable[[], tuple[Problem, np.ndarray]]]:
    c, A, basis = _sparse(kind)
    y = A @ (c if basis is None else basis @ c)
    return {
        f"{kind}: k-sparse": lambda: (KSparse(A, y, 5, basis=basis), c),
        f"{kind}: posterior mean": lambda: (PosteriorMean(A, y, basis=basis), c),
    }


KINDS = ("real", "complex", "complex signal", "batch", "matrix-free", "dct", "tall", "scaled")

NOT_CONVEX: dict[str, Callable[[], tuple[Problem, np.ndarray]]] = {
    name: case for kind in KINDS for name, case in _not_convex(kind).items()
}
"""Problems without a certificate, each with the coefficients that are to be found."""

MAY_STOP_SHORT: dict[str, tuple[str, ...]] = {
    "amp": ("basis pursuit",),
    "interior_point": ("nonneg",),
    "message_passing": ("complex",),
    "spg": ("basis pursuit", "scaled"),
}
"""Solver -> words in the names of cases that it need not solve; it must say so when it does not."""

ZERO: dict[str, Case] = {
    "y = 0": lambda: BasisPursuit(np.eye(3, 5), np.zeros(3)),
    "epsilon above ||y||": lambda: BPDN(np.eye(3, 5), np.ones(3), 2.0),
    "lam above lam_max": lambda: Lasso(np.eye(3, 5), np.ones(3), 1.5),
    "tau = 0": lambda: ConstrainedLasso(np.eye(3, 5), np.ones(3), 0.0),
    "groups": lambda: GroupLasso(np.eye(4), np.ones(4), 1.5, [0, 0, 1, 1]),
    "joint": lambda: JointSparse(np.eye(4), np.ones((4, 2)), 2.0),
    "tv": lambda: total_variation(np.eye(6), np.zeros(6), 6),
    "dantzig": lambda: DantzigSelector(np.eye(3, 5), np.ones(3), 1.5),
    "sqrt lasso": lambda: SqrtLasso(np.eye(3, 5), np.ones(3), 1.5),
    "l1 fit": lambda: L1Fit(np.eye(3, 5), np.ones(3), 1.5),
}
"""Problems whose optimum is 0."""


def _run(kind: str) -> Problem:
    """A problem of this kind that takes a handful of iterations at least."""
    rng = np.random.default_rng(11)
    A, x = rng.standard_normal((30, 60)) / np.sqrt(30), sparse_signal(60, 6, seed=5)
    y = A @ x + 0.02 * rng.standard_normal(30)
    dct, spikes = operators.partial_dct(64, m=32, seed=0), sparse_signal(64, 6, seed=5)
    wide, many = operators.partial_dct(1024, m=400, seed=0), sparse_signal(1024, 60, seed=5)
    made: dict[str, Case] = {
        "basis pursuit": lambda: BasisPursuit(A, y),
        "matrix-free": lambda: BasisPursuit(dct, dct @ spikes),
        "large": lambda: BasisPursuit(wide, wide @ many),
        "complex": lambda: BasisPursuit(A + 1j * A[:, ::-1], y),
        "bpdn": lambda: BPDN(A, y, 0.1),
        "bpdn box": lambda: BPDN(A, y, 0.1, lower=-0.5, upper=0.5),
        "lasso": lambda: Lasso(A, y, 0.01),
        "l1 fit": lambda: L1Fit(A, y, 0.05),
        "tall l1 fit": lambda: L1Fit(A.T, spikes[:60] + x, 0.05),
        "denoising": lambda: total_variation(bases.identity(64), spikes, (8, 8), lam=0.2),
        "one bit": lambda: OneBit(A, np.sign(y), 2.0),
        "k-sparse": lambda: KSparse(A, y, 6),
        "logistic": lambda: LogisticLasso(A, np.sign(y), 0.02),
        "huber": lambda: HuberLasso(A, y, 0.01, delta=0.05),
        "groups": lambda: GroupLasso(A, y, 0.005, np.arange(60) // 2),
        "mcp": lambda: MCP(A, y, 0.02, gamma=2.0),
        "best subset": lambda: BestSubset(A, np.cos(np.arange(30.0) ** 2), 5),
        "posterior mean": lambda: PosteriorMean(A, y),
        "orthonormal rows": lambda: PosteriorMean(dct, dct @ spikes),
    }
    return made[kind]()


RUNS: dict[str, Case] = {
    name: partial(_run, kind)
    for name, kind in {
        "admm": "lasso",
        "amp": "basis pursuit",
        "bg_amp": "posterior mean",
        "branch_and_bound": "best subset",
        "by_penalty": "bpdn box",
        "cone": "complex",
        "cosamp": "k-sparse",
        "cross_bouquet": "l1 fit",
        "cvxpy": "lasso",
        "denoise": "denoising",
        "exact_l1": "basis pursuit",
        "exact_l1_matrix_free": "matrix-free",
        "fista": "lasso",
        "frisch_newton": "tall l1 fit",
        "group_newton": "groups",
        "homotopy": "bpdn",
        "iht": "k-sparse",
        "local_linear": "mcp",
        "message_passing": "large",
        "interior_point": "basis pursuit",
        "omp": "k-sparse",
        "one_bit": "one bit",
        "outliers": "huber",
        "prox_newton": "logistic",
        "sbl": "posterior mean",
        "spg": "bpdn",
        "subspace_pursuit": "k-sparse",
        "vamp": "orthonormal rows",
        "working_set": "lasso",
    }.items()
}
"""Solver -> a problem on which its iterations are watched; every solver has its row."""
