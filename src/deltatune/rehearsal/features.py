"""Features: what the frozen base makes of a row: the mean of its last hidden states, padding left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltatune.core.task import Batch, Example, inputs_of
from deltatune.data.batch import by_length
from deltatune.engine.conditions import told
from deltatune.rehearsal.stage import Stage
from deltatune.train.teacher import asleep

MASK = "attention_mask"


def features_of(stage: Stage, examples: Sequence[Example]) -> np.ndarray:
    """Vectors [rows, D] in the order of the examples."""
    size = stage.settings.training.per_device_eval_batch_size
    found: dict[int, np.ndarray] = {}
    kept: list[Tensor] = []
    with asleep(stage.model), torch.no_grad(), _listening(_last_block(stage), kept.append):
        for indices in by_length([example["length"] for example in examples], size):
            batch = stage.batch([examples[index] for index in indices])
            kept.clear()
            with stage.adapter.roster.activated(None), told(stage.model, batch):
                stage.model(**inputs_of(batch))
            pooled_BD = _pooled(kept[-1].float(), batch, stage.adapter.roster.batch_dim)
            found |= dict(zip(indices, pooled_BD.cpu().numpy(), strict=True))
    return np.stack([found[index] for index in range(len(examples))])


def has_features(stage: Stage) -> bool:
    """Whether the model has blocks to listen to."""
    return bool(stage.adapter.roster.anatomy.stacks)


def _last_block(stage: Stage) -> nn.Module:
    return stage.model.get_submodule(stage.adapter.roster.anatomy.main_stack.blocks[-1])


@contextmanager
def _listening(module: nn.Module, hear: Callable[[Tensor], Any]) -> Iterator[None]:
    hook = module.register_forward_hook(lambda _, __, output: hear(output if isinstance(output, Tensor) else output[0]))
    try:
        yield
    finally:
        hook.remove()


def _pooled(hidden: Tensor, batch: Batch, batch_dim: int) -> Tensor:
    """Mean over positions [B, D]; images of channels first are averaged over their sides."""
    if hidden.dim() == 2:
        return hidden
    if batch_dim == 1:
        hidden = hidden.transpose(0, 1)
    if hidden.dim() > 3:
        return hidden.flatten(2).mean(-1) if hidden.shape[1] > hidden.shape[-1] else hidden.flatten(1, -2).mean(1)
    mask = batch.get(MASK)
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    weights_BT1 = mask.to(hidden.dtype)[..., None]
    return (hidden * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
