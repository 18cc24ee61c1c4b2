"""What the benchmarks of sparse recovery share: one thread, and one form of record."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """A single thread for linear algebra, and no warnings of peers that do not converge."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(
    out: Path | None, rows: Sequence[dict[str, Any]], packages: Sequence[str], **more: Any
) -> None:
    """Write the rows, and what they were measured with; nothing where `out` is None."""
    if out is None:
        return
    record = {
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
        "threads": 1,
        **more,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": list(rows),
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
