"""Distillation: the teacher's answers are its own and stay so, the loss is the closed form, a resume is exact."""

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from contract.cases import model_of
from deltatune.core.config import DistillationSettings, TrainingSettings
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.task import inputs_of
from deltatune.engine.attach import attach
from deltatune.methods.lora import LoRA
from deltatune.ops import distillation as losses
from deltatune.store import adapter as folders
from deltatune.store import state
from deltatune.store.run import RunFolder
from deltatune.tasks.text_classification import TextClassification
from deltatune.train.distill import Distillation, supervised
from deltatune.train.loop import Job, Stopped, train
from deltatune.train.teacher import Teacher, teacher_of
from models import inputs
from train.test_resume import interrupted
from train.toy import weights
from words import model_folder, reviews

ROWS = reviews(40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return models(tmp_path_factory.mktemp("place"))


def models(folder):
    """`plain`: no head. `headed`: with one, good at index 1. `wide`: another width. `turned`: the classes turned."""
    for name, width in (("plain", 32), ("headed", 32), ("wide", 48), ("turned", 32)):
        model_folder(folder / name, width)
        if name != "plain":
            names = ["good", "bad"] if name == "turned" else ["bad", "good"]
            labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
            torch.manual_seed(4)
            model = AutoModelForSequenceClassification.from_pretrained(folder / name, num_labels=2, **labels)
            with torch.no_grad():
                model.classifier.weight.mul_(30)  # answers that differ from row to row
            model.save_pretrained(folder / name)
    return folder


def work(folder, model, teacher="base", method=None, rows=ROWS, **settings):
    """A job on reviews; `settings` of the distillation, and those of training under `training`."""
    task = TextClassification().fit(rows)
    loaded = task.load(str(model))
    attached = attach(loaded.model, method or LoRA(r=2, modules_to_save=("head",)))
    training = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 4, **settings.pop("training", {})}
    given = TrainingSettings(distillation={"teacher": str(teacher), **settings} if teacher else None, **training)
    folder.mkdir(parents=True, exist_ok=True)
    examples = task.encode(rows, loaded.processor)
    made = teacher_of(given.distillation, task, loaded, attached, rows)
    metrics = {"accuracy": 0.5}
    run = RunFolder(folder)
    return Job(
        attached, task, loaded.processor, examples, given, lambda: metrics, lambda: None, run, quiet=True, teacher=made
    )


def batch_of(job: Job, count: int = 6) -> Any:
    return job.task.collate(job.examples[:count], job.processor)


def logits(model, batch):
    with torch.no_grad():
        return model(**inputs_of(batch)).logits


# -- the teacher


@pytest.mark.parametrize("base_dropout", [False, True])
def test_the_base_as_teacher_answers_as_the_base_to_the_bit(tmp_path, place, base_dropout):
    job = work(tmp_path, place / "headed")
    base = logits(job.handle.model.eval(), batch_of(job))  # the start is the base
    with torch.no_grad():
        for parameter in job.handle.parameters():
            parameter.add_(0.3)
    job.handle.model.train(base_dropout)
    job.handle.train_mode(True)
    modes = [module.training for module in job.handle.model.modules()]
    own = logits(job.handle.model, batch_of(job))
    random = torch.get_rng_state()
    assert torch.equal(job.teacher.answer(batch_of(job)).logits, base)
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in job.handle.model.modules()] == modes
    assert job.handle.active and not torch.equal(own, base)
    if not base_dropout:
        assert torch.equal(logits(job.handle.model, batch_of(job)), own)


def test_a_teacher_that_fails_leaves_the_student_as_it_was(tmp_path, place):
    job = work(tmp_path, place / "headed")
    job.handle.train_mode(True)
    with pytest.raises(ValueError, match="input_ids"):
        job.teacher.answer({"no_such_input": torch.zeros(1)})
    assert job.handle.active and all(module.training for module in job.handle.modules())


def test_teaching_changes_nothing_but_the_student(tmp_path, place):
    job = work(tmp_path, place / "headed", teacher=place / "wide", hidden=1.0)
    before = {n: p.clone() for n, p in job.teacher.model.named_parameters()}
    start = weights(job.handle)
    train(job)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in job.teacher.model.named_parameters())
    assert not all(torch.equal(t, start[n]) for n, t in weights(job.handle).items())


