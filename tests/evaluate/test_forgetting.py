"""Forgetting: adapter on, off and merged, against plain passes of the base; every state is put back."""

import math

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import deltatune
from deltatune.core.config import ForgettingSettings
from deltatune.core.errors import DataError
from deltatune.core.registry import task as task_of
from deltatune.evaluate.forgetting import forgotten, general_texts
from deltatune.evaluate.language import Language
from deltatune.evaluate.representations import represented
from deltatune.ops.similarity import cka
from words import csv_file, model_folder, reviews

TEXTS = [row["text"] for row in reviews(40)]


def checkpoint(folder, network):
    """A language model of its own with the tokenizer of the tests' words."""
    model_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    size = len(tokenizer)
    torch.manual_seed(0)
    if network is BertForMaskedLM:
        config = BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        config.intermediate_size, config.initializer_range = 64, 0.3
    else:
        config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    network(config).save_pretrained(folder)
    return str(folder)


def adapted(base, method, *, strong=True):
    """A classifier on a checkpoint with an adapter that does something, and its task and rows."""
    rows = reviews(40)
    task = task_of("text-classification").fit(rows)
    torch.manual_seed(1)
    loaded = task.load(base)
    adapter = deltatune.attach(loaded.model, deltatune.method(method, modules_to_save=loaded.new))
    if strong:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter, task, loaded.processor, task.encode(rows, loaded.processor)


@pytest.mark.parametrize("network", [BertForMaskedLM, GPT2LMHeadModel])
def test_the_language_model_acts_on_the_adapted_backbone(tmp_path, network):
    base = checkpoint(tmp_path / "model", network)
    adapter, task, processor, examples = adapted(base, "lora")
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    found = forgotten(adapter, task, processor, examples, TEXTS, base)
    language, agreement = found["language"], found["agreement"]
    plain = Language.around(task.load(base).model, base)
    assert language["kind"] == ("masked" if network is BertForMaskedLM else "causal")
    assert language["off"] == pytest.approx(plain.loss(TEXTS), rel=1e-6)
    assert abs(language["on"] - language["off"]) > 1e-2
    assert language["merged"] == pytest.approx(language["on"], rel=1e-3)
    assert agreement["off"] == pytest.approx(1.0, abs=1e-9)
    assert agreement["on"] < 0.999
    assert agreement["merged"] == pytest.approx(agreement["on"], abs=1e-3)
    assert all(torch.equal(adapter.model.state_dict()[name], tensor) for name, tensor in before.items())


def test_causal_loss_is_that_of_the_model_itself(tmp_path):
    base = checkpoint(tmp_path / "model", GPT2LMHeadModel)
    task = task_of("text-classification").fit(reviews(40))
    language = Language.around(task.load(base).model, base)
    whole = GPT2LMHeadModel.from_pretrained(base).eval()
    total, units = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([language.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            total += float(whole(ids, labels=ids).loss) * (ids.shape[1] - 1)
        units += ids.shape[1] - 1
    assert language.loss(TEXTS) == pytest.approx(total / units, rel=1e-5)


def test_an_adapter_that_does_nothing_forgets_nothing(tmp_path):
    base = checkpoint(tmp_path / "model", BertForMaskedLM)
    found = forgotten(*adapted(base, "lora", strong=False), TEXTS, base)
    assert found["agreement"]["on"] == pytest.approx(1.0, abs=1e-12)
    assert found["language"]["on"] == found["language"]["off"]


def test_what_cannot_be_measured_says_why(tmp_path):
    base = model_folder(tmp_path / "model")  # no head for tokens in this checkpoint
    adapter, task, processor, examples = adapted(str(base), "prefix")
    found = forgotten(adapter, task, processor, examples, TEXTS, str(base))
    assert "no language-model head" in found["language"]["why"]
    assert found["agreement"]["merged"] is None
    assert math.isfinite(found["agreement"]["on"])
    assert forgotten(adapter, task, processor, examples, [], str(base))["language"] == {"why": "there are no texts"}
    assert "at least 4 rows" in forgotten(adapter, task, processor, examples[:3], [], str(base))["agreement"]["why"]


def test_padding_is_no_part_of_a_representation(tmp_path):
    adapter, task, processor, examples = adapted(checkpoint(tmp_path / "model", BertForMaskedLM), "lora")
    together = represented(adapter.model, task, processor, examples)
    alone = torch.cat([represented(adapter.model, task, processor, [example]) for example in examples])
    assert torch.allclose(together, alone, atol=1e-5)
    assert cka(together, alone) == pytest.approx(1.0, abs=1e-6)


def test_a_run_measures_what_it_is_asked_to(tmp_path):
    base = checkpoint(tmp_path / "model", BertForMaskedLM)
    csv_file(tmp_path / "reviews.csv", reviews(60))
    given = {"task": "text-classification", "model": base, "data": {"train": str(tmp_path / "reviews.csv")}}
    training = {"num_train_epochs": 1, "bf16": False}
    run = deltatune.finetune(
        **given, training=training, forgetting={"rows": 5}, output_dir=tmp_path / "run", quiet=True
    )
    assert run.results["forgetting"]["rows"] == 5
    assert run.results["forgetting"]["language"]["kind"] == "masked"
    with pytest.raises(DataError, match="no such file"):
        deltatune.finetune(
            **given, training=training, forgetting={"texts": str(tmp_path / "no.csv")}, output_dir=tmp_path / "two"
        )
    assert not (tmp_path / "two").exists()


def test_general_texts_come_from_the_file_or_the_rows(tmp_path):
    task = task_of("text-classification")
    rows = [{"text": "a film", "text_pair": "it is good", "label": "x"}, {"text": "b", "label": "y"}]
    assert general_texts(ForgettingSettings(), rows, task) == ["a film it is good", "b"]
    csv_file(tmp_path / "general.csv", [{"text": "one"}, {"text": "two"}])
    asked = ForgettingSettings(texts=str(tmp_path / "general.csv"))
    assert general_texts(asked, rows, task) == ["one", "two"]
    csv_file(tmp_path / "other.csv", [{"words": "one"}])
    with pytest.raises(DataError, match="no column text"):
        general_texts(ForgettingSettings(texts=str(tmp_path / "other.csv")), rows, task)
