"""VeRA: the paper's counts, its closed form, its projection once in the file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from shapes import count

QUERY_VALUE = ("attention.query", "attention.value")


def test_it_trains_the_values_of_the_paper():
    assert count(deltatune.VeRA(r=1024, target_modules=QUERY_VALUE), "roberta-base") == 43_008
    assert count(deltatune.VeRA(r=256, target_modules=QUERY_VALUE), "roberta-large") == 61_440
    assert count(deltatune.VeRA(r=4, target_modules=QUERY_VALUE), "bert-base") == 24 * (768 + 4)  # never dense d x d


def test_the_output_is_the_closed_form_for_layers_of_different_size():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 9))
    adapter = deltatune.attach(model, deltatune.VeRA(r=7, target_modules=("0", "1")))
    disturb(adapter, size=0.3)
    shared, x = adapter.attached.placed.shared, torch.randn(3, 6)
    assert shared.vera_A.shape == (7, 6) and shared.vera_B.shape == (9, 7)
    for path, width in (("0", 6), ("1", 5)):
        layer, module = model[int(path)], adapter.attached.placed.sites[path]
        inner = module.lambda_d * (x @ shared.vera_A[:, :width].T)
        delta = module.lambda_b * (inner @ shared.vera_B[: layer.out_features].T)
        expected = F.linear(x, layer.weight, layer.bias) + delta
        x = layer(x)
        assert torch.allclose(x, expected, atol=1e-6)


def test_the_projection_is_saved_once_or_drawn_again(tmp_path):
    sizes = {}
    for keep in (True, False):
        model = model_of("bert")
        adapter = deltatune.attach(model, deltatune.VeRA(r=16, save_projection=keep, projection_prng_key=5))
        disturb(adapter)
        assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites)
        adapter.save(tmp_path / str(keep))
        sizes[keep] = len([n for n in adapter.export().tensors if "vera_A" in n])
        fresh = model_of("bert")
        deltatune.load(fresh, tmp_path / str(keep))
        assert torch.equal(outputs(fresh), outputs(model))
    assert sizes == {True: 1, False: 0}


def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(SettingsError, match="VeRA is for linear layers"):
        deltatune.attach(nn.Sequential(nn.Embedding(5, 4)), deltatune.VeRA(target_modules="0"))