def test_an_adapter_on_the_same_base_teaches_from_there(tmp_path, place):
    other = work(tmp_path, place / "headed", teacher=None)
    with torch.no_grad():
        for parameter in other.handle.parameters():
            parameter.add_(0.1)
    expected = logits(other.handle.model.eval(), batch_of(other))
    folders.write(other.handle.export(base_model=str((place / "headed").resolve())), tmp_path / "teacher" / "adapter")
    job = work(tmp_path / "run", place / "headed", teacher=tmp_path / "teacher", alpha=1.0)
    assert job.teacher.model is job.handle.model and job.handle.active
    assert torch.equal(job.teacher.answer(batch_of(job)).logits, expected)
    trained = {id(p) for p in job.handle.parameters()}
    assert {id(p) for p in job.handle.model.parameters() if p.requires_grad} == trained
    train(job)
    assert torch.equal(job.teacher.answer(batch_of(job)).logits, expected)
    assert not any("teacher" in name for name in job.handle.export().tensors)
    with pytest.raises(AdapterError, match="already attached"):
        teacher_of(job.settings.distillation, job.task, SimpleNamespace(model=job.handle.model), job.handle, ROWS)
    elsewhere = work(tmp_path / "wide", place / "wide", teacher=tmp_path / "teacher")
    assert elsewhere.teacher.model is not elsewhere.handle.model
    assert torch.allclose(elsewhere.teacher.answer(batch_of(job)).logits, expected, atol=1e-6)


def test_an_attached_adapter_teaches_by_its_name(tmp_path, place):
    job = work(tmp_path, place / "headed")
    attach(job.handle.model, LoRA(r=2), name="elder", seed=3)
    job.handle.activate()
    made = teacher_of(
        DistillationSettings(teacher="elder"), job.task, SimpleNamespace(model=job.handle.model), job.handle, ROWS
    )
    with job.handle.roster.activated("elder"):
        expected = logits(job.handle.model.eval(), batch_of(job))
    assert torch.equal(made.answer(batch_of(job)).logits, expected)


REFUSED = [
    ("plain", "base", {}, "its .*classifier is new and untrained; name a trained teacher"),
    ("headed", "plain", {}, "cannot answer: it has no trained classifier"),
    ("headed", "turned", {}, r"labels good, bad, the task has bad, good; set task.labels: \[good, bad\]"),
    ("headed", "nowhere/at/all", {}, "is no adapter and no model"),
]


@pytest.mark.parametrize(("student", "teacher", "settings", "message"), REFUSED)
def test_a_teacher_whose_answers_mean_nothing_is_refused(tmp_path, place, student, teacher, settings, message):
    name = teacher if teacher == "base" or "/" in teacher else place / teacher
    with pytest.raises(SettingsError, match=message):
        work(tmp_path, place / student, teacher=name, **settings)


def test_a_new_head_may_learn_from_hidden_states_alone(tmp_path, place):
    job = work(tmp_path, place / "plain", alpha=0.0, hidden=1.0)
    assert train(job).steps == 4


# -- the loss


def distillation(job, **settings):
    return Distillation(DistillationSettings(teacher="base", **settings), job.teacher, job.task)


def test_the_loss_is_the_mixture_of_labels_and_teacher(tmp_path, place):
    job = work(tmp_path, place / "headed")
    with torch.no_grad():
        for parameter in job.handle.parameters():
            parameter.add_(0.2)
    batch = batch_of(job)
    made = distillation(job, alpha=0.3, temperature=3.0)
    answer = made.ask(range(6), batch)
    output = job.handle.model(**inputs_of(batch))
    p, q = (answer.logits / 3).softmax(-1), (output.logits / 3).softmax(-1)
    expected = 0.7 * F.cross_entropy(output.logits, batch["labels"])
    expected = expected + 0.3 * 9 * (p * (p.log() - q.log())).sum(-1).mean()
    assert torch.allclose(made.loss(output, batch, answer), expected, atol=1e-6)


def test_a_student_that_is_its_teacher_has_no_gradient(tmp_path, place):
    job = work(tmp_path, place / "headed")
    job.handle.model.eval()
    made, batch = distillation(job, alpha=1.0, hidden=1.0), batch_of(job)
    answer = made.ask(range(6), batch)
    loss = made.loss(job.handle.model(**inputs_of(batch), output_hidden_states=True), batch, answer)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not any(p.grad is not None and p.grad.any() for p in job.handle.parameters())


