"""`python -m lowrank` is the command `lowrank`."""

from __future__ import annotations

from lowrank.cli import main

main(prog_name="lowrank")
