"""What the contract tests run on: every method of the registry on small random models of every kind."""

from functools import cache

import torch
from torch import Tensor, nn

from deltatune.core import registry
from deltatune.core.errors import SettingsError
from deltatune.core.method import Method
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.attach import Handle, attach
from models import inputs, tiny

FAMILIES = ("bert", "albert", "xlnet", "gpt2", "llama", "t5", "vit", "whisper")
"""Encoder, shared block, raw projections, Conv1D, grouped queries, encoder-decoder, vision, speech."""


def fits(method: Method, family: str) -> bool:
    """Whether the method has a place in this family; a clear refusal is tested elsewhere."""
    try:
        return bool(method.sites(anatomy_of(family)))
    except SettingsError:
        return False


@cache
def anatomy_of(family: str) -> Anatomy:
    """The map of a small model."""
    return Anatomy.of(model_of(family))


def model_of(family: str, noise: bool = True) -> nn.Module:
    """A small random model in eval mode; biases and norms are random too, zeros would hide errors."""
    torch.manual_seed(0)
    model = tiny(family).eval()
    if noise:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@cache
def cases() -> list[tuple[str, str]]:
    """Every (method, family) that fit together."""
    return [(name, family) for name, cls in registry.methods().items() for family in FAMILIES if fits(cls(), family)]


def attached(name: str, family: str, adapter: str = "default", seed: int = 0) -> tuple[nn.Module, Handle]:
    """A model with a fresh adapter, in eval mode."""
    model = model_of(family)
    return model, attach(model, registry.method(name), name=adapter, seed=seed)


def disturb(handle: Handle, seed: int = 2, size: float = 0.05) -> None:
    """Moves every trained tensor away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The first tensor of the output (logits, or the last hidden state)."""
    output: Tensor = model(**batch)[0]
    return output


def outputs(model: nn.Module, batch: dict[str, Tensor] | None = None) -> Tensor:
    """Outputs without gradient, on the model's standard inputs."""
    with torch.no_grad():
        return forward(model, inputs(model) if batch is None else batch)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the size of the outputs."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
