"""Attention whose projections are layers of their own, and torch's around the same weights.

`nn.MultiheadAttention` keeps three projections in one parameter, and reads the weight of the
fourth. `Attention` computes the same from four linear layers, each of which a chain of layers can
replace; it stands in a model only where one of them is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.network.tensors import parameter_over
from lowrank.compression.structure.swap import _move_hooks
from lowrank.errors import InputError

PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The layers of an `Attention`."""

_BIASES = ("bias_k", "bias_v")


class Attention(nn.Module):
    """`nn.MultiheadAttention` of four linear layers, called in the same way.

    softmax(Q K^T / sqrt(d) + mask) V a head, with Q, K, V the projections of query, key and
    value, and a last projection of all heads side by side. It is made of a
    `nn.MultiheadAttention` by `attention_apart`, and has its attributes.

    Source: Vaswani et al., Attention is all you need, 2017, section 3.2; the order of
    operations is that of torch's `multi_head_attention_forward`.
    """

    in_proj_bias = None
    """Where this is None, torch's encoders do not reach for packed weights."""

    if TYPE_CHECKING:  # set by `attention_apart`
        embed_dim: int
        num_heads: int
        head_dim: int
        dropout: float
        batch_first: bool
        add_zero_attn: bool
        q_proj: nn.Module
        k_proj: nn.Module
        v_proj: nn.Module
        out_proj: nn.Module
        bias_k: nn.Parameter | None
        bias_v: nn.Parameter | None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """What `nn.MultiheadAttention.forward` gives, of the same arguments.

        Args:
            query: (L, E), (L, B, E), or (B, L, E) where `batch_first`.
            key: likewise, of length S and width `kdim`.
            value: likewise, of length S and width `vdim`.
            key_padding_mask: (S) or (B, S); True, or what is added to the scores of a key.
            need_weights: give the weights of the heads, too.
            attn_mask: (L, S) or (B * num_heads, L, S); True, or what is added to the scores.
            average_attn_weights: of all heads.
            is_causal: that `attn_mask` is the causal one.

        Raises:
            InputError: nested tensors, or `is_causal` without a mask.
        """
        self._check(query, attn_mask, is_causal)
        q = self._heads(self.q_proj(query))  # (B, H, L, d)
        k = self._longer(self._heads(self.k_proj(key)), self.bias_k)
        v = self._longer(self._heads(self.v_proj(value)), self.bias_v)
        hinted = is_causal and key_padding_mask is None and not need_weights
        mask = None if hinted else self._mask(attn_mask, key_padding_mask, q, k.shape[2])
        batched = query.dim() == 3
        if not need_weights:
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, mask, p, hinted)
            return self.out_proj(self._joined(y, batched)), None
        weights = self._weights(q, k, mask)
        out = self.out_proj(self._joined(weights @ v, batched))
        weights = weights.mean(dim=1) if average_attn_weights else weights
        return out, weights if batched else weights.squeeze(0)

    def _check(self, query: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
        if query.is_nested:
            problem = "nested tensors are taken by torch's fused kernel alone"
            raise InputError("query", problem, "pad them, and pass key_padding_mask")
        if is_causal and attn_mask is None:
            problem = "is_causal is a hint about attn_mask, and there is none"
            raise InputError("attn_mask", problem, "pass the causal mask, too")

    def _heads(self, x: Tensor) -> Tensor:
        """One matrix a head: (L, E), (L, B, E) or (B, L, E) to (B, H, L, d)."""
        x = x.unflatten(-1, (-1, self.head_dim))  # as many heads as there are
        if x.dim() == 3:
            return x.transpose(0, 1).unsqueeze(0)
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _joined(self, y: Tensor, batched: bool) -> Tensor:
        """The inverse of `_heads`."""
        if not batched:
            return y.squeeze(0).transpose(0, 1).flatten(1)
        y = y.transpose(1, 2) if self.batch_first else y.permute(2, 0, 1, 3)
        return y.flatten(2)

    def _longer(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values (B, H, S, d) with one that is learnt and one of zeros behind them."""
        if bias is not None:
            more = bias.reshape(1, self.num_heads, 1, self.head_dim)
            x = torch.cat([x, more.expand(x.shape[0], -1, -1, -1).to(x.dtype)], dim=2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, length: int
    ) -> Tensor | None:
        """What is added to the scores (B, H, L, S), of both masks; further keys are seen."""
        if attn_mask is None and padding is None:
            return None
        mask = torch.zeros(1, dtype=q.dtype, device=q.device)
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            if mask.dim() == 3:
                mask = mask.unflatten(0, (q.shape[0], self.num_heads))
            mask = F.pad(mask, (0, length - mask.shape[-1]))
        if padding is not None:
            hidden = _added(padding, q.dtype)
            hidden = F.pad(hidden, (0, length - hidden.shape[-1]))
            mask = mask + hidden.reshape(-1, 1, 1, length)  # (B, 1, 1, S)
        return mask.expand(q.shape[0], self.num_heads, -1, -1)

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        return F.dropout(weights, self.dropout, self.training) if self.dropout else weights

    def extra_repr(self) -> str:
        """The sizes."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: -Inf where it is True."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def attention_apart(packed: nn.MultiheadAttention) -> Attention:
    """An `Attention` over the same memory."""
    made = Attention()
    made.__dict__.update(_settings(packed))
    weights: Sequence[Tensor] = (packed.q_proj_weight, packed.k_proj_weight, packed.v_proj_weight)
    if packed.in_proj_weight is not None:
        weights = _thirds(packed.in_proj_weight)
    bias = packed.in_proj_bias
    biases = (None,) * 3 if bias is None else _thirds(bias)
    for part, weight, b in zip(PARTS, weights, biases, strict=False):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = parameter_over(weight.detach(), weight.requires_grad)
        layer.register_parameter("bias", b)
        made.add_module(part, layer.train(packed.training))
    made.out_proj = packed.out_proj
    _take_biases(packed, made)
    _move_hooks(packed, made)
    return made


def _thirds(parameter: Tensor) -> list[nn.Parameter]:
    parts = parameter.detach().chunk(3)
    return [parameter_over(part, parameter.requires_grad) for part in parts]


def _take_biases(source: nn.Module, target: nn.Module) -> None:
    """The key and the value that are learnt; where there are none, both are settings."""
    for key in _BIASES:
        if key in source._parameters:
            target.register_parameter(key, source._parameters[key])


def _settings(module: nn.Module) -> dict[str, object]:
    """What is no parameter, buffer, part or hook of a module."""
    own = vars(module).items()
    return {k: v for k, v in own if k[:1] != "_" or k == "_qkv_same_embed_dim"}


def attention_together(apart: Attention) -> nn.MultiheadAttention:
    """A `nn.MultiheadAttention` of the same weights."""
    made = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
    nn.Module.__init__(made)
    made.__dict__.update(_settings(apart))
    layers = [cast(nn.Linear, apart.get_submodule(part)) for part in PARTS]
    weights = [cast(nn.Parameter, m.weight) for m in layers[:3]]
    biases = [m.bias for m in layers[:3]]
    one = made._qkv_same_embed_dim  # in torch's order, which a state dict keeps
    three = dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=True))
    if one:
        made.register_parameter("in_proj_weight", _joined(weights))
    for key, weight in three.items():
        made.register_parameter(key, None if one else weight)
    if not one:
        made.register_parameter("in_proj_weight", None)
    made.register_parameter("in_proj_bias", None if biases[0] is None else _joined(biases))
    made.out_proj = cast(Any, apart.out_proj)
    _take_biases(apart, made)
    _move_hooks(apart, made)
    return made


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    trained = any(p.requires_grad for p in parts)
    return nn.Parameter(torch.cat([p.detach() for p in parts]), requires_grad=trained)
