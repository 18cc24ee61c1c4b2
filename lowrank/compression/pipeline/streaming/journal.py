"""What of a run is done, in a folder, so that the same call goes on after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lowrank.atomic import write_text
from lowrank.compression.structure.pretrained.record import CONFIG
from lowrank.compression.structure.pretrained.writing import stale
from lowrank.errors import CheckpointError
from lowrank.store import digest, text_of

NAME = ".lowrank-stream"
"""Folder of an unfinished run, in the one that it writes."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other processes from a folder that is written, until the block ends or this one dies.

    The lock belongs to the process, not to its open files, which workers that it forks would hold
    beyond its death. Where the system has no such locks, as on Windows, none is taken.

    Raises:
        CheckpointError: another process is at it.
        OSError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = out / NAME / "lock"
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                problem = "another process is writing it"
                advice = "wait until it is done, or name another folder"
                raise CheckpointError(str(out), problem, advice) from error
            if _still_there(path, file.fileno()):
                yield
                return


def _still_there(path: Path, handle: int) -> bool:
    """Whether a file was not removed, by a run that ended, before it could be locked."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(handle))
    return False


class Journal:
    """The folder of a run; what is noted in it is whole or not there.

    Args:
        out: the folder that is written.
        job: all that the result follows from, in JSON values.

    Raises:
        CheckpointError: it holds an unfinished run of another job, or cannot be written.
    """

    def __init__(self, out: Path, job: Mapping[str, Any]) -> None:
        self.out, self.folder, self.final = out, out / NAME, out / NAME / "final"
        self.final.mkdir(parents=True, exist_ok=True)
        for path in [*self.folder.glob(".*"), *self.final.glob(".*")]:
            path.unlink()  # of a write that was cut off
        known = self.get("job")
        if known is None:
            self.put("job", {"sha256": digest(dict(job)), "job": dict(job)})
        elif known["sha256"] != digest(dict(job)):
            first = _difference(known["job"], json.loads(text_of(dict(job))))
            problem = f"it holds an unfinished run with {first}"
            advice = f"repeat that call to finish it, or delete the folder {NAME} in it"
            raise CheckpointError(str(out), problem, advice)

    def get(self, name: str) -> Any:
        """What was noted; None if nothing was."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else None

    def put(self, name: str, values: Any) -> None:
        """Note that something is done."""
        write_text(self.folder / f"{name}.json", text_of(values))

    def states(self, stage: str, k: int) -> Path:
        """Folder of the hidden states before a block."""
        return self.folder / f"{stage}-states-{k:05d}"

    def drop(self, states: Path) -> None:
        """Remove hidden states that are not needed any more."""
        shutil.rmtree(states, ignore_errors=True)

    def finish(self) -> None:
        """Move the finished files into the folder, the config last, and forget the run."""
        names = self.get("finish")
        if names is None:
            names = sorted(str(p.relative_to(self.final)) for p in _files(self.final))
            self.put("finish", names)
        if (self.final / CONFIG).exists():
            (self.out / CONFIG).unlink(missing_ok=True)
            for path in [p for p in self.out.iterdir() if p.is_file()]:
                if stale(path.name) and path.name not in names:
                    path.unlink()
        for name in sorted(names, key=lambda n: n == CONFIG):
            if (self.final / name).exists():
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.final / name, self.out / name)
        for path in self.folder.glob("*-states-*"):
            shutil.rmtree(path)
        shutil.rmtree(self.folder)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _difference(known: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """The first setting in which two jobs differ."""
    name = next((n for n in known if known[n] != job.get(n)), "other settings")
    if isinstance(known.get(name), str | int | float):
        return f"{name}={known[name]!r}, now {job.get(name)!r}"
    return f"other {name}"
