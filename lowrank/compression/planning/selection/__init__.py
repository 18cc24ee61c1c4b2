"""Which channels stay: selected by sparse solvers on the moments of what reads them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Score: TypeAlias = Literal[
    "lasso", "omp", "backward", "slimming", "norm", "gradient", "nystrom", "random"
]
"""How channels are selected; `scores.order` says how each does."""

SCORES: tuple[str, ...] = get_args(Score)
