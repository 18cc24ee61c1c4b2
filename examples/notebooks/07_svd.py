# %% [markdown]
# # 7. SVD: the best low-rank picture, and the best low-rank layer
#
# **Question: the SVD gives the best approximation of a matrix. Is that also the best
# approximation of a layer?**
#
# Every m × n matrix is a sum of rank-one pieces, sorted by size:
#
# $$W = \sum_i s_i\, u_i v_i^T, \qquad s_1 \ge s_2 \ge \dots \ge 0 .$$
#
# Keep the first r. No matrix of rank r is closer in the sum of squares (Eckart and Young), the
# error is known in advance, $\|W - W_r\|^2 = \sum_{i>r} s_i^2$, and it takes $r(m+n)$ numbers in
# place of $mn$.
#
# ## A photo
#
# A public-domain photo (PyWavelets' `ascent`, 512 × 512). It is stored smaller whenever $r <
# mn/(m+n) = 256$.

# %% alt="A photo at rank 5, a blur of stripes, at rank 20, at rank 80, hardly to be told from the photo, and the photo"
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

# %% alt="Spectrum of the photo on a log axis, and error against rank: measured squares lie on the predicted line"
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
# ## A linear layer
#
# A layer is not looked at; it is *used*. What counts is not $\|W - W'\|$ but the change of its
# output on the inputs that really come, $x$ with second moments $C = E[x x^T]$:
#
# $$E\,\|Wx - W'x\|^2 = \operatorname{tr}\big((W - W')\, C\, (W - W')^T\big) = \|(W - W')\, C^{1/2}\|^2 .$$
#
# Directions in which the inputs vary much are dear, others are cheap. If the inputs were *white*
# ($C = I$) the two errors would be the same. So: whiten, take the SVD there, and go back. It
# needs no inverse of C: with $E$ the first r eigenvectors of $W C W^T$, the best layer of rank r
# is
#
# $$W' = E E^T W .$$
#
# We train a small classifier of Fashion-MNIST pictures (bundled, MIT licence) and compress its
# first layer, 784 → 256. Neighbouring pixels are alike, so its inputs are anything but white.

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


# %% alt="Plain against whitened SVD over rank: plain is better in the weights, whitened in the outputs and in the accuracy of the network"
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
# The plain SVD is *better* in the weights and worse in what they do. That is why
# `lowrank.measure(model, data=...)` looks at data when it is given some, and why its predicted
# error is the output's.
#
# **Claim.** Predicted and measured error of the photo agree; on the layer, at every rank the
# plain SVD has the smaller error of the weights and the whitened one the smaller error of the
# outputs, on pictures not used to find C; and at rank 8 the network with the whitened layer is
# more accurate by 5 points and more.

# %%
assert np.allclose(measured, [float(tail[rank]) for rank in ranks_of_photo], atol=1e-6)
svd, white = curves["plain SVD"], curves["whitened SVD"]
assert (svd[:, 0] <= white[:, 0] + 1e-6).all()
assert (white[:, 1] < svd[:, 1]).all()
at = ranks.index(8)
assert white[at, 2] > svd[at, 2] + 0.05
