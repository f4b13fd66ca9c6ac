"""BitFit: the counts of the paper, and which tensors move."""

import pytest
import torch
from transformers import BertConfig, BertModel

import deltatune
from contract.cases import disturb, model_of
from deltatune.engine.anatomy import Anatomy


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (BertConfig(), 102_912),
        (BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096), 272_384),
    ],
)
def test_it_trains_the_number_of_biases_of_the_paper(config, count):
    with torch.device("meta"):
        anatomy = Anatomy.of(BertModel(config))
    settings = deltatune.BitFit()
    assert settings.count(settings.sites(anatomy)) == count


def test_the_bias_is_shifted():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.BitFit())
    layer = model.bert.encoder.layer[0].attention.self.query
    stored = layer._parameters["bias"]
    disturb(adapter)
    shift = adapter.attached.placed.sites["bert.encoder.layer.0.attention.self.query.bias"].shift
    assert torch.equal(layer.bias, stored + shift)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_without_biases_are_refused_with_another_way(family):
    with pytest.raises(deltatune.DeltatuneError, match="has none; use lora"):
        deltatune.attach(model_of(family), deltatune.BitFit())


def test_it_can_be_kept_to_some_modules():
    adapter = deltatune.attach(model_of("bert"), deltatune.BitFit(target_modules=("query", "intermediate")))
    assert adapter.trainable_parameters == 2 * (32 + 48)


def test_a_bias_that_is_saved_whole_is_not_shifted_too():
    """A new module starts random elsewhere: a shift of its bias without the bias would mean nothing there."""
    path = "bert.encoder.layer.0.attention.self.query"
    adapter = deltatune.attach(model_of("bert"), deltatune.BitFit(modules_to_save=(path,)))
    placed = adapter.attached.placed.sites
    assert f"{path}.bias" not in placed and path.replace("query", "key") + ".bias" in placed
    assert {f"{path}.weight", f"{path}.bias"} <= set(adapter.attached.saved)
