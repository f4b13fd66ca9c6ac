"""Translation: a text for a text, by any encoder-decoder: another language, a summary, a correction, an answer.

row        {source, target}
model      T5, BART, mBART, Marian, NLLB, ...: any `transformers` encoder-decoder that was trained to write texts
loss       cross entropy over the tokens of the targets
metrics    chrF and BLEU of sacreBLEU, exact match, share of unfinished answers
"""

import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from deltatune.core.division import by_group
from deltatune.core.encoder_decoder import Written, decoded, load_encoder_decoder, write
from deltatune.core.label_loss import IGNORED, single
from deltatune.core.task import LABELS, Batch, Column, Example, Loaded, Row, Task
from deltatune.core.text_augmentation import Synonyms, TextAugmentation, augmented, movable
from deltatune.core.translation_scores import BleuTokenizer, chrf_of_some, signatures, translation_scores
from deltatune.core.words import NOWHERE, words_of

PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[-+#\d*$.]*(?:hh?|ll?|[jztLq])?[a-zA-Z]|\{\w*\}")
"""`%s`, `%5.2f`, `%1$s`, `%(name)s`, `{}`, `{name}`: what a program fills in."""


class Translation(Task):
    """Settings of translation and other text-to-text tasks."""

    type: ClassVar[str] = "translation"
    title: ClassVar[str] = "Translation and other texts from texts"
    begin_with: ClassVar[str] = "google/flan-t5-small"
    columns: ClassVar[Mapping[str, Column]] = {
        "source": Column(("source", "src", "input", "text", "document", "article", "question")),
        "target": Column(("target", "tgt", "output", "translation", "summary", "highlights", "answer", "label")),
    }
    label: ClassVar[str | None] = "target"
    key: ClassVar[tuple[str, ...]] = ("source",)
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "unfinished"})
    peft_task: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    trains_head: ClassVar[bool] = False

    prefix: str = ""
    """What every source begins with ("translate English to German: "): it is how T5 is told what to do."""
    source_language: str | None = None
    """Code of the sources, for tokenizers that know languages (mBART: en_XX, NLLB: eng_Latn)."""
    target_language: str | None = None
    """Code of the targets, for these tokenizers and for Marian models of several targets (deu)."""
    max_source_length: Annotated[int, Field(ge=2)] = 256
    """Longest source in tokens, prefix included; what is cut off is counted."""
    max_target_length: Annotated[int, Field(ge=2)] = 128
    """Longest target in tokens; what is cut off is counted, and the model learns to end there."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the wanted probability that is spread over the whole vocabulary; 0.1 is usual."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams of the search for the best answer; 1 takes the likeliest token at every step."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens; none: as long as the longest target."""
    length_penalty: float | None = None
    """Power of the length that a beam's score is divided by; none means 1, more favours long answers."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """Runs of so many tokens may occur once in an answer; 0: as often as they like."""
    bleu_tokenizer: BleuTokenizer = "13a"
    """How BLEU cuts words; 13a is that of sacreBLEU, zh or char are for scripts without spaces."""
    augmentation: TextAugmentation | None = None
    """Vary the sources of training rows: words left out, swapped, replaced by synonyms; the prefix stays."""

    _synonyms: Synonyms = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_beams(self) -> Self:
        if self.length_penalty is not None and self.num_beams == 1:
            raise ValueError("length_penalty has no effect without num_beams")
        return self

    @property
    def metric(self) -> str:
        """Of short texts BLEU says little: one wrong ending costs four n-grams. chrF counts characters."""
        return "chrf"

    # -- rows

    def check(self, row: Row) -> str | None:
        """A text that is empty, or none at all."""
        for word in ("source", "target"):
            if word not in row:
                continue
            if not isinstance(row[word], str):
                return f"{word} is not text ({type(row[word]).__name__})"
            if not row[word].strip():
                return f"{word} is empty"
        return None

    def fit(self, rows: Sequence[Row]) -> Self:
        """The synonyms of the augmentation; whether there is what scores translations shows here."""
        signatures(self.bleu_tokenizer)
        fitted = self.model_copy()
        fitted._synonyms = self.augmentation.read() if self.augmentation else {}
        return fitted

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Sources that differ only in case, numbers, placeholders and punctuation stay together."""
        parts = by_group([skeleton(row["source"]) for row in rows], shares, seed)
        return {name: [rows[index] for index in part] for name, part in parts.items()}

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Words and pairs of words of the source, without case, numbers and placeholders."""
        words = skeleton(row["source"])
        return {*words, *pairwise(words)}

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The encoder-decoder, and its tokenizer with what belongs to both sides."""
        settings = {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "length_penalty": 1.0 if self.length_penalty is None else self.length_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        languages = (self.source_language, self.target_language)
        return load_encoder_decoder(model, dtype, languages, self.prefix, settings, self.max_target_length)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Token ids of the source and, where there is one, of the target as `labels`; `length` is that of both."""
        texts = [f"{processor.front}{row['source']}" for row in rows]
        examples: list[Example] = processor.sources(texts, self.max_source_length)
        if self.augmentation is not None:
            examples = self._movable(processor, examples, texts)
        if not all("target" in row for row in rows):
            return examples
        targets = processor.targets([row["target"] for row in rows], self.max_target_length)
        return [
            {**e, LABELS: ids, "length": e["length"] + len(ids), "truncated": e["truncated"] or cut}
            for e, (ids, cut) in zip(examples, targets, strict=True)
        ]

    def _movable(self, processor: Any, examples: Sequence[Example], texts: Sequence[str]) -> list[Example]:
        """The sources with what `augmented` needs; what goes before them is no word that varies."""
        limit = min(self.max_source_length, processor.longest)
        found = movable(processor.tokenizer, examples, [(text, None) for text in texts], self._synonyms, limit)
        front = len(words_of(processor.front))
        return [{**e, "owned": [word if word >= front else NOWHERE for word in e["owned"]]} for e in found]

    def shown(self, row: Row, processor: Any) -> Sequence[tuple[str, bool]]:
        """The source and the target as the model reads them, special tokens included; the target is what counts."""
        (example,) = self.encode([row], processor)
        read = processor.tokenizer.decode
        return [(read(example["input_ids"]), False), (read(example.get(LABELS, [])), True)]

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The source with its words varied, where that is asked for."""
        if self.augmentation is None:
            return example
        varied = augmented(example, self.augmentation, generator)
        return {**varied, "length": varied["length"] + len(example[LABELS])}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Sources and targets, padded apart."""
        batch: Batch = processor.collate(examples)
        return batch

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The answers, and the logits of the targets where they are known."""
        return write(model, batch)

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the tokens of the targets, in float32."""
        logits, labels = output.logits.float(), batch[LABELS]
        total = single(logits.flatten(0, 1), labels.flatten(), None, 0.0, self.label_smoothing)
        return total / max(1, self.weight(batch))

    def weight(self, batch: Batch) -> int:
        """Tokens of the targets, the end token included."""
        return int((batch[LABELS] != IGNORED).sum())

    def decode(self, output: Any, processor: Any) -> Any:
        """The answers as texts."""
        return decoded(output, processor)

    def read(self, output: Written, batch: Batch) -> list[dict[str, Any]]:
        """The translation, and whether it ended before `max_new_tokens`."""
        return [
            {"translation": text, "finished": finished}
            for text, finished in zip(output.texts, output.finished, strict=True)
        ]

    def merit(self, answer: Mapping[str, Any], row: Row) -> float:
        """The metric of one sentence, as a share."""
        return super().merit(answer, row) / 100

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """The metrics of sacreBLEU with their signatures, and the share of answers that ran into the limit."""
        found = translation_scores(
            [a["translation"] for a in answers], [row["target"] for row in rows], self.bleu_tokenizer
        )
        return {**found, "unfinished": sum(not a["finished"] for a in answers) / len(answers)}

    def resampled(
        self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]
    ) -> Callable[[np.ndarray], float | None]:
        """From the counts of every row."""
        texts = [a["translation"] for a in answers], [row["target"] for row in rows]
        return chrf_of_some(*texts, self.bleu_tokenizer)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The source as it is."""
        return "copy of the source", self._scored([row["source"] for row in rows], rows)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """A translation memory: the target of the nearest training source."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
        known = vectorizer.fit_transform([row["source"] for row in train])
        asked = vectorizer.transform([row["source"] for row in rows])
        nearest = [int((query @ known.T).toarray().argmax()) for query in asked]
        found = self._scored([train[index]["target"] for index in nearest], rows)
        return {"target of the nearest training source (TF-IDF)": found}

    def _scored(self, texts: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        return self.score([{"translation": text, "finished": True} for text in texts], rows)


def skeleton(text: str) -> tuple[str, ...]:
    """The words of a text without case, punctuation, numbers and what a program fills in.

    >>> skeleton('role "%s" has 12 Members') == skeleton("Role %d has 9 members")
    True
    """
    plain = re.sub(r"\d+", "0", PLACEHOLDER.sub(" 0 ", text)).casefold()
    words = [plain[start:end] for start, end in words_of(plain)]
    return tuple(word for word in words if word[0].isalnum()) or tuple(words)
