"""Exact sparse recovery with a dense matrix against spgl1, scikit-learn, celer and CVXPY.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/basis_pursuit.py --out benchmarks/results/basis_pursuit.json

All methods of an instance run in turns on the same data. Ours is `solve(problem)` from the raw
array, checks and certificate included. Gap and infeasibility of every answer are computed here, by
one function, outside of the methods; a gap above 1e-6 is shown as a failure. Times are CPU seconds
of the single thread, which a busy machine hardly disturbs; wall seconds stand beside them. A ratio
is the peer's CPU time over ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celer
import numpy as np
import spgl1
from sklearn.linear_model import lars_path

from lowrank.sensing import BPDN, BasisPursuit, Lasso, Problem, certify, solve

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write

FAILED = 1e-6  # a gap above this is no answer
Answer = tuple[np.ndarray, np.ndarray | None]  # coefficients and, where there is one, a dual point

# kind, n, m, k
EXACT = [
    ("gaussian", 1024, 256, 40),
    ("gaussian", 4096, 1024, 150),
    ("sign", 4096, 1024, 150),
    ("gaussian", 4096, 1024, 250),
    ("AR(1) 0.8", 4096, 1024, 150),
    ("AR(1) 0.95", 4096, 1024, 150),
    ("power law", 1024, 256, 1024),
    ("power law", 4096, 1024, 4096),
    ("duplicated columns", 4096, 1024, 150),
    ("m > n", 400, 1000, 40),
]
NOISY = [("gaussian", 1024, 256, 40), ("gaussian", 4096, 1024, 150), ("AR(1) 0.8", 4096, 1024, 150)]


def instance(kind: str, n: int, m: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (m, n) with columns of about norm 1, and a signal."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n)) / np.sqrt(m)
    if kind.startswith("AR"):
        rho = float(kind.split()[1])
        for j in range(1, n):
            A[:, j] = rho * A[:, j - 1] + np.sqrt(1 - rho**2) * A[:, j]
    if kind.startswith("duplicated"):
        A[:, n // 2 :] = A[:, : n // 2]
    x = np.zeros(n)
    x[rng.permutation(n)[:k]] = rng.standard_normal(k)
    if kind == "sign":
        x = np.sign(x)
    if kind == "power law":
        x = rng.choice([-1, 1], n) * rng.permutation(np.arange(1.0, n + 1)) ** -1.0
    return A, x


def ours(problem: Callable[[], Problem]) -> Answer:
    found = solve(problem())
    return found.x, found.dual


def by_spgl1(A: np.ndarray, y: np.ndarray, epsilon: float) -> Answer:
    options = {"opt_tol": 1e-9, "bp_tol": 1e-9, "iter_lim": 6000}
    x, r, _, _ = spgl1.spgl1(A, y, tau=0, sigma=epsilon, **options)
    return x, r


def by_lars(A: np.ndarray, y: np.ndarray, lam: float) -> Answer:
    return lars_path(A, y, method="lasso", alpha_min=lam / len(y))[2][:, -1], None


def by_celer(A: np.ndarray, y: np.ndarray, lam: float, **options: Any) -> Answer:
    model = celer.Lasso(alpha=lam / len(y), fit_intercept=False, **options)
    return np.asarray(model.fit(A, y).coef_), None


def by_cvxpy(problem: Callable[[], Problem]) -> Answer:
    found = solve(problem(), "cvxpy")
    return found.x, found.dual


def methods_of(
    task: str, A: np.ndarray, x: np.ndarray, seed: int
) -> tuple[Callable[[], Problem], dict[str, Callable[[], Answer]]]:
    y, (m, n) = A @ x, A.shape
    if task == "basis pursuit":
        make: Callable[[], Problem] = lambda: BasisPursuit(A, y)  # noqa: E731
        peers = {"spgl1": lambda: by_spgl1(A, y, 0.0), "lars_path": lambda: by_lars(A, y, 0.0)}
    else:
        e = np.random.default_rng(seed + 100).standard_normal(m)
        e *= 0.01 * np.linalg.norm(y) / np.linalg.norm(e)
        y = y + e
        epsilon, lam = float(np.linalg.norm(e)), 0.01 * float(np.abs(A.T @ y).max())
        if task == "BPDN":
            make = lambda: BPDN(A, y, epsilon)  # noqa: E731
            peers = {"spgl1": lambda: by_spgl1(A, y, epsilon)}
        else:
            make = lambda: Lasso(A, y, lam)  # noqa: E731
            found = solve(make())
            # spgl1 knows no lam: it gets the residual norm at which lam is met
            size = found.residual_norm
            peers = {
                "spgl1": lambda: by_spgl1(A, y, size),
                "lars_path": lambda: by_lars(A, y, lam),
                "celer": lambda: by_celer(A, y, lam),
                "celer, tol 1e-10": lambda: by_celer(A, y, lam, tol=1e-10),
            }
    if n <= 1024 and task == "basis pursuit":
        peers["cvxpy"] = lambda: by_cvxpy(make)
    return make, {"lowrank": lambda: ours(make), **peers}


def measure(task: str, kind: str, n: int, m: int, k: int, seeds: int) -> dict[str, Any]:
    """Medians over seeds, all methods in turns."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        A, x = instance(kind, n, m, k, seed)
        make, methods = methods_of(task, A, x, seed)
        best = solve(make())  # its dual point bounds every method's answer
        for _ in range(5 if n * m < 2**19 else 1):
            for name, method in methods.items():
                wall, cpu = time.perf_counter(), time.process_time()
                answer, dual = method()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                proof, own = certify(make(), answer, best.dual), certify(make(), answer, dual)
                run = {"cpu": cpu, "wall": wall, "gap": proof.gap, "off": proof.infeasibility}
                run["own gap"] = own.gap
                runs.setdefault(name, []).append(run)
    row: dict[str, Any] = {"task": task, "kind": kind, "n": n, "m": m, "k": k, "methods": {}}
    for name, of_method in runs.items():
        medians = {key: statistics.median(run[key] for run in of_method) for key in of_method[0]}
        medians["worst gap"] = max(run["gap"] for run in of_method)
        medians["worst infeasibility"] = max(run["off"] for run in of_method)
        medians["failed"] = bool(medians["gap"] > FAILED)
        row["methods"][name] = medians
    base = row["methods"]["lowrank"]["cpu"]
    row["ratios"] = {name: q["cpu"] / base for name, q in row["methods"].items()}
    return row


def show(row: dict[str, Any]) -> None:
    print(f"{row['task']}, {row['kind']} (n, m, k) = ({row['n']}, {row['m']}, {row['k']})")
    for name, q in row["methods"].items():
        note = "  no answer" if q["failed"] else ""
        print(
            f"  {name:18} {q['cpu'] * 1e3:10.1f} ms  ratio {row['ratios'][name]:8.2f}  "
            f"gap {q['gap']:.0e}  own {q['own gap']:.0e}  off {q['off']:.0e}{note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the name of the instances to run")
    args = parser.parse_args()
    cases = [("basis pursuit", *c) for c in EXACT]
    cases += [(task, *c) for task in ("BPDN", "LASSO") for c in NOISY]
    rows = []
    with one_thread():
        for case in cases:
            if args.only in " ".join(map(str, case)):
                rows.append(measure(*case, seeds=args.seeds))
                show(rows[-1])
    packages = ("lowrank-kit", "numpy", "scipy", "spgl1", "scikit-learn", "celer", "cvxpy")
    write(args.out, rows, packages, seeds=args.seeds)


if __name__ == "__main__":
    main()
