"""Token classification: entities in a text (names, amounts, genes), as spans with a type.

row        {tokens, label: a tag per token} or {text, label: [{start, end, label}]}; document?
model      any `transformers` token classifier with a fast tokenizer; its head is new when the checkpoint has none
loss       cross entropy over words: the first token of a word has its tag, the others count nothing
metrics    F1 of spans (micro, macro, per type), accuracy of tags

Long texts are read in overlapping windows, and a word is answered where it has the most context. Training shows one
window of a long text at a time, drawn by seed, step and row.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from deltatune.core import tags, tokens
from deltatune.core.division import by_group
from deltatune.core.entities import Sentence, groups_of, is_tokens, pieces, problem, sentence, shape
from deltatune.core.errors import DataError, SettingsError, did_you_mean
from deltatune.core.label_loss import IGNORED, single
from deltatune.core.labels import Labels
from deltatune.core.pretrained import named_classes, pretrained
from deltatune.core.span_scores import counted, micro_f1, span_scores
from deltatune.core.tags import OUTSIDE, Scheme, Span
from deltatune.core.task import Batch, Column, Example, Loaded, Row, Task
from deltatune.core.text_augmentation import Synonyms, TextAugmentation, augmented, choices_of
from deltatune.core.windows import NO_PLACE, Windows, collated, labels_of, over_windows, texts_of, windows_of, words_in
from deltatune.core.words import NOWHERE

logger = logging.getLogger("deltatune")


class TokenClassification(Task):
    """Settings of token classification."""

    type: ClassVar[str] = "token-classification"
    title: ClassVar[str] = "Named entities and other spans in texts"
    begin_with: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"
    columns: ClassVar[Mapping[str, Column]] = {
        "text": Column(("text", "sentence", "content"), required=False),
        "tokens": Column(("tokens", "words"), required=False),
        "label": Column(("label", "labels", "tags", "ner_tags", "ner", "spans", "entities")),
        "document": Column(("document", "document_id", "doc_id"), required=False),
    }
    label: ClassVar[str | None] = "label"
    key: ClassVar[tuple[str, ...]] = ("tokens", "text")
    peft_task: ClassVar[str | None] = "TOKEN_CLS"
    resamples: ClassVar[int] = 200

    scheme: Literal["auto"] | Scheme = "auto"
    """How the tags of the rows are written; auto looks at the training rows."""
    tagging: Scheme = "bio"
    """Tags the model learns, whatever those of the rows; io cannot tell neighbours of one type apart."""
    labels: Labels | None = None
    """Tags in the order of the model's outputs; none: O, then those of the types in the training rows, sorted."""
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Weight of a tag in the loss; balanced: inverse to its number of training words."""
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    """Focal loss: the loss of a word whose tag has chance p is scaled by (1 - p)^gamma; 2 is usual."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the wanted probability that is spread over all tags."""
    max_length: Annotated[int, Field(ge=4)] = 256
    """Longest window in tokens."""
    stride: Annotated[int, Field(ge=0)] = 32
    """Tokens that two windows of a long text share, at most half a window."""
    augmentation: TextAugmentation | None = None
    """Vary the training texts: words outside of entities left out or swapped, any word replaced by a synonym."""

    _synonyms: Synonyms = PrivateAttr(default_factory=dict)

    @property
    def metric(self) -> str:
        """F1 of spans over all types."""
        return "micro_f1"

    @property
    def label_names(self) -> Sequence[str]:
        """The tags."""
        return self.labels or ()

    # -- rows

    def check(self, row: Row) -> str | None:
        """Tokens, tags or spans that cannot be used, or that do not fit the scheme and types of the training rows."""
        return problem(row, None if self.scheme == "auto" else self.scheme, self._types() if self.labels else None)

    def _types(self) -> set[str]:
        return {tags.parse(tag)[1] for tag in self.labels or () if tag != OUTSIDE}

    def fit(self, rows: Sequence[Row]) -> "TokenClassification":
        """Scheme of the rows, tags and their weights, and the synonyms of the augmentation."""
        tagged = [row["label"] for row in rows if is_tokens(row)]
        scheme = tags.scheme_of(tagged) if self.scheme == "auto" and tagged else self.scheme
        spans = [sentence(row).spans for row in rows]
        found = {span.type for own in spans for span in own}
        if not found:
            raise DataError("no entity in the training rows", hint="is it the right column (data.columns.label)?")
        labels = self.labels or tags.all_tags(sorted(found), self.tagging)
        self._check_labels(labels)
        merged = sum(a.last == b.first and a.type == b.type for own in spans for a, b in pairwise(own))
        if merged and self.tagging == "io":
            logger.warning("%d neighbours of one type run together in io; take task.tagging: bio", merged)
        weights = self._weights(labels, rows)
        fitted = self.model_copy(update={"scheme": scheme, "labels": labels, "class_weights": weights})
        fitted._synonyms = self.augmentation.read() if self.augmentation else {}
        return fitted

    def _check_labels(self, labels: Sequence[str]) -> None:
        """Raises `SettingsError` for tags that are not those of some types under the scheme."""
        expected = tags.all_tags(dict.fromkeys(tags.parse(tag)[1] for tag in labels if tag != OUTSIDE), self.tagging)
        if sorted(expected) != sorted(labels):
            odd = sorted(set(expected) ^ set(labels)) or ["one twice"]
            raise SettingsError(
                f"task.labels are not all tags of {self.tagging} ({', '.join(odd)})",
                hint=f"for these types they are {', '.join(expected)}; other schemes: task.tagging",
            )

    def _weights(self, labels: Sequence[str], rows: Sequence[Row]) -> dict[str, float] | None:
        """Of every tag; balanced: n/(C n_c), of mean 1 over the words."""
        if self.class_weights == "balanced":
            counts = Counter(tag for row in rows for tag in self._tags(sentence(row)))
            return {tag: counts.total() / (len(labels) * max(1, counts[tag])) for tag in labels}
        for name in self.class_weights or ():
            if name not in labels:
                raise SettingsError(f"task.class_weights: no tag {name!r}", hint=did_you_mean(name, labels))
        return {tag: self.class_weights.get(tag, 1.0) for tag in labels} if self.class_weights else None

    def _tags(self, read: Sentence) -> list[str]:
        return tags.tags_of(read.spans, len(read.words), self.tagging)

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Documents stay whole, and sentences that differ in case or digits only stay together."""
        parts = by_group(groups_of(rows), shares, seed)
        return {name: [rows[index] for index in part] for name, part in parts.items()}

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Words and pairs of words, without case and digits."""
        words = shape(row)
        return {*words, *pairwise(words)}

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The token classifier and its tokenizer; modules the checkpoint lacks are reported as new."""
        config = named_classes(list(self.labels or ()))
        network, new = pretrained(AutoModelForTokenClassification, model, dtype, "a token classifier", **config)
        tokenizer = tokens.tokenizer_of(model)
        tokens.limit_to(tokenizer, network)
        return Loaded(network, tokenizer, new, tokenizer)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Windows of token ids; the tag of a word stands at its first token."""
        read = [sentence(row) for row in rows]
        found = windows_of(processor, [r.text for r in read], [r.words for r in read], self.max_length, self.stride)
        limit = min(self.max_length, tokens.longest(processor))
        examples: list[Example] = []
        dropped: Counter[str] = Counter()
        for row, own, windows in zip(rows, read, found, strict=True):
            placed = list(zip(own.words, windows.places, strict=True))
            dropped.update(own.text[start:end] for (start, end), place in placed if place is None)
            shared = {
                "second": len(own.words),
                "held": frozenset(word for span in own.spans for word in range(span.first, span.last)),
                "choices": choices_of(processor, own.text, own.words, self._synonyms),
            }
            parts = self._labelled(own, windows) if "label" in row else windows.inputs
            rooms = [{"columns": [*parts[0]], "room": limit - len(o), "owned": o} for o in windows.owned]
            example = {
                "windows": [{**part, **room, **shared} for part, room in zip(parts, rooms, strict=True)],
                "length": max(map(len, windows.owned)),
                "text": own.text,
                "words": [(start, end, *(place or NO_PLACE)) for (start, end), place in placed],
            }
            examples.append(example)
        _warn(dropped)
        return examples

    def _labelled(self, own: Sentence, windows: Windows) -> list[dict[str, list[int]]]:
        """The windows with labels; of two words in one token the first one counts."""
        labels = [[IGNORED] * len(owned) for owned in windows.owned]
        index = {tag: number for number, tag in enumerate(self.labels or ())}
        for tag, place in zip(self._tags(own), windows.places, strict=True):
            if place and labels[place[0]][place[1]] == IGNORED:
                labels[place[0]][place[1]] = index[tag]
        return [{**part, "labels": own} for part, own in zip(windows.inputs, labels, strict=True)]

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """One window of a long text, with its words varied where that is asked for."""
        windows = example["windows"]
        if len(windows) == 1 and self.augmentation is None:
            return example
        window = windows[generator.integers(len(windows))]
        if self.augmentation is not None:
            window = augmented(window, self.augmentation, generator)
        return {**example, "windows": [window], "length": len(window["input_ids"]), "text": "", "words": []}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """The first window of every text [B, T]; later ones, words and texts under names the model is not told."""
        return collated(processor, examples)

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The model's output with the logits of all windows one after the other [B, W T, C]."""
        return over_windows(model, batch)

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the words of the batch, in float32."""
        labels = labels_of(batch)
        logits = output.logits.float().flatten(0, 1)
        weights = (
            [self.class_weights[tag] for tag in self.label_names] if isinstance(self.class_weights, dict) else None
        )
        given = None if weights is None else torch.tensor(weights, device=logits.device)
        total = single(logits, labels.flatten(), given, self.focal_gamma, self.label_smoothing)
        return total / max(1, self.weight(batch))

    def weight(self, batch: Batch) -> int:
        """Words that have a token."""
        return int((labels_of(batch) != IGNORED).sum())

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """Spans with characters, words, text and score, and the tag of every word."""
        chances, chosen = (found.cpu() for found in output.logits.float().softmax(-1).max(-1))
        answers = []
        for row, text in enumerate(texts_of(batch)):
            answers.append(self._answer(text, words_in(batch, row), chosen[row].tolist(), chances[row].tolist()))
        return answers

    def _answer(
        self, text: str, words: Sequence[tuple[int, int, int]], chosen: Sequence[int], chances: Sequence[float]
    ) -> dict[str, Any]:
        """Words that share a token are one to the model: they are in the same span, or in none."""
        units = [
            list(unit) for _, unit in groupby(range(len(words)), key=lambda w: (words[w][2], words[w][2] < 0 and w))
        ]
        places = [words[unit[0]][2] for unit in units]
        named = [OUTSIDE if place == NOWHERE else self.label_names[chosen[place]] for place in places]
        spans = []
        for first, last, kind in tags.spans_of(named):
            span = Span(units[first][0], units[last - 1][-1] + 1, kind)
            start, end = words[span.first][0], words[span.last - 1][1]
            score = sum(chances[place] for place in places[first:last]) / (last - first)
            spans.append({**_entry(span), "start": start, "end": end, "text": text[start:end], "score": score})
        return {"spans": spans, "tags": tags.tags_of(map(_span, spans), len(words), self.tagging)}

    def marked(self, answer: Mapping[str, Any] | None, row: Row) -> Sequence[tuple[str, str | None]]:
        """The text with its entities."""
        own = sentence(row)
        spans = own.spans if answer is None else [_span(entry) for entry in answer["spans"]]
        return pieces(own, spans)

    def merit(self, answer: Mapping[str, Any], row: Row) -> float:
        """F1 of the spans of a sentence; 1 where there are none and none are given."""
        given, there = {_span(entry) for entry in answer["spans"]}, set(sentence(row).spans)
        return 2 * len(given & there) / (len(given) + len(there)) if given or there else 1.0

    def certainty(self, answer: Mapping[str, Any]) -> float | None:
        """That of the span that is least sure; none without spans."""
        return min((entry["score"] for entry in answer["spans"]), default=None)

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """F1 of spans, and the share of words with the right tag."""
        wanted = [sentence(row) for row in rows]
        found = span_scores([own.spans for own in wanted], [[*map(_span, a["spans"])] for a in answers])
        pairs = [
            (tag, other)
            for own, answer in zip(wanted, answers, strict=True)
            for tag, other in zip(self._tags(own), answer["tags"], strict=True)
        ]
        return {**found, "token_accuracy": sum(a == b for a, b in pairs) / max(1, len(pairs))}

    def resampled(
        self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]
    ) -> Callable[[np.ndarray], float | None]:
        """From the counts of every row."""
        pairs = zip(answers, rows, strict=True)
        counts_N3 = np.array([counted(sentence(row).spans, [*map(_span, answer["spans"])]) for answer, row in pairs])
        return lambda chosen: micro_f1(*counts_N3[chosen].sum(0).tolist())

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The tag that a word has most often in the training rows; words that are not there are outside."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for own in map(sentence, train):
            for (start, end), tag in zip(own.words, self._tags(own), strict=True):
                counts[own.text[start:end].casefold()][tag] += 1
        common = {word: found.most_common(1)[0][0] for word, found in counts.items()}
        answers = []
        for own in map(sentence, rows):
            named = [common.get(own.text[start:end].casefold(), OUTSIDE) for start, end in own.words]
            spans = tags.spans_of(named)
            found = {"spans": [*map(_entry, spans)], "tags": tags.tags_of(spans, len(named), self.tagging)}
            answers.append(found)
        return "most frequent tag of each word", self.score(answers, rows)


def _entry(span: Span) -> dict[str, Any]:
    return {"label": span.type, "words": [span.first, span.last]}


def _span(entry: Mapping[str, Any]) -> Span:
    first, last = entry["words"]
    return Span(first, last, entry["label"])


def _warn(dropped: Counter[str]) -> None:
    """Says which words the model cannot see."""
    if dropped:
        shown = ", ".join(f"{word!r} ({count} times)" for word, count in dropped.most_common(5))
        logger.warning("%d words have no token in this model and are answered O: %s", dropped.total(), shown)
