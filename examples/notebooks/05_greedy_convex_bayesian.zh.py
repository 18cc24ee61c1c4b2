# %% [markdown]
# # 5. 贪婪、凸优化与贝叶斯
#
# **问题：有三类方法能恢复稀疏信号，各适合什么场合？**
#
# | 类别 | 做什么 | 需要知道 | 例子 |
# |---|---|---|---|
# | 贪婪 | 加入最好的一列，重新拟合，反复进行 | 非零元素个数 k | OMP、CoSaMP |
# | 凸优化 | 使 $\tfrac12\Vert Ax-y\Vert^2 + \lambda\Vert x\Vert_1$ 最小 | 噪声水平（经由 $\lambda$） | LASSO |
# | 贝叶斯 | 稀疏先验下 $p(x \mid y)$ 的均值 | 矩阵是随机的 | AMP、VAMP |
#
# 所有方法面对同一个问题：n = 400 个未知数，m = 200 次高斯测量，k 个取自 N(0, 1) 的非零元素，再加噪声。

# %%
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank.sensing import PosteriorMean, lam_max, operators, solve, sparse_signal

plt.style.use("notebooks.mplstyle")
n, m = 400, 200
Method = Callable[[np.ndarray, np.ndarray, int, float], np.ndarray]


def draw(k: int, std: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix, a k-sparse signal and its measurements with noise of that standard deviation."""
    rng = np.random.default_rng(seed)
    A = operators.gaussian(m, n, seed=rng).to_dense()
    x = sparse_signal(n, k, seed=rng)
    return A, x, A @ x + std * rng.standard_normal(m)


def lasso(A: np.ndarray, y: np.ndarray, k: int, std: float) -> np.ndarray:
    """LASSO at lam = std sqrt(2 log n); basis pursuit where there is no noise."""
    if std == 0:
        return lowrank.recover(A, y).x
    return lowrank.recover(A, y, lam=std * np.sqrt(2 * np.log(n))).x


methods: dict[str, Method] = {
    "OMP": lambda A, y, k, std: lowrank.recover(A, y, sparsity=k, solver="omp").x,
    "CoSaMP": lambda A, y, k, std: lowrank.recover(A, y, sparsity=k, solver="cosamp").x,
    "LASSO": lasso,
    "Bayes AMP": lambda A, y, k, std: solve(PosteriorMean(A, y), "bg_amp").x,
}
markers = dict(zip(methods, "osD^", strict=True))


def error(found: np.ndarray, x: np.ndarray) -> float:
    """The relative error of the answer."""
    return float(np.linalg.norm(found - x) / np.linalg.norm(x))


# %% [markdown]
# ## 一次看完整条 LASSO 路径
#
# $\lambda$ 在拟合误差与稀疏之间权衡。$\lambda_{\max} = \|A^T y\|_\infty$ 时答案为零；随着它减小，系数一个接一个进入，真实的系数排在前面。

# %% alt="LASSO 路径：惩罚减小时，十个真实系数最先离开零，其余随后出现且很小"
A, x, y = draw(k=10, std=0.05, seed=7)
top = lam_max(A, y)
lams = top * np.logspace(0, -3, 30)
path = np.array([lowrank.recover(A, y, lam=lam).x for lam in lams])
chosen = 0.05 * np.sqrt(2 * np.log(n))

_, ax = plt.subplots(figsize=(7.5, 4))
true = np.flatnonzero(x)
ax.plot(lams, np.delete(path, true, axis=1), color="0.65", ls="-", lw=0.7)
ax.plot(lams, path[:, true], color="C0", ls="-")
ax.plot([], [], color="C0", ls="-", label="true non-zeros")
ax.plot([], [], color="0.65", ls="-", lw=0.7, label="all others")
ax.axvline(chosen, color="C1", ls="--", label="σ √(2 log n)")
ax.set(xscale="log", xlabel="penalty λ", ylabel="coefficient")
ax.invert_xaxis()
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# 按通常的取法 $\lambda = \sigma\sqrt{2\log n}$，几乎没有错误的系数进入，而真实系数都被向零拉了约 $\lambda$：这是惩罚项的代价。在支撑集上做一次最小二乘（`debias=True`）即可补回。
#
# ## 精度与非零元素个数


# %% alt="无噪声时中位误差随非零数的变化：OMP 与 CoSaMP 在 68 处失效，LASSO 在 80 处，Bayes AMP 到 104 仍有效"
def median_errors(ks: list[int], stds: list[float], trials: int = 5) -> dict[str, list[float]]:
    """Median relative error of every method at each pair of k and noise."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for k, std in zip(ks, stds, strict=True):
        drawn = [draw(k, std, seed=1000 * k + t) for t in range(trials)]
        for name, method in methods.items():
            errors = [error(method(A, y, k, std), x) for A, x, y in drawn]
            found[name].append(float(np.median(errors)))
    return found


ks = [8, 20, 32, 44, 56, 68, 80, 92, 104]
clean = median_errors(ks, [0.0] * len(ks))

_, ax = plt.subplots(figsize=(7.5, 4))
for name, errors in clean.items():
    ax.plot(ks, np.maximum(errors, 1e-16), marker=markers[name], label=name)
ax.axvline(lowrank.sensing.l1_threshold(m / n) * m, color="0.4", ls=":", label="exact limit of L1")
ax.axvline(lowrank.sensing.bayes_threshold(m / n) * m, color="0.4", ls="--", label="of Bayes AMP")
ax.set(yscale="log", xlabel=f"non-zeros k (n = {n}, m = {m})", ylabel="median relative error")
ax.set_title("Without noise")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# 贝叶斯方法知道得最多（元素服从高斯分布、矩阵是随机的），走得也最远。凸优化方法需要知道的最少，而且附带证明。
#
# ## 精度与噪声

# %% alt="中位误差随噪声的变化：各方法都成比例增长；LASSO 约为其余的五倍"
stds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2]
k = 32
noisy = median_errors([k] * len(stds), stds)


