"""Matrix completion against CVXPY, against planted truth, and by its own duality gap."""

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.decompositions import complete
from lowrank.errors import InputError
from lowrank.status import Status

TOL = 1e-7
"""Default gap of the solver."""
CVXPY = 2e-5
"""Relative accuracy of CVXPY's conic solvers on semidefinite problems of this size."""


def planted(m, n, rank, share, seed=0):
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    return M, rng.random((m, n)) < share


def relative(X, Y):
    return float(np.linalg.norm(X - Y) / np.linalg.norm(Y))


@pytest.mark.parametrize("kw", [{}, {"rank": 3}])
def test_recovers_the_planted_matrix(kw):
    M, seen = planted(80, 60, 3, 0.5)
    result = complete(np.where(seen, M, np.nan), seen, **kw)
    assert result.status is (Status.CONVERGED if kw else Status.OPTIMAL)
    assert result.rank == 3
    assert relative(result.L, M) < 10 * TOL
    assert result.residual_norm <= 2 * TOL * np.linalg.norm(M[seen])
    assert (result.gap is None) == bool(kw)


@pytest.mark.parametrize("kw", [{}, {"epsilon": 1.5}, {"lam": 0.7}])
def test_agrees_with_cvxpy_and_proves_it(kw):
    rng = np.random.default_rng(1)
    M, seen = planted(11, 9, 2, 0.6, seed=1)
    M = M + 0.1 * rng.standard_normal(M.shape)
    result = complete(M, seen, max_iter=5000, **kw)
    X = cp.Variable(M.shape)
    R = cp.multiply(seen, M - X)
    if "lam" in kw:
        problem = cp.Problem(cp.Minimize(kw["lam"] * cp.normNuc(X) + cp.sum_squares(R) / 2))
    else:
        ball = [cp.norm(R, "fro") <= kw["epsilon"]] if kw else [R == 0]
        problem = cp.Problem(cp.Minimize(cp.normNuc(X)), ball)
    problem.solve(solver="CLARABEL")
    assert result.status is Status.OPTIMAL
    assert result.objective == pytest.approx(problem.value, rel=CVXPY)
    Y = result.dual / max(1, np.linalg.norm(result.dual, 2))
    assert not Y[~seen].any()
    dual = float(np.sum(Y * M))
    if "lam" in kw:
        dual = kw["lam"] * (dual - kw["lam"] / 2 * float(np.sum(Y**2)))
    else:
        dual -= kw.get("epsilon", 0.0) * float(np.linalg.norm(Y))
    assert abs(result.objective - dual) <= 2 * TOL * result.objective


def test_a_large_lam_gives_zero_and_a_small_one_everything():
    M, seen = planted(20, 15, 2, 0.7)
    top = np.linalg.norm(np.where(seen, M, 0), 2)
    assert complete(M, seen, lam=1.01 * top).rank == 0
    assert complete(M, seen, lam=0.99 * top).rank == 1


def test_fixed_rank_is_infeasible_only_against_a_bound():
    M, seen = planted(40, 30, 3, 0.7)
    best = complete(M, seen, rank=2)
    assert best.status is Status.CONVERGED
    assert best.residual_norm > 0.1 * np.linalg.norm(M[seen])
    assert complete(M, seen, rank=2, epsilon=1e-3).status is Status.INFEASIBLE
    assert complete(M, seen, rank=3, epsilon=1e-3).status is Status.CONVERGED
    assert complete(M, seen, rank=3, epsilon=0.0, max_iter=2).status is Status.MAX_ITER


def test_fixed_rank_of_a_full_matrix_is_eckart_young():
    M = np.random.default_rng(0).standard_normal((12, 8))
    s = np.linalg.svd(M, compute_uv=False)
    result = complete(M, np.ones(M.shape, bool), rank=3, tol=1e-12)
    assert result.objective == pytest.approx(float((s[3:] ** 2).sum()), rel=1e-9)


