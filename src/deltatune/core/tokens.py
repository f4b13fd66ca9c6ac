"""Tokens: texts as token ids within a limit, and padded batches of them."""

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from deltatune.core.pretrained import processor_of
from deltatune.core.task import Batch, Example

PAD_TO = 8
"""Lengths of batches are multiples of this: fewer shapes, aligned memory."""


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a model; one without a padding token pads with its end token."""
    tokenizer = processor_of(AutoTokenizer, model, "a model for text")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def limit_to(tokenizer: Any, network: Any) -> None:
    """Tells the tokenizer how many positions the model has, and the model what padding is."""
    if network.config.pad_token_id is None:
        network.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(network))


def longest(tokenizer: Any) -> int:
    """The most tokens the tokenizer says its model takes."""
    return min(int(tokenizer.model_max_length), 1 << 20)


def encode(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str | None], max_length: int) -> list[Example]:
    """An example per text with token ids, `length` and whether it was `truncated` to the limit."""
    limit = min(max_length, longest(tokenizer))
    given = {"text_pair": list(pairs)} if any(pair is not None for pair in pairs) else {}
    whole = tokenizer(list(texts), truncation=False, verbose=False, **given)["input_ids"]
    encoded = tokenizer(list(texts), truncation=True, max_length=limit, verbose=False, **given)
    examples: list[Example] = []
    for index, ids in enumerate(whole):
        example = {name: values[index] for name, values in encoded.items()}
        length = len(example["input_ids"])
        examples.append({**example, "length": length, "truncated": len(ids) > length})
    return examples


def padded(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    """A batch padded to the longest example, rounded up to a multiple of 8 within the model's limit."""
    names = [name for name in tokenizer.model_input_names if name in examples[0]]
    most = max(example["length"] for example in examples)
    return dict(
        tokenizer.pad(
            {name: [example[name] for example in examples] for name in names},
            padding="max_length",
            max_length=min(-(-most // PAD_TO) * PAD_TO, max(most, longest(tokenizer))),
            return_tensors="pt",
            verbose=False,
        )
    )


def _positions(network: Any) -> int:
    """The most tokens the model has positions for; RoBERTa-type models lose those up to the padding index."""
    positions = getattr(network.config, "max_position_embeddings", None) or 1 << 20
    if positions < 0:  # XLNet: as many as there are tokens
        return 1 << 20
    embeddings = getattr(network.base_model, "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    return int(positions) - (padding + 1 if padding is not None else 0)
