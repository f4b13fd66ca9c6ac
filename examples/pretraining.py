"""Pretraining of the small models of the examples: AdamW, warm-up and cosine, one seed, the loss curve kept.

`python examples/models.py NAME` trains what examples/pretrain/NAME.py describes; `pretraining.json` in the model's
folder holds seed, steps, seconds and the curve.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

WARM_UP = 0.06
POINTS = 100
"""Points of the curve that is kept: means over equal stretches of steps."""


def pretrain(
    model: PreTrainedModel,
    loss: Callable[[int, torch.Generator], Tensor],
    folder: Path,
    *,
    steps: int,
    rate: float,
    seed: int,
    weight_decay: float = 0.01,
) -> list[float]:
    """Trains the model in place and saves it with its curve; returns the curve.

    `loss(step, generator)` draws the batch of a step from the generator and returns its loss; the model is in training
    mode.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    for step in range(steps):
        value = loss(step, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(value.detach()))
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            recent = losses[-max(1, steps // 20) :]
            print(f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.4f}", flush=True)
    model.eval()
    model.save_pretrained(folder)
    curve = _means(losses)
    facts = {"seed": seed, "steps": steps, "seconds": round(time.perf_counter() - started, 1), "loss": curve}
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return curve


def _rate(step: int, steps: int) -> float:
    """Factor on the rate: linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _means(losses: list[float]) -> list[float]:
    width = max(1, len(losses) // POINTS)
    stretches = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [round(sum(stretch) / len(stretch), 5) for stretch in stretches]
