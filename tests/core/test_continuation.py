"""Answers that are written: the likeliest token every time, whatever stands beside them."""

import pytest
import torch

from deltatune.core.continuation import continued
from talk import FAMILIES, METHODS, adapted, model

PROMPTS = [[5, 60, 7, 80, 9, 100, 11], [33, 44], [201, 7, 7, 9, 120]]
PAD = 4


def padded(prompts):
    most = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (most - len(prompt)) + prompt for prompt in prompts])
    return ids, torch.tensor([[0] * (most - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def by_hand(network, prompt, count, ends):
    """One forward pass of the whole text per token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            token = int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in ends:
                return ids[len(prompt) :], True
            ids.append(token)
    return ids[len(prompt) :], False


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_the_one_written_token_by_token_alone(family, method):
    network = adapted(family, method)
    first = by_hand(network, PROMPTS[0], 12, set())[0]
    ends = {PAD, first[6]}  # some answers end, others are cut off
    found = continued(network, *padded(PROMPTS), 12, sorted(ends), PAD)
    assert [(one.ids, one.finished) for one in found] == [by_hand(network, prompt, 12, ends) for prompt in PROMPTS]
    assert found[0].finished


def test_settings_of_the_checkpoint_do_not_matter_but_its_end_tokens_do():
    network = model("llama")
    expected = by_hand(network, PROMPTS[0], 8, set())[0]
    network.generation_config.update(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=9, eos_token_id=[expected[5], 299]
    )
    before = network.generation_config
    (found,) = continued(network, *padded(PROMPTS[:1]), 8, [PAD], PAD)
    assert (found.ids, found.finished) == (expected[:5], True)
    assert network.generation_config is before and before.do_sample
