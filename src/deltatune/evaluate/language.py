"""Language: how well a base still predicts tokens, by the language-model head of its checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from deltatune.core import tokens
from deltatune.core.errors import SettingsError
from deltatune.core.pretrained import pretrained, processor_of
from deltatune.evaluate.around import around, gathered

MASKED = 0.15
"""Share of the tokens that are masked and predicted (Devlin et al. 2019)."""
LONGEST = 128
"""Tokens of a text that are read."""
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Language:
    """A language model around the backbone of another network: what acts there acts here."""

    kind: str
    """`causal` or `masked`."""
    network: Any
    tokenizer: Any

    @classmethod
    def around(cls, network: Any, base: str) -> "Language":
        """The checkpoint's own language model, with `network`'s backbone in place of its own.

        Raises `SettingsError` where the checkpoint has no head for tokens.
        """
        names = tuple(processor_of(AutoConfig, base, "a language model").architectures or ())
        causal = any(name.endswith(CAUSAL) for name in names)
        kind, loader = ("causal", AutoModelForCausalLM) if causal else ("masked", AutoModelForMaskedLM)
        dtype = next(network.parameters()).dtype
        whole, new = pretrained(loader, base, dtype, f"a {kind} language model")
        if new:
            raise SettingsError(f"{base} has no language-model head: {', '.join(new[:3])} would start at random")
        found = around(whole, network, base, "language-model head")
        return cls(kind, found.eval(), tokens.tokenizer_of(base))

    def loss(self, texts: Sequence[str], batch_size: int = 16) -> float:
        """Mean loss per predicted token in nats; masks follow from a seed, so losses of two bases can be compared."""
        generator = torch.Generator().manual_seed(0)
        encoded = tokens.encode(self.tokenizer, texts, [None] * len(texts), LONGEST)
        total, units = 0.0, 0
        device = gathered(self.network)
        with torch.inference_mode():
            for begin in range(0, len(encoded), batch_size):
                batch = tokens.padded(self.tokenizer, encoded[begin : begin + batch_size])
                labels = self._labels(batch, generator)
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                logits = self.network(**batch).logits.float()
                losses = functional.cross_entropy(logits.flatten(0, 1), labels.to(device).flatten(), reduction="sum")
                total, units = total + float(losses), units + int((labels != -100).sum())
        return total / max(1, units)

    def _labels(self, batch: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """What is predicted where, -100 elsewhere; masked tokens are replaced in the batch."""
        ids, real = batch["input_ids"], batch["attention_mask"].bool()
        if self.kind == "causal":
            following = functional.pad(ids.masked_fill(~real, -100)[:, 1:], (0, 1), value=-100)
            return following
        special = torch.isin(ids, torch.tensor(self.tokenizer.all_special_ids))
        hidden = (torch.rand(ids.shape, generator=generator) < MASKED) & real & ~special
        batch["input_ids"] = ids.masked_fill(hidden, self.tokenizer.mask_token_id)
        return ids.masked_fill(~hidden, -100)
