"""What all estimators refuse, and how they tell a run that did not end well."""

from __future__ import annotations

import warnings
from typing import Any

from lowrank.errors import InputError
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.result import Recovery
from lowrank.status import Status


def no_operator(X: Any) -> None:
    """Refuse operators, of which scikit-learn knows no rows.

    Raises:
        InputError: X has products with vectors, but no entries.
    """
    if hasattr(X, "matvec") or isinstance(X, Operator):
        kind = f"{type(X).__module__.split('.')[0]}'s {type(X).__name__}"
        text = f"{kind} is an operator, and estimators take rows"
        raise InputError("X", text, "pass X @ np.eye(X.shape[1]), or the operator to recover")


def judge(name: str, found: Recovery) -> None:
    """Warn where the answer is not certified.

    Raises:
        InputError: there is none.
    """
    if found.status in (Status.INFEASIBLE, Status.UNBOUNDED, Status.DIVERGED):
        raise InputError(name, found.status.name.lower(), found.message)
    if not found.status.ok:
        from sklearn.exceptions import ConvergenceWarning  # whose absence estimators tell first

        text = f"{name}: {found.status.name.lower()}, {found.message}"
        warnings.warn(text, ConvergenceWarning, stacklevel=3)
