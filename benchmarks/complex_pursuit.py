"""Basis pursuit of complex data against the real problem of twice the size.

    python benchmarks/complex_pursuit.py

A complex Gaussian matrix of 256 x 1024 with 30 non-zeros, and a real one of 512 x 2048 with 60,
both by `recover(A, y)`, certified to 1e-8; interleaved, one thread, the median CPU time of three.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import lowrank
from lowrank import recover

RESULT = Path(__file__).parent / "results" / "complex_pursuit.json"
RUNS = 3


def instance(m, n, k, seed, complex_):
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        found = rng.standard_normal(shape)
        return found + 1j * rng.standard_normal(shape) if complex_ else found

    A, x = numbers(m, n) / np.sqrt(m), np.zeros(n, complex if complex_ else float)
    x[rng.permutation(n)[:k]] = numbers(k)
    return A, x, A @ x


def timed(A, x, y):
    begin = time.process_time()
    found = recover(A, y)
    seconds = time.process_time() - begin
    error = float(np.linalg.norm(found.x - x) / np.linalg.norm(x))
    return seconds, {"status": found.status.name, "gap": found.gap, "error": error,
                     "solver": found.solver, "products": found.n_products}  # fmt: skip


def row(seed):
    both = {
        "complex": instance(256, 1024, 30, seed, True),
        "real": instance(512, 2048, 60, seed, False),
    }
    seconds, told = {name: [] for name in both}, {}
    for _ in range(RUNS):
        for name, data in both.items():
            took, told[name] = timed(*data)
            seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seed": seed, "ratio": median["complex"] / median["real"], "seconds": median, **told}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    options = parser.parse_args()
    with threadpool_limits(1):
        timed(*instance(64, 128, 5, 0, True))
        rows = []
        for seed in options.seeds:
            rows.append(row(seed))
            print(json.dumps(rows[-1]), flush=True)
    ratios = [r["ratio"] for r in rows]
    print(f"complex / real: median {statistics.median(ratios):.2f}, largest {max(ratios):.2f}")
    head = {"lowrank": lowrank.__version__, "numpy": np.__version__, "runs": RUNS, "threads": 1,
            "machine": platform.machine()}  # fmt: skip
    RESULT.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
