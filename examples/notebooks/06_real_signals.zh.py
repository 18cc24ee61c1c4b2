# %% [markdown]
# # 6. 真实信号
#
# **问题：心跳和照片都不是稀疏的，还能从少量测量中恢复吗？**
#
# 它们*在另一个基下*是稀疏的：$x = \Psi c$，c 中只有少数大的元素。无论用哪个基，方法都一样：测量加权和，再找能解释测量的最小 $\|c\|_1$。
#
# ## 小波基下的心电图
#
# 1024 个采样点（PyWavelets 自带的心电图），用 256 个随机加权和来测量。

# %% alt="心电图及其排序后的系数：小波系数在 100 个之后降到百分之一，采样值几乎不降"
import matplotlib.pyplot as plt
import numpy as np
import pywt
from scipy.linalg import hadamard

import lowrank
from lowrank.sensing import bases, gallery, operators, solve, total_variation

plt.style.use("notebooks.mplstyle")


def decibels(truth: np.ndarray, found: np.ndarray) -> float:
    """Signal to error, 20 log10(||x|| / ||x - x'||)."""
    return float(20 * np.log10(np.linalg.norm(truth) / np.linalg.norm(truth - found)))


ecg = pywt.data.ecg().astype(float)
Psi = bases.wavelet(ecg.size, name="sym4", level=6)
c = np.sort(np.abs(Psi.adjoint(ecg)))[::-1]
kept = np.cumsum(c**2) / np.sum(c**2)
print(
    f"99.9 % of the energy lies in {np.argmax(kept > 0.999) + 1} of {c.size} wavelet coefficients"
)

figure, axes = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2, 1))
axes[0].plot(ecg, lw=1)
axes[0].set(xlabel="sample", ylabel="ECG (raw units)")
axes[1].semilogy(c / c[0], label="in wavelets")
axes[1].semilogy(np.sort(np.abs(ecg))[::-1] / np.abs(ecg).max(), label="in samples")
axes[1].set(xlabel="rank of the coefficient", ylabel="size / largest", ylim=(1e-4, 1.5))
axes[1].legend()
plt.show()

# %% [markdown]
# 粗尺度小波的系数比细尺度的大，可以把这一点告诉 L1 范数：`scale_weights` 让粗尺度的系数更“便宜”。

# %% alt="由 256 个和恢复的心电图与真实值重合；按尺度加权的误差约为等权的一半"
A = operators.gaussian(256, ecg.size, seed=0)
equal = lowrank.recover(A, A @ ecg, basis=Psi)
scaled = lowrank.recover(A, A @ ecg, basis=Psi, weights=bases.scale_weights(Psi))

figure, axes = plt.subplots(2, 1, figsize=(9, 4.4), sharex=True)
axes[0].plot(ecg, color="0.6", ls="-", lw=3, label="ECG")
axes[0].plot(scaled.x, "C1-", lw=1, label=f"from 256 sums, {decibels(ecg, scaled.x):.1f} dB")
axes[1].plot(equal.x - ecg, "C0-", lw=0.8, label=f"equal weights, {decibels(ecg, equal.x):.1f} dB")
axes[1].plot(scaled.x - ecg, "C1-", lw=0.8, label=f"by scale, {decibels(ecg, scaled.x):.1f} dB")
axes[0].set(ylabel="ECG (raw units)")
axes[1].set(xlabel="sample", ylabel="error (raw units)")
for ax in axes:
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## 由少数几条傅里叶线恢复图像
#
# 磁共振扫描仪逐线测量图像的傅里叶变换，每条线都要花时间。头部体模本身不稀疏，但它的*梯度*稀疏：它是分片常数的。于是最小化全变分，即梯度长度之和：
#
# $$\min_x \sum_i \lVert (\nabla x)_i \rVert_2 \quad \text{满足测得的傅里叶系数。}$$

