# %% [markdown]
# # 11. 挑选通道
#
# **问题：LASSO 会保留一层中的哪些通道？为什么少而宽的步骤比多而细的步骤更快？**
#
# 低秩保留一层的所有通道，只是用更少的数去算它们。挑选则去掉整条通道：产生它们的层和读取它们的层都变窄。用的是 `lowrank` 自带的 ResNet-20（Fashion-MNIST 图片：© 2017 Zalando SE，MIT 许可证）。

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import lowrank
from lowrank.compression import accuracy, compare_latency
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.sensing import lasso_path

plt.style.use("notebooks.mplstyle")
torch.manual_seed(0)
model = resnet20()
images, _ = fashion_mnist("train")
few = images[:128]
test_images, test_labels = (part[::2] for part in fashion_mnist("test"))
rng = np.random.default_rng(0)

# %% [markdown]
# ## 一层和它的读者
#
# 第二阶段的一个块里，`conv1` 产生 32 条通道，只有 `conv2` 读取它们。通道 c 给 `conv2` 的输出加上自己的一份 y_c，整个输出就是 32 份之和。若把通道 c 乘以 b_c，输出变成 Σ b_c y_c。于是对 b 做 LASSO 就是在挑选通道（He、Zhang、Sun 2017）：一边让和接近原来的输出，一边把系数压向零。随机抽取几千个输出位置就够了。

# %%
block = model.get_submodule("stages.1.1")
seen = {}
handle = block.conv2.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
with torch.no_grad():
    model(few)
handle.remove()
n = seen["x"].shape[1]
patches = torch.nn.functional.unfold(seen["x"], 3, padding=1).movedim(1, 2).reshape(-1, 9 * n)
patches = patches[torch.randperm(len(patches))[:6000]].double().numpy()
patches -= patches.mean(0)  # a batch norm takes the mean
X, fresh = patches[:3000], patches[3000:]  # to fit on, and to look at
W = block.conv2.weight.detach().double().numpy().reshape(n, n, 9)  # (outputs, channels, taps)

parts = np.einsum("rck,ock->roc", X.reshape(-1, n, 9), W)  # of each channel, in each output
A = parts.reshape(-1, n)
y = A.sum(1)
print(f"A has {A.shape[0]:,} rows and {n} columns; y is their sum")

# %% [markdown]
# ## 路径
#
# 惩罚很大时，一条通道也不许留。惩罚下降，通道一条接一条地进来。先进来的，留得最久。

# %% alt="32 条通道的系数沿 LASSO 路径的变化：少数很早升起，多数接近末端才升；旁边是进入的先后与各通道大小，大的先来，但顺序不同"
gram = np.linalg.qr(A, mode="r")  # the same problem with as many rows as channels
path = lasso_path(gram, gram.sum(1), n_lams=80, smallest=0.05)
share = path.lams / path.lams[0]
entered = np.array([share[np.flatnonzero(b)].max(initial=0.0) for b in path.coefficients])
order = np.argsort(-entered)
size = np.linalg.norm(A, axis=0)

_, axes = plt.subplots(1, 2, figsize=(10.5, 3.9))
for c in range(n):
    first = c in order[:8]
    axes[0].plot(
        share, path.coefficients[c], color="C0" if first else "0.75", lw=1.6 if first else 0.8
    )
axes[0].set(
    xscale="log", xlabel="penalty / largest", ylabel="scale b of a channel", title="The path"
)
axes[0].invert_xaxis()
axes[1].scatter(
    size / size.max(), entered, color=np.where(np.isin(range(n), order[:8]), "C0", "0.6")
)
axes[1].set(xlabel="size of a channel's part, relative", ylabel="penalty at which it enters")
axes[1].set(yscale="log", title="Large ones early, in another order")
plt.show()
print("first eight channels:", ", ".join(map(str, order[:8])))

# %% [markdown]
# 蓝色的通道最先进来。大的通道往往先来，但顺序并不等于大小：如果一条通道的那一份与已经进来的某条相似，它能补充的就不多，于是来得晚。
#
# ## 这个顺序值多少
#
# 通道选定之后，用最小二乘重新拟合读者，让留下的通道弥补去掉的。下图是在拟合没有见过的位置上，输出损失的比例：按 LASSO 的顺序、按大小、随机。在这一层里各通道各说各的，按大小与按 LASSO 一样好；最要紧的是重新拟合。


# %% alt="输出损失的比例随保留通道数的变化：重新拟合后，LASSO 与按大小的曲线几乎重合，都低于随机；不拟合时同样的通道损失多出几倍"
def lost(kept: np.ndarray, refit: bool = True) -> float:
    """Share of the output that is lost with these channels alone."""
    columns = (9 * kept[:, None] + np.arange(9)).ravel()
    whole = W.reshape(n, -1).T
    reader = np.linalg.lstsq(X[:, columns], X @ whole, rcond=None)[0] if refit else whole[columns]
    wanted = fresh @ whole
    return float(np.square(wanted - fresh[:, columns] @ reader).sum() / np.square(wanted).sum())


