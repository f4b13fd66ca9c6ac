"""The page about a run: facts, shape, and what hostile rows cannot do."""

import sys

import pytest

import deltatune
from deltatune.core import registry
from deltatune.report import run
from deltatune.report.judged import Judged
from deltatune.report.run import run_page
from deltatune.report.shown import shown
from report.pages import RIGHT, read, record
from words import csv_file, model_folder, reviews

EVIL = "</td></style><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> $x_{ \\frac"


@pytest.fixture(scope="module")
def html():
    return run_page(record())


def test_facts_are_on_the_page(html):
    page = read(html)
    for fact in (
        "On 4 test rows accuracy is 0.7500; the 95 % interval goes from 0.3000 to 0.9500.",
        "No difference from majority class (0.2500) and the model before training (0.2500) is shown",
        "LoRA on some/model, 12 training rows",
        "method.r 4",
        "training.seed 7",
        "The adapter of step 4 is kept",
        "2 rows were rejected",
        "3 rows are longer than the model reads and lost their end (3 train)",
        "1 rows of validation or test nearly repeat a training row",
        "the same after: the base is unchanged",
        "pip install deltatune==0.1.0 torch==2.13.0",
        "deltatune train 'runs/x y/config.yaml' --output_dir 'runs/x y-again'",
        "text is empty",
    ):
        assert fact in page.text, fact
    assert "gone==" not in page.text and "training.metric_for_best_model" not in page.text.partition("All settings")[0]


def test_the_page_is_sound(html):
    page = read(html)
    assert html.startswith("<!doctype html>") and page.named("html") == [{"lang": "en"}]
    (policy,) = [
        meta["content"] for meta in page.named("meta") if "content" in meta and "default-src" in meta["content"]
    ]
    assert "default-src 'none'" in policy and "script-src" not in policy
    assert any(meta.get("content") == "width=device-width, initial-scale=1" for meta in page.named("meta"))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(figure["aria-label"] for figure in page.named("svg"))


def test_nothing_but_boxes_scrolls_sideways(html):
    """Every table stands in a box that scrolls; plots and pictures shrink with the page."""
    page, boxes = read(html), 0
    for place, (tag, _) in enumerate(page.elements):
        if tag == "table":
            before = page.elements[place - 1]
            assert before[0] == "div" and before[1]["class"] == "scroll" and before[1]["tabindex"] == "0"
            boxes += 1
    assert boxes >= 6
    assert not [
        attributes for tag, attributes in page.elements if tag in ("svg", "img", "table") and "width" in attributes
    ]
    style = html.partition("<style>")[2].partition("</style>")[0]
    for rule in ("overflow-wrap: anywhere", "overflow-x: auto", "prefers-color-scheme: dark", "@media print"):
        assert rule in style


def test_the_surest_mistake_comes_first_and_the_least_certain_is_there(html):
    text = read(html).text
    wrong, _, uncertain = text.partition("Most wrong, and sure of it")[2].partition("Least certain")
    assert wrong.lstrip().startswith("a.csv:3 not right, 99 % sure") and "a.csv:2" not in wrong
    assert uncertain.lstrip().startswith("a.csv:4 right, 51 % sure")


def test_confusion_and_calibration(html):
    page = read(html)
    cells = [attributes["class"] for attributes in page.named("td") if attributes.get("class", "").startswith("s")]
    assert cells == ["s10 hit", "s0", "s5", "s5 hit"]
    assert "0.9 to 1.0 3 0.930 0.667" in page.text and "0.5 to 0.6 1 0.510 1.000" in page.text


def test_rows_labels_and_names_are_text_whatever_they_hold():
    own = record()
    task = registry.task({"type": "text-classification", "labels": [EVIL, "bad"], "problem": "single"})
    answer = {"label": EVIL, "score": 0.9, "probabilities": {EVIL: 0.9, "bad": 0.1}}
    rows = [{"text": EVIL, "label": "bad"}, {"text": "b", "label": EVIL}]
    test = {**task.score([answer] * 2, rows), "loss": 0.5, "rows": 2, "interval": [0.1, 0.9]}
    results = {
        **own.results, "base_model": EVIL, "test": test, "baselines": {EVIL: {"accuracy": 0.1}},
        "near_duplicates": {"rows": 1, "first": [EVIL]}, "forecast": {"unknown": EVIL}, "energy": {"source": EVIL},
    }  # fmt: skip
    rejected = [{"file": EVIL, "line": 1, "reason": EVIL, "row": {EVIL: EVIL}}]
    config = {**own.config, "model": EVIL, "data": {"train": EVIL}, "output_dir": EVIL}
    answers = [{"file": EVIL, "line": 1, "answer": answer}, {"file": "b", "line": 2, "answer": answer}]
    html = run_page(record(task=task, rows=rows, results=results, rejected=rejected, config=config, answers=answers))
    page = read(html)
    assert "<script" not in html and "<img" not in html
    assert page.text.count("<script>alert(1)</script>") > 8


