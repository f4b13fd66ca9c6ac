"""Pitfalls and rules of thumb: what is said of which rows."""

from dataclasses import replace

from deltatune.advise import pitfalls
from deltatune.advise.facts import Facts
from deltatune.advise.neighbours import agreement
from deltatune.core import registry

SOUND = Facts(
    task="text-classification",
    rows={"train": 4000, "validation": 500, "test": 500},
    classes=2,
    smallest_class=1900,
    largest_share=0.52,
    length={"median": 20, "p95": 40, "max": 60},
    truncated=0.0,
    pieces_per_word=1.3,
    unknown=0.0,
    other_letters=0.0,
    neighbours=(0.6, 0.52, 200),
)


def test_sound_rows_are_to_be_trained_on():
    assert pitfalls.verdict(SOUND)[0] == "fine-tune"


def test_one_label_few_rows_and_answers_that_can_be_looked_up_are_not():
    for change in (
        {"classes": 1, "largest_share": 1.0},
        {"rows": {"train": 30, "validation": 4, "test": 4}},
        {"neighbours": (0.995, 0.5, 200)},
    ):
        verdict, why = pitfalls.verdict(replace(SOUND, **change))
        assert verdict == "do not fine-tune" and why
    assert pitfalls.verdict(replace(SOUND, neighbours=(0.96, 0.5, 200)))[0] == "linear probe"
    assert pitfalls.verdict(replace(SOUND, neighbours=(0.97, 0.98, 200)))[0] == "fine-tune"  # the majority does it too


def test_a_rate_far_from_the_method_s_own_is_warned_of():
    lora = registry.method("lora")
    assert pitfalls._rate(lora, lora.learning_rate) == pitfalls._rate(lora, None) == []
    (low,) = pitfalls._rate(lora, 2e-5)
    assert "1/50 of" in low and "0.001" in low
    (high,) = pitfalls._rate(registry.method("full"), 1e-3)
    assert "20 times" in high


def test_a_base_that_does_not_know_the_language_is_warned_of():
    assert pitfalls._base_model(SOUND) == []
    said = pitfalls._base_model(replace(SOUND, pieces_per_word=4.2, other_letters=0.9, unknown=0.1, truncated=0.3))
    assert ["cut at" in said[0], "4.2 pieces" in said[1], "language" in said[1], "10.0%" in said[2]] == [True] * 4


def test_neighbours_answer_what_words_decide_and_not_what_they_do_not():
    moods = {"good": "warm", "bad": "dull"}
    labels = ["good" if index % 3 else "bad" for index in range(200)]
    rows = [{"text": f"{moods[label]} film {index % 11}", "label": label} for index, label in enumerate(labels)]
    task = registry.task("text-classification").fit(rows)
    right, usual, asked = agreement(task, rows[:150], rows[150:])
    assert asked == 50 and right == 1 and 0.6 < usual < 0.7
    mixed = [{**row, "label": str(index // 3 % 2)} for index, row in enumerate(rows)]
    right, _, _ = agreement(task.fit(mixed), mixed[:150], mixed[150:])
    assert right < 0.75
