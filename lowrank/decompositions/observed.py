"""A matrix with missing entries, on the way into an algorithm and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from lowrank.errors import InputError

Array = TypeVar("Array", np.ndarray, Tensor)
"""A NumPy array or a torch tensor: what goes in is what comes out."""

Holes: TypeAlias = Literal["none", "masked", "nan"]
"""What may stand for missing entries where no mask is given: nothing; the mask of `np.ma`; that,
NaN, and what a sparse matrix does not store."""


@dataclass(frozen=True, eq=False)
class Observed(Generic[Array]):
    """A checked matrix to compute with; missing entries are zero.

    Attributes:
        M: (m, n), float64 or complex128, or the single precision that was asked for.
        mask: (m, n) bool, True where observed; None if nothing is missing.
        source: the caller's matrix, for its type, dtype and device.
        scale: `M` is the caller's matrix times this power of two; 1 unless squares of its entries
            would overflow or vanish.
        frame: the caller's DataFrame, if it was one.
    """

    M: Tensor
    mask: Tensor | None
    source: Array
    scale: float = 1.0
    frame: Any = None

    @property
    def fraction(self) -> float:
        """Observed share of the entries."""
        return 1.0 if self.mask is None else float(self.mask.sum()) / self.mask.numel()

    def back(self, X: Tensor) -> Array:
        """A result in the caller's array type, dtype and device; units are the caller's own."""
        if self.frame is not None:
            return self.framed(X.numpy())
        if isinstance(self.source, Tensor):
            kept = self.source.is_floating_point() or self.source.is_complex()
            return X.to(self.source.dtype if kept else torch.get_default_dtype())
        kind = self.source.dtype if self.source.dtype.kind in "fc" else np.dtype(np.float64)
        return X.numpy().astype(kind, copy=False)

    def framed(self, X: Any) -> Any:
        """An array as the caller's DataFrame, if the matrix was one."""
        if self.frame is None:
            return X
        return type(self.frame)(X, index=self.frame.index, columns=self.frame.columns)

    def unframed(self, X: Any) -> Any:
        """The array of a result."""
        return X if self.frame is None else X.to_numpy()


def observe(
    M: Any, mask: Any, name: str, *, single: bool = False, holes: Holes = "none"
) -> Observed[Any]:
    """Check a matrix and its mask, and put zeros on the missing entries.

    Args:
        M: (m, n) NumPy array, torch tensor or DataFrame; NaN and Inf only where `mask` is False.
        mask: (m, n) boolean, True where observed, or None.
        name: the function that the error message names.
        single: compute in float32 if that is what `M` holds; else always in double, which the
            Gram matrix needs.
        holes: what of M itself may say that entries are missing.

    Raises:
        InputError: not a matrix, wrong mask, nothing observed, or an observed NaN or Inf.
    """
    frame = M if is_frame(M) else None
    M, shown_by_M = _values(M, name, holes)
    if not isinstance(M, (np.ndarray, Tensor)) or M.ndim != 2 or 0 in M.shape:
        shown = f"shape {tuple(M.shape)}" if hasattr(M, "shape") else f"a {type(M).__name__}"
        raise InputError(name, f"got {shown}, need a non-empty (m, n) array or tensor", "reshape")
    tensor = M.detach() if isinstance(M, Tensor) else _from_numpy(M, name)
    work = torch.complex128 if tensor.is_complex() else torch.float64
    work = torch.float32 if single and tensor.dtype == torch.float32 else work
    if mask is None and shown_by_M is None and holes == "nan":
        shown_by_M = ~torch.isnan(tensor)
    seen = _check_mask(_both(mask, shown_by_M), tensor, name)
    filled = tensor.to(work, copy=True)
    if seen is not None:
        filled[~seen] = 0
    bad = int((~torch.isfinite(filled)).sum())
    if bad:
        raise InputError(
            name, f"{bad} observed values are NaN or Inf", "set mask to False where they stand"
        )
    scale = _safe_scale(filled)
    return Observed(filled if scale == 1 else filled * scale, seen, M, scale, frame)


def is_frame(M: Any) -> bool:
    """Whether the value is a pandas DataFrame; does not import pandas."""
    return all(hasattr(M, part) for part in ("to_numpy", "index", "columns", "iloc"))


