"""Files that commands write: refused before any work if they cannot be, and whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank.atomic import replacing
from lowrank.errors import InputError


def check_targets(*paths: Path | None, sources: Iterable[Path | None] = ()) -> None:
    """Refuse what could not be written, and what would be written over what is read.

    Args:
        *paths: files to write.
        sources: files that the command reads, and folders of such.

    Raises:
        InputError: the folder is not there, or is closed to us; a file is one of the sources,
            or is named twice.
    """
    read = [path.resolve() for path in filter(None, sources)]
    known: set[Path] = set()
    for path in filter(None, paths):
        if (real := path.resolve()) in known:
            raise InputError(str(path), "two files would be written there", "name two")
        known.add(real)
        if real in read or (real.exists() and any(folder in real.parents for folder in read)):
            raise InputError(str(path), "the command reads this very file", "name another")
        if not path.parent.is_dir():
            raise InputError(str(path), f"there is no folder {path.parent}", "make it first")
        if not os.access(path.parent, os.W_OK):
            raise InputError(str(path), "the folder cannot be written to", "choose another")


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block succeeds.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        reason = f"cannot be written ({error})"
        raise InputError(str(path), reason, "name another folder") from error
