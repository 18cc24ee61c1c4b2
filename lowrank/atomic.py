"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    handle, temporary = tempfile.mkstemp(path.suffix, f".{path.stem}.", path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp gives 0600
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def filling(folder: Path, *, last: str, stale: Callable[[str], bool]) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when the block succeeds.

    Nothing of `folder` changes before all of them are written. While they move, the file that
    readers begin with is not there: whoever reads then, or after a crash, is refused.

    Args:
        folder: made where it is missing; what else it holds stays.
        last: name of the file that readers begin with; it moves last.
        stale: which of the files of `folder`, by name, the new ones make void.

    Raises:
        OSError: the folder cannot be made or written.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".lowrank-", dir=folder))
    try:
        yield temporary
        for path in _files(temporary):
            with open(path, "rb") as written:
                os.fsync(written.fileno())
        _move(temporary, folder, last, stale)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    shutil.rmtree(temporary)


def _move(source: Path, folder: Path, last: str, stale: Callable[[str], bool]) -> None:
    (folder / last).unlink(missing_ok=True)
    for path in [p for p in folder.iterdir() if p.is_file() and stale(p.name)]:
        path.unlink()
    for path in sorted(_files(source), key=lambda p: p == source / last):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
