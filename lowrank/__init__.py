"""Factorize trained networks under a budget; recover sparse signals with a certificate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank.compression.apply import apply, densify
    from lowrank.compression.compress import compress
    from lowrank.compression.curves import measure
    from lowrank.compression.plan import Plan
    from lowrank.compression.profile import profile
    from lowrank.errors import LowRankError

_HOME = {
    "LowRankError": "lowrank.errors",
    "Plan": "lowrank.compression.plan",
    "apply": "lowrank.compression.apply",
    "compress": "lowrank.compression.compress",
    "densify": "lowrank.compression.apply",
    "measure": "lowrank.compression.curves",
    "profile": "lowrank.compression.profile",
}
"""Public name -> the module it lives in; imported on first use, so `import lowrank` is quick."""

__version__ = "0.1.0"
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
