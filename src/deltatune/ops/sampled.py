"""Linear maps with a sparse change of the weight, and its gradient at the changed entries only.

Shape legend: T tokens, O out, I in, K changed entries, at flat positions o I + i in rising order.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SPARSE_DENSITY = 0.05
"""Up to here torch's sampled product beats a dense one and a gather (CPU, float32, 384 x 384 to 3072 x 768).

It takes 0.2 to 0.5 of the time on one thread, and is level at 0.15; on two threads, which only the dense product uses
well, it is level here.
"""


def linear(
    x: Tensor, weight_OI: Tensor, indices_K: Tensor, values_K: Tensor, seen: Callable[[Tensor], None] | None = None
) -> Tensor:
    """x (W + S)^T for x [..., I], S zero but for `values_K`; differentiable in x and the values.

    W + S is made for the call and again in backward, never kept: a merged copy per layer that follows the values would
    save 2 % of the time (768 x 768 and 3072 x 768, 256 and 2,048 tokens, one thread) and cost the weights once more in
    memory. `seen` is given the whole dense gradient [O, I] in backward, which costs its memory for that moment.

    >>> w, at, v = torch.randn(2, 3), torch.tensor([1, 5]), torch.tensor([1.0, -1.0])
    >>> x = torch.randn(4, 3)
    >>> torch.allclose(linear(x, w, at, v), x @ composed(w, at, v).T, atol=1e-6)
    True
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(x.device.type))  # kept for backward in the type it is used in
    if not torch.is_grad_enabled():
        return torch.nn.functional.linear(x, composed(weight_OI, indices_K, values_K))
    result: Tensor = _SparseLinear.apply(x, weight_OI, indices_K, values_K, seen)  # type: ignore[no-untyped-call]
    return result


def composed(weight_OI: Tensor, indices_K: Tensor, values_K: Tensor) -> Tensor:
    """W + S, a new tensor in the dtype of W."""
    whole = weight_OI.clone(memory_format=torch.contiguous_format)
    whole.view(-1).index_add_(0, indices_K, values_K.to(whole.dtype))
    return whole


def product_at(g_TO: Tensor, x_TI: Tensor, indices_K: Tensor) -> Tensor:
    """(g^T x) at the given entries, [K], in float32 at least.

    On a CPU in float32 and float64 the sampled product of torch, which never makes the dense matrix; elsewhere a dense
    product and a gather, one layer at a time (bfloat16 products are fast, and torch has no sampled one for them).
    """
    outputs, inputs = g_TO.shape[1], x_TI.shape[1]
    exact = g_TO.dtype in (torch.float32, torch.float64) and g_TO.device.type == "cpu"
    if not exact or len(indices_K) > SPARSE_DENSITY * outputs * inputs:
        dense = g_TO.mT @ x_TI
        return dense.reshape(-1)[indices_K].to(torch.promote_types(dense.dtype, torch.float32))
    pattern = _csr(indices_K, outputs, inputs, g_TO.dtype)
    found: Tensor = torch.sparse.sampled_addmm(pattern, g_TO.mT.contiguous(), x_TI, beta=0.0).values()
    return found


def _csr(indices_K: Tensor, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    rows, columns = indices_K // inputs, indices_K % inputs
    starts = torch.zeros(outputs + 1, dtype=indices_K.dtype, device=indices_K.device)
    starts[1:] = torch.bincount(rows, minlength=outputs).cumsum(0)
    values = torch.zeros(len(indices_K), dtype=dtype, device=indices_K.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, (outputs, inputs), check_invariants=False)


class _SparseLinear(torch.autograd.Function):
    """x (W + S)^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, indices: Tensor, values: Tensor, seen: Any) -> Tensor:
        ctx.save_for_backward(x, weight, indices, values)
        ctx.seen = seen
        return torch.nn.functional.linear(x, composed(weight, indices, values))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices, values = ctx.saved_tensors
        g_TO, x_TI = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]).to(g.dtype)
        if ctx.seen is not None:
            ctx.seen(g_TO.mT @ x_TI)
        dx = (g @ composed(weight, indices, values).to(g.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        dv = product_at(g_TO, x_TI, indices).to(values.dtype) if ctx.needs_input_grad[3] else None
        return dx, None, None, dv, None
