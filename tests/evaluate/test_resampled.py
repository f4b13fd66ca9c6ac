"""Draws of the bootstrap: what a task makes once for all of them is the score of each."""

import numpy as np
import pytest

from deltatune.core.registry import task
from deltatune.evaluate.score import interval_of

CHANCE = np.random.default_rng(3)
COUNT = 40
NAMES = ["a", "b", "c"]


def single(labels, rare=0.4):
    """Rows of one class each, and chances for all."""
    truth = [
        labels[int(value > rare)] if len(labels) == 2 else str(CHANCE.choice(labels)) for value in CHANCE.random(COUNT)
    ]
    chances = CHANCE.dirichlet(np.ones(len(labels)), COUNT).round(1)  # with ties
    answers = [
        {"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, row.tolist(), strict=True))}
        for row in chances
    ]
    return [{"label": label} for label in truth], answers


def several():
    """Rows of marks, some not known."""
    rows = [{"label": {name: CHANCE.choice(["1", "0", ""]) for name in NAMES}} for _ in range(COUNT)]
    chances = CHANCE.random((COUNT, 3)).round(1).tolist()
    answers = [
        {
            "labels": [name for name, own in zip(NAMES, row, strict=True) if own >= 0.5],
            "probabilities": dict(zip(NAMES, row, strict=True)),
        }
        for row in chances
    ]
    return rows, answers


def numbers():
    values = CHANCE.normal(size=(COUNT, 2)).round(1).tolist()
    return [{"label": str(wanted)} for wanted, _ in values], [{"value": value} for _, value in values]


def spans():
    """Sentences of four words; the answers are the tags of other sentences."""
    rows = [{"tokens": list("wxyz"), "label": CHANCE.choice(["B-P", "O", "B-Q"], 4).tolist()} for _ in range(COUNT)]
    answers = []
    for row in [*rows[::2], *rows[::2]]:
        found = [(place, tag[2:]) for place, tag in enumerate(row["label"]) if tag != "O"]
        answers.append(
            {"spans": [{"label": kind, "words": [n, n + 1], "score": 1.0} for n, kind in found], "tags": row["label"]}
        )
    return rows, answers


def texts():
    words = np.array(["one", "two", "three", "four"])
    pairs = [[" ".join(CHANCE.choice(words, 5)) for _ in "ab"] for _ in range(COUNT)]
    return [{"source": "x", "target": a} for a, _ in pairs], [{"translation": b, "finished": True} for _, b in pairs]


CASES = {
    "several labels": (task("text-classification", problem="multi-label", labels=NAMES), *several()),
    "numbers": (task("text-classification", problem="regression", labels=[]), *numbers()),
    "molecules": (task("molecule-property", problem="single", labels=["no", "yes"]), *single(["no", "yes"])),
    "molecules of three kinds": (task("molecule-property", problem="single", labels=NAMES), *single(NAMES)),
    "molecules, a rare class": (
        task("molecule-property", problem="single", labels=["no", "yes"]),
        *single(["no", "yes"], 0.97),
    ),
    "several properties": (task("molecule-property", problem="multi-label", labels=NAMES), *several()),
    "solubility": (task("molecule-property", problem="regression", labels=[]), *numbers()),
    "a table": (task("tabular-classification", problem="single", labels=["a", "b"], positive="a"), *single(["a", "b"])),
    "spans": (task("token-classification", labels=["O", "B-P", "I-P", "B-Q", "I-Q"]), *spans()),
    "translations": (task("translation"), *texts()),
    "items": (task("recommendation"), [{}] * COUNT, [{"rank": n or None} for n in range(COUNT)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_metric_of_a_draw_is_its_score(name):
    given, rows, answers = CASES[name]
    metric_of = given.resampled(answers, rows)
    for seed in range(8):
        chosen = np.random.default_rng(seed).integers(0, COUNT, COUNT)
        scored = given.score([answers[i] for i in chosen], [rows[i] for i in chosen])
        assert metric_of(chosen) == scored.get(given.metric)


def test_draws_without_the_metric_are_left_out():
    given, rows, answers = CASES["molecules, a rare class"]
    assert any(given.resampled(answers, rows)(np.full(COUNT, place)) is None for place in range(COUNT))
    low, high = interval_of(given, answers, rows, {})
    assert 0 <= low < high <= 1
