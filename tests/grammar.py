"""A grammar of random networks: a seed gives a network, inputs for it, and what it is made of.

A network grows piece by piece: each piece is drawn among those that take the kind of tensor at
hand (a vector, a sequence or a map) and run on it, which shows what comes next. Pieces nest: a sum,
a gate or a branch holds pieces of its own. What the network takes and gives is drawn apart, and so
is what its owner did to it: froze a part, hung hooks, tied weights, left it in training mode.
"""

from __future__ import annotations

import copy
import math
import threading
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from lowrank.compression import GroupedLinear

WIDTHS = (1, 2, 3, 4, 5, 7, 8, 8, 12, 16, 16, 16, 24, 31, 32, 33, 48, 64)
"""Mostly small. `WIDE` ones stand on both sides of the library's thresholds, and are rare."""

WIDE = (255, 256, 257, 511, 513, 2047, 2049)


@dataclass(frozen=True)
class Network:
    """One network of the grammar.

    Args:
        seed: what it is a function of.
        build: a new one, the same each time.
        example: inputs of one pass, the same each time.
        data: what `data=` takes, the same each time.
        features: names of what it is made of, by which faults are sorted.
    """

    seed: int
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    data: Callable[[], Any]
    features: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.seed}: {', '.join(self.features)}"


def network(seed: int) -> Network:
    """The network of a seed."""
    grown = _grow(seed)
    return Network(
        seed,
        lambda: _grow(seed).model,
        lambda: grown.inputs.batch(2),
        lambda: grown.inputs.data(),
        tuple(dict.fromkeys(grown.features)),
    )


class Growth:
    """What pieces are drawn from: the source of chance, and the list of what was drawn."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.features: list[str] = []
        self.depth = 0

    def pick(self, table: dict[str, Any]) -> tuple[str, Any]:
        name = self.rng.choice(list(table))
        return name, table[name]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def width(self) -> int:
        return self.rng.choice(WIDE if self.chance(0.01) else WIDTHS)

    def note(self, feature: str) -> None:
        self.features.append(feature)


@dataclass(frozen=True)
class Grown:
    """A network with its inputs."""

    model: nn.Module
    inputs: Inputs
    features: list[str]


def _grow(seed: int) -> Grown:
    g = Growth(seed)
    quiet = warnings.catch_warnings()  # torch's notes on even kernels and old norms
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet:
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        inputs = _drawn_inputs(g)
        pieces, x = [*inputs.first(g)], inputs.hidden(2)
        for piece in pieces:
            x = _tried(piece, x)
        for _ in range(g.rng.randint(2, 5)):
            piece = _piece(g, x)
            pieces.append(piece)
            x = _tried(piece, x)
        model = _dressed(g, _ended(g, inputs, pieces, x))
    return Grown(model, inputs, g.features)


def _tried(piece: nn.Module, x: Tensor) -> Tensor:
    """What a piece, which stays as it is, gives in evaluation mode."""
    return copy.deepcopy(piece).eval()(x.clone())


# --- pieces: Growth and a tensor in, a module out --------------------------------------------


class Call(nn.Module):
    """A function of some modules and a tensor, by its name in `RULES`."""

    def __init__(self, rule: str, *parts: nn.Module, axis: int = -1, **settings: Any) -> None:
        super().__init__()
        self.rule, self.axis, self.settings = rule, axis, settings
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return RULES[self.rule](self, x)

    def extra_repr(self) -> str:
        return self.rule


def _kind(x: Tensor) -> str:
    """vector (b, c), sequence (b, t, c) or map (b, c, *grid): maps are told by 4 axes or a tag."""
    return {2: "vector", 3: "sequence"}.get(x.ndim, "map")


def _piece(g: Growth, x: Tensor) -> nn.Module:
    """A piece for the tensor; now and then one that holds others."""
    if g.depth < 2 and g.chance(0.35):
        name, make = g.pick(NESTED)
        g.depth += 1
        piece = make(g, x)
        g.depth -= 1
    else:
        name, make = g.pick(PIECES[_kind(x)])
        piece = make(g, x)
    if piece is None:  # it does not fit
        return _piece(g, x)
    g.note(name)
    return piece


def _same_shape(g: Growth, x: Tensor) -> nn.Module:
    """A piece that keeps the shape: a drawn one, with a layer back to the width where that does."""
    for _ in range(8):
        piece = _piece(g, x)
        y = _tried(piece, x)
        if y.shape == x.shape:
            return piece
        if y.shape[:-1] == x.shape[:-1] and y.ndim < 4:
            return nn.Sequential(piece, nn.Linear(y.shape[-1], x.shape[-1]))
    c = x.shape[_axis(x)]
    k = 3 if c <= WIDE[0] else 1  # nine times four million weights are no small network
    return CONV[x.ndim - 2](c, c, k, padding=k // 2) if _kind(x) == "map" else nn.Linear(c, c)


def _axis(x: Tensor) -> int:
    return 1 if _kind(x) == "map" else -1


def _linear(g: Growth, x: Tensor) -> nn.Module:
    return nn.Linear(x.shape[-1], g.width(), bias=g.chance(0.7))


def _activation(g: Growth, x: Tensor) -> nn.Module:
    inplace = g.chance(0.5)
    if inplace:
        g.note("in place")
    return g.rng.choice(
        (
            lambda: nn.ReLU(inplace=inplace),
            lambda: nn.SiLU(inplace=inplace),
            lambda: nn.Hardswish(inplace=inplace),
            lambda: nn.LeakyReLU(0.1, inplace=inplace),
            lambda: nn.GELU(),
            lambda: nn.Tanh(),
            lambda: nn.Dropout(0.2, inplace=inplace),
            lambda: nn.PReLU(),
        )
    )()


class StandardizedLinear(nn.Linear):
    """A linear layer whose rows are centred in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class PlainLinear(nn.Linear):
    """A subclass that adds nothing."""


