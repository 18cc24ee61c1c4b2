"""Where the matrix of a product pays: a dense matrix in a basis, formed or by its factors.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/formed_products.py --out benchmarks/results/formed_products.json

A LASSO in the DCT basis, once from the formed matrix by the exact solver, once matrix-free by FISTA
to a gap of 1e-6; CPU seconds of one thread, and the memory taken beyond the measurement matrix.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import tracemalloc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.sensing import Lasso, bases, operators, solve, sparse_signal

SIZES = [(256, 1024), (512, 4096), (1024, 8192), (2048, 16384), (4096, 32768)]


def measured(m: int, n: int) -> list[dict[str, Any]]:
    """One instance both ways."""
    rng = np.random.default_rng(0)
    G, Psi = rng.standard_normal((m, n)), bases.dct(n)
    product = operators.from_matrix(G) @ Psi
    free = operators.from_functions((m, n), product.forward, product.adjoint)
    y = product @ sparse_signal(n, max(2, m // 25), seed=1)
    y = y + 0.01 * np.linalg.norm(y) / np.sqrt(m) * rng.standard_normal(m)
    lam = 0.05 * float(np.abs(product.H @ y).max())
    rows = []
    for way, A, solver in (("formed", product, "exact_l1"), ("matrix-free", free, "fista")):
        tracemalloc.start()
        begin = time.process_time()
        found = solve(Lasso(A, y, lam), solver, tol=1e-6)
        seconds = time.process_time() - begin
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        figures = {"cpu_seconds": round(seconds, 3), "gap": found.gap, "mebibytes": peak >> 20}
        rows.append({"m": m, "n": n, "way": way, "status": found.status.name, **figures})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure all sizes and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    rows = [row for m, n in SIZES for row in measured(m, n)]
    versions = {name: version(name) for name in ("numpy", "scipy")} | {
        "python": platform.python_version()
    }
    record = {"versions": versions, "threads": 1, "seed": 0, "device": "cpu", "results": rows}
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
