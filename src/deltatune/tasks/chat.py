"""Chat: a causal language model that learns to answer, from conversations, instructions, or plain text.

row        {messages}, {conversations}, {instruction, input?, output}, {prompt, completion}, {question, answer}, {text};
           system?, tools?
model      any causal language model of `transformers` with a fast tokenizer; its own chat template, or a plain one
loss       cross entropy of the tokens of the answers, with the token that ends them
metrics    perplexity and accuracy of these tokens; of some rows the written answers, and how many match exactly
"""

import inspect
import math
import sys
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from deltatune.core import causal_batch, chat_tokens, tokens
from deltatune.core.causal_batch import ENDS, PROMPT_MASK, PROMPTED, PROMPTS, WRITES
from deltatune.core.chat_template import ChatTemplate, TrainOn
from deltatune.core.continuation import Continued, continued
from deltatune.core.conversations import ASKED, answer_of, asked_text, conversation, opening, problem, question
from deltatune.core.division import by_group
from deltatune.core.errors import SettingsError
from deltatune.core.exact_match import Extractor, matches
from deltatune.core.label_loss import IGNORED
from deltatune.core.packing import check_packing, joined, packs
from deltatune.core.pretrained import pretrained
from deltatune.core.task import CONDITION, LABELS, SOURCES, Batch, Column, Example, Loaded, Row, Task, inputs_of
from deltatune.core.template_rules import forbidden

