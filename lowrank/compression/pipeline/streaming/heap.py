"""Memory that was freed goes back to the system, so that block after block takes the same."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """glibc's `malloc_trim`; None where the C library has none."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no such library: on Windows, say
        return None


def give_back() -> None:
    """Return the pages that nothing lives on.

    glibc keeps what is freed between live parts of its heap, and the gaps that a block's moments
    and factors leave do not fit those of the next one: memory would creep, by up to 15 MB a block.
    """
    if (trim := _trim()) is not None:
        trim(0)
