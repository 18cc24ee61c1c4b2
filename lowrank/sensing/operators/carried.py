"""A user's function, so that it pickles wherever that can be done."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import numpy as np

from lowrank.sensing.operators.arrays import Array


class Carried:
    """A function that pickles by itself, or by cloudpickle if it is a lambda or a local one.

    Args:
        function: of one array.
    """

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, x: Array) -> Array:
        """The function's value."""
        return np.asarray(self.function(x))

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            pickle.dumps(self.function)
        except (pickle.PicklingError, AttributeError, TypeError):
            return _by_cloudpickle(self.function)
        return Carried, (self.function,)


def _by_cloudpickle(function: Any) -> tuple[Any, ...]:
    try:
        cloudpickle = importlib.import_module("cloudpickle")
    except ImportError as error:
        text = "an operator holds a lambda or a local function, which does not pickle"
        advice = "define it at the top of a module, or pip install cloudpickle"
        raise pickle.PicklingError(f"{text}; {advice}") from error
    return cloudpickle.loads, (cloudpickle.dumps(function),)