def test_without_weight_the_training_is_the_plain_one_to_the_bit(tmp_path, place):
    plain = work(tmp_path / "plain", place / "headed", teacher=None)
    taught = work(tmp_path / "taught", place / "headed", alpha=0.0)
    moved = work(tmp_path / "moved", place / "headed", alpha=0.5)
    for job in (plain, taught, moved):
        train(job)
    for name, tensor in weights(plain.handle).items():
        assert torch.equal(tensor, weights(taught.handle)[name]), name
    assert any(not torch.equal(t, weights(moved.handle)[n]) for n, t in weights(plain.handle).items())


def test_the_teacher_alone_moves_the_student_to_its_answers(tmp_path, place):
    job = work(
        tmp_path, place / "headed", teacher=place / "wide", alpha=1.0, temperature=1.0, training={"max_steps": 60}
    )
    batch = batch_of(job, 40)
    answer = job.teacher.answer(batch).logits

    def distance():
        return float(losses.classes(logits(job.handle.model, batch), answer, 1.0))

    before = distance()
    train(job)
    assert distance() < 0.3 * before


@pytest.mark.parametrize("hidden", [0.0, 2.0])
def test_micro_batches_are_one_large_batch(tmp_path, place, hidden):
    found = []
    for name, size, accumulation in (("large", 40, 1), ("small", 8, 5)):
        training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        job = work(tmp_path / name, place / "headed", place / "wide", hidden=hidden, training=training)
        train(job)
        found.append(weights(job.handle))
    assert all(torch.allclose(t, found[1][n], atol=2e-5) for n, t in found[0].items())


def test_several_labels_and_numbers_have_their_own_losses(tmp_path, place):
    job = work(tmp_path, place / "headed")
    batch = batch_of(job)
    s, t = torch.randn(6, 2), torch.randn(6, 2)
    for problem, expected in (("multi-label", losses.labels(s, t, 2.0)), ("regression", losses.values(s, t))):
        made = Distillation(
            DistillationSettings(teacher="base", alpha=1.0),
            job.teacher,
            job.task.model_copy(update={"problem": problem}),
        )
        assert torch.equal(made.loss(SimpleNamespace(logits=s), batch, SimpleNamespace(logits=t)), expected)


# -- positions


class Positions:
    """A task whose logits are [B, T, C]."""

    def __init__(self, predicts):
        self.predicts = predicts

    def loss(self, output, batch):
        return torch.zeros(())


@pytest.mark.parametrize(("predicts", "kept"), [("classes", [0, 2, 4]), ("next classes", [1, 3])])
def test_only_positions_with_a_label_count(predicts, kept):
    labels = torch.tensor([[5, -100, 7, -100, 9]])
    s = torch.randn(1, 5, 4, requires_grad=True)
    t = torch.randn(1, 5, 4)
    task = Positions(predicts)
    assert supervised(task, s, {"labels": labels})[0].nonzero()[:, 0].tolist() == kept
    made = Distillation(DistillationSettings(teacher="base", alpha=1.0, temperature=1.0), None, task)
    loss = made.loss(SimpleNamespace(logits=s), {"labels": labels}, SimpleNamespace(logits=t))
    p, q = t[0, kept].softmax(-1), s[0, kept].softmax(-1)
    assert torch.allclose(loss, (p * (p.log() - q.log())).sum(-1).mean(), atol=1e-6)
    loss.backward()
    assert s.grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == kept


def test_a_language_model_learns_from_its_own_base():
    model = model_of("llama")
    handle = attach(model, LoRA(r=2))
    batch = {**inputs(model), "labels": inputs(model)["input_ids"].where(inputs(model)["attention_mask"].bool(), -100)}
    made = Distillation(
        DistillationSettings(teacher="base", alpha=1.0), Teacher(model, handle.disabled), Positions("next classes")
    )
    made.prepare(model, [0], batch, 0)
    base = made.ask([0], batch)
    assert float(made.loss(model(**inputs_of(batch)), batch, base).detach()) == 0.0
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.add_(0.1)
    assert torch.equal(made.ask([0], batch).logits, base.logits)
    made.loss(model(**inputs_of(batch)), batch, base).backward()
    assert all(p.grad.abs().sum() > 0 for p in handle.parameters())


