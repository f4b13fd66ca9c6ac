"""Another scale per output: values and gradients of the plain formula, and what is kept."""

import pytest
import torch

from deltatune.ops.kept import kept_tensors
from deltatune.ops.rescaled import rescaled


def tensors(dtype=torch.float64, image=False):
    torch.manual_seed(0)
    shape, per = ((2, 3, 4, 5), (3, 1, 1)) if image else ((2, 5, 3), (3,))
    y, ratio, bias = torch.randn(shape, dtype=dtype), torch.rand(per, dtype=dtype) + 0.5, torch.randn(per, dtype=dtype)
    return y.requires_grad_(), ratio.requires_grad_(), bias


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_the_formula(image, biased):
    y, ratio, bias = tensors(image=image)
    bias = bias if biased else None
    plain = ratio * (y - (bias if biased else 0)) + (bias if biased else 0)
    assert torch.allclose(rescaled(y, ratio, bias), plain, atol=1e-12)
    assert torch.autograd.gradcheck(rescaled, (y, ratio, bias))


def test_a_trained_bias_takes_its_gradient_too():
    y, ratio, bias = tensors()
    assert torch.allclose(rescaled(y, ratio, bias.requires_grad_()), ratio * (y - bias) + bias, atol=1e-12)
    assert torch.autograd.gradcheck(rescaled, (y, ratio, bias))


def test_bfloat16_stays_near_float32():
    y, ratio, bias = tensors(torch.float32)
    low = [tensor.detach().bfloat16().requires_grad_(tensor.requires_grad) for tensor in (y, ratio, bias)]
    weights = torch.randn(y.shape)
    (rescaled(y, ratio, bias) * weights).sum().backward()
    (rescaled(*low) * weights.bfloat16()).sum().backward()
    assert torch.allclose(low[1].grad.float(), ratio.grad, rtol=0.05, atol=0.1)


def test_a_ratio_of_zero_is_no_accident():
    y, ratio, bias = tensors()
    with torch.no_grad():
        ratio[1] = 0
    rescaled(y, ratio, bias).square().sum().backward()
    assert bool(torch.isfinite(ratio.grad).all()) and bool((y.grad[..., 1] == 0).all())


def test_the_output_is_kept_and_the_input_is_not():
    y, ratio, bias = tensors()
    before = y * 1
    kept = {tensor.data_ptr() for tensor in kept_tensors(rescaled(before, ratio, bias))}
    assert before.data_ptr() not in kept