def test_rows_and_columns_without_entries():
    M, seen = planted(20, 15, 2, 0.8)
    seen[3] = False
    seen[:, 4] = False
    with pytest.warns(UserWarning, match="row 3 and column 4 without an observed entry"):
        result = complete(M, seen, rank=2)
    known = np.delete(np.delete(result.L, 3, 0), 4, 1)
    assert relative(known, np.delete(np.delete(M, 3, 0), 4, 1)) < 10 * TOL


@pytest.mark.parametrize("kw", [{}, {"rank": 2}, {"lam": 0.1}])
def test_torch_complex_and_zero(kw):
    M, seen = planted(25, 20, 2, 0.7)
    result = complete(torch.from_numpy(M).float(), torch.from_numpy(seen), **kw)
    assert result.L.dtype == torch.float32
    assert isinstance(complete(M, seen, **kw).L, np.ndarray)
    turned = complete(1j * M, seen, **kw)
    assert np.allclose(turned.L, 1j * complete(M, seen, **kw).L, atol=1e-5)
    nothing = complete(np.zeros((4, 3)), np.ones((4, 3), bool), **kw)
    assert nothing.status is (Status.CONVERGED if "rank" in kw else Status.OPTIMAL)
    assert not nothing.L.any()


@pytest.mark.parametrize("unit", [2.0**-700, 2.0**700])
@pytest.mark.parametrize("name", ["convex", "rank", "lam", "epsilon"])
def test_units_do_not_matter(name, unit):
    M, seen = planted(25, 20, 2, 0.7)
    kw, scaled = {
        "convex": ({}, {}),
        "rank": ({"rank": 2}, {"rank": 2}),
        "lam": ({"lam": 0.5}, {"lam": 0.5 * unit}),
        "epsilon": ({"epsilon": 0.5}, {"epsilon": 0.5 * unit}),
    }[name]
    there = complete(M * unit, seen, **scaled)
    here = complete(M, seen, **kw)
    assert there.status is (Status.CONVERGED if name == "rank" else Status.OPTIMAL)
    assert there.rank == 2
    np.testing.assert_allclose(there.L / unit, here.L, atol=1e-5)
    np.testing.assert_allclose(there.S / unit, here.S, atol=1e-5)
    if name in ("convex", "epsilon"):
        assert there.objective / unit == pytest.approx(here.objective, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 2**31), st.floats(0.1, 1))
def test_any_shape_and_mask_ends_honestly(m, n, seed, share):
    rng = np.random.default_rng(seed)
    M, seen = rng.standard_normal((m, n)), rng.random((m, n)) < share
    seen[0] = seen[:, 0] = True
    result = complete(M, seen, max_iter=2000)
    assert np.isfinite(result.L).all()
    if result.status is Status.OPTIMAL:
        assert result.gap <= TOL
        assert result.residual_norm <= TOL * np.linalg.norm(M[seen])
    fixed = complete(M, seen, rank=1, max_iter=50)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairs(fixed.history["residual"]))


def pairs(history):
    return [(a, b) for a, b in itertools.pairwise(history) if a > TOL]


SEEN = np.ones((4, 3), bool)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: complete(np.full((4, 3), np.nan), SEEN), "12 observed values"),
        (lambda: complete(np.ones((4, 3)), ~SEEN), "no entry"),
        (lambda: complete(np.ones((4, 3)), SEEN, rank=4), "rank=4"),
        (lambda: complete(np.ones((4, 3)), SEEN, rank=2.0), "rank=2.0"),
        (lambda: complete(np.ones((4, 3)), SEEN, rank="2"), "rank='2'"),
        (lambda: complete(np.ones((4, 3)), SEEN, lam=0.0), "lam=0.0"),
        (lambda: complete(np.ones((4, 3)), SEEN, lam=1.0, rank=1), "excludes"),
        (lambda: complete(np.ones((4, 3)), SEEN, epsilon=-1.0), "epsilon=-1.0"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