def told_the_support(std: float, seed: int) -> float:
    """Relative error of least squares by someone who knows where the non-zeros are."""
    A, x, y = draw(k, std, seed)
    best = np.zeros(n)
    best[x != 0] = np.linalg.lstsq(A[:, x != 0], y, rcond=None)[0]
    return error(best, x)


oracle = [np.median([told_the_support(std, 1000 * k + t) for t in range(5)]) for std in stds]

_, ax = plt.subplots(figsize=(7.5, 4))
for name, errors in noisy.items():
    ax.plot(stds, errors, marker=markers[name], label=name)
ax.plot(stds, oracle, color="black", ls=":", label="told the support")
ax.set(xscale="log", yscale="log", ylabel="median relative error")
ax.set(xlabel="standard deviation of each measurement's noise", title=f"k = {k}")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# 误差都与噪声成正比，正该如此。LASSO 因收缩而付出一个常数倍的代价。
#
# ## 时间
#
# 单个信号在这台机器上的运行时间；数字因机器而异，次序则大致不变。

# %% tags=["timing"]
A, x, y = draw(32, 0.01, seed=1)
for name, method in methods.items():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        method(A, y, 32, 0.01)
        times.append(time.perf_counter() - start)
    print(f"{name:10} {1000 * np.median(times):7.1f} ms")

# %% [markdown]
# ## 病态矩阵
#
# AMP 的理论要求矩阵元素独立。这里把高斯矩阵的各行从 1 逐渐缩小到 1/30。VAMP 适用于行正交的矩阵，我们给它同样的信息：方程 $A x = y$ 可以左乘 QR 分解得到的 $R^{-1}$，没有噪声时毫无损失。

# %%
A, x, _ = draw(32, 0.0, seed=5)
skewed = np.logspace(0, np.log10(1 / 30), m)[:, None] * A + 0.05  # and a common offset
y = skewed @ x
Q, R = np.linalg.qr(skewed.T)  # skewed = R^T Q^T
orthonormal = operators.from_matrix(Q.T, row_orthonormal=True)

amp = solve(PosteriorMean(skewed, y), "bg_amp")
vamp = solve(PosteriorMean(orthonormal, np.linalg.solve(R.T, y)), "vamp")
convex = lowrank.recover(skewed, y)
for name, found in (("AMP", amp), ("VAMP", vamp), ("basis pursuit", convex)):
    exact = "exact" if error(found.x, x) < 1e-6 else "wrong"
    print(f"{name:14} {found.status.name:10} {exact}")

# %% [markdown]
# **结论。** 越过 L1 的极限后，只有贝叶斯方法仍能恢复；有噪声时，所有误差都与噪声成正比；对 AMP 不适用的矩阵，AMP 失败并如实报告，而 VAMP 与基追踪都得到精确结果。

# %%
past = ks.index(92)
assert clean["Bayes AMP"][past] < 1e-6
assert min(clean[name][past] for name in ("OMP", "CoSaMP", "LASSO")) > 0.1
for errors in noisy.values():
    assert 5 < errors[2] / errors[0] < 20  # ten times the noise
for name, errors in noisy.items():
    assert errors[0] < (8 if name == "LASSO" else 2) * oracle[0]
assert not amp.status.ok
assert error(vamp.x, x) < 1e-6
assert error(convex.x, x) < 1e-6
assert convex.status.ok
