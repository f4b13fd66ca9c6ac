"""The whole way on a tiny model: rows to adapter to answers, through Python and through transformers' Trainer."""

import csv
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

import deltatune
from contract.cases import model_of, outputs
from deltatune import finetuning
from deltatune.core.errors import SettingsError
from deltatune.core.registry import methods
from words import csv_file, model_folder, reviews, work, work_place

TRAINING = {"num_train_epochs": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return work_place(tmp_path_factory.mktemp("place"), 240)


def finetune(place, out, method="lora", **fields):
    return deltatune.finetune(**work(place, **{**TRAINING, **fields}), method=method, output_dir=out, quiet=True)


@pytest.fixture
def chosen(place, tmp_path):
    """The settings of a method by name, with what it cannot do without."""

    def settings(name):
        if name == "mix":
            return [{"type": "lora", "r": 2}, {"type": "adapter", "placement": "parallel"}]
        if name == "p-tuning-v2":  # 32 positions are all that this model has
            return deltatune.method(name, num_virtual_tokens=4)
        if name != "adapter-fusion":
            return deltatune.method(name)
        folders = []
        for seed in (1, 2):
            plain = {"type": "adapter", "placement": "pfeiffer"}
            folders.append(
                str(finetune(place, tmp_path / f"plain {seed}", plain, seed=seed, num_train_epochs=1).folder)
            )
        return {"type": name, "adapters": folders}

    return settings


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_method_goes_the_whole_way(place, tmp_path, name, chosen):
    run = finetune(place, tmp_path / "run", chosen(name))
    results = json.loads((run.folder / "results.json").read_text())
    assert results == run.results
    assert {
        "task",
        "method",
        "base_model",
        "trainable_parameters",
        "total_parameters",
        "adapter_bytes",
        "train",
        "validation",
        "test",
        "baseline",
        "before",
    } <= results.keys()
    assert results["base"]["sha256_before"] == results["base"]["sha256_after"]
    assert results["accounts"]["files"]["train"].items() >= {"read": 240, "rejected": 0, "used": 240}.items()
    assert results["accounts"]["parts"]["train"]["kept"] == 192
    assert results["rows"] == {"train": 192, "validation": 24, "test": 24, "rejected": 0}
    for file in ("config.yaml", "environment.json", "metrics.jsonl", "rejected.jsonl", "noted.jsonl", "curves.png"):
        assert (run.folder / file).stat().st_size > 0 or file in ("rejected.jsonl", "noted.jsonl")
    again = deltatune.evaluate(run.folder, str(place / "reviews.csv"))
    assert again["rows"] == again["account"]["read"] == 240
    assert deltatune.predict(run.folder, texts=[]) == deltatune.predict(run.folder, rows=[]) == []
    texts = deltatune.predict(run.folder, texts=["a superb film", "  "])
    assert texts[0]["label"] in ("good", "bad")
    assert texts[1]["error"].endswith("text is empty")


def test_lora_learns_what_the_untrained_model_does_not_know(tmp_path):
    model_folder(tmp_path / "model", spread=0.2)  # words that differ: the features of a random base are told apart
    csv_file(tmp_path / "reviews.csv", reviews(720))
    run = finetune(tmp_path, tmp_path / "run", num_train_epochs=12, learning_rate=4e-3, early_stopping_patience=None)
    assert run.results["test"]["accuracy"] >= 0.8 > run.results["before"]["accuracy"]
    assert deltatune.predict(run.adapter, texts=["the film was dull"])[0]["label"] == "bad"


def test_what_training_measured_is_what_evaluate_measures(place, tmp_path):
    run = finetune(place, tmp_path / "run")
    rows = [row for row in reviews(240)]
    csv_file(tmp_path / "all.csv", rows)
    found = deltatune.evaluate(run.folder, str(tmp_path / "all.csv"))
    answers = deltatune.predict(run.folder, file=str(tmp_path / "all.csv"))
    share = sum(a["label"] == r["label"] for a, r in zip(answers, rows, strict=True)) / len(rows)
    assert found["accuracy"] == pytest.approx(share)


def test_every_answer_to_a_test_row_is_kept_with_its_place(place, tmp_path):
    run = finetune(place, tmp_path / "run")
    lines = [json.loads(line) for line in (run.folder / "answers.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((place / "reviews.csv").read_text().splitlines()))
    right = [line["answer"]["label"] == rows[line["line"] - 2]["label"] for line in lines]
    assert len(right) == run.results["answering"]["rows"] == run.results["test"]["rows"]
    assert sum(right) / len(right) == pytest.approx(run.results["test"]["accuracy"])


def test_the_best_adapter_is_not_asked_again_what_it_has_answered(place, tmp_path, monkeypatch):
    asked = []

    def counted(model, task, processor, examples, size, real=finetuning.answers):
        asked.append(len(examples))
        return real(model, task, processor, examples, size)

    monkeypatch.setattr(finetuning, "answers", counted)
    run = finetune(place, tmp_path / "run", num_train_epochs=2)
    rows = run.results["rows"]
    assert asked == [rows["test"], rows["validation"], rows["validation"], rows["test"]]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (best,) = [line for line in lines if "validation" in line and line["step"] == run.results["train"]["best_step"]]
    assert run.results["validation"].items() >= best["validation"].items()


def test_a_loaded_adapter_gives_the_trained_answers(place, tmp_path):
    run = finetune(place, tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2).eval()
    deltatune.load(model, run.adapter, name="reviews")
    tokens = AutoTokenizer.from_pretrained(place / "model")("the film was superb", return_tensors="pt")
    with torch.no_grad():
        share = model(**tokens).logits.softmax(-1)[0, 1]
    assert deltatune.predict(run.adapter, texts=["the film was superb"])[0]["probabilities"]["good"] == pytest.approx(
        float(share), abs=1e-5
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_trainer_of_transformers_trains_the_attached_model(place, tmp_path):
    rows = reviews(160)
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2)
    adapter = deltatune.attach(model, deltatune.LoRA(r=8, modules_to_save=("head",)), name="reviews")
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    data = [
        {**tokenizer(row["text"], padding="max_length", max_length=16), "labels": int(row["label"] == "good")}
        for row in rows
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=20,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1000,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.75 * before
    now = dict(model.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in base.items())
    adapter.save(tmp_path / "adapter")
    fresh = AutoModelForSequenceClassification.from_pretrained(place / "model", num_labels=2)
    deltatune.load(fresh.eval(), tmp_path / "adapter")
    tokens = tokenizer(rows[0]["text"], return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(fresh(**tokens).logits, model.eval()(**tokens).logits, atol=1e-6)


def test_prepare_gives_a_model_for_any_loop():
    model = deltatune.prepare(model_of("bert"), deltatune.LoRA(r=4))
    assert not model.bert.training
    assert model.config._attn_implementation in ("sdpa", "by_shape")
    assert sum(p.requires_grad for p in model.parameters()) == 24


def test_a_method_is_given_by_name_settings_or_list_too():
    model = model_of("bert")
    assert deltatune.attach(model, "ia3", name="a").method == deltatune.method("ia3")
    assert deltatune.attach(model, {"type": "lora", "r": 2}, name="b").method.r == 2
    assert len(deltatune.attach(model, ["lora", "prefix"], name="c").members) == 2
    with pytest.raises(SettingsError, match="did you mean lora"):
        deltatune.attach(model, "lara")


def test_the_design_example_works(tmp_path):
    model = model_of("llama")
    adapter = deltatune.attach(model, deltatune.LoRA(r=8, target_modules="attention"), name="reviews")
    with adapter.disabled():
        base = outputs(model)
    adapter.save(tmp_path / "out")
    adapter.merge()
    adapter.unmerge()
    adapter.detach()
    assert torch.equal(outputs(model), base)
    again = deltatune.load(model, tmp_path / "out", name="reviews")
    assert again.method == deltatune.LoRA(r=8, target_modules="attention")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / "adapter_model.safetensors").write_bytes(
                (f / "adapter_model.safetensors").read_bytes()[:900]
            ),
            "is damaged",
        ),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), "is not an adapter folder"),
    ],
)
def test_a_spoilt_adapter_folder_is_refused_and_nothing_stays_attached(tmp_path, spoil, message):
    deltatune.attach(model_of("bert"), deltatune.LoRA()).save(tmp_path / "a")
    spoil(tmp_path / "a")
    model = model_of("bert")
    base = outputs(model)
    with pytest.raises(deltatune.DeltatuneError, match=message):
        deltatune.load(model, tmp_path / "a")
    assert torch.equal(outputs(model), base)
    assert not any("deltas" in n for n, _ in model.named_modules())


def test_an_adapter_for_another_base_is_refused(tmp_path):
    deltatune.attach(model_of("bert"), deltatune.LoRA()).save(tmp_path / "a", base_model="the/right-one")
    other = model_of("bert")
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.add_(1)
    with pytest.raises(deltatune.DeltatuneError, match="trained on another base.*load it on the/right-one"):
        deltatune.load(other, tmp_path / "a")
    with pytest.raises(deltatune.DeltatuneError):
        deltatune.load(model_of("llama"), tmp_path / "a")


def test_values_that_are_not_finite_are_refused(tmp_path):
    adapter = deltatune.attach(model_of("bert"), deltatune.LoRA())
    with torch.no_grad():
        adapter.parameters()[0][0, 0] = float("nan")
    adapter.save(tmp_path / "a")
    with pytest.raises(deltatune.DeltatuneError, match="not finite"):
        deltatune.load(model_of("bert"), tmp_path / "a")


def test_public_names_are_listed_and_misspelt_ones_hinted():
    assert {"LoRA", "DoRA", "attach", "load", "finetune"} <= set(dir(deltatune))
    with pytest.raises(AttributeError, match="did you mean LoRA"):
        deltatune.LORA  # noqa: B018
