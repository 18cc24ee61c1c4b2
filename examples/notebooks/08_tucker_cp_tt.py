# %% [markdown]
# # 8. Tucker, CP and tensor trains
#
# **Question: a convolution's kernel has four axes. The SVD sees two. Do decompositions that see
# all four do better, and what layers do they become?**
#
# The kernel is a tensor W of shape (out, in, height, width). Four ways to write it with fewer
# numbers; for 64 → 64 channels and 3 × 3:
#
# | decomposition | formula | becomes the layers |
# |---|---|---|
# | SVD of an unfolding | $W_{o,(ihw)} \approx \sum_r U_{or} V_{r,(ihw)}$ | 3 × 3 to r channels, then 1 × 1 |
# | Tucker-2 | $W_{oihw} \approx \sum_{pq} U_{op}\, G_{pqhw}\, V_{iq}$ | 1 × 1, then 3 × 3 on fewer channels, then 1 × 1 |
# | CP | $W_{oihw} \approx \sum_r a_{or}\, b_{ir}\, c_{hr}\, d_{wr}$ | 1 × 1, 3 × 1 and 1 × 3 on single channels (depthwise), 1 × 1 |
# | tensor train | $W_{oihw} \approx \sum_{pqs} A_{ip}\, B_{phq}\, C_{qws}\, D_{so}$ | 1 × 1, 3 × 1, 1 × 3, 1 × 1 |
#
# Stock layers, all of them; nothing new has to run.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import lowrank
from lowrank.decompositions import cp, tensor_train, truncated_svd, tucker
from lowrank.demos.bundled import resnet20

plt.style.use("notebooks.mplstyle")
layer = resnet20().stages[2][1].conv1
W = layer.weight.detach()
print("kernel", tuple(W.shape), "with", W.numel(), "numbers")

# %% [markdown]
# ## Error against numbers stored
#
# Each decomposition at a row of ranks, on a trained kernel. (Tensor trains depend on the order of
# the axes; that of the table is used.)

# %% alt="Error against numbers stored: CP lies lowest, then Tucker-2, with SVD and tensor train above"
T = W.permute(1, 2, 3, 0)  # in, height, width, out
found = {
    "SVD": [truncated_svd(W.flatten(1), r) for r in (8, 12, 16, 24, 32, 40, 48)],
    "Tucker-2": [tucker(W, (r, r), modes=(0, 1)) for r in (10, 16, 22, 28, 34, 40, 48)],
    "CP": [cp(W, r) for r in (20, 40, 60, 90, 120, 150)],
    "tensor train": [tensor_train(T, (r, 2 * r, r)) for r in (8, 12, 16, 20, 26, 32)],
}
targets = {"SVD": W.flatten(1), "tensor train": T}
sizes = {n: np.array([f.n_params for f in fs]) / W.numel() for n, fs in found.items()}
errors = {n: np.array([f.error(targets.get(n, W)) for f in fs]) for n, fs in found.items()}

_, ax = plt.subplots(figsize=(7.5, 4))
for (name, size), marker in zip(sizes.items(), "os^D", strict=True):
    ax.plot(100 * size, 100 * errors[name], marker=marker, label=name)
ax.set(xlabel="numbers stored, % of the kernel", ylabel="‖W − W′‖ / ‖W‖, %", xlim=(0, 90))
ax.legend()
plt.show()

# %% [markdown]
# On this kernel CP needs the fewest numbers for an error and Tucker-2 the next fewest; the tensor
# train, whose ranks were chosen by a rule of thumb, is close to the SVD. Why then not always CP?
# First, a small error of the weights is not speed: depthwise 3 × 1 layers run few MACs and move
# as much memory as any other layer. Second, CP has a disease.
#
# ## What they become
#
# The whole path through `compress`, for a network of this one layer:

# %%
net = nn.Sequential(layer)
example = torch.zeros(1, 64, 7, 7)
for method in ("channel_svd", "tucker2", "cp", "tensor_train"):
    small, report = lowrank.compress(net, example, macs=0.4, methods=[method])
    print(f"{method}: keeps {report.kept('macs'):.0%} of the MACs")
    for part in small.modules():
        if isinstance(part, nn.Conv2d):
            kernel = " x ".join(map(str, part.kernel_size))
            groups = "" if part.groups == 1 else f", {part.groups} groups"
            print(f"    {part.in_channels:4} -> {part.out_channels:<4} {kernel}{groups}")

