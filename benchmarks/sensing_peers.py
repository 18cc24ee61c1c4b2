"""Basis pursuit, BPDN and LASSO with a dense matrix: every peer, to the same measured accuracy.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/sensing_peers.py --out benchmarks/results/sensing_peers.json

Peers: CVXPY (Clarabel, SCS), spgl1, PyLops (FISTA, ISTA), scikit-learn, celer, skglm. Accuracy is
measured here, by one function: the distance to the optimum, from an answer with a gap below 1e-10
that is computed beforehand, relative to its length. Each method is run with tighter and tighter
settings of its own until that distance is below 1e-6; the time is that of the first setting that
gets there, alone. Where none does it is that of the most accurate one, shown as a failure. The
methods of an instance run in turns on the same data, single thread, CPU seconds, medians over the
seeds; a method that has used 20 s gets no tighter setting. A ratio is the peer's CPU time over
ours: above 1 we are faster.

What solves another form gets what it needs for free: spgl1 the residual norm of the LASSO's answer,
PyLops the step 1 / ||A||^2, celer and skglm the small penalty that stands for basis pursuit. Not
run at the larger size, where a call takes minutes: CVXPY, and coordinate descent for basis pursuit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import celer
import cvxpy as cp
import numpy as np
import pylops
import skglm
import sklearn.linear_model as sk
import spgl1

from lowrank.sensing import BPDN, BasisPursuit, Lasso, Problem, solve

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write

SIZES = [(1024, 256, 40), (4096, 1024, 150)]
ENOUGH = 1e-6
PROVEN = 1e-10
TIGHTER = (1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14, 1e-16)
SMALL_SIZE = 256  # most measurements for the peers that take minutes beyond
SMALL = 1e-5
LIMIT = 20.0  # CPU seconds, over all settings, after which no tighter one is tried
Method = Callable[[float], np.ndarray]
"""Gives coefficients for a tolerance in the method's own meaning."""


