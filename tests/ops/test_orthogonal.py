"""Rotations in blocks: one operation with its own backward, equal to separate ones."""

import pytest
import torch

from deltatune.ops.orthogonal import rotate


def separate(x, change):
    parts = x.reshape(*x.shape[:-1], -1, change.shape[-1])
    return x + torch.einsum("...nk,nkc->...nc", parts, change).flatten(-2)


def given(dtype, *lead):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*lead, 12, generator=generator, dtype=torch.float64)
    change = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), change.to(dtype).requires_grad_()


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_values_and_gradients_are_those_of_separate_operations(lead):
    x, change = given(torch.float64, *lead)
    expected, found = separate(x, change), rotate(x, change)
    assert torch.allclose(found, expected, atol=1e-13)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, change), upstream)
    for one, other in zip(torch.autograd.grad(found, (x, change), upstream), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-13)
    assert torch.autograd.gradcheck(rotate, (x, change))


def test_blocks_one_behind_the_other_give_the_same_in_bfloat16():
    x, change = given(torch.bfloat16, 2, 5)
    upstream = torch.randn(2, 5, 12, dtype=torch.bfloat16)
    exact = [t.detach().double().requires_grad_() for t in (x, change)]
    wanted = [separate(*exact), *torch.autograd.grad(separate(*exact), exact, upstream.double())]
    got = [rotate(x, change), *torch.autograd.grad(rotate(x, change), (x, change), upstream)]
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.double(), other, rtol=2**-6, atol=2**-5)


def test_a_shared_block_gets_the_sum_of_the_gradients():
    x, change = given(torch.float64, 5)
    one = change[:1].detach().requires_grad_()
    rotate(x, one.expand(3, 4, 4)).square().sum().backward()
    other = one.detach().clone().requires_grad_()
    separate(x, other.expand(3, 4, 4)).square().sum().backward()
    assert torch.allclose(one.grad, other.grad, atol=1e-12)


def test_under_autocast_every_block_turns_its_own_inputs():
    x, change = torch.randn(3, 5, 12), torch.randn(3, 4, 4)
    wanted = x + x @ torch.block_diag(*change)
    with torch.autocast("cpu", torch.bfloat16):
        found = rotate(x, change)
    assert torch.allclose(found.float(), wanted, atol=0.1)
    assert torch.allclose(rotate(x, change), wanted, atol=1e-5)
