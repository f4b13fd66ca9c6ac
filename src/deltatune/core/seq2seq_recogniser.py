"""Recogniser of encoder-decoder models: Whisper and Moonshine, which write a text token by token.

What the decoder is given first (Whisper: start, language, work, no times) is no part of the text and no label.
Whisper hears windows of one length, 30 s; a shorter one is a cut of its encoder's positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, GenerationConfig
from transformers.generation import GenerationMixin

from deltatune.core import tokens
from deltatune.core.errors import SettingsError, did_you_mean
from deltatune.core.label_loss import IGNORED
from deltatune.core.padded_norm import leave_padding_out
from deltatune.core.pretrained import pretrained, processor_of
from deltatune.core.recogniser import MASK, Recogniser, Said
from deltatune.core.task import LABELS, Batch, Example, Loaded, inputs_of

KIND = "a speech recogniser that writes texts"
DECODER = "decoder_input_ids"
PROMPT = "labels_prompt"
"""Name in a batch of what the decoder is given first [B, P]."""
WHISPER = "whisper"
WRITERS = (WHISPER, "moonshine")
"""Kinds that are known to work; other encoder-decoders of `transformers` are spoken to in ways of their own."""
MULTILINGUAL = 51865
"""Size of Whisper's vocabulary from which on it knows languages."""


