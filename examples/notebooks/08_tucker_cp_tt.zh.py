# %% [markdown]
# # 8. Tucker、CP 与张量链
#
# **问题：卷积核有四个轴，SVD 只看到两个。能看到四个轴的分解会更好吗？它们又变成什么样的层？**
#
# 卷积核是形状为（输出、输入、高、宽）的张量 W。下面是四种用更少的数来表示它的方法，以 64 → 64 通道、3 × 3 为例：
#
# | 分解 | 公式 | 变成的层 |
# |---|---|---|
# | 展开矩阵的 SVD | $W_{o,(ihw)} \approx \sum_r U_{or} V_{r,(ihw)}$ | 3 × 3 到 r 个通道，再 1 × 1 |
# | Tucker-2 | $W_{oihw} \approx \sum_{pq} U_{op}\, G_{pqhw}\, V_{iq}$ | 1 × 1，较少通道上的 3 × 3，再 1 × 1 |
# | CP | $W_{oihw} \approx \sum_r a_{or}\, b_{ir}\, c_{hr}\, d_{wr}$ | 1 × 1，逐通道的 3 × 1 与 1 × 3，再 1 × 1 |
# | 张量链 | $W_{oihw} \approx \sum_{pqs} A_{ip}\, B_{phq}\, C_{qws}\, D_{so}$ | 1 × 1、3 × 1、1 × 3、1 × 1 |
#
# 它们全是现成的层，运行时不需要任何新算子。

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
# ## 误差与存储数
#
# 在一个训练好的卷积核上，取每种分解的一系列秩。（张量链与轴的次序有关，这里用表中的次序。）

# %% alt="误差随存储量的变化：CP 最低，其次 Tucker-2，SVD 与张量链在上方"
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
# 在这个卷积核上，误差相同时 CP 需要的数最少，其次是 Tucker-2；张量链的秩只按经验选取，与 SVD 相近。那为什么不总用 CP？第一，权重误差小不等于速度快：逐通道的 3 × 1 层 MAC 很少，搬运的内存却不比别的层少。第二，CP 有一种“病”。
#
# ## 变成什么样的层
#
# 对只含这一层的网络走一遍 `compress`：

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
# ## CP 的退化
#
# *矩阵*的最佳秩 2 逼近总是存在的，*张量*的却不一定。经典例子：
#
# $$T = a \otimes a \otimes b + a \otimes b \otimes a + b \otimes a \otimes a$$
#
# 它的秩为 3，而秩 2 的张量却可以任意接近它：
#
# $$n\,\Big(a + \tfrac1n b\Big)^{\otimes 3} - n\, a^{\otimes 3} = T + O(1/n).$$
#
# 越接近，这两项就越大：n 与 −n 相互抵消。交替最小二乘的拟合正是朝这个方向跑。在精确运算中这无害，在网络里却不然：舍入或者一步微调，对每个大项只是微扰，对它们的差却是大扰动。衡量它的量是*敏感度*：因子的微小扰动在张量中被放大多少。`cp` 给它设了上界（`max_sensitivity`，默认为 10）。

# %% alt="误差随灵敏度的变化：拟合越来越好，而因子改变 1% 之后的误差越来越差"
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
# 不加上界时，拟合看上去最好，用起来却最差。在训练好的卷积核上，这个上界同样成立，而且没有代价：

# %%
for fit in found["CP"]:
    print(
        f"rank {fit.rank:3}: error {fit.error(W):.1%}, sensitivity {fit.sensitivity:.1f}, {fit.status}"
    )

# %% [markdown]
# **结论。** 只用三分之一的数时，四种分解中 CP 误差最小，Tucker-2 次之；对退化张量，无界拟合的单项是张量本身的 20 倍以上，1% 的扰动就毁了它，有界拟合则不会。

# %%
at_a_third = {name: float(np.interp(1 / 3, sizes[name], errors[name])) for name in found}
assert sorted(at_a_third, key=at_a_third.get)[:2] == ["CP", "Tucker-2"]
bounded, unbounded = table[bounds.index(10)], table[-1]
assert unbounded[1] > 20
assert unbounded[2] < 1e-3 < bounded[2] < 1e-2
assert unbounded[3] > 5 * bounded[3]
assert all(fit.sensitivity <= 10 + 1e-6 for fit in found["CP"])
