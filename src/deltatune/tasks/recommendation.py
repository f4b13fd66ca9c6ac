"""Recommendation: the next item of a user, from all items that the user had before.

row        {user, item, time, rating?}, one per interaction, in any order; the task reads one history per user
model      any causal language model of `transformers` whose vocabulary is the items (a WordLevel tokenizer)
loss       cross entropy of the next item at every position, over the whole vocabulary (SASRec with a full softmax)
metrics    NDCG@k, hit rate@k, MRR among all items that the user has not had

Papers: Kang and McAuley 2018, arXiv:1808.09781; ranked without sampling: Krichene and Rendle 2020.

B users, T positions, V words of the vocabulary, S items of the longest history.
"""

import logging
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from deltatune.core import tokens
from deltatune.core.codes import codes_of, texts_in
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.histories import histories, last_out, name_of, problem, seconds, sorted_out, whole
from deltatune.core.label_loss import IGNORED
from deltatune.core.pretrained import pretrained
from deltatune.core.rank_scores import Ranker, item_knn, popularity, rank_scores
from deltatune.core.task import Batch, Column, Example, Loaded, Row, Task

logger = logging.getLogger("deltatune")

HAD, WANTED, USER = "labels_had", "labels_wanted", "labels_user"
"""All items of a user [B, S], the one to rank [B] and the user's name in code points: the model is not told them."""
NONE = -1
"""Nothing wanted."""
RECENT = 10
"""Items of a history that the second nearest-neighbour baseline looks at."""


