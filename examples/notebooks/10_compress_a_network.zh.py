# %% [markdown]
# # 10. 压缩一个网络
#
# **问题：一个训练好的网络能压到多小？会损失什么？真的会变快吗？**
#
# 用的是 `lowrank` 自带的 ResNet-20，在 Fashion-MNIST 上训练（图片：© 2017 Zalando SE，MIT 许可证）。流程是：*测量*一次，为任意预算*规划*，*应用*，*微调*，看*时钟*，保存。

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import lowrank
from lowrank.compression import accuracy, compare_latency
from lowrank.demos.bundled import fashion_mnist, resnet20

plt.style.use("notebooks.mplstyle")
torch.manual_seed(0)
model = resnet20()
images, labels = fashion_mnist("train")
test_images, test_labels = (part[::2] for part in fashion_mnist("test"))
example = test_images[:1]

cost = lowrank.profile(model, example)
print(
    f"{cost.parameters:,} parameters, {cost.bytes / 1e6:.2f} MB, {cost.macs / 1e6:.1f} M MACs a picture"
)
dense_accuracy = accuracy(model, test_images, test_labels)
print(f"accuracy on {len(test_images)} test pictures: {dense_accuracy:.1%}")

# %% [markdown]
# ## 测量一次，任意预算皆可规划
#
# `measure` 考察每个层、每种方法、每个秩。此后做一个方案只需几毫秒：这是一个背包问题。这里允许使用空间 SVD（先 k × 1，再 1 × k）。

# %% alt="四个层的误差随秩的变化，以及 MACs 减半的方案：每层保留多少，或保持稠密"
curves = lowrank.measure(model, example, methods=["spatial_svd"])
plan = curves.plan(macs=0.5)

figure, axes = plt.subplots(1, 2, figsize=(11, 5.6), width_ratios=(1, 1.3))
curves.plot(method="spatial_svd", ax=axes[0])
plan.plot(ax=axes[1])
plt.show()

# %% [markdown]
# ## 扫描一系列预算
#
# 先只看权重，完全不用数据：


# %%
def test_accuracy(network: nn.Module) -> float:
    """Share of right answers on the test pictures."""
    return accuracy(network, test_images, test_labels)


budgets = (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)
swept = lowrank.sweep(model, example, metric=test_accuracy, keeps=budgets, curves=curves)
by_weights = {point.keep: point.metric for point in swept}
for keep, share in by_weights.items():
    print(f"{keep:.0%} of the MACs: {share:.1%}")

# %% [markdown]
# 压到一半 MAC 时损失很小；到五分之一，准确率已如坠悬崖。在 20% 处有两种补救办法：
#
# 1. **利用数据。** 用 157 张图片（不看标签），方案便知道哪些输出要紧，并且每一层都按照它前面已压缩的层的实际输出来拟合，不走任何梯度步。
# 2. **微调。** 用 2,500 张图片训练一个周期，以原来的稠密网络为教师。

# %% alt="准确率随保留的 MACs 的变化，低于 30% 骤降；在 20% 处，错误率从只看权重、到拟合、到微调依次缩短"
few = images[::32]
on_data = lowrank.measure(model, example, data=few, methods=["spatial_svd"])
plan = on_data.plan(macs=0.2)
small, report = lowrank.apply(model, plan, example=test_images[:64], data=on_data.data)
fitted_accuracy = test_accuracy(small)

tuned = lowrank.finetune(
    small,
    teacher=model,
    data=(images[::2], labels[::2]),
    epochs=1,
    batch_size=32,
    mix=True,
    hints=[f"stages.{i}.{j}" for i in range(3) for j in range(3)],
    hint_weight=10.0,
    optimizer=lowrank.SOAP,
    lr=1e-3,
)
tuned_accuracy = test_accuracy(tuned)
print(f"20 % of the MACs, from the weights: {by_weights[0.2]:.1%}")
print(f"fitted on {len(few)} pictures:           {fitted_accuracy:.1%}")
print(f"and fine-tuned for one epoch:       {tuned_accuracy:.1%}")

wrong = {
    "from the weights": 1 - by_weights[0.2],
    f"fitted on {len(few)} pictures": 1 - fitted_accuracy,
    "and fine-tuned": 1 - tuned_accuracy,
    "dense": 1 - dense_accuracy,
}
_, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(1.1, 1))
swept.plot(ax=axes[0]).set(ylabel="accuracy", ylim=(0, 1), title="From the weights alone")
bars = axes[1].barh(list(wrong), [100 * share for share in wrong.values()])
for bar, colour in zip(bars, ("C0", "C1", "C2", "0.7"), strict=True):
    bar.set(color=colour, edgecolor="black", linewidth=0.6)
