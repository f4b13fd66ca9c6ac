"""Speech recognition: the text of an audio clip, by a model that writes texts or by one that names characters.

row        {path, text, speaker?}: WAV, FLAC, OGG, MP3 of any rate
model      an encoder-decoder (Whisper, Moonshine) or a CTC model (wav2vec2, HuBERT, WavLM, UniSpeech);
           a CTC head is new when the checkpoint has none, with the characters of the training texts
loss       cross entropy over the tokens of the texts, or -log of all paths that collapse to them (CTC)
metrics    word and character error rate, exact match
"""

import logging
import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoConfig

from deltatune.core.audio import content_of, envelope, read_audio, seconds_of, why_not
from deltatune.core.audio_augmentation import AudioAugmentation, variation
from deltatune.core.ctc import ctc_losses
from deltatune.core.ctc_recogniser import BLANK, FRAMES, SPELLERS, TEXTS, Vocabulary, load_ctc, say_by_frames
from deltatune.core.division import by_group
from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED, single
from deltatune.core.labels import called
from deltatune.core.nearest_clip import nearest_texts
from deltatune.core.pretrained import processor_of
from deltatune.core.recogniser import FRAME_SECONDS, Said
from deltatune.core.seq2seq_recogniser import PROMPT, WRITERS, load_seq2seq, say
from deltatune.core.task import LABELS, Batch, Column, Example, Loaded, Row, Task
from deltatune.core.transcripts import Normalization, normalized, transcript_scores

logger = logging.getLogger("deltatune")

TOKENS_PER_SECOND = 15
"""The fastest speech in any usual tokenizer; an answer longer than that goes round in circles."""
MOST_COMPARED = 4000
"""Training clips that the nearest one is looked for among."""
DRAWN_RATE = 8000
"""Samples per second of a waveform that is drawn."""


