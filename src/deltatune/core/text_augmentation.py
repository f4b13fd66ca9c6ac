"""Text augmentation: words left out, swapped and replaced by synonyms, on the token ids of an encoded text.

    "a quiet and moving film"  ->  "a quiet moving film", "a film and moving quiet", "a calm and moving film"

Words move as the groups of tokens they were encoded to: no tokenizer runs while training, and labels go along.
Special tokens stay where they are. Synonyms are encoded once, in the place of the word they stand for.
Paper: Wei and Zou 2019, arXiv:1901.11196 (EDA); for entities only words outside of them are dropped or moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from deltatune.core.config import Settings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.label_loss import IGNORED
from deltatune.core.task import LABELS, Example
from deltatune.core.words import NOWHERE, Range, owners, words_of

SYNONYM_RATE = 0.1
ANCHOR = "a"
"""A word before the synonym: byte-level and sentence-piece tokenizers encode a word by what stands before it."""

Synonyms = Mapping[str, Sequence[str]]
"""Words in lower case -> words that may stand for them."""


class TextAugmentation(Settings):
    """How training texts are varied; every share is drawn anew at every step."""

    word_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the words that are left out; one always stays."""
    swap: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the words that change places with another word of the text."""
    synonyms: str | None = None
    """File with a word, a tab and its synonyms between commas on every line."""
    synonym_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the words with synonyms that are replaced; none means 0.1."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.synonym_rate is not None and self.synonyms is None:
            raise ValueError("synonym_rate has no effect without synonyms")
        if not self.word_dropout and not self.swap and self.synonyms is None:
            raise ValueError("nothing is varied: set word_dropout, swap or synonyms, or take augmentation out")
        return self

    def read(self) -> Synonyms:
        """The file of synonyms; raises `DataError` with its line."""
        if self.synonyms is None:
            return {}
        path = Path(self.synonyms)
        if not path.is_file():
            raise DataError(f"{path}: no such file (task.augmentation.synonyms)")
        found: dict[str, list[str]] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            word, tab, others = line.partition("\t")
            given = [other.strip() for other in others.split(",") if other.strip()]
            if not word.strip() or not tab or not given:
                raise DataError(f"{path}:{number}: expected a word, a tab and synonyms between commas, found {line!r}")
            found.setdefault(word.strip().casefold(), []).extend(given)
        return found


def movable(
    tokenizer: Any, examples: Sequence[Example], texts: Sequence[Sequence[str | None]], synonyms: Synonyms, limit: int
) -> list[Example]:
    """The examples with what `augmented` needs: the words of their tokens and the token ids of their synonyms.

    `texts` has one or two texts per example, encoded together up to `limit` tokens.
    """
    if not tokenizer.is_fast:
        raise SettingsError("augmentation needs a fast tokenizer: one that says where its tokens are in the text")
    found: list[Example] = []
    for example, parts in zip(examples, texts, strict=True):
        given = [text for text in parts if text is not None]
        encoded = tokenizer(*given, truncation=True, max_length=limit, return_offsets_mapping=True, verbose=False)
        sequence, offsets = encoded.sequence_ids(0), encoded["offset_mapping"]
        owned = [NOWHERE] * len(sequence)
        choices: dict[int, list[list[int]]] = {}
        starts = [0]  # number of the first word of every text
        for part, text in enumerate(given):
            words, first = words_of(text), starts[-1]
            own = [index for index, number in enumerate(sequence) if number == part]
            for index, word in zip(own, owners(text, [offsets[i] for i in own], words), strict=True):
                owned[index] = NOWHERE if word == NOWHERE else first + word
            choices |= {first + word: ids for word, ids in choices_of(tokenizer, text, words, synonyms).items()}
            starts.append(first + len(words))
        columns = [name for name in tokenizer.model_input_names if name in example]
        extra = {"columns": columns, "owned": owned, "second": starts[1], "choices": choices}
        found.append({**example, **extra, "room": limit - example["length"]})
    return found


def choices_of(tokenizer: Any, text: str, words: Sequence[Range], synonyms: Synonyms) -> dict[int, list[list[int]]]:
    """Token ids of the synonyms of every word that has some; a capital stays one."""
    found = {}
    for number, (start, end) in enumerate(words):
        word = text[start:end]
        others = synonyms.get(word.casefold(), ())
        capital = word[:1].isupper()
        ids = [_ids(tokenizer, other[:1].upper() + other[1:] if capital else other) for other in others]
        if any(ids):
            found[number] = [each for each in ids if each]
    return found


def _ids(tokenizer: Any, word: str) -> list[int]:
    encoded = tokenizer(f"{ANCHOR} {word}", add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token for token, (_, end) in pairs if end > len(ANCHOR)]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A word as its tokens, or one token that is none."""

    word: int
    columns: dict[str, list[int]]


