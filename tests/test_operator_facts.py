"""Operations on operators x what is known of them: what each keeps, against the dense matrix.

A fact that an operation keeps is known of the result without a product; one that does not follow
is not claimed. Whatever is known, of whichever operand, is true of the matrix.
"""

import pickle

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import aslinearoperator

from lowrank.sensing import as_operator, bases, operators
from lowrank.sensing.operators import block_diag, diagonal, for_real_signals, hstack, vstack
from lowrank.sensing.operators.algebra import centred_sparse
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator, from_matrix

N = 8
RNG = np.random.default_rng(0)
SQUARE = RNG.standard_normal((N, N))
SPARSE = scipy.sparse.random_array((N, N), density=0.2, rng=RNG, format="csc") + scipy.sparse.eye(N)
WEIGHTS = 1.0 + np.arange(N) % 3
RAMP = diagonal(WEIGHTS)


def bare(facts=None, matrix=SQUARE):
    """A matrix-free operator of which nothing but these facts is known."""
    return Operator(
        matrix.shape, matrix.dtype, lambda x: matrix @ x, lambda y: matrix.conj().T @ y, facts=facts
    )


BLUR = operators.circular_convolution(N, [1.0, 2.0, 1.0])
LONG_ROWS, LONG_COLUMNS = (np.linalg.norm(SQUARE, axis=axis) for axis in (1, 0))
MADE = {
    "explicit": lambda: from_matrix(SQUARE),
    "sparse": lambda: from_matrix(SPARSE),
    "centred": lambda: centred_sparse(SPARSE, np.arange(N) + 1.0, np.arange(N) - 2.0),
    "norm": lambda: bare(Facts(norm=float(np.linalg.norm(SQUARE, 2)))),
    "row_gram": lambda: operators.partial_dct(N, m=6, seed=0),
    "column_gram": lambda: operators.partial_dct(N, m=6, seed=0).H,
    "orthogonal_rows": lambda: RAMP @ bases.fourier(N)[:, ::-1],
    "orthogonal_columns": lambda: bases.fourier(N)[:, ::-1] @ RAMP,
    "row_norms": lambda: bare(Facts(row_norms=lambda: LONG_ROWS)),
    "column_norms": lambda: bare(Facts(column_norms=lambda: LONG_COLUMNS)),
    "diagonal": lambda: RAMP,
    "gram_spectrum": lambda: BLUR,
    "cogram_spectrum": lambda: BLUR,
    "scales": lambda: bases.wavelet(N, name="haar"),
    "trusted": lambda: bare(),
    "real": lambda: bare(),
    "single": lambda: bare(matrix=SQUARE.astype(np.float32)),
}
"""A square operator, or nearly one, of which the fact is known."""

FACTS = (*MADE,)
OF_BOTH = {"row_gram": "column_gram", "orthogonal_rows": "orthogonal_columns"}
OF_BOTH |= {"row_norms": "column_norms", "gram_spectrum": "cogram_spectrum"}
TURNED = OF_BOTH | {b: a for a, b in OF_BOTH.items()}
"""What a fact is called of the adjoint."""

ALL = set(FACTS)
ROWWISE = {"row_gram", "orthogonal_rows", "row_norms"}
COLUMNWISE = {"column_gram", "orthogonal_columns", "column_norms"}
CIRCULANT = {"gram_spectrum", "cogram_spectrum"}
ALWAYS = {"explicit", "trusted", "real"}
"""Whatever is made of matrices is one."""
OWN = ALWAYS | {"single"}
"""Where no other operator joins, its precision stays, too."""
ARRAYS = {"explicit", "sparse", "centred"}

fourier, haar = bases.fourier(N), bases.wavelet(N, name="haar")
PHASES = np.exp(1j * np.arange(N))


def same(M):
    return M


