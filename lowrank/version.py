"""The version, which pages, plans and the command line name."""

from __future__ import annotations

__version__ = "0.1.0"
