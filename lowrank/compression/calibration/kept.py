"""What calibration found, as it is kept in a store."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from lowrank.compression.calibration.calibrate import Calibrated
from lowrank.compression.calibration.moments import Moments
from lowrank.store import Kept

LIMIT = 1 << 30
"""Most bytes of moments that are kept; of a model with more, calibrating again is three passes
over the examples."""


_APART = ("layers", "outputs")
"""What is written otherwise, and what is computed again."""


def pack(found: Calibrated) -> Kept | None:
    """The record and the tensors of moments; None where they are too large to keep."""
    tensors = {
        f"{name} {part}": t for name, m in found.layers.items() for part, t in _tensors(m).items()
    }
    if sum(t.numel() * t.element_size() for t in tensors.values()) > LIMIT:
        return None
    record = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in _APART}
    layers = [[name, m.n, m.seen] for name, m in found.layers.items()]
    return Kept({**record, "layers": layers}, tensors)


def unpack(kept: Kept) -> Calibrated:
    """The inverse of `pack`."""
    layers = {
        name: Moments(n=n, seen=seen, **_parts(name, kept))
        for name, n, seen in kept.record["layers"]
    }
    rest: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in kept.record.items()
    }
    rest["layers"] = layers
    return Calibrated(**rest)


def _tensors(moments: Moments) -> dict[str, Tensor]:
    values = {f.name: getattr(moments, f.name) for f in fields(moments)}
    return {name: v for name, v in values.items() if isinstance(v, Tensor)}


def _parts(name: str, kept: Kept) -> dict[str, Any]:
    parts = [f.name for f in fields(Moments)]
    return {p: kept.tensors[key] for p in parts if (key := f"{name} {p}") in kept.tensors}
