"""Attention by plain products: its own backward is the one of separate operations, in every case of a mask."""

import pytest
import torch

from deltatune.ops.attention import attention


def given(dtype, queries=5, keys=7):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, queries, 3, 4), (2, keys, 3, 4), (2, keys, 3, 4))  # as models make them: heads behind tokens
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [t.transpose(1, 2).requires_grad_() for t in drawn]


def biases():
    some = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
    some[1, ..., 4:] = torch.finfo(torch.float64).min
    return [None, some, torch.randn(3, 5, 7, dtype=torch.float64)]


def separate(q, k, v, bias, scale):
    scores = q @ k.mT * scale
    return (scores if bias is None else scores + bias).softmax(-1) @ v


@pytest.mark.parametrize("bias", biases(), ids=["no mask", "mask", "bias of heads"])
def test_values_and_gradients_are_those_of_separate_operations(bias):
    q, k, v = given(torch.float64)
    expected, found = separate(q, k, v, bias, 0.3), attention(q, k, v, bias, 0.3)
    assert torch.allclose(found, expected, atol=1e-14)
    upstream = torch.randn(2, 5, 3, 4, dtype=torch.float64).transpose(1, 2)
    wanted = torch.autograd.grad(expected, (q, k, v), upstream)
    for one, other in zip(torch.autograd.grad(found, (q, k, v), upstream), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-14)


def test_gradients_are_those_of_small_differences():
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, None, 0.5), given(torch.float64))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_wanted_gets_a_gradient(wanted):
    inputs = [t.detach() for t in given(torch.float64)]
    for index in wanted:
        inputs[index].requires_grad_()
    attention(*inputs, None, 0.5).sum().backward()
    for index, tensor in enumerate(inputs):
        assert (tensor.grad is not None) == (index in wanted)


def test_a_row_that_may_look_nowhere_looks_everywhere_alike():
    q, k, v = given(torch.float32)
    bias = torch.full((2, 1, 5, 7), torch.finfo(torch.float32).min)
    assert torch.allclose(attention(q, k, v, bias, 0.5), v.mean(2, keepdim=True).expand_as(q), atol=1e-6)


def test_bfloat16_is_at_least_as_near_to_the_exact_result_as_separate_operations():
    q, k, v = (t.detach() for t in given(torch.bfloat16))
    exact = separate(*(t.double() for t in (q, k, v)), None, 0.3)
    errors = [float((f(q, k, v, None, 0.3).double() - exact).norm()) for f in (attention, separate)]
    assert errors[0] <= 1.1 * errors[1]


def test_a_trained_bias_gets_its_gradient():
    bias = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    attention(*given(torch.float64), bias, 0.5).square().sum().backward()
    assert bias.grad.abs().max() > 0


def test_weights_are_kept_once_and_queries_keys_and_values_as_they_came():
    q, k, v = given(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attention(q, k, v, None, 0.5)
    assert [t.data_ptr() for t in kept[:3]] == [q.data_ptr(), k.data_ptr(), v.data_ptr()]
    assert [tuple(t.shape) for t in kept[3:]] == [(2, 3, 5, 7)]
