"""Phase transitions of sparse recovery: the exact asymptotic curves, and experiments against them.

Coordinates are `delta = m / n` (sensing ratio) and `rho = k / m` (sparsity over measurements).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, log_ndtr

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.l1 import BasisPursuit
from lowrank.sensing.signals import Kind, sparse_signal
from lowrank.sensing.solve import solve

FORMAT = 1
"""Version of the results file."""


Recover = Callable[[Array, Array], Array]
"""From (A, y) to a recovered x; must pickle if the executor runs other processes."""


def l1_threshold(delta: float, *, nonneg: bool = False) -> float:
    """Donoho-Tanner weak threshold: the largest `rho = k / m` that L1 minimisation recovers.

        rho = max_z (1 - (c / delta) g(z)) / (1 + z^2 - c g(z)),
        g(z) = (1 + z^2) Phi(-z) - z phi(z),   c = 2, or 1 for x >= 0

    in the limit of large Gaussian matrices, for almost every support and signs.

    Args:
        delta: m / n, in (0, 1).
        nonneg: for non-negative x, with the bound in the problem.

    Returns:
        rho in (0, 1).

    Raises:
        InputError: delta not in (0, 1).

    Example:
        >>> round(l1_threshold(0.5), 4), round(l1_threshold(0.5, nonneg=True), 4)
        (0.3857, 0.5582)

    Source: Donoho, Tanner 2005; in the form of Donoho, Maleki, Montanari 2009, equation (5).
    """
    _check_delta(delta, "l1_threshold")
    c = 1.0 if nonneg else 2.0

    def negative_rho(z: float) -> float:
        # Phi(-z) through its logarithm: for small delta the maximum lies far out in the tail
        g = (1 + z * z) * math.exp(log_ndtr(-z)) - z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return -(1 - c / delta * g) / (1 + z * z - c * g)

    grid = np.linspace(0.01, 12, 400)
    start = int(np.argmin([negative_rho(z) for z in grid]))
    low, high = grid[max(start - 1, 0)], grid[min(start + 1, grid.size - 1)]
    found = minimize_scalar(
        negative_rho, bounds=(low, high), method="bounded", options={"xatol": 1e-10}
    )
    return float(-found.fun)


def bayes_threshold(delta: float) -> float:
    """Largest `rho` at which Bayes-optimal AMP recovers a Bernoulli-Gaussian signal.

    State evolution `tau^2 -> mmse(tau^2) / delta` must have no fixed point but 0:
    `mmse(tau^2) < delta tau^2` for all `tau > 0`, where mmse is that of estimating
    `(1 - eps) delta_0 + eps N(0, 1)` with `eps = rho delta` in noise of variance tau^2.

    Args:
        delta: m / n, in (0, 1).

    Returns:
        rho in (0, 1).

    Raises:
        InputError: delta not in (0, 1).

    Example:
        >>> bool(l1_threshold(0.5) < bayes_threshold(0.5) < 1)
        True

    Source: Donoho, Maleki, Montanari 2009, equation (4), with the posterior mean for eta; Krzakala
    et al. 2012, section III (spinodal).
    """
    _check_delta(delta, "bayes_threshold")

    def worst(rho: float) -> float:
        """`max over tau of mmse(tau^2) / (delta tau^2)`, minus 1."""
        eps = rho * delta

        def negative_ratio(log_tau: float) -> float:
            return -_relative_mmse(math.exp(log_tau), eps) / delta

        grid = np.linspace(-9, 3, 80)
        best = int(np.argmin([negative_ratio(t) for t in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
        found = minimize_scalar(negative_ratio, bounds=(low, high), method="bounded")
        return -float(found.fun) - 1

    return float(brentq(worst, 1e-3, 1 - 1e-9, xtol=1e-9)) if worst(1 - 1e-9) > 0 else 1.0


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def _relative_mmse(tau: float, eps: float) -> float:
    """`mmse(tau^2) / tau^2` of `(1 - eps) delta_0 + eps N(0, 1)` in noise of variance tau^2.

    With `r = t tau sqrt(1 + tau^2)`, `E var = eps / (1 + tau^2) (1 + E[(1 - pi) t^2])` under the
    non-zero part's marginal, and the odds of zero are `K exp(-t^2 / 2)`: smooth in t at any tau.
    """
    log_k = math.log((1 - eps) / eps) + 0.5 * math.log1p(1 / tau**2)
    reach = math.sqrt(2 * max(log_k, 0.0)) + 12.0
    t = reach / 2 * (NODES + 1)
    zero = expit(log_k - t**2 / 2)
    density = 2 * tau * np.exp(-((tau * t) ** 2) / 2) / math.sqrt(2 * math.pi)
    mean = float(reach / 2 * WEIGHTS @ (density * t**2 * zero))
    return eps / (1 + tau**2) * (1 + mean)


@dataclass(frozen=True, eq=False)
class PhaseTransition:
    """Successes of an experiment over a grid of `delta` and `rho`.

    Attributes:
        n: length of the signals.
        deltas: (d,) sensing ratios m / n, as they came out with whole m.
        rhos: (d, r) sparsities k / m, as they came out with whole k.
        successes: (d, r) recoveries within the tolerance.
        trials: recoveries tried at each point.
    """

    n: int
    deltas: Array
    rhos: Array
    successes: Array
    trials: int

    @property
    def fraction(self) -> Array:
        """Share of successes, (d, r)."""
        return self.successes / self.trials

    def threshold(self) -> Array:
        """The rho of 50 % success at each delta, (d,), by a logistic fit of successes on rho.

        NaN where all points succeed or all fail. A weak prior keeps the slope finite when the
        points separate.
        """
        rows = zip(self.rhos, self.successes, strict=True)
        return np.array([_half_success(rho, won, self.trials) for rho, won in rows])

    def plot(self, ax: Any = None, *, nonneg: bool = False) -> Any:
        """Success share with the fitted and the exact thresholds drawn over it.

        Args:
            ax: matplotlib axes; None makes new ones.
            nonneg: draw the non-negative curve in place of the L1 one.

        Returns:
            The matplotlib axes.
        """
        from lowrank.sensing.plots import phase_map

        grid = np.linspace(0.02, 0.98, 49)
        name = "non-negative L1" if nonneg else "L1"
        limits = {
            f"{name}, exact": (grid, [l1_threshold(d, nonneg=nonneg) for d in grid]),
            "Bayes AMP, exact": (grid, [bayes_threshold(d) for d in grid]),
        }
        label = f"share recovered of {self.trials}, n = {self.n}"
        return phase_map(
            self.deltas, self.rhos, self.fraction,
            limits=limits, half=self.threshold(), label=label, ax=ax,
        )  # fmt: skip


def basis_pursuit(A: Array, y: Array) -> Array:
    """`argmin ||x||_1 subject to A x = y`, by `lowrank.sensing.solve`."""
    return np.asarray(solve(BasisPursuit(A, y)).x)


def basis_pursuit_nonneg(A: Array, y: Array) -> Array:
    """`argmin sum(x) subject to A x = y, x >= 0`, by `lowrank.sensing.solve`."""
    return np.asarray(solve(BasisPursuit(A, y, lower=0.0)).x)


@dataclass(frozen=True)
class _Setup:
    """All that decides a trial's outcome, apart from its place in the grid."""

    n: int
    trials: int
    seed: int
    kind: Kind
    ensemble: Literal["gaussian", "rademacher"]
    tol: float


