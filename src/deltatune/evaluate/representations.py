"""Representations: what the last block of the base makes of rows, one vector each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltatune.core.task import Example, Task, inputs_of
from deltatune.data.batch import by_length, collate
from deltatune.engine.conditions import told
from deltatune.engine.roster import roster_of
from deltatune.engine.sublayer import first


def represented(
    model: nn.Module, task: Task, processor: Any, examples: Sequence[Example], batch_size: int = 64
) -> Tensor:
    """Mean over the tokens of the last block's output [N, D] in float32, padding left out where there is a mask.

    Raises `SettingsError` for a model without repeated blocks. The model's mode is kept.
    """
    block = model.get_submodule(roster_of(model).anatomy.main_stack.blocks[-1])
    noted: list[Tensor] = []
    hook = block.register_forward_hook(lambda module, args, output: noted.append(first(output)))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for indices in by_length([example["length"] for example in examples], batch_size):
                batch = collate(task, [examples[i] for i in indices], processor)
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                noted.clear()
                with told(model, batch):
                    model(**inputs_of(batch))
                for index, vector in zip(indices, _pooled(noted[0], batch, len(indices)), strict=True):
                    found[index] = vector
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return torch.stack(found)


def _pooled(h: Tensor, batch: dict[str, Tensor], rows: int) -> Tensor:
    """Means [B, D] of hidden states [B, T, D], or of several per row laid one after another ([B * k, T, D])."""
    h_BTD = h.float().reshape(rows, -1, h.shape[-1])
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != h_BTD.shape[:2]:
        return h_BTD.mean(1)
    weight_BT1 = mask[..., None].to(h_BTD.dtype)
    return (h_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
