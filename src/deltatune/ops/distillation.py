"""Losses against a teacher's logits: means over rows, in float32, with the teacher's distribution first.

    classes    T^2 KL(softmax(t / T) || softmax(s / T))            d/ds = T (softmax(s / T) - softmax(t / T)) / N
    labels     T^2 sum_c KL(sigmoid(t_c / T) || sigmoid(s_c / T))   d/ds = T (sigmoid(s / T) - sigmoid(t / T)) / N
    values     mean_c (s_c - t_c)^2

T^2 keeps the size of the gradient when T changes (Hinton et al. 2015, arXiv:1503.02531). The gradients are these closed
forms: exactly zero where student and teacher agree, and one saved tensor [N, C] instead of one per softmax.

Shapes   s, t [N, C]: N supervised rows or positions, C classes
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def classes(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """One of C classes per row; zero without rows."""
    loss: Tensor = _Classes.apply(student_NC, teacher_NC, temperature)  # type: ignore[no-untyped-call]
    return loss


def labels(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """C independent yes-or-no answers per row; zero without rows."""
    loss: Tensor = _Labels.apply(student_NC, teacher_NC, temperature)  # type: ignore[no-untyped-call]
    return loss


def values(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """C numbers per row; zero without rows."""
    return (_wide(student_NC) - _wide(teacher_NC)).square().sum() / max(1, student_NC.numel())


class _Classes(Function):
    """T^2 KL of softmax distributions."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The mean over the rows."""
        rows = max(1, len(student))
        log_s = F.log_softmax(_wide(student) / temperature, -1)
        log_t = F.log_softmax(_wide(teacher) / temperature, -1)
        p_t = log_t.exp()
        ctx.save_for_backward((log_s.exp() - p_t).mul_(temperature / rows).to(student.dtype))
        return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (temperature**2 / rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """T (softmax(s / T) - softmax(t / T)) / N."""
        (difference,) = ctx.saved_tensors
        return difference * grad.to(difference.dtype), None, None


class _Labels(Function):
    """T^2 KL of independent yes-or-no distributions."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The sum over the labels, the mean over the rows."""
        rows = max(1, len(student))
        s, t = _wide(student) / temperature, _wide(teacher) / temperature
        p_t = t.sigmoid()
        ctx.save_for_backward((s.sigmoid() - p_t).mul_(temperature / rows).to(student.dtype))
        yes, no = F.logsigmoid(t) - F.logsigmoid(s), F.logsigmoid(-t) - F.logsigmoid(-s)
        return (p_t * yes + (1 - p_t) * no).sum() * (temperature**2 / rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """T (sigmoid(s / T) - sigmoid(t / T)) / N."""
        (difference,) = ctx.saved_tensors
        return difference * grad.to(difference.dtype), None, None


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
