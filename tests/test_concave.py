"""MCP and SCAD: the penalties by definition, stationary points, and that none is called optimal."""

import numpy as np
import pytest
from scipy.integrate import quad

from lowrank.errors import InputError
from lowrank.sensing import MCP, SCAD, Lasso, Status, operators, recover, solve, sparse_signal
from lowrank.sensing.solvers.local_linear import LocalLinear

KINDS = (MCP, SCAD)


def gamma_of(kind, rng):
    return kind.least + float(10 ** rng.uniform(-1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_is_the_integral_of_its_slope(kind):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((3, 1)) * 10.0 ** rng.integers(-1, 2)
        problem = kind(A, np.zeros(3), 0.7, gamma_of(kind, rng), weights=[1.3])
        assert problem.slope(np.zeros(1))[0] == pytest.approx(0.7 * 1.3)
        end = problem.gamma * 0.91 / problem.curvatures[0]
        assert problem.slope(np.array([1.0001 * end]))[0] == 0
        for c in np.array([0.1, 0.5, 0.9, 2.0]) * end:
            whole = quad(lambda t, of=problem: of.slope(np.array([t]))[0], 0, c, limit=200)[0]
            assert problem.penalty_value(np.array([-c])) == pytest.approx(whole, rel=1e-6)
            h = 1e-6 * end
            change = problem.slope(np.array([c + h])) - problem.slope(np.array([c - h]))
            assert problem.bend(np.array([c]))[0] == pytest.approx(float(change[0]) / (2 * h), 1e-4)


def instance(seed):
    """Few columns or many, alike, repeated, zero or of uneven length."""
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 20)), int(rng.integers(1, 25))
    A = rng.standard_normal((m, n))
    if seed % 5 == 1:
        A = A + 2 * rng.standard_normal((m, 1))
    if seed % 5 == 2:
        A[:, n // 2 :] = A[:, : n - n // 2]
    if seed % 5 == 3:
        A[:, rng.random(n) < 0.3] = 0
    if seed % 5 == 4:
        A = A * 10.0 ** rng.integers(-2, 3, n)
    y = A @ (rng.standard_normal(n) * (rng.random(n) < 0.3)) + 0.3 * rng.standard_normal(m)
    kind = KINDS[seed % 2]
    gamma = gamma_of(kind, rng)
    lam = (Lasso(A, y, 1.0).lam_max or 1.0) * float(rng.choice([0.01, 0.1, 0.5, 1.1]))
    return kind(A, y, lam, gamma, weights=rng.uniform(0.5, 2, n) if seed % 3 else None)


def checked(seed):
    """Stationary by the directional derivatives, which are taken here by differences."""
    problem = instance(seed)
    found = solve(problem)
    assert found.status is Status.STATIONARY, found
    assert found.stationarity <= 1e-8
    assert found.gap is None
    assert found.dual_objective is None
    c, rng = found.coefficients, np.random.default_rng(seed)
    at_zero = problem.objective(0 * c)
    assert found.objective == pytest.approx(problem.objective(c), rel=1e-12)
    lasso = solve(Lasso(problem.A, problem.y, problem.lam, weights=problem.weights))
    if seed % 5 != 2:  # with repeated columns there are several LASSO points
        assert found.objective <= problem.objective(lasso.coefficients) + 1e-9 * at_zero
    scale = np.abs(c).max() or 1 / np.sqrt(problem.curvatures.max() or 1.0)
    for _ in range(10):
        h = 1e-7 * scale
        d = rng.standard_normal(c.size)
        change = (problem.objective(c + h * d) - found.objective) / h
        size = float(problem.slopes @ np.abs(d)) + np.sqrt(problem.curvatures) @ np.abs(d)
        assert change >= -1e-4 * size * (1 + np.linalg.norm(problem.y))


def test_what_comes_out_is_stationary():
    for seed in range(30):
        checked(seed)


@pytest.mark.fuzz
def test_what_comes_out_is_stationary_at_length():
    for seed in range(2000):
        checked(seed)


def test_a_unit_column_has_the_thresholds_of_the_papers():
    z = np.array([0.5, 1.5, 2.5, 5.0])
    firm = np.where(z <= 1, 0, np.where(z <= 3, (z - 1) / (1 - 1 / 3), z))
    assert solve(MCP(np.eye(4), z, 1.0, 3.0)).x == pytest.approx(firm, abs=1e-9)
    g = 3.7
    clipped = np.where(
        z <= 2, np.maximum(z - 1, 0), np.where(z <= g, ((g - 1) * z - g) / (g - 2), z)
    )
    assert solve(SCAD(np.eye(4), z, 1.0, g)).x == pytest.approx(clipped, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_one_coefficient_is_minimised_exactly(kind):
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = kind(rng.standard_normal((3, 1)), np.zeros(3), 0.7, gamma_of(kind, rng))
        z, L = float(3 * rng.standard_normal()), problem.curvatures[0]
        near = problem.threshold(z, 0) + np.linspace(-2, 2, 401)
        values = [L * c * c / 2 - z * c + problem.penalty_value(np.array([c])) for c in near]
        assert values[200] <= min(values) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_large_coefficients_are_not_biased(kind):
    A = operators.gaussian(80, 200, seed=0).to_dense()
    x = sparse_signal(200, 6, seed=1, kind="sign") * 2
    y = A @ x + 0.01 * np.random.default_rng(0).standard_normal(80)
    lam = 0.1 * Lasso(A, y, 1.0).lam_max
    concave, lasso = solve(kind(A, y, lam)), recover(A, y, lam=lam)
    oracle = np.linalg.lstsq(A[:, x != 0], y, rcond=None)[0]
    assert concave.support.tolist() == np.flatnonzero(x).tolist()
    assert concave.x[x != 0] == pytest.approx(oracle, abs=1e-9)
    assert np.abs(lasso.x - x).max() > 5 * np.abs(concave.x - x).max()


def test_units_of_columns_change_nothing():
    rng = np.random.default_rng(0)
    A, S = rng.standard_normal((40, 60)), 10.0 ** rng.uniform(-2, 2, 60)
    y = A[:, 3] - A[:, 30] + 0.1 * rng.standard_normal(40)
    one = solve(MCP(A, y, 5.0)).x
    other = solve(MCP(A * S, y, 5.0, weights=S)).x * S
    assert one == pytest.approx(other, abs=1e-9)


def test_a_point_that_is_not_stationary_is_not_called_so():
    problem = instance(6)
    short = solve(problem, LocalLinear(max_iter=1, tol=1e-300))
    assert short.status in (Status.MAX_ITER, Status.STATIONARY)

    class Claims(LocalLinear):
        def solve(self, problem, *, x0=None, callback=None):
            found = super().solve(problem)
            return type(found)(found.coefficients + 0.1, status=Status.STATIONARY)

    found = solve(problem, Claims())
    assert found.status is Status.STALLED
    assert found.stationarity > 1e-4
    assert "stationary to" in repr(found)
    assert found.to_dict()["stationarity"] == found.stationarity
    assert not solve(MCP(np.eye(2), np.zeros(2), 1.0)).x.any()
    assert solve(MCP(np.eye(2), np.zeros(2), 1.0)).status is Status.STATIONARY


EYE, ONES = np.eye(3), np.ones(3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MCP(EYE, ONES, 1.0, 1.0), "gamma: 1.0 is not above 1, where MCP stops being"),
        (lambda: SCAD(EYE, ONES, 1.0, 2.0), "gamma: 2.0 is not above 2, where SCAD stops being"),
        (lambda: MCP(EYE, ONES, 0.0), "lam: 0.0 is not positive"),
        (lambda: MCP(EYE, np.ones((3, 2)), 1.0), "MCP is of one real signal"),
        (lambda: SCAD(1j * EYE, ONES, 1.0), "SCAD is of one real signal"),
        (lambda: MCP(EYE, ONES, 1.0, weights=[1, 0, 1]), "positive real numbers"),
        (lambda: solve(MCP(EYE, ONES, 1.0), "cvxpy"), "for MCP take local_linear"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