class Recommendation(Task):
    """Settings of recommendation."""

    type: ClassVar[str] = "recommendation"
    title: ClassVar[str] = "Next item of a user"
    columns: ClassVar[Mapping[str, Column]] = {
        "user": Column(("user", "user_id", "userid", "customer", "customer_id", "session", "session_id", "visitorid")),
        "item": Column(
            ("item", "item_id", "itemid", "movieid", "movie_id", "product", "product_id", "track_id", "sku", "asin")
        ),
        "time": Column(("time", "timestamp", "date", "datetime", "ts")),
        "rating": Column(("rating", "stars", "score"), required=False),
    }
    label: ClassVar[str | None] = None
    key: ClassVar[tuple[str, ...]] = ("user", "item", "time")
    counted: ClassVar[str] = "items"
    peft_task: ClassVar[str | None] = "CAUSAL_LM"
    trains_head: ClassVar[bool] = False

    max_length: Annotated[int, Field(ge=2)] = 100
    """Most items the model reads: the last ones; training draws a stretch of a longer history at every step."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 10
    """Items that are recommended, and the k of the metrics."""
    again: bool = False
    """Items that a user had may be recommended again (songs, groceries); else only the first time of an item counts."""
    min_rating: float | None = None
    """Use only interactions with at least this rating."""

    @property
    def metric(self) -> str:
        """NDCG@k."""
        return f"ndcg@{self.top_k}"

    @property
    def predicts(self) -> Literal["classes", "next classes", "labels", "values"]:
        """The item of the next position."""
        return "next classes"

    # -- rows

    def check(self, row: Row) -> str | None:
        """A user, item or time that is missing or unreadable, or a rating where one is needed."""
        return problem(row, self.min_rating)

    def identity(self, row: Row) -> Hashable:
        """User, item and time by value: `318.0` is `318`, and case counts."""
        return name_of(row["user"]), name_of(row["item"]), seconds(row["time"])

    def asked(self, row: Row) -> Row:
        """An interaction of a history to be continued: none of its items is wanted."""
        return {**row, "asked": True}

    def compose(self, rows: Sequence[Row]) -> list[Row]:
        """One history per user; every item but the first is learned, and the last one ranked."""
        return whole(self._histories(rows), asked=any("asked" in row for row in rows))

    def _histories(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        return histories(rows, again=self.again, min_rating=self.min_rating)

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """Leave last out: no shares, no seed."""
        return last_out(self._histories(rows), list(shares))

    def unused(self, rows: Sequence[Row], composed: Sequence[Row]) -> dict[int, str]:
        """Interactions that are rated too low or repeat an item, and those of users with nothing to predict."""
        found = sorted_out(rows, again=self.again, min_rating=self.min_rating).left_out
        users = {row["user"] for row in composed}
        for place, row in enumerate(rows):
            if place not in found and name_of(row["user"]) not in users:
                found[place] = f"user {name_of(row['user'])!r} has one item, with none to predict"
        return found

    def consists_of(self, composed: Sequence[Row]) -> int:
        """Items of the longest history of every user: the shorter ones are its beginnings."""
        longest: dict[str, int] = {}
        for row in composed:
            longest[row["user"]] = max(longest.get(row["user"], 0), len(row["items"]))
        return sum(longest.values())

    def called(self, row: Row) -> str:
        """By the user."""
        return f"user {row['user']!r}"

    def cut(self, example: Example) -> str | None:
        """The items in front of those that the model reads."""
        read, had = example["length"], len(example["items"])
        return f"the last {read} of {had} items are read at a time" if example["truncated"] else None

    def sketch(self, row: Row) -> Collection[Hashable]:
        """The items of a whole history; none of one that was divided, which repeats its training row by design."""
        return set(row["items"]) if row["known"] == 1 and len(row["items"]) > 2 else ()

    def fit(self, rows: Sequence[Row]) -> "Recommendation":
        """The task as it is: the items are the model's; raises `DataError` without a user to learn from."""
        if not rows:
            raise DataError(
                "no user has an item to learn that another one comes before",
                hint="are user and item the right columns (data.columns)? of three items the first one is learned from",
            )
        return self

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The language model and its vocabulary of items; raises `SettingsError` where it has none or looks ahead."""
        tokenizer = tokens.tokenizer_of(model)
        _check_vocabulary(tokenizer, model)
        network, new = pretrained(AutoModelForCausalLM, model, dtype, "a causal language model")
        words = network.config.get_text_config().vocab_size
        if len(tokenizer) > words:
            raise SettingsError(f"the vocabulary of {model!r} has {len(tokenizer)} words, the model {words}")
        tokens.limit_to(tokenizer, network)
        _check_causal(network, model)
        return Loaded(network, tokenizer, new, tokenizer)

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Histories as ids; an item that the vocabulary lacks is the unknown one, and is neither learned nor found."""
        ids = _ids(processor)
        unknown = processor.unk_token_id
        limit = min(self.max_length, tokens.longest(processor))
        examples: list[Example] = []
        for row in rows:
            items = [ids.get(item, unknown) for item in row["items"]]
            wanted = row["known"] < len(items)
            example = {
                "items": items,
                "known": row["known"],
                "wanted": items[-1] if wanted else NONE,
                "strange": all(item == unknown for item in (items[:-1] if wanted else items)),
                "user": row["user"],
                "length": min(len(items), limit),
                "truncated": len(items) > limit,
            }
            examples.append(example)
        _warn(rows, ids)
        return examples

    def unusable(self, example: Example) -> str | None:
        """A history of which the model knows nothing."""
        return f"user {example['user']}: the model knows no item of the history" if example["strange"] else None

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """A stretch of a history that is longer than the model reads, drawn anew at every step."""
        items, length = example["items"], example["length"]
        if len(items) == length:
            return example
        end = int(generator.integers(length, len(items) + 1))
        return {**example, "items": items[:end]}

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """The last items of every history [B, T] with its mask, padded on the right; labels where any is wanted."""
        padding = processor.pad_token_id
        shown = [example["items"][-example["length"] :] for example in examples]
        batch = {
            "input_ids": _padded(shown, padding),
            "attention_mask": _padded([[1] * len(own) for own in shown], 0),
            HAD: _padded([example["items"] for example in examples], padding),
            WANTED: torch.tensor([example["wanted"] for example in examples]),
            USER: codes_of([example["user"] for example in examples]),
        }
        if any(example["wanted"] != NONE for example in examples):
            batch["labels"] = _padded([_labels(example, processor.unk_token_id) for example in examples], IGNORED)
        return batch

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over the items that are learned, in float32."""
        wanted = batch["labels"][:, 1:]
        chosen = wanted != IGNORED
        total = F.cross_entropy(output.logits[:, :-1][chosen].float(), wanted[chosen], reduction="sum")
        return total / max(1, self.weight(batch))

    def weight(self, batch: Batch) -> int:
        """Items that are learned."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def decode(self, output: Any, processor: Any) -> "Ranked":
        """The logits with the items they are about."""
        names: list[str | None] = [None] * output.logits.shape[-1]
        for item, index in _ids(processor).items():
            names[index] = item
        no_item = torch.tensor([name is None for name in names], device=output.logits.device)
        return Ranked(output.logits, names, no_item)

    def read(self, output: "Ranked", batch: Batch) -> list[dict[str, Any]]:
        """What to recommend behind every history, with chances; where an item is wanted, its rank before it came."""
        last = batch["attention_mask"].sum(1) - 1
        rows = torch.arange(len(last), device=last.device)
        after, before = (output.logits[rows, place].float() for place in (last, (last - 1).clamp_min(0)))
        answers = []
        for row, (user, wanted) in enumerate(zip(texts_in(batch[USER]), batch[WANTED].tolist(), strict=True)):
            had = batch[HAD][row]
            answer: dict[str, Any] = {"items": self._best(after[row], output, had), "user": user}
            if wanted != NONE:
                answer["rank"] = self._rank(before[row], output, had, wanted)
            answers.append(answer)
        return answers

    def _best(self, logits_V: Tensor, output: "Ranked", had_S: Tensor) -> list[dict[str, Any]]:
        chances = output.ranked(logits_V, None if self.again else had_S).softmax(-1)
        values, places = chances.topk(min(self.top_k, len(chances)))
        pairs = zip(values.tolist(), places.tolist(), strict=True)
        return [{"item": output.names[place], "score": value} for value, place in pairs if value > 0]

    def _rank(self, logits_V: Tensor, output: "Ranked", had_S: Tensor, wanted: int) -> int | None:
        """None for an item that the model does not know; what cannot be compared (NaN) is not in front of anything."""
        if output.names[wanted] is None:
            return None
        before = None if self.again else had_S[had_S != wanted]
        return int((~(output.ranked(logits_V, before) < logits_V[wanted])).sum())

    def wanted(self, row: Row) -> Any:
        """The last item."""
        return row["items"][-1]

    def said(self, answer: Mapping[str, Any]) -> Any:
        """At which place the wanted item stood; what is recommended is for the time behind it."""
        return "an unknown item" if answer["rank"] is None else f"at place {answer['rank']}"

    def certainty(self, answer: Mapping[str, Any]) -> float | None:
        """Its recommendations are for the time behind the wanted item: their chances say nothing about it."""
        return None

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """NDCG, hit rate and MRR of the last items, and how many of them the model does not know."""
        ranks = [answer["rank"] for answer in answers]
        return {**rank_scores(ranks, self.top_k), "unknown_items": ranks.count(None)}

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The items that most users of the training rows had."""
        return "most popular", self._ranked_by(popularity(train), rows)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """Nearest items, to the whole history and to its last ten."""
        found = {"item k-NN": item_knn(train), f"item k-NN, last {RECENT} items": item_knn(train, RECENT)}
        return {name: self._ranked_by(ranker, rows) for name, ranker in found.items()}

    def _ranked_by(self, ranker: Ranker, rows: Sequence[Row]) -> dict[str, Any]:
        pairs = ((row["items"][:-1], row["items"][-1]) for row in rows)
        return self.score([{"rank": ranker.rank(given, wanted, self.again)} for given, wanted in pairs], rows)


@dataclass(frozen=True)
class Ranked:
    """A model's output with the words it is about."""

    logits: Tensor
    """[B, T, V]"""
    names: Sequence[str | None]
    """Item of every word; None for what is no item."""
    no_item: Tensor
    """Words that are no items [V]."""

    def ranked(self, logits_V: Tensor, had: Tensor | None) -> Tensor:
        """The logits of what may be recommended, all others at minus infinity."""
        found = logits_V.masked_fill(self.no_item, -torch.inf)
        return found if had is None else found.index_fill(0, had, -torch.inf)


