"""Facts: what the rows of a config are like, as far as advice depends on it."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltatune.advise.neighbours import agreement
from deltatune.core.task import Example, Row, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Numbers of a data set."""

    task: str
    rows: dict[str, int]
    classes: int | None
    """Number of classes; None where answers are none."""
    smallest_class: int | None
    """Training rows of the rarest class."""
    largest_share: float | None
    """Share of the commonest class among the training rows."""
    length: dict[str, int]
    """Median, 95th percentile and longest of the encoded rows."""
    truncated: float
    """Share of rows that are cut to the length limit."""
    pieces_per_word: float | None
    """Tokens of the model per word of the texts: 1 to 1.6 where the tokenizer knows the language."""
    unknown: float | None
    """Share of tokens that the tokenizer does not know."""
    other_letters: float | None
    """Share of letters outside ASCII."""
    neighbours: tuple[float, float, int] | None
    """Share of held-out rows that similar training rows answer, that of the commonest class, rows asked."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.neighbours is not None:
            right, usual, asked = self.neighbours
            found["neighbours"] = {"accuracy": round(right, 4), "majority": round(usual, 4), "rows": asked}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def facts_of(
    task: Task,
    rows: Mapping[str, Sequence[Row]],
    counts: dict[str, int],
    examples: Sequence[Example],
    tokenizer: Any,
) -> Facts:
    """Facts of a fitted task's rows; `examples` are the encoded ones of `rows["train"]`, `counts` all there are."""
    labels = _classes(task, rows["train"])
    lengths = np.array([example["length"] for example in examples])
    texts = _texts(task, rows["train"]) if tokenizer is not None else []
    pieces, unknown, other = _fit(tokenizer, texts) if texts else (None, None, None)
    return Facts(
        task=task.type,
        rows=counts,
        classes=len(labels) if labels else None,
        smallest_class=round(min(labels.values()) * counts["train"] / len(rows["train"])) if labels else None,
        largest_share=max(labels.values()) / sum(labels.values()) if labels else None,
        length={"median": int(np.median(lengths)), "p95": int(np.percentile(lengths, 95)), "max": int(lengths.max())},
        truncated=task.truncated(examples) / len(examples),
        pieces_per_word=pieces,
        unknown=unknown,
        other_letters=other,
        neighbours=agreement(task, rows["train"], [*rows["validation"], *rows["test"]]),
    )


def _classes(task: Task, rows: Sequence[Row]) -> Counter[Any]:
    if task.label is None or task.predicts != "classes" or not task.label_names:
        return Counter()
    labels = [row.get(task.label) for row in rows]
    return Counter(labels) if all(isinstance(label, Hashable) for label in labels) else Counter()


def _texts(task: Task, rows: Sequence[Row], most: int = 300) -> list[str]:
    """Texts of some rows: what a task reads that is one."""
    return [value for row in rows[:most] for word in task.key if isinstance(value := row.get(word), str)]


def _fit(tokenizer: Any, texts: Sequence[str]) -> tuple[float, float, float]:
    """Tokens per word, unknown tokens per token, letters outside ASCII per letter."""
    ids = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    count = sum(map(len, ids)) or 1
    words = sum(len(text.split()) for text in texts) or 1
    unknown = getattr(tokenizer, "unk_token_id", None)
    missed = sum(row.count(unknown) for row in ids) if unknown is not None else 0
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return count / words, missed / count, sum(not letter.isascii() for letter in letters) / max(1, len(letters))
