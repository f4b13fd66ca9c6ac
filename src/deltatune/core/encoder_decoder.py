"""Encoder-decoder: texts in and texts out as token ids, and what the decoder begins with.

The decoder reads the target one position later than it answers it: labels [a, b, </s>], inputs [start, a, b].
The start is the model's own, or the language (mBART). Generation begins with the same token, whatever the checkpoint's
settings of generation say.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from deltatune.core import tokens
from deltatune.core.errors import SettingsError
from deltatune.core.label_loss import IGNORED
from deltatune.core.languages import set_languages
from deltatune.core.pretrained import pretrained
from deltatune.core.task import LABELS, Batch, Example, Loaded, inputs_of

logger = logging.getLogger("deltatune")

TOKENS = "input_ids"
DECODER = "decoder_input_ids"


@dataclass(frozen=True, slots=True)
class Sides:
    """What reads and writes the texts of an encoder-decoder."""

    tokenizer: Any
    later: Callable[[Tensor], Tensor]
    """Labels [B, T] with -100 where there are none -> what the decoder reads [B, T]."""
    front: str
    """What goes before every source."""

    @property
    def longest(self) -> int:
        """The most tokens that the model has positions for."""
        return tokens.longest(self.tokenizer)

    def sources(self, texts: Sequence[str], max_length: int) -> list[Example]:
        """An example per text, cut to the limit. Raises `SettingsError` where what goes before leaves no room."""
        fixed = len(self.tokenizer(self.front)[TOKENS])
        if fixed >= min(max_length, self.longest):
            raise SettingsError(
                f"{self.front!r} before every source takes {fixed} tokens, of {min(max_length, self.longest)} in all",
                hint="raise task.max_source_length, or shorten task.prefix",
            )
        return tokens.encode(self.tokenizer, texts, [None] * len(texts), max_length)

    def targets(self, texts: Sequence[str], max_length: int) -> list[tuple[list[int], bool]]:
        """Token ids of every text, and whether it was cut to the limit; the end token is always there."""
        limit = min(max_length, self.longest)
        whole = self.tokenizer(text_target=list(texts), truncation=False, verbose=False)[TOKENS]
        cut = self.tokenizer(text_target=list(texts), truncation=True, max_length=limit, verbose=False)[TOKENS]
        self._warn(whole)
        return [(ids, len(every) > len(ids)) for ids, every in zip(cut, whole, strict=True)]

    def _warn(self, targets: Sequence[Sequence[int]]) -> None:
        """Says how many targets the model cannot write."""
        unknown = sum(self.tokenizer.unk_token_id in ids for ids in targets)
        if unknown:
            logger.warning("%d of %d targets hold characters this model has no token for", unknown, len(targets))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Sources and, where examples have `labels`, targets, padded apart; padding of labels counts nothing."""
        batch = tokens.padded(self.tokenizer, [{**e, "length": len(e[TOKENS])} for e in examples])
        if LABELS not in examples[0]:
            return batch
        longest = max(len(example[LABELS]) for example in examples)
        width = max(longest, min(-(-longest // tokens.PAD_TO) * tokens.PAD_TO, self.longest))
        labels = torch.full((len(examples), width), IGNORED)
        for row, example in enumerate(examples):
            labels[row, : len(example[LABELS])] = torch.tensor(example[LABELS])
        return {**batch, LABELS: labels, DECODER: self.later(labels)}


def load_encoder_decoder(
    model: str,
    dtype: Any,
    languages: tuple[str | None, str | None],
    prefix: str,
    generation: Mapping[str, Any],
    most: int,
) -> Loaded:
    """The model and its `Sides`, told its languages and how to generate, up to `most` tokens unless that is said.

    Raises `SettingsError` for a model that is no trained encoder-decoder, for one that does not say what answers begin
    with, and for answers longer than it has positions for.
    """
    network, new = pretrained(AutoModelForSeq2SeqLM, model, dtype, "an encoder-decoder")
    if new:
        raise SettingsError(
            f"model {model!r} is no trained encoder-decoder: it has no weights for {', '.join(new[:3])}",
            hint="take one that was trained to write texts (T5, BART, Marian, mBART, NLLB, ...)",
        )
    tokenizer = tokens.tokenizer_of(model)
    tokens.limit_to(tokenizer, network)
    word = set_languages(tokenizer, *languages)
    sides = Sides(tokenizer, _later(network, coded=languages[1] is not None and not word), f"{word}{prefix}")
    network.generation_config = _generation(network, sides, generation, most)
    return Loaded(network, sides, new, tokenizer)


def _later(network: Any, coded: bool) -> Callable[[Tensor], Tensor]:
    """How labels are moved: as the model does it, or as most do; `coded` where targets end with their language."""
    config = network.config
    if getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = network.generation_config.decoder_start_token_id
    own = getattr(network, "prepare_decoder_input_ids_from_labels", None)
    if config.decoder_start_token_id is None and not (own and coded):
        raise SettingsError(
            f"{type(network).__name__} does not say what its answers begin with",
            hint="set decoder_start_token_id in its config.json (T5: the padding token, BART: the end token)",
        )
    if own is not None:
        return lambda labels: own(labels.clone())  # some change what they are given
    return partial(moved, start=config.decoder_start_token_id, padding=config.pad_token_id)


def _generation(network: Any, sides: Sides, settings: Mapping[str, Any], most: int) -> GenerationConfig:
    """The settings; of the checkpoint's own only the tokens that are special stay, no least length or number of beams.

    Answers begin as targets do: with the same start, and with the first label where that is a special token.
    """
    limit = settings["max_new_tokens"] or min(most, sides.longest)
    if limit > sides.longest:
        raise SettingsError(
            f"task.max_new_tokens: {limit} are more than the {sides.longest} tokens {type(network).__name__} can write"
        )
    own, tokenizer = network.generation_config, sides.tokenizer
    ((labels, _),) = sides.targets(["a"], sides.longest)
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return GenerationConfig(
        **{**settings, "max_new_tokens": limit},
        do_sample=False,
        decoder_start_token_id=int(sides.later(torch.tensor([labels]))[0, 0]),
        forced_bos_token_id=labels[0] if labels[0] in marks else None,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        pad_token_id=network.config.pad_token_id,
        bad_words_ids=own.bad_words_ids,
        suppress_tokens=own.suppress_tokens,
    )


def moved(labels_BT: Tensor, start: int, padding: int) -> Tensor:
    """Labels one position later, behind the start.

    >>> moved(torch.tensor([[7, 8, 2], [7, 2, -100]]), start=0, padding=1).tolist()
    [[0, 7, 8], [0, 7, 2]]
    """
    first = torch.full_like(labels_BT[:, :1], start)
    return torch.cat([first, labels_BT[:, :-1].masked_fill(labels_BT[:, :-1] == IGNORED, padding)], 1)


@dataclass(frozen=True, slots=True)
class Written:
    """What a model answered, and what it says of the targets where they are known."""

    logits: Tensor | None
    """Of every position of the targets [B, T, vocabulary]."""
    written_BT: Tensor
    """Token ids without the start, padded behind the end token."""
    finished: tuple[bool, ...]
    """Whether the end token came before the limit."""
    texts: tuple[str, ...] = ()
    """Filled in by `decoded`."""


def write(model: Any, batch: Batch) -> Written:
    """Answers for a batch; with labels also the logits, and then the encoder runs once for both."""
    given = inputs_of(batch)
    reads = given.pop(DECODER, None)
    logits = None
    if reads is not None:
        output = model(**given, decoder_input_ids=reads)
        logits = output.logits
        given["encoder_outputs"] = BaseModelOutput(output.encoder_last_hidden_state)
    found = model.generate(**given)[:, 1:]
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=found.device)
    return Written(logits, found, tuple(torch.isin(found, ends).any(1).tolist()))


def decoded(output: Written, sides: Sides) -> Written:
    """The same with its texts, special tokens left out."""
    texts = sides.tokenizer.batch_decode(output.written_BT, skip_special_tokens=True)
    return replace(output, texts=tuple(texts))