def _values(M: Any, name: str, holes: Holes) -> tuple[Any, Any]:
    """The matrix as an array or tensor, and where its own kind says that entries are observed."""
    if is_frame(M):
        return _of_frame(M, name), None
    if issparse(M):
        if holes != "nan":
            text = "a sparse matrix leaves open whether what it does not store is 0 or missing"
            raise InputError(name, text, "pass M.toarray(), or complete what is missing")
        stored = M.tocoo()
        seen = np.zeros(M.shape, bool)
        seen[stored.row, stored.col] = True
        return stored.toarray(), seen
    if not isinstance(M, np.ma.MaskedArray):
        return M, None
    if holes == "none" and np.ma.is_masked(M):
        text = f"{np.ma.count_masked(M)} of {M.size} values are masked"
        raise InputError(name, text, "robust_pca and complete take missing entries")
    return M.data, ~np.ma.getmaskarray(M)


def _of_frame(M: Any, name: str) -> np.ndarray:
    """The numbers of a DataFrame; its missing values are NaN."""
    kind = complex if any(t.kind == "c" for t in M.dtypes if hasattr(t, "kind")) else float
    try:
        return np.asarray(M.to_numpy(dtype=kind, na_value=np.nan))
    except (TypeError, ValueError) as error:
        text = f"the DataFrame holds what is no number ({error})"
        raise InputError(name, text, "drop those columns, or encode them") from error


def _both(mask: Any, seen: Any) -> Any:
    """Where both say that an entry is observed; one of them may be None."""
    if mask is None or seen is None:
        return seen if mask is None else mask
    mask = _plain(mask)
    if np.shape(mask) != np.shape(seen):
        return mask  # which is refused
    return torch.as_tensor(mask) & torch.as_tensor(seen)


def _plain(mask: Any) -> Any:
    """A mask that is a DataFrame or a sparse matrix as an array."""
    if issparse(mask):
        return mask.toarray()
    return mask.to_numpy() if is_frame(mask) else mask


def _safe_scale(M: Tensor) -> float:
    """1, or the power of two that brings the largest entry near 1 where its square is unsafe."""
    parts = torch.view_as_real(M.resolve_conj()) if M.is_complex() else M
    top = float(parts.abs().max())
    exponent = math.frexp(top)[1]
    safe = 400 if M.dtype in (torch.float64, torch.complex128) else 40
    if top == 0 or abs(exponent) <= safe:
        return 1.0
    return 2.0 ** -max(exponent, -1000)


def _from_numpy(M: np.ndarray, name: str) -> Tensor:
    if M.dtype.kind not in "biufc":
        raise InputError(name, f"got dtype {M.dtype}, need numbers", "convert with .astype(float)")
    plain = np.ascontiguousarray(M, M.dtype.newbyteorder("="))
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def _check_mask(mask: Any, M: Tensor, name: str) -> Tensor | None:
    if mask is None:
        return None
    try:
        seen = torch.as_tensor(_plain(mask), device=M.device)
    except (TypeError, ValueError) as error:
        problem = f"mask is a {type(mask).__name__}, need bool {tuple(M.shape)}"
        raise InputError(name, problem, "pass True where an entry is observed") from error
    if seen.shape != M.shape or seen.dtype != torch.bool:
        problem = f"mask is {seen.dtype} {tuple(seen.shape)}, need bool {tuple(M.shape)}"
        raise InputError(name, problem, "pass True where an entry is observed")
    if not seen.any():
        raise InputError(name, "mask observes no entry", "pass True where an entry is observed")
    return None if bool(seen.all()) else seen


def check_positive(value: float, argument: str, name: str, *, zero: bool = False) -> None:
    """Raise InputError unless `value` is finite and above 0 (or 0, with `zero`)."""
    if not (np.isfinite(value) and (value > 0 or (zero and value == 0))):
        need = "at least 0" if zero else "above 0"
        problem = f"{argument}={value!r} is not a finite number {need}"
        raise InputError(name, problem, f"give {argument} a value {need}")


def check_count(value: int, argument: str, most: int, name: str, *, least: int = 1) -> None:
    """Raise InputError unless `value` is an integer in least..most."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        problem = f"{argument}={value!r} is not an integer in {least}..{most}"
        raise InputError(name, problem, f"give {argument} a value in that range")
