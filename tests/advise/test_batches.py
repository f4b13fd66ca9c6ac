"""Batches: the steps that are forecast are those of the plan of a training."""

import pytest

from deltatune.advise.batches import of_training, steps_of
from deltatune.core.config import TrainingSettings
from deltatune.train.plan import Plan


@pytest.mark.parametrize("epochs", [0.2, 0.5, 1, 1.4, 2.5, 3])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_steps_are_those_of_the_plan(epochs, accumulation):
    settings = TrainingSettings(
        num_train_epochs=epochs, gradient_accumulation_steps=accumulation, per_device_train_batch_size=4
    )
    for rows in (1, 27, 28, 29):
        examples = [{"length": 1 + row % 5} for row in range(rows)]
        assert steps_of(of_training(examples, settings).count, settings) == Plan.of(examples, settings).total
