"""P-tuning: encoder and fold, places in a template, peft's folders both ways."""

import pytest
import torch
from peft import PeftModel, PromptEncoderConfig, get_peft_model

import deltatune
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import AdapterError, SettingsError
from models import inputs
from shapes import count

KINDS = ["LSTM", "MLP"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_prompt_and_encoder_and_saves_the_prompt(tmp_path, kind):
    model = model_of("bert")
    adapter = deltatune.attach(
        model, deltatune.PTuning(num_virtual_tokens=5, encoder_reparameterization_type=kind, encoder_hidden_size=7)
    )
    assert adapter.trainable_parameters == adapter.method.count(adapter.attached.sites)
    assert [t.shape for t in adapter.export().tensors.values()] == [(5, 32)]
    state = adapter.state_dict()
    other = deltatune.attach(model_of("bert"), adapter.method, seed=3)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), other.parameters(), strict=True))


def test_the_encoder_of_bert_base_is_that_of_the_paper():
    d, h = 768, 384
    lstm = 2 * (4 * h * (d + h + 2)) + 2 * (4 * h * (2 * h + h + 2))
    assert count(deltatune.PTuning(num_virtual_tokens=9), "bert-base") == 9 * d + lstm + d * (d + 1) + d * (d + 1)


def test_the_prompt_is_the_encoders_closed_form():
    model = model_of("bert")
    adapter = deltatune.attach(model, deltatune.PTuning(num_virtual_tokens=4, encoder_reparameterization_type="MLP"))
    (module,) = adapter.attached.placed.modules()
    first, _, second, _, third = module.encoder.mlp
    x = torch.relu(module.encoder.embeddings @ first.weight.T + first.bias)
    expected = torch.relu(x @ second.weight.T + second.bias) @ third.weight.T + third.bias
    assert torch.allclose(module(2, None), expected.expand(2, -1, -1), atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_places_in_a_template_get_the_vectors_in_order(family):
    model = model_of(family)
    batch = inputs(model)
    ids = batch["input_ids"].clone()
    ids[ids == 7] = 8
    ids[:, 1], ids[:, 3], ids[0, 2] = 7, 7, 7
    adapter = deltatune.attach(model, deltatune.PTuning(num_virtual_tokens=3, prompt_token_id=7))
    vectors = next(iter(adapter.attached.placed.modules())).encoder().detach()
    found = outputs(model, {**batch, "input_ids": ids})
    adapter.detach()
    words = model.get_input_embeddings()(ids).detach()
    words[0, 1], words[0, 2], words[0, 3] = vectors
    words[1:, 1], words[1:, 3] = vectors[0], vectors[1]
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    assert torch.allclose(found, outputs(model, {**rest, "inputs_embeds": words}), atol=1e-5)


def test_a_template_survives_its_file_which_is_not_pefts(tmp_path):
    model = model_of("bert")
    batch = inputs(model)
    batch["input_ids"][:, 1] = 7
    adapter = deltatune.attach(model, deltatune.PTuning(num_virtual_tokens=6, prompt_token_id=7))
    adapter.save(tmp_path / "saved")
    assert "DELTATUNE_P_TUNING" in (tmp_path / "saved" / "adapter_config.json").read_text()
    fresh = model_of("bert")
    deltatune.load(fresh, tmp_path / "saved")
    assert torch.equal(outputs(fresh, batch), outputs(model, batch))


def test_a_token_becomes_an_id_and_must_be_one():
    known = {"[unused1]": [1], "prompt": [5, 6]}
    assert deltatune.PTuning(prompt_token="[unused1]").worded(known.__getitem__, ()).prompt_token_id == 1
    with pytest.raises(SettingsError, match="is 2 tokens; use one of the vocabulary"):
        deltatune.PTuning(prompt_token="prompt").worded(known.__getitem__, ())
    with pytest.raises(SettingsError, match="needs a vocabulary and prompt_token_id"):
        deltatune.attach(model_of("bert"), deltatune.PTuning(prompt_token="[unused1]"))


def test_more_places_than_vectors_are_an_error():
    model = model_of("bert")
    batch = inputs(model)
    batch["input_ids"][:, 1:4] = 7
    deltatune.attach(model, deltatune.PTuning(num_virtual_tokens=2, prompt_token_id=7))
    with pytest.raises(AdapterError, match="a row has 3 places for a prompt of 2"):
        outputs(model, batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family, task, kind):
    config = PromptEncoderConfig(
        task_type=task, num_virtual_tokens=3, encoder_hidden_size=8, encoder_reparameterization_type=kind
    )
    theirs = get_peft_model(model_of(family), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    cut = slice(3, None) if family == "llama" else slice(None)
    deltatune.load(ours, tmp_path / "theirs")
    found = outputs(theirs)
    assert torch.allclose(outputs(ours), found[:, cut] if found.dim() == 3 else found, atol=1e-5)
    fresh = model_of(family)
    settings = deltatune.PTuning(
        num_virtual_tokens=3,
        prompt_site="word",
        pool_index="first" if family == "bert" else "first_real",
        modules_to_save=("classifier",) if family == "bert" else None,
    )
    adapter = deltatune.attach(fresh, settings)
    disturb(adapter)
    adapter.save(tmp_path / "ours", task_type=task)
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    found = outputs(again)
    assert torch.allclose(outputs(fresh), found[:, cut] if found.dim() == 3 else found, atol=1e-5)


def test_the_encoder_moves_at_a_fiftieth_of_the_rate_and_a_folded_prompt_at_the_whole(tmp_path):
    adapter = deltatune.attach(model_of("bert"), deltatune.PTuning(modules_to_save=("classifier",)))
    rates = {name.split(".")[0]: pace.rate for name, pace in adapter.paces().items()}
    assert rates == {"bert": 0.02, "classifier": 1.0}
    adapter.save(tmp_path / "mine")
    loaded = deltatune.load(model_of("bert"), tmp_path / "mine")
    assert {pace.rate for name, pace in loaded.paces().items() if name.startswith("bert.")} == {1.0}
