# %% [markdown]
# # 4. 什么时候恢复会成功？
#
# **问题：能否在测量之前，仅凭矩阵就判断哪些信号能被恢复？**
#
# 有三种回答，从最省力、最保守的到精确的：
#
# 1. **相干性** $\mu$：任意两列夹角余弦的最大值。若 $k < (1 + 1/\mu)/2$，则*每一个* k-稀疏信号都能恢复。容易计算，但非常保守。
# 2. **约束等距性质** $\delta_{k}$：任意 k 列偏离标准正交的程度。若 $\delta_{2k} < 1/\sqrt 2$，则每一个 k-稀疏信号都能恢复。更精确，但计算它是 NP 难的：对支撑集抽样只能得到*下界*，所以抽样可以否定该条件，却永远不能证明它。
# 3. **相变**：对大型高斯矩阵，在一条精确已知的曲线之下，*几乎所有* k-稀疏信号都能恢复；在曲线之上则几乎都不能。

# %%
import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import (
    babel,
    l1_threshold,
    mutual_coherence,
    operators,
    restricted_isometry,
    sparse_signal,
)
from lowrank.sensing.phase_transition import phase_transition

plt.style.use("notebooks.mplstyle")
n, m = 128, 64
rng = np.random.default_rng(0)
columns = np.arange(n)


def unit_columns(A: np.ndarray) -> np.ndarray:
    """The matrix with every column scaled to length 1."""
    return A / np.linalg.norm(A, axis=0)


low_rows = np.cos(np.pi * np.outer(np.arange(m), columns + 0.5) / n)
matrices = {
    "Gaussian": operators.gaussian(m, n, seed=1).to_dense(),
    "64 random rows of a DCT": operators.partial_dct(n, m=m, seed=1).to_dense(),
    "the 64 lowest rows of a DCT": low_rows,
}
matrices = {name: unit_columns(A) for name, A in matrices.items()}

# %% [markdown]
# 第三个矩阵是不走运的那个。它的行与第二个矩阵同样好，数量也一样；但都是慢变的余弦，于是相邻的列几乎相同。低通滤波器和失焦的相机做的正是这件事。

# %% alt="三个矩阵的累积相干性随列数的变化；二到四列之后都超过一"
print(f"{'matrix':30} coherence   sure for k ≤   RIP of order 8, at least")
for name, A in matrices.items():
    mu = mutual_coherence(A)
    sure = int(np.ceil((1 + 1 / mu) / 2) - 1)
    rip = restricted_isometry(A, 8, samples=3000)
    print(f"{name:30} {mu:9.3f} {sure:14d} {rip.constant:26.2f}")

_, ax = plt.subplots()
for (name, A), marker in zip(matrices.items(), "os^", strict=True):
    sums = babel(A, 12)
    ax.plot(np.arange(1, len(sums) + 1), sums, marker=marker, label=name)
ax.axhline(1, color="black", lw=0.8, ls=":")
ax.set(xlabel="number of other columns", ylabel="sum of largest |cosines|", ylim=(0, 4))
ax.set_title("How much k columns can resemble one other (cumulative coherence)")
ax.legend()
plt.show()

# %% [markdown]
# 相干性只能为一两个非零元素担保。要为 k = 4 担保，8 阶约束等距常数必须小于 $1/\sqrt2 \approx 0.71$：抽样已经否定了其中两个矩阵，对第三个则悬而未决。按这些标准，连高斯矩阵也几乎没有希望。但两者说的都是*最坏*的信号。那么普通的信号会怎样？


# %% alt="恢复比例随非零数的变化：高斯矩阵与随机 DCT 行在精确界限 24.7 处下降，DCT 最低的若干行早得多"
def share_recovered(A: np.ndarray, k: int, trials: int = 50) -> float:
    """Share of random k-sparse signals that come back."""
    X = np.stack([sparse_signal(n, k, seed=(k, t)) for t in range(trials)], axis=1)
    errors = np.linalg.norm(lowrank.recover(A, A @ X).x - X, axis=0)
    return float(np.mean(errors < 1e-4 * np.linalg.norm(X, axis=0)))


ks = np.array([1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40])
shares = {name: [share_recovered(A, k) for k in ks] for name, A in matrices.items()}
limit = l1_threshold(m / n) * m

_, ax = plt.subplots()
for (name, share), marker in zip(shares.items(), "os^", strict=True):
    ax.plot(ks, share, marker=marker, label=name)
ax.axvline(limit, color="black", lw=0.9, ls=":", label=f"exact limit, k = {limit:.1f}")
ax.set(xlabel=f"non-zeros k (n = {n}, m = {m})", ylabel="share recovered")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# 高斯矩阵和随机 DCT 矩阵能恢复的非零元素数，是相干性所担保的十倍，并且两者在同一处失效，正是精确曲线所说的地方。不走运的矩阵则早早失效：在它看来，两个相邻的尖峰几乎一样。
#
# ## 精确曲线
#
# 对高斯矩阵，固定 $\delta = m/n$ 与 $\rho = k/m$ 而让 n 增大，恢复的比例在下式处从 1 跳到 0（Donoho 与 Tanner）：
#
# $$g(z) = (1+z^2)\Phi(-z) - z\varphi(z), \quad \rho(\delta) = \max_z \frac{1 - 2g(z)/\delta}{1 + z^2 - 2g(z)}$$
#
# 我们用不大的 n 在整个平面上实测，每个点试 10 次：

# %% alt="m/n 与 k/m 平面上的填色图：Donoho–Tanner 曲线以下恢复成功，以上失败"
deltas = np.linspace(0.2, 0.9, 12)
rhos = np.linspace(0.06, 0.94, 16)
result = phase_transition(deltas, rhos, n=100, trials=10, seed=0)
result.plot()
plt.show()

# %%
exact = np.array([l1_threshold(d) for d in result.deltas])
measured = result.threshold()
print("m/n      " + "  ".join(f"{d:.2f}" for d in result.deltas))
print("exact    " + "  ".join(f"{r:.2f}" for r in exact))
print("measured " + "  ".join(f"{r:.2f}" for r in measured))

# %% [markdown]
# n = 100 时，跳变还是一个斜坡，但它的中点已经落在曲线上。
#
# **结论。** 实测的相变与 Donoho-Tanner 曲线相差不到 0.05；随机 DCT 与高斯矩阵一样好；而同一个 DCT 的最低频各行所能恢复的非零元素不到一半。

# %%
assert np.abs(measured - exact).max() < 0.05
gaussian, random_dct, unlucky = (np.array(s) for s in shares.values())
at = ks <= 16
assert gaussian[at].min() >= 0.98
assert random_dct[at].min() >= 0.98
assert unlucky[ks >= 12].max() < 0.5 < min(gaussian[ks <= 24].min(), random_dct[ks <= 24].min())
