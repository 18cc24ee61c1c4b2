# %% [markdown]
# # 9. 低秩加稀疏
#
# **问题：一台固定相机、一个场景、几样在动的东西。不事先知道两者的模样，能把静止部分和运动部分分开吗？**
#
# 把每一帧写成一列。静止的背景几乎是同一列的重复，因此是*低秩*的；运动的物体在每帧中只占少数像素，因此是*稀疏*的。鲁棒主成分分析（主成分追踪）从两者之和中把它们同时找出来：
#
# $$\min_{L,S}\ \|L\|_* + \lambda \|S\|_1 \quad \text{满足} \quad L + S = M, \qquad \lambda = 1/\sqrt{\max(m, n)} .$$
#
# $\|L\|_*$ 是奇异值之和：它之于秩，正如 $\|S\|_1$ 之于非零元素个数。
#
# ## 一段画出来的视频
#
# 背景是一张公有领域的照片（PyWavelets 的 `ascent`），光照缓慢变化；一只靴子和一个包（Fashion-MNIST 图片，MIT 许可证）从中穿过。视频是画出来的，所以真相已知。

# %%
import matplotlib.pyplot as plt
import numpy as np
import pywt
import torch

from lowrank.decompositions import go_dec, robust_pca, truncated_svd
from lowrank.demos.bundled import PIXEL_MEAN, PIXEL_STD, fashion_mnist, resnet20

plt.style.use("notebooks.mplstyle")
height, width, frames = 64, 96, 60
scene = pywt.data.ascent()[:384:6, :480:5].astype(float) / 255
light = 0.85 + 0.15 * np.sin(np.linspace(0, 3, frames))

images, labels = fashion_mnist("test")
pictures = (images[:, 0].numpy() * PIXEL_STD + PIXEL_MEAN).clip(0, 1)
boot, bag = (pictures[np.flatnonzero(labels.numpy() == kind)[0]][::2, ::2] for kind in (9, 8))


def frame(t: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame and its background."""
    still = scene * light[t]
    seen = still.copy()
    for thing, top, speed, start in ((boot, 44, 1.4, 0), (bag, 8, -1.2, 82)):
        left = int(start + speed * t)
        patch = seen[top : top + 14, max(left, 0) : left + 14]
        part = thing[:, max(-left, 0) :][:, : patch.shape[1]]
        patch[part > 0.05] = part[part > 0.05]
    return seen, still


drawn = [frame(t) for t in range(frames)]
M = np.stack([seen.ravel() for seen, _ in drawn], axis=1)
truth = np.stack([still.ravel() for _, still in drawn], axis=1)
print(f"M has {M.shape[0]} rows (pixels) and {M.shape[1]} columns (frames)")
print(f"{100 * np.mean(truth != M):.1f} % of the entries show something that moves")

# %% [markdown]
# 主成分分析给出平方意义下最佳的低秩*拟合*：凡是运动的东西都会拉扯它，留下残影。鲁棒主成分分析不受拉扯。

# %% alt="三帧：视频、PCA 误差中的残影、稳健 PCA 的静止背景与运动物体"
robust = robust_pca(M)
plain = truncated_svd(torch.from_numpy(M), 1).to_tensor().numpy()
print(f"{robust.status.name}, gap below 1e-6: {robust.gap < 1e-6}")
plain_error, robust_error = (
    np.linalg.norm(L - truth) / np.linalg.norm(truth) for L in (plain, robust.L)
)
print(
    f"error of the background: PCA {plain_error:.1%}, robust PCA below 1e-5: {robust_error < 1e-5}"
)

figure, axes = plt.subplots(3, 4, figsize=(10, 5.4))
for row, t in zip(axes, (10, 30, 50), strict=True):
    shown = {
        f"frame {t}": M[:, t],
        "error of PCA, 4 times": 4 * np.abs(plain - truth)[:, t],
        "robust PCA: still, L": robust.L[:, t],
        "robust PCA: moving, |S|": np.abs(robust.S[:, t]),
    }
    for ax, (title, values) in zip(row, shown.items(), strict=True):
        ax.imshow(values.reshape(height, width), vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
        ax.axis("off")
plt.show()

# %% alt="奇异值（对数轴）：视频的六十个缓慢下降，背景只有一个"
_, ax = plt.subplots()
for name, matrix, marker in (("M, the video", M, "o"), ("L, the background", robust.L, "s")):
    s = np.linalg.svd(matrix, compute_uv=False)
    s = s[s > 1e-9 * s[0]]  # below that, zero but for rounding
    label = f"{name}: {len(s)} above zero"
    ax.semilogy(np.arange(1, len(s) + 1), s / s[0], marker=marker, ms=5, label=label)
ax.set(xlabel="number of the singular value", ylabel="size / largest", ylim=(1e-3, 2))
ax.legend()
plt.show()

# %% [markdown]
# ## 把同样的分解用于网络层
#
# 它也能压缩网络吗？低秩层会丢掉少数孤立的大权重；把它们单独存为 S，L 也许就不需要那么高的秩。下面取自带 ResNet-20 的一个 3 × 3 卷积，展开为 64 × 576，在存储数目相等的条件下比较。稀疏元素还要存位置，所以每个按两个数计。

# %% alt="层的误差随存储量的变化，四种稀疏占比：一半在 S 中最低，全部在 L 中最高"
conv = resnet20().stages[2][1].conv1
W = conv.weight.detach().flatten(1).double()
rows, columns = W.shape


def split_error(stored: int, share: float) -> float:
    """Relative error of rank plus sparse with that many stored values, a share of them in S."""
    rank = max(1, round(stored * (1 - share) / (rows + columns)))
    card = max(0, (stored - rank * (rows + columns)) // 2)
    parts = go_dec(W, rank, card)
    return float(torch.linalg.norm(W - parts.L - parts.S) / torch.linalg.norm(W))


budgets = np.array([0.2, 0.3, 0.4, 0.5, 0.6])
splits = {"all in L": 0.0, "a quarter in S": 0.25, "half in S": 0.5, "nine tenths in S": 0.9}
errors = {n: [split_error(int(b * W.numel()), s) for b in budgets] for n, s in splits.items()}

_, ax = plt.subplots()
for (name, values), marker in zip(errors.items(), "os^D", strict=True):
    ax.plot(100 * budgets, 100 * np.array(values), marker=marker, label=name)
ax.set(xlabel="stored values, % of the dense layer", ylabel="‖W − L − S‖ / ‖W‖, %")
ax.legend()
plt.show()

# %% [markdown]
# 分解确实有帮助：存储相等时误差降低 5% 到 15%。但这里并没有“背景加少数运动物体”的结构：剩下的权重是分散的，而且稀疏部分要跑得快还需要专门的算子。所以 `lowrank.compress` 只在存储要紧时才保留单个权重，要速度时则在因子之外保留整个通道或滤波器。
#
# **结论。** 鲁棒主成分分析精确地找到了背景，并附有证书，而同秩的主成分分析有百分之几的误差；在卷积层上，把一半存储放进 S 能降低误差，幅度不到五分之一。

# %%
assert robust.status.ok
assert robust.gap < 1e-6
assert robust_error < 1e-5
assert plain_error > 0.02
ratios = np.array(errors["half in S"]) / np.array(errors["all in L"])
assert ((ratios > 0.8) & (ratios < 1)).all()
