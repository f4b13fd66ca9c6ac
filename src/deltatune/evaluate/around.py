"""Around: the network of a checkpoint with the backbone of another in place of its own. What acts there acts here."""

from typing import Any

import torch

from deltatune.core.errors import SettingsError
from deltatune.engine.blocks import base_parameters


def around(whole: Any, network: Any, base: str, head: str) -> Any:
    """`whole`, read from the checkpoint `base`, with `network`'s backbone.

    A language model that is trained with its head is itself the one: what its head learned counts. Raises
    `SettingsError` where the backbones are not of a kind; `head` names in it what stands on top.
    """
    if type(whole) is type(network) and network.get_output_embeddings() is not None:
        return network
    prefix, kind = whole.base_model_prefix, type(network).__name__
    if prefix != network.base_model_prefix or whole.base_model is whole or whole.config.is_encoder_decoder:
        raise SettingsError(f"{base} has no {head} for the backbone of {kind}")
    there = dict(base_parameters(network.base_model))
    if lacking := [path for path, _ in base_parameters(whole.base_model) if path not in there]:
        raise SettingsError(f"the {head} of {base} reads what the backbone of {kind} lacks: {', '.join(lacking[:3])}")
    setattr(whole, prefix, network.base_model)
    return whole


def gathered(whole: Any) -> torch.device:
    """The device of a network's backbone, where its head is afterwards too."""
    device: torch.device = next(whole.base_model.parameters()).device
    whole.to(device)
    return device