# %% alt="体模、傅里叶变换中测量的直线、其余取零得到的模糊图像，以及全变差恢复的精确图像"
n, lines = 96, 20
phantom = gallery.radial_phantom(n, lines)
mask = operators.radial_mask((n, n), lines)
zero_filled = phantom.A.adjoint(phantom.y).real
found = solve(phantom.problem)

pictures = {
    "the phantom": phantom.signal,
    f"measured: {100 * mask.mean():.0f} % of the\nfrequencies": np.fft.fftshift(mask).ravel(),
    f"the rest taken as zero:\nerror {100 * phantom.error(zero_filled):.0f} %": zero_filled,
    "least total variation:\nexact to 6 digits": found.x,
}
figure, axes = plt.subplots(1, 4, figsize=(10, 3))
for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
    ax.imshow(np.reshape(picture, (n, n)), vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.axis("off")
plt.show()

# %% [markdown]
# ## 单像素相机
#
# 微镜阵列依次显示一幅幅图案，单个探测器测量通过的总光量：每个数就是场景与一幅图案的内积。图案取沃尔什–哈达玛矩阵的行，只有黑白两色；先用变化最慢的若干行，其余随机抽取。场景是一张公有领域的照片（PyWavelets 的 `ascent`），128 × 128 像素。

# %% alt="128 × 128 像素的照片，以及由 20%、40%、60% 的数恢复的图像，一次比一次清晰"
photo = pywt.data.ascent().astype(float)
scene = photo.reshape(128, 4, 128, 4).mean(axis=(1, 3)) / 255
side, pixels = 128, scene.size

changes = (np.diff(hadamard(side), axis=1) != 0).sum(axis=1)  # of sign, along each row
frequency = np.hypot(*np.meshgrid(changes, changes, indexing="ij")).ravel()


def patterns(m: int, seed: int = 0) -> np.ndarray:
    """m rows: those of lowest frequency first, the others at random, rarer the faster they are."""
    keys = np.random.default_rng(seed).exponential(size=pixels)
    return np.argsort(np.where(frequency < 16, 0, keys * frequency**2))[:m]


def camera(m: int) -> np.ndarray:
    """The scene from m numbers, by total variation."""
    H = operators.partial_hadamard(pixels, rows=patterns(m))
    y = H @ scene.ravel()
    return solve(total_variation(H, y, (side, side), epsilon=0.002 * np.linalg.norm(y)), tol=1e-3).x


shares = (0.2, 0.4, 0.6)
taken = {share: camera(int(share * pixels)).reshape(side, side) for share in shares}

figure, axes = plt.subplots(2, 2, figsize=(7.5, 8))
axes = axes.ravel()
axes[0].imshow(scene, vmin=0, vmax=1)
axes[0].set_title(f"the scene, {pixels} pixels", fontsize=10)
for ax, (share, picture) in zip(axes[1:], taken.items(), strict=True):
    ax.imshow(picture, vmin=0, vmax=1)
    quality = decibels(scene, picture)
    ax.set_title(f"{100 * share:.0f} % as many numbers\n{quality:.1f} dB", fontsize=10)
for ax in axes:
    ax.axis("off")
plt.show()

# %% [markdown]
# 照片只是*近似*稀疏：质量随测量数提高，却永远不会精确，这与体模不同。
#
# **结论。** 心电图可由采样点数四分之一的加权和恢复，信噪比超过 20 dB；体模可由五分之一的频率精确恢复；照片则随图案增多而越来越好。

# %%
assert equal.status.ok
assert scaled.status.ok
assert decibels(ecg, scaled.x) > 20
assert decibels(ecg, scaled.x) > decibels(ecg, equal.x)
assert mask.mean() < 0.21
assert phantom.error(found.x) < 1e-6
assert phantom.error(zero_filled) > 0.3
quality = [decibels(scene, taken[share]) for share in shares]
assert quality == sorted(quality)
assert quality[1] > 18
