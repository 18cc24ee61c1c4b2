"""Basis pursuit, BPDN and the posterior mean with a subsampled DCT, as a user calls it.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/large_operators.py --out benchmarks/results/large_operators.json

The rows of a case run in turns on the same data; errors against the true signal, and the relative
gap, are measured here: the gap from the solver's own dual point, scaled to be feasible. The oracle
is least squares on the true support. Times are CPU seconds of one thread. `--huge` adds n = 10^7.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import spgl1
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank import recover
from lowrank.sensing import Operator
from lowrank.sensing.operators import partial_dct

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write

# signal, n, m, k, relative noise
CASES = [
    ("gaussian", 2**18, 2**16, 8000, 0.0),
    ("sign", 2**18, 2**16, 8000, 0.0),
    ("gaussian", 2**18, 2**16, 8000, 0.01),
    ("sign", 2**18, 2**16, 8000, 0.01),
]
HUGE = ("gaussian", 10**7, 25 * 10**5, 300_000, 0.0)

Answer = tuple[np.ndarray, np.ndarray | None]


class Data:
    """One instance: operator, signal, measurements."""

    def __init__(self, case: tuple[Any, ...], seed: int) -> None:
        signal, n, m, k, noise = case
        rng = np.random.default_rng(seed)
        self.A: Operator = partial_dct(n, m=m, seed=seed)
        self.support = rng.permutation(n)[:k]
        self.x = np.zeros(n)
        values = rng.standard_normal(k)
        self.x[self.support] = np.sign(values) if signal == "sign" else values
        clean = self.A @ self.x
        e = rng.standard_normal(m)
        self.y = clean + noise * np.linalg.norm(clean) / np.linalg.norm(e) * e
        self.epsilon = float(np.linalg.norm(self.y - clean))

    def error(self, x: np.ndarray) -> float:
        return float(np.linalg.norm(x - self.x) / np.linalg.norm(self.x))

    def gap(self, x: np.ndarray, v: np.ndarray) -> float:
        """Relative duality gap, with what the residual exceeds epsilon by charged to it."""
        cap = 1 / np.abs(self.A.H @ v).max()
        size = float(np.linalg.norm(v)) * cap
        dual = cap * float(v @ self.y) - self.epsilon * size
        outside = max(float(np.linalg.norm(self.y - self.A @ x)) - self.epsilon, 0.0)
        value = float(np.abs(x).sum())
        return abs(value + outside * size - dual) / value

    def ours(self) -> Answer:
        noise = self.epsilon or None
        found = recover(self.A, self.y, noise=noise)
        return found.x, found.dual

    def mean(self) -> Answer:
        return recover(self.A, self.y, noise=self.epsilon, estimate="mean").x, None

    def by_spgl1(self) -> Answer:
        A = LinearOperator(self.A.shape, matvec=self.A.forward, rmatvec=self.A.adjoint, dtype=float)
        options = {"opt_tol": 1e-7, "bp_tol": 1e-7, "iter_lim": 3000}
        x, r, _, _ = spgl1.spgl1(A, self.y, tau=0, sigma=self.epsilon, **options)
        return np.asarray(x), np.asarray(r)

    def oracle(self) -> Answer:
        x = np.zeros_like(self.x)

        def forward(c: np.ndarray) -> np.ndarray:
            spread = np.zeros_like(self.x)
            spread[self.support] = c
            return self.A.forward(spread)

        shape = (self.y.size, self.support.size)
        restricted = LinearOperator(
            shape, matvec=forward, rmatvec=lambda r: self.A.adjoint(r)[self.support], dtype=float
        )
        x[self.support] = lsqr(restricted, self.y, atol=1e-12, btol=1e-12)[0]
        return x, None


def measure(case: tuple[Any, ...], seeds: int) -> dict[str, Any]:
    """Medians over seeds, all methods in turns."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        data = Data(case, seed)
        methods: dict[str, Callable[[], Answer]] = {"lowrank": data.ours, "spgl1": data.by_spgl1}
        if case[-1]:
            methods |= {"lowrank, mean": data.mean, "oracle": data.oracle}
        for name, method in methods.items():
            start = time.process_time()
            x, dual = method()
            row = {"cpu": time.process_time() - start, "error": data.error(x)}
            if dual is not None:
                row["gap"] = data.gap(x, dual)
            runs.setdefault(name, []).append(row)
    medians = {
        name: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for name, rows in runs.items()
    }
    row: dict[str, Any] = dict(zip(("signal", "n", "m", "k", "noise"), case, strict=True))
    row["methods"] = medians
    row["spgl1 over ours, CPU"] = medians["spgl1"]["cpu"] / medians["lowrank"]["cpu"]
    if case[-1]:
        mean, optimum = medians["lowrank, mean"]["error"], medians["lowrank"]["error"]
        row["mean's error over oracle's"] = mean / medians["oracle"]["error"]
        row["mean's error over the optimum's"] = mean / optimum
    return row


def huge() -> dict[str, Any]:
    """The largest case, once: time in products, and peak memory in vectors of length n."""
    n = HUGE[1]
    data = Data(HUGE, 0)
    data.A.adjoint(data.A.forward(data.x))
    start = time.process_time()
    data.A.adjoint(data.A.forward(data.x))
    product = (time.process_time() - start) / 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = recover(data.A, data.y)
    cpu = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **dict(zip(("signal", "n", "m", "k", "noise"), HUGE, strict=True)),
        "cpu": cpu,
        "in products": cpu / product,
        "products": found.n_products,
        "status": found.status.name,
        "gap": found.gap,
        "error": data.error(found.x),
        "vectors of length n, peak above the data": (peak - before) * 1024 / (8 * n),
        "peak of the process, GB": peak / 2**20,
    }


def show(row: dict[str, Any]) -> None:
    print(", ".join(f"{key} {row[key]}" for key in ("signal", "n", "m", "k", "noise")))
    for name, q in row.get("methods", {}).items():
        gap = f"  gap {q['gap']:.1e}" if "gap" in q else ""
        print(f"  {name:16} {q['cpu']:8.3f} s  error {q['error']:.2e}{gap}")
    print("  " + ", ".join(f"{key} {row[key]:.3g}" for key in row if " over " in key), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--huge", action="store_true")
    args = parser.parse_args()
    rows = []
    with one_thread():
        recover(partial_dct(4096, m=1024, seed=0), np.ones(1024))  # what is imported is not timed
        for case in CASES:
            rows.append(measure(case, args.seeds))
            show(rows[-1])
        if args.huge:
            rows.append(huge())
            print(rows[-1])
    packages = ("lowrank-kit", "numpy", "scipy", "spgl1")
    write(args.out, rows, packages, seeds=args.seeds)


if __name__ == "__main__":
    main()
