"""Text classification: one class of two or many, several labels at once, or a number per text.

row        {text, text_pair?, label}
model      any `transformers` sequence classifier; its head is new when the checkpoint has none
loss       cross entropy, binary cross entropy per label, or squared error
metrics    accuracy, macro F1, Matthews, confusion; micro F1, subset accuracy; Pearson, Spearman, R2
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from transformers import AutoModelForSequenceClassification

from deltatune.core import tokens
from deltatune.core.classification import Classification
from deltatune.core.pretrained import pretrained
from deltatune.core.task import Batch, Column, Example, Loaded, Row
from deltatune.core.text_augmentation import Synonyms, TextAugmentation, augmented, movable


class TextClassification(Classification):
    """Settings of text classification."""

    type: ClassVar[str] = "text-classification"
    title: ClassVar[str] = "Text classification and regression"
    begin_with: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"
    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column(
            ("text", "sentence", "sentence1", "review", "content", "tweet", "comment", "question", "premise")
        ),
        "text_pair": Column(("text_pair", "sentence2", "hypothesis"), required=False),
        "label": Column(("label", "labels", "class", "category", "target", "sentiment")),
    }
    key: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    peft_task: ClassVar[str | None] = "SEQ_CLS"

    max_length: Annotated[int, Field(ge=2)] = 256
    """Longest text in tokens; what is cut off is counted."""
    augmentation: TextAugmentation | None = None
    """Vary the training texts: words left out, swapped, replaced by synonyms."""

    _synonyms: Synonyms = PrivateAttr(default_factory=dict)

    def check_input(self, row: Row) -> str | None:
        """An empty text, or a text that is none."""
        for word in ("text", "text_pair"):
            value = row.get(word)
            if value is None and (word == "text_pair" or word not in row):
                continue
            if not isinstance(value, str):
                return f"{word} is not text ({type(value).__name__})"
            if not value.strip():
                return f"{word} is empty"
        return None

    def fit(self, rows: Sequence[Row]) -> Self:
        """Kind of problem and classes, from the training rows; the synonyms of the augmentation."""
        fitted = super().fit(rows)
        fitted._synonyms = self.augmentation.read() if self.augmentation else {}
        return fitted

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The classifier and its tokenizer; modules the checkpoint lacks are reported as new."""
        network, new = pretrained(
            AutoModelForSequenceClassification, model, dtype, "a text classifier", **self.config()
        )
        tokenizer = tokens.tokenizer_of(model)
        tokens.limit_to(tokenizer, network)
        return Loaded(network, tokenizer, new, tokenizer)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Token ids, cut to the length limit; the label as the model's output index or vector."""
        texts, pairs = [row["text"] for row in rows], [row.get("text_pair") for row in rows]
        examples = tokens.encode(processor, texts, pairs, self.max_length)
        if self.augmentation is not None:
            limit = min(self.max_length, tokens.longest(processor))
            examples = movable(processor, examples, list(zip(texts, pairs, strict=True)), self._synonyms, limit)
        labels = [{"label": self.target(row["label"])} if "label" in row else {} for row in rows]
        return [{**example, **label} for example, label in zip(examples, labels, strict=True)]

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The text with its words varied, where that is asked for."""
        return example if self.augmentation is None else augmented(example, self.augmentation, generator)

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Padded to the longest text, rounded up to a multiple of 8 within the model's limit."""
        batch = tokens.padded(processor, examples)
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """A linear model on words."""
        from deltatune.core.linear_baseline import on_words  # scikit-learn takes a second

        return on_words(self, train, rows)
