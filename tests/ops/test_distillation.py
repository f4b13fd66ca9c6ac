"""The distillation losses against their closed forms."""

import pytest
import torch
import torch.nn.functional as F

from deltatune.ops import distillation as losses


def pair(rows=5, classes=4):
    torch.manual_seed(0)
    student = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    return student, torch.randn(rows, classes, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_t_squared_kl_with_the_teacher_first(temperature):
    s, t = pair()
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    assert torch.allclose(losses.classes(s, t, temperature), expected)
    reverse = temperature**2 * (q * (q.log() - p.log())).sum(-1).mean()
    assert not torch.allclose(expected, reverse)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_t_times_the_difference_of_the_distributions(temperature):
    s, t = pair()
    losses.classes(s, t, temperature).backward()
    difference = (s.detach() / temperature).softmax(-1) - (t / temperature).softmax(-1)
    assert torch.allclose(s.grad, temperature * difference / len(s))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_labels_one_by_one_are_bernoulli_distributions(temperature):
    s, t = pair()
    p, q = (t / temperature).sigmoid(), (s / temperature).sigmoid()
    cross = F.binary_cross_entropy(q, p, reduction="none") - F.binary_cross_entropy(p, p, reduction="none")
    loss = losses.labels(s, t, temperature)
    assert torch.allclose(loss, temperature**2 * cross.sum(-1).mean())
    loss.backward()
    assert torch.allclose(s.grad, temperature * (q - p).detach() / len(s))


@pytest.mark.parametrize("loss", [losses.classes, losses.labels])
def test_gradients_are_those_of_finite_differences(loss):
    s, t = pair()
    assert torch.autograd.gradcheck(lambda x: 3 * loss(x, t, 2.0), s)


@pytest.mark.parametrize("loss", [losses.classes, losses.labels, lambda s, t, _: losses.values(s, t)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(loss, dtype):
    s = torch.randn(7, 30).to(dtype).requires_grad_()
    found = loss(s, s.detach().clone(), 3.0)
    found.backward()
    assert found.dtype == torch.float32 and float(found.detach()) == 0.0
    assert s.grad.dtype == dtype and not s.grad.any()


def test_numbers_are_compared_by_their_square():
    s, t = pair(classes=1)
    assert torch.allclose(losses.values(s, t), F.mse_loss(s, t))


@pytest.mark.parametrize("loss", [losses.classes, losses.labels, lambda s, t, _: losses.values(s, t)])
def test_without_rows_the_loss_is_zero(loss):
    s = torch.zeros(0, 4, requires_grad=True)
    found = loss(s, torch.zeros(0, 4), 2.0)
    found.backward()
    assert float(found.detach()) == 0.0 and s.grad.shape == (0, 4)


def test_logits_of_any_size_stay_finite():
    s = torch.tensor([[300.0, -300.0]], requires_grad=True)
    for loss in (losses.classes, losses.labels):
        found = loss(s, torch.tensor([[-300.0, 300.0]]), 1.0)
        found.backward()
        assert torch.isfinite(found) and torch.isfinite(s.grad).all()
