"""Progress: lines without a terminal, a bar with one, nothing when quiet."""

import io
import sys
from dataclasses import replace

import pytest

from deltatune.train.loop import train
from train.toy import job


def run(folder, *, quiet: bool = False):
    train(replace(job(folder, max_steps=6, eval_steps=3), quiet=quiet))


def test_lines_without_a_terminal(tmp_path, capsys):
    run(tmp_path)
    captured = capsys.readouterr()
    found = captured.err.splitlines()
    assert captured.out == "" and len(found) == 4
    assert found[0].startswith("step 3/6  loss 0.") and found[0].endswith(" s left") and "tokens/s" in found[0]
    assert found[1].startswith("validation accuracy 0.") and found[1].endswith("(best so far)")
    assert "accuracy 0." in found[2]


def test_nothing_when_quiet(tmp_path, capsys):
    run(tmp_path, quiet=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal(tmp_path, monkeypatch, quiet):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run(tmp_path, quiet=quiet)
    assert ("6/6" in terminal.getvalue()) == (not quiet)
    assert ("validation" in terminal.getvalue()) == (not quiet)
