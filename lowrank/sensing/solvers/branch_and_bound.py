"""Best subset, proven: branch and bound on which columns are in and which are out."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.problems.other import BestSubset, KSparse
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.omp import OMP
from lowrank.sensing.solvers.perspective import SEMIDEFINITE, diagonal_part, relaxed
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.subset_bounds import Columns, saturated, span, subsets_below
from lowrank.sensing.solvers.subset_start import completed, exchanged, left
from lowrank.sensing.solvers.subspace_pursuit import SubspacePursuit
from lowrank.status import Status

LARGEST = 8192
"""Most columns: every node takes a Gram matrix of those that are open."""

LISTED = 20, 2000
"""Subsets of a level, for each column and at least, up to which a node is not split."""

ROUND = 8
"""Nodes that an executor gets at once."""


@dataclass(frozen=True)
class Standing:
    """How far a branch and bound has come.

    Attributes:
        nodes: that have been looked into.
        open: that are left.
        objective: of the best subset so far.
        bound: proven lower bound of the minimum.
        gap: `(objective - bound) / (1/2 ||y||^2)`, how much more of y another subset may explain.
        seconds: since the start.
    """

    nodes: int
    open: int
    objective: float
    bound: float
    gap: float
    seconds: float

    def __str__(self) -> str:
        size = f"{self.nodes:,} nodes, {self.open:,} open"
        return f"{size}, objective {self.objective:.6g}, gap {self.gap:.2g}, {self.seconds:.1f} s"


Report: TypeAlias = Callable[[Standing], Any]
"""Called after every round of nodes; a true return value stops."""


class _Node(NamedTuple):
    """Columns that are taken and columns that are out, with what is proven of the rest.

    Nodes of a lower bound come first, and among them those that have more columns decided.
    """

    bound: float
    decided: int
    number: int
    taken: tuple[int, ...]
    out: tuple[int, ...]


class Examined(NamedTuple):
    """What a node came to: its bound, better supports, and the column to split at, if any.

    `again` says that a better support was found first, so that the node is to be looked into anew.
    """

    bound: float
    supports: list[Array]
    split: int | None
    again: bool = False


@dataclass(frozen=True)
class BranchAndBound:
    """Best subset of k columns by branch and bound, with a proof that none is better.

    It starts from greedy choices whose columns are exchanged one by one. A node, which has some
    columns taken and some out, is closed where all columns together do not fit better than the
    best subset so far, where the perspective relaxation says that none does (with m >= n, or a
    ridge), or where all subsets that could are listed, which takes no bound on the coefficients,
    no ridge and no assumption on A: see `subset_bounds`. Otherwise it is split at the column that
    stands in most of them, or is missed most by the fit of all.

    Attributes:
        tol: gap at which to stop, `(objective - bound) / (1/2 ||y||^2)`.
        max_iter: most nodes; None is no limit.
        time_limit: seconds after which the best subset so far comes back, with its gap; None is
            no limit.
        executor: a `concurrent.futures.Executor` that looks into several nodes at once; None is
            this thread.
        report: called with a `Standing` as it goes on; a true return value stops.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.9]])
        >>> BranchAndBound().solve(BestSubset(A, [1.0, 1.0], 1)).coefficients.round(3)
        array([0.   , 0.   , 1.111])

    Source: branch and bound of Furnival, Wilson 1974, whose bound (all columns are taken) is the
    first here; the perspective relaxation: see `perspective`; the listing of subsets is ours.
    """

    tol: float = 1e-8
    max_iter: int | None = None
    time_limit: float | None = None
    executor: Executor | None = field(default=None, repr=False)
    report: Report | None = field(default=None, repr=False)

    solves: ClassVar[tuple[type[Problem], ...]] = (BestSubset,)

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            checked_number("time_limit", self.time_limit)

    def refuses(self, problem: Problem) -> str | None:
        """Takes one signal and up to 8,192 columns."""
        m, p = problem.operator.shape
        if np.ndim(problem.y) != 1:
            return "works on one signal, a column of y"
        if p > LARGEST:
            return f"needs the Gram matrix of {p:,} columns, and {LARGEST:,} are the most"
        if not problem.operator.is_dense and m * p > 2**24:
            return "needs a matrix, and A is matrix-free"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Split until the gap is closed; the support of `x0` is one to start from."""
        assert isinstance(problem, BestSubset)
        search = _Search(self, problem, callback)
        search.start(x0)
        while search.goes_on():
            search.step()
        return search.result()


