"""Prompt tuning: virtual tokens before the input.

    X = [P ; E(x)]        P [P, D] trained

Trains   P D values: 15,360 for BERT-base and 20 tokens
Start    the embeddings of words: sampled from the vocabulary, of a text, or of the class labels
Merge    no
Note     labels, pooling and heads see the real tokens only; with a cache the prompt is computed once. Weight decay
         would pull P to zero, which is no word: there is none
Paper    Lester et al. 2021, arXiv:2104.08691
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from deltatune.core.errors import SettingsError
from deltatune.core.prompt import PromptMethod, SoftPrompt
from deltatune.core.site import InputSite

PEFT_WORDS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocabulary", "TEXT": "text"}


class Prompt(PromptMethod):
    """Settings of prompt tuning; names as in peft's `PromptTuningConfig`."""

    type: ClassVar[str] = "prompt"
    title: ClassVar[str] = "Prompt tuning"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    learning_rate: ClassVar[float] = 3e-2
    peft_type: ClassVar[str | None] = "PROMPT_TUNING"

    prompt_tuning_init: Annotated[
        Literal["random", "vocabulary", "text", "labels"], BeforeValidator(lambda word: PEFT_WORDS.get(str(word), word))
    ] = "vocabulary"
    """Where P starts: normal values of the spread of the vocabulary's, words of it, a text, or the class labels."""
    prompt_tuning_init_text: str | None = None
    """The text."""
    initial_token_ids: tuple[int, ...] = ()
    """The tokens of text or labels; filled in where a tokenizer is at hand."""

    def worded(self, encode: Callable[[str], list[int]], labels: Sequence[str]) -> "Prompt":
        """With the tokens of the text or of the labels; raises `SettingsError` when there are none."""
        if self.prompt_tuning_init not in ("text", "labels") or self.initial_token_ids:
            return self
        text = " ".join(labels) if self.prompt_tuning_init == "labels" else self.prompt_tuning_init_text
        ids = encode(text or "")
        if not ids:
            raise SettingsError(f"prompt_tuning_init is {self.prompt_tuning_init}, and there is none to start from")
        return self.model_copy(update={"initial_token_ids": tuple(ids)})

    def build(self, site: InputSite, origin: Callable[[], Tensor], shared: None, rng: torch.Generator) -> SoftPrompt:
        """The vectors of one stack."""
        return SoftPrompt(self._start(site, origin, rng), **self.enters())

    def _start(self, site: InputSite, origin: Callable[[], Tensor], rng: torch.Generator) -> Tensor:
        tokens = self.num_virtual_tokens
        if site.table is None:  # patches, frames: no vocabulary
            return torch.empty(tokens, site.width).normal_(0, 0.02, generator=rng)
        table_VD = origin().detach()
        if table_VD.is_meta or table_VD.shape[1] != site.width:
            return torch.empty(tokens, site.width).normal_(0, 0.02, generator=rng)
        table_VD = table_VD.float().cpu()
        if self.prompt_tuning_init == "random":
            return torch.empty(tokens, site.width).normal_(0, float(table_VD.std()), generator=rng)
        ids = torch.tensor(self.initial_token_ids)
        if self.prompt_tuning_init == "vocabulary":
            ids = torch.randint(len(table_VD), (tokens,), generator=rng)
        elif not len(ids):
            raise SettingsError(
                f"prompt_tuning_init={self.prompt_tuning_init!r} needs initial_token_ids here",
                hint="give them, or call method.worded(encode, labels) with a tokenizer",
            )
        return table_VD[ids.repeat(-(-tokens // len(ids)))[:tokens]].clone()

    def count(self, sites: Sequence[Any]) -> int:
        """P D per stack."""
        return sum(self.num_virtual_tokens * site.width for site in sites)

    # -- peft's format

    def peft_config(self, sites: Sequence[Any]) -> dict[str, Any]:
        """The keys of `PromptTuningConfig`; what a prompt started from does not matter to a trained one."""
        return {**super().peft_config(sites), "prompt_tuning_init": "RANDOM"}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> "Prompt | None":
        """Settings of a PROMPT_TUNING folder; None for other formats."""
        if config.get("peft_type") != cls.peft_type:
            return None
        return cls.read_peft(config, ())
