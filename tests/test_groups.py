"""Groups, joint rows, SLOPE: terms by definition, answers and bounds against CVXPY."""

import numpy as np
import pytest

from lowrank.errors import InputError
from lowrank.sensing import (
    SLOPE,
    GroupBPDN,
    GroupLasso,
    JointBPDN,
    JointSparse,
    OverlappingGroupLasso,
    SparseGroupLasso,
    Status,
    certify,
    latent_group_lasso,
    norms,
    operators,
    recover,
    solve,
    terms,
)
from lowrank.sensing.solvers.group_newton import GroupNewton

CVXPY = 1e-6
"""Relative accuracy of the objective that CVXPY is taken at its word for."""

LABELS = np.array([0, 0, 1, 1, 1, 2])
COLUMN, WEIGHTS = np.ones((6, 1)), np.array([[1.0], [0.5], [2.0]])
SIDES = np.array([[0.0], [-np.inf]] * 3), np.array([[np.inf], [0.0]] + [[np.inf]] * 4)
FALLING = np.array([[2.0], [1.5], [1.5], [1.0], [0.5], [0.0]])
TERMS = {
    "sparse groups": norms.SparseGroups(LABELS, WEIGHTS, 0.3 * COLUMN),
    "slopes alone": norms.SparseGroups(LABELS, 0 * WEIGHTS, 0.3 * COLUMN),
    "sorted": norms.Sorted(FALLING),
    "one-sided groups": norms.OneSided(terms.Groups(LABELS, WEIGHTS), *SIDES),
    "one-sided sorted": norms.OneSided(norms.Sorted(FALLING), *SIDES),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_what_they_say(name):
    term, rng = TERMS[name], np.random.default_rng(0)
    for _ in range(20):
        v, t = 2 * rng.standard_normal((6, 1)), float(rng.uniform(0.1, 2))
        p = term.prox(v, t)
        assert term.violation(p).max() == 0
        dual = (v - p) / t  # by Moreau, in the dual ball, where it is worth the value
        assert term.cap(dual)[0] >= 1 - 1e-12
        assert float((dual * p).sum()) == pytest.approx(float(term.value(p)[0]), abs=1e-12)
        at = term.cap(v)[0]  # the largest multiple within: no point is worth more, some as much
        best = term.prox(1e6 * (v if name.startswith("sparse") else at * v), 1e6 / 2)
        others = [term.prox(rng.standard_normal((6, 1)), 1e-3) for _ in range(50)] + [best]
        for c in others:
            assert at * float((v * c).sum()) <= float(term.value(c)[0]) * (1 + 1e-9) + 1e-12
        assert not term.prox(0.999 * at * v, 1.0).any()
        assert term.prox(1.001 * at * v, 1.0).any()


def test_a_mixed_bound_has_one_norm():
    ball, r = terms.Ball(2.0, joint=True), np.array([[3.0, 0.0], [0.0, 4.0]])
    assert ball.violation(r).tolist() == [3.0]
    assert np.linalg.norm(ball.prox(r, 1.0)) == pytest.approx(2.0)
    assert terms.Ball(2.0).violation(r).tolist() == [1.0, 2.0]


DESIGNS = ("random", "one row", "repeated", "zero columns", "integers", "scaled")


def design(kind, rng, is_complex):
    m, n = int(rng.integers(1, 14)), int(rng.integers(2, 16))
    A = rng.standard_normal((m, n)) + (1j * rng.standard_normal((m, n)) if is_complex else 0)
    if kind == "one row":
        A = A[:1]
    elif kind == "repeated":
        A = np.repeat(np.repeat(A, 2, axis=0), 2, axis=1)
    elif kind == "zero columns":
        A[:, rng.random(n) < 0.4] = 0
    elif kind == "integers":
        A = np.round(A)
    elif kind == "scaled":
        A = A * 10.0 ** rng.integers(-2, 3, n)
    return A


KINDS = (
    "group", "joint", "sparse group", "slope", "overlapping", "latent", "group bpdn", "joint bpdn",
    "latent bpdn", "complex group", "complex joint", "complex slope", "complex group bpdn",
    "complex joint bpdn",
)  # fmt: skip


def made(kind, seed):
    """A problem, from nearly no penalty or bound to more than leaves anything."""
    rng, is_complex = np.random.default_rng(seed), kind.startswith("complex")
    A, kind = design(DESIGNS[seed % 6], rng, is_complex), kind.removeprefix("complex ")
    (m, n), L = A.shape, int(rng.integers(1, 4)) if "joint" in kind else 1
    groups = np.unique(rng.integers(0, max(1, n // 2), n), return_inverse=True)[1]
    sets = [np.flatnonzero((groups == g) | (rng.random(n) < 0.2)) for g in range(groups.max() + 1)]
    X = rng.standard_normal((n, L)) * (rng.random((n, 1)) < 0.3)
    X = np.abs(X) if seed % 3 == 0 else X
    Y = A @ X + (0.3 if seed % 4 else 0) * rng.standard_normal((m, L))
    Y = rng.standard_normal((m, L)) if seed % 4 == 1 else Y
    y = Y if "joint" in kind else Y[:, 0]
    more = {}
    if seed % 5 == 1 and kind != "slope":
        more["weights"] = rng.uniform(0.3, 3, n if "joint" in kind else groups.max() + 1)
    if seed % 5 == 1 and kind == "slope":
        more["weights"] = np.sort(np.round(rng.uniform(0, 3, n)))[::-1] + (0 if seed % 2 else 1)
        more["weights"][0] += 1
    if not is_complex and kind != "overlapping":
        more |= {"lower": 0.0} if seed % 5 == 2 else {}
        if seed % 5 == 3 and "latent" not in kind:
            more["upper"] = np.where(rng.random(n) < 0.5, 0, np.inf)
    share = float(rng.choice([1e-3, 0.03, 0.3, 0.9, 1.0, 1.1]))
    bound = float(rng.choice([0, 1e-3, 0.1, 0.5, 1.0, 1.1]) * np.linalg.norm(y))
    l1_share = float(rng.choice([0, 0.1, 0.5, 0.9, 1]))
    make = {
        "group": lambda lam: GroupLasso(A, y, lam, groups, **more),
        "joint": lambda lam: JointSparse(A, y, lam, **more),
        "sparse group": lambda lam: SparseGroupLasso(A, y, lam, groups, l1_share, **more),
        "slope": lambda lam: SLOPE(A, y, lam, **more),
        "overlapping": lambda lam: OverlappingGroupLasso(A, y, lam, sets, **more),
        "latent": lambda lam: latent_group_lasso(A, y, sets, lam=lam, **more),
        "group bpdn": lambda _: GroupBPDN(A, y, bound, groups, **more),
        "joint bpdn": lambda _: JointBPDN(A, y, bound, **more),
        "latent bpdn": lambda _: latent_group_lasso(A, y, sets, epsilon=bound, **more),
    }[kind]
    if kind == "overlapping":
        return make(share * (float(np.abs(A.T @ y).max()) or 1.0))
    return make(share * (make(1.0).lam_max or 1.0))


def checked(kind, seed):
    """Our answer and CVXPY's, each held against the other's bound."""
    problem = made(kind, seed)
    found, reference = solve(problem), solve(problem, "cvxpy")
    size = max(abs(found.objective), 1e-9)
    if found.status is Status.INFEASIBLE:
        assert reference.status is not Status.OPTIMAL
        return
    assert found.status is Status.OPTIMAL, (found, problem)
    assert found.gap <= 1e-8
    assert found.infeasibility <= 1e-8
    assert found.dual_objective <= found.objective + 1e-8 * size
    assert reference.status is not Status.INFEASIBLE
    if reference.status is Status.OPTIMAL:
        assert found.objective == pytest.approx(reference.objective, rel=CVXPY, abs=CVXPY * size)
    if reference.infeasibility <= 1e-9:  # then its point bounds the minimum, but for the price
        outside = reference.infeasibility * np.linalg.norm(problem.y) * np.linalg.norm(found.dual)
        assert found.dual_objective <= reference.objective + outside + 1e-9 * size


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_cvxpy_s(kind):
    for seed in range(3):
        checked(kind, seed + 7 * KINDS.index(kind))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_cvxpy_s_at_length(kind):
    for seed in range(300):
        checked(kind, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_answer_is_not_certified(kind):
    problem = made(kind, 12)
    found = solve(problem)
    if found.status is Status.INFEASIBLE:
        assert "bpdn" in kind
        return
    assert not certify(problem, found.coefficients + 0.1).holds(1e-4)
    zero = certify(problem, 0 * found.coefficients, found.dual)
    assert zero.dual_objective <= found.objective * (1 + 1e-8)
    assert zero.holds(1e-8) == (not np.any(found.x))


PENALISED = tuple(k for k in KINDS if "bpdn" not in k and k != "overlapping")


@pytest.mark.parametrize("kind", PENALISED)
def test_lam_max_is_where_zero_begins(kind):
    from dataclasses import replace

    problem = made(kind, 4)
    for share, empty in ((1.001, True), (0.999, False)):
        found = solve(replace(problem, lam=share * problem.lam_max))
        assert found.status is Status.OPTIMAL
        assert (found.support.size == 0) == empty


def _wide(batch=1, is_complex=False):
    rng = np.random.default_rng(3)
    A = rng.standard_normal((60, 200)) + (1j * rng.standard_normal((60, 200)) if is_complex else 0)
    X = np.zeros((200, batch))
    X[20:30], X[80:85] = rng.standard_normal((10, batch)), 2.0
    return A, X, A @ X, np.arange(200) // 5


@pytest.mark.parametrize("is_complex", [False, True])
def test_exact_groups_and_rows_are_found_again(is_complex):
    A, X, Y, groups = _wide(4, is_complex)
    for found in (recover(A, Y, joint=True), recover(A, Y, groups=groups)):
        assert found.status is Status.OPTIMAL
        assert found.solver == "group_newton()"
        assert np.abs(found.x - X).max() < 1e-6


def test_the_three_forms_meet():
    """The bound that a penalty's answer keeps has that answer, by the front door."""
    A, _, Y, groups = _wide(3)
    Y = Y + 0.5 * np.random.default_rng(0).standard_normal(Y.shape)
    for y, more in ((Y[:, 0], {"groups": groups}), (Y, {"joint": True})):
        by_lam = recover(A, y, lam_fraction=0.2, tol=1e-10, **more)
        by_noise = recover(A, y, noise=by_lam.residual_norm, tol=1e-10, **more)
        assert by_lam.status is by_noise.status is Status.OPTIMAL
        assert np.abs(by_lam.x - by_noise.x).max() < 1e-6
        assert by_noise.residual_norm == pytest.approx(by_lam.residual_norm, rel=1e-8)


def test_what_cannot_be_met_is_called_so():
    A = np.random.default_rng(0).standard_normal((30, 10))
    Y = np.random.default_rng(1).standard_normal((30, 2))
    distances = [np.linalg.norm(y - A @ np.linalg.lstsq(A, y)[0]) for y in Y.T]
    both, groups = float(np.linalg.norm(distances)), np.arange(10) // 2
    for bound, met in ((0.99 * both, False), (1.01 * both, True)):
        assert (recover(A, Y, noise=bound, joint=True).status is Status.OPTIMAL) == met
    for bound, met in ((0.99 * distances[0], False), (1.01 * distances[0], True)):
        assert (recover(A, Y[:, 0], noise=bound, groups=groups).status is Status.OPTIMAL) == met
    for found in (recover(A, Y, joint=True), recover(A, Y[:, 0], groups=groups)):
        assert found.status is Status.INFEASIBLE
        assert "away from y" in found.message


def test_sparse_matrices_and_operators():
    import scipy.sparse

    A = scipy.sparse.random(80, 120, 0.2, random_state=0, format="csc")
    groups, y = np.arange(120) // 4, A @ np.repeat([0.0, 1.0, 0.0], [40, 4, 76])
    by_sparse, by_dense = (solve(GroupLasso(B, y, 0.1, groups)) for B in (A, A.toarray()))
    assert by_sparse.solver == by_dense.solver == "group_newton()"
    assert np.allclose(by_sparse.x, by_dense.x, atol=1e-6)
    D = operators.partial_dct(120, m=80, seed=0)
    free = operators.from_functions(D.shape, D.forward, D.adjoint)
    found = solve(GroupBPDN(free, D @ np.repeat([0.0, 1.0, 0.0], [40, 4, 76]), 0.1, groups))
    assert found.status is Status.OPTIMAL
    assert "matrix-free" in found.why


def test_few_groups_take_part():
    A, _, Y, groups = _wide()
    found = solve(GroupLasso(A, Y[:, 0], 50.0, groups), callback=lambda k, c: False)
    assert found.n_products < 20
    assert "40 of 40 groups" not in found.why
    stopped = solve(GroupLasso(A, Y[:, 0], 1.0, groups), callback=lambda k, c: k == 2)
    assert stopped.n_iter == 2
    warm = solve(GroupLasso(A, Y[:, 0], 50.0, groups), x0=found.coefficients)
    assert warm.n_iter <= found.n_iter


def test_the_two_meanings_of_overlap():
    """Sums of norms leave what no zero group covers; latent parts add up to a union of groups."""
    A = np.random.default_rng(0).standard_normal((20, 9))
    chain = [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]]
    y = A[:, 2:5] @ [1.0, 2.0, 1.0]
    latent = solve(latent_group_lasso(A, y, chain, lam=3.0))
    assert latent.support.size == 3  # of the copies
    assert np.flatnonzero(latent.x).tolist() == [2, 3, 4]
    summed = solve(OverlappingGroupLasso(A, y, 3.0, chain))
    zero = {g for g, part in enumerate(chain) if np.abs(summed.x[part]).max() < 1e-6}
    gone = sorted({j for g in zero for j in chain[g]})
    assert np.flatnonzero(np.abs(summed.x) > 1e-6).tolist() == sorted(set(range(9)) - set(gone))
    apart = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]  # without overlap both are the group LASSO
    plain = solve(GroupLasso(A, y, 3.0, apart)).x
    assert np.allclose(plain, solve(OverlappingGroupLasso(A, y, 3.0, apart)).x, atol=1e-6)
    assert np.allclose(plain, solve(latent_group_lasso(A, y, apart, lam=3.0)).x, atol=1e-6)


def test_slope_ties_what_is_alike_and_ones_are_the_lasso():
    A = np.random.default_rng(0).standard_normal((20, 6))
    A[:, 1] = A[:, 0]
    tied = solve(SLOPE(A, A @ [2.0, 2.0, 0, 0, 1, 0], 0.5)).x
    assert tied[0] == pytest.approx(tied[1], abs=1e-7)
    lasso = recover(A, A[:, 4], lam=2.0)
    ones = SLOPE(A, A[:, 4], 2.0, weights=np.ones(6))
    assert np.allclose(solve(ones, tol=1e-13).x, lasso.x, atol=1e-6)


def test_the_solver_says_what_it_does_not_take():
    newton, Y = GroupNewton(), np.ones((3, 2))
    assert newton.refuses(JointSparse(EYE, Y, 1.0)) is None
    assert "no bounds of rows" in newton.refuses(JointSparse(EYE, Y, 1.0, lower=0))
    mixed = SparseGroupLasso(1j * EYE, ONES, 1.0, [0, 0, 1])
    assert "this is complex" in newton.refuses(mixed)
    assert solve(mixed).status is Status.OPTIMAL


EYE, ONES = np.eye(3), np.ones(3)
NAN = [0.0, np.nan, 1.0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: GroupLasso(EYE, ONES, 1.0, [0, 1]), "one integer label"),
        (lambda: GroupLasso(EYE, ONES, 1.0, NAN), "coefficient 1 has the label NaN"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0], [1]]), "coefficient 2 is in no group"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0, 1], [1, 2]]), "in group 0 and in group 1; take"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0, 1], [], [2]]), "group 1 is empty"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0, 1], [3]]), "group 1 has the index 3"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0, 0], [1, 2]]), "group 0 has an index twice"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [[0.0, 1.5], [2]]), "is float64 of shape"),
        (lambda: GroupLasso(EYE, ONES, 1.0, "abc"), "one integer label|no sequence"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [0, 0, 1], weights=[1.0]), "for 2 weights"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [0, 0, 1], upper=2.0), "takes signs alone"),
        (lambda: GroupLasso(1j * EYE, ONES, 1.0, [0, 0, 1], lower=0), "which have no order"),
        (lambda: GroupBPDN(EYE, ONES, -1.0, [0, 0, 1]), "epsilon: -1.0 is not zero or positive"),
        (lambda: JointBPDN(EYE, ONES), r"is not \(m, L\)"),
        (lambda: SparseGroupLasso(EYE, ONES, 1.0, [0, 0, 1], 1.5), r"outside \[0, 1\]"),
        (lambda: SLOPE(EYE, ONES, 1.0, weights=[1.0, 2.0, 0.0]), "they rise"),
        (lambda: SLOPE(EYE, ONES, 1.0, weights=[0.0, 0.0, 0.0]), "are all 0"),
        (lambda: SLOPE(EYE, ONES, 1.0, weights=[1.0]), "for 3 coefficients"),
        (lambda: OverlappingGroupLasso(EYE, ONES, 1.0, [[0, 1]]), "coefficient 2 is in no group"),
        (lambda: OverlappingGroupLasso(EYE, ONES, 1.0, 3), "int is no sequence of groups"),
        (lambda: OverlappingGroupLasso(EYE, EYE, 1.0, [[0, 1, 2]]), "one signal at a time"),
        (lambda: latent_group_lasso(EYE, ONES, [[0, 1]]), "coefficient 2 is in no group"),
        (lambda: recover(EYE, ONES, groups=[0, 0, 1], joint=True), "give one of them"),
        (lambda: recover(EYE, ONES, groups=[0, 0, 1], sparsity=1), "does not join sparsity"),
        (lambda: recover(EYE, EYE, joint=True, estimate="mean"), 'does not join estimate="mean"'),
        (lambda: recover(EYE, EYE, joint=1), "1 is neither True nor False"),
        (lambda: recover(EYE, ONES, groups=[0, 0, 1], solver="fista"), "take .*group_newton"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