class OwnLinear(nn.Module):
    """A linear layer that a library wrote anew."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels = n_in, n_out
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5)
        self.bias = nn.Parameter(torch.randn(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class StandardizedConv2d(nn.Conv2d):
    """A convolution with standardized weights (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, w, self.bias)


class SamePadConv2d(nn.Conv2d):
    """A convolution that pads by the size of its input, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for n, k, s in reversed([*zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]):
            pad = max((math.ceil(n / s) - 1) * s + k - n, 0)
            pads += [pad // 2, pad - pad // 2]
        return self._conv_forward(F.pad(x, pads), self.weight, self.bias)


class Matrix(nn.Module):
    """A product with a bare parameter or a buffer."""

    def __init__(self, i: int, o: int, *, buffer: bool) -> None:
        super().__init__()
        value = torch.randn(i, o) / i**0.5
        if buffer:
            self.register_buffer("matrix", value)
        else:
            self.matrix = nn.Parameter(value)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Spectrum(nn.Module):
    """A complex part: filter the last axis in the Fourier domain."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(n // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x.float()) * self.filter, n=x.shape[-1]).to(x.dtype)


class Complex(nn.Module):
    """A linear layer of complex weights, and the lengths of what it gives."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.layer = nn.Linear(i, o, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(torch.complex64)).abs().to(x.dtype)


class Half(nn.Module):
    """A part in another precision, its input and output cast."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.to(self.dtype)).to(x.dtype)


class Experts(nn.Module):
    """Each position goes to one of three layers, the best by a router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        best, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            rows = (best == k).nonzero().flatten()
            out.index_add_(0, rows, expert(flat[rows]).to(out.dtype))
        return out.reshape(x.shape)


class Counting(nn.Module):
    """A layer that counts its calls in a buffer, in training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.layer(x)


