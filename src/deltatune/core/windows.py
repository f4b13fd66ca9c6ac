"""Windows: a text as token ids in overlapping pieces that fit the model; a word counts where it has most context."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core import tokens
from deltatune.core.codes import codes_of, texts_in
from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED
from deltatune.core.task import LABELS, Batch, Example, inputs_of
from deltatune.core.words import NOWHERE, Range, first_tokens, owners

Place = tuple[int, int]
"""Number of the window and of the token in it."""
NO_PLACE: Place = (0, NOWHERE)
LATER = "labels_later_"
"""Before the names of what the model reads in the second window of a text and in those after it."""
LATER_LABELS = "labels_of_later"
WORDS, TEXT = "labels_words", "labels_text"


@dataclass(frozen=True, slots=True)
class Windows:
    """One text as the model reads it."""

    inputs: list[dict[str, list[int]]]
    """Token ids, mask and types of every window."""
    owned: list[list[int]]
    """For every token of every window the word it belongs to, or `NOWHERE`."""
    places: list[Place | None]
    """For every word its first token; None for a word that the tokenizer leaves out."""


def windows_of(
    tokenizer: Any, texts: Sequence[str], words: Sequence[Sequence[Range]], max_length: int, stride: int
) -> list[Windows]:
    """The windows of every text, at most `max_length` tokens long, `stride` tokens of each in the next one too.

    Raises `SettingsError` for a tokenizer without offsets and for windows that hold no token of the text.
    """
    if not tokenizer.is_fast:
        raise SettingsError(
            f"{type(tokenizer).__name__} does not say where its tokens are in the text",
            hint="take a model with a fast tokenizer (tokenizer.json)",
        )
    limit = min(max_length, tokens.longest(tokenizer))
    room = limit - tokenizer.num_special_tokens_to_add()
    if room < 1:
        raise SettingsError(
            f"windows of {limit} tokens hold special tokens only", hint=f"raise task.max_length by {1 - room} or more"
        )
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=limit,
        stride=min(stride, (room - 1) // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    of_text: list[list[int]] = [[] for _ in texts]
    for window, text in enumerate(encoded["overflow_to_sample_mapping"]):
        of_text[text].append(window)
    found = []
    for text, ranges, numbers in zip(texts, words, of_text, strict=True):
        inputs = [{name: encoded[name][number] for name in names} for number in numbers]
        offsets = [encoded["offset_mapping"][number] for number in numbers]
        owned = [owners(text, each, ranges) for each in offsets]
        found.append(Windows(inputs, owned, _places(owned, offsets, ranges)))
    return found


def _places(
    owned: Sequence[Sequence[int]], offsets: Sequence[Sequence[Range]], words: Sequence[Range]
) -> list[Place | None]:
    """Of the windows that hold a word, the one where it is furthest from a cut."""
    places: list[Place | None] = [None] * len(words)
    context = [-1.0] * len(words)
    for window, (owner, ranges) in enumerate(zip(owned, offsets, strict=True)):
        last = len(owner) - 1
        for word, token in enumerate(first_tokens(owner, ranges, words)):
            if token == NOWHERE:
                continue
            before = math.inf if window == 0 else token
            after = math.inf if window == len(owned) - 1 else last - token
            if min(before, after) > context[word]:
                places[word], context[word] = (window, token), min(before, after)
    return places


def collated(tokenizer: Any, examples: Sequence[Example]) -> Batch:
    """First windows as the model reads them [B, T], later ones [B, W - 1, T] under names that it is not told.

    An example has `windows` (model inputs, `labels` where known), its `text` and its `words`: first character, last,
    window and token. Texts go along as code points, words with their place in the row of all windows [B, N, 3].
    """
    most = max(len(example["windows"]) for example in examples)
    filled = [[*e["windows"], *e["windows"][:1] * (most - len(e["windows"]))] for e in examples]
    flat = [{**window, "length": len(window["input_ids"])} for windows in filled for window in windows]
    whole = {n: t.view(len(examples), most, -1) for n, t in tokens.padded(tokenizer, flat).items()}
    length = whole["input_ids"].shape[-1]
    batch = {name: tensor[:, 0] for name, tensor in whole.items()}
    later = {f"{LATER}{name}": tensor[:, 1:] for name, tensor in whole.items()} if most > 1 else {}
    left = tokenizer.padding_side == "left"
    begins = [[length - len(w["input_ids"]) if left else 0 for w in e["windows"]] for e in examples]
    if LABELS in flat[0]:
        labels = torch.full((len(examples), most, length), IGNORED)
        for row, example in enumerate(examples):
            for number, (begin, window) in enumerate(zip(begins[row], example["windows"], strict=True)):
                labels[row, number, begin : begin + len(window[LABELS])] = torch.tensor(window[LABELS])
        batch[LABELS] = labels[:, 0]
        later |= {LATER_LABELS: labels[:, 1:]} if most > 1 else {}
    return {**batch, **later, **_named(examples, begins, length)}


def _named(examples: Sequence[Example], begins: Sequence[Sequence[int]], length: int) -> Batch:
    """Words and texts of the rows, filled up with zeros; no word ends at character 0."""
    placed = [
        [
            (start, end, window * length + begins[row][window] + token if token != NOWHERE else NOWHERE)
            for start, end, window, token in example["words"]
        ]
        for row, example in enumerate(examples)
    ]
    words = [torch.tensor(own, dtype=torch.long).reshape(-1, 3) for own in placed]
    return {
        WORDS: torch.nn.utils.rnn.pad_sequence(words, batch_first=True),
        TEXT: codes_of([example["text"] for example in examples]),
    }


def over_windows(model: nn.Module, batch: Batch) -> Any:
    """The output for the first windows, its logits followed by those of the later ones [B, W T, C]."""
    output = model(**inputs_of(batch))
    later = {name.removeprefix(LATER): tensor for name, tensor in batch.items() if name.startswith(LATER)}
    if later:
        count = next(iter(later.values())).shape[1]
        outputs = [model(**{name: tensor[:, w] for name, tensor in later.items()}) for w in range(count)]
        output.logits = torch.cat([output.logits, *(each.logits for each in outputs)], 1)
    return output


def labels_of(batch: Batch) -> Tensor:
    """Labels of all windows of the batch [B, W T]."""
    labels = batch[LABELS]
    return torch.cat([labels, batch[LATER_LABELS].flatten(1)], 1) if LATER_LABELS in batch else labels


def texts_of(batch: Batch) -> list[str]:
    """The text of every row."""
    return texts_in(batch[TEXT])


def words_in(batch: Batch, row: int) -> list[tuple[int, int, int]]:
    """First character, last and place in the row of all windows (or `NOWHERE`) of every word."""
    return [(start, end, place) for start, end, place in batch[WORDS][row].tolist() if end > 0]
