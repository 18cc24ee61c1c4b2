# %% [markdown]
# # 1. 模型有多大？
#
# **问题：“六千万参数的模型”要占多少磁盘、多少内存、多少计算？**
#
# “大小”可以指四种不同的东西。它们单位不同，也不能由一种推出另一种：
#
# | 指什么 | 单位 | 回答什么问题 |
# |---|---|---|
# | 参数量 | 个数，以百万（M）计 | 学到了多少个数 |
# | 存储量 | 字节（MB = 10⁶ B） | 文件多长，要载入多少 |
# | 运行内存 | 字节 | 设备在最紧张的时刻要容纳多少 |
# | 计算量 | 每个输入的 MAC 或 FLOP 数 | 得到一个答案要做多少运算 |
#
# ## 存储量：参数量乘以位数
#
# $$\text{字节数} = \text{参数量} \times \text{位数} / 8$$

# %%
import itertools
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import nn

import lowrank
from lowrank.demos.bundled import resnet20

plt.style.use("notebooks.mplstyle")
widths = {"32-bit float": 32, "16-bit float": 16, "8-bit integer": 8, "binary (1 bit)": 1}
print(f"{'':16}" + "".join(f"{millions:>10} M" for millions in (1, 11.7, 60, 138)))
for name, bits in widths.items():
    sizes = [millions * bits / 8 for millions in (1, 11.7, 60, 138)]
    print(f"{name:16}" + "".join(f"{size:9.2f} MB" for size in sizes))

# %% [markdown]
# 所以 1 M 个参数以 32 位存储占 4 MB；六千万参数就是 60 M，占 240 MB。（量化后的文件略大一些，因为还有缩放系数和零点。）
#
# ## 各类层的参数量与 MAC 数
#
# 一次 **MAC** 是一次乘加运算 `a += w * x`，即两次浮点运算。所以 **1 MAC ≈ 2 FLOP**。论文中写“FLOPs”时常常指的是 MAC；两处数字相差一倍，多半就是这个缘故。
#
# - **线性层** $n_{in} \to n_{out}$：每个输出是 $n_{in}$ 个乘积之和。
# $$\text{参数量} = n_{out}\,(n_{in} + 1), \qquad \text{MAC 数} = n_{out}\, n_{in}$$
# - **卷积层** $c_{in} \to c_{out}$，核 $k_h \times k_w$，$g$ 组，输出 $h \times w$：每个输出通道的 $h\,w$ 个位置，都要对卷积核和本组的输入通道求和。
# $$\text{参数量} = c_{out}\Big(\frac{c_{in}}{g} k_h k_w + 1\Big), \qquad \text{MAC 数} = h\, w\, c_{out}\, \frac{c_{in}}{g} k_h k_w$$
# - **激活函数**（ReLU）：没有参数，没有 MAC；每个数值一次运算。
# - **批归一化**：每通道 2 个参数（另有 2 个缓冲量）；并入前面的卷积后没有额外的 MAC。
#
# 式中的 `+ 1` 是偏置。参数量与 h、w 无关，MAC 数则有关。所以卷积层 MAC 多，线性层参数多。


