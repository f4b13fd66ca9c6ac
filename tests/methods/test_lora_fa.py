"""LoRA-FA: what trains, what is kept for backward."""

import torch
from torch import nn

import deltatune
from contract.cases import disturb
from shapes import count


def test_it_trains_r_values_per_output():
    assert count(deltatune.LoRAFA(r=8, target_modules=("attention.query", "attention.value")), "bert-base") == 147_456


def test_only_b_trains_and_the_output_is_loras():
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.LoRAFA(r=4, lora_alpha=8, target_modules="0"))
    disturb(adapter)
    module = adapter.attached.placed.sites["0"]
    assert list(adapter.named_parameters()) == ["0.lora_B"]
    x = torch.randn(3, 6)
    expected = x @ layer.weight.T + layer.bias + 2 * (x @ module.lora_A.T @ module.lora_B.T)
    assert torch.allclose(model(x), expected, atol=1e-6)


def kept_for_backward(method):
    model = nn.Sequential(nn.Linear(64, 64))
    deltatune.attach(model, method)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        model(torch.randn(100, 64))
    return sum(shape[0] * shape[1] for shape in sizes if shape[0] == 100)


def test_backward_keeps_the_small_product_instead_of_the_input():
    assert kept_for_backward(deltatune.LoRA(r=4, target_modules="0")) == 100 * (64 + 4)
    assert kept_for_backward(deltatune.LoRAFA(r=4, target_modules="0")) == 100 * 4


def test_an_embedding_trains_the_factor_that_starts_at_zero():
    model = nn.Sequential(nn.Embedding(11, 6))
    adapter = deltatune.attach(model, deltatune.LoRAFA(r=2, target_modules="0"))
    assert {n: p.shape for n, p in adapter.named_parameters().items()} == {"0.lora_A": (2, 11)}
    assert adapter.method.count(adapter.attached.sites) == 22
