"""Groups of the optimizer: paces of the methods, decay on matrices, LoRA+ as peft builds it."""

import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from contract.cases import model_of
from deltatune.core import registry
from deltatune.core.config import TrainingSettings
from deltatune.core.errors import SettingsError
from deltatune.core.method import Pace
from deltatune.core.pace import parameter_groups
from deltatune.engine.attach import attach
from deltatune.methods.lora import LoRA
from deltatune.train.loop import Stopped, train
from deltatune.train.optimizer import make_optimizer, make_schedule
from train.test_resume import interrupted
from train.toy import handle, job, lines, weights


def groups_of(attached, **settings):
    return make_optimizer(attached, TrainingSettings(**settings), 1e-3).param_groups


@pytest.mark.parametrize("method", ["bitfit", "sparse", "spiel", "fish"])
def test_weight_decay_spares_vectors(method):
    (group,) = groups_of(attach(model_of("bert"), registry.method(method)), weight_decay=0.1)
    assert group["weight_decay"] == 0.0
    (group,) = groups_of(handle(), weight_decay=0.1)
    assert group["weight_decay"] == 0.1


def test_a_pace_sets_rate_and_decay_of_its_tensor():
    paces = {
        "a": Pace(rate=3.0),
        "b": Pace(),
        "c": Pace(decay=False),
        "d": Pace(rate=2.0, outer=True),
        "e": Pace(decay=True),
    }
    tensors = {name: nn.Parameter(torch.zeros(2, 2) if name != "e" else torch.zeros(2)) for name in paces}
    found = parameter_groups(tensors, paces.__getitem__, 0.1, 0.01, outer_ratio=4.0)
    names = {id(tensor): name for name, tensor in tensors.items()}
    seen = [("".join(names[id(p)] for p in g["params"]), g["lr"], g["weight_decay"]) for g in found]
    assert [(letters, decay) for letters, _, decay in seen] == [("be", 0.01), ("a", 0.01), ("d", 0.01), ("c", 0.0)]
    assert [rate for _, rate, _ in seen] == pytest.approx([0.1, 0.3, 0.8, 0.1])


@pytest.mark.parametrize("ratio", [16.0, 0.5])
def test_lora_plus_has_the_groups_of_peft(ratio):
    attached = attach(model_of("llama"), LoRA(r=2, target_modules=("q_proj", "v_proj")))
    own = groups_of(attached, loraplus_lr_ratio=ratio, weight_decay=0.02)
    other = get_peft_model(
        model_of("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    theirs = create_loraplus_optimizer(
        other, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.02
    ).param_groups
    assert summary(own) == summary(theirs)


def summary(groups):
    """Rate, decay and shapes of every group that holds something."""
    return sorted(
        (group["lr"], group["weight_decay"], sorted(tuple(p.shape) for p in group["params"]))
        for group in groups
        if group["params"]
    )


def test_the_paper_s_ratio_moves_b_further_in_the_first_step():
    steps = {}
    for ratio in (1.0, 8.0):
        attached = handle()
        before = weights(attached)
        optimizer = make_optimizer(attached, TrainingSettings(weight_decay=0.0, loraplus_lr_ratio=ratio), 1e-3)
        for p in attached.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        steps[ratio] = {n: float((t - before[n]).abs().max()) for n, t in weights(attached).items() if "lora" in n}
    for name, step in steps[8.0].items():
        assert step == pytest.approx(steps[1.0][name] * (8 if name.endswith("B") else 1), rel=1e-3)


def test_lora_plus_without_a_second_factor_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="loraplus_lr_ratio=16 has no effect.*lora, dora"):
        train(job(tmp_path, method=registry.method("bitfit"), loraplus_lr_ratio=16))


def test_lora_plus_resumes_to_the_bit(tmp_path):
    settings = {"max_steps": 6, "loraplus_lr_ratio": 16.0, "lr_scheduler_type": "cosine"}
    straight = job(tmp_path / "straight", **settings)
    train(straight)
    with pytest.raises(Stopped):
        train(interrupted(job(tmp_path / "resumed", **settings), 1, signal.SIGTERM))
    again = job(tmp_path / "resumed", **settings)
    train(again, resume=True)
    for name, tensor in weights(straight.handle).items():
        assert torch.equal(tensor, weights(again.handle)[name]), name
    plain = job(tmp_path / "plain", **{**settings, "loraplus_lr_ratio": 1.0})
    train(plain)
    assert not all(torch.equal(a, b) for a, b in zip(plain.handle.parameters(), again.handle.parameters(), strict=True))


def test_the_log_has_the_rate_of_the_run_whatever_the_groups(tmp_path):
    train(job(tmp_path, max_steps=4, logging_steps=1, warmup_steps=0, learning_rate=1.0, loraplus_lr_ratio=0.25))
    rates = [line["learning_rate"] for line in lines(tmp_path) if "loss" in line]
    assert rates == pytest.approx([0.75, 0.5, 0.25, 0.0])


def test_the_schedule_moves_every_group_by_its_own_peak():
    optimizer = make_optimizer(handle(), TrainingSettings(loraplus_lr_ratio=16.0), 1e-3)
    schedule = make_schedule(optimizer, TrainingSettings(warmup_steps=2), 4)
    optimizer.step(), schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.5e-3, 8e-3])


@pytest.mark.parametrize("method, share", [("lora", 1.0), ("ia3", 0.3), ("prefix", 0.1), ("prompt", 0.666667)])
def test_a_head_learns_at_no_more_than_suits_a_head(method, share):
    adapter = attach(model_of("bert"), registry.method(method, modules_to_save=("classifier",)), name="default")
    rates = {name: pace.rate for name, pace in adapter.paces().items()}
    assert {round(rate, 6) for name, rate in rates.items() if name.startswith("classifier.")} == {share}
    assert {rate for name, rate in rates.items() if not name.startswith("classifier.")} == {1.0}


@pytest.mark.parametrize("whole", [None, ("classifier",)])
def test_a_linear_probe_trains_the_head_at_its_own_rate(whole):
    adapter = attach(model_of("bert"), registry.method("linear-probe", modules_to_save=whole), name="default")
    assert {pace.rate for pace in adapter.paces().values()} == {1.0}