class Seq2SeqRecogniser(Recogniser):
    """Reads sounds and writes tokens behind a prompt."""

    def __init__(
        self, extractor: Any, longest: int, network: Any, tokenizer: Any, prompt: Sequence[int], front: str
    ) -> None:
        super().__init__(extractor, longest, next(network.parameters()).dtype)
        self.tokenizer, self.prompt, self.front = tokenizer, tuple(prompt), front
        self.end, self.padding = _end(network), _padding(network)
        self.positions = positions(network)
        self.window = network.config.model_type == WHISPER

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts and the end token."""
        found = self.tokenizer(
            [f"{self.front}{text.strip()}" for text in texts], add_special_tokens=False, verbose=False
        )
        return [[*ids, self.end] for ids in found["input_ids"]]

    def unusable(self, samples: int, labels: Sequence[int] | None) -> str | None:
        """A clip longer than Whisper's window, or a text of more tokens than the decoder has positions for."""
        if self.window and samples > self.longest:
            return f"audio is too long for this model ({samples} samples, {self.longest} are its window)"
        room = self.positions - len(self.prompt) + 1  # the last label is not read again
        if labels is not None and len(labels) > room:
            return f"text is too long for this model ({len(labels)} tokens, {room} are the most)"
        return None

    def targets(self, examples: Sequence[Example], batch: Batch) -> Batch:
        """The prompt of every row [B, P] and, where examples have them, labels and what the decoder reads [B, T]."""
        prompt = torch.tensor([self.prompt] * len(examples))
        if LABELS not in examples[0]:
            return {PROMPT: prompt}
        labels = [torch.tensor(example[LABELS]) for example in examples]
        texts = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        whole = torch.cat([prompt, texts], 1)
        reads = whole[:, :-1].masked_fill(whole[:, :-1] == IGNORED, self.padding)
        wanted = whole[:, 1:].clone()
        wanted[:, : prompt.shape[1] - 1] = IGNORED
        return {PROMPT: prompt, LABELS: wanted, DECODER: reads}

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones."""
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return found.strip()

    def _extracted(self, clips: Sequence[np.ndarray]) -> Batch:
        """One window per clip for Whisper, which has no masks; else as all."""
        if not self.window:
            return super()._extracted(clips)
        found = self.extractor(
            list(clips), sampling_rate=self.rate, padding="max_length", max_length=self.longest, return_tensors="pt"
        )
        return dict(found)


def say(model: Any, batch: Batch, num_beams: int, max_new_tokens: int) -> Said:
    """Texts for a batch and, where its labels are known, their logits; the encoder runs once for both."""
    given = inputs_of(batch)
    reads = given.pop(DECODER, None)
    heard = model.get_encoder()(**given)
    mask = {name: tensor for name, tensor in given.items() if name == MASK}
    logits = None if reads is None else model(encoder_outputs=heard, decoder_input_ids=reads, **mask).logits
    own, prompt, end = model.generation_config, batch[PROMPT], _end(model)
    settings = GenerationConfig(
        max_length=min(positions(model), prompt.shape[1] + max_new_tokens),
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=_padding(model),
        decoder_start_token_id=int(prompt[0, 0]),
        suppress_tokens=own.suppress_tokens,
        begin_suppress_tokens=own.begin_suppress_tokens,
    )
    # Whisper's own generate adds windows and fallbacks for long recordings around this one
    every = {MASK: prompt.new_ones(heard[0].shape[:2]), **mask}  # Whisper has no mask: all of its window counts
    found = GenerationMixin.generate(
        model, encoder_outputs=heard, decoder_input_ids=prompt, generation_config=settings, **every
    )
    written = found[:, prompt.shape[1] :].tolist()
    rows = [tuple(row[: row.index(end)] if end in row else row) for row in written]
    return Said(logits, tuple(rows), tuple(end in row for row in written))


def positions(network: Any) -> int:
    """The most tokens that a decoder has positions for."""
    config = network.config
    return int(getattr(config, "max_target_positions", None) or config.max_position_embeddings)


def load_seq2seq(model: str, dtype: Any, language: str | None, translate: bool, longest_s: float) -> Loaded:
    """The model and its recogniser, told its language; Whisper's window is cut to `longest_s` where that is shorter.

    Raises `SettingsError` for a model that is no trained encoder-decoder, and for a language that it is not told or
    does not know.
    """
    network, new = pretrained(AutoModelForSpeechSeq2Seq, model, dtype, KIND)
    if new or not network.config.is_encoder_decoder:
        what = f"it has no weights for {', '.join(new[:3])}" if new else "it is no encoder-decoder"
        raise SettingsError(f"model {model!r} is not {KIND}: {what}", hint="take Whisper or Moonshine")
    extractor = processor_of(AutoFeatureExtractor, model, KIND)
    tokenizer = tokens.tokenizer_of(model)
    longest = round(longest_s * extractor.sampling_rate)
    if network.config.model_type == WHISPER:
        prompt = _whisper_prompt(network, tokenizer, language, translate)
        longest = cut_window(network, longest, extractor.hop_length)
    else:
        prompt = [_start(network)]
        if language is not None or translate:
            raise SettingsError(f"task.language and task.translate have no effect on {type(network).__name__}")
    leave_padding_out(network)
    front = " " if network.config.model_type == WHISPER else ""  # Whisper's texts begin with a space
    return Loaded(network, Seq2SeqRecogniser(extractor, longest, network, tokenizer, prompt, front), new, tokenizer)


def cut_window(network: Any, samples: int, hop: int) -> int:
    """Cuts Whisper's window to so many samples, or the next two frames; the samples of a window after that."""
    encoder = network.get_encoder()
    stride = hop * encoder.conv1.stride[0] * encoder.conv2.stride[0]
    count = min(-(-samples // stride), encoder.embed_positions.num_embeddings)
    table = encoder.embed_positions.weight.detach()
    encoder.embed_positions = nn.Embedding(count, table.shape[1], _weight=table[:count].clone(), _freeze=True)
    network.config.max_source_positions = encoder.max_source_positions = count
    return int(count * stride)


def _whisper_prompt(network: Any, tokenizer: Any, language: str | None, translate: bool) -> list[int]:
    """Start, language and work where the model knows several, and that no times are wanted."""
    quiet = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    own = getattr(network.generation_config, "is_multilingual", None)
    several = network.config.vocab_size >= MULTILINGUAL if own is None else own
    if not several:
        if language is not None or translate:
            raise SettingsError("task.language and task.translate have no effect on a Whisper for English only")
        return [_start(network), quiet]
    known = [word[2:-2] for word in tokenizer.get_vocab() if word.startswith("<|") and len(word) in (6, 7)]
    if language not in known:
        what = "this Whisper knows many languages: name the one that is spoken" if language is None else language
        raise SettingsError(f"task.language: {what}", hint=did_you_mean(language or "en", known))
    work = "<|translate|>" if translate else "<|transcribe|>"
    return [_start(network), *tokenizer.convert_tokens_to_ids([f"<|{language}|>", work]), quiet]


def _start(network: Any) -> int:
    for config in (network.generation_config, network.config):
        if config.decoder_start_token_id is not None:
            return int(config.decoder_start_token_id)
    raise SettingsError(f"{type(network).__name__} does not say what its texts begin with (decoder_start_token_id)")


def _end(network: Any) -> int:
    own = network.generation_config.eos_token_id
    found = own if own is not None else network.config.eos_token_id
    return int(found[0] if isinstance(found, list) else found)


def _padding(network: Any) -> int:
    return _end(network) if network.config.pad_token_id is None else int(network.config.pad_token_id)
