"""`lowrank compress --stream`: from folder to folder, for models larger than memory."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click

from lowrank.cli.console import show, show_json, tell, working
from lowrank.cli.network.source import Source
from lowrank.cli.network.values import is_pretrained
from lowrank.cli.targets import check_targets
from lowrank.errors import InputError

_KNOWN = ("params", "skip", "only", "seed")
"""Settings that block by block are known, too."""


def takes_stream(
    asked: bool | None, source: Source, output: Path | None, given: Collection[str]
) -> bool:
    """Whether a model goes block by block; says so where nobody asked.

    Raises:
        click.UsageError: it was asked for, and cannot be.
    """
    if asked is False:
        return False
    folder = Path(source.model)
    if asked is None:
        return _too_large(source, output, given)
    if not (is_pretrained(source.model) and folder.is_dir()):
        raise click.UsageError("--stream reads a folder that transformers' save_pretrained wrote")
    if output is None or output.suffix == ".safetensors":
        raise click.UsageError("--stream writes a folder; name it with -o")
    if odd := [name for name in given if name not in _KNOWN]:
        names = ", ".join("--" + name.replace("_", "-") for name in odd)
        raise click.UsageError(f"--stream knows no {names}; drop it, or --stream")
    if "params" not in given:
        raise click.UsageError("--stream takes its budget as --params, such as --params 0.6")
    if source.inputs or source.weights is not None or source.allow_pickle:
        raise click.UsageError("--stream reads the folder's own safetensors alone")
    return True


def _too_large(source: Source, output: Path | None, given: Collection[str]) -> bool:
    """Whether the model in float32 takes more than half of the free memory, and can go block by
    block as it was asked for."""
    folder = Path(source.model)
    size, free = _float_bytes(folder), _free()
    if free is None or 2 * size <= free or not folder.is_dir():
        return False
    figures = f"in float32 the model has {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    try:
        taken = takes_stream(True, source, output, given)
    except click.UsageError as error:
        tell(f"{figures}: it goes through memory all the same, as {error.format_message()}")
        return False
    tell(f"{figures}: it goes block by block (--no-stream for all at once)")
    return taken


def _float_bytes(folder: Path) -> int:
    """Bytes of a folder's safetensors if all numbers took four, about."""
    sizes = (path.stat().st_size for path in folder.glob("model*.safetensors"))
    config = folder / "config.json"
    text = config.read_text("utf-8", errors="replace") if config.is_file() else ""
    return sum(sizes) * (2 if "float16" in text else 1)


def _free() -> int | None:
    """Bytes of memory that are free, where the system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            rows = dict(line.split(":", 1) for line in file)
        return 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def in_stream(
    source: Source,
    output: Path,
    settings: Mapping[str, Any],
    workers: int | None,
    save_plan: Path | None,
    *,
    as_json: bool,
) -> None:
    """Compress a folder block by block, and show what became of it."""
    check_targets(save_plan, output, sources=[*source.files])
    from lowrank.compression.pipeline.stream import compress_folder

    told: list[str] = []
    with working() as progress:

        def telling(what: str, done: int, total: int) -> None:
            if not told:
                told.append(what)
                tell(what)
            progress(what, done, total)

        data, tokenizer = _data(source)
        found = compress_folder(
            source.model, output, data=data, tokenizer=tokenizer, progress=telling,
            executor=None if workers is None else _pool(workers), **settings,
        )  # fmt: skip
    if save_plan is not None:
        try:
            found.plan.save(save_plan)
        except OSError as error:
            raise InputError(str(save_plan), f"cannot be written ({error})", "free it") from error
    if as_json:
        plan = save_plan and str(save_plan)
        show_json(found.to_dict() | {"output": str(output), "plan_file": plan})
    else:
        show(found)
    for path in filter(None, (save_plan, output)):
        tell(f"wrote {path}")


def _data(source: Source) -> tuple[Any, Any]:
    """The examples, or a text and the tokenizer for it."""
    if source.data is None:
        return None, None
    if source.data.endswith(".txt"):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import, which reads it
        from lowrank.cli.network.pretrained import tokenizer

        return Path(source.data), tokenizer(Path(source.model))
    from lowrank.cli.network.data import load_data

    return load_data(source.data), None


def _pool(workers: int) -> Callable[[], Executor]:
    context = multiprocessing.get_context("spawn")
    return lambda: ProcessPoolExecutor(workers, context)
