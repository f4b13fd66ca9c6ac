"""Products with a low-rank matrix B A, never written out.

Shape legend: N rows and tokens, O out, I in, R rank, E stacked copies, A adapters, M = N / A.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """W x + b + B A x for x of shape [..., I], by the cheaper order of products.

    >>> x, w, a, b = torch.ones(1, 2), torch.eye(2), torch.ones(1, 2), torch.tensor([[1.0], [3.0]])
    >>> linear(x, w, None, a, b)
    tensor([[3., 7.]])
    """
    if torch.compiler.is_compiling():  # the compiler fuses separate operations itself
        return F.linear(x, weight_OI, bias_O) + F.linear(F.linear(x, a_RI), b_OR)
    if weight_OI.dtype != torch.bfloat16 and _written_out_pays(x.numel() // x.shape[-1], b_OR, a_RI):
        return F.linear(x, weight_OI + b_OR @ a_RI, bias_O)
    result: Tensor = _Linear.apply(x, weight_OI, bias_O, a_RI, b_OR)  # type: ignore[no-untyped-call]
    return result


def _written_out_pays(rows: int, b_OR: Tensor, a_RI: Tensor) -> bool:
    """Whether W + B A costs less than two thin products: a large rank (VeRA's) on a small matrix, for many rows.

    Thin: 4 N R (I + O) for output and dx. Written out: 2 N I O for its gradient, and 6 R I O whatever the rows. Not in
    bfloat16, where a small change of a weight is rounded away.
    """
    (outputs, rank), inputs = b_OR.shape, a_RI.shape[1]
    return 4 * rows * rank * (inputs + outputs) > 2 * rows * inputs * outputs + 6 * rank * inputs * outputs


class _Linear(torch.autograd.Function):
    """y = x W^T + b + h B^T with h = x A^T;   dx = dy W + (dy B) A,   dA = (dy B)^T x,   dB = dy^T h.

    Against the same in separate operations: one pass less over y and over dx. x is kept for A and W only.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        h_NR = x_NI @ a.mT
        y_NO = F.linear(x_NI, weight, bias)
        y_NO.addmm_(h_NR, b.mT)
        _, of_weight, _, of_a, of_b = ctx.needs_input_grad
        ctx.save_for_backward(x_NI if of_weight or of_a else None, h_NR if of_b else None, weight, a, b)
        ctx.shape = x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_NI, h_NR, weight, a, b = ctx.saved_tensors
        of_x, of_weight, of_bias, of_a, of_b = ctx.needs_input_grad
        dy_NO = gradients[0].reshape(-1, weight.shape[0])
        dh_NR = narrowed(dy_NO, b)
        dx = (dy_NO @ weight).addmm_(dh_NR, a).view(ctx.shape) if of_x else None
        return (
            dx,
            dy_NO.mT @ x_NI if of_weight else None,
            dy_NO.sum(0) if of_bias else None,
            dh_NR.mT @ x_NI if of_a else None,
            outer(dy_NO, h_NR) if of_b else None,
        )


def narrowed(dy_NO: Tensor, b_OR: Tensor) -> Tensor:
    """dy B; with B^T read along its rows, which is up to four times as fast for a small R.

    >>> narrowed(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    return dy_NO @ b_OR.mT.contiguous().mT


def outer(dy_NO: Tensor, h_NR: Tensor) -> Tensor:
    """dy^T h [O, R]; as (h^T dy)^T, which is up to ten times as fast for a small R.

    >>> outer(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    tensor([[3.],
            [6.]])
    """
    return (h_NR.mT @ dy_NO).mT


def widened(h: Tensor, b_OR: Tensor) -> Tensor:
    """h B^T for h of shape [..., R], with these products in its backward.

    >>> widened(torch.tensor([3.0]), torch.tensor([[1.0], [2.0]]))
    tensor([3., 6.])
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(h.device.type):
        return F.linear(h, b_OR)
    result: Tensor = _Widened.apply(h, b_OR)  # type: ignore[no-untyped-call]
    return result


class _Widened(torch.autograd.Function):
    """y = h B^T;   dh = dy B,   dB = dy^T h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(h if ctx.needs_input_grad[1] else None, b)
        ctx.shape = h.shape
        return F.linear(h, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        h, b = ctx.saved_tensors
        dy_NO = gradients[0].reshape(-1, b.shape[0])
        return (
            narrowed(dy_NO, b).view(ctx.shape) if ctx.needs_input_grad[0] else None,
            outer(dy_NO, h.reshape(-1, b.shape[1])) if ctx.needs_input_grad[1] else None,
        )


def side_by_side(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_ARI: Tensor, b_AOR: Tensor) -> Tensor:
    """W x + b + B_k A_k x for the k-th of A equal shares of the rows of x [..., I], by batched products.

    >>> x, w = torch.ones(2, 1), torch.eye(1)
    >>> side_by_side(x, w, None, torch.ones(2, 1, 1), torch.tensor([[[1.0]], [[5.0]]]))
    tensor([[2.],
            [6.]])
    """
    if torch.compiler.is_compiling():  # the compiler fuses separate operations itself
        h_AMR = x.reshape(len(a_ARI), -1, x.shape[-1]) @ a_ARI.mT
        return F.linear(x, weight_OI, bias_O) + (h_AMR @ b_AOR.mT).reshape(*x.shape[:-1], -1)
    result: Tensor = _SideBySide.apply(x, weight_OI, bias_O, a_ARI, b_AOR)  # type: ignore[no-untyped-call]
    return result


class _SideBySide(torch.autograd.Function):
    """As `_Linear`, with a batch dimension of adapters in the thin products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        adapters = len(a)
        x_NI = x.reshape(-1, x.shape[-1])
        x_AMI = x_NI.view(adapters, -1, x.shape[-1])
        h_AMR = x_AMI @ a.mT
        y_NO = F.linear(x_NI, weight, bias)
        y_NO.view(adapters, -1, y_NO.shape[-1]).baddbmm_(h_AMR, b.mT)
        _, of_weight, _, of_a, of_b = ctx.needs_input_grad
        ctx.save_for_backward(x_NI if of_weight or of_a else None, h_AMR if of_b else None, weight, a, b)
        ctx.shape = x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_NI, h_AMR, weight, a, b = ctx.saved_tensors
        of_x, of_weight, of_bias, of_a, of_b = ctx.needs_input_grad
        adapters = len(a)
        dy_NO = gradients[0].reshape(-1, weight.shape[0])
        dy_AMO = dy_NO.view(adapters, -1, weight.shape[0])
        dh_AMR = dy_AMO @ b
        dx = None
        if of_x:
            dx_NI = dy_NO @ weight
            dx_NI.view(adapters, -1, weight.shape[1]).baddbmm_(dh_AMR, a)
            dx = dx_NI.view(ctx.shape)
        return (
            dx,
            dy_NO.mT @ x_NI if of_weight else None,
            dy_NO.sum(0) if of_bias else None,
            dh_AMR.mT @ x_NI.view(adapters, -1, weight.shape[1]) if of_a else None,
            dy_AMO.mT @ h_AMR if of_b else None,
        )


def matrix(b_OR: Tensor, a_RI: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """B A in the shape of a weight: [O, I], [O, I, *kernel], or [E, O, I] for stacked copies."""
    if b_OR.dim() == 3:
        return (b_OR @ a_RI).view(shape)
    return (b_OR @ a_RI.flatten(1)).view(shape)


def row_norm(weight_OI: Tensor, b_OR: Tensor, a_RI: Tensor, scale: float, squares_O: Tensor | None = None) -> Tensor:
    """||W + s B A|| per output, [O] or [E, O], by products of size R only.

    ||W + s B A||^2 = ||W||^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>, each term per output.
    """
    flat = weight_OI.flatten(1) if b_OR.dim() == 2 else weight_OI
    a = a_RI.flatten(1) if b_OR.dim() == 2 else a_RI
    squares = flat.square().sum(-1) if squares_O is None else squares_O
    cross = ((flat @ a.mT) * b_OR).sum(-1)
    own = ((b_OR @ (a @ a.mT)) * b_OR).sum(-1)
    return (squares + 2 * scale * cross + scale**2 * own).clamp_min(0).sqrt()
