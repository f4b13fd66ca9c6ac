"""Rescaled: the output of a linear map with another scale per output, its bias left as it is.

    y' = c (y - b) + b                dy = c dy'      dc = sum (y - b) dy' = (sum y' dy' - b sum dy') / c

Backward keeps y', which what comes next (attention, an activation) most often keeps anyway, and not y.
"""

from typing import Any

import torch
from torch import Tensor


def rescaled(y: Tensor, ratio: Tensor, bias: Tensor | None) -> Tensor:
    """c (y - b) + b for a ratio c and a bias b in one shape that broadcasts to y's; the bias takes no gradient.

    >>> rescaled(torch.tensor([[3.0, 5.0]]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0]))
    tensor([[5., 5.]])
    """
    if torch.compiler.is_compiling() or (bias is not None and bias.requires_grad):
        return ratio * y if bias is None else ratio * (y - bias) + bias
    result: Tensor = _Rescaled.apply(y, ratio, bias)  # type: ignore[no-untyped-call]
    return result


class _Rescaled(torch.autograd.Function):
    """The formula above; an output whose ratio is 0 gives its ratio no gradient."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, ratio: Tensor, bias: Tensor | None) -> Tensor:
        new = y * ratio if bias is None else torch.addcmul(bias * (1 - ratio), y, ratio)
        ctx.save_for_backward(new, ratio, bias)
        return new

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        new, ratio, bias = ctx.saved_tensors
        dy = gradients[0]
        of_y, of_ratio, _ = ctx.needs_input_grad
        dratio = None
        if of_ratio:
            dratio = (dy * new).sum_to_size(ratio.shape)
            if bias is not None:
                dratio = dratio - bias * dy.sum_to_size(ratio.shape)
            dratio = torch.where(ratio == 0, 0, dratio / ratio)
        return dy * ratio if of_y else None, dratio, None