counts = range(2, n, 2)
chance = rng.permutation(n)
orders = {"LASSO": order, "size": np.argsort(-size), "chance": chance}
curves = {name: [lost(o[:k]) for k in counts] for name, o in orders.items()}
bare = [lost(order[:k], refit=False) for k in counts]

_, ax = plt.subplots(figsize=(7, 4))
for (name, values), style in zip(curves.items(), ("-o", "--s", ":^"), strict=True):
    ax.plot(counts, values, style, ms=4, label=name)
ax.plot(counts, bare, "-", color="C0", alpha=0.4, label="LASSO, not fitted anew")
ax.set(xlabel=f"channels kept of {n}", ylabel="share of the output lost", yscale="log")
ax.legend()
plt.show()

# %% [markdown]
# ## 整个网络
#
# `methods="select"` 对所有单元同时这样做，把预算花在代价最小的地方。一条残差流是一个单元：它的通道在所有块里同去同留。MACs 减半时：

# %% alt="失去通道的各层还剩多少：块内的层比残差流失去得多"
narrow, report = lowrank.compress(
    model, few[:1], macs=0.5, data=few, methods="select", effort="quick"
)
thin, _ = lowrank.compress(
    model, few[:1], macs=0.5, data=few, methods="channel_svd", effort="quick"
)
outputs = {n: w.outputs for n, w in report.plan.narrowed.items() if w.outputs is not None}
stays = {n: 100 * len(kept.places) / kept.of for n, kept in outputs.items()}

_, ax = plt.subplots(figsize=(8, 4.4))
ax.barh(list(stays), list(stays.values()), color="C0", edgecolor="black", linewidth=0.5)
ax.set(xlabel="outputs that stay, %", xlim=(0, 100), title="Half of the MACs, by channels alone")
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
plt.show()
dense_accuracy = accuracy(model, test_images, test_labels)
scores = {"channels": accuracy(narrow, test_images, test_labels)}
scores["low rank"] = accuracy(thin, test_images, test_labels)
for name, value in scores.items():
    print(f"{name:9} {value:.1%} (dense {dense_accuracy:.1%})")

# %% [markdown]
# ## 少而宽，还是多而细
#
# 在同样的 MACs 下，低秩损失更小：它可以保留通道的任意组合，而挑选只能原样保留其中一些。但是时钟也数步骤。低秩把一层变成两层，张量列（tensor train）变成四层；每一层都要启动，中间细细的数据流要写出再读回；批归一化和激活仍和原来一样宽。变窄的网络步骤与原来一样多，而每一步，包括批归一化，要做的都更少。（数字取自运行这本笔记的机器，你的会不同。）

# %% tags=["timing"] alt="MACs 减半时保留的时间与卷积的个数：通道更少的网络卷积与稠密网络一样多，最快；张量列卷积最多，最慢"
train, _ = lowrank.compress(model, few[:1], macs=0.5, methods="tensor_train", effort="quick")
networks = {"fewer channels": narrow, "channel SVD": thin, "tensor train": train}
dense_time, *times = compare_latency([model, *networks.values()], test_images[:64], repeats=9)
kept = {k: 100 * t.median_ms / dense_time.median_ms for k, t in zip(networks, times, strict=True)}


def convolutions(network: torch.nn.Module) -> int:
    """How many there are to run, one after another."""
    return sum(isinstance(m, torch.nn.Conv2d) for m in network.modules())


steps = {name: convolutions(network) for name, network in networks.items()}
_, ax = plt.subplots(figsize=(7.5, 2.6))
bars = ax.barh(list(kept), list(kept.values()), color=["C0", "C1", "C2"], edgecolor="black", lw=0.6)
ax.bar_label(bars, [f" {steps[name]} convolutions" for name in kept])
ax.axvline(100, color="black", ls=":", lw=1)
ax.set(xlabel="time of 64 pictures, % of the dense network's", xlim=(0, 170))
ax.invert_yaxis()
ax.grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# 所以：要省存储或 MACs，用低秩；要省时间，两者并用。`compress(latency=0.5, methods=["channel_svd", "select"])` 会让库按时钟把两者一起试。
#
# **论断。** 在这一层里，按 LASSO 的顺序留下一半通道并重新拟合读者，输出的损失小于随机挑选，至多比按大小挑选多一成，而且不到读者原样时同样这些通道的一半。MACs 减半时，变窄的网络要跑的卷积与稠密网络一样多，分解后的网络则多得多。

# %%
half = n // 2
assert lost(order[:half]) < lost(chance[:half])
assert lost(order[:half]) < 1.1 * lost(np.argsort(-size)[:half])
assert lost(order[:half]) < 0.5 * lost(order[:half], refit=False)
assert report.kept("macs") <= 0.5
assert steps["fewer channels"] == convolutions(model)
assert steps["tensor train"] > steps["channel SVD"] > 1.5 * convolutions(model)
