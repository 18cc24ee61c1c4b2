# %% [markdown]
# # 3. 用凸优化恢复信号
#
# **问题：不逐一尝试所有支撑集，怎样找到最稀疏的解？又怎样知道找到的就是它？**
#
# ## 三种“小”
#
# 满足 $Ax = y$ 的 x 有很多。“最简单”可以有三种含义：
#
# | 度量 | 公式 | 偏好 | 求最小的代价 |
# |---|---|---|---|
# | $\|x\|_0$（只是计数，并非范数） | 非零元素个数 | 最稀疏 | NP 难 |
# | $\|x\|_1$ | $\sum \lvert x_i\rvert$ | 稀疏，因为它的球有尖角 | 线性规划 |
# | $\|x\|_2$ | $\sqrt{\sum x_i^2}$ | 能量最小，几乎从不稀疏 | 一个公式 |
#
# 在二维且只有一次测量时，$Ax = y$ 的解是一条直线。把每种度量的球逐渐放大，直到它首次碰到这条直线：

# %% alt="直线 A x = y 与三种球：L0 在坐标轴上相触，L1 在坐标轴上的角点相触，L2 在轴外相触"
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
# L1 球是包住单位长度 1-稀疏点的最紧凸集。它的尖角在坐标轴上，因此碰到直线时落在稀疏点；圆的 L2 球碰到的点则没有零元素。（L0 图中有两个解：m = 1、k = 1 时 m < 2k，测量数不足以确定信号。）
#
# ## 写出基追踪
#
# $$\min_x \|x\|_1 \quad \text{subject to} \quad A x = y$$
#
# 熟悉 MATLAB 中 CVX 的读者会发现 CVXPY 几乎一样：
#
# | MATLAB 的 CVX | Python 的 CVXPY |
# |---|---|
# | `cvx_begin` | |
# | `variable x(n)` | `x = cp.Variable(n)` |
# | `minimize( norm(x, 1) )` | `objective = cp.Minimize(cp.norm(x, 1))` |
# | `subject to` | |
# | `A * x == y;` | `constraints = [A @ x == y]` |
# | `cvx_end` | `cp.Problem(objective, constraints).solve()` |
# | `x` | `x.value` |
#
# 在 Python 里，两个数组之间的 `*` 是逐元素相乘；矩阵乘法写作 `@`。

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
# ## 同样的事，一行代码
#
# `recover` 写出问题、选择求解器；求解器结束后，再在其外部计算一份证书。

# %% alt="三幅图：真实信号、它的 96 个测量值，以及与真实信号重合的恢复结果"
found = lowrank.recover(A, y)
print("status       ", found.status.name)
print("objective    ", f"{found.objective:.6f}")
print("proven bound ", f"{found.dual_objective:.6f}")
print("largest error below 1e-12:", bool(np.abs(found.x - truth).max() < 1e-12))
print("relative gap below 1e-12: ", bool(found.gap < 1e-12))

found.plot(truth=truth, measurements=y)

# %% [markdown]
# ## 证书说明了什么
#
# 求解器说“完成了”，是要人相信它；证书则不需要信任。对任何满足 $\|A^T v\|_\infty \le 1$ 的向量 v，以及任何满足 $Ax = y$ 的 x，
#
# $$y^T v = x^T A^T v \le \|x\|_1 \|A^T v\|_\infty \le \|x\|_1 ,$$
#
# 所以 $y^T v$ 是*所有*解的下界。若某个解的 $\|x\|_1$ 等于这个下界，就没有更小的解：不管是谁找到的，x 都是最优的。两者之差就是**对偶间隙**。
#
# 最优不等于唯一，也不等于真实：它只说明*优化问题*解对了。如果答案最优却仍是错的，那是测量太少，怪不得求解器，换一个求解器也没有用。
#
# 向量 v 还能说明更多：凡 $|A^T v| < 1$ 之处，任何最优解都必为零。如果某个 v 在支撑集上等于 $\pm 1$、在其余处小于 1，且支撑集对应的列线性无关，那么 x 不仅最优，而且是*唯一*的最优解。`dual_certificate` 寻找的就是这样的 v：

# %% alt="全部 256 列的 Aᵀv：在真实支撑上恰为 ±1，其余都在 0.75 以内"
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
# ## 一次诚实的失败
#
# 用 30 次测量去恢复 16 个非零元素是没有希望的（原因见第 4 个笔记本）。答案照样有证书，但它不是原信号：另有一个 L1 范数*更小*的向量符合这些测量。

# %%
few = lowrank.recover(A[:30], y[:30])
print("status          ", few.status.name)
print("‖x found‖₁      ", f"{np.abs(few.x).sum():.3f}")
print("‖true x‖₁       ", f"{np.abs(truth).sum():.3f}")
print("relative error  ", f"{np.linalg.norm(few.x - truth) / np.linalg.norm(truth):.2f}")

# %% [markdown]
# **结论。** `recover` 与用 CVXPY 写出的问题有相同的最优值，对偶间隙给出了证明；而测量太少时，有证书的答案虽然最优，却是错的。

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
