"""Sparse changes of a linear map: values, gradients, what is kept."""

import pytest
import torch

from deltatune.ops import sampled


def case(dtype=torch.float64, tokens=5, outputs=6, inputs=7, number=9):
    torch.manual_seed(0)
    indices = torch.randperm(outputs * inputs)[:number].sort().values
    x = torch.randn(2, tokens, inputs, dtype=dtype, requires_grad=True)
    values = torch.randn(number, dtype=dtype, requires_grad=True)
    return x, torch.randn(outputs, inputs, dtype=dtype), indices, values


@pytest.mark.parametrize("density", [0.0, 1.0])  # the dense product with a gather, the sampled product
def test_its_gradients_are_those_of_finite_differences(density, monkeypatch):
    monkeypatch.setattr(sampled, "SPARSE_DENSITY", density)
    x, weight, indices, values = case()
    assert torch.autograd.gradcheck(lambda a, v: sampled.linear(a, weight, indices, v), (x, values))


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_gradient_of_the_values_is_the_dense_one_at_their_places(density, monkeypatch):
    monkeypatch.setattr(sampled, "SPARSE_DENSITY", density)
    x, weight, indices, values = case(torch.float32, tokens=300, outputs=40, inputs=30, number=60)
    whole = sampled.composed(weight, indices, values.detach()).requires_grad_()
    goal = torch.randn(2, 300, 40)
    expected = torch.autograd.grad(((x @ whole.T) * goal).sum(), [whole, x])
    found = torch.autograd.grad((sampled.linear(x, weight, indices, values) * goal).sum(), [values, x])
    assert torch.allclose(found[0], expected[0].flatten()[indices], atol=1e-4)
    assert torch.allclose(found[1], expected[1], atol=1e-4)


def test_nothing_of_the_size_of_the_weight_is_kept_but_the_weight():
    x, weight, indices, values = case(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        sampled.linear(x, weight, indices, values)
    assert sorted(kept) == sorted(t.data_ptr() for t in (x, weight, indices, values))


def test_it_trains_under_autocast():
    x, weight, indices, values = case(torch.float32, tokens=300, outputs=40, inputs=30, number=60)
    goal = torch.randn(2, 300, 40)
    expected = torch.autograd.grad((sampled.linear(x, weight, indices, values) * goal).sum(), [x, values])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sampled.linear(x, weight, indices, values)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad((y.float() * goal).sum(), [x, values])
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.01


def test_bfloat16_gathers_from_a_dense_product():
    x, weight, indices, values = case(torch.bfloat16, tokens=50)
    y = sampled.linear(x, weight, indices, values.detach().float().requires_grad_())
    assert y.dtype == torch.bfloat16
    found = sampled.product_at(y.detach().flatten(0, 1), x.detach().flatten(0, 1), indices)
    expected = (y.detach().flatten(0, 1).double().T @ x.detach().flatten(0, 1).double()).flatten()[indices]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0.02, atol=0.5)
