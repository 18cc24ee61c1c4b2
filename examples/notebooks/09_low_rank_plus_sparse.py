# %% [markdown]
# # 9. Low rank plus sparse
#
# **Question: one camera, one scene, some things that move. Can the still part and the moving part
# be told apart without being told what either looks like?**
#
# Write every frame as a column. The still background is nearly the same column again and again,
# so it is of *low rank*; what moves covers few pixels of each frame, so it is *sparse*. Robust
# PCA (principal component pursuit) finds both at once, from their sum:
#
# $$\min_{L,S}\ \|L\|_* + \lambda \|S\|_1 \quad \text{subject to} \quad L + S = M, \qquad \lambda = 1/\sqrt{\max(m, n)} .$$
#
# $\|L\|_*$ is the sum of the singular values, which is to the rank what $\|S\|_1$ is to the count
# of non-zeros.
#
# ## A drawn video
#
# The background is a public-domain photo (PyWavelets' `ascent`) under light that slowly changes;
# a boot and a bag (Fashion-MNIST pictures, MIT licence) cross it. It is drawn, so the truth is
# known.

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
# PCA keeps the best low-rank *fit*, in squares: everything that moves pulls at it and leaves
# ghosts. Robust PCA is not pulled.

# %% alt="Three frames: the video, the ghosts in the error of PCA, the still background and the moving things of robust PCA"
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

# %% alt="Singular values on a log axis: sixty of the video fall slowly, the background has a single one"
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
# ## The same split on a layer
#
# Would it compress a network as well? A low-rank layer loses what its few large, lonely weights
# do; keep those apart as S, and L may need less rank. Here is a 3 × 3 convolution of the bundled
# ResNet-20, unfolded to 64 × 576, at equal numbers of stored values. A sparse entry stores its
# place too; we count each as two.

# %% alt="Error of a layer against stored values for four shares of sparse weights: half in S is lowest, all in L highest"
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
# The split does help: at equal storage the error falls by 5 to 15 %. But it is no background with
# a few moving things: the weights left over are spread out, and a sparse part needs kernels of
# its own to be fast. That is why `lowrank.compress` takes single weights only where storage is
# what counts, and for speed keeps whole channels or filters beside the factors.
#
# **Claim.** Robust PCA finds the background exactly, with a certificate, where PCA of the same
# rank is off by some per cent; on the convolution half of the storage in S lowers the error, by
# less than a fifth.

# %%
assert robust.status.ok
assert robust.gap < 1e-6
assert robust_error < 1e-5
assert plain_error > 0.02
ratios = np.array(errors["half in S"]) / np.array(errors["all in L"])
assert ((ratios > 0.8) & (ratios < 1)).all()
