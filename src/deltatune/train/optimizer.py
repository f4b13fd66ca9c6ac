"""AdamW on the trained tensors, and the schedule of its learning rate."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from deltatune.core.config import TrainingSettings


def make_optimizer(parameters: Mapping[str, nn.Parameter], rate: float, decay: float) -> torch.optim.AdamW:
    """Weight decay on matrices; vectors (biases, norms, scales) have values other than zero to be near to."""
    matrices = [p for p in parameters.values() if p.dim() >= 2]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, total: int) -> Any:
    """Warm-up to the peak, then the chosen shape down to zero at the last step."""
    warmup = settings.warmup_steps * total if settings.warmup_steps < 1 else settings.warmup_steps
    return get_scheduler(settings.lr_scheduler_type, optimizer, num_warmup_steps=int(warmup), num_training_steps=total)
