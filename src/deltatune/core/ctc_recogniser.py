"""Recogniser of CTC models: wav2vec2, HuBERT, WavLM, UniSpeech, with their own alphabet or a new one."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

from deltatune.core.ctc import Alphabet, frames_needed
from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED
from deltatune.core.padded_norm import leave_padding_out
from deltatune.core.pretrained import pretrained, processor_of
from deltatune.core.recogniser import MASK, Recogniser, Said
from deltatune.core.task import LABELS, Batch, Example, Loaded, inputs_of
from deltatune.core.transcripts import Normalization, normalized

logger = logging.getLogger("deltatune")

KIND = "a CTC speech recogniser"
SPELLERS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Kinds whose answers do not depend on padding; those of SEW, data2vec and Conformer do."""
FRAMES = "labels_frames"
"""Name in a batch of the real frames of every row [B]."""
TEXTS = "labels_texts"
"""Name of the characters of every text [B, S], -100 behind the last; `labels` are 0 at real frames [B, T]."""
BLANK = "labels_blank"
"""Name in a batch of the output that says nothing, for every row [B]."""
Vocabulary = Literal["auto", "texts"]


class CtcRecogniser(Recogniser):
    """Reads sounds and writes characters of an alphabet."""

    def __init__(
        self,
        extractor: Any,
        longest: int,
        dtype: torch.dtype,
        alphabet: Alphabet,
        frames: Callable[[Tensor], Tensor],
        normalization: Normalization,
    ) -> None:
        super().__init__(extractor, longest, dtype)
        self.alphabet, self.frames, self.normalization = alphabet, frames, normalization

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Characters as the model writes them, of texts as they are compared; says which it cannot write."""
        plain = [normalized(text, self.normalization) for text in texts]
        unknown = Counter(character for text in plain for character in self.alphabet.unknown(text))
        if unknown:
            shown = ", ".join(f"{character!r} ({count} times)" for character, count in unknown.most_common(5))
            logger.warning("%d characters are not in the model's alphabet, left out: %s", unknown.total(), shown)
        return [self.alphabet.ids(text) for text in plain]

    def unusable(self, samples: int, labels: Sequence[int] | None) -> str | None:
        """A clip of no frame, a text of no known character, or one that needs more frames than the clip has."""
        frames = int(self.frames(torch.tensor(samples)))
        if frames < 1:
            return f"audio is too short for this model ({samples} samples make no frame)"
        if labels is None:
            return None
        if not labels:
            return "text has no character that this model can write"
        needed = frames_needed(labels)
        return f"text is too long for its audio ({needed} frames needed, {frames} there)" if needed > frames else None

    def targets(self, examples: Sequence[Example], batch: Batch) -> Batch:
        """Real frames and blank of every row and, where texts are known, these, and the frames that count."""
        frames_B = self.frames(batch[MASK].sum(-1)).to(torch.long)
        found = {FRAMES: frames_B, BLANK: torch.full_like(frames_B, self.alphabet.blank)}
        if LABELS in examples[0]:
            texts = [torch.tensor(example[LABELS]) for example in examples]
            found[TEXTS] = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=IGNORED)
            padding_BT = torch.arange(int(frames_B.max())) >= frames_B[:, None]
            found[LABELS] = padding_BT * IGNORED
        return found

    def text(self, ids: Sequence[int]) -> str:
        """What one answer per frame collapses to."""
        return self.alphabet.collapsed(ids)


def say_by_frames(model: nn.Module, batch: Batch) -> Said:
    """The likeliest answer of every real frame."""
    logits_BTV = model(**inputs_of(batch)).logits
    ids = [row[:frames] for row, frames in zip(logits_BTV.argmax(-1).tolist(), batch[FRAMES].tolist(), strict=True)]
    return Said(logits_BTV, tuple(map(tuple, ids)), None)


def load_ctc(
    model: str,
    dtype: Any,
    characters: Sequence[str],
    vocabulary: Vocabulary,
    normalization: Normalization,
    longest_s: float,
) -> Loaded:
    """The model and its recogniser; a checkpoint without a trained head gets a new one for `characters`.

    Raises `SettingsError` for a model whose head is not for its tokenizer, or whose tokenizer is no alphabet.
    """
    config = processor_of(AutoConfig, model, KIND)
    extractor = processor_of(AutoFeatureExtractor, model, KIND)
    trained = any(name.endswith("ForCTC") for name in config.architectures or ())
    if trained and vocabulary == "auto":
        alphabet = Alphabet.of_tokenizer(processor_of(AutoTokenizer, model, KIND))
        network, new = pretrained(AutoModelForCTC, model, dtype, KIND)
    else:
        alphabet = Alphabet.of(characters)
        sizes = {"vocab_size": len(alphabet), "pad_token_id": alphabet.blank}
        network, new = pretrained(AutoModelForCTC, model, dtype, KIND, **sizes)
        new = (*_with_new_head(network), *new)
    rest = set(new) - {"lm_head", network.base_model_prefix}  # what hides samples while training may be missing there
    if rest or _head(network).out_features != len(alphabet):
        what = f"no weights for {', '.join(sorted(rest)[:3])}" if rest else f"{len(alphabet)} tokens for another head"
        raise SettingsError(f"model {model!r} is not {KIND}: it has {what}")
    leave_padding_out(network)
    recogniser = CtcRecogniser(
        extractor,
        round(longest_s * extractor.sampling_rate),
        _head(network).weight.dtype,
        alphabet,
        network._get_feat_extract_output_lengths,
        normalization,
    )
    return Loaded(network, recogniser, ("lm_head",) if "lm_head" in new else ())


def _head(network: Any) -> nn.Linear:
    head = network.lm_head
    assert isinstance(head, nn.Linear)
    return head


def _with_new_head(network: Any) -> tuple[str, ...]:
    """Starts the head anew, also where one of the same size was loaded: its outputs mean other characters."""
    head = _head(network)
    nn.init.normal_(head.weight, std=network.config.initializer_range)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return ("lm_head",)