class _Search:
    """The tree and the best subset so far; lengths are squared, without the half."""

    def __init__(
        self, solver: BranchAndBound, problem: BestSubset, callback: Callback | None
    ) -> None:
        self.solver, self.problem, self.callback = solver, problem, callback
        self.begin = time.monotonic()
        self.deadline = self.begin + (solver.time_limit or math.inf)
        self.whole, self.kept, self.norms = _columns(problem)
        self.energy, self.k = self.whole.energy, min(problem.k, self.kept.size)
        self.support, self.lowest = np.zeros(0, int), self.energy
        self.heap = [_Node(0.0, 0, 0, (), ())]
        self.nodes, self.made, self.stopped = 0, 1, False
        self.history: dict[str, list[float]] = {"objective": [], "gap": []}

    @property
    def goal(self) -> float:
        """What a better subset would have to leave less than."""
        return self.lowest - 0.9 * self.solver.tol * self.energy

    @property
    def bound(self) -> float:
        """What every subset leaves at least."""
        lowest = max(0.0, self.goal)
        return min(lowest, self.heap[0].bound) if self.heap else lowest

    def start(self, x0: Array | None) -> None:
        """Supports of greedy methods and of x0, improved by exchanges."""
        for support in _greedy(self.problem, self.whole, self.kept, self.k, x0):
            self.better(exchanged(self.whole, support))
            if time.monotonic() > self.deadline:
                break

    def better(self, support: Array) -> None:
        """Keep a support if it leaves less than the best so far."""
        if (value := left(self.whole, support)) < self.lowest:
            self.support, self.lowest = support, value

    def goes_on(self) -> bool:
        """Whether anything is left to do, and neither a limit nor the user says stop."""
        late = time.monotonic() > self.deadline
        enough = self.solver.max_iter is not None and self.nodes >= self.solver.max_iter
        return bool(self.goal > self.bound and self.heap) and not (late or enough or self.stopped)

    def step(self) -> None:
        """Look into the nodes that are proven least of, and split them."""
        look = partial(
            examined, self.whole, self.k, goal=self.goal,
            limit=max(LISTED[0] * self.kept.size, LISTED[1]), deadline=self.deadline,
        )  # fmt: skip
        nodes = list(self.taken())
        run = map if self.solver.executor is None else self.solver.executor.map
        for node, found in zip(nodes, run(look, nodes), strict=True):
            self.nodes += 1
            for support in found.supports:
                self.better(support)
                self.better(exchanged(self.whole, self.support, rounds=5))
            self.put(node, found)
        self.tell()

    def taken(self) -> Iterator[_Node]:
        """The nodes of the next round."""
        left_over = (self.solver.max_iter or self.nodes + ROUND) - self.nodes
        width = 1 if self.solver.executor is None else min(ROUND, left_over)
        for _ in range(min(width, len(self.heap))):
            yield heapq.heappop(self.heap)

    def put(self, node: _Node, found: Examined) -> None:
        """The node again, or its two halves; what is proven is not kept."""
        if found.again:
            self.push(node._replace(bound=found.bound))
        if found.split is not None:
            if self.made == 1:
                self.strengthen()
            j = found.split
            for taken, out in ((*node.taken, j), node.out), (node.taken, (*node.out, j)):
                self.push(_Node(found.bound, node.decided - 1, 0, taken, out))

    def strengthen(self) -> None:
        """Once there is a tree, the relaxation is worth its diagonal."""
        B = self.whole.B
        if B.shape[1] <= B.shape[0]:
            D = diagonal_part(B.conj().T @ B)
            self.whole = replace(self.whole, D=max(D, self.whole.D, key=np.sum))

    def push(self, node: _Node) -> None:
        """Among those that are open, in order of age where all else is equal."""
        heapq.heappush(self.heap, node._replace(number=self.made))
        self.made += 1

    def tell(self) -> None:
        """Let the user see how far it has come."""
        now = self.standing()
        self.history["objective"].append(now.objective)
        self.history["gap"].append(now.gap)
        if self.callback is not None:
            self.stopped |= bool(self.callback(self.nodes, self.coefficients()))
        if self.solver.report is not None:
            self.stopped |= bool(self.solver.report(now))

    def standing(self) -> Standing:
        """Objective, bound and gap."""
        gap = (self.lowest - self.bound) / (self.energy or 1.0)
        return Standing(
            self.nodes, len(self.heap), self.lowest / 2, self.bound / 2, gap,
            time.monotonic() - self.begin,
        )  # fmt: skip

    def coefficients(self) -> Array:
        """Least squares on the best subset so far."""
        c = np.zeros(self.problem.unknown_shape, self.problem.dtype)
        S = (
            self.support[span(self.whole.B[:, self.support])[1]]
            if self.support.size
            else self.support
        )
        inside = np.linalg.lstsq(self.whole.B[:, S], self.whole.r, rcond=None)[0]
        c[self.kept[S]] = inside / self.norms[S]
        return c

    def result(self) -> SolverResult:
        """The best subset, and what is proven."""
        now = self.standing()
        status = Status.OPTIMAL
        if now.gap > self.solver.tol:
            late = time.monotonic() > self.deadline
            status = Status.TIME_LIMIT if late and not self.stopped else Status.MAX_ITER
        return SolverResult(
            self.coefficients(), status=status, n_iter=self.nodes, bound=now.bound,
            n_products=max(1, self.nodes) * self.kept.size, history=self.history,
            note=f"{self.nodes:,} nodes, {len(self.heap):,} left open",
        )  # fmt: skip


def _columns(problem: BestSubset) -> tuple[Columns, Array, Array]:
    """The columns that are not 0, at unit length with the ridge below them; indices, lengths."""
    A, y = problem.operator.to_dense().astype(problem.dtype), np.asarray(problem.y, problem.dtype)
    kept = np.flatnonzero(np.linalg.norm(A, axis=0) > 0)
    if problem.ridge:
        A = np.concatenate([A, math.sqrt(problem.ridge) * np.eye(A.shape[1])])
        y = np.concatenate([y, np.zeros(A.shape[1], y.dtype)])
    norms = np.linalg.norm(A[:, kept], axis=0)
    B = A[:, kept] / norms
    D = problem.ridge / norms**2 * (1 - SEMIDEFINITE)
    return Columns(B, np.arange(kept.size), y, D), kept, norms


def _greedy(
    problem: BestSubset, whole: Columns, kept: Array, k: int, x0: Array | None
) -> Iterator[Array]:
    """Supports to start from."""
    if x0 is not None and np.count_nonzero(x0):
        order = np.argsort(-np.abs(x0[kept]), kind="stable")
        yield order[: min(k, np.count_nonzero(x0[kept]))]
    if k == 0:
        return
    yield completed(whole, k)
    plain = KSparse(problem.operator, problem.y, problem.k)
    for solver in (OMP(), SubspacePursuit()):
        c = solver.solve(plain).coefficients[kept]
        yield np.flatnonzero(c)


def examined(
    whole: Columns, k: int, node: _Node, *, goal: float, limit: int, deadline: float
) -> Examined:
    """Look into a node: close it, find better supports, or say where to split."""
    taken, out = np.array(node.taken, dtype=int), np.array(node.out, dtype=int)
    columns = whole.without(out).given(taken)
    t = k - taken.size
    first = np.append(taken, completed(columns, t))
    supports = [first] if left(whole, first) < goal else []
    if columns.names.size <= t or t == 0:
        return Examined(goal, supports, None)
    if supports:
        return Examined(node.bound, supports, None, again=True)
    G = columns.B.conj().T @ columns.B
    bound = max(node.bound, saturated(columns, G))
    if bound < goal and columns.D.all():
        g = columns.B.conj().T @ columns.r
        convex = relaxed(G, g, columns.D, t, columns.energy, goal)
        bound = max(bound, convex.bound)
    if bound >= goal:
        return Examined(bound, [], None)
    listed = partial(subsets_below, columns, G, t, deadline=deadline)
    found = listed(goal=goal, limit=limit)
    if found.complete:
        return Examined(goal, _best(columns, G, found.sets, taken, goal), None)
    if time.monotonic() > deadline:
        return Examined(bound, [], None, again=True)
    middle = listed(goal=(bound + goal) / 2, limit=limit)
    if middle.complete and not middle.sets.size:
        bound = (bound + goal) / 2
    where = _strongest(columns, G) if bound > 0 else np.bincount(found.sets.ravel())
    return Examined(bound, [], int(columns.names[where.argmax()]))


def _strongest(columns: Columns, G: Array) -> Array:
    """By how much leaving a column out raises what all of them together leave."""
    inverse = np.linalg.pinv(G, hermitian=True)
    c = inverse @ (columns.B.conj().T @ columns.r)
    return np.asarray(np.abs(c) ** 2 / np.diag(inverse).real)


def _best(columns: Columns, G: Array, sets: Array, taken: Array, goal: float) -> list[Array]:
    """The support that leaves least among these, if it is less than the goal."""
    if not sets.size:
        return []
    g = columns.B.conj().T @ columns.r
    inside = G[sets[:, :, None], sets[:, None, :]]
    gain = [float(np.vdot(g[T], np.linalg.lstsq(M, g[T], rcond=None)[0]).real)
            for T, M in zip(sets, inside, strict=True)]  # fmt: skip
    best = int(np.argmax(gain))
    if columns.energy - gain[best] >= goal:
        return []
    return [np.append(taken, columns.names[sets[best]])]
