# %% [markdown]
# # 1. How big is a model?
#
# **Question: "a 60-million model" — how much disk, how much memory, how much work is that?**
#
# Four different things are called size. They have different units, and one does not follow from
# another:
#
# | what | unit | answers |
# |---|---|---|
# | parameters | a count, in millions (M) | how many numbers were learned |
# | storage | bytes (MB = 10⁶ B) | how long is the file, how much is loaded |
# | run-time memory | bytes | what the device must hold at the worst moment |
# | compute | MACs or FLOPs, for one input | how much arithmetic one answer takes |
#
# ## Storage: parameters times bits
#
# $$\text{bytes} = \text{parameters} \times \text{bits} / 8$$

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
# So 1 M parameters in 32 bits take 4 MB, and 60 million parameters, which are 60 M, take 240 MB.
# (Quantized files hold a little more: scales and zero points.)
#
# ## Parameters and MACs of each kind of layer
#
# A **MAC** is one multiply-accumulate, `a += w * x`: two floating-point operations. So **1 MAC ≈
# 2 FLOPs**. Papers that write "FLOPs" often mean MACs; a factor of two between two sources is
# usually just that.
#
# - **Linear**, $n_{in} \to n_{out}$: each output is a sum of $n_{in}$ products.
# $$\text{parameters} = n_{out}\,(n_{in} + 1), \qquad \text{MACs} = n_{out}\, n_{in}$$
# - **Convolution**, $c_{in} \to c_{out}$, kernel $k_h \times k_w$, $g$ groups, output $h \times
#   w$: each of the $h\,w$ positions of each output channel is a sum over the kernel and the input
#   channels of its group.
# $$\text{parameters} = c_{out}\Big(\frac{c_{in}}{g} k_h k_w + 1\Big), \qquad \text{MACs} = h\, w\, c_{out}\, \frac{c_{in}}{g} k_h k_w$$
# - **Activation** (ReLU): no parameters, no MACs; one operation for each value.
# - **Batch norm**: 2 parameters a channel (and 2 buffers); no MACs when folded into the
#   convolution before it.
#
# The `+ 1` is the bias. Parameters do not know h and w; MACs do. That is why a convolution is
# rich in MACs and a linear layer rich in parameters.


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
# ## Real networks
#
# The bundled ResNet-20, and three classics: VGG-16, ResNet-50 and MobileNetV2, built here from
# their papers' tables. Shapes are all that counts, so they live on PyTorch's `meta` device,
# without any memory.


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
# The formulas agree with `profile` to the last unit, and with the figures that everyone quotes:
# 25.6 M parameters and 4.1 G MACs for ResNet-50 (often printed as "4.1 GFLOPs"), 138 M and 15.5 G
# for VGG-16, 3.5 M and 0.3 G for MobileNetV2.
#
# FLOPs are a little over twice the MACs: the rest are batch norms, activations, pooling and
# additions.
#
# ## The four sizes disagree
#
# Where a network keeps its parameters is not where it does its work:

# %% alt="Bars for four networks: storage from 1 to 553 MB, compute from 0.03 to 15.5 G MACs, peak of the activations from 0.25 to 25.7 MB; ResNet-50 has the same peak as MobileNetV2 and 14 times its MACs"
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
# VGG-16 has nine tenths of its parameters in three linear layers that do under 1 % of its work.
# To make the *file* smaller, compress those; to make it *faster*, the convolutions. MobileNetV2
# has 7 times fewer parameters and 14 times fewer MACs than ResNet-50, and needs the same memory
# at its peak.
#
# **Claim.** The three formulas give the parameters and MACs of all four networks exactly, and the
# FLOPs are twice the MACs plus at most a few per cent.

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
