"""OFT against rotations written out, what it leaves as it is, and its counts."""

import pytest
import torch
from torch import nn

import deltatune
import shapes
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.ops import orthogonal

SETTINGS = {
    "smallest": {"oft_block_size": 2},
    "blocks": {"oft_block_size": 4},
    "number": {"r": 2},
    "shared": {"oft_block_size": 3, "block_share": True},
    "series": {"oft_block_size": 4, "use_cayley_neumann": True},
}


def attached(layer, **fields):
    adapter = deltatune.attach(nn.Sequential(layer).eval(), deltatune.OFT(target_modules="0", **fields))
    disturb(adapter, size=0.3)
    return adapter


def skew(values, size):
    """By the definition, entry by entry."""
    matrix = torch.zeros(size, size)
    entries = iter(values)
    for row in range(size):
        for column in range(row + 1, size):
            matrix[row, column] = next(entries)
            matrix[column, row] = -matrix[row, column]
    return matrix


def rotation(adapter, inputs):
    """R [I, I], written out."""
    module = next(iter(adapter.modules()))
    blocks = []
    for values in module.oft_R.detach():
        q, one = skew(values, module.size), torch.eye(module.size)
        exact = (one - q) @ torch.linalg.inv(one + q)
        blocks.append(exact if module.terms is None else one + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    return torch.block_diag(*(blocks * (inputs // module.size if len(blocks) == 1 else 1)))


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
def test_the_output_is_that_of_the_turned_input_and_of_the_turned_weight(fields):
    layer = nn.Linear(12, 5)
    adapter = attached(layer, **fields)
    x, r = torch.randn(3, 7, 12), rotation(adapter, 12)
    found = adapter.model(x)
    assert torch.allclose(found, x @ r @ layer.weight.T + layer.bias, atol=1e-5)
    expected = layer.weight @ r.T
    adapter.merge()
    assert torch.allclose(layer.weight, expected, atol=1e-5)


def test_the_norms_of_the_rows_and_the_angles_between_them_stay():
    layer = nn.Linear(12, 5)
    adapter = attached(layer, oft_block_size=4)
    before = layer.weight.detach() @ layer.weight.detach().T
    adapter.merge()
    assert torch.allclose(layer.weight @ layer.weight.T, before, atol=1e-5)
    adapter.unmerge()


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({}, 24 * 32 * 31 // 2),
        ({"oft_block_size": 64}, 12 * 64 * 63 // 2),
        ({"r": 8}, 8 * 96 * 95 // 2),
        ({"block_share": True}, 32 * 31 // 2),
    ],
)
def test_bert_base_trains_the_entries_above_the_diagonals(fields, values):
    assert shapes.count(deltatune.OFT(target_modules=("query", "value"), **fields), "bert-base") == 24 * values


def test_a_size_that_does_not_divide_the_inputs_becomes_the_nearest_that_does():
    sizes = [next(iter(attached(nn.Linear(n, 4)).modules())).size for n in (100, 64, 30)]
    assert sizes == [25, 32, 30]


def test_the_cayley_transform_is_orthogonal_far_from_the_start():
    change = orthogonal.cayley(orthogonal.skew(torch.randn(5, 28, dtype=torch.float64) * 10, 8))
    r = change + torch.eye(8)
    assert torch.allclose(r @ r.mT, torch.eye(8, dtype=torch.float64).expand_as(r))
    assert torch.allclose(torch.linalg.det(r), torch.ones(5, dtype=torch.float64))


def test_the_series_nears_the_inverse_turn_with_its_terms():
    q = orthogonal.skew(torch.randn(2, 6, dtype=torch.float64) * 0.1, 4)
    exact = orthogonal.cayley(-q)
    errors = [(orthogonal.neumann(q, terms) - exact).abs().max() for terms in (3, 5, 7, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


def test_small_turns_add_up_in_bfloat16():
    x, change = torch.zeros(1, 512), orthogonal.cayley(orthogonal.skew(torch.full((1, 512 * 511 // 2), 1e-4), 512))
    x[0, :256] = 1.0
    assert (change.diagonal(dim1=1, dim2=2).abs() < 2**-9).all()  # R itself would round to one there
    turned = orthogonal.rotate(x.bfloat16(), change.bfloat16())
    assert torch.allclose(turned.float(), orthogonal.rotate(x, change), atol=2**-8)
    assert not torch.equal(turned.float(), x)


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Conv1d(8, 8, 3), {}, "OFT is for linear layers, and 0 is none"),
        (nn.Embedding(9, 8), {}, "OFT is for linear layers, and 0 is none"),
        (nn.Linear(8, 8), {"r": 2, "oft_block_size": 4}, "r=2 and oft_block_size=4 both say the size of a block"),
        (nn.Linear(8, 8), {"r": 8}, "blocks of size 1 cannot turn anything"),
    ],
)
def test_what_is_not_possible_is_refused(layer, fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(nn.Sequential(layer), deltatune.OFT(target_modules="0", **fields))
