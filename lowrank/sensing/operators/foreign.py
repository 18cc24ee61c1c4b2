"""Operators of other libraries, read once: SciPy's, PyLops' and whatever has `shape` and `matvec`.

What is read here are functions, types and facts; `lowrank.sensing.operators.operator` makes the
operator of them. No library is imported: a class is known by its name and its module's.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import lowrank.sensing.operators.facts as rules
from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, Map, as_length, is_torch, to_numpy
from lowrank.sensing.operators.facts import Facts

FORMED = 2**22
"""Entries up to which an operator without an adjoint is formed: 32 MiB, one product a column."""


@dataclass(frozen=True)
class Foreign:
    """What another library's operator is.

    Args:
        shape: (m, n).
        dtype: of the matrix.
        forward: `x -> A x`, for (n,) and (n, batch).
        adjoint: `y -> A^H y`, for (m,) and (m, batch); None where there is none.
        name: what messages call it.
        facts: what its class says of it.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    forward: Map
    adjoint: Map | None
    name: str
    facts: Facts


def is_map(value: Any) -> bool:
    """Whether the value is a matrix that does not come as numbers, and so no batch of vectors."""
    is_sparse_or_map = isinstance(value, LinearOperator) or issparse(value)
    return is_sparse_or_map or (hasattr(value, "matvec") and hasattr(value, "shape"))


def read(A: Any) -> Foreign:
    """The products, type and facts of an operator with `shape` and `matvec`.

    Raises:
        InputError: its shape is none, or it is linear over real numbers only.
    """
    name = type(A).__name__.lstrip("_")
    shape = _shape(A, name)
    dtype = _dtype(A, shape[1], name)
    forward = each_vector(A.matvec, shape[::-1], f"{name}.matvec", _own(A, "matmat"))
    adjoint = None
    if _has_adjoint(A, shape[0]):
        adjoint = each_vector(A.rmatvec, shape, f"{name}.rmatvec", _own(A, "rmatmat"))
    if not np.issubdtype(dtype, np.complexfloating):
        forward, adjoint = by_parts(forward), None if adjoint is None else by_parts(adjoint)
    elif not getattr(A, "clinear", True):
        if not getattr(A, "real", False) or adjoint is None:
            text = f"{name} is linear over real numbers only (clinear is False)"
            advice = "write it for the real and imaginary parts, one above the other"
            raise InputError("A", text, advice)
        forward, adjoint = by_parts(forward), _of_real_signals(adjoint)
    return Foreign(shape, dtype, forward, adjoint, name, _facts(A))


def _shape(A: Any, name: str) -> tuple[int, int]:
    try:
        m, n = A.shape
    except (TypeError, ValueError) as error:
        text = f"{name} has shape {A.shape!r}, and a matrix has (m, n)"
        raise InputError("A", text, "correct its shape") from error
    return as_length(m, f"{name}.shape"), as_length(n, f"{name}.shape")


def _dtype(A: Any, n: int, name: str) -> np.dtype[Any]:
    """As it says, or as a product has it; double for integers."""
    said = getattr(A, "dtype", None)
    found = to_numpy(A.matvec(np.zeros(n))).dtype if said is None else np.dtype(said)
    if found.kind not in "biufc":
        raise InputError("A", f"{name} has dtype {found}", "its products are to be numbers")
    return found if found.kind in "fc" else np.dtype(float)