# %% [markdown]
# ## CP's degeneracy
#
# The best rank-2 approximation of a *matrix* exists. That of a *tensor* need not. The standard
# example:
#
# $$T = a \otimes a \otimes b + a \otimes b \otimes a + b \otimes a \otimes a$$
#
# has rank 3, and yet rank 2 comes as close as one likes:
#
# $$n\,\Big(a + \tfrac1n b\Big)^{\otimes 3} - n\, a^{\otimes 3} = T + O(1/n).$$
#
# The closer, the larger the two terms: n against −n, cancelling each other. A fit by alternating
# least squares runs straight after this. In exact arithmetic that is harmless. In a network it is
# not: rounding, or one step of fine-tuning, disturbs each large term a little, and the difference
# a lot. The measure is the *sensitivity*, how much a small disturbance of the factors grows in
# the tensor; `cp` bounds it (`max_sensitivity`, 10 by default).

# %% alt="Error against sensitivity: the fit gets better and better while the error after a change of 1 % gets worse"
a, b = torch.eye(4, dtype=torch.float64)[:2]


def outer(*vectors: Tensor) -> Tensor:
    return torch.einsum("i,j,k->ijk", *vectors)


degenerate = outer(a, a, b) + outer(a, b, a) + outer(b, a, a)


def disturbed(factors: list[Tensor], target: Tensor, size: float, trials: int = 200) -> float:
    """Median relative error after a random change of every factor by that share of its norm."""
    rng = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(trials):
        noise = [torch.randn(F.shape, generator=rng, dtype=F.dtype) for F in factors]
        moved = [F + size * F.norm() * N / N.norm() for F, N in zip(factors, noise, strict=True)]
        made = torch.einsum("ir,jr,kr->ijk", *moved)
        errors.append(float((target - made).norm() / target.norm()))
    return float(np.median(errors))


bounds = (3, 5, 10, 20, 50, 100, 1000)
fits = [cp(degenerate, 2, max_sensitivity=bound, max_iter=2000, tol=1e-10) for bound in bounds]
print("sensitivity   size of a term / ‖T‖   error     error after a change of 1 %")
rows = []
for fit in fits:
    size = float(fit.weights.max() / degenerate.norm())
    shaken = disturbed(list(fit.balanced()), degenerate, 0.01)
    rows.append((fit.sensitivity, size, fit.error(degenerate), shaken))
    print(f"{rows[-1][0]:11.1f} {size:22.1f} {rows[-1][2]:7.2%} {shaken:18.1%}")

table = np.array(rows)
_, ax = plt.subplots()
ax.loglog(table[:, 0], 100 * table[:, 2], "C0o-", label="as fitted")
ax.loglog(table[:, 0], 100 * table[:, 3], "C1s--", label="after a change of the factors by 1 %")
ax.axvline(10, color="0.4", ls=":", label="bound by default")
ax.set(xlabel="sensitivity of the fit", ylabel="relative error, %")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Unbounded, the fit looks the best and is the worst to use. On the trained kernel the bound holds
# too, and costs nothing there:

# %%
for fit in found["CP"]:
    print(
        f"rank {fit.rank:3}: error {fit.error(W):.1%}, sensitivity {fit.sensitivity:.1f}, {fit.status}"
    )

# %% [markdown]
# **Claim.** At a third of the numbers CP has the least error of the four and Tucker-2 the next;
# the unbounded fit of the degenerate tensor has terms 20 times its size and is ruined by a change
# of 1 %, the bounded one is not.

# %%
at_a_third = {name: float(np.interp(1 / 3, sizes[name], errors[name])) for name in found}
assert sorted(at_a_third, key=at_a_third.get)[:2] == ["CP", "Tucker-2"]
bounded, unbounded = table[bounds.index(10)], table[-1]
assert unbounded[1] > 20
assert unbounded[2] < 1e-3 < bounded[2] < 1e-2
assert unbounded[3] > 5 * bounded[3]
assert all(fit.sensitivity <= 10 + 1e-6 for fit in found["CP"])
