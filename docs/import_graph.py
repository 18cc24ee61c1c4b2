"""Read every import of the package, and draw which room uses which.

    python docs/import_graph.py          # writes docs/assets/import_graph.svg
    python docs/import_graph.py --list   # prints the arrows between rooms, with their files

Every import statement counts: at the top of a file, inside a function, and under
`TYPE_CHECKING`. `tests/test_floors.py` checks what is read here.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Arrows: TypeAlias = Mapping[str, Mapping[str, int]]

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "docs" / "assets" / "import_graph.svg"

FLOORS = (
    ("lowrank", "plots", "transformers", "evaluate"),
    ("cli",),
    ("demos",),
    ("compression",),
    ("compression.pipeline",),
    ("compression.planning",),
    ("compression.fitting",),
    ("compression.structure", "compression.calibration"),
    ("compression.methods", "compression.gauges"),
    ("compression.network",),
    ("compression.pictures",),
    ("sensing",),
    ("decompositions",),
    ("ground",),
)
"""The rooms, top to bottom. `lowrank`, `plots`, `transformers`, `evaluate` and `compression` are
the faces alone."""

GROUND = (
    "atomic",
    "drawing",
    "errors",
    "html_page",
    "linalg",
    "progress",
    "status",
    "store",
    "tables",
    "version",
)
"""The files that know neither half."""

FLOOR = {room: -level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package -> its file."""
    found = {}
    for path in sorted((ROOT / "lowrank").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room of a module: `lowrank.compression.methods.cp` is in `compression.methods`."""
    _, *inside = module.split(".")
    if not inside or inside == ["__main__"]:
        return "lowrank"
    if inside[0] in GROUND:
        return "ground"
    if inside[0] == "compression" and len(inside) > 1:
        return ".".join(inside[:2])
    return inside[0]


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """The modules of the package that a file imports, wherever it does, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name in known:
                    yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                target = inner if inner in known else node.module
                if target in known:
                    yield target, node.lineno


def graph() -> dict[str, dict[str, int]]:
    """Module -> the modules that it imports -> the first line that does."""
    known = modules()
    arrows: dict[str, dict[str, int]] = {}
    for name, path in known.items():
        arrows[name] = {}
        for target, line in imported(ast.parse(path.read_text(encoding="utf-8")), known):
            if target != name:
                arrows[name].setdefault(target, line)
    return arrows


def between_rooms(arrows: Arrows) -> dict[tuple[str, str], list[str]]:
    """(room, room) -> the file-to-file arrows, as text."""
    found = defaultdict(list)
    for source, targets in arrows.items():
        for target, line in targets.items():
            if room(source) != room(target):
                found[room(source), room(target)].append(f"{source}:{line} -> {target}")
    return dict(found)


def circles(arrows: Arrows) -> list[list[str]]:
    """The groups of nodes that reach one another (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in arrows[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            cut = stack.index(node)
            group, stack[cut:] = stack[cut:], []
            if len(group) > 1:
                found.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return found


def reduced(arrows: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """The arrows that do not follow from others: the transitive reduction."""

    def reach(node: str) -> set[str]:
        return set().union(*({n} | reach(n) for n in arrows[node]))

    return {
        (a, b)
        for a, below in arrows.items()
        for b in below
        if not any(b in reach(other) for other in below - {b})
    }


def draw(path: Path) -> None:
    """The staircase of rooms, and beside it the number of imports from room to room."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lowrank"
    import matplotlib.pyplot as plt

    arrows = graph()
    used = {pair: len(lines) for pair, lines in between_rooms(arrows).items()}
    fig, (top, below) = plt.subplots(2, 1, figsize=(9, 15.5), height_ratios=(1, 1.15))
    _staircase(top, arrows, used)
    _matrix(below, used)
    fig.tight_layout()
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)


