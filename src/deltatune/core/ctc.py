"""Connectionist temporal classification: one answer per frame, a character or none; texts are what is left.

    p(text | sound) = sum over all paths of frames that collapse to the text
    collapse        "ss.ee.v.ee.n" -> "seven": repeats are one, then the blank "." goes

Shape legend: B rows, T frames, V vocabulary, S characters. Paper: Graves et al. 2006 (ICML).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED

SPACE = " "
OTHERS = ("bos_token", "eos_token", "unk_token")
"""Special tokens of a CTC tokenizer besides the blank: nothing is written with them."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What a CTC model writes with: a character for every output, or None for the blank and what is never written."""

    characters: tuple[str | None, ...]
    blank: int

    @classmethod
    def of(cls, characters: Sequence[str]) -> "Alphabet":
        """The blank and then these.

        >>> Alphabet.of(["a", "b"]).ids("Abc")
        [1, 2]
        """
        return cls((None, *characters), 0)

    @classmethod
    def of_tokenizer(cls, tokenizer: Any) -> "Alphabet":
        """That of a checkpoint; raises `SettingsError` when it writes with more than single characters."""
        tokens = dict(sorted((index, token) for token, index in tokenizer.get_vocab().items()))
        special = {tokenizer.pad_token, *(getattr(tokenizer, name) for name in OTHERS)}
        delimiter = getattr(tokenizer, "word_delimiter_token", None) or SPACE
        found: list[str | None] = []
        for index in range(max(tokens) + 1):
            token = SPACE if tokens.get(index) == delimiter else tokens.get(index)
            found.append(None if token in special else token)
        long = [token for token in found if token is not None and len(token) > 1]
        if long:
            raise SettingsError(
                f"the model's tokenizer writes with more than characters ({', '.join(long[:3])})",
                hint="set task.vocabulary: texts for a new head with the characters of the training texts",
            )
        return cls(tuple(found), int(tokenizer.pad_token_id))

    def __len__(self) -> int:
        return len(self.characters)

    def ids(self, text: str) -> list[int]:
        """A text as outputs: the characters it knows, in another case where it knows that one only."""
        return [found for found in map(self._id, text) if found is not None]

    def unknown(self, text: str) -> list[str]:
        """The characters it cannot write."""
        return [character for character in text if self._id(character) is None]

    def _id(self, character: str) -> int | None:
        for own in (character, character.upper(), character.lower()):
            if len(own) == 1 and own in self.characters:
                return self.characters.index(own)
        return None

    def collapsed(self, frames: Sequence[int]) -> str:
        """The text of one answer per frame.

        >>> Alphabet.of(["e", "s", "v", "n", " "]).collapsed([2, 2, 0, 1, 3, 0, 1, 1, 4, 0, 5])
        'seven'
        """
        written = (self.characters[index] for index, _ in groupby(frames))
        return "".join(character for character in written if character is not None).strip()


def frames_needed(labels: Sequence[int]) -> int:
    """The fewest frames that can say a text: one per character and a blank between two equal ones.

    >>> frames_needed([1, 2, 2])
    4
    """
    return len(labels) + sum(a == b for a, b in pairwise(labels))


def ctc_losses(logits_BTV: Tensor, frames_B: Tensor, labels_BS: Tensor, blank: int) -> Tensor:
    """-log p(text | sound) of every row [B] in float32, and 0 for a text that its frames cannot say.

    Labels of -100 are padding, at the end.
    """
    logs_TBV = logits_BTV.float().log_softmax(-1).transpose(0, 1)
    lengths_B = (labels_BS != IGNORED).sum(1)
    return F.ctc_loss(
        logs_TBV,
        labels_BS.clamp_min(0),
        frames_B,
        lengths_B,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