class Parts(nn.Module):
    """Layers by name and bare parameters in a list."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.named = nn.ModuleDict({"in": nn.Linear(i, o), "out": nn.Linear(o, o)})
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(o)), nn.Parameter(torch.ones(()))])

    def forward(self, x: Tensor) -> Tensor:
        y = self.named["in"](x) * self.scales[0]
        return self.named["out"](y) * self.scales[1]


def _half(g: Growth, x: Tensor) -> nn.Module:
    dtype = g.rng.choice((torch.bfloat16, torch.float16, torch.float64))
    n = x.ndim - 2
    layer = CONV[n](x.shape[1], 8, 1) if _kind(x) == "map" else nn.Linear(x.shape[-1], 8)
    return Half(layer, dtype)


def _to_map(g: Growth, x: Tensor) -> nn.Module | None:
    """A vector of 4 k features as (k, 2, 2), of 8 k as (k, 2, 2, 2)."""
    n = g.rng.choice((2, 3))
    return nn.Unflatten(1, (-1, *(2,) * n)) if x.shape[1] % 2**n == 0 else None


def _recurrent(g: Growth, x: Tensor) -> nn.Module:
    cls, hidden = g.rng.choice((nn.LSTM, nn.GRU, nn.RNN)), g.rng.choice((3, 8))
    projected = {"proj_size": 2} if cls is nn.LSTM and g.chance(0.3) else {}
    layer = cls(
        x.shape[-1], hidden, g.rng.choice((1, 2)), batch_first=True,
        bidirectional=g.chance(0.5), **projected,
    )  # fmt: skip
    return Call("first", layer)


def _cell(g: Growth, x: Tensor) -> nn.Module:
    cls = g.rng.choice((nn.LSTMCell, nn.GRUCell, nn.RNNCell))
    return Call("cell over time", cls(x.shape[-1], g.rng.choice((3, 8)), bias=g.chance(0.7)))


def _heads(x: Tensor) -> int | None:
    return next((h for h in (4, 3, 2) if x.shape[-1] % h == 0 and x.shape[-1] > h), None)


def _fused_attention(g: Growth, x: Tensor) -> nn.Module | None:
    heads = _heads(x)
    if heads is None:
        return None
    layer = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, bias=g.chance(0.8))
    return Call("self attention", layer, weights=g.chance(0.5))


def _encoder(g: Growth, x: Tensor) -> nn.Module | None:
    heads = _heads(x)
    if heads is None:
        return None
    layer = nn.TransformerEncoderLayer(
        x.shape[-1], heads, g.rng.choice((16, 33)), batch_first=True, norm_first=g.chance(0.5),
        activation=g.rng.choice(("relu", "gelu")),
    )  # fmt: skip
    return layer if g.chance(0.5) else nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _own_attention(g: Growth, x: Tensor) -> nn.Module:
    c, d = x.shape[-1], g.rng.choice((4, 8, 16))
    norm = nn.LayerNorm(c) if g.chance(0.5) else nn.Identity()
    return Call("attention", norm, *(nn.Linear(c, d) for _ in range(3)), nn.Linear(d, c))


def _conv(g: Growth, x: Tensor) -> nn.Module | None:
    return _conv_of(g, x, CONV, groups=1)


def _conv_of(
    g: Growth, x: Tensor, classes: dict[int, Any], *, groups: int, out: int | None = None
) -> nn.Module | None:
    n, size = x.ndim - 2, min(x.shape[2:])
    kernel = tuple(g.rng.choice([k for k in (1, 2, 3, 4, 5) if k <= size]) for _ in range(n))
    if g.chance(0.6):
        kernel = (kernel[0],) * n
    mode = g.rng.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
    dilation = 2 if 2 * max(kernel) - 1 <= size and g.chance(0.2) else 1
    padding: Any = tuple(min(dilation * (k // 2), size - 1) for k in kernel)
    stride = g.rng.choice((1, 1, 2))
    if g.chance(0.15):
        padding, stride = "same", 1
    transposed = classes is TRANSPOSED
    more = {"output_padding": 1} if transposed and stride == 2 and g.chance(0.3) else {}
    return classes[n](
        x.shape[1], out or g.width() // groups * groups or groups, kernel,
        stride=stride,
        padding=tuple(k // 2 for k in kernel) if transposed else padding,
        dilation=dilation,
        groups=groups,
        bias=g.chance(0.7),
        padding_mode="zeros" if transposed else mode,
        **more,
    )  # fmt: skip


def _transposed(g: Growth, x: Tensor) -> nn.Module | None:
    if x[0, 0].numel() > 64:
        return None
    return _conv_of(g, x, TRANSPOSED, groups=1)


def _grouped(g: Growth, x: Tensor) -> nn.Module | None:
    groups = [k for k in (2, 3, 4, 8) if x.shape[1] % k == 0]
    classes = TRANSPOSED if g.chance(0.2) and x[0, 0].numel() <= 64 else CONV
    return _conv_of(g, x, classes, groups=g.rng.choice(groups)) if groups else None


def _depthwise(g: Growth, x: Tensor) -> nn.Module | None:
    c = x.shape[1]
    return _conv_of(g, x, CONV, groups=c, out=c * g.rng.choice((1, 1, 2)))


def _own_conv(cls: type[nn.Conv2d]) -> Callable[[Growth, Tensor], nn.Module | None]:
    def make(g: Growth, x: Tensor) -> nn.Module | None:
        if x.ndim != 4:
            return None
        k = g.rng.choice([k for k in (1, 3) if k <= min(x.shape[2:])])
        return cls(x.shape[1], g.width(), k, stride=g.rng.choice((1, 2)), padding=0)

    return make


def _map_norm(g: Growth, x: Tensor) -> nn.Module:
    c, n = x.shape[1], x.ndim - 2
    norms: list[Callable[[], nn.Module]] = [
        lambda: (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[n - 1](c),
        lambda: nn.GroupNorm(1, c),
    ]
    return g.rng.choice(norms)()


def _pool(g: Growth, x: Tensor) -> nn.Module | None:
    if min(x.shape[2:]) < 2:
        return None
    n = x.ndim - 2
    return (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[n - 1](2)


def _squeeze(g: Growth, x: Tensor) -> nn.Module:
    c, n = x.shape[1], x.ndim - 2
    hidden = max(c // 4, 1)
    return Call(
        g.rng.choice(("squeeze and excite", "squeeze and excite in place")),
        CONV[n](c, hidden, 1), CONV[n](hidden, c, 1),
    )  # fmt: skip


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

Make = Callable[[Growth, Tensor], "nn.Module | None"]


def _renormed(n: int, width: int) -> nn.Module:
    """An embedding of rows that are short enough: each pass shortens longer ones in place."""
    table = nn.Embedding(n, width, max_norm=2.0)
    table.weight.mul_(1.5 / table.weight.norm(dim=1, keepdim=True))
    return table


def _over_time(make: Make) -> Make:
    """A convolution along the steps of a sequence."""

    def made(g: Growth, x: Tensor) -> nn.Module | None:
        layer = make(g, x.mT)
        return None if layer is None else Call("over time", layer)

    return made


def _grouped_linear(g: Growth, x: Tensor) -> nn.Module | None:
    groups = [k for k in (2, 3, 4) if x.shape[-1] % k == 0]
    if not groups:
        return None
    k = g.rng.choice(groups)
    return GroupedLinear(x.shape[-1], k * g.rng.choice((1, 4)), k, bias=g.chance(0.5))


def _over_last_axis(table: dict[str, Make]) -> dict[str, Make]:
    """Pieces for vectors and for sequences, whose features are on the last axis."""
    return {
        "linear": _linear,
        "linear again": _linear,
        "activation": _activation,
        "layer norm": lambda g, x: nn.LayerNorm(x.shape[-1]),
        "standardized linear": lambda g, x: StandardizedLinear(x.shape[-1], g.width()),
        "plain subclass": lambda g, x: PlainLinear(x.shape[-1], g.width()),
        "weight read": lambda g, x: Call("weight read", nn.Linear(x.shape[-1], g.width())),
        "type asked": lambda g, x: Call("type asked", _linear(g, x)),
        "own linear": lambda g, x: OwnLinear(x.shape[-1], g.width(), bias=g.chance(0.5)),
        "bare matrix": lambda g, x: Matrix(x.shape[-1], g.width(), buffer=g.chance(0.5)),
        "complex part": lambda g, x: Spectrum(x.shape[-1]) if x.shape[-1] > 1 else None,
        "complex linear": lambda g, x: Complex(x.shape[-1], g.width()),
        "mixed precision": _half,
        "experts": lambda g, x: Experts(x.shape[-1]),
        "counting": lambda g, x: Counting(x.shape[-1]),
        "named parts": lambda g, x: Parts(x.shape[-1], g.width()),
        "grouped linear": _grouped_linear,
        "transposed view": lambda g, x: Call("transposed view", nn.Linear(x.shape[-1], 8)),
        "autocast": lambda g, x: Call("autocast", nn.Linear(x.shape[-1], g.width())),
        **table,
    }


PIECES: dict[str, dict[str, Make]] = {
    "vector": _over_last_axis(
        {
            "batch norm": lambda g, x: nn.BatchNorm1d(x.shape[1]),
            "bilinear": lambda g, x: Call(
                "bilinear", nn.Bilinear(x.shape[1], x.shape[1], g.rng.choice((3, 8)))
            ),
            "to map": _to_map,
            "to sequence": lambda g, x: nn.Unflatten(1, (1, -1)),
            "lazy": lambda g, x: nn.LazyLinear(g.width()),
        }
    ),
    "sequence": _over_last_axis(
        {
            "recurrent": _recurrent,
            "cell": _cell,
            "fused attention": _fused_attention,
            "encoder layer": _encoder,
            "attention": _own_attention,
            "attention again": _own_attention,
            "positions": lambda g, x: Call("positions", nn.Embedding(16, x.shape[-1])),
            "mean": lambda g, x: Call("mean over time"),
            "last": lambda g, x: Call("last step"),
            "convolution over time": _over_time(_conv),
            "grouped over time": _over_time(_grouped),
            "depthwise over time": _over_time(_depthwise),
            "transposed over time": _over_time(_transposed),
            "embedding of few": lambda g, x: Call(
                "words of numbers", _renormed(7, x.shape[-1])
            ),
            "to map": lambda g, x: nn.Unflatten(1, (1, -1)),
        }
    ),
    "map": {
        "convolution": _conv,
        "convolution again": _conv,
        "convolution once more": _conv,
        "transposed": _transposed,
        "grouped": _grouped,
        "depthwise": _depthwise,
        "standardized convolution": _own_conv(StandardizedConv2d),
        "same-padded convolution": _own_conv(SamePadConv2d),
        "type asked": lambda g, x: Call(
            "type asked", CONV[x.ndim - 2](x.shape[1], g.width(), 1, bias=g.chance(0.5))
        ),
        "norm": _map_norm,
        "activation": _activation,
        "pool": _pool,
        "squeeze and excite": _squeeze,
        "mixed precision": _half,
        "upsample": lambda g, x: nn.Upsample(scale_factor=2) if x[0, 0].numel() <= 64 else None,
        "pixel shuffle": lambda g, x: (
            nn.PixelShuffle(2) if x.ndim == 4 and x.shape[1] % 4 == 0 else None
        ),
        "flatten": lambda g, x: nn.Flatten() if x[0].numel() <= 4096 else None,
        "mean over grid": lambda g, x: Call("mean over grid"),
        "to sequence": lambda g, x: Call("grid to sequence"),
    },
}  # fmt: skip


def _around(rule: str) -> Make:
    """A piece that keeps the shape inside of a rule."""

    def make(g: Growth, x: Tensor) -> nn.Module:
        return Call(rule, _same_shape(g, x), axis=_axis(x))

    return make


def _branches(g: Growth, x: Tensor) -> nn.Module:
    rule = g.rng.choice(("branch by data", "branch by training", "sum of branches"))
    g.note(rule)
    return Call(rule, _same_shape(g, x), _same_shape(g, x), axis=_axis(x))


def _chain(g: Growth, x: Tensor) -> nn.Module:
    first = _piece(g, x)
    return nn.Sequential(first, _piece(g, _tried(first, x)))


def _unused(g: Growth, x: Tensor) -> nn.Module:
    return Call("first alone", _same_shape(g, x), nn.Linear(8, 8))


NESTED: dict[str, Make] = {
    "residual": _around("residual"),
    "residual in place": _around("residual in place"),
    "residual into the input": _around("residual into the input"),
    "dense concatenation": _around("concat"),
    "dense sum": _around("dense sum"),
    "gate": _around("gate"),
    "gate in place": _around("gate in place"),
    "untrainable gate": _around("untrainable gate"),
    "in place on a view": _around("in place on a view"),
    "shared twice": _around("twice"),
    "repeated": _around("repeated"),
    "checkpointed": _around("checkpointed"),
    "no grad": _around("no grad"),
    "detached": _around("detached"),
    "through NumPy": _around("through NumPy"),
    "inference mode": _around("inference mode"),
    "chunks": _around("chunks"),
    "branches": _branches,
    "chain": _chain,
    "never run": _unused,
}


def _residual_in_place(m: Call, x: Tensor) -> Tensor:
    y = m.parts[0](x)
    y += x
    return y


def _residual_into_input(m: Call, x: Tensor) -> Tensor:
    x = x + 0
    y = m.parts[0](x)
    x += y
    return x


def _untrainable_gate(m: Call, x: Tensor) -> Tensor:
    """Runs, and has no gradient: the second step changes what the first needs for it."""
    return m.parts[0](x).sigmoid_().mul_(x)


def _in_place_on_a_view(m: Call, x: Tensor) -> Tensor:
    y = m.parts[0](x) * 1.0
    y.narrow(m.axis, 0, max(y.shape[m.axis] // 2, 1)).sigmoid_()
    y[0] *= 2
    return y


def _cell_over_time(m: Call, x: Tensor) -> Tensor:
    state, given = None, []
    for step in x.unbind(1):
        state = m.parts[0](step, state)
        given.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(given, 1)


def _dense_sum(m: Call, x: Tensor) -> Tensor:
    states = [x]
    for _ in range(2):
        states.append(m.parts[0](sum(states)))
    return torch.stack(states).sum(0)


def _repeated(m: Call, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.tanh(m.parts[0](x))
    return x


def _no_grad(m: Call, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.parts[0](x)
    return x + y


def _inference_mode(m: Call, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = m.parts[0](x)
    return x + y.clone()


def _through_numpy(m: Call, x: Tensor) -> Tensor:
    y = m.parts[0](x)
    return x * float(y.detach().abs().float().mean().cpu().numpy())


def _type_asked(m: Call, x: Tensor) -> Tensor:
    layer = m.parts[0]
    biased = layer.bias is not None
    y = layer(x.to(layer.weight.device, layer.weight.dtype)).to(x.dtype)
    return y if biased else y + 1


def _autocast(m: Call, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.parts[0](x)
    return y.to(x.dtype)


def _attention(m: Call, x: Tensor) -> Tensor:
    norm, q, k, v, out = m.parts
    h = norm(x)
    return x + out(F.scaled_dot_product_attention(q(h), k(h), v(h)))


def _excited(m: Call, x: Tensor, *, in_place: bool) -> Tensor:
    grid = tuple(range(2, x.ndim))
    h = m.parts[1](F.relu(m.parts[0](x.mean(grid, keepdim=True)), inplace=in_place))
    return h.sigmoid_() * x if in_place else x * torch.sigmoid(h)


def _by_data(m: Call, x: Tensor) -> Tensor:
    mean = float(x.detach().float().mean())  # behind a layer norm zero but for rounding
    return m.parts[0 if mean > 1e-2 else 1](x)


def _positions(m: Call, x: Tensor) -> Tensor:
    return x + m.parts[0](torch.arange(x.shape[1], device=x.device) % 16)


def _chunks(m: Call, x: Tensor) -> Tensor:
    return torch.cat([m.parts[0](part) for part in x.split(1)])


RULES: dict[str, Callable[[Call, Tensor], Tensor]] = {
    "residual": lambda m, x: x + m.parts[0](x),
    "residual in place": _residual_in_place,
    "residual into the input": _residual_into_input,
    "concat": lambda m, x: torch.cat([x, m.parts[0](x)], m.axis),
    "dense sum": _dense_sum,
    "gate": lambda m, x: x * torch.sigmoid(m.parts[0](x)),
    "gate in place": lambda m, x: m.parts[0](x).sigmoid_() * x,
    "untrainable gate": _untrainable_gate,
    "in place on a view": _in_place_on_a_view,
    "twice": lambda m, x: m.parts[0](torch.tanh(m.parts[0](x))),
    "repeated": _repeated,
    "checkpointed": lambda m, x: checkpoint(m.parts[0], x, use_reentrant=False),
    "no grad": _no_grad,
    "detached": lambda m, x: x + m.parts[0](x.detach()),
    "through NumPy": _through_numpy,
    "inference mode": _inference_mode,
    "chunks": _chunks,
    "branch by data": _by_data,
    "branch by training": lambda m, x: m.parts[0 if m.training else 1](x),
    "sum of branches": lambda m, x: m.parts[0](x) + m.parts[1](x),
    "first alone": lambda m, x: m.parts[0](x),
    "cell over time": _cell_over_time,
    "first": lambda m, x: m.parts[0](x)[0],
    "self attention": lambda m, x: m.parts[0](x, x, x, need_weights=m.settings["weights"])[0],
    "attention": _attention,
    "squeeze and excite": partial(_excited, in_place=False),
    "squeeze and excite in place": partial(_excited, in_place=True),
    "weight read": lambda m, x: F.linear(x, m.parts[0].weight, m.parts[0].bias),
    "type asked": _type_asked,
    "autocast": _autocast,
    "transposed view": lambda m, x: m.parts[0](x.mT.contiguous().mT if x.ndim > 2 else x),
    "bilinear": lambda m, x: m.parts[0](x, x),
    "positions": _positions,
    "mean over time": lambda m, x: x.mean(1),
    "last step": lambda m, x: x[:, -1],
    "over time": lambda m, x: m.parts[0](x.transpose(1, 2)).transpose(1, 2),
    "words of numbers": lambda m, x: (
        x + m.parts[0]((x[..., 0].detach().float() * 2).long().remainder(7))
    ),
    "mean over grid": lambda m, x: x.flatten(2).mean(2),
    "grid to sequence": lambda m, x: x.flatten(2).transpose(1, 2),
}  # fmt: skip


# --- what a network takes ---------------------------------------------------------------------


class Pair(NamedTuple):
    """Inputs in one namedtuple."""

    x: Tensor
    scale: Tensor


@dataclass
class Record:
    """Inputs in one dataclass."""

    x: Tensor
    note: str = "a"


@dataclass(frozen=True)
class Inputs:
    """How a network takes its inputs.

    Args:
        form: a name in `FORMS`.
        shape: of one example's main input; words where it is for an embedding.
        words: size of the vocabulary; 0 for numbers.
        seed: of the values.
        loader: how the data come, a name in `DATA`.
    """

    form: str
    shape: tuple[int, ...]
    words: int
    seed: int
    loader: str

    def batch(self, n: int, seed: int = 0) -> Any:
        """Inputs of n examples."""
        return FORMS[self.form].wrap(self._main(n, seed), n)

    def _main(self, n: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(1000 * self.seed + seed)
        if self.words:
            return torch.randint(0, self.words, (n, *self.shape), generator=rng)
        return torch.randn(n, *self.shape, generator=rng)

    def hidden(self, n: int) -> Tensor:
        """The main input, that pieces are tried on."""
        return self._main(n, 0)

    def first(self, g: Growth) -> Iterator[nn.Module]:
        """What makes numbers of words."""
        if self.words and g.chance(0.15):
            g.note("embedding bag")
            yield nn.EmbeddingBag(self.words, g.width(), mode=g.rng.choice(("sum", "mean")))
        elif self.words:
            yield nn.Embedding(self.words, g.width(), padding_idx=0 if g.chance(0.3) else None)

    def data(self) -> Any:
        """What `data=` takes: 24 examples."""
        return DATA[self.loader](self)


@dataclass(frozen=True)
class Form:
    """A way to hand the main input over: how it is wrapped, and how a model unwraps it."""

    wrap: Callable[[Tensor, int], Any]
    model: type[nn.Module]


class Whole(nn.Module):
    """A body between what a model takes and what it gives."""

    def __init__(self, body: nn.Module, gives: str) -> None:
        super().__init__()
        self.body, self.gives = body, gives

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x))

    def end(self, y: Tensor) -> Any:
        return GIVES[self.gives](y)


class TwoInputs(Whole):
    def forward(self, x: Tensor, scale: Tensor) -> Any:
        return self.end(self.body(x) * scale.mean())


class Named(Whole):
    def forward(self, *, x: Tensor, mask: Tensor | None = None, scale: Any = None) -> Any:
        return self.end(self.body(x) * (1.0 if scale is None else scale.mean()))


class Loose(Whole):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.end(self.body(kwargs["x"]))


class OnePair(Whole):
    def forward(self, pair: Pair) -> Any:
        return self.end(self.body(pair.x) * pair.scale.mean())


class OneRecord(Whole):
    def forward(self, record: Record) -> Any:
        return self.end(self.body(record.x))


class Bytes(Whole):
    """Takes pictures in bytes."""

    def forward(self, x: Tensor) -> Any:
        return self.end(self.body(x.float() / 64 - 2 if x.dtype == torch.uint8 else x))


class InPlace(Whole):
    """Scales its input where it stands."""

    def forward(self, x: Tensor) -> Any:
        if x.is_floating_point():
            x /= 2
        return self.end(self.body(x))


class Flagged(Whole):
    def forward(self, x: Tensor, times: int, on: bool = False) -> Any:
        y = self.body(x) * times
        return self.end(y + 1 if on else y)


def _in_bytes(x: Tensor) -> Tensor:
    return (x * 64 + 128).clamp(0, 255).byte() if x.is_floating_point() else x


FORMS = {
    "tensor": Form(lambda x, n: x, Whole),
    "tensor again": Form(lambda x, n: x, Whole),
    "tuple of one": Form(lambda x, n: (x,), Whole),
    "two inputs": Form(lambda x, n: (x, torch.ones(n)), TwoInputs),
    "keyword-only": Form(lambda x, n: {"x": x, "scale": torch.ones(n)}, Named),
    "keyword and None": Form(lambda x, n: {"x": x, "mask": None}, Named),
    "any keywords": Form(lambda x, n: {"x": x}, Loose),
    "namedtuple": Form(lambda x, n: Pair(x, torch.ones(n)), OnePair),
    "record": Form(lambda x, n: Record(x), OneRecord),
    "bytes": Form(lambda x, n: _in_bytes(x), Bytes),
    "tensor in place": Form(lambda x, n: x, InPlace),
    "numbers beside": Form(lambda x, n: (x, 2, True), Flagged),
}


def _batches(inputs: Inputs) -> Any:
    return [inputs.batch(8, seed=k) for k in range(1, 4)]


def _uneven(inputs: Inputs) -> Any:
    return [inputs.batch(n, seed=n) for n in (10, 10, 3, 1)]


def _tensor_if_plain(inputs: Inputs) -> Any:
    return inputs.batch(24, seed=1) if inputs.form.startswith("tensor") else _batches(inputs)


def _labelled(inputs: Inputs) -> Any:
    return [(inputs.batch(8, seed=k), torch.zeros(8, dtype=torch.long)) for k in range(1, 4)]


def _loader(inputs: Inputs) -> Any:
    if not inputs.form.startswith("tensor"):
        return _batches(inputs)
    examples = torch.utils.data.TensorDataset(inputs.batch(24, seed=1), torch.zeros(24))
    own = torch.Generator()  # else it draws its seed from the process's
    return torch.utils.data.DataLoader(examples, batch_size=8, generator=own)


DATA = {
    "batches": _batches,
    "uneven batches": _uneven,
    "one tensor": _tensor_if_plain,
    "labelled": _labelled,
    "loader": _loader,
}


def _drawn_inputs(g: Growth) -> Inputs:
    form, _ = g.pick(FORMS)
    kind = g.rng.choice(("vector", "sequence", "words", "map", "map", "map", "volume"))
    shapes = {
        "vector": (g.width(),), "sequence": (5, g.rng.choice((6, 8, 16))), "words": (5,),
        "map": (g.rng.choice((1, 3, 4, 8)), 8, 8), "volume": (2, 4, 4, 4),
    }  # fmt: skip
    g.note(f"takes {form}")
    g.note(kind)
    words = g.rng.choice((2, 11, 50)) if kind == "words" else 0
    return Inputs(form, shapes[kind], words, g.rng.randrange(1000), g.pick(DATA)[0])


# --- what it gives ---------------------------------------------------------------------------


class Scores(NamedTuple):
    """Outputs in a namedtuple."""

    logits: Tensor
    state: Any


@dataclass
class Given:
    """Outputs in a dataclass."""

    logits: Tensor
    loss: Tensor | None = None


GIVES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda y: y,
    "tensor again": lambda y: y,
    "tuple": lambda y: (y, y.mean()),
    "list": lambda y: [y, [y * 2]],
    "dict": lambda y: {"logits": y, "hidden": (y, None)},
    "ordered dict": lambda y: OrderedDict(out=y),
    "namedtuple": lambda y: Scores(y, None),
    "dataclass": lambda y: Given(y),
    "integers beside": lambda y: {"logits": y, "ids": y.reshape(len(y), -1).argmax(-1)},
    "integers alone": lambda y: y.reshape(len(y), -1).argmax(-1),
    "None beside": lambda y: (None, y),
    "words beside": lambda y: {"logits": y, "name": "net", "size": len(y)},
    "log softmax": lambda y: F.log_softmax(y.reshape(len(y), -1), -1),
    "one number": lambda y: y.float().square().mean(),
    "complex": lambda y: torch.complex(y.float(), y.float()),
    "bfloat16": lambda y: y.bfloat16(),
}


def _ended(g: Growth, inputs: Inputs, pieces: list[nn.Module], x: Tensor) -> nn.Module:
    if _kind(x) == "map" and g.chance(0.5):
        pieces.append(nn.Flatten())
        x = x.flatten(1)
    if _kind(x) != "map" and g.chance(0.7):
        pieces.append(nn.Linear(x.shape[-1], g.rng.choice((1, 4, 10))))
    gives, _ = g.pick(GIVES)
    g.note(f"gives {gives}")
    if FORMS[inputs.form].model is Whole and gives.startswith("tensor"):
        if len(pieces) == 1 and g.chance(0.5):
            g.note("one layer as the model")
            return pieces[0]
        return nn.Sequential(*pieces)
    return FORMS[inputs.form].model(nn.Sequential(*pieces), gives)


# --- what its owner did to it ----------------------------------------------------------------


def _dressed(g: Growth, model: nn.Module) -> nn.Module:
    model.eval()
    for name, dress in DRESSES.items():
        if g.chance(0.04):
            done = dress(g, model)
            if done is not None:
                g.note(name)
                model = done
    return model


def _layers(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Linear, *CONV.values())
    found = [m for m in model.modules() if type(m) in kinds]
    return [m for m in found if isinstance(m._parameters.get("weight"), nn.Parameter)]


def _on_a_layer(act: Callable[[nn.Module], Any]) -> Callable[[Growth, nn.Module], Any]:
    def dress(g: Growth, model: nn.Module) -> nn.Module | None:
        layers = [m for m in _layers(model) if not hasattr(m, "weight_g")]
        if not layers:
            return None
        try:
            act(g.rng.choice(layers))
        except NotImplementedError:  # weight norm of complex weights
            return None
        return model

    return dress


def _frozen(g: Growth, model: nn.Module) -> nn.Module:
    for p in model.parameters():
        if g.chance(0.5):
            p.requires_grad = False
    return model


def _all_frozen(g: Growth, model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.requires_grad = False
    return model


def _training(g: Growth, model: nn.Module) -> nn.Module:
    return model.train()


def _partly_training(g: Growth, model: nn.Module) -> nn.Module:
    for m in model.modules():
        m.training = g.chance(0.5)
    return model


class Doubled(nn.Module):
    """A parametrization: the weight scaled."""

    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def _tied(g: Growth, model: nn.Module) -> nn.Module | None:
    shapes: dict[Any, list[nn.Module]] = {}
    for layer in _layers(model):
        shapes.setdefault((type(layer), layer.weight.shape), []).append(layer)
    pairs = [ms for ms in shapes.values() if len(ms) > 1]
    if not pairs:
        return None
    first, second = pairs[0][:2]
    second.weight = first.weight
    return model


def _one_memory(g: Growth, model: nn.Module) -> nn.Module | None:
    """Two parameters over the same numbers."""
    shapes: dict[Any, list[nn.Module]] = {}
    for layer in _layers(model):
        shapes.setdefault((layer.weight.shape, layer.weight.dtype), []).append(layer)
    pairs = [ms for ms in shapes.values() if len(ms) > 1]
    if not pairs:
        return None
    first, second = pairs[0][:2]
    second.weight.data = first.weight.data
    return model


def _made_for_inference(g: Growth, model: nn.Module) -> nn.Module | None:
    """Parameters and buffers as a model has them that was made under inference mode."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        return None
    with torch.inference_mode():
        made = {id(p): nn.Parameter(p.detach().clone(), p.requires_grad) for p in _valued(model)}
        buffers = {id(b): b.clone() for b in model.buffers()}
    for module in model.modules():
        for held, new in ((module._parameters, made), (module._buffers, buffers)):
            held.update({k: new[id(v)] for k, v in held.items() if id(v) in new})
    return model