# %%
def parameters(layer: nn.Module) -> int:
    """The formulas above."""
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        return layer.out_features * (layer.in_features + bias)
    if isinstance(layer, nn.Conv2d):
        kh, kw = layer.kernel_size
        return layer.out_channels * (layer.in_channels // layer.groups * kh * kw + bias)
    return 2 * layer.num_features if isinstance(layer, nn.BatchNorm2d) else 0


def macs(layer: nn.Module, output: torch.Size) -> int:
    """The same for one picture; output is (1, channels, h, w) or (1, features)."""
    if isinstance(layer, nn.Linear):
        return layer.out_features * layer.in_features
    if isinstance(layer, nn.Conv2d):
        kh, kw = layer.kernel_size
        return (
            output[2] * output[3] * layer.out_channels * layer.in_channels // layer.groups * kh * kw
        )
    return 0


def by_formula(model: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    """Parameters and MACs of a whole model, layer by layer as it runs."""
    sums = [0, 0]

    def add(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        sums[0] += parameters(layer)
        sums[1] += macs(layer, output.shape)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return sums[0], sums[1]


# %% [markdown]
# ## 真实的网络
#
# 自带的 ResNet-20，以及三个经典网络：VGG-16、ResNet-50 和 MobileNetV2，都按论文中的表格搭建。这里只关心形状，所以它们建在 PyTorch 的 `meta` 设备上，不占内存。


# %%
class Residual(nn.Module):
    """A branch and a shortcut, added."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.branch(x) + self.shortcut(x))


def conv(
    i: int, o: int, k: int = 1, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Module:
    """Convolution, batch norm and perhaps ReLU."""
    layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000)]


def vgg16() -> nn.Module:
    layers, i = [], 3
    for o, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
            i = o
        layers.append(nn.MaxPool2d(2))
    sizes = (512 * 7 * 7, 4096, 4096, 1000)
    dense = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*layers, nn.Flatten(), dense[0], nn.ReLU(), dense[1], nn.ReLU(), dense[2])


def resnet50() -> nn.Module:
    layers, i = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for w, depth, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for at in range(depth):
            stride, o = (first if at == 0 else 1), 4 * w
            branch = nn.Sequential(conv(i, w), conv(w, w, 3, stride), conv(w, o, act=False))
            short = nn.Identity() if at else conv(i, o, 1, stride, act=False)
            layers.append(Residual(branch, short, nn.ReLU()))
            i = o
    return nn.Sequential(*layers, *head(2048))


def mobilenet_v2() -> nn.Module:
    layers, i = [conv(3, 32, 3, 2)], 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
    for t, o, depth, first in (*table, (6, 160, 3, 2), (6, 320, 1, 1)):
        for at in range(depth):
            stride = first if at == 0 else 1
            wide = [conv(i, t * i)] if t > 1 else []
            branch = nn.Sequential(
                *wide, conv(t * i, t * i, 3, stride, groups=t * i), conv(t * i, o, act=False)
            )
            same = stride == 1 and i == o
            layers.append(Residual(branch, nn.Identity(), nn.Identity()) if same else branch)
            i = o
    return nn.Sequential(*layers, conv(320, 1280), *head(1280))


def on_meta(build: Callable[[], nn.Module]) -> tuple[nn.Module, torch.Tensor]:
    with torch.device("meta"):
        return build().eval(), torch.zeros(1, 3, 224, 224)


networks = {
    "ResNet-20 (bundled)": (resnet20(), torch.zeros(1, 1, 28, 28)),
    "MobileNetV2": on_meta(mobilenet_v2),
    "ResNet-50": on_meta(resnet50),
    "VGG-16": on_meta(vgg16),
}
profiles = {name: lowrank.profile(*both) for name, both in networks.items()}
formulas = {name: by_formula(*both) for name, both in networks.items()}

print(
    f"{'':20} {'parameters':>11} {'by formula':>12} {'MACs':>12} {'by formula':>15} {'FLOPs/MACs':>11}"
)
for name, cost in profiles.items():
    counted, worked = formulas[name]
    print(
        f"{name:20} {cost.parameters / 1e6:9.2f} M {counted / 1e6:10.2f} M"
        f" {cost.macs / 1e6:10.1f} M {worked / 1e6:13.1f} M {cost.flops / cost.macs:11.2f}"
    )

# %% [markdown]
# 公式与 `profile` 一个不差，也与人们常引用的数字相符：ResNet-50 是 25.6 M 参数、4.1 G MAC（常被印成“4.1 GFLOPs”），VGG-16 是 138 M 与 15.5 G，MobileNetV2 是 3.5 M 与 0.3 G。
#
# FLOP 数略多于 MAC 数的两倍：多出来的是批归一化、激活、池化和加法。
#
# ## 四种“大小”并不一致
#
# 网络的参数所在之处，并不是它的计算所在之处：

# %% alt="四个网络的条形图：存储 1 至 553 MB，计算量 0.03 至 15.5 G MACs，激活峰值 0.25 至 25.7 MB；ResNet-50 与 MobileNetV2 的峰值相同，MACs 却是其 14 倍"
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
shown = {
    "storage, 32 bits (MB)": [cost.bytes / 1e6 for cost in profiles.values()],
    "compute (G MACs)": [cost.macs / 1e9 for cost in profiles.values()],
    "peak of the activations (MB)": [
        cost.peak_activation_bytes / 1e6 for cost in profiles.values()
    ],
}
for ax, (title, values) in zip(axes, shown.items(), strict=True):
    bars = ax.barh(list(profiles), values, color="C0", edgecolor="black")
    ax.bar_label(bars, labels=[f" {v:.3g}" for v in values])
    ax.set(xlabel=title, xlim=(0, 1.25 * max(values)))
axes[0].invert_yaxis()
plt.show()


# %%
def shares(cost: lowrank.Profile) -> dict[str, tuple[float, float]]:
    """Share of the parameters and of the MACs in convolutions and in linear layers."""
    return {
        kind: tuple(
            sum(getattr(layer, size) for layer in cost.layers if layer.kind == kind)
            / getattr(cost, size)
            for size in ("parameters", "macs")
        )
        for kind in ("Conv2d", "Linear")
    }


print(f"{'':20} {'Conv2d: parameters':>20} {'MACs':>6} {'Linear: parameters':>20} {'MACs':>6}")
for name, cost in profiles.items():
    both = shares(cost)
    (cp, cm), (lp, lm) = both["Conv2d"], both["Linear"]
    print(f"{name:20} {cp:20.0%} {cm:6.0%} {lp:20.0%} {lm:6.0%}")

# %% [markdown]
# VGG-16 九成的参数在三个线性层里，而它们只做不到 1% 的计算。要让*文件*变小，就压缩这些层；要让它*变快*，就压缩卷积层。MobileNetV2 的参数量是 ResNet-50 的七分之一，MAC 数是十四分之一，而内存峰值却与之相同。
#
# **结论。** 这三个公式精确给出了四个网络的参数量与 MAC 数；FLOP 数是 MAC 数的两倍，外加至多百分之几。

# %%
for name, cost in profiles.items():
    assert formulas[name] == (cost.parameters, cost.macs)
    assert cost.bytes == 4 * cost.parameters
    assert 2 < cost.flops / cost.macs < 2.05
known = {"ResNet-50": 25_557_032, "VGG-16": 138_357_544, "MobileNetV2": 3_504_872}
assert {name: profiles[name].parameters for name in known} == known
assert shares(profiles["VGG-16"])["Linear"][0] > 0.85
assert shares(profiles["VGG-16"])["Linear"][1] < 0.01
peaks = [profiles[name].peak_activation_bytes for name in ("ResNet-50", "MobileNetV2")]
assert peaks[0] < 1.1 * peaks[1]
