"""AdamW on the trained tensors, and the schedule of its learning rate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from deltatune.core.config import TrainingSettings
from deltatune.engine.handle import Handle


def make_optimizer(
    handle: Handle, settings: TrainingSettings, rate: float, others: Sequence[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Each tensor of the adapter at its own pace; `others` that train along but are not saved with it at the rate.

    Raises `SettingsError` when `loraplus_lr_ratio` has no effect.
    """
    groups = handle.parameter_groups(rate, settings.weight_decay, loraplus_lr_ratio=settings.loraplus_lr_ratio)
    if others:
        groups.append({"params": list(others), "lr": rate, "weight_decay": settings.weight_decay})
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, settings: TrainingSettings, total: int) -> Any:
    """Warm-up to the peak, then the chosen shape down to zero at the last step."""
    warmup = settings.warmup_steps * total if settings.warmup_steps < 1 else settings.warmup_steps
    return get_scheduler(settings.lr_scheduler_type, optimizer, num_warmup_steps=int(warmup), num_training_steps=total)


def current_rate(schedule: Any, rate: float) -> float:
    """The rate of a tensor without a pace of its own, between the peak and zero."""
    return float(rate * schedule.lr_lambdas[0](schedule.last_epoch))