def augmented(example: Example, settings: TextAugmentation, generator: np.random.Generator) -> Example:
    """The example with its words varied.

    Read from it: `columns` (names of what has a value per token), `owned` (word of every token), `second` (first word
    of a second text), `choices` (token ids of synonyms by word), `room` (tokens it may grow by), and `held` (words
    that stay where they are).
    """
    columns = {name: example[name] for name in example["columns"]}
    units: list[_Unit] = []
    for word, indices in groupby(range(len(example["owned"])), key=lambda index: example["owned"][index]):
        own = list(indices)
        parts = [own] if word != NOWHERE else [[index] for index in own]
        units += [_Unit(word, {name: [column[i] for i in part] for name, column in columns.items()}) for part in parts]
    held = example.get("held", frozenset())
    units = _replaced(units, example["choices"], example["room"], settings.synonym_rate or SYNONYM_RATE, generator)
    units = _dropped(units, held, settings.word_dropout, generator)
    units = _swapped(units, held, example["second"], settings.swap, generator)
    found = {name: [value for unit in units for value in unit.columns[name]] for name in columns}
    return {**example, **found, "length": len(found["input_ids"])}


def _replaced(
    units: list[_Unit], choices: Mapping[int, list[list[int]]], room: int, rate: float, generator: np.random.Generator
) -> list[_Unit]:
    found = []
    for unit in units:
        others = choices.get(unit.word, [])
        if others and generator.random() < rate:
            ids = others[generator.integers(len(others))]
            more = len(ids) - len(unit.columns["input_ids"])
            if more <= room:
                room -= max(0, more)
                unit = _Unit(unit.word, {name: _filled(name, values, ids) for name, values in unit.columns.items()})
        found.append(unit)
    return found


def _filled(name: str, values: list[int], ids: list[int]) -> list[int]:
    """The column of a word with other tokens: the label stays on the first one."""
    if name == "input_ids":
        return ids
    if name == LABELS:
        return [max(values), *[IGNORED] * (len(ids) - 1)]  # one of a word's tokens has a label, the others are negative
    return [values[0]] * len(ids)


def _free(units: list[_Unit], held: Any) -> list[int]:
    return [index for index, unit in enumerate(units) if unit.word != NOWHERE and unit.word not in held]


def _dropped(units: list[_Unit], held: Any, rate: float, generator: np.random.Generator) -> list[_Unit]:
    free = _free(units, held)
    gone = {index for index in free if generator.random() < rate}
    words = sum(unit.word != NOWHERE for unit in units)
    if gone and len(gone) == words:
        gone.remove(free[generator.integers(len(free))])
    return [unit for index, unit in enumerate(units) if index not in gone]


def _swapped(units: list[_Unit], held: Any, second: int, rate: float, generator: np.random.Generator) -> list[_Unit]:
    """Every chosen word with another of the same text."""
    units = list(units)
    free = _free(units, held)
    for index in free:
        if generator.random() < rate / 2:  # two words move at a time
            others = [i for i in free if i != index and (units[i].word < second) == (units[index].word < second)]
            if others:
                other = others[generator.integers(len(others))]
                units[index], units[other] = units[other], units[index]
    return units
