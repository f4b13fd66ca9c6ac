"""Out of memory: passes are cut, the step and its gradient stay."""

import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.methods.lora import LoRA
from deltatune.store import state
from deltatune.train.loop import Stopped, train
from deltatune.train.room import Room
from train.test_resume import assert_same_checkpoint, interrupted
from train.toy import job, lines

PLAIN = {"method": LoRA(r=2, target_modules=("first", "second")), "logging_steps": 1, "per_device_train_batch_size": 16}
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "plain": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError(),
}


def short(work, most, error=ERRORS["cuda"], backward=False):
    """The job on a machine that has room for this many rows; the memory may end in the middle of a backward."""
    tried = []

    def forward(module, inputs, output):
        if not torch.is_grad_enabled():  # an evaluation
            return output
        tried.append(len(output))
        if len(output) <= most:
            return output
        if not backward:
            raise error
        output.register_hook(raising)
        return output

    def raising(gradient):
        raise error

    (work.handle.model.first if backward else work.handle.model.second).register_forward_hook(forward)
    return tried


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_the_gradient_is_that_of_the_uncut_step(tmp_path, most, backward, kind, caplog):
    settings = {**PLAIN, "rows": 22, "num_train_epochs": 3}
    whole, cut = job(tmp_path / "whole", **settings), job(tmp_path / "cut", **settings)
    tried = short(cut, most, ERRORS[kind], backward)
    assert train(whole).steps == train(cut).steps == 6
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "cut"), strict=True):
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
            assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-5)
            assert b["tokens"] == a["tokens"]
    assert "out of memory with 16 rows in a pass" in caplog.text
    assert max(tried[len(tried) // 2 :]) <= most


def test_one_step_has_the_gradient_of_the_uncut_one_within_a_millionth(tmp_path, monkeypatch):
    found = {}
    for name, most in (("whole", 99), ("cut", 3)):
        work = job(tmp_path / name, rows=16, max_steps=1, **PLAIN)
        short(work, most, backward=True)
        kept = []
        step = torch.optim.AdamW.step
        monkeypatch.setattr(
            torch.optim.AdamW,
            "step",
            lambda self, *args, kept=kept, step=step, work=work: (
                kept.extend(p.grad.clone() for p in work.handle.parameters()),
                step(self, *args),
            ),
        )
        train(work)
        monkeypatch.undo()
        found[name] = kept
    assert len(found["whole"]) == 4
    for a, b in zip(found["whole"], found["cut"], strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(a.abs().max()))


def test_a_cut_pass_stays_cut_after_a_resume_and_equals_to_the_bit(tmp_path):
    settings = {**PLAIN, "rows": 22, "num_train_epochs": 4, "eval_steps": 2}
    straight = job(tmp_path / "straight", **settings)
    short(straight, 4)
    train(straight)
    stopped = interrupted(job(tmp_path / "resumed", **settings), 4)
    short(stopped, 4)
    with pytest.raises(Stopped):
        train(stopped)
    again = job(tmp_path / "resumed", **settings)
    tried = short(again, 4)
    train(again, resume=True)
    assert max(tried) <= 4
    assert state.load(tmp_path / "resumed" / "checkpoint-8")["room"]["cells"] is not None
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "resumed", 8)


def test_a_row_that_does_not_fit_alone_is_an_error_with_the_way_out(tmp_path):
    work = job(tmp_path, **PLAIN)
    short(work, 0)
    with pytest.raises(DeltatuneError, match="row of length 5 does not fit into memory: CUDA.*gradient_checkpointing"):
        train(work)


def test_other_errors_pass(tmp_path):
    work = job(tmp_path, **PLAIN)
    short(work, 4, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(work)


def test_what_a_method_noted_in_a_backward_that_broke_off_is_not_counted_twice(tmp_path):
    work = job(tmp_path, **PLAIN)
    work.handle.modules = lambda: iter([noting])
    noting = torch.nn.BatchNorm1d(3)
    short(work, 4, backward=True)
    work.handle.model.second.register_forward_hook(lambda *_: noting.num_batches_tracked.add_(1) and None)
    with pytest.raises(DeltatuneError, match="out of memory while lora was taking notes .*per_device_train_batch_size"):
        train(work)


def test_long_rows_come_in_smaller_passes_than_short_ones():
    lengths, room = [10, 10, 1, 1, 1, 1], Room(10)
    assert [part for rows in ([0, 1], [2, 3, 4, 5]) for part in room._cut(rows, lengths)] == [[0], [1], [2, 3, 4, 5]]
