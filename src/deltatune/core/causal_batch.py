"""Causal batch: rows of tokens, and the positions from which a token that counts is predicted.

Logits are as wide as the vocabulary, so they are computed at those positions only (`logits_to_keep` of
`transformers`); with labels at the same positions, loss and scores are what they are with all logits.

Shape legend: B rows, T tokens, K positions from which any row predicts a token that counts, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deltatune.core.label_loss import IGNORED
from deltatune.core.task import LABELS, Batch, Example
from deltatune.core.tokens import PAD_TO
from deltatune.ops.token_loss import token_losses

KEPT = "logits_to_keep"
OWNERS = "labels_owners"
"""Number of the example of every row."""
PROMPTS, PROMPT_MASK, PROMPTED = "labels_prompts", "labels_prompt_mask", "labels_prompted"
"""Prompts [G, P] padded on the left, their mask, and the numbers of their examples [G]."""
ENDS = "labels_ends"
"""Id of the padding, then those of the tokens that end an answer."""
WRITES = "writes"
"""Marks an example whose `prompt` the model is to answer."""


def collated(examples: Sequence[Example], padding: int, longest: int, selects: bool) -> Batch:
    """The rows of the examples, padded on the right, with labels [B, K] one token ahead.

    `longest` is the most tokens the model takes, `selects` whether it computes logits at chosen positions. Rows with
    `position_ids` are packed: what pads them is one more text.
    """
    rows = [row for example in examples for row in example["rows"]]
    most = max(len(row["input_ids"]) for row in rows)
    width = min(-(-most // PAD_TO) * PAD_TO, max(most, longest))
    packed = "position_ids" in rows[0]
    ids_BT = torch.full((len(rows), width), padding)
    labels_BT = torch.full((len(rows), width), IGNORED)
    told_BT = torch.zeros_like(ids_BT)
    for row, (ids, labels, told) in zip(rows, zip(ids_BT, labels_BT, told_BT, strict=True), strict=True):
        count = len(row["input_ids"])
        ids[:count] = torch.tensor(row["input_ids"])
        taught = torch.tensor(row["taught"])[1:]
        labels[: count - 1][taught] = ids[1:count][taught]
        told[:count] = torch.tensor(row["position_ids"]) if packed else 1
        if packed:
            told[count:] = torch.arange(width - count)
    kept_K = (labels_BT != IGNORED).any(0).nonzero().flatten()
    kept_K = kept_K if len(kept_K) and selects else torch.arange(width)
    owners = [number for number, example in enumerate(examples) for _ in example["rows"]]
    return {
        "input_ids": ids_BT,
        "position_ids" if packed else "attention_mask": told_BT,
        LABELS: labels_BT[:, kept_K],
        OWNERS: torch.tensor(owners),
        **({KEPT: kept_K} if selects else {}),
    }


def prompts(examples: Sequence[Example], padding: int, stops: Sequence[int]) -> Batch:
    """The prompts of the examples that are to be answered, padded on the left; nothing where there are none."""
    chosen = [number for number, example in enumerate(examples) if example.get(WRITES)]
    if not chosen:
        return {}
    most = max(len(examples[number]["prompt"]) for number in chosen)
    ids_GP = torch.full((len(chosen), most), padding)
    mask_GP = torch.zeros_like(ids_GP)
    for row, number in enumerate(chosen):
        prompt = examples[number]["prompt"]
        ids_GP[row, most - len(prompt) :] = torch.tensor(prompt)
        mask_GP[row, most - len(prompt) :] = 1
    ends = torch.tensor([padding, *stops])
    return {PROMPTS: ids_GP, PROMPT_MASK: mask_GP, PROMPTED: torch.tensor(chosen), ENDS: ends}


def losses(logits_BKV: Tensor, batch: Batch) -> Tensor:
    """Loss of every position [B, K] in float32, zero where nothing counts."""
    return token_losses(logits_BKV.flatten(0, 1), batch[LABELS].flatten()).view_as(batch[LABELS])


def sums(logits_BKV: Tensor, batch: Batch) -> Tensor:
    """Loss, tokens, and tokens whose best guess is right, summed over the rows of every example [examples, 3]."""
    labels_BK = batch[LABELS]
    right_BK = logits_BKV.argmax(-1) == labels_BK
    counts_BK = labels_BK != IGNORED
    of_row = torch.stack([losses(logits_BKV, batch).sum(1), counts_BK.sum(1), right_BK.sum(1)], 1).double()
    owners = batch[OWNERS]
    return of_row.new_zeros(int(owners.max()) + 1, 3).index_add_(0, owners, of_row)
