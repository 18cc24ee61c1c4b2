"""Every problem on every design, in every size and precision: lowrank against CVXPY.

    python benchmarks/recovery_sweep.py
    python benchmarks/recovery_sweep.py --designs gaussian tall --problems "basis pursuit" --again

Both solve the same instance, one after the other, one thread, CPU seconds: `solve` as a user calls
it, with its certificate; CVXPY with its backend for conic problems (Clarabel) at its default
tolerance of 1e-8, from the statement to the answer, stopped at a limit. What takes less than 50 ms
is run twice, and the better run counts. `worse` is how much more our objective is, relative, where
CVXPY's answer is feasible.

The JSON is written as the sweep goes, and rows that are there are not run again without `--again`.
"""

import argparse
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

import lowrank
from lowrank.sensing import (
    BPDN,
    AnalysisLasso,
    BasisPursuit,
    DantzigSelector,
    GroupLasso,
    L1Fit,
    Lasso,
    certify,
    operators,
    solve,
    total_variation,
)
from lowrank.sensing.solvers.cvx import CVXPY

RESULT = Path(__file__).parent / "results" / "recovery_sweep.json"
SIZES = {"small": (24, 64), "medium": (80, 256), "large": (200, 800)}
QUICK = 0.05
ALLOWED = 2.0


def correlated(rng, m, n):
    A = rng.standard_normal((m, n))
    for j in range(1, n):
        A[:, j] = 0.9 * A[:, j - 1] + np.sqrt(1 - 0.81) * A[:, j]
    return A / np.sqrt(m)


def identity_like(rng, m, n):
    rows = np.sort(rng.permutation(n)[:m])
    return np.eye(n)[rows] + 0.1 * rng.standard_normal((m, n)) / np.sqrt(m)


DESIGNS = {
    "gaussian": lambda rng, m, n: rng.standard_normal((m, n)) / np.sqrt(m),
    "correlated": correlated,
    "sparse": lambda rng, m, n: scipy.sparse.random(
        m, n, 0.05, format="csc", random_state=rng, data_rvs=rng.standard_normal
    ),
    "dct": lambda rng, m, n: operators.partial_dct(n, m=m, seed=0),
    "tall": lambda rng, m, n: rng.standard_normal((3 * m, m)) / np.sqrt(3 * m),
    "identity-like": identity_like,
}

PRECISIONS = ("float32", "float64", "complex64", "complex128")


def _tv(A, y, z):
    return total_variation(A, y, A.shape[1], lam=0.05 * z)


def _analysis(A, y, z):
    n = A.shape[1]
    return AnalysisLasso(A, y, np.diff(np.eye(n), 2, axis=0), 0.05 * z)