def phase_transition(
    deltas: ArrayLike,
    rhos: ArrayLike,
    *,
    n: int = 400,
    trials: int = 20,
    recover: Recover = basis_pursuit,
    kind: Kind = "gaussian",
    ensemble: Literal["gaussian", "rademacher"] = "gaussian",
    tol: float = 1e-4,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | os.PathLike[str] | None = None,
) -> PhaseTransition:
    """Recover random sparse signals over a grid of `m = delta n` and `k = rho m`.

    Every trial draws from its own seed, so neither the executor nor an interruption changes the
    answer. With `path` each point is saved as it is done, by replacing the file in one step; a
    later call with the same arguments goes on from there.

    Args:
        deltas: (d,) values of m / n in (0, 1].
        rhos: (r,) values of k / m in [0, 1], the same for each delta; or (d, r).
        n: length of the signals.
        trials: at each point.
        recover: `(A, y) -> x`, e.g. `basis_pursuit` or `basis_pursuit_nonneg`; a function that can
            be imported, if the executor runs other processes.
        kind: of the non-zeros, as in `sparse_signal`.
        ensemble: of the matrix: N(0, 1 / m) or +-1 / sqrt(m) entries.
        tol: largest `||x - x0|| / ||x0||` that counts as a success.
        seed: of all randomness.
        executor: any `concurrent.futures.Executor`, Dask's too; None runs here.
        path: JSON file with the results so far.

    Returns:
        The successes, with `fraction`, `threshold()` and `plot()`.

    Raises:
        InputError: a value out of range, or a file that belongs to another experiment.

    Example:
        >>> result = phase_transition([0.5], [0.1, 0.9], n=40, trials=3)
        >>> result.fraction.tolist()
        [[1.0, 0.0]]

    Source: Donoho, Tanner 2009 (experiments at finite n).
    """
    delta, rho = _checked_grid(deltas, rhos, n, trials, tol)
    setup = _Setup(n, trials, seed, kind, ensemble, tol)
    rows = np.maximum(1, np.rint(delta * n).astype(int))
    counts = np.rint(rho * rows[:, None]).astype(int)
    points = [(int(rows[i]), int(counts[i, j])) for i, j in np.ndindex(counts.shape)]
    store = _Store(path, {**asdict(setup), "recover": _name(recover), "points": points})
    todo = [p for p in dict.fromkeys(points) if p not in store.done]
    if executor is None:
        for m, k in todo:
            store.add(m, k, _successes(setup, recover, m, k))
    else:
        _submit(executor, setup, recover, todo, store)
    won = np.array([store.done[p] for p in points]).reshape(counts.shape)
    return PhaseTransition(n, rows / n, counts / rows[:, None], won, trials)


