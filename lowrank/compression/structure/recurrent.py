"""Recurrent networks whose matrices are layers of their own, and torch's around the same weights.

`nn.LSTM` and `nn.GRU` hand all their weights to one fused kernel. `Recurrent` computes the same by
a loop over time, of linear layers that a chain of layers can replace; it stands in a model only
where one of them is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lowrank.compression.structure.swap import _move_hooks
from lowrank.errors import InputError

State: TypeAlias = tuple[Tensor, ...]
"""What goes from step to step: the output (B, H), and of an LSTM the cell."""


class Recurrent(nn.Module):
    """`nn.LSTM` or `nn.GRU` of linear layers, called in the same way.

    Of layer k, `ih_lk` reads all inputs at once, `hh_lk` the state at each time, and `hr_lk`
    projects the state; those of the way back end in `_reverse`. It is slower than torch's
    kernel, which does a step at once. It is made by `recurrent_apart`.

    Source: Hochreiter and Schmidhuber, Long short-term memory, 1997; Cho et al., Learning
    phrase representations using RNN encoder-decoder, 2014; with torch's gates and biases.
    """

    if TYPE_CHECKING:  # set by `recurrent_apart`
        mode: str
        input_size: int
        hidden_size: int
        num_layers: int
        bias: bool
        batch_first: bool
        dropout: float
        bidirectional: bool
        proj_size: int

    def flatten_parameters(self) -> None:
        """Nothing: there is no packed memory. Models call it of torch's."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """What `nn.LSTM.forward` or `nn.GRU.forward` gives, of the same arguments.

        Args:
            input: (T, I), (T, B, I), or (B, T, I) where `batch_first`.
            hx: the states before the first step, (layers * directions, B, H) or without B, of
                an LSTM a pair of them with the cells; zeros by default.

        Returns:
            The outputs of the last layer at all times, and all states after the last step.

        Raises:
            InputError: packed sequences, or states of another shape.
        """
        if isinstance(input, PackedSequence):
            problem = "packed sequences are taken by torch's fused kernel alone"
            raise InputError("input", problem, "pad them, or leave this layer out by skip=")
        batched = input.dim() == 3
        turned = batched and self.batch_first
        x = input.transpose(0, 1) if turned else input if batched else input.unsqueeze(1)
        before = self._states(x, hx, batched)
        after: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            ways = []
            for suffix in _suffixes(self):
                y, last = self._way(f"l{layer}{suffix}", x, before[len(after)])
                ways.append(y)
                after.append(last)
            x = torch.cat(ways, dim=-1) if len(ways) > 1 else ways[0]  # (T, B, directions * H)
        states = [torch.stack(one) for one in zip(*after, strict=True)]
        if not batched:
            x, states = x.squeeze(1), [s.squeeze(1) for s in states]
        x = x.transpose(0, 1) if turned else x
        return x, tuple(states) if len(states) > 1 else states[0]

    def _states(self, x: Tensor, hx: Any, batched: bool) -> list[State]:
        """The states of every layer and direction before the first step."""
        n, widths = self.num_layers * len(_suffixes(self)), [self.proj_size or self.hidden_size]
        if self.mode == "LSTM":
            widths.append(self.hidden_size)
        shapes = [(n, x.shape[1], width) for width in widths]
        if hx is None:
            given = [x.new_zeros(shape) for shape in shapes]
        else:
            given = [hx] if isinstance(hx, Tensor) else list(hx)
            given = given if batched else [s.unsqueeze(1) for s in given]
            if [tuple(s.shape) for s in given] != shapes:
                problem = f"states of shapes {[tuple(s.shape) for s in given]}"
                raise InputError("hx", problem, f"pass {shapes}")
        return list(zip(*(s.unbind(0) for s in given), strict=True))

    def _way(self, tag: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs of one layer in one direction at all times, and its last state."""
        read, repeat = self.get_submodule(f"ih_{tag}"), self.get_submodule(f"hh_{tag}")
        project = self.get_submodule(f"hr_{tag}") if self.proj_size else None
        step = _lstm if self.mode == "LSTM" else _gru
        back = tag.endswith("_reverse")
        inputs, outputs = read(x).unbind(0), []
        for gates in reversed(inputs) if back else inputs:
            state = step(gates, repeat(state[0]), state)
            if project is not None:
                state = (project(state[0]), *state[1:])
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if back else outputs), state

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    """c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c')."""
    i, f, g, o = (x + h).chunk(4, dim=-1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    """h' = (1 - s(z)) tanh(n_x + s(r) n_h) + s(z) h."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, dim=-1), h.chunk(3, dim=-1)
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return (n + (z_x + z_h).sigmoid() * (state[0] - n),)


def _suffixes(module: Any) -> tuple[str, ...]:
    return ("", "_reverse") if module.bidirectional else ("",)


def _parts(module: Any) -> Iterator[tuple[str, str, str]]:
    """Name of every layer, and of torch's weight and bias in it."""
    for layer in range(module.num_layers):
        for suffix in _suffixes(module):
            for kind in ("ih", "hh", "hr") if module.proj_size else ("ih", "hh"):
                tag = f"{kind}_l{layer}{suffix}"
                yield tag, f"weight_{tag}", f"bias_{tag}"


def recurrent_apart(packed: nn.RNNBase) -> Recurrent:
    """A `Recurrent` around the same parameters."""
    made = Recurrent()
    made.__dict__.update({k: v for k, v in vars(packed).items() if k[:1] != "_"})
    for part, weight, bias in _parts(packed):
        W = packed._parameters[weight]
        assert W is not None
        layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
        layer.weight = W
        layer.register_parameter("bias", packed._parameters.get(bias))
        made.add_module(part, layer.train(packed.training))
    _move_hooks(packed, made)
    return made


def recurrent_together(apart: Recurrent) -> nn.RNNBase:
    """A `nn.LSTM` or `nn.GRU` around the same parameters."""
    sizes: dict[str, Any] = {"proj_size": apart.proj_size} if apart.mode == "LSTM" else {}
    made = (nn.LSTM if apart.mode == "LSTM" else nn.GRU)(
        apart.input_size, apart.hidden_size, apart.num_layers, bias=apart.bias,
        bidirectional=apart.bidirectional, device="meta", **sizes,
    )  # fmt: skip
    made.__dict__.update({k: v for k, v in vars(apart).items() if k[:1] != "_"})
    for part, weight, bias in _parts(apart):
        layer = cast(nn.Linear, apart.get_submodule(part))
        made._parameters[weight] = cast(nn.Parameter, layer.weight)
        if apart.bias and bias in made._parameters:
            made._parameters[bias] = layer.bias
    made._init_flat_weights()
    _move_hooks(apart, made)
    return made