def _staircase(ax: Any, arrows: Arrows, used: Mapping[tuple[str, str], int]) -> None:
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    files = Counter(room(name) for name in arrows)
    below = {r: {b for a, b in used if a == r} - {r} for r in FLOOR}
    for source, target in sorted(reduced(below)):
        (x0, y0), (x1, y1) = _PLACES[source], _PLACES[target]
        style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": "#456882", "zorder": 1}
        ax.add_patch(FancyArrowPatch((x0, y0 - 0.2), (x1, y1 + 0.2), **style))
    for name, (x, y) in _PLACES.items():
        style = {"boxstyle": "round,pad=0.02,rounding_size=0.06", "zorder": 2}
        colour = _COLOURS.get(name.split(".")[0], "#f7f7f7")
        ax.add_patch(FancyBboxPatch((x - 0.9, y - 0.2), 1.8, 0.4, fc=colour, ec="#333333", **style))
        label = f"{name.removeprefix('compression.')}  {files[name]}"
        ax.text(x, y, label, ha="center", va="center", fontsize=11, zorder=3)
    ax.set(xlim=(-1.1, 8.1), ylim=(-0.1, 10.5))
    ax.axis("off")
    ax.set_title("Rooms, with their number of files;\narrows that follow from others are left out")


def _matrix(ax: Any, used: Mapping[tuple[str, str], int]) -> None:
    rooms = list(FLOOR)
    names = [r.removeprefix("compression.") for r in rooms]
    for (source, target), n in used.items():
        x, y = rooms.index(target), rooms.index(source)
        colour = "#9ecae1" if FLOOR[source] >= FLOOR[target] else "#d7301f"
        ax.add_patch(_cell(x, y, colour))
        ax.text(x, y, str(n), ha="center", va="center", fontsize=10)
    ax.plot([-0.5, len(rooms) - 0.5], [-0.5, len(rooms) - 0.5], color="#888888", lw=1)
    ax.set(xlim=(-0.5, len(rooms) - 0.5), ylim=(len(rooms) - 0.5, -0.5))
    ax.set_xticks(range(len(rooms)), names, rotation=60, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(rooms)), names)
    ax.tick_params(length=0)
    ax.set_aspect("equal")
    ax.set_title("How many imports of the row's files go to the column's:\nnone below the diagonal")


def _cell(x: int, y: int, colour: str) -> Any:
    """One cell of the matrix."""
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white")


_COLOURS = {
    "compression": "#dbe9f6",
    "sensing": "#fde5cf",
    "decompositions": "#dff0d8",
    "ground": "#e6e6e6",
}

_PLACES = {
    "lowrank": (3.2, 10.2),
    "evaluate": (5.1, 10.2),
    "transformers": (-0.1, 10.2),
    "plots": (7.0, 10.2),
    "cli": (3.2, 9.3),
    "demos": (3.2, 8.4),
    "compression": (1.1, 8.4),
    "compression.pipeline": (2.0, 7.4),
    "compression.planning": (2.0, 6.5),
    "compression.fitting": (2.0, 5.6),
    "compression.structure": (0.3, 4.6),
    "compression.calibration": (2.8, 4.6),
    "compression.methods": (0.3, 3.6),
    "compression.gauges": (3.9, 3.7),
    "compression.network": (2.4, 2.5),
    "compression.pictures": (5.2, 2.0),
    "sensing": (7.1, 5.6),
    "decompositions": (3.4, 1.2),
    "ground": (3.4, 0.2),
}
"""The middle of each room's box."""


def main() -> None:
    """Draw, or list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the arrows between rooms")
    if parser.parse_args().list:
        for (source, target), used in sorted(between_rooms(graph()).items()):
            up = "" if FLOOR[source] >= FLOOR[target] else "   UP"
            sys.stdout.write(f"{source} -> {target}{up}\n" + "".join(f"    {u}\n" for u in used))
        return
    draw(ASSET)


if __name__ == "__main__":
    main()
