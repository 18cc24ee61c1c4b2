"""Safetensors files read and written tensor by tensor, so that no more than one is in memory.

What is read is copied into memory of its own: a file that is mapped would count as held.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lowrank.errors import CheckpointError

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

_NAMES = {dtype: name for name, dtype in _TYPES.items()}

_CHUNK = 1 << 24

_AGAIN = "copy or save it again"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file.

    Args:
        path: the file.
        start: its first byte.
        dtype: its type.
        shape: its shape.
    """

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Its values, in memory of their own.

        Raises:
            CheckpointError: the file cannot be read, or ends too early.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if not tensor.numel():
            return tensor
        view = raw(tensor)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.start)
                done = 0
                while done < len(view) and (got := file.readinto(view[done:])):
                    done += got
        except OSError as error:
            raise CheckpointError(str(self.path), f"cannot be read ({error})", _AGAIN) from error
        if done < len(view):
            raise CheckpointError(str(self.path), "it ends too early", _AGAIN)
        return tensor

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, a part at a time."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for start in range(0, self.nbytes, _CHUNK):
                yield file.read(min(_CHUNK, self.nbytes - start))


@dataclass(frozen=True)
class Made:
    """A tensor that is made when its turn comes to be written.

    Args:
        dtype: its type.
        shape: its shape.
        make: gives it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes."""
        tensor = self.make().detach().cpu().contiguous()
        assert (tensor.dtype, tuple(tensor.shape)) == (self.dtype, self.shape)
        if tensor.numel():
            yield raw(tensor)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in rows on the CPU, as they lie in memory."""
    array: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def made(tensor: Tensor) -> Made:
    """A tensor that is there already."""
    return Made(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def stored_in(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds, by name.

    Raises:
        CheckpointError: it is no whole safetensors file, or holds a type of numbers that torch
            does not compute in.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        return {name: _stored(path, 8 + length, row, size) for name, row in header.items()}
    except (OSError, ValueError, struct.error, TypeError, AttributeError, MemoryError) as error:
        if isinstance(error, CheckpointError):
            raise
        problem = f"it is no whole safetensors file ({error})"
        raise CheckpointError(str(path), problem, _AGAIN) from error


def _stored(path: Path, base: int, row: Mapping[str, Any], size: int) -> Stored:
    if row["dtype"] not in _TYPES:
        problem = f"it holds numbers of the type {row['dtype']}"
        raise CheckpointError(str(path), problem, "dequantize it to float32 or bfloat16 first")
    start, end = row["data_offsets"]
    found = Stored(path, base + start, _TYPES[row["dtype"]], tuple(row["shape"]))
    if end - start != found.nbytes or base + end > size:
        raise CheckpointError(str(path), "it ends too early", _AGAIN)
    return found


def write_tensors(path: Path, tensors: Mapping[str, Stored | Made]) -> str:
    """Write a safetensors file, one tensor after another; its SHA-256.

    Args:
        path: the file.
        tensors: where each comes from, by name.

    Raises:
        OSError: the file cannot be written.
    """
    order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))  # keeps all aligned
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in _file_of([(n, tensors[n]) for n in order]):
            digest.update(chunk)
            _put(file, chunk)
    return digest.hexdigest()


def _put(file: IO[bytes], chunk: bytes | memoryview) -> None:
    file.write(chunk)


def _file_of(rows: list[tuple[str, Stored | Made]]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, row in rows:
        start, end = end, end + row.nbytes
        header[name] = {
            "dtype": _NAMES[row.dtype], "shape": list(row.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, row in rows:
        yield from row.chunks()


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of the weights of a dense model in a folder.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        problem = "it holds no model.safetensors and no index of shards"
        advice = "load it and save it with save_pretrained, which writes safetensors"
        raise CheckpointError(str(folder), problem, advice)
    try:
        names: Iterable[str] = json.loads(index.read_text("utf-8"))["weight_map"].values()
        paths = [folder / name for name in dict.fromkeys(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(str(index), f"it is not readable ({error})", _AGAIN) from error
    if missing := [path.name for path in paths if not path.exists()]:
        raise CheckpointError(str(folder), f"{missing[0]} is missing", "copy the whole folder")
    return paths