TABLE = {
    # operation: of operators, of matrices, what is kept
    "minus": (lambda A: -A, lambda M: -M, ALL),
    "multiple": (lambda A: 2.5 * A, lambda M: 2.5 * M, ALL),
    "quotient": (lambda A: A / 3, lambda M: M / 3, ALL),
    "complex multiple": (lambda A: (1 + 2j) * A, lambda M: (1 + 2j) * M, ALL - {"real"}),
    "adjoint": (lambda A: A.H, lambda M: M.conj().T, ALL - {"scales"}),
    "transpose": (lambda A: A.T, lambda M: M.T, ALL - {"scales"}),
    "conjugate": (lambda A: A.conj(), np.conj, ALL),
    "conjugate of complex": (lambda A: (1j * A).conj(), lambda M: -1j * M.conj(), ALL - {"real"}),
    "twice transposed": (lambda A: A.T.T, same, ALL),
    "sum with itself": (lambda A: A + A, lambda M: 2 * M, ALL),
    "sum": (lambda A: A + -2 * A, lambda M: -M, OWN | {"diagonal", "sparse"}),
    "difference": (lambda A: A - 0.5 * A, lambda M: M / 2, OWN | {"diagonal", "sparse"}),
    "sum with a diagonal": (
        lambda A: A + (RAMP if A.shape == (N, N) else 3 * A),
        lambda M: M + (np.diag(WEIGHTS) if M.shape == (N, N) else 3 * M),
        {"sparse", "centred", "diagonal", "trusted", "real"},
    ),
    "in a basis": (
        lambda A: A @ haar[: A.shape[1], :] if A.shape[1] == N else A @ haar[:6],
        lambda M: M @ haar.to_dense()[: M.shape[1]],
        ALWAYS | ROWWISE | {"norm", "cogram_spectrum", "scales"},
    ),
    "in a complex basis": (
        lambda A: A @ fourier[: A.shape[1]],
        lambda M: M @ fourier.to_dense()[: M.shape[1]],
        (ALWAYS | ROWWISE | {"norm", "cogram_spectrum"}) - {"real"},
    ),
    "turned": (
        lambda A: haar[:, : A.shape[0]] @ A,
        lambda M: haar.to_dense()[:, : M.shape[0]] @ M,
        ALWAYS | COLUMNWISE | {"norm", "gram_spectrum", "scales"},
    ),
    "columns weighed": (
        lambda A: A @ diagonal(WEIGHTS[: A.shape[1]]),
        lambda M: M * WEIGHTS[: M.shape[1]],
        ALWAYS | ARRAYS | {"orthogonal_columns", "column_norms", "diagonal", "scales"},
    ),
    "rows weighed": (
        lambda A: diagonal(WEIGHTS[: A.shape[0]]) @ A,
        lambda M: WEIGHTS[: M.shape[0], None] * M,
        ALWAYS | ARRAYS | {"orthogonal_rows", "row_norms", "diagonal", "scales"},
    ),
    "times i": (
        lambda A: A @ diagonal(np.full(A.shape[1], 1j)),
        lambda M: 1j * M,
        ALL - {"real", "single"},
    ),
    "phases": (
        lambda A: A @ diagonal(PHASES[: A.shape[1]]),
        lambda M: M * PHASES[: M.shape[1]],
        (ALL - CIRCULANT - {"real", "single"}) | {"cogram_spectrum"},
    ),
    "gram": (
        lambda A: A.H @ A,
        lambda M: M.conj().T @ M,
        OWN | {"norm", "orthogonal_columns", "column_gram", "diagonal", "scales"},
    ),
    "square": (
        lambda A: A**2 if A.shape == (N, N) else A @ A.H,
        lambda M: M @ M if M.shape == (N, N) else M @ M.conj().T,
        OWN | {"row_gram", "diagonal", "scales"},
    ),
    "cube": (
        lambda A: A**3 if A.shape == (N, N) else A @ A.H @ A,
        lambda M: M @ M @ M if M.shape == (N, N) else M @ M.conj().T @ M,
        OWN | {"row_gram", "diagonal", "scales"},
    ),
    "rows": (
        lambda A: A[[4, 0, 2]],
        lambda M: M[[4, 0, 2]],
        OWN | ARRAYS | ROWWISE | {"scales"},
    ),
    "rows in another order": (
        lambda A: A[::-1],
        lambda M: M[::-1],
        ALL - {"cogram_spectrum", "diagonal"},
    ),
    "rows twice": (
        lambda A: A[[1, 1, 0]],
        lambda M: M[[1, 1, 0]],
        OWN | ARRAYS | {"row_norms", "scales"},
    ),
    "all rows": (lambda A: A[:], same, ALL),
    "columns": (
        lambda A: A[:, [4, 0, 2]],
        lambda M: M[:, [4, 0, 2]],
        OWN | ARRAYS | COLUMNWISE | {"scales"},
    ),
    "columns in another order": (
        lambda A: A[:, ::-1],
        lambda M: M[:, ::-1],
        ALL - {"gram_spectrum", "diagonal"},
    ),
    "submatrix": (
        lambda A: A[:4, [1, 3]],
        lambda M: M[:4, [1, 3]],
        OWN | ARRAYS | {"scales"},
    ),
    "beside each other": (
        lambda A: hstack([A, -2 * A]),
        lambda M: np.hstack([M, -2 * M]),
        (OWN | ROWWISE | {"sparse", "column_norms", "cogram_spectrum", "scales"}),
    ),
    "one above the other": (
        lambda A: vstack([A, -2 * A]),
        lambda M: np.vstack([M, -2 * M]),
        (OWN | COLUMNWISE | {"sparse", "row_norms", "gram_spectrum", "scales"}),
    ),
    "blocks": (
        lambda A: block_diag([A, A]),
        lambda M: scipy.linalg.block_diag(M, M),
        ALL - CIRCULANT - {"centred"},
    ),
    "unequal blocks": (
        lambda A: block_diag([A, 3 * A]),
        lambda M: scipy.linalg.block_diag(M, 3 * M),
        ALL - CIRCULANT - {"centred", "row_gram", "column_gram"},
    ),
    "one alone": (lambda A: block_diag([vstack([hstack([A])])]), same, ALL),
    "concatenation": (
        lambda A: bases.concatenation(A, A),
        lambda M: np.hstack([M, M]),
        (OWN | ROWWISE | {"sparse", "column_norms", "cogram_spectrum", "scales"}),
    ),
    "real parts": (
        for_real_signals,
        lambda M: np.concatenate([M.real, M.imag]),
        {
            "explicit",
            "trusted",
            "real",
            "column_gram",
            "column_norms",
            "gram_spectrum",
            "scales",
            "orthogonal_columns",
        },
    ),
    "pickled": (lambda A: A if A.name == "operator" else pickle.loads(pickle.dumps(A)), same, ALL),
    "through SciPy": (lambda A: as_operator(2 * aslinearoperator(A)), lambda M: 2 * M, ALL),
}
NAMES = {"adjoint", "transpose"}
"""Operations whose facts change sides."""


