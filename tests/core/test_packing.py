"""Packed texts: none sees another, whatever the model and method; where that cannot be, packing is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deltatune
from deltatune.core.errors import SettingsError
from deltatune.core.packing import check_packing, joined, packs
from talk import FAMILIES, METHODS, adapted, model

TEXTS = [[5, 60, 7, 80, 9, 100, 11], [33, 44, 55, 66], [201, 7, 7, 9, 120]]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_every_text_is_in_one_pack_and_no_pack_is_too_long(lengths):
    found = packs(lengths, 20)
    assert sorted(index for pack in found for index in pack) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in pack) for pack in found]
    assert all(size <= 20 for size in sizes)
    assert sum(size <= 10 for size in sizes) <= 1  # two half-empty packs would have been one


def as_rows(texts):
    return [{"input_ids": text, "taught": [False] + [True] * (len(text) - 1)} for text in texts]


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_packed_texts_are_those_of_each_alone(family, method):
    network = adapted(family, method)
    if method == "prompt":  # its tokens stand in front of the row, not in front of every text
        with pytest.raises(SettingsError, match=r"task.packing: .* reads packed texts otherwise"):
            check_packing(network, *TEXTS[:2])
        return
    check_packing(network, *TEXTS[:2])
    pack = joined(as_rows(TEXTS))
    other = joined(as_rows(TEXTS[::-1]))
    with torch.no_grad():
        together = network(**{n: torch.tensor([pack[n], other[n]]) for n in ("input_ids", "position_ids")}).logits
        alone = [network(input_ids=torch.tensor([text])).logits[0] for text in TEXTS]
    torch.testing.assert_close(together[0], torch.cat(alone), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1], torch.cat(alone[::-1]), atol=1e-4, rtol=1e-4)


def test_a_model_that_sees_across_texts_is_refused(monkeypatch):
    network = model("llama")
    before = type(network).forward
    monkeypatch.setattr(
        type(network),
        "forward",
        lambda self, input_ids, position_ids=None: before(
            self, input_ids=input_ids, attention_mask=torch.ones_like(input_ids), position_ids=position_ids
        ),
    )
    with pytest.raises(SettingsError, match=r"they would see each other"):
        check_packing(network, *TEXTS[:2])


def test_a_model_without_positions_is_refused(monkeypatch):
    network = model("gpt2")
    before = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda self, input_ids: before(self, input_ids=input_ids))
    with pytest.raises(SettingsError, match=r"GPT2LMHeadModel takes no positions"):
        check_packing(network, *TEXTS[:2])


def test_the_trial_leaves_the_mode_of_every_module():
    network = adapted("llama", "lora")
    network.train()
    network.model.layers[0].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    check_packing(network, *TEXTS[:2])
    assert {name: module.training for name, module in network.named_modules()} == modes


def test_a_method_whose_side_network_sees_across_texts_is_refused():
    network = model("llama")
    handle = deltatune.attach(network, deltatune.method("ladder"), seed=0)
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    with pytest.raises(SettingsError, match=r"task.packing"):
        check_packing(network, *TEXTS[:2])
