"""An old task: its head around the adapted backbone, what is refused before a training, and what a run says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.core.config import OldTaskSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task as task_of
from deltatune.evaluate.around import around
from deltatune.evaluate.forgetting import forgotten
from deltatune.evaluate.old_task import OldTask
from deltatune.evaluate.score import score
from words import BAD, GOOD, csv_file, model_folder, reviews

MOODS, TAGS = ["bad", "good"], ["O", "B-GOOD", "I-GOOD", "B-BAD", "I-BAD"]


def checkpoint(folder, network, names):
    """A base with a head of these outputs, random but for it being in the checkpoint."""
    model_folder(folder, spread=0.4)
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    torch.manual_seed(3)
    network.from_pretrained(folder, num_labels=len(names), **named).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def moods(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("moods"), BertForSequenceClassification, MOODS)


@pytest.fixture(scope="module")
def entities(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("entities"), BertForTokenClassification, TAGS)


@pytest.fixture
def old_rows(tmp_path):
    return str(csv_file(tmp_path / "old.csv", reviews(60, seed=5)))


def tagged(path, count=60):
    """Sentences whose telling words are entities, as JSON lines."""
    kinds = {**dict.fromkeys(GOOD, "B-GOOD"), **dict.fromkeys(BAD, "B-BAD")}
    rows = [row["text"].split() for row in reviews(count, seed=5)]
    path.write_text("".join(json.dumps({"tokens": r, "tags": [kinds.get(w, "O") for w in r]}) + "\n" for r in rows))
    return str(path)


def stars(count=40):
    """Rows of the new task: its labels are none of the old ones."""
    return [{**row, "label": {"good": "five", "bad": "one"}[row["label"]]} for row in reviews(count)]


def adapted(base, method, rows=(), task="text-classification"):
    """A network of the new task with an adapter that does something, and what `forgotten` is asked about it with."""
    rows = rows or stars()
    fitted = task_of(task).fit(rows)
    torch.manual_seed(1)
    loaded = fitted.load(base)
    new = loaded.new or None
    adapter = deltatune.attach(loaded.model, deltatune.method(method, modules_to_save=new))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapter, fitted, loaded.processor, fitted.encode(rows, loaded.processor)


def old_of(adapter, base, data, seed=42, **asked):
    asked = {"task": "text-classification", "data": data, **asked}
    return OldTask.of(OldTaskSettings.parse(asked), adapter.model, base, seed)


def logits(network, old):
    with torch.no_grad():
        batch = old.task.collate(old.examples, old.processor)
        return old.task.run(network.eval(), batch).logits


@pytest.mark.parametrize("method", ["lora", "full", "adapter", "ia3", "prompt", "prefix", "ladder", "bitfit"])
def test_the_old_head_answers_with_the_backbone_as_it_is(moods, old_rows, method):
    """Off it is the plain checkpoint; on, the old head gets what the trained network's own head gets."""
    adapter, *_ = adapted(moods, method)
    old = old_of(adapter, moods, old_rows)
    plain = BertForSequenceClassification.from_pretrained(moods)
    with adapter.disabled():
        assert torch.allclose(logits(old.network, old), logits(plain, old), atol=1e-5)
    assert not torch.allclose(logits(old.network, old), logits(plain, old), atol=1e-2)
    with torch.no_grad():
        wanted = plain.classifier(given_to_the_head(adapter, old))
    assert torch.allclose(logits(old.network, old), wanted, atol=1e-5)


def given_to_the_head(adapter, old):
    """What the head of the trained network is called with on the old rows, adapter on."""
    noted = []
    hook = adapter.model.classifier.register_forward_pre_hook(lambda module, args: noted.append(args[0]))
    logits(adapter.model, old)
    hook.remove()
    return noted[0]


def test_off_on_and_merged_are_scores_of_plain_networks(moods, old_rows):
    adapter, task, processor, examples = adapted(moods, "lora")
    old = old_of(adapter, moods, old_rows)
    found = forgotten(adapter, task, processor, examples, [], moods, 16, old)["old"]
    plain = BertForSequenceClassification.from_pretrained(moods)

    def accuracy():
        return score(plain, old.task, old.processor, old.rows, old.examples)["accuracy"]

    assert found["off"] == accuracy()
    adapter.merge_and_unload()
    plain.bert.load_state_dict(adapter.model.bert.state_dict())
    assert found["on"] == found["merged"] == accuracy() != found["off"]
    about = {key: found[key] for key in ("task", "metric", "rows", "rejected", "lower_is_better")}
    wanted = {"task": "text-classification", "metric": "accuracy", "rows": 60, "rejected": 0, "lower_is_better": False}
    assert about == wanted


