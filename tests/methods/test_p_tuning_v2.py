"""P-tuning v2: the paper's count, and what sets it apart from prefix tuning."""

import pytest
import torch

import deltatune
from contract.cases import disturb, model_of, outputs
from shapes import count


def test_bert_large_with_20_tokens_trains_983_040_values():
    assert count(deltatune.PTuningV2(num_virtual_tokens=20), "bert-large") == 983_040


def test_it_is_a_prefix_whose_tokens_have_positions(tmp_path):
    model, other = model_of("bert"), model_of("bert")
    adapter = deltatune.attach(model, deltatune.PTuningV2(num_virtual_tokens=4))
    disturb(adapter, size=0.3)
    prefix = deltatune.attach(other, deltatune.PrefixTuning(num_virtual_tokens=4, position_offset=4))
    prefix.load_state_dict(adapter.state_dict())
    assert torch.equal(outputs(model), outputs(other))
    prefix.detach()
    still = deltatune.attach(other, deltatune.PrefixTuning(num_virtual_tokens=4))
    still.load_state_dict(adapter.state_dict())
    assert not torch.allclose(outputs(model), outputs(other), atol=1e-4)


@pytest.mark.parametrize(("family", "tokens"), [("bert", 34), ("roberta", 33), ("gpt2", 34)])
def test_more_positions_than_the_model_has_are_an_error_that_says_so(family, tokens):
    model = model_of(family)
    deltatune.attach(model, deltatune.PTuningV2(num_virtual_tokens=tokens))
    with pytest.raises(deltatune.DeltatuneError, match=f"{tokens} virtual tokens and those of the input"):
        outputs(model)


def test_its_dropout_acts_in_training_only():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.PTuningV2())
    disturb(adapter, size=0.5)
    assert torch.equal(outputs(model), outputs(model))
    adapter.train_mode(True)
    assert not torch.equal(outputs(model), outputs(model))
