"""Sparse fine-tuning: masks, exact merging, zeros kept."""

import pytest
import torch
from torch import nn

import deltatune
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from shapes import count


def test_it_trains_the_share_or_loras_number():
    assert count(deltatune.Sparse(r=8, target_modules=("attention.query", "attention.value")), "bert-base") == 294_912
    assert count(deltatune.Sparse(density=0.01, target_modules=("attention.query",)), "bert-base") == 12 * 5898


def entries(settings, weight=None):
    layer = nn.Linear(20, 10)
    if weight is not None:
        layer.weight.data.copy_(weight)
    model = nn.Sequential(layer)
    adapter = deltatune.attach(model, deltatune.Sparse(target_modules="0", **settings))
    return model, adapter, adapter.attached.placed.sites["0"].indices.long()


def test_random_entries_are_distinct_and_follow_the_seed():
    _, _, first = entries({"density": 0.2})
    _, _, again = entries({"density": 0.2})
    assert len(first.unique()) == 40 and torch.equal(first, again)


def test_the_largest_entries_are_chosen_by_magnitude():
    weight = torch.randn(10, 20)
    _, _, found = entries({"density": 0.1, "mask_type": "magnitude"}, weight)
    assert torch.equal(found, weight.abs().flatten().topk(20).indices.sort().values)


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_a_pruned_base_keeps_its_zeros_and_its_merged_outputs(mask):
    weight = torch.randn(10, 20) * (torch.rand(10, 20) > 0.5)
    model, adapter, _ = entries({"density": 0.2, "mask_type": mask, "keep_zeros": True}, weight)
    disturb(adapter, size=0.5)
    x = torch.randn(4, 20)
    expected = model(x)
    adapter.merge()
    assert torch.equal(model[0].weight == 0, weight == 0)
    assert torch.allclose(model(x), expected, atol=1e-6)
    adapter.unmerge()
    assert torch.equal(model[0].weight, weight)


def test_more_entries_than_there_are_alive_are_an_error():
    with pytest.raises(SettingsError, match="has 0 entries that are not zero, 40 are wanted"):
        entries({"density": 0.2, "keep_zeros": True}, torch.zeros(10, 20))
    with pytest.raises(SettingsError, match="3000 entries of 0, which has 200"):
        entries({"r": 100})


def test_entries_outside_the_mask_are_the_base_to_the_bit_and_two_masks_commute():
    model, adapter, found = entries({"density": 0.2})
    disturb(adapter, size=0.5)
    before = model[0].weight.detach().clone()
    adapter.merge()
    outside = torch.ones(200, dtype=torch.bool).index_fill(0, found, False).view(10, 20)
    assert torch.equal(model[0].weight[outside], before[outside])
    assert not torch.equal(model[0].weight, before)
