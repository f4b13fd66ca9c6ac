"""Ground: a base and the rows of a run, and how its adapter comes onto the base."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from deltatune.adapters import Adapter, attach, load
from deltatune.core.method import Method
from deltatune.core.task import Example, Loaded, Task
from deltatune.data.load import Splits
from deltatune.engine.attention_by_shape import choose_attention
from deltatune.engine.roster import roster_of
from deltatune.evaluate.forgetting import Known


@dataclass(eq=False)
class Ground:
    """What runs on the same rows and base have in common."""

    splits: Splits
    examples: dict[str, list[Example]]
    """Rows of every part as the model reads them."""
    loaded: Loaded
    known: Known | None = None
    """What the base's forgetting is measured on, where it is."""

    @cached_property
    def baselines(self) -> dict[str, Any]:
        """What simple answers and simple models reach on the test rows."""
        task, train, test = self.splits.task, self.splits.train, self.splits.test
        name, metrics = task.baseline(train, test)
        return {"baseline": {"name": name, **metrics}, "baselines": task.baselines(train, test)}


def attached(ground: Ground, chosen: Method, seed: int, name: str = "default") -> Adapter:
    """The adapter with what the checkpoint lacks, which must be trained, and the head where it belongs to the task."""
    loaded, task = ground.loaded, ground.splits.task
    choose_attention(loaded.model)
    chosen = _fitting(chosen, loaded, task)
    names = [_read(loaded.model, source) if Path(source).is_dir() else source for source in chosen.reads()]
    chosen = chosen.reading(names) if names else chosen
    heads = roster_of(loaded.model).anatomy.heads if task.trains_head else ()
    whole = chosen.modules_to_save or tuple(dict.fromkeys((*loaded.new, *heads)))
    return attach(loaded.model, chosen.model_copy(update={"modules_to_save": whole or None}), name=name, seed=seed)


def _read(model: nn.Module, source: str) -> str:
    """Attaches the adapter of a run or adapter folder that another one works on, named after the folder."""
    path = Path(source)
    folder = path / "adapter" if (path / "adapter").is_dir() else path
    word = (folder.parent if folder.name == "adapter" else folder).resolve().name.lower()
    name = re.sub("[^a-z0-9_-]+", "-", word).strip("-_")[:56] or "read"
    taken = roster_of(model).adapters
    name = next(each for each in (name, *(f"{name}-{n}" for n in range(2, 1000))) if each not in taken)
    return load(model, folder, name=name).name


def _fitting(chosen: Method, loaded: Loaded, task: Task) -> Method:
    """The method for the tasks of the rows, with its texts as token ids where there is a tokenizer."""
    if task.many is not None:
        chosen = chosen.for_tasks(len(task.many.names))
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        return chosen
    return chosen.worded(lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), task.label_names)
