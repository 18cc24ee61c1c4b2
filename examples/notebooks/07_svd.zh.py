# %% [markdown]
# # 7. SVD：最佳低秩图像与最佳低秩层
#
# **问题：奇异值分解给出矩阵的最佳逼近。它也是网络层的最佳逼近吗？**
#
# 每个 m × n 矩阵都是若干秩一矩阵之和，按大小排列：
#
# $$W = \sum_i s_i\, u_i v_i^T, \qquad s_1 \ge s_2 \ge \dots \ge 0 .$$
#
# 保留前 r 项。在平方和意义下，没有哪个秩为 r 的矩阵更接近（Eckart–Young 定理）；误差可以预先知道：$\|W - W_r\|^2 = \sum_{i>r} s_i^2$；只需存 $r(m+n)$ 个数，而不是 $mn$ 个。
#
# ## 一张照片
#
# 一张公有领域的照片（PyWavelets 的 `ascent`，512 × 512）。只要 $r < mn/(m+n) = 256$，存储就更小。

# %% alt="照片的秩 5 近似（条纹状模糊）、秩 20、秩 80（几乎与原图无异）以及原图"
import matplotlib.pyplot as plt
import numpy as np
import pywt
import torch
from torch import Tensor, nn

from lowrank.decompositions import singular_values, truncated_svd
from lowrank.demos.bundled import fashion_mnist

plt.style.use("notebooks.mplstyle")
torch.manual_seed(0)
photo = torch.from_numpy(pywt.data.ascent().astype(np.float64)) / 255
s = singular_values(photo)

figure, axes = plt.subplots(1, 4, figsize=(10, 3))
for ax, rank in zip(axes, (5, 20, 80, 512), strict=True):
    factors = truncated_svd(photo, rank)
    ax.imshow(factors.to_tensor(), vmin=0, vmax=1)
    kept = factors.n_params / photo.numel()
    title = f"rank {rank}: {kept:.0%} of the numbers\nerror {factors.error(photo):.1%}"
    ax.set_title(title if rank < 512 else "the photo\n", fontsize=10)
    ax.axis("off")
plt.show()

# %% alt="照片的奇异值谱（对数轴），以及误差随秩的变化：实测方块落在预测曲线上"
tail = torch.sqrt(torch.flip(torch.cumsum(torch.flip(s**2, [0]), 0), [0]) / (s**2).sum())
ranks_of_photo = [5, 20, 80, 160]
measured = [truncated_svd(photo, rank).error(photo) for rank in ranks_of_photo]

figure, axes = plt.subplots(1, 2, figsize=(9, 4))
axes[0].semilogy(np.arange(1, 513), s / s[0])
axes[0].set(xlabel="number i of the singular value", ylabel="s_i / s_1", title="Spectrum")
axes[1].plot(np.arange(512), 100 * tail, label="predicted from the spectrum")
axes[1].plot(ranks_of_photo, [100 * e for e in measured], "C1s", ls="none", label="measured")
axes[1].axvline(256, color="0.4", ls=":", label="as many numbers as the photo")
axes[1].set(xlabel="rank r", ylabel="‖W − W_r‖ / ‖W‖, %", title="Error against rank")
axes[1].legend(loc="upper left", bbox_to_anchor=(0, -0.2))
plt.show()

# %% [markdown]
# ## 一个线性层
#
# 层不是拿来看的，而是拿来*用*的。要紧的不是 $\|W - W'\|$，而是对真实输入 $x$（二阶矩 $C = E[x x^T]$）输出改变了多少：
#
# $$E\,\|Wx - W'x\|^2 = \operatorname{tr}\big((W - W')\, C\, (W - W')^T\big) = \|(W - W')\, C^{1/2}\|^2 .$$
#
# 输入变化大的方向误差代价高，其余方向代价低。如果输入是*白*的（$C = I$），两种误差就相同。所以：先白化，在白化空间做 SVD，再变回来。这里不需要求 C 的逆：设 $E$ 为 $W C W^T$ 的前 r 个特征向量，秩为 r 的最佳层就是
#
# $$W' = E E^T W .$$
#
# 我们训练一个小的 Fashion-MNIST 分类器（数据已自带，MIT 许可证），压缩它的第一层 784 → 256。相邻像素很相似，所以输入远不是白的。

