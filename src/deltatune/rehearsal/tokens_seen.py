"""Tokens: whether the tokenizer knows the texts, and whether special tokens stand only where they belong."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from deltatune.core.task import Row, Task
from deltatune.rehearsal.line import Line, failed, judged, left_out, passed
from deltatune.rehearsal.stage import Stage

LOOKED_AT = 200
"""Training rows."""
UNKNOWN = (0.01, 0.1)
"""Shares of tokens the tokenizer has no entry for."""
PIECES = (3.0, 6.0)
"""Tokens per word; 1.1 to 1.6 is usual for texts like those a tokenizer was made from."""
MARKED = (0.0, 0.05)
"""Shares of rows that hold a special token as text."""
NO_END = (0.05, 0.5)
"""Shares of rows whose answer is learned without the token that ends it."""


def tokens_lines(stage: Stage) -> Iterator[Line]:
    """What there is to say of a task that reads texts."""
    tokenizer = stage.ground.loaded.tokenizer
    if tokenizer is None:
        yield left_out("tokens", "the model reads no text")
        return
    rows, examples = stage.ground.splits.train[:LOOKED_AT], stage.ground.examples["train"][:LOOKED_AT]
    yield _known_line(stage, tokenizer, rows, examples)
    yield _special_line(stage, tokenizer, rows, examples)
    pieces = [stage.task.shown(row, stage.ground.loaded.processor) for row in rows]
    if any(pieces):
        yield _ends_line(tokenizer, [own for own in pieces if own])


def texts_of(row: Row, task: Task) -> Iterator[str]:
    """The texts of a row's input, without paths of files."""
    for word in task.key:
        if not (word in task.columns and task.columns[word].path):
            yield from _strings(row.get(word))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)


def _known_line(stage: Stage, tokenizer: Any, rows: list[Row], examples: Any) -> Line:
    ids, mask = _ids(stage, examples)
    if ids is None:
        return left_out("tokens", "the rows are read without token ids")
    count = int(mask.sum())
    unknown = tokenizer.unk_token_id
    share = 0.0 if unknown is None else float(((ids == unknown) & mask).sum()) / max(1, count)
    words = sum(len(text.split()) for row in rows for text in texts_of(row, stage.task))
    each = sum(len(_plain(tokenizer, text)) for row in rows for text in texts_of(row, stage.task)) / max(1, words)
    seen = f"{share:.2%} of {count:,} tokens are unknown to the tokenizer; {each:.2f} tokens per word"
    fix = (
        "take a model that was trained on this language and alphabet, or look whether the texts are what they should be"
    )
    line = judged("tokens", share, UNKNOWN, seen, fix, unknown=share, tokens_per_word=each)
    if line.status == "pass" and each > PIECES[0] and _has_words(rows, stage.task):
        return judged("tokens", each, PIECES, seen, fix, unknown=share, tokens_per_word=each)
    return line


def _plain(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _has_words(rows: list[Row], task: Task) -> bool:
    """Whether texts have blanks between words; SMILES and Chinese have none."""
    texts = [text for row in rows for text in texts_of(row, task)]
    return sum(map(len, texts)) < 12 * sum(len(text.split()) for text in texts)


def _special_line(stage: Stage, tokenizer: Any, rows: list[Row], examples: Any) -> Line:
    ids, mask = _ids(stage, examples)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    if ids is not None and first is not None and ids.shape[1] > 1:
        starts = [row[kept][:2].tolist() for row, kept in zip(ids, mask, strict=True)]
        doubled = sum(start == [first, first] for start in starts)
        if doubled > MARKED[1] * len(ids):
            token = tokenizer.convert_ids_to_tokens(first)
            seen = f"{doubled} of {len(ids)} rows begin twice: {token!r} stands there again"
            fix = "take it out of the texts or of the template: the tokenizer adds it by itself"
            return failed("special tokens", seen, fix)
    marks = [token for token in dict.fromkeys(tokenizer.all_special_tokens) if len(token) > 2]
    holding = [(row, m) for row in rows for m in marks if any(m in text for text in texts_of(row, stage.task))]
    places = list(dict.fromkeys(f"{stage.place(row)} ({mark})" for row, mark in holding))
    count = len({id(row) for row, _ in holding})
    padding = "padding has a token of its own"
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        padding = "padding is the end token; labels follow places, so ends are learned all the same"
    if not count:
        return passed(
            "special tokens", f"none stands in the texts; {padding}", pad_is_end=padding.startswith("padding is")
        )
    seen = f"{count} of {len(rows)} rows hold special tokens as text: {', '.join(places[:3])}"
    fix = (
        "give the texts without the tokens of a template: it is put around them (task.chat_template) when they are read"
    )
    return judged("special tokens", count / len(rows), MARKED, seen, fix, rows=places[:20])


def _ends_line(tokenizer: Any, pieces: list[Any]) -> Line:
    """Whether the last token that is learned is one that ends an answer."""
    ends = tuple(token for token in tokenizer.all_special_tokens if token)
    last = [next((text for text, learned in reversed(own) if learned), "") for own in pieces]
    without = sum(not text.rstrip().endswith(ends) for text in last)
    if not without:
        return passed("answer ends", f"the token that ends an answer is learned in all of {len(last)} rows")
    seen = (
        f"in {without} of {len(last)} rows no token that ends the answer is learned: the model would not learn to stop"
    )
    fix = "raise task.max_length where answers are cut off, or end answers in the template with {{ eos_token }}"
    return judged("answer ends", without / len(last), NO_END, seen, fix, rows=without)


def _ids(stage: Stage, examples: Any) -> tuple[Tensor | None, Tensor | Any]:
    """Token ids [rows, T] of the examples and which of them are no padding."""
    batch = stage.batch(examples)
    ids = batch.get("input_ids")
    if ids is None or ids.dim() != 2:
        return None, None
    mask = batch.get("attention_mask")
    return ids, (mask if mask is not None and mask.shape == ids.shape else ids.new_ones(ids.shape)).bool()