def test_without_matplotlib_the_page_says_so_and_has_tables(monkeypatch):
    monkeypatch.setattr("deltatune.report.plots.find_spec", lambda name: None)
    page = read(run_page(record()))
    assert "matplotlib is not installed" in page.text and not page.named("svg")
    assert "Evaluations while training" in page.text and "0.9 to 1.0 3 0.930 0.667" in page.text


def test_a_forecast_stands_beside_what_was_measured(monkeypatch):
    monkeypatch.setattr("deltatune.report.plots.find_spec", lambda name: None)  # faster
    results = {
        **record().results,
        "forecast": {
            "peak_memory_bytes": {"low": 2_000_000, "expected": 2_500_000, "high": 4_000_000},
            "train_seconds": {"low": 1.0, "expected": 2.0, "high": 3.0},
        },
        "accounts": {"parts": {"train": {"composed": 15, "rejected": 2, "kept": 13}}},
        "energy": {"joules": 120.5, "source": "a meter", "joules_per_point": None},
    }
    text = read(run_page(record(results=results))).text
    assert "2.5 MB (2.0 MB to 4.0 MB) 3.0 MB within the range, 20% more than expected" in text
    assert "2.0 s (1.0 s to 3.0 s) 4.0 s outside the range, 100% more than expected" in text
    assert "Where every row went part composed rejected kept train 15 2 13" in text
    assert "joules 120.50" in text and "Source: a meter" in text and "joules per point" not in text


def test_a_run_writes_its_page(tmp_path):
    settings = {"num_train_epochs": 1, "logging_steps": 2, "bf16": False}
    run = finetuned(tmp_path, settings)
    page = read((run.folder / "report.html").read_text())
    assert f"On 8 test rows accuracy is {run.results['test']['accuracy']:.4f}" in page.text
    assert len(page.named("svg")) >= 4 and "rows.csv:" in page.text


def test_a_page_that_cannot_be_made_loses_no_run(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(run, "run_page", broken)
    found = finetuned(tmp_path, {"max_steps": 2, "bf16": False})
    assert "no report.html: ValueError: no ink" in caplog.text
    assert found.results["test"] and not (found.folder / "report.html").exists()


def finetuned(folder, training):
    model_folder(folder / "model")
    csv_file(folder / "rows.csv", reviews(80))
    return deltatune.finetune(
        task="text-classification", model=str(folder / "model"), data={"train": str(folder / "rows.csv")},
        training=training, output_dir=folder / "run", quiet=True,
    )  # fmt: skip


def test_answers_and_rows_must_belong_together():
    with pytest.raises(ValueError, match="zip"):
        run_page(record(answers=[{"file": "a", "line": 1, "answer": RIGHT}]))


def test_nothing_heavy_is_loaded_for_a_page():
    assert "matplotlib.pyplot" not in sys.modules


def test_a_row_of_a_table_is_shown_by_its_first_columns():
    task = registry.task({"type": "text-classification", "labels": ["good", "bad"], "problem": "single"})
    features = {f"column {number}": number for number in range(14)}
    one = Judged("a.csv", 3, {"features": features, "label": "bad"}, RIGHT, 0.0, 0.9)
    found = shown(task, one, 1.0)
    assert found.asked["column 9"] == "9" and "column 10" not in found.asked and found.asked["further columns"] == "4"
    assert (found.place, found.standing, found.wanted, found.answered) == (
        "a.csv:3",
        "not right, 90 % sure",
        "bad",
        "good",
    )


def test_a_group_of_settings_that_is_not_at_its_default_is_shown_whole():
    config = {**record().config, "task": {"type": "text-classification", "augmentation": {"swap": 0.1}}}
    assert record(config=config).changed()["task.augmentation"]["word_dropout"] == 0.1
