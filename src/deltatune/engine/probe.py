"""Probe: small random inputs that a model accepts, from its config alone."""

from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.errors import AdapterError

ROWS, TOKENS = 3, 7
"""Sizes that rarely occur in a model, so that a dimension can be recognised."""


def probe_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Inputs of 3 rows, on the model's device and in its dtype; raises `AdapterError` for unknown kinds of input."""
    config: Any = getattr(model, "config", None)
    first = next(model.parameters())
    name = getattr(model, "main_input_name", None)
    generator = torch.Generator().manual_seed(0)

    def tokens(vocabulary: int) -> Tensor:
        return torch.randint(3, max(4, min(vocabulary, 90)), (ROWS, TOKENS), generator=generator).to(first.device)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(first.device, first.dtype)

    if name == "input_ids":
        found = {"input_ids": tokens(config.get_text_config().vocab_size)}
    elif name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        found = {"pixel_values": floats(ROWS, config.num_channels, size, size)}
    elif name == "input_features":
        found = {"input_features": floats(ROWS, config.num_mel_bins, 2 * config.max_source_positions)}
    elif name == "input_values" and hasattr(config, "num_mel_bins"):
        found = {"input_values": floats(ROWS, config.max_length, config.num_mel_bins)}
    elif name == "input_values":
        found = {"input_values": floats(ROWS, 4000)}
    else:
        raise AdapterError(f"do not know what small inputs for {type(model).__name__} look like (it reads {name!r})")
    if getattr(config, "is_encoder_decoder", False) and any("decoder" in n for n, _ in model.named_children()) | (
        hasattr(model, "get_decoder")
    ):
        found["decoder_input_ids"] = tokens(config.get_text_config().vocab_size)
    return found