def known(A, fact):
    """Whether the fact is known of A, without a product."""
    if fact == "explicit":
        return A.is_dense
    if fact in ("sparse", "centred"):
        return A.is_sparse and (A.shift is not None) == (fact == "centred")
    if fact == "norm":
        return A.knows_norm or A.facts.norm_by is not None
    if fact in ("row_norms", "column_norms"):
        return getattr(A, f"knows_{fact}")
    if fact == "trusted":
        return A.trusted
    if fact == "single":
        return A.dtype in (np.float32, np.complex64)
    if fact == "real":
        return not A.is_complex
    return getattr(A.facts, fact) not in (None, False) if not is_array(A, fact) else True


def is_array(A, fact):
    return isinstance(getattr(A.facts, fact), np.ndarray)


def check(A, M):
    """Everything that is known of A holds for M."""
    facts, size = A.facts, max(1.0, float(np.linalg.norm(M, 2)))
    near = {"atol": (1e-5 if A.dtype in (np.float32, np.complex64) else 1e-11) * size**2}
    rows, columns = M @ M.conj().T, M.conj().T @ M
    assert A.shape == M.shape
    assert A.is_complex or not np.iscomplexobj(M)
    np.testing.assert_allclose(A.to_dense(), M, **near)
    np.testing.assert_allclose(A.H @ np.eye(len(M)), M.conj().T, **near)
    np.testing.assert_allclose(A @ np.eye(M.shape[1]), M, **near)
    if A.is_sparse:
        held = A.sparse.toarray()
        assert A.sparse.format == "csc"
        np.testing.assert_allclose(held - (0 if A.shift is None else np.outer(*A.shift)), M, **near)
    assert A.norm() == pytest.approx(np.linalg.norm(M, 2), rel=1e-6)
    if A.knows_norm:
        assert facts.norm == pytest.approx(np.linalg.norm(M, 2), rel=1e-12)
    for gram, orthogonal, square in (
        (facts.row_gram, facts.orthogonal_rows, rows),
        (facts.column_gram, facts.orthogonal_columns, columns),
    ):
        if gram is not None:
            np.testing.assert_allclose(square, gram * np.eye(len(square)), **near)
        if orthogonal:
            np.testing.assert_allclose(square, np.diag(np.diag(square)), **near)
    np.testing.assert_allclose(A.row_norms(), np.sqrt(np.diag(rows).real), atol=1e-7 * size)
    np.testing.assert_allclose(A.column_norms(), np.sqrt(np.diag(columns).real), atol=1e-7 * size)
    if facts.diagonal is not None:
        np.testing.assert_allclose(np.diag(facts.diagonal), M, **near)
    if facts.scales is not None:
        assert facts.scales.shape == (M.shape[1],)


def check_spectra(A, M):
    """Circulant neighbours, of operators that are circulant: they are the Gram matrix itself."""
    for spectrum, square in (
        (A.facts.gram_spectrum, M.conj().T @ M),
        (A.facts.cogram_spectrum, M @ M.conj().T),
    ):
        if spectrum is not None and spectrum.size == len(square):
            F = bases.fourier(spectrum.shape).to_dense().conj().T
            np.testing.assert_allclose(
                F.conj().T @ (spectrum.ravel()[:, None] * F), square, atol=1e-10
            )


@pytest.mark.parametrize("operation", TABLE)
def test_what_is_known_is_kept_and_true(operation):
    of_operators, of_matrices, kept = TABLE[operation]
    lost, claimed = [], []
    for fact, make in MADE.items():
        A = make()
        assert known(A, fact), fact
        made, M = of_operators(A), of_matrices(A.to_dense())
        check(made, M)
        if fact in CIRCULANT:
            check_spectra(made, M)
        wanted = TURNED.get(fact, fact) if operation in NAMES else fact
        if fact in kept and not known(made, wanted):
            lost.append(fact)
        if fact not in kept and known(made, wanted):
            claimed.append(fact)
    assert (lost, claimed) == ([], []), operation