def _ids(tokenizer: Any) -> dict[str, int]:
    """Item -> word of the vocabulary."""
    special = set(tokenizer.all_special_tokens)
    return {word: index for word, index in tokenizer.get_vocab().items() if word not in special}


def _labels(example: Example, unknown: int) -> list[int]:
    """The items that are learned, where they stand in what is shown; those that the model does not know are not."""
    first = len(example["items"]) - example["length"]
    return [
        IGNORED if place < example["known"] or item == unknown else item
        for place, item in enumerate(example["items"][first:], start=first)
    ]


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of different length [B, T], filled up on the right: a causal model does not see what comes later."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _check_vocabulary(tokenizer: Any, model: str) -> None:
    kind = type(tokenizer.backend_tokenizer.model).__name__ if tokenizer.is_fast else type(tokenizer).__name__
    if kind != "WordLevel" or tokenizer.unk_token_id is None or tokenizer.pad_token_id is None:
        raise SettingsError(
            f"model {model!r} has no vocabulary of items (its tokenizer is {kind})",
            hint="it must be WordLevel, the items its words, with [UNK] and [PAD]: see docs/tasks/recommendation.md",
        )


def _check_causal(network: nn.Module, model: str) -> None:
    """Raises `SettingsError` when a later item changes what is said of an earlier one."""
    items = torch.tensor([[0, 1, 0], [0, 1, 1]])
    with torch.no_grad():
        one, other = network(items, attention_mask=torch.ones_like(items)).logits[:, :2].float()
    if not torch.allclose(one, other, atol=1e-5):
        raise SettingsError(
            f"model {model!r} sees the items that it shall predict", hint="take a causal one, such as GPT-2 or Llama"
        )


def _warn(rows: Sequence[Row], ids: Mapping[str, int]) -> None:
    """Says how much of the histories the model cannot tell apart."""
    items = [item for row in rows for item in row["items"]]
    unknown = [item for item in items if item not in ids]
    if unknown:
        logger.warning(
            "%d of %d interactions are with %d items that the model does not know; it reads them as one unknown item",
            len(unknown),
            len(items),
            len(set(unknown)),
        )
