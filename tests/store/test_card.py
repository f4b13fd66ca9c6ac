"""The model card: front matter that hubs read, facts with their figures, nothing that is not known."""

import torch
import yaml

from deltatune.core import registry
from deltatune.core.method import AdapterFile
from deltatune.store.card import card


def made(method: str, **given) -> tuple[dict, str]:
    file = AdapterFile(
        name="mine",
        method=registry.method(method),
        tensors={"a": torch.zeros(40, 30), "b": torch.zeros(7)},
        sites=(),
        **{"base_model": None, "fingerprint": "0123456789abcdef0123", **given},
    )
    _, front, text = card(file, '{"r": 8}\n').split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_card_names_base_method_and_size():
    front, text = made("lora", base_model="org/base")
    assert front == {"library_name": "peft", "tags": ["deltatune", "lora"], "base_model": "org/base"}
    assert "# mine: LoRA adapter" in text and "`org/base` (fingerprint `0123456789abcdef`)" in text
    assert "- Stored values: 1,207\n" in text and '```json\n{"r": 8}\n```' in text
    assert 'deltatune.load(model, "path/to/this/folder", name="mine")' in text


def test_what_peft_does_not_load_is_not_said_to_be_its():
    front, text = made("compacter")
    assert front == {"library_name": "deltatune", "tags": ["deltatune", "compacter"]}
    assert "- Base model: `not recorded`" in text


def test_facts_that_were_recorded_are_in_the_card_and_others_are_not():
    energy = {"joules": 12345.6, "source": "RAPL"}
    facts = {"task": {"type": "regression"}, "results": {"test": {"r2": 0.51239, "rows": 40}}, "energy": energy}
    _, text = made("lora", facts=facts)
    assert "- Task: regression\n- test r2: 0.5124\n- Energy of the training: 12,346 J (RAPL)\n" in text
    _, text = made("lora", facts={"energy": {**energy, "kg_co2": 0.002}})
    assert "12,346 J (RAPL), 0.002 kg CO2 by the factor that was given\n" in text and "Task" not in text
    _, text = made("lora")
    assert "Energy" not in text and "Task" not in text
