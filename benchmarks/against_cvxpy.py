"""Every convex problem on degenerate data against CVXPY: how many of each type end how.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/against_cvxpy.py --out benchmarks/results/against_cvxpy.json

The problems and the judgement are those of tests/test_against_cvxpy.py: "optimal" and "infeasible"
are borne out by CVXPY, "stalled" and the like say so themselves, and all else is a fault. Types
that the results already hold are kept, so that a run can be taken up again; name some to repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_against_cvxpy import CASES, FINE, compared, made

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write


def counted(name: str, complex_: bool, problems: int) -> dict[str, Any]:
    """How the problems of a type end, and the seeds of those that end badly."""
    ends = {seed: compared(made(name, seed, complex_))[0] for seed in range(problems)}
    row: dict[str, Any] = {"type": name, "complex": complex_, "problems": problems}
    row["ends"] = dict(Counter(ends.values()).most_common())
    row["seeds"] = {seed: ended for seed, ended in ends.items() if ended not in FINE}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--types", nargs="+", default=[], help="repeat these; the rest are kept")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["rows"] if args.out and args.out.exists() else []
    rows = [row for row in rows if row["type"] not in args.types]
    held = {(row["type"], row["complex"]) for row in rows if row["problems"] >= args.problems}
    packages = ("lowrank-kit", "numpy", "scipy", "cvxpy", "clarabel")
    with one_thread():
        for case in CASES:
            if case not in held:
                rows.append(counted(*case, args.problems))
                print(rows[-1], flush=True)
                write(args.out, rows, packages)
    table = Table("type", "numbers", "problems", "ends", box=box.SIMPLE)
    for row in rows:
        ends = ", ".join(f"{count} {ended}" for ended, count in row["ends"].items())
        numbers = "complex" if row["complex"] else "real"
        table.add_row(row["type"], numbers, str(row["problems"]), ends)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