def _submit(
    executor: Executor,
    setup: _Setup,
    recover: Recover,
    todo: Sequence[tuple[int, int]],
    store: _Store,
) -> None:
    jobs: dict[Future[int], tuple[int, int]] = {
        executor.submit(_successes, setup, recover, m, k): (m, k) for m, k in todo
    }
    try:
        for job in as_completed(jobs):
            store.add(*jobs[job], job.result())
    except BaseException:
        for job in jobs:  # else an interrupted run would compute all the rest before it ends
            job.cancel()
        raise


def _successes(setup: _Setup, recover: Recover, m: int, k: int) -> int:
    """Number of the trials at (m, k) that are recovered."""
    return sum(_recovered(setup, recover, m, k, trial) for trial in range(setup.trials))


def _recovered(setup: _Setup, recover: Recover, m: int, k: int, trial: int) -> bool:
    rng = np.random.default_rng([setup.seed, setup.n, m, k, trial])
    if setup.ensemble == "gaussian":
        A = rng.standard_normal((m, setup.n)) / math.sqrt(m)
    else:
        A = rng.choice([-1.0, 1.0], (m, setup.n)) / math.sqrt(m)
    x = sparse_signal(setup.n, k, seed=rng, kind=setup.kind)
    error = np.linalg.norm(recover(A, A @ x) - x)
    return bool(error <= setup.tol * np.linalg.norm(x))  # False for a NaN too


class _Store:
    """Successes by (m, k), kept in a file that is whole at any moment."""

    def __init__(self, path: str | os.PathLike[str] | None, setup: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.setup = json.loads(json.dumps({"format": FORMAT, **setup}))
        self.done: dict[tuple[int, int], int] = {}
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        try:
            saved = json.loads(path.read_text())
            changed = [k for k, v in self.setup.items() if saved["setup"].get(k) != v]
            done = {(int(m), int(k)): int(won) for m, k, won in saved["successes"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"is not a phase transition file ({type(error).__name__}: {error})"
            raise InputError(str(path), problem, "move it away, or give another path") from error
        if changed:
            problem = f"holds another experiment: {', '.join(changed)} differ"
            raise InputError(str(path), problem, "give another path, or the same arguments")
        self.done = done

    def add(self, m: int, k: int, won: int) -> None:
        self.done[m, k] = won
        if self.path is None:
            return
        record = {"setup": self.setup, "successes": [[*p, w] for p, w in sorted(self.done.items())]}
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _name(recover: Recover) -> str:
    """A name that tells recovery functions apart in the file."""
    target = getattr(recover, "func", recover)  # functools.partial
    arguments = [getattr(recover, "args", ()), sorted(getattr(recover, "keywords", {}).items())]
    name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"
    return f"{name} {arguments}" if target is not recover else name


def _checked_grid(
    deltas: ArrayLike, rhos: ArrayLike, n: int, trials: int, tol: float
) -> tuple[Array, Array]:
    delta, rho = np.atleast_1d(np.asarray(deltas, float)), np.asarray(rhos, float)
    if delta.ndim != 1 or not ((delta > 0) & (delta <= 1)).all():
        raise InputError("deltas", f"{delta.tolist()} is not in (0, 1]", "pass values of m / n")
    if rho.ndim not in (1, 2) or not ((rho >= 0) & (rho <= 1)).all():
        raise InputError("rhos", "values are not in [0, 1]", "pass values of k / m")
    if rho.ndim == 2 and rho.shape[0] != delta.size:
        problem = f"shape {rho.shape} for {delta.size} deltas"
        raise InputError("rhos", problem, "pass (r,) or one row for each delta")
    if n < 1 or trials < 1 or not tol > 0:
        problem = f"n={n}, trials={trials}, tol={tol}"
        raise InputError("phase_transition", problem, "all must be positive")
    return delta, np.broadcast_to(rho, (delta.size, rho.shape[-1]))


def _check_delta(delta: float, name: str) -> None:
    if not 0 < delta < 1:
        raise InputError(name, f"delta={delta} is outside (0, 1)", "pass m / n")


PRIOR = 1e-3
"""Weight of the ridge on the logistic slope, against one trial's log-likelihood."""


def _half_success(rho: Array, won: Array, trials: int) -> float:
    """Root of the logistic `P(success) = expit(a + b (rho - centre) / scale)`."""
    if won.min() == trials or won.max() == 0:
        return math.nan
    centre, scale = float(rho.mean()), float(rho.std()) or 1.0
    z = (rho - centre) / scale

    def loss(theta: Array) -> float:
        u = theta[0] + theta[1] * z
        likelihood = won * np.logaddexp(0, -u) + (trials - won) * np.logaddexp(0, u)
        return float(likelihood.sum() + PRIOR * theta @ theta)

    a, b = minimize(loss, np.array([0.0, -1.0])).x
    return centre - scale * a / b if b else math.nan