def _valued(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if not nn.parameter.is_lazy(p))


def _with_gradients(g: Growth, model: nn.Module) -> nn.Module:
    for p in model.parameters():
        if p.requires_grad and not isinstance(p, nn.UninitializedParameter):
            p.grad = torch.ones_like(p)
    return model


def _noted(module: nn.Module, args: Any, output: Any = None) -> None:
    """A hook that only looks."""


def _doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def _tripled(module: nn.Module, args: Any) -> Any:
    return (args[0] * 3, *args[1:])


def _listed(g: Growth, model: nn.Module) -> nn.Module | None:
    layers = _layers(model)
    if not layers:
        return None
    model.__dict__["favourites"] = [g.rng.choice(layers)]
    return model


def _channels_last(g: Growth, model: nn.Module) -> nn.Module | None:
    fits = all(p.ndim == 4 or p.ndim < 4 for p in model.parameters())
    lazy = any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
    return model.to(memory_format=torch.channels_last) if fits and not lazy else None


def _child_replaced(change: Callable[[nn.Module], nn.Module]) -> Callable[..., Any]:
    """A layer replaced, in its parent, by what is made of it."""

    def dress(g: Growth, model: nn.Module) -> nn.Module | None:
        layers = {id(m) for m in _layers(model)}
        held = [(m, k) for m in model.modules() for k, c in m.named_children() if id(c) in layers]
        if not held:
            return None
        parent, key = g.rng.choice(held)
        setattr(parent, key, change(getattr(parent, key)))
        return model

    return dress