class Data:
    """One instance, and each package's way to it."""

    def __init__(self, task: str, n: int, m: int, k: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.task, self.A = task, rng.standard_normal((m, n)) / np.sqrt(m)
        x = np.zeros(n)
        x[rng.permutation(n)[:k]] = rng.standard_normal(k)
        self.y = self.A @ x
        if task != "basis pursuit":
            e = rng.standard_normal(m)
            self.y += 0.01 * np.linalg.norm(self.y) / np.linalg.norm(e) * e
        self.epsilon = (
            0.0 if task == "basis pursuit" else float(np.linalg.norm(self.y - self.A @ x))
        )
        self.lam = 0.01 * float(np.abs(self.A.T @ self.y).max())
        self.step = 1 / float(np.linalg.norm(self.A, 2)) ** 2
        found = solve(self.problem(), tol=PROVEN)
        assert found.status.ok, found
        self.answer, self.residual = found.x, found.residual_norm

    def problem(self) -> Problem:
        if self.task == "basis pursuit":
            return BasisPursuit(self.A, self.y)
        if self.task == "BPDN":
            return BPDN(self.A, self.y, self.epsilon)
        return Lasso(self.A, self.y, self.lam)

    def distance(self, x: np.ndarray) -> float:
        return float(np.linalg.norm(x - self.answer) / np.linalg.norm(self.answer))

    def ours(self, tol: float) -> np.ndarray:
        return np.asarray(solve(self.problem(), tol=tol).x)

    def by_spgl1(self, tol: float) -> np.ndarray:
        sigma = self.residual if self.task == "LASSO" else self.epsilon
        options = {"opt_tol": tol, "bp_tol": tol, "ls_tol": tol, "iter_lim": 20_000}
        return np.asarray(spgl1.spgl1(self.A, self.y, tau=0, sigma=sigma, **options)[0])

    def by_cvxpy(self, backend: str, tol: float) -> np.ndarray:
        x = cp.Variable(self.A.shape[1])
        r, size = self.A @ x - self.y, cp.norm1(x)
        forms = {
            "basis pursuit": lambda: cp.Problem(cp.Minimize(size), [r == 0]),
            "BPDN": lambda: cp.Problem(cp.Minimize(size), [cp.norm2(r) <= self.epsilon]),
            "LASSO": lambda: cp.Problem(cp.Minimize(0.5 * cp.sum_squares(r) + self.lam * size)),
        }
        names = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
        options = dict.fromkeys(names, tol) if backend == "CLARABEL" else {}
        if backend == "SCS":
            options = {"eps_abs": tol, "eps_rel": tol, "max_iters": 20_000}
        forms[self.task]().solve(solver=backend, **options)
        return np.zeros(self.A.shape[1]) if x.value is None else x.value

    def by_pylops(self, name: str, tol: float) -> np.ndarray:
        function = getattr(pylops.optimization.sparsity, name)
        A = pylops.MatrixMult(self.A)
        options = {"eps": 2 * self.lam, "alpha": self.step, "tol": tol, "niter": 20_000}
        return np.asarray(function(A, self.y, **options)[0])

    @property
    def alpha(self) -> float:
        """`lam / m`; basis pursuit is the limit of the LASSO, to 1e-6 at this small one."""
        return (self.lam if self.task == "LASSO" else SMALL * self.lam) / self.y.size

    def by_lars(self, tol: float) -> np.ndarray:
        options = {"method": "lasso", "alpha_min": self.alpha, "max_iter": 5000}
        return np.asarray(sk.lars_path(self.A, self.y, **options)[2][:, -1])

    def by_estimator(self, make: Any, tol: float) -> np.ndarray:
        model = make(alpha=self.alpha, fit_intercept=False, tol=tol)
        return np.asarray(model.fit(self.A, self.y).coef_)

    def methods(self) -> dict[str, Method]:
        found: dict[str, Method] = {"lowrank": self.ours, "spgl1": self.by_spgl1}
        if self.y.size <= SMALL_SIZE:
            found["CVXPY, Clarabel"] = lambda tol: self.by_cvxpy("CLARABEL", tol)
            found["CVXPY, SCS"] = lambda tol: self.by_cvxpy("SCS", tol)
        if self.task == "BPDN":
            return found
        if self.task == "LASSO":
            for name in ("fista", "ista"):
                found[f"PyLops, {name.upper()}"] = lambda tol, name=name: self.by_pylops(name, tol)
        found["scikit-learn, lars_path"] = self.by_lars
        if self.task == "basis pursuit" and self.y.size > SMALL_SIZE:
            return found
        estimators = {
            "scikit-learn, Lasso": lambda **o: sk.Lasso(max_iter=20_000, **o),
            "celer": lambda **o: celer.Lasso(max_iter=200, **o),
            "skglm": lambda **o: skglm.Lasso(max_iter=200, **o),
        }
        for name, make in estimators.items():
            found[name] = lambda tol, make=make: self.by_estimator(make, tol)
        return found


def first_accurate(data: Data, method: Method) -> dict[str, Any]:
    """CPU seconds and distance at the first setting that is accurate enough, or the best one."""
    best: dict[str, Any] = {"distance": float("inf")}
    spent = 0.0
    for tol in TIGHTER:
        cpu = time.process_time()
        try:
            distance, error = data.distance(method(tol)), ""
        except Exception as failure:  # a peer that breaks down is a row of the table
            distance, error = float("inf"), f"{type(failure).__name__}: {failure}"[:120]
        cpu = time.process_time() - cpu
        row = {"cpu": cpu, "distance": distance, "setting": tol, "error": error}
        best = row if distance < best["distance"] or "cpu" not in best else best
        spent += cpu
        if distance <= ENOUGH or spent > LIMIT:
            break
    return best


def measure(task: str, n: int, m: int, k: int, seeds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        data = Data(task, n, m, k, seed)
        for name, method in data.methods().items():
            method(1e-2) if seed == 0 and name in ("celer", "skglm") else None  # compiles
            runs.setdefault(name, []).append(first_accurate(data, method))
    row: dict[str, Any] = {"task": task, "n": n, "m": m, "k": k, "methods": {}}
    for name, of_method in runs.items():
        failures = sum(run["distance"] > ENOUGH for run in of_method)
        row["methods"][name] = {
            "cpu": statistics.median(run["cpu"] for run in of_method),
            "distance": max(run["distance"] for run in of_method),
            "setting": min(run["setting"] for run in of_method),
            "failures": failures,
            "error": next((run["error"] for run in of_method if run["error"]), ""),
        }
    base = row["methods"]["lowrank"]["cpu"]
    row["ratios"] = {name: q["cpu"] / base for name, q in row["methods"].items()}
    return row


def show(row: dict[str, Any], seeds: int) -> None:
    print(f"{row['task']} (n, m, k) = ({row['n']}, {row['m']}, {row['k']})")
    for name, q in row["methods"].items():
        note = f"  not accurate in {q['failures']} of {seeds} {q['error']}" if q["failures"] else ""
        print(
            f"  {name:24} {q['cpu'] * 1e3:10.1f} ms  ratio {row['ratios'][name]:9.2f}  "
            f"distance {q['distance']:.0e}  at {q['setting']:.0e}{note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the task's name and size")
    args = parser.parse_args()
    rows = []
    with one_thread():
        for size in SIZES:
            for task in ("basis pursuit", "BPDN", "LASSO"):
                if args.only in f"{task} {size[0]}":
                    rows.append(measure(task, *size, seeds=args.seeds))
                    show(rows[-1], args.seeds)
    packages = ("lowrank-kit", "numpy", "scipy", "cvxpy", "clarabel", "scs", "spgl1", "pylops")
    packages += ("scikit-learn", "celer", "skglm")
    write(args.out, rows, packages, seeds=args.seeds, accuracy=ENOUGH)


if __name__ == "__main__":
    main()
