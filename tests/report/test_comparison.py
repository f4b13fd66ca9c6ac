"""The page about a comparison: facts, what is missing and why, hostile names."""

import copy

import pytest

from deltatune.report.comparison import comparison_page
from report.compared import results
from report.pages import read

EVIL = "</li><script>alert(1)</script> $\\frac"


@pytest.fixture(scope="module")
def html():
    return comparison_page(results())


@pytest.fixture
def no_plots(monkeypatch):
    """As without matplotlib, which is faster too."""
    monkeypatch.setattr("deltatune.report.plots.find_spec", lambda name: None)


def test_facts_are_on_the_page(html):
    page = read(html)
    for fact in (
        "Methods compared on text classification",
        "lora is chosen. lora is chosen: it is best on the validation rows.",
        "methods 4 of 5 were tested",
        "21 min 52 s of 30 min",
        "ia3 +0.0520 +0.0300 to +0.0700 < 0.001 better",
        "adapter +0.0060 -0.0100 to +0.0200 0.600 no difference shown",
        "linear on TF-IDF (baseline) 0.7710",
        "prefix was refused: the model's attention takes no keys",
        "prefix , seed 1, failed: losses are not finite".replace(" ,", ","),
        "The budget ended before prefix, seed 3",
        "deltatune predict runs/x-comparison/runs/lora-seed2 --input FILE",
        "Adapter file; nothing beats ia3, adapter, lora",
        "Energy; nothing beats ia3, adapter, lora, full",
        "by a meter of this machine.",
    ):
        assert fact in page.text, fact


def test_the_best_mean_stands_first_and_the_chosen_one_is_marked(html):
    text = read(html).text
    table = text[text.index("Methods by their mean") :]
    assert table.index("full ") < table.index("lora (chosen)") < table.index("ia3 ")


def test_plots_are_there(html):
    titles = [svg["aria-label"] for svg in read(html).named("svg")]
    assert titles.count("accuracy of the methods") == 1 and "learning rates of ia3" in titles
    assert "accuracy against trained parameters" in titles and "learning rates of prefix" not in titles


@pytest.mark.parametrize(
    ("baselines", "tone"), [({"a": 0.5}, "good"), ({"a": 0.85, "b": 0.1}, "open"), ({"a": 0.9}, "bad")]
)
def test_the_tone_follows_from_the_baselines(no_plots, baselines, tone):
    page = read(comparison_page(results(baselines=baselines)))
    assert [div["class"] for div in page.named("div") if "verdict" in div.get("class", "")] == [f"verdict {tone}"]


def test_errors_are_ranked_from_the_least(no_plots):
    text = read(comparison_page(results(metric="mae", lower_is_better=True, baselines={"mean": 2.0}))).text
    table = text[text.index("Methods by their mean") :]
    assert table.index(" ia3 ") < table.index(" adapter 0.8") < table.index("lora (chosen)")


def test_a_comparison_without_a_finished_run_says_so():
    only = {"prefix": results()["methods"]["prefix"]}
    empty = results(methods=only, chosen=None, best_run=None, against={}, fronts={}, verdict="Nothing.", baselines={})
    page = read(comparison_page(empty))
    assert "No method finished a run." in page.text and not page.named("svg")


def test_energy_that_nothing_counted_is_no_number(no_plots):
    given = copy.deepcopy(results())
    for own in given["methods"].values():
        own |= {"joules": None, "energy_source": None}
    assert "3.0 kJ" in read(comparison_page(results())).text  # of full fine-tuning
    text = read(comparison_page(given)).text
    assert "kJ" not in text and "Energy of one training" not in text


def test_an_old_task_has_a_column_where_one_was_measured(no_plots):
    given = copy.deepcopy(results())
    assert "lost of the old task" not in comparison_page(given)
    old = {"task": "token-classification", "metric": "micro_f1", "rows": 338, "rejected": 2, "before": 0.6281}
    for lost, own in enumerate(given["methods"].values()):
        own |= {"old_task": {**old, "after": 0.6281 - lost / 10}, "old_task_lost": lost / 10}
    text = read(comparison_page(given)).text
    assert "lost of the old task" in text and " +0.3000 " in text
    assert (
        "Old task: token classification, micro f1 0.6281 before, on 338 rows of its own (2 could not be used)" in text
    )


def test_names_and_reasons_are_text_whatever_they_hold():
    given = copy.deepcopy(results(left_out=[EVIL], verdict=EVIL, base_model=EVIL, baselines={EVIL: 0.1}))
    given["methods"][EVIL] = {**given["methods"]["ia3"]}
    given["methods"]["prefix"]["refused"] = EVIL
    html = comparison_page(given)
    assert "<script" not in html and read(html).text.count("<script>alert(1)</script>") >= 7


def test_without_matplotlib_the_page_says_so(no_plots):
    page = read(comparison_page(results()))
    assert "matplotlib is not installed" in page.text and not page.named("svg") and "0.001: 0.8320" in page.text