PROBLEMS = {
    "basis pursuit": lambda A, y, e, z: BasisPursuit(A, y - e),
    "bpdn": lambda A, y, e, z: BPDN(A, y, norm(e)),
    "lasso": lambda A, y, e, z: Lasso(A, y, 0.05 * z),
    "weighted": lambda A, y, e, z: BPDN(A, y, norm(e), weights=np.linspace(0.5, 2, A.shape[1])),
    "non-negative": lambda A, y, e, z: BPDN(A, y, norm(e), lower=0),
    "boxed": lambda A, y, e, z: BPDN(A, y, norm(e), lower=-1.5, upper=1.5),
    "boxed pursuit": lambda A, y, e, z: BasisPursuit(A, y - e, lower=-1.5, upper=1.5),
    "boxed lasso": lambda A, y, e, z: Lasso(A, y, 0.05 * z, lower=-0.5, upper=0.5),
    "dantzig": lambda A, y, e, z: DantzigSelector(A, y, 0.1 * z),
    "group lasso": lambda A, y, e, z: GroupLasso(A, y, 0.1 * z, np.arange(A.shape[1]) // 4),
    "l1 fit": lambda A, y, e, z: L1Fit(A, y, 0.3 * z / norm(y)),
    "total variation": lambda A, y, e, z: _tv(A, y, z),
    "analysis": lambda A, y, e, z: _analysis(A, y, z),
}
SIGNED = ("non-negative", "boxed", "boxed pursuit", "boxed lasso")


def norm(x):
    return float(np.linalg.norm(x))


def instance(design, size, precision, name):
    """The problem as it is brought, and with its matrix for CVXPY; None where there is none."""
    rng = np.random.default_rng(0)
    m, n = SIZES[size]
    complex_ = precision.startswith("complex")
    if complex_ and name in SIGNED:
        return None
    A = DESIGNS[design](rng, m, n)
    if complex_ and design == "dct":
        A = operators.partial_fourier(n, m=m, seed=0)
    elif complex_:
        A = A + 1j * DESIGNS[design](rng, m, n)
    if design != "dct":
        A = A.astype(precision)
    m, n = A.shape
    x = np.zeros(n, complex if complex_ else float)
    support = rng.permutation(n)[: max(2, m // 10)]
    x[support] = np.clip(rng.standard_normal(support.size), -1.4, 1.4)
    if complex_:
        x[support] *= np.exp(2j * np.pi * rng.random(support.size))
    if name == "non-negative":
        x = np.abs(x)
    if name in ("total variation", "analysis"):
        x = np.cumsum(x) / 4
    clean = A @ x
    e = rng.standard_normal(m) * 0.02 * norm(clean) / np.sqrt(m)
    y = (clean + e).astype(precision)
    e = e.astype(precision)
    if name in ("basis pursuit", "boxed pursuit"):
        y, e = clean.astype(precision), np.zeros(m, precision)
    if name == "l1 fit":
        y[:: max(4, m // 6)] += norm(clean) / np.sqrt(m) * 3
    z = float(np.abs(A.conj().T @ y if design != "dct" else A.H @ y).max())
    matrix = A.toarray() if design == "sparse" else A.to_dense() if design == "dct" else A
    return (lambda: PROBLEMS[name](A, y, e, z)), (lambda: PROBLEMS[name](matrix, y, e, z))


def timed(run):
    begin = time.process_time()
    found = run()
    return found, time.process_time() - begin


def row(design, size, precision, name, limit):
    made = instance(design, size, precision, name)
    if made is None:
        return None
    brought, formed = made
    found, ours = timed(lambda: solve(brought(), time_limit=100 * limit))
    if ours < QUICK:
        ours = min(ours, timed(lambda: solve(brought()))[1])
    problem = formed()
    backend = CVXPY("CLARABEL", tol=1e-6, time_limit=limit)  # asks for 1e-8
    theirs, seconds = timed(lambda: backend.solve(problem))
    if seconds < QUICK:
        seconds = min(seconds, timed(lambda: backend.solve(formed()))[1])
    reference = certify(problem, theirs.coefficients, theirs.dual, theirs.analysis_dual)
    told = {"status": found.status.name, "gap": found.gap, "infeasibility": found.infeasibility}
    scale = max(abs(reference.objective), float(problem.gap_floor.sum()), 1e-300)
    worse = (found.objective - reference.objective) / scale
    return {
        "design": design, "size": size, "precision": precision, "problem": name,
        "seconds": ours, "cvxpy_seconds": seconds, "ratio": ours / seconds, **told,
        "solver": found.solver, "worse": worse if reference.infeasibility < 1e-6 else None,
        "cvxpy_gap": reference.gap, "cvxpy_status": theirs.status.name,
    }  # fmt: skip


def missed(r):
    """What of the bar a row misses."""
    slow = r["cvxpy_seconds"] > QUICK and r["ratio"] > ALLOWED
    worse = r["worse"] is not None and r["worse"] > 1e-6
    short = r["status"] not in ("OPTIMAL", "INFEASIBLE")
    return [word for word, true in (("slow", slow), ("worse", worse), ("short", short)) if true]


def summary(rows):
    """A line for each problem: the worst and the median ratio where CVXPY takes over 50 ms."""
    print("| problem | instances | median ratio | worst ratio | where | short |")
    print("|---|---|---|---|---|---|")
    for name in PROBLEMS:
        own = [r for r in rows if r["problem"] == name]
        long = [r for r in own if r["cvxpy_seconds"] > QUICK]
        short = sum("short" in missed(r) or "worse" in missed(r) for r in own)
        if not long:
            continue
        worst = max(long, key=lambda r: r["ratio"])
        where = f"{worst['design']}, {worst['size']}, {worst['precision']}"
        median = float(np.median([r["ratio"] for r in long]))
        print(f"| {name} | {len(own)} | {median:.2g} | {worst['ratio']:.2g} | {where} | {short} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS))
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS))
    parser.add_argument("--limit", type=float, default=5.0, help="seconds for CVXPY")
    parser.add_argument("--again", action="store_true", help="run rows that are there")
    parser.add_argument("--show", action="store_true", help="print what is there, and end")
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    done = {(r["design"], r["size"], r["precision"], r["problem"]): r for r in rows}
    wanted = [
        (d, s, p, q)
        for s in options.sizes
        for q in options.problems
        for d in options.designs
        for p in options.precisions
    ]
    solve(BasisPursuit(np.eye(2, 3), np.ones(2)), "cvxpy")  # imports
    for key in [] if options.show else wanted:
        if key in done and not options.again:
            continue
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            new = row(*key, options.limit)
        if new is None:
            continue
        done[key] = new
        shown = f"{new['seconds']:.3f} / {new['cvxpy_seconds']:.3f} s = {new['ratio']:.2f}"
        print(*key, shown, new["status"], new["solver"], *missed(new), flush=True)
        write(done, options.limit)
    summary(list(done.values()))


def write(done, limit):
    order = {name: i for i, name in enumerate([*SIZES, *PROBLEMS, *DESIGNS, *PRECISIONS])}
    parts = ("size", "problem", "design", "precision")
    rows = sorted(done.values(), key=lambda r: [order[r[k]] for k in parts])
    versions = {name: version(name) for name in ("cvxpy", "clarabel", "numpy", "scipy")}
    versions["lowrank"] = lowrank.__version__
    head = {"versions": versions, "machine": platform.machine(), "threads": 1, "seed": 0,
            "limit_seconds": limit}  # fmt: skip
    RESULT.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
