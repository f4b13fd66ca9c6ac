"""Planted faults: a rehearsal finds each and names what would mend it, and passes the same rows without it."""

import random

import pytest
from transformers import BertForSequenceClassification

from deltatune.core.errors import SettingsError
from deltatune.rehearsal import stage as staging
from rehearsal import planted
from rehearsal.planted import cells, run, talks, texts, wrong
from talk import CHATML, OTHERWISE
from tasks.test_tabular_classification import table
from words import csv_file, reviews

NAMES = [a + b + c for a in "bdfk" for b in "aeiou" for c in "lnr"]
UNTRAINED = ("first loss",)
"""The conversations' model is a random one."""


@pytest.mark.parametrize(("make", "accept"), [(texts, ()), (cells, ()), (talks, UNTRAINED)])
def test_rows_without_a_fault_pass(tmp_path, make, accept):
    place = make(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    lines = run(place, accept=accept)
    assert wrong(lines) == []
    assert {"rows", "model", "longest batch", "learning rate", "save and load", "kill and resume", "merge"} <= {*lines}
    assert "equal to the bit" in lines["save and load"].seen and "equal to the bit" in lines["kill and resume"].seen
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def found(lines, name, *words, status="fail"):
    """The line is there with this status, and these words are in what it says."""
    assert lines[name].status == status, {n: (line.status, line.seen) for n, line in lines.items()}
    said = f"{lines[name].seen} {lines[name].fix}"
    assert all(word in said for word in words), said
    assert lines[name].fix


# -- rows


def test_empty_rows(tmp_path):
    rows = reviews(300)
    empty = [{"text": " ", "label": "good"}] * 9
    found(run(texts(tmp_path, rows + empty)), "rows", "text is empty", "mend the file")


def test_rows_are_counted_as_they_were_read(tmp_path):
    """Not as they are left by max_rows."""
    rows = [*reviews(400), {"text": "", "label": "good"}]
    assert "; 1 of 401 rows rejected" in run(texts(tmp_path, rows), data__max_rows=100)["rows"].seen


def test_one_class(tmp_path):
    rows = [row for row in reviews(300) if row["label"] == "good"]
    found(run(texts(tmp_path, rows)), "rows", "only one class", "two are needed")


def test_text_and_label_swapped(tmp_path):
    lines = run(texts(tmp_path), data__columns={"text": "label", "label": "text"})
    found(lines, "rows", "same input")
    rows = [{"text": f"{row['label']} {number}", "label": row["text"]} for number, row in enumerate(reviews(300))]
    found(run(texts(tmp_path, rows)), "rows", "different labels", "right column")


def test_training_rows_in_the_test(tmp_path):
    place = texts(tmp_path)
    planted.write(place, reviews(40), task="text-classification")
    (place / "rows.csv").rename(place / "test.csv")
    texts(tmp_path)
    found(run(place, data__test=str(place / "test.csv")), "rows", "stand in the training rows too", "take them out")


def test_rows_of_the_test_that_nearly_are_training_rows(tmp_path):
    rows = [{"text": f"{row['text']} was very quite the plot of a film", "label": row["label"]} for row in reviews(150)]
    twins = [{"text": f"{row['text']} again", "label": row["label"]} for row in rows]
    found(run(texts(tmp_path, rows + twins)), "splits", "nearly repeat", "group_column")


def test_one_text_with_two_labels(tmp_path):
    rows = reviews(300)
    other = [{**row, "label": "bad" if row["label"] == "good" else "good"} for row in rows[:30]]
    found(run(texts(tmp_path, rows + other)), "rows", "same input with another label", "mend the file")


def test_one_row_of_a_table_with_two_labels(tmp_path):
    rows = table(300)
    other = [{**row, "is": "fine" if row["is"] == "fraud" else "fraud"} for row in rows]
    found(run(cells(tmp_path, rows + other)), "contradictions", "has another answer", "one answer for each input")


def test_numbers_that_are_not_finite(tmp_path):
    rows = [{"text": row["text"], "label": "nan" if n % 9 == 0 else n / 7} for n, row in enumerate(reviews(300))]
    found(run(texts(tmp_path, rows), task__problem="regression"), "rows", "label is not a number", "mend the file")


def test_numbers_that_are_all_the_same(tmp_path):
    rows = [{**row, "label": 0.5} for row in reviews(120)]
    found(run(texts(tmp_path, rows)), "answers", "0.5", "right column")


def test_nearly_all_rows_of_one_class(tmp_path):
    rows = [row for row in reviews(600) if row["label"] == "good"]
    rare = [row for row in reviews(600) if row["label"] == "bad"][:12]
    found(run(texts(tmp_path, rows + rare)), "classes", "always saying 'good'", "macro_f1", status="warn")


# -- answers


def test_the_label_stands_in_the_text(tmp_path):
    rows = [{**row, "text": f"{row['text']} label: {row['label']}"} for row in reviews(300)]
    found(run(texts(tmp_path, rows)), "leaks", "tells", "take it out of the input")


def test_a_column_is_the_label(tmp_path):
    rows = [{**row, "closed": "by court" if row["is"] == "fraud" else "no"} for row in table(300)]
    found(run(cells(tmp_path, rows)), "leaks", "'closed'", "take it out of the input")


def test_a_column_is_the_number_to_predict(tmp_path):
    chance = random.Random(0)
    rows = [{"size": chance.random(), "label": chance.random()} for _ in range(300)]
    rows = [{**row, "tax": 3 * row["label"] + 1} for row in rows]
    found(run(cells(tmp_path, rows)), "leaks", "'tax'", "take it out of the input")


def test_shuffled_labels(tmp_path):
    rows = reviews(400)
    labels = [row["label"] for row in rows]
    random.Random(1).shuffle(labels)
    shuffled = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    found(run(texts(tmp_path, shuffled)), "signal", "no better than guessing", "shuffled")


def test_few_groups_are_no_fault_of_the_labels(tmp_path):
    rows = [{**row, "site": number % 6} for number, row in enumerate(reviews(400))]
    place = texts(tmp_path, rows)
    lines = run(place, data__group_column="site")
    assert lines["signal"].status == "skip" and "groups" in lines["signal"].seen and wrong(lines) == []


# -- what the model reads


def test_everything_is_cut_off(tmp_path):
    found(run(texts(tmp_path), task__max_length=5), "lengths", "cut off", "max_length")


def test_another_language(tmp_path):
    rows = [{**row, "text": f"{row['text']} {' '.join(f'слово{n}' for n in range(9))}"} for row in reviews(300)]
    found(run(texts(tmp_path, rows)), "tokens", "unknown to the tokenizer", "language")


def test_special_tokens_in_the_texts(tmp_path):
    rows = [{**row, "text": f"[CLS] {row['text']} [SEP]"} for row in reviews(300)]
    found(run(texts(tmp_path, rows)), "special tokens", "begin twice", "the tokenizer adds it")
    rows = [{**row, "text": f"{row['text']} [SEP] the"} for row in reviews(300)]
    found(run(texts(tmp_path, rows)), "special tokens", "hold special tokens as text", "task.chat_template")


def test_all_labels_masked(tmp_path):
    rows = [{"question": f"{name} " * 40, "answer": name} for name in NAMES]
    found(run(talks(tmp_path, rows)), "encoded rows", "nothing is left to learn", "--show-mask")


def test_a_template_that_writes_answers_otherwise_than_it_asks(tmp_path):
    found(run(talks(tmp_path, template=OTHERWISE)), "encoded rows", "the chat template", "--show-mask")


def test_conversations_that_hold_the_template_already(tmp_path):
    rows = [{"question": f"<|im_start|>user\nwho is {name}?<|im_end|>", "answer": name} for name in NAMES]
    found(run(talks(tmp_path, rows)), "encoded rows", "control token", "--show-mask")


def test_answers_that_lose_their_end(tmp_path):
    rows = [{"question": f"{name}?", "answer": f"it is {name} " * 30} for name in NAMES]
    lines = run(talks(tmp_path, rows), accept=UNTRAINED)
    found(lines, "answer ends", "would not learn to stop", "max_length")


def test_padding_that_is_the_end_token_does_not_keep_the_end_from_being_learned(tmp_path):
    lines = run(talks(tmp_path, template=CHATML), accept=UNTRAINED)
    assert lines["special tokens"].details["pad_is_end"] and lines["answer ends"].status == "pass"


def test_a_language_model_that_knows_nothing_of_the_texts(tmp_path):
    found(run(talks(tmp_path)), "first loss", "equally likely", "is it the right model")


# -- settings


def test_a_rate_far_too_high(tmp_path):
    found(
        run(texts(tmp_path), training__learning_rate=50.0), "learning rate", "far too high", "training.learning_rate: "
    )


def test_a_rate_far_too_low(tmp_path):
    found(
        run(texts(tmp_path), training__learning_rate=1e-9),
        "learning rate",
        "change nothing",
        "training.learning_rate: ",
    )


def test_no_rank(tmp_path):
    with pytest.raises(SettingsError, match="r"):
        run(texts(tmp_path), method__r=0)


def test_an_adapter_too_large_for_the_rows(tmp_path):
    model = planted.model_folder(tmp_path / "wide", width=256)
    lines = run(texts(tmp_path, reviews(60)), model=str(model), method__r=128, method__target_modules="all-linear")
    found(lines, "adapter size", "trained values for 48", "smaller rank", status="warn")


def test_a_head_that_does_not_train(tmp_path, monkeypatch):
    def frozen(ground, method, seed, real=staging.attached):
        adapter = real(ground, method, seed)
        for name, parameter in adapter.named_parameters().items():
            parameter.requires_grad_("classifier" not in name)
        return adapter

    monkeypatch.setattr(staging, "attached", frozen)
    found(run(texts(tmp_path)), "longest batch", "no gradient for", "classifier", status="warn")


def test_a_metric_that_is_not_measured(tmp_path):
    found(run(texts(tmp_path), training__metric_for_best_model="bleu"), "evaluation", "bleu", "known")


def test_an_old_task_without_a_trained_head(tmp_path):
    old = {"task": "text-classification", "data": str(csv_file(tmp_path / "old.csv", reviews(20, seed=5)))}
    place = texts(tmp_path, forgetting={"old": old})
    found(run(place), "forgetting", "has no trained head", "forgetting.old.model")
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    network = BertForSequenceClassification.from_pretrained(place / "model", **names)
    network.save_pretrained(place / "model")
    line = run(place)["forgetting"]
    assert line.status == "pass" and "accuracy of text-classification on 20 rows of the old task" in line.seen
