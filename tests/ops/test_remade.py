"""What is kept of an adapter's input: as what it was made of, with the gradients of keeping it."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from deltatune.ops import remade
from deltatune.ops.kept import kept_bytes, kept_tensors
from deltatune.ops.remade import reading


def gelu(z):
    return F.gelu(z)


def gelu_tanh(z):
    return F.gelu(z, approximate="tanh")


def layer_norm(z):
    return F.layer_norm(
        z, z.shape[-1:], torch.linspace(0.5, 2, z.shape[-1]).to(z), torch.linspace(-1, 1, z.shape[-1]).to(z)
    )


def bare_layer_norm(z):
    return F.layer_norm(z, z.shape[-1:])


def biased_layer_norm(z):
    return F.layer_norm(z, z.shape[-1:], None, torch.linspace(-1, 1, z.shape[-1]).to(z))


def rms_norm(z):
    scale = torch.linspace(0.5, 2, z.shape[-1]).to(z)
    wide = z.float() if z.dtype == torch.bfloat16 else z
    return scale * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(z.dtype)


def gated(z):
    return F.silu(z) * (z * 3)


def attention(z):
    heads = z.view(*z.shape[:-1], 2, -1).transpose(1, 2)
    return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).clone().reshape(z.shape)


MAKERS = (gelu, gelu_tanh, F.silu, layer_norm, bare_layer_norm, biased_layer_norm, rms_norm, gated, attention)


def readers(x, a, b, scale):
    """Three layers that read x: a product, a product of a view of it, a scale."""
    with reading(x):
        first = x @ a
    with reading(x):
        second = x.view(-1, x.shape[-1]) @ b
    with reading(x):
        third = x * scale
    return first.square().sum() + second.sin().sum() + third.cos().sum()


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    z, a, b, scale = (torch.randn(shape, dtype=dtype) for shape in ((2, 5, 8), (8, 3), (8, 4), (8,)))
    return z, [tensor.requires_grad_() for tensor in (a, b, scale)]


def gradients(make, dtype, monkeypatch, *, keep):
    z, trained = inputs(dtype)
    z.requires_grad_()
    with monkeypatch.context() as patch:
        if keep:
            patch.setattr(remade, "DEEPEST", 0)
        loss = readers(make(z * 1.5), *trained)
        kept = kept_tensors(loss)
    loss.backward()
    return [tensor.grad for tensor in (z, *trained)], kept


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_those_of_keeping_it_and_it_is_not_kept(make, dtype, monkeypatch):
    ours, kept = gradients(make, dtype, monkeypatch, keep=False)
    plain, all_kept = gradients(make, dtype, monkeypatch, keep=True)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for mine, theirs in zip(ours, plain, strict=True):
        assert (mine - theirs).norm() <= tolerance * theirs.norm()
    size = 2 * 5 * 8
    full = [len({t.data_ptr() for t in found if t.numel() == size}) for found in (kept, all_kept)]
    assert full[0] == full[1] - 1


def test_it_is_made_once_for_all_its_readers(monkeypatch):
    z, trained = inputs()
    made = []
    monkeypatch.setattr(F, "silu", lambda z, real=F.silu: made.append(1) or real(z))
    loss = readers(F.silu(z.requires_grad_() * 2), *trained)
    assert len(made) == 1
    loss.backward(retain_graph=True)
    assert len(made) == 2
    first = trained[0].grad.clone()
    loss.backward()
    assert torch.equal(trained[0].grad, 2 * first)


def test_what_is_first_in_the_graph_and_what_cannot_be_made_is_kept():
    z, (a, *_) = inputs()
    for x in (F.silu(z), (z.clone().requires_grad_() + 1), torch.tanh(z.clone().requires_grad_())):
        with reading(x):
            y = x @ a
        assert any(tensor.data_ptr() == x.data_ptr() for tensor in kept_tensors(y))


def test_other_tensors_of_the_same_block_are_kept_as_they_are():
    z, (a, b, _) = inputs()
    x = F.silu(z.requires_grad_() * 2)
    with reading(x):
        grown = (x @ a).exp()
        y = grown @ b[:3]
    storages = {tensor.data_ptr() for tensor in kept_tensors(y)}
    assert grown.data_ptr() in storages and x.data_ptr() not in storages
    y.sum().backward()
    expected = torch.autograd.grad(((F.silu(z * 2) @ a).exp() @ b[:3]).sum(), a)[0]
    assert torch.allclose(a.grad, expected)


def test_under_checkpointing_nothing_is_asked_of_the_graph():
    z, trained = inputs()
    z.requires_grad_()
    runs = []

    def block(z):
        runs.append(1)
        return readers(F.silu(z * 1.5), *trained)

    checkpoint(block, z, use_reentrant=False).backward()
    ours = [tensor.grad.clone() for tensor in (z, *trained)]
    for tensor in (z, *trained):
        tensor.grad = None
    block(z).backward()
    assert len(runs) == 3  # forward, the recomputation, and the plain call
    assert all(torch.equal(mine, tensor.grad) for mine, tensor in zip(ours, (z, *trained), strict=True))


def test_second_derivatives_pass_through():
    z, trained = inputs()
    assert torch.autograd.gradgradcheck(
        lambda z, *rest: readers(F.silu(z * 1.5), *rest), (z.requires_grad_(), *trained)
    )


def test_what_is_counted_is_every_storage_once_and_no_parameter():
    z, (a, *_) = inputs()
    x = F.silu(-z.requires_grad_())
    with reading(x):
        y = (x @ a) + (x @ a)
    assert kept_bytes(y, but=[a]) == z.numel() * 8  # -z, which silu and both products need


def test_what_was_made_again_is_dropped_with_its_last_reader():
    made = []
    recipe = remade.Recipe(lambda sources: made.append(1) or sources[0] * 2)
    recipe.readers = 2
    source = torch.ones(3)
    first, second = recipe((source,)), recipe((source,))
    assert torch.equal(first, source * 2) and second is first and len(made) == 1
    assert recipe.made is None
