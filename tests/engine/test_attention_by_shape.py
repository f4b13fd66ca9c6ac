"""Attention by shape: which one is chosen, and plain products equal to the fused kernel in every kind of model."""

import pytest
import torch

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.engine import attention_by_shape
from deltatune.engine.attention_by_shape import BY_SHAPE, plain, prefers_plain
from deltatune.engine.attention_switch import switch_attention
from models import inputs


@pytest.mark.parametrize(
    ("device", "dtype", "keys", "wide", "intel", "expected"),
    [
        ("cpu", torch.float32, 128, True, True, True),
        ("cpu", torch.float32, 128, True, False, False),
        ("cpu", torch.float32, 129, True, True, False),
        ("cpu", torch.bfloat16, 512, True, False, True),
        ("cpu", torch.bfloat16, 513, True, True, False),
        ("cpu", torch.float64, 8, True, True, False),
        ("cpu", torch.float32, 8, False, True, False),
        ("cuda", torch.bfloat16, 8, True, True, False),
    ],
)
def test_the_choice_follows_from_processor_dtype_and_length(device, dtype, keys, wide, intel, expected):
    assert prefers_plain(device, dtype, keys, wide, intel) is expected


@pytest.mark.parametrize("wide", [True, False])
def test_only_the_fused_attention_is_replaced_and_only_where_plain_products_can_be_faster(wide, monkeypatch):
    monkeypatch.setattr(attention_by_shape, "WIDE", wide)
    for before, after in (("sdpa", BY_SHAPE if wide else "sdpa"), ("eager", "eager")):
        model = model_of("bert")
        model.set_attn_implementation(before)
        attention_by_shape.choose_attention(model)
        assert model.config._attn_implementation == after


@pytest.fixture
def chosen(monkeypatch):
    """Plain products wherever the choice is asked for; how often they ran."""
    runs = []

    def counted(*args, **kwargs):
        runs.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(attention_by_shape, "WIDE", True)
    monkeypatch.setattr(attention_by_shape, "plain", counted)
    return runs


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("method", ["lora", "prefix"])
@pytest.mark.parametrize("family", ["bert", "llama", "gemma3", "gpt2", "t5", "bart", "whisper", "vit"])
def test_plain_products_are_the_fused_kernel_with_masks_groups_windows_and_biases(
    family, method, padded, chosen, monkeypatch
):
    monkeypatch.setattr(attention_by_shape, "prefers_plain", lambda *given: True)
    results = []
    for attention in ("sdpa", BY_SHAPE):
        model = model_of(family).double()
        switch_attention(model, attention)
        batch = {
            name: t.double() if t.is_floating_point() else t
            for name, t in inputs(model).items()
            if padded or "mask" not in name
        }
        adapter = deltatune.attach(model, deltatune.method(method))
        disturb(adapter, size=0.3)
        found = outputs(model, batch)
        results.append((found, torch.autograd.grad(model_loss(model, batch), adapter.parameters(), allow_unused=True)))
    assert chosen
    (expected, gradients), (found, others) = results
    assert torch.allclose(found, expected, atol=1e-9)
    for one, other in zip(others, gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-8)


def model_loss(model, batch):
    found = model(**batch)
    return (found.logits if "logits" in found else found[0]).square().sum()


def test_weights_stay_in_bfloat16_and_dropout_is_torch_s():
    module = torch.nn.Module()
    query, key, value = (torch.randn(2, 3, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        plain(module, query.requires_grad_(), key, value, None, is_causal=False)
    assert {t.dtype for t in saved if t.is_floating_point()} == {torch.bfloat16}
    torch.manual_seed(0)
    dropped, _ = plain(module, query, key, torch.ones_like(value), None, is_causal=False, dropout=0.5)
    assert dropped.float().std() > 0.1
