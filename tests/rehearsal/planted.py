"""Small configs that a rehearsal passes, to plant faults in: reviews, a table, a conversation."""

import csv
import json
import random

import yaml

import deltatune
from talk import folder
from tasks.test_tabular_classification import base, table
from words import model_folder, reviews

TRAINING = {"per_device_train_batch_size": 16, "num_train_epochs": 10, "bf16": False}


def run(place, **changes):
    """The lines of a rehearsal by name; `changes` are dotted settings with `__` for the dots."""
    accept = changes.pop("accept", ())
    dotted = {name.replace("__", "."): json.dumps(value) for name, value in changes.items()}
    done = deltatune.rehearse(place / "run.yaml", dotted, budget_s=4, accept=accept)
    return {line.name: line for line in done.lines}


def wrong(lines):
    """Names of what failed, and of what was warned of."""
    return [name for name, line in lines.items() if line.status == "fail"]


def write(place, rows, **config):
    """The rows and the config in a folder."""
    with (place / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = {"train": str(place / "rows.csv"), **config.pop("data", {})}
    values = {"model": str(place / "model"), "data": data, "training": TRAINING, "output_dir": str(place / "run")}
    (place / "run.yaml").write_text(yaml.safe_dump({**values, **config}))
    return place


def texts(place, rows=None, **config):
    """Reviews whose label one word tells."""
    model_folder(place / "model", spread=0.2)
    chosen = {"task": "text-classification", "method": {"type": "lora", "r": 4}, **config}
    return write(place, reviews(400) if rows is None else rows, **chosen)


def cells(place, rows=None, **config):
    """A table in which amount and card tell the label, nearly."""
    base(place / "model")
    chosen = {"task": "tabular-classification", "method": {"type": "lora", "r": 4}, **config}
    columns = {"columns": {"label": "is"}} if rows is None or "is" in rows[0] else {}
    return write(place, table(400) if rows is None else rows, data=columns, **chosen)


def talks(place, rows=None, template=None, **config):
    """Questions and answers for a random language model."""
    cut = {} if template is None else {"template": template}
    folder(place / "model", "llama", **cut)
    chance = random.Random(0)
    said = rows or [
        {"question": f"what is {a} and {b}?", "answer": f"it is {a + b}"}
        for a, b in {(chance.randint(0, 99), chance.randint(0, 99)) for _ in range(90)}
    ]
    task = {"type": "chat", "max_length": 100, "max_new_tokens": 4, "generate_rows": 1, **config.pop("task", {})}
    chosen = {"task": task, "method": {"type": "lora", "r": 4, "target_modules": "all-linear"}, **config}
    return write(place, said, **chosen)
