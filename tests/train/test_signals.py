"""Ctrl-C and SIGTERM."""

import os
import signal
import threading

import pytest

from deltatune.train.loop import Stopped, train
from deltatune.train.signals import Signals
from train.test_resume import interrupted
from train.toy import job


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_exit_code_and_the_handlers_come_back(tmp_path, number, code):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="the state is saved in .*--resume") as caught:
        train(interrupted(job(tmp_path, gradient_accumulation_steps=2), 2, number))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is before
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_signal_during_an_evaluation_waits_for_its_end(tmp_path):
    def evaluate(attached):
        os.kill(os.getpid(), signal.SIGINT)
        return {"accuracy": 0.5}

    with pytest.raises(Stopped):
        train(job(tmp_path, evaluate=evaluate))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert (tmp_path / "adapter").is_dir()


def test_the_handlers_come_back_after_an_error(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def evaluate(attached):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(job(tmp_path, evaluate=evaluate))
    assert signal.getsignal(signal.SIGINT) is before


def test_off_the_main_thread_no_handler_is_installed():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
