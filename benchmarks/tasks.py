"""Every task with six methods, each of another kind: does the loss fall, or what is the method refused with.

    OMP_NUM_THREADS=1 python benchmarks/tasks.py [--tasks chat ...] [--methods lora ia3] [--table]

Each task runs on the model and the data of its example (examples/<task>.yaml): 16 rows spread over the training part,
12 steps of 4 rows, AdamW at the method's default rate, one step of warm-up and a linear decay, one seed. The loss is
that of the same 16 rows, before and after: it shows that a method acts and learns in this model, not how well. What was
run is kept in docs/results/tasks.json and not run again unless its task is named; `--table` only writes the page.
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pages import keep, known, put
from transformers import get_scheduler

import deltatune
from deltatune.core import registry
from deltatune.core.config import RunSettings, read_yaml
from deltatune.core.errors import DeltatuneError
from deltatune.core.task import Batch, Loaded, Task, inputs_of
from deltatune.data.batch import collate
from deltatune.data.load import load
from deltatune.data.usable import with_reasons
from deltatune.engine.anatomy import Anatomy
from deltatune.engine.conditions import told
from deltatune.engine.precision import base_dtype

EXAMPLES = Path("examples")
KEPT, PAGE = Path("docs/results/tasks.json"), Path("docs/results/tasks.md")
METHODS = ("lora", "ia3", "adapter", "prefix", "prompt", "bitfit")
ROWS, BATCH, STEPS, WARM_UP, SEED = 16, 4, 12, 1, 0
Results = dict[str, dict[str, dict[str, Any]]]
"""Task -> method -> what was found: `before` and `after`, or `refused`."""


@dataclass(frozen=True, slots=True)
class Work:
    """A task fitted to its example's data, and the rows that are trained on."""

    settings: RunSettings
    task: Task
    rows: list[Any]

    def load(self) -> Loaded:
        """The example's model, as new."""
        torch.manual_seed(SEED)
        return self.task.load(self.settings.model, base_dtype(self.settings.training.bf16))


def main() -> None:
    """Runs what is missing or named, writes the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tasks", nargs="*", choices=examples(), default=[])
    options.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    options.add_argument("--table", action="store_true")
    given = options.parse_args()
    found: Results = known(KEPT)
    for name in () if given.table else given.tasks or examples():
        wanted = [method for method in given.methods if given.tasks or method not in found.get(name, {})]
        missing = not_made(name)
        if missing:
            print(f"{name}: {', '.join(missing)} not made yet: see the first lines of examples/{name}.yaml", flush=True)
        elif wanted:
            work = read(name)
            for method in wanted:
                found.setdefault(name, {})[method] = cell(work, method)
                print(f"{name}, {method}: {found[name][method]}", flush=True)
                keep(KEPT, found)
    write(found)


def examples() -> list[str]:
    """Names of the examples: those of the tasks."""
    return sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


def settings_of(name: str) -> RunSettings:
    """The settings of an example."""
    return RunSettings.parse(read_yaml(EXAMPLES / f"{name}.yaml"), "")


def not_made(name: str) -> list[str]:
    """Model and data of an example that are not there."""
    settings = settings_of(name)
    sources = (settings.model, settings.data.train, settings.data.validation, settings.data.test)
    return [source for source in sources if source is not None and not Path(source).exists()]


def read(name: str) -> Work:
    """The task, fitted to all training rows, and those of them that are used."""
    settings = settings_of(name)
    splits = load(settings.data, registry.task(settings.task), Path.cwd())
    step = max(1, len(splits.train) // (2 * ROWS))
    return Work(settings, splits.task, splits.train[::step][: 2 * ROWS])


def cell(work: Work, name: str) -> dict[str, Any]:
    """One method: losses before and after and what it took, or the reason why it has no place here."""
    started = time.process_time()
    try:
        found = trained(work, name)
    except DeltatuneError as error:
        return {"refused": str(error)}
    return {**found, "cpu_seconds": round(time.process_time() - started, 1)}


def trained(work: Work, name: str) -> dict[str, Any]:
    """A few steps on a model with a new adapter; what the checkpoint lacks and the head train along, as in a run."""
    loaded, task = work.load(), work.task
    heads = Anatomy.of(loaded.model).heads if task.trains_head else ()
    method = deltatune.method(name, modules_to_save=tuple(dict.fromkeys((*loaded.new, *heads))) or None)
    adapter = deltatune.Adapter(deltatune.prepare(loaded.model, method, seed=SEED), "default")
    examples, reasons = with_reasons(task, work.rows, loaded.processor)
    usable = [example for example, reason in zip(examples, reasons, strict=True) if reason is None][:ROWS]
    packed = task.pack(usable, loaded.model, loaded.processor)
    parts = [packed[start : start + BATCH] for start in range(0, len(packed), BATCH)]
    batches = [collate(task, part, loaded.processor) for part in parts]
    before = loss_of(adapter, task, batches)
    adapter.expect_steps(STEPS)
    optimizer = torch.optim.AdamW(adapter.parameter_groups())
    schedule = get_scheduler("linear", optimizer, WARM_UP, STEPS)
    for step in range(STEPS):
        batch = batches[step % len(batches)]
        with told(adapter.model, batch):
            loss = task.loss(adapter.model(**inputs_of(batch)), batch)
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    after = loss_of(adapter, task, batches)
    return {"before": round(before, 4), "after": round(after, 4), "trained": adapter.trainable_parameters}


@torch.no_grad()
def loss_of(adapter: deltatune.Adapter, task: Task, batches: list[Batch]) -> float:
    """Mean loss over the supervised units of the batches, nothing being dropped."""
    adapter.train_mode(False)
    total, units = 0.0, 0
    for batch in batches:
        with told(adapter.model, batch):
            total += float(task.loss(adapter.model(**inputs_of(batch)), batch)) * task.weight(batch)
        units += task.weight(batch)
    adapter.train_mode(True)
    return total / units


def write(found: Results) -> None:
    """The page: the table, the reasons of what is refused, and what was not made here."""
    lines = ["| task | " + " | ".join(METHODS) + " |", "|---|" + "---|" * len(METHODS)]
    lines += [f"| {name} | " + " | ".join(shown(found[name].get(m)) for m in METHODS) + " |" for name in sorted(found)]
    cells = [(name, method, one) for name, own in sorted(found.items()) for method, one in own.items()]
    refused = [(name, method, one["refused"]) for name, method, one in cells if "refused" in one]
    falls = sum("refused" not in one and one["after"] < one["before"] for _, _, one in cells)
    lines += ["", f"The loss falls in {falls} of the {len(cells) - len(refused)} cells that are not refused."]
    if refused:
        lines += ["", "Refused:", "", *(f"- {name}, {method}: {reason}" for name, method, reason in refused)]
    absent = [name for name in examples() if name not in found]
    if absent:
        lines += ["", f"Not run, inputs not made: {', '.join(absent)}."]
    put(PAGE, lines)


def shown(one: dict[str, Any] | None) -> str:
    """A cell of the table."""
    if one is None:
        return "not run"
    if "refused" in one:
        return "refused"
    places = max(0, 2 - math.floor(math.log10(max(one["before"], 1e-9))))
    return f"{one['before']:.{places}f} to {one['after']:.{places}f}"


if __name__ == "__main__":
    main()
