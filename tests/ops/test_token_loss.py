"""Cross entropy in chunks: value and gradient are torch's, whatever the chunk."""

import pytest
import torch
import torch.nn.functional as F

from deltatune.ops.token_loss import token_losses


@pytest.mark.parametrize("chunk", [1, 30, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_and_gradients_are_those_of_torch(chunk, dtype):
    logits = (torch.randn(7, 11, dtype=torch.float64) * 3).to(dtype)
    targets = torch.tensor([0, 10, -100, 3, 3, -1, 5])
    scale = torch.rand(7)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = token_losses(ours, targets, chunk)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = F.cross_entropy(theirs.to(wide), targets.where(targets >= 0, -100), reduction="none")
    assert found.dtype == wide
    torch.testing.assert_close(found, expected)
    (found * scale).sum().backward()
    (expected * scale).sum().backward()
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_is_that_of_the_definition():
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: token_losses(z, torch.tensor([1, 4, -100, 0]), 10), logits)


def test_large_logits_stay_finite_and_no_row_is_no_loss():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    found = token_losses(logits, torch.tensor([1]))
    assert found.item() == pytest.approx(2e4)
    found.sum().backward()
    assert logits.grad.tolist() == [[1, -1, 0]]
    assert token_losses(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).shape == (0,)
