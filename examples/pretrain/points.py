"""A small point transformer over shapes made by script: it says where the hidden parts of a shape are (Point-MAE).

Bodies, tubes and ribbons of `examples/shapes.py`, none of them shown twice. Ours, so under the licence of this project.
"""

from pathlib import Path

import numpy as np
import torch
from pretraining import pretrain
from torch import Tensor

from deltatune.core.point_cloud import in_unit
from deltatune.models.point_transformer import PointTransformerConfig, PointTransformerForMasking
from shapes import shape

POINTS = 256
ROWS, STEPS, RATE, WEIGHT_DECAY, SEED = 32, 1500, 1e-3, 0.05, 0


def make(folder: Path) -> None:
    """The encoder with its decoder, which adapting leaves behind."""
    torch.manual_seed(SEED)
    model = PointTransformerForMasking(PointTransformerConfig(num_points=POINTS))
    pretrain(
        model,
        lambda step, generator: model.loss(_batch(step), generator),
        folder,
        steps=STEPS,
        rate=RATE,
        seed=SEED,
        weight_decay=WEIGHT_DECAY,
    )


def _batch(step: int) -> Tensor:
    """New shapes [ROWS, POINTS, 3]."""
    chance = np.random.default_rng((SEED, step))
    return torch.from_numpy(np.stack([in_unit(shape(chance, POINTS)) for _ in range(ROWS)]))
