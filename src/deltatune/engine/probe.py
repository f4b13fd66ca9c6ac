"""Probe: small random inputs that a model accepts, from its config and the signature of its forward."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltatune.core.errors import AdapterError
from deltatune.engine.blocks import backbone_of, walk

ROWS, TOKENS = 3, 7
"""Sizes that rarely occur in a model, so that a dimension can be recognised."""
SIDE = 64
"""Height and width of an image where the config names none."""
SAMPLES = 4000
"""Length of a waveform: a quarter of a second."""
QUESTIONS = {"__bool__", "__contains__", "item"}
"""What meta tensors cannot answer; models ask it of padding masks, and no is a safe answer there."""


def small_pass(model: nn.Module, watching: AbstractContextManager[Any]) -> None:
    """Runs the model without its head on small random inputs, under `watching`; what it was before is restored.

    Raises `AdapterError` when it does not run.
    """
    failures = []
    backbone = backbone_of(model)  # a head may want labels, padding or end tokens
    for inputs in probe_inputs(backbone):
        try:
            with _undisturbed(model), torch.no_grad(), _unanswered(model), watching:
                backbone(**inputs) if isinstance(inputs, dict) else backbone(inputs)
            return
        except Exception as error:  # whatever a foreign forward may raise
            failures.append(error)
    if not failures:
        raise AdapterError(f"do not know what small inputs for {type(model).__name__} look like")
    raise AdapterError(
        f"a small forward pass through {type(model).__name__} failed: {type(failures[0]).__name__}: {failures[0]}"
    ) from failures[0]


def probe_inputs(model: Any) -> Iterator[dict[str, Tensor] | Tensor]:
    """Inputs to try, the main one alone first: of `transformers` models by name, of plain modules by position."""
    name = getattr(model, "main_input_name", None)
    if name is None:
        yield from _plain(model)
        return
    makers = {
        "input_ids": _tokens,
        "pixel_values": _pixels,
        "input_features": _features,
        "input_values": _waveform,
        "past_values": _series,
    }
    found = makers[name](model) if name in makers else _own(model, name)
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in _arguments(model):
        found |= {"decoder_input_ids": _tokens(model)["input_ids"]}
    if found:
        yield found
        others = {other for other in ("input_ids", "pixel_values") if other in _arguments(model)} - found.keys()
        for other in others:  # two towers that are compared with each other (CLIP)
            yield found | makers[other](model)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, untouched random generators; the training flags are restored."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _unanswered(model: nn.Module) -> Iterator[None]:
    """Lets a model without values run: new tensors have none either, and questions about values are answered no."""
    if not next(model.parameters()).is_meta:
        yield
        return
    with torch.device("meta"), No():
        yield


class No(TorchFunctionMode):
    """Answers questions about values that are not there with no."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in QUESTIONS and args[0].is_meta:
            return False
        return func(*args, **(kwargs or {}))


def _own(model: Any, name: str) -> dict[str, Tensor]:
    """The inputs that a network of its own kind names itself."""
    inputs: dict[str, Tensor] = getattr(model, "dummy_inputs", {})
    return dict(inputs) if name in inputs else {}


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _part(model: Any, name: str) -> Any:
    """The part of a config of several that describes one input, or the config itself."""
    return getattr(model.config, name, None) or model.config


def _floats(model: nn.Module, *shape: int) -> Tensor:
    dtypes = (p for p in model.parameters() if p.is_floating_point())
    first = next(dtypes)
    return torch.randn(shape, generator=_generator(), device="cpu").to(first.device, first.dtype)


def _integers(model: nn.Module, *shape: int, below: int) -> Tensor:
    values = torch.randint(min(3, below - 1), below, shape, generator=_generator(), device="cpu")
    return values.to(next(model.parameters()).device)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _tokens(model: Any) -> dict[str, Tensor]:
    vocabulary = model.config.get_text_config().vocab_size
    return {"input_ids": _integers(model, ROWS, TOKENS, below=min(vocabulary, 90))}


def _pixels(model: Any) -> dict[str, Tensor]:
    config = _part(model, "vision_config")
    size = getattr(config, "image_size", None) or SIDE
    height, width = (size, size) if isinstance(size, int) else size
    frames = [config.num_frames] if hasattr(config, "num_frames") else []
    return {"pixel_values": _floats(model, ROWS, *frames, getattr(config, "num_channels", 3), height, width)}


def _features(model: Any) -> dict[str, Tensor]:
    config = _part(model, "audio_config")
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):  # Whisper takes this length only
        return {"input_features": _floats(model, ROWS, config.num_mel_bins, 2 * config.max_source_positions)}
    names = ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins")
    width = next((getattr(config, name) for name in names if hasattr(config, name)), 80)
    return {"input_features": _floats(model, ROWS, 8 * TOKENS, width)}


def _waveform(model: Any) -> dict[str, Tensor]:
    config = model.config
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # a spectrogram (AST)
        return {"input_values": _floats(model, ROWS, config.max_length, config.num_mel_bins)}
    return {"input_values": _floats(model, ROWS, SAMPLES)}


def _series(model: Any) -> dict[str, Tensor]:
    config = model.config
    if hasattr(config, "num_input_channels"):
        return {"past_values": _floats(model, ROWS, config.context_length, config.num_input_channels)}
    if not hasattr(config, "lags_sequence"):  # values without features of time, in patches (TimesFM)
        values = _floats(model, ROWS, 2 * config.patch_length)
        return {"past_values": values, "past_values_padding": torch.zeros_like(values, dtype=torch.long)}
    past = config.context_length + max(config.lags_sequence)
    width = () if config.input_size == 1 else (config.input_size,)
    found = {
        "past_values": _floats(model, ROWS, past, *width),
        "past_time_features": _floats(model, ROWS, past, config.num_time_features),
        "past_observed_mask": torch.ones_like(_floats(model, ROWS, past, *width)),
        "future_values": _floats(model, ROWS, config.prediction_length, *width),
        "future_time_features": _floats(model, ROWS, config.prediction_length, config.num_time_features),
    }
    if config.num_static_categorical_features:
        features = config.num_static_categorical_features
        found["static_categorical_features"] = _integers(model, ROWS, features, below=min(config.cardinality))
    if config.num_static_real_features:
        found["static_real_features"] = _floats(model, ROWS, config.num_static_real_features)
    return found


def _plain(model: nn.Module) -> Iterator[Tensor]:
    """What the first layer of a plain module reads."""
    for _, module in walk(model):
        if isinstance(module, nn.Embedding):
            yield _integers(model, ROWS, TOKENS, below=module.num_embeddings)
        elif isinstance(module, nn.Linear):
            yield _floats(model, ROWS, TOKENS, module.in_features)
        elif isinstance(module, nn.Conv2d):
            yield _floats(model, ROWS, module.in_channels, SIDE, SIDE)
        elif isinstance(module, nn.Conv1d):
            yield _floats(model, ROWS, module.in_channels, SIDE)
        elif isinstance(module, nn.MultiheadAttention):
            yield _floats(model, ROWS, TOKENS, module.embed_dim)
        else:
            continue
        return
