"""LoKr against Kronecker products written out, and its counts."""

import copy

import pytest
import torch
from torch import nn

import deltatune
import shapes
from contract.cases import disturb
from deltatune.core.errors import SettingsError
from deltatune.ops import kronecker

SETTINGS = {
    "whole": {"r": 100},
    "low-rank": {"r": 1},
    "both": {"r": 1, "decompose_both": True},
    "factor": {"r": 2, "decompose_factor": 3},
}


def attached(layer, **fields):
    adapter = deltatune.attach(nn.Sequential(layer).eval(), deltatune.LoKr(target_modules="0", **fields))
    disturb(adapter, size=0.3)
    return adapter


def closed_form(adapter, shape):
    """By `torch.kron`, a position of the kernel at a time."""
    tensors = {name.rpartition(".")[2]: p.detach() for name, p in adapter.named_parameters().items()}
    w1 = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    w2 = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    rows, columns = shape[0] // w1.shape[0], shape[1] // w1.shape[1]
    w2 = w2.view(rows, columns, -1)
    return torch.stack([torch.kron(w1, w2[..., k]) for k in range(w2.shape[-1])], -1).view(shape)


@pytest.mark.parametrize("fields", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(
    "layer", [nn.Linear(12, 18), nn.Conv2d(12, 18, 3, padding=1), nn.Conv1d(12, 18, 3, stride=2)], ids=str
)
def test_the_output_is_the_closed_form(layer, fields):
    layer = copy.deepcopy(layer)
    adapter = attached(layer, alpha=5, **fields)
    x = {2: torch.randn(4, 12), 3: torch.randn(4, 12, 9), 4: torch.randn(4, 12, 5, 6)}[layer.weight.dim()]
    found = adapter.model(x)
    with adapter.disabled(), torch.no_grad():
        layer.weight.add_(5 / fields["r"] * closed_form(adapter, layer.weight.shape))
        assert torch.allclose(found, adapter.model(x), atol=1e-4)


def test_a_change_may_have_full_rank():
    layer = nn.Linear(16, 16)
    adapter = attached(layer, r=100)
    assert adapter.trainable_parameters == 4 * 4 + 4 * 4
    assert torch.linalg.matrix_rank(closed_form(adapter, (16, 16)), rtol=1e-6) == 16


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"r": 8}, 24 * 24 + 8 * (32 + 32)),  # 768 = 24 * 32
        ({"r": 16}, 24 * 24 + 32 * 32),
        ({"r": 8, "decompose_both": True}, 8 * (24 + 24) + 8 * (32 + 32)),
        ({"r": 8, "decompose_factor": 4}, 4 * 4 + 8 * (192 + 192)),
    ],
)
def test_bert_base_trains_the_small_matrices(fields, values):
    assert shapes.count(deltatune.LoKr(target_modules="attention.query", **fields), "bert-base") == 12 * values


def test_the_start_is_the_base_with_the_right_matrix_uniform():
    model = nn.Sequential(nn.Linear(100 * 100, 100 * 100))
    adapter = deltatune.attach(model, deltatune.LoKr(r=50, target_modules="0"))
    w1, w2 = adapter.parameters()
    assert not w1.any()
    assert w2.abs().max() <= 0.1
    assert torch.isclose(w2.std(), torch.tensor(0.1 / 3**0.5), rtol=0.05)


def test_products_do_not_depend_on_where_the_left_matrix_comes_in():
    x = torch.randn(2, 3, 5 * 7, dtype=torch.float64)
    left = torch.randn(4, 5, dtype=torch.float64)
    for rows, rank in ((2, 3), (9, 3), (9, 20), (20, 3)):  # narrowest: after, between, before
        b, a = torch.randn(rows, rank, dtype=torch.float64), torch.randn(rank, 7, dtype=torch.float64)
        whole = torch.kron(left, b @ a)
        assert torch.allclose(kronecker.multiply(x, left, b, a), x @ whole.T)
        assert torch.allclose(kronecker.multiply(x, left, b @ a), x @ whole.T)


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        (nn.Linear(8, 8), {"decompose_factor": 0}, "decompose_factor=0 is not allowed for LoKr"),
        (nn.Embedding(9, 8), {}, "LoKr is for linear maps and convolutions, and 0 is neither"),
        (nn.Conv1d(8, 8, 3, groups=2), {}, "grouped convolution"),
    ],
)
def test_what_is_not_possible_is_refused(layer, fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(nn.Sequential(layer), deltatune.LoKr(target_modules="0", **fields))


def test_rank_dropout_keeps_the_mean():
    adapter = attached(nn.Linear(12, 200), r=2, rank_dropout=0.5)
    x = torch.randn(6, 12)
    whole = adapter.model(x)
    with adapter.disabled():
        plain = adapter.model(x)
    adapter.train_mode(True)
    ratio = ((adapter.model(x) - plain) / (whole - plain)).median(0).values
    assert set(ratio.round().tolist()) == {0.0, 2.0}
