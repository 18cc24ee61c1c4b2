"""How the suite is collected and shared out: conftest.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import conftest

TESTS = Path(__file__).parent


class Item(SimpleNamespace):
    """A test that is marked `one_in(k)`, or with k = 0 not at all."""

    k = 0

    def get_closest_marker(self, name: str) -> Any:
        return SimpleNamespace(args=(self.k,)) if name == "one_in" and self.k else None

    def add_marker(self, mark: Any) -> None:
        self.marked = mark.name


def _items(*nodeids: str, k: int = 0) -> list[Any]:
    return [Item(nodeid=nodeid, k=k) for nodeid in nodeids]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
def test_one_case_in_so_many_runs_by_default(k: int) -> None:
    names = [f"{a}-{b}-{c}" for a in "abcde" for b in "fghij" for c in ("0", "1", "2", "3")]
    items = _items(*(f"tests/test_a.py::test_f[{name}]" for name in names), k=k)
    conftest.pytest_collection_modifyitems(items)
    kept = [item.nodeid for item in items if not hasattr(item, "marked")]
    assert {item.marked for item in items if hasattr(item, "marked")} <= {"slow"}
    assert abs(len(kept) - len(names) / max(k, 1)) < (1 if k < 2 else 15)
    for place, letter in ((2, c) for c in "0123"):  # no parameter goes with the lot
        assert any(n[:-1].split("[")[1].split("-")[place] == letter for n in kept)


@pytest.mark.parametrize(
    "nodeid",
    ["tests/test_a.py::test_f[<function f at 0x7f5a>]", f"test_a.py::test_f[{'1.0, ' * 50}]"],
    ids=["address", "tensor"],
)
def test_ids_with_an_address_or_a_whole_tensor_are_refused(nodeid: str) -> None:
    with pytest.raises(pytest.UsageError, match="give it a short id of its own"):
        conftest.pytest_collection_modifyitems(_items("test_a.py::test_g", nodeid))


def test_ids_just_short_enough_are_taken() -> None:
    short = "test_a.py::".ljust(conftest.LONGEST_ID, "f")
    conftest.pytest_collection_modifyitems(_items(short))
    with pytest.raises(pytest.UsageError):
        conftest.pytest_collection_modifyitems(_items(short + "f"))


def test_long_files_come_first_and_doctests_last() -> None:
    long, longer = conftest.LONGEST_FIRST[1], conftest.LONGEST_FIRST[0]
    given = ["tests/test_a.py::b", f"tests/{long}::a", f"tests/{longer}::b", f"tests/{longer}::a"]
    items = _items(*given, "lowrank/atomic.py::lowrank.atomic.written")
    conftest.pytest_collection_modifyitems(items)
    found = [item.nodeid for item in items]
    assert found == [given[2], given[3], given[1], given[0], items[-1].nodeid]


def test_files_on_the_clock_share_a_process_and_others_have_their_own() -> None:
    scopes = {conftest.scope_of(f"tests/{name}::test_f[a::b]") for name in conftest.ON_THE_CLOCK}
    assert scopes == {"clock"}
    assert conftest.scope_of("tests/test_a.py::test_f") == "tests/test_a.py"
    assert conftest.scope_of("lowrank/atomic.py::lowrank.atomic") == "lowrank/atomic.py"


def test_the_files_that_are_named_are_there() -> None:
    named = [*conftest.LONGEST_FIRST, *conftest.ON_THE_CLOCK]
    assert [name for name in named if not (TESTS / name).is_file()] == []
    assert len(set(conftest.LONGEST_FIRST)) == len(conftest.LONGEST_FIRST)


@pytest.mark.parametrize("worker", [False, True])
def test_a_worker_starts_no_workers(monkeypatch: pytest.MonkeyPatch, worker: bool) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    option = SimpleNamespace(numprocesses=None, usepdb=False, collectonly=False, dist="no")
    manager = SimpleNamespace(hasplugin=lambda name: True)
    kinds = pytest.Config.ArgsSource
    config: Any = SimpleNamespace(
        pluginmanager=manager, option=option, args_source=kinds.TESTPATHS, ArgsSource=kinds
    )
    conftest.pytest_cmdline_main(config)
    assert option.numprocesses == (None if worker else conftest.N_WORKERS)