class SpeechRecognition(Task):
    """Settings of speech recognition."""

    type: ClassVar[str] = "speech-recognition"
    title: ClassVar[str] = "Speech to text"
    begin_with: ClassVar[str] = "openai/whisper-tiny.en"
    columns: ClassVar[Mapping[str, Column]] = {
        "path": Column(("path", "audio", "file", "file_name", "filename", "audio_path", "wav"), path=True),
        "text": Column(("text", "sentence", "transcript", "transcription", "normalized_text", "label")),
        "speaker": Column(("speaker", "speaker_id", "client_id"), required=False),
    }
    label: ClassVar[str | None] = "text"
    key: ClassVar[tuple[str, ...]] = ("path",)
    counted: ClassVar[str] = "frames"
    lower_is_better: ClassVar[frozenset[str]] = frozenset(
        {"loss", "wer", "cer", "substitutions", "deletions", "insertions", "unfinished"}
    )
    trains_head: ClassVar[bool] = False
    resamples: ClassVar[int] = 200

    max_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Longest clip; longer ones are rejected. Whisper's window is cut to it: 2 s train many times faster than 30."""
    language: str | None = None
    """Code of what is spoken (en, de), for a Whisper that knows many languages."""
    translate: bool = False
    """Whisper writes English, whatever is spoken."""
    normalization: Normalization = "simple"
    """How texts are compared, and learned by CTC models: simple leaves out case and punctuation, none nothing."""
    vocabulary: Vocabulary = "auto"
    """What a CTC model writes with: auto keeps a trained head, texts takes the characters of the training texts."""
    characters: tuple[Annotated[str, Field(min_length=1, max_length=1)], ...] | None = None
    """Those of a new CTC head, in the order of its outputs; none: all in the training texts, sorted."""
    ctc_mean: Literal["token", "row"] = "token"
    """What the CTC loss is a mean over: characters, or texts whatever their length."""
    num_beams: Annotated[int, Field(ge=1)] = 1
    """Beams of the search for the best text; 1 takes the likeliest token at every step. CTC models have no search."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens; none: 15 for every second of `max_seconds`, and 8."""
    augmentation: AudioAugmentation | None = None
    """Vary the training clips: speed, noise, stretches of time and bands of frequency taken out."""

    @property
    def metric(self) -> str:
        """Word error rate."""
        return "wer"

    # -- rows

    def check(self, row: Row) -> str | None:
        """Audio that cannot be used, or a text without a word."""
        return why_not(row.get("path"), self.max_seconds) or (self._check_text(row["text"]) if "text" in row else None)

    def _check_text(self, text: Any) -> str | None:
        if not isinstance(text, str):
            return f"text is not text ({type(text).__name__})"
        if not text.strip():
            return "text is empty"
        return None if normalized(text, self.normalization) else f"text has no word ({text!r})"

    def identity(self, row: Row) -> Hashable:
        """The bytes of the file: the same recording under two names is one."""
        return content_of(row["path"])

    def sketch(self, row: Row) -> Collection[Hashable]:
        """Nothing: recordings are the same or they are not."""
        return ()

    def fit(self, rows: Sequence[Row]) -> Self:
        """The characters of the training texts."""
        found = {character for row in rows for character in normalized(row["text"], self.normalization)}
        return self if self.characters else self.model_copy(update={"characters": tuple(sorted(found))})

    def divide(self, rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> dict[str, list[Row]] | None:
        """By speaker, where rows have one: a voice is easy once it was heard."""
        speakers = [called(row.get("speaker")) for row in rows]
        if not all(speakers) or len(set(speakers)) <= len(shares):
            if any(speakers):
                logger.warning("speakers are in training and test: there are too few, or rows without one")
            return None
        parts = by_group(speakers, shares, seed)
        return {name: [rows[index] for index in part] for name, part in parts.items()}

    # -- model

    def load(self, model: str, dtype: Any = None) -> Loaded:
        """The model and its recogniser; what kind of model it is, its config tells."""
        kind = processor_of(AutoConfig, model, "a speech recogniser").model_type
        if kind not in (*WRITERS, *SPELLERS):
            raise SettingsError(
                f"model {model!r} is of kind {kind}, which this task does not know",
                hint=f"it knows {', '.join((*WRITERS, *SPELLERS))}",
            )
        if kind in WRITERS:
            self._check_effect(kind, vocabulary="auto", ctc_mean="token")
            return load_seq2seq(model, dtype, self.language, self.translate, self.max_seconds)
        self._check_effect(kind, language=None, translate=False, num_beams=1, max_new_tokens=None)
        return load_ctc(model, dtype, self.characters or (), self.vocabulary, self.normalization, self.max_seconds)

    def _check_effect(self, kind: str, **usual: Any) -> None:
        """Raises `SettingsError` for a setting of the other kind of model."""
        other = next((name for name, value in usual.items() if getattr(self, name) != value), None)
        if other is not None:
            raise SettingsError(f"task.{other} has no effect on a model of kind {kind}", hint="take it out")

    def encode(self, rows: Sequence[Row], processor: Any) -> list[Example]:
        """Where the sound is, and the text as labels; sounds are read when a batch is made."""
        texts = [row["text"] for row in rows if "text" in row]
        labels = iter(processor.labels(texts)) if texts else iter(())
        return [self._example(row, next(labels) if "text" in row else None, processor) for row in rows]

    def _example(self, row: Row, labels: list[int] | None, processor: Any) -> Example:
        seconds = seconds_of(row["path"])
        return {
            "path": row["path"],
            "length": max(1, math.ceil(seconds / FRAME_SECONDS)),
            "unusable": processor.unusable(math.ceil(seconds * processor.rate), labels),
            **({} if labels is None else {LABELS: labels}),
        }

    def unusable(self, example: Example) -> str | None:
        """A text that the model cannot say in the time of its clip, or has no room for."""
        reason: str | None = example["unusable"]
        return reason

    def augment(self, example: Example, generator: np.random.Generator) -> Example:
        """The clip with what is to be done to it, where that is asked for."""
        return (
            example if self.augmentation is None else {**example, "variation": variation(self.augmentation, generator)}
        )

    def collate(self, examples: Sequence[Example], processor: Any) -> Batch:
        """Sounds as the model reads them, with its texts."""
        batch: Batch = processor.collate(examples)
        return batch

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """What the model says, and with labels what it thinks of the right texts."""
        if PROMPT not in batch:
            return say_by_frames(model, batch)
        return say(model, batch, self.num_beams, self.max_new_tokens or 8 + round(TOKENS_PER_SECOND * self.max_seconds))

    # -- learning

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Mean over tokens (or texts), in float32."""
        if FRAMES in batch:
            total = ctc_losses(output.logits, batch[FRAMES], batch[TEXTS], int(batch[BLANK][0])).sum()
        else:
            total = single(output.logits.float().flatten(0, 1), batch[LABELS].flatten(), None, 0, 0)
        return total / max(1, self.weight(batch))

    def weight(self, batch: Batch) -> int:
        """Tokens or characters of the texts; rows where the loss is their mean."""
        if self.ctc_mean == "row":
            return len(batch[LABELS])
        return int((batch.get(TEXTS, batch[LABELS]) != IGNORED).sum())

    def decode(self, output: Any, processor: Any) -> Said:
        """What the model said as texts."""
        said: Said = output
        return replace(said, texts=tuple(processor.text(ids) for ids in said.ids))

    def read(self, output: Any, batch: Batch) -> list[dict[str, Any]]:
        """The text and, of a model that writes, whether it came to an end."""
        said: Said = output
        if said.finished is None:
            return [{"text": text} for text in said.texts]
        return [{"text": text, "finished": end} for text, end in zip(said.texts, said.finished, strict=True)]

    def plot(self, axes: Any, answer: Mapping[str, Any], row: Row) -> bool:
        """The waveform: the lowest and the highest value of every stretch."""
        seconds, low, high = envelope(read_audio(row["path"], DRAWN_RATE), DRAWN_RATE)
        axes.fill_between(seconds, low, high, color="C0", lw=0.4)
        axes.set(xlabel="seconds", yticks=[])
        return True

    # -- scores

    def score(self, answers: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """Error rates over all rows, and the share of answers that ran into the limit."""
        found = transcript_scores([a["text"] for a in answers], [row["text"] for row in rows], self.normalization)
        ended = [a["finished"] for a in answers if "finished" in a]
        return {**found, "unfinished": 1 - sum(ended) / len(ended)} if ended else dict(found)

    def baseline(self, train: Sequence[Row], rows: Sequence[Row]) -> tuple[str, dict[str, Any]]:
        """The most frequent training text."""
        ((text, _),) = Counter(normalized(row["text"], self.normalization) for row in train).most_common(1)
        return "most frequent text", self.score([{"text": text}] * len(rows), rows)

    def baselines(self, train: Sequence[Row], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """The text of the nearest training clip, where texts repeat: commands, digits, names."""
        texts = {normalized(row["text"], self.normalization) for row in train}
        if 2 * len(texts) > len(train):
            return {}
        known = [(row["path"], row["text"]) for row in train[:MOST_COMPARED]]
        answers = nearest_texts(known, [row["path"] for row in rows])
        return {"nearest training clip": self.score([{"text": text} for text in answers], rows)}
