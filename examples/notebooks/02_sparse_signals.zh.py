# %% [markdown]
# # 2. 稀疏信号及其测量
#
# **问题：信号有 N 个数，少于 N 次的测量能装下它的全部信息吗？**
#
# 若一个信号至多有 k 个非零元素，就称它是 *k-稀疏* 的。描述它大约只需 2k 个数：非零元素的位置和取值。压缩感知利用的正是这一点余地。

# %% alt="长度 256 的信号，只有八个非零元素"
import math

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import operators, sparse_signal

plt.style.use("notebooks.mplstyle")
N, k = 256, 8
x = sparse_signal(N, k, seed=1)

_, ax = plt.subplots(figsize=(7.5, 2.4))
ax.axhline(0, color="black", lw=1)
ax.vlines(np.flatnonzero(x), 0, x[x != 0], colors="C0")
ax.plot(np.flatnonzero(x), x[x != 0], "C0o")
ax.set(
    xlabel="index i",
    xlim=(-5, N + 5),
    ylabel="x[i]",
    title=f"A {k}-sparse signal of length N = {N}",
)
plt.show()

# %% [markdown]
# ## 一次测量就是一个加权和
#
# 我们不去逐个查看元素：大多数元素为零，看一个几乎得不到信息。相反，每次测量都是*所有*元素的加权和，权重就是测量矩阵 $A$（m 行 N 列）的一行：
#
# $$y = A x, \qquad y_j = \sum_{i=1}^{N} A_{ji}\, x_i .$$
#
# 这里的权重是随机的高斯数，方差为 1/m，因此平均而言 $\|Ax\|^2 = \|x\|^2$。

# %% alt="按比例画出的 y = A x：y 有 64 行，A 有 64 行 256 列，x 有 256 行，其中八行有颜色"
m = 64
A = operators.gaussian(m, N, seed=2).to_dense()
y = A @ x

_, ax = plt.subplots(figsize=(7.5, 5.6))
places = {"y": (y[:, None], 0, 16), "A": (A, 44, 44 + N), "x": (x[:, None], 330, 346)}
for name, (values, left, right) in places.items():
    rows, columns = values.shape
    scale = np.abs(values).max()
    where = (left, right, rows, 0)  # one unit to each row, in all three
    ax.imshow(values, cmap="RdBu_r", vmin=-scale, vmax=scale, extent=where, interpolation="none")
    ax.add_patch(plt.Rectangle((left, 0), right - left, rows, fill=False, lw=0.8))
    ax.text((left + right) / 2, -4, f"{name}\n{rows} × {columns}", ha="center", va="bottom")
ax.text(30, m / 2, "=", fontsize=18, ha="center", va="center")
ax.text(315, m / 2, "·", fontsize=22, ha="center", va="center")
ax.text(44, m + 12, "red: positive, blue: negative, white: zero", va="top")
ax.set(xlim=(-4, 352), ylim=(N + 2, -34))
ax.axis("off")
plt.show()

# %% [markdown]
# ## 为什么 m ≪ N 就可能足够
#
# $y = A x$ 有 m 个方程、N 个未知数。m < N 时解有无穷多个，单靠线性代数分不出哪一个才是所要的；稀疏性可以：
#
# - 假如两个 k-稀疏信号给出同一个 y，它们之差是 2k-稀疏的，并被 $A$ 映为零，那么 $A$ 的某 2k 列必然线性相关。
# - 对随机高斯矩阵，任意 2k ≤ m 列（以概率 1）线性无关。所以 **m = 2k 次测量就能唯一确定一个 k-稀疏信号**，与 N 无关。
#
# 这回答了什么是*可能*的。但照此去找信号，就得试遍所有支撑集，而支撑集实在太多：

# %%
supports = math.comb(N, k)
years = supports * 10e-6 / (3600 * 24 * 365)
print(f"{supports:.1e} supports of {k} among {N}: at 10 µs for each, {years:.0f} years")

# %% [markdown]
# ## 出路：绝对值之和最小
#
# 在 $Ax = y$ 的所有解中，取 $\|x\|_1 = \sum |x_i|$ 最小的那一个。这是一个线性规划，几毫秒就能解出。它需要的测量数比 2k 多一些（量级为 $2k \log(N/k)$，精确数字见第 4 个笔记本），但仍远小于 N。

# %% alt="三幅图：稀疏信号；最小二乘解处处很小，是错的；L1 解与信号相同"
found = lowrank.recover(A, y)
least_squares = np.linalg.pinv(A) @ y  # the solution with the least sum of squares

figure, axes = plt.subplots(3, 1, figsize=(7.5, 5.2), sharex=True, sharey=True)
rows = (
    (x, f"the signal, {k} non-zeros", "C0", "o"),
    (least_squares, "least sum of squares: fits y as well, and is wrong", "C2", "^"),
    (found.x, f"least sum of absolute values, from m = {m} of N = {N}", "C1", "s"),
)
for ax, (values, title, colour, marker) in zip(axes, rows, strict=True):
    shown = np.flatnonzero(np.abs(values) > 1e-9)
    ax.vlines(shown, 0, values[shown], colors=colour, lw=1)
    ax.plot(shown, values[shown], color=colour, marker=marker, ls="none", ms=4)
    ax.axhline(0, color="black", lw=0.6)
    ax.set(title=title, ylabel="x[i]")
axes[-1].set_xlabel("index i")
plt.show()

# %% [markdown]
# ## 需要多少次测量？
#
# 对每个 m 抽取 40 个信号，统计能恢复出来的比例。


# %% alt="恢复比例随测量数的变化：少于 24 次全失败，56 次起全部成功，介于 2k 与 2k ln(N/k) 两条线之间"
def share_recovered(m: int, trials: int = 40) -> float:
    """Share of random k-sparse signals that come back from m Gaussian measurements."""
    signals = np.stack([sparse_signal(N, k, seed=(m, t)) for t in range(trials)], axis=1)
    matrix = operators.gaussian(m, N, seed=m).to_dense()
    errors = np.linalg.norm(lowrank.recover(matrix, matrix @ signals).x - signals, axis=0)
    return float(np.mean(errors < 1e-4 * np.linalg.norm(signals, axis=0)))


sizes = [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64]
shares = [share_recovered(m) for m in sizes]

_, ax = plt.subplots()
ax.plot(sizes, shares, "C0o-", label="recovered by L1")
ax.axvline(2 * k, color="C1", ls="--", label=f"2k = {2 * k}: possible in principle")
ax.axvline(2 * k * math.log(N / k), color="C2", ls="-.", label="2k ln(N/k)")
ax.set(xlabel=f"measurements m (of N = {N})", ylabel="share of signals recovered", xlim=(0, 70))
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# **结论。** N = 256 个数可由 m = 64 个随机加权和完全恢复，误差只在舍入量级；而最小二乘范数解则丢失了信号的大部分。

# %%
size = np.linalg.norm(x)
assert np.linalg.norm(A @ least_squares - y) < 1e-10 * np.linalg.norm(y)
assert np.linalg.norm(least_squares - x) > 0.5 * size
assert np.linalg.norm(found.x - x) < 1e-8 * size
assert found.status.ok
assert shares[0] == 0
assert shares[-1] == 1
