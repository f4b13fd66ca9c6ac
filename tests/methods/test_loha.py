"""LoHa against its closed form, both ways of computing it, and its counts."""

import copy

import pytest
import torch
from torch import nn

import deltatune
import shapes
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.ops import hadamard


def attached(layer, **fields):
    adapter = deltatune.attach(nn.Sequential(layer).eval(), deltatune.LoHa(target_modules="0", **fields))
    disturb(adapter, size=0.3)
    return adapter


def closed_form(adapter, scale):
    b1, a1, b2, a2 = (p.detach() for p in adapter.parameters())
    return scale * (b1 @ a1) * (b2 @ a2)


@pytest.mark.parametrize(("name", "r", "values"), [("bert-base", 8, 8 * 2 * 8), ("llama-7b", 16, 8 * 2 * 16)])
def test_the_count_is_twice_that_of_lora(name, r, values):
    fields = {"r": r, "target_modules": "attention.query"}
    once = shapes.count(deltatune.LoRA(**fields), name)
    assert shapes.count(deltatune.LoHa(**fields), name) == 2 * once


def test_bert_base_query_value_rank_8_trains_twice_294_912_values():
    assert shapes.count(deltatune.LoHa(r=8, target_modules=("query", "value")), "bert-base") == 2 * 294_912


@pytest.mark.parametrize("r", [2, 5])
def test_the_output_is_the_closed_form_with_factors_and_written_out(r):
    layer = nn.Linear(12, 10)
    adapter = attached(layer, r=r, alpha=6)
    assert next(iter(adapter.modules())).factored == (r == 2)  # 4 * 22 < 120 <= 25 * 22
    x = torch.randn(3, 12)
    expected = x @ (layer.weight + closed_form(adapter, 6 / r)).T + layer.bias
    assert torch.allclose(adapter.model(x), expected, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.Conv1d(6, 8, 3)])
@pytest.mark.parametrize("r", [2, 6])
def test_convolutions_are_changed_by_the_closed_form(layer, r):
    layer = copy.deepcopy(layer)
    adapter = attached(layer, r=r)
    x = torch.randn(2, 6, 7, 7)[..., : 7 if layer.weight.dim() == 4 else 1].squeeze(-1)
    found = adapter.model(x)
    with adapter.disabled(), torch.no_grad():
        layer.weight.add_(closed_form(adapter, 8 / r).view(layer.weight.shape))
        assert torch.allclose(found, adapter.model(x), atol=1e-4)


def test_the_change_reaches_the_square_of_the_rank():
    layer = nn.Linear(30, 20)
    adapter = attached(layer, r=3)
    assert torch.linalg.matrix_rank(closed_form(adapter, 1.0), rtol=1e-5) == 9


def test_the_start_is_kaiming_uniform_and_one_factor_zero():
    adapter = deltatune.attach(nn.Sequential(nn.Linear(400, 300)), deltatune.LoHa(r=16, target_modules="0"))
    b1, a1, b2, a2 = adapter.parameters()
    assert not a2.any()
    for tensor, columns in ((b1, 16), (a1, 400), (b2, 16)):
        assert tensor.abs().max() <= columns**-0.5
        assert torch.isclose(tensor.std(), torch.tensor((3 * columns) ** -0.5), rtol=0.05)


def test_the_backward_of_the_matrix_is_that_of_finite_differences():
    sizes = ((4, 2), (2, 5), (4, 2), (2, 5))
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    assert torch.autograd.gradcheck(hadamard.matrix, given)


def test_the_cheaper_form_is_chosen_by_what_it_costs():
    assert hadamard.factors_are_cheaper(8, 768, 768)
    assert not hadamard.factors_are_cheaper(32, 768, 768)
    assert hadamard.factors_are_cheaper(32, 4096, 4096)


@pytest.mark.parametrize("layer", [nn.Linear(40, 200), nn.Conv1d(40, 200, 3)])
def test_dropped_outputs_keep_the_mean_and_are_the_same_for_all_tokens(layer):
    adapter = attached(copy.deepcopy(layer), r=2, rank_dropout=0.5)
    x = torch.randn(6, 40, 7) if layer.weight.dim() == 3 else torch.randn(6, 40)
    whole = adapter.model(x)
    with adapter.disabled():
        plain = adapter.model(x)
    adapter.train_mode(True)
    dropped, whole = ((y - plain).transpose(0, 1).flatten(1) for y in (adapter.model(x), whole))
    rows = (dropped / whole).median(1, keepdim=True).values.round()
    assert set(rows.flatten().tolist()) == {0.0, 2.0}
    assert torch.allclose(dropped, whole * rows, atol=1e-4)
    assert 60 < (rows > 1).sum() < 140


def test_a_passed_layer_is_the_base_and_the_others_are_whole():
    layer = nn.Linear(6, 5)
    adapter = attached(layer, r=2, module_dropout=0.5)
    x = torch.randn(3, 6)
    whole = adapter.model(x)
    with adapter.disabled():
        base = adapter.model(x)
    adapter.train_mode(True)
    found = [adapter.model(x) for _ in range(30)]
    passed = [torch.equal(y, base) for y in found]
    assert 3 < sum(passed) < 27
    assert all(torch.allclose(y, base if gone else whole, atol=1e-6) for y, gone in zip(found, passed, strict=True))


def test_embeddings_are_refused():
    with pytest.raises(SettingsError, match="LoHa is for linear maps and convolutions, and 0 is neither"):
        deltatune.attach(nn.Sequential(nn.Embedding(9, 8)), deltatune.LoHa(r=2, target_modules="0"))


def test_a_convolution_has_as_many_values_as_the_count_says():
    adapter = deltatune.attach(nn.Sequential(nn.Conv2d(4, 6, (3, 2))), deltatune.LoHa(r=2, target_modules="0"))
    assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites) == 2 * 2 * (4 * 6 + 6)
