"""How a long stage tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are. What is being
done begins with its stage, a word: "measuring layer1.0.conv1"."""


def in_stages(progress: Progress | None, stages: Sequence[str]) -> Progress | None:
    """The same, told which of so many stages it is.

    Args:
        progress: whom to tell.
        stages: the words that they begin with, in order.

    Example:
        >>> tell = in_stages(lambda what, done, total: print(what, done, total), ["a", "b"])
        >>> tell("b fc", 1, 3)
        2/2 b fc 1 3
    """
    if progress is None:
        return None
    places = {name: f"{k}/{len(stages)} " for k, name in enumerate(stages, 1)}

    def tell(what: str, done: int, total: int) -> None:
        progress(places.get(what.partition(" ")[0], "") + what, done, total)

    return tell
