"""BOFT against butterfly factors written out, and its counts."""

import pytest
import torch
from torch import nn

import deltatune
import shapes
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.ops import orthogonal

SETTINGS = {
    "one": {"boft_block_size": 3, "boft_n_butterfly_factor": 1},
    "two": {"boft_block_size": 4, "boft_n_butterfly_factor": 2},
    "three": {"boft_block_size": 2, "boft_n_butterfly_factor": 3},
    "number": {"boft_block_num": 12, "boft_n_butterfly_factor": 3},
}


def attached(layer, **fields):
    adapter = deltatune.attach(nn.Sequential(layer).eval(), deltatune.BOFT(target_modules="0", **fields))
    disturb(adapter, size=0.3)
    return adapter


def wire(inputs, size, level):
    """P: in every group of 2^(level + 1) half blocks the even ones first, then the odd ones."""
    half, group = size // 2, 2 ** (level + 1)
    if level == 0:
        return torch.eye(inputs)
    order = []
    for start in range(0, inputs // half, group):
        for block in (*range(start, start + group, 2), *range(start + 1, start + group, 2)):
            order += range(block * half, block * half + half)
    return torch.eye(inputs)[order]


def rotation(adapter, inputs):
    """R [I, I] written out by the definition."""
    module = next(iter(adapter.modules()))
    product = torch.eye(inputs)
    for level, blocks in enumerate(module.boft_R.detach()):
        turned = []
        for q in orthogonal.skew(blocks, module.size):
            one = torch.eye(module.size)
            turned.append((one - q) @ torch.linalg.inv(one + q))
        p = wire(inputs, module.size, level)
        product = p @ torch.block_diag(*turned) @ p.T @ product
    return product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
def test_the_output_is_the_scaled_one_of_the_turned_input(fields, bias):
    layer = nn.Linear(24, 5, bias=bias)
    adapter = attached(layer, **fields)
    x, r, s = torch.randn(3, 7, 24), rotation(adapter, 24), next(iter(adapter.modules())).boft_s.detach()
    weight = s.unsqueeze(1) * (layer.weight @ r.T)
    expected = x @ weight.T + (layer.bias if bias else 0)
    assert torch.allclose(r @ r.T, torch.eye(24), atol=1e-5)
    assert torch.allclose(adapter.model(x), expected, atol=1e-5)
    adapter.merge()
    assert torch.allclose(layer.weight, weight, atol=1e-5)


def test_factors_let_inputs_meet_that_are_far_apart():
    def reach(factors):
        adapter = attached(nn.Linear(32, 4), boft_block_size=4, boft_n_butterfly_factor=factors)
        return int((rotation(adapter, 32)[0].abs() > 1e-7).sum())

    assert [reach(m) for m in (1, 2, 3, 4)] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({}, 2 * 192 * 6 + 768),
        ({"boft_block_size": 8, "boft_n_butterfly_factor": 2}, 2 * 768 * 7 // 2 + 768),
        ({"boft_block_num": 96, "boft_n_butterfly_factor": 4}, 4 * 96 * 28 + 768),
    ],
)
def test_bert_base_trains_the_entries_above_the_diagonals_and_a_scale(fields, values):
    assert shapes.count(deltatune.BOFT(target_modules=("query", "value"), **fields), "bert-base") == 24 * values


def test_turning_back_undoes_the_turn():
    change = orthogonal.cayley(orthogonal.skew(torch.randn(3 * 12, 6, dtype=torch.float64), 4)).view(3, 12, 4, 4)
    x = torch.randn(2, 48, dtype=torch.float64)
    assert torch.allclose(orthogonal.turn_back(orthogonal.turn(x, change), change), x)
    assert not torch.allclose(orthogonal.turn(x, change), x)


def test_factors_multiplied_out_and_one_by_one_are_the_same(monkeypatch):
    change = orthogonal.cayley(orthogonal.skew(torch.randn(4 * 24, 6, dtype=torch.float64), 4)).view(4, 24, 4, 4)
    x = torch.randn(2, 96, dtype=torch.float64)
    assert orthogonal.joined(change, 96).shape == (3, 32, 32)
    assert orthogonal.joined(change[:1], 96).shape == (3, 32, 32)
    joined, back = orthogonal.turn(x, change), orthogonal.turn_back(x, change)
    monkeypatch.setattr(orthogonal, "LARGEST", 16)
    assert torch.allclose(orthogonal.turn(x, change), joined)
    assert torch.allclose(orthogonal.turn_back(x, change), back)


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Conv1d(8, 8, 3), {}, "BOFT is for linear layers, and 0 is none"),
        (nn.Linear(12, 8), {}, "2 butterfly factors with blocks of size 4 do not fit the 12 inputs of 0"),
        (nn.Linear(12, 8), {"boft_block_size": 3}, "blocks of size 3 do not fit"),
        (nn.Linear(12, 8), {"boft_block_num": 5}, "do not fit the 12 inputs"),
        (nn.Linear(8, 8), {"boft_block_num": 2, "boft_block_size": 4}, "both say the size"),
    ],
)
def test_what_is_not_possible_is_refused(layer, fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(nn.Sequential(layer), deltatune.BOFT(target_modules="0", **fields))
