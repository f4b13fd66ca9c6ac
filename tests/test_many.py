"""Several runs on one base: each is what it would have been alone, whatever the others do."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deltatune
from deltatune import many
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.finetuning import Running
from words import work, work_place

measured = Running.measured

TOP = {"type": "lora", "layers_to_transform": "top-1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return work_place(tmp_path_factory.mktemp("place"))


def common(place, **training):
    return {**work(place, **{"num_train_epochs": 2, "logging_steps": 1, **training}), "quiet": True}


def alone(place, folder, runs, **training):
    """The same runs by `finetune`, one by one."""
    found = {}
    for name, own in runs.items():
        given = common(place, **training)
        given["training"] |= own.get("training", {})
        found[name] = deltatune.finetune(method=own.get("method", "lora"), output_dir=folder / name, **given)
    return found


def lines(run):
    """metrics.jsonl without the clock, as flat numbers."""
    found = []
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        values = {**values.pop("validation", {}), **values}
        found.append(
            {key: value for key, value in values.items() if key != "seconds" and isinstance(value, int | float)}
        )
    return found


def weights(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def numbers(run):
    """Metrics of results.json, without clock and memory."""
    results = run.results
    told = {part: results[part] for part in ("before", "validation", "test", "baseline", "rows", "base", "trunk")}
    train = {key: results["train"][key] for key in ("steps", "best_step", "stopped", "tokens", "learning_rate", "seed")}
    return {**told, "train": train, "trainable": results["trainable_parameters"], "data": results["data_sha256"]}


SWEEP = {
    "small": {"method": {**TOP, "r": 2}, "training": {"learning_rate": 1e-2}},
    "large": {"method": {**TOP, "r": 8}, "training": {"learning_rate": 3e-3, "weight_decay": 0.1}},
    "scales": {"method": {"type": "ia3", "layers_to_transform": [1]}, "training": {"learning_rate": 2e-2}},
}


ALONE = {
    "methods": {**SWEEP, "prompt": {"method": {"type": "prompt", "num_virtual_tokens": 3}}},
    "seeds and batches": {
        "dropping": {"method": {"type": "lora", "r": 4, "lora_dropout": 0.3}, "training": {"seed": 7}},
        "batches": {"method": TOP, "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}},
        "again": {"method": {**TOP, "lora_dropout": 0.3}, "training": {"seed": 7}},
    },
}


@pytest.mark.parametrize("chosen", ALONE)
def test_in_turn_they_are_separate_runs_to_the_bit(place, tmp_path, chosen):
    """Dropout, other seeds, blocks and batch sizes included: nothing of one is drawn or changed by another."""
    runs, training = ALONE[chosen], {"num_train_epochs": 1, "eval_steps": 3}
    many = deltatune.finetune_many(runs, output_dir=tmp_path / "many", adapters_per_pass=1, **common(place, **training))
    single = alone(place, tmp_path / "alone", runs, **training)
    assert list(many) == list(runs)
    for name, run in many.items():
        assert lines(run) == lines(single[name]), name
        assert numbers(run) == numbers(single[name]), name
        ours, theirs = weights(run), weights(single[name])
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


def test_compiled_blocks_run_one_adapter_at_a_time(place, tmp_path):
    with pytest.raises(SettingsError, match="runs.small.training.compile.*adapters_per_pass to 1"):
        deltatune.finetune_many(SWEEP, output_dir=tmp_path / "many", adapters_per_pass=2, **common(place, compile=True))


@pytest.mark.parametrize("cache", [2.0, 0.0, 1e-6])
def test_side_by_side_they_are_separate_runs(place, tmp_path, cache):
    """With the trunk kept, with none, and with one that does not fit and runs once for all."""
    limits = {"trunk_cache_gb": cache, "trunk_disk_gb": cache}
    many = deltatune.finetune_many(SWEEP, output_dir=tmp_path / "many", adapters_per_pass=3, **common(place, **limits))
    single = alone(place, tmp_path / "alone", SWEEP, **limits)
    for name, run in many.items():
        assert run.results["train"]["together"] == 3 and single[name].results["train"]["together"] == 1
        for ours, theirs in zip(lines(run), lines(single[name]), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-4), name
        ours, theirs = weights(run), weights(single[name])
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs), name
        assert run.results["trunk"] == single[name].results["trunk"]


def test_one_that_stops_early_does_not_stop_the_others(place, tmp_path, capsys):
    runs = {
        "fast": {"method": {**TOP, "r": 8}, "training": {"learning_rate": 1e-2, "early_stopping_patience": None}},
        "slow": {"method": {**TOP, "r": 2}, "training": {"learning_rate": 1e-7, "early_stopping_patience": 1}},
    }
    training = {"num_train_epochs": 5, "eval_steps": 2}
    shown = common(place, **training) | {"quiet": False}
    many = deltatune.finetune_many(runs, output_dir=tmp_path / "many", adapters_per_pass=2, **shown)
    assert {"slow", "fast"} <= {
        line.split()[0] for line in capsys.readouterr().err.splitlines() if "validation" in line
    }
    single = alone(place, tmp_path / "alone", runs, **training)
    steps = {name: run.results["train"]["steps"] for name, run in many.items()}
    assert steps == {name: run.results["train"]["steps"] for name, run in single.items()}
    assert steps["slow"] < steps["fast"] == 30
    assert many["slow"].results["train"]["stopped"] != "done"
    assert many["fast"].results["test"]["loss"] == pytest.approx(single["fast"].results["test"]["loss"], abs=1e-5)


class Hundred:
    """A meter that counts 100 J between any two times that it is asked."""

    source, count = "a hundred", 0.0

    def joules(self):
        self.count += 100.0
        return self.count


@pytest.mark.parametrize(("adapters_per_pass", "whole"), [(1, 300.0), (3, 100.0)])
def test_the_joules_of_shared_passes_are_divided_by_time(place, tmp_path, monkeypatch, adapters_per_pass, whole):
    monkeypatch.setattr("deltatune.train.loop.meters", lambda watts: [Hundred()])
    given = common(place, max_steps=3, num_train_epochs=1)
    many = deltatune.finetune_many(SWEEP, output_dir=tmp_path, adapters_per_pass=adapters_per_pass, **given)
    spent = {name: run.results["energy"]["joules"] for name, run in many.items()}
    assert sum(spent.values()) == pytest.approx(whole, abs=0.2)  # each is rounded to a tenth
    assert all(joules == pytest.approx(whole / 3, abs=0.1) for joules in spent.values())  # as many steps each
    assert {run.results["energy"]["source"] for run in many.values()} == {"a hundred"}


def test_one_that_stops_early_spent_less_of_what_was_shared(place, tmp_path, monkeypatch):
    monkeypatch.setattr("deltatune.train.loop.meters", lambda watts: [Hundred()])
    runs = {
        "wild": {"method": {**TOP, "r": 2}, "training": {"learning_rate": 1e30, "max_grad_norm": None}},
        "tame": {"method": {**TOP, "r": 4}},
    }
    with pytest.raises(DeltatuneError, match="1 of 2 runs ended early: wild"):
        deltatune.finetune_many(runs, output_dir=tmp_path, adapters_per_pass=2, **common(place))
    tame = json.loads((tmp_path / "tame" / "results.json").read_text())["energy"]
    assert 50.0 < tame["joules"] < 100.0  # the rest is what the other one spent before it had to end


def test_what_cannot_stand_side_by_side_takes_turns(place, tmp_path, caplog):
    runs = {
        "one": {"method": {**TOP, "r": 2}},
        "two": {"method": {**TOP, "r": 4}},
        "dropping": {"method": {**TOP, "lora_dropout": 0.2}},
        "seed": {"method": TOP, "training": {"seed": 1}},
        "batches": {"method": TOP, "training": {"per_device_train_batch_size": 8}},
    }
    with caplog.at_level("INFO", logger="deltatune"):
        many = deltatune.finetune_many(
            runs, output_dir=tmp_path, adapters_per_pass=8, **common(place, max_steps=1, num_train_epochs=1)
        )
    together = {name: run.results["train"]["together"] for name, run in many.items()}
    assert together == {"one": 2, "two": 2, "dropping": 1, "seed": 1, "batches": 1}
    assert "dropping trains in passes of its own: it draws random numbers" in caplog.text


def test_one_that_diverges_is_told_at_the_end(place, tmp_path):
    runs = {
        "wild": {"method": {**TOP, "r": 2}, "training": {"learning_rate": 1e30, "max_grad_norm": None}},
        "tame": {"method": {**TOP, "r": 4}},
    }
    with pytest.raises(DeltatuneError, match="1 of 2 runs ended early: wild: 3 steps in a row are not finite"):
        deltatune.finetune_many(runs, output_dir=tmp_path, adapters_per_pass=2, **common(place))
    tame = json.loads((tmp_path / "tame" / "results.json").read_text())["train"]
    assert tame["stopped"] == "done" and tame["steps"] == 12
    assert not (tmp_path / "wild" / "results.json").exists()


def test_one_whose_checkpoint_comes_back_goes_on_alone(place, tmp_path, monkeypatch):
    """As it does when it trains by itself; the other one takes its steps once."""
    first = []

    def pass_on(self, loss, norm):
        """Whichever training asks first has losses that are not finite after its sixth step."""
        first.append(self)
        bad = self is first[0] and len(self.losses) == 6
        self.bad = self.bad + 1 if bad else 0
        return not bad

    monkeypatch.setattr("deltatune.train.guards.Guards.pass_on", pass_on)
    runs, training = {name: SWEEP[name] for name in ("small", "large")}, {"eval_steps": 4}
    many = deltatune.finetune_many(runs, output_dir=tmp_path / "many", adapters_per_pass=2, **common(place, **training))
    first.clear()
    small = alone(place, tmp_path / "alone", {"small": runs["small"]}, **training)["small"]
    monkeypatch.undo()
    large = alone(place, tmp_path / "alone", {"large": runs["large"]}, **training)["large"]
    assert "restored_from" in (many["small"].folder / "metrics.jsonl").read_text()
    for ours, theirs in ((many["small"], small), (many["large"], large)):
        assert ours.results["train"]["learning_rate"] == theirs.results["train"]["learning_rate"]
        for a, b in zip(lines(ours), lines(theirs), strict=True):
            assert a == pytest.approx(b, abs=1e-5, rel=1e-4)


def test_it_goes_on_with_what_is_not_finished(place, tmp_path):
    given = {"output_dir": tmp_path, "adapters_per_pass": 2, **common(place, max_steps=4, num_train_epochs=1)}
    first = {name: SWEEP[name] for name in ("small", "large")}
    before = deltatune.finetune_many(first, **given)
    with pytest.raises(SettingsError, match="finished run"):
        deltatune.finetune_many(SWEEP, **given)
    stamp = (tmp_path / "small" / "results.json").stat().st_mtime_ns
    (tmp_path / "large" / "results.json").unlink()
    after = deltatune.finetune_many(SWEEP, **given, resume=True)
    assert (tmp_path / "small" / "results.json").stat().st_mtime_ns == stamp
    assert after["small"].results == before["small"].results
    assert after["large"].results["test"] == before["large"].results["test"]
    assert (tmp_path / "scales" / "results.json").exists()


@pytest.mark.parametrize(
    ("runs", "given", "message"),
    [
        ({}, {}, "runs: name at least one"),
        ({"lr 1.5": {}}, {}, r"runs\.lr 1\.5: a run's name is its adapter's"),
        ({"a": {"method": "lora", "model": "other"}}, {}, r"runs\.a\.model: a run has a method and training"),
        ({"a": {"method": "lora"}, "b": {"training": {"bf16": True}}}, {}, r"training\.bf16 differs"),
        ({"a": {}, "b": {"training": {"gradient_checkpointing": True}}}, {}, "gradient_checkpointing differs"),
        ({"a": {"training": {"distillation": {"teacher": "base"}}}}, {}, r"runs\.a\.training\.distillation"),
        ({"a": {}}, {"adapters_per_pass": 0}, "adapters_per_pass is at least 1"),
        ({"a": {"training": {"lerning_rate": 1}}}, {}, r"runs\.a\.training\.lerning_rate: unknown key"),
    ],
)
def test_what_no_base_can_share_is_refused_before_anything_is_written(place, tmp_path, runs, given, message):
    with pytest.raises(SettingsError, match=message):
        deltatune.finetune_many(runs, output_dir=tmp_path / "many", **given, **common(place))
    assert not (tmp_path / "many").exists()


def test_one_base_serves_sweep_after_sweep(place, tmp_path):
    given = common(place)
    rest = {key: given[key] for key in ("task", "model", "data")}

    def plans(names, **more):
        return [many.plan(n, SWEEP[n], rest, given["training"], tmp_path / "many", resume=False, **more) for n in names]

    base = many.Base(plans(["small"])[0].settings)
    before = {name: tensor.clone() for name, tensor in base.ground.loaded.model.state_dict().items()}
    done = [dict(many.sweep(base, plans([name]), quiet=True))[name] for name in ("large", "small")]
    apart = alone(place, tmp_path / "alone", {name: SWEEP[name] for name in ("large", "small")})
    for run, other in zip(done, apart.values(), strict=True):
        assert run.results["test"] == other.results["test"]
        assert all(torch.equal(weights(run)[key], tensor) for key, tensor in weights(other).items())
    after = base.ground.loaded.model.state_dict()
    assert before.keys() == after.keys()
    new = base.ground.loaded.new
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items() if not key.startswith(new))


def test_a_trial_never_sees_the_test_rows(place, tmp_path, monkeypatch):
    given = common(place)
    rest = {key: given[key] for key in ("task", "model", "data")}
    plan = many.plan("small", SWEEP["small"], rest, given["training"], tmp_path, resume=False, trial=True)
    asked = []
    monkeypatch.setattr(
        "deltatune.finetuning.Running.measured",
        lambda self, part, answered, **how: asked.append(part) or measured(self, part, answered, **how),
    )
    results = dict(many.sweep(many.Base(plan.settings), [plan], quiet=True))["small"].results
    assert set(asked) == {"validation"}
    assert "test" not in results
    assert results["validation"]["accuracy"] > 0