# %%
(images, labels), (test_images, test_labels) = fashion_mnist("train"), fashion_mnist("test")
net = nn.Sequential(
    nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for _ in range(12):
    for batch in torch.randperm(len(images)).split(128):
        loss = nn.functional.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(weight: Tensor) -> float:
    """Share of right answers on the test pictures with this weight in the first layer."""
    hidden = test_images.flatten(1) @ weight.T + net[1].bias
    return float((net[2:](hidden).argmax(1) == test_labels).float().mean())


W = net[1].weight.detach()
X = images.flatten(1)
C = X.T @ X / len(X)
print(f"accuracy of the dense network: {accuracy(W):.0%}")
energy = torch.linalg.eigvalsh(C).flip(0).cumsum(0) / C.trace()
print(f"directions that hold 99 % of the inputs' energy: {int((energy < 0.99).sum()) + 1} of 784")


# %% alt="普通 SVD 与白化 SVD 随秩的比较：普通的权重误差小，白化的输出误差小、网络准确率高"
def plain(rank: int) -> Tensor:
    """Closest to W in its weights."""
    return truncated_svd(W, rank).to_tensor()


def whitened(rank: int) -> Tensor:
    """Closest to W in its outputs: E E^T W."""
    E = torch.linalg.eigh(W @ C @ W.T).eigenvectors[:, -rank:]
    return E @ (E.T @ W)


Z = test_images.flatten(1)  # pictures that C has not seen


def errors(weight: Tensor) -> tuple[float, float]:
    """Relative error of the weights, and of the outputs on the test pictures."""
    change = W - weight
    return (
        float(torch.linalg.norm(change) / torch.linalg.norm(W)),
        float(torch.linalg.norm(Z @ change.T) / torch.linalg.norm(Z @ W.T)),
    )


ranks = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96]
break_even = 784 * 256 / (784 + 256)
kinds = {"plain SVD": (plain, "C0o-"), "whitened SVD": (whitened, "C1s--")}
curves = {
    n: np.array([[*errors(f(r)), accuracy(f(r))] for r in ranks]) for n, (f, _) in kinds.items()
}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.3))
titles = ("‖W − W′‖ / ‖W‖", "error of the outputs", "accuracy of the network")
for at, (ax, title) in enumerate(zip(axes, titles, strict=True)):
    for name, curve in curves.items():
        ax.plot(ranks, 100 * curve[:, at], kinds[name][1], ms=4, label=name)
    ax.set(xlabel="rank r", ylabel="%", title=title, xscale="log")
    ax.set_xticks([1, 4, 16, 64], [1, 4, 16, 64])
axes[2].axhline(100 * accuracy(W), color="0.4", ls=":", label="dense")
axes[0].legend()
axes[2].legend()
plt.show()
print(f"a layer of rank r is smaller than the dense one below r = {break_even:.0f}")

# %% [markdown]
# 普通 SVD 在权重上*更接近*，在实际作用上却更差。所以给了数据时，`lowrank.measure(model, data=...)` 会利用数据，并且它预测的是输出的误差。
#
# **结论。** 照片的预测误差与实测误差一致；在该层上，对每个秩，普通 SVD 的权重误差更小，而白化 SVD 的输出误差更小，且所用图片未参与计算 C；秩为 8 时，用白化层的网络准确率高出 5 个百分点以上。

# %%
assert np.allclose(measured, [float(tail[rank]) for rank in ranks_of_photo], atol=1e-6)
svd, white = curves["plain SVD"], curves["whitened SVD"]
assert (svd[:, 0] <= white[:, 0] + 1e-6).all()
assert (white[:, 1] < svd[:, 1]).all()
at = ranks.index(8)
assert white[at, 2] > svd[at, 2] + 0.05
