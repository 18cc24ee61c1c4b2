"""The LASSO on the designs that people have, against celer, skglm and scikit-learn.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/lasso_designs.py --out benchmarks/results/lasso_designs.json

Designs in the shapes of benchopt's LASSO benchmark, each drawn anew (no data set is downloaded);
lam is a share of the smallest that gives zero. Accuracy is measured here, by one function, outside
the methods: the relative duality gap from the answer's own residual. Each method is run with
tighter and tighter settings of its own, powers of ten, until that gap is below 1e-10; the time is
that of the first setting that gets there, alone (a smaller lam begins with the setting of the one
before). It is run in a process of its own that is stopped after `LIMIT` times our time: "over" in
the table, and so is a peer that no setting brings there.
CPU seconds of a single thread, all methods in turns, medians. A ratio is our time over the best
peer's: below 1 we are faster.

Rows of other designs that the results already hold are kept, so that a run can be taken up again.
`--paths` compares cross-validation instead: 100 penalties, 5 folds, `LassoCV` of both packages with
their defaults; a ratio is scikit-learn's time over ours.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import celer
import numpy as np
import scipy.sparse as sp
import skglm
import sklearn.linear_model as sk
from rich import box
from rich.console import Console
from rich.table import Table

from lowrank.sensing import Lasso, certify, solve
from lowrank.sensing.estimators import LassoCV

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write

FRACTIONS = (0.5, 0.1, 0.01, 0.001)
ENOUGH = 1e-10
LIMIT = 3.0
LEAST = 1.0
"""CPU seconds that a method has at least."""

TOLS = [10.0**-k for k in range(6, 17)]
Drawn = tuple[Any, np.ndarray]


def correlated(m: int, n: int, rng: np.random.Generator) -> Drawn:
    """Neighbouring columns correlate by 0.6; a fifth of the coefficients is not zero; SNR 3."""
    A = np.asfortranarray(rng.standard_normal((m, n)))
    for j in range(1, n):
        A[:, j] = 0.6 * A[:, j - 1] + 0.8 * A[:, j]
    x = rng.standard_normal(n) * (rng.random(n) < 0.2)
    return A, noisy(A @ x, rng)


def expressions(m: int, n: int, rng: np.random.Generator) -> Drawn:
    """Standardised expressions of genes that follow thirty programs; two classes."""
    programs = rng.standard_normal((m, 30)) * np.arange(1, 31) ** -0.5
    A = programs @ rng.standard_normal((30, n)) + rng.standard_normal((m, n))
    A = (A - A.mean(axis=0)) / A.std(axis=0)
    y = np.sign(programs[:, 0] + 0.3 * rng.standard_normal(m))
    return np.asfortranarray(A), y - y.mean()


def words(m: int, n: int, density: float, rng: np.random.Generator, logs: bool = False) -> Drawn:
    """Words of Zipf's law in documents; rows of unit length, or logarithms of counts."""
    share = np.arange(1, n + 1) ** -0.7
    counts = np.minimum(rng.poisson(density * m * n * share / share.sum()) + 1, m // 2)
    column = np.repeat(np.arange(n), counts)
    row = np.concatenate([rng.choice(m, k, replace=False) for k in counts])
    values = 1.0 + rng.geometric(0.5, row.size)
    A = sp.csc_array((np.log(values), (row, column)), shape=(m, n))
    if not logs:
        sizes = np.sqrt(np.asarray(A.multiply(A).sum(axis=1)).ravel())
        A = sp.csc_array(sp.diags_array(1 / np.where(sizes > 0, sizes, 1)) @ A)
    A.indices, A.indptr = A.indices.astype(np.int32), A.indptr.astype(np.int32)
    x = np.zeros(n)
    x[rng.choice(n, n // 50, replace=False)] = rng.standard_normal(n // 50)
    y = noisy(np.asarray(A @ x), rng)
    return A, y - 3 * y.std() if logs else y


def noisy(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With noise of a third of its size."""
    e = rng.standard_normal(clean.size)
    return np.asarray(clean + np.linalg.norm(clean) / np.linalg.norm(e) / 3 * e)


DESIGNS: dict[str, Callable[[np.random.Generator], Drawn]] = {
    "simulated, rho 0.6, 500 x 5000": lambda rng: correlated(500, 5000, rng),
    "leukemia-shaped, 72 x 7129": lambda rng: expressions(72, 7129, rng),
    "text-like, 4000 x 10000": lambda rng: words(4000, 10_000, 0.002, rng),
    "text-like, 20000 x 200000": lambda rng: words(20_000, 200_000, 0.0005, rng),
    "tall, 20000 x 500": lambda rng: correlated(20_000, 500, rng),
    "finance-shaped, 4000 x 80000": lambda rng: words(4000, 80_000, 0.005, rng, logs=True),
}


class Data:
    """One instance, and each package's way to it."""

    def __init__(self, A: Any, y: np.ndarray) -> None:
        self.A, self.y = A, y

    def at(self, fraction: float) -> None:
        """Set the penalty."""
        self.lam = fraction * float(np.abs(self.A.T @ self.y).max())
        self.problem = Lasso(self.A, self.y, self.lam)

    def gap(self, x: np.ndarray) -> float:
        return certify(self.problem, x).gap

    def ours(self, tol: float) -> np.ndarray:
        return np.asarray(solve(Lasso(self.A, self.y, self.lam), tol=tol).x)

    def of(self, model: Any) -> np.ndarray:
        return np.asarray(model.fit(self.A, self.y).coef_)

    def methods(self) -> dict[str, Callable[[float], np.ndarray]]:
        """Each method from its tolerance."""
        common = {"alpha": self.lam / self.y.size, "fit_intercept": False}
        tall = self.A.shape[0] > self.A.shape[1]
        quick = {"copy_X": False, "precompute": tall, "max_iter": 10**6}
        return {
            "lowrank": self.ours,
            "celer": lambda tol: self.of(celer.Lasso(tol=tol, max_iter=1000, **common)),
            "skglm": lambda tol: self.of(skglm.Lasso(tol=tol, max_iter=1000, **common)),
            "scikit-learn": lambda tol: self.of(sk.Lasso(tol=tol, **quick, **common)),
        }


Run = dict[str, float]


def timed(method: Callable[[float], np.ndarray], tol: float, gap: Any, out: Connection) -> None:
    """CPU seconds, the mean of the runs of a fifth of a second, as clocks are coarse; the gap."""
    start, count, spent = time.process_time(), 0, 0.0
    while spent < 0.2:
        x, count = method(tol), count + 1
        spent = time.process_time() - start
    out.send({"cpu": spent / count, "gap": gap(x)})


def apart(method: Callable[[float], np.ndarray], tol: float, gap: Any, limit: float) -> Run | None:
    """`timed` in a process of its own; None where it is stopped, or breaks down."""
    here, there = multiprocessing.Pipe(duplex=False)

    def run() -> None:
        seconds = int(limit) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        timed(method, tol, gap, there)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    there.close()
    try:
        return dict(here.recv())
    except EOFError:
        return None
    finally:
        process.join()
        here.close()


def first_accurate(data: Data, name: str, limit: float, first: float) -> tuple[float, Run | None]:
    """The loosest setting that is accurate enough, and how it ran; None where none is in time."""
    method = data.methods()[name]
    for tol in [ENOUGH] if name == "lowrank" else [tol for tol in TOLS if tol <= first]:
        run = apart(method, tol, data.gap, limit)
        if run is None or run["cpu"] > limit:
            return tol, None
        if run["gap"] <= ENOUGH:
            return tol, run
    return TOLS[-1], None


def point(data: Data, repeats: int, settings: dict[str, float]) -> dict[str, Any]:
    """Medians of all methods at one penalty, in turns; keeps the settings that they took."""
    runs: dict[str, list[Run]] = {}
    limit = 600.0
    for name in data.methods():
        settings[name], run = first_accurate(data, name, limit, settings.get(name, 1.0))
        runs[name] = [] if run is None else [run]
        if name == "lowrank" and run is not None:
            limit = max(LIMIT * run["cpu"], LEAST)
    for _ in range(repeats - 1):
        for name, method in data.methods().items():
            if runs[name]:
                runs[name] += filter(None, [apart(method, settings[name], data.gap, 10 * limit)])
    found: dict[str, Any] = {}
    for name, of_method in runs.items():
        found[name] = {"setting": settings[name], "over": None if of_method else limit}
        for key in ("cpu", "gap") if of_method else ():
            found[name][key] = statistics.median(run[key] for run in of_method)
    return found


def single(
    name: str, repeats: int, seed: int, fractions: Sequence[float] = FRACTIONS
) -> Iterator[dict[str, Any]]:
    """A row for each penalty."""
    data, settings = Data(*DESIGNS[name](np.random.default_rng(seed))), dict[str, float]()
    for fraction in fractions:
        data.at(fraction)
        methods = point(data, repeats, settings)
        peers = {p: q["cpu"] for p, q in methods.items() if p != "lowrank" and "cpu" in q}
        row: dict[str, Any] = {"design": name, "lam / lam_max": fraction, "methods": methods}
        row["best peer"] = min(peers, key=peers.__getitem__) if peers else None
        if peers and "cpu" in methods["lowrank"]:
            row["ours over the best peer's"] = methods["lowrank"]["cpu"] / min(peers.values())
        yield row


def crossed(name: str, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Cross-validation over 100 penalties in 5 folds, by both packages in turns."""
    A, y = DESIGNS[name](np.random.default_rng(seed))
    makers = {
        "lowrank": lambda: LassoCV(cv=5),
        "scikit-learn": lambda: sk.LassoCV(cv=5, alphas=100, eps=1e-3),
    }
    times: dict[str, list[float]] = {kind: [] for kind in makers}
    row: dict[str, Any] = {"design": name}
    for _ in range(repeats):
        for kind, make in makers.items():
            start = time.process_time()
            model = make().fit(A, y)
            times[kind].append(time.process_time() - start)
            lam = model.lam_ if kind == "lowrank" else model.alpha_ * y.size
            row[f"{kind}, lam"], row[f"{kind}, error"] = lam, float(model.mse_path_.mean(-1).min())
    for kind, of_kind in times.items():
        row[f"{kind}, cpu"] = statistics.median(of_kind)
    row["scikit-learn's over ours"] = row["scikit-learn, cpu"] / row["lowrank, cpu"]
    yield row


def shown(row: dict[str, Any]) -> list[str]:
    """Cells of the table."""
    if "methods" not in row:
        return [row["design"], *(f"{value:.4g}" for key, value in row.items() if key != "design")]
    cells = [row["design"], f"{row['lam / lam_max']:g}"]
    for q in row["methods"].values():
        cells.append(
            f"{q['cpu']:.3f} s, {q['gap']:.0e}" if "cpu" in q else f"over {q['over']:.0f} s"
        )
    ratio = row.get("ours over the best peer's")
    return [*cells, "" if ratio is None else f"{ratio:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--paths", action="store_true", help="cross-validation instead")
    args = parser.parse_args()
    at = partial(single, fractions=args.fractions)
    measure, rows = (crossed if args.paths else at), list[dict[str, Any]]()
    packages = ("lowrank-kit", "numpy", "scipy", "celer", "skglm", "scikit-learn", "numba")
    more = {"seed": args.seed, "repeats": args.repeats, "gap": ENOUGH}
    with one_thread():
        if not args.paths:
            warm_up()
        for name in args.designs:
            found = []
            for row in measure(name, args.repeats, args.seed):
                found.append(row)
                print(*shown(row), sep=" | ", flush=True)
            rows += found
            write(args.out, kept(args.out, found) + found, packages, **more)
    table = Table(box=box.SIMPLE)
    for head in rows[0] if args.paths else ["design", "share", *rows[0]["methods"], "ratio"]:
        table.add_column(head)
    for row in rows:
        table.add_row(*shown(row))
    Console(width=140).print(table)


def warm_up() -> None:
    """What is compiled or imported at first use is not timed."""
    small = sp.random(50, 60, density=0.2, format="csc", random_state=0)
    for A in (np.asfortranarray(small.toarray()), small):
        data = Data(A, np.asarray(small @ np.ones(60)))
        data.at(0.1)
        for method in data.methods().values():
            method(1e-8)


def kept(out: Path | None, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the results that were not measured again."""
    again = {(row["design"], "methods" in row) for row in found}
    rows = json.loads(out.read_text())["rows"] if out and out.exists() else []
    return [row for row in rows if (row["design"], "methods" in row) not in again]


if __name__ == "__main__":
    main()
