"""Recurrent networks whose matrices are layers of their own, and torch's around the same weights.

`nn.LSTM`, `nn.GRU` and `nn.RNN` hand all their weights to one fused kernel. `Recurrent` computes
the same by a loop over time, of linear layers that a chain of layers can replace; it stands in a
model only where one of them is replaced. So does `RecurrentCell` for torch's cells, of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
    """`nn.LSTM`, `nn.GRU` or `nn.RNN` of linear layers, called in the same way.

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
        """What torch's module gives, of the same arguments.

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
            given = _as_states(hx, None if batched else 1)
            _check_states(given, shapes)
        return list(zip(*(s.unbind(0) for s in given), strict=True))

    def _way(self, tag: str, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs of one layer in one direction at all times, and its last state."""
        read, repeat = self.get_submodule(f"ih_{tag}"), self.get_submodule(f"hh_{tag}")
        project = self.get_submodule(f"hr_{tag}") if self.proj_size else None
        step = STEPS[self.mode]
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


def _plain(activation: Callable[[Tensor], Tensor], x: Tensor, h: Tensor, state: State) -> State:
    """h' = a(x + h)."""
    return (activation(x + h),)


STEPS: dict[str, Callable[[Tensor, Tensor, State], State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": partial(_plain, torch.tanh),
    "RNN_RELU": partial(_plain, torch.relu),
}
"""What a state becomes of what is read of the input and of the state, by torch's name of it."""


def _as_states(hx: Any, axis: int | None) -> list[Tensor]:
    """States as they were given, with an axis for the batch where they have none."""
    given = [hx] if isinstance(hx, Tensor) else list(hx)
    return given if axis is None else [s.unsqueeze(axis) for s in given]


def _check_states(given: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    if [tuple(s.shape) for s in given] != list(shapes):
        problem = f"states of shapes {[tuple(s.shape) for s in given]}"
        raise InputError("hx", problem, f"pass {list(shapes)}")


class RecurrentCell(nn.Module):
    """`nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` of two linear layers, called in the same way.

    `ih` reads the input and `hh` the state. It is made by `cell_apart`.
    """

    if TYPE_CHECKING:  # set by `cell_apart`
        mode: str
        input_size: int
        hidden_size: int
        bias: bool
        ih: nn.Module
        hh: nn.Module

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """What torch's cell gives, of the same arguments.

        Args:
            input: (I,) or (B, I).
            hx: the state before, (H,) or (B, H), of an LSTM a pair of it with the cell; zeros by
                default.

        Returns:
            The state after.

        Raises:
            InputError: states of another shape.
        """
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        shapes = [(x.shape[0], self.hidden_size)] * (2 if self.mode == "LSTM" else 1)
        if hx is None:
            state = [x.new_zeros(shape) for shape in shapes]
        else:
            state = _as_states(hx, None if batched else 0)
            _check_states(state, shapes)
        after = STEPS[self.mode](self.ih(x), self.hh(state[0]), tuple(state))
        after = after if batched else tuple(s.squeeze(0) for s in after)
        return after if self.mode == "LSTM" else after[0]

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


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
        made.add_module(part, _layer(packed, weight, bias))
    _move_hooks(packed, made)
    return made


def cell_apart(packed: nn.RNNCellBase) -> RecurrentCell:
    """A `RecurrentCell` around the same parameters."""
    made = RecurrentCell()
    made.__dict__.update({k: v for k, v in vars(packed).items() if k[:1] != "_"})
    made.mode = _mode_of(packed)
    for part in ("ih", "hh"):
        made.add_module(part, _layer(packed, f"weight_{part}", f"bias_{part}"))
    _move_hooks(packed, made)
    return made


def _mode_of(cell: nn.RNNCellBase) -> str:
    if isinstance(cell, nn.RNNCell):
        return f"RNN_{cell.nonlinearity.upper()}"
    return "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU"


def _layer(packed: nn.Module, weight: str, bias: str) -> nn.Linear:
    """A linear layer around two of the parameters of a module."""
    W = packed._parameters[weight]
    assert W is not None
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    layer.weight = W
    layer.register_parameter("bias", packed._parameters.get(bias))
    return layer.train(packed.training)


def _fill(made: nn.Module, apart: nn.Module, part: str, weight: str, bias: str) -> None:
    """Give torch's module the parameters of a linear layer."""
    layer = cast(nn.Linear, apart.get_submodule(part))
    made._parameters[weight] = cast(nn.Parameter, layer.weight)
    if made.bias and bias in made._parameters:
        made._parameters[bias] = layer.bias


def recurrent_together(apart: Recurrent) -> nn.RNNBase:
    """A `nn.LSTM`, `nn.GRU` or `nn.RNN` around the same parameters."""
    sizes: dict[str, Any] = {"proj_size": apart.proj_size} if apart.mode == "LSTM" else {}
    cls = {"LSTM": nn.LSTM, "GRU": nn.GRU}.get(apart.mode, nn.RNN)
    made = cls(
        apart.input_size, apart.hidden_size, apart.num_layers, bias=apart.bias,
        bidirectional=apart.bidirectional, device="meta", **sizes,
    )  # fmt: skip
    made.__dict__.update({k: v for k, v in vars(apart).items() if k[:1] != "_"})
    for part, weight, bias in _parts(apart):
        _fill(made, apart, part, weight, bias)
    made._init_flat_weights()
    _move_hooks(apart, made)
    return made


def cell_together(apart: RecurrentCell) -> nn.RNNCellBase:
    """A `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell` around the same parameters."""
    cls = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell}.get(apart.mode, nn.RNNCell)
    made = cls(apart.input_size, apart.hidden_size, bias=apart.bias, device="meta")
    own = {k: v for k, v in vars(apart).items() if k[:1] != "_" and k != "mode"}
    made.__dict__.update(own)
    for part in ("ih", "hh"):
        _fill(made, apart, part, f"weight_{part}", f"bias_{part}")
    _move_hooks(apart, made)
    return made