def _own_forward(module: nn.Module) -> None:
    module.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 1, module)


def _extra_parameters(g: Growth, model: nn.Module) -> nn.Module:
    model.register_parameter("nothing", nn.Parameter(torch.empty(0)))
    model.register_parameter("one", nn.Parameter(torch.ones(())))
    model.register_parameter("whole", nn.Parameter(torch.arange(3), requires_grad=False))
    model.register_buffer("passing", torch.ones(2), persistent=False)
    model.register_buffer("none", None)
    model.plain = torch.ones(3)
    return model


def _bias_of_two(g: Growth, model: nn.Module) -> nn.Module | None:
    rows: dict[Any, list[nn.Module]] = {}
    for layer in _layers(model):
        if layer.bias is not None:
            rows.setdefault((len(layer.bias), layer.bias.dtype), []).append(layer)
    several = [layers for layers in rows.values() if len(layers) > 1]
    if not several:
        return None
    several[0][1].bias = several[0][0].bias
    return model


def _lock(g: Growth, model: nn.Module) -> nn.Module:
    model.__dict__["lock"] = threading.Lock()
    return model


def _second_name(g: Growth, model: nn.Module) -> nn.Module | None:
    layers = _layers(model)
    if not layers or isinstance(model, nn.Sequential):
        return None
    model.add_module("also", g.rng.choice(layers))
    return model


