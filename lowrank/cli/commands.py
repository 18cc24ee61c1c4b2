"""Groups of commands that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from lowrank.cli.console import fail
from lowrank.errors import Interrupted, LowRankError


class Commands(click.Group):
    """A group whose commands are modules; a user's mistake ends it with one line and code 1."""

    def __init__(self, *, modules: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self.modules = dict(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table."""
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in self.modules:
            return None
        return importlib.import_module(self.modules[cmd_name]).command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a bug keeps its traceback."""
        try:
            return super().invoke(ctx)
        except LowRankError as error:
            if ctx.find_root().params["debug"]:
                raise
            fail(str(error))
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            fail(_kept(stop))
            ctx.exit(INTERRUPTED)


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def _kept(stop: KeyboardInterrupt) -> str:
    """What an interrupt leaves, in a sentence."""
    if not isinstance(stop, Interrupted):
        return "interrupted; nothing was written"
    if stop.cache is not None:
        return f"{stop.done}; the same command goes on from there, by what {stop.cache} keeps"
    return f"{stop.done}, and nothing was kept; with --cache FOLDER the same command would go on"
