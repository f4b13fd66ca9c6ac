"""A model without its weights, to look at its structure."""

import importlib
import pkgutil

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel

from deltatune import models
from deltatune.core.errors import SettingsError
from deltatune.core.pretrained import check_source


def from_config(name: str) -> nn.Module:
    """The network of a hub name or folder on the meta device, in the class its config names.

    Raises `SettingsError` when there is no config or its architecture is unknown. Code from a repository never runs.
    """
    _know_ours()
    check_source(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        classes = [getattr(transformers, word, None) for word in config.architectures or ()]
        known = next((cls for cls in classes if cls is not None), None)
        with torch.device("meta"):
            model: nn.Module = (
                known(config) if known is not None else AutoModel.from_config(config, trust_remote_code=False)
            )
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"model {name!r} cannot be inspected: {str(error).strip().splitlines()[0]}") from None
    return model


def _know_ours() -> None:
    """Networks of ours register with the Auto classes when they are imported."""
    for info in pkgutil.iter_modules(models.__path__):
        importlib.import_module(f"{models.__name__}.{info.name}")