def _parallel(g: Growth, model: nn.Module) -> nn.Module:
    return nn.DataParallel(model).eval()


DRESSES: dict[str, Callable[[Growth, nn.Module], nn.Module | None]] = {
    "partly frozen": _frozen,
    "frozen": _all_frozen,
    "training mode": _training,
    "partly in training mode": _partly_training,
    "scripted part": _child_replaced(torch.jit.script),
    "compiled part": _child_replaced(partial(torch.compile, backend="eager")),
    "weight norm by hook": _on_a_layer(nn.utils.weight_norm),
    "spectral norm by hook": _on_a_layer(nn.utils.spectral_norm),
    "weight norm": _on_a_layer(parametrizations.weight_norm),
    "spectral norm": _on_a_layer(parametrizations.spectral_norm),
    "orthogonal": _on_a_layer(parametrizations.orthogonal),
    "parametrized": _on_a_layer(
        lambda m: parametrize.register_parametrization(m, "weight", Doubled())
    ),
    "tied": _tied,
    "one memory": _one_memory,
    "pruned": _on_a_layer(lambda m: prune.l1_unstructured(m, "weight", 0.5)),
    "gradients kept": _with_gradients,
    "looking hook": _on_a_layer(lambda m: m.register_forward_hook(_noted)),
    "changing hook": _on_a_layer(lambda m: m.register_forward_hook(_doubled)),
    "looking pre-hook": _on_a_layer(lambda m: m.register_forward_pre_hook(_noted)),
    "changing pre-hook": _on_a_layer(lambda m: m.register_forward_pre_hook(_tripled)),
    "backward hook": _on_a_layer(lambda m: m.register_full_backward_hook(_noted)),
    "own forward": _on_a_layer(_own_forward),
    "extra parameters": _extra_parameters,
    "bias of two": _bias_of_two,
    "second name": _second_name,
    "made for inference": _made_for_inference,
    "lock": _lock,
    "held in a list": _listed,
    "channels last": _channels_last,
    "DataParallel": _parallel,
}