def each_vector(
    function: Callable[[Array], Any],
    sizes: tuple[int, int],
    name: str,
    many: Callable[[Array], Any] | None = None,
) -> Map:
    """A function of a vector as one of (n,) and (n, batch), whose answers are checked.

    Args:
        function: takes (n,), gives (m,) or (m, 1), an array or tensor.
        sizes: (n, m).
        name: what errors call it.
        many: the same of (n, batch), where the library has a product of its own for them; None
            passes one column after another.
    """
    taken, given = sizes

    def checked(run: Callable[[Array], Any], x: Array, batch: tuple[int, ...]) -> Array:
        try:
            found = to_numpy(run(x))
        except InputError:
            raise
        except Exception as error:
            text = f"{name} fails on {x.dtype} of shape {x.shape}: {type(error).__name__}: {error}"
            raise InputError("A", text, f"it is to take ({taken},) and give ({given},)") from error
        if found.shape == (given, 1) and not batch:
            found = found[:, 0]
        if found.shape != (given, *batch):
            text = f"{name} makes shape {found.shape} of {x.shape}, and ({given},) is declared"
            raise InputError("A", text, "correct the function, or the shape (m, n)")
        return found

    def apply(x: Array) -> Array:
        if x.ndim == 1:
            return checked(function, x, ())
        if many is not None:
            return checked(many, x, x.shape[1:])
        columns = np.ascontiguousarray(x.T)
        return np.stack([checked(function, column, ()) for column in columns], axis=1)

    return apply


def by_parts(function: Map) -> Map:
    """A real-linear function for complex vectors, too: part by part."""

    def apply(x: Array) -> Array:
        if np.iscomplexobj(x):
            return function(np.ascontiguousarray(x.real)) + 1j * function(
                np.ascontiguousarray(x.imag)
            )
        return function(x)

    return apply


def _of_real_signals(adjoint: Map) -> Map:
    """`A^H` from `y -> Re A^H y`, what an operator from real signals to complex data has."""
    return lambda y: adjoint(y) + 1j * adjoint(-1j * y)


def _has_adjoint(A: Any, m: int) -> bool:
    """Whether `rmatvec` is there; whether it is right, the dot test tells."""
    if not hasattr(A, "rmatvec"):
        return False
    try:
        A.rmatvec(np.zeros(m))
    except (NotImplementedError, AttributeError):  # SciPy's way, and PyLops', to have none
        return False
    except Exception:
        return True  # what it fails on, its use will say
    return True


def _own(A: Any, name: str) -> Callable[[Array], Any] | None:
    """The product with a matrix, unless it is SciPy's loop, which passes columns as (n, 1)."""
    if not isinstance(A, LinearOperator):
        return getattr(A, name, None)
    inherited = getattr(type(A), f"_{name}") is getattr(LinearOperator, f"_{name}")
    unset = vars(A).get(f"_CustomLinearOperator__{name}_impl", A) is None
    return None if inherited or unset else getattr(A, name)


_ONE = aslinearoperator(np.eye(1))


_OF_SCIPY: dict[type, Callable[..., Any]] = {
    type(_ONE @ _ONE): operator.matmul,
    type(_ONE + _ONE): operator.add,
    type(2 * _ONE): operator.mul,
    type(_ONE.T): operator.attrgetter("T"),
}
"""How SciPy writes down operators made of others, by their parts."""


_OF_PYLOPS: dict[str, Callable[..., Any]] = {
    "_ProductLinearOperator": operator.matmul,
    "_SumLinearOperator": operator.add,
    "_ScaledLinearOperator": operator.mul,
    "_PowerLinearOperator": operator.pow,
    "_AdjointLinearOperator": operator.attrgetter("H"),
    "_TransposedLinearOperator": operator.attrgetter("T"),
}
"""The same of PyLops."""


def parts(A: Any) -> tuple[Callable[..., Any], Sequence[Any]] | None:
    """How an operator is made of others, and of which; None where that is not known.

    SciPy's adjoint of `aslinearoperator(matrix)` is made of the matrix, and is no such thing.
    """
    if type(A) in _OF_SCIPY:
        return _OF_SCIPY[type(A)], A.args
    if not _of_pylops(A):
        return None
    kind = type(A).__name__
    if kind == "_ConjLinearOperator":
        return operator.methodcaller("conj"), (A.Op,)
    if kind == "_ColumnLinearOperator":
        return _columns, (A.Op, np.asarray(A.cols))
    if kind not in _OF_PYLOPS or (kind == "_PowerLinearOperator" and not A.args[1]):
        return None
    return _OF_PYLOPS[kind], A.args


