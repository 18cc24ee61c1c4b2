"""A linear layer in groups, which torch has for convolutions only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Every group of features by its own linear map: a block-diagonal weight, as it is stored.

    y[..., g, :] = W[g] x[..., g, :] + b[g], one batched product for all groups. The weight is
    laid out as that of a grouped convolution.

    Args:
        in_features: of all groups; the groups divide them.
        out_features: of all groups; the groups divide them.
        groups: number of blocks.
        bias: whether a bias is added.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features / groups), group after group.

    Example:
        >>> layer = GroupedLinear(6, 4, groups=2)
        >>> layer.weight.shape, layer(torch.zeros(5, 7, 6)).shape
        (torch.Size([4, 3]), torch.Size([5, 7, 4]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert in_features % groups == out_features % groups == 0
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        shape = (out_features, in_features // groups)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as `nn.Linear` does, by the fan-in of a group."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return grouped_linear(x, self.weight, self.bias, self.groups)

    def extra_repr(self) -> str:
        """The sizes, as `repr` shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """What `GroupedLinear` computes, with a weight (out, in / groups)."""
    if groups == 1:
        return F.linear(x, weight, bias)
    blocks = weight.unflatten(0, (groups, -1))  # (g, o, i)
    y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (groups, -1)), blocks).flatten(-2)
    return y if bias is None else y + bias
