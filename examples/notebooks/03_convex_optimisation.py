# %% [markdown]
# # 3. Recovery by convex optimisation
#
# **Question: how does one find the sparsest solution without trying every support, and how does
# one know that it was found?**
#
# ## Three ways to be small
#
# Many x satisfy $Ax = y$. "The simplest" can mean three things:
#
# | measure | formula | what it asks for | to minimise it |
# |---|---|---|---|
# | $\|x\|_0$ (a count, not a norm) | number of non-zeros | the sparsest | NP-hard |
# | $\|x\|_1$ | $\sum \lvert x_i\rvert$ | sparse, because its ball has corners | a linear program |
# | $\|x\|_2$ | $\sqrt{\sum x_i^2}$ | least energy, almost never sparse | one formula |
#
# In two dimensions, with one measurement, the solutions of $Ax = y$ are a line. Blow up the ball
# of each measure until it first touches that line:

# %% alt="The line A x = y and three balls: L0 touches it on an axis, L1 at a corner on an axis, L2 beside the axes"
import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import dual_certificate, operators, sparse_signal

plt.style.use("notebooks.mplstyle")
a, b = np.array([1.0, 2.0]), 2.0  # the line x1 + 2 x2 = 2
angle = np.linspace(0, 2 * np.pi, 400)
circle = np.stack([np.cos(angle), np.sin(angle)])
balls = {
    "L0: on an axis": (None, [(0, 1), (2, 0)]),
    "L1: touches at a corner": (circle / np.abs(circle).sum(axis=0), [(0, 1)]),
    "L2: touches off the axes": (circle * b / np.linalg.norm(a), [tuple(a * b / (a @ a))]),
}
_, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True)
for ax, (title, (ball, touched)) in zip(axes, balls.items(), strict=True):
    line = np.array([-1.5, 2.5])
    ax.plot(line, (b - line * a[0]) / a[1], "C0-", label="A x = y")
    if ball is None:
        ax.axhline(0, color="C1", ls="--", lw=2)
        ax.axvline(0, color="C1", ls="--", lw=2, label="‖x‖₀ ≤ 1")
    else:
        ax.fill(*ball, facecolor="#F2C9A8", edgecolor="C1", label="ball")
    ax.plot(*zip(*touched, strict=True), "ko", ms=7, label="solution")
    ax.set(title=title, xlabel="x₁", aspect="equal", xlim=(-1.3, 2.3), ylim=(-1.3, 1.7))
axes[0].set_ylabel("x₂")
for ax in axes:
    ax.legend(loc="lower right")
plt.show()

# %% [markdown]
# The L1 ball is the tightest convex set around the 1-sparse points of unit length. It has corners
# on the axes, so it touches the line at a sparse point; the round L2 ball touches at a point with
# no zeros. (The L0 panel has two solutions: with m = 1 and k = 1, m < 2k measurements do not
# determine the signal.)
#
# ## Basis pursuit, written out
#
# $$\min_x \|x\|_1 \quad \text{subject to} \quad A x = y$$
#
# Those who know CVX in MATLAB will find CVXPY much the same:
#
# | CVX in MATLAB | CVXPY in Python |
# |---|---|
# | `cvx_begin` | |
# | `variable x(n)` | `x = cp.Variable(n)` |
# | `minimize( norm(x, 1) )` | `objective = cp.Minimize(cp.norm(x, 1))` |
# | `subject to` | |
# | `A * x == y;` | `constraints = [A @ x == y]` |
# | `cvx_end` | `cp.Problem(objective, constraints).solve()` |
# | `x` | `x.value` |
#
# `*` between two arrays is the entrywise product in Python; the matrix product is `@`.

# %%
n, m, k = 256, 96, 16
truth = sparse_signal(n, k, seed=3)
A = operators.gaussian(m, n, seed=4).to_dense()
y = A @ truth

x = cp.Variable(n)
objective = cp.Minimize(cp.norm(x, 1))
constraints = [A @ x == y]
problem = cp.Problem(objective, constraints)
problem.solve()

