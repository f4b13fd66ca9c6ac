"""Compacter: the percentages of the paper, the products against Kronecker products written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import deltatune
from contract.cases import anatomy_of, disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from deltatune.ops import hypercomplex
from shapes import count


def test_bert_base_trains_57_088_values_and_28_576_with_plus_plus():
    assert count(deltatune.Compacter(), "bert-base") == 57_088
    assert count(deltatune.Compacter(sublayers=("mlp",)), "bert-base") == 28_576


def test_t5_base_has_the_percentages_of_the_paper():
    percent = {
        sublayers: 100 * count(deltatune.Compacter(train_layernorm=True, sublayers=sublayers), "t5-base") / 222_903_552
        for sublayers in (("attention", "mlp"), ("mlp",))
    }
    assert [round(value, 3) for value in percent.values()] == [0.073, 0.047]


@pytest.mark.parametrize(("n", "rank", "rows", "columns"), [(4, 1, 32, 8), (2, 3, 6, 10), (1, 2, 3, 5), (5, 1, 5, 15)])
def test_the_products_are_those_of_the_kronecker_sum_with_their_gradients(n, rank, rows, columns):
    torch.manual_seed(0)
    factors = [
        torch.randn(n, n, n, dtype=torch.float64, requires_grad=True),
        torch.randn(n, rows // n, rank, dtype=torch.float64, requires_grad=True),
        torch.randn(n, rank, columns // n, dtype=torch.float64, requires_grad=True),
    ]
    x = torch.randn(2, 3, rows, dtype=torch.float64, requires_grad=True)
    rule, left, right = factors
    dense = sum(torch.kron(rule[i], left[i] @ right[i]) for i in range(n))
    assert torch.allclose(hypercomplex.multiply(x, *factors), x @ dense, atol=1e-12)
    assert torch.allclose(hypercomplex.matrix(*factors), dense, atol=1e-12)
    weights = torch.randn(2, 3, columns, dtype=torch.float64)
    ours = torch.autograd.grad((hypercomplex.multiply(x, *factors) * weights).sum(), [x, *factors])
    theirs = torch.autograd.grad(((x @ dense) * weights).sum(), [x, *factors])
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(ours, theirs, strict=True))


def test_the_change_is_the_closed_form():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.Compacter())
    disturb(adapter, size=0.5)
    module = next(iter(adapter.attached.placed.modules()))
    rule = adapter.attached.placed.shared.phm_rule
    down = hypercomplex.matrix(rule, module.down_left, module.down_right)
    up = hypercomplex.matrix(rule, module.up_left, module.up_right)
    x = torch.randn(2, 5, 32)
    expected = F.gelu(x @ down + module.down_bias, approximate="tanh") @ up + module.up_bias
    assert torch.allclose(module.change(x, None), expected, atol=1e-5)


def test_one_rule_serves_all_places_and_is_saved_once(tmp_path):
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.Compacter())
    disturb(adapter, size=0.5)
    assert [n for n in adapter.export().tensors if "phm_rule" in n] == ["shared.phm_rule"]
    adapter.save(tmp_path / "saved")
    fresh = model_of("bert")
    again = deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(outputs(fresh), outputs(model))
    assert len({id(m.shared.phm_rule) for m in again.attached.placed.modules()}) == 1


def test_nothing_of_the_size_of_a_matrix_is_built_in_training():
    sizes = []
    adapter = deltatune.attach(model_of("bert"), deltatune.Compacter())
    module = next(iter(adapter.attached.placed.modules()))
    x = torch.randn(1, 32)

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        module.change(x, None).sum().backward()
    assert max(sizes) < 32 * 4


def test_the_start_is_glorot_uniform_and_the_rule_small():
    adapter = deltatune.attach(model_of("bert"), deltatune.Compacter())
    module = next(iter(adapter.attached.placed.modules()))
    assert module.down_left.abs().max() <= (6 / (32 / 4 + 1)) ** 0.5
    assert adapter.attached.placed.shared.phm_rule.abs().max() < 6e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phm_dim": 5}, "phm_dim=5 does not divide the width 32 of .*; try phm_dim=8"),
        ({"bottleneck_size": 6}, "phm_dim=4 does not divide bottleneck_size=6"),
    ],
)
def test_sizes_that_do_not_divide_are_errors(fields, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.attach(model_of("bert"), deltatune.Compacter(**fields))


@pytest.mark.parametrize(("width", "fitting"), [(12, 4), (24, 8), (6, 3), (10, 2), (35, 1)])
def test_the_dimension_that_is_named_instead_divides_the_width(width, fitting):
    place = replace(deltatune.Compacter().sites(anatomy_of("bert"))[0], width=width)
    with pytest.raises(SettingsError, match=f"try phm_dim={fitting}"):
        deltatune.Compacter(phm_dim=11).size(place)
