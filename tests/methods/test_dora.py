"""DoRA against its closed form; the factored norm against the dense one."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import deltatune
from contract.cases import disturb
from deltatune.engine.anatomy import Anatomy
from deltatune.ops import low_rank


def test_the_output_is_the_closed_form():
    layer = nn.Linear(6, 5)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.DoRA(r=4, target_modules="0"))
    disturb(adapter)
    named = {name.rpartition(".")[2]: p for name, p in adapter.named_parameters().items()}
    a, b, m = named["lora_A"], named["lora_B"], named["magnitude"]
    changed = layer.weight + 4 * b @ a
    weight = m[:, None] * changed / changed.norm(dim=1, keepdim=True)
    x = torch.randn(3, 6)
    assert torch.allclose(model(x), x @ weight.T + layer.bias, atol=1e-5)


def test_the_norm_takes_no_gradient():
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    adapter = deltatune.attach(model, deltatune.DoRA(r=2, lora_alpha=2, target_modules="0"))
    for module in adapter.modules():
        module.double()
    disturb(adapter, size=0.5)
    (site,) = adapter.attached.placed.modules()
    x = torch.randn(4, 6, dtype=torch.float64)
    model(x).sum().backward()
    weight = model[0].weight
    ratio = site.ratio(weight).detach()
    expected = (ratio * torch.ones(4, 5)).T @ x @ site.lora_A.T  # d/dB of ratio * x A^T B^T with ratio fixed
    assert torch.allclose(site.lora_B.grad, expected)


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 2, 2), (4, 5, 7)])
def test_the_factored_norm_equals_the_dense_norm(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    stacked = len(shape) == 3
    a = torch.randn(*(shape[:1] if stacked else ()), 3, *shape[(2 if stacked else 1) :], dtype=torch.float64)
    b = torch.randn(*shape[: (2 if stacked else 1)], 3, dtype=torch.float64)
    dense = weight + 0.7 * low_rank.matrix(b, a, weight.shape)
    expected = (dense if stacked else dense.flatten(1)).norm(dim=-1)
    assert torch.allclose(low_rank.row_norm(weight, b, a, 0.7), expected)


def test_it_trains_one_magnitude_per_output_more_than_lora():
    with torch.device("meta"):
        anatomy = Anatomy.of(BertModel(BertConfig()))
    settings = deltatune.DoRA(r=8, target_modules=("query", "value"))
    assert settings.count(settings.sites(anatomy)) == 294_912 + 24 * 768


def test_no_dense_update_is_built_while_training():
    model = nn.Sequential(nn.Linear(40, 30))
    deltatune.attach(model, deltatune.DoRA(r=2, target_modules="0"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        model(torch.randn(3, 40)).sum()
    own = {id(p) for p in model.parameters()}
    assert own
    assert kept.count((30, 40)) + kept.count((40, 30)) <= 1  # the base's weight itself
