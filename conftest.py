"""How the suite runs: one thread a process, two processes, a file's tests in one of them."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Iterator
from typing import Any

THREADS = ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM", "NUMEXPR")
for _name in THREADS:  # before numpy loads; oversubscribed threads make a small suite slow
    os.environ[f"{_name}_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# No deadline: another process may hold the core. No database: processes would share its files.
hypothesis.settings.register_profile("suite", deadline=None, database=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, database=None, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "suite")

N_WORKERS = 2
LONGEST_ID = 240

ON_THE_CLOCK = ("test_cli.py", "test_latency.py", "test_profile.py")
"""They time what they run, so that no two of them run side by side."""

LONGEST_FIRST = (
    *ON_THE_CLOCK,
    "test_docs.py",
    "test_zoo.py",
    "test_hard_cases.py",
    "test_new_methods.py",
    "test_held_out.py",
    "test_sequential.py",
    "test_units.py",
    "test_refine.py",
    "test_compress.py",
    "test_calibrate.py",
    "test_grammar.py",
    "test_finetune.py",
)
"""The files with the most to do, in their order: begun first, so that processes end together."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let `pytest` alone take two processes, where pytest-xdist is there and `-n` is not given.

    A file's tests stay in one process, so that it makes its models and curves once. Files are
    handed out as they are ordered below, doctests last: small pieces, so that both end together.
    """
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker starts none of its own
    option, whole = config.option, config.args_source == config.ArgsSource.TESTPATHS
    if whole and option.numprocesses is None and not (option.usepdb or option.collectonly):
        option.numprocesses = N_WORKERS
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadfile", False


def _file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[2]


def scope_of(nodeid: str) -> str:
    """Name what must stay in one process: a file, or the files that look at the clock."""
    return "clock" if _file_of(nodeid) in ON_THE_CLOCK else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hand out files by `scope_of`, where tests are handed out by file at all."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByScope(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return ByScope(config, log)


def _place(item: pytest.Item) -> int:
    name = _file_of(item.nodeid)
    return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave cases to the slow suite; refuse ids that differ from process to process, or that hold
    a whole tensor; order files."""
    for item in items:
        if " at 0x" in item.nodeid or len(item.nodeid) > LONGEST_ID:
            raise pytest.UsageError(f"{item.nodeid[:LONGEST_ID]}: give it a short id of its own")
    _leave_to_slow(items)
    items.sort(key=_place)


def _leave_to_slow(items: list[pytest.Item]) -> None:
    """Mark slow, of the cases of a test that is marked `one_in(k)`, all but one in k.

    Their names draw lots, so that no parameter goes with the lot.
    """
    for item in items:
        if (mark := item.get_closest_marker("one_in")) is not None:
            lot = hashlib.blake2b(item.nodeid.encode(), digest_size=4).digest()
            if int.from_bytes(lot, "big") % mark.args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start every test alike, fixtures included: tests may run in any order, in any process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what code that draws without a generator draws from
    torch.default_generator.manual_seed(0)  # without a device, the other one formats the stack
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's own Chromium, without a window; skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no Chromium on the PATH")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
