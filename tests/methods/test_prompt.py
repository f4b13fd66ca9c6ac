"""Prompt tuning: words put in by hand, starts, padding, peft's folders both ways."""

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model

import deltatune
import deltatune.engine.inputs as sockets_of_inputs
from contract.cases import disturb, model_of, outputs
from deltatune.core.errors import SettingsError
from deltatune.engine import shared_prompt
from models import inputs
from shapes import count


def test_it_trains_p_times_d_values():
    assert count(deltatune.Prompt(num_virtual_tokens=20), "bert-base") == 15_360
    assert count(deltatune.Prompt(num_virtual_tokens=100), "t5-base") == 76_800


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_prompt_of_real_words_is_these_words(family):
    model = model_of(family)
    batch = inputs(model)
    real = torch.randint(5, 90, (3,))
    longer = {
        "input_ids": torch.cat([real.expand(len(batch["input_ids"]), -1), batch["input_ids"]], 1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (3, 0), value=1),
    }
    expected = outputs(model, longer)
    method = deltatune.Prompt(
        num_virtual_tokens=3, prompt_site="word", pool_index="first", prompt_tuning_init="text", initial_token_ids=real
    )
    deltatune.attach(model, method)
    assert torch.allclose(outputs(model, batch), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_in_models_without_embedding_norm_the_words_are_the_same_behind_the_embeddings(family):
    model = model_of(family)
    batch = inputs(model)
    real = torch.randint(5, 90, (3,))
    longer = {**batch, "input_ids": torch.cat([real.expand(len(batch["input_ids"]), -1), batch["input_ids"]], 1)}
    longer["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (3, 0), value=1)
    expected = outputs(model, longer)
    deltatune.attach(
        model, deltatune.Prompt(num_virtual_tokens=3, prompt_tuning_init="text", initial_token_ids=tuple(real.tolist()))
    )
    found = outputs(model, batch)
    assert torch.allclose(found, expected if family == "t5" else expected[:, 3:], atol=1e-5)


def test_texts_and_labels_become_tokens_and_are_repeated_or_cut():
    table = torch.nn.Embedding(50, 8)
    words = {"good": [3, 4], "bad": [5], "good bad": [3, 4, 5]}
    labels = deltatune.Prompt(prompt_tuning_init="labels", num_virtual_tokens=7).worded(
        words.__getitem__, ("good", "bad")
    )
    assert labels.initial_token_ids == (3, 4, 5)
    text = deltatune.Prompt(prompt_tuning_init="TEXT", prompt_tuning_init_text="good", num_virtual_tokens=1)
    assert text.worded(words.__getitem__, ()).initial_token_ids == (3, 4)
    model = model_of("bert")
    adapter = deltatune.attach(model, labels)
    (module,) = adapter.attached.placed.modules()
    table = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(module.embeddings, table[torch.tensor([3, 4, 5, 3, 4, 5, 3])])
    with pytest.raises(SettingsError, match="there is none to start from"):
        deltatune.Prompt(prompt_tuning_init="text").worded(lambda text: [], ())
    with pytest.raises(SettingsError, match="needs initial_token_ids"):
        deltatune.attach(model_of("bert"), deltatune.Prompt(prompt_tuning_init="labels"))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("site", ["word", "post_embedding"])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_row_does_not_depend_on_the_padding_of_others(family, site, attention):
    model = model_of(family)
    model.set_attn_implementation(attention)
    disturb(deltatune.attach(model, deltatune.Prompt(num_virtual_tokens=4, prompt_site=site)))
    batch = inputs(model)
    together = outputs(model, batch)
    for row, mask in enumerate(batch["attention_mask"]):
        length = int(mask.sum())
        alone = outputs(model, {"input_ids": batch["input_ids"][row : row + 1, :length]})
        found = together[row : row + 1] if together.dim() == 2 else together[row : row + 1, :length]
        assert torch.allclose(alone, found, atol=1e-5)


def test_nothing_pulls_the_prompt_to_zero():
    adapter = deltatune.attach(model_of("bert"), deltatune.Prompt())
    assert {group["weight_decay"] for group in adapter.parameter_groups(weight_decay=0.1)} == {0.0}


def test_more_virtual_tokens_than_positions_are_an_error_that_says_so():
    model = model_of("gpt2")
    deltatune.attach(model, deltatune.Prompt(num_virtual_tokens=40))
    with pytest.raises(deltatune.DeltatuneError, match="40 virtual tokens and those of the input are more than"):
        outputs(model)


TASKS = {"bert": "SEQ_CLS", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


def compared(theirs, family):
    """peft leaves the rows of its prompt in a decoder's logits."""
    found = outputs(theirs)
    return found[:, 3:] if family in ("gpt2", "llama") else found


@pytest.mark.parametrize("family", TASKS)
def test_a_folder_of_peft_has_its_logits_here_and_ours_there(tmp_path, family):
    config = PromptTuningConfig(task_type=TASKS[family], num_virtual_tokens=3)
    theirs = get_peft_model(model_of(family), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = model_of(family)
    adapter = deltatune.load(ours, tmp_path / "theirs", trainable=True)
    assert torch.allclose(outputs(ours), compared(theirs, family), atol=1e-5)
    disturb(adapter, size=0.3)
    adapter.save(tmp_path / "ours", task_type=TASKS[family])
    again = PeftModel.from_pretrained(model_of(family), tmp_path / "ours").eval()
    assert torch.allclose(compared(again, family), outputs(ours), atol=1e-5)


CAUSAL = ["llama", "mistral", "qwen3", "gemma3", "gpt2", "gpt-neox", "opt", "bloom", "falcon", "phi3", "qwen3-moe"]


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "mix"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_causal_model_runs_the_prompt_once_with_equal_outputs_and_gradients(family, method, monkeypatch):
    runs = 0

    def counted(*given):
        nonlocal runs
        runs += 1
        return remembered(*given)

    remembered = shared_prompt.remembered
    monkeypatch.setattr(sockets_of_inputs, "remembered", counted)
    model = model_of(family)
    batch = {**inputs(model), "labels": inputs(model)["input_ids"].clone()}
    mixed = {"methods": [{"type": "prompt", "num_virtual_tokens": 3}, {"type": "lora", "target_modules": "all-linear"}]}
    settings = mixed if method == "mix" else {"num_virtual_tokens": 3}
    adapter = deltatune.attach(model, deltatune.method({"type": method, **settings}))
    disturb(adapter)
    monkeypatch.setattr(sockets_of_inputs, "alike", lambda *given: False)
    apart = model(**batch)
    expected = torch.autograd.grad(apart.loss, adapter.parameters(), allow_unused=True)
    assert runs == 0
    monkeypatch.setattr(sockets_of_inputs, "alike", shared_prompt.alike)
    together = model(**batch)
    found = torch.autograd.grad(together.loss, adapter.parameters(), allow_unused=True)
    assert runs == 1
    assert torch.allclose(together.logits, apart.logits, atol=2e-6)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_that_are_checkpointed_see_the_prompt_in_every_row(family, ours):
    model = model_of(family)
    batch = {**inputs(model), "labels": inputs(model)["input_ids"].clone()}
    adapter = deltatune.attach(model, deltatune.Prompt(num_virtual_tokens=3))
    expected = torch.autograd.grad(model(**batch).loss, adapter.parameters())
    if ours:
        adapter.checkpoint()
    else:
        model.train()
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    found = torch.autograd.grad(model(**batch).loss, adapter.parameters())
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
