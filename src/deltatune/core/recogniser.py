"""Recogniser: what stands between sounds, texts and a speech model; the two kinds of models have one each.

    sounds --inputs--> what the model reads          texts --labels--> ids --targets--> what the loss compares
    what the model said --texts--> texts

A batch names what the model is not told with `labels` in front.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltatune.core.audio import read_audio
from deltatune.core.audio_augmentation import masked_features, masked_samples, noisy, varied
from deltatune.core.task import LABELS, Batch, Example

FEATURES, SAMPLES = "input_features", "input_values"
"""What a model reads: log-mel features [B, F, T], or samples [B, T]."""
MASK = "attention_mask"
FRAME_SECONDS = 0.02
"""What nearly every recogniser makes one frame of; lengths of clips are counted in it."""
KEPT_BYTES = 1 << 30
"""Memory for clips that are read already: four and a half hours at 16 kHz."""


class Clips:
    """Samples of audio files at one rate; the first that fit into the memory are read once."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.known: dict[str, np.ndarray] = {}
        self.bytes = 0

    def __getitem__(self, path: str) -> np.ndarray:
        """The samples [T] of a file in float32."""
        if path in self.known:
            return self.known[path]
        samples_T = read_audio(path, self.rate)
        if self.bytes + samples_T.nbytes <= KEPT_BYTES:
            self.known[path] = samples_T
            self.bytes += samples_T.nbytes
        return samples_T


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said of a batch."""

    logits: Tensor | None
    """Of every frame or, where the texts are known, of every token of them [B, T, V]."""
    ids: tuple[tuple[int, ...], ...]
    """Of every row, as the recogniser reads them."""
    finished: tuple[bool, ...] | None
    """Whether the model ended a text by itself; None where texts end with the sound."""
    texts: tuple[str, ...] = ()
    """Filled in from the ids."""


class Recogniser(ABC):
    """Of one model: its feature extractor, its tokens, its limits."""

    def __init__(self, extractor: Any, longest: int, dtype: torch.dtype) -> None:
        self.extractor, self.dtype = extractor, dtype
        self.longest = longest
        """Samples of the longest clip."""
        self.clips = Clips(extractor.sampling_rate)

    @property
    def rate(self) -> int:
        """Samples per second."""
        return int(self.extractor.sampling_rate)

    @abstractmethod
    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts."""

    @abstractmethod
    def unusable(self, samples: int, labels: Sequence[int] | None) -> str | None:
        """Why a clip of so many samples cannot be read, or not with this text, or None."""

    @abstractmethod
    def targets(self, examples: Sequence[Example], batch: Batch) -> Batch:
        """What the loss and the answer need besides the inputs."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """The text of what the model said."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Sounds as the model reads them, varied where examples say so, and what belongs to their texts."""
        batch = self._inputs(examples)
        return {**batch, **self.targets(examples, batch)}

    def _inputs(self, examples: Sequence[Example]) -> Batch:
        heard = [self._heard(example) for example in examples]
        batch = self._extracted(heard)
        for row, example in enumerate(examples if FEATURES in batch else ()):
            if "variation" in example:
                own_FT = batch[FEATURES][row]
                frames = -(-len(heard[row]) * own_FT.shape[-1] // self.longest)
                batch[FEATURES][row] = masked_features(own_FT, frames, example["variation"])
        return {name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}

    def _heard(self, example: Example) -> np.ndarray:
        """The clip of an example, varied; played faster only where that leaves time for its text."""
        clip_T, made = self.clips[example["path"]], example.get("variation")
        if made is None:
            return clip_T
        sound_T = varied(clip_T, made, self.longest)
        if self.unusable(len(sound_T), example[LABELS]) is not None:
            sound_T = noisy(clip_T, made)
        return masked_samples(sound_T, made) if self.extractor.model_input_names[0] == SAMPLES else sound_T

    def _extracted(self, clips: Sequence[np.ndarray]) -> Batch:
        """Padded to the longest clip, with the mask of what is no padding."""
        found = self.extractor(
            list(clips), sampling_rate=self.rate, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        return dict(found)
