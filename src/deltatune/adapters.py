"""Adapters on a model: attach, load, combine, for any loop."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deltatune.core import registry
from deltatune.core.method import Method
from deltatune.engine import attach as engine
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.blend import How
from deltatune.engine.blend import blend as blended
from deltatune.engine.compose import Node
from deltatune.engine.materialize import materialize as materialized
from deltatune.engine.roster import roster_of
from deltatune.engine.stored import attach_file
from deltatune.store import adapter as folders
from deltatune.store import adapterhub


class Adapter(engine.Handle):
    """One adapter on one model: switch it, train it, merge it, save it."""

    def save(
        self,
        folder: str | Path,
        *,
        base_model: str | None = None,
        facts: Mapping[str, Any] | None = None,
        task_type: str | None = None,
        layout: Literal["peft", "adapterhub"] = "peft",
    ) -> Path:
        """Writes the adapter folder, whole or not at all: peft's format where peft has the method, or AdapterHub's.

        An adapter that stands there is replaced, other files stay. Raises `AdapterError` for a merged adapter, and for
        settings that AdapterHub's format has no words for.
        """
        file = self.export(base_model=base_model, facts=facts, task_type=task_type)
        if layout == "peft":
            return folders.write(file, Path(folder))
        config: Any = self.model.config
        return adapterhub.write(
            file,
            Path(folder),
            hidden_size=config.hidden_size,
            model_type=config.model_type,
            model_class=type(self.model).__name__,
        )


Chosen = Method | str | Mapping[str, Any] | Sequence[Any]
"""A method, its name, its settings as in a YAML file, or a list of these (a mix)."""


def attach(model: nn.Module, method: Chosen, *, name: str = "default", seed: int = 0) -> Adapter:
    """Attaches a new adapter to a model, which stays the same object; its base is frozen.

    Raises `AdapterError` for a bad or taken name, `SettingsError` when the method has no place in this model.

    >>> import deltatune
    >>> layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> adapter = deltatune.attach(layer, deltatune.LoRA(r=2, target_modules="0"))
    >>> adapter.trainable_parameters
    32
    """
    chosen = method if isinstance(method, Method) else registry.method(method)
    return Adapter(model, engine.attach(model, chosen, name=name, seed=seed).name)


def load(model: nn.Module, folder: str | Path, *, name: str | None = None, trainable: bool = False) -> Adapter:
    """Attaches a saved adapter, ours or peft's, ready to serve; `trainable` to train it on.

    Raises `AdapterError` for a damaged folder, another base, or tensors that do not fit; nothing stays attached then.
    """
    file = folders.read(Path(folder))
    handle = attach_file(model, file, folders.tensors_at, name=name)
    handle.trainable(trainable)
    return Adapter(model, handle.name)


def prepare(
    model: nn.Module,
    method: Chosen,
    *,
    name: str = "default",
    seed: int = 0,
    base_dropout: bool = False,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """The model with a new adapter, ready for any loop: base without dropout unless asked for, adapter in training.

    A trainer that calls `model.train()` switches the base's dropout on again.
    """
    choose_attention(model)
    adapter = attach(model, method, name=name, seed=seed)
    model.train(base_dropout)
    adapter.train_mode(True)
    if gradient_checkpointing:
        adapter.checkpoint()
    return model


def materialize(adapter: Adapter, condition: int | torch.Tensor | None = None, *, name: str) -> Adapter:
    """The plain adapter with equal outputs: a conditional one for one task id or vector [C], a shared LoRA as a LoRA.

    Raises `AdapterError` for an adapter that is plain already and for a missing, impossible or useless condition.
    """
    return Adapter(adapter.model, materialized(adapter, condition, name=name).name)


def blend(
    model: nn.Module,
    weights: Mapping[str, float],
    *,
    name: str,
    how: How = "linear",
    rank: int | None = None,
    density: float = 1.0,
    seed: int = 0,
) -> Adapter:
    """The weighted combination of trained adapters as one new LoRA: of what they do to the weights, not of factors.

    `how` is `linear` (exact without `rank`), `svd` (the nearest of a rank), `ties`, `dare_linear` or `dare_ties`, the
    last three with the `density` of entries that stay. Raises `SettingsError` for impossible settings, `AdapterError`
    for adapters that do more than change the weights of layers.
    """
    make = partial(registry.method, "lora")
    found = blended(model, weights, make, name=name, how=how, rank=rank, density=density, seed=seed)
    return Adapter(model, found.handle.name)


def active(model: nn.Module, composition: Node) -> Any:
    """A context in which a composition of attached adapters acts: a name, `Stack`, `Average`, `Rows`, or None."""
    return roster_of(model).activated(composition)
