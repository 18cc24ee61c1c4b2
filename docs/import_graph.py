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
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "docs" / "assets" / "import_graph.svg"

FLOORS = (
    ("lowrank", "plots"),
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
"""The rooms, top to bottom. `lowrank`, `plots` and `compression` are the faces alone."""

GROUND = (
    "atomic",
    "drawing",
    "errors",
    "html_page",
    "linalg",
    "progress",
    "status",
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


def between_rooms(arrows: Mapping[str, Mapping[str, int]]) -> dict[tuple[str, str], list[str]]:
    """(room, room) -> the file-to-file arrows, as text."""
    found = defaultdict(list)
    for source, targets in arrows.items():
        for target, line in targets.items():
            if room(source) != room(target):
                found[room(source), room(target)].append(f"{source}:{line} -> {target}")
    return dict(found)


def circles(arrows: Mapping[str, Mapping[str, int]]) -> list[list[str]]:
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


def draw(path: Path) -> None:
    """The rooms as boxes, floor by floor, and an arrow where one uses another."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lowrank"
    matplotlib.rcParams["svg.fonttype"] = "none"
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    arrows = graph()
    files = defaultdict(int)
    for name in arrows:
        files[room(name)] += 1
    where = _places()
    fig, ax = plt.subplots(figsize=(11, 10))
    for (source, target), used in between_rooms(arrows).items():
        if source in _FACES or target == "ground":
            continue
        (x0, y0), (x1, y1) = where[source], where[target]
        bend = 0.0 if abs(x0 - x1) > 0.5 else 0.18 + 0.04 * abs(y0 - y1)
        ax.add_patch(
            FancyArrowPatch(
                (x0, y0 - 0.22),
                (x1, y1 + 0.22),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-|>",
                mutation_scale=9,
                linewidth=0.5 + 0.12 * min(len(used), 20),
                color="#5b7a99",
                alpha=0.75,
                zorder=1,
            )
        )
    for name, (x, y) in where.items():
        ax.add_patch(
            FancyBboxPatch(
                (x - 0.95, y - 0.2),
                1.9,
                0.4,
                boxstyle="round,pad=0.02,rounding_size=0.06",
                facecolor=_COLOUR(name),
                edgecolor="#333333",
                linewidth=0.8,
                zorder=2,
            )
        )
        label = name.removeprefix("compression.")
        ax.text(x, y, f"{label}  ({files[name]})", ha="center", va="center", fontsize=10, zorder=3)
    ax.set_xlim(-1.2, 9.2)
    ax.set_ylim(-0.6, 10.6)
    ax.axis("off")
    path.parent.mkdir(exist_ok=True)
    fig.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)


_FACES = ("lowrank", "plots", "compression")


def _COLOUR(name: str) -> str:
    if name.startswith("compression"):
        return "#dbe9f6"
    return {"sensing": "#fde5cf", "ground": "#e6e6e6", "decompositions": "#dff0d8"}.get(
        name, "#f7f7f7"
    )


def _places() -> dict[str, tuple[float, float]]:
    """The middle of each room's box."""
    return {
        "lowrank": (2.4, 10.2),
        "plots": (5.2, 10.2),
        "cli": (4.0, 9.3),
        "demos": (4.0, 8.4),
        "compression.pipeline": (2.4, 7.5),
        "compression.planning": (2.4, 6.6),
        "compression.fitting": (2.4, 5.7),
        "compression.structure": (1.0, 4.8),
        "compression.calibration": (3.8, 4.8),
        "compression.methods": (1.0, 3.6),
        "compression.gauges": (3.8, 3.6),
        "compression.network": (2.4, 2.5),
        "compression.pictures": (0.2, 1.6),
        "sensing": (7.2, 5.7),
        "decompositions": (4.6, 0.9),
        "ground": (4.6, 0.0),
    }


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
