"""Text classification: one class of two or many, several labels at once, or a number per text.

row        {text, text_pair?, label}
model      any `transformers` sequence classifier; its head is new when the checkpoint has none
loss       cross entropy, binary cross entropy per label, or squared error
metrics    accuracy, macro F1, Matthews, confusion; micro F1, subset accuracy; Pearson, Spearman, R2
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from deltatune.core import tokens
from deltatune.core.classification import Classification
from deltatune.core.pretrained import pretrained
from deltatune.core.task import Batch, Column, Example, Loaded, Row


class TextClassification(Classification):
    """Settings of text classification."""

    type: ClassVar[str] = "text-classification"
    title: ClassVar[str] = "Text classification and regression"
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
        labels = [{"label": self.target(row["label"])} if "label" in row else {} for row in rows]
        return [{**example, **label} for example, label in zip(examples, labels, strict=True)]

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Padded to the longest text, rounded up to a multiple of 8 within the model's limit."""
        batch = tokens.padded(processor, examples)
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        return batch
