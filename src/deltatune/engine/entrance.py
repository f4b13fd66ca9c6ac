"""Entrance: where embedded tokens enter a stack, and where virtual ones can be put in front of them."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.site import InputSite
from deltatune.engine.blocks import CONVOLUTION, Stack, is_norm, parent, under, upwards, walk
from deltatune.engine.depth import has_cache, is_causal
from deltatune.engine.probe import ROWS, small_pass


def entrance(model: nn.Module, stacks: Sequence[Stack]) -> InputSite:
    """The entrance of the first of these stacks that reads tokens; raises `SettingsError` when none takes more.

    Whether it does is tried: one token more goes in on small inputs.
    """
    for stack in stacks:
        found = _embeddings(model, stack, stacks)
        if found is None:
            continue
        path, backbone = found
        trial = _tried(model, path, backbone, stack)
        weight = next(model.get_submodule(path).parameters())
        return InputSite(
            path=path,
            backbone=backbone,
            exit=trial.exit,
            stack=stack.name,
            width=trial.embedded[2],
            table=_table(model, backbone),
            causal=is_causal(model, stack) and has_cache(model, stack),
            dtype=weight.dtype,
            device=weight.device,
        )
    raise SettingsError(
        f"{type(model).__name__} has no embedded tokens that virtual tokens could stand in front of",
        hint="use prefix-tuning, lora or an adapter on this model",
    )


def _embeddings(model: nn.Module, stack: Stack, stacks: Sequence[Stack]) -> tuple[str, str] | None:
    """The outermost module around the token embedding that holds no blocks, and the module that runs both."""
    for home in upwards(stack.owner):
        path = _token_embedding(model.get_submodule(home), home)
        if path is None:
            continue
        if any(under(path, other.owner) and not under(stack.owner, other.owner) for other in stacks):
            return None  # another stack's (Whisper's encoder reads no tokens, its decoder does)
        while parent(path) != home and not under(stack.owner, parent(path)):
            path = parent(path)
        if isinstance(model.get_submodule(path), CONVOLUTION):  # of [B, C, T], whose sum with positions nobody returns
            return None
        return path, home
    return None


def _token_embedding(home: Any, path: str) -> str | None:
    """The module that embeds tokens or patches inside this one: as `transformers` says, else the first table."""
    if hasattr(home, "get_input_embeddings"):
        try:
            wanted = home.get_input_embeddings()
        except NotImplementedError:
            return None
        return next((place for place, module in walk(home, path) if module is wanted), None)
    if path or any(hasattr(module, "get_input_embeddings") for module in home.modules()):
        return None
    return next((place for place, module in walk(home, path) if isinstance(module, nn.Embedding)), None)


def _table(model: nn.Module, home: str) -> str | None:
    """The weight of the token embedding, when it is a table of a vocabulary."""
    token = _token_embedding(model.get_submodule(home), home)
    return f"{token}.weight" if token is not None and isinstance(model.get_submodule(token), nn.Embedding) else None


def _tried(model: nn.Module, path: str, backbone: str, stack: Stack) -> "Trial":
    """The trial that went well: leaving behind the last norm, or else at the end of the stack."""
    owner = model.get_submodule(stack.owner)
    norms = [f"{stack.owner}.{name}".lstrip(".") for name, child in owner.named_children() if is_norm(child)]
    failure: AdapterError | None = None
    for exits in (norms, []):  # some backbones reshape behind their last norm to the tokens they were given, some not
        trial = Trial(model, path, backbone, stack, exits)
        try:
            small_pass(model, trial)
        except AdapterError as error:
            if not trial.begun:
                raise
            failure = failure or error
            continue
        if not trial.passed:
            raise SettingsError(f"{type(model).__name__} does not read its tokens as [rows, tokens, width]")
        return trial
    assert failure is not None
    raise SettingsError(
        f"{type(model).__name__} takes no tokens besides its own: {failure.what}",
        hint="use prefix-tuning, lora or an adapter on this model",
    ) from failure


class Trial(AbstractContextManager["Trial"]):
    """Puts one more token in front and takes it out again while the model runs on small inputs."""

    def __init__(self, model: nn.Module, path: str, backbone: str, stack: Stack, exits: Sequence[str]) -> None:
        self.embeddings = model.get_submodule(path)
        self.backbone = model.get_submodule(backbone)
        self.first = model.get_submodule(stack.blocks[0])
        self.norms = {place: model.get_submodule(place) for place in exits}
        self.owner = stack.owner
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Trial":
        self.begun = False
        self.embedded: tuple[int, ...] = ()
        """Shape of what the embeddings returned."""
        self.entering: tuple[int, ...] = ()
        """Shape of what entered the first block."""
        self.exit = self.owner
        """The last of the exits that runs behind the blocks; the owner where there is none."""
        self.handles = [
            self.backbone.register_forward_pre_hook(self._mask, with_kwargs=True),
            self.embeddings.register_forward_hook(self._lengthen),
            self.first.register_forward_pre_hook(self._enter, with_kwargs=True),
            *(norm.register_forward_hook(self._leave(path)) for path, norm in self.norms.items()),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def passed(self) -> bool:
        """Whether the token came in front of the others of its row, and reached the first block."""
        if len(self.embedded) != 3 or len(self.entering) != 3:
            return False
        return self.embedded[0] == ROWS and self.entering[1] == self.embedded[1] + 1

    def _mask(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """A mask for one token more, as it will be given in training."""
        tokens = kwargs.get("input_ids")
        if isinstance(tokens, Tensor) and "attention_mask" in inspect.signature(module.forward).parameters:
            self.begun = True
            ones = tokens.new_ones(tokens.shape[0], tokens.shape[1] + 1)
            return args, {**kwargs, "attention_mask": ones}
        return None

    def _lengthen(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.embedded or not isinstance(output, Tensor):
            return None
        self.begun, self.embedded = True, tuple(output.shape)
        return torch.cat([output[:, :1], output], 1)

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        entering = args[0] if args else next(iter(kwargs.values()))
        self.entering = self.entering or tuple(entering.shape)

    def _leave(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Any:
            if not self.entering:
                return None
            self.exit = path
            return output[:, 1:]

        return hook
