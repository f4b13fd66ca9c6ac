"""Every stack of a model runs the attention that was chosen, whichever transformers is installed."""

import pytest
import torch
import transformers as tf

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.engine.attention_switch import switch_attention


@pytest.mark.parametrize("family", ["t5", "whisper", "bert"])
def test_all_parts_get_it(family):
    model = model_of(family)
    switch_attention(model, "eager")
    configs = [part.config for part in model.modules() if isinstance(part, tf.PreTrainedModel)]
    assert {config._attn_implementation for config in configs} == {"eager"}


def test_a_prefix_acts_where_transformers_does_not_reach_the_stacks(monkeypatch):
    """As transformers 5.17 did with T5, whose stacks have copies of its config."""
    expected = prefixed()

    def itself_alone(self, chosen):
        self.config._attn_implementation_internal = chosen

    monkeypatch.setattr(tf.PreTrainedModel, "set_attn_implementation", itself_alone)
    assert torch.equal(prefixed(), expected)


def prefixed() -> torch.Tensor:
    """What T5 answers with a prefix; the base answers otherwise."""
    model = model_of("t5")
    base = outputs(model)
    disturb(deltatune.attach(model, deltatune.PrefixTuning(num_virtual_tokens=2)), size=0.5)
    found = outputs(model)
    assert not torch.allclose(found, base, atol=1e-3)
    return found