axes[1].bar_label(bars, fmt="%.1f", padding=3)
axes[1].set(xlabel="wrong answers, %", title="At 20 % of the MACs", xlim=(0, 60))
axes[1].invert_yaxis()
axes[1].grid(axis="y", visible=False)
plt.show()

# %% [markdown]
# ## 关于时间的真相
#
# MAC 数只是承诺，时钟会兑现吗？下面让四种方法都保留一半的 MAC，分别与稠密网络交替计时；再用一个*宽*层（256 → 256 通道，3 × 3）作对照，它更像大网络中的层。（数字来自运行本笔记本的机器，你的会有所不同。）


# %% tags=["timing"] alt="四种方法在 MACs 减半时保留的时间：ResNet-20 上为 80% 至 120%，宽层上接近应有的 50%"
def time_kept(dense: nn.Module, others: list[nn.Module], inputs: torch.Tensor) -> list[float]:
    """Median time of each network against the dense one's, timed in turns."""
    first, *rest = compare_latency([dense, *others], inputs, repeats=7)
    return [100 * latency.median_ms / first.median_ms for latency in rest]


methods = ["channel_svd", "spatial_svd", "tucker2", "tensor_train"]
wide = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, bias=False)).eval()
wide_input = torch.randn(4, 256, 28, 28)


def halved(network: nn.Module, inputs: torch.Tensor) -> list[nn.Module]:
    """The network at half of its MACs by each of the methods."""
    return [lowrank.compress(network, inputs[:1], macs=0.5, methods=[m])[0] for m in methods]


of_model, of_wide = halved(model, example), halved(wide, wide_input)
cases = {
    "ResNet-20, 1 picture": (model, of_model, example),
    "ResNet-20, 64 pictures": (model, of_model, test_images[:64]),
    "wide layer, 4 pictures": (wide, of_wide, wide_input),
}
times = {name: time_kept(*case) for name, case in cases.items()}

_, ax = plt.subplots(figsize=(8, 4))
hatches = ("", "//", "..", "xx")
for at, (method, hatch) in enumerate(zip(methods, hatches, strict=True)):
    where = np.arange(len(cases)) + 0.2 * (at - 1.5)
    values = [times[name][at] for name in cases]
    ax.bar(where, values, 0.19, label=method, hatch=hatch, color=f"C{at}", edgecolor="white")
ax.axhline(50, color="black", ls="--", lw=1, label="what the MACs promise")
ax.axhline(100, color="black", ls=":", lw=1, label="dense")
ax.set_xticks(range(len(cases)), list(cases))
ax.set_ylabel("time kept, %")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# 小网络上承诺为何不能兑现：
#
# - 一层变成两层或四层，每一层都要启动；只有一张 28 × 28 的图片时，启动占了大部分时间。
# - 很薄的层（5 或 10 个通道）用不好处理器的向量单元。
# - 批归一化、ReLU 和加法的开销与从前相同，它们本来就没有 MAC 可省。
# - 新的层与层之间的激活值要写出再读入。
#
# 在宽层上这些影响较小，时间便跟着 MAC 走。所以：按 MAC 规划，按时钟*决定*。报告两者都给出，而 `compress(latency=0.8)` 直接询问时钟。
#
# ## 交付

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "small.safetensors"
    lowrank.save(tuned, path)
    size = path.stat().st_size
    again = lowrank.load(path, into=resnet20(trained=False))
    scores = {"accuracy, %": (100 * dense_accuracy, 100 * fitted_accuracy, 100 * tuned_accuracy)}
    page = Path(folder) / "report.html"
    report.save_html(page, scores=scores, checkpoint=path)
    print(f"{cost.bytes / 1e6:.2f} MB became {size / 1e6:.2f} MB; the report is one page")
same = torch.equal(tuned(example), again.eval()(example))
print("the loaded network gives the same outputs:", same)

# %% [markdown]
# **结论。** 仅凭权重，去掉一半 MAC 至多损失三个百分点的准确率；在五分之一处，仅凭权重会损失大部分准确率，而利用数据并微调一个周期，就能让网络回到与稠密网络相差四个百分点以内；保存的文件载入后是同一个网络。

# %%
assert by_weights[0.5] > dense_accuracy - 0.03
assert by_weights[0.2] < dense_accuracy - 0.2
assert fitted_accuracy > by_weights[0.2] + 0.1
assert tuned_accuracy > max(fitted_accuracy, dense_accuracy - 0.04)
assert report.kept("macs") <= 0.2
assert same
