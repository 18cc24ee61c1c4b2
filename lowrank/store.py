"""Results kept in a folder, each under a digest of all that it follows from.

A result is one safetensors file: its tensors, and in the header a JSON record with a digest over
both. Nothing is unpickled, files are written whole or not at all, and what is damaged or belongs
to something else is not used. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank.atomic import replacing
from lowrank.errors import InputError

FORMAT, VERSION = "lowrank.cache", 1


_KEY = "lowrank"


_LEFT_OVER = 3600.0
"""Seconds after which a file that is still being written is one of a process that was killed."""

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A result as it is kept.

    Args:
        record: JSON values.
        tensors: by name.
    """

    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Store:
    """A folder of results.

    Args:
        folder: where they are; it is made if it is missing.

    Raises:
        InputError: it is no folder, or cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = Store(folder)
        ...     store.put("a", Kept({"rank": 3}, {"W": torch.ones(2)}))
        ...     store.get("a").record, store.get("b")
        ({'rank': 3}, None)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.remarks: list[str] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / "written"):
                pass
            (self.folder / "written").unlink(missing_ok=True)
            self._sweep()
        except OSError as error:
            problem = f"{self.folder} cannot be written to ({error})"
            raise InputError("cache", problem, "give a folder of your own") from error

    def get(self, key: str) -> Kept | None:
        """The result of that key; None where there is none, or none that is sound."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return _read(path, key)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self.distrust(key, error)
            return None

    def put(self, key: str, kept: Kept) -> None:
        """Keep a result; what cannot be written is left out, with a remark."""
        path = self._path(key)
        tensors, orders = _in_a_row(kept.tensors)
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "key": key,
            "record": kept.record,
            "orders": orders,
            "devices": {name: str(t.device) for name, t in kept.tensors.items()},
        }
        header["sha256"] = _digest(header, tensors)
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary, metadata={_KEY: text_of(header)})
        except (OSError, SafetensorError) as error:
            self._remark(f"the cache {self.folder} does not take all results ({error})")

    def distrust(self, key: str, error: Exception) -> None:
        """Remark that a file was of no use."""
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        name = self._path(key).name
        self._remark(f"{name} in the cache is damaged or foreign, and was made anew ({why})")

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _sweep(self) -> None:
        """Remove what killed processes were writing."""
        for path in self.folder.glob(".*.safetensors"):
            if time.time() - path.stat().st_mtime > _LEFT_OVER:
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Shelf:
    """The part of a store that holds what follows from the same things; without a store, none.

    Args:
        store: the folder.
        scope: digest of what all results here follow from.
    """

    store: Store | None = None
    scope: str = ""

    def part(self, *what: Any) -> Shelf:
        """The results that follow from further things, which are JSON values."""
        return replace(self, scope=digest(self.scope, *what)) if self.store else self

    def kept(
        self,
        what: Any,
        make: Callable[[], T],
        pack: Callable[[T], Kept | None],
        unpack: Callable[[Kept], T],
    ) -> T:
        """What was made before, or is made and kept now.

        Args:
            what: tells this result from the others here, in JSON values.
            make: computes it.
            pack: makes it what is kept; None where it is not to be kept.
            unpack: the inverse; a ValueError, KeyError or TypeError says that it cannot be.
        """
        if self.store is None:
            return make()
        key = digest(self.scope, what)
        if (found := self.store.get(key)) is not None:
            try:
                return unpack(found)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                self.store.distrust(key, error)
        made = make()
        if (packed := pack(made)) is not None:
            self.store.put(key, packed)
        return made

    @property
    def remarks(self) -> tuple[str, ...]:
        """What there is to say of the files."""
        return () if self.store is None else tuple(self.store.remarks)


NOWHERE = Shelf()
"""Keeps nothing."""


def digest(*what: Any) -> str:
    """SHA-256 of JSON values.

    Example:
        >>> digest("fc", 3) == digest("fc", 3), digest("fc", 3) == digest("fc", "3")
        (True, False)
    """
    return hashlib.sha256(text_of(what).encode()).hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """The values of a tensor as bytes, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def text_of(values: Any) -> str:
    """JSON text of values, numpy's numbers among them.

    Example:
        >>> text_of({"b": np.int64(3), "a": 0.1})
        '{"a": 0.1, "b": 3}'
    """
    return json.dumps(values, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _in_a_row(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Contiguous copies, and the order of axes of those that lie otherwise in memory: what is
    computed from them is to be the same to the last bit."""
    copies, orders = {}, {}
    for name, t in tensors.items():
        t = t.detach()
        order = sorted(range(t.ndim), key=[-step for step in t.stride()].__getitem__)
        if order != list(range(t.ndim)) and t.permute(order).is_contiguous():
            orders[name], t = order, t.permute(order)
        copies[name] = t.cpu().clone(memory_format=torch.contiguous_format)
    return copies, orders


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(text_of(header).encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(bytes_of(tensors[name]))
    return found.hexdigest()


def _read(path: Path, key: str) -> Kept:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        # copies: what is computed may go by where in memory numbers lie
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata[_KEY])
    if (header["format"], header["version"], header["key"]) != (FORMAT, VERSION, key):
        raise ValueError("it belongs to something else")
    if header.pop("sha256") != _digest(header, tensors):
        raise ValueError("its contents are not what was written")
    placed = {name: t.to(header["devices"][name]) for name, t in tensors.items()}
    return Kept(
        header["record"], {n: _as_lain(t, header["orders"].get(n)) for n, t in placed.items()}
    )


def _as_lain(tensor: Tensor, order: Sequence[int] | None) -> Tensor:
    if order is None:
        return tensor
    return tensor.permute([order.index(axis) for axis in range(tensor.ndim)])
