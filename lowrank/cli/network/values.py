"""What may be written on the command line, and what it means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.errors import InputError

if TYPE_CHECKING:
    from lowrank.compression.methods import Method


_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


_FIGURE = re.compile(r"(?P<number>[\d_]*\.?\d+(?:e[+-]?\d+)?)\s*(?P<suffix>%|[kmgt]?b?)", re.I)


class Budget(click.ParamType):  # type: ignore[type-arg]
    """A kept fraction in (0, 1], or an absolute figure as a whole number."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """`0.5`, `50%`: a float; `20M`, `1_000_000`: an int."""
        if not isinstance(value, str):
            return value
        match = _FIGURE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no budget; {_BUDGETS}", param, ctx)
        number, suffix = float(match["number"]), match["suffix"].lower()
        if suffix == "%":
            number, suffix = number / 100, "%"
        figure = number * _PREFIXES.get(suffix.removesuffix("b"), 1)
        fraction = suffix == "%" or (figure <= 1 and not suffix)
        if not 0 < figure < math.inf or (fraction and figure > 1):
            self.fail(f"{value!r} is no budget; {_BUDGETS}", param, ctx)
        if not fraction and figure != int(figure):
            self.fail(f"{value!r} is no budget; {_BUDGETS}", param, ctx)
        return figure if fraction else int(figure)


_BUDGETS = "give a fraction in (0, 1] such as 0.5 or 50%, or a figure such as 20M"


@dataclass(frozen=True)
class Input:
    """One input of the model.

    Args:
        shape: its shape.
        dtype: name of a torch type; None for that of the model's weights.
        keyword: the argument of forward that it is for; None for a positional one.
    """

    shape: tuple[int, ...]
    dtype: str | None = None
    keyword: str | None = None


class InputType(click.ParamType):  # type: ignore[type-arg]
    """A shape such as 1x3x224x224, with a type and a name if need be."""

    name = "shape"
    _form = re.compile(r"(?:(?P<keyword>\w+)=)?(?P<shape>\d+(?:[x,]\d+)*)(?::(?P<dtype>\w+))?")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Input:
        """`1x128:int64`, `input_ids=1x128:int64`."""
        if isinstance(value, Input):
            return value
        match = self._form.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is no shape; write 1x3x224x224 or ids=1x128:int64", param, ctx)
        shape = tuple(int(n) for n in re.split("[x,]", match["shape"]))
        if 0 in shape:
            self.fail(f"{value!r} has an empty axis; give at least 1 along each", param, ctx)
        if match["dtype"] not in (None, *_DTYPES):
            known = ", ".join(_DTYPES)
            self.fail(f"{match['dtype']!r} is no type; choose among {known}", param, ctx)
        return Input(shape, match["dtype"], match["keyword"])


_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


class ModelName(click.ParamType):  # type: ignore[type-arg]
    """FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, or a folder saved by transformers."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it was given."""
        where, _, function = value.rpartition(":")
        if not (where and function.isidentifier()) and not is_pretrained(value):
            self.fail(f"{value!r} names no model: write {_MODELS}", param, ctx)
        return value


_MODELS = "FILE.py:FUNCTION, MODULE:FUNCTION, or a folder saved by transformers"


def is_pretrained(model: str) -> bool:
    """Whether a model's name is that of a folder, or of a GGUF file, for transformers to read."""
    return Path(model).is_dir() or (Path(model).suffix == ".gguf" and Path(model).is_file())


class Methods(click.ParamType):  # type: ignore[type-arg]
    """Names of methods, separated by commas; FILE.py:CLASS or MODULE:CLASS is one of the user's."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[type[Method] | str, ...]:
        """The classes, and the word "select"; those of the user are registered, so that plans may
        name them."""
        from lowrank.cli.network.code import load_member
        from lowrank.compression.methods import register, resolve
        from lowrank.compression.planning.rules import SELECT

        try:
            given = [load_member(n) if ":" in n else n for n in split([value])]
            others = [one for one in given if one != SELECT]
            words = (SELECT,) if len(others) < len(given) else ()
            found = resolve(others) if others or not words else []
            return (*words, *(register(cls) for cls in found))
        except InputError as error:
            self.fail(f"{error.problem}; {error.advice}", param, ctx)


def split(values: Iterable[str]) -> tuple[str, ...]:
    """The names in comma-separated values.

    Example:
        >>> split(["fc,layer1.*", "conv"])
        ('fc', 'layer1.*', 'conv')
    """
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())
