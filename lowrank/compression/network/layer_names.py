"""Layer names: which ones patterns match, what a wrong one meant, how a run of them is written."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

from lowrank.errors import InputError


def left_out(
    layers: Collection[str],
    skip: str | Sequence[str],
    only: str | Sequence[str] | None,
    names: Collection[str],
) -> dict[str, str]:
    """The layers that the user's patterns leave as they are -> why.

    Args:
        layers: the ones in question.
        skip: patterns of layers to leave.
        only: patterns of the only layers to touch; None for all.
        names: every name that a pattern may match.

    Raises:
        InputError: a pattern matches nothing, or `only` is empty.
    """
    skipped = matching("skip", skip, names)
    if only is not None and not only:
        raise InputError("only", "it is empty, so no layer could be replaced", "name some layers")
    kept = None if only is None else matching("only", only, names)
    out = {n: "not among the layers chosen by the user" for n in layers if kept and n not in kept}
    return out | {n: "skipped by the user" for n in layers if n in skipped}


def matching(what: str, patterns: str | Sequence[str], names: Collection[str]) -> set[str]:
    """The names that a pattern matches, as file names are matched; a name itself comes first.

    Args:
        what: the argument that the patterns came in, for the message.
        patterns: one or several, such as "layer4.*" or "fc".
        names: of the layers.

    Raises:
        InputError: a pattern matches nothing.

    Example:
        >>> sorted(matching("only", "conv*", ["conv1", "conv2", "fc"]))
        ['conv1', 'conv2']
        >>> matching("skip", "conv[0]", ["conv[0]", "conv0"])
        {'conv[0]'}
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {pattern} & set(names) or {n for n in names if fnmatchcase(n, pattern)}
        if not matched:
            raise InputError(what, f"{pattern!r} matches no layer", suggestion(pattern, names))
        found |= matched
    return found


def suggestion(
    name: str, names: Iterable[str], otherwise: str = "check the model's layer names"
) -> str:
    """What to do about a name that no layer has.

    Example:
        >>> suggestion("conv3", ["conv1", "fc"])
        'did you mean conv1?'
    """
    close = difflib.get_close_matches(name, list(names), n=3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise
