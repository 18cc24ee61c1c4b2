"""Semismooth Newton for the LASSO and BPDN with operators, from a start near the solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.solvers.on_support import CROWDED, Bend, Index, Twin, solve_gram
from lowrank.sensing.solvers.soft_messages import Penalty

INNER = 1e-3
"""Relative residual of the linear system of a step."""
STEPS = 40
"""Limit of the steps."""
PATIENCE = 4
"""Steps that may go by without the error falling by half."""


class Solved(NamedTuple):
    """Coefficients, the dual point `(y - A x) / lam`, and its relative gap or violation."""

    x: Array
    dual: Array
    error: float


def newton_on_support(
    A: Operator, twin: Twin, y: Array, penalty: Penalty, x: Array, lam: float, tol: float,
    tell: Callable[[Array], None], diagonal: float = 1.0,
) -> Solved:  # fmt: skip
    """Solve the optimality conditions, a step for the support that they suggest at a time.

    The support is where `|x + A^H (y - A x)|` exceeds `lam w`, as for a proximal gradient step of
    length 1. On it the step solves `A_J^H A_J d = A_J^H (y - A x) - lam w s`, with the curvature
    of the moduli for complex coefficients. For BPDN `lam` takes a Newton step, too, along
    `dx / dlam = -(A_J^H A_J)^-1 w s`, whenever the residual is not epsilon.

    Args:
        A: the operator, of norm about 1.
        twin: the same, as it is cheap.
        y: measurements, (m,).
        penalty: weights, and `lam` or `epsilon`.
        x: start, (n,).
        lam: start, or the given one.
        tol: relative gap and violation to reach.
        tell: is told of the coefficients at each step.
        diagonal: mean square of the norms of the columns.

    Source: Li, Sun and Toh, 2018, section 3.2, for Newton's method on the LASSO.
    """
    w, best, idle = penalty.weights, np.inf, 0
    r = y - A.forward(x)
    z = A.adjoint(r)
    found = Solved(x, r / lam, np.inf)
    slope: tuple[Array, Array] | None = None
    for _ in range(STEPS):
        error = _error(penalty, y, x, r, z, lam)
        if error < found.error:
            found = Solved(x, r / lam, error)
        idle = 0 if error < 0.5 * best else idle + 1
        best = min(best, error)
        if error <= tol or idle > PATIENCE or not np.isfinite(error):
            break
        score = x + z
        J = np.flatnonzero((score if penalty.nonneg else np.abs(score)) > lam * w)
        if not 0 < J.size <= CROWDED * A.shape[0]:
            break
        last = x
        x, signs, bend = _on_support(x, score, J, lam * w, diagonal)
        r, last = r - A.forward(x - last), x.copy()
        on_path = r
        if penalty.lam is None:
            if slope is None or error > 1e-3:
                slope = _slope(twin, J, w[J] * signs, bend, len(x))
            x, on_path, lam = _to_the_sphere(penalty.epsilon, x, r, lam, *slope)
        b = A.adjoint(on_path)[J] / lam - w[J] * signs
        scale = float(np.linalg.norm(b))
        if scale > 0:
            x[J] += lam * scale * solve_gram(twin, J, b / scale, INNER, bend=bend).q
        tell(x)
        r = r - A.forward(x - last)  # the change has its own rounding, which is far below that of x
        z = A.adjoint(r)
    return found


def _on_support(
    x: Array, score: Array, J: Index, cut: Array, diagonal: float
) -> tuple[Array, Array, Bend | None]:
    """`x` on the support alone, its signs, and the curvature of its moduli there."""
    size = np.abs(score[J])
    kept = np.zeros_like(x)
    kept[J] = x[J]
    if not np.iscomplexobj(x):
        return kept, np.sign(score[J]), None
    moduli = np.abs(x[J])
    small = moduli < 1e-3 * (size - cut[J])
    kept[J] = np.where(small, score[J] / size * (size - cut[J]), x[J])
    signs = kept[J] / np.abs(kept[J])
    return kept, signs, Bend(cut[J] / np.abs(kept[J]), signs, diagonal)


def _slope(twin: Twin, J: Index, slopes: Array, bend: Bend | None, n: int) -> tuple[Array, Array]:
    """`-dx / dlam`, and its image."""
    solution = solve_gram(twin, J, slopes, 1e-2, bend=bend)
    q = np.zeros(n, np.result_type(solution.q, float))
    q[J] = solution.q
    return q, solution.image.astype(q.dtype)


def _to_the_sphere(
    epsilon: float, x: Array, r: Array, lam: float, q: Array, image: Array
) -> tuple[Array, Array, float]:
    """Along the path until the residual is epsilon: `||r + t v||^2` is a parabola."""
    rv, vv, rr = (float(np.vdot(a, b).real) for a, b in ((r, image), (image, image), (r, r)))
    root = rv**2 - vv * (rr - epsilon**2)
    t = (-rv + np.sqrt(root)) / vv if root > 0 else -rv / vv
    t = float(np.clip(t, -0.5 * lam, lam))
    q = np.where(x != 0, q, 0)  # what left the support since stays away
    return x - t * q, r + t * image, lam + t


def _error(penalty: Penalty, y: Array, x: Array, r: Array, z: Array, lam: float) -> float:
    """Relative duality gap, or violation, of `x` and the dual point on the ray of `r`."""
    value = float(penalty.weights @ np.abs(x))
    size = float(np.linalg.norm(r))
    high = float(((z.real if penalty.nonneg else np.abs(z)) / penalty.weights).max())
    if not (lam > 0 and high > 0 and size > 0):
        return float("inf")
    ry = float(np.vdot(r, y).real)
    if penalty.lam is not None:
        primal = size**2 / 2 + lam * value
        a = min(lam / high, ry / size**2)
        return abs(primal - (a * ry - (a * size) ** 2 / 2)) / primal
    dual = (ry - penalty.epsilon * size) / high
    outside = max(size - penalty.epsilon, 0.0)
    gap = abs(value + outside * size / high - dual) / max(value, abs(dual), 1e-300)
    return max(gap, outside / float(np.linalg.norm(y)))
