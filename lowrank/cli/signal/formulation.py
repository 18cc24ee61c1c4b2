"""What is said of a signal on the command line: noise, penalty, basis and solver."""

from __future__ import annotations

import math
from typing import Any

import click

from lowrank.errors import InputError


class Noise(click.ParamType):  # type: ignore[type-arg]
    """A bound on the norm of the noise, or "auto"."""

    name = "noise"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        """`0.1`, `auto`."""
        if value == "auto":
            return "auto"
        number = _number(value)
        if not 0 <= number < math.inf:
            self.fail(f"{value!r} is no noise; give a number from 0 on, or auto", param, ctx)
        return number


class Penalty(click.ParamType):  # type: ignore[type-arg]
    """lam, or a percentage of the lam from which on the answer is zero."""

    name = "penalty"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        """`0.1`, `5%`: the argument of `recover` that it is."""
        if isinstance(value, dict):
            return value
        share = value.endswith("%")
        number = _number(value.removesuffix("%"))
        if not 0 < number < math.inf or (share and number > 100):
            text = f"{value!r} is no penalty; give a number above 0, or 5% of lam_max"
            self.fail(text, param, ctx)
        return {"lam_fraction": number / 100} if share else {"lam": number}


class BasisName(click.ParamType):  # type: ignore[type-arg]
    """dct, fourier, or a discrete wavelet of PyWavelets; of pictures with `:ROWSxCOLUMNS`."""

    name = "basis"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`db4`, `dct:32x32`: the name, which must be known, and sides from 1 on."""
        from lowrank.sensing.bases import parsed_name

        try:
            parsed_name(str(value))
        except InputError as error:
            self.fail(f"{error.problem}; {error.advice}", param, ctx)
        return str(value)


class SolverName(click.ParamType):  # type: ignore[type-arg]
    """A solver, or "auto"; cvxpy:BACKEND names CVXPY's."""

    name = "solver"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, which must be known."""
        from lowrank.sensing.solvers import SOLVERS

        known = ("auto", *SOLVERS)
        if value.partition(":")[0] not in known:
            self.fail(f"{value!r} is no solver; choose among {', '.join(known)}", param, ctx)
        return str(value)


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