def test_the_base_and_the_active_adapter_are_as_they_were(entities, tmp_path):
    adapter, task, processor, examples = adapted(entities, "lora")
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    old = old_of(adapter, entities, tagged(tmp_path / "old.jsonl"), task="token-classification")
    found = forgotten(adapter, task, processor, examples, [], entities, 16, old)["old"]
    assert found["metric"] == "micro_f1" and found["merged"] == pytest.approx(found["on"], abs=1e-3)
    assert all(torch.equal(adapter.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert adapter.active


def test_a_method_that_cannot_be_merged_has_no_merged_score(moods, old_rows):
    adapter, task, processor, examples = adapted(moods, "prefix")
    found = forgotten(adapter, task, processor, examples, [], moods, 16, old_of(adapter, moods, old_rows))["old"]
    assert found["merged"] is None and 0 <= found["on"] <= 1


def test_a_metric_that_rows_do_not_have_is_said(moods, old_rows):
    adapter, task, processor, examples = adapted(moods, "lora")
    old = old_of(adapter, moods, old_rows)

    class Without(type(old.task)):
        def score(self, answers, rows):
            return {"loss": 0.0}

    old = replace(old, task=Without(**old.task.model_dump()))
    found = forgotten(adapter, task, processor, examples, [], moods, 16, old)["old"]
    assert found["why"] == "accuracy cannot be computed on these 60 rows" and "on" not in found


def test_rows_are_drawn_from_the_whole_file_and_those_of_no_use_are_counted(moods, tmp_path, caplog):
    rows = reviews(200, seed=5)
    rows[3]["text"], rows[150]["text"] = "", " "
    data = str(csv_file(tmp_path / "old.csv", rows))
    adapter, *_ = adapted(moods, "lora")
    old = old_of(adapter, moods, data, rows=20)
    places = [next(i for i, row in enumerate(rows) if row["text"] == own["text"]) for own in old.rows]
    assert len(places) == 20 and places == sorted(places) and places[-1] >= 100 > places[0]
    assert old.rejected == 2 and "2 of 200 rows rejected (2 x text is empty)" in caplog.text
    assert [row["text"] for row in old_of(adapter, moods, data, rows=20).rows] == [row["text"] for row in old.rows]
    assert [row["text"] for row in old_of(adapter, moods, data, 7, rows=20).rows] != [row["text"] for row in old.rows]


def refused(base, data, message, error=SettingsError, network=None, **asked):
    adapter, *_ = adapted(network or base, "lora")
    with pytest.raises(error, match=message):
        old_of(adapter, base, data, **asked)


def test_a_head_that_would_start_at_random_is_refused(tmp_path, old_rows, moods):
    bare = str(model_folder(tmp_path / "bare"))
    refused(bare, old_rows, "no trained head of text-classification: .* would start at random; name the folder")
    data = tagged(tmp_path / "old.jsonl")
    refused(moods, data, "is that of BertForSequenceClassification, which is no token-cl", task="token-classification")


def test_a_head_of_another_backbone_is_refused(tmp_path, moods, entities, old_rows):
    adapter, *_ = adapted(moods, "lora")
    other = checkpoint(tmp_path / "other", BertForSequenceClassification, MOODS)
    assert (
        old_of(adapter, moods, old_rows, model=other).network.bert is adapter.model.bert
    )  # the same weights elsewhere
    wild = BertForSequenceClassification.from_pretrained(other)
    with torch.no_grad():
        wild.bert.encoder.layer[1].output.dense.bias += 1.0
    save_file(wild.state_dict(), tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SettingsError, match=r"another backbone than that of .*: 1 tensors differ, such as .*dense.bias"
    ):
        old_of(adapter, moods, old_rows, model=other)


def test_a_head_that_reads_what_the_trained_backbone_lacks_is_refused(moods, old_rows, tmp_path):
    rows = [json.loads(line) for line in Path(tagged(tmp_path / "new.jsonl")).read_text().splitlines()]
    rows = [{"tokens": row["tokens"], "label": row["tags"]} for row in rows]
    adapter, *_ = adapted(moods, "lora", rows, "token-classification")  # token classifiers have no pooler
    with pytest.raises(SettingsError, match="reads what the backbone of BertForTokenClassification lacks: pooler"):
        old_of(adapter, moods, old_rows)


def test_names_of_outputs_that_are_not_those_of_the_rows_are_refused_with_what_would_work(tmp_path, old_rows):
    unnamed = checkpoint(tmp_path / "unnamed", BertForSequenceClassification, ["LABEL_0", "LABEL_1"])
    would = r"labels: \[bad, good\]\} if LABEL_0 is bad, LABEL_1 is good"
    refused(unnamed, old_rows, rf"2 outputs, LABEL_0, LABEL_1; the rows are labelled bad, good; .*{would}")
    adapter, *_ = adapted(unnamed, "lora")
    said = {"type": "text-classification", "labels": ["bad", "good"]}
    assert old_of(adapter, unnamed, old_rows, task=said).task.label_names == ("bad", "good")
    refused(
        unnamed,
        old_rows,
        "has 2 outputs, LABEL_0, LABEL_1; task.labels has 3 names",
        task={**said, "labels": ["a", "b", "c"]},
    )
    loud = checkpoint(tmp_path / "loud", BertForSequenceClassification, ["GOOD", "BAD"])
    refused(loud, old_rows, r"labels: \[good, bad\]\} if GOOD is good, BAD is bad")


def test_unnamed_outputs_are_those_of_rows_with_numbers(tmp_path):
    unnamed = checkpoint(tmp_path / "unnamed", BertForSequenceClassification, ["LABEL_0", "LABEL_1"])
    rows = [{**row, "label": str(MOODS.index(row["label"]))} for row in reviews(40)]
    adapter, *_ = adapted(unnamed, "lora")
    assert old_of(adapter, unnamed, str(csv_file(tmp_path / "old.csv", rows))).task.label_names == ("0", "1")


def test_without_a_row_of_use_nothing_begins(tmp_path, moods):
    data = str(csv_file(tmp_path / "old.csv", [{"text": " ", "label": "good"}] * 3))
    refused(moods, data, "3 of 3 rows rejected", DataError)


def test_a_language_model_that_is_trained_with_its_head_is_itself_the_one(tmp_path):
    model_folder(tmp_path)
    size = len(AutoTokenizer.from_pretrained(tmp_path))
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    network, whole = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    assert around(whole, network, "base", "language-model head") is network


def run_of(base, data, folder, old, **other):
    return deltatune.finetune(
        task="text-classification",
        model=base,
        data={"train": data},
        training={"num_train_epochs": 1, "bf16": False},
        forgetting={"rows": 4, "old": old},
        output_dir=folder,
        quiet=True,
        **other,
    )


def test_a_run_says_it_in_results_and_words(tmp_path, moods, old_rows):
    data = str(csv_file(tmp_path / "new.csv", stars(60)))
    old = {"task": "text-classification", "data": old_rows, "rows": 30}
    run = run_of(moods, data, tmp_path / "run", old)
    found = json.loads((tmp_path / "run" / "results.json").read_text())["forgetting"]["old"]
    assert found == run.results["forgetting"]["old"] and found["rows"] == 30
    page = (tmp_path / "run" / "report.html").read_text()
    said = f"The old task, text classification: accuracy is {found['off']:.4f} before and {found['on']:.4f} with the"
    assert said in page and "on 30 rows of its own" in page


def test_what_cannot_be_measured_stops_a_run_before_it_has_a_folder(tmp_path, moods, old_rows):
    data = str(csv_file(tmp_path / "new.csv", stars(60)))
    for old in ({"data": "no.csv"}, {"data": old_rows, "task": "token-classification"}):
        with pytest.raises((DataError, SettingsError)):
            run_of(moods, data, tmp_path / "run", {"task": "text-classification", **old})
        assert not (tmp_path / "run").exists()


def test_a_comparison_has_a_column_and_a_front(tmp_path, moods, old_rows):
    csv_file(tmp_path / "new.csv", stars(60))
    config = {
        "task": "text-classification",
        "model": moods,
        "data": {"train": str(tmp_path / "new.csv")},
        "training": {"num_train_epochs": 1, "bf16": False},
        "forgetting": {"rows": 4, "old": {"task": "text-classification", "data": old_rows}},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    given = ["compare", str(tmp_path / "run.yaml"), "--seeds", "1", "--own-rates", "--quiet"]
    done = CliRunner().invoke(build(), given)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run-comparison" / "results.json").read_text())
    methods = results["methods"]
    for name, one in methods.items():
        own = json.loads((tmp_path / "run-comparison" / "runs" / f"{name}-seed42" / "results.json").read_text())
        found = own["forgetting"]["old"]
        assert one["old_task"]["after"] == found["on"] and one["old_task_lost"] == found["off"] - found["on"]
    assert results["fronts"]["old_task_lost"]
    before = methods["lora"]["old_task"]["before"]
    assert f"old task: text-classification, accuracy on 60 rows, {before:.4f} before" in done.stdout
    line = [line for line in done.stdout.splitlines() if line.startswith("│ full")][-1]
    assert line.rstrip("│ ").endswith(f" {methods['full']['old_task']['after']:.4f}")
    assert "lost of the old task" in (tmp_path / "run-comparison" / "report.html").read_text()
    config["forgetting"]["old"]["rows"] = 7
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    again = CliRunner().invoke(build(), [*given, "--resume"])
    assert "forgetting changed since the comparison" in str(again.exception)