SAMPLES = 5
"""Written answers that are kept with the metrics."""
MOST = 2000
"""Training rows that the baseline counts."""
LARGEST_LOG = math.log(sys.float_info.max)


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads conversations for one model."""

    template: ChatTemplate
    selects: bool
    """The model computes logits at chosen positions."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.template.tokenizer


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says of a batch."""

    logits: Tensor | None
    """[rows, positions that count, vocabulary]; None where all rows are only answered."""
    written: tuple[Continued, ...]
    texts: tuple[str, ...] = ()
    """The written answers as text."""


class Chat(Task):
    """Settings of a chat task."""

    type: ClassVar[str] = "chat"
    title: ClassVar[str] = "Answers of a language model (instruction tuning)"
    begin_with: ClassVar[str] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    columns: ClassVar[Mapping[str, Column]] = {
        "prompt": Column(("prompt",), required=False),
        "completion": Column(("completion",), required=False),
        "messages": Column(("messages",), required=False),
        "conversations": Column(("conversations",), required=False),
        "instruction": Column(("instruction",), required=False),
        "input": Column(("input", "context"), required=False),
        "output": Column(("output", "response"), required=False),
        "question": Column(("question", "query"), required=False),
        "answer": Column(("answer",), required=False),
        "text": Column(("text",), required=False),
        "system": Column(("system", "system_prompt"), required=False),
        "tools": Column(("tools",), required=False),
    }
    label: ClassVar[str | None] = None
    key: ClassVar[tuple[str, ...]] = tuple(columns)
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity"})
    peft_task: ClassVar[str | None] = "CAUSAL_LM"
    trains_head: ClassVar[bool] = False
    resamples: ClassVar[int] = 200

    chat_template: str | None = None
    """Jinja template instead of the tokenizer's own; it may only print and compare what the messages hold."""
    train_on: TrainOn = "answers"
    """What the loss counts: all answers, the last one of a conversation, or every token; of plain text every token."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest conversation in tokens; what is cut off is counted."""
    truncation_side: Literal["left", "right"] = "right"
    """Where longer conversations are cut off: right loses the end of the answer, left the beginning of the question."""
    packing: bool = False
    """Put several conversations into one row of `max_length`, none of which sees another."""
    generate_rows: Annotated[int, Field(ge=0)] = 8
    """Rows that the model answers when it is scored, spread over the rows; the others are scored by their tokens."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest answer in tokens; the likeliest token is taken every time."""
    exact_match: Extractor = "none"
    """What has to be equal in a written answer: number (behind the last ####, or the last), line (the last), none."""
    plain: bool | None = None
    """Whether the rows are plain text, so that a text to predict is continued; filled in from the training rows."""

    _reader: Reader | None = PrivateAttr(None)

    @field_validator("chat_template")
    @classmethod
    def _check_template(cls, source: str | None) -> str | None:
        wrong = forbidden(source) if source is not None else None
        if wrong is not None:
            raise ValueError(
                f"not allowed, as it travels with the adapter: {wrong}; a template that needs more belongs to the "
                "tokenizer of the model (chat_template.jinja)"
            )
        return source

    @property
    def metric(self) -> str:
        """Perplexity of the tokens that are learned."""
        return "perplexity"

    # -- rows

    def check(self, row: Row) -> str | None:
        """A row that is no conversation, or one that nothing can be learned from."""
        return problem(row)

    def asked(self, row: Row) -> Row:
        """A row without its answer; where texts are continued, a question is a text."""
        found = question(row)
        if self.plain and isinstance(row.get("prompt"), str):
            found = {**{word: value for word, value in found.items() if word != "prompt"}, "text": row["prompt"]}
        return found

    def fit(self, rows: Sequence[Row]) -> "Chat":
        """Whether all rows are plain text."""
        return self.model_copy(update={"plain": all(conversation(row).text is not None for row in rows)})

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Conversations whose first questions differ in case or digits only stay together."""
        groups: list[Hashable] = [opening(row) or ("row", index) for index, row in enumerate(rows)]
        parts = by_group(groups, shares, seed)
        return {name: [rows[index] for index in part] for name, part in parts.items()}

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Words and pairs of words of what is asked."""
        words = asked_text(row).casefold().split()
        return {*words, *pairwise(words)}

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The language model and its reader; raises `SettingsError` for one that is none, or cannot be used here."""
        network, new = pretrained(AutoModelForCausalLM, model, dtype, "a causal language model")
        if new:
            raise SettingsError(
                f"model {model!r} is no trained language model: it has no weights for {', '.join(new[:3])}",
                hint="take one that was trained to write (Llama, Qwen, SmolLM, GPT-2, ...)",
            )
        _check_causal(network)
        tokenizer = tokens.tokenizer_of(model)
        tokens.limit_to(tokenizer, network)
        if not tokenizer.is_fast:
            raise SettingsError(
                f"{type(tokenizer).__name__} does not say where its tokens are in the text",
                hint="take a model with a fast tokenizer (tokenizer.json)",
            )
        if self._room(tokenizer) < 1:
            raise SettingsError(
                f"task.max_new_tokens: {self.max_new_tokens} leave no room for a question in the "
                f"{tokens.longest(tokenizer)} tokens {type(network).__name__} has positions for"
            )
        network.config.use_cache = False  # in training it would be filled for nothing, and keep packed texts together
        template = ChatTemplate.of(tokenizer, self.chat_template)
        reader = Reader(template, causal_batch.KEPT in inspect.signature(type(network).forward).parameters)
        self._reader = self._reader or reader  # a teacher is loaded later, the baseline is that of the one who learns
        return Loaded(network, reader, new, tokenizer)

    def _room(self, tokenizer: Any) -> int:
        return tokens.longest(tokenizer) - self.max_new_tokens

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Token ids with marks for those that count; prompts for rows without an answer, and some that have one."""
        template, room = processor.template, self._room(processor.tokenizer)
        limit = min(self.max_length, tokens.longest(processor.tokenizer))
        examples = [
            chat_tokens.ask(template, row, room)
            if row.get(ASKED)
            else chat_tokens.encode(template, row, self.train_on, limit, self.truncation_side)
            for row in rows
        ]
        if self.many is not None:  # rows of a batch have a task each, and the model must see them all at once
            return [_whole(example) for example in examples]
        for index in _spread([index for index, row in enumerate(rows) if _is_answered(row)], self.generate_rows):
            asked = chat_tokens.ask(template, rows[index], room)
            if not any("problem" in example for example in (asked, examples[index])):
                examples[index] = {**examples[index], "prompt": asked["prompt"], WRITES: True}
        return examples

    def unusable(self, example: Example) -> str | None:
        """What the template refuses, and what has nothing to learn."""
        found: str | None = example.get("problem")
        return found

    def shown(self, row: Row, processor: Any) -> Sequence[tuple[str, bool]]:
        """The text the model reads, and which pieces of it the loss counts."""
        return chat_tokens.pieces(processor.template, self.encode([row], processor)[0])

    def pack(self, examples: Sequence[Example], model: nn.Module, processor: Any) -> list[Example]:
        """Every text an example of its own, or several together up to `max_length`."""
        single: list[Example] = [
            {**_condition(example), "rows": [row], "length": len(row["input_ids"]), SOURCES: [number]}
            for number, example in enumerate(examples)
            for row in example["rows"]
            if any(row["taught"])
        ]
        if not self.packing:
            return single
        shortest = sorted(single, key=lambda example: int(example["length"]))[:2]
        check_packing(model, *(example["rows"][0]["input_ids"] for example in (*shortest, *shortest)[:2]))
        limit = min(self.max_length, tokens.longest(processor.tokenizer))
        found: list[Example] = []
        for condition in sorted({example.get(CONDITION, 0) for example in single}):
            own = [example for example in single if example.get(CONDITION, 0) == condition]
            for pack in packs([example["length"] for example in own], limit):
                row = joined([own[index]["rows"][0] for index in pack])
                sources = sorted({number for index in pack for number in own[index][SOURCES]})
                found.append({**own[pack[0]], "rows": [row], "length": len(row["input_ids"]), SOURCES: sources})
        return found

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Rows padded on the right with labels one token ahead, and prompts padded on the left."""
        tokenizer = processor.tokenizer
        prompts = causal_batch.prompts(examples, tokenizer.pad_token_id, processor.template.stops)
        if not any(example["rows"] for example in examples):
            return prompts
        longest = tokens.longest(tokenizer)
        return prompts | causal_batch.collated(examples, tokenizer.pad_token_id, longest, processor.selects)

    def run(self, model: nn.Module, batch: Batch) -> Said:
        """Logits where labels are known, and written answers where they are wanted."""
        logits = model(**inputs_of(batch)).logits if LABELS in batch else None
        if PROMPTS not in batch:
            return Said(logits, ())
        padding, *stops = batch[ENDS].tolist()
        written = continued(model, batch[PROMPTS], batch[PROMPT_MASK], self.max_new_tokens, stops, padding)
        return Said(logits, tuple(written))

    def decode(self, output: Said, processor: Any) -> Said:
        """The written answers as text."""
        texts = [processor.tokenizer.decode(one.ids, skip_special_tokens=True) for one in output.written]
        return replace(output, texts=tuple(texts))

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the tokens that count, in float32."""
        return causal_batch.losses(output.logits, batch).sum() / max(1, self.weight(batch))

    def weight(self, batch: Batch) -> int:
        """Tokens that count."""
        return int((batch[LABELS] != IGNORED).sum())

    def read(self, output: Said, batch: Batch) -> list[dict[str, Any]]:
        """The written answer and whether it ended before the limit; loss, number and right guesses of the tokens."""
        answers: dict[int, dict[str, Any]] = {}
        if PROMPTED in batch:
            numbers = batch[PROMPTED].tolist()
            for number, text, one in zip(numbers, output.texts, output.written, strict=True):
                answers[number] = {"text": text, "finished": one.finished, "tokens_written": len(one.ids)}
        if output.logits is None:
            return [answers[number] for number in range(len(answers))]
        sums = causal_batch.sums(output.logits, batch).tolist()
        return [
            {**answers.get(number, {}), "nll": nll, "tokens": int(count), "right": int(right)}
            for number, (nll, count, right) in enumerate(sums)
        ]

    def wanted(self, row: Row) -> Any:
        """The last answer."""
        return answer_of(row)

    def said(self, answer: Mapping[str, Any]) -> Any:
        """What was written, of the rows that are answered."""
        return answer.get("text")

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Perplexity and accuracy of tokens; of the answered rows how many match, and the first as samples."""
        count = sum(answer["tokens"] for answer in answers)
        found: dict[str, Any] = {
            "perplexity": _perplexity(sum(answer["nll"] for answer in answers) / count),
            "token_accuracy": sum(answer["right"] for answer in answers) / count,
        }
        written = [(answer, row) for answer, row in zip(answers, rows, strict=True) if "text" in answer]
        if not written:
            return found
        if self.exact_match != "none":
            right = [matches(self.exact_match, answer["text"], answer_of(row)) for answer, row in written]
            found["exact_match"] = sum(right) / len(right)
        found["finished"] = sum(answer["finished"] for answer, _ in written) / len(written)
        samples = [
            {"question": asked_text(row), "wanted": answer_of(row), "written": answer["text"]}
            for answer, row in written[:SAMPLES]
        ]
        return {**found, "generated_rows": len(written), "samples": samples}

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """Every token by its share of the learned tokens of 2,000 training rows, one added to every count."""
        assert self._reader is not None, "the task has loaded the model"
        seen = self.encode([train[index] for index in _spread(range(len(train)), MOST)], self._reader)
        counts = Counter(token for example in seen for token in _learned(example))
        size = len(self._reader.tokenizer)
        common, total = counts.most_common(1)[0][0], counts.total() + size
        answers = []
        for example in self.encode(rows, self._reader):
            own = _learned(example)
            nll = -sum(math.log((counts[token] + 1) / total) for token in own)
            answers.append({"nll": nll, "tokens": len(own), "right": own.count(common)})
        return "share of every token", self.score(answers, rows)


def _perplexity(loss: float) -> float:
    """e to the mean loss; infinite where that is no float: training may have flown off.

    >>> _perplexity(0.0), _perplexity(1e3), _perplexity(math.nan)
    (1.0, inf, nan)
    """
    return math.inf if loss > LARGEST_LOG else math.exp(loss)


def _is_answered(row: Row) -> bool:
    """Whether a row is a conversation with an answer, which can be compared with a written one."""
    return not row.get(ASKED) and conversation(row).text is None


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of some numbers, spread evenly.

    >>> _spread([0, 1, 2, 3, 4, 5, 6], 3)
    [0, 3, 6]
    """
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[place] for place in places.tolist()]


def _learned(example: Example) -> list[int]:
    """Ids of the tokens that count."""
    return [
        token
        for row in example["rows"]
        for token, taught in zip(row["input_ids"], row["taught"], strict=True)
        if taught
    ]


def _condition(example: Example) -> dict[str, Any]:
    return {CONDITION: example[CONDITION]} if CONDITION in example else {}


def _whole(example: Example) -> Example:
    """The example, or what is wrong with it: rows that were cut apart would have no task."""
    if len(example["rows"]) < 2:
        return example
    return {**example, "problem": "the chat template writes an earlier answer otherwise (train_on: last-answer works)"}


def _check_causal(network: Any) -> None:
    """Raises `SettingsError` for a model whose logits depend on later tokens: it would see what it is to predict."""
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]]) % network.config.get_text_config().vocab_size
    network.eval()
    with torch.no_grad():
        first, second = network(input_ids=ids).logits[:, :3].float()
    if not torch.allclose(first, second, atol=1e-3 * float(first.abs().max())):
        raise SettingsError(
            f"{type(network).__name__} sees the tokens that come after a word: it is no causal language model",
            hint="take one that was trained to write (Llama, Qwen, SmolLM, GPT-2, ...)",
        )
