"""Causal batches: labels one token ahead, logits where they count, and sums that do not depend on neighbours."""

import pytest
import torch
import torch.nn.functional as F

from deltatune.core import causal_batch
from deltatune.core.task import LABELS, inputs_of
from talk import FAMILIES, METHODS, adapted

PAD = 4


def row(ids, *taught):
    return {"input_ids": ids, "taught": [place in taught for place in range(len(ids))]}


def example(*rows):
    return {"rows": list(rows)}


EXAMPLES = [
    example(row([5, 60, 7, PAD, 9, 100, 11, PAD], 2, 3, 6, 7)),  # the padding token is learned where it ends an answer
    example(row([33, 44, 55], 2), row([201, 7, 8, 9, 120], 3, 4)),
]


def test_labels_stand_one_token_before_what_is_learned():
    batch = causal_batch.collated(EXAMPLES, PAD, 64, selects=False)
    assert batch["input_ids"].tolist() == [
        [5, 60, 7, PAD, 9, 100, 11, PAD],
        [33, 44, 55, PAD, PAD, PAD, PAD, PAD],
        [201, 7, 8, 9, 120, PAD, PAD, PAD],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [8, 3, 5]
    no = -100
    assert batch[LABELS].tolist() == [
        [no, 7, PAD, no, no, 11, PAD, no],
        [no, 55, no, no, no, no, no, no],
        [no, no, 9, 120, no, no, no, no],
    ]
    assert batch[causal_batch.OWNERS].tolist() == [0, 1, 1]
    kept = causal_batch.collated(EXAMPLES, PAD, 64, selects=True)
    assert kept["logits_to_keep"].tolist() == [1, 2, 3, 5, 6]
    assert kept[LABELS].tolist() == batch[LABELS][:, [1, 2, 3, 5, 6]].tolist()


def test_rows_are_padded_to_a_multiple_of_8_within_what_the_model_takes():
    assert causal_batch.collated([example(row([5] * 9, 1))], PAD, 64, True)["input_ids"].shape == (1, 16)
    assert causal_batch.collated([example(row([5] * 9, 1))], PAD, 10, True)["input_ids"].shape == (1, 10)


def test_packed_rows_have_positions_and_what_pads_them_is_a_text_of_its_own():
    packed = {**row([5, 6, 7, 8, 9], 1, 4), "position_ids": [0, 1, 2, 0, 1]}
    batch = causal_batch.collated([example(packed)], PAD, 64, False)
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch[LABELS].tolist() == [[6, -100, -100, 9, -100, -100, -100, -100]]


def test_the_loss_is_the_one_of_transformers():
    network = adapted("llama", None)
    batch = causal_batch.collated(EXAMPLES, PAD, 64, selects=True)
    labels = torch.full((3, 8), -100)
    for index, one in enumerate(one for each in EXAMPLES for one in each["rows"]):
        for place, taught in enumerate(one["taught"]):
            labels[index, place] = one["input_ids"][place] if taught else -100
    with torch.no_grad():
        ours = causal_batch.losses(network(**inputs_of(batch)).logits, batch).sum() / 7
        theirs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_the_same_without_logits_that_nothing_counts(family, method):
    network = adapted(family, method)
    trained = [p for p in network.parameters() if p.requires_grad]
    found = []
    for selects in (False, True):
        batch = causal_batch.collated(EXAMPLES, PAD, 64, selects)
        logits = network(**inputs_of(batch)).logits
        assert logits.shape[:2] == batch[LABELS].shape
        loss = causal_batch.losses(logits, batch).sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, trained), causal_batch.sums(logits.detach(), batch)))
    assert found[1][-1][:, 1].tolist() == [4, 3]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_of_an_example_do_not_depend_on_padding_or_neighbours(family, method):
    network = adapted(family, method)

    def sums(examples, longest=64):
        batch = causal_batch.collated(examples, PAD, longest, selects=True)
        with torch.no_grad():
            return causal_batch.sums(network(**inputs_of(batch)).logits, batch)

    together = sums([*EXAMPLES, example(row(list(range(50, 90)), 30, 39))])
    alone = torch.cat([sums([one], longest=3) for one in EXAMPLES])  # no padding at all
    torch.testing.assert_close(together[:2], alone, atol=1e-4, rtol=1e-4)


def test_sums_are_those_of_each_position():
    batch = causal_batch.collated(EXAMPLES, PAD, 64, selects=True)
    logits = torch.randn(*batch[LABELS].shape, 300)
    logits[0, 0, 7] = logits[2, 1, 9] = 20.0
    found = causal_batch.sums(logits, batch)
    labels = batch[LABELS]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    torch.testing.assert_close(found[:, 0].float(), torch.stack([loss[0].sum(), loss[1:].sum()]))
    assert found[:, 1:].tolist() == [[4, 1], [3, 1]]


def test_prompts_are_padded_on_the_left_and_know_their_examples():
    examples = [{"rows": [], "prompt": [5, 6], "writes": True}, {"rows": []}, {"prompt": [7, 8, 9], "writes": True}]
    batch = causal_batch.prompts(examples, PAD, [4, 2])
    assert batch[causal_batch.PROMPTS].tolist() == [[PAD, 5, 6], [7, 8, 9]]
    assert batch[causal_batch.PROMPT_MASK].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch[causal_batch.PROMPTED].tolist() == [0, 2]
    assert batch[causal_batch.ENDS].tolist() == [PAD, 4, 2]
    assert causal_batch.prompts(examples[1:2], PAD, [4]) == {}
    assert inputs_of(batch) == {}