_STACKED = {
    "HStack": rules.side_by_side,
    "VStack": rules.stacked,
    "BlockDiag": rules.along_diagonal,
}
"""What follows for PyLops' stacks from what is known of their parts."""


def stacked(A: Any) -> tuple[Callable[[Sequence[Facts]], Facts], Sequence[Any]] | None:
    """The rule of a stack of PyLops, and its parts; None of what is none."""
    if not _of_pylops(A) or type(A).__name__ not in _STACKED:
        return None
    return _STACKED[type(A).__name__], A.ops


def _columns(A: Any, kept: Array) -> Any:
    return A[:, kept]


def matrix(A: Any) -> Any:
    """The matrix of an operator that holds one, dense or sparse; else None."""
    if isinstance(A, type(_ONE)):
        return A.A
    if _of_pylops(A) and type(A).__name__ == "MatrixMult" and A.explicit:
        return A.A
    return None


def _of_pylops(A: Any) -> bool:
    return type(A).__module__.partition(".")[0] == "pylops"


def _facts(A: Any) -> Facts:
    """What the classes of PyLops say of their matrices; tests hold each against the matrix."""
    known = _KNOWN.get(type(A).__name__) if _of_pylops(A) else None
    return Facts() if known is None else known(A)


def _identity(A: Any) -> Facts:
    m, n = A.shape
    if m == n:
        return Facts(diagonal=np.ones(n))
    return Facts(row_gram=1.0) if m < n else Facts(column_gram=1.0)


def _diagonal(A: Any) -> Facts:
    values = to_numpy(A.diag).ravel()
    plain = values.size == A.shape[0] and not getattr(A, "complex", False)
    return Facts(diagonal=values) if plain else Facts()


def _restriction(A: Any) -> Facts:
    kept = np.asarray(A.iava)
    return Facts(row_gram=1.0) if np.unique(kept).size == kept.size else Facts()


def _fourier(A: Any) -> Facts:
    whole = A.shape[0] == A.shape[1] and not A.real
    return Facts(row_gram=1.0) if whole and A.norm.name == "ORTHO" else Facts()


def _unitary(A: Any) -> Facts:
    return Facts(row_gram=1.0)


_KNOWN: dict[str, Callable[[Any], Facts]] = {
    "Identity": _identity,
    "Diagonal": _diagonal,
    "Restriction": _restriction,
    "DCT": _unitary,
    "Flip": _unitary,
    "Roll": _unitary,
    "Transpose": _unitary,
    "_FFT_numpy": _fourier,
    "_FFT_scipy": _fourier,
    "_FFT2D_numpy": _fourier,
    "_FFT2D_scipy": _fourier,
    "_FFTND_numpy": _fourier,
    "_FFTND_scipy": _fourier,
}


def weight(A: Any) -> Any:
    """The weight of a `torch.nn.Linear`; None of what is none.

    Raises:
        InputError: it adds a bias, and so is not linear; or it is another module or a function.
    """
    torch = sys.modules.get("torch")  # no module was made without it
    if torch is not None and isinstance(A, torch.nn.Linear):
        if A.bias is not None and bool(A.bias.any()):
            text = f"{A} adds a bias to A x"
            raise InputError("A", text, "pass A.weight, and y - A.bias as the measurements")
        return A.weight
    if callable(A) and not is_torch(A):
        is_module = torch is not None and isinstance(A, torch.nn.Module)
        name = type(A).__name__ if is_module else getattr(A, "__name__", type(A).__name__)
        text = f"{name} is a function, which does not say how long a signal is"
        advice = "operators.from_torch(function, example), or operators.from_functions"
        raise InputError("A", text, f"pass {advice}(shape, forward, adjoint)")
    return None