def test_recomputed_activations_are_the_student_s(tmp_path, place):
    found = []
    for checkpointing in (False, True):
        job = work(
            tmp_path / str(checkpointing),
            place / "headed",
            method=LoRA(r=2, lora_dropout=0.3, modules_to_save=("head",)),
            training={"gradient_checkpointing": checkpointing},
        )
        torch.manual_seed(0)
        train(job)
        found.append(weights(job.handle))
    assert all(torch.allclose(tensor, found[1][name], atol=1e-6) for name, tensor in found[0].items())


def test_another_vocabulary_is_an_error():
    made = Distillation(DistillationSettings(teacher="base"), None, Positions("next classes"))
    s, t = (SimpleNamespace(logits=torch.zeros(1, 5, size)) for size in (99, 120))
    with pytest.raises(SettingsError, match="answers with 99 classes, the teacher with 120; .* same labels or vocabul"):
        made.loss(s, {"labels": torch.zeros(1, 5, dtype=torch.long)}, t)


def test_other_tokens_are_an_error_where_positions_are_compared(tmp_path, place):
    job = work(tmp_path, place / "headed", teacher=place / "wide", hidden=1.0)
    for example in job.teacher.examples:
        example["input_ids"] = [7, *example["input_ids"][1:]]
    with pytest.raises(SettingsError, match="cuts texts into other tokens"):
        train(job)
    assert train(work(tmp_path / "rows", place / "headed", teacher=place / "wide")).steps == 4


# -- hidden states


def test_hidden_states_are_compared_at_real_tokens_row_by_row(tmp_path, place):
    job = work(tmp_path, place / "headed", teacher=place / "wide")
    made = Distillation(DistillationSettings(teacher="x", alpha=0.0, hidden=1.5), job.teacher, job.task)
    batch = batch_of(job)
    made.prepare(job.handle.model, range(6), batch, 0)
    answer = made.ask(range(6), batch)
    output = job.handle.model.eval()(**inputs_of(batch), output_hidden_states=True)
    task = job.task.loss(output, batch)
    rows = []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        ours = output.hidden_states[-1][row][mask] @ made.projection.weight.T
        rows.append((ours - answer.hidden_states[-1][row][mask]).square().mean())
    assert torch.allclose(made.loss(output, batch, answer), task + 1.5 * torch.stack(rows).mean(), atol=1e-5)


def test_the_projection_trains_along_and_is_thrown_away(tmp_path, place):
    job = work(tmp_path, place / "headed", teacher=place / "wide", hidden=1.0)
    train(job)
    assert not any("projection" in name for name in job.handle.export().tensors)
    narrow = work(tmp_path / "narrow", place / "headed", hidden=1.0)
    made = distillation(narrow, hidden=1.0)
    made.prepare(narrow.handle.model, [0], batch_of(narrow, 1), 0)
    assert made.parameters() == []


def test_a_resumed_distillation_equals_one_that_was_never_interrupted(tmp_path, place):
    def made(name):
        settings = {"max_steps": 6, "eval_steps": 2, "early_stopping_patience": None}
        return work(tmp_path / name, place / "headed", teacher=place / "wide", hidden=1.0, training=settings)

    straight = made("straight")
    train(straight)
    with pytest.raises(Stopped):
        job = made("resumed")
        task = interrupted(job, 1, signal.SIGINT).task
        train(replace(job, task=type(task)(**job.task.model_dump())))
    again = made("resumed")
    train(again, resume=True)
    one, two = (state.load(tmp_path / name / "checkpoint-6") for name in ("straight", "resumed"))
    assert torch.equal(one["distillation"]["weight"], two["distillation"]["weight"])
    assert one["distillation"]["weight"].shape == (48, 32)
    for name, tensor in weights(straight.handle).items():
        assert torch.equal(tensor, weights(again.handle)[name]), name


def test_settings_are_checked_and_hinted():
    with pytest.raises(SettingsError, match=r"training.distillation.temprature: unknown key, did you mean temperature"):
        TrainingSettings.parse({"distillation": {"teacher": "base", "temprature": 2}}, "training")
    with pytest.raises(SettingsError, match="training.distillation.teacher: is required"):
        TrainingSettings.parse({"distillation": {}}, "training")
