"""How the suite runs: one thread a process, two processes, a file's tests in one of them."""

from __future__ import annotations

import os
import random

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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let `pytest` alone take two processes, where pytest-xdist is there and `-n` is not given.

    A file's tests stay in one process, so that it makes its models and curves once. Files are
    handed out as they are listed, doctests last: small pieces, so that both end together.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    option, whole = config.option, config.args_source == config.ArgsSource.TESTPATHS
    if whole and option.numprocesses is None and not (option.usepdb or option.collectonly):
        option.numprocesses = N_WORKERS
    if option.numprocesses and option.dist == "no":
        option.dist, option.loadscopereorder = "loadfile", False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse ids that differ from process to process, or that hold a whole tensor."""
    for item in items:
        if " at 0x" in item.nodeid or len(item.nodeid) > LONGEST_ID:
            raise pytest.UsageError(f"{item.nodeid[:LONGEST_ID]}: give it a short id of its own")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start every test alike, fixtures included: tests may run in any order, in any process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  what code that draws without a generator draws from
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
