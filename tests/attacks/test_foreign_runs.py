"""Adapters and bases that say what is to be loaded with them: `predict` and `evaluate` believe none of it."""

import json
import shutil
import sys

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import deltatune
from attacks.watched import watched
from deltatune.core.errors import DeltatuneError
from words import csv_file, model_folder, reviews

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a small model."""
    place = tmp_path_factory.mktemp("run")
    model_folder(place / "model")
    csv_file(place / "reviews.csv", reviews(120))
    run = deltatune.finetune(
        task="text-classification",
        model=str(place / "model"),
        data={"train": str(place / "reviews.csv")},
        training={"num_train_epochs": 1, "bf16": False},
        output_dir=place / "run",
        quiet=True,
    )
    deltatune.predict(run.adapter, texts=["a fine film"])  # late imports are done
    return run.adapter


def altered(folder, place, config=None, **facts):
    """A copy of an adapter folder with other facts of the task, or another base."""
    shutil.copytree(folder, place)
    with safe_open(place / WEIGHTS, framework="pt") as file:
        record = json.loads(file.metadata()["deltatune"])
    record["facts"] |= facts
    save_file(load_file(place / WEIGHTS), place / WEIGHTS, metadata={"deltatune": json.dumps(record)})
    values = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(values | (config or {})))
    return place


FACTS = {
    "an unknown task": {"task": {"type": "os.system"}},
    "a task that is a path": {"task": {"type": "../../evil"}},
    "a task that is a list": {"task": [["text-classification"]]},
    "a type that is a list": {"task": {"type": ["text-classification"]}},
    "code of a repository": {"task": {"type": "text-classification", "trust_remote_code": True}},
    "columns that are objects": {"columns": {"text": {"a": 1}}},
    "a template that reads attributes": {"task": {"type": "chat", "chat_template": "{{ ''.__class__.__mro__ }}"}},
    "no task": {"task": None},
    "a dtype that is an object": {"dtype": {"a": 1}},
}


@pytest.mark.parametrize("case", FACTS)
def test_facts_of_another_kind_are_refused(case, trained, tmp_path):
    folder = altered(trained, tmp_path / "adapter", **FACTS[case])
    with watched(tmp_path), pytest.raises(DeltatuneError):
        deltatune.predict(folder, texts=["a fine film"])


@pytest.mark.parametrize(
    "base",
    [
        "https://evil.example/model",
        "file:///etc",
        "../../../etc",
        "/etc",
        "~/model",
        "evil/model",
        "evil/model@main",
        ".",
        "a" * 500,
        "\u2215etc",
    ],
)
def test_a_base_that_is_not_there_is_an_error_and_nothing_is_fetched(base, trained, tmp_path):
    folder = altered(trained, tmp_path / "adapter", config={"base_model_name_or_path": base})
    with watched(tmp_path), pytest.raises(DeltatuneError):
        deltatune.predict(folder, texts=["a fine film"])


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_in_the_folder_of_a_base_does_not_run_and_nobody_is_asked(where, trained, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(trained.parents[1] / "model", base)
    (base / "evil.py").write_text("import sys; sys.deltatune_was_here = True\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    code = {"auto_map": {name: "evil.Evil" for name in classes}, "model_type": "evil", "trust_remote_code": True}
    if where == "tokenizer_config.json":
        code = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    values = json.loads((base / where).read_text()) if (base / where).is_file() else {}
    (base / where).write_text(json.dumps(values | code))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    folder = altered(trained, tmp_path / "adapter", config={"base_model_name_or_path": str(base)})
    try:
        deltatune.predict(folder, texts=["a fine film"])
    except DeltatuneError as error:
        assert "evil" in str(error) or "base" in str(error)
    if where == "config.json":
        with pytest.raises(DeltatuneError):
            deltatune.inspect(str(base))
    assert not hasattr(sys, "deltatune_was_here")
    assert "evil" not in " ".join(name for name in sys.modules if "transformers_modules" in name)
