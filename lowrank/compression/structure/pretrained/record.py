"""What stands in a folder's `config.json`, as transformers' `quantization_config`.

The plans say how to build the factors, and the digests what the files hold: a folder that
was altered, mixed with another or copied in part is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank.compression.structure.plan import Plan
from lowrank.errors import CheckpointError, PlanError

METHOD, VERSION = "lowrank", 1

CONFIG = "config.json"

WEIGHTS, INDEX = "lowrank.safetensors", "lowrank.safetensors.index.json"
"""Not the names that transformers looks for: without the quantizer, it finds no weights here."""

_CHUNK = 1 << 24


@dataclass(frozen=True)
class Record:
    """How a compressed model is built, and the digests of its weights.

    Args:
        plans: the plans that it has been through, in their order, each with the name of the
            part that it is for ("" for the whole).
        files: the file names of the weights -> SHA-256 of each.
    """

    plans: tuple[tuple[str, Plan], ...]
    files: Mapping[str, str]

    @property
    def entry(self) -> str:
        """The file that leads to all weights."""
        return WEIGHTS if set(self.files) == {WEIGHTS} else INDEX

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values, with a digest over them."""
        values = {
            "quant_method": METHOD,
            "version": VERSION,
            "plans": [{"part": part, "plan": plan.to_dict()} for part, plan in self.plans],
            "files": dict(self.files),
        }
        return values | {"sha256": _digest(values)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """The record of JSON values.

        Raises:
            CheckpointError: they are not those of a record that this release reads.
        """
        values = dict(data)
        if values.get("version") != VERSION:
            problem = f"version {values.get('version')!r} is not {VERSION}"
            raise CheckpointError(CONFIG, problem, "save the model with this release")
        if values.pop("sha256", None) != _digest(values):
            raise CheckpointError(CONFIG, "its plan is not what was saved", "copy or save it again")
        try:
            plans = [(str(row["part"]), Plan.from_dict(row["plan"])) for row in values["plans"]]
            return cls(tuple(plans), {str(k): str(v) for k, v in values["files"].items()})
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"its plan is not readable ({type(error).__name__}: {error})"
            raise CheckpointError(CONFIG, problem, "save the model again") from error
        except PlanError as error:
            problem = f"its plan is not readable ({error.where}: {error.problem})"
            raise CheckpointError(CONFIG, problem, error.advice) from error

    def check_files(self, paths: Sequence[Path]) -> None:
        """Refuse files that are not those that were written.

        Raises:
            CheckpointError: one is missing, foreign, or altered.
        """
        found = {path.name: path for path in paths}
        for name in dict.fromkeys([*self.files, *found]):
            if name not in found or name not in self.files:
                what = "is missing" if name in self.files else "is not of this model"
                raise CheckpointError(name, f"it {what}", "copy or save the whole folder again")
            if file_digest(found[name]) != self.files[name]:
                problem = "its contents are not what was saved"
                raise CheckpointError(str(found[name]), problem, "copy or save it again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 over JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