print("status       ", problem.status)
print("objective    ", f"{problem.value:.6f}")
print("largest error", f"{np.abs(x.value - truth).max():.0e}")

# %% [markdown]
# ## The same in one line
#
# `recover` states the problem, chooses a solver and, when the solver is done, computes a
# certificate outside of it.

# %% alt="Three panels: the true signal, its 96 measurements, and the recovered signal on top of the true one"
found = lowrank.recover(A, y)
print("status       ", found.status.name)
print("objective    ", f"{found.objective:.6f}")
print("proven bound ", f"{found.dual_objective:.6f}")
print("largest error below 1e-12:", bool(np.abs(found.x - truth).max() < 1e-12))
print("relative gap below 1e-12: ", bool(found.gap < 1e-12))

found.plot(truth=truth, measurements=y)

# %% [markdown]
# ## What the certificate says
#
# A solver that says "done" asks to be believed. A certificate does not. For any vector v with
# $\|A^T v\|_\infty \le 1$, and any x with $Ax = y$,
#
# $$y^T v = x^T A^T v \le \|x\|_1 \|A^T v\|_\infty \le \|x\|_1 ,$$
#
# so $y^T v$ is a lower bound for *every* solution. If one solution's $\|x\|_1$ equals the bound,
# no other is smaller: x is optimal, whoever found it. The difference of the two is the **duality
# gap**.
#
# Optimal does not mean unique, and it does not mean true: it says that the *optimisation problem*
# was solved. If the answer is optimal and still wrong, it is the measurements that were too few;
# the solver is not to blame, and another solver will not help.
#
# A vector v can tell more. Where $|A^T v| < 1$, no optimal x can be non-zero. If some v is $\pm
# 1$ on the support, below 1 everywhere else, and the columns of the support are independent, then
# x is not only optimal but the *only* optimum. `dual_certificate` looks for such a v:

# %% alt="Dots of A transposed times v for all 256 columns: plus or minus one on the true support, within 0.75 everywhere else"
on = np.flatnonzero(truth)
unique = dual_certificate(A, on, np.sign(truth[on]))
correlation = A.T @ unique.v
print("largest value off the support:", f"{unique.off_support:.3f}")
print("proves that x is the only one:", unique.proves)

_, ax = plt.subplots(figsize=(7.5, 2.8))
ax.plot(correlation, color="0.45", ls="none", marker=".", ms=4, label="all columns")
ax.plot(on, correlation[on], "C1s", ls="none", mfc="none", label="true support")
ax.axhline(1, color="black", ls="--", lw=0.8)
ax.axhline(-1, color="black", ls="--", lw=0.8)
ax.set(xlabel="index i", ylabel="(Aᵀv)[i]", title="This dual vector reaches ±1 on the support only")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## An honest failure
#
# With 30 measurements of 16 non-zeros there is no hope (notebook 4 says why). The answer is
# certified all the same, and it is not the signal: a *shorter* vector fits the measurements.

# %%
few = lowrank.recover(A[:30], y[:30])
print("status          ", few.status.name)
print("‖x found‖₁      ", f"{np.abs(few.x).sum():.3f}")
print("‖true x‖₁       ", f"{np.abs(truth).sum():.3f}")
print("relative error  ", f"{np.linalg.norm(few.x - truth) / np.linalg.norm(truth):.2f}")

# %% [markdown]
# **Claim.** `recover` and the problem written out in CVXPY have the same optimum, the gap proves
# it, and a certified answer from too few measurements is optimal and wrong.

# %%
assert abs(found.objective - problem.value) < 1e-6 * problem.value
assert found.gap < 1e-12
v = np.asarray(found.dual)
assert np.abs(A.T @ v).max() <= 1 + 1e-12
assert abs(y @ v - found.objective) < 1e-10 * found.objective
assert np.abs(found.x - truth).max() < 1e-12
assert unique.proves
assert few.status.ok
assert np.abs(few.x).sum() < np.abs(truth).sum()
