"""Continuation: what a causal model writes behind its prompts, the likeliest token at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from deltatune.core.pretrained import quiet


@dataclass(frozen=True, slots=True)
class Continued:
    """What was written for one prompt."""

    ids: list[int]
    """Without what ends it."""
    finished: bool
    """Whether it ended before the limit."""


def continued(
    model: Any, ids_GP: Tensor, mask_GP: Tensor, max_new_tokens: int, stops: Sequence[int], padding: int
) -> list[Continued]:
    """Greedy answers to prompts that are padded on the left; an answer does not depend on the other prompts.

    Of the checkpoint's own generation settings nothing counts but the tokens that end an answer.
    """
    own = model.generation_config.eos_token_id
    ends = {*stops, *([own] if isinstance(own, int) else own or [])}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=padding, use_cache=True
    )
    before = model.generation_config
    model.generation_config = config  # else what the checkpoint says fills in whatever is at its default
    try:
        with quiet(), torch.no_grad():
            written = model.generate(input_ids=ids_GP, attention_mask=mask_GP)[:, ids_GP.shape[1] :].tolist()
    finally:
        model.generation_config = before
    return [_until(ids, ends) for ids in written]


def _until(ids: Sequence[int], ends: set[int]) -> Continued:
    length = next((place for place, token in enumerate(ids) if token in ends), None)
    return Continued(list(ids[:length]), length is not None)
