"""Nothing imports a floor above its own, and no files import in a circle."""

import ast
from collections import Counter

import pytest

from docs.import_graph import (
    FLOOR,
    FLOORS,
    between_rooms,
    circles,
    graph,
    imported,
    modules,
    room,
)

HALVES = ("compression", "sensing")
MEETING = "lowrank.compression.planning.selection.scores"
MOST_FILES = 12


@pytest.fixture(scope="module")
def arrows():
    return graph()


def test_every_module_stands_in_a_room(arrows):
    strangers = sorted(m for m in arrows if room(m) not in FLOOR)
    assert not strangers


def test_every_room_has_modules(arrows):
    assert {room(m) for m in arrows} == {r for rooms in FLOORS for r in rooms}


def test_no_arrow_runs_up(arrows):
    rooms = between_rooms(arrows).items()
    up = {(a, b): used for (a, b), used in rooms if FLOOR[a] < FLOOR[b]}
    assert not up


def test_no_files_import_in_a_circle(arrows):
    assert not circles(arrows)


def test_no_rooms_import_in_a_circle(arrows):
    rooms = {room(m): {} for m in arrows}
    for source, target in between_rooms(arrows):
        rooms[source][target] = 1
    assert not circles(rooms)


def test_no_wings_of_sensing_import_in_a_circle(arrows):
    """Folders among themselves, and folders with the files beside them."""
    folders = ("sensing.solvers", "sensing.problems", "sensing.operators", "cli")

    def wing(module):
        inside = module.removeprefix("lowrank.")
        return next((f for f in folders if inside.startswith(f + ".") or inside == f), inside)

    wings = {wing(m): {} for m in arrows if "sensing" in m}
    for source, targets in arrows.items():
        for target in targets:
            a, b = wing(source), wing(target)
            if a in wings and b in wings and a != b and source != "lowrank.sensing":
                wings[a][b] = 1
    assert not circles(wings)


def test_the_halves_meet_in_one_file_alone(arrows):
    """Channels are selected by the sparse solvers; nothing else of one half knows the other."""
    across = [
        line.split(":")[0]
        for (a, b), used in between_rooms(arrows).items()
        if {a.split(".")[0], b.split(".")[0]} == set(HALVES)
        for line in used
    ]
    assert set(across) == {MEETING}


def test_compression_has_its_rooms_and_none_is_crowded(arrows):
    """Eight rooms and the pictures; folders inside a room count apart."""
    folders = Counter(
        str(path.parent.relative_to(path.parents[len(path.parts) - 2]))
        for module, path in modules().items()
        if module.startswith("lowrank.compression.") and path.name != "__init__.py"
    )
    rooms = {room(m) for m in arrows if m.startswith("lowrank.compression.")}
    assert len(rooms - {"compression.pictures"}) == 8
    assert max(folders.values()) <= MOST_FILES, folders


@pytest.mark.parametrize(
    "code",
    [
        "import lowrank.errors",
        "import lowrank.errors as e",
        "from lowrank.errors import LowRankError",
        "from lowrank import errors",
        "def f():\n    from lowrank.errors import LowRankError",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lowrank import errors",
        "try:\n    import lowrank.errors\nexcept ImportError:\n    pass",
    ],
)
def test_an_import_is_seen_wherever_it_stands(code):
    assert [m for m, _ in imported(ast.parse(code), modules())] == ["lowrank.errors"]


def test_a_circle_is_seen():
    ring = {"a": {"b": 1}, "b": {"c": 1}, "c": {"a": 1}, "d": {"a": 1}}
    assert circles(ring) == [["a", "b", "c"]]
    assert circles({"a": {"b": 1, "c": 1}, "b": {"c": 1}, "c": {}}) == []
