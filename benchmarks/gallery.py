"""Every problem of the gallery at its full size, solved and certified, in one table.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/gallery.py --out benchmarks/results/gallery.json

The error is that of the signal against the truth. Where there is noise, or fewer measurements than
the signal needs, it stays whatever solver is taken; the gap tells whether the problem was solved.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from lowrank.sensing import solve
from lowrank.sensing.gallery import GALLERY, Example


def measure(example: Example) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(example.problem)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    m, p = example.problem.operator.shape
    return {
        "name": example.name,
        "problem": type(example.problem).__name__,
        "m": m,
        "p": p,
        "status": found.status.name,
        "gap": found.gap,
        "infeasibility": found.infeasibility,
        "error": example.error(found.x),
        "nonzeros": int(found.support.size),
        "cpu": cpu,
        "wall": wall,
        "products": found.n_products,
        "solver": found.solver,
        "why": found.why,
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['name']:14} {row['problem']:12} {row['m']:6} x {row['p']:<6} {row['status']:9} "
        f"gap {row['gap']:.0e}  error {row['error']:.0e}  {row['cpu']:7.2f} s  {row['solver']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with threadpool_limits(1):
        for make in GALLERY.values():
            rows.append(measure(make()))
            show(rows[-1])
    record = {
        "versions": {p: version(p) for p in ("lowrank-kit", "numpy", "scipy")}
        | {"python": platform.python_version()},
        "threads": 1,
        "seed": 0,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
