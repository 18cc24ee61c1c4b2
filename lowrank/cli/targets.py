"""Files that commands write: refused before any work if they cannot be, and whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowrank.atomic import replacing
from lowrank.errors import InputError


def check_targets(*paths: Path | None) -> None:
    """Refuse what could not be written.

    Raises:
        InputError: the folder is not there, or is closed to us.
    """
    for path in filter(None, paths):
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
