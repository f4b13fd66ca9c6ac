"""Chat tokens: written conversations as token ids, with a mark for those that are learned.

An example has `rows`, one for every text it is learned from: `input_ids`, and `taught`, true for a token whose
prediction counts. Marks follow from places in the text, never from ids, so that a padding token may be the end token.
"""

from typing import Any, Literal

from deltatune.core.causal_batch import WRITES
from deltatune.core.chat_template import ChatTemplate, Refused, TrainOn, Written
from deltatune.core.conversations import Conversation, conversation
from deltatune.core.task import Example, Row

Side = Literal["left", "right"]


def encode(template: ChatTemplate, row: Row, train_on: TrainOn, limit: int, side: Side) -> Example:
    """One row with its answer, as texts of at most `limit` tokens, cut off at a side.

    A row that the template refuses, or that has nothing to learn, has a `problem`.
    """
    try:
        whole = [_taught(template, written) for written in template.write(conversation(row), train_on)]
    except Refused as reason:
        return _refused(str(reason))
    rows = [_shortened(template, ids, taught, limit, side) for ids, taught in whole]
    example = {
        "rows": rows,
        "length": max(len(row["input_ids"]) for row in rows),
        "truncated": any(len(row["input_ids"]) < len(ids) for row, (ids, _) in zip(rows, whole, strict=True)),
    }
    if any(any(row["taught"]) for row in rows):
        return example
    lost = any(any(taught) for _, taught in whole)
    why = f"its answer lies beyond {limit} tokens" if lost else "its text is one token long"
    return {**example, "problem": f"nothing is left to learn ({why})"}


def ask(template: ChatTemplate, row: Row, room: int) -> Example:
    """The prompt for the last answer of a row, whether it has one or not; more than `room` tokens are a `problem`."""
    try:
        prompt = _prompt(template, conversation(row))
    except Refused as reason:
        return _refused(str(reason))
    if len(prompt) > room:
        return _refused(f"the question is too long ({len(prompt)} tokens, {room} leave room for an answer)")
    return {"rows": [], "prompt": prompt, WRITES: True, "length": len(prompt)}


def _refused(reason: str) -> Example:
    return {"rows": [], "problem": reason, "length": 0}


def pieces(template: ChatTemplate, example: Example) -> list[tuple[str, bool]]:
    """What the model reads, in runs of tokens that are learned or are not; texts that are learned apart in turn."""
    found: list[tuple[str, bool]] = []
    for row in example["rows"]:
        start = 0
        for end in range(1, len(row["taught"]) + 1):
            if end == len(row["taught"]) or row["taught"][end] != row["taught"][start]:
                found.append((template.tokenizer.decode(row["input_ids"][start:end]), row["taught"][start]))
                start = end
    return found


def _prompt(template: ChatTemplate, talk: Conversation) -> list[int]:
    """Ids of the prompt; a text is one as it is, without an end. A template has written all special tokens already."""
    if talk.text is None:
        text = template.prompt(talk)
        ids: list[int] = template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
    ids, _ = _with_offsets(template, Written(talk.text, [], plain=True))
    return ids[:-1] if len(ids) > 1 and ids[-1] == template.tokenizer.eos_token_id else ids


def _taught(template: ChatTemplate, written: Written) -> tuple[list[int], list[bool]]:
    """Ids and marks; a text whose last answer no token ends gets the end token, which is learned too."""
    ids, offsets = _with_offsets(template, written)
    taught = [
        any(start < last and end > first for first, last in written.taught) and start < end for start, end in offsets
    ]
    end = template.tokenizer.eos_token_id
    if end is not None and written.taught and written.taught[-1][1] == len(written.text):
        if ids and ids[-1] == end:
            taught[-1] = True
        elif written.plain or not template.ended(written.text):
            ids, taught = [*ids, end], [*taught, True]
    if taught:
        taught[0] = False  # nothing predicts the first token
    return ids, taught


def _with_offsets(template: ChatTemplate, written: Written) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and the characters they stand for; a plain text that begins with the first token itself has it once."""
    tokenizer = template.tokenizer
    encoded = tokenizer(written.text, add_special_tokens=written.plain, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    twice = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and written.plain
    return (ids[1:], offsets[1:]) if twice else (ids, offsets)


def _shortened(template: ChatTemplate, ids: list[int], taught: list[bool], limit: int, side: Side) -> dict[str, Any]:
    kept = _cut(template, ids, limit, side)
    if len(kept) == len(ids) or side == "right":
        return {"input_ids": kept, "taught": taught[: len(kept)]}
    marks = taught[len(ids) - len(kept) :]
    marks[0] = False
    return {"input_ids": kept, "taught": marks}


def _cut(template: ChatTemplate, ids: list[int], limit: int, side: Side) -> list[int]:
    """At most `limit` ids; from the left the first token of the tokenizer stays."""
    if len(ids) <= limit or side == "right":
        return ids[:limit]
    begin = ids[:1] if ids[0] == template.tokenizer.bos_token_id else []
    return [*begin, *ids[len(ids) - limit + len(begin) :]]
