"""Entities: rows with a tag per token or with spans of characters, checked and read as words with spans.

{"tokens": ["in", "Rome"], "label": ["O", "B-LOC"]}
{"text": "in Rome", "label": [{"start": 3, "end": 7, "label": "LOC"}]}
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from deltatune.core import tags
from deltatune.core.labels import called
from deltatune.core.tags import OUTSIDE, Scheme, Span
from deltatune.core.task import Row
from deltatune.core.words import Range, joined, words_of

SHORT = 5
"""Sentences of fewer words ("None .", "References") repeat by chance: they do not tie documents together."""


class Sentence(NamedTuple):
    """A row as text, words and entities."""

    text: str
    words: list[Range]
    spans: list[Span]
    """Empty for a row without labels."""


def sentence(row: Row) -> Sentence:
    """A checked row; spans count words, whichever way they were given."""
    if is_tokens(row):
        text, words = joined(row["tokens"])
        return Sentence(text, words, tags.spans_of(row.get("label") or ()))
    text = row["text"]
    words = words_of(text)
    firsts = {start: index for index, (start, _) in enumerate(words)}
    lasts = {end: index + 1 for index, (_, end) in enumerate(words)}
    given = row.get("label") or ()
    return Sentence(text, words, sorted(Span(firsts[s["start"]], lasts[s["end"]], s["label"]) for s in given))


def pieces(own: Sentence, spans: Sequence[Span]) -> list[tuple[str, str | None]]:
    """The text cut at the edges of spans that do not overlap, each piece with its type.

    >>> pieces(Sentence("in Rome", [(0, 2), (3, 7)], []), [Span(1, 2, "LOC")])
    [('in ', None), ('Rome', 'LOC')]
    """
    found: list[tuple[str, str | None]] = []
    behind = 0
    for span in sorted(spans):
        start, end = own.words[span.first][0], own.words[span.last - 1][1]
        found += [(own.text[behind:start], None), (own.text[start:end], span.type)]
        behind = end
    return [piece for piece in (*found, (own.text[behind:], None)) if piece[0]]


def is_tokens(row: Row) -> bool:
    """Whether the row is read by its tokens; one that has a text too is read by what its labels are about."""
    if row.get("tokens") is None or row.get("text") is None:
        return row.get("tokens") is not None
    label = row.get("label")
    return not (isinstance(label, list) and all(isinstance(each, dict) for each in label))


def problem(row: Row, scheme: Scheme | None, types: Collection[str] | None) -> str | None:
    """What is wrong with a row, or None; scheme and types as far as they are known."""
    wrong = _tokens(row["tokens"]) if is_tokens(row) else _text(row.get("text"))
    if wrong or "label" not in row:
        return wrong
    label = row["label"]
    if label is None:
        return "labels are missing"
    if not isinstance(label, list):
        return f"labels are not a list ({type(label).__name__})"
    return _tagged(row["tokens"], label, scheme, types) if is_tokens(row) else _marked(row["text"], label, types)


def _tokens(value: Any) -> str | None:
    if not isinstance(value, list):
        return f"tokens are not a list ({type(value).__name__})"
    for number, token in enumerate(value, 1):
        if not isinstance(token, str):
            return f"a token is not text (token {number}: {type(token).__name__})"
        if not token.strip():
            return f"a token is empty (token {number})"
    return None if value else "there are no tokens"


def _text(value: Any) -> str | None:
    if value is None:
        return "neither tokens nor a text"
    if not isinstance(value, str):
        return f"text is not text ({type(value).__name__})"
    return None if value.strip() else "text is empty"


def _tagged(
    tokens: Sequence[str], label: Sequence[Any], scheme: Scheme | None, types: Collection[str] | None
) -> str | None:
    if len(label) != len(tokens):
        return f"another number of tags than of tokens ({len(label)} for {len(tokens)})"
    for number, tag in enumerate(label, 1):
        if not isinstance(tag, str):
            return f"a tag is not a name (word {number}: {tag!r})"
        if not tag.strip():
            return f"a tag is empty (word {number})"
        kind = tags.parse(tag)[1]
        if types is not None and tag != OUTSIDE and kind not in types:
            return f"type of entity is unknown ({kind!r} at word {number})"
    return tags.wrong(label, scheme) if scheme is not None else None


def _marked(text: str, label: Sequence[Any], types: Collection[str] | None) -> str | None:
    for span in label:
        wrong = _span(text, span, types)
        if wrong:
            return wrong
    ordered = sorted((span["start"], span["end"]) for span in label)
    for (start, end), (other, last) in pairwise(ordered):
        if other < end:
            return f"spans overlap ({start}:{end} and {other}:{last})"
    words = words_of(text)
    edges = {start for start, _ in words}, {end for _, end in words}
    for start, end in ordered:
        if start not in edges[0] or end not in edges[1]:
            cut = next(
                (f"cuts {text[a:b]!r}" for a, b in words if a < start < b or a < end < b), "has spaces around it"
            )
            return f"span does not begin and end with a word ({start}:{end} {text[start:end]!r} {cut})"
    return None


def _span(text: str, span: Any, types: Collection[str] | None) -> str | None:
    if not isinstance(span, dict) or not {"start", "end", "label"} <= span.keys():
        return f"span lacks start, end or label ({span!r:.80})"
    start, end, kind = span["start"], span["end"], span["label"]
    if any(not isinstance(edge, int) or isinstance(edge, bool) for edge in (start, end)):
        return f"span has no whole numbers for start and end ({start!r}, {end!r})"
    if not 0 <= start < end <= len(text):
        return f"span is outside of the text ({start}:{end} of {len(text)} characters)"
    if not isinstance(kind, str) or not kind.strip() or kind == OUTSIDE:
        return f"span has no type ({start}:{end} {kind!r})"
    if types is not None and kind not in types:
        return f"type of entity is unknown ({kind!r} at {start}:{end})"
    return None


def groups_of(rows: Sequence[Row]) -> list[Hashable]:
    """For every row what it must not be parted from: its document, and sentences that differ in case or digits only."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]  # halved: a chain of all rows would be walked for every row
        return key

    first: list[Hashable] = []
    for index, row in enumerate(rows):
        document = called(row.get("document"))
        words = shape(row)
        keys: list[Hashable] = [("document", document) if document else ("row", index)]
        if not document or len(words) >= SHORT:
            keys.append(words)
        for key in keys[1:]:
            parents[root(key)] = root(keys[0])
        first.append(keys[0])
    return [root(key) for key in first]


def shape(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The words of a row without case, all digits alike.

    >>> shape({"tokens": ["May", "1999"]})
    ('may', '0000')
    """
    text, words, _ = sentence({name: value for name, value in row.items() if name != "label"})
    lower = ["".join("0" if c.isdigit() else c for c in text[start:end].casefold()) for start, end in words]
    return tuple(lower)
